//! Which capabilities a guest has within its own user namespace.
//!
//! All of them are relative to the guest's namespace: none works on anything of the host. They still
//! decide how much of the kernel's code a guest's root can reach, so each is here for a reason.
//! Inheritable and ambient sets are always empty (CVE-2022-24769, CVE-2022-29162).

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities, LinuxCapabilitiesBuilder};
use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::spec::Isolation;

use super::profile::Profile;
use Capability as C;

/// What an application keeps under `strict`: what entrypoints do before they become another user.
pub const STRICT: [Capability; 8] = [
    C::Chown,
    C::DacOverride,
    C::Fowner,
    C::Fsetid,
    C::Kill,
    C::Setgid,
    C::Setuid,
    C::NetBindService,
];

/// What an application gets, each with its use.
///
/// Absent against Docker's list: `MKNOD`, which cannot make devices in a user namespace anyway.
pub const APPLICATION: [(Capability, &str); 13] = [
    (C::Chown, "entrypoints hand their data directory to a service user"),
    (C::DacOverride, "root reads and writes what other users of the guest own"),
    (C::Fowner, "chmod, utime and sticky directories of other users' files"),
    (C::Fsetid, "keep set-id bits when an installer rewrites a file"),
    (C::Kill, "supervisors signal workers of other users"),
    (C::Setgid, "become a service group"),
    (C::Setuid, "become a service user"),
    (C::Setpcap, "supervisors shrink the bounding set of their children"),
    (C::NetBindService, "ports below 1024"),
    (C::NetRaw, "ping; packet sockets are closed by the system call filter"),
    (C::SysChroot, "servers that confine their workers"),
    (C::AuditWrite, "PAM gives up a login if the attempt itself is refused"),
    (C::Setfcap, "package managers store file capabilities"),
];

/// What a system gets on top of an application.
///
/// Absent: `SYS_MODULE`, `SYS_RAWIO`, `MKNOD` (hardware is the host's), `SYS_TIME`, `WAKE_ALARM`,
/// `BLOCK_SUSPEND` (so are clock and power), `MAC_ADMIN`, `MAC_OVERRIDE` (so is policy), `SYSLOG`
/// (the kernel's log shows other guests), `AUDIT_CONTROL`, `AUDIT_READ` (so does the audit log), `BPF`,
/// `PERFMON` (both see across guests), `CHECKPOINT_RESTORE`, `SYS_PACCT`, `LINUX_IMMUTABLE` (without effect in a user
/// namespace). Units with `ConditionCapability=` on these are skipped, not failed.
pub const SYSTEM_EXTRA: [(Capability, &str); 12] = [
    (C::DacReadSearch, "backup tools, systemd-tmpfiles"),
    (C::NetBroadcast, "listed by units of network daemons as ambient"),
    (C::NetAdmin, "addresses, routes, firewall of its own network namespace"),
    (C::IpcLock, "listed by units of databases and key agents as ambient"),
    (C::IpcOwner, "administer System V IPC of its own namespace"),
    (C::SysPtrace, "debuggers, /proc/PID of other users, systemd's own bookkeeping"),
    (C::SysAdmin, "mounts and namespaces of units: PrivateTmp=, ProtectSystem=, cgroups"),
    (C::SysBoot, "reboot and poweroff end its own pid namespace (reboot(2))"),
    (C::SysNice, "Nice= and CPUSchedulingPolicy= of units"),
    (C::SysResource, "listed by units as ambient; cannot lift limits of the host"),
    (C::SysTtyConfig, "getty hangs up its terminal"),
    (C::Lease, "file servers"),
];

/// What container engines inside give on to their containers, and fail if they do not have it.
pub const NESTED_EXTRA: [(Capability, &str); 1] =
    [(C::Mknod, "in the list of engines; makes no device in a user namespace but whiteouts")];

