//! The guest's files, reached from the descriptor of its root directory alone.
//!
//! Every path is resolved by openat2(2) with `RESOLVE_IN_ROOT`, so links end inside. The last part of a path is
//! never followed: what is read must itself be a regular file, and what is written is a new file that takes the
//! name by rename(2). So a link `/etc/resolv.conf -> /etc/shadow` is replaced and its target left alone, and a FIFO
//! or device in a file's place is never opened.
//!
//! In a directory that a user of the guest owns, that user may exchange names at any moment: there we work with
//! the rights of that user ([`Root::acting_as`]), and can do nothing that the user could not; or, as root, follow
//! no link from there on.

mod tie;

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};
use std::time::{Duration, Instant};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::spec::normal_path;
use rustix::event::{Timespec, poll};
use rustix::fs::{
    AtFlags, Dir, FileType, FlockOperation, Gid, Mode, OFlags, ResolveFlags, Stat, Uid, fchmod,
    fchown, fdatasync, flock, fstat, fstatfs, mkdirat, openat, openat2, readlinkat, renameat,
    statat, symlinkat, unlinkat,
};
use rustix::io::Errno;

use self::tie::Tie;
use crate::content::{Content, Sum};

/// Name of a file until it is whole. One name: what a telling that was killed left behind is removed by the next
/// one in that directory.
const UNFINISHED: &str = ".ocivisor-tell";

/// How often a walk is begun that a rename on the host may have met: then the kernel cannot tell whether a `..` led
/// out, and openat2(2) says to try again.
const WALKS: u32 = 1024;

/// Filesystems of the kernel, where names are no files of an image; linux/magic.h: proc, sysfs, cgroup, cgroup2,
/// devpts, debugfs, tracefs, bpf, securityfs.
const KERNEL: [u32; 9] = [
    0x9fa0,
    0x6265_6572,
    0x0027_e0eb,
    0x6367_7270,
    0x1cd1,
    0x6462_6720,
    0x7472_6163,
    0xcafe_4a11,
    0x7363_6673,
];

/// Permission bits and owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl Access {
    /// Root's, with these permissions.
    #[must_use]
    pub const fn root(mode: u32) -> Self {
        Self { mode, uid: 0, gid: 0 }
    }
}

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// Nothing.
    Absent,
    /// A regular file, and its bytes if they are not too many.
    File(Access, Option<Vec<u8>>),
    /// A symbolic link, by its target.
    Link(Vec<u8>),
    /// A directory.
    Directory,
    /// FIFO, socket or device.
    Odd,
}

/// The root directory of a guest.
#[derive(Debug)]
pub struct Root {
    dir: OwnedFd,
    /// Whether we have root's rights just now.
    roots: Cell<bool>,
}

/// An open directory of the guest and a name in it.
struct Place<'a> {
    dir: OwnedFd,
    name: &'a OsStr,
    path: &'a Path,
}

impl Root {
    /// The guest whose root directory this is.
    #[must_use]
    pub fn new(dir: OwnedFd) -> Self {
        Self { dir, roots: Cell::new(true) }
    }

