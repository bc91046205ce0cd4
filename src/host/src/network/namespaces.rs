//! A VM's user and network namespace, pinned by bind mounts so that they outlive every process.
//!
//! ```text
//!   clone child in new ns ─► id maps ─► loopback up ─► pin user ─► pin net ─► child ends
//! ```
//!
//! The order makes the pins their own commit record: both there and belonging together means that
//! all before them was done. The child ends when the daemon does, so a crash leaves at most files,
//! mounts and directories under `ns/`, which [`clear`] takes away whatever there is of them.
//!
//! The mounts are made private: later unmounts then concern this mount namespace only. If the
//! directory's own mount is shared, other mount namespaces (services with `PrivateTmp=`) got copies
//! when the pins were attached; removing the file detaches these, wherever they are (the kernel
//! unmounts what is mounted on a removed name, Linux >= 3.18).

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ids::IdRange;
use rustix::fs::{CWD, Mode, OFlags, fstat, fstatfs, open};
use rustix::io::Errno;
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_change, move_mount,
    open_tree, unmount,
};

use super::fault;
use super::link;
use super::socket::Netlink;
use super::sys;
use crate::fs::{drop_file, ensure_dir, io_error, read_bounded};
use crate::layout::VmRun;

/// Index of the loopback device: the first link of every network namespace.
const LOOPBACK: u32 = 1;
/// Most mounts that are taken off one file; each crash leaves at most one.
const MAX_STACKED: usize = 1000;

/// The pinned network namespace; `None` if it is not pinned.
pub(super) fn net(run: &VmRun) -> Result<Option<OwnedFd>> {
    pinned(&run.net_ns(), libc::CLONE_NEWNET)
}

/// Where the pins are.
pub(super) fn dir(run: &VmRun) -> PathBuf {
    let mut dir = run.net_ns();
    dir.pop();
    dir
}

/// See [`Network::ensure_namespaces`](ocivisor_core::ports::Network::ensure_namespaces).
pub(super) fn ensure(run: &VmRun, ids: IdRange) -> Result<()> {
    if let Some(net) = whole(run, ids)? {
        return raise_loopback(net.as_fd());
    }
    clear(run)?;
    make(run, ids).map_err(|error| match clear(run) {
        Ok(()) => error,
        Err(also) => error.context(format!("{also} while undoing")),
    })
}

fn make(run: &VmRun, ids: IdRange) -> Result<()> {
    let child = sys::child_in_new_namespaces(ids.base).map_err(|e| clone_error(&e))?;
    fault::point()?;
    let map = format!("0 {} {}\n", ids.base, IdRange::LEN);
    for name in ["uid_map", "gid_map"] {
        let path = format!("/proc/{}/{name}", child.pid);
        let path = Path::new(&path);
        // One write: the kernel takes the whole map at once, user_namespaces(7).
        let written = OpenOptions::new().write(true).open(path);
        let written = written.and_then(|mut file| file.write_all(map.as_bytes()));
        written.map_err(|e| io_error("write", path, &e))?;
        fault::point()?;
    }
    let [user, net] = ["user", "net"].map(|name| {
        let path = format!("/proc/{}/ns/{name}", child.pid);
        let opened = open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        opened.map_err(|e| io_error("open", Path::new(&path), &e.into()))
    });
    let (user, net) = (user?, net?);
    raise_loopback(net.as_fd())?;
    fault::point()?;
    ensure_dir(&dir(run), false)?;
    fault::point()?;
    pin(user.as_fd(), &run.user_ns())?;
    fault::point()?;
    pin(net.as_fd(), &run.net_ns())?;
    fault::point()
}

fn clone_error(error: &io::Error) -> Error {
    let (kind, hint) = match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EUSERS | libc::ENOMEM | libc::EAGAIN) => (
            ErrorKind::Exhausted,
            "see sysctl user.max_user_namespaces and user.max_net_namespaces, and free memory",
        ),
        Some(libc::EINVAL | libc::ENOSYS) => {
            (ErrorKind::Unsupported, "the kernel needs CONFIG_USER_NS and CONFIG_NET_NS")
        }
        _ => (ErrorKind::Host, "the daemon must run as root with all capabilities"),
    };
    Error::new(kind, format!("make user and network namespace: {error}")).hint(hint)
}

