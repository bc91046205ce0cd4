//! Answers a server's wish to open something: seccomp_unotify(2).
//!
//! A path of the disk's own is answered with the file that is open here, whoever it belongs to and wherever it is: the
//! server could not open it itself, and never learns where it is. As it is the very same open file, it has the locks that
//! were taken here, and on a file server the rights of who opened it. Anything else goes the kernel's way, which is that
//! of a user without rights in a root directory with nothing but programs. With the listener gone, nothing opens.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::event::{PollFd, PollFlags, poll};

/// `_IOWR('!', 0, struct seccomp_notif)` and its like, linux/seccomp.h.
const RECEIVE: libc::c_ulong = 0xC050_2100;
const SEND: libc::c_ulong = 0xC018_2101;
const IS_VALID: libc::c_ulong = 0x4008_2102;
const ADD: libc::c_ulong = 0x4018_2103;

/// Longest path of ours.
const PATH: usize = 32;

/// The path under which a server finds the file of that number.
pub(super) fn path_of(number: usize) -> String {
    format!("/disk/{number}")
}

/// Answers until `end` is readable or closed, or the server is gone.
pub(super) fn answer(listener: &OwnedFd, files: &[&File], null: &File, end: impl AsFd) {
    loop {
        let mut fds = [PollFd::new(listener, PollFlags::IN), PollFd::new(&end, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
        if !fds[1].revents().is_empty() {
            return;
        }
        if fds[0].revents().contains(PollFlags::IN) {
            // A request that its maker gave up has no answer.
            let _ = one(listener, files, null);
        } else if fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR) {
            return;
        }
    }
}

fn one(listener: &OwnedFd, files: &[&File], null: &File) -> io::Result<()> {
    let mut request = MaybeUninit::<libc::seccomp_notif>::zeroed();
    // SAFETY: the kernel fills one `struct seccomp_notif`, zeroed as it demands; integers only.
    let request = unsafe {
        if libc::ioctl(listener.as_raw_fd(), RECEIVE as _, request.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        request.assume_init()
    };
    let wanted = path(&request);
    // Else the memory that was read may be another's, who has the number now.
    // SAFETY: the kernel reads one number.
    let valid = unsafe {
        libc::ioctl(listener.as_raw_fd(), IS_VALID as _, std::ptr::from_ref(&request.id))
    };
    if valid != 0 {
        return Ok(());
    }
    let file = wanted.and_then(|path| match path.as_slice() {
        b"/dev/null" => Some(null),
        path => (0..files.len()).find(|n| path_of(*n).as_bytes() == path).map(|n| files[n]),
    });
    match file {
        Some(file) => give(listener, request.id, file),
        None => go_on(listener, request.id),
    }
}

/// The path, if it is as short as one of ours.
fn path(request: &libc::seccomp_notif) -> Option<Vec<u8>> {
    let argument = match libc::c_long::from(request.data.nr) {
        libc::SYS_openat => 1,
        _ => 0,
    };
    let memory = File::open(format!("/proc/{}/mem", request.pid)).ok()?;
    let mut bytes = [0; PATH];
    // Less, where the memory ends.
    let n = memory.read_at(&mut bytes, request.data.args[argument]).ok()?;
    let end = bytes[..n].iter().position(|byte| *byte == 0)?;
    Some(bytes[..end].to_vec())
}

/// The call returns a descriptor of this file.
fn give(listener: &OwnedFd, id: u64, file: &File) -> io::Result<()> {
    let add = libc::seccomp_notif_addfd {
        id,
        flags: libc::SECCOMP_ADDFD_FLAG_SEND as u32,
        srcfd: u32::try_from(file.as_raw_fd()).map_err(io::Error::other)?,
        newfd: 0,
        newfd_flags: libc::O_CLOEXEC.cast_unsigned(),
    };
    // SAFETY: the kernel reads one `struct seccomp_notif_addfd`.
    let done = unsafe { libc::ioctl(listener.as_raw_fd(), ADD as _, std::ptr::from_ref(&add)) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The kernel carries the call out.
fn go_on(listener: &OwnedFd, id: u64) -> io::Result<()> {
    let flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32;
    let response = libc::seccomp_notif_resp { id, val: 0, error: 0, flags };
    // SAFETY: the kernel reads one `struct seccomp_notif_resp`.
    let done =
        unsafe { libc::ioctl(listener.as_raw_fd(), SEND as _, std::ptr::from_ref(&response)) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