    /// What is at `path`, itself and not what it leads to; the bytes of a file of at most `max` of them.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(&self, path: &str, max: u64) -> Result<Node> {
        let Some(place) = self.place(path)? else { return Ok(Node::Absent) };
        let failed = |e: Errno| place.error("read", e);
        let stat = match statat(&place.dir, place.name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(Node::Absent),
            other => other.map_err(failed)?,
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {}
            FileType::Symlink => {
                let target = readlinkat(&place.dir, place.name, Vec::new()).map_err(failed)?;
                return Ok(Node::Link(target.into_bytes()));
            }
            FileType::Directory => return Ok(Node::Directory),
            _ => return Ok(Node::Odd),
        }
        let Some((file, access)) = place.open()? else { return Ok(Node::Odd) };
        let mut bytes = Vec::new();
        file.take(max + 1).read_to_end(&mut bytes).map_err(|e| place.io_error("read", &e))?;
        Ok(Node::File(access, Some(bytes).filter(|bytes| bytes.len() as u64 <= max)))
    }

    /// Access and SHA-256 in hex of the regular file at `path`, if there is one of `size` bytes.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn digest(&self, path: &str, size: u64) -> Result<Option<(Access, String)>> {
        let Some(place) = self.place(path)? else { return Ok(None) };
        let Some((file, access)) = place.open()? else { return Ok(None) };
        let failed = |e: io::Error| place.io_error("read", &e);
        if file.metadata().map_err(failed)?.len() != size {
            return Ok(None);
        }
        let mut sum = Sum::default();
        // Bounded, though the file may grow meanwhile.
        io::copy(&mut file.take(size), &mut sum).map_err(failed)?;
        Ok(Some((access, sum.hex())))
    }

    /// Names in the directory at `path`, at most so many; none if there is no such directory.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn names(&self, path: &str, max: usize) -> Result<Vec<String>> {
        let Some(place) = self.place(path)? else { return Ok(Vec::new()) };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = match openat(&place.dir, place.name, flags, Mode::empty()) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(Vec::new()),
            other => other.map_err(|e| place.error("read", e))?,
        };
        let entries = Dir::new(dir).map_err(|e| place.error("read", e))?.take(max);
        let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect::<std::result::Result<_, _>>().map_err(|e| place.error("read", e))
    }

    /// Whether `path` leads to something of that type, links followed.
    #[must_use]
    pub fn leads_to(&self, path: &str, want: FileType) -> bool {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let found = open_at(&self.dir, Path::new(path), flags, inside()).and_then(fstat);
        found.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == want)
    }

    /// Puts a new regular file at `path`, whatever is there but a directory.
    ///
    /// # Errors
    /// `Image`: a directory is there, or the way leads nowhere. Nothing was changed.
    pub fn write(&self, path: &str, content: &Content<'_>, access: Access) -> Result<()> {
        self.put(path, content, access, false)
    }

    /// As [`Self::write`], and on the disk before it takes the name: also after a loss of power the old file is there
    /// or the new one. For what the next boot would not write again.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn write_durably(&self, path: &str, bytes: Vec<u8>, access: Access) -> Result<()> {
        self.put(path, &Content::Bytes(bytes), access, true)
    }

    fn put(&self, path: &str, content: &Content<'_>, access: Access, durably: bool) -> Result<()> {
        let place = self.place_for_writing(path)?;
        place.clear_unfinished()?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = openat(&place.dir, UNFINISHED, flags, Mode::RUSR | Mode::WUSR);
        let mut file = File::from(made.map_err(|e| place.error("write", e))?);
        let written = content.write_to(&mut file).map_err(|e| place.io_error("write", &e));
        let given = written.and_then(|()| give(&file, access).map_err(|e| place.error("write", e)));
        let given = given.and_then(|()| match durably {
            true => fdatasync(&file).map_err(|e| place.error("write", e)),
            false => Ok(()),
        });
        drop(file);
        given.and_then(|()| place.finish()).inspect_err(|_| place.forget_unfinished())
    }

    /// Puts a symbolic link at `path`, whatever is there but a directory.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn link(&self, path: &str, target: &[u8]) -> Result<()> {
        let place = self.place_for_writing(path)?;
        place.clear_unfinished()?;
        symlinkat(target, &place.dir, UNFINISHED).map_err(|e| place.error("write", e))?;
        place.finish().inspect_err(|_| place.forget_unfinished())
    }

    /// Removes the file or link at `path`; absent is fine.
    ///
    /// # Errors
    /// It is still there, or a directory is.
    pub fn remove(&self, path: &str) -> Result<()> {
        let Some(place) = self.place(path)? else { return Ok(()) };
        match unlinkat(&place.dir, place.name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(place.error("remove", e)),
        }
    }

    /// Removes the directory at `path` if it is empty; what else has that name by now stays.
    ///
    /// # Errors
    /// It is still there, but for one that is in use.
    pub fn remove_dir(&self, path: &str) -> Result<()> {
        let Some(place) = self.place(path)? else { return Ok(()) };
        match unlinkat(&place.dir, place.name, AtFlags::REMOVEDIR) {
            Ok(()) => Ok(()),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::NOTEMPTY | Errno::EXIST | Errno::BUSY) => {
                Ok(())
            }
            Err(e) => Err(place.error("remove", e)),
        }
    }

    /// Directories on the way to `path` and itself that are missing, outermost first.
    ///
    /// # Errors
    /// `Image`: something that is no directory is in the way.
    pub fn missing_dirs(&self, path: &str) -> Result<Vec<String>> {
        let whole = checked(path)?;
        let mut missing = Vec::new();
        for dir in whole.ancestors() {
            match self.way(dir) {
                Ok(_) => break,
                Err(Errno::NOENT) => missing.extend(dir.to_str().map(str::to_owned)),
                Err(e) => return Err(in_the_way(dir, e)),
            }
        }
        missing.reverse();
        Ok(missing)
    }

    /// Makes one directory, which must not exist.
    ///
    /// # Errors
    /// `Image`: something is in the way.
    pub fn make_dir(&self, path: &str, access: Access) -> Result<()> {
        let place = self.place_for_writing(path)?;
        let failed = |e| in_the_way(place.path, e);
        mkdirat(&place.dir, place.name, Mode::RWXU).map_err(failed)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = openat(&place.dir, place.name, flags, Mode::empty()).map_err(failed)?;
        give(made, access).map_err(failed)
    }

    /// Whether none but root may change names in the directory at `path`; one that is missing is nobody's.
    ///
    /// # Errors
    /// `Image`: it is no directory.
    pub fn is_roots_alone(&self, path: &str) -> Result<bool> {
        let whole = checked(path)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match open_at(&self.dir, whole, flags, inside()).and_then(fstat) {
            Err(Errno::NOENT) => Ok(true),
            Err(e) => Err(in_the_way(whole, e)),
            Ok(stat) => Ok(!others_write(&stat)),
        }
    }

    /// The directory at `path`, for us alone until it is dropped; `None` if there is none.
    ///
    /// # Errors
    /// `Conflict`: somebody else has it for longer than `patience`. `Image`: it is no directory.
    pub fn hold_dir(&self, path: &str, patience: Duration) -> Result<Option<File>> {
        let whole = checked(path)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = match open_at(&self.dir, whole, flags, inside()) {
            Err(Errno::NOENT) => return Ok(None),
            other => other.map_err(|e| in_the_way(whole, e))?,
        };
        if !within(patience, || flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok()) {
            let what = format!("another process keeps the guest's {path} locked");
            return Err(Error::new(ErrorKind::Conflict, what));
        }
        Ok(Some(dir.into()))
    }

    /// A file to lock, made if missing; `None` if something else is in its place.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn lock_file(&self, path: &str) -> Result<Option<File>> {
        let place = self.place_for_writing(path)?;
        let flags = OFlags::RDWR
            | OFlags::CREATE
            | OFlags::NOFOLLOW
            | OFlags::NONBLOCK
            | OFlags::NOCTTY
            | OFlags::CLOEXEC;
        match openat(&place.dir, place.name, flags, Mode::RUSR | Mode::WUSR) {
            Ok(fd) => {
                let stat = fstat(&fd).map_err(|e| place.error("lock", e))?;
                let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
                Ok(regular.then(|| File::from(fd)))
            }
            Err(Errno::LOOP | Errno::NXIO | Errno::ISDIR) => Ok(None),
            Err(e) => Err(place.error("lock", e)),
        }
    }

    /// Does something with the rights of a user of the guest; root's own are those that we have. Within such a work
    /// the user stays the same.
    ///
    /// # Errors
    /// `Image`: the guest has no such user. Those of the work.
    pub fn acting_as<T>(
        &self,
        uid: u32,
        gid: u32,
        work: impl FnOnce(&Self) -> Result<T>,
    ) -> Result<T> {
        use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
        if uid == 0 || !self.roots.get() {
            return work(self);
        }
        let tie = Tie::of_this_process();
        // setfsuid(2) takes the capabilities on files away as well, until it is root again, and is about this thread
        // alone. It reports no failure: an id that is none is asked for to see which one is in force.
        let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
        let (roots_group, root) = (setfsgid(group), setfsuid(user));
        let none = (Gid::from_raw(u32::MAX), Uid::from_raw(u32::MAX));
        let result = if (setfsgid(none.0), setfsuid(none.1)) == (group, user) {
            tie.renew();
            self.roots.set(false);
            let result = work(self);
            self.roots.set(true);
            result
        } else {
            let what = format!("the guest has no user {uid} with group {gid}");
            Err(Error::new(ErrorKind::Image, what))
        };
        setfsuid(root);
        setfsgid(roots_group);
        tie.renew();
        result
    }

    /// The directory of `path`, if it is there.
    fn place<'a>(&self, path: &'a str) -> Result<Option<Place<'a>>> {
        let whole = checked(path)?;
        let (Some(parent), Some(name)) = (whole.parent(), whole.file_name()) else {
            return Err(in_the_way(whole, Errno::ISDIR));
        };
        match self.way(parent) {
            Ok(dir) => Ok(Some(Place { dir, name, path: whole })),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(e) => Err(in_the_way(whole, e)),
        }
    }

    /// Opens a directory. As root, no link is followed below the first directory in which others may put one; a
    /// user's own rights are enough to let him follow his links.
    fn way(&self, path: &Path) -> std::result::Result<OwnedFd, Errno> {
        // Not to be read: a user may keep a directory that only lets others pass.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if self.roots.get() {
            let mut above: Vec<&Path> = path.ancestors().skip(1).collect();
            above.reverse();
            for above in above {
                let dir = open_at(&self.dir, above, flags, inside())?;
                if others_write(&fstat(&dir)?) {
                    let rest = path.strip_prefix(above).map_err(|_| Errno::INVAL)?;
                    let plainly = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
                    return open_at(&dir, rest, flags, plainly);
                }
            }
        }
        open_at(&self.dir, path, flags, inside())
    }

    fn place_for_writing<'a>(&self, path: &'a str) -> Result<Place<'a>> {
        let place = self.place(path)?.ok_or_else(|| {
            let what = format!("the guest's {path} cannot be written: no directory leads there");
            Error::new(ErrorKind::Image, what)
        })?;
        let filesystem = fstatfs(&place.dir).map_err(|e| place.error("write", e))?;
        // Of 32 bits; the field's type is not the same on all architectures.
        if KERNEL.contains(&(filesystem.f_type as u32)) {
            let what = format!("the guest's {path} leads into a filesystem of the kernel");
            return Err(Error::new(ErrorKind::Image, what));
        }
        Ok(place)
    }
}

