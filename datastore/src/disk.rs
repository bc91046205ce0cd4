//! File operations the store is built of: relative to descriptors, atomic where they replace, synced where they
//! publish. The one place that renames.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

const DIR: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens a directory by one name.
pub(crate) fn open_dir(at: &File, name: &str) -> io::Result<File> {
    Ok(rustix::fs::openat(at, name, DIR, Mode::empty())?.into())
}

/// Makes a directory for root alone unless it is there, and opens it.
pub(crate) fn ensure_dir(at: &File, name: &str) -> io::Result<File> {
    match rustix::fs::mkdirat(at, name, Mode::RWXU) {
        Ok(()) => rustix::fs::fsync(at)?,
        Err(Errno::EXIST) => {}
        Err(e) => return Err(e.into()),
    }
    open_dir(at, name)
}

/// Makes a directory that must not be there, and opens it; not synced.
pub(crate) fn make_dir(at: &File, name: &str) -> io::Result<File> {
    rustix::fs::mkdirat(at, name, Mode::RWXU)?;
    open_dir(at, name)
}

/// What has the name; none if nothing has.
pub(crate) fn stat(at: &File, name: &str) -> io::Result<Option<Stat>> {
    match rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// When a file was last written; the epoch if it is gone.
pub(crate) fn modified(at: &File, name: &str) -> SystemTime {
    let stat = stat(at, name).ok().flatten();
    let since = stat.and_then(|s| u64::try_from(s.st_mtime).ok()).unwrap_or(0);
    UNIX_EPOCH + Duration::from_secs(since)
}

pub(crate) fn is_dir(at: &File, name: &str) -> io::Result<bool> {
    Ok(stat(at, name)?.is_some_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Directory))
}

/// Bytes of the regular file of that name; none if nothing has the name.
pub(crate) fn file_size(at: &File, name: &str) -> io::Result<Option<u64>> {
    match stat(at, name)? {
        None => Ok(None),
        Some(s) if FileType::from_raw_mode(s.st_mode) == FileType::RegularFile => {
            Ok(Some(u64::try_from(s.st_size).unwrap_or(0)))
        }
        Some(_) => Err(io::Error::other("not a regular file")),
    }
}

/// Opens a regular file for reading; none if nothing has the name.
pub(crate) fn open_file(at: &File, name: &str) -> io::Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file: File = match rustix::fs::openat(at, name, flags, Mode::empty()) {
        Ok(fd) => fd.into(),
        Err(Errno::NOENT) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    if file.metadata()?.is_file() {
        Ok(Some(file))
    } else {
        Err(io::Error::other("not a regular file"))
    }
}

/// Reads a small file whole; an error if it has more than `max` bytes, none if nothing has the name.
pub(crate) fn read_file(at: &File, name: &str, max: u64) -> io::Result<Option<Vec<u8>>> {
    let Some(file) = open_file(at, name)? else {
        return Ok(None);
    };
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(io::Error::other(format!("more than {max} bytes")));
    }
    Ok(Some(bytes))
}

/// A path by which this process and its children can open a file that is open here, as long as it is.
pub(crate) fn path_of(file: &File) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd())
}

/// Makes a new file for writing.
pub(crate) fn create_new(at: &File, name: &str) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(at, name, flags, Mode::RUSR | Mode::WUSR)?.into())
}

