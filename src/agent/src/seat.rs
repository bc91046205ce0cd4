//! The seat of a host's agent: a locked file, `host-<number>`. Whoever has it locked is the agent, or is about to leave one.
//!
//! The file holds the agent's [`Orders`] and which process it is. A start takes the seat, ending the agent that has
//! it; then the agent inherits the open file, lock and all, so there is no moment at which two could have it. The lock
//! goes with the process, so nothing is left to be cleared after a crash or a boot.
//!
//! Hosts have numbers, and each has a seat of its own: agents of two front-ends on one machine do not disturb each other.

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::state::ProcessRef;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::place::Place;
use crate::{Orders, failed};

/// How long an agent may take to end when it is told to.
const GRACE: Duration = Duration::from_secs(3);
/// How long another start may take with the seat, which has a time limit of its own.
const PATIENCE: Duration = Duration::from_secs(80);
const PAUSE: Duration = Duration::from_millis(20);
/// Most bytes of a seat's file.
const MOST: u64 = 1 << 20;

/// What is in the file.
#[derive(Debug, Serialize, Deserialize)]
struct Held {
    /// The agent, once it runs: pid and start time.
    agent: Option<(u32, u64)>,
    orders: Orders,
}

/// A seat that this process has.
#[derive(Debug)]
pub struct Seat {
    file: File,
    name: String,
}

fn name(host: u32) -> String {
    format!("host-{host}")
}

