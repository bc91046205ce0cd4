//! The system call filter of a profile; `privileged` has none.
//!
//! Allowed is what the lists name; what they refuse answers EPERM; everything else ENOSYS.
//!
//! Nested user namespaces are refused to everybody, since they open all of the kernel's privileged
//! code to any user of the guest: `clone` and `unshare` by their flags, and `clone3`, whose flags a
//! filter cannot see, by ENOSYS, upon which libcs use `clone`. `nested` lifts it.
//!
//! Only the native architecture is known: calls of 32-bit programs end them (SIGSYS). Their
//! multiplexed `socketcall` hides the address family from filters, and the compatibility layer has
//! its own record of holes (CVE-2021-22555).

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompBuilder, LinuxSeccompOperator as Op, LinuxSyscall, LinuxSyscallBuilder,
};
use ocivisor_core::spec::Isolation;

use super::profile::Profile;
use super::sockets;
use super::syscalls::{ADMINISTRATION, ALLOWED, DENIED, Group, KEYRINGS, STRICT_DENIED};

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
const CLONE_NEWUSER: u64 = 0x1000_0000;
/// CLONE_NEWTIME, NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET (linux/sched.h).
const ALL_NAMESPACES: [u64; 8] = [
    0x0000_0080,
    0x0002_0000,
    0x0200_0000,
    0x0400_0000,
    0x0800_0000,
    CLONE_NEWUSER,
    0x2000_0000,
    0x4000_0000,
];

/// Type of the requests to loop devices (drivers/block/loop.c): who may open one may rebind it, without any privilege,
/// and a guest may have a disk that is one.
const LOOP: u64 = b'L' as u64;

pub(super) type Result<T> = std::result::Result<T, OciSpecError>;

/// The filter of a guest of that profile, if it has one.
///
/// # Errors
/// Never for these constants; the builders of the format are fallible.
pub fn filter(profile: Profile) -> Result<Option<LinuxSeccomp>> {
    let isolation = profile.isolation;
    if isolation == Isolation::Privileged {
        return Ok(None);
    }
    let mut allowed = names(&[ALLOWED]);
    let mut denied = names(&[DENIED]);
    let administration = names(&[ADMINISTRATION]);
    if profile.administers() { &mut allowed } else { &mut denied }.extend(administration);
    if isolation == Isolation::Strict {
        let strict = names(&[STRICT_DENIED]);
        allowed.retain(|name| !strict.contains(name));
        denied.extend(strict);
    }
    let mut absent = Vec::new();
    match isolation {
        // Engines go on without keyrings only where the kernel has none.
        Isolation::Nested => absent.extend(names(&[KEYRINGS])),
        _ => denied.extend(names(&[KEYRINGS])),
    }
    let mut rules = Vec::new();
    match isolation {
        Isolation::Nested => allowed.extend(["clone", "clone3", "unshare"]),
        Isolation::Strict => {
            absent.push("clone3");
            denied.push("unshare");
            rules.extend(without_flags("clone", &ALL_NAMESPACES)?);
        }
        _ => {
            absent.push("clone3");
            rules.extend(without_flags("clone", &[CLONE_NEWUSER])?);
            rules.extend(without_flags("unshare", &[CLONE_NEWUSER])?);
        }
    }
    allowed.retain(|name| *name != "ioctl");
    rules.extend(requests_but_of(LOOP)?);
    rules.push(rule(&allowed, Action::ScmpActAllow, None, Vec::new())?);
    rules.push(rule(&denied, Action::ScmpActErrno, Some(EPERM), Vec::new())?);
    rules.push(rule(&absent, Action::ScmpActErrno, Some(ENOSYS), Vec::new())?);
    rules.extend(sockets::rules(profile)?);
    let filter = LinuxSeccompBuilder::default()
        .default_action(Action::ScmpActErrno)
        .default_errno_ret(ENOSYS)
        .architectures(vec![native()])
        .syscalls(rules)
        .build()?;
    Ok(Some(filter))
}

const fn native() -> Arch {
    if cfg!(target_arch = "aarch64") { Arch::ScmpArchAarch64 } else { Arch::ScmpArchX86_64 }
}

fn names(lists: &[&[Group]]) -> Vec<&'static str> {
    lists.iter().copied().flatten().flat_map(|group| group.names).copied().collect()
}

fn rule(
    names: &[&str],
    what: Action,
    errno: Option<u32>,
    args: Vec<LinuxSeccompArg>,
) -> Result<LinuxSyscall> {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let mut rule = LinuxSyscallBuilder::default().names(names).action(what);
    if let Some(errno) = errno {
        rule = rule.errno_ret(errno);
    }
    if !args.is_empty() {
        rule = rule.args(args);
    }
    rule.build()
}

/// Allowed when all of these hold.
pub(super) fn allow(name: &str, args: Vec<LinuxSeccompArg>) -> Result<LinuxSyscall> {
    rule(&[name], Action::ScmpActAllow, None, args)
}

/// Refused when all of these hold.
pub(super) fn refuse(name: &str, errno: u32, args: Vec<LinuxSeccompArg>) -> Result<LinuxSyscall> {
    rule(&[name], Action::ScmpActErrno, Some(errno), args)
}

/// A comparison of one argument; a rule may compare each argument once.
pub(super) fn when(index: usize, op: Op, value: u64) -> Result<LinuxSeccompArg> {
    LinuxSeccompArgBuilder::default().index(index).op(op).value(value).build()
}

