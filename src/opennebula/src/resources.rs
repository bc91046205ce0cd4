//! Capacity, topology and throttles of a VM to [`Resources`] and [`IoLimits`].
//!
//! | in the template | becomes |
//! |---|---|
//! | `CPU` | share of the processors |
//! | `VCPU` | processors; without it as many as `CPU` needs |
//! | `MEMORY` | memory |
//! | `DISK` of type `swap`, `LXC_SWAP` (MB) | swap, in all at most as much as memory |
//! | `NUMA_NODE/CPUS`, `MEMORY_NODE_ID` | place; what the scheduler chose for `TOPOLOGY` |
//! | `TOPOLOGY/HUGEPAGE_SIZE` (MB) | as much as memory in huge pages of that size |
//! | `READ_BYTES_SEC` and its like of the root disk | bounds on its traffic |
//! | `OCI/IO_WEIGHT` | share of the disks' time |
//!
//! `OCI` and `LXC_SWAP` are the tenant's to edit at any time, so they must not get a guest more than it
//! pays for: swap is bounded by memory, and a weight can only be below everybody's.

use std::collections::BTreeSet;

use ocivisor_core::error::Error;
use ocivisor_core::spec::{Hugepages, IoLimits, Placement, Resources};
use ocivisor_core::units::{Bytes, CentiCores, NumberSet};

use crate::answer::Notes;
use crate::vm::{Disk, DiskKind, DriverVm, Vector};
use crate::{clip, decimal, invalid};

/// What everybody has.
const IO_WEIGHT: u16 = 100;

pub(crate) fn resources(vm: &DriverVm, notes: &mut Notes) -> Result<Resources, Error> {
    let share = centi_cores(vm.cpu.as_deref().ok_or_else(|| invalid("the template has no CPU"))?)?;
    let vcpus = match vm.vcpu.as_deref() {
        None => share.0.div_ceil(100).max(1),
        Some(text) => decimal(text).ok_or_else(|| {
            invalid(format!("VCPU is {:?}, not a number of processors", clip(text)))
        })?,
    };
    let memory = vm.memory.as_deref().ok_or_else(|| invalid("the template has no MEMORY"))?;
    let memory = mib("MEMORY", memory)?;
    Ok(Resources {
        cpu_share: share,
        vcpus,
        cpu_quota: None,
        memory,
        swap: swap(vm, memory, notes)?,
        pids: Resources::DEFAULT_PIDS,
        io_weight: io_weight(vm, notes)?,
        placement: placement(vm, notes)?,
        hugepages: hugepages(vm, memory)?,
    })
}

fn mib(key: &str, text: &str) -> Result<Bytes, Error> {
    let number = decimal(text);
    let number =
        number.ok_or_else(|| invalid(format!("{key} is {:?}, not a number of MB", clip(text))))?;
    Ok(Bytes::mib(number.into()))
}

/// `0.5`, `1`, `1.25`, `0.333333`: hundredths, rounded half up, by digits alone so that no binary
/// fraction changes a value.
fn centi_cores(text: &str) -> Result<CentiCores, Error> {
    let wrong = |rule: &str| invalid(format!("CPU is {:?}, {rule}", clip(text)));
    let not_a_number = || wrong("not a number of cores such as 0.5");
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |part: &str| part.bytes().all(|c| c.is_ascii_digit());
    if whole.is_empty() || fraction.is_empty() || !digits(whole) || !digits(fraction) {
        return Err(not_a_number());
    }
    let digit = |at: usize| u32::from(fraction.as_bytes().get(at).map_or(0, |c| c - b'0'));
    let below = digit(0) * 10 + digit(1);
    let whole: u32 = whole.parse().map_err(|_| not_a_number())?;
    let floor = whole.checked_mul(100).and_then(|cores| cores.checked_add(below));
    let floor = floor.ok_or_else(not_a_number)?;
    if floor == 0 {
        return Err(wrong("it must be at least 0.01"));
    }
    Ok(CentiCores(floor.saturating_add(u32::from(digit(2) >= 5))))
}

/// A swap disk is a promise of swap, not a device: a guest cannot swap by itself, the host does it for
/// its control group, on swap space of its own.
fn swap(vm: &DriverVm, memory: Bytes, notes: &mut Notes) -> Result<Bytes, Error> {
    let disks = vm.disks.iter().filter(|disk| disk.kind == DiskKind::Swap);
    let sizes = disks.filter_map(|disk| Some(("SIZE of a swap DISK", disk.size.as_deref()?)));
    let wishes = sizes.chain(vm.lxc_swap.as_deref().map(|size| ("LXC_SWAP", size)));
    let mut swap = Bytes(0);
    for (key, size) in wishes {
        swap = Bytes(swap.0.saturating_add(mib(key, size)?.0));
    }
    if swap > memory {
        notes.add(format_args!("swap is cut to {memory}, as much as MEMORY"));
    }
    Ok(swap.min(memory))
}

