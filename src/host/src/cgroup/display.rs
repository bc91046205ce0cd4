//! Where displays and servers of disks live: `<hierarchy>/<base>/+vnc/<vm>` and `+disks/<vm>`, in the tracking hierarchy
//! alone.
//!
//! Beside the VM's own groups and not among them, because a reboot of the guest clears those: who looks at its console
//! shall see it boot, and disks are written back when the guest is gone. No id of a VM begins with a plus sign. Groups
//! are for finding processes; these bound their memory and descriptors themselves.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ocivisor_core::error::Result;
use ocivisor_core::ids::VmId;

use super::{HostCgroups, kill};
use crate::fs::io_error;

const PARENT: &str = "+vnc";
const DISKS: &str = "+disks";

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
        clear(&self.beside(PARENT, id))
    }

    /// VMs that have a group for their display.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn observe_displays(&self) -> Result<BTreeSet<VmId>> {
        self.observe_beside(PARENT)
    }

    /// The file to which a server of a VM's disk writes `0` to be found; its group is made if it is not there.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn ensure_disk_procs(&self, id: &VmId) -> Result<PathBuf> {
        let group = self.make_path(self.hierarchies.tracking(), [DISKS, id.as_str()])?;
        Ok(group.join("cgroup.procs"))
    }

    /// Asks the servers of a VM's disks to end, kills those that have not after `patience`, and removes their group;
    /// there are none is fine.
    ///
    /// # Errors
    /// Something could not be killed in time; says which process.
    pub fn end_disk_servers(&self, id: &VmId, patience: Duration) -> Result<()> {
        let group = self.beside(DISKS, id);
        if group.is_dir() && !patience.is_zero() {
            kill::ask_all(&group, Instant::now() + patience)?;
        }
        clear(&group)
    }

    /// Whether a VM has a group for the servers of its disks.
    #[must_use]
    pub fn has_disk_servers(&self, id: &VmId) -> bool {
        self.beside(DISKS, id).is_dir()
    }

    /// VMs that have a group for the servers of their disks.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn observe_disk_servers(&self) -> Result<BTreeSet<VmId>> {
        self.observe_beside(DISKS)
    }

    fn observe_beside(&self, parent: &str) -> Result<BTreeSet<VmId>> {
        let parent = self.hierarchies.tracking().join(&self.base).join(parent);
        let entries = match fs::read_dir(&parent) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
            Err(e) => return Err(io_error("list", &parent, &e)),
        };
        let groups = entries.filter_map(io::Result::ok).filter(|entry| entry.path().is_dir());
        Ok(groups.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
    }

    fn beside(&self, parent: &str, id: &VmId) -> PathBuf {
        self.hierarchies.tracking().join(&self.base).join(parent).join(id.as_str())
    }
}

fn clear(group: &Path) -> Result<()> {
    kill::thaw_all(group)?;
    if group.is_dir() {
        kill::kill_all(group)?;
    }
    kill::remove(group)
}
