use std::collections::BTreeMap;
use std::path::PathBuf;

use super::super::facts::{CgroupFacts, PROGRAMS, Space, TOOLS};
use super::super::onlookers::Onlookers;
use super::*;

/// A production host: Debian 13 with everything.
fn good() -> Facts {
    let set = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>();
    Facts {
        release: "6.12.41+deb13-amd64".into(),
        machine: "x86_64".into(),
        euid: 0,
        cap_bounding: Some(0x1ff_ffff_ffff),
        values: BTreeMap::from([
            ("/proc/sys/user/max_user_namespaces", "255000".into()),
            ("/proc/sys/user/max_net_namespaces", "255000".into()),
            ("/proc/sys/user/max_mnt_namespaces", "255000".into()),
            ("/proc/sys/kernel/pid_max", "4194304".into()),
            ("/proc/sys/kernel/threads-max", "510000".into()),
            ("/proc/sys/kernel/pty/max", "4096".into()),
            ("/proc/sys/kernel/seccomp/actions_avail", "kill_process errno allow".into()),
            ("/proc/sys/fs/file-max", "9223372036854775807".into()),
        ]),
        support: ["overlay", "ext4", "loop", "veth", "bridge"]
            .into_iter()
            .map(|name| (name, Support::Loadable))
            .collect(),
        cgroups: CgroupFacts {
            v2: Some(set(&["cpu", "cpuset", "io", "memory", "pids"])),
            v1: BTreeSet::new(),
            tracking: false,
            swap: true,
        },
        lowerdir_plus: Probed::Works,
        namespaces: set(&["cgroup", "ipc", "mnt", "net", "pid", "user", "uts", "time"]),
        loop_control: true,
        tools: TOOLS.into_iter().collect(),
        programs: PROGRAMS.into_iter().collect(),
        space: Some(Space {
            path: "/var/lib".into(),
            filesystem: "ext4".into(),
            available: 100 << 30,
        }),
        records: None,
        systemd: true,
        lxcfs: LxcfsFacts::Answers,
        module: ModuleFacts::AppArmor(Some(true)),
        onlookers: Onlookers { udev: Some(true), lvm: Some(true) },
        socket: ("/run/ocivisor/ocivisord.sock".into(), SocketFacts::Accepts),
    }
}

/// Names of the checks that are not ok after `change`, with status and advice.
fn troubles(change: impl FnOnce(&mut Facts)) -> Vec<(&'static str, Status)> {
    let mut facts = good();
    change(&mut facts);
    let checks = decide(&facts);
    for check in &checks {
        assert_eq!(check.status == Status::Ok, check.advice.is_none(), "{check:?}");
    }
    let troubled = checks.into_iter().filter(|c| c.status != Status::Ok);
    troubled.map(|c| (c.name, c.status)).collect()
}

#[test]
fn a_production_host_is_whole() {
    assert_eq!(troubles(|_| ()), []);
}

#[test]
fn each_defect_is_found_and_is_the_only_one() {
    type Change = fn(&mut Facts);
    let cases: [(Change, &str, Status); 23] = [
        (|f| f.release = "5.15.0-generic".into(), "kernel", Status::Fail),
        (|f| f.release = "weird".into(), "kernel", Status::Warn),
        (|f| f.machine = "riscv64".into(), "machine", Status::Fail),
        (|f| _ = f.programs.remove("ocivisor-vnc"), "programs", Status::Warn),
        (|f| _ = f.namespaces.remove("user"), "namespaces", Status::Fail),
        (
            |f| {
                _ = f.values.insert("/proc/sys/user/max_user_namespaces", "0".into());
            },
            "namespace limits",
            Status::Fail,
        ),
        (
            |f| {
                _ = f.values.insert("/proc/sys/user/max_net_namespaces", "100".into());
            },
            "namespace limits",
            Status::Warn,
        ),
        (
            |f| _ = f.values.remove("/proc/sys/kernel/seccomp/actions_avail"),
            "seccomp",
            Status::Fail,
        ),
        (|f| f.cap_bounding = Some(0x1ff_feff_ffff), "privileges", Status::Warn),
        (|f| f.cap_bounding = Some(0xa804_25fb), "privileges", Status::Fail),
        (
            |f| f.cgroups.v2 = Some(BTreeSet::from(["cpu".into(), "memory".into()])),
            "control groups",
            Status::Fail,
        ),
        (|f| f.cgroups.v2 = None, "control groups", Status::Fail),
        (|f| f.cgroups.swap = false, "swap limit", Status::Warn),
        (|f| _ = f.support.insert("veth", Support::Absent), "veth", Status::Fail),
        (|f| _ = f.support.insert("bridge", Support::Unknown), "bridge", Status::Warn),
        (|f| f.loop_control = false, "loop devices", Status::Warn),
        (|f| _ = f.tools.remove("mkfs.ext4"), "mkfs.ext4", Status::Fail),
        (
            |f| _ = f.values.insert("/proc/sys/kernel/pid_max", "32768".into()),
            "kernel.pid_max",
            Status::Warn,
        ),
        (|f| f.lxcfs = LxcfsFacts::Hangs, "lxcfs", Status::Warn),
        (|f| f.lxcfs = LxcfsFacts::Dead("not connected".into()), "lxcfs", Status::Warn),
        (|f| f.module = ModuleFacts::AppArmor(Some(false)), "labels", Status::Warn),
        (|f| f.module = ModuleFacts::Selinux(false), "labels", Status::Warn),
        (|f| f.socket.1 = SocketFacts::Missing, "daemon", Status::Warn),
    ];
    for (change, name, status) in cases {
        assert_eq!(troubles(change), [(name, status)]);
    }
}

#[test]
fn hybrid_groups_work_with_a_warning() {
    let found = troubles(|f| {
        f.cgroups.v2 = None;
        f.cgroups.tracking = true;
        f.cgroups.v1 = ["cpu", "cpuacct", "memory", "pids", "devices", "freezer"]
            .into_iter()
            .map(str::to_owned)
            .collect();
    });
    assert_eq!(found, [("control groups", Status::Warn)]);
}

#[test]
fn state_on_an_overlay_or_on_nfs_is_refused_and_little_space_warned_of() {
    let with = |filesystem: &'static str, available: u64| {
        troubles(move |f| {
            f.space =
                Some(Space { path: PathBuf::from("/"), filesystem: filesystem.into(), available });
        })
    };
    assert_eq!(with("overlay", 1 << 40), [("disk space", Status::Fail)]);
    assert_eq!(with("nfs", 1 << 40), [("disk space", Status::Fail)]);
    assert_eq!(with("xfs", 1 << 30), [("disk space", Status::Warn)]);
    assert_eq!(with("btrfs", 1 << 40), []);
}

#[test]
fn optional_things_are_no_trouble() {
    assert_eq!(
        troubles(|f| {
            f.tools = ["mkfs.ext4", "e2fsck"].into_iter().collect();
            f.lowerdir_plus = Probed::Missing;
            f.lxcfs = LxcfsFacts::Missing;
            f.module = ModuleFacts::None;
            f.values.remove("/proc/sys/kernel/pty/max");
        }),
        []
    );
}
