//! Reads an ISO 9660 image: the disk on which platforms bring a context.
//!
//! Its bytes are a tenant's, so it is never mounted: the kernel's reader of this format is not made for enemies.
//! This one makes no allocation of a size that the image names, follows no pointer twice without a bound, and runs
//! where the guest is already confined.
//!
//! Names come from Rock Ridge (IEEE P1282) if the image has it, else from Joliet, else from ISO 9660 itself, in
//! lower case as Linux shows them. Read: ECMA-119 (which is ISO 9660), SUSP 1.12 and RRIP 1.12 for names and types.
//!
//! Absent on purpose: files in several extents (over 4 GiB), interleaved files, links, compressed files.

mod rockridge;

use std::cell::{Cell, OnceCell};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use ocivisor_core::error::{Error, ErrorKind, Result};
use rockridge::Kind;

use crate::content::Content;

/// Bytes of a sector.
const SECTOR: u64 = 2048;
/// Where the volume descriptors begin, ECMA-119 6.2.1.
const DESCRIPTORS: u64 = 16;
/// Most volume descriptors looked at.
const MAX_DESCRIPTORS: u64 = 64;
/// Most bytes of directories and names that are read of one disk: directories may contain each other.
const MAX_READ: u64 = 64 << 20;
/// Most bytes of a directory.
const MAX_DIRECTORY: u32 = 4 << 20;
/// Most entries of a directory.
const MAX_ENTRIES: usize = 4096;
/// Bytes of a directory record before its name, ECMA-119 9.1.
const RECORD: usize = 33;

/// An image.
#[derive(Debug)]
pub struct Iso<'a> {
    file: &'a File,
    size: u64,
    root: Extent,
    names: Names,
    /// Bytes that may still be read.
    left: Cell<u64>,
}

/// Where names come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Names {
    /// System use fields, of which so many bytes at first are somebody else's.
    RockRidge(usize),
    /// UCS-2, big-endian.
    Joliet,
    Plain,
}

/// A run of bytes in the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extent {
    offset: u64,
    length: u32,
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name: a single part of a path.
    pub name: String,
    /// Whether it is a directory; else it is a regular file.
    pub directory: bool,
    extent: Extent,
}

impl<'a> Iso<'a> {
    /// Reads the volume descriptors.
    ///
    /// # Errors
    /// `Invalid`: it is none, or not a sound one. `Host`: it cannot be read.
    pub fn open(file: &'a File) -> Result<Self> {
        let size = file.metadata().map_err(|e| unreadable(&e))?.len();
        // A block device has no length of its own; reads beyond its end fail.
        let size = if size == 0 { u64::MAX } else { size };
        let left = Cell::new(MAX_READ);
        let mut iso =
            Self { file, size, root: Extent { offset: 0, length: 0 }, names: Names::Plain, left };
        let (mut primary, mut joliet) = (None, None);
        for n in 0..MAX_DESCRIPTORS {
            let sector: [u8; SECTOR as usize] = iso.bytes((DESCRIPTORS + n) * SECTOR)?;
            if &sector[1..6] != b"CD001" {
                return Err(bad("it is not ISO 9660"));
            }
            match sector[0] {
                1 if primary.is_none() => primary = Some(sector),
                // Its escape sequences name a level of UCS-2, Joliet 1.
                2 if joliet.is_none() && is_joliet(&sector[88..91]) => joliet = Some(sector),
                255 => break,
                _ => {}
            }
        }
        let primary = primary.ok_or_else(|| bad("it has no primary volume"))?;
        iso.root = iso.root_of(&primary)?;
        if let Some(skip) = iso.rock_ridge()? {
            iso.names = Names::RockRidge(skip);
        } else if let Some(joliet) = joliet {
            iso.root = iso.root_of(&joliet)?;
            iso.names = Names::Joliet;
        }
        Ok(iso)
    }

