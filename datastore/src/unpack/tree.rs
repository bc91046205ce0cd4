//! The directory being filled: every step relative to a descriptor, nothing followed that was not resolved by
//! `openat2(RESOLVE_IN_ROOT)`.
//!
//! Nobody else can reach the tree (it lies below a 0700 directory), so there is no race to lose inside it; the
//! enemy is the content, whose links point wherever its author liked.
//!
//! One parent directory is kept open, since entries come sorted. Its times are restored when it is left:
//! that keeps the mtimes of directories right without a list of all directories in memory.
//!
//! Most entries are new names, so each is made first, and what has the name is looked at only if the kernel says
//! that something has it.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::{CAPABILITY, Marks, join, split};
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

pub(super) struct Tree<'m> {
    root: OwnedFd,
    marks: &'m mut dyn Marks,
    /// What is made is root's at once.
    made_by_root: bool,
    open: Option<Open>,
    implied: u64,
}

/// A file in the making.
pub(super) struct NewFile<'p> {
    pub file: File,
    parent: Parent,
    name: &'p [u8],
}

/// A directory in use.
#[derive(Clone)]
struct Parent {
    fd: Rc<OwnedFd>,
    /// What is made in it inherits its group.
    setgid: bool,
}

/// The parent directory in use.
struct Open {
    /// None once a link or directory was removed that the path may have led through.
    path: Option<Vec<u8>>,
    parent: Parent,
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

impl<'m> Tree<'m> {
    /// Starts with an empty directory and gives it root:root, 0755.
    pub fn new(root: &File, marks: &'m mut dyn Marks) -> Result<Self, Fault> {
        let root = OwnedFd::from(root.try_clone().doing("duplicate descriptor of")?);
        apply(&root, &PLAIN)?;
        let made_by_root =
            rustix::process::geteuid().is_root() && rustix::process::getegid().is_root();
        Ok(Self { root, marks, made_by_root, open: None, implied: 0 })
    }

    /// Leaves the last directory; returns how many had to be invented.
    pub fn finish(mut self) -> Result<u64, Fault> {
        self.leave()?;
        Ok(self.implied)
    }

    /// Sets the attributes of the root itself; returns how many xattrs the file system does not take.
    pub fn root(&mut self, attributes: &Attributes) -> Result<u64, Fault> {
        self.leave()?;
        apply(&self.root, attributes)
    }

    pub fn directory(&mut self, path: &[u8], attributes: &Attributes) -> Result<u64, Fault> {
        let (parent, name) = self.enter(path)?;
        let make = || rustix::fs::mkdirat(&*parent.fd, name, Mode::RWXU);
        let mut was = Was::Nothing;
        if let Err(error) = make() {
            if error != Errno::EXIST {
                return Err(error).doing("make directory");
            }
            was = self.clear(&parent.fd, name, true)?;
            if was != Was::Directory {
                make().doing("make directory")?;
            }
        }
        let fd = open_plain(&parent.fd, name, DIR)?;
        if was == Was::Whiteout {
            // The lower layer's directory of that name stays hidden.
            self.mark_opaque(&fd)?;
        }
        apply(&fd, attributes)
    }

