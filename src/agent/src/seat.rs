//! The seat of a host's agent: a locked file, `host-<number>`. Whoever has it locked is the agent.
//!
//! The file holds the agent's [`Orders`] and which process it is. Who takes the seat ends the agent that has it. The lock goes
//! with the process, so nothing is left to be cleared after a crash or a boot.
//!
//! Orders come one after the other and may overtake each other; who has the older [`ticket`] leaves the seat alone.
//!
//! Hosts have numbers, and each has a seat of its own: agents of two front-ends on one machine do not disturb each other.

use std::fs::File;
use std::io::{Seek, Write};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::state::ProcessRef;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::place::Place;
use crate::ticket::{self, Order};
use crate::{Orders, failed};

/// How long an agent may take to end when it is told to.
const GRACE: Duration = Duration::from_secs(3);
/// How long it may take until the seat is free: others who take it are soon done with that.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(20);
/// Most bytes of a seat's file.
const MOST: u64 = crate::MOST + 1024;

/// What is in the file.
#[derive(Debug, Serialize, Deserialize)]
struct Held {
    /// The agent: pid and start time.
    agent: Option<(u32, u64)>,
    orders: Orders,
}

/// A seat that this process has.
#[derive(Debug)]
pub struct Seat {
    file: File,
    name: String,
}

/// How taking a seat went.
#[derive(Debug)]
pub enum Taken {
    /// This process has it.
    Seat(Seat),
    /// There is a newer order, which is this one: the seat is its.
    Overtaken(Order),
}

fn name(host: u32) -> String {
    format!("host-{host}")
}

