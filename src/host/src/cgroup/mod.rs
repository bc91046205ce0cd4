//! Control groups: limits on a guest, and the certainty that nothing of a VM survives.
//!
//! ```text
//!   <hierarchy>/<base>/<vm>/shim    the shim and, before it, the runtime: tracked, not limited
//!                          /guest   the guest: limited in every v1 controller's hierarchy, or v2's
//!                       /+vnc/<vm>  what shows its console, over reboots: see [`display`]
//!                     /+disks/<vm>  what serves its disks, its memory limited
//! ```
//!
//! Every process of a VM is born inside `<vm>` of the *tracking* hierarchy (cgroup2 where it is
//! mounted, also on a hybrid host; else a v1 one), so `drop_cgroup` finds all of them, also those
//! that a crash orphaned before anybody wrote down their pid.
//!
//! What can go wrong: a v1 cpuset takes no task before its cpus and memory nodes are set; a frozen
//! v1 group does not die before it is thawed; a group can be busy for a moment after its last
//! process was reaped. Each is handled where it happens. Systemd is not asked: the base is a top-level
//! group that it leaves alone, also over daemon-reload and daemon-reexec. It cannot be below the
//! daemon's own unit: cgroup v2 limits no groups beside processes, and systemd could not start the
//! daemon again in a unit whose groups hold guests.

mod counters;
mod display;
mod file;
mod freeze;
mod hierarchy;
mod kill;
mod limits;
mod machine;
mod oom;
mod place;
mod ready;
mod spread;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ids::VmId;
use ocivisor_core::ports::{BlockDevice, Cgroups};
use ocivisor_core::spec::{IoLimits, Resources};
use ocivisor_core::units::NumberSet;

pub use counters::{Counters, GroupStats, Pressure, Stall, StallTime};
pub use freeze::Frozen;
pub use hierarchy::{Hierarchies, Kind};
pub use oom::{OomWatch, Tells};

use self::limits::Ground;
use self::machine::Machine;
use crate::fs::io_error;
use crate::layout::Layout;

/// What this host's admin wants of limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// How much of the processors a guest gets.
    pub cpu: CpuPolicy,
    /// Whether a guest runs on, and sees, as many processors as it has VCPUs; else on all.
    pub spread_cpus: bool,
}

/// What a guest's share of the processors bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CpuPolicy {
    /// What it gets when others want them as well; what nobody wants it may have, up to its VCPUs.
    Weight,
    /// What it gets at any time.
    Quota,
}

impl Default for Policy {
    fn default() -> Self {
        Self { cpu: CpuPolicy::Weight, spread_cpus: true }
    }
}

/// Control groups of this host.
#[derive(Debug, Clone)]
pub struct HostCgroups {
    base: String,
    policy: Policy,
    hierarchies: Hierarchies,
    /// The daemon's own group in the tracking hierarchy, where it can be found.
    own: Option<PathBuf>,
}

