//! System calls that neither rustix nor nix wraps safely.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::unistd::Pid;

/// A copy of this process, as fork(2) makes it; `None` in the copy.
///
/// Only while there is one thread: locks of others would stay locked in the copy.
pub fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: this program starts its first thread in the confined copy, long after; so no other thread can hold a
    // lock, and the copy may do all that the original may.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => Ok(Some(Pid::from_raw(pid))),
    }
}

/// Closes every descriptor but 0, 1 and 2: whatever the starter forgot to mark close-on-exec.
pub fn close_all_others() -> io::Result<()> {
    // SAFETY: called first of all; nothing in this program owns a descriptor yet.
    match unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Descriptors from here on are none that another program is given.
const HIGH: i32 = 64;

/// A duplicate among numbers that no program is given, closed on exec.
pub fn out_of_the_way(file: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(file, HIGH)?)
}

/// Has the next program find a file under this number, which must be low.
pub fn keep_as(file: BorrowedFd<'_>, number: i32) -> io::Result<()> {
    if number >= HIGH {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: whatever had the number is closed behind the back of its owner, here, where nothing but files that lie
    // out of the way is used until the next program begins or this one ends.
    match unsafe { libc::dup3(file.as_raw_fd(), number, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// `struct mount_attr`, mount_setattr(2).
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Shows the ids on a detached mount through the maps of a user namespace, and takes from it what no layer needs.
///
/// A clone of a shared mount, as all are where systemd is process 1, is its peer: what is mounted on one appears on the
/// other, and pivot_root(2) refuses it. So it is made private, too.
pub fn map_ids(mount: BorrowedFd<'_>, namespace: BorrowedFd<'_>) -> io::Result<()> {
    let set = libc::MOUNT_ATTR_IDMAP | NO_SPECIAL | libc::MOUNT_ATTR_NOEXEC;
    let userns_fd = u64::try_from(namespace.as_raw_fd()).map_err(io::Error::other)?;
    set_attributes(mount, &MountAttr { set, clear: 0, propagation: libc::MS_PRIVATE, userns_fd }, 0)
}

/// Takes the right to write from a mount, and what no worker needs of it.
pub fn read_only(mount: BorrowedFd<'_>, reach: Reach) -> io::Result<()> {
    let set = libc::MOUNT_ATTR_RDONLY | NO_SPECIAL;
    let attr = MountAttr { set, clear: 0, propagation: 0, userns_fd: 0 };
    let flags = if reach == Reach::AllBelow { libc::AT_RECURSIVE } else { 0 };
    set_attributes(mount, &attr, flags)
}

/// How far attributes of a mount are to go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// That mount.
    Alone,
    /// What is mounted below it as well.
    AllBelow,
}

const NO_SPECIAL: u64 = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;

fn set_attributes(mount: BorrowedFd<'_>, attr: &MountAttr, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: both pointers are valid for the call, the size is that of what the second points to, and the kernel
    // only reads.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    };
    match done {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
