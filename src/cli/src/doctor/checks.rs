//! From facts to judgements. Pure: the same facts give the same report.

use std::collections::BTreeSet;

use serde::Serialize;

use super::facts::{Facts, LXCFS, LxcfsFacts, ModuleFacts, PROGRAMS, Probed, SocketFacts};
use super::modules::Support;
use super::{onlookers, records};

/// Oldest kernel that guests run on: Debian 12's.
pub const MIN_KERNEL: (u32, u32) = (6, 1);
/// First kernel that keeps a process's exit status readable by pidfd after it was reaped.
const PIDFD_EXIT: (u32, u32) = (6, 15);
/// First kernel whose overlay takes lower layers one by one.
const LOWERDIR_PLUS: (u32, u32) = (6, 8);

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Guests run, but something is worse than it could be.
    Warn,
    /// Guests cannot run.
    Fail,
}

impl Status {
    /// As printed.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One judgement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Stable name.
    pub name: &'static str,
    /// How bad it is.
    pub status: Status,
    /// What was found.
    pub detail: String,
    /// What to do; `null` if nothing.
    pub advice: Option<String>,
}

pub(super) fn ok(name: &'static str, detail: impl Into<String>) -> Check {
    Check { name, status: Status::Ok, detail: detail.into(), advice: None }
}

pub(super) fn bad(
    status: Status,
    name: &'static str,
    detail: impl Into<String>,
    advice: impl Into<String>,
) -> Check {
    Check { name, status, detail: detail.into(), advice: Some(advice.into()) }
}

/// All judgements, in the order in which they are shown.
#[must_use]
pub fn decide(facts: &Facts) -> Vec<Check> {
    let mut checks = vec![
        kernel(facts),
        machine(facts),
        overlay_layers(facts),
        exit_status(facts),
        namespaces(facts),
        user_namespaces(facts),
        seccomp(facts),
        privileges(facts),
        cgroups(facts),
        swap_limit(facts),
        optional_limits(facts),
    ];
    checks.extend(["overlay", "ext4", "loop", "veth", "bridge"].map(|name| feature(facts, name)));
    checks.push(loop_control(facts));
    checks.push(space(facts));
    checks.push(programs(facts));
    checks.extend(tools(facts));
    checks.push(lxcfs(facts));
    checks.push(module(facts));
    checks.extend(onlookers::checks(facts.onlookers));
    checks.extend(limits(facts));
    checks.extend(bridge_filter(facts));
    checks.extend(facts.records.as_ref().map(records::check));
    checks.push(socket(facts));
    checks
}

fn kernel(facts: &Facts) -> Check {
    let release = &facts.release;
    match facts.version() {
        Some(version) if version >= MIN_KERNEL => ok("kernel", release),
        Some(_) => bad(
            Status::Fail,
            "kernel",
            format!("{release}: too old"),
            "install a kernel of version 6.1 or later",
        ),
        None => bad(
            Status::Warn,
            "kernel",
            format!("{release}: no version in it"),
            "make sure that it is 6.1 or later",
        ),
    }
}

fn machine(facts: &Facts) -> Check {
    match facts.machine.as_str() {
        "x86_64" | "aarch64" => ok("machine", &facts.machine),
        other => bad(Status::Fail, "machine", other, "use a host with x86-64 or arm64 processors"),
    }
}

fn overlay_layers(facts: &Facts) -> Check {
    const NAME: &str = "overlay layers";
    let newer = facts.version().is_some_and(|v| v >= LOWERDIR_PLUS);
    match facts.lowerdir_plus {
        Probed::Works => ok(NAME, "up to 500, one by one"),
        Probed::NotTried if newer => ok(NAME, "up to 500, one by one (by version, not tried)"),
        Probed::Missing | Probed::NotTried => {
            ok(NAME, "joined in one option, as this kernel wants it")
        }
    }
}

fn exit_status(facts: &Facts) -> Check {
    const NAME: &str = "exit status";
    if facts.version().is_some_and(|v| v >= PIDFD_EXIT) {
        ok(NAME, "known even if a shim is lost")
    } else {
        ok(NAME, "kept by the shim; unknown if a shim is lost (6.15 mends it)")
    }
}

fn namespaces(facts: &Facts) -> Check {
    const WANTED: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];
    let missing: Vec<&str> =
        WANTED.into_iter().filter(|name| !facts.namespaces.contains(*name)).collect();
    if missing.is_empty() {
        return ok("namespaces", WANTED.join(" "));
    }
    bad(
        Status::Fail,
        "namespaces",
        format!("missing: {}", missing.join(" ")),
        "run a kernel built with all namespaces (CONFIG_NAMESPACES, CONFIG_USER_NS)",
    )
}

