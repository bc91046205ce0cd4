//! What goes on between fork and exec, and the one system call that no crate wraps safely.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io::{self, PipeWriter};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::libc;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{
    Signal, chdir, getpid, getppid, pivot_root, set_parent_process_death_signal,
};

/// Has the kernel end it when the thread that starts it ends (`PR_SET_PDEATHSIG`): that thread waits for it.
pub(crate) fn tie_to_this_thread(command: &mut Command) {
    let us = getpid();
    // SAFETY: only system calls between fork and exec, nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // Who died before that sends no signal.
            if getppid() == Some(us) { Ok(()) } else { Err(rustix::io::Errno::CHILD.into()) }
        });
    }
}

/// The way of the first process of a PID namespace into another root directory.
#[derive(Debug)]
pub(crate) struct Way {
    /// Where its `/proc` goes.
    pub proc: CString,
    /// Its root directory, a mount.
    pub root: CString,
    /// Hears each step before it is taken.
    pub steps: PipeWriter,
}

impl Way {
    /// `/proc` is mounted: the namespace is the process's own, not that of who made it.
    pub const PROC: u8 = b'p';
    /// The root is changed.
    pub const ROOT: u8 = b'r';
    /// The program begins.
    pub const PROGRAM: u8 = b'x';

    fn go(&self) -> io::Result<()> {
        let step = |step| rustix::io::write(&self.steps, &[step]).map(drop);
        step(Self::PROC)?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount(c"proc", &*self.proc, c"proc", flags, None)?;
        step(Self::ROOT)?;
        chdir(&*self.root)?;
        // pivot_root(2): the old root lies on the new one, and goes.
        pivot_root(c".", c".")?;
        unmount(c".", UnmountFlags::DETACH)?;
        chdir(c"/")?;
        step(Self::PROGRAM)?;
        Ok(())
    }
}

/// Has a program be the first process of a PID namespace, on that way. It cannot see its parent, but ends with it, and with it
/// all others of the namespace. It gets the standard streams and no other file of ours.
pub(crate) fn be_the_first(command: &mut Command, way: Way) {
    // SAFETY: as above.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            way.go()?;
            // Not closed at once: one of them tells our side that exec failed.
            let flags = libc::CLOSE_RANGE_CLOEXEC;
            match libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, flags) {
                -1 => Err(io::Error::last_os_error()),
                _ => Ok(()),
            }
        });
    }
}

/// How far attributes of a mount are to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// That mount.
    Alone,
    /// What is mounted below it as well.
    AllBelow,
}

/// Takes from a mount the right to write and to lend rights.
pub(crate) fn read_only(mount: BorrowedFd<'_>, reach: Reach) -> io::Result<()> {
    let attr_set = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID;
    let attr = libc::mount_attr { attr_set, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if reach == Reach::AllBelow { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: both pointers are valid for the call, the size is that of what the second points to, and the kernel
    // only reads.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(&attr),
            size_of::<libc::mount_attr>(),
        )
    };
    match done {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
