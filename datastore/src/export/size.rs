//! How large a file system must be for a tree, and what of the tree mke2fs would get wrong.

use std::fs::File;
use std::io;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Timespec, Timestamps};

pub(super) const BLOCK: u64 = 4096;

/// Deeper trees are refused by the limits of unpacking; this only bounds the open descriptors.
const DEPTH_MAX: usize = 512;

/// Merged files hide nothing any more; so this was a name that unpacking took for a whiteout.
const WHITEOUT: &str = "a file name begins with .wh., which cannot be exported; rename the file";

/// What a tree needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Needs {
    files: u64,
    blocks: u64,
}

impl Needs {
    /// Bytes of a file system that just holds it: its blocks, inodes of 256 bytes, bitmaps and tables, the journal.
    pub fn least(self) -> u64 {
        let content = (self.blocks + self.files / 16 + 1) * BLOCK;
        content + content / 50 + (8 << 20)
    }

    /// With room to work in, and a journal of usual size.
    pub fn comfortable(self) -> u64 {
        let least = self.least();
        (least + least / 5 + (64 << 20)).next_multiple_of(1 << 20)
    }

    /// Inodes for a disk of that size: for the files, and one for each 16 KiB as mke2fs would make.
    pub fn inodes(self, size: u64) -> u64 {
        let spare = (size - self.least().min(size)) / 16_384;
        self.files + spare + 64
    }
}

/// Counts files and blocks. The tree is our own, below a directory that nobody else reaches.
///
/// `entries` is how many there must be.
///
/// mke2fs copies the lower 32 bits of times: later ones are set to the last that it knows, in 2038, instead of
/// becoming ones of 1901.
pub(super) fn prepare(root: &File, entries: u64) -> io::Result<Needs> {
    let mut needs = Needs { files: 1, blocks: 1 };
    let mut stack = vec![Dir::read_from(root)?];
    loop {
        let depth = stack.len();
        let Some(dir) = stack.last_mut() else {
            // Less than there were: one was taken for a whiteout and lost to the file of that name.
            let whole = needs.files == entries;
            return if whole { Ok(needs) } else { Err(io::Error::other(WHITEOUT)) };
        };
        let Some(entry) = dir.read() else {
            stack.pop();
            continue;
        };
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let fd = dir.fd()?;
        let stat = rustix::fs::statat(fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        needs.files += 1;
        if let Some(time) = nearest(stat.st_mtime) {
            let time = Timespec { tv_sec: time, tv_nsec: 0 };
            let times = Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(fd, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        let bytes = u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        // One block for every so many extents; large attributes are left to the margin.
        needs.blocks += bytes.div_ceil(BLOCK) + bytes / (1 << 20);
        // Unpacking makes no devices but these.
        if kind == FileType::CharacterDevice {
            return Err(io::Error::other(WHITEOUT));
        }
        if kind == FileType::Directory {
            if depth >= DEPTH_MAX {
                return Err(io::Error::other("more than 512 directories inside each other"));
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let below = rustix::fs::openat(fd, name, flags, Mode::empty())?;
            stack.push(Dir::new(below)?);
        }
    }
}

/// The time of 32 bits to use instead, if one must be.
fn nearest(seconds: i64) -> Option<i64> {
    let near = seconds.clamp(i32::MIN.into(), i32::MAX.into());
    (near != seconds).then_some(near)
}