fn user_namespaces(facts: &Facts) -> Check {
    const NAME: &str = "namespace limits";
    const FILES: [&str; 3] = [
        "/proc/sys/user/max_user_namespaces",
        "/proc/sys/user/max_net_namespaces",
        "/proc/sys/user/max_mnt_namespaces",
    ];
    for path in FILES {
        let key = path.trim_start_matches("/proc/sys/").replace('/', ".");
        match facts.number(path) {
            Some(0) => {
                return bad(
                    Status::Fail,
                    NAME,
                    format!("{key} is 0"),
                    format!("sysctl -w {key}=65536, and the same in /etc/sysctl.d"),
                );
            }
            Some(n) if n < 4096 => {
                return bad(
                    Status::Warn,
                    NAME,
                    format!("{key} is {n}, about as many guests"),
                    format!("sysctl -w {key}=65536, and the same in /etc/sysctl.d"),
                );
            }
            Some(_) | None => {}
        }
    }
    ok(NAME, "enough")
}

fn seccomp(facts: &Facts) -> Check {
    let actions = facts.values.get("/proc/sys/kernel/seccomp/actions_avail");
    if actions.is_some_and(|a| a.split_whitespace().any(|word| word == "errno")) {
        ok("seccomp", "filters")
    } else {
        bad(Status::Fail, "seccomp", "no filters", "run a kernel built with CONFIG_SECCOMP_FILTER")
    }
}

/// Capabilities of capability(7) by number, whose absence from the bounding set hurts.
fn privileges(facts: &Facts) -> Check {
    const NEEDED: [(u32, &str); 3] = [(12, "net_admin"), (21, "sys_admin"), (7, "setuid")];
    const RESOURCE: u32 = 24;
    let Some(set) = facts.cap_bounding else {
        return ok("privileges", "not told");
    };
    let has = |bit: u32| set >> bit & 1 == 1;
    let missing: Vec<&str> =
        NEEDED.into_iter().filter(|(bit, _)| !has(*bit)).map(|(_, name)| name).collect();
    if !missing.is_empty() {
        return bad(
            Status::Fail,
            "privileges",
            format!("root here lacks {}", missing.join(" ")),
            "run the daemon on the host itself, not in a container",
        );
    }
    if !has(RESOURCE) {
        return bad(
            Status::Warn,
            "privileges",
            "root here lacks sys_resource",
            "nothing if it is meant so; limits cannot be raised and disks cannot grow online",
        );
    }
    ok("privileges", "whole")
}

fn cgroups(facts: &Facts) -> Check {
    const NAME: &str = "control groups";
    let groups = &facts.cgroups;
    let missing = |have: &BTreeSet<String>, want: &[&str]| -> Vec<String> {
        let absent = want.iter().filter(|name| !have.contains(**name));
        absent.map(|name| (*name).to_owned()).collect()
    };
    if let Some(have) = &groups.v2 {
        let lacks = missing(have, &["cpu", "memory", "pids"]);
        if lacks.is_empty() {
            let list: Vec<&str> = have.iter().map(String::as_str).collect();
            return ok(NAME, format!("v2: {}", list.join(" ")));
        }
        return bad(
            Status::Fail,
            NAME,
            format!("v2 without {}", lacks.join(" ")),
            "remove cgroup_disable= from the kernel's command line; in a container, delegate them",
        );
    }
    let kind = if groups.tracking { "hybrid" } else { "v1" };
    let lacks = missing(&groups.v1, &["cpu", "memory", "pids", "devices", "freezer"]);
    if !lacks.is_empty() {
        return bad(
            Status::Fail,
            NAME,
            format!("{kind} without {}", lacks.join(" ")),
            "boot with systemd.unified_cgroup_hierarchy=1 (cgroup v2)",
        );
    }
    bad(
        Status::Warn,
        NAME,
        format!("{kind}: works, but new guest systems want v2"),
        "boot with systemd.unified_cgroup_hierarchy=1 (cgroup v2)",
    )
}

fn swap_limit(facts: &Facts) -> Check {
    if facts.cgroups.swap {
        ok("swap limit", "enforced")
    } else {
        bad(
            Status::Warn,
            "swap limit",
            "cannot be enforced",
            "boot with swapaccount=1 if this host has swap",
        )
    }
}

