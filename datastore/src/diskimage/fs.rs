//! What a reader of a file system gives to the walk.

use super::fault::Res;

/// An inode: of a subvolume where there are such, else of tree 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Id {
    pub tree: u64,
    pub inode: u64,
}

impl Id {
    pub fn inode(inode: u64) -> Self {
        Self { tree: 0, inode }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    Symlink,
    Char,
    Block,
    Fifo,
    Socket,
}

impl Kind {
    /// From the upper bits of `st_mode`; the same in every file system here.
    pub fn of(mode: u32) -> Option<Self> {
        Some(match mode & 0o170_000 {
            0o100_000 => Self::File,
            0o040_000 => Self::Directory,
            0o120_000 => Self::Symlink,
            0o020_000 => Self::Char,
            0o060_000 => Self::Block,
            0o010_000 => Self::Fifo,
            0o140_000 => Self::Socket,
            _ => return None,
        })
    }
}

/// Attributes of an inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub kind: Kind,
    /// 0o7777.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub mtime: (i64, u32),
    pub links: u32,
    /// Major and minor number of a device.
    pub device: (u32, u32),
}

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    pub name: Vec<u8>,
    pub id: Id,
}

/// Names and values, as listxattr(2) and getxattr(2) would tell them.
pub(super) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Most bytes a directory may have: far above two million names of usual length.
pub(super) const DIRECTORY_MAX: u64 = 1 << 30;
/// Longest target of a symbolic link, `PATH_MAX` less the NUL.
pub(super) const TARGET_MAX: u64 = 4095;
/// `XATTR_SIZE_MAX`.
pub(super) const VALUE_MAX: u32 = 65_536;
/// `XATTR_LIST_MAX` would allow more short names; no tool makes as many.
pub(crate) const XATTRS_MAX: usize = 128;

/// A file system, read only. Nothing it holds is believed: every pointer is checked against the device, every
/// depth and length against a bound, and whoever walks it counts what he gets.
pub(super) trait FileSystem {
    /// For messages.
    fn name(&self) -> &'static str;
    fn root(&self) -> Id;
    fn node(&self, id: Id) -> Res<Node>;
    /// At most `max` names of a directory, without `.` and `..`, in any order; one more than `max` if there are.
    fn names(&self, id: Id, max: usize) -> Res<Vec<Name>>;
    /// Target of a symbolic link.
    fn target(&self, id: Id) -> Res<Vec<u8>>;
    fn xattrs(&self, id: Id) -> Res<Xattrs>;
    /// Content of a regular file from its start.
    fn open(&self, id: Id) -> Res<Box<dyn Content>>;
}

/// The bytes of a file, in order, up to the size its inode has.
pub(super) trait Content {
    /// Fills all of `buf` with what comes next.
    fn fill(&mut self, buf: &mut [u8]) -> Res<()>;
}

/// Where a piece of a file lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// Offset in the file.
    pub from: u64,
    /// Bytes; never 0.
    pub len: u64,
    /// Offset on the device; nothing for a hole.
    pub disk: Option<u64>,
}

impl Run {
    /// The part from `at` on.
    pub fn tail(self, at: u64) -> Option<Self> {
        let skip = at.checked_sub(self.from).filter(|s| *s < self.len)?;
        Some(Self { from: at, len: self.len - skip, disk: self.disk.map(|d| d + skip) })
    }
}

/// Content that lies in runs; `map` finds the one that covers an offset.
pub(super) struct Mapped<F> {
    pub disk: super::device::Disk,
    pub map: F,
    pub at: u64,
    pub run: Option<Run>,
}

impl<F: Fn(u64) -> Res<Run>> Content for Mapped<F> {
    fn fill(&mut self, buf: &mut [u8]) -> Res<()> {
        let mut done = 0;
        while done < buf.len() {
            let run = match self.run.and_then(|r| r.tail(self.at)) {
                Some(run) => run,
                None => (self.map)(self.at)?
                    .tail(self.at)
                    .ok_or(super::fault::DiskFault::damaged("extent", "is empty"))?,
            };
            self.run = Some(run);
            let n = super::fault::index(run.len).min(buf.len() - done);
            let part = &mut buf[done..done + n];
            match run.disk {
                Some(disk) => super::device::read(&*self.disk, disk, part, "extent")?,
                None => part.fill(0),
            }
            done += n;
            self.at += n as u64;
        }
        Ok(())
    }
}
