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

use super::syscalls::{ALLOWED, DENIED, FAMILIES, FAMILY_PACKET, Group, SYSTEM_ONLY};

/// `AF_UNIX`.
const FAMILY_UNIX: u64 = 1;
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
const EAFNOSUPPORT: u32 = 97;
const CLONE_NEWUSER: u64 = 0x1000_0000;

type Result<T> = std::result::Result<T, OciSpecError>;

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
    rules.extend(socket_rules(kind)?);
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

/// Allowed if the first argument lacks the flag, else EPERM: argument & `value` == `valueTwo`.
///
/// libcontainer 0.7 takes the two the other way round; `ocivisor-runtime` makes up for it.
fn without_flag(name: &str, flag: u64) -> Result<Vec<LinuxSyscall>> {
    let masked = |value: u64, two: u64| {
        let arg = LinuxSeccompArgBuilder::default().index(0_usize).op(Op::ScmpCmpMaskedEq);
        arg.value(value).value_two(two).build()
    };
    Ok(vec![
        rule(&[name], Action::ScmpActAllow, None, vec![masked(flag, 0)?])?,
        rule(&[name], Action::ScmpActErrno, Some(EPERM), vec![masked(flag, flag)?])?,
    ])
}

/// The known families; those above get the errno of a kernel without them, those between ENOSYS.
fn socket_rules(kind: GuestKind) -> Result<Vec<LinuxSyscall>> {
    let arg = |op: Op, family: u64| {
        LinuxSeccompArgBuilder::default().index(0_usize).op(op).value(family).build()
    };
    let allow = |family: u64| -> Result<LinuxSyscall> {
        rule(&["socket"], Action::ScmpActAllow, None, vec![arg(Op::ScmpCmpEq, family)?])
    };
    let refuse = |op: Op, family: u64| -> Result<LinuxSyscall> {
        rule(&["socket"], Action::ScmpActErrno, Some(EAFNOSUPPORT), vec![arg(op, family)?])
    };
    let mut rules =
        FAMILIES.iter().map(|(family, _)| allow(*family)).collect::<Result<Vec<_>>>()?;
    rules.push(match kind {
        GuestKind::System => allow(FAMILY_PACKET)?,
        GuestKind::Application => refuse(Op::ScmpCmpEq, FAMILY_PACKET)?,
    });
    rules.push(refuse(Op::ScmpCmpGt, FAMILY_PACKET)?);
    // A pair of sockets goes through the same creation, module loading included, in any family: only
    // those of AF_UNIX are of use.
    let pair = |op: Op, action: Action, errno: Option<u32>| -> Result<LinuxSyscall> {
        rule(&["socketpair"], action, errno, vec![arg(op, FAMILY_UNIX)?])
    };
    rules.push(pair(Op::ScmpCmpEq, Action::ScmpActAllow, None)?);
    rules.push(pair(Op::ScmpCmpNe, Action::ScmpActErrno, Some(EAFNOSUPPORT))?);
    Ok(rules)
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
