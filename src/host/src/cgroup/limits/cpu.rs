//! Processors: share, quota and place.

use ocivisor_core::error::Result;
use ocivisor_core::spec::{Placement, Resources};
use ocivisor_core::units::{CentiCores, NumberSet};

use super::{At, List};
use crate::cgroup::CpuPolicy;
use crate::cgroup::machine::Machine;

/// Period of the hard quota, in microseconds: the kernel's default.
const PERIOD_US: u64 = 100_000;

/// Weight and quota. One core's share is the kernel's default: 100 of 1..10000 in v2, 1024 of
/// 2..262144 in v1.
pub(super) fn limit(list: &mut List<'_>, resources: &Resources) {
    let share = u64::from(resources.cpu_share.0);
    let quota = u64::from(quota(resources, list.ground.policy.cpu).0) * PERIOD_US / 100;
    match list.at("cpu", "cpu") {
        Some(At::V2(root)) => {
            list.add(root, "cpu.weight", &share.clamp(1, 10_000));
            list.add(root, "cpu.max", &format!("{quota} {PERIOD_US}"));
        }
        Some(At::V1(root)) => {
            list.add(root, "cpu.shares", &(share * 1024 / 100).clamp(2, 262_144));
            list.add(root, "cpu.cfs_period_us", &PERIOD_US);
            list.add(root, "cpu.cfs_quota_us", &quota);
        }
        // Hierarchies::of_this_host() made sure of it.
        None => {}
    }
}

fn quota(resources: &Resources, policy: CpuPolicy) -> CentiCores {
    match policy {
        CpuPolicy::Weight => resources.effective_quota(),
        CpuPolicy::Quota => resources.effective_quota().min(resources.cpu_share),
    }
}

/// Processors and memory nodes. In v2 an empty set means all that there ever are; v1 knows no such
/// thing and wants them by number.
pub(super) fn place(list: &mut List<'_>, resources: &Resources, cpus: &NumberSet) -> Result<()> {
    let machine = list.ground.machine;
    let nodes = resources.placement.nodes.as_ref();
    Machine::check("memory node", "nodes", nodes, &machine.nodes)?;
    match list.at("cpuset", "cpuset") {
        Some(At::V2(root)) => {
            let cpus = if *cpus == machine.cpus { String::new() } else { cpus.to_string() };
            let nodes = nodes.map(ToString::to_string).unwrap_or_default();
            list.add(root, "cpuset.cpus", &format!("{cpus}\n"));
            list.add(root, "cpuset.mems", &format!("{nodes}\n"));
        }
        Some(At::V1(root)) => {
            list.add(root, "cpuset.cpus", cpus);
            list.add(root, "cpuset.mems", nodes.unwrap_or(&machine.nodes));
        }
        None if resources.placement == Placement::default() => {}
        None => return Err(list.ground.hierarchies.missing("cpuset", "resources.cpus or nodes")),
    }
    Ok(())
}
