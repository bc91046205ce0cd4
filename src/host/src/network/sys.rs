//! The network adapter's only unsafe code: a child process that holds new namespaces open, and the
//! two ioctls that say what a namespace is.
//!
//! A user namespace cannot be made by a thread of a multi-threaded process (`unshare(2)`: EINVAL),
//! so a child is cloned into one. Between clone and exit that child is a copy of one thread of a
//! process whose other threads may hold any lock, so it does nothing but raw system calls: it
//! closes every descriptor it inherited (they would keep locks and sockets of a crashed daemon
//! alive) and waits for the end of a pipe, which comes at the latest when the daemon dies.

#![allow(unsafe_code)]

use std::ffi::CStr;
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
///
/// The user namespace belongs to the host's id `owner`, not to root: the kernel counts inotify
/// watches, namespaces and the like of everybody inside against that id on the host as well
/// (ucounts), and a guest that uses its share up would take root's, and every other guest's.
pub(super) fn child_in_new_namespaces(owner: u32) -> io::Result<Child> {
    clone_ready(|tell| Task::Make { owner, tell }, "no namespaces for the guest")
}

/// A child in that user namespace, so that the maps of it can be read in `/proc/PID`.
pub(super) fn child_in_user_namespace(user: BorrowedFd<'_>) -> io::Result<Child> {
    let user = user.as_raw_fd();
    clone_ready(|tell| Task::Join { user, tell }, "the namespace cannot be joined")
}

/// What a child does before it waits, and where it tells that it worked.
#[derive(Clone, Copy)]
enum Task {
    /// Joins that user namespace.
    Join { user: RawFd, tell: RawFd },
    /// Becomes `owner`, then makes both namespaces.
    Make { owner: u32, tell: RawFd },
}

fn clone_ready(task: impl FnOnce(RawFd) -> Task, failure: &'static str) -> io::Result<Child> {
    let (ready, tell) = pipe_with(PipeFlags::CLOEXEC)?;
    let child = clone_child(task(tell.as_raw_fd()))?;
    drop(tell);
    let mut fds = [PollFd::new(&ready, PollFlags::IN), PollFd::new(&child.pidfd, PollFlags::IN)];
    while let Err(e) = poll(&mut fds, Some(&JOIN_TIMEOUT)) {
        if e != rustix::io::Errno::INTR {
            return Err(e.into());
        }
    }
    let mut answer = [0xff_u8];
    if fds[0].revents().contains(PollFlags::IN) {
        File::from(ready).read_exact(&mut answer)?;
    }
    match answer {
        [0] => Ok(child),
        [0xff] => Err(io::Error::other(failure)),
        [errno] => Err(io::Error::from_raw_os_error(errno.into())),
    }
}

fn clone_child(task: Task) -> io::Result<Child> {
    let (wait, hold) = pipe_with(PipeFlags::CLOEXEC)?;
    let mut pidfd: RawFd = -1;
    // SAFETY: `clone_args` is plain integers, for which all zero is a value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    // The daemon's signal handlers write to its own pipes: the child must not run them. No exit
    // signal: the daemon's SIGCHLD handling shall not see this child.
    args.flags = libc::CLONE_PIDFD as u64 | CLONE_CLEAR_SIGHAND;
    args.pidfd = (&raw mut pidfd) as u64;
    let (args, size) = (&raw const args, size_of::<libc::clone_args>());
    // SAFETY: without CLONE_VM the child has its own copy of memory and returns here on its own
    // copy of the stack; `args` lives through the call.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, args, size) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // SAFETY: this is the child of the clone, as `in_child` demands.
            unsafe { in_child(wait.as_raw_fd(), task) }
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
unsafe fn in_child(wait: RawFd, task: Task) -> ! {
    let mut byte = 0_u8;
    // SAFETY: raw system calls on descriptors and on a byte of this process; the process owns its
    // copy of the descriptor table, so closing all of it harms nobody.
    unsafe {
        let (done, tell) = match task {
            Task::Join { user, tell } => {
                (libc::syscall(libc::SYS_setns, user, libc::CLONE_NEWUSER) == 0, tell)
            }
            Task::Make { owner, tell } => {
                let both = libc::CLONE_NEWUSER | libc::CLONE_NEWNET;
                let made = become_owner(owner) && libc::syscall(libc::SYS_unshare, both) == 0;
                (made && limit_namespaces(), tell)
            }
        };
        if !done {
            // The errno of the call that failed; all that exist fit, and 0xff is none.
            byte = (*libc::__errno_location()).clamp(1, 0xfe) as u8;
        }
        libc::syscall(libc::SYS_write, tell, &raw const byte, 1_usize);
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

/// Takes that id for user and group and keeps the capabilities: hosts may refuse user namespaces to
/// those without (`kernel.unprivileged_userns_clone`, AppArmor).
///
/// # Safety
/// Only in a process of its own.
unsafe fn become_owner(owner: u32) -> bool {
    /// `_LINUX_CAPABILITY_VERSION_3`, capset(2).
    const VERSION: u32 = 0x2008_0522;
    let header = [VERSION, 0];
    // Effective, permitted, inheritable; twice, for 64 capabilities.
    let mut sets = [0_u32; 6];
    // SAFETY: raw system calls; the arrays have the layout and size that capset(2) states.
    unsafe {
        if libc::syscall(libc::SYS_prctl, libc::PR_SET_KEEPCAPS, 1, 0, 0, 0) != 0
            || libc::syscall(libc::SYS_setresgid, owner, owner, owner) != 0
            || libc::syscall(libc::SYS_setresuid, owner, owner, owner) != 0
            || libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()) != 0
        {
            return false;
        }
        (sets[0], sets[3]) = (sets[1], sets[4]);
        libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) == 0
    }
}

/// Limits how many namespaces of each kind there may be below the new user namespace, namespaces(7): they
/// need no process, so that no limit of processes bounds them, and each holds memory that nobody counts.
/// The files are those of the caller's user namespace, whose owner it still is.
///
/// # Safety
/// Only in a process of its own.
unsafe fn limit_namespaces() -> bool {
    const LIMIT: &[u8] = b"4096";
    const FILES: [&CStr; 8] = [
        c"/proc/sys/user/max_cgroup_namespaces",
        c"/proc/sys/user/max_ipc_namespaces",
        c"/proc/sys/user/max_mnt_namespaces",
        c"/proc/sys/user/max_net_namespaces",
        c"/proc/sys/user/max_pid_namespaces",
        c"/proc/sys/user/max_time_namespaces",
        c"/proc/sys/user/max_user_namespaces",
        c"/proc/sys/user/max_uts_namespaces",
    ];
    let flags = libc::O_WRONLY | libc::O_CLOEXEC;
    FILES.iter().all(|file| {
        // SAFETY: raw system calls on strings that live for ever. The descriptor is closed with all others.
        unsafe {
            let fd = libc::syscall(libc::SYS_openat, libc::AT_FDCWD, file.as_ptr(), flags);
            fd >= 0
                && libc::syscall(libc::SYS_write, fd, LIMIT.as_ptr(), LIMIT.len())
                    == LIMIT.len() as libc::c_long
        }
    })
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
