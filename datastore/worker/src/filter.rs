//! The system calls that are left.
//!
//! Each is one that the job makes, or that the C library and Rust make for a thread, memory or a panic. What is
//! not on the list kills the process: there is no code of ours that could go on sensibly, and a refusal would let
//! an intruder try the next. `clone3` answers "not there" instead, because its flags lie in memory where no filter
//! sees them; the C library then uses `clone`, whose flags are looked at.

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

/// For every confined process: it reads and writes what it has open, and ends.
const STREAM: &[c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_fcntl,
    // Memory.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    // The C library and Rust, for themselves.
    libc::SYS_futex,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigreturn,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_restart_syscall,
    // The end, a good one and that of a panic.
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// For the one that unpacks a layer, in addition.
const LAYER: &[c_long] = &[
    // Files.
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_mkdirat,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_fsetxattr,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_getdents64,
    libc::SYS_lseek,
    libc::SYS_ftruncate,
    libc::SYS_fchdir,
    libc::SYS_getcwd,
    libc::SYS_geteuid,
    libc::SYS_getegid,
    // Threads.
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
];

/// For the process that sets marks and waits.
const BROKER: &[c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_close,
    libc::SYS_openat2,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_fsetxattr,
    libc::SYS_fcntl,
    libc::SYS_wait4,
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_exit_group,
];

/// The filter of a process that unpacks a layer: what is refused, then what is allowed.
pub fn layer() -> Result<[BpfProgram; 2], Bad> {
    let mut rules = plain(&[STREAM, LAYER].concat());
    // A FIFO, or a whiteout: character device 0:0.
    let kind = |kind| masked(2, u64::from(libc::S_IFMT), u64::from(kind));
    rules.insert(
        libc::SYS_mknodat,
        vec![
            SeccompRule::new(vec![kind(libc::S_IFIFO)?])?,
            SeccompRule::new(vec![kind(libc::S_IFCHR)?, equal(3, 0)?])?,
        ],
    );
    // A thread, never a process or a namespace.
    let thread =
        u64::from((libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND).cast_unsigned());
    let namespaces = libc::CLONE_NEWNS
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP;
    let all = thread | u64::from(namespaces.cast_unsigned());
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![masked(0, all, thread)?])?]);
    // The name of a thread.
    let named = equal(0, u64::from(libc::PR_SET_NAME.cast_unsigned()))?;
    rules.insert(libc::SYS_prctl, vec![SeccompRule::new(vec![named])?]);
    confined(rules)
}

/// The filter of a process that reads one stream and writes another: no file, no thread.
pub fn stream() -> Result<[BpfProgram; 2], Bad> {
    confined(plain(STREAM))
}

fn confined(mut rules: Rules) -> Result<[BpfProgram; 2], Bad> {
    no_code(&mut rules)?;
    let absent = Rules::from([(libc::SYS_clone3, vec![])]);
    let errno = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
    rules.insert(libc::SYS_clone3, vec![]);
    Ok([
        compile(absent, SeccompAction::Allow, errno)?,
        compile(rules, SeccompAction::KillProcess, SeccompAction::Allow)?,
    ])
}

/// The filter of the broker.
pub fn broker() -> Result<BpfProgram, Bad> {
    let mut rules = plain(BROKER);
    no_code(&mut rules)?;
    compile(rules, SeccompAction::KillProcess, SeccompAction::Allow)
}

/// Memory, but none that can be executed.
fn no_code(rules: &mut Rules) -> Result<(), Bad> {
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        let data = masked(2, u64::from(libc::PROT_EXEC.cast_unsigned()), 0)?;
        rules.insert(call, vec![SeccompRule::new(vec![data])?]);
    }
    Ok(())
}

fn plain(calls: &[c_long]) -> Rules {
    calls.iter().map(|call| (*call, vec![])).collect()
}

fn equal(argument: u8, value: u64) -> Result<SeccompCondition, Bad> {
    let whole = SeccompCmpArgLen::Qword;
    Ok(SeccompCondition::new(argument, whole, SeccompCmpOp::Eq, value)?)
}

fn masked(argument: u8, mask: u64, value: u64) -> Result<SeccompCondition, Bad> {
    let whole = SeccompCmpArgLen::Qword;
    Ok(SeccompCondition::new(argument, whole, SeccompCmpOp::MaskedEq(mask), value)?)
}

fn compile(rules: Rules, other: SeccompAction, listed: SeccompAction) -> Result<BpfProgram, Bad> {
    let arch = std::env::consts::ARCH.try_into()?;
    Ok(SeccompFilter::new(rules, other, listed, arch)?.try_into()?)
}