/// All that Linux 6.1 has (linux/capability.h); all of them of the guest's own user namespace.
const ALL: [Capability; 41] = [
    C::AuditControl,
    C::AuditRead,
    C::AuditWrite,
    C::BlockSuspend,
    C::Bpf,
    C::CheckpointRestore,
    C::Chown,
    C::DacOverride,
    C::DacReadSearch,
    C::Fowner,
    C::Fsetid,
    C::IpcLock,
    C::IpcOwner,
    C::Kill,
    C::Lease,
    C::LinuxImmutable,
    C::MacAdmin,
    C::MacOverride,
    C::Mknod,
    C::NetAdmin,
    C::NetBindService,
    C::NetBroadcast,
    C::NetRaw,
    C::Perfmon,
    C::Setfcap,
    C::Setgid,
    C::Setpcap,
    C::Setuid,
    C::SysAdmin,
    C::SysBoot,
    C::SysChroot,
    C::SysModule,
    C::SysNice,
    C::SysPacct,
    C::SysPtrace,
    C::SysRawio,
    C::SysResource,
    C::SysTime,
    C::SysTtyConfig,
    C::Syslog,
    C::WakeAlarm,
];

/// The sets of a guest of that profile.
///
/// # Errors
/// Never for these constants; the builder of the format is fallible.
pub fn sets(profile: Profile) -> Result<LinuxCapabilities> {
    let named =
        |list: &'static [(Capability, &str)]| list.iter().map(|(capability, _)| *capability);
    let extra = if profile.administers() { &SYSTEM_EXTRA[..] } else { &[] };
    let of_kind = named(&APPLICATION).chain(named(extra));
    let all: Capabilities = match profile.isolation {
        Isolation::Strict => STRICT.into_iter().collect(),
        Isolation::Default => of_kind.collect(),
        Isolation::Nested => of_kind.chain(named(&NESTED_EXTRA)).collect(),
        Isolation::Privileged => ALL.into_iter().collect(),
    };
    LinuxCapabilitiesBuilder::default()
        .bounding(all.clone())
        .permitted(all.clone())
        .effective(all)
        .inheritable(Capabilities::new())
        .ambient(Capabilities::new())
        .build()
        .map_err(|e| Error::new(ErrorKind::Host, format!("capability sets: {e}")))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use ocivisor_core::state::GuestKind;

    use super::*;

    fn of(kind: GuestKind, isolation: Isolation) -> LinuxCapabilities {
        sets(Profile::new(kind, isolation).unwrap()).unwrap()
    }

    #[test]
    fn wider_profiles_have_all_that_narrower_ones_have() {
        let kind = GuestKind::Application;
        let all = [Isolation::Strict, Isolation::Default, Isolation::Nested, Isolation::Privileged]
            .map(|isolation| {
                let bounding = of(kind, isolation).bounding().clone().unwrap();
                bounding.iter().map(ToString::to_string).collect::<BTreeSet<_>>()
            });
        assert!(all.is_sorted_by(|a, b| a.is_subset(b) && a.len() < b.len()));
        assert_eq!(all[3].len(), 41);
    }

    #[test]
    fn nothing_that_reaches_past_the_guest_is_granted() {
        for kind in [GuestKind::Application, GuestKind::System] {
            let sets = of(kind, Isolation::Default);
            let bounding = sets.bounding().as_ref().unwrap();
            for denied in [
                C::SysModule,
                C::SysRawio,
                C::SysTime,
                C::MacAdmin,
                C::MacOverride,
                C::Syslog,
                C::WakeAlarm,
                C::Mknod,
                C::Bpf,
                C::Perfmon,
                C::AuditControl,
                C::AuditRead,
                C::CheckpointRestore,
                C::BlockSuspend,
            ] {
                assert!(!bounding.contains(&denied), "{kind:?} has {denied}");
            }
            assert!(sets.inheritable().as_ref().unwrap().is_empty());
            assert!(sets.ambient().as_ref().unwrap().is_empty());
        }
        let application = of(GuestKind::Application, Isolation::Default);
        for denied in [C::SysAdmin, C::SysPtrace, C::NetAdmin, C::SysBoot, C::DacReadSearch] {
            assert!(!application.bounding().as_ref().unwrap().contains(&denied));
        }
    }
}
