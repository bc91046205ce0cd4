//! What is passed to whoever tells a guest: a document on a descriptor, for command lines are public.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::time::Duration;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::spec::VmSpec;
use ocivisor_core::state::GuestKind;
use ocivisor_schema::VmSpecV1;
use ocivisor_schema::record::GuestKindV1;
use serde::{Deserialize, Serialize};

/// Version that is written, and the only one there has been.
const VERSION: u32 = 1;
/// Most bytes. A spec's context holds half a megabyte, some of it in base64.
const MAX_BYTES: u64 = 4 << 20;

/// When a guest is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Moment {
    /// Before its first instruction.
    Boot,
    /// While it runs.
    Change,
}

/// What in the guest runs the start script.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Runner {
    /// systemd, by a unit.
    Systemd,
    /// sysvinit, by its inittab.
    Sysvinit,
    /// busybox init, by its inittab.
    Busybox,
    /// Our own small init.
    Ours,
}

/// How long a telling may take: the guest can make its own files slow. Longer with a larger context disk, for the
/// guest's limits of I/O count for it.
///
/// # Errors
/// `Host`: the disk's size cannot be had.
pub fn patience(mut disk: Option<&File>) -> Result<Duration> {
    const LEAST: Duration = Duration::from_secs(20);
    /// Bytes per second, and the largest disk that counts.
    const SPEED: u64 = 4 << 20;
    const MOST: u64 = 256 << 20;
    // A block device has no other length.
    let size = disk.as_mut().map_or(Ok(0), |disk| disk.seek(SeekFrom::End(0)));
    let size = size.map_err(|e| crate::disk_error(&e))?;
    Ok(LEAST + Duration::from_secs(size.min(MOST) / SPEED))
}

/// Everything that a guest is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Telling {
    /// When.
    pub moment: Moment,
    /// What its first process is.
    pub kind: GuestKind,
    /// What runs its start script.
    pub runner: Runner,
    /// The wish for it.
    pub spec: VmSpec,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TellingV1 {
    version: u32,
    moment: Moment,
    kind: GuestKindV1,
    runner: Runner,
    spec: VmSpecV1,
}

impl Telling {
    /// The document.
    ///
    /// # Errors
    /// Never for a checked spec; the format is fallible.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let document = TellingV1 {
            version: VERSION,
            moment: self.moment,
            kind: self.kind.into(),
            runner: self.runner,
            spec: (&self.spec).into(),
        };
        serde_json::to_vec(&document).map_err(|e| bad(&e))
    }

    /// Reads a document to its end.
    ///
    /// # Errors
    /// `Invalid`: it is none, or of another version. `Host`: it cannot be read.
    pub fn read(from: File) -> Result<Self> {
        let mut bytes = Vec::new();
        let read = from.take(MAX_BYTES).read_to_end(&mut bytes);
        read.map_err(|e| Error::new(ErrorKind::Host, format!("read what to tell: {e}")))?;
        Self::parse(&bytes)
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        let document: TellingV1 = serde_json::from_slice(bytes).map_err(|e| bad(&e))?;
        if document.version != VERSION {
            return Err(bad(&format_args!("version {} is unknown", document.version)));
        }
        Ok(Self {
            moment: document.moment,
            kind: document.kind.into(),
            runner: document.runner,
            spec: VmSpec::try_from(document.spec)?,
        })
    }
}

fn bad(why: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorKind::Invalid, format!("what to tell a guest: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::spec;

    #[test]
    fn a_large_disk_takes_longer() {
        let disk = tempfile::tempfile().unwrap();
        for (mib, seconds) in [(0, 20), (40, 30), (256, 84), (10_000, 84)] {
            disk.set_len(mib << 20).unwrap();
            assert_eq!(patience(Some(&disk)).unwrap(), Duration::from_secs(seconds));
        }
        assert_eq!(patience(None).unwrap(), Duration::from_secs(20));
    }

    #[test]
    fn the_document_is_read_back_and_others_are_refused() {
        let telling = Telling {
            moment: Moment::Change,
            kind: GuestKind::System,
            runner: Runner::Systemd,
            spec: spec(),
        };
        let bytes = telling.to_bytes().unwrap();
        assert_eq!(Telling::parse(&bytes).unwrap(), telling);
        let text = String::from_utf8(bytes).unwrap();
        for (from, to) in [
            ("\"version\":1", "\"version\":2"),
            ("\"version\"", "\"more\":1,\"version\""),
            ("\"change\"", "\"never\""),
            ("\"one-7\"", "\"../7\""),
        ] {
            let changed = text.replacen(from, to, 1);
            assert_ne!(changed, text);
            assert_eq!(Telling::parse(changed.as_bytes()).unwrap_err().kind, ErrorKind::Invalid);
        }
    }
}