/// The argument's bits under the mask have this value: argument & `value` == `valueTwo`.
///
/// libcontainer 0.7 takes the two the other way round; `ocivisor-runtime` makes up for it.
pub(super) fn masked(index: usize, mask: u64, value: u64) -> Result<LinuxSeccompArg> {
    let arg = LinuxSeccompArgBuilder::default().index(index).op(Op::ScmpCmpMaskedEq);
    arg.value(mask).value_two(value).build()
}

/// `ioctl` is allowed if the type of the request, the second byte of its number (ioctl(2)), is not this one: if one of its
/// bits differs. Filters cannot say it in one comparison.
fn requests_but_of(kind: u64) -> Result<Vec<LinuxSyscall>> {
    let kind = kind << 8;
    let differs = (8..16).map(|bit| 1_u64 << bit);
    let differs = differs.map(|bit| allow("ioctl", vec![masked(1, bit, !kind & bit)?]));
    let same = refuse("ioctl", EPERM, vec![masked(1, 0xff00, kind)?]);
    differs.chain(std::iter::once(same)).collect()
}

/// Allowed if the first argument lacks all of the flags, else EPERM.
fn without_flags(name: &str, flags: &[u64]) -> Result<Vec<LinuxSyscall>> {
    let none = allow(name, vec![masked(0, flags.iter().sum(), 0)?])?;
    let some = flags.iter().map(|flag| refuse(name, EPERM, vec![masked(0, *flag, *flag)?]));
    std::iter::once(Ok(none)).chain(some).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use ocivisor_core::state::GuestKind;

    use super::*;

    fn of(kind: GuestKind, isolation: Isolation) -> LinuxSeccomp {
        filter(Profile::new(kind, isolation).unwrap()).unwrap().unwrap()
    }

    /// What becomes of a call whatever its arguments.
    fn fate(filter: &LinuxSeccomp, name: &str) -> Option<(Action, Option<u32>)> {
        let rules = filter.syscalls().as_ref().unwrap();
        let rule = rules.iter().find(|r| r.args().is_none() && r.names().iter().any(|n| n == name));
        rule.map(|r| (r.action(), r.errno_ret()))
    }

    const ALLOW: Option<(Action, Option<u32>)> = Some((Action::ScmpActAllow, None));
    const NO: Option<(Action, Option<u32>)> = Some((Action::ScmpActErrno, Some(EPERM)));
    const ABSENT: Option<(Action, Option<u32>)> = Some((Action::ScmpActErrno, Some(ENOSYS)));

    #[test]
    fn strict_takes_away_what_default_allows_and_nothing_is_listed_twice() {
        let default = of(GuestKind::Application, Isolation::Default);
        let strict = of(GuestKind::Application, Isolation::Strict);
        for group in STRICT_DENIED {
            for name in group.names {
                assert_eq!((fate(&default, name), fate(&strict, name)), (ALLOW, NO), "{name}");
            }
        }
        assert_eq!(fate(&strict, "unshare"), NO);
        let clone = strict.syscalls().as_ref().unwrap().iter().filter(|r| r.names() == &["clone"]);
        assert_eq!(clone.count(), 9, "one that allows, eight that refuse");
    }

    #[test]
    fn engines_inside_may_make_namespaces_and_see_a_kernel_without_keyrings() {
        let nested = of(GuestKind::Application, Isolation::Nested);
        for name in ["clone", "clone3", "unshare", "mount", "setns", "pivot_root"] {
            assert_eq!(fate(&nested, name), ALLOW, "{name}");
        }
        for name in ["keyctl", "add_key", "request_key"] {
            assert_eq!(fate(&nested, name), ABSENT, "{name}");
        }
        for name in ["bpf", "init_module", "io_uring_setup", "perf_event_open"] {
            assert_eq!(fate(&nested, name), NO, "{name}");
        }
        let profile = Profile::new(GuestKind::System, Isolation::Privileged).unwrap();
        assert_eq!(filter(profile).unwrap(), None);
    }

    #[test]
    fn every_call_has_one_fate_and_every_group_a_reason() {
        let mut seen = BTreeSet::new();
        for group in [ALLOWED, ADMINISTRATION, DENIED, KEYRINGS].into_iter().flatten() {
            assert!(!group.reason.is_empty());
            for name in group.names {
                assert!(seen.insert(*name), "{name} is listed twice");
            }
        }
        for limited in ["clone", "clone3", "unshare", "socket", "socketpair"] {
            assert!(!seen.contains(limited), "{limited} has rules of its own");
        }
        assert!(!seen.contains("socketcall"));
    }

    #[test]
    fn raw_kernel_interfaces_are_refused_to_both_kinds() {
        for kind in [GuestKind::Application, GuestKind::System] {
            let filter = of(kind, Isolation::Default);
            assert_eq!(filter.default_action(), Action::ScmpActErrno);
            assert_eq!(filter.default_errno_ret(), Some(ENOSYS));
            for name in [
                "kexec_load",
                "init_module",
                "finit_module",
                "bpf",
                "perf_event_open",
                "io_uring_setup",
                "userfaultfd",
                "keyctl",
                "add_key",
                "request_key",
                "open_by_handle_at",
                "settimeofday",
                "swapon",
            ] {
                assert_eq!(fate(&filter, name), NO, "{name}");
            }
            for name in ["mount", "setns", "reboot", "pivot_root"] {
                let want = if kind == GuestKind::System { ALLOW } else { NO };
                assert_eq!(fate(&filter, name), want, "{name} for {kind:?}");
            }
            assert_eq!(fate(&filter, "clone3"), ABSENT);
        }
    }
}
