//! System calls that neither rustix nor nix wraps safely.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

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

/// `struct mount_attr`, mount_setattr(2).
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Shows the ids on a detached mount through the maps of a user namespace, and takes from it what no layer needs.
pub fn map_ids(mount: BorrowedFd<'_>, namespace: BorrowedFd<'_>) -> io::Result<()> {
    let attr = MountAttr {
        set: libc::MOUNT_ATTR_IDMAP
            | libc::MOUNT_ATTR_NOSUID
            | libc::MOUNT_ATTR_NODEV
            | libc::MOUNT_ATTR_NOEXEC,
        clear: 0,
        propagation: 0,
        userns_fd: u64::try_from(namespace.as_raw_fd()).map_err(io::Error::other)?,
    };
    // SAFETY: both pointers are valid for the call, the size is that of what the second points to, and the kernel
    // only reads.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    match done {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
