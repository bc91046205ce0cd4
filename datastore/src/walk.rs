//! Walking a tree: all names below a directory, whatever its depth, with two descriptors.
//!
//! Links inside a layer let its author build directories far deeper than a path may be long, so the walk goes
//! down by one name and back by `..`. The tree must be out of reach of others; that `..` is where it came from is
//! checked all the same.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};

const DIR: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// One name in a directory.
pub(crate) struct Step<'a> {
    pub dir: &'a File,
    /// Of `dir`.
    pub dir_inode: u64,
    /// Of `dir`, relative to the top; empty for the top itself.
    pub path: &'a [u8],
    pub name: &'a CStr,
    pub stat: &'a Stat,
}

impl Step<'_> {
    /// Relative to the top.
    pub fn whole_path(&self) -> Vec<u8> {
        join(self.path, self.name.to_bytes())
    }
}

/// Where a walk failed, and why.
#[derive(Debug)]
pub(crate) struct Stopped {
    pub path: Vec<u8>,
    pub why: io::Error,
}

/// Visits every name below `top`, directories before what is in them.
pub(crate) fn walk<E: From<Stopped>>(
    top: &File,
    visit: &mut dyn FnMut(&Step<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let mut path = Vec::new();
    let stop = |path: &[u8]| {
        let path = path.to_vec();
        move |why: rustix::io::Errno| E::from(Stopped { path, why: why.into() })
    };
    let mut here: File =
        rustix::fs::openat(top, c".", DIR, Mode::empty()).map_err(stop(&path))?.into();
    // Above the current directory: length of its path, its inode, and its directories still to come.
    let mut above: Vec<(usize, u64, Vec<CString>)> = Vec::new();
    let mut inode = rustix::fs::fstat(&here).map_err(stop(&path))?.st_ino;
    let mut down = list(&here, inode, &path, visit)?;
    loop {
        if let Some(name) = down.pop() {
            here = rustix::fs::openat(&here, name.as_c_str(), DIR, Mode::empty())
                .map_err(stop(&join(&path, name.to_bytes())))?
                .into();
            above.push((path.len(), inode, std::mem::take(&mut down)));
            path = join(&path, name.to_bytes());
            inode = rustix::fs::fstat(&here).map_err(stop(&path))?.st_ino;
            down = list(&here, inode, &path, visit)?;
        } else if let Some((length, parent, rest)) = above.pop() {
            here =
                rustix::fs::openat(&here, c"..", DIR, Mode::empty()).map_err(stop(&path))?.into();
            inode = rustix::fs::fstat(&here).map_err(stop(&path))?.st_ino;
            if inode != parent {
                return Err(stop(&path)(rustix::io::Errno::STALE));
            }
            path.truncate(length);
            down = rest;
        } else {
            return Ok(());
        }
    }
}

/// Visits the names of one directory; returns its directories.
fn list<E: From<Stopped>>(
    dir: &File,
    dir_inode: u64,
    path: &[u8],
    visit: &mut dyn FnMut(&Step<'_>) -> Result<(), E>,
) -> Result<Vec<CString>, E> {
    let stopped =
        |path: Vec<u8>, why: rustix::io::Errno| E::from(Stopped { path, why: why.into() });
    let mut down = Vec::new();
    for child in Dir::read_from(dir).map_err(|e| stopped(path.to_vec(), e))? {
        let child = child.map_err(|e| stopped(path.to_vec(), e))?;
        let name = child.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| stopped(join(path, name.to_bytes()), e))?;
        visit(&Step { dir, dir_inode, path, name, stat: &stat })?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            down.push(name.to_owned());
        }
    }
    Ok(down)
}

pub(crate) fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk;

    #[test]
    fn a_tree_deeper_than_a_path_may_be_long_is_walked() {
        let top = tempfile::tempdir().unwrap();
        let root = File::open(top.path()).unwrap();
        let mut here = root.try_clone().unwrap();
        for _ in 0..5000 {
            rustix::fs::mkdirat(&here, "d", Mode::RWXU).unwrap();
            here = disk::open_dir(&here, "d").unwrap();
            disk::create_new(&here, "f").unwrap();
        }
        let mut seen = (0, 0);
        walk(&root, &mut |step: &Step<'_>| {
            seen.0 += 1;
            seen.1 = seen.1.max(step.whole_path().len());
            Ok::<_, Stopped>(())
        })
        .unwrap();
        assert_eq!(seen, (10_000, 2 * 5001 - 1));
        disk::remove_tree(std::os::fd::AsFd::as_fd(&root), b"d").unwrap();
    }

    #[test]
    fn links_are_seen_and_not_followed() {
        let top = tempfile::tempdir().unwrap();
        let root = File::open(top.path()).unwrap();
        rustix::fs::mkdirat(&root, "a", Mode::RWXU).unwrap();
        rustix::fs::symlinkat("a", &root, "link").unwrap();
        rustix::fs::symlinkat("/etc", &root, "out").unwrap();
        let mut seen = Vec::new();
        walk(&root, &mut |step: &Step<'_>| {
            seen.push(step.whole_path());
            Ok::<_, Stopped>(())
        })
        .unwrap();
        seen.sort();
        assert_eq!(seen, [&b"a"[..], b"link", b"out"]);
    }
}
