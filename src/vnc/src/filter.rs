//! The system calls that are left.
//!
//! Each is one that the process makes, or that the C library and Rust make for memory or a panic. What is not on the list
//! kills the process: there is no code of ours that could go on sensibly, and a refusal would let an intruder try the
//! next. The server's list is also the keeper's, because the server is a copy of it; what the keeper has besides is
//! connecting, its record, and what making and confining a server takes.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

/// A filter that cannot be made; a defect of this program.
#[derive(Debug, thiserror::Error)]
#[error("cannot make the filter of system calls: {0}")]
pub struct Bad(#[from] seccompiler::BackendError);

/// For the process that faces the network.
const SERVER: &[c_long] = &[
    // Clients, the console, the journal.
    libc::SYS_accept4,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_close,
    libc::SYS_ppoll,
    libc::SYS_getrandom,
    // Making a stream not block.
    libc::SYS_ioctl,
    libc::SYS_fcntl,
    // Memory.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    // Time, where the vDSO has none.
    libc::SYS_clock_gettime,
    libc::SYS_restart_syscall,
    // The end, a good one and that of a panic.
    libc::SYS_futex,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigreturn,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_exit_group,
];

/// For the keeper besides.
const KEEPER: &[c_long] = &[
    // The shim; the record.
    libc::SYS_connect,
    libc::SYS_openat,
    libc::SYS_unlinkat,
    libc::SYS_fstat,
    // A server: its birth, its way into confinement, its end.
    libc::SYS_socketpair,
    libc::SYS_close_range,
    libc::SYS_clone,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_getppid,
    libc::SYS_prctl,
    libc::SYS_setgroups,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_prlimit64,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_restrict_self,
    libc::SYS_seccomp,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_wait4,
    libc::SYS_waitid,
];

/// The filter of the process that faces the network.
///
/// # Errors
/// See [`Bad`].
pub fn server() -> Result<BpfProgram, Bad> {
    compile(plain(SERVER)?)
}

/// The filter of the keeper.
///
/// # Errors
/// See [`Bad`].
pub fn keeper() -> Result<BpfProgram, Bad> {
    let mut rules = plain(SERVER)?;
    rules.extend(KEEPER.iter().map(|call| (*call, vec![])));
    // To the shim, and nowhere else.
    let unix = equal(0, u64::from(libc::AF_UNIX.cast_unsigned()))?;
    rules.insert(libc::SYS_socket, vec![SeccompRule::new(vec![unix])?]);
    // Nothing is opened to be written.
    let writes = u64::from((libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC).cast_unsigned());
    let reads = |flags| masked(flags, writes, u64::from(libc::O_RDONLY.cast_unsigned()));
    rules.insert(libc::SYS_openat, vec![SeccompRule::new(vec![reads(2)?])?]);
    #[cfg(target_arch = "x86_64")]
    rules.insert(libc::SYS_open, vec![SeccompRule::new(vec![reads(1)?])?]);
    compile(rules)
}

/// All of these, and memory, but none that can be executed.
fn plain(calls: &[c_long]) -> Result<Rules, Bad> {
    let mut rules: Rules = calls.iter().map(|call| (*call, vec![])).collect();
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        let data = masked(2, u64::from(libc::PROT_EXEC.cast_unsigned()), 0)?;
        rules.insert(call, vec![SeccompRule::new(vec![data])?]);
    }
    // Whether a stream blocks, and nothing that a terminal or a device would do.
    let nonblocking = equal(1, libc::FIONBIO)?;
    rules.insert(libc::SYS_ioctl, vec![SeccompRule::new(vec![nonblocking])?]);
    #[cfg(target_arch = "x86_64")]
    rules.insert(libc::SYS_poll, vec![]);
    Ok(rules)
}

fn equal(argument: u8, value: u64) -> Result<SeccompCondition, Bad> {
    let whole = SeccompCmpArgLen::Qword;
    Ok(SeccompCondition::new(argument, whole, SeccompCmpOp::Eq, value)?)
}

fn masked(argument: u8, mask: u64, value: u64) -> Result<SeccompCondition, Bad> {
    let whole = SeccompCmpArgLen::Qword;
    Ok(SeccompCondition::new(argument, whole, SeccompCmpOp::MaskedEq(mask), value)?)
}

fn compile(rules: Rules) -> Result<BpfProgram, Bad> {
    let arch = std::env::consts::ARCH.try_into()?;
    let filter = SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, arch)?;
    Ok(filter.try_into()?)
}
