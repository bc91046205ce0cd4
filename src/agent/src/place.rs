//! The directory in which agents keep what they must remember: `/var/tmp/one_db/ocivisor`, beside that of OpenNebula's own
//! agent. `/var/tmp/one` itself is deleted and copied again at each start.
//!
//! `/var/tmp` is everybody's, so whoever is quicker makes what is in it. Nothing is believed that another user could have
//! made or could change: each directory on the way is root's or ours and nobody else's to write, unless its sticky
//! bit keeps what is ours ours; and the last one is ours alone.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use ocivisor_core::error::{Error, ErrorKind, Result};
use rustix::fs::{
    AtFlags, FlockOperation, Mode, OFlags, fchmod, flock, fstat, mkdirat, openat, renameat,
    unlinkat,
};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::failed;

/// That directory, or one in it.
#[derive(Debug)]
pub struct Place {
    dir: OwnedFd,
    path: PathBuf,
}

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// On the way it is enough that a directory may be passed (mode 0711): what only names it needs no right to read it (open(2)).
const PASS: OFlags = DIRECTORY.union(OFlags::PATH);

impl Place {
    /// Opens it; makes it if need be.
    ///
    /// # Errors
    /// It is not below directories that only root and we can change, or it is not ours alone.
    pub fn open(path: &Path) -> Result<Self> {
        let path = resolved(path)?;
        let root = rustix::fs::open("/", PASS, Mode::empty());
        let mut dir = root.map_err(|e| failed("open", Path::new("/"), &e))?;
        let mut at = PathBuf::from("/");
        for part in path.components() {
            let Component::Normal(name) = part else { continue };
            at.push(name);
            let last = at == path;
            dir = step(&dir, name, &at, last)?;
        }
        Ok(Self { dir, path })
    }

    /// A directory in it, made if need be.
    ///
    /// # Errors
    /// As for [`Place::open`].
    pub fn below(&self, name: &str) -> Result<Self> {
        let path = self.path.join(name);
        Ok(Self { dir: step(&self.dir, name.as_ref(), &path, true)?, path })
    }

    /// Path of a file in it, for messages.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Opens a file to read and write it, made if need be.
    ///
    /// # Errors
    /// The host's.
    pub fn file(&self, name: &str) -> Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = openat(&self.dir, name, flags, Mode::from_raw_mode(0o600));
        Ok(opened.map_err(|e| failed("open", &self.path(name), &e))?.into())
    }

    /// Reads a file, at most that many bytes of it; `None` if there is none.
    ///
    /// # Errors
    /// The host's.
    pub fn read(&self, name: &str, most: u64) -> Result<Option<Vec<u8>>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file: File = match openat(&self.dir, name, flags, Mode::empty()) {
            Ok(file) => file.into(),
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(failed("open", &self.path(name), &e)),
        };
        let mut bytes = Vec::new();
        let read = file.take(most).read_to_end(&mut bytes);
        read.map_err(|e| failed("read", &self.path(name), &e))?;
        Ok(Some(bytes))
    }

    /// Replaces a file: who reads it sees the old or the new one.
    ///
    /// # Errors
    /// The host's.
    pub fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let draft = format!("{name}.new");
        let whole = || -> std::io::Result<()> {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW;
            let file =
                openat(&self.dir, &draft, flags | OFlags::CLOEXEC, Mode::from_raw_mode(0o600))?;
            File::from(file).write_all(bytes)?;
            Ok(renameat(&self.dir, &draft, &self.dir, name)?)
        };
        whole().map_err(|e| failed("write", &self.path(name), &e))
    }

    /// Removes a file; absent is fine.
    ///
    /// # Errors
    /// The host's.
    pub fn remove(&self, name: &str) -> Result<()> {
        match unlinkat(&self.dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(failed("remove", &self.path(name), &e)),
        }
    }

    /// Names of what is in it.
    ///
    /// # Errors
    /// The host's.
    pub fn names(&self) -> Result<Vec<String>> {
        let listed = || -> rustix::io::Result<Vec<String>> {
            let mut names = Vec::new();
            for entry in rustix::fs::Dir::read_from(&self.dir)? {
                let name = entry?.file_name().to_string_lossy().into_owned();
                names.extend(Some(name).filter(|name| name != "." && name != ".."));
            }
            Ok(names)
        };
        let mut names = listed().map_err(|e| failed("list", &self.path, &e))?;
        names.sort();
        Ok(names)
    }

    /// A file that nobody else has locked, locked until it is closed; `None` if somebody has. Made if need be.
    ///
    /// # Errors
    /// The host's.
    pub fn lock(&self, name: &str) -> Result<Option<File>> {
        loop {
            let file = self.file(name)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(e) => return Err(failed("lock", &self.path(name), &e)),
            }
            // Else it was removed in between, and the lock is one that nobody else would see.
            if self.holds(name, &file) == Some(true) {
                return Ok(Some(file));
            }
        }
    }

    /// Whether a file of that name is this very file.
    pub(crate) fn holds(&self, name: &str, file: &File) -> Option<bool> {
        let there = rustix::fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        let here = fstat(file).ok()?;
        Some((there.st_dev, there.st_ino) == (here.st_dev, here.st_ino))
    }
}

