//! A directory by its descriptor.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use ocivisor_core::error::{Error, ErrorKind, Result};
use rustix::fs::{
    AtFlags, CWD, Dir as Entries, FileType, FlockOperation, Mode, OFlags, RenameFlags,
    ResolveFlags, Stat, flock, fstat, fsync, linkat, mkdirat, mknodat, open, openat, openat2,
    readlinkat, renameat, renameat_with, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::failed;

/// Deepest directory that is walked.
const MAX_DEPTH: usize = 32;

/// Never a link, never waiting for the other end of a FIFO.
const SAFE: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(SAFE);

/// An open directory, and its path for messages.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Dir {
    /// Opens a datastore's directory. Links on the way to it are the admin's and followed.
    ///
    /// # Errors
    /// `NotFound`: there is none.
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = open(path, flags, Mode::empty()).map_err(|e| failed("open", path, e))?;
        Ok(Self { fd, path: path.to_owned() })
    }

    /// The same; makes it if its parent is there.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn ensure(path: &Path) -> Result<Self> {
        match mkdirat(CWD, path, Mode::from_raw_mode(0o750)) {
            Ok(()) | Err(Errno::EXIST) => Self::open(path),
            Err(e) => Err(failed("make directory", path, e)),
        }
    }

    /// Its path, for messages and for the daemon.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A directory in it, not through a link; none if there is nothing of that name.
    ///
    /// # Errors
    /// It is something else.
    pub fn sub(&self, name: &str) -> Result<Option<Self>> {
        self.descend(name, ResolveFlags::empty())
    }

    fn descend(&self, name: &str, more: ResolveFlags) -> Result<Option<Self>> {
        let path = self.path.join(name);
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | more;
        match openat2(&self.fd, name, DIRECTORY, Mode::empty(), resolve) {
            Ok(fd) => Ok(Some(Self { fd, path })),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::LOOP | Errno::NOTDIR) => {
                Err(Error::new(ErrorKind::Invalid, format!("{} is no directory", path.display())))
            }
            Err(Errno::XDEV) => Err(Error::new(
                ErrorKind::Conflict,
                format!("something is mounted on {}", path.display()),
            )
            .hint("unmount it")),
            Err(e) => Err(failed("open", &path, e)),
        }
    }

    /// A directory in it, made if it is not there.
    ///
    /// # Errors
    /// It is something else, or cannot be made.
    pub fn make(&self, name: &str, mode: u32) -> Result<Self> {
        loop {
            match mkdirat(&self.fd, name, Mode::from_raw_mode(mode)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(self.failed("make directory", name, e)),
            }
            // Who was there before may have removed it just now.
            if let Some(dir) = self.sub(name)? {
                return Ok(dir);
            }
        }
    }

    /// What has that name, itself and not what it leads to.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn stat(&self, name: &str) -> Result<Option<Stat>> {
        match statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(self.failed("look at", name, e)),
        }
    }

    /// Opens a regular file; none if there is nothing of that name.
    ///
    /// # Errors
    /// `Invalid`: it is something else.
    pub fn file(&self, name: &str, write: bool) -> Result<Option<File>> {
        let how = if write { OFlags::RDWR } else { OFlags::RDONLY };
        let wrong = || {
            let what = format!("{} is no regular file", self.path.join(name).display());
            Error::new(ErrorKind::Invalid, what)
        };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let file = match openat2(&self.fd, name, how | SAFE, Mode::empty(), resolve) {
            Ok(fd) => File::from(fd),
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP | Errno::ISDIR | Errno::NXIO | Errno::NOTDIR) => return Err(wrong()),
            Err(e) => return Err(self.failed("open", name, e)),
        };
        let stat = fstat(&file).map_err(|e| self.failed("look at", name, e))?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
            Ok(Some(file))
        } else {
            Err(wrong())
        }
    }

    /// Reads a small file; none if it is absent.
    ///
    /// # Errors
    /// It is larger, or no regular file.
    pub fn read(&self, name: &str, most: u64) -> Result<Option<Vec<u8>>> {
        let Some(file) = self.file(name, false)? else { return Ok(None) };
        let mut bytes = Vec::new();
        let read = file.take(most + 1).read_to_end(&mut bytes);
        read.map_err(|e| self.failed("read", name, e))?;
        if bytes.len() as u64 > most {
            let what = format!("{} has more than {most} bytes", self.path.join(name).display());
            return Err(Error::new(ErrorKind::Integrity, what));
        }
        Ok(Some(bytes))
    }

    /// Makes a new file; a file or link that has the name goes.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn create(&self, name: &str) -> Result<File> {
        self.unlink(name)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | SAFE;
        let made = openat(&self.fd, name, flags, Mode::RUSR | Mode::WUSR);
        made.map(File::from).map_err(|e| self.failed("make", name, e))
    }

    /// Writes a small file under its name in one step, durable on return.
    ///
    /// # Errors
    /// It cannot be written; nothing was left.
    pub fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.publish(name, |file| file.write_all(bytes).map_err(|e| self.failed("write", name, e)))
    }

    /// Makes a file under another name, fills it, and gives it its name, durable on return. A directory that has
    /// the name is in the way.
    ///
    /// # Errors
    /// What `fill` says; nothing was left.
    pub fn publish<T>(&self, name: &str, fill: impl FnOnce(&mut File) -> Result<T>) -> Result<T> {
        let temporary = temporary(name);
        let mut file = self.create(&temporary)?;
        let done = fill(&mut file).and_then(|made| {
            fsync(&file).map_err(|e| self.failed("sync", name, e))?;
            self.rename(&temporary, name)?;
            Ok(made)
        });
        if done.is_err() {
            // The first error matters; the next attempt removes the leftover.
            let _ = self.unlink(&temporary);
        }
        let made = done?;
        self.sync()?;
        Ok(made)
    }

    /// Makes a FIFO, in place of a file or link that has the name; it is open for both, and neither waits.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn fifo(&self, name: &str) -> Result<File> {
        self.unlink(name)?;
        let mode = Mode::RUSR | Mode::WUSR;
        mknodat(&self.fd, name, FileType::Fifo, mode, 0)
            .map_err(|e| self.failed("make", name, e))?;
        let opened = openat(&self.fd, name, OFlags::RDWR | SAFE, Mode::empty());
        opened.map(File::from).map_err(|e| self.failed("open", name, e))
    }

    /// An empty file that several processes lock; made if it is not there.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn lock_file(&self, name: &str) -> Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | SAFE;
        let opened = openat(&self.fd, name, flags, Mode::RUSR | Mode::WUSR);
        opened.map(File::from).map_err(|e| self.failed("open", name, e))
    }

    /// A file, to be locked: open for writing where that is possible.
    ///
    /// # Errors
    /// As [`Dir::file`].
    pub fn file_to_lock(&self, name: &str) -> Result<Option<File>> {
        match self.file(name, true) {
            Err(e) if e.kind == ErrorKind::Permission => self.file(name, false),
            other => other,
        }
    }

    /// Gives something another name in this directory, in place of what has it.
    ///
    /// # Errors
    /// It cannot be done.
    pub fn rename(&self, from: &str, to: &str) -> Result<()> {
        renameat(&self.fd, from, &self.fd, to).map_err(|e| self.failed("rename", from, e))
    }

    /// Moves something to another directory of the same file system, in place of what has its name there.
    ///
    /// # Errors
    /// It cannot be done.
    pub fn give(&self, name: &str, to: &Dir) -> Result<()> {
        renameat(&self.fd, name, &to.fd, name).map_err(|e| to.failed("rename", name, e))
    }

    /// Gives something a name; what had it gets the other one.
    ///
    /// # Errors
    /// It cannot be done.
    pub fn put_in_place(&self, new: &str, name: &str) -> Result<()> {
        if self.stat(name)?.is_none() {
            return self.rename(new, name);
        }
        match renameat_with(&self.fd, new, &self.fd, name, RenameFlags::EXCHANGE) {
            // Not every file system can exchange (NFS): the old one goes first, then.
            Err(Errno::INVAL | Errno::NOSYS) => {
                self.remove(name)?;
                self.rename(new, name)
            }
            other => other.map_err(|e| self.failed("rename", new, e)),
        }
    }

    /// A second name for a file of another directory of the same file system, in place of what has it.
    ///
    /// # Errors
    /// `Unsupported`: it is another file system.
    pub fn link_from(&self, other: &Dir, source: &str, name: &str) -> Result<()> {
        let temporary = temporary(name);
        self.unlink(&temporary)?;
        match linkat(&other.fd, source, &self.fd, &temporary, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::XDEV) => {
                let what = format!("{} is on another file system", self.path.display());
                return Err(Error::new(ErrorKind::Unsupported, what));
            }
            Err(e) => return Err(self.failed("link", name, e)),
        }
        self.rename(&temporary, name)?;
        // If both names are the same file already, rename(2) does nothing and leaves both.
        self.unlink(&temporary)?;
        self.sync()
    }

    /// Removes a file or link; absent is fine.
    ///
    /// # Errors
    /// It is a directory, or cannot be removed.
    pub fn unlink(&self, name: &str) -> Result<()> {
        match unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(self.failed("remove", name, e)),
        }
    }

    /// Removes whatever has that name and all below it, never beyond a mount point; absent is fine.
    ///
    /// # Errors
    /// `Conflict`: something is mounted there. What was not removed is still there.
    pub fn remove(&self, name: &str) -> Result<()> {
        self.remove_below(name, MAX_DEPTH)
    }

    fn remove_below(&self, name: &str, depth: usize) -> Result<()> {
        match unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(e) => return Err(self.failed("remove", name, e)),
        }
        if depth == 0 {
            let what = format!("{} is too deep to be removed", self.path.join(name).display());
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        let Some(sub) = self.descend(name, ResolveFlags::NO_XDEV)? else { return Ok(()) };
        for entry in sub.names()? {
            sub.remove_below(&entry, depth - 1)?;
        }
        match unlinkat(&self.fd, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::BUSY) => {
                let what = format!("{} is busy", self.path.join(name).display());
                Err(Error::new(ErrorKind::Conflict, what))
            }
            Err(e) => Err(self.failed("remove", name, e)),
        }
    }

    /// Names in it, sorted.
    ///
    /// # Errors
    /// It cannot be read, or a name is not UTF-8.
    pub fn names(&self) -> Result<Vec<String>> {
        let list = || -> std::result::Result<Vec<Vec<u8>>, Errno> {
            let mut names = Vec::new();
            for entry in Entries::read_from(&self.fd)? {
                let name = entry?.file_name().to_bytes().to_vec();
                if name != b"." && name != b".." {
                    names.push(name);
                }
            }
            Ok(names)
        };
        let names = list().map_err(|e| failed("list", &self.path, e))?;
        let text = |name: Vec<u8>| {
            String::from_utf8(name).map_err(|e| {
                let name = String::from_utf8_lossy(e.as_bytes()).into_owned();
                let what = format!("{} holds {name:?}, which is not UTF-8", self.path.display());
                Error::new(ErrorKind::Invalid, what)
            })
        };
        let mut names = names.into_iter().map(text).collect::<Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }

    /// What a link says.
    ///
    /// # Errors
    /// It is none, or says no text.
    pub fn read_link(&self, name: &str) -> Result<String> {
        let target = readlinkat(&self.fd, name, Vec::new());
        let target = target.map_err(|e| self.failed("read link", name, e))?;
        target.into_string().map_err(|_| self.failed("read link", name, Errno::ILSEQ))
    }

    /// Makes a link.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn make_link(&self, name: &str, target: &str) -> Result<()> {
        symlinkat(target, &self.fd, name).map_err(|e| self.failed("make link", name, e))
    }

    /// Makes its entries durable.
    ///
    /// # Errors
    /// They are not.
    pub fn sync(&self) -> Result<()> {
        fsync(&self.fd).map_err(|e| failed("sync", &self.path, e))
    }

    pub(crate) fn failed(&self, what: &str, name: &str, e: impl Into<std::io::Error>) -> Error {
        failed(what, &self.path.join(name), e)
    }
}

