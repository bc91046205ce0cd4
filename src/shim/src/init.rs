//! `ocivisor-init [--before SCRIPT | --beside SCRIPT] [--stop SIGNAL] [--user UID:GID:GROUP,…] -- PROGRAM ARGUMENT…`: the first process of
//! an application guest.
//!
//! Few programs are made to be process 1: it has no default signal actions (pid_namespaces(7)), so a
//! shell there ignores SIGTERM, and nobody reaps what their children leave. This one runs the program
//! as its child, in the foreground of the terminal, hands every signal on, reaps every orphan, and
//! ends as the program ended: with its code, or 128 and the signal's number. What the program leaves
//! behind is then killed by the kernel, with the pid namespace.
//!
//! The start script of a VM's context, if it is there, is run as root: `--before` the program, which begins when the
//! script ended, whatever came of it; or `--beside` it, for systems whose own init cannot be told of the script: then
//! the program is executed in this very process. `--stop` is the number of the signal by which the guest is asked to
//! end (SIGTERM without): during the script it ends the guest, also if the script goes on. `--user` are the ids of the program, for it begins as root too.
//!
//! Exit codes of its own: 127 no such program, 126 not executable.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, OsString, c_char};
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;
use std::ptr;

fn main() -> ExitCode {
    let Some(line) = Line::parse(std::env::args_os().skip(1)) else {
        return complain("no program to run", 127);
    };
    let signals = Signals::hold();
    match &line.script {
        None => {}
        Some(Script { path, beside: true }) => {
            let child = fork();
            if matches!(child, Ok(0)) {
                return become_script(path, &signals);
            }
            // Its parent is the program from here on, which reaps as an init does.
            if let Err(error) = child {
                complain(&format!("fork: {error}"), 126);
            }
            return become_program(&line, &signals);
        }
        Some(Script { path, beside: false }) => {
            if let Some(signal) = run_before(path, line.stop, &signals) {
                return ExitCode::from(128 + signal);
            }
        }
    }
    match fork() {
        Ok(0) => {
            to_foreground();
            become_program(&line, &signals)
        }
        Ok(child) => ExitCode::from(attend(child, &signals).code()),
        Err(error) => complain(&format!("fork: {error}"), 126),
    }
}

/// The command line.
struct Line {
    script: Option<Script>,
    user: Option<User>,
    /// By which the guest is asked to end.
    stop: libc::c_int,
    program: Vec<CString>,
}

struct Script {
    path: CString,
    beside: bool,
}

struct User {
    uid: libc::uid_t,
    gid: libc::gid_t,
    groups: Vec<libc::gid_t>,
}

impl Line {
    fn parse(words: impl Iterator<Item = OsString>) -> Option<Self> {
        let mut words = words.peekable();
        let mut line = Self { script: None, user: None, stop: libc::SIGTERM, program: Vec::new() };
        while let Some(option) = words.peek().and_then(|word| word.to_str()).map(str::to_owned) {
            let beside = match option.as_str() {
                "--before" => false,
                "--beside" => true,
                "--user" => {
                    words.next();
                    line.user = Some(User::parse(words.next()?.to_str()?)?);
                    continue;
                }
                "--stop" => {
                    words.next();
                    line.stop = words.next()?.to_str()?.parse().ok()?;
                    continue;
                }
                "--" => {
                    words.next();
                    break;
                }
                _ => break,
            };
            words.next();
            let path = CString::new(words.next()?.into_vec()).ok()?;
            line.script = Some(Script { path, beside });
        }
        line.program = words.filter_map(|word| CString::new(word.into_vec()).ok()).collect();
        (!line.program.is_empty()).then_some(line)
    }
}

impl User {
    /// `1000:1000:27,44`; the groups may be none.
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, ':');
        let (uid, gid) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let groups = parts.next().unwrap_or_default().split(',').filter(|group| !group.is_empty());
        Some(Self {
            uid,
            gid,
            groups: groups.map(|group| group.parse().ok()).collect::<Option<_>>()?,
        })
    }

    /// Irrevocably.
    fn become_it(&self) -> io::Result<()> {
        let User { uid, gid, groups } = self;
        // SAFETY: `groups` is an array of that many ids; the others take numbers.
        let done = unsafe {
            libc::setgroups(groups.len(), groups.as_ptr()) == 0
                && libc::setresgid(*gid, *gid, *gid) == 0
                && libc::setresuid(*uid, *uid, *uid) == 0
        };
        if done { Ok(()) } else { Err(io::Error::last_os_error()) }
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

/// A process group of its own in the terminal's foreground.
fn to_foreground() {
    // SAFETY: no pointers. tcsetpgrp fails without a terminal, which is fine.
    unsafe {
        libc::setpgid(0, 0);
        libc::tcsetpgrp(0, libc::getpid());
    }
}

/// As it was before [`Signals::hold`].
fn let_go(signals: &Signals) {
    // SAFETY: the mask was initialised by `hold`.
    unsafe {
        libc::signal(libc::SIGTTOU, libc::SIG_DFL);
        libc::signal(libc::SIGTTIN, libc::SIG_DFL);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const signals.before, ptr::null_mut());
    }
}

