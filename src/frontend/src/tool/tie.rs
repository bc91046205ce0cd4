//! That a child ends with who started it.
#![allow(unsafe_code)]

use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};

/// Has the kernel end it when the thread that starts it ends (`PR_SET_PDEATHSIG`): that thread waits for it.
pub(super) fn to_this_thread(command: &mut Command) {
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
