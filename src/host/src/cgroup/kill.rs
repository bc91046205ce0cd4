//! Ends every process of a group and its children, and removes them.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ocivisor_core::error::{Error, ErrorKind, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::fs::io_error;

/// How long killed processes may take to end. A process in uninterruptible sleep (a dead NFS
/// server) does not end at all: that is reported, not waited for.
const DEADLINE: Duration = Duration::from_secs(20);

/// Kills and waits until the group and all below are empty.
pub(super) fn kill_all(group: &Path) -> Result<()> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let groups = subtree(group)?;
        let mut pids = Vec::new();
        for group in &groups {
            thaw(group);
            pids.extend(processes(group)?);
        }
        if pids.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let what = format!("process {} in {} does not end", pids[0], group.display());
            let hint = "it may wait for a dead disk or file server; see /proc/PID/stack";
            return Err(Error::new(ErrorKind::Timeout, what).hint(hint));
        }
        // cgroup2 kills a subtree at once, forks included (since Linux 5.14).
        let at_once = super::file::write(&group.join("cgroup.kill"), "1").is_ok();
        let fds: Vec<OwnedFd> = pids.iter().filter_map(|pid| open(*pid)).collect();
        if !at_once {
            for fd in &fds {
                // It ended meanwhile, or is not ours to kill: the next round tells.
                let _ = pidfd_send_signal(fd, Signal::KILL);
            }
        }
        for fd in &fds {
            wait_ended(fd, deadline);
        }
    }
}

/// Asks all in the group to end, and waits until they have or the time is over.
pub(super) fn ask_all(group: &Path, deadline: Instant) -> Result<()> {
    let fds: Vec<OwnedFd> = processes(group)?.into_iter().filter_map(open).collect();
    for fd in &fds {
        // It ended meanwhile, or is not ours to ask: killing tells.
        let _ = pidfd_send_signal(fd, Signal::TERM);
    }
    fds.iter().for_each(|fd| wait_ended(fd, deadline));
    Ok(())
}

/// Thaws the group and all below; absent is fine.
pub(super) fn thaw_all(group: &Path) -> Result<()> {
    subtree(group)?.iter().for_each(|group| thaw(group));
    Ok(())
}

/// Removes the group and all below, deepest first; absent is fine. The kernel may still hold a
/// group for a moment after its last process was reaped.
pub(super) fn remove(group: &Path) -> Result<()> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let mut busy = None;
        for path in subtree(group)?.iter().rev() {
            match fs::remove_dir(path) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                    busy = Some(path.clone());
                }
                Err(e) => return Err(io_error("remove control group", path, &e)),
            }
        }
        if busy.is_none() {
            return Ok(());
        }
        pause(Duration::from_millis(1));
    }
}

/// The group and all below, parents first; empty if it does not exist.
fn subtree(group: &Path) -> Result<Vec<PathBuf>> {
    let mut found = vec![group.to_owned()];
    let mut at = 0;
    while let Some(dir) = found.get(at).cloned() {
        at += 1;
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(io_error("list", &dir, &e)),
        };
        for entry in entries.filter_map(io::Result::ok) {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                found.push(entry.path());
            }
        }
    }
    Ok(found)
}

fn processes(group: &Path) -> Result<Vec<i32>> {
    let file = group.join("cgroup.procs");
    match fs::read_to_string(&file) {
        // 0 is a process that this pid namespace does not see.
        Ok(text) => Ok(text.lines().filter_map(|l| l.parse().ok()).filter(|p| *p > 0).collect()),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => Ok(Vec::new()),
        Err(e) => Err(io_error("read", &file, &e)),
    }
}

/// A frozen group does not die. Neither file need exist.
pub(super) fn thaw(group: &Path) {
    let frozen = |file: &str, want: &str| {
        fs::read_to_string(group.join(file)).is_ok_and(|text| text.trim() == want)
    };
    // Failing to thaw shows as a process that does not end.
    if frozen("freezer.state", "FROZEN") || frozen("freezer.state", "FREEZING") {
        let _ = super::file::write(&group.join("freezer.state"), "THAWED");
    }
    if frozen("cgroup.freeze", "1") {
        let _ = super::file::write(&group.join("cgroup.freeze"), "0");
    }
}

fn open(pid: i32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
}

fn wait_ended(fd: &OwnedFd, deadline: Instant) {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
    // Interrupted or not, the caller looks again.
    let _ = poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&timeout));
}

/// Nothing tells when the kernel lets go of a group; the caller bounds how often it asks.
pub(super) fn pause(time: Duration) {
    let timeout = Timespec { tv_sec: 0, tv_nsec: time.subsec_nanos().into() };
    let _ = poll(&mut [], Some(&timeout));
}