/// Limits that a VM may wish for and most do not.
fn optional_limits(facts: &Facts) -> Check {
    const NAME: &str = "other limits";
    let has = |v1: &str, v2: &str| {
        let unified = facts.cgroups.v2.as_ref().is_some_and(|all| all.contains(v2));
        unified || facts.cgroups.v1.contains(v1)
    };
    let wanted = [("cpuset", "cpuset", "place and number of processors"), ("blkio", "io", "disks")];
    let lacks = wanted.into_iter().filter(|(v1, v2, _)| !has(v1, v2));
    let lacks: Vec<String> =
        lacks.map(|(v1, v2, what)| format!("{what} (controller {v1} or {v2})")).collect();
    match lacks.as_slice() {
        [] => ok(NAME, "place and number of processors, disks"),
        lacks => ok(NAME, format!("none on {}", lacks.join(", "))),
    }
}

fn lxcfs(facts: &Facts) -> Check {
    const NAME: &str = "lxcfs";
    const AGAIN: &str = "systemctl restart lxcfs; guests that show it see their own limits again \
                         after another boot";
    match &facts.lxcfs {
        LxcfsFacts::Answers => ok(NAME, format!("answers at {LXCFS}")),
        LxcfsFacts::Missing => {
            ok(NAME, "not mounted (optional: guests see their own memory and load in /proc)")
        }
        LxcfsFacts::Dead(why) => bad(Status::Warn, NAME, format!("{LXCFS}: {why}"), AGAIN),
        LxcfsFacts::Hangs => bad(Status::Warn, NAME, format!("{LXCFS} does not answer"), AGAIN),
    }
}

fn module(facts: &Facts) -> Check {
    const NAME: &str = "labels";
    match facts.module {
        ModuleFacts::None => ok(NAME, "neither AppArmor nor SELinux is on (optional)"),
        ModuleFacts::AppArmor(Some(true)) => ok(NAME, "AppArmor, profile ocivisor-guest"),
        ModuleFacts::AppArmor(None) => ok(NAME, "AppArmor; only root sees its profiles"),
        ModuleFacts::AppArmor(Some(false)) => bad(
            Status::Warn,
            NAME,
            "AppArmor is on, and its profile ocivisor-guest is not loaded: guests run without",
            "copy src/daemon/apparmor/ocivisor-guest to /etc/apparmor.d, then apparmor_parser -r it",
        ),
        ModuleFacts::Selinux(true) => ok(NAME, "SELinux, container_t"),
        ModuleFacts::Selinux(false) => bad(
            Status::Warn,
            NAME,
            "SELinux is on, and its policy has no container_t: guests run without labels",
            "install container-selinux",
        ),
    }
}

fn feature(facts: &Facts, name: &'static str) -> Check {
    match facts.support.get(name).copied().unwrap_or(Support::Unknown) {
        Support::Present => ok(name, "in the kernel"),
        Support::Loadable => ok(name, "module, loaded when needed"),
        Support::Unknown => bad(
            Status::Warn,
            name,
            "this kernel does not tell",
            format!("make sure that the kernel has {name}"),
        ),
        Support::Absent => bad(
            Status::Fail,
            name,
            "not in this kernel",
            format!("install the kernel's extra modules, or a kernel with {name}"),
        ),
    }
}

fn loop_control(facts: &Facts) -> Check {
    let there = facts.support.get("loop");
    match (facts.loop_control, there) {
        (true, _) => ok("loop devices", "/dev/loop-control"),
        (false, Some(Support::Loadable)) => bad(
            Status::Warn,
            "loop devices",
            "the module is not loaded",
            "echo loop > /etc/modules-load.d/ocivisor.conf, then modprobe loop",
        ),
        (false, _) => bad(
            Status::Fail,
            "loop devices",
            "no /dev/loop-control",
            "modprobe loop; in a container, pass /dev/loop-control and /dev/loop* in",
        ),
    }
}

fn space(facts: &Facts) -> Check {
    const LITTLE: u64 = 2 << 30;
    let Some(space) = &facts.space else {
        return bad(
            Status::Warn,
            "disk space",
            "not told",
            "make sure that the state directory's filesystem has room",
        );
    };
    let place = space.path.display();
    let gib = space.available >> 30;
    let what = format!("{gib} GiB free on {} at {place}", space.filesystem);
    match space.filesystem.as_str() {
        "nfs" => bad(
            Status::Fail,
            "disk space",
            what,
            "keep the state directory on a local filesystem: ext4, xfs or btrfs",
        ),
        "overlay" => bad(
            Status::Fail,
            "disk space",
            what,
            "layers cannot lie on an overlay: mount ext4, xfs or btrfs at the state directory",
        ),
        _ if space.available < LITTLE => bad(
            Status::Warn,
            "disk space",
            what,
            "make room, or move the state directory (state_dir in ocivisor.toml)",
        ),
        _ => ok("disk space", what),
    }
}