/// Writes a new file and syncs it.
pub(crate) fn write_new(at: &File, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut file = create_new(at, name)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Moves a synced file to its place, over what was there, and makes the move durable.
pub(crate) fn publish(from: &File, name: &str, to: &File, new_name: &str) -> io::Result<()> {
    rustix::fs::renameat(from, name, to, new_name)?;
    Ok(rustix::fs::fsync(to)?)
}

/// Moves a synced directory to its place unless that is taken; says whether it moved.
pub(crate) fn publish_dir(from: &File, name: &str, to: &File, new_name: &str) -> io::Result<bool> {
    match rustix::fs::renameat_with(from, name, to, new_name, RenameFlags::NOREPLACE) {
        Ok(()) => {
            rustix::fs::fsync(to)?;
            Ok(true)
        }
        Err(Errno::EXIST | Errno::NOTEMPTY) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Swaps two names in one step, and makes that durable.
pub(crate) fn exchange(from: &File, name: &str, to: &File, new_name: &str) -> io::Result<()> {
    rustix::fs::renameat_with(from, name, to, new_name, RenameFlags::EXCHANGE)?;
    rustix::fs::fsync(to)?;
    Ok(rustix::fs::fsync(from)?)
}

/// Moves a name away, to a place that is free, and makes that durable: the new place first.
pub(crate) fn set_aside(from: &File, name: &str, to: &File, new_name: &str) -> io::Result<()> {
    rustix::fs::renameat_with(from, name, to, new_name, RenameFlags::NOREPLACE)?;
    rustix::fs::fsync(to)?;
    Ok(rustix::fs::fsync(from)?)
}

/// Gives a file a second name, durably.
pub(crate) fn link(from: &File, name: &str, to: &File, new_name: &str) -> io::Result<()> {
    rustix::fs::linkat(from, name, to, new_name, AtFlags::empty())?;
    Ok(rustix::fs::fsync(to)?)
}

/// Brings everything of the file system to the disk: one sync where there are many files.
pub(crate) fn sync_all_of(file: &File) -> io::Result<()> {
    Ok(rustix::fs::syncfs(file)?)
}

/// Removes a file if it is there; says whether it was.
pub(crate) fn unlink(at: &File, name: &str) -> io::Result<bool> {
    match rustix::fs::unlinkat(at, name, AtFlags::empty()) {
        Ok(()) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Names in a directory, sorted; names that are not UTF-8 with replacement characters.
pub(crate) fn names(at: &File) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(at)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Takes a lock of flock(2), which a dead process cannot keep.
pub(crate) fn lock(file: &File, operation: FlockOperation) -> io::Result<bool> {
    loop {
        match rustix::fs::flock(file, operation) {
            Ok(()) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(e) => return Err(e.into()),
        }
    }
}

/// Levels of a tree that are walked with one open descriptor each.
const OPEN_LEVELS: usize = 64;

/// Removes a file or a whole tree, following nothing; succeeds where nothing is.
///
/// Links inside a layer let its author build directories far deeper than any path may be long, so below
/// `OPEN_LEVELS` the walk climbs back by `..` instead of keeping descriptors. The tree must be out of reach of
/// others.
pub(crate) fn remove_tree(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    Ok(remove(parent, name, OPEN_LEVELS)?)
}

fn remove(parent: BorrowedFd<'_>, name: &[u8], levels: usize) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(e) => return Err(e),
    }
    if rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR).is_ok() {
        return Ok(());
    }
    let dir = rustix::fs::openat(parent, name, DIR, Mode::empty())?;
    if levels == 0 {
        climb(&dir)?;
    } else {
        for child in children(&dir)? {
            let child = child?;
            if is_child(child.file_name()) {
                remove(dir.as_fd(), child.file_name().to_bytes(), levels - 1)?;
            }
        }
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

/// Empties a directory with two descriptors, however deep it is.
fn climb(top: &OwnedFd) -> rustix::io::Result<()> {
    let mut here = rustix::fs::openat(top, c".", DIR, Mode::empty())?;
    let mut above = Vec::new();
    loop {
        let mut down = None;
        for child in children(&here)? {
            let child = child?;
            let name = child.file_name();
            if !is_child(name) {
                continue;
            }
            match rustix::fs::unlinkat(&here, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::ISDIR) => {
                    down = Some(name.to_owned());
                    break;
                }
                Err(e) => return Err(e),
            }
        }
        if let Some(name) = down {
            here = rustix::fs::openat(&here, name.as_c_str(), DIR, Mode::empty())?;
            above.push(name);
        } else if let Some(name) = above.pop() {
            here = rustix::fs::openat(&here, c"..", DIR, Mode::empty())?;
            rustix::fs::unlinkat(&here, name.as_c_str(), AtFlags::REMOVEDIR)?;
        } else {
            return Ok(());
        }
    }
}

fn children(dir: &OwnedFd) -> rustix::io::Result<Dir> {
    Dir::read_from(dir)
}

fn is_child(name: &CStr) -> bool {
    name != c"." && name != c".."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_deeper_than_descriptors_and_paths_allow_is_removed() {
        let top = tempfile::tempdir().unwrap();
        let root = File::open(top.path()).unwrap();
        let mut here = ensure_dir(&root, "deep").unwrap();
        for _ in 0..5000 {
            here = ensure_dir_unsynced(&here, "d");
            write_unsynced(&here, "f");
        }
        rustix::fs::symlinkat("/etc", &here, "link").unwrap();
        remove_tree(root.as_fd(), b"deep").unwrap();
        assert_eq!(names(&root).unwrap(), Vec::<String>::new());
        assert!(std::fs::metadata("/etc").unwrap().is_dir());
        remove_tree(root.as_fd(), b"deep").unwrap();
    }

    fn ensure_dir_unsynced(at: &File, name: &str) -> File {
        rustix::fs::mkdirat(at, name, Mode::RWXU).unwrap();
        open_dir(at, name).unwrap()
    }

    fn write_unsynced(at: &File, name: &str) {
        create_new(at, name).unwrap();
    }
}