/// Links on the way that exist are followed here, once; what they lead to is judged like any other directory.
fn resolved(path: &Path) -> Result<PathBuf> {
    let mut rest = Vec::new();
    let mut there = path;
    loop {
        match there.canonicalize() {
            Ok(whole) => {
                return Ok(rest.into_iter().rev().fold(whole, |path, name| path.join(name)));
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let (Some(parent), Some(name)) = (there.parent(), there.file_name()) else {
                    return Err(failed("open", path, &e));
                };
                rest.push(name.to_owned());
                there = parent;
            }
            Err(e) => return Err(failed("open", there, &e)),
        }
    }
}

fn step(dir: &OwnedFd, name: &OsStr, path: &Path, last: bool) -> Result<OwnedFd> {
    let flags = if last { DIRECTORY } else { PASS };
    let opened = match openat(dir, name, flags, Mode::empty()) {
        Err(Errno::NOENT) => {
            let mode = Mode::from_raw_mode(if last { 0o700 } else { 0o755 });
            match mkdirat(dir, name, mode) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(failed("make", path, &e)),
            }
            let made = openat(dir, name, DIRECTORY, Mode::empty());
            // Whatever the caller's umask is.
            if let Ok(made) = &made
                && fstat(made).is_ok_and(|is| is.st_uid == geteuid().as_raw())
            {
                fchmod(made, mode).map_err(|e| failed("make", path, &e))?;
            }
            made
        }
        other => other,
    };
    let opened = opened.map_err(|e| failed("open", path, &e))?;
    let is = fstat(&opened).map_err(|e| failed("look at", path, &e))?;
    let (ours, mode) = (is.st_uid == geteuid().as_raw(), is.st_mode & 0o7777);
    let fine = match last {
        true => ours && mode & 0o077 == 0,
        false => (ours || is.st_uid == 0) && (mode & 0o022 == 0 || mode & 0o1000 != 0),
    };
    if fine {
        return Ok(opened);
    }
    let what = format!(
        "{} belongs to uid {} and has mode {mode:04o}: what agents keep there could be changed by others",
        path.display(),
        is.st_uid
    );
    Err(Error::new(ErrorKind::Permission, what).hint("remove it, or set monitoring.state_dir"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    fn mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn it_is_made_for_us_alone_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("one_db/ocivisor");
        let place = Place::open(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o700);
        place.replace("a", b"1").unwrap();
        place.replace("a", b"22").unwrap();
        let again = Place::open(&path).unwrap();
        assert_eq!(again.read("a", 10).unwrap(), Some(b"22".to_vec()));
        assert_eq!(again.read("a", 1).unwrap(), Some(b"2".to_vec()));
        assert_eq!(again.names().unwrap(), ["a"]);
        again.remove("a").unwrap();
        again.remove("a").unwrap();
        assert_eq!(again.read("a", 10).unwrap(), None);
    }

    #[test]
    fn what_others_could_change_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (outer, inner) = (dir.path().join("o"), dir.path().join("o/i"));
        Place::open(&inner).unwrap();
        mode(&inner, 0o750);
        assert!(Place::open(&inner).is_err());
        mode(&inner, 0o700);
        mode(&outer, 0o777);
        assert!(Place::open(&inner).is_err());
        mode(&outer, 0o1777);
        assert!(Place::open(&inner).is_ok());
        std::os::unix::fs::chown(&inner, Some(1), None).unwrap();
        let error = Place::open(&inner).unwrap_err().to_string();
        assert!(error.contains("belongs to uid 1 and has mode 0700"), "{error}");
    }

    #[test]
    fn a_directory_on_the_way_need_not_be_readable() {
        const SOMEBODY: u32 = 65_534;
        let dir = tempfile::tempdir().unwrap();
        mode(dir.path(), 0o711);
        let ours = dir.path().join("ours");
        std::fs::create_dir(&ours).unwrap();
        std::os::unix::fs::chown(&ours, Some(SOMEBODY), Some(SOMEBODY)).unwrap();
        mode(&ours, 0o311);
        let (path, outer) = (ours.join("made/agents"), dir.path().to_owned());
        // Users are of a thread for the kernel (credentials(7)); this one ends as it is.
        let used = std::thread::spawn(move || {
            use rustix::process::{Gid, Uid};
            let (uid, gid) = (Uid::from_raw(SOMEBODY), Gid::from_raw(SOMEBODY));
            rustix::thread::set_thread_groups(&[]).unwrap();
            rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            assert!(std::fs::read_dir(outer).is_err(), "it may not read there");
            let place = Place::open(&path)?;
            place.replace("a", b"1")?;
            Place::open(&path)?.names()
        });
        assert_eq!(used.join().unwrap().unwrap(), ["a"]);
    }

    #[test]
    fn a_link_is_judged_by_where_it_leads() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link) = (dir.path().join("t"), dir.path().join("l"));
        std::fs::create_dir(&target).unwrap();
        mode(&target, 0o777);
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(Place::open(&link.join("x")).is_err());
        mode(&target, 0o755);
        assert!(Place::open(&link.join("x")).is_ok());
        std::os::unix::fs::symlink("/etc/passwd", target.join("x/f")).unwrap();
        let place = Place::open(&link.join("x")).unwrap();
        assert!(place.file("f").is_err());
        assert!(place.read("f", 10).is_err());
    }
}
