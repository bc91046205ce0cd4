//! Files below a root directory, whoever owns what is in between.
//!
//! The installer runs as root and writes into directories of oneadmin's. Every path is resolved by `openat2(2)` (Linux
//! 5.6) below the root, and no link is followed on the way: who owns a directory cannot lead us elsewhere. One link is:
//! `/var/lib/one`, which root alone can make, and many have put elsewhere.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, FlockOperation, Gid, Mode, OFlags, RenameFlags, ResolveFlags, Uid, fchmod,
    fchown, flock, fstat, fsync, mkdirat, openat, openat2, renameat, renameat_with, unlinkat,
};
use rustix::io::Errno;

/// Most bytes of a file that is read.
const MAX_BYTES: u64 = 1 << 20;
const DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// OpenNebula's directory.
const ONE: &str = "var/lib/one";

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

/// What is at a path.
#[derive(Debug, PartialEq, Eq)]
pub enum There {
    /// Nothing.
    Nothing,
    /// A regular file.
    File {
        /// What is in it.
        text: Vec<u8>,
        /// Its permissions.
        mode: u32,
        /// Whose it is.
        owner: Owner,
    },
    /// A link, a directory, a file of no ordinary size.
    Other,
}

impl Root {
    /// Opens it.
    ///
    /// # Errors
    /// There is no such directory.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(openat(rustix::fs::CWD, path, DIR, Mode::empty())?.into()))
    }

    /// Whether it is this machine's own.
    pub fn is_machine(&self) -> io::Result<bool> {
        let (here, root) = (fstat(&self.0)?, rustix::fs::stat("/")?);
        Ok((here.st_dev, here.st_ino) == (root.st_dev, root.st_ino))
    }

    fn at(&self, path: &str, flags: OFlags) -> io::Result<File> {
        let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        if path == ONE {
            return self.follow(ONE, flags);
        }
        let (from, rest) = match path.strip_prefix(ONE).and_then(|rest| rest.strip_prefix('/')) {
            Some(rest) => (&self.follow(ONE, DIR)?, rest),
            None => (&self.0, path),
        };
        Ok(openat2(from, rest, flags | OFlags::CLOEXEC, Mode::empty(), how)?.into())
    }

    /// For what root alone can write: links are followed, as if this were the root.
    fn follow(&self, path: &str, flags: OFlags) -> io::Result<File> {
        let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        Ok(openat2(&self.0, path, flags | OFlags::CLOEXEC, Mode::empty(), how)?.into())
    }

    /// One run at a time: the lock of a directory, until it is dropped.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn lock(&self, dir: &str) -> io::Result<File> {
        let dir = self.ensure_dir(dir, Owner::ROOT)?;
        flock(&dir, FlockOperation::LockExclusive)?;
        Ok(dir)
    }

    /// What is there; links are not followed.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn look(&self, path: &str) -> io::Result<There> {
        let file = match self.at(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(There::Nothing),
            Err(e) if e.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
                return Ok(There::Other);
            }
            Err(e) => return Err(e),
        };
        let stat = fstat(&file)?;
        let Some(text) = contents(&file)? else { return Ok(There::Other) };
        let owner = Owner { uid: stat.st_uid, gid: stat.st_gid };
        Ok(There::File { text, mode: stat.st_mode & 0o7777, owner })
    }

    /// What is in an admin's file, links followed; none if there is none.
    ///
    /// # Errors
    /// It cannot be read, or is no ordinary file of ordinary size.
    pub fn read(&self, path: &str) -> io::Result<Option<Vec<u8>>> {
        match self.follow(path, OFlags::RDONLY | OFlags::NONBLOCK) {
            Ok(file) => match contents(&file)? {
                Some(text) => Ok(Some(text)),
                None => Err(io::Error::other(format!("no file of at most {MAX_BYTES} bytes"))),
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Who owns a directory, and with which permissions; none if there is none.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn dir(&self, dir: &str) -> io::Result<Option<(Owner, u32)>> {
        match self.at(dir, DIR) {
            Ok(dir) => {
                let stat = fstat(&dir)?;
                Ok(Some((Owner { uid: stat.st_uid, gid: stat.st_gid }, stat.st_mode & 0o7777)))
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
        let temp = temporary(name);
        gone(unlinkat(&dir, temp.as_str(), AtFlags::empty()))?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file: File = openat(&dir, temp.as_str(), flags, Mode::RUSR)?.into();
        let mut fill = || {
            file.write_all(text)?;
            give(&file, owner, mode)?;
            file.sync_all()?;
            Ok(renameat(&dir, temp.as_str(), &dir, name)?)
        };
        let filled: io::Result<()> = fill();
        if filled.is_err() {
            gone(unlinkat(&dir, temp.as_str(), AtFlags::empty()))?;
        }
        filled?;
        Ok(fsync(&dir)?)
    }

    /// Gives a directory its owner, and everybody a look into it.
    ///
    /// # Errors
    /// It has not got them.
    pub fn give_dir(&self, dir: &str, owner: Owner) -> io::Result<()> {
        give(&self.at(dir, DIR)?, owner, 0o755)
    }

    /// A directory has its name when it has its owner: a crash leaves none that nobody else can use.
    fn ensure_dir(&self, path: &str, owner: Owner) -> io::Result<File> {
        match self.at(path, DIR) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            result => return result,
        }
        let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
        let parent =
            if parent == "." { self.at(".", DIR)? } else { self.ensure_dir(parent, owner)? };
        let temp = temporary(name);
        match mkdirat(&parent, temp.as_str(), Mode::RWXU) {
            // Of a run that was cut off.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e.into()),
        }
        let dir: File =
            openat(&parent, temp.as_str(), DIR | OFlags::NOFOLLOW, Mode::empty())?.into();
        // The parent's owner may have put another one there, which is not to change hands.
        let found = fstat(&dir)?.st_uid;
        if ![rustix::process::geteuid().as_raw(), owner.uid].contains(&found) || !is_empty(&dir)? {
            return Err(io::Error::other(format!("somebody else has a directory {temp}")));
        }
        give(&dir, owner, 0o755)?;
        match renameat_with(&parent, temp.as_str(), &parent, name, RenameFlags::NOREPLACE) {
            Ok(()) => fsync(&parent)?,
            Err(Errno::EXIST) => gone(unlinkat(&parent, temp.as_str(), AtFlags::REMOVEDIR))?,
            Err(e) => return Err(e.into()),
        }
        self.at(path, DIR)
    }

    /// Removes a file if it is there, and what a write of it left that was cut off.
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
        gone(unlinkat(&dir, temporary(name).as_str(), flags))?;
        gone(unlinkat(&dir, name, flags))?;
        Ok(fsync(&dir)?)
    }
}

fn temporary(name: &str) -> String {
    format!(".{name}.ocivisor-new")
}

fn gone(removed: rustix::io::Result<()>) -> io::Result<()> {
    match removed {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

fn give(file: &File, owner: Owner, mode: u32) -> io::Result<()> {
    fchown(file, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))?;
    Ok(fchmod(file, Mode::from_raw_mode(mode))?)
}

/// None of what is no ordinary file of ordinary size.
fn contents(file: &File) -> io::Result<Option<Vec<u8>>> {
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= MAX_BYTES).then_some(bytes))
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

    fn text(there: There) -> Vec<u8> {
        match there {
            There::File { text, .. } => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn files_are_written_read_and_removed_with_their_directories() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        let owner = Owner { uid: 1234, gid: 1235 };
        root.write("a/b/c", b"one", 0o755, owner).unwrap();
        root.write("a/b/c", b"two", 0o755, owner).unwrap();
        assert_eq!(text(root.look("a/b/c").unwrap()), b"two");
        assert_eq!(root.dir("a/b").unwrap(), Some((owner, 0o755)));
        let mode = std::fs::metadata(temp.path().join("a/b/c")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o755);
        root.remove_empty("a/b").unwrap();
        assert!(temp.path().join("a/b/c").exists(), "a full directory stays");
        root.remove("a/b/c").unwrap();
        root.remove("a/b/c").unwrap();
        root.remove_empty("a/b").unwrap();
        assert_eq!(root.dir("a/b").unwrap(), None);
        assert_eq!(root.look("a/b/c").unwrap(), There::Nothing);
        assert!(!root.is_machine().unwrap());
    }

    #[test]
    fn what_was_cut_off_is_gone_on_with_or_removed() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        let owner = Owner { uid: 1234, gid: 1235 };
        std::fs::create_dir(temp.path().join(".a.ocivisor-new")).unwrap();
        root.write("a/c", b"x", 0o644, owner).unwrap();
        assert_eq!(root.dir("a").unwrap(), Some((owner, 0o755)));
        File::create(temp.path().join("a/.c.ocivisor-new")).unwrap();
        root.remove("a/c").unwrap();
        root.remove_empty("a").unwrap();
        assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0);
    }

    #[test]
    fn no_link_leads_elsewhere() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        let outside = tempfile::tempdir().unwrap();
        symlink(outside.path(), temp.path().join("link")).unwrap();
        assert!(root.write("link/x", b"x", 0o644, Owner::ROOT).is_err());
        assert!(root.look("../x").is_err());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        let file = outside.path().join("file");
        File::create(&file).unwrap();
        symlink(&file, temp.path().join("l")).unwrap();
        assert_eq!(root.look("l").unwrap(), There::Other);
        assert_eq!(root.read("l").unwrap(), None, "a link counts as if this were the root");
    }

    #[test]
    fn opennebulas_directory_may_be_elsewhere() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        for dir in ["var/lib", "srv/one"] {
            std::fs::create_dir_all(temp.path().join(dir)).unwrap();
        }
        symlink("/srv/one", temp.path().join("var/lib/one")).unwrap();
        root.write("var/lib/one/remotes/x", b"x", 0o644, Owner::ROOT).unwrap();
        assert_eq!(std::fs::read(temp.path().join("srv/one/remotes/x")).unwrap(), b"x");
        symlink("/srv", temp.path().join("srv/one/remotes/y")).unwrap();
        assert!(root.write("var/lib/one/remotes/y/z", b"x", 0o644, Owner::ROOT).is_err());
    }
}
