//! Processes that are not taken for others: pid plus start time, and pidfds.

use std::fs;
use std::os::fd::OwnedFd;

use ocivisor_core::state::ProcessRef;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Clock ticks after boot at which a process started: field 22 of /proc/PID/stat, proc(5). `None`
/// if there is no such process.
#[must_use]
pub fn start_ticks(pid: u32) -> Option<u64> {
    stat_field(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?, 22)?.parse().ok()
}

/// Whether the process exists and is no zombie.
#[must_use]
pub fn is_alive(process: ProcessRef) -> bool {
    let stat = match fs::read_to_string(format!("/proc/{}/stat", process.pid)) {
        Ok(stat) => stat,
        // Only these say that it is gone; for want of descriptors or memory nobody is declared dead.
        Err(e) => return !matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)),
    };
    let same = stat_field(&stat, 22).and_then(|t| t.parse().ok()) == Some(process.start_ticks);
    same && !matches!(stat_field(&stat, 3), None | Some("Z" | "X"))
}

/// The process by pid, if it exists.
#[must_use]
pub fn process_ref(pid: u32) -> Option<ProcessRef> {
    start_ticks(pid).map(|start_ticks| ProcessRef { pid, start_ticks })
}

/// A descriptor of that very process; `None` if it is gone (also if the pid was reused).
#[must_use]
pub fn pidfd(process: ProcessRef) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(process.pid).ok()?)?;
    let fd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    // The pid was looked up by number: only a start time that still matches proves identity.
    (start_ticks(process.pid) == Some(process.start_ticks)).then_some(fd)
}

/// Kills that very process; gone is fine.
pub fn kill(process: ProcessRef) {
    if let Some(fd) = pidfd(process) {
        // ESRCH: it ended meanwhile, which is what was wanted.
        let _ = pidfd_send_signal(&fd, Signal::KILL);
    }
}

/// Field `n` (from 1) of a line of /proc/PID/stat. The second field is the command in parentheses
/// and may hold anything, so fields are counted after the last parenthesis.
fn stat_field(stat: &str, n: usize) -> Option<&str> {
    let after = &stat[stat.rfind(')')? + 1..];
    after.split_ascii_whitespace().nth(n.checked_sub(3)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_fields_survive_hostile_command_names() {
        let stat = "7 (a) S 1) R 2 3";
        assert_eq!(stat_field(stat, 3), Some("R"));
        assert_eq!(stat_field(stat, 4), Some("2"));
        assert_eq!(stat_field("", 3), None);
    }

    #[test]
    fn this_process_is_alive_and_a_reused_pid_is_another() {
        let me = process_ref(std::process::id()).unwrap();
        assert!(is_alive(me));
        assert!(pidfd(me).is_some());
        let other = ProcessRef { start_ticks: me.start_ticks + 1, ..me };
        assert!(!is_alive(other));
        assert!(pidfd(other).is_none());
    }
}
