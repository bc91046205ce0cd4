//! A directory of a user's, copied by descriptors.
//!
//! Who may write in it can put a link in the place of any name at any time, so nothing here is opened by a path: the
//! top without any link on the way, and all below by one name in an open directory. Links are copied as links.
//! Owners, extended attributes and hard links are not copied, and bits that lend rights are not either: a build makes what it
//! copies root's.

use std::ffi::{CStr, CString, OsStr};
use std::fs::{File, Metadata, Permissions};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use ocivisor_core::error::{Error, ErrorKind, Result};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, readlinkat,
    statat, symlinkat,
};

use super::data::{self, Room};
use crate::fault::failed;

/// Most names.
const MAX_ENTRIES: u64 = 1_000_000;
/// Deepest directory. Each is open, and its copy.
const MAX_DEPTH: usize = 128;

/// buildah opens these itself, through links.
const READ_BY_NAME: [&[u8]; 2] = [b".containerignore", b".dockerignore"];

const SAFE: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(SAFE);

/// Copies a directory to where nothing is yet. Says how many sockets, pipes and devices were left out.
pub(super) fn copy(from: &Path, to: &Path, room: Room) -> Result<u64> {
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let top = openat2(CWD, from, DIRECTORY, Mode::empty(), resolve);
    let top = top.map_err(|e| unreadable(from, e))?;
    let mut copy = Copy { room, left: room.bytes, entries: 0, left_out: 0 };
    copy.directory(&File::from(top), CWD, to.as_os_str(), from, 0)?;
    Ok(copy.left_out)
}

/// A file whose name leads elsewhere.
pub(super) fn is_a_link(path: &Path) -> Error {
    let text = format!("{} is a link, which is not followed", path.display());
    Error::new(ErrorKind::Permission, text).hint("put the file itself there")
}

fn unreadable(path: &Path, e: impl Into<std::io::Error>) -> Error {
    match failed("read", path, &e.into()) {
        error if error.kind == ErrorKind::Permission => {
            error.hint("let the user read it who runs the drivers (oneadmin), or take it away")
        }
        error => error,
    }
}

struct Copy {
    room: Room,
    /// Bytes that may still come.
    left: u64,
    entries: u64,
    left_out: u64,
}

impl Copy {
    /// One that is open, to a name in another. `shown` is its path, for messages alone.
    fn directory(
        &mut self,
        from: &File,
        parent: impl AsFd,
        name: &OsStr,
        shown: &Path,
        depth: usize,
    ) -> Result<()> {
        let read = |e| unreadable(shown, e);
        let write = |e: rustix::io::Errno| failed("write a copy of", shown, &e.into());
        if depth > MAX_DEPTH {
            let text = format!("{} is too deep to be copied", shown.display());
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        mkdirat(&parent, name, Mode::RWXU).map_err(write)?;
        let to = openat(&parent, name, DIRECTORY, Mode::empty()).map_err(write)?;
        let to = File::from(to);
        for name in self.names(from).map_err(read)? {
            self.entry(from, &to, &name, shown, depth)?;
        }
        let meta = from.metadata().map_err(|e| unreadable(shown, e))?;
        // Else what is in it could not be removed again.
        finish(&to, &meta, 0o700).map_err(|e| failed("write a copy of", shown, &e))
    }

    fn names(&mut self, dir: &File) -> rustix::io::Result<Vec<CString>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                return Err(rustix::io::Errno::MLINK);
            }
            names.push(name.to_owned());
        }
        Ok(names)
    }

    fn entry(
        &mut self,
        from: &File,
        to: &File,
        name: &CStr,
        above: &Path,
        depth: usize,
    ) -> Result<()> {
        let leaf = OsStr::from_bytes(name.to_bytes());
        let shown = &above.join(leaf);
        let read = |e| unreadable(shown, e);
        let write = |e: std::io::Error| failed("write a copy of", shown, &e);
        let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW).map_err(read)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let dir = openat(from, name, DIRECTORY, Mode::empty()).map_err(read)?;
                self.directory(&File::from(dir), to, leaf, shown, depth + 1)
            }
            FileType::Symlink if depth == 0 && READ_BY_NAME.contains(&name.to_bytes()) => {
                Err(is_a_link(shown))
            }
            FileType::Symlink => {
                let target = readlinkat(from, name, Vec::new()).map_err(read)?;
                symlinkat(&target, to, name).map_err(|e| write(e.into()))
            }
            FileType::RegularFile => {
                let file = openat(from, name, OFlags::RDONLY | SAFE, Mode::empty());
                let mut file = File::from(file.map_err(read)?);
                let meta = file.metadata().map_err(|e| unreadable(shown, e))?;
                if !meta.is_file() {
                    self.left_out += 1;
                    return Ok(());
                }
                if meta.len() > self.left {
                    return Err(self.room.exceeded());
                }
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | SAFE;
                let made = openat(to, name, flags, Mode::RUSR | Mode::WUSR);
                let made = File::from(made.map_err(|e| write(e.into()))?);
                let room = Room { bytes: self.left, ..self.room };
                self.left -= data::copy(&mut file, &made, room, &shown.display().to_string())?;
                finish(&made, &meta, 0o400).map_err(write)
            }
            _ => {
                self.left_out += 1;
                Ok(())
            }
        }
    }
}

