//! `ocivisor-init -- PROGRAM ARGUMENT…`: the first process of an application guest.
//!
//! Few programs are made to be process 1: it has no default signal actions (pid_namespaces(7)), so a
//! shell there ignores SIGTERM, and nobody reaps what their children leave. This one runs the program
//! as its child, in the foreground of the terminal, hands every signal on, reaps every orphan, and
//! ends as the program ended: with its code, or 128 and the signal's number. What the program leaves
//! behind is then killed by the kernel, with the pid namespace.
//!
//! Exit codes of its own: 127 no such program, 126 not executable.
#![allow(unsafe_code)]

use std::ffi::{CString, OsString, c_char};
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;
use std::ptr;

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1).peekable();
    if words.peek().is_some_and(|word| word == "--") {
        words.next();
    }
    let argv: Vec<CString> =
        words.filter_map(|word: OsString| CString::new(word.into_vec()).ok()).collect();
    if argv.is_empty() {
        return complain("no program to run", 127);
    }
    let signals = Signals::hold();
    match fork() {
        Ok(0) => become_program(&argv, &signals),
        Ok(child) => ExitCode::from(attend(child, &signals)),
        Err(error) => complain(&format!("fork: {error}"), 126),
    }
}

fn complain(what: &str, code: u8) -> ExitCode {
    // Nobody reads it: nothing to be done.
    let _ = writeln!(io::stderr(), "ocivisor-init: {what}");
    ExitCode::from(code)
}

/// All signals held back, to be waited for; and the mask there was before.
struct Signals {
    all: libc::sigset_t,
    before: libc::sigset_t,
}

impl Signals {
    fn hold() -> Self {
        let (mut all, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: sigfillset writes `all`, sigprocmask reads it and writes `before`; SIG_IGN needs
        // no handler code. SIGTTOU would stop us when we give the terminal away.
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            libc::sigprocmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
            libc::signal(libc::SIGTTOU, libc::SIG_IGN);
            libc::signal(libc::SIGTTIN, libc::SIG_IGN);
            Self { all: all.assume_init(), before: before.assume_init() }
        }
    }
}

fn fork() -> io::Result<libc::pid_t> {
    // SAFETY: this process has one thread, so the child may do anything.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(pid),
    }
}

/// The child: a process group of its own in the terminal's foreground, then the program.
fn become_program(argv: &[CString], signals: &Signals) -> ExitCode {
    let mut pointers: Vec<*const c_char> = argv.iter().map(|word| word.as_ptr()).collect();
    pointers.push(ptr::null());
    // SAFETY: `pointers` is a null-terminated array of strings that live until execvp returns, and
    // the mask was initialised by `hold`. tcsetpgrp fails without a terminal, which is fine.
    unsafe {
        libc::setpgid(0, 0);
        libc::tcsetpgrp(0, libc::getpid());
        libc::signal(libc::SIGTTOU, libc::SIG_DFL);
        libc::signal(libc::SIGTTIN, libc::SIG_DFL);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const signals.before, ptr::null_mut());
        libc::execvp(pointers[0], pointers.as_ptr());
    }
    let error = io::Error::last_os_error();
    let code = if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
    complain(&format!("{}: {error}", argv[0].to_string_lossy()), code)
}

/// Until the program ended; its exit code.
fn attend(child: libc::pid_t, signals: &Signals) -> u8 {
    loop {
        let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
        // SAFETY: the set was initialised by `hold`; `info` is written, and valid as zeroes.
        let (signal, info) = unsafe {
            (libc::sigwaitinfo(&raw const signals.all, info.as_mut_ptr()), info.assume_init())
        };
        if signal < 0 {
            continue;
        }
        if signal == libc::SIGHUP && info.si_code == libc::SI_KERNEL {
            // The terminal is gone, because its shim is: that is no reason for the program to end.
            continue;
        }
        if signal != libc::SIGCHLD {
            // SAFETY: no pointers. It ended meanwhile: the next SIGCHLD tells.
            unsafe { libc::kill(child, signal) };
            continue;
        }
        if let Some(code) = reap(child) {
            return code;
        }
    }
}

/// Takes all ended children away; the program's exit code if it was among them.
fn reap(program: libc::pid_t) -> Option<u8> {
    loop {
        let mut status = 0;
        // SAFETY: `status` is written.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
        if pid <= 0 {
            return None;
        }
        if pid == program {
            let code = if libc::WIFEXITED(status) {
                libc::WEXITSTATUS(status)
            } else {
                128 + libc::WTERMSIG(status)
            };
            return Some(u8::try_from(code).unwrap_or(125));
        }
    }
}
