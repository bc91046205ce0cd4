//! A file that leaves the store: it has its name only when it is whole, and takes that of no other.
//!
//! It is made without a name (`O_TMPFILE`) in the directory where it will be, and linked there at the end, so a crash
//! leaves nothing. On file systems without such files it has a hidden name until then, which a crash may leave. Its
//! mode is 0600: it holds the secrets and the set-user-ID programs of a guest.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;

use crate::disk;
use crate::error::{Error, Result, escape};

/// The file on its way.
#[derive(Debug)]
pub(crate) struct Target {
    dir: File,
    name: String,
    shown: String,
    file: File,
    /// The hidden name, where the file system knows no files without one.
    hidden: Option<String>,
}

impl Target {
    /// A file at that path, where nothing may be; no part of the way there may be a link.
    pub fn create(path: &Path) -> Result<Self> {
        let shown = path.display().to_string();
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| refuse(&shown, "it names no file, or by no UTF-8"))?;
        let above = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let dir = rustix::fs::openat2(CWD, above, flags, Mode::empty(), resolve)
            .map_err(|e| Error::io("make", shown.clone(), e))?;
        Self::make(dir.into(), name, shown)
    }

    /// A file of that name in a directory, where nothing may have it.
    pub fn within(dir: &File, name: &str) -> Result<Self> {
        let shown = escape(name.as_bytes());
        if matches!(name, "" | "." | "..") || name.contains(['/', '\0']) {
            return Err(refuse(&shown, "it names no file"));
        }
        let dir = dir.try_clone().map_err(|e| Error::io("make", shown.clone(), e))?;
        Self::make(dir, name, shown)
    }

    fn make(dir: File, name: &str, shown: String) -> Result<Self> {
        let make = || -> io::Result<Option<(File, Option<String>)>> {
            // Before the work; that nothing came meanwhile is seen by the link at its end.
            if disk::stat(&dir, name)?.is_some() {
                return Ok(None);
            }
            let mode = Mode::RUSR | Mode::WUSR;
            let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
            match rustix::fs::openat(&dir, ".", flags, mode) {
                Ok(file) => Ok(Some((file.into(), None))),
                // ISDIR: a kernel or file system that does not know the flag sees an attempt to write a directory.
                Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
                    let hidden = format!(".{name}.{}.partial", std::process::id());
                    Ok(Some((disk::create_new(&dir, &hidden)?, Some(hidden))))
                }
                Err(e) => Err(e.into()),
            }
        };
        match make().map_err(|e| Error::io("make", shown.clone(), e))? {
            Some((file, hidden)) => Ok(Self { dir, name: name.into(), shown, file, hidden }),
            None => Err(Error::Exists { file: shown }),
        }
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    /// Gives the file its name, durably; returns the bytes it takes.
    pub fn publish(mut self) -> Result<u64> {
        let publish = |target: &mut Self| -> io::Result<u64> {
            target.file.sync_all()?;
            match &target.hidden {
                Some(hidden) => rustix::fs::renameat_with(
                    &target.dir,
                    hidden,
                    &target.dir,
                    &target.name,
                    RenameFlags::NOREPLACE,
                )?,
                None => rustix::fs::linkat(
                    CWD,
                    disk::path_of(&target.file),
                    &target.dir,
                    &target.name,
                    AtFlags::SYMLINK_FOLLOW,
                )?,
            }
            target.hidden = None;
            target.dir.sync_all()?;
            Ok(target.file.metadata()?.blocks() * 512)
        };
        publish(&mut self).map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => Error::Exists { file: self.shown.clone() },
            _ => Error::io("put in place", self.shown.clone(), e),
        })
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(hidden) = &self.hidden {
            // There is nobody to tell; the name says what it is.
            let _ = disk::unlink(&self.dir, hidden);
        }
    }
}

fn refuse(to: &str, why: &str) -> Error {
    Error::Export { to: to.to_owned(), why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        disk::names(&File::open(dir).unwrap()).unwrap()
    }

    #[test]
    fn a_file_is_not_there_until_it_is_whole_and_leaves_nothing_if_it_never_is() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("out");
        let target = Target::create(&path).unwrap();
        target.file().write_all(b"half").unwrap();
        assert_eq!(names(top.path()), Vec::<String>::new());
        drop(target);
        assert_eq!(names(top.path()), Vec::<String>::new());
        let target = Target::within(&File::open(top.path()).unwrap(), "out").unwrap();
        target.file().write_all(b"whole").unwrap();
        target.publish().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"whole");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    }

    #[test]
    fn what_has_the_name_keeps_it_whenever_it_came() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("out");
        let late = Target::create(&path).unwrap();
        std::os::unix::fs::symlink("nowhere", &path).unwrap();
        for refused in [late.publish().map(drop), Target::create(&path).map(drop)] {
            let said = refused.unwrap_err().to_string();
            let want = format!("{} exists; name a new file, or remove that one", path.display());
            assert_eq!(said, want);
        }
        assert_eq!(names(top.path()), ["out"]);
    }

    #[test]
    fn what_names_no_file_of_that_directory_is_refused() {
        let top = tempfile::tempdir().unwrap();
        let dir = File::open(top.path()).unwrap();
        for name in ["", ".", "..", "a/b", "/", "a\0b"] {
            let refused = Target::within(&dir, name).unwrap_err();
            assert!(matches!(refused, Error::Export { .. }), "{name:?}: {refused:?}");
        }
        std::os::unix::fs::symlink(".", top.path().join("link")).unwrap();
        Target::create(&top.path().join("link/out")).unwrap_err();
        assert_eq!(names(top.path()), ["link"]);
    }
}
