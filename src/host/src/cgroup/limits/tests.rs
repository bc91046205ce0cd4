//! What is written for a wish on each layout of control groups.

use ocivisor_core::error::ErrorKind;
use ocivisor_core::ports::BlockDevice;
use ocivisor_core::spec::{Hugepages, IoLimits, Placement};
use ocivisor_core::units::{Bytes, CentiCores};

use super::*;
use crate::cgroup::CpuPolicy;

const V1: [&str; 7] = ["blkio", "cpu,cpuacct", "cpuset", "hugetlb", "memory", "pids", "freezer"];
const V2: &str = "cpuset cpu io memory hugetlb pids";

fn v1_mounts(controllers: &[&str]) -> String {
    let line = |c: &&str| format!("40 30 0:31 / /cg/{c} rw - cgroup cgroup rw,{c}\n");
    controllers.iter().map(line).collect()
}

fn v1() -> Hierarchies {
    Hierarchies::parse(&v1_mounts(&V1), |_| String::new())
}

/// As where controllers that v1 has not stay with v2.
fn hybrid() -> Hierarchies {
    let without: Vec<&str> = V1.into_iter().filter(|c| *c != "hugetlb").collect();
    let v2 = "31 30 0:27 / /cg/unified rw - cgroup2 cgroup2 rw\n";
    Hierarchies::parse(&(v2.to_owned() + &v1_mounts(&without)), |_| "hugetlb".into())
}

fn v2(controllers: &str) -> Hierarchies {
    Hierarchies::parse("31 30 0:27 / /cg rw - cgroup2 cgroup2 rw\n", |_| controllers.into())
}

fn set(text: &str) -> NumberSet {
    text.parse().unwrap()
}

fn small() -> Resources {
    Resources {
        cpu_share: CentiCores(50),
        vcpus: 2,
        cpu_quota: None,
        memory: Bytes::mib(64),
        swap: Bytes(0),
        pids: 20,
        io_weight: None,
        placement: Placement::default(),
        hugepages: Vec::new(),
    }
}

fn full() -> Resources {
    Resources {
        cpu_quota: Some(CentiCores(150)),
        swap: Bytes::mib(32),
        io_weight: Some(200),
        placement: Placement { cpus: Some(set("2-3")), nodes: Some(set("1")) },
        hugepages: vec![Hugepages { page: Bytes::mib(2), limit: Bytes::mib(16) }],
        ..small()
    }
}

/// Files that kernels may lack.
const OPTIONAL: [&str; 12] = [
    "memory.swap.max",
    "memory.high",
    "memory.memsw.limit_in_bytes",
    "io.weight",
    "io.bfq.weight",
    "blkio.bfq.weight",
    "cgroup.max.descendants",
    "cgroup.max.depth",
    "hugetlb.2MB.max",
    "hugetlb.2MB.rsvd.max",
    "hugetlb.2MB.limit_in_bytes",
    "hugetlb.1GB.max",
];

/// The writes as lines, `hierarchy/file value`, on a machine where some files are not.
fn lines(
    hierarchies: &Hierarchies,
    resources: &Resources,
    without: &[&str],
) -> Result<Vec<String>> {
    listed(hierarchies, resources, without, CpuPolicy::Weight)
}

fn listed(
    hierarchies: &Hierarchies,
    resources: &Resources,
    without: &[&str],
    cpu: CpuPolicy,
) -> Result<Vec<String>> {
    let machine = Machine {
        cpus: set("0-3"),
        nodes: set("0-1"),
        pages: vec![Bytes::mib(2), Bytes::mib(1024)],
    };
    let has = |_: &Path, file: &str| OPTIONAL.contains(&file) && !without.contains(&file);
    let policy = Policy { cpu, spread_cpus: true };
    let ground = Ground { hierarchies, machine: &machine, policy, has: &has };
    let cpus = resources.placement.cpus.clone().unwrap_or(set("0-3"));
    let writes = writes(&ground, resources, &cpus)?;
    Ok(writes.iter().map(line).collect())
}

fn line(write: &LimitWrite) -> String {
    let may = if write.allow == Allow::Refusal { "?" } else { "" };
    format!("{}/{}{may} {}", write.root.display(), write.file, write.value.escape_debug())
}

