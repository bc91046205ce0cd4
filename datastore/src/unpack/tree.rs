//! The directory being filled: every step relative to a descriptor, nothing followed that was not resolved by
//! `openat2(RESOLVE_IN_ROOT)`.
//!
//! Nobody else can reach the tree (it lies below a 0700 directory), so there is no race to lose inside it; the
//! enemy is the content, whose links point wherever its author liked.
//!
//! One parent directory is kept open, since entries come sorted. Its times are restored when it is left:
//! that keeps the mtimes of directories right without a list of all directories in memory.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::{join, split};
use crate::disk;
use crate::error::{Doing, Fault, Refusal};

/// What an entry says about its inode, checked.
#[derive(Debug)]
pub(super) struct Attributes {
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
    pub mtime: (i64, u32),
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// For directories and whiteouts that have no entry of their own.
const PLAIN: Attributes =
    Attributes { uid: 0, gid: 0, mode: 0o755, mtime: (0, 0), xattrs: Vec::new() };

const DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

pub(super) struct Tree {
    root: OwnedFd,
    open: Option<Open>,
    implied: u64,
}

/// The parent directory in use.
struct Open {
    /// None once a link or directory was removed that the path may have led through.
    path: Option<Vec<u8>>,
    fd: Rc<OwnedFd>,
    times: Timestamps,
}

/// What had a name before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Was {
    Nothing,
    Directory,
    Whiteout,
    Other,
}

impl Tree {
    /// Starts with an empty directory and gives it root:root, 0755.
    pub fn new(root: &File) -> Result<Self, Fault> {
        let root = OwnedFd::from(root.try_clone().doing("duplicate descriptor of")?);
        apply(&root, &PLAIN, Shape::Directory)?;
        Ok(Self { root, open: None, implied: 0 })
    }

    /// Leaves the last directory; returns how many had to be invented.
    pub fn finish(mut self) -> Result<u64, Fault> {
        self.leave()?;
        Ok(self.implied)
    }

    /// Sets the attributes of the root itself; returns how many xattrs the file system does not take.
    pub fn root(&mut self, attributes: &Attributes) -> Result<u64, Fault> {
        self.leave()?;
        apply(&self.root, attributes, Shape::Directory)
    }

    pub fn directory(&mut self, path: &[u8], attributes: &Attributes) -> Result<u64, Fault> {
        let (parent, name) = self.enter(path)?;
        let was = self.clear(&parent, name, true)?;
        if was != Was::Directory {
            rustix::fs::mkdirat(&*parent, name, Mode::RWXU).doing("make directory")?;
        }
        let fd = open_plain(&parent, name, DIR)?;
        if was == Was::Whiteout {
            // The lower layer's directory of that name stays hidden.
            mark_opaque(&fd)?;
        }
        apply(&fd, attributes, Shape::Directory)
    }

    /// Makes a new empty file.
    pub fn create(&mut self, path: &[u8]) -> Result<File, Fault> {
        let (parent, name) = self.enter(path)?;
        self.clear(&parent, name, false)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        open_plain(&parent, name, flags).map(File::from)
    }

