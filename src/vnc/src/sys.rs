//! System calls that have no safe wrapper; the only unsafe code of this crate.
#![allow(unsafe_code)]

use std::io;

use rustix::process::Pid;

/// A copy of this process, as fork(2) makes it; `None` in the copy.
///
/// # Errors
/// No process can be made.
pub fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: this program never starts a thread, so no other one can hold a lock, and the copy may do all that the
    // original may.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => Pid::from_raw(pid).map(Some).ok_or_else(|| io::ErrorKind::InvalidData.into()),
    }
}

/// Gives signals that would end the keeper no effect, but those that it listens to.
pub fn ignore_signals() {
    for signal in
        [libc::SIGHUP, libc::SIGPIPE, libc::SIGQUIT, libc::SIGALRM, libc::SIGUSR1, libc::SIGUSR2]
    {
        // SAFETY: SIG_IGN is a valid disposition and needs no handler code.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Gives freed memory back to the kernel, also from between what is in use (malloc_trim(3)). By itself the C library
/// keeps it, and a process like this one idles most of its life, many of them on one host.
pub fn trim_heap() {
    // SAFETY: takes no pointer, and the allocator guards itself.
    unsafe { libc::malloc_trim(0) };
}
