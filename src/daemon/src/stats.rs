//! What guests use, for the API.

use ocivisor_core::error::Result;
use ocivisor_core::state::Record;
use ocivisor_host::cgroup;
use ocivisor_host::stats::{GuestStats, Sampler, Sources, Subject};
use ocivisor_schema::Text;
use ocivisor_schema::stats::{
    CpuStats, DiskStats, MemoryStats, NicStats, PidStats, PressureStats, StallStats, StallTime,
    VmStats,
};
use rustix::process::{Resource, getrlimit};

use crate::host::Host;

/// A sampler that leaves half of the files that this process may open to others.
pub fn sampler() -> Sampler {
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX) / 2;
    Sampler::new(usize::try_from(files).unwrap_or(usize::MAX))
}

/// All guests that run.
///
/// # Errors
/// The kernel does not tell.
pub fn all(host: &Host, records: &[Record]) -> Result<Vec<VmStats>> {
    let live: Vec<(&Record, Subject)> =
        records.iter().filter_map(|record| Some((record, subject(record)?))).collect();
    let subjects: Vec<Subject> = live.iter().map(|(_, subject)| subject.clone()).collect();
    let seen = host.sampler.all(sources(host), &subjects)?;
    let mut live = live.into_iter();
    // Both are in the order of the records; guests that ended meanwhile were left out.
    let shown = seen.iter().filter_map(|guest| {
        let (record, _) = live.find(|(record, _)| *record.id() == guest.id)?;
        Some(shown(record, guest))
    });
    Ok(shown.collect())
}

/// One guest; `None` if it does not run.
///
/// # Errors
/// The kernel does not tell.
pub fn one(host: &Host, record: &Record) -> Result<Option<VmStats>> {
    let Some(subject) = subject(record) else { return Ok(None) };
    let seen = host.sampler.one(sources(host), subject)?;
    Ok(seen.map(|guest| shown(record, &guest)))
}

fn sources(host: &Host) -> Sources<'_> {
    Sources { cgroups: &host.cgroups, storage: &host.storage, network: &host.network }
}

fn subject(record: &Record) -> Option<Subject> {
    let guest = record.guest.as_ref().filter(|_| record.state.is_live())?;
    let links = record.spec.nics.iter().map(|nic| nic.host_name.to_string()).collect();
    Some(Subject { id: record.id().clone(), init: guest.init, links })
}

fn shown(record: &Record, guest: &GuestStats) -> VmStats {
    let (limits, group) = (&record.spec.resources, &guest.group);
    let nics = record.spec.nics.iter().zip(&guest.links).filter_map(|(nic, link)| {
        let link = (*link)?;
        Some(NicStats {
            index: nic.index,
            rx_bytes: link.rx_bytes,
            rx_packets: link.rx_packets,
            tx_bytes: link.tx_bytes,
            tx_packets: link.tx_packets,
        })
    });
    VmStats {
        id: Text(guest.id.clone()),
        cpu: CpuStats {
            usage_us: micros(group.cpu_usage),
            vcpus: limits.vcpus,
            periods: group.cpu_periods,
            throttled_periods: group.cpu_throttled_periods,
            throttled_us: micros(group.cpu_throttled),
        },
        memory: MemoryStats {
            used: group.memory.0,
            peak: group.memory_peak.map(|peak| peak.0),
            limit: limits.memory.0,
            swap: group.swap.map(|swap| swap.0),
            swap_limit: limits.swap.0,
            oom_kills: group.oom_kills,
        },
        pids: PidStats { current: group.pids, limit: limits.pids },
        disk: guest.disk.map(|disk| DiskStats {
            read_bytes: disk.read_bytes,
            read_ops: disk.read_ops,
            write_bytes: disk.write_bytes,
            write_ops: disk.write_ops,
        }),
        nics: nics.collect(),
        pressure: group.pressure.map(|pressure| PressureStats {
            cpu: stall(pressure.cpu),
            memory: stall(pressure.memory),
            io: stall(pressure.io),
        }),
    }
}

fn stall(stall: cgroup::Stall) -> StallStats {
    let time = |time: cgroup::StallTime| StallTime {
        avg10: time.avg10,
        avg60: time.avg60,
        avg300: time.avg300,
        total_us: micros(time.total),
    };
    StallStats { some: time(stall.some), full: time(stall.full) }
}

fn micros(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
