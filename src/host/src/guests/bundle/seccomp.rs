//! The system call filter of the `default` profile.
//!
//! Allowed is what the lists name; what they refuse answers EPERM; everything else ENOSYS.
//!
//! Nested user namespaces are refused to everybody, since they open all of the kernel's privileged
//! code to any user of the guest: `clone` and `unshare` by their flags, and `clone3`, whose flags a
//! filter cannot see, by ENOSYS, upon which libcs use `clone`. A later profile `nested` will lift it.
//!
//! Only the native architecture is known: calls of 32-bit programs end them (SIGSYS). Their
//! multiplexed `socketcall` hides the address family from filters, and the compatibility layer has
//! its own record of holes (CVE-2021-22555).

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompBuilder, LinuxSeccompOperator as Op, LinuxSyscall, LinuxSyscallBuilder,
};
use ocivisor_core::state::GuestKind;

use super::sockets;
use super::syscalls::{ALLOWED, DENIED, Group, SYSTEM_ONLY};

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
const CLONE_NEWUSER: u64 = 0x1000_0000;

pub(super) type Result<T> = std::result::Result<T, OciSpecError>;

/// The filter of a guest of that kind.
///
/// # Errors
/// Never for these constants; the builders of the format are fallible.
pub fn filter(kind: GuestKind) -> Result<LinuxSeccomp> {
    let (extra_allowed, extra_denied): (&[Group], &[Group]) = match kind {
        GuestKind::System => (SYSTEM_ONLY, &[]),
        GuestKind::Application => (&[], SYSTEM_ONLY),
    };
    let mut rules = vec![
        rule(&names(&[ALLOWED, extra_allowed]), Action::ScmpActAllow, None, Vec::new())?,
        rule(&names(&[DENIED, extra_denied]), Action::ScmpActErrno, Some(EPERM), Vec::new())?,
        rule(&["clone3"], Action::ScmpActErrno, Some(ENOSYS), Vec::new())?,
    ];
    for name in ["clone", "unshare"] {
        rules.extend(without_flag(name, CLONE_NEWUSER)?);
    }
    rules.extend(sockets::rules(kind)?);
    LinuxSeccompBuilder::default()
        .default_action(Action::ScmpActErrno)
        .default_errno_ret(ENOSYS)
        .architectures(vec![native()])
        .syscalls(rules)
        .build()
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

/// Allowed if the first argument lacks the flag, else EPERM.
fn without_flag(name: &str, flag: u64) -> Result<Vec<LinuxSyscall>> {
    Ok(vec![
        allow(name, vec![masked(0, flag, 0)?])?,
        refuse(name, EPERM, vec![masked(0, flag, flag)?])?,
    ])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_call_has_one_fate_and_every_group_a_reason() {
        let mut seen = BTreeSet::new();
        for group in [ALLOWED, SYSTEM_ONLY, DENIED].into_iter().flatten() {
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
            let filter = filter(kind).unwrap();
            assert_eq!(filter.default_action(), Action::ScmpActErrno);
            assert_eq!(filter.default_errno_ret(), Some(ENOSYS));
            let fate = |name: &str| {
                let rules = filter.syscalls().as_ref().unwrap();
                let rule = rules.iter().find(|r| r.names().iter().any(|n| n == name));
                rule.map(|r| (r.action(), r.errno_ret()))
            };
            let eperm = Some((Action::ScmpActErrno, Some(EPERM)));
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
                assert_eq!(fate(name), eperm, "{name}");
            }
            let allow = Some((Action::ScmpActAllow, None));
            for name in ["mount", "setns", "reboot", "pivot_root"] {
                let want = if kind == GuestKind::System { allow } else { eperm };
                assert_eq!(fate(name), want, "{name} for {kind:?}");
            }
            assert_eq!(fate("clone3"), Some((Action::ScmpActErrno, Some(ENOSYS))));
        }
    }
}