#[test]
fn v2_limits_all_in_one_hierarchy() {
    let want = [
        "/cg/memory.max 67108864",
        "/cg/memory.swap.max 33554432",
        "/cg/memory.high max",
        "/cg/hugetlb.2MB.rsvd.max 16777216",
        "/cg/hugetlb.2MB.max 16777216",
        "/cg/hugetlb.1GB.max 0",
        "/cg/pids.max 20",
        "/cg/cpu.weight 50",
        "/cg/cpu.max 150000 100000",
        "/cg/cpuset.cpus 2-3\\n",
        "/cg/cpuset.mems 1\\n",
        "/cg/io.weight 200",
        "/cg/io.bfq.weight 109",
        "/cg/cgroup.max.descendants 4096",
        "/cg/cgroup.max.depth 32",
    ];
    assert_eq!(lines(&v2(V2), &full(), &[]).unwrap(), want);
}

#[test]
fn v1_limits_in_the_hierarchy_of_each_controller() {
    let want = [
        "/cg/memory/memory.limit_in_bytes? 67108864",
        "/cg/memory/memory.memsw.limit_in_bytes 100663296",
        "/cg/memory/memory.limit_in_bytes 67108864",
        "/cg/hugetlb/hugetlb.2MB.limit_in_bytes 16777216",
        "/cg/pids/pids.max 20",
        "/cg/cpu,cpuacct/cpu.shares 512",
        "/cg/cpu,cpuacct/cpu.cfs_period_us 100000",
        "/cg/cpu,cpuacct/cpu.cfs_quota_us 150000",
        "/cg/cpuset/cpuset.cpus 2-3",
        "/cg/cpuset/cpuset.mems 1",
        "/cg/blkio/blkio.bfq.weight 109",
    ];
    assert_eq!(lines(&v1(), &full(), &[]).unwrap(), want);
}

#[test]
fn hybrid_limits_where_the_controller_is() {
    let all = lines(&hybrid(), &full(), &[]).unwrap();
    let some = |part: &str| all.iter().filter(|line| line.contains(part)).collect::<Vec<_>>();
    assert_eq!(
        some("hugetlb"),
        [
            "/cg/unified/hugetlb.2MB.rsvd.max 16777216",
            "/cg/unified/hugetlb.2MB.max 16777216",
            "/cg/unified/hugetlb.1GB.max 0",
        ]
    );
    assert_eq!(some("cpuset.cpus"), ["/cg/cpuset/cpuset.cpus 2-3"]);
    assert_eq!(some("max.depth"), ["/cg/unified/cgroup.max.depth 32"]);
}

/// What a change may have set before is set back.
#[test]
fn no_wish_is_the_kernels_default() {
    let v2 = lines(&v2(V2), &small(), &[]).unwrap();
    for line in [
        "/cg/memory.swap.max 0",
        "/cg/hugetlb.2MB.max 0",
        "/cg/cpuset.cpus \\n",
        "/cg/cpuset.mems \\n",
        "/cg/io.weight 100",
        "/cg/io.bfq.weight 100",
        "/cg/cpu.max 200000 100000",
    ] {
        assert!(v2.iter().any(|l| l == line), "{line}: {v2:#?}");
    }
    let v1 = lines(&v1(), &small(), &[]).unwrap();
    for line in [
        "/cg/memory/memory.memsw.limit_in_bytes 67108864",
        "/cg/cpuset/cpuset.cpus 0-3",
        "/cg/cpuset/cpuset.mems 0-1",
        "/cg/blkio/blkio.bfq.weight 100",
    ] {
        assert!(v1.iter().any(|l| l == line), "{line}: {v1:#?}");
    }
}

#[test]
fn a_share_is_a_quota_where_the_host_wants_it_so() {
    for (share, vcpus, quota, want) in [
        (50, 2, None, "50000"),
        (150, 1, None, "100000"),
        (50, 2, Some(25), "25000"),
        (50, 2, Some(150), "50000"),
    ] {
        let wish = Resources {
            cpu_share: CentiCores(share),
            vcpus,
            cpu_quota: quota.map(CentiCores),
            ..small()
        };
        let all = listed(&v2(V2), &wish, &[], CpuPolicy::Quota).unwrap();
        assert!(all.contains(&format!("/cg/cpu.max {want} 100000")), "{all:#?}");
    }
}

#[test]
fn a_kernel_without_optional_files_limits_the_rest() {
    let all = lines(&v2("cpu memory pids"), &small(), &OPTIONAL).unwrap();
    let want = [
        "/cg/memory.max 67108864",
        "/cg/pids.max 20",
        "/cg/cpu.weight 50",
        "/cg/cpu.max 200000 100000",
    ];
    assert_eq!(all, want);
}

