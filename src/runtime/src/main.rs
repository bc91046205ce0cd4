//! Makes a guest and becomes its shim; enters guests.
//!
//! ```text
//! ocivisor-runtime create …   single-threaded, own session, subreaper
//!   │  fork ──► creator: OCI runtime (libcontainer within, or runc as a child)
//!   │             └─► guest's first process, waiting for its start
//!   │  ◄── pty master by the console socket, result by a pipe; the creator ends
//!   └─ execv ocivisor-shim in this very process: children and descriptors stay
//!
//! ocivisor-runtime exec …     one session in a running guest
//!   │  fork ──► joins control groups and all namespaces
//!   │             └─ clone(CLONE_PARENT) ──► drops to the guest's profile, execve
//!   └─ serves one client on a socket until the session ends
//!
//! ocivisor-runtime tell …     writes what a guest is told about itself into its files
//!   │  fork ──► joins control groups, user and mount namespace, and does it
//!   └─ keeps the time
//! ```
//!
//! Everything that could confuse an OCI runtime or leak into a guest is settled here, once: open
//! descriptors, environment, supplementary groups, signal dispositions, umask, OOM score. No threads,
//! no async: libcontainer forks with raw system calls, and joining namespaces is per thread.
//!
//! What goes wrong is told as one line on the status descriptor, `error KIND MESSAGE`, with a kind of
//! `ocivisor_core::error::ErrorKind`; nothing that was made is left. In the good case `create` says
//! nothing itself: the shim it becomes says `ready`.
//!
//! Absent on purpose: `start`, `kill`, `delete` (the shim and the control groups adapter do these
//! without any OCI runtime), libcontainer's own `exec` (it leaves the process in the host's user
//! namespace), and hooks.

mod args;
mod cgroup;
mod console;
mod create;
mod embedded;
mod exec;
mod external;
mod guest;
mod hygiene;
mod label;
mod runtime;
mod status;
mod sys;
mod tell;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    let command = words.next();
    let rest: Vec<_> = words.collect();
    match command.as_ref().and_then(|word| word.to_str()) {
        Some("create") => create::main(&rest),
        Some("exec") => exec::main(&rest),
        Some("tell") => tell::main(&rest),
        _ => {
            status::complain("usage: ocivisor-runtime create|exec|tell --option value …");
            ExitCode::from(2)
        }
    }
}