fn programs(facts: &Facts) -> Check {
    const NAME: &str = "programs";
    let missing: Vec<&str> =
        PROGRAMS.into_iter().filter(|name| !facts.programs.contains(name)).collect();
    if missing.is_empty() {
        return ok(NAME, "all here");
    }
    bad(
        Status::Warn,
        NAME,
        format!("not found: {}", missing.join(" ")),
        "reinstall ocivisor, or nothing if libexec_dir in ocivisor.toml says where they are",
    )
}

fn tools(facts: &Facts) -> Vec<Check> {
    let found = |tool: &str| facts.tools.contains(tool);
    let need = |tool: &'static str, package: &str| {
        if found(tool) {
            return ok(tool, "installed");
        }
        let advice = format!("apt install {package}");
        bad(Status::Fail, tool, "not installed", advice)
    };
    let may = |tool: &'static str, what_for: &str| {
        if found(tool) {
            ok(tool, "installed")
        } else {
            ok(tool, format!("not installed (optional: {what_for})"))
        }
    };
    vec![
        need("mkfs.ext4", "e2fsprogs"),
        need("e2fsck", "e2fsprogs"),
        may("criu", "suspend and live migration"),
        may("qemu-img", "qcow2 images"),
        may("qemu-storage-daemon", "qcow2 data disks"),
        may("ovs-vsctl", "Open vSwitch bridges"),
    ]
}

fn limits(facts: &Facts) -> Vec<Check> {
    const LIMITS: [(&str, &str, u64, &str); 6] = [
        ("kernel.pid_max", "/proc/sys/kernel/pid_max", 131_072, "4194304"),
        ("kernel.threads-max", "/proc/sys/kernel/threads-max", 65_536, "1000000"),
        ("kernel.pty.max", "/proc/sys/kernel/pty/max", 2_048, "16384"),
        ("fs.file-max", "/proc/sys/fs/file-max", 1_000_000, "9223372036854775807"),
        ("fs.inotify.max_user_instances", "/proc/sys/fs/inotify/max_user_instances", 128, "1024"),
        (
            "net.ipv4.neigh.default.gc_thresh3",
            "/proc/sys/net/ipv4/neigh/default/gc_thresh3",
            1_024,
            "8192",
        ),
    ];
    let judge = |(key, path, least, good): (&'static str, &str, u64, &str)| {
        let value = facts.number(path)?;
        Some(if value >= least {
            ok(key, value.to_string())
        } else {
            bad(
                Status::Warn,
                key,
                format!("{value}: little for many guests"),
                format!("sysctl -w {key}={good}, and the same in /etc/sysctl.d"),
            )
        })
    };
    LIMITS.into_iter().filter_map(judge).collect()
}

fn bridge_filter(facts: &Facts) -> Option<Check> {
    const NAME: &str = "bridge filter";
    match facts.number("/proc/sys/net/bridge/bridge-nf-call-iptables")? {
        0 => Some(ok(NAME, "bridged packets skip iptables")),
        _ => Some(bad(
            Status::Warn,
            NAME,
            "bridged packets pass iptables",
            "if guests cannot reach each other, look at the FORWARD chain (Docker sets it to DROP)",
        )),
    }
}

fn socket(facts: &Facts) -> Check {
    let (path, found) = &facts.socket;
    let path = path.display();
    match found {
        SocketFacts::Accepts => ok("daemon", format!("listens on {path}")),
        SocketFacts::Missing => bad(
            Status::Warn,
            "daemon",
            format!("no socket {path}"),
            if facts.systemd {
                "systemctl start ocivisord, or name its socket by --socket"
            } else {
                "start ocivisord, or name its socket by --socket"
            },
        ),
        SocketFacts::Dead => bad(
            Status::Warn,
            "daemon",
            format!("nobody listens on {path}"),
            "start ocivisord and look at its log",
        ),
        SocketFacts::Denied => bad(
            Status::Warn,
            "daemon",
            format!("you may not use {path}"),
            "become a member of the group ocivisor, or use sudo",
        ),
        SocketFacts::Odd(why) => bad(
            Status::Warn,
            "daemon",
            format!("connect to {path}: {why}"),
            "look at the log of ocivisord",
        ),
    }
}

#[cfg(test)]
#[path = "checks_tests.rs"]
mod tests;
