//! What can be wrong with a disk, and how its bytes are looked at.

use std::io;

use crate::error::{Limit, Refusal};

/// Result of everything that reads a disk.
pub(super) type Res<T> = Result<T, DiskFault>;

/// Why a disk image was refused. Names and paths of the image are escaped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskFault {
    /// The host cannot read the file.
    #[error("cannot read at byte {at}: {source}")]
    Read {
        /// Offset in the file.
        at: u64,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A format of disk images that is not read here.
    #[error("it is a {format} image; convert it first: qemu-img convert -O qcow2 FILE NEW.qcow2")]
    Foreign {
        /// Its name.
        format: &'static str,
    },
    /// The bytes could be read as qcow2 and as a raw disk; a guest may have written either.
    #[error("it could be qcow2 or raw: it starts like qcow2 and holds {also}; say qcow2: or raw:")]
    Ambiguous {
        /// What the raw disk would hold.
        also: &'static str,
    },
    /// Said to be qcow2, and is not.
    #[error("it is no qcow2 image; say raw: if it is a raw disk")]
    NotQcow2,
    /// A qcow2 image that stands on another one.
    #[error(
        "it needs the backing file \"{name}\", which is not opened for an image; \
             name the file yourself or flatten it: qemu-img convert -O qcow2 FILE NEW.qcow2"
    )]
    Backing {
        /// The name in the image.
        name: String,
    },
    /// More backing files were named than the images ask for.
    #[error("{named} backing files are named, it asks for {asked}; name as many")]
    BackingUnused {
        /// By the caller.
        named: usize,
        /// By the images.
        asked: usize,
    },
    /// A qcow2 image whose clusters lie in another file.
    #[error(
        "it keeps its data in another file, which is not opened for an image; \
             name the file yourself or put it in: qemu-img convert -O qcow2 FILE NEW.qcow2"
    )]
    DataFile,
    /// A data file was named for an image that has none.
    #[error("a data file is named, but the image keeps its data itself; name none")]
    DataFileUnused,
    /// The image is encrypted.
    #[error("it is encrypted ({by}); decrypt it first")]
    Encrypted {
        /// Scheme.
        by: &'static str,
    },
    /// A feature that is not handled.
    #[error("{what} uses {feature}, which is not handled")]
    Feature {
        /// Whose feature.
        what: &'static str,
        /// Its name or bits.
        feature: String,
    },
    /// A bound on what an image may cost.
    #[error("{what} {value} is above {max}")]
    TooLarge {
        /// The field.
        what: &'static str,
        /// In the image.
        value: u64,
        /// The bound.
        max: u64,
    },
    /// Structures that contradict themselves or point outside of the disk.
    #[error("{what} is damaged: {why}")]
    Damaged {
        /// The structure.
        what: &'static str,
        /// The rule it breaks.
        why: &'static str,
    },
    /// Reading on would need what lies in the file system's journal.
    #[error(
        "its {fs} file system was not unmounted cleanly; \
             start and shut down the machine once, then take the disk again"
    )]
    Unclean {
        /// Kind of file system.
        fs: &'static str,
    },
    /// There is something, but no file system that is read here.
    #[error("{at} holds {what}, which is not read here; ext2, ext3, ext4, xfs and btrfs are")]
    Content {
        /// Disk or partition.
        at: String,
        /// What was recognised.
        what: &'static str,
    },
    /// Partition table and file system at once.
    #[error(
        "it holds a {table} partition table and a {fs} file system; \
             name a partition, or 0 for the whole disk"
    )]
    TableAndFs {
        /// Kind of table.
        table: &'static str,
        /// Kind of file system.
        fs: &'static str,
    },
    /// The partition that was named is not there.
    #[error("it has no partition {number}; it has {there}")]
    NoPartition {
        /// As named.
        number: u32,
        /// Those that are there.
        there: String,
    },
    /// No partition looks like the root of a system.
    #[error("no partition looks like the root of a system; name one: {there}")]
    NoRoot {
        /// Those that are there.
        there: String,
    },
    /// More than one partition could be the root.
    #[error("more than one partition could be the root; name one: {there}")]
    ManyRoots {
        /// The candidates.
        there: String,
    },
    /// A file that no layer can hold, or a structure that is wrong in one place.
    #[error("\"{path}\": {why}")]
    File {
        /// Path from the file system's root, escaped.
        path: String,
        /// The rule it breaks.
        #[source]
        why: Box<DiskFault>,
    },
    /// A file name that no layer can hold.
    #[error("bad file name: {0}")]
    Name(&'static str),
    /// A bound of [`crate::Limits`].
    #[error(transparent)]
    Limit(#[from] Refusal),
    /// One of the others, in its words, as a confined reader met it.
    #[error("{0}")]
    Told(String),
    /// The file is not the one that was opened, or was written to.
    #[error("it changed while it was read; try again when nothing writes to it")]
    Changed,
}

impl DiskFault {
    pub(super) fn damaged(what: &'static str, why: &'static str) -> Self {
        Self::Damaged { what, why }
    }

    pub(super) fn feature(what: &'static str, feature: impl Into<String>) -> Self {
        Self::Feature { what, feature: feature.into() }
    }

    pub(super) fn limit(limit: Limit, max: impl TryInto<u64>) -> Self {
        Self::Limit(Refusal::limit(limit, max))
    }

    /// Names the file it happened at.
    pub(crate) fn at(self, path: &[u8]) -> Self {
        Self::File { path: crate::error::escape(path), why: Box::new(self) }
    }
}

/// Bytes of one structure. Reading past its end is damage, never a panic.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a> {
    pub bytes: &'a [u8],
    pub what: &'static str,
}

impl<'a> View<'a> {
    pub fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { bytes, what }
    }

    pub fn damaged(&self, why: &'static str) -> DiskFault {
        DiskFault::damaged(self.what, why)
    }

    pub fn take(&self, at: usize, len: usize) -> Res<&'a [u8]> {
        let end = at.checked_add(len).ok_or_else(|| self.damaged("cut off"))?;
        self.bytes.get(at..end).ok_or_else(|| self.damaged("cut off"))
    }

    pub fn part(&self, at: usize, len: usize) -> Res<Self> {
        Ok(Self { bytes: self.take(at, len)?, what: self.what })
    }

    pub fn array<const N: usize>(&self, at: usize) -> Res<[u8; N]> {
        self.take(at, N)?.try_into().map_err(|_| self.damaged("cut off"))
    }

    pub fn u8(&self, at: usize) -> Res<u8> {
        Ok(self.array::<1>(at)?[0])
    }

    pub fn le16(&self, at: usize) -> Res<u16> {
        Ok(u16::from_le_bytes(self.array(at)?))
    }

    pub fn le32(&self, at: usize) -> Res<u32> {
        Ok(u32::from_le_bytes(self.array(at)?))
    }

    pub fn le64(&self, at: usize) -> Res<u64> {
        Ok(u64::from_le_bytes(self.array(at)?))
    }

    pub fn be16(&self, at: usize) -> Res<u16> {
        Ok(u16::from_be_bytes(self.array(at)?))
    }

    pub fn be32(&self, at: usize) -> Res<u32> {
        Ok(u32::from_be_bytes(self.array(at)?))
    }

    pub fn be64(&self, at: usize) -> Res<u64> {
        Ok(u64::from_be_bytes(self.array(at)?))
    }
}

/// Widens an index; there is no host on which this is not the identity.
pub(super) fn index(n: impl TryInto<usize>) -> usize {
    n.try_into().unwrap_or(usize::MAX)
}
