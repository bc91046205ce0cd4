//! The system calls that are left to who serves a disk.
//!
//! Nobody knows all calls that a distribution's build of QEMU's daemon and its libraries try. What is not on the list is
//! therefore "not there" instead of the end. Files are opened by whoever answers for the process, see `opens`; when he
//! is gone, by nobody. No socket is made, none is connected, no process: only threads.

use std::collections::BTreeMap;
use std::io;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

const CALLS: &[c_long] = &[
    // What it has open: the files of the disk, the kernel's requests, our orders.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_splice,
    libc::SYS_vmsplice,
    libc::SYS_copy_file_range,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fadvise64,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
    libc::SYS_flock,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_close,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_shutdown,
    // Opening is asked for; looking is done in a root directory with nothing but programs.
    libc::SYS_openat,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_umask,
    // Waiting.
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_pipe2,
    libc::SYS_signalfd4,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    // Memory.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    // Threads and signals.
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_tgkill,
    libc::SYS_restart_syscall,
    // Itself.
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_prlimit64,
    libc::SYS_prctl,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_execve,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// The same, of older names.
#[cfg(target_arch = "x86_64")]
const OLD: &[c_long] = &[
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
const OLD: &[c_long] = &[];

/// `SECCOMP_RET_ALLOW` and `SECCOMP_RET_USER_NOTIF`, linux/seccomp.h.
const ALLOW: u32 = 0x7fff_0000;
const ASK: u32 = 0x7fc0_0000;

/// What is allowed, in the order in which they are applied; the last one asks whoever listens.
pub(super) fn programs() -> io::Result<(Vec<BpfProgram>, BpfProgram)> {
    let plain = |calls: &[c_long]| -> Rules { calls.iter().map(|call| (*call, vec![])).collect() };
    let answer = |call: c_long, errno: i32| {
        let errno = SeccompAction::Errno(errno.cast_unsigned());
        compile(plain(&[call]), SeccompAction::Allow, errno)
    };
    let mut rules = plain(&[CALLS, OLD].concat());
    rules.insert(libc::SYS_clone, vec![thread().map_err(io::Error::other)?]);
    for call in [libc::SYS_clone3, libc::SYS_ioctl] {
        rules.insert(call, vec![]);
    }
    let absent = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
    let programs = vec![
        // Its flags lie in memory, where no filter sees them; the C library then uses clone.
        answer(libc::SYS_clone3, libc::ENOSYS)?,
        answer(libc::SYS_ioctl, libc::ENOTTY)?,
        compile(rules, absent, SeccompAction::Allow)?,
    ];
    Ok((programs, opens()))
}

/// A thread, never a process or a namespace.
fn thread() -> Result<SeccompRule, seccompiler::BackendError> {
    let thread = libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND;
    let namespaces = libc::CLONE_NEWNS
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP;
    let all = u64::from((thread | namespaces).cast_unsigned());
    let is_thread = SeccompCmpOp::MaskedEq(all);
    let want = u64::from(thread.cast_unsigned());
    let flags = SeccompCondition::new(0, SeccompCmpArgLen::Qword, is_thread, want)?;
    SeccompRule::new(vec![flags])
}

fn compile(rules: Rules, other: SeccompAction, listed: SeccompAction) -> io::Result<BpfProgram> {
    let make = || {
        let arch = std::env::consts::ARCH.try_into()?;
        SeccompFilter::new(rules, other, listed, arch)?.try_into()
    };
    make().map_err(|e: seccompiler::BackendError| io::Error::other(e))
}

/// Asks whoever listens about each opening. The architecture was judged by the others, of which the strictest counts.
fn opens() -> BpfProgram {
    // Opcodes of linux/bpf_common.h.
    const LOAD: u16 = 0x20;
    const IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    #[cfg(target_arch = "x86_64")]
    let calls = [libc::SYS_openat, libc::SYS_open];
    #[cfg(not(target_arch = "x86_64"))]
    let calls = [libc::SYS_openat];
    let step = |code, jt, jf, k| seccompiler::sock_filter { code, jt, jf, k };
    // `nr` is the first field of seccomp_data.
    let mut program = vec![step(LOAD, 0, 0, 0)];
    for (left, call) in (0_u8..).zip(calls).map(|(i, call)| (calls.len() as u8 - i, call)) {
        // Over the comparisons that are left, and over the answer that is not meant.
        program.push(step(IF_EQUAL, left, 0, u32::try_from(call).unwrap_or(u32::MAX)));
    }
    program.push(step(RETURN, 0, 0, ALLOW));
    program.push(step(RETURN, 0, 0, ASK));
    program
}
