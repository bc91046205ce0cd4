//! What a path on a command line means, by the rules of `docker cp`.

use std::os::fd::OwnedFd;

use ocivisor_core::error::{Error, ErrorKind, Result};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, openat2, statat};
use rustix::io::Errno;

use crate::{failed, shown};

/// A path, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// What is before the last name; never empty.
    pub parent: Vec<u8>,
    /// The last name; none if the path ends with `.`, `..` or is the root.
    pub name: Option<Vec<u8>>,
    /// It ends with `/.`: not the directory is meant, but what is in it.
    pub contents: bool,
    /// It ends with `/` or `/.`: it must be a directory.
    pub directory: bool,
}

impl Parts {
    /// Takes a path apart, not touching the file system.
    #[must_use]
    pub fn of(path: &[u8]) -> Self {
        let contents = path == b"." || path.ends_with(b"/.");
        let directory = contents || path.ends_with(b"/");
        let mut rest = path;
        while rest.ends_with(b"/") || rest.ends_with(b"/.") || rest == b"." {
            rest = &rest[..rest.len() - 1];
        }
        let (parent, name) = match rest.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (&rest[..=at], &rest[at + 1..]),
            None if path.starts_with(b"/") && rest.is_empty() => (&b"/"[..], rest),
            None => (&b"."[..], rest),
        };
        if name.is_empty() || name == b".." {
            let parent = if name.is_empty() { parent } else { rest };
            return Self { parent: parent.to_vec(), name: None, contents: true, directory: true };
        }
        Self { parent: parent.to_vec(), name: Some(name.to_vec()), contents, directory }
    }

    /// The name that a stream of it has at its top: `.` if what is in it is meant.
    #[must_use]
    pub fn top(&self) -> &[u8] {
        self.name.as_deref().filter(|_| !self.contents).unwrap_or(b".")
    }
}

/// Links are followed, but none of /proc.
const PLAIN: ResolveFlags = ResolveFlags::NO_MAGICLINKS;

/// Opens a directory that was named.
pub(crate) fn open_dir(path: &[u8]) -> std::result::Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat2(CWD, path, flags, Mode::empty(), PLAIN)
}

/// Where something goes.
#[derive(Debug)]
pub(crate) struct Target {
    /// Below this directory.
    pub dir: OwnedFd,
    /// With this name instead of its own.
    pub name: Option<Vec<u8>>,
}

impl Target {
    /// Where what comes goes: its `name` (none: only what is in it) and whether it is a directory.
    pub fn find(path: &[u8], name: Option<&[u8]>, is_dir: bool) -> Result<Self> {
        match open_dir(path) {
            Ok(dir) => return Ok(Self { dir, name: name.map(<[u8]>::to_vec) }),
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(e) => return Err(failed("open", path, e)),
        }
        let parts = Parts::of(path);
        let Some(own) = parts.name else {
            return Err(failed("open", path, Errno::NOENT));
        };
        let dir = open_dir(&parts.parent).map_err(|e| failed("open", &parts.parent, e))?;
        let conflict =
            |what: &str| Error::new(ErrorKind::Conflict, format!("{} {what}", shown(path)));
        match statat(&dir, &own, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) if parts.directory && !is_dir => Err(Error::new(
                ErrorKind::NotFound,
                format!("there is no directory {}", shown(path)),
            )),
            Err(Errno::NOENT) => Ok(Self { dir, name: Some(own) }),
            Err(e) => Err(failed("look at", path, e)),
            Ok(_) if is_dir => Err(conflict("is there and no directory")),
            Ok(_) if parts.directory => Err(conflict("is no directory")),
            Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => Ok(Self { dir, name: Some(own) }),
                FileType::Symlink => Err(conflict("is a symbolic link to no directory")
                    .hint("name the file that it leads to")),
                _ => Err(conflict("is there and no file")),
            },
        }
    }

    /// A directory that is there, which gets all that comes by its own names.
    pub fn existing(path: &[u8]) -> Result<Self> {
        let dir = open_dir(path).map_err(|e| failed("open the directory", path, e))?;
        Ok(Self { dir, name: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_taken_apart() {
        for (path, parent, name, contents, directory) in [
            ("a", ".", Some("a"), false, false),
            ("a/", ".", Some("a"), false, true),
            ("a/.", ".", Some("a"), true, true),
            ("/a", "/", Some("a"), false, false),
            ("/a/b//", "/a/", Some("b"), false, true),
            ("../x", "../", Some("x"), false, false),
            ("/", "/", None, true, true),
            ("/.", "/", None, true, true),
            (".", ".", None, true, true),
            ("..", "..", None, true, true),
            ("a/..", "a/..", None, true, true),
            ("a.", ".", Some("a."), false, false),
        ] {
            let want =
                Parts { parent: parent.into(), name: name.map(Into::into), contents, directory };
            assert_eq!(Parts::of(path.as_bytes()), want, "{path}");
        }
    }
}
