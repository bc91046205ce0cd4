//! Shims that died are replaced; what the daemon must remember for that.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ids::VmId;
use ocivisor_core::ports::Adoption;
use ocivisor_core::state::{GuestFacts, ProcessRef};
use ocivisor_shim::client::ClientError;

use super::HostGuests;
use super::adapter::{kill_and_wait, lock};
use super::client::{self, PATIENCE};
use crate::process;

/// What is lost with a shim whose pty master nobody else held.
pub const LOST_CONSOLE: &str =
    "console input and output: the shim ended while ocivisord was not running";
/// What is lost with a shim where the kernel tells only the parent.
pub const LOST_EXIT: &str = "exit status: this kernel tells it to the shim that ended only";

/// A killed shim is gone at once, unless the machine is very busy.
const SHIM_DEATH: Duration = Duration::from_secs(10);

impl HostGuests {
    /// Fetches a duplicate of the guest's pty master from its shim, if we have none. Without one a
    /// later death of the shim loses the console, but nothing is wrong now: failing is reported in
    /// the log only.
    pub fn keep_master(&self, id: &VmId) {
        if lock(&self.masters).contains_key(id) {
            return;
        }
        let run = self.settings.layout.run_vm(id);
        let fetched = client::connect(id, &run)
            .and_then(|mut shim| shim.master().map_err(|e| client::shim_error(id, &e)));
        match fetched {
            Ok(master) => {
                lock(&self.masters).insert(id.clone(), master);
            }
            Err(error) => tracing::warn!(vm = %id, %error, "no duplicate of the console"),
        }
    }

    pub(super) fn adopt(&self, id: &VmId, facts: &GuestFacts) -> Result<Adoption> {
        self.reap();
        if !process::is_alive(facts.init) {
            return Err(Error::new(ErrorKind::GuestExited, format!("guest {id} ended")));
        }
        let run = self.settings.layout.run_vm(id);
        // A file that cannot be read is as good as none: it is written anew below.
        let known = client::read_facts(&run).unwrap_or_default();
        let known = known.filter(|known| client::process(known.init) == facts.init);
        let shim = known.as_ref().map_or(facts.shim, |known| client::process(known.shim));
        if process::is_alive(shim) {
            if self.answers(id, facts.init) {
                self.keep_master(id);
                return Ok(Adoption {
                    facts: GuestFacts { shim, ..facts.clone() },
                    losses: vec![],
                });
            }
            tracing::warn!(vm = %id, pid = shim.pid, "the shim does not answer, replacing it");
            kill_and_wait(shim, SHIM_DEATH)?;
        }
        let start = known.filter(|known| !known.started).map(|known| known.start);
        let master = self.master(id);
        let ready = self.spawn_shim(
            id,
            facts.init,
            start.as_deref().unwrap_or("none"),
            master.as_ref().map(AsFd::as_fd),
        )?;
        let mut losses = Vec::new();
        if master.is_none() {
            losses.push(LOST_CONSOLE.to_owned());
        }
        if !kernel_tells_others() {
            losses.push(LOST_EXIT.to_owned());
        }
        Ok(Adoption { facts: GuestFacts { shim: ready.shim, ..facts.clone() }, losses })
    }

    /// Whether the shim is of that guest and listens; one that is merely busy does.
    fn answers(&self, id: &VmId, init: ProcessRef) -> bool {
        let socket = self.settings.layout.run_vm(id).shim_socket();
        let asked = ocivisor_shim::client::Client::connect(&socket, PATIENCE)
            .map_err(ClientError::Io)
            .and_then(|mut shim| shim.ping());
        match asked {
            Ok(pong) => pong.init == init.pid,
            Err(ClientError::Refused(_)) => true,
            Err(ClientError::Io(_) | ClientError::Protocol(_)) => false,
        }
    }

    fn master(&self, id: &VmId) -> Option<OwnedFd> {
        // No descriptor free: the guest is worth more than its console.
        lock(&self.masters).get(id).and_then(|master| master.try_clone().ok())
    }
}

/// Whether the kernel tells how a process ended to others than its parent: `PIDFD_INFO_EXIT`,
/// Linux 6.15.
fn kernel_tells_others() -> bool {
    let release = rustix::system::uname();
    at_least_6_15(&release.release().to_string_lossy())
}

fn at_least_6_15(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse().ok());
    let version: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    version >= (6, 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases_are_compared_by_number() {
        for (release, tells) in [
            ("6.1.0-18-amd64", false),
            ("6.14.9", false),
            ("6.15", true),
            ("6.18.44-fc", true),
            ("7.0-rc1", true),
            ("5.19", false),
            ("", false),
        ] {
            assert_eq!(at_least_6_15(release), tells, "{release}");
        }
    }
}