    /// Makes a new empty file.
    pub fn create<'p>(&mut self, path: &'p [u8]) -> Result<NewFile<'p>, Fault> {
        let (parent, name) = self.enter(path)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let made = self.anew(&parent, name, || rustix::fs::openat(&*parent.fd, name, flags, mode));
        Ok(NewFile { file: made?.doing("open")?.into(), parent, name })
    }

    /// Gives a file with its content its attributes; returns how many xattrs the file system does not take.
    pub fn finish_file(
        &mut self,
        new: &mut NewFile<'_>,
        attributes: &Attributes,
    ) -> Result<u64, Fault> {
        let fd = new.file.as_fd();
        self.own(&new.parent, attributes, |uid, gid| rustix::fs::fchown(fd, uid, gid))?;
        rustix::fs::fchmod(fd, Mode::from_raw_mode(attributes.mode)).doing("change mode of")?;
        let mut dropped = 0;
        for (name, value) in &attributes.xattrs {
            let set = if name == CAPABILITY {
                self.marks.capability(fd, &new.parent.fd, new.name, value)
            } else {
                rustix::fs::fsetxattr(fd, name.as_slice(), value, XattrFlags::empty())
            };
            dropped += dropped_xattr(set)?;
        }
        rustix::fs::futimens(fd, &times(attributes.mtime)).doing("set times of")?;
        Ok(dropped)
    }

    pub fn symlink(
        &mut self,
        path: &[u8],
        target: &[u8],
        attributes: &Attributes,
    ) -> Result<(), Fault> {
        let (parent, name) = self.enter(path)?;
        let make = || rustix::fs::symlinkat(target, &*parent.fd, name);
        match self.anew(&parent, name, make)? {
            Err(Errno::NAMETOOLONG) => return Err(Refusal::Symlink("target too long").into()),
            other => other.doing("make symbolic link")?,
        }
        self.own(&parent, attributes, |uid, gid| {
            rustix::fs::chownat(&*parent.fd, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
        })?;
        set_times_at(&parent.fd, name, attributes.mtime)
    }

    pub fn fifo(&mut self, path: &[u8], attributes: &Attributes) -> Result<(), Fault> {
        let (parent, name) = self.enter(path)?;
        let make = || rustix::fs::mknodat(&*parent.fd, name, FileType::Fifo, Mode::empty(), 0);
        self.anew(&parent, name, make)?.doing("make fifo")?;
        self.own(&parent, attributes, |uid, gid| {
            rustix::fs::chownat(&*parent.fd, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
        })?;
        // There is no fchmodat without following before Linux 6.6; the name is the fifo made above.
        let mode = Mode::from_raw_mode(attributes.mode);
        rustix::fs::chmodat(&*parent.fd, name, mode, AtFlags::empty()).doing("change mode of")?;
        set_times_at(&parent.fd, name, attributes.mtime)
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
        let link = || rustix::fs::linkat(&from, target_name, &*parent.fd, name, AtFlags::empty());
        let mut made = link();
        if made == Err(Errno::EXIST) {
            let there = stat(&parent.fd, name)?;
            if there.is_some_and(|s| (s.st_dev, s.st_ino) == (source.st_dev, source.st_ino)) {
                return Ok(());
            }
            self.clear(&parent.fd, name, false)?;
            made = link();
        }
        match made {
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
        match stat(&parent.fd, name)?.map(|s| was(&s)) {
            // The layer has the name itself, which hides what is below; a directory would be merged.
            Some(Was::Directory) => self.mark_opaque(&open_plain(&parent.fd, name, DIR)?),
            Some(Was::Whiteout | Was::Other) => Ok(()),
            Some(Was::Nothing) | None => {
                rustix::fs::mknodat(&*parent.fd, name, FileType::CharacterDevice, Mode::empty(), 0)
                    .doing("make whiteout")?;
                set_times_at(&parent.fd, name, PLAIN.mtime)
            }
        }
    }

    /// Hides all that the layers below have in the directory `path`.
    pub fn opaque(&mut self, path: &[u8]) -> Result<(), Fault> {
        let (directory, _) = self.enter(&join(path, b"."))?;
        self.mark_opaque(&directory.fd)
    }

    fn mark_opaque(&mut self, dir: &OwnedFd) -> Result<(), Fault> {
        match self.marks.opaque(dir) {
            Err(Errno::NAMETOOLONG) => Err(Refusal::Parent("path too long").into()),
            other => other.doing("make opaque"),
        }
    }

    /// Makes something of that name, removing what has it.
    fn anew<T>(
        &mut self,
        parent: &Parent,
        name: &[u8],
        make: impl Fn() -> Result<T, Errno>,
    ) -> Result<Result<T, Errno>, Fault> {
        match make() {
            Err(Errno::EXIST) => {
                self.clear(&parent.fd, name, false)?;
                Ok(make())
            }
            other => Ok(other),
        }
    }

    /// Changes the owner of what was just made in `parent`, unless it is the right one already.
    fn own(
        &self,
        parent: &Parent,
        attributes: &Attributes,
        change: impl Fn(Option<Uid>, Option<Gid>) -> Result<(), Errno>,
    ) -> Result<(), Fault> {
        if self.made_by_root && !parent.setgid && (attributes.uid, attributes.gid) == (0, 0) {
            return Ok(());
        }
        let (uid, gid) = owner(attributes);
        change(uid, gid).doing("change owner of")
    }

    /// Opens the parent of `path`, making it where it is missing; returns it with the last component.
    fn enter<'p>(&mut self, path: &'p [u8]) -> Result<(Parent, &'p [u8]), Fault> {
        let (above, name) = split(path);
        if let Some(open) = self.open.as_ref().filter(|o| o.path.as_deref() == Some(above)) {
            return Ok((open.parent.clone(), name));
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
        let stat = rustix::fs::fstat(&fd).doing("inspect")?;
        let parent = Parent { fd: Rc::new(fd), setgid: stat.st_mode & 0o2000 != 0 };
        let times = times_of(&stat);
        self.open = Some(Open { path: Some(above.to_vec()), parent: parent.clone(), times });
        Ok((parent, name))
    }

    fn leave(&mut self) -> Result<(), Fault> {
        match self.open.take() {
            Some(open) => rustix::fs::futimens(&*open.parent.fd, &open.times).doing("set times of"),
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
            let times = times_of(&rustix::fs::fstat(&parent).doing("inspect")?);
            if hidden {
                rustix::fs::unlinkat(&parent, name, AtFlags::empty()).doing("remove whiteout")?;
            }
            rustix::fs::mkdirat(&parent, name, Mode::RWXU).doing("make directory")?;
            let made = open_plain(&parent, name, DIR)?;
            if hidden {
                self.mark_opaque(&made)?;
            }
            apply(&made, &PLAIN)?;
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

/// Sets owner, mode, xattrs and times of a directory, in the order in which the kernel does not undo one by another
/// (chown clears setgid). Returns how many xattrs it cannot have.
fn apply(fd: impl AsFd, attributes: &Attributes) -> Result<u64, Fault> {
    let fd = fd.as_fd();
    let (uid, gid) = owner(attributes);
    rustix::fs::fchown(fd, uid, gid).doing("change owner of")?;
    rustix::fs::fchmod(fd, Mode::from_raw_mode(attributes.mode)).doing("change mode of")?;
    let mut dropped = 0;
    for (name, value) in &attributes.xattrs {
        if name == CAPABILITY {
            dropped += 1;
            continue;
        }
        let set = rustix::fs::fsetxattr(fd, name.as_slice(), value, XattrFlags::empty());
        dropped += dropped_xattr(set)?;
    }
    rustix::fs::futimens(fd, &times(attributes.mtime)).doing("set times of")?;
    Ok(dropped)
}

/// One if the file system has no such attributes.
fn dropped_xattr(set: Result<(), Errno>) -> Result<u64, Fault> {
    match set {
        Ok(()) => Ok(0),
        Err(Errno::OPNOTSUPP) => Ok(1),
        Err(Errno::TOOBIG | Errno::RANGE) => {
            Err(Refusal::Xattr("larger than the file system takes").into())
        }
        Err(Errno::NAMETOOLONG) => Err(Refusal::Parent("path too long").into()),
        Err(e) => Err(e).doing("set extended attribute of"),
    }
}

fn owner(attributes: &Attributes) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(attributes.uid)), Some(Gid::from_raw(attributes.gid)))
}

fn times((seconds, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}

fn times_of(stat: &Stat) -> Timestamps {
    times((stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or_default()))
}

fn set_times_at(parent: &OwnedFd, name: &[u8], mtime: (i64, u32)) -> Result<(), Fault> {
    rustix::fs::utimensat(parent, name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW)
        .doing("set times of")
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
