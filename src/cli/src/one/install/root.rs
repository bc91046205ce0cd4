//! Files below a root directory, whoever owns what is in between.
//!
//! The installer runs as root and writes into directories of oneadmin's. Every path is resolved by `openat2(2)` below
//! the root, and no link is followed on the way: who owns a directory cannot lead us elsewhere.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, Gid, Mode, OFlags, ResolveFlags, Uid, fchmod, fchown, fstat, fsync, mkdirat,
    openat2, renameat, unlinkat,
};
use rustix::io::Errno;

/// Most bytes of a file that is read.
const MAX_BYTES: u64 = 1 << 20;
const DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// A root directory.
#[derive(Debug)]
pub struct Root(File);

/// Who owns a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    uid: u32,
    gid: u32,
}

impl Owner {
    /// Root.
    pub const ROOT: Self = Self { uid: 0, gid: 0 };
}

impl Root {
    /// Opens it.
    ///
    /// # Errors
    /// There is no such directory.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(rustix::fs::openat(rustix::fs::CWD, path, DIR, Mode::empty())?.into()))
    }

    fn at(&self, path: &str, flags: OFlags) -> io::Result<File> {
        let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        Ok(openat2(&self.0, path, flags | OFlags::CLOEXEC, Mode::empty(), how)?.into())
    }

    /// What is in a file; none if there is none.
    ///
    /// # Errors
    /// It cannot be read, or is no ordinary file of ordinary size.
    pub fn read(&self, path: &str) -> io::Result<Option<Vec<u8>>> {
        let file = match self.at(path, OFlags::RDONLY | OFlags::NONBLOCK) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        let mut bytes = Vec::new();
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(io::Error::other(format!("more than {MAX_BYTES} bytes")));
        }
        Ok(Some(bytes))
    }

    /// Who owns a directory; none if there is none.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn owner(&self, dir: &str) -> io::Result<Option<Owner>> {
        match self.at(dir, DIR) {
            Ok(dir) => {
                let stat = fstat(&dir)?;
                Ok(Some(Owner { uid: stat.st_uid, gid: stat.st_gid }))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Writes a file so that its name always stands for the old content or the new one. Directories that are
    /// missing are made, the owner's too.
    ///
    /// # Errors
    /// It was not written.
    pub fn write(&self, path: &str, text: &[u8], mode: u32, owner: Owner) -> io::Result<()> {
        let (dir, name) = path.rsplit_once('/').ok_or(Errno::INVAL)?;
        let dir = self.ensure_dir(dir, owner)?;
        let temp = format!(".{name}.ocivisor-new");
        match unlinkat(&dir, temp.as_str(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(e.into()),
        }
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file: File = rustix::fs::openat(&dir, temp.as_str(), flags, Mode::RUSR)?.into();
        file.write_all(text)?;
        fchown(&file, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))?;
        fchmod(&file, Mode::from_raw_mode(mode))?;
        file.sync_all()?;
        renameat(&dir, temp.as_str(), &dir, name)?;
        Ok(fsync(&dir)?)
    }

    fn ensure_dir(&self, path: &str, owner: Owner) -> io::Result<File> {
        match self.at(path, DIR) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            result => return result,
        }
        let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
        let parent =
            if parent == "." { self.at(".", DIR)? } else { self.ensure_dir(parent, owner)? };
        match mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => {
                let dir = self.at(path, DIR)?;
                fchown(&dir, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))?;
                fchmod(&dir, Mode::from_raw_mode(0o755))?;
                fsync(&parent)?;
                Ok(dir)
            }
            Err(Errno::EXIST) => self.at(path, DIR),
            Err(e) => Err(e.into()),
        }
    }

    /// Removes a file if it is there.
    ///
    /// # Errors
    /// It is still there.
    pub fn remove(&self, path: &str) -> io::Result<()> {
        self.unlink(path, AtFlags::empty())
    }

    /// Removes a directory if it is there and empty; says nothing of a full one.
    ///
    /// # Errors
    /// It could not be looked at.
    pub fn remove_empty(&self, path: &str) -> io::Result<()> {
        match self.at(path, DIR) {
            Ok(dir) if is_empty(&dir)? => self.unlink(path, AtFlags::REMOVEDIR),
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    fn unlink(&self, path: &str, flags: AtFlags) -> io::Result<()> {
        let (dir, name) = path.rsplit_once('/').unwrap_or((".", path));
        let dir = match self.at(dir, DIR) {
            Ok(dir) => dir,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        };
        match unlinkat(&dir, name, flags) {
            Ok(()) => Ok(fsync(&dir)?),
            Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

fn is_empty(dir: &File) -> io::Result<bool> {
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn files_are_written_read_and_removed_with_their_directories() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        let owner = Owner { uid: 1234, gid: 1235 };
        root.write("a/b/c", b"one", 0o755, owner).unwrap();
        root.write("a/b/c", b"two", 0o755, owner).unwrap();
        assert_eq!(root.read("a/b/c").unwrap().unwrap(), b"two");
        assert_eq!(root.owner("a/b").unwrap(), Some(owner));
        let mode = std::fs::metadata(temp.path().join("a/b/c")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o755);
        root.remove_empty("a/b").unwrap();
        assert!(temp.path().join("a/b/c").exists(), "a full directory stays");
        root.remove("a/b/c").unwrap();
        root.remove("a/b/c").unwrap();
        root.remove_empty("a/b").unwrap();
        assert_eq!(root.owner("a/b").unwrap(), None);
        assert_eq!(root.read("a/b/c").unwrap(), None);
    }

    #[test]
    fn no_link_leads_elsewhere() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        let outside = tempfile::tempdir().unwrap();
        symlink(outside.path(), temp.path().join("link")).unwrap();
        assert!(root.write("link/x", b"x", 0o644, Owner::ROOT).is_err());
        assert!(root.read("link/x").is_err());
        assert!(root.read("../x").is_err());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        let file = outside.path().join("file");
        File::create(&file).unwrap();
        symlink(&file, temp.path().join("l")).unwrap();
        assert!(root.read("l").is_err());
    }
}