impl Place<'_> {
    /// The regular file of that name, opened for reading, and its access; `None` if it is something else.
    fn open(&self) -> Result<Option<(File, Access)>> {
        // NONBLOCK: should it be exchanged for a FIFO just now, opening must not wait.
        let flags =
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = match openat(&self.dir, self.name, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::LOOP | Errno::NOENT | Errno::NXIO) => return Ok(None),
            Err(e) => return Err(self.error("read", e)),
        };
        let stat = fstat(&file).map_err(|e| self.error("read", e))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(None);
        }
        let access = Access { mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid };
        Ok(Some((file, access)))
    }

    fn clear_unfinished(&self) -> Result<()> {
        match unlinkat(&self.dir, UNFINISHED, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(self.error("write", e)),
        }
    }

    fn forget_unfinished(&self) {
        // The first error is told; the next telling clears it.
        let _ = unlinkat(&self.dir, UNFINISHED, AtFlags::empty());
    }

    fn finish(&self) -> Result<()> {
        renameat(&self.dir, UNFINISHED, &self.dir, self.name).map_err(|e| self.error("write", e))
    }

    fn error(&self, what: &str, e: Errno) -> Error {
        self.io_error(what, &e.into())
    }

    fn io_error(&self, what: &str, e: &io::Error) -> Error {
        failure(what, self.path, e)
    }
}