#[test]
fn a_wish_without_its_controller_is_refused_by_name() {
    let wish = |change: fn(&mut Resources)| {
        let mut resources = small();
        change(&mut resources);
        resources
    };
    let cpus = wish(|r| r.placement.cpus = Some(set("1")));
    let nodes = wish(|r| r.placement.nodes = Some(set("1")));
    let weight = wish(|r| r.io_weight = Some(50));
    let pages =
        wish(|r| r.hugepages = vec![Hugepages { page: Bytes::mib(2), limit: Bytes::mib(2) }]);
    let swap = wish(|r| r.swap = Bytes::mib(1));
    let (bare, bare_v1) = (
        v2("cpu memory pids"),
        Hierarchies::parse(&v1_mounts(&["cpu", "memory", "pids"]), |_| String::new()),
    );
    let said = |hierarchies: &Hierarchies, wish: &Resources, without: &[&str]| {
        let error = lines(hierarchies, wish, without).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unsupported, "{error}");
        assert!(error.hint.is_some(), "{error}");
        error.message
    };
    let needs = |wish: &str, controller: &str| {
        format!("{wish} needs the control group controller {controller}, which is not there")
    };
    for hierarchies in [&bare, &bare_v1] {
        for place in [&cpus, &nodes] {
            assert_eq!(said(hierarchies, place, &[]), needs("resources.cpus or nodes", "cpuset"));
        }
        assert_eq!(said(hierarchies, &pages, &[]), needs("resources.hugepages", "hugetlb"));
    }
    assert_eq!(said(&bare, &weight, &[]), needs("resources.io_weight", "io"));
    assert_eq!(said(&bare_v1, &weight, &[]), needs("resources.io_weight", "blkio"));
    // The controller is there, but not what of it is needed.
    let no_weights = "resources.io_weight: this kernel shares no disk's time by weights";
    assert_eq!(said(&v2(V2), &weight, &["io.weight", "io.bfq.weight"]), no_weights);
    assert_eq!(said(&v1(), &weight, &["blkio.bfq.weight"]), no_weights);
    let no_pages = needs("resources.hugepages", "hugetlb");
    assert_eq!(said(&hybrid(), &pages, &["hugetlb.2MB.max"]), no_pages);
    let no_swap = "this kernel does not count the swap of control groups";
    assert_eq!(said(&v2(V2), &swap, &["memory.swap.max"]), no_swap);
    assert_eq!(said(&v1(), &swap, &["memory.memsw.limit_in_bytes"]), no_swap);
}

#[test]
fn what_the_machine_has_not_is_refused_by_name() {
    let node =
        Resources { placement: Placement { cpus: None, nodes: Some(set("0,2")) }, ..small() };
    let error = lines(&v2(V2), &node, &[]).unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert_eq!(error.message, "this host has no memory node 2 for guests");
    let pages = Resources {
        hugepages: vec![Hugepages { page: Bytes::mib(16), limit: Bytes::mib(16) }],
        ..small()
    };
    let error = lines(&v2(V2), &pages, &[]).unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert_eq!(error.message, "this host has no huge pages of 16 MiB");
    assert_eq!(error.hint.as_deref(), Some("it has: 2 MiB, 1 GiB"));
}

#[test]
fn a_disks_traffic_is_bounded_on_its_device() {
    let device = Some(BlockDevice { major: 7, minor: 3 });
    let io = IoLimits {
        read_bytes: Some(1 << 20),
        write_bytes: None,
        read_ops: Some(1 << 40),
        write_ops: Some(10),
    };
    let disk = |hierarchies: &Hierarchies, io: &IoLimits| {
        disk(hierarchies, "root", device, io)
            .map(|writes| writes.iter().map(line).collect::<Vec<_>>())
    };
    assert_eq!(
        disk(&v2(V2), &io).unwrap(),
        ["/cg/io.max 7:3 rbps=1048576 wbps=max riops=1099511627776 wiops=10"]
    );
    for hierarchies in [v1(), hybrid()] {
        assert_eq!(
            disk(&hierarchies, &io).unwrap(),
            [
                "/cg/blkio/blkio.throttle.read_bps_device 7:3 1048576",
                "/cg/blkio/blkio.throttle.write_bps_device 7:3 0",
                "/cg/blkio/blkio.throttle.read_iops_device 7:3 4294967295",
                "/cg/blkio/blkio.throttle.write_iops_device 7:3 10",
            ]
        );
    }
    let none: [&str; 0] = [];
    assert_eq!(disk(&v2("cpu memory pids"), &IoLimits::default()).unwrap(), none);
    let error = disk(&v2("cpu memory pids"), &io).unwrap_err();
    assert_eq!(error.message, "root.io needs the control group controller io, which is not there");
    let error = super::disk(&v2(V2), "root", None, &io).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported);
    assert!(super::disk(&v2(V2), "root", None, &IoLimits::default()).unwrap().is_empty());
}