    pub fn symlink(
        &mut self,
        path: &[u8],
        target: &[u8],
        attributes: &Attributes,
    ) -> Result<(), Fault> {
        let (parent, name) = self.enter(path)?;
        self.clear(&parent, name, false)?;
        match rustix::fs::symlinkat(target, &*parent, name) {
            Err(Errno::NAMETOOLONG) => return Err(Refusal::Symlink("target too long").into()),
            other => other.doing("make symbolic link")?,
        }
        let (uid, gid) = owner(attributes);
        rustix::fs::chownat(&*parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            .doing("change owner of")?;
        set_times_at(&parent, name, attributes.mtime)
    }

    pub fn fifo(&mut self, path: &[u8], attributes: &Attributes) -> Result<(), Fault> {
        let (parent, name) = self.enter(path)?;
        self.clear(&parent, name, false)?;
        rustix::fs::mknodat(&*parent, name, FileType::Fifo, Mode::empty(), 0).doing("make fifo")?;
        let (uid, gid) = owner(attributes);
        rustix::fs::chownat(&*parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            .doing("change owner of")?;
        // There is no fchmodat without following before Linux 6.6; the name is the fifo made above.
        let mode = Mode::from_raw_mode(attributes.mode);
        rustix::fs::chmodat(&*parent, name, mode, AtFlags::empty()).doing("change mode of")?;
        set_times_at(&parent, name, attributes.mtime)
    }

    /// Links `path` to a regular file of this layer that came before.
    pub fn hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<(), Fault> {
        const ABSENT: Refusal = Refusal::HardLink("target is not in this layer");
        let (above, target_name) = split(target);
        if target_name.is_empty() {
            return Err(Refusal::HardLink("target is the root").into());
        }
        let strict =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let from = match resolve(&self.root, above, strict) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(ABSENT.into()),
            Err(Errno::LOOP) => {
                return Err(Refusal::HardLink("target lies behind a symbolic link").into());
            }
            other => other.doing("open directory of link target of")?,
        };
        let source = stat(&from, target_name)?.ok_or(ABSENT)?;
        if kind(&source) != FileType::RegularFile {
            return Err(Refusal::HardLink("target is not a regular file").into());
        }

        let (parent, name) = self.enter(path)?;
        let there = stat(&parent, name)?;
        if there.is_some_and(|s| (s.st_dev, s.st_ino) == (source.st_dev, source.st_ino)) {
            return Ok(());
        }
        self.clear(&parent, name, false)?;
        match rustix::fs::linkat(&from, target_name, &*parent, name, AtFlags::empty()) {
            // The link took the place of a directory above its target.
            Err(Errno::NOENT) => Err(ABSENT.into()),
            Err(Errno::MLINK) => {
                Err(Refusal::HardLink("more links than the file system allows").into())
            }
            other => other.doing("make hard link"),
        }
    }

    /// Hides a name of the layers below.
    pub fn whiteout(&mut self, path: &[u8]) -> Result<(), Fault> {
        let (parent, name) = self.enter(path)?;
        match stat(&parent, name)?.map(|s| was(&s)) {
            // The layer has the name itself, which hides what is below; a directory would be merged.
            Some(Was::Directory) => mark_opaque(&open_plain(&parent, name, DIR)?),
            Some(Was::Whiteout | Was::Other) => Ok(()),
            Some(Was::Nothing) | None => {
                rustix::fs::mknodat(&*parent, name, FileType::CharacterDevice, Mode::empty(), 0)
                    .doing("make whiteout")?;
                set_times_at(&parent, name, PLAIN.mtime)
            }
        }
    }

    /// Hides all that the layers below have in the directory `path`.
    pub fn opaque(&mut self, path: &[u8]) -> Result<(), Fault> {
        let (directory, _) = self.enter(&join(path, b"."))?;
        mark_opaque(&directory)
    }

    /// Opens the parent of `path`, making it where it is missing; returns it with the last component.
    fn enter<'p>(&mut self, path: &'p [u8]) -> Result<(Rc<OwnedFd>, &'p [u8]), Fault> {
        let (above, name) = split(path);
        if let Some(open) = self.open.as_ref().filter(|o| o.path.as_deref() == Some(above)) {
            return Ok((Rc::clone(&open.fd), name));
        }
        self.leave()?;
        let fd = match self.look(above) {
            Err(Errno::NOENT | Errno::NOTDIR) => {
                self.make_parents(above)?;
                self.look(above).doing("open directory")?
            }
            Err(Errno::LOOP) => return Err(Refusal::Parent("symbolic links in a circle").into()),
            Err(Errno::NAMETOOLONG) => return Err(Refusal::Parent("path too long").into()),
            other => other.doing("open directory")?,
        };
        let fd = Rc::new(fd);
        let times = times_of(&fd)?;
        self.open = Some(Open { path: Some(above.to_vec()), fd: Rc::clone(&fd), times });
        Ok((fd, name))
    }

    fn leave(&mut self) -> Result<(), Fault> {
        match self.open.take() {
            Some(open) => rustix::fs::futimens(&*open.fd, &open.times).doing("set times of"),
            None => Ok(()),
        }
    }

    fn look(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        resolve(&self.root, path, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
    }

    fn make_parents(&mut self, path: &[u8]) -> Result<(), Fault> {
        let ends = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at);
        for end in ends.chain([path.len()]) {
            let step = &path[..end];
            match self.look(step) {
                Ok(_) => continue,
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(Errno::LOOP) => {
                    return Err(Refusal::Parent("symbolic links in a circle").into());
                }
                Err(e) => return Err(e).doing("open directory"),
            }
            let (above, name) = split(step);
            let parent = self.look(above).doing("open directory")?;
            let hidden = match stat(&parent, name)?.as_ref().map(kind) {
                None => false,
                Some(FileType::CharacterDevice) => true,
                Some(FileType::Symlink) => {
                    return Err(
                        Refusal::Parent("symbolic link to no directory of this layer").into()
                    );
                }
                Some(_) => return Err(Refusal::Parent("not a directory").into()),
            };
            let times = times_of(&parent)?;
            if hidden {
                rustix::fs::unlinkat(&parent, name, AtFlags::empty()).doing("remove whiteout")?;
            }
            rustix::fs::mkdirat(&parent, name, Mode::RWXU).doing("make directory")?;
            let made = open_plain(&parent, name, DIR)?;
            if hidden {
                mark_opaque(&made)?;
            }
            apply(&made, &PLAIN, Shape::Directory)?;
            rustix::fs::futimens(&parent, &times).doing("set times of")?;
            self.implied += 1;
        }
        Ok(())
    }

