//! Where displays live: `<hierarchy>/<base>/+vnc/<vm>`, in the tracking hierarchy alone.
//!
//! Beside the VM's own groups and not among them, because a reboot of the guest clears those, and who looks at its
//! console shall see it boot. No id of a VM begins with a plus sign. Groups are for finding processes; displays bound
//! their memory and descriptors themselves.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::PathBuf;

use ocivisor_core::error::Result;
use ocivisor_core::ids::VmId;

use super::{HostCgroups, kill};
use crate::fs::io_error;

const PARENT: &str = "+vnc";

impl HostCgroups {
    /// The file to which the display of a VM writes `0` to be found; its group is made if it is not there.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn ensure_display_procs(&self, id: &VmId) -> Result<PathBuf> {
        let group = self.make_path(self.hierarchies.tracking(), [PARENT, id.as_str()])?;
        Ok(group.join("cgroup.procs"))
    }

    /// Kills the display of a VM and waits until it is gone; there is none is fine.
    ///
    /// # Errors
    /// Something could not be killed in time; says which process.
    pub fn drop_display(&self, id: &VmId) -> Result<()> {
        let group = self.display(id);
        kill::thaw_all(&group)?;
        if group.is_dir() {
            kill::kill_all(&group)?;
        }
        kill::remove(&group)
    }

    /// VMs that have a group for their display.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn observe_displays(&self) -> Result<BTreeSet<VmId>> {
        let parent = self.hierarchies.tracking().join(&self.base).join(PARENT);
        let entries = match fs::read_dir(&parent) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
            Err(e) => return Err(io_error("list", &parent, &e)),
        };
        let groups = entries.filter_map(io::Result::ok).filter(|entry| entry.path().is_dir());
        Ok(groups.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
    }

    fn display(&self, id: &VmId) -> PathBuf {
        self.hierarchies.tracking().join(&self.base).join(PARENT).join(id.as_str())
    }
}
