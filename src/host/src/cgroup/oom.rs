//! Learns that the kernel killed a process of a guest because the guest's memory was full.
//!
//! v2 tells by POLLPRI on `memory.events` (cgroup-v2.rst), v1 by an eventfd that was given to
//! `cgroup.event_control` together with `memory.oom_control` (cgroup-v1/memory.rst, section 10). Both
//! only say that something happened; the counter `oom_kill` says how often. Only this guest's processes
//! are killed for its limit.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ids::VmId;
use rustix::event::{EventfdFlags, eventfd};

use super::HostCgroups;
use crate::fs::io_error;

/// A guest that is watched.
#[derive(Debug)]
pub struct OomWatch {
    path: PathBuf,
    counter: File,
    /// v1.
    event: Option<OwnedFd>,
}

/// How a descriptor tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tells {
    /// It has something exceptional (POLLPRI) until the counter was read.
    ByPriority,
    /// It can be read.
    ByReading,
}

impl HostCgroups {
    /// Begins to watch a guest whose groups are there.
    ///
    /// # Errors
    /// It has no group, or the kernel cannot tell.
    pub fn watch_oom(&self, id: &VmId) -> Result<OomWatch> {
        if let Some(root) = self.hierarchies.v2("memory") {
            let path = self.group(root, id, "guest").join("memory.events");
            let counter = File::open(&path).map_err(|e| io_error("open", &path, &e))?;
            return Ok(OomWatch { path, counter, event: None });
        }
        let root = self.hierarchies.v1("memory").ok_or_else(|| {
            let what = format!("the memory of vm {id} is not counted");
            Error::new(ErrorKind::Unsupported, what)
        })?;
        let group = self.group(root, id, "guest");
        let path = group.join("memory.oom_control");
        let counter = File::open(&path).map_err(|e| io_error("open", &path, &e))?;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let event = eventfd(0, flags)
            .map_err(|e| Error::new(ErrorKind::Host, format!("make an eventfd: {e}")))?;
        let control = group.join("cgroup.event_control");
        let line = format!("{} {}", event.as_raw_fd(), counter.as_raw_fd());
        // One write(2), as the kernel wants it.
        let registered = OpenOptions::new()
            .write(true)
            .open(&control)
            .and_then(|mut f| f.write_all(line.as_bytes()));
        registered.map_err(|e| io_error("register for events at", &control, &e))?;
        Ok(OomWatch { path, counter, event: Some(event) })
    }
}

impl OomWatch {
    /// The descriptor that tells, and how.
    #[must_use]
    pub fn descriptor(&self) -> (BorrowedFd<'_>, Tells) {
        match &self.event {
            Some(event) => (event.as_fd(), Tells::ByReading),
            None => (self.counter.as_fd(), Tells::ByPriority),
        }
    }

    /// Processes killed since the guest booted; what happens from here on is told anew.
    ///
    /// # Errors
    /// The group is gone, or cannot be read.
    pub fn kills(&self) -> Result<u64> {
        if let Some(event) = &self.event {
            // Empty is fine: nothing happened since.
            let _ = rustix::io::read(event, &mut [0; 8]);
        }
        let mut buffer = [0; 1024];
        let read = self.counter.read_at(&mut buffer, 0);
        let len = read.map_err(|e| io_error("read", &self.path, &e))?;
        let text = String::from_utf8_lossy(&buffer[..len]);
        let kills =
            text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok());
        Ok(kills.unwrap_or(0))
    }
}
