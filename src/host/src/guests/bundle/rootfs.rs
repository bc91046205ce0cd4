//! Looks into a guest's root filesystem without being led out of it.
//!
//! Every path is resolved by openat2(2) with `RESOLVE_IN_ROOT`, so that links in the image end
//! inside, and nothing is opened before it is known to be a regular file: opening a device node or
//! a FIFO that an image put in place of `/etc/passwd` would have effects on the host.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ids::IdRange;
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, fstat, mkdirat, openat,
    openat2, readlinkat,
};
use rustix::io::Errno;

use crate::fs::io_error;

/// Kernel filesystems that are mounted over these later; what the image has there does not count.
const OVERMOUNTED: [&str; 3] = ["proc", "sys", "dev"];

/// How often a walk is tried. A rename or a mount anywhere on the host while `..` of a link is followed ends it with
/// `EAGAIN`, since then the kernel cannot tell whether it led out; openat2(2) says to try again.
const TRIES: u32 = 1024;

/// A mounted root filesystem.
#[derive(Debug)]
pub struct GuestRoot {
    dir: OwnedFd,
    path: PathBuf,
}

/// Something inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Where it is when all links are followed, absolute within the guest.
    pub path: PathBuf,
    /// What it is.
    pub file_type: FileType,
    /// Permission bits.
    pub mode: u32,
}