    /// What is in the root directory.
    ///
    /// # Errors
    /// As [`Self::directory`].
    pub fn root(&self) -> Result<Vec<Entry>> {
        self.entries(self.root)
    }

    /// What is in a directory.
    ///
    /// # Errors
    /// `Invalid`: it is not sound, or too large. `Host`: it cannot be read.
    pub fn directory(&self, entry: &Entry) -> Result<Vec<Entry>> {
        self.entries(entry.extent)
    }

    /// The bytes of a file.
    #[must_use]
    pub fn content(&self, entry: &Entry) -> Content<'a> {
        let Extent { offset, length } = entry.extent;
        Content::Part { file: self.file, offset, length: length.into(), digest: OnceCell::new() }
    }

    /// The bytes of a file, if they are not more than `max`.
    ///
    /// # Errors
    /// `Invalid`: they are more. `Host`: it cannot be read.
    pub fn read(&self, entry: &Entry, max: u32) -> Result<Vec<u8>> {
        if entry.extent.length > max {
            return Err(bad(&format!("{:?} has more than {max} bytes", entry.name)));
        }
        self.run(entry.extent)
    }

    fn root_of(&self, descriptor: &[u8]) -> Result<Extent> {
        // Logical block size, ECMA-119 8.4.12: all other sizes are of theory.
        if le16(descriptor, 128) != Some(SECTOR as u16) {
            return Err(bad("its blocks have not 2048 bytes"));
        }
        let record = descriptor.get(156..190).ok_or_else(|| bad("its root is cut"))?;
        self.extent(record)
    }

    /// Whether the root's own record has system use fields of Rock Ridge: how many bytes of each to skip.
    fn rock_ridge(&self) -> Result<Option<usize>> {
        let sector =
            self.run(Extent { length: self.root.length.min(SECTOR as u32), ..self.root })?;
        let Some(own) = records(&sector).next() else { return Ok(None) };
        Ok(system_use(own?).and_then(rockridge::announced))
    }

    fn entries(&self, of: Extent) -> Result<Vec<Entry>> {
        if of.length > MAX_DIRECTORY {
            return Err(bad("a directory is too large"));
        }
        let bytes = self.run(of)?;
        let mut entries = Vec::new();
        for record in records(&bytes) {
            let record = record?;
            if let Some(entry) = self.entry(record)? {
                entries.push(entry);
            }
            if entries.len() > MAX_ENTRIES {
                return Err(bad("a directory has too many entries"));
            }
        }
        Ok(entries)
    }

    /// What a record stands for; nothing if it is the directory itself, the one above, or of a kind that is left out.
    fn entry(&self, record: &[u8]) -> Result<Option<Entry>> {
        let name = name_of(record);
        if matches!(name, [0] | [1]) {
            return Ok(None);
        }
        let flags = record[25];
        let (mut directory, mut kind) = (flags & 2 != 0, None);
        let name = match self.names {
            Names::RockRidge(skip) => {
                let fields = system_use(record).and_then(|area| area.get(skip..));
                let fields = fields.unwrap_or_default();
                let read = |block: u32, at: u32, length: u32| {
                    let begin = u64::from(block) * SECTOR + u64::from(at);
                    self.run(Extent { offset: begin, length })
                };
                let found = rockridge::fields(fields, read)?;
                kind = found.kind;
                found.name.unwrap_or_else(|| plain(name))
            }
            Names::Joliet => ucs2(name),
            Names::Plain => plain(name),
        };
        match kind {
            Some(Kind::Directory) => directory = true,
            Some(Kind::Other) => return Ok(None),
            Some(Kind::File) | None => {}
        }
        // 128: not the last extent of the file. Byte 26: interleaved.
        if flags & 128 != 0 || record[26] != 0 {
            return Err(bad(&format!("{name:?} is in several pieces")));
        }
        if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
            return Err(bad(&format!("{name:?} is no name of a file")));
        }
        Ok(Some(Entry { name, directory, extent: self.extent(record)? }))
    }

    /// Where the content of a record is. Numbers stand there in both byte orders, ECMA-119 7.3.3.
    fn extent(&self, record: &[u8]) -> Result<Extent> {
        let cut = || bad("a record is cut");
        let (block, length) = (le32(record, 2).ok_or_else(cut)?, le32(record, 10).ok_or_else(cut)?);
        // The file's extended attributes come first, ECMA-119 9.1.2.
        let skipped = u64::from(record[1]);
        let offset = (u64::from(block) + skipped) * SECTOR;
        if offset.checked_add(length.into()).is_none_or(|end| end > self.size) {
            return Err(bad("a file reaches beyond its end"));
        }
        Ok(Extent { offset, length })
    }

    /// A run of bytes whose length was checked against a bound of ours.
    fn run(&self, extent: Extent) -> Result<Vec<u8>> {
        let left = self.left.get().checked_sub(extent.length.into());
        self.left.set(left.ok_or_else(|| bad("its directories are too large"))?);
        let mut bytes = vec![0; usize::try_from(extent.length).unwrap_or(0)];
        self.file.read_exact_at(&mut bytes, extent.offset).map_err(|e| unreadable(&e))?;
        Ok(bytes)
    }

    fn bytes<const N: usize>(&self, offset: u64) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        match self.file.read_exact_at(&mut bytes, offset) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(bad("it is cut")),
            Err(e) => Err(unreadable(&e)),
            Ok(()) => Ok(bytes),
        }
    }
}

