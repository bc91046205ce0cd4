//! Where displays and servers of disks live: `<hierarchy>/<base>/+vnc/<vm>` and `+disks/<vm>`, in the tracking hierarchy;
//! servers of disks in that of memory as well.
//!
//! Beside the VM's own groups and not among them, because a reboot of the guest clears those: who looks at its console
//! shall see it boot, and disks are written back when the guest is gone. No id of a VM begins with a plus sign. Groups
//! are for finding processes, which bound what each of them uses themselves; as a VM may have many servers of disks, their
//! memory is bounded together.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ocivisor_core::error::Result;
use ocivisor_core::ids::VmId;
use ocivisor_core::units::Bytes;

use super::limits::{self, Ground};
use super::machine::Machine;
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
        let group = self.beside(self.hierarchies.tracking(), PARENT, id);
        end(&group)?;
        kill::remove(&group)
    }

    /// VMs that have a group for their display.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn observe_displays(&self) -> Result<BTreeSet<VmId>> {
        self.observe_beside(PARENT)
    }

    /// The files to which a server of a VM's disk writes `0` to be found, and to have no more than this much memory with the
    /// VM's other servers; its groups are made if they are not there.
    ///
    /// # Errors
    /// They cannot be made, or the limit is refused.
    pub fn ensure_disk_procs(&self, id: &VmId, memory: Bytes) -> Result<Vec<PathBuf>> {
        let below = [DISKS, id.as_str()];
        // The one that the others are known by: it is there first and goes last.
        let mut groups = vec![self.make_path(self.hierarchies.tracking(), below)?];
        if let Some(root) = self.apart_for_memory() {
            groups.push(self.make_path(root, below)?);
        }
        let machine = Machine::look(&self.hierarchies, &self.base)?;
        let group = |root: &Path| self.beside(root, DISKS, id);
        let has = |root: &Path, file: &str| group(root).join(file).exists();
        let (hierarchies, policy) = (&self.hierarchies, self.policy);
        let ground = Ground { hierarchies, machine: &machine, policy, has: &has };
        for write in limits::memory_alone(&ground, memory)? {
            write.apply(&group(&write.root))?;
        }
        Ok(groups.iter().map(|group| group.join("cgroup.procs")).collect())
    }

    /// The hierarchy of memory, where it is not the tracking one.
    fn apart_for_memory(&self) -> Option<&Path> {
        self.hierarchies.v1("memory").filter(|root| *root != self.hierarchies.tracking())
    }

    /// Asks the servers of a VM's disks to end, kills those that have not after `patience`, and removes their group;
    /// there are none is fine.
    ///
    /// # Errors
    /// Something could not be killed in time; says which process.
    pub fn end_disk_servers(&self, id: &VmId, patience: Duration) -> Result<()> {
        let group = self.beside(self.hierarchies.tracking(), DISKS, id);
        if group.is_dir() && !patience.is_zero() {
            kill::ask_all(&group, Instant::now() + patience)?;
        }
        end(&group)?;
        if let Some(root) = self.apart_for_memory() {
            kill::remove(&self.beside(root, DISKS, id))?;
        }
        kill::remove(&group)
    }

    /// Whether a VM has a group for the servers of its disks.
    #[must_use]
    pub fn has_disk_servers(&self, id: &VmId) -> bool {
        self.beside(self.hierarchies.tracking(), DISKS, id).is_dir()
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

    fn beside(&self, root: &Path, parent: &str, id: &VmId) -> PathBuf {
        root.join(&self.base).join(parent).join(id.as_str())
    }
}

fn end(group: &Path) -> Result<()> {
    kill::thaw_all(group)?;
    if group.is_dir() { kill::kill_all(group) } else { Ok(()) }
}
