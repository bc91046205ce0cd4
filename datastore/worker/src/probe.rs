//! Attempts to break out, made by the confined process itself; only in programs built for tests.
//!
//! Which one is told by the last byte of the id range. What the kernel answers becomes the worker's answer; a kill is
//! seen by whoever started it. The tests (`tests/hostile/escape.rs`) state how each ends.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::path::PathBuf;

use libc::c_long;
use ocivisor_datastore::worker::{Answer, Request, Unusable};

/// Calls with nothing but zeros: the filter does not even look at their arguments.
const CALLS: [c_long; 15] = [
    libc::SYS_socket,
    libc::SYS_execve,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_ptrace,
    libc::SYS_kill,
    libc::SYS_bpf,
    libc::SYS_io_uring_setup,
    libc::SYS_open_by_handle_at,
    libc::SYS_setresuid,
    libc::SYS_keyctl,
    libc::SYS_ioctl,
];

/// Makes the attempt that is asked for, if one is.
pub fn attempt(request: &Request) -> Option<Answer> {
    let which = usize::from(request.id_base().to_le_bytes()[0]);
    let outcome = match which {
        0 => return None,
        1 => File::open("/etc/shadow").map(drop),
        2 => File::open("../../../../../../etc/shadow").map(drop),
        3 => File::open("/proc/1/root/etc/shadow").map(drop),
        4 => call(libc::SYS_clone3, [0; 6]),
        // A process instead of a thread.
        5 => call(libc::SYS_clone, [i64::from(libc::SIGCHLD), 0, 0, 0, 0, 0]),
        // Memory that can be executed.
        6 => {
            let flags = i64::from(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            call(libc::SYS_mmap, [0, 4096, i64::from(libc::PROT_EXEC), flags, -1, 0])
        }
        // The first disk, and the kernel's memory.
        7 => node(libc::S_IFBLK, 8, 0),
        8 => node(libc::S_IFCHR, 1, 1),
        other => call(*CALLS.get(other - 9)?, [0; 6]),
    };
    let step = if outcome.is_ok() { "be held back" } else { "break out" };
    let source = outcome.err().unwrap_or_else(|| io::Error::from_raw_os_error(0));
    Some(Answer::unusable(&Unusable { step, source }))
}

/// What to become in place of a tool, if that is asked for; the tests are in `tests/hostile/tools.rs`.
pub fn instead(request: &Request) -> Option<(PathBuf, Vec<String>)> {
    let program =
        |path: &str, argv: &[&str]| (path.into(), argv.iter().map(ToString::to_string).collect());
    let shell = |script| program("/bin/sh", &["sh", "-c", script]);
    match request.id_base().to_le_bytes()[0] {
        40 | 44 | 45 => Some(program("/bin/sleep", &["sleep", "1000"])),
        41 => Some(shell("read x </proc/1/environ; echo x >/tree/new; (true)")),
        42 => Some(shell("exec yes >/fd/3")),
        // Far more than a pipe holds.
        43 => Some(shell(
            "i=0; while [ $i -lt 20000 ]; do echo \"line $i\" >&2; i=$((i + 1)); done; \
             printf '\\033[31m%0900d\\n' 7 >&2; exit 7",
        )),
        _ => None,
    }
}

fn node(kind: libc::mode_t, major: u32, minor: u32) -> io::Result<()> {
    let device = i64::try_from(libc::makedev(major, minor)).map_err(io::Error::other)?;
    let name = c"node".as_ptr() as i64;
    call(
        libc::SYS_mknodat,
        [i64::from(libc::AT_FDCWD), name, i64::from(kind | 0o666), device, 0, 0],
    )
}

fn call(number: c_long, [a, b, c, d, e, f]: [i64; 6]) -> io::Result<()> {
    // SAFETY: pointers among the arguments are null or of a constant string; none of these calls is expected to
    // return at all, and if one did, its effect is what the test is there to find.
    match unsafe { libc::syscall(number, a, b, c, d, e, f) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