/// Whether another holds the file: the daemon locks a disk for as long as it is attached. If not, it is ours as long as it
/// is open. It is open for writing, or NFS would not lock it (flock(2)).
///
/// # Errors
/// It cannot be asked.
pub fn is_in_use(file: &File, path: &Path) -> Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(false),
        Err(Errno::WOULDBLOCK) => Ok(true),
        Err(Errno::NOLCK | Errno::OPNOTSUPP | Errno::INVAL) => Ok(false),
        Err(e) => Err(failed("lock", path, e)),
    }
}

/// The name of something that is not whole yet.
#[must_use]
pub fn temporary(name: &str) -> String {
    format!(".{name}.coming")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_not_followed_and_are_removed_as_links() {
        let root = tempfile::tempdir().unwrap();
        let outside = root.path().join("outside");
        std::fs::create_dir_all(outside.join("kept")).unwrap();
        let inner = root.path().join("7");
        std::fs::create_dir_all(inner.join("a/b")).unwrap();
        std::os::unix::fs::symlink(&outside, inner.join("link")).unwrap();
        std::os::unix::fs::symlink(outside.join("kept"), inner.join("disk.0")).unwrap();
        let dir = Dir::open(&inner).unwrap();
        assert_eq!(dir.sub("link").unwrap_err().kind, ErrorKind::Invalid);
        assert_eq!(dir.file("disk.0", true).unwrap_err().kind, ErrorKind::Invalid);
        for bad in ["..", "../outside", "/etc"] {
            assert!(dir.sub(bad).is_err(), "{bad}");
            assert!(dir.file(&format!("{bad}/x"), false).is_err(), "{bad}");
        }
        let parent = Dir::open(root.path()).unwrap();
        parent.remove("7").unwrap();
        parent.remove("7").unwrap();
        assert!(!inner.exists() && outside.join("kept").is_dir());
    }

    #[test]
    fn nothing_is_removed_beyond_a_mount_point() {
        let root = tempfile::tempdir().unwrap();
        let (mount, source) = (root.path().join("7/mnt"), root.path().join("source"));
        std::fs::create_dir_all(&mount).unwrap();
        std::fs::create_dir_all(source.join("precious")).unwrap();
        rustix::mount::mount_bind(&source, &mount).unwrap();
        let error = Dir::open(root.path()).unwrap().remove("7").unwrap_err();
        rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::DETACH).unwrap();
        assert_eq!(error.kind, ErrorKind::Conflict);
        assert!(source.join("precious").is_dir());
    }

    #[test]
    fn what_is_published_is_whole_and_what_fails_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let dir = Dir::open(root.path()).unwrap();
        dir.replace("a", b"1").unwrap();
        dir.replace("a", b"2").unwrap();
        assert_eq!(dir.read("a", 10).unwrap().unwrap(), b"2");
        let failed = dir.publish("b", |_| Err::<(), _>(super::super::broken("x")));
        assert!(failed.is_err());
        assert_eq!(dir.names().unwrap(), ["a"]);
        assert!(dir.read("a", 0).is_err());
    }

    #[test]
    fn linking_twice_is_linking_once() {
        let root = tempfile::tempdir().unwrap();
        let dir = Dir::open(root.path()).unwrap();
        let sub = dir.make("x", 0o700).unwrap();
        dir.replace("a", b"1").unwrap();
        for _ in 0..2 {
            sub.link_from(&dir, "a", "disk.0").unwrap();
            assert_eq!(sub.names().unwrap(), ["disk.0"]);
        }
    }
}
