//! Mounts, masked and read-only paths, and devices of a guest: constants, but for sizes.
//!
//! `/sys` is read-only although the network namespace is the guest's own: that is what tells udev
//! and its kin that they are in a container. `/proc/sys` is read-only for applications; for systems
//! all of it but `net`, which belongs to the guest's network namespace.
//!
//! A system gets its control groups as cgroup v2 at `/sys/fs/cgroup`, writable below its own group
//! (`ocivisor-runtime` hands that group to the guest's root), on hybrid hosts as well: there it has
//! no controllers, but systemd only needs it to tell its services apart, and from 256 on knows
//! nothing else. An application sees what the host has, read-only, because language runtimes look up
//! their memory limit there.

use std::path::Path;

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType, Mount, MountBuilder,
};
use ocivisor_core::ports::BlockDevice;
use ocivisor_core::spec::Isolation;
use ocivisor_core::state::GuestKind;
use ocivisor_core::units::Bytes;

use super::super::lxcfs::Shown;
use super::profile::Profile;
use crate::storage::ForGuest;

/// Where applications find our small init. In `/dev`, which is ours, not the image's.
pub const INIT: &str = "/dev/.ocivisor-init";

/// The init, read-only. The guest's root cannot write the host's file either way: it belongs to an
/// id that the guest does not have (CVE-2019-5736 needs the host's root).
pub(super) fn init(program: &Path) -> Result<Mount, OciSpecError> {
    let options = ["bind", "ro", "nosuid", "nodev"].map(str::to_owned).to_vec();
    MountBuilder::default().destination(INIT).source(program).typ("bind").options(options).build()
}

/// A file of lxcfs over the kernel's. Read-only: those of /proc are so anyway, and nobody shall switch
/// processors off in /sys.
pub(super) fn shown(shown: &Shown) -> Result<Mount, OciSpecError> {
    let options = ["bind", "ro", "nosuid", "nodev", "noexec"].map(str::to_owned).to_vec();
    MountBuilder::default()
        .destination(&shown.destination)
        .source(&shown.source)
        .typ("bind")
        .options(options)
        .build()
}

/// A data disk: its filesystem, or its device in `/dev`. Where it comes is resolved in the guest's root by the runtime,
/// so that a link of the image leads nowhere else.
pub(super) fn disk(disk: &ForGuest) -> Result<Mount, OciSpecError> {
    let access = if disk.read_only { "ro" } else { "rw" };
    // What may be opened through a node is up to the device rules.
    let kind = if disk.device.is_some() { "noexec" } else { "nodev" };
    let options = ["bind", access, "nosuid", kind].map(str::to_owned).to_vec();
    let mount = MountBuilder::default().destination(&disk.at).source(&disk.source).typ("bind");
    mount.options(options).build()
}

/// What may be done with the devices among the disks. Not `mknod`, which the guest's node needs as little as any.
pub(super) fn disk_rules(disks: &[ForGuest]) -> Result<Vec<LinuxDeviceCgroup>, OciSpecError> {
    let devices = disks.iter().filter_map(|disk| Some((disk.device?, disk.read_only)));
    let rule = |(device, read_only): (BlockDevice, bool)| {
        let rule = LinuxDeviceCgroupBuilder::default().allow(true).typ(LinuxDeviceType::B);
        let access = if read_only { "r" } else { "rw" };
        rule.major(i64::from(device.major)).minor(i64::from(device.minor)).access(access).build()
    };
    devices.map(rule).collect()
}

/// Files that show or steer the host; they read as empty.
pub const MASKED_PATHS: [&str; 13] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/kernel/debug",
];

/// Read-only for everybody.
pub const READONLY_PATHS: [&str; 4] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sysrq-trigger"];

/// Read-only for applications on top.
pub const READONLY_PATHS_APPLICATION: [&str; 1] = ["/proc/sys"];

/// Read-only for systems on top: `/proc/sys` without `net`.
pub const READONLY_PATHS_SYSTEM: [&str; 8] = [
    "/proc/sys/abi",
    "/proc/sys/crypto",
    "/proc/sys/debug",
    "/proc/sys/dev",
    "/proc/sys/fs",
    "/proc/sys/kernel",
    "/proc/sys/user",
    "/proc/sys/vm",
];

