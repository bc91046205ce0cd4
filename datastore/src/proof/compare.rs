//! A layer against its tar, in place: entry by entry as the tar goes by, nothing written.
//!
//! This is a second reading of what `unpack` does, and a narrow one: it knows the layers that builders make, where
//! each name comes once and no parent is a link, and calls everything else a doubt. A doubt is no damage: the tar
//! is then unpacked once more and the two trees are compared (`exact`). What must hold is the other direction:
//! where there is no doubt, unpacking would give this very tree.
//!
//! - every entry finds its file with the same type, owner, mode, time, xattrs and content;
//! - every name in the directory belongs to an entry, or is a directory that an entry implied;
//! - names of one inode are those that the tar links, no more and no fewer.

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::io::Read;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::attributes::{self, CAPABILITY, OPAQUE, Xattrs};
use crate::tarball::{Entry, Kind, Skip, Tarball};
use crate::walk::{Step, Stopped, walk};

/// Why a layer is not taken for whole.
#[derive(Debug)]
pub(crate) enum Doubt {
    /// Maybe damage, maybe an unusual tar, or one that cannot be read: unpacking tells.
    Unclear,
    /// The disk does not give a file back.
    Unreadable { path: Vec<u8>, why: io::Error },
}

impl From<Stopped> for Doubt {
    fn from(at: Stopped) -> Self {
        Self::from_io(&at.path, at.why)
    }
}

impl Doubt {
    /// Tells a disk that fails from everything else that the kernel may say about a strange tree.
    fn from_io(path: &[u8], why: io::Error) -> Self {
        if is_disk(&why) { Self::Unreadable { path: path.to_vec(), why } } else { Self::Unclear }
    }
}

/// Errors that come from below the file system: EIO, its checksums (EUCLEAN, EBADMSG), the device itself.
pub(crate) fn is_disk(error: &io::Error) -> bool {
    let disk = [Errno::IO, Errno::UCLEAN, Errno::BADMSG, Errno::NXIO, Errno::NODATA, Errno::STALE];
    error.raw_os_error().is_some_and(|n| disk.iter().any(|d| d.raw_os_error() == n))
}

type Check<T = ()> = Result<T, Doubt>;

/// Names are told apart by the directory they are in, not by path.
type Place = (u64, Box<[u8]>);

pub(super) struct Compare<'a> {
    root: &'a File,
    root_inode: u64,
    device: u64,
    parent: Option<(Vec<u8>, File, u64)>,
    visited: HashSet<Place>,
    /// By inode: how many names it has on the disk, and how many the tar gave it.
    links: HashMap<u64, (u64, u64)>,
    opaque: HashSet<u64>,
    should_be_opaque: HashSet<u64>,
}

impl<'a> Compare<'a> {
    pub fn new(root: &'a File) -> Check<Self> {
        let stat = rustix::fs::fstat(root).map_err(|e| Doubt::from_io(b"", e.into()))?;
        Ok(Self {
            root,
            root_inode: stat.st_ino,
            device: stat.st_dev,
            parent: None,
            visited: HashSet::new(),
            links: HashMap::new(),
            opaque: HashSet::new(),
            should_be_opaque: HashSet::new(),
        })
    }

    /// Reads the whole tar and then the whole directory.
    pub fn run<R: Skip>(mut self, mut tarball: Tarball<'_, R>) -> Check {
        let mut buffers = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
        let mut root_seen = false;
        while let Some(entry) = tarball.next().map_err(|_| Doubt::Unclear)? {
            let path = plain(&entry.path)?;
            root_seen |= path.is_empty();
            self.entry(&path, &entry, &mut tarball, &mut buffers)?;
        }
        if !root_seen {
            self.directory_itself(self.root, b"", &Wanted::implied())?;
        }
        self.leftovers()?;
        ensure(self.links.values().all(|(there, told)| there == told))?;
        ensure(self.opaque == self.should_be_opaque)
    }

