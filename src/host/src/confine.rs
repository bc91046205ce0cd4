//! Takes from a tool all that it does not need, between fork(2) and execve(2).
//!
//! For tools that read what others wrote: a filesystem checker at work on a crafted image must not
//! be root. It keeps the descriptors it was given and what everybody on the host may read. It has a
//! user of its own, so it can neither signal nor trace anything, not even another such tool; no
//! capability and no way to gain one; if it parses hostile bytes, no network; bounds on what it
//! uses; and it dies with the thread that waits for it, so that the next attempt is alone at work.
//!
//! Files that it shall open by `/proc/self/fd/N` must be open to that user: see proc_pid_fd(5),
//! opening those links checks permissions anew.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::io::FdFlags;
use rustix::process::{Resource, Rlimit, Signal, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, Uid, UnshareFlags};

/// Users that nothing belongs to: above the last range of guests, below the invalid -1, and what
/// distributions leave alone.
const FIRST_USER: u32 = 0xFFFF_0000;
const USERS: u32 = 0xFF00;

/// Most memory, bytes. A checker notes something about every block: this does for 16 TiB.
const MAX_DATA: u64 = 4 << 30;
/// Most open files; those it was given may have higher numbers.
const MAX_FILES: u64 = 64;

/// What a tool keeps.
#[derive(Debug)]
pub struct Confinement<'a> {
    /// Descriptors that stay open in it, under the same numbers.
    pub files: &'a [BorrowedFd<'a>],
    /// Most bytes of a file it may write.
    pub largest_file: u64,
    /// What it reads.
    pub input: Input,
    /// The user it runs as, see [`user`].
    pub user: u32,
    /// Files of control groups, open for writing, that it is born into; none are those of its parent.
    pub groups: &'a [BorrowedFd<'a>],
}

/// What a tool reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// What we made.
    Ours,
    /// What somebody else wrote; takes half a millisecond more.
    Foreign,
}

/// A user for one run of a tool.
#[must_use]
pub fn user() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    FIRST_USER + NEXT.fetch_add(1, Ordering::Relaxed) % USERS
}