    /// Removes what has the name, but for a directory that is wanted.
    fn clear(&mut self, parent: &OwnedFd, name: &[u8], keep_directory: bool) -> Result<Was, Fault> {
        let Some(there) = stat(parent, name)? else {
            return Ok(Was::Nothing);
        };
        let was = was(&there);
        if was == Was::Directory && keep_directory {
            return Ok(was);
        }
        disk::remove_tree(parent.as_fd(), name).doing("replace")?;
        if matches!(kind(&there), FileType::Directory | FileType::Symlink)
            && let Some(open) = &mut self.open
        {
            open.path = None;
        }
        Ok(was)
    }
}

/// Which attributes an inode can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    File,
    Directory,
}

/// Sets owner, mode, xattrs and times, in the order in which the kernel does not undo one by another (chown
/// clears setuid and capabilities). Returns how many xattrs the file system does not take.
pub(super) fn apply(fd: impl AsFd, attributes: &Attributes, shape: Shape) -> Result<u64, Fault> {
    let fd = fd.as_fd();
    let (uid, gid) = owner(attributes);
    rustix::fs::fchown(fd, uid, gid).doing("change owner of")?;
    rustix::fs::fchmod(fd, Mode::from_raw_mode(attributes.mode)).doing("change mode of")?;
    let mut dropped = 0;
    for (name, value) in &attributes.xattrs {
        if shape == Shape::Directory && name.starts_with(b"security.") {
            dropped += 1;
            continue;
        }
        match rustix::fs::fsetxattr(fd, name.as_slice(), value, XattrFlags::empty()) {
            Err(Errno::OPNOTSUPP) => dropped += 1,
            Err(Errno::TOOBIG | Errno::RANGE) => {
                return Err(Refusal::Xattr("larger than the file system takes").into());
            }
            other => other.doing("set extended attribute of")?,
        }
    }
    rustix::fs::futimens(fd, &times(attributes.mtime)).doing("set times of")?;
    Ok(dropped)
}

fn owner(attributes: &Attributes) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(attributes.uid)), Some(Gid::from_raw(attributes.gid)))
}

fn times((seconds, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}

fn times_of(fd: &OwnedFd) -> Result<Timestamps, Fault> {
    let stat = rustix::fs::fstat(fd).doing("inspect")?;
    let nanos = u32::try_from(stat.st_mtime_nsec).unwrap_or_default();
    Ok(times((stat.st_mtime, nanos)))
}

fn set_times_at(parent: &OwnedFd, name: &[u8], mtime: (i64, u32)) -> Result<(), Fault> {
    rustix::fs::utimensat(parent, name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW)
        .doing("set times of")
}

fn mark_opaque(fd: impl AsFd) -> Result<(), Fault> {
    rustix::fs::fsetxattr(fd, "trusted.overlay.opaque", b"y", XattrFlags::empty())
        .doing("make opaque")
}

fn stat(parent: &OwnedFd, name: &[u8]) -> Result<Option<Stat>, Fault> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e).doing("inspect"),
    }
}

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn was(stat: &Stat) -> Was {
    match kind(stat) {
        FileType::Directory => Was::Directory,
        // Devices of the image are never made, so this is one of ours.
        FileType::CharacterDevice => Was::Whiteout,
        _ => Was::Other,
    }
}

fn open_plain(parent: &OwnedFd, name: &[u8], flags: OFlags) -> Result<OwnedFd, Fault> {
    let mode = Mode::RUSR | Mode::WUSR;
    rustix::fs::openat(parent, name, flags | OFlags::NOFOLLOW, mode).doing("open")
}

fn resolve(root: &OwnedFd, path: &[u8], how: ResolveFlags) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    // EAGAIN: a rename anywhere on the host while ".." of a link was resolved; openat2(2) says to retry.
    for _ in 0..64 {
        match rustix::fs::openat2(root, path, DIR, Mode::empty(), how) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}
