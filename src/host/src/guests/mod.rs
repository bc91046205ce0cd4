//! Guests: the first process of each, under a shim that outlives the daemon.
//!
//! ```text
//!   HostGuests ─ spawn ─► ocivisor-runtime create ─ exec, same pid ─► ocivisor-shim
//!       │                        └─ child: the guest's first process ◄──── its parent still
//!       └──────── shim.sock, shim.json, exit.json ───────────────────────────┘
//! ```
//!
//! The runtime makes the guest and then *becomes* the shim by exec, so that the shim is the parent
//! of the guest's first process and nothing else stays resident. What is known of a guest is on
//! disk (`shim.json`, `exit.json`) and in the kernel; this adapter remembers only what it can do
//! without: a duplicate of each guest's pty master, so that a shim that dies alone takes nothing
//! with it, and the children it has to reap.
//!
//! What can go wrong, and what happens then:
//!
//! * The daemon dies: shims and guests run on, the next daemon asks each shim for its master again.
//! * A shim dies: the guest runs on, its terminal stays open through our duplicate, `adopt_guest`
//!   starts another shim. The kernel tells that one how the guest ended (Linux 6.15), though it is
//!   not its parent.
//! * Both die: the terminal is hung up and lost, the next daemon adopts what runs.
//! * A display dies: nobody sees the console until it is made again; see [`display`].
//! * The runtime dies half-way: its status pipe ends without a word, everything in the VM's control
//!   groups is killed.
//!
//! Absent on purpose: signal handlers. Children are reaped by [`HostGuests::reap`] alone, which
//! asks for its own by pid and so takes no other part's child away.

pub mod bundle;

mod adapter;
mod adopt;
mod client;
mod display;
mod exec;
mod lxcfs;
mod spawn;
mod sys;
mod tell;
#[cfg(test)]
mod tests;
mod words;

pub use exec::{CopyRequest, Direction, ExecRequest, ExecSession};
pub use lxcfs::{Lxcfs, Shown};

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Child;
use std::sync::Mutex;

use ocivisor_core::ids::VmId;
use ocivisor_core::units::Bytes;

use crate::cgroup::HostCgroups;
use crate::labels::Labels;
use crate::layout::Layout;

/// What makes guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// libcontainer, built in.
    Embedded,
    /// runc, installed on the host.
    Runc,
}

impl Engine {
    /// Its name in options.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Runc => "runc",
        }
    }
}

/// What the adapter is made of.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where things are.
    pub layout: Layout,
    /// Where guests and shims are born.
    pub cgroups: HostCgroups,
    /// The program `ocivisor-runtime`.
    pub runtime_bin: PathBuf,
    /// The program `ocivisor-shim`.
    pub shim_bin: PathBuf,
    /// The program `ocivisor-vnc`.
    pub vnc_bin: PathBuf,
    /// Group id that may use the consoles; root alone if none.
    pub console_group: Option<u32>,
    /// Most bytes of each of a guest's two console logs.
    pub log_max: Bytes,
    /// What makes new guests.
    pub engine: Engine,
    /// What shows them their own limits.
    pub lxcfs: Lxcfs,
    /// What labels them.
    pub labels: Labels,
    /// This boot of the host, as the kernel names it: guests of another one are gone.
    pub boot: String,
}

/// Guests of this host.
#[derive(Debug)]
pub struct HostGuests {
    settings: Settings,
    /// A duplicate of each guest's pty master.
    masters: Mutex<BTreeMap<VmId, OwnedFd>>,
    /// Shims that this process made.
    children: Mutex<Vec<Child>>,
}

/// Descriptors that become readable when a process ended; `None` if it did already.
#[derive(Debug)]
pub struct ExitFds {
    /// The guest's first process.
    pub init: Option<OwnedFd>,
    /// Its shim.
    pub shim: Option<OwnedFd>,
}
