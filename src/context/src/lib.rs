//! Tells a guest about itself: host name, name servers, users, keys, scripts, written into its files.
//!
//! ```text
//!   Telling (a VmSpec) ─► plan, agent ─► wishes ─┐
//!   context disk ─► iso ───────┘                 ├─► tell: state ─► take back ─► write ─► state
//!   state of earlier tellings ───────────────────┘         all below one directory descriptor
//! ```
//!
//! This runs in a process of `ocivisor-runtime` that has joined the guest's namespaces and control groups, as the
//! guest's own root: what an image or a tenant makes of the guest's files can hurt that guest alone. Even so no path
//! leaves the root directory ([`root`]), nothing waits for the guest but the lock of its passwd file, and everything
//! that is read has a bound. The process has a deadline, and is killed with its VM.
//!
//! What was told once and is told no more is taken back ([`state`]): our block leaves the file, a file of ours gives
//! way to what was there, unless the guest changed it since. Told the same twice, nothing is written.
//!
//! An image that brings an agent of its platform (one-context, cloud-init) is handed the platform's data, and what
//! the agent does is left to it ([`agent`]).
//!
//! Absent on purpose: programs of the guest are not run here. Addresses and routes are set from outside, before.

pub mod accounts;
pub mod agent;
pub mod block;
pub mod content;
pub mod hostkeys;
pub mod identity;
pub mod iso;
pub mod password;
pub mod plan;
pub mod root;
pub mod state;
mod tell;
pub mod telling;
#[cfg(test)]
mod testing;
pub mod texts;
pub mod users;
pub mod wish;

pub use root::Root;
pub use tell::{Told, tell};
pub use telling::{Moment, Runner, Telling, patience};

use ocivisor_core::error::{Error, ErrorKind};

fn disk_error(e: &std::io::Error) -> Error {
    Error::new(ErrorKind::Host, format!("read the context disk: {e}"))
}