/// Character devices that a guest may use, `None` is any minor. Their nodes are made by the runtime;
/// `mknod` of any other is refused by the kernel, so the list is the second line of defence.
pub const DEVICES: [(i64, Option<i64>, &str); 9] = [
    (1, Some(3), "null"),
    (1, Some(5), "zero"),
    (1, Some(7), "full"),
    (1, Some(8), "random"),
    (1, Some(9), "urandom"),
    (5, Some(0), "tty"),
    (5, Some(1), "console"),
    (5, Some(2), "ptmx"),
    (136, None, "pts"),
];

/// What engines inside make file systems and networks with, if the host has them: number, path. What they reach is
/// the guest's own mount and network namespace.
const NESTED_DEVICES: [(i64, i64, &str); 2] = [(10, 229, "/dev/fuse"), (10, 200, "/dev/net/tun")];

/// Whole `/proc` and `/sys` for `nested`. The kernel lets a guest mount new ones for its containers only if it has
/// some that nothing is laid over (mount_too_revealing in fs/namespace.c); those that programs see stay masked.
const WHOLE_PROC: &str = "/dev/.ocivisor/proc";
const WHOLE_SYS: &str = "/dev/.ocivisor/sys";

/// Device rules: nothing, then [`DEVICES`]. Order matters on cgroup v1.
pub(super) fn device_rules(isolation: Isolation) -> Result<Vec<LinuxDeviceCgroup>, OciSpecError> {
    let none = LinuxDeviceCgroupBuilder::default().allow(false).access("rwm").build();
    let some = DEVICES.iter().map(|(major, minor, _)| {
        let rule = LinuxDeviceCgroupBuilder::default()
            .allow(true)
            .typ(LinuxDeviceType::C)
            .major(*major)
            .access("rwm");
        match minor {
            Some(minor) => rule.minor(*minor).build(),
            None => rule.build(),
        }
    });
    let nested = if isolation >= Isolation::Nested { &NESTED_DEVICES[..] } else { &[] };
    let nested = nested.iter().map(|(major, minor, _)| {
        let rule = LinuxDeviceCgroupBuilder::default().allow(true).typ(LinuxDeviceType::C);
        rule.major(*major).minor(*minor).access("rwm").build()
    });
    std::iter::once(none).chain(some).chain(nested).collect()
}

/// Mounts in the order of mounting. `memory` bounds the sizes of memory filesystems, whose pages
/// are charged to the guest anyway: half of it each, as the kernel does by default on a machine.
pub(super) fn mounts(profile: Profile, memory: Bytes) -> Result<Vec<Mount>, OciSpecError> {
    let half = format!("size={}k", memory.0 / 2048);
    let mut all = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"])?,
        // Our own /dev before any device node is touched, so that the image's cannot interfere.
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"])?,
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        )?,
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", &half])?,
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"])?,
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"])?,
    ];
    let cgroup = ["nosuid", "noexec", "nodev", "relatime"];
    if profile.administers() {
        all.push(mount("/sys/fs/cgroup", "cgroup2", "cgroup2", &cgroup)?);
    } else {
        let options = [&cgroup[..], &["ro"]].concat();
        all.push(mount("/sys/fs/cgroup", "cgroup", "cgroup", &options)?);
    }
    if profile.isolation >= Isolation::Nested {
        let hidden = ["nosuid", "noexec", "nodev"];
        all.push(mount(WHOLE_PROC, "proc", "proc", &hidden)?);
        all.push(mount(WHOLE_SYS, "sysfs", "sysfs", &hidden)?);
    }
    match profile.kind {
        GuestKind::Application => {}
        GuestKind::System => {
            all.push(mount("/run", "tmpfs", "tmpfs", &["nosuid", "nodev", "mode=755", &half])?);
            all.push(mount("/tmp", "tmpfs", "tmpfs", &["nosuid", "nodev", "mode=1777", &half])?);
        }
    }
    Ok(all)
}

/// Devices of the host that engines inside want, those that a guest can open.
pub(super) fn nested_devices(is_open: impl Fn(&Path) -> bool) -> Result<Vec<Mount>, OciSpecError> {
    let options = ["bind", "rw", "nosuid", "noexec"].map(str::to_owned).to_vec();
    let there =
        NESTED_DEVICES.iter().map(|(_, _, path)| *path).filter(|path| is_open(Path::new(path)));
    there
        .map(|path| {
            let device = MountBuilder::default().destination(path).source(path).typ("bind");
            device.options(options.clone()).build()
        })
        .collect()
}

fn mount(at: &str, typ: &str, source: &str, options: &[&str]) -> Result<Mount, OciSpecError> {
    MountBuilder::default()
        .destination(at)
        .typ(typ)
        .source(source)
        .options(options.iter().map(ToString::to_string).collect::<Vec<_>>())
        .build()
}
