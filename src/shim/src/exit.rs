//! How a guest ended: the value, its record on disk, and how to ask the kernel for it.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::facts::{Process, process_from_json, process_to_json};
use crate::{json, sys};

/// Name of the record in the VM's run directory.
pub const FILE: &str = "exit.json";
/// Most bytes of a record.
pub const MAX_FILE: u64 = 4096;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this code.
    Code(u8),
    /// By this signal.
    Signal(u8),
    /// Nobody was there to see.
    Unknown,
}

impl Exit {
    /// From a status as wait(2) gives it.
    #[must_use]
    pub fn from_wait_status(status: i32) -> Self {
        // The low seven bits are the signal, 0 for none; bit 7 tells of a core dump.
        match (status & 0x7f, (status >> 8) & 0xff) {
            (0, code) => Self::Code(code as u8),
            (signal, _) => Self::Signal(signal as u8),
        }
    }

    /// The value of that text, see [`fmt::Display`].
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text.split_once(' ') {
            Some(("code", n)) => n.parse().ok().map(Self::Code),
            Some(("signal", n)) => n.parse().ok().map(Self::Signal),
            None if text == "unknown" => Some(Self::Unknown),
            Some(_) | None => None,
        }
    }
}

/// `code 7`, `signal 9` or `unknown`.
impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

/// Content of `exit.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitRecord {
    /// Whose end it is: a record left over from an earlier boot of the guest has another one.
    pub init: Process,
    /// How it ended.
    pub exit: Exit,
}

impl ExitRecord {
    /// As stored.
    #[must_use]
    pub fn to_json(&self) -> String {
        let (kind, value) = match self.exit {
            Exit::Code(code) => ("code", code),
            Exit::Signal(signal) => ("signal", signal),
            Exit::Unknown => ("unknown", 0),
        };
        let init = process_to_json(self.init);
        format!("{{\"version\":1,\"kind\":\"{kind}\",\"value\":{value},\"init\":{init}}}\n")
    }

    /// Reads what was stored; `None` if it is damaged or of another version.
    #[must_use]
    pub fn from_json(bytes: &[u8]) -> Option<Self> {
        let json = json::parse(bytes)?;
        if json.number("version") != Some(1) {
            return None;
        }
        let value = u8::try_from(json.number("value")?).ok()?;
        let exit = match json.text("kind")? {
            "code" => Exit::Code(value),
            "signal" => Exit::Signal(value),
            "unknown" => Exit::Unknown,
            _ => return None,
        };
        Some(Self { init: process_from_json(json.get("init")?)?, exit })
    }
}

/// What the kernel tells of a process that is not our child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// It ended so.
    Exit(Exit),
    /// It ended, its parent has not collected it yet: the kernel tells after that.
    NotYet,
    /// This kernel does not tell (before 6.15).
    Never,
}

/// Asks the kernel how the process of a pidfd ended, `PIDFD_GET_INFO` with `PIDFD_INFO_EXIT`.
/// Meant for processes that did end; a running one is `NotYet`.
#[must_use]
pub fn ask_kernel(pidfd: BorrowedFd<'_>) -> Told {
    match sys::pidfd_exit_status(pidfd) {
        Ok(Some(status)) => Told::Exit(Exit::from_wait_status(status)),
        Ok(None) => Told::NotYet,
        // ESRCH: collected, and this kernel kept nothing. ENOTTY, EINVAL: no such request.
        Err(_) => Told::Never,
    }
}

/// How a process that is not our child ended, once its parent collected it (which the pidfd shows
/// as a hang-up) or `patience` is over. To be asked after the process ended.
#[must_use]
pub fn ask_until_collected(pidfd: BorrowedFd<'_>, patience: Duration) -> Exit {
    let deadline = Instant::now() + patience;
    loop {
        match ask_kernel(pidfd) {
            Told::Exit(exit) => return exit,
            Told::Never => return Exit::Unknown,
            Told::NotYet => {}
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let wait = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let mut fds = [PollFd::from_borrowed_fd(pidfd, PollFlags::empty())];
        match poll(&mut fds, Some(&wait)) {
            Err(Errno::INTR) => {}
            Ok(n) if n > 0 => {}
            Ok(_) | Err(_) => return Exit::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_statuses_are_read_as_wait_2_defines_them() {
        assert_eq!(Exit::from_wait_status(0x0700), Exit::Code(7));
        assert_eq!(Exit::from_wait_status(0), Exit::Code(0));
        assert_eq!(Exit::from_wait_status(9), Exit::Signal(9));
        assert_eq!(Exit::from_wait_status(0x80 | 11), Exit::Signal(11));
    }

    #[test]
    fn records_round_trip_and_are_pinned() {
        let init = Process { pid: 8, start_ticks: 101 };
        let json = ExitRecord { init, exit: Exit::Code(7) }.to_json();
        assert_eq!(
            json,
            "{\"version\":1,\"kind\":\"code\",\"value\":7,\"init\":{\"pid\":8,\"start_ticks\":101}}\n"
        );
        for exit in [Exit::Code(0), Exit::Code(255), Exit::Signal(9), Exit::Unknown] {
            let record = ExitRecord { init, exit };
            assert_eq!(ExitRecord::from_json(record.to_json().as_bytes()), Some(record));
            assert_eq!(Exit::parse(&exit.to_string()), Some(exit));
        }
        assert_eq!(ExitRecord::from_json(&json.as_bytes()[..20]), None);
        assert_eq!(Exit::parse("code"), None);
        assert_eq!(Exit::parse("code 300"), None);
    }
}
