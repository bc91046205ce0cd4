//! The agent that tells OpenNebula's monitor about a host and its VMs.
//!
//! ```text
//! front-end ─ssh─► ocivisor_control.sh ─► ocivisor one script …: a start
//!                                           │ leaves an agent behind (the CLI: it is the same program), which finds everything out
//!                                           │ once (first.rs), ends an older agent of the same host (seat.rs), and says it to the
//!                                           ▼ start, which prints it
//!        monitor ◄─ UDP, TCP (sender.rs) ─ agent (resident.rs) ─┬─► the host: /proc, /sys (host/)
//!                                                               ├─► ocivisord: list, stats, events (vms.rs)
//!                                                               ├─► disks of VMs (disks.rs), VMs without any (leftovers.rs)
//!                                                               └─► results of commands (spool.rs)
//! ```
//!
//! Texts are made by [`ocivisor_opennebula::monitor`]; here is what must be asked, waited for and sent.
//!
//! What can go wrong, and what then:
//!
//! * **The daemon is away** (an upgrade, a crash). Guests run on, so nothing is told of VMs: no state is better than a wrong
//!   one. The host goes on being told. Once the daemon is back, all states are told.
//! * **The monitor is away.** What was not sent by TCP is sent again; what goes by UDP is out of date soon anyway.
//! * **Something hangs** (a datastore on a dead share). Each look at a datastore has a limited time ([`looks`]), what does not come in it is
//!   left out. The start itself looks at nothing: a process of which one thread hangs cannot end, and its streams stay open.
//! * **A start fails** (no daemon). It ends the older agent only when all else is done, so that one goes on.
//! * **Two starts at once**, a start while an older agent runs: whoever has the seat is the agent, see [`seat`].
//! * **A start is overtaken** by a newer one or by a stop: the newest order counts, see [`ticket`].
//! * **The scripts are deleted and copied again** while the agent runs (each start does that): it needs none of them but
//!   the file of their version, which may be missing for a moment.
//!
//! Deliberately absent: Ruby, a database, a log (who cannot send has nobody to tell), forecasts.

pub mod disks;
pub mod first;
pub mod host;
mod leftovers;
pub mod looks;
pub mod place;
pub mod resident;
pub mod seat;
mod sender;
pub mod spool;
pub mod ticket;
mod vms;

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_opennebula::monitor::Configuration;
use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use crate::host::PciFilter;

/// Most bytes of orders.
const MOST: u64 = 1 << 20;

/// What an agent is to do. It is kept in the seat's file, where the agent reads it and people may.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orders {
    /// Which of all orders about this host's agent they are, see [`ticket`]; 0 if they are older than tickets.
    #[serde(default)]
    pub ticket: u64,
    /// The monitor's configuration, as it came.
    pub configuration: String,
    /// Where the front-end's ssh came from, if that is known.
    pub front_end: Option<String>,
    /// The daemon's socket.
    pub socket: PathBuf,
    /// Where agents keep what they must remember.
    pub state_dir: PathBuf,
    /// What the host calls its hypervisor.
    pub hypervisor: String,
    /// Which PCI devices of the host are told.
    #[serde(default)]
    pub pci: PciFilter,
    /// File of the version of the scripts here.
    pub version_file: PathBuf,
    /// How long a start waits for a daemon that is away, in seconds.
    pub daemon_timeout: u64,
}

impl Orders {
    /// The configuration, read; and where the monitor is.
    ///
    /// # Errors
    /// It cannot be read, or it wants the address of the ssh that there was none.
    pub fn monitor(&self) -> Result<(Configuration, String)> {
        let read = Configuration::read(self.configuration.as_bytes())?;
        let address = read.address.clone().or_else(|| self.front_end.clone()).ok_or_else(|| {
            let what =
                "MONITOR_ADDRESS is auto, and SSH_CLIENT does not say where the front-end is";
            Error::new(ErrorKind::Invalid, what).hint("set MONITOR_ADDRESS in monitord.conf")
        })?;
        Ok((read, address))
    }

    /// As a file, for the agent to inherit.
    ///
    /// # Errors
    /// The host's.
    pub fn into_file(self) -> Result<OwnedFd> {
        let written = || -> std::io::Result<OwnedFd> {
            let file = File::from(memfd_create("orders", MemfdFlags::CLOEXEC)?);
            file.write_all_at(&serde_json::to_vec(&self)?, 0)?;
            Ok(file.into())
        };
        written().map_err(|e| Error::new(ErrorKind::Host, format!("hand on orders: {e}")))
    }

    /// Those that were inherited as that file.
    ///
    /// # Errors
    /// They are none.
    pub fn inherit(file: OwnedFd) -> Result<Self> {
        let read = || -> std::io::Result<Self> {
            let file = File::from(file);
            let mut bytes = vec![0; usize::try_from(file.metadata()?.len().min(MOST)).unwrap_or(0)];
            file.read_exact_at(&mut bytes, 0)?;
            Ok(serde_json::from_slice(&bytes)?)
        };
        read().map_err(|e| Error::new(ErrorKind::Invalid, format!("these are no orders: {e}")))
    }
}

/// Reads a small file; what is more than `most` is left out.
fn read_text(path: &Path, most: u64) -> Result<String> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes));
    read.map_err(|e| failed("read", path, &e))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn failed(verb: &str, path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorKind::Host, format!("{verb} {}: {error}", path.display()))
}

/// Seconds since 1970.
fn now() -> u64 {
    since_1970().as_secs()
}

fn since_1970() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}