impl Seat {
    /// Takes the seat of a host; an agent that has it is ended, unless its ticket is newer than this one.
    ///
    /// # Errors
    /// The host's; [`ErrorKind::Timeout`] if somebody does not let go of it.
    pub async fn take(place: &Place, host: u32, ticket: u64) -> Result<Taken> {
        let (name, began) = (name(host), Instant::now());
        let mut told: Option<(ProcessRef, Instant)> = None;
        loop {
            let file = place.lock(&name)?;
            // With the seat or without: whoever draws a ticket from now on ends the one who sits here then.
            if let Some(order) = ticket::overtaken(place, host, ticket).await? {
                return Ok(Taken::Overtaken(order));
            }
            if let Some(file) = file {
                return Ok(Taken::Seat(Self { file, name }));
            }
            if let Some((agent, its)) = holder(place, &name)? {
                // It was not there yet when the tickets were looked at.
                if its > ticket {
                    return Ok(Taken::Overtaken(Order::Start));
                }
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
                let what = format!("{} is not let go of", place.path(&name).display());
                return Err(Error::new(ErrorKind::Timeout, what));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Writes down that this process is the agent, and what it is to do.
    ///
    /// # Errors
    /// The host's.
    pub fn occupy(&mut self, orders: &Orders) -> Result<()> {
        let me = process_ref(std::process::id());
        let me =
            me.ok_or_else(|| Error::new(ErrorKind::Host, "/proc does not know this process"))?;
        let held = Held { agent: Some((me.pid, me.start_ticks)), orders: orders.clone() };
        let text = serde_json::to_vec(&held).map_err(std::io::Error::from);
        let written = text.and_then(|text| {
            self.file.set_len(0)?;
            self.file.rewind()?;
            self.file.write_all(&text)
        });
        let failed = |e| Error::new(ErrorKind::Host, format!("write {}: {e}", self.name));
        written.map_err(failed)
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
}

/// Ends the agent of a host, if there is one, and waits until it is gone. One that is about to begin does not.
///
/// # Errors
/// The host's.
pub async fn end(place: &Place, host: u32) -> Result<()> {
    let ticket = ticket::draw(place, host, Order::Stop).await?;
    Seat::take(place, host, ticket).await.map(drop)
}

/// The ticket of who had the seat last; 0 if nobody had one.
pub(crate) fn ticket(place: &Place, host: u32) -> Result<u64> {
    Ok(held(place, &name(host))?.map_or(0, |held| held.orders.ticket))
}

/// The agent that has it, and its ticket.
fn holder(place: &Place, name: &str) -> Result<Option<(ProcessRef, u64)>> {
    Ok(held(place, name)?.and_then(|held| {
        let (pid, start_ticks) = held.agent?;
        Some((ProcessRef { pid, start_ticks }, held.orders.ticket))
    }))
}

/// `None` if it is half-written, or not yet by an agent: look again later.
fn held(place: &Place, name: &str) -> Result<Option<Held>> {
    let bytes = place.read(name, MOST)?.unwrap_or_default();
    Ok(serde_json::from_slice(&bytes).ok())
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

    fn orders(ticket: u64) -> Orders {
        Orders {
            ticket,
            configuration: "<X><HOST_ID>7</HOST_ID></X>".into(),
            front_end: Some("127.0.0.1".into()),
            socket: "/s".into(),
            state_dir: "/d".into(),
            hypervisor: "ocivisor".into(),
            pci: crate::host::PciFilter::default(),
            version_file: "/v".into(),
            daemon_timeout: 1,
        }
    }

    #[test]
    fn orders_are_handed_on_as_a_file() {
        assert_eq!(Orders::inherit(orders(5).into_file().unwrap()).unwrap(), orders(5));
        let other = std::fs::File::open("/dev/null").unwrap();
        assert!(Orders::inherit(other.into()).is_err());
    }

    async fn seat(place: &Place, ticket: u64) -> Seat {
        match Seat::take(place, 7, ticket).await.unwrap() {
            Taken::Seat(seat) => seat,
            Taken::Overtaken(order) => panic!("overtaken by a {order:?}"),
        }
    }

    async fn overtaken_by(place: &Place, ticket: u64) -> Order {
        match Seat::take(place, 7, ticket).await.unwrap() {
            Taken::Seat(_) => panic!("ticket {ticket} has the seat"),
            Taken::Overtaken(order) => order,
        }
    }

    #[tokio::test]
    async fn a_start_that_was_overtaken_leaves_the_seat_alone() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::open(&dir.path().join("x")).unwrap();
        let old = ticket::draw(&place, 7, Order::Start).await.unwrap();
        let new = ticket::draw(&place, 7, Order::Start).await.unwrap();
        assert_eq!(overtaken_by(&place, old).await, Order::Start, "the newer one is on its way");
        let mut its = seat(&place, new).await;
        // This process, were it told to end, would not be there to say so.
        its.occupy(&orders(new)).unwrap();
        assert_eq!(overtaken_by(&place, old).await, Order::Start, "the newer one is the agent");
        place.remove("ticket-7").unwrap();
        assert_eq!(overtaken_by(&place, old).await, Order::Start, "its seat says so as well");
        assert_eq!(ticket::draw(&place, 7, Order::Start).await.unwrap(), new + 1);
    }

    #[tokio::test]
    async fn a_stop_ends_also_a_start_that_is_under_way() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::open(&dir.path().join("x")).unwrap();
        let under_way = ticket::draw(&place, 7, Order::Start).await.unwrap();
        end(&place, 7).await.unwrap();
        assert_eq!(overtaken_by(&place, under_way).await, Order::Stop);
        let next = ticket::draw(&place, 7, Order::Start).await.unwrap();
        seat(&place, next).await;
    }

    #[tokio::test]
    async fn a_seat_is_one_processes_and_goes_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::open(&dir.path().join("x")).unwrap();
        let mut seat = seat(&place, 1).await;
        assert!(place.lock("host-7").unwrap().is_none());
        assert!(place.lock("host-8").unwrap().is_some(), "other hosts have other seats");
        assert_eq!(holder(&place, "host-7").unwrap(), None);
        seat.occupy(&orders(1)).unwrap();
        assert_eq!(
            holder(&place, "host-7").unwrap().map(|(agent, its)| (Some(agent), its)),
            Some((process_ref(std::process::id()), 1))
        );
        assert!(seat.keep(&place));
        drop(seat);
        assert!(place.lock("host-7").unwrap().is_some());
    }

    #[tokio::test]
    async fn a_removed_file_is_made_again_and_a_taken_one_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::open(&dir.path().join("x")).unwrap();
        let mut seat = seat(&place, 1).await;
        seat.occupy(&orders(1)).unwrap();
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