    fn entry<R: Skip>(
        &mut self,
        path: &[u8],
        entry: &Entry,
        tarball: &mut Tarball<'_, R>,
        buffers: &mut (Vec<u8>, Vec<u8>),
    ) -> Check {
        if path.is_empty() {
            ensure(entry.kind == Kind::Directory)?;
            return self.directory_itself(self.root, b"", &Wanted::of(entry, true)?);
        }
        let (above, name) = path
            .iter()
            .rposition(|b| *b == b'/')
            .map_or((&b""[..], path), |at| (&path[..at], &path[at + 1..]));
        match special(above, name) {
            Special::Aufs => return Ok(()),
            Special::Odd => return Err(Doubt::Unclear),
            Special::Opaque => {
                ensure(!above.is_empty())?;
                let (_, inode) = self.enter(above)?;
                self.should_be_opaque.insert(inode);
                return Ok(());
            }
            Special::Whiteout(hidden) => return self.whiteout(path, above, hidden),
            Special::No => {}
        }
        if matches!(entry.kind, Kind::CharDevice | Kind::BlockDevice) {
            return Ok(());
        }
        let name = CString::new(name).map_err(|_| Doubt::Unclear)?;
        let (dir, inode) = self.enter(above)?;
        let dir = dir.try_clone().map_err(|e| Doubt::from_io(path, e))?;
        let stat = self.stat(&dir, &name, path)?.ok_or(Doubt::Unclear)?;
        let first = self.visited.insert((inode, name.to_bytes().into()));
        ensure(first || entry.kind == Kind::Directory)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if entry.kind == Kind::HardLink {
            ensure(kind == FileType::RegularFile)?;
            return self.hard_link(&plain(&entry.link)?, &stat);
        }
        let wanted = Wanted::of(entry, entry.kind == Kind::Directory)?;
        let io = |e: io::Error| Doubt::from_io(path, e);
        match entry.kind {
            Kind::Directory => {
                ensure(kind == FileType::Directory)?;
                let child = open(&dir, &name, OFlags::DIRECTORY).map_err(io)?;
                return self.directory_itself(&child, path, &wanted);
            }
            Kind::File => {
                ensure(kind == FileType::RegularFile && size(&stat) == entry.size)?;
                wanted.matches(&stat)?;
                let file = open(&dir, &name, OFlags::NONBLOCK).map_err(io)?;
                ensure(attributes::of(file.as_fd()).map_err(io)? == wanted.xattrs)?;
                same_content(&file, tarball, path, buffers)?;
            }
            Kind::Symlink => {
                ensure(kind == FileType::Symlink)?;
                wanted.without_mode(&stat)?;
                let target = rustix::fs::readlinkat(&dir, &name, Vec::new());
                ensure(target.map_err(|e| io(e.into()))?.to_bytes() == entry.link)?;
                ensure(attributes::at(&dir, &name).map_err(io)?.is_empty())?;
            }
            Kind::Fifo => {
                ensure(kind == FileType::Fifo)?;
                wanted.matches(&stat)?;
                ensure(attributes::at(&dir, &name).map_err(io)?.is_empty())?;
            }
            Kind::HardLink | Kind::CharDevice | Kind::BlockDevice => {}
        }
        // An inode that two entries made would be two inodes.
        ensure(self.links.insert(stat.st_ino, (links(&stat), 1)).is_none())
    }

