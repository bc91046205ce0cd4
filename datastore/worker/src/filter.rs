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

/// For a tool of the host's, in addition to both: what a program and its libraries do to work on open files.
const TOOL: &[c_long] = &[
    libc::SYS_execve,
    libc::SYS_set_tid_address,
    libc::SYS_prlimit64,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getrusage,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_getgid,
    libc::SYS_prctl,
    libc::SYS_umask,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_eventfd2,
    libc::SYS_signalfd4,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_chdir,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_flistxattr,
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_fgetxattr,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_fallocate,
    libc::SYS_fadvise64,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
    libc::SYS_flock,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_clone3,
    libc::SYS_ioctl,
];

/// The same, of older names.
#[cfg(target_arch = "x86_64")]
const TOOL_OLD: &[c_long] = &[
    libc::SYS_arch_prctl,
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_dup2,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_epoll_wait,
    libc::SYS_time,
    libc::SYS_getrlimit,
];
#[cfg(not(target_arch = "x86_64"))]
const TOOL_OLD: &[c_long] = &[];

/// For the one that reads a disk, in addition: what it was given open.
const DISK: &[c_long] = &[libc::SYS_pread64, libc::SYS_fstat];

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
    rules.insert(libc::SYS_clone, vec![thread()?]);
    // The name of a thread.
    let named = equal(0, u64::from(libc::PR_SET_NAME.cast_unsigned()))?;
    rules.insert(libc::SYS_prctl, vec![SeccompRule::new(vec![named])?]);
    confined(rules)
}

/// The filter of a process that reads one stream and writes another: no file, no thread.
pub fn stream() -> Result<[BpfProgram; 2], Bad> {
    confined(plain(STREAM))
}

/// The filters of a process that becomes a tool of the host's: what is answered otherwise, then what is allowed.
///
/// Nobody knows all calls that a distribution's build of it tries. What is not on the list is therefore "not there"
/// instead of the end, and no file is a terminal or device that would know an ioctl.
pub fn tool() -> Result<[BpfProgram; 3], Bad> {
    let mut rules = plain(&[STREAM, LAYER, TOOL, TOOL_OLD].concat());
    rules.insert(libc::SYS_clone, vec![thread()?]);
    let answer = |call, errno: i32| {
        let errno = SeccompAction::Errno(errno.cast_unsigned());
        compile(plain(&[call]), SeccompAction::Allow, errno)
    };
    let absent = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
    Ok([
        answer(libc::SYS_clone3, libc::ENOSYS)?,
        answer(libc::SYS_ioctl, libc::ENOTTY)?,
        compile(rules, absent, SeccompAction::Allow)?,
    ])
}

/// A thread, never a process or a namespace.
fn thread() -> Result<SeccompRule, Bad> {
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
    Ok(SeccompRule::new(vec![masked(0, all, thread)?])?)
}

/// The filter of a process that reads a disk: the same, and reading at an offset.
pub fn disk() -> Result<[BpfProgram; 2], Bad> {
    confined(plain(&[STREAM, DISK].concat()))
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