fn raise_loopback(net: BorrowedFd<'_>) -> Result<()> {
    let raised = Netlink::open_in(net)
        .and_then(|mut netlink| netlink.change(link::change(LOOPBACK, libc::IFF_UP)));
    raised.map_err(|e| e.error("bring up the guest's loopback"))
}

fn pin(namespace: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |e: Errno| io_error(&what, path, &e.into())
    };
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    made.map_err(|e| io_error("make", path, &e))?;
    fault::point()?;
    let clone = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(namespace, c"", clone).map_err(failed("clone the mount for"))?;
    move_mount(tree, c"", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(failed("pin namespace at"))?;
    fault::point()?;
    mount_change(path, MountPropagationFlags::PRIVATE).map_err(failed("make mount private at"))
}

/// The network namespace if both pins are there, belong together and have that id range.
fn whole(run: &VmRun, ids: IdRange) -> Result<Option<OwnedFd>> {
    let user = pinned(&run.user_ns(), libc::CLONE_NEWUSER)?;
    let (Some(user), Some(net)) = (user, net(run)?) else {
        return Ok(None);
    };
    let unknown = |e: io::Error| io_error("examine namespace at", &run.user_ns(), &e);
    let owner = sys::owning_user_namespace(net.as_fd()).map_err(unknown)?;
    let identity = |fd: &OwnedFd| fstat(fd).map(|s| (s.st_dev, s.st_ino));
    let errno = |e: Errno| unknown(e.into());
    if identity(&owner).map_err(errno)? != identity(&user).map_err(errno)? {
        return Ok(None);
    }
    // The maps of a namespace can only be read through a process that is in it.
    let child = sys::child_in_user_namespace(user.as_fd()).map_err(unknown)?;
    let want = [0, ids.base, IdRange::LEN].map(|n| n.to_string());
    for name in ["uid_map", "gid_map"] {
        let path = format!("/proc/{}/{name}", child.pid);
        let map = read_bounded(Path::new(&path), 4096)?.unwrap_or_default();
        let map = String::from_utf8_lossy(&map);
        if !map.split_ascii_whitespace().eq(want.iter().map(String::as_str)) {
            return Ok(None);
        }
    }
    Ok(Some(net))
}

/// The namespace mounted at `path`; `None` if there is none of that type.
fn pinned(path: &Path, kind: libc::c_int) -> Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let fd = match open(path, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(e) => return Err(io_error("open", path, &e.into())),
    };
    let unknown = |e: io::Error| io_error("examine namespace at", path, &e);
    let filesystem = fstatfs(&fd).map_err(|e| unknown(e.into()))?;
    if filesystem.f_type != libc::NSFS_MAGIC {
        return Ok(None);
    }
    let is = sys::namespace_type(fd.as_fd()).map_err(unknown)?;
    Ok(Some(fd).filter(|_| is == kind))
}

/// Takes away pins, files and directory, in whatever state they are; the VM's run directory too if
/// nothing else is in it.
pub(super) fn clear(run: &VmRun) -> Result<()> {
    for path in [run.net_ns(), run.user_ns()] {
        unpin(&path)?;
        fault::point()?;
        drop_file(&path)?;
        fault::point()?;
    }
    drop_dir(&dir(run))?;
    match fs::remove_dir(run.dir()) {
        Err(e) if !is_one_of(&e, &[libc::ENOENT, libc::ENOTEMPTY, libc::EEXIST, libc::EBUSY]) => {
            Err(io_error("remove", run.dir(), &e))
        }
        _ => Ok(()),
    }
}

fn drop_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir(dir) {
        Err(e) if !is_one_of(&e, &[libc::ENOENT]) => Err(io_error("remove", dir, &e)),
        _ => Ok(()),
    }
}

fn is_one_of(error: &io::Error, errnos: &[i32]) -> bool {
    error.raw_os_error().is_some_and(|errno| errnos.contains(&errno))
}

/// Takes all mounts off a file.
fn unpin(path: &Path) -> Result<()> {
    for _ in 0..MAX_STACKED {
        match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // EINVAL: not a mount point.
            Err(Errno::INVAL | Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(e) => return Err(io_error("unmount", path, &e.into())),
        }
    }
    Err(Error::new(ErrorKind::Host, format!("{}: too many mounts", path.display())))
}
