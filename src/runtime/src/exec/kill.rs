//! Ends what a session began.
//!
//! All processes of a guest are in the guest's control group, so that tells nothing of who began them. The
//! session of setsid(2) does: the program leads one, and who leaves it (a daemon) did so on purpose. Its
//! number cannot be another's while it has a member or its leader was not reaped.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, kill_process, kill_process_group, pidfd_open,
    pidfd_send_signal, waitpid,
};

use crate::cgroup::Groups;

/// How long what was killed may take to die; one in a frozen group does not.
pub const DEATH: Duration = Duration::from_secs(2);

/// How much of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// The program's process group.
    Group,
    /// All of its session, its background jobs among them.
    Session,
}

/// Kills a program that leads a session and was not reaped, and what belongs to it. All of that is in `groups`,
/// if they are known.
pub fn kill(program: Pid, reach: Reach, groups: Option<&Groups>) {
    // ESRCH: none is left, or it did not lead a group yet.
    let _ = kill_process_group(program, Signal::KILL);
    let _ = kill_process(program, Signal::KILL);
    if reach == Reach::Group {
        return;
    }
    let deadline = Instant::now() + DEATH;
    loop {
        // Again until there is none: one may have forked before it got the signal.
        let members = members(program, groups);
        for member in &members {
            // ESRCH: it ended just now.
            let _ = pidfd_send_signal(member, Signal::KILL);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let (Some(first), false) = (members.first(), left.is_zero()) else { return };
        let wait = Timespec::try_from(left).unwrap_or_default();
        // EINTR: looked at again.
        let _ = poll(&mut [PollFd::from_borrowed_fd(first.as_fd(), PollFlags::IN)], Some(&wait));
    }
}

/// Takes what a child's end left, waiting for that no longer than `patience`: its exit code as shells have it.
///
/// # Errors
/// `TimedOut`: it did not end; in a frozen group of cgroup v1 not even SIGKILL ends anything. Else the kernel refuses.
pub fn reap(child: Pid, patience: Duration) -> io::Result<u8> {
    let deadline = Instant::now() + patience;
    let pidfd = pidfd_open(child, PidfdFlags::empty())?;
    loop {
        if let Some((_, status)) = waitpid(Some(child), WaitOptions::NOHANG)? {
            let code = status.exit_status().or(status.terminating_signal().map(|s| 128 + s));
            return Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(125));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let wait = Timespec::try_from(left).unwrap_or_default();
        // EINTR: looked at again.
        let _ = poll(&mut [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)], Some(&wait));
    }
}

/// The living members of a session.
fn members(session: Pid, groups: Option<&Groups>) -> Vec<OwnedFd> {
    // The guest's few, not the host's many.
    let numbers = groups.and_then(Groups::processes).unwrap_or_else(|| {
        let entries = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    });
    numbers
        .into_iter()
        .filter_map(|number: i32| {
            // First held, then looked at: it is killed by what was looked at.
            let held = pidfd_open(Pid::from_raw(number)?, PidfdFlags::empty()).ok()?;
            let stat = fs::read_to_string(format!("/proc/{number}/stat")).ok()?;
            (living_session(&stat)? == session.as_raw_nonzero().get()).then_some(held)
        })
        .collect()
}

/// The session in a line of proc_pid_stat(5); none if it is dead already.
fn living_session(stat: &str) -> Option<i32> {
    // The name may hold anything, brackets too.
    let mut words = stat.rsplit_once(')')?.1.split_whitespace();
    let state = words.next()?;
    let session = words.nth(2)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(session)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_read_behind_any_name() {
        assert_eq!(living_session("7 (a) S 1) R 1 2 3 4 5"), Some(3));
        assert_eq!(living_session("7 (sh) Z 1 2 3 4 5"), None);
        assert_eq!(living_session("7 (sh"), None);
        assert_eq!(living_session("7 (sh) S 1"), None);
    }
}