/// Mode and time of a copy.
fn finish(copy: &File, of: &Metadata, least: u32) -> std::io::Result<()> {
    copy.set_permissions(Permissions::from_mode(of.permissions().mode() & 0o777 | least))?;
    copy.set_modified(of.modified()?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    const ROOM: Room = Room { bytes: 1 << 20, size: None };

    #[test]
    fn what_a_directory_holds_is_copied_and_nothing_that_links_lead_to() {
        let top = tempfile::tempdir().unwrap();
        let top = top.path().canonicalize().unwrap();
        let at = |name: &str| top.join(name);
        fs::create_dir_all(at("from/sub/deep")).unwrap();
        fs::create_dir(at("secret")).unwrap();
        for name in ["from/file", "from/sub/deep/tool", "secret/key"] {
            File::create_new(at(name)).unwrap().set_len(5).unwrap();
        }
        let mode = |name: &str, mode| fs::set_permissions(at(name), Permissions::from_mode(mode));
        mode("from/sub/deep/tool", 0o4755).unwrap();
        mode("from/sub", 0o555).unwrap();
        symlink("../secret", at("from/away")).unwrap();
        symlink("/does/not/exist", at("from/nowhere")).unwrap();
        let socket = std::os::unix::net::UnixListener::bind(at("from/socket")).unwrap();
        let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(86_400);
        File::options().write(true).open(at("from/file")).unwrap().set_modified(old).unwrap();
        assert_eq!(copy(&at("from"), &at("to"), ROOM).unwrap(), 1);
        drop(socket);
        let names = |dir: &str| {
            let entries = fs::read_dir(at(dir)).unwrap();
            let mut names: Vec<_> =
                entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        assert_eq!(names("to"), ["away", "file", "nowhere", "sub"]);
        assert_eq!(fs::read_link(at("to/away")).unwrap(), Path::new("../secret"));
        assert_eq!(names("to/sub/deep"), ["tool"]);
        let meta = |name: &str| at(name).metadata().unwrap();
        assert_eq!(meta("to/sub/deep/tool").permissions().mode() & 0o7777, 0o755);
        assert_eq!(meta("to/sub").permissions().mode() & 0o7777, 0o755);
        assert_eq!((meta("to/file").len(), meta("to/file").modified().unwrap()), (5, old));
        // Not the top either.
        symlink("secret", at("led")).unwrap();
        copy(&at("led"), &at("b"), ROOM).unwrap_err();
        copy(&at("from/away"), &at("b"), ROOM).unwrap_err();
        assert!(!at("b").exists());
    }

    #[test]
    fn there_is_a_bound_and_no_list_of_what_is_left_out_is_a_link() {
        let top = tempfile::tempdir().unwrap();
        let at = |name: &str| top.path().join(name);
        fs::create_dir(at("from")).unwrap();
        for name in ["a", "b"] {
            File::create_new(at("from").join(name)).unwrap().set_len(600).unwrap();
        }
        let room = |bytes| Room { bytes, size: None };
        copy(&at("from"), &at("enough"), room(1200)).unwrap();
        let error = copy(&at("from"), &at("little"), room(1199)).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Exhausted);
        for name in [".dockerignore", ".containerignore"] {
            symlink("a", at("from").join(name)).unwrap();
            let error = copy(&at("from"), &at(&format!("to{name}")), ROOM).unwrap_err();
            let want = format!("{}/{name} is a link, which is not followed", at("from").display());
            assert_eq!(error.message, want);
            fs::remove_file(at("from").join(name)).unwrap();
        }
    }
}
