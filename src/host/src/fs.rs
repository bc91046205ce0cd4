//! Files that survive a crash: the only place that writes or renames state.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use ocivisor_core::error::{Error, ErrorKind, Result};

/// An I/O error as ours: what was being done to which path. A full disk is told apart.
#[must_use]
pub fn io_error(what: &str, path: &Path, error: &io::Error) -> Error {
    let kind = match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT | libc::ENOMEM | libc::EMFILE | libc::ENFILE) => {
            ErrorKind::Exhausted
        }
        Some(libc::ENOENT) => ErrorKind::NotFound,
        Some(libc::EUCLEAN | libc::EILSEQ) => ErrorKind::Integrity,
        _ => ErrorKind::Host,
    };
    Error::new(kind, format!("{what} {}: {error}", path.display()))
}

/// Replaces `path` by `bytes` so that a crash leaves the old or the new content: temporary file,
/// fsync, rename, fsync of the directory. Mode 0600.
///
/// # Errors
/// The old content stands; if only the last sync failed (EIO), the new one may.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    replace_inner(path, bytes).map_err(|e| io_error("write", path, &e))
}

#[expect(clippy::disallowed_methods, reason = "this is the one right place")]
fn replace_inner(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    // One writer per file (the VM's actor), so a fixed name is enough, and a leftover of a crash
    // is overwritten by the next write instead of piling up.
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = Path::new(&temporary);
    // Opened first: what can fail after the rename is the sync alone.
    let dir = File::open(dir)?;
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(temporary)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    if let Err(error) = written.and_then(|()| fs::rename(temporary, path)) {
        // Best effort: the first error matters, and the next write truncates the leftover.
        let _ = fs::remove_file(temporary);
        return Err(error);
    }
    dir.sync_all()
}

/// Makes a directory and its parents, mode 0700; exists is fine. Durable if `durable`.
///
/// # Errors
/// Not made, or something else is there.
pub fn ensure_dir(path: &Path, durable: bool) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|e| io_error("make directory", path, &e))?;
    if durable && let Some(parent) = path.parent() {
        sync_dir(parent)?;
    }
    Ok(())
}

/// Makes a directory that a group may pass through without seeing what is in it, or root alone if
/// there is no group; exists is fine. Its parent exists.
///
/// # Errors
/// Not made, or something else is there.
pub fn ensure_passable(path: &Path, group: Option<u32>) -> Result<()> {
    let mode = if group.is_some() { 0o710 } else { 0o700 };
    ensure_dir(path, false)?;
    let set = || {
        let now = fs::symlink_metadata(path)?;
        if now.mode() & 0o7777 == mode && group.is_none_or(|group| now.gid() == group) {
            return Ok(());
        }
        // The mode last: until then it is as closed as it was made.
        std::os::unix::fs::lchown(path, None, group)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    };
    set().map_err(|e: io::Error| io_error("open to its group", path, &e))
}

/// Makes the entries of a directory durable.
///
/// # Errors
/// The directory cannot be opened or synced.
pub fn sync_dir(path: &Path) -> Result<()> {
    let synced = File::open(path).and_then(|dir| dir.sync_all());
    synced.map_err(|e| io_error("sync directory", path, &e))
}

/// Removes a file; absent is fine.
///
/// # Errors
/// It is still there.
pub fn drop_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path, &e)),
        _ => Ok(()),
    }
}

/// Removes a directory and all in it, never crossing into another filesystem's mount by name: a
/// mount point inside makes it fail with EBUSY. Absent is fine.
///
/// # Errors
/// It is still there.
pub fn drop_dir_all(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path, &e)),
        _ => Ok(()),
    }
}

/// Reads a file of at most `max` bytes; `None` if it is absent.
///
/// # Errors
/// Unreadable, or larger.
pub fn read_bounded(path: &Path, max: u64) -> Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io_error("open", path, &e)),
    };
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes).map_err(|e| io_error("read", path, &e))?;
    if bytes.len() as u64 > max {
        let what = format!("{} is larger than {max} bytes", path.display());
        return Err(Error::new(ErrorKind::Integrity, what));
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replace_leaves_the_old_or_the_new_content_and_no_temporary() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        replace(&path, b"one").unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!(read_bounded(&path, 10).unwrap().unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let missing = replace(&dir.path().join("no/f"), b"x").unwrap_err();
        assert_eq!(missing.kind, ErrorKind::NotFound);
    }

    #[test]
    fn reads_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        replace(&path, b"12345").unwrap();
        assert_eq!(read_bounded(&path, 5).unwrap().unwrap(), b"12345");
        assert_eq!(read_bounded(&path, 4).unwrap_err().kind, ErrorKind::Integrity);
        assert_eq!(read_bounded(&dir.path().join("none"), 4).unwrap(), None);
    }
}
