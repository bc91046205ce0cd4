//! What a disk holds, by the magic numbers at its beginning. Nothing else of it is looked at here.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::make::MARK;

/// So much is looked at: every filesystem and partition table that is told here has something there, and most have it
/// in the first 68 KiB.
const BEGINNING: usize = 1 << 20;

/// What a disk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// ext2, ext3 or ext4.
    Ext,
    Xfs,
    Iso9660,
    /// A filesystem or something else with a name, that is not mounted here.
    Other(&'static str),
    /// A partition table.
    Table,
    /// Nothing, for a megabyte; see [`super::make`] for what is behind it.
    Empty,
    /// Nothing yet: making a filesystem in it was cut off.
    HalfMade,
    Unknown,
}

/// Magic numbers with their place; linux/magic.h, and the formats' own documents. The first that fits counts: what is
/// at the very beginning overwrites older things further in.
const MAGIC: [(usize, &[u8], Content); 13] = [
    (0, MARK, Content::HalfMade),
    (0, b"XFSB", Content::Xfs),
    (0, b"LUKS\xba\xbe", Content::Other("an encrypted volume (LUKS)")),
    (0, b"QFI\xfb", Content::Other("a qcow2 image, though its format is said to be raw")),
    (0, b"hsqs", Content::Other("a filesystem squashfs")),
    (3, b"NTFS    ", Content::Other("a filesystem ntfs")),
    (54, b"FAT1", Content::Other("a filesystem vfat")),
    (82, b"FAT32", Content::Other("a filesystem vfat")),
    (512, b"LABELONE", Content::Other("a physical volume of LVM")),
    (0x438, b"\x53\xef", Content::Ext),
    (4086, b"SWAPSPACE2", Content::Other("swap space")),
    (0x1_0040, b"_BHRfS_M", Content::Other("a filesystem btrfs, which is not mounted here")),
    (0x8001, b"CD001", Content::Iso9660),
];

impl Content {
    pub(super) fn of(disk: &File) -> io::Result<Self> {
        let mut bytes = vec![0; BEGINNING];
        let mut filled = 0;
        while filled < BEGINNING {
            match disk.read_at(&mut bytes[filled..], filled as u64)? {
                0 => break,
                n => filled += n,
            }
        }
        bytes.truncate(filled);
        Ok(Self::of_bytes(&bytes))
    }

    fn of_bytes(bytes: &[u8]) -> Self {
        let has = |at: usize, magic: &[u8]| bytes.get(at..at + magic.len()) == Some(magic);
        if let Some((_, _, content)) = MAGIC.iter().find(|(at, magic, _)| has(*at, magic)) {
            return *content;
        }
        // A GUID table is behind a sector of 512 or 4096 bytes.
        if has(510, b"\x55\xaa") || has(512, b"EFI PART") || has(4096, b"EFI PART") {
            return Self::Table;
        }
        if bytes.iter().all(|byte| *byte == 0) { Self::Empty } else { Self::Unknown }
    }

    /// The kernel's name of the filesystem, if it is one that may be mounted.
    pub(super) fn filesystem(self) -> Option<&'static str> {
        match self {
            // Its driver knows its elders.
            Self::Ext => Some("ext4"),
            Self::Xfs => Some("xfs"),
            Self::Iso9660 => Some("iso9660"),
            Self::Other(_) | Self::Table | Self::Empty | Self::HalfMade | Self::Unknown => None,
        }
    }

    /// In messages, after `it holds`.
    pub(super) fn what(self) -> &'static str {
        match self {
            Self::Ext => "a filesystem ext4",
            Self::Xfs => "a filesystem xfs",
            Self::Iso9660 => "a filesystem iso9660",
            Self::Other(what) => what,
            Self::Table => "a partition table and no filesystem of its own",
            Self::Empty => "nothing",
            Self::HalfMade => "a filesystem that was not made to its end",
            Self::Unknown => "nothing that is known",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(parts: &[(usize, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; BEGINNING];
        for (at, part) in parts {
            bytes[*at..at + part.len()].copy_from_slice(part);
        }
        bytes
    }

    #[test]
    fn contents_are_told_by_their_magic() {
        type Parts = &'static [(usize, &'static [u8])];
        let cases: [(Parts, Content); 7] = [
            (&[], Content::Empty),
            (&[(0x438, b"\x53\xef")], Content::Ext),
            (&[(0, b"XFSB")], Content::Xfs),
            (&[(0x8001, b"CD001")], Content::Iso9660),
            (&[(510, b"\x55\xaa")], Content::Table),
            (&[(4096, b"EFI PART")], Content::Table),
            (&[(700_000, b"x")], Content::Unknown),
        ];
        for (parts, want) in cases {
            assert_eq!(Content::of_bytes(&with(parts)), want, "{parts:?}");
        }
        // A boot sector before a filesystem is no table; an image of a CD may have one too.
        assert_eq!(
            Content::of_bytes(&with(&[(510, b"\x55\xaa"), (0x438, b"\x53\xef")])),
            Content::Ext
        );
        assert_eq!(
            Content::of_bytes(&with(&[(510, b"\x55\xaa"), (0x8001, b"CD001")])),
            Content::Iso9660
        );
        // Made over an older ext4.
        assert_eq!(Content::of_bytes(&with(&[(0, b"XFSB"), (0x438, b"\x53\xef")])), Content::Xfs);
    }

    #[test]
    fn less_than_a_sector_is_empty_or_unknown() {
        assert_eq!(Content::of_bytes(&[]), Content::Empty);
        assert_eq!(Content::of_bytes(b"x"), Content::Unknown);
    }
}
