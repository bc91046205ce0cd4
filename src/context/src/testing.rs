//! A VM to test with.

use ocivisor_core::spec::{
    Boot, Bridge, Context, IoLimits, Isolation, NicSpec, Placement, Platform, Resources, RootDisk,
    Upkeep, VmSpec,
};
use ocivisor_core::units::{Bytes, CentiCores};

/// A VM with one NIC and nothing told.
pub fn spec() -> VmSpec {
    VmSpec {
        id: "one-7".parse().unwrap(),
        name: "web1".parse().unwrap(),
        hostname: "web1".parse().unwrap(),
        platform: Platform::OpenNebula,
        resources: Resources {
            cpu_share: CentiCores(100),
            vcpus: 1,
            cpu_quota: None,
            memory: Bytes::mib(64),
            swap: Bytes(0),
            pids: 64,
            io_weight: None,
            placement: Placement::default(),
            hugepages: Vec::new(),
        },
        boot: Boot::default(),
        root: RootDisk { path: "/d/disk.0".into(), io: IoLimits::default() },
        disks: Vec::new(),
        nics: vec![NicSpec {
            index: 0,
            host_name: "one-7-0".parse().unwrap(),
            bridge: Bridge::None,
            mac: "02:00:0a:00:00:05".parse().unwrap(),
            mtu: None,
            addresses: vec![
                ("10.0.0.5".parse().unwrap(), 24),
                ("10.0.0.6".parse().unwrap(), 24),
                ("fd00::5".parse().unwrap(), 64),
            ],
            routes: Vec::new(),
            dns: Vec::new(),
            search: Vec::new(),
            inbound: None,
            outbound: None,
        }],
        isolation: Isolation::Default,
        context: Context::default(),
        graphics: None,
        upkeep: Upkeep::default(),
    }
}
