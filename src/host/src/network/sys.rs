//! The network adapter's only unsafe code: a child process that holds new namespaces open, and the
//! two ioctls that say what a namespace is.
//!
//! A user namespace cannot be made by a thread of a multi-threaded process (`unshare(2)`: EINVAL),
//! so a child is cloned into one. Between clone and exit that child is a copy of one thread of a
//! process whose other threads may hold any lock, so it does nothing but raw system calls: it
//! closes every descriptor it inherited (they would keep locks and sockets of a crashed daemon
//! alive) and waits for the end of a pipe, which comes at the latest when the daemon dies.

#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

/// Signal handlers back to their defaults in the child, `clone3(2)`; libc's constant is cut short.
const CLONE_CLEAR_SIGHAND: u64 = 1 << 32;
/// Longest wait for a child to join a namespace; it takes microseconds.
const JOIN_TIMEOUT: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// A child process that keeps its namespaces alive until it is dropped.
#[derive(Debug)]
pub(super) struct Child {
    /// Its pid, safe to use: it is not reaped before this is dropped.
    pub(super) pid: i32,
    pidfd: OwnedFd,
    _hold: OwnedFd,
}

impl Drop for Child {
    fn drop(&mut self) {
        // ESRCH means that it ended already. The wait takes `__WALL` because a child without an
        // exit signal is invisible to any other: nobody else in the daemon can reap it.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        let options = WaitIdOptions::EXITED | WaitIdOptions::from_bits_retain(libc::__WALL as _);
        while let Err(rustix::io::Errno::INTR) = waitid(WaitId::PidFd(self.pidfd.as_fd()), options)
        {
        }
    }
}

/// A child in a new user namespace and a new network namespace that the former owns. Both exist on
/// return; the id maps are not yet written.
pub(super) fn child_in_new_namespaces() -> io::Result<Child> {
    clone_child((libc::CLONE_NEWUSER | libc::CLONE_NEWNET) as u64, None)
}

/// A child in that user namespace, so that the maps of it can be read in `/proc/PID`.
pub(super) fn child_in_user_namespace(user: BorrowedFd<'_>) -> io::Result<Child> {
    let (ready, tell) = pipe_with(PipeFlags::CLOEXEC)?;
    let child = clone_child(0, Some((user.as_raw_fd(), tell.as_raw_fd())))?;
    drop(tell);
    let mut fds = [PollFd::new(&ready, PollFlags::IN), PollFd::new(&child.pidfd, PollFlags::IN)];
    while let Err(e) = poll(&mut fds, Some(&JOIN_TIMEOUT)) {
        if e != rustix::io::Errno::INTR {
            return Err(e.into());
        }
    }
    let mut answer = [0_u8];
    if fds[0].revents().contains(PollFlags::IN) {
        File::from(ready).read_exact(&mut answer)?;
    }
    if answer == [1] { Ok(child) } else { Err(io::Error::other("the namespace cannot be joined")) }
}

fn clone_child(flags: u64, join: Option<(RawFd, RawFd)>) -> io::Result<Child> {
    let (wait, hold) = pipe_with(PipeFlags::CLOEXEC)?;
    let mut pidfd: RawFd = -1;
    // SAFETY: `clone_args` is plain integers, for which all zero is a value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    // The daemon's signal handlers write to its own pipes: the child must not run them. No exit
    // signal: the daemon's SIGCHLD handling shall not see this child.
    args.flags = flags | libc::CLONE_PIDFD as u64 | CLONE_CLEAR_SIGHAND;
    args.pidfd = (&raw mut pidfd) as u64;
    let (args, size) = (&raw const args, size_of::<libc::clone_args>());
    // SAFETY: without CLONE_VM the child has its own copy of memory and returns here on its own
    // copy of the stack; `args` lives through the call.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, args, size) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // SAFETY: this is the child of the clone, as `in_child` demands.
            unsafe { in_child(wait.as_raw_fd(), join) }
        }
        pid => {
            // SAFETY: the kernel stored a new descriptor there that nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            let pid = i32::try_from(pid).map_err(io::Error::other)?;
            Ok(Child { pid, pidfd, _hold: hold })
        }
    }
}

/// The child's whole life: only system calls, no allocation, no lock, no destructor.
///
/// # Safety
/// Only in a process of its own.
unsafe fn in_child(wait: RawFd, join: Option<(RawFd, RawFd)>) -> ! {
    let mut byte = 0_u8;
    // SAFETY: raw system calls on descriptors and on a byte of this process; the process owns its
    // copy of the descriptor table, so closing all of it harms nobody.
    unsafe {
        if let Some((user, tell)) = join {
            let joined = libc::syscall(libc::SYS_setns, user, libc::CLONE_NEWUSER) == 0;
            byte = u8::from(joined);
            libc::syscall(libc::SYS_write, tell, &raw const byte, 1_usize);
        }
        if wait > 0 {
            libc::syscall(libc::SYS_close_range, 0_u32, wait as u32 - 1, 0_u32);
        }
        libc::syscall(libc::SYS_close_range, wait as u32 + 1, u32::MAX, 0_u32);
        libc::syscall(libc::SYS_read, wait, &raw mut byte, 1_usize);
        loop {
            libc::syscall(libc::SYS_exit_group, 0);
        }
    }
}

/// What kind of namespace a descriptor of nsfs is: a `CLONE_NEW*` value, `ioctl_nsfs(2)`.
pub(super) fn namespace_type(fd: BorrowedFd<'_>) -> io::Result<libc::c_int> {
    // SAFETY: this ioctl takes no argument and touches no memory.
    match unsafe { libc::ioctl(fd.as_raw_fd(), libc::NS_GET_NSTYPE) } {
        -1 => Err(io::Error::last_os_error()),
        kind => Ok(kind),
    }
}

/// The user namespace that owns a namespace, `ioctl_nsfs(2)`.
pub(super) fn owning_user_namespace(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: this ioctl takes no argument and touches no memory.
    match unsafe { libc::ioctl(fd.as_raw_fd(), libc::NS_GET_USERNS) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: the kernel returned a new descriptor that nobody else owns.
        owner => Ok(unsafe { OwnedFd::from_raw_fd(owner) }),
    }
}