/// The owner before the permissions: chown(2) clears set-id bits. Left alone where it is right already, because
/// users may not give files away.
fn give(file: impl AsFd, access: Access) -> std::result::Result<(), Errno> {
    let stat = fstat(&file)?;
    if (stat.st_uid, stat.st_gid) != (access.uid, access.gid) {
        let (uid, gid) = (Uid::from_raw(access.uid), Gid::from_raw(access.gid));
        fchown(&file, Some(uid), Some(gid))?;
    }
    fchmod(&file, Mode::from_raw_mode(access.mode))
}

/// Whether somebody else than root may change names in a directory.
fn others_write(stat: &Stat) -> bool {
    stat.st_uid != 0 || stat.st_mode & 0o002 != 0 || (stat.st_gid != 0 && stat.st_mode & 0o020 != 0)
}

/// openat2(2) without creation, tried again if a rename or a mount anywhere on the host met the walk over a `..`
/// ([`WALKS`]).
fn open_at(
    dir: impl AsFd,
    path: &Path,
    flags: OFlags,
    how: ResolveFlags,
) -> std::result::Result<OwnedFd, Errno> {
    again(|| openat2(&dir, path, flags, Mode::empty(), how))
}

/// Calls until the answer is another than "try again", within bounds: a guest may rename without end.
fn again<T>(
    mut call: impl FnMut() -> std::result::Result<T, Errno>,
) -> std::result::Result<T, Errno> {
    for _ in 0..WALKS {
        match call() {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// Links end inside, and none of the kernel's own (`/proc/self/fd`) is followed.
fn inside() -> ResolveFlags {
    ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS
}

fn checked(path: &str) -> Result<&Path> {
    let path = Path::new(path);
    let plain = normal_path(path).as_deref() == Some(path)
        && path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    if plain {
        return Ok(path);
    }
    Err(Error::new(ErrorKind::Invalid, format!("guest's path {path:?} is not absolute and plain")))
}

/// Tries until it is done or the time is over.
pub(crate) fn within(time: Duration, mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + time;
    while !done() {
        if Instant::now() >= end {
            return false;
        }
        let tick = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        // Interrupted: the time is looked at in any case.
        let _ = poll(&mut [], Some(&tick));
    }
    true
}

fn in_the_way(path: &Path, e: Errno) -> Error {
    failure("reach", path, &e.into())
}

/// A full disk and a bad one are told apart; the rest is the doing of the guest's files.
fn failure(what: &str, path: &Path, e: &io::Error) -> Error {
    let kind = match e.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOSPC | Errno::DQUOT | Errno::NOMEM | Errno::MFILE | Errno::NFILE) => {
            ErrorKind::Exhausted
        }
        Some(Errno::IO) => ErrorKind::Host,
        _ => ErrorKind::Image,
    };
    Error::new(kind, format!("{what} the guest's {}: {e}", path.display()))
}

#[cfg(test)]
mod tests;
