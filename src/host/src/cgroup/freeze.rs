//! Stopping all of a guest's processes for a moment.
//!
//! On cgroup v2 by `cgroup.freeze` (which hybrid hosts have as well, in the unified hierarchy),
//! else by the v1 freezer. A daemon that dies in between leaves the guest frozen: so every daemon
//! thaws its guests when it starts.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ids::VmId;

use super::{HostCgroups, file, kill};

/// How long processes get to stop. One that waits for a dead file server does not.
const DEADLINE: Duration = Duration::from_secs(10);

/// A guest that stands still until this is dropped.
#[derive(Debug)]
pub struct Frozen<'a> {
    cgroups: &'a HostCgroups,
    id: VmId,
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.cgroups.thaw(&self.id);
    }
}

impl HostCgroups {
    /// Stops all processes of the guest; a guest without processes is fine.
    ///
    /// # Errors
    /// Some do not stop in time, or this host cannot; all go on.
    pub fn freeze(&self, id: &VmId) -> Result<Frozen<'_>> {
        let frozen = Frozen { cgroups: self, id: id.clone() };
        let groups: Vec<PathBuf> =
            self.hierarchies.all().map(|root| self.group(root, id, "guest")).collect();
        if let Some(group) = groups.iter().find(|group| group.join("cgroup.freeze").exists()) {
            file::write(&group.join("cgroup.freeze"), "1")?;
            let events = group.join("cgroup.events");
            wait(id, || said(&events).lines().any(|line| line == "frozen 1"))?;
        } else if let Some(group) = groups.iter().find(|g| g.join("freezer.state").exists()) {
            let state = group.join("freezer.state");
            file::write(&state, "FROZEN")?;
            wait(id, || said(&state).trim() == "FROZEN")?;
        } else {
            let what = format!("vm {id}: this host has no freezer for its control group");
            return Err(Error::new(ErrorKind::Unsupported, what));
        }
        Ok(frozen)
    }

    /// Lets all processes of the guest go on; does not stand still is fine. Groups that the guest made
    /// itself stay as it left them.
    pub fn thaw(&self, id: &VmId) {
        self.hierarchies.all().for_each(|root| kill::thaw(&self.group(root, id, "guest")));
    }
}

fn said(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_default()
}

fn wait(id: &VmId, stopped: impl Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + DEADLINE;
    while !stopped() {
        if Instant::now() >= deadline {
            let what = format!("processes of vm {id} do not stop within {} s", DEADLINE.as_secs());
            return Err(Error::new(ErrorKind::Timeout, what)
                .hint("one of them waits for a disk or file server"));
        }
        kill::pause(Duration::from_millis(1));
    }
    Ok(())
}