    fn whiteout(&mut self, path: &[u8], above: &[u8], hidden: &[u8]) -> Check {
        let name = CString::new(hidden).map_err(|_| Doubt::Unclear)?;
        let (dir, inode) = self.enter(above)?;
        let dir = dir.try_clone().map_err(|e| Doubt::from_io(path, e))?;
        let stat = self.stat(&dir, &name, path)?.ok_or(Doubt::Unclear)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::CharacterDevice => {
                let plain = Wanted { mode: 0, ..Wanted::implied() };
                plain.matches(&stat)?;
                ensure(stat.st_rdev == 0 && links(&stat) == 1)?;
                let xattrs = attributes::at(&dir, &name).map_err(|e| Doubt::from_io(path, e))?;
                ensure(xattrs.is_empty())?;
                ensure(self.visited.insert((inode, name.to_bytes().into())))
            }
            FileType::Directory => {
                self.should_be_opaque.insert(stat.st_ino);
                Ok(())
            }
            // The layer has the name itself; that its entry comes is seen at the end.
            _ => Ok(()),
        }
    }

    fn hard_link(&mut self, target: &[u8], stat: &Stat) -> Check {
        let (above, name) = target
            .iter()
            .rposition(|b| *b == b'/')
            .map_or((&b""[..], target), |at| (&target[..at], &target[at + 1..]));
        let name = CString::new(name).map_err(|_| Doubt::Unclear)?;
        let dir = self.enter(above)?.0.try_clone().map_err(|e| Doubt::from_io(target, e))?;
        let there = self.stat(&dir, &name, target)?.ok_or(Doubt::Unclear)?;
        ensure(there.st_ino == stat.st_ino)?;
        let (_, told) = self.links.get_mut(&stat.st_ino).ok_or(Doubt::Unclear)?;
        *told += 1;
        Ok(())
    }

    fn directory_itself(&mut self, dir: &File, path: &[u8], wanted: &Wanted) -> Check {
        let io = |e: io::Error| Doubt::from_io(path, e);
        let stat = rustix::fs::fstat(dir).map_err(|e| io(e.into()))?;
        wanted.matches(&stat)?;
        let mut xattrs = attributes::of(dir.as_fd()).map_err(io)?;
        if let Some(value) = xattrs.remove(OPAQUE) {
            ensure(value == b"y")?;
            self.opaque.insert(stat.st_ino);
        }
        ensure(xattrs == wanted.xattrs)
    }

    /// Names that no entry told of: only directories that hold what entries told of.
    fn leftovers(&mut self) -> Check {
        let mut empty = HashSet::new();
        let root = self.root;
        walk(root, &mut |step: &Step<'_>| {
            empty.remove(&step.dir_inode);
            ensure(step.stat.st_dev == self.device)?;
            if self.visited.contains(&(step.dir_inode, step.name.to_bytes().into())) {
                return Ok(());
            }
            ensure(FileType::from_raw_mode(step.stat.st_mode) == FileType::Directory)?;
            let path = step.whole_path();
            let dir = open(step.dir, step.name, OFlags::DIRECTORY)
                .map_err(|e| Doubt::from_io(&path, e))?;
            empty.insert(step.stat.st_ino);
            self.directory_itself(&dir, &path, &Wanted::implied())
        })?;
        ensure(empty.is_empty())
    }

    /// Opens a directory, through no link.
    fn enter(&mut self, path: &[u8]) -> Check<(&File, u64)> {
        if path.is_empty() {
            return Ok((self.root, self.root_inode));
        }
        if self.parent.as_ref().is_none_or(|(p, ..)| p != path) {
            let how = ResolveFlags::BENEATH
                | ResolveFlags::NO_SYMLINKS
                | ResolveFlags::NO_MAGICLINKS
                | ResolveFlags::NO_XDEV;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let open = || {
                let dir: File =
                    rustix::fs::openat2(self.root, path, flags, Mode::empty(), how)?.into();
                let inode = rustix::fs::fstat(&dir)?.st_ino;
                Ok((path.to_vec(), dir, inode))
            };
            self.parent = Some(open().map_err(|e: Errno| Doubt::from_io(path, e.into()))?);
        }
        self.parent.as_ref().map(|(_, dir, inode)| (dir, *inode)).ok_or(Doubt::Unclear)
    }

    fn stat(&self, dir: &File, name: &CStr, path: &[u8]) -> Check<Option<Stat>> {
        match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if stat.st_dev != self.device => Err(Doubt::Unclear),
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(Doubt::from_io(path, e.into())),
        }
    }
}

