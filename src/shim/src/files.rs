//! The files of a shim: replaced so that a crash leaves the old or the new content.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, fsync, open, openat, renameat, unlinkat};

/// Opens a directory for [`replace`] and for names relative to it.
pub fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(open(path, flags, Mode::empty())?)
}

/// Writes `name` in `dir`: temporary file, fsync, rename, fsync of the directory.
pub fn replace(dir: impl AsFd, name: &str, bytes: &[u8]) -> io::Result<()> {
    let dir = dir.as_fd();
    let temporary = format!("{name}.new");
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    let mut file = std::fs::File::from(openat(dir, temporary.as_str(), flags, mode)?);
    let written = file.write_all(bytes).and_then(|()| Ok(fsync(&file)?));
    let renamed = written.and_then(|()| Ok(renameat(dir, temporary.as_str(), dir, name)?));
    if renamed.is_err() {
        // Best effort: the first error matters, and the next try truncates the leftover.
        let _ = unlinkat(dir, temporary.as_str(), AtFlags::empty());
        return renamed;
    }
    Ok(fsync(dir)?)
}
