//! The system calls that have no safe wrapper elsewhere; the only unsafe code of this crate.
#![allow(unsafe_code)]

use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

/// Gives signals that would end or stop the shim no effect: guests never stop because of it.
/// SIGCHLD is set to its default, since ignoring it would make the kernel forget exit codes.
pub fn ignore_signals() {
    for signal in [
        libc::SIGHUP,
        libc::SIGINT,
        libc::SIGQUIT,
        libc::SIGPIPE,
        libc::SIGTERM,
        libc::SIGALRM,
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGTSTP,
        libc::SIGTTIN,
        libc::SIGTTOU,
        libc::SIGXFSZ,
    ] {
        // SAFETY: SIG_IGN is a valid disposition and needs no handler code.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    // SAFETY: as above, with SIG_DFL.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// A descriptor that becomes readable when a child ended; SIGCHLD is blocked for this thread.
///
/// # Errors
/// No descriptor is free.
pub fn child_signals() -> io::Result<OwnedFd> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `set` is written by sigemptyset before any other use, and outlives the calls.
    let fd = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
        if libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        libc::signalfd(-1, set.as_ptr(), libc::SFD_NONBLOCK | libc::SFD_CLOEXEC)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes a descriptor over that was passed by inheritance, and makes it close on exec. To be called
/// once per number, before anything else opens descriptors.
///
/// # Errors
/// There is no such descriptor, or it is one of the standard three.
pub fn inherited_fd(fd: RawFd) -> io::Result<OwnedFd> {
    if fd <= 2 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: F_SETFD takes no pointer; a number that is not open gives EBADF.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, came from the process's maker, and the caller takes each number once.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Closes all descriptors above 2 but these. To be called before anything else opens descriptors:
/// a leaked one would keep a caller's pipe from ever ending, or a namespace alive.
///
/// # Errors
/// The kernel refuses (before 5.9).
pub fn close_all_but(keep: &mut [RawFd]) -> io::Result<()> {
    keep.sort_unstable();
    let mut first: libc::c_uint = 3;
    for &fd in keep.iter() {
        let Ok(fd) = libc::c_uint::try_from(fd) else {
            continue;
        };
        if fd > first {
            close_range(first, fd - 1)?;
        }
        first = first.max(fd + 1);
    }
    close_range(first, libc::c_uint::MAX)
}

fn close_range(first: libc::c_uint, last: libc::c_uint) -> io::Result<()> {
    // SAFETY: no pointers; the caller promises that nothing owns these descriptors yet.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sends a signal of any number, real-time ones included.
///
/// # Errors
/// ESRCH: the process ended. EINVAL: no such signal.
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: u8) -> io::Result<()> {
    let none = ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo is allowed and means that of kill(2).
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            libc::c_int::from(signal),
            none,
            0,
        )
    };
    match sent {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `struct pidfd_info` of include/uapi/linux/pidfd.h in its first size, 64 bytes.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup_id: u64,
    pid: u32,
    tgid: u32,
    ppid: u32,
    ids: [u32; 8],
    exit_code: i32,
}

/// `PIDFD_INFO_EXIT`: how the process ended, known once its parent collected it; Linux 6.15.
const PIDFD_INFO_EXIT: u64 = 1 << 3;

/// `_IOWR(PIDFS_IOCTL_MAGIC, 11, struct pidfd_info)`: direction 3, size, magic 0xff, number.
const PIDFD_GET_INFO: u32 = (3 << 30) | ((mem::size_of::<PidfdInfo>() as u32) << 16) | 0xff0b;

/// The wait status of a process that was collected by its parent; `None` if it was not yet.
///
/// # Errors
/// ESRCH, EINVAL or ENOTTY if this kernel does not tell.
pub fn pidfd_exit_status(pidfd: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: the request number carries the size of the structure, which the kernel respects.
    let done = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO.into(), &raw mut info) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit_code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pidfd_info_has_the_kernels_first_size() {
        assert_eq!(mem::size_of::<PidfdInfo>(), 64);
        assert_eq!(PIDFD_GET_INFO, 0xc040_ff0b);
    }

    #[test]
    fn standard_descriptors_cannot_be_taken_over() {
        assert!(inherited_fd(2).is_err());
        assert!(inherited_fd(1_000_000).is_err());
    }
}
