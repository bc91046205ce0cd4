//! Limits as file writes. What to write is pure; see cgroup-v2.rst and cgroup-v1/ of the kernel, and
//! `docs/resources.md` for what each wish becomes.
//!
//! A wish is enforced or refused: what this host cannot do is an error that names the controller. The
//! lists hold every file that a wish may have changed before, so that taking a wish back writes the
//! kernel's default. Files that come and go with the kernel's build (`has`) are written where they are.

mod cpu;
mod hugetlb;
mod io;
mod memory;
mod write;

use std::fmt::Display;
use std::path::Path;

use ocivisor_core::error::Result;
use ocivisor_core::spec::Resources;
use ocivisor_core::units::{Bytes, NumberSet};

use super::machine::Machine;
use super::{Hierarchies, Kind, Policy};

pub(super) use io::disk;
pub(super) use memory::{squeezed, too_little_v1};
pub(super) use write::{Allow, LimitWrite, change};

/// Most control groups that a guest may make, and how deep.
const MAX_GROUPS: u32 = 4096;
const MAX_DEPTH: u32 = 32;

/// The writes that bound the memory of a group, and nothing else of it. No swap.
pub(super) fn memory_alone(ground: &Ground<'_>, memory: Bytes) -> Result<Vec<LimitWrite>> {
    let mut list = List { ground, writes: Vec::new() };
    memory::limit(&mut list, memory, Bytes(0))?;
    Ok(list.writes)
}

/// Where a wish is to be enforced.
pub(super) struct Ground<'a> {
    /// What is mounted.
    pub hierarchies: &'a Hierarchies,
    /// What there is.
    pub machine: &'a Machine,
    /// What the host's admin wants.
    pub policy: Policy,
    /// Whether the guest's group in the hierarchy at that root has that file.
    pub has: &'a dyn Fn(&Path, &str) -> bool,
}

/// The writes that make a guest's group obey `resources`, in order: what can be refused comes first.
/// It runs on `cpus`.
///
/// # Errors
/// `Unsupported`: a controller is missing. `NotFound`: the machine has no such memory node or size of
/// page.
pub(super) fn writes(
    ground: &Ground<'_>,
    resources: &Resources,
    cpus: &NumberSet,
) -> Result<Vec<LimitWrite>> {
    let mut list = List { ground, writes: Vec::new() };
    memory::limit(&mut list, resources.memory, resources.swap)?;
    hugetlb::limit(&mut list, resources)?;
    pids(&mut list, resources);
    cpu::limit(&mut list, resources);
    cpu::place(&mut list, resources, cpus)?;
    io::weigh(&mut list, resources)?;
    groups(&mut list);
    Ok(list.writes)
}

/// Which version has a controller, and where it is mounted.
#[derive(Debug, Clone, Copy)]
enum At<'a> {
    V1(&'a Path),
    V2(&'a Path),
}

/// A list in the making.
struct List<'a> {
    ground: &'a Ground<'a>,
    writes: Vec<LimitWrite>,
}

impl<'a> List<'a> {
    fn at(&self, v1: &str, v2: &str) -> Option<At<'a>> {
        let hierarchies = self.ground.hierarchies;
        hierarchies.v1(v1).map(At::V1).or(hierarchies.v2(v2).map(At::V2))
    }

    fn has(&self, root: &Path, file: &str) -> bool {
        (self.ground.has)(root, file)
    }

    fn add(&mut self, root: &Path, file: &str, value: &dyn Display) {
        self.writes.push(LimitWrite::new(root, file, value, Allow::Nothing));
    }

    fn add_if_there(&mut self, root: &Path, file: &str, value: &dyn Display) {
        if self.has(root, file) {
            self.add(root, file, value);
        }
    }
}

fn pids(list: &mut List<'_>, resources: &Resources) {
    if let Some(At::V1(root) | At::V2(root)) = list.at("pids", "pids") {
        list.add(root, "pids.max", &resources.pids);
    }
}

/// Groups that a guest's init makes: enough for any, too few to slow the host's own walks.
fn groups(list: &mut List<'_>) {
    if list.ground.hierarchies.kind() != Kind::V1 {
        let root = list.ground.hierarchies.tracking();
        list.add_if_there(root, "cgroup.max.descendants", &MAX_GROUPS);
        list.add_if_there(root, "cgroup.max.depth", &MAX_DEPTH);
    }
}

#[cfg(test)]
mod tests;