fn become_program(line: &Line, signals: &Signals) -> ExitCode {
    if let Some(Err(error)) = line.user.as_ref().map(User::become_it) {
        return complain(&format!("become the user: {error}"), 126);
    }
    let_go(signals);
    let argv: Vec<&CStr> = line.program.iter().map(CString::as_c_str).collect();
    let error = execute(argv[0], &argv);
    let code = if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
    complain(&format!("{}: {error}", argv[0].to_string_lossy()), code)
}

/// The program in place of this process; looked up in `PATH` unless it has a slash.
fn execute(program: &CStr, argv: &[&CStr]) -> io::Error {
    let mut pointers: Vec<*const c_char> = argv.iter().map(|word| word.as_ptr()).collect();
    pointers.push(ptr::null());
    // SAFETY: `pointers` is a null-terminated array of strings that live until execvp returns.
    unsafe { libc::execvp(program.as_ptr(), pointers.as_ptr()) };
    io::Error::last_os_error()
}

/// The script in place of this process, as root at home. execvp(3) hands what the kernel does not take for a program
/// to `/bin/sh`, but musl's does not.
fn become_script(path: &CStr, signals: &Signals) -> ExitCode {
    let_go(signals);
    // SAFETY: strings that live, and no other thread that reads the environment.
    unsafe {
        libc::chdir(c"/".as_ptr());
        libc::setenv(c"HOME".as_ptr(), c"/root".as_ptr(), 1);
    }
    let mut error = execute(path, &[path]);
    if error.raw_os_error() == Some(libc::ENOEXEC) {
        error = execute(c"/bin/sh", &[c"/bin/sh", path]);
    }
    match error.kind() {
        // Nothing was told.
        io::ErrorKind::NotFound => ExitCode::SUCCESS,
        _ => complain(&format!("start script: {error}"), 126),
    }
}

/// Runs the script to its end; the signal by which the whole guest is to end instead of going on: one from outside
/// that ended the script, or one of those that ask programs to end, also if the script caught it.
fn run_before(path: &CStr, stop: libc::c_int, signals: &Signals) -> Option<u8> {
    let child = match fork() {
        Ok(0) => {
            to_foreground();
            // A child that could not: the code alone says so.
            let failed = become_script(path, signals) != ExitCode::SUCCESS;
            exit_now(i32::from(failed));
        }
        Ok(child) => child,
        Err(error) => {
            complain(&format!("start script: fork: {error}"), 126);
            return None;
        }
    };
    let End { status, passed } = attend(child, signals);
    let asks = |signal: &&i32| {
        **signal == stop || matches!(**signal, libc::SIGTERM | libc::SIGINT | libc::SIGQUIT)
    };
    if let Some(signal) = passed.iter().find(asks) {
        return u8::try_from(*signal).ok();
    }
    if libc::WIFSIGNALED(status) {
        let signal = libc::WTERMSIG(status);
        if passed.contains(&signal) {
            return u8::try_from(signal).ok();
        }
        complain(&format!("start script ended by signal {signal}"), 0);
    } else if libc::WEXITSTATUS(status) != 0 {
        complain(&format!("start script ended with {}", libc::WEXITSTATUS(status)), 0);
    }
    None
}

/// Ends a child of a fork.
fn exit_now(code: i32) -> ! {
    // SAFETY: takes a number and does not return.
    unsafe { libc::_exit(code) }
}

/// How a child ended.
struct End {
    status: i32,
    /// Signals that were handed on to it.
    passed: Vec<i32>,
}

impl End {
    fn code(&self) -> u8 {
        let code = if libc::WIFEXITED(self.status) {
            libc::WEXITSTATUS(self.status)
        } else {
            128 + libc::WTERMSIG(self.status)
        };
        u8::try_from(code).unwrap_or(125)
    }
}

/// Until the child ended.
fn attend(child: libc::pid_t, signals: &Signals) -> End {
    let mut passed = Vec::new();
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
            if !passed.contains(&signal) {
                passed.push(signal);
            }
            continue;
        }
        if let Some(status) = reap(child) {
            return End { status, passed };
        }
    }
}

/// Takes all ended children away; how the program ended if it was among them.
fn reap(program: libc::pid_t) -> Option<i32> {
    loop {
        let mut status = 0;
        // SAFETY: `status` is written.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
        if pid <= 0 {
            return None;
        }
        if pid == program {
            return Some(status);
        }
    }
}
