//! What a qcow2 file stands on, for whoever has it served by QEMU's tools.
//!
//! Those follow what an image names: a backing file by any path or URL, a data file. Whoever serves one has to know
//! beforehand what it asks for, decide, and tell the tool each file by himself. Here it is read and nothing is opened.

use std::fs::File;

use super::super::device::{self, Device, Image};
use super::super::fault::{DiskFault, Res, View, index};
use super::Header;
use crate::cancel::Cancel;

/// Header extension with the format of the backing file (docs/interop/qcow2.txt).
const FORMAT: u32 = 0xe279_2aca;
/// Longest name of a format that is looked at; QEMU's own bound is 15.
const FORMAT_MAX: u32 = 15;
/// Most header extensions that are looked at; there are five kinds.
const EXTENSIONS_MAX: usize = 64;

/// A qcow2 file whose header is sound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qcow2File {
    /// Bytes of the disk in it.
    pub size: u64,
    /// What it names as its backing file.
    pub backing: Option<BackingName>,
}

/// A backing file as an image names it: an attacker's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackingName {
    /// The name, at most 1023 bytes.
    pub name: Vec<u8>,
    /// Its format, where the image tells it.
    pub format: Option<String>,
}

impl Qcow2File {
    /// Looks at the header of an open file; nothing else is opened, and no table is followed.
    ///
    /// # Errors
    /// It is no qcow2 file, its header is damaged or uses what is not handled: encryption, a data file elsewhere,
    /// extended L2 entries.
    pub fn look(file: &File) -> Result<Self, DiskFault> {
        let file = file.try_clone().map_err(|source| DiskFault::Read { at: 0, source })?;
        Self::of(&Image::new(file, &Cancel::new())?)
    }

    pub(super) fn of(file: &dyn Device) -> Res<Self> {
        let header = Header::read(file)?;
        if header.data_file {
            return Err(DiskFault::DataFile);
        }
        let backing = match header.backing {
            Some(name) => Some(BackingName { name, format: format(file, header.cluster_bits)? }),
            None => None,
        };
        Ok(Self { size: header.size, backing })
    }
}

/// The format of the backing file, which an extension behind the header tells.
fn format(file: &dyn Device, cluster_bits: u32) -> Res<Option<String>> {
    const WHAT: &str = "qcow2 header extension";
    let field =
        |at: u64| -> Res<u32> { View::new(&device::bytes(file, at, 4, WHAT)?, WHAT).be32(0) };
    let mut at = match field(4)? {
        2 => 72,
        _ => u64::from(field(100)?),
    };
    for _ in 0..EXTENSIONS_MAX {
        // All of them lie in the first cluster.
        if at + 8 > 1 << cluster_bits {
            return Ok(None);
        }
        let (kind, len) = (field(at)?, field(at + 4)?);
        match kind {
            0 => return Ok(None),
            FORMAT if len > FORMAT_MAX => {
                let what = "bytes of the qcow2 backing format";
                return Err(DiskFault::TooLarge {
                    what,
                    value: len.into(),
                    max: FORMAT_MAX.into(),
                });
            }
            FORMAT => {
                let name = device::bytes(file, at + 8, index(len), WHAT)?;
                return Ok(Some(crate::error::escape(&name)));
            }
            // Padded to 8 bytes.
            _ => at += 8 + u64::from(len).next_multiple_of(8),
        }
    }
    Err(DiskFault::damaged(WHAT, "there are too many"))
}