fn io_weight(vm: &DriverVm, notes: &mut Notes) -> Result<Option<u16>, Error> {
    let Some(text) = vm.oci.as_ref().and_then(|oci| oci.get("IO_WEIGHT")) else {
        return Ok(None);
    };
    let weight = decimal(text).filter(|weight| *weight > 0).ok_or_else(|| {
        let text = clip(text);
        invalid(format!("the template's OCI/IO_WEIGHT is {text:?}, not a number from 1 to 100"))
    })?;
    let most = u32::from(IO_WEIGHT);
    if weight > most {
        notes.add("OCI/IO_WEIGHT is cut to 100, which is everybody's");
    }
    Ok(u16::try_from(weight.min(most)).ok().filter(|weight| *weight < IO_WEIGHT))
}

/// Where the scheduler put it: the union of all nodes.
fn placement(vm: &DriverVm, notes: &mut Notes) -> Result<Placement, Error> {
    let union = |keys: &[&str]| -> Result<Option<NumberSet>, Error> {
        let mut all = BTreeSet::new();
        for node in &vm.numa {
            let found = keys.iter().find_map(|key| Some((key, node.get(*key)?)));
            let Some((key, text)) = found else { continue };
            let set: NumberSet = text
                .parse()
                .map_err(|why| invalid(format!("NUMA_NODE/{key} is {:?}: it {why}", clip(text))))?;
            all.extend(set.iter());
        }
        Ok(NumberSet::new(all))
    };
    let cpus = union(&["CPUS"])?;
    let nodes = union(&["MEMORY_NODE_ID", "NODE_ID"])?;
    let policy = vm.topology.get("PIN_POLICY").map_or("NONE", String::as_str);
    if !policy.eq_ignore_ascii_case("none") && cpus.is_none() && nodes.is_none() {
        notes.add(format_args!(
            "TOPOLOGY/PIN_POLICY is {:?}, but the scheduler chose no processors (NUMA_NODE)",
            clip(policy)
        ));
    }
    // Without a policy the nodes are those that a virtual machine would show inside.
    let pinned = cpus.is_some() || !policy.eq_ignore_ascii_case("none");
    Ok(Placement { cpus, nodes: nodes.filter(|_| pinned) })
}

fn hugepages(vm: &DriverVm, memory: Bytes) -> Result<Vec<Hugepages>, Error> {
    let Some(size) = vm.topology.get("HUGEPAGE_SIZE") else {
        return Ok(Vec::new());
    };
    let page = mib("TOPOLOGY/HUGEPAGE_SIZE", size)?;
    if page.0 == 0 || page > memory {
        let what = format!("TOPOLOGY/HUGEPAGE_SIZE is {:?} MB: MEMORY is {memory}", clip(size));
        return Err(invalid(what));
    }
    Ok(vec![Hugepages { page, limit: Bytes(memory.0 - memory.0 % page.0) }])
}

/// Bounds on the traffic of a disk. The kernel's know reading and writing, not both together: a
/// `TOTAL_…` bounds each, so who only reads, or only writes, gets all of it, and who does both at once
/// may get twice as much.
pub(crate) fn io_limits(disk: &Disk, notes: &mut Notes) -> Result<IoLimits, Error> {
    const KNOWN: [&str; 6] = [
        "TOTAL_BYTES_SEC",
        "READ_BYTES_SEC",
        "WRITE_BYTES_SEC",
        "TOTAL_IOPS_SEC",
        "READ_IOPS_SEC",
        "WRITE_IOPS_SEC",
    ];
    let limit = |total: &str, one: &str| -> Result<Option<u64>, Error> {
        let (total, one) = (rate(&disk.throttle, total)?, rate(&disk.throttle, one)?);
        Ok(total.into_iter().chain(one).min())
    };
    let limits = IoLimits {
        read_bytes: limit("TOTAL_BYTES_SEC", "READ_BYTES_SEC")?,
        write_bytes: limit("TOTAL_BYTES_SEC", "WRITE_BYTES_SEC")?,
        read_ops: limit("TOTAL_IOPS_SEC", "READ_IOPS_SEC")?,
        write_ops: limit("TOTAL_IOPS_SEC", "WRITE_IOPS_SEC")?,
    };
    let keys = || disk.throttle.keys().map(String::as_str);
    for total in keys().filter(|key| key.starts_with("TOTAL_") && KNOWN.contains(key)) {
        notes.add(format_args!("disk {}: {total} bounds reading and writing each", disk.id));
    }
    let others: Vec<String> = keys().filter(|key| !KNOWN.contains(key)).map(clip).collect();
    if !others.is_empty() {
        notes.add(format_args!("disk {}: {} has no effect", disk.id, others.join(", ")));
    }
    Ok(limits)
}

/// 0 is no limit, as for libvirt.
fn rate(throttle: &Vector, key: &str) -> Result<Option<u64>, Error> {
    let Some(text) = throttle.get(key) else {
        return Ok(None);
    };
    let digits = text.bytes().all(|c| c.is_ascii_digit());
    let rate: Option<u64> = text.parse().ok().filter(|_| digits);
    let rate = rate.ok_or_else(|| {
        invalid(format!("{key} of a DISK is {:?}, not a number per second", clip(text)))
    })?;
    Ok(Some(rate).filter(|rate| *rate > 0))
}

#[cfg(test)]
mod tests;