impl Seat {
    /// Takes the seat of a host; an agent that has it is ended.
    ///
    /// # Errors
    /// The host's; [`ErrorKind::Timeout`] if another start does not let go of it.
    pub async fn take(place: &Place, host: u32) -> Result<Self> {
        let (name, began) = (name(host), Instant::now());
        let mut told: Option<(ProcessRef, Instant)> = None;
        loop {
            if let Some(file) = place.lock(&name)? {
                return Ok(Self { file, name });
            }
            if let Some(agent) = holder(place, &name)? {
                match told {
                    Some((known, _)) if known != agent => told = None,
                    Some((_, since)) if since.elapsed() > GRACE => tell(agent, Signal::KILL),
                    Some(_) => {}
                    None => {
                        tell(agent, Signal::TERM);
                        told = Some((agent, Instant::now()));
                    }
                }
            }
            if began.elapsed() > PATIENCE {
                let what = format!("{} is held by another start", place.path(&name).display());
                return Err(Error::new(ErrorKind::Timeout, what));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Writes down what the agent is to do.
    ///
    /// # Errors
    /// The host's.
    pub fn order(&mut self, orders: &Orders) -> Result<()> {
        self.write(&Held { agent: None, orders: orders.clone() })
    }

    /// The open file, for the agent to inherit.
    #[must_use]
    pub fn into_file(self) -> OwnedFd {
        self.file.into()
    }

    /// The seat that was inherited as that file, and its orders. From now on this process is the agent.
    ///
    /// # Errors
    /// It is no seat.
    pub fn inherit(file: OwnedFd) -> Result<(Self, Orders)> {
        let file = File::from(file);
        let bad = |why: &dyn std::fmt::Display| {
            Error::new(ErrorKind::Invalid, format!("this is no seat of an agent: {why}"))
        };
        let size = file.metadata().map_err(|e| bad(&e))?.len().min(MOST);
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        file.read_exact_at(&mut bytes, 0).map_err(|e| bad(&e))?;
        let held: Held = serde_json::from_slice(&bytes).map_err(|e| bad(&e))?;
        let host = held.orders.monitor()?.0.host;
        let mut seat = Self { file, name: name(host) };
        let me = process_ref(std::process::id()).ok_or_else(|| bad(&"/proc does not know us"))?;
        seat.write(&Held { agent: Some((me.pid, me.start_ticks)), orders: held.orders.clone() })?;
        Ok((seat, held.orders))
    }

    /// Whether the seat is still this one's: what old files are removed for (tmpfiles.d(5)) is put off, and a file that
    /// was removed nevertheless is made again.
    pub fn keep(&mut self, place: &Place) -> bool {
        match place.holds(&self.name, &self.file) {
            Some(true) => {
                let times = std::fs::FileTimes::new();
                let now = std::time::SystemTime::now();
                // Not being able to is no reason to end.
                let _ = self.file.set_times(times.set_accessed(now).set_modified(now));
                true
            }
            Some(false) => false,
            None => self.again(place).unwrap_or(false),
        }
    }

    fn again(&mut self, place: &Place) -> Result<bool> {
        let Some(file) = place.lock(&self.name)? else { return Ok(false) };
        let mut bytes = Vec::new();
        let size = self.file.metadata().map_err(|e| failed("read", &place.path(&self.name), &e))?;
        bytes.resize(usize::try_from(size.len().min(MOST)).unwrap_or(0), 0);
        let copied =
            self.file.read_exact_at(&mut bytes, 0).and_then(|()| file.write_all_at(&bytes, 0));
        copied.map_err(|e| failed("write", &place.path(&self.name), &e))?;
        self.file = file;
        Ok(true)
    }

    fn write(&mut self, held: &Held) -> Result<()> {
        let text = serde_json::to_vec(held).map_err(std::io::Error::from);
        let written = text.and_then(|text| {
            self.file.set_len(0)?;
            self.file.rewind()?;
            self.file.write_all(&text)
        });
        let failed = |e| Error::new(ErrorKind::Host, format!("write {}: {e}", self.name));
        written.map_err(failed)
    }
}

/// Ends the agent of a host, if there is one, and waits until it is gone.
///
/// # Errors
/// The host's.
pub async fn end(place: &Place, host: u32) -> Result<()> {
    Seat::take(place, host).await.map(drop)
}

fn holder(place: &Place, name: &str) -> Result<Option<ProcessRef>> {
    let bytes = place.read(name, MOST)?.unwrap_or_default();
    // Half-written, or not yet by an agent: look again later.
    let held: Option<Held> = serde_json::from_slice(&bytes).ok();
    let agent = held.and_then(|held| held.agent);
    Ok(agent.map(|(pid, start_ticks)| ProcessRef { pid, start_ticks }))
}

/// Sends a signal to that very process; gone is fine.
pub fn tell(process: ProcessRef, signal: Signal) {
    let Some(pid) = i32::try_from(process.pid).ok().and_then(Pid::from_raw) else { return };
    let Ok(fd) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    // The pid was looked up by number: only a start time that still matches proves identity.
    if process_ref(process.pid) == Some(process) {
        // It ended meanwhile, which is what was wanted.
        let _ = pidfd_send_signal(&fd, signal);
    }
}

/// The process of that number, with when it started (field 22 of /proc/PID/stat, proc(5)).
#[must_use]
pub fn process_ref(pid: u32) -> Option<ProcessRef> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the command in parentheses, and may hold anything.
    let after = &stat[stat.rfind(')')? + 1..];
    let start_ticks = after.split_ascii_whitespace().nth(19)?.parse().ok()?;
    Some(ProcessRef { pid, start_ticks })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn orders() -> Orders {
        Orders {
            configuration: "<X><HOST_ID>7</HOST_ID></X>".into(),
            front_end: Some("127.0.0.1".into()),
            socket: "/s".into(),
            state_dir: "/d".into(),
            hypervisor: "ocivisor".into(),
            version_file: "/v".into(),
            daemon_timeout: 1,
        }
    }

    #[tokio::test]
    async fn a_seat_is_one_processes_and_goes_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::open(&dir.path().join("x")).unwrap();
        let mut seat = Seat::take(&place, 7).await.unwrap();
        assert!(place.lock("host-7").unwrap().is_none());
        assert!(place.lock("host-8").unwrap().is_some(), "other hosts have other seats");
        assert_eq!(holder(&place, "host-7").unwrap(), None);
        seat.order(&orders()).unwrap();
        let (mut seat, read) = Seat::inherit(seat.into_file()).unwrap();
        assert_eq!(read, orders());
        assert_eq!(holder(&place, "host-7").unwrap(), process_ref(std::process::id()));
        assert!(seat.keep(&place));
        drop(seat);
        assert!(place.lock("host-7").unwrap().is_some());
    }

    #[tokio::test]
    async fn a_removed_file_is_made_again_and_a_taken_one_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::open(&dir.path().join("x")).unwrap();
        let mut seat = Seat::take(&place, 7).await.unwrap();
        seat.order(&orders()).unwrap();
        place.remove("host-7").unwrap();
        assert!(seat.keep(&place));
        assert!(place.lock("host-7").unwrap().is_none());
        let text = String::from_utf8(place.read("host-7", MOST).unwrap().unwrap()).unwrap();
        assert!(text.contains("HOST_ID"));
        place.remove("host-7").unwrap();
        let other = place.lock("host-7").unwrap().unwrap();
        assert!(!seat.keep(&place));
        drop(other);
        assert!(!seat.keep(&place), "it was another's meanwhile");
    }
}