/// What an entry says about its inode.
struct Wanted {
    uid: u64,
    gid: u64,
    mode: u32,
    mtime: (i64, u32),
    xattrs: Xattrs,
}

impl Wanted {
    fn implied() -> Self {
        Self { uid: 0, gid: 0, mode: 0o755, mtime: (0, 0), xattrs: Xattrs::new() }
    }

    fn of(entry: &Entry, directory: bool) -> Check<Self> {
        let mut xattrs = Xattrs::new();
        for (name, value) in &entry.xattrs {
            if name.starts_with(b"user.overlay.") {
                continue;
            }
            if name.starts_with(b"user.") && entry.kind != Kind::Symlink && entry.kind != Kind::Fifo
            {
                xattrs.insert(name.clone(), value.clone());
            } else if name == CAPABILITY && !directory && entry.kind == Kind::File {
                // Revision 3 is written as 2, without its root id: see `unpack::xattr`.
                let mut value = value.clone();
                value.truncate(20);
                *value.get_mut(3).ok_or(Doubt::Unclear)? = 2;
                xattrs.insert(name.clone(), value);
            }
        }
        Ok(Self { uid: entry.uid, gid: entry.gid, mode: entry.mode, mtime: entry.mtime, xattrs })
    }

    fn matches(&self, stat: &Stat) -> Check {
        ensure(stat.st_mode & 0o7777 == self.mode)?;
        self.without_mode(stat)
    }

    fn without_mode(&self, stat: &Stat) -> Check {
        let owner = (u64::from(stat.st_uid), u64::from(stat.st_gid));
        let nanos = u32::try_from(stat.st_mtime_nsec).unwrap_or(u32::MAX);
        ensure(owner == (self.uid, self.gid) && (stat.st_mtime, nanos) == self.mtime)
    }
}

/// What a name in the `.wh.` space stands for.
enum Special<'a> {
    No,
    Whiteout(&'a [u8]),
    Opaque,
    Aufs,
    Odd,
}

fn special<'a>(above: &[u8], name: &'a [u8]) -> Special<'a> {
    for part in above.split(|b| *b == b'/') {
        if part.starts_with(b".wh..wh.") {
            return Special::Aufs;
        }
        if part.starts_with(b".wh.") {
            return Special::Odd;
        }
    }
    if name == b".wh..wh..opq" {
        return Special::Opaque;
    }
    if name.starts_with(b".wh..wh.") {
        return Special::Aufs;
    }
    name.strip_prefix(b".wh.").map_or(Special::No, Special::Whiteout)
}

fn same_content<R: Skip>(
    mut file: &File,
    tarball: &mut Tarball<'_, R>,
    path: &[u8],
    (ours, theirs): &mut (Vec<u8>, Vec<u8>),
) -> Check {
    loop {
        let n = tarball.read(theirs).map_err(|_| Doubt::Unclear)?;
        if n == 0 {
            let more = file.read(&mut ours[..1]).map_err(|e| Doubt::from_io(path, e))?;
            return ensure(more == 0);
        }
        match file.read_exact(&mut ours[..n]) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Err(Doubt::Unclear),
            other => other.map_err(|e| Doubt::from_io(path, e))?,
        }
        ensure(ours[..n] == theirs[..n])?;
    }
}

/// The components of a path without `.`; a `..` is a doubt.
fn plain(path: &[u8]) -> Check<Vec<u8>> {
    let parts: Vec<&[u8]> =
        path.split(|b| *b == b'/').filter(|p| !matches!(*p, b"" | b".")).collect();
    ensure(!parts.contains(&&b".."[..]))?;
    Ok(parts.join(&b'/'))
}

fn open(dir: &File, name: &CStr, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, flags, Mode::empty())?.into())
}

fn size(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(u64::MAX)
}

#[allow(clippy::useless_conversion, reason = "the type differs between architectures")]
fn links(stat: &Stat) -> u64 {
    u64::from(stat.st_nlink)
}

fn ensure(holds: bool) -> Check {
    if holds { Ok(()) } else { Err(Doubt::Unclear) }
}
