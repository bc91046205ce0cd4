//! System calls that neither std, rustix nor nix offer without `unsafe`.
//!
//! This program has one thread, always: that is what makes fork here as good as at the start.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use rustix::process::Pid;

/// Which side of a fork this is.
#[derive(Debug)]
pub enum Fork {
    /// The caller; the new process's id.
    Parent(Pid),
    /// The new process.
    Child,
}

/// fork(2).
///
/// # Errors
/// No process was made.
pub fn fork() -> io::Result<Fork> {
    // SAFETY: single-threaded, so the child may use the heap and every library.
    forked(unsafe { libc::fork() }.into())
}

/// A new process whose parent is this one's parent, so that it can be waited for there.
///
/// # Errors
/// No process was made.
pub fn fork_sibling() -> io::Result<Fork> {
    let flags = libc::CLONE_PARENT | libc::SIGCHLD;
    // SAFETY: as fork(2); without a stack the child goes on with a copy of this one, and no
    // pointers are passed. glibc keeps no process id of its own that would be stale in the child.
    forked(unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) })
}

fn forked(result: libc::c_long) -> io::Result<Fork> {
    match i32::try_from(result) {
        Ok(0) => Ok(Fork::Child),
        Ok(pid) if pid > 0 => {
            Pid::from_raw(pid).map(Fork::Parent).ok_or_else(io::Error::last_os_error)
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends this process at once, running no destructors: for children of a fork.
pub fn exit_now(code: u8) -> ! {
    // SAFETY: takes a number and does not return.
    unsafe { libc::_exit(code.into()) }
}

/// Takes over a descriptor that the caller of this program passed by number.
///
/// # Errors
/// It is not open, or one of the standard three.
pub fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    if fd <= 2 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: F_GETFD takes no pointer.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: open, as was just asked, and called once per number before anything else is opened.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Closes all descriptors above the standard three but those named.
///
/// Called first of all, when this program has opened nothing itself, or in the child of a fork, which
/// ends by [`exit_now`] and uses none of the others.
///
/// # Errors
/// The kernel refuses (before 5.9).
pub fn close_all_but(keep: &[RawFd]) -> io::Result<()> {
    let mut keep: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).collect();
    keep.sort_unstable();
    let mut from = 3;
    for fd in keep {
        if fd > from {
            close_range(from, fd - 1, 0)?;
        }
        from = from.max(fd + 1);
    }
    close_range(from, u32::MAX, 0)
}

/// Marks all descriptors above the standard three to be closed by execve(2).
///
/// # Errors
/// The kernel refuses (before 5.11).
pub fn close_all_on_exec() -> io::Result<()> {
    close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
}

fn close_range(first: u32, last: u32, flags: u32) -> io::Result<()> {
    // SAFETY: numbers only; the callers see to it that no owned descriptor is in the range, or that
    // none is used afterwards.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes `fd` available as `number` after execve(2), for the life of this process.
///
/// # Errors
/// The kernel refuses.
pub fn install_fd(fd: &OwnedFd, number: RawFd) -> io::Result<()> {
    // SAFETY: numbers only. dup2 on itself would keep the flag, so it is cleared in both cases.
    let result = unsafe {
        if libc::dup2(fd.as_raw_fd(), number) < 0 {
            -1
        } else {
            libc::fcntl(number, libc::F_SETFD, 0)
        }
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// All signals to their default, none blocked: both are inherited through execve(2), and Rust's
/// start-up code ignores SIGPIPE.
pub fn default_signals() {
    // struct kernel_sigaction, all zero: SIG_DFL, no flags, empty mask. By the raw call, because
    // glibc keeps two signals for itself, which a careless parent may have left ignored.
    let default = [0_u64; 4];
    let none = 0_u64;
    let size = size_of::<u64>();
    for signal in 1..=64_i32 {
        // SAFETY: the structure has the kernel's size or more, and outlives the call. The kernel
        // refuses SIGKILL and SIGSTOP, which is right.
        unsafe {
            let old = std::ptr::null_mut::<u64>();
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), old, size);
        }
    }
    // SAFETY: a set of 64 signals is one u64, and it outlives the call.
    unsafe {
        let old = std::ptr::null_mut::<u64>();
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const none, old, size);
    }
}

/// Writing to who does not read any more is an error of that write from now on, and no death.
pub fn ignore_broken_pipes() {
    // struct kernel_sigaction with SIG_IGN, no flags, empty mask.
    let ignore = [1_u64, 0, 0, 0];
    // SAFETY: the structure has the kernel's size or more, and outlives the call.
    unsafe {
        let old = std::ptr::null_mut::<u64>();
        libc::syscall(
            libc::SYS_rt_sigaction,
            libc::SIGPIPE,
            ignore.as_ptr(),
            old,
            size_of::<u64>(),
        );
    }
}

/// Lets /proc/self be opened by processes with the same ids, or not; prctl(2), `PR_SET_DUMPABLE`.
///
/// # Errors
/// The kernel refuses.
pub fn set_dumpable(dumpable: bool) -> io::Result<()> {
    // SAFETY: numbers only.
    let result =
        unsafe { libc::prctl(libc::PR_SET_DUMPABLE, libc::c_ulong::from(dumpable), 0, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// These ids and groups, real, effective and saved; clears the death signal.
///
/// # Errors
/// Not allowed, or not mapped.
pub fn become_user(uid: u32, gid: u32, groups: &[u32]) -> nix::Result<()> {
    use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
    let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups)?;
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)
}

/// Drops a capability, by number, from the bounding set. False if the kernel has no such one.
///
/// # Errors
/// Not allowed.
pub fn drop_bounding(capability: u8) -> io::Result<bool> {
    // SAFETY: numbers only.
    let result =
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0) };
    match io::Error::last_os_error() {
        _ if result == 0 => Ok(true),
        e if e.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        e => Err(e),
    }
}

/// Permitted and effective become `set`, inheritable becomes empty; a bit per capability.
///
/// # Errors
/// Not a subset of what this process has.
pub fn set_capabilities(set: u64) -> io::Result<()> {
    // struct __user_cap_header_struct and two of __user_cap_data_struct, capset(2).
    let header: [u32; 2] = [0x2008_0522, 0];
    let (low, high) = ((set & 0xffff_ffff) as u32, (set >> 32) as u32);
    let data: [u32; 6] = [low, low, 0, high, high, 0];
    // SAFETY: both arrays have the layout and size that version 3 asks for, and outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Ambient capabilities become none.
///
/// # Errors
/// The kernel refuses.
pub fn clear_ambient() -> io::Result<()> {
    // SAFETY: numbers only.
    let result =
        unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes the terminal the controlling one of this session leader.
///
/// # Errors
/// No terminal, or no session leader.
pub fn take_terminal(terminal: impl AsFd) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes a number.
    let result = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSCTTY, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives the controlling terminal back, which stays open: then it is free for another session.
///
/// # Errors
/// There is none, or standard input is another one.
pub fn leave_terminal() -> io::Result<()> {
    // The kernel hangs up on the group in its foreground, which is this process (tty_ioctl(4), TIOCNOTTY).
    // SAFETY: these dispositions run no code of ours.
    unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
    // SAFETY: the call takes no argument.
    let done = unsafe { libc::ioctl(libc::STDIN_FILENO, libc::TIOCNOTTY) };
    let error = io::Error::last_os_error();
    // SAFETY: as above.
    unsafe { libc::signal(libc::SIGHUP, libc::SIG_DFL) };
    if done == -1 { Err(error) } else { Ok(()) }
}

/// Loads a program of type `BPF_PROG_TYPE_CGROUP_DEVICE` and attaches it to a cgroup v2 directory.
///
/// # Errors
/// The kernel refuses one of both.
pub fn attach_device_program(instructions: &[u64], cgroup: impl AsFd) -> io::Result<()> {
    const BPF_PROG_LOAD: libc::c_long = 5;
    const BPF_PROG_ATTACH: libc::c_long = 8;
    const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
    const BPF_CGROUP_DEVICE: u32 = 6;
    const BPF_F_ALLOW_MULTI: u32 = 2;
    let licence = c"Apache-2.0";
    // The beginning of union bpf_attr for the command, bpf(2).
    #[repr(C)]
    struct Load {
        program_type: u32,
        count: u32,
        instructions: u64,
        licence: u64,
        log: [u32; 2],
        log_buffer: u64,
        rest: [u32; 2],
    }
    #[repr(C)]
    struct Attach {
        target: u32,
        program: u32,
        attach_type: u32,
        flags: u32,
        replace: u32,
    }
    let load = Load {
        program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: u32::try_from(instructions.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        instructions: instructions.as_ptr() as u64,
        licence: licence.as_ptr() as u64,
        log: [0; 2],
        log_buffer: 0,
        rest: [0; 2],
    };
    // SAFETY: the structure is a prefix of the union with its size given, so the kernel takes the
    // rest as zero; its pointers lead to live memory of the stated lengths.
    let fd =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<Load>()) };
    let fd = RawFd::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel just returned it.
    let program = unsafe { OwnedFd::from_raw_fd(fd) };
    let attach = Attach {
        target: cgroup.as_fd().as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        attach_type: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
        replace: 0,
    };
    // SAFETY: as above.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attach, size_of::<Attach>())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Empties the environment: `LISTEN_FDS` and the like of whoever started the daemon would reach
/// the OCI runtime and, through it, the guest.
pub fn clear_environment() {
    // SAFETY: single-threaded, so nobody reads the environment meanwhile.
    unsafe { libc::clearenv() };
}