/// The path under which a tool finds a descriptor that it keeps.
#[must_use]
pub fn path_of(file: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// Makes `command` confine itself.
pub(crate) fn confine(command: &mut Command, to: &Confinement<'_>) {
    let files: Vec<_> = to.files.iter().map(AsRawFd::as_raw_fd).collect();
    let groups: Vec<_> = to.groups.iter().map(AsRawFd::as_raw_fd).collect();
    let (user, largest_file, input) = (to.user, to.largest_file, to.input);
    let change = move || -> io::Result<()> {
        for group in &groups {
            // SAFETY: open in the parent while it waits, so open here under the same number.
            let group = unsafe { BorrowedFd::borrow_raw(*group) };
            // Whoever writes it is meant: cgroups(7).
            rustix::io::write(group, b"0")?;
        }
        // Also those that this process was born with.
        // SAFETY: the call takes numbers only and closes nothing now.
        let closed = unsafe {
            libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
        };
        if closed != 0 {
            return Err(io::Error::last_os_error());
        }
        for file in &files {
            // SAFETY: open in the parent while it waits, so open here under the same number.
            let file = unsafe { BorrowedFd::borrow_raw(*file) };
            rustix::io::fcntl_setfd(file, FdFlags::empty())?;
        }
        for (resource, most) in [
            (Resource::Core, 0),
            (Resource::Fsize, largest_file),
            (Resource::Data, MAX_DATA),
            (Resource::Nofile, MAX_FILES),
        ] {
            setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?;
        }
        if input == Input::Foreign {
            let flags = UnshareFlags::NEWNET | UnshareFlags::NEWIPC;
            // SAFETY: the flags do not unshare the descriptor table, which is what makes it unsafe.
            unsafe { rustix::thread::unshare_unsafe(flags) }?;
        }
        let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
        rustix::thread::set_thread_groups(&[])?;
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
        // Empties all sets but the inheritable one, capabilities(7).
        rustix::thread::set_thread_res_uid(uid, uid, uid)?;
        let none = CapabilitySet::empty();
        let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
        rustix::thread::set_capabilities(None, none)?;
        rustix::thread::set_no_new_privs(true)?;
        // A change of user clears it, so it comes last.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        Ok(())
    };
    // SAFETY: runs in the child of a process with many threads, so only what signal-safety(7)
    // allows: it makes system calls and neither allocates nor locks.
    unsafe { command.pre_exec(change) };
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::fd::AsFd;
    use std::time::Duration;

    use super::*;
    use crate::command::run_confined;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn a_confined_tool_is_nobody_and_can_become_nobody_else() {
        for input in [Input::Ours, Input::Foreign] {
            let user = user();
            let to = Confinement { files: &[], largest_file: 7, input, user, groups: &[] };
            let status = run_confined(&["cat", "/proc/self/status"], &to, LONG).unwrap();
            let status = String::from_utf8(status).unwrap();
            let fields: BTreeMap<&str, Vec<&str>> = status
                .lines()
                .filter_map(|line| line.split_once(':'))
                .map(|(name, value)| (name, value.split_whitespace().collect()))
                .collect();
            let user = user.to_string();
            assert_eq!(fields["Uid"], [user.as_str(); 4]);
            assert_eq!(fields["Gid"], [user.as_str(); 4]);
            assert_eq!(fields["Groups"], Vec::<&str>::new());
            assert_eq!(fields["NoNewPrivs"], ["1"]);
            for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
                assert_eq!(fields[set], ["0000000000000000"], "{set}");
            }
        }
    }

    #[test]
    fn a_confined_tool_keeps_what_it_was_given_and_its_bounds() {
        let (given, other) =
            (tempfile::NamedTempFile::new().unwrap(), tempfile::NamedTempFile::new().unwrap());
        // As a descriptor that was inherited.
        rustix::io::fcntl_setfd(&other, FdFlags::empty()).unwrap();
        let files = [given.as_file().as_fd()];
        let to = Confinement {
            files: &files,
            largest_file: 4096,
            input: Input::Ours,
            user: user(),
            groups: &[],
        };
        let open = run_confined(&["ls", "-l", "/proc/self/fd"], &to, LONG).unwrap();
        let open = String::from_utf8(open).unwrap();
        let at = format!("{} -> {}", given.as_raw_fd(), given.path().display());
        assert!(open.contains(&at), "{at} in {open}");
        assert!(!open.contains(other.path().to_str().unwrap()), "{open}");
        // The standard three, the one that was given, and the directory being listed.
        assert_eq!(open.matches(" -> ").count(), 5, "{open}");
        let limits = run_confined(&["cat", "/proc/self/limits"], &to, LONG).unwrap();
        let limits = String::from_utf8(limits).unwrap();
        for (name, most) in [("core file size", "0"), ("file size", "4096")] {
            let line = limits.lines().find(|l| l.starts_with(&format!("Max {name} "))).unwrap();
            assert_eq!(line.split_whitespace().rev().nth(1), Some(most), "{line}");
        }
        // A file of root's alone is closed to it, also by way of a descriptor.
        let read = run_confined(&["cat", &path_of(files[0])], &to, LONG).unwrap_err();
        assert!(read.message.contains("Permission denied"), "{read}");
    }

    #[test]
    fn a_tool_with_foreign_input_has_no_network_and_others_ours() {
        let network = |input| {
            let to = Confinement { files: &[], largest_file: 0, input, user: user(), groups: &[] };
            let link = run_confined(&["readlink", "/proc/self/ns/net"], &to, LONG).unwrap();
            String::from_utf8(link).unwrap().trim().to_owned()
        };
        let ours = std::fs::read_link("/proc/self/ns/net").unwrap();
        assert_eq!(network(Input::Ours), ours.to_str().unwrap());
        assert_ne!(network(Input::Foreign), ours.to_str().unwrap());
    }

    #[test]
    fn users_of_tools_differ_and_are_no_guests() {
        let (one, other) = (user(), user());
        assert_ne!(one, other);
        assert!(one >= FIRST_USER && u32::MAX - (FIRST_USER + USERS) > 1);
    }
}
