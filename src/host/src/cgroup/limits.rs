//! Limits as file writes. What to write is pure; see cgroup-v2.rst and cgroup-v1/ of the kernel.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::spec::Resources;

use super::{Hierarchies, Kind};
use crate::fs::io_error;

/// Period of the hard quota, in microseconds: the kernel's default.
const PERIOD_US: u64 = 100_000;

/// Most control groups that a guest may make, and how deep.
const MAX_GROUPS: u32 = 4096;
const MAX_DEPTH: u32 = 32;

/// One file of a guest's group, and what goes into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LimitWrite {
    /// The hierarchy.
    pub root: PathBuf,
    /// The file in the group.
    pub file: &'static str,
    /// Its new content.
    pub value: String,
    /// What is fine.
    pub allow: Allow,
}

/// What may happen to a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Allow {
    /// It works.
    Nothing,
    /// The kernel has no such file (no swap accounting).
    Absence,
    /// It is refused, because another limit has to be moved first; it comes again.
    Refusal,
}

impl LimitWrite {
    /// Writes it in `group`.
    pub fn apply(&self, group: &Path) -> Result<()> {
        let path = group.join(self.file);
        match self.allow {
            Allow::Absence if !path.exists() => Ok(()),
            Allow::Refusal => {
                // A later write in the list is the one that counts.
                let _ = write(&path, &self.value);
                Ok(())
            }
            Allow::Nothing | Allow::Absence => write(&path, &self.value),
        }
    }
}

/// Writes a control file. The kernel wants one write(2), and refuses what it cannot do.
pub(super) fn write(path: &Path, value: &str) -> Result<()> {
    let wrote =
        OpenOptions::new().write(true).open(path).and_then(|mut f| f.write_all(value.as_bytes()));
    wrote.map_err(|e| {
        if e.raw_os_error() == Some(libc::EBUSY) {
            let what = format!("set {} to {value}: the guest uses more", path.display());
            return Error::new(ErrorKind::Exhausted, what);
        }
        io_error(&format!("write {value} to"), path, &e)
    })
}

/// The writes that make a guest's group obey `resources`, in order.
///
/// v1 has memory plus swap as one limit that may never be below memory alone: to lower both,
/// memory goes first; to raise both, memory+swap does. So memory is written twice, and the first
/// one may fail.
pub(super) fn writes(hierarchies: &Hierarchies, resources: &Resources) -> Vec<LimitWrite> {
    let mut writes = Vec::new();
    let mut add = |root: Option<&Path>, file: &'static str, value: String, allow: Allow| {
        if let Some(root) = root {
            writes.push(LimitWrite { root: root.to_owned(), file, value, allow });
        }
    };
    let centi = u64::from(resources.cpu_share.0);
    let quota = u64::from(resources.effective_quota().0) * PERIOD_US / 100;

    // One core's share is the kernel's default: 100 of 1..10000 in v2, 1024 of 2..262144 in v1.
    add(hierarchies.v2("cpu"), "cpu.weight", centi.clamp(1, 10_000).to_string(), Allow::Nothing);
    add(hierarchies.v2("cpu"), "cpu.max", format!("{quota} {PERIOD_US}"), Allow::Nothing);
    let shares = (centi * 1024 / 100).clamp(2, 262_144);
    add(hierarchies.v1("cpu"), "cpu.shares", shares.to_string(), Allow::Nothing);
    add(hierarchies.v1("cpu"), "cpu.cfs_period_us", PERIOD_US.to_string(), Allow::Nothing);
    add(hierarchies.v1("cpu"), "cpu.cfs_quota_us", quota.to_string(), Allow::Nothing);

    let memory = resources.memory.0;
    let total = memory.saturating_add(resources.swap.0);
    add(hierarchies.v2("memory"), "memory.max", memory.to_string(), Allow::Nothing);
    add(hierarchies.v2("memory"), "memory.swap.max", resources.swap.0.to_string(), Allow::Absence);
    add(hierarchies.v1("memory"), "memory.limit_in_bytes", memory.to_string(), Allow::Refusal);
    add(hierarchies.v1("memory"), "memory.memsw.limit_in_bytes", total.to_string(), Allow::Absence);
    add(hierarchies.v1("memory"), "memory.limit_in_bytes", memory.to_string(), Allow::Nothing);

    // Groups that a guest's init makes: enough for any, too few to slow the host's own walks.
    if hierarchies.kind() != Kind::V1 {
        let root = Some(hierarchies.tracking());
        add(root, "cgroup.max.descendants", MAX_GROUPS.to_string(), Allow::Absence);
        add(root, "cgroup.max.depth", MAX_DEPTH.to_string(), Allow::Absence);
    }

    let pids = resources.pids.to_string();
    add(hierarchies.v2("pids"), "pids.max", pids.clone(), Allow::Nothing);
    add(hierarchies.v1("pids"), "pids.max", pids, Allow::Nothing);
    writes
}
