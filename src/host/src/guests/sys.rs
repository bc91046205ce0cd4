//! Starting a process; the one unsafe part of this port.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal, setsid};

/// A descriptor for a child: its number here is its number there.
#[derive(Debug)]
pub struct Passed(OwnedFd);

impl Passed {
    /// Duplicates a descriptor for a child.
    pub fn new(fd: impl AsFd) -> io::Result<Self> {
        Ok(Self(fcntl_dupfd_cloexec(fd, 3)?))
    }

    /// Its number, for the child's arguments.
    pub fn number(&self) -> String {
        self.0.as_raw_fd().to_string()
    }
}

/// Whether a process goes on when we go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// It does.
    Own,
    /// It is killed with the thread that made it.
    Ours,
}

/// Starts a program in a session of its own, with no descriptor of ours but the standard three and
/// `passed`. Those keep their numbers: moving them to fixed ones could hit the descriptor by which
/// the standard library learns that exec failed.
pub fn spawn_detached(command: &mut Command, passed: Vec<Passed>, life: Life) -> io::Result<Child> {
    let parent = getpid();
    let prepare = move || {
        setsid()?;
        if life == Life::Ours {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            if getppid() != Some(parent) {
                return Err(io::ErrorKind::Interrupted.into());
            }
        }
        // Everything above the standard three closes at exec, whoever opened it without that flag.
        // SAFETY: no pointers; only flags of this process's own descriptors change.
        let done = unsafe {
            libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
        };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        for fd in &passed {
            fcntl_setfd(&fd.0, FdFlags::empty())?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe system calls are made, nothing is
    // allocated or freed, no lock is taken.
    unsafe { command.pre_exec(prepare) }.spawn()
}