impl HostCgroups {
    /// Looks at what is mounted.
    ///
    /// # Errors
    /// `Unsupported`: neither cgroup2 nor the v1 controllers cpu, memory and pids.
    pub fn new(layout: &Layout) -> Result<Self> {
        let base = layout.cgroup_base.trim_matches('/').to_owned();
        if base.is_empty() || base.split('/').any(|part| matches!(part, "" | "." | "..")) {
            let what = format!("cgroup base {:?} is not a relative path", layout.cgroup_base);
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        let hierarchies = Hierarchies::of_this_host()?;
        let own = ready::own_group(hierarchies.tracking());
        Ok(Self { base, policy: Policy::default(), hierarchies, own })
    }

    /// The same with another policy.
    #[must_use]
    pub fn with_policy(self, policy: Policy) -> Self {
        Self { policy, ..self }
    }

    /// What is mounted.
    #[must_use]
    pub fn hierarchies(&self) -> &Hierarchies {
        &self.hierarchies
    }

    /// The guest's group as an OCI runtime wants it (`linux.cgroupsPath`): absolute within each
    /// hierarchy.
    #[must_use]
    pub fn guest_path(&self, id: &VmId) -> String {
        format!("/{}/{id}/guest", self.base)
    }

    /// Files to which a process writes `0` to be born, and found, among the VM's own.
    #[must_use]
    pub fn shim_procs(&self, id: &VmId) -> Vec<PathBuf> {
        vec![self.group(self.hierarchies.tracking(), id, "shim").join("cgroup.procs")]
    }

    /// Files to which a process writes `0` to be limited, and counted, as the guest is.
    #[must_use]
    pub fn guest_procs(&self, id: &VmId) -> Vec<PathBuf> {
        let groups = self.of_guest().map(|root| self.group(root, id, "guest"));
        groups.map(|group| group.join("cgroup.procs")).collect()
    }

    /// Files to which a helper of the daemon writes `0` to be limited in memory: one group for all of
    /// that name, made if it is not there.
    ///
    /// # Errors
    /// It cannot be made, or the limit is refused.
    pub fn helper_procs(&self, name: &str, resources: &Resources) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        // No id of a VM begins so.
        let leaf = format!("+{name}");
        for root in self.of_guest() {
            let mut group = root.to_owned();
            for part in self.base.split('/').chain([leaf.as_str()]) {
                self.hierarchies.let_children_be_limited(&group)?;
                group.push(part);
                match fs::create_dir(&group) {
                    Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                        return Err(io_error("make control group", &group, &e));
                    }
                    _ => self.hierarchies.inherit_cpuset(&group)?,
                }
            }
            files.push(group.join("cgroup.procs"));
        }
        let machine = Machine::look(&self.hierarchies, &self.base)?;
        let group = |root: &Path| root.join(&self.base).join(&leaf);
        for write in self.writes(&machine, group, resources, &machine.cpus)? {
            write.apply(&group(&write.root))?;
        }
        Ok(files)
    }

    /// Hierarchies in which the guest has a group: to be limited, and to be found. On a hybrid host
    /// an init of the guest orders its own processes in the latter.
    fn of_guest(&self) -> impl Iterator<Item = &Path> {
        let tracking = self.hierarchies.tracking();
        let only_tracking = !self.hierarchies.limiting().any(|root| root == tracking);
        self.hierarchies.limiting().chain(only_tracking.then_some(tracking))
    }

    fn vm(&self, root: &Path, id: &VmId) -> PathBuf {
        root.join(&self.base).join(id.as_str())
    }

    fn group(&self, root: &Path, id: &VmId, leaf: &str) -> PathBuf {
        self.vm(root, id).join(leaf)
    }

    fn make(&self, id: &VmId, resources: &Resources) -> Result<()> {
        let tracking = self.hierarchies.tracking();
        self.make_group(tracking, id, "shim")?;
        for root in self.of_guest() {
            self.make_group(root, id, "guest")?;
        }
        self.limits(id, resources)?.iter().try_for_each(|write| {
            let group = self.group(&write.root, id, "guest");
            write.apply(&group)
        })
    }

    /// What makes the guest's groups obey.
    fn limits(&self, id: &VmId, resources: &Resources) -> Result<Vec<limits::LimitWrite>> {
        let machine = Machine::look(&self.hierarchies, &self.base)?;
        let cpus = self.place(id, resources, &machine)?;
        self.writes(&machine, |root| self.group(root, id, "guest"), resources, &cpus)
    }

    fn writes(
        &self,
        machine: &Machine,
        group: impl Fn(&Path) -> PathBuf,
        resources: &Resources,
        cpus: &NumberSet,
    ) -> Result<Vec<limits::LimitWrite>> {
        let has = |root: &Path, file: &str| group(root).join(file).exists();
        let (hierarchies, policy) = (&self.hierarchies, self.policy);
        limits::writes(&Ground { hierarchies, machine, policy, has: &has }, resources, cpus)
    }

    fn make_group(&self, root: &Path, id: &VmId, leaf: &str) -> Result<()> {
        self.make_path(root, [id.as_str(), leaf]).map(drop)
    }

    /// The group below the base and its parents, each able to have children with limits.
    fn make_path(&self, root: &Path, below: [&str; 2]) -> Result<PathBuf> {
        let mut path = root.to_owned();
        for part in self.base.split('/').chain(below) {
            self.hierarchies.let_children_be_limited(&path)?;
            path.push(part);
            match fs::create_dir(&path) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(io_error("make control group", &path, &e)),
            }
            self.hierarchies.inherit_cpuset(&path)?;
        }
        Ok(path)
    }
}

impl Cgroups for HostCgroups {
    fn ensure_cgroup(&self, id: &VmId, resources: &Resources) -> Result<()> {
        self.make(id, resources).inspect_err(|_| {
            // The first error is the one to report; drop_cgroup runs again in any undo.
            let _ = self.drop_cgroup(id);
        })?;
        if let Some(own) = &self.own {
            ready::make_ready_for_moves(own);
        }
        Ok(())
    }

    fn limit_disk(
        &self,
        id: &VmId,
        disk: &str,
        device: Option<BlockDevice>,
        io: &IoLimits,
    ) -> Result<()> {
        let writes = limits::disk(&self.hierarchies, disk, device, io)?;
        writes.iter().try_for_each(|write| write.apply(&self.group(&write.root, id, "guest")))
    }

    fn change_limits(&self, id: &VmId, resources: &Resources) -> Result<()> {
        let writes = self.limits(id, resources)?;
        let group = |root: &Path| self.group(root, id, "guest");
        let change = || limits::change(&writes, group);
        if let Some(root) = self.hierarchies.v2("memory") {
            return limits::squeezed(&group(root), resources.memory, change);
        }
        change().map_err(|error| match self.hierarchies.v1("memory") {
            Some(root) if error.kind == ErrorKind::Exhausted => {
                limits::too_little_v1(&group(root), resources.memory).unwrap_or(error)
            }
            _ => error,
        })
    }

    fn drop_cgroup(&self, id: &VmId) -> Result<()> {
        let groups: Vec<PathBuf> = self.hierarchies.all().map(|root| self.vm(root, id)).collect();
        // First of all: a process that is frozen in one hierarchy cannot be killed by another.
        groups.iter().try_for_each(|group| kill::thaw_all(group))?;
        for group in groups.iter().filter(|group| group.is_dir()) {
            kill::kill_all(group)?;
        }
        groups.iter().try_for_each(|group| kill::remove(group))
    }

    fn observe_cgroups(&self) -> Result<BTreeSet<VmId>> {
        let mut ids = BTreeSet::new();
        for root in self.hierarchies.all() {
            let base = root.join(&self.base);
            let entries = match fs::read_dir(&base) {
                Ok(entries) => entries,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(io_error("list", &base, &e)),
            };
            let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
            // Files of the base group itself are no VM ids: their names hold a dot and are files.
            ids.extend(names.filter(|n| base.join(n).is_dir()).filter_map(|n| n.parse().ok()));
        }
        Ok(ids)
    }
}

#[cfg(test)]
mod tests;
