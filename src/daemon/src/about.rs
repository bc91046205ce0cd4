//! What this host is, and how much runs on it.

use ocivisor_core::state::Record;
use ocivisor_host::cgroup::Kind;
use ocivisor_schema::reply::{CgroupLayoutV1, HostInfo, VmCounts};

use crate::host::Host;

/// Version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The host, with these VMs.
pub fn host(host: &Host, records: &[Record]) -> HostInfo {
    let mut vms = VmCounts::default();
    for record in records {
        vms.add((&record.state).into());
    }
    let uname = rustix::system::uname();
    let info = rustix::system::sysinfo();
    let unit = u64::from(info.mem_unit).max(1);
    HostInfo {
        version: VERSION.into(),
        hostname: uname.nodename().to_string_lossy().into_owned(),
        kernel: uname.release().to_string_lossy().into_owned(),
        boot_id: host.boot().to_owned(),
        cgroup_layout: match host.cgroups.hierarchies().kind() {
            Kind::V2 => CgroupLayoutV1::V2,
            Kind::Hybrid => CgroupLayoutV1::Hybrid,
            Kind::V1 => CgroupLayoutV1::V1,
        },
        cpus: std::thread::available_parallelism().map_or(1, |n| n.get() as u32),
        memory: info.totalram * unit,
        memory_available: info.freeram * unit,
        vms,
        state_dir: host.layout.state.display().to_string(),
        run_dir: host.layout.run.display().to_string(),
    }
}
