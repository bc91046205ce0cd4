//! A file that has its name only when it is whole.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;

use super::{refuse, tool};
use crate::error::{Error, Result};

pub(super) struct Target {
    dir: File,
    name: OsString,
    shown: String,
    file: File,
    /// The hidden name, where the file system knows no files without one.
    hidden: Option<OsString>,
}

impl Target {
    pub fn create(path: &Path) -> Result<Self> {
        let shown = path.display().to_string();
        let name = path.file_name().ok_or_else(|| refuse(path, "it names no file"))?;
        let above = path.parent().filter(|p| !p.as_os_str().is_empty());
        let make = || -> io::Result<(File, File, Option<OsString>)> {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let above = above.unwrap_or(Path::new("."));
            let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
            let dir = rustix::fs::openat2(CWD, above, flags, Mode::empty(), resolve)?;
            let dir = File::from(dir);
            let mode = Mode::RUSR | Mode::WUSR;
            let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
            match rustix::fs::openat(&dir, ".", flags, mode) {
                Ok(file) => Ok((dir, file.into(), None)),
                // ISDIR: a kernel or file system that does not know the flag sees an attempt to write a directory.
                Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
                    let hidden = hidden(name);
                    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                    let file = rustix::fs::openat(&dir, &hidden, flags, mode)?;
                    Ok((dir, file.into(), Some(hidden)))
                }
                Err(e) => Err(e.into()),
            }
        };
        let (dir, file, hidden) = make().map_err(|e| Error::io("make", shown.clone(), e))?;
        Ok(Self { dir, name: name.into(), shown, file, hidden })
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    /// Gives the file its name; returns the bytes it takes.
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
                    tool::path_of(&target.file),
                    &target.dir,
                    &target.name,
                    AtFlags::SYMLINK_FOLLOW,
                )?,
            }
            target.hidden = None;
            target.dir.sync_all()?;
            Ok(target.file.metadata()?.blocks() * 512)
        };
        publish(&mut self).map_err(|e| Error::io("put in place", self.shown.clone(), e))
    }
}

fn hidden(name: &OsStr) -> OsString {
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}.partial", std::process::id()));
    hidden
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(hidden) = &self.hidden {
            // There is nobody to tell; the name says what it is.
            let _ = rustix::fs::unlinkat(&self.dir, hidden, AtFlags::empty());
        }
    }
}
