//! A copy of the test confines itself and does what an intruder would do first. What came to it is how it ended.
//!
//! In the copy there is one thread, so it makes system calls and uses memory, and takes no lock.

#![allow(unsafe_code, reason = "fork, and system calls that no wrapper makes")]

use libc::c_long;
use nix::sys::signal::Signal as NixSignal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use super::*;

const PASSWD: &std::ffi::CStr = c"/etc/passwd";
/// Exit code of a copy that could not be confined.
const UNCONFINED: i32 = 99;

/// A system call and its arguments; the rest of them is 0.
type Call<'a> = (c_long, &'a [i64]);

fn open_passwd() -> [i64; 3] {
    [libc::AT_FDCWD.into(), PASSWD.as_ptr().addr() as i64, libc::O_RDONLY.into()]
}

/// How a copy ends that confines itself and makes a system call: killed, or with the error's number.
fn end_of(confine: impl FnOnce() -> bool, (number, arguments): Call<'_>) -> WaitStatus {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    let [a, b, c, d, e, f] = all;
    // SAFETY: see the module's comment; the copy ends by `_exit` in any case.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => waitpid(child, None).unwrap(),
        ForkResult::Child => {
            let confined = limit(Resource::RLIMIT_CORE, 0).is_ok() && confine();
            // SAFETY: pointers among them are to constants, and memory that is mapped is nobody's.
            let call = || unsafe { libc::syscall(number, a, b, c, d, e, f) };
            let code = match confined {
                false => UNCONFINED,
                true if call() >= 0 => 0,
                true => io::Error::last_os_error().raw_os_error().unwrap_or(UNCONFINED),
            };
            // SAFETY: it takes any number.
            unsafe { libc::_exit(code) }
        }
    }
}

fn code(status: WaitStatus) -> Option<i32> {
    match status {
        WaitStatus::Exited(_, code) => Some(code),
        _ => None,
    }
}

#[test]
fn a_forbidden_call_kills() {
    let program = filter::server().unwrap();
    let end_of = |call| end_of(|| seccompiler::apply_filter(&program).is_ok(), call);
    let (read, write) = (i64::from(libc::PROT_READ), i64::from(libc::PROT_WRITE));
    let execute = i64::from(libc::PROT_EXEC);
    let private = i64::from(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let (inet, stream) = (i64::from(libc::AF_INET), i64::from(libc::SOCK_STREAM));
    let allowed: [(&str, Call<'_>, i32); 3] = [
        ("know itself", (libc::SYS_getpid, &[]), 0),
        ("take memory", (libc::SYS_mmap, &[0, 4096, read | write, private, -1]), 0),
        ("not block", (libc::SYS_ioctl, &[-1, libc::FIONBIO as i64]), libc::EBADF),
    ];
    for (what, call, ends) in allowed {
        assert_eq!(code(end_of(call)), Some(ends), "{what}");
    }
    let text = PASSWD.as_ptr().addr() as i64;
    let forbidden: [(&str, Call<'_>); 9] = [
        ("open a file", (libc::SYS_openat, &open_passwd())),
        ("reach the network", (libc::SYS_socket, &[inet, stream])),
        ("connect", (libc::SYS_connect, &[-1])),
        ("run a program", (libc::SYS_execve, &[text])),
        ("make a process", (libc::SYS_clone, &[libc::SIGCHLD.into()])),
        ("map code", (libc::SYS_mmap, &[0, 4096, read | execute, private, -1])),
        ("make memory code", (libc::SYS_mprotect, &[0, 0, execute])),
        ("type at a terminal", (libc::SYS_ioctl, &[-1, libc::TIOCSTI as i64, text])),
        ("look into a process", (libc::SYS_ptrace, &[])),
    ];
    for (what, call) in forbidden {
        let end = end_of(call);
        assert!(matches!(end, WaitStatus::Signaled(_, NixSignal::SIGSYS, _)), "{what}: {end:?}");
    }
}

#[test]
fn without_the_filter_there_is_no_file_either() {
    let arguments = open_passwd();
    let open: Call<'_> = (libc::SYS_openat, &arguments);
    assert_eq!(code(end_of(|| true, open)), Some(0));
    assert_eq!(code(end_of(|| landlock().is_ok(), open)), Some(libc::EACCES));
}
