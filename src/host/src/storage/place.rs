//! The place of a disk: an open directory and a name in it.
//!
//! The directory may belong to a platform's user (OpenNebula's oneadmin), who must not be able to
//! lead a process of root elsewhere: it is opened once, and everything in it is done relative to
//! the descriptor, never through a symbolic link.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ocivisor_core::error::{Error, ErrorKind, Result};
use rustix::fs::{
    AtFlags, CWD, FileType, FlockOperation, Gid, Mode, OFlags, RenameFlags, ResolveFlags, Stat,
    Uid, fchmod, fchown, flock, fsync, openat, openat2, renameat, renameat_with, statat, unlinkat,
};
use rustix::io::Errno;

use super::mounts;
use crate::fs::io_error;

/// Directory and name.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) dir: OwnedFd,
    pub(super) name: OsString,
    /// For messages.
    pub(super) path: PathBuf,
}

/// Flags for all that is opened here: never a link, never waiting for the other end of a FIFO.
const SAFE: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

impl Place {
    /// The directory of `path` must exist, and no part of the way to it may be a symbolic link: who
    /// names a path resolved it before, and what is a link now was exchanged since.
    pub(super) fn of(path: &Path) -> Result<Self> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            let what = format!("disk path {} names no file", path.display());
            return Err(Error::new(ErrorKind::Invalid, what));
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let dir = openat2(CWD, parent, flags, Mode::empty(), resolve)
            .map_err(|e| io_error("open directory of disk", path, &e.into()))?;
        Ok(Self { dir, name: name.to_owned(), path: path.to_owned() })
    }

    pub(super) fn name_with(&self, suffix: &str) -> OsString {
        let mut name = self.name.clone();
        name.push(suffix);
        name
    }

    /// Name under which something is made before it appears.
    pub(super) fn temporary(&self) -> OsString {
        temporary_of(&self.name)
    }

    /// Removes what a broken-off [`Self::replace`] left.
    pub(super) fn drop_temporary_of(&self, name: &OsStr) -> Result<()> {
        self.remove(&temporary_of(name))
    }

    pub(super) fn error(&self, what: &str, e: impl Into<io::Error>) -> Error {
        io_error(what, &self.path, &e.into())
    }

    /// What has this name, itself and not what it leads to.
    pub(super) fn stat(&self, name: &OsStr) -> Result<Option<Stat>> {
        match statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(self.error("look at disk", e)),
        }
    }

    /// Opens what has this name if it is of this type; anything else is refused unopened or
    /// without effect.
    pub(super) fn open(&self, name: &OsStr, flags: OFlags, want: FileType) -> Result<File> {
        let kind = match want {
            FileType::Directory => "a directory",
            FileType::BlockDevice => "a file or block device",
            _ => "a regular file",
        };
        let wrong = || {
            let what = format!("disk {} is not {kind}", self.path.display());
            Error::new(ErrorKind::Invalid, what)
        };
        let file = match openat(&self.dir, name, flags | SAFE, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::LOOP | Errno::ISDIR | Errno::NOTDIR | Errno::NXIO) => return Err(wrong()),
            Err(Errno::NOENT) => {
                let what = format!("disk {} does not exist", self.path.display());
                return Err(Error::new(ErrorKind::NotFound, what));
            }
            Err(e) => return Err(self.error("open disk", e)),
        };
        let stat = rustix::fs::fstat(&file).map_err(|e| self.error("look at disk", e))?;
        if FileType::from_raw_mode(stat.st_mode) == want { Ok(file) } else { Err(wrong()) }
    }

    /// Opens what has this name for reading, if it is a file or a block device.
    pub(super) fn open_to_read(&self) -> Result<File> {
        match self.open(&self.name, OFlags::RDONLY, FileType::RegularFile) {
            Err(e) if e.kind == ErrorKind::Invalid => {
                self.open(&self.name, OFlags::RDONLY, FileType::BlockDevice)
            }
            other => other,
        }
    }

    /// Makes a new regular file; whatever has the name is removed.
    pub(super) fn create(&self, name: &OsStr) -> Result<File> {
        self.remove(name)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | SAFE;
        let made = openat(&self.dir, name, flags, Mode::RUSR | Mode::WUSR);
        made.map(File::from).map_err(|e| self.error("make disk", e))
    }

    /// Reads a small file; `None` if it is absent.
    pub(super) fn read(&self, name: &OsStr, max: u64) -> Result<Option<Vec<u8>>> {
        let shown = self.path.with_file_name(name);
        let damaged =
            |why: String| Error::new(ErrorKind::Integrity, format!("{} {why}", shown.display()));
        let file = match openat(&self.dir, name, OFlags::RDONLY | SAFE, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => return Err(damaged("is a symbolic link".into())),
            Err(e) => return Err(io_error("open", &shown, &e.into())),
        };
        let meta = file.metadata().map_err(|e| io_error("look at", &shown, &e))?;
        if !meta.is_file() {
            return Err(damaged("is not a regular file".into()));
        }
        let mut bytes = Vec::new();
        let read = file.take(max + 1).read_to_end(&mut bytes);
        read.map_err(|e| io_error("read", &shown, &e))?;
        if bytes.len() as u64 > max {
            return Err(damaged(format!("is larger than {max} bytes")));
        }
        Ok(Some(bytes))
    }

    /// Replaces a small file, as [`crate::fs::replace`] does, in this directory.
    pub(super) fn replace(&self, name: &OsStr, bytes: &[u8]) -> Result<()> {
        let temporary = temporary_of(name);
        let written = self.create(&temporary).and_then(|mut file| {
            let written = file.write_all(bytes);
            written.map_err(|e| self.error("write manifest of disk", e))?;
            self.hand_over(&file)?;
            renameat(&self.dir, &temporary, &self.dir, name)
                .map_err(|e| self.error("write manifest of disk", e))
        });
        if written.is_err() {
            // The first error matters; the next attempt removes the leftover.
            let _ = unlinkat(&self.dir, &temporary, AtFlags::empty());
        }
        written?;
        self.sync()
    }

    /// Gives a file to the directory's owner, who moves and copies disks, and makes it durable.
    pub(super) fn hand_over(&self, file: &File) -> Result<()> {
        let failed = |e| self.error("finish disk", e);
        let dir = rustix::fs::fstat(&self.dir).map_err(failed)?;
        let (uid, gid) = (Uid::from_raw(dir.st_uid), Gid::from_raw(dir.st_gid));
        fchown(file, Some(uid), Some(gid)).map_err(failed)?;
        fchmod(file, Mode::RUSR | Mode::WUSR).map_err(failed)?;
        fsync(file).map_err(failed)
    }

    /// Gives the finished thing its name, which must be free; durable after [`Self::sync`].
    pub(super) fn publish(&self, temporary: &OsStr) -> Result<()> {
        let (dir, name) = (&self.dir, self.name.as_os_str());
        let renamed = match renameat_with(dir, temporary, dir, name, RenameFlags::NOREPLACE) {
            // Not every filesystem knows the flag (NFS); under the lock, looking first is as good.
            Err(Errno::INVAL) if self.stat(name)?.is_none() => renameat(dir, temporary, dir, name),
            other => other,
        };
        renamed.map_err(|e| self.error("make disk", e))
    }

    /// Takes the name away from what has it; absent is fine.
    pub(super) fn withdraw(&self, temporary: &OsStr) -> Result<()> {
        match renameat(&self.dir, &self.name, &self.dir, temporary) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(self.error("remove disk", e)),
        }
    }

    /// Removes a file, or a directory and all in it; absent is fine.
    pub(super) fn remove(&self, name: &OsStr) -> Result<()> {
        match unlinkat(&self.dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR) => self.remove_tree(name),
            Err(e) => Err(self.error("remove disk", e)),
        }
    }

    fn remove_tree(&self, name: &OsStr) -> Result<()> {
        use std::os::fd::AsRawFd;
        // The standard library walks by descriptors and does not follow links (CVE-2022-21658); the
        // directory itself is reached through ours.
        let path = PathBuf::from(format!("/proc/self/fd/{}", self.dir.as_raw_fd())).join(name);
        std::fs::remove_dir_all(path).map_err(|e| self.error("remove disk", e))
    }

    pub(super) fn sync(&self) -> Result<()> {
        fsync(&self.dir).map_err(|e| self.error("sync directory of disk", e))
    }

    /// Keeps others from making or removing disks in this directory; for as long as `self` lives.
    pub(super) fn lock(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        let locked = mounts::until(deadline, || match try_lock(&self.dir) {
            Ok(Lock::Taken | Lock::Unavailable) => Ok(true),
            Ok(Lock::Held) => Ok(false),
            Err(e) => Err(e.into()),
        });
        if locked.map_err(|e| self.error("lock directory of disk", e))? {
            return Ok(());
        }
        // No conflict: nothing is said of the disk by that, and who asks must not take it for another one.
        let what = format!("directory of disk {} is locked by another", self.path.display());
        Err(Error::new(ErrorKind::Timeout, what).hint("try again"))
    }
}

fn temporary_of(name: &OsStr) -> OsString {
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(".new");
    temporary
}

/// Outcome of a try to lock.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Lock {
    /// It is ours.
    Taken,
    /// Another open file has it.
    Held,
    /// The filesystem has no such locks (NFS knows none on directories).
    Unavailable,
}

/// Tries to lock an open file or directory, flock(2).
pub(super) fn try_lock(file: impl std::os::fd::AsFd) -> std::result::Result<Lock, Errno> {
    try_lock_as(file, FlockOperation::NonBlockingLockExclusive)
}

/// The same with others that only read.
pub(super) fn try_lock_shared(file: impl std::os::fd::AsFd) -> std::result::Result<Lock, Errno> {
    try_lock_as(file, FlockOperation::NonBlockingLockShared)
}

fn try_lock_as(
    file: impl std::os::fd::AsFd,
    how: FlockOperation,
) -> std::result::Result<Lock, Errno> {
    match flock(file, how) {
        Ok(()) => Ok(Lock::Taken),
        Err(Errno::WOULDBLOCK) => Ok(Lock::Held),
        Err(Errno::BADF | Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
            Ok(Lock::Unavailable)
        }
        Err(e) => Err(e),
    }
}