impl GuestRoot {
    /// Opens the directory, which must not be a link.
    ///
    /// # Errors
    /// It is missing or no directory.
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = openat(CWD, path, flags, Mode::empty())
            .map_err(|e| io_error("open root filesystem", path, &e.into()))?;
        let path =
            real_path(&dir).map_err(|e| io_error("open root filesystem", path, &e.into()))?;
        Ok(Self { dir, path })
    }

    /// What a path leads to, links followed within the root; `None` if nothing is there.
    ///
    /// # Errors
    /// The kernel refuses for another reason, as an I/O error.
    pub fn resolve(&self, path: &Path) -> Result<Option<Resolved>> {
        let Some(fd) = self.look(path, OFlags::empty())? else {
            return Ok(None);
        };
        self.describe(path, &fd).map(Some)
    }

    /// Where a path leads to, links followed within the root; from what is not there on, the path as it is.
    ///
    /// # Errors
    /// The kernel refuses, as an I/O error.
    pub fn lead(&self, path: &Path) -> Result<PathBuf> {
        let mut sofar = PathBuf::from("/");
        let mut rest = path.strip_prefix("/").unwrap_or(path).components();
        while let Some(name) = rest.next() {
            sofar.push(name);
            match self.resolve(&sofar)? {
                Some(found) => sofar = found.path,
                None => return Ok(sofar.components().chain(rest).collect()),
            }
        }
        Ok(sofar)
    }

    /// What a path is, the last name of it not followed; `None` if nothing is there.
    ///
    /// # Errors
    /// The kernel refuses, as an I/O error.
    pub fn kind(&self, path: &Path) -> Result<Option<FileType>> {
        let found = self.look(path, OFlags::NOFOLLOW)?;
        let stat = found.map(fstat).transpose();
        let stat = stat.map_err(|e| io_error("look at guest's", path, &e.into()))?;
        Ok(stat.map(|stat| FileType::from_raw_mode(stat.st_mode)))
    }

    /// The bytes of a regular file that is not itself a link; `None` if there is none such.
    ///
    /// # Errors
    /// It cannot be read, or has more than `max` bytes.
    pub fn read(&self, path: &Path, max: u64) -> Result<Option<Vec<u8>>> {
        let failed = |e: std::io::Error| io_error("read guest's", path, &e);
        let Some(fd) = self.look(path, OFlags::NOFOLLOW)? else {
            return Ok(None);
        };
        let stat = fstat(&fd).map_err(|e| failed(e.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(None);
        }
        // Only now opened for reading, through the descriptor that was checked.
        let again = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        let file = openat(CWD, again, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
        let mut bytes = Vec::new();
        File::from(file).take(max + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > max {
            let what = format!("guest's {} is larger than {max} bytes", path.display());
            return Err(Error::new(ErrorKind::Image, what));
        }
        Ok(Some(bytes))
    }

    /// The directory that `path` leads to, with all links followed; missing ones are made, owned by
    /// the guest's root, as images name directories that their layers lack.
    ///
    /// What is returned holds no link, and is not below `/proc`, `/sys` or `/dev`: a working
    /// directory there can reach descriptors of the runtime (CVE-2024-21626).
    ///
    /// # Errors
    /// `Image`: it is no directory, or in a forbidden place.
    pub fn ensure_workdir(&self, path: &Path, ids: IdRange) -> Result<PathBuf> {
        self.ensure_dir(path, "working directory", ids)
    }

    /// The same for a directory where something is mounted.
    ///
    /// # Errors
    /// `Image`: it is no directory, or in a forbidden place.
    pub fn ensure_mount_point(&self, path: &Path, ids: IdRange) -> Result<PathBuf> {
        self.ensure_dir(path, "mount point", ids)
    }

    fn ensure_dir(&self, path: &Path, role: &str, ids: IdRange) -> Result<PathBuf> {
        let refuse = |why: &str| {
            let what = format!("{role} {} {why}", path.display());
            Error::new(ErrorKind::Image, what)
        };
        let overmounted = |path: &Path| {
            let top = path.components().nth(1).map(Component::as_os_str);
            top.is_some_and(|top| OVERMOUNTED.iter().any(|fs| top == *fs))
        };
        let mut sofar = PathBuf::from("/");
        for part in path.components() {
            match part {
                Component::RootDir | Component::CurDir => continue,
                Component::Normal(name) => {
                    let parent = sofar.clone();
                    sofar.push(name);
                    if overmounted(&sofar) {
                        return Err(refuse("is in a kernel filesystem"));
                    }
                    if self.look(&sofar, OFlags::empty())?.is_none() {
                        self.make_dir(&parent, name, ids, (role, path))?;
                    }
                }
                Component::ParentDir | Component::Prefix(_) => {
                    return Err(refuse("must not hold .."));
                }
            }
            let found = self.resolve(&sofar)?.ok_or_else(|| refuse("leads nowhere"))?;
            if found.file_type != FileType::Directory {
                return Err(refuse("is not a directory"));
            }
            // What was reached so far is free of links, so the next step starts from there.
            sofar = found.path;
            if overmounted(&sofar) {
                return Err(refuse("leads into a kernel filesystem"));
            }
        }
        Ok(sofar)
    }

    fn make_dir(
        &self,
        parent: &Path,
        name: &OsStr,
        ids: IdRange,
        (role, whole): (&str, &Path),
    ) -> Result<()> {
        let failed = |e: Errno| io_error(&format!("make {role}"), whole, &e.into());
        let missing = || Error::new(ErrorKind::Image, format!("{} vanished", parent.display()));
        let parent = self.look(parent, OFlags::DIRECTORY)?.ok_or_else(missing)?;
        match mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let what = format!("{role} {} is a link that leads nowhere", whole.display());
                return Err(Error::new(ErrorKind::Image, what));
            }
            Err(e) => return Err(failed(e)),
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let made = openat(&parent, name, flags, Mode::empty()).map_err(failed)?;
        let (uid, gid) = (Uid::from_raw(ids.base), Gid::from_raw(ids.base));
        chownat(&made, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH).map_err(failed)
    }

    fn look(&self, path: &Path, more: OFlags) -> Result<Option<OwnedFd>> {
        let flags = OFlags::PATH | OFlags::CLOEXEC | more;
        let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        for _ in 0..TRIES {
            match openat2(&self.dir, path, flags, Mode::empty(), within) {
                Ok(fd) => return Ok(Some(fd)),
                Err(Errno::AGAIN | Errno::INTR) => {}
                // A loop of links leads nowhere, too.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
                Err(e) => return Err(io_error("look at guest's", path, &e.into())),
            }
        }
        Err(io_error("look at guest's", path, &Errno::AGAIN.into()))
    }

    fn describe(&self, path: &Path, fd: &OwnedFd) -> Result<Resolved> {
        let failed = |e: Errno| io_error("look at guest's", path, &e.into());
        let stat = fstat(fd).map_err(failed)?;
        let real = real_path(fd).map_err(failed)?;
        let outside = |_| Error::new(ErrorKind::Host, format!("{} moved away", path.display()));
        let inside = real.strip_prefix(&self.path).map_err(outside)?;
        Ok(Resolved {
            path: Path::new("/").join(inside),
            file_type: FileType::from_raw_mode(stat.st_mode),
            mode: stat.st_mode & 0o7777,
        })
    }
}

/// Path of an open file as the kernel sees it from here.
fn real_path(fd: &OwnedFd) -> std::result::Result<PathBuf, Errno> {
    let link = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    let bytes = readlinkat(CWD, link, Vec::new())?.into_bytes();
    Ok(PathBuf::from(<OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(&bytes)))
}