/// The records of a directory. None crosses a sector's end; zeroes fill the sector up, ECMA-119 6.8.1.1.
fn records(directory: &[u8]) -> impl Iterator<Item = Result<&[u8]>> {
    let mut at = 0;
    let mut broken = false;
    std::iter::from_fn(move || {
        loop {
            let length = usize::from(*directory.get(at).filter(|_| !broken)?);
            if length == 0 {
                at = (at / SECTOR as usize + 1) * SECTOR as usize;
                continue;
            }
            let record = directory.get(at..at + length);
            at += length;
            let sound =
                record.filter(|r| r.len() > RECORD && r.len() >= RECORD + usize::from(r[32]));
            broken = sound.is_none();
            return Some(sound.ok_or_else(|| bad("a directory is not sound")));
        }
    })
}

fn name_of(record: &[u8]) -> &[u8] {
    &record[RECORD..RECORD + usize::from(record[32])]
}

/// What follows the name, which is padded to an even length, ECMA-119 9.1.12.
fn system_use(record: &[u8]) -> Option<&[u8]> {
    let name = usize::from(record[32]);
    record.get(RECORD + name + usize::from(name.is_multiple_of(2))..)
}

fn is_joliet(escape: &[u8]) -> bool {
    [b"%/@", b"%/C", b"%/E"].iter().any(|known| escape == *known)
}

/// `CONTEXT.SH;1` is `context.sh`.
fn plain(name: &[u8]) -> String {
    let name = String::from_utf8_lossy(name).to_ascii_lowercase();
    without_version(&name).trim_end_matches('.').to_owned()
}

fn ucs2(name: &[u8]) -> String {
    let units: Vec<u16> = name.chunks_exact(2).map(|c| u16::from_be_bytes([c[0], c[1]])).collect();
    without_version(&String::from_utf16_lossy(&units)).to_owned()
}

fn without_version(name: &str) -> &str {
    match name.rsplit_once(';') {
        Some((name, version)) if version.bytes().all(|c| c.is_ascii_digit()) => name,
        _ => name,
    }
}

fn le16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn bad(why: &str) -> Error {
    Error::new(ErrorKind::Invalid, format!("context disk: {why}"))
}

fn unreadable(e: &io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::UnexpectedEof => bad("it is cut"),
        _ => Error::new(ErrorKind::Host, format!("context disk: read it: {e}")),
    }
}

#[cfg(test)]
mod tests;
