//! Who of a host's VMs has its disks checked now, and the time that this may take.
//!
//! So many checks are at work at once. How long one takes is up to whoever filled the disk, what a filesystem says of its
//! size is that one's word, and nothing tells a host whose a VM is: neither order nor bounds by those would be any. So turns
//! are short. Who is at work for half a minute while others wait stands still, where it is, and goes on when it is first
//! again. Most checks are over by then, and however many long ones there are, each other one has its turn soon.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::num::NonZero;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bounds on checks of tenants' filesystems.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checks {
    /// What those of all disks of a VM may take, each time that it is started, waiting for a turn aside.
    pub limit: Duration,
    /// How many run at once on this host; at least 1.
    pub at_once: usize,
}

impl Default for Checks {
    /// As many at once as there are processors: what else they take is their VMs'.
    fn default() -> Self {
        let at_once = std::thread::available_parallelism().map_or(2, NonZero::get).max(2);
        Self { limit: Duration::from_mins(10), at_once }
    }
}

/// How many times the limit a VM waits for its turns, all together.
const WAITING: u32 = 6;

/// How long a turn is at least.
const TURN: Duration = Duration::from_secs(30);

/// Who is at work on this host, and who is next.
#[derive(Debug)]
pub(in super::super) struct Turns {
    checks: Checks,
    pub(super) length: Duration,
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// First come, first served.
#[derive(Debug, Default)]
pub(in super::super) struct Queue {
    next: u64,
    pub(in super::super) waiting: BTreeSet<u64>,
    pub(in super::super) at_work: usize,
}

impl Queue {
    fn join(&mut self) -> Place {
        let own = self.next;
        self.next += 1;
        self.waiting.insert(own);
        Place::Waiting(own)
    }
}

impl Default for Turns {
    fn default() -> Self {
        Self::new(Checks::default())
    }
}

impl Turns {
    pub(in super::super) fn new(checks: Checks) -> Self {
        Self { checks, length: TURN, queue: Mutex::default(), changed: Condvar::default() }
    }

    /// What all disks of a VM may take.
    pub(super) fn limit(&self) -> Duration {
        self.checks.limit
    }

    /// What they may wait.
    pub(super) fn most_waiting(&self) -> Duration {
        self.checks.limit * WAITING
    }

    pub(in super::super) fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The time that a VM's disks have; it stands still while they wait for those of others.
#[derive(Debug)]
pub(super) struct Time {
    limit: Duration,
    begun: Instant,
    waits: Mutex<Waits>,
}

#[derive(Debug, Default)]
struct Waits {
    before: Duration,
    since: Option<Instant>,
}

impl Time {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, begun: Instant::now(), waits: Mutex::default() }
    }

    pub(super) fn limit(&self) -> Duration {
        self.limit
    }

    pub(super) fn left(&self) -> Duration {
        (self.limit + self.waited()).saturating_sub(self.begun.elapsed())
    }

    pub(super) fn waited(&self) -> Duration {
        let waits = self.waits();
        waits.before + waits.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    fn stand_still(&self) {
        self.waits().since.get_or_insert_with(Instant::now);
    }

    fn go_on(&self) {
        let mut waits = self.waits();
        if let Some(since) = waits.since.take() {
            waits.before += since.elapsed();
        }
    }

    fn waits(&self) -> MutexGuard<'_, Waits> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place among those at work, or among those who wait.
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    time: &'a Time,
    place: Cell<Place>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Waiting(u64),
    AtWork(Instant),
}

impl<'a> Turn<'a> {
    /// Waits.
    pub(super) fn new(turns: &'a Turns, time: &'a Time) -> Self {
        time.stand_still();
        let place = turns.queue().join();
        Self { turns, time, place: Cell::new(place) }
    }

    /// Whether it is on, or comes within this time.
    pub(super) fn comes_within(&self, patience: Duration) -> bool {
        let mut queue = self.turns.queue();
        if self.take(&mut queue) {
            return true;
        }
        let waited = self.turns.changed.wait_timeout(queue, patience);
        self.take(&mut waited.unwrap_or_else(PoisonError::into_inner).0)
    }

    /// Whether it is on. It ends when it was long enough and others wait, and comes again.
    pub(super) fn is_on(&self) -> bool {
        let mut queue = self.turns.queue();
        match self.place.get() {
            Place::AtWork(since)
                if since.elapsed() >= self.turns.length && !queue.waiting.is_empty() =>
            {
                queue.at_work -= 1;
                self.time.stand_still();
                self.place.set(queue.join());
                self.turns.changed.notify_all();
                false
            }
            _ => self.take(&mut queue),
        }
    }

    fn take(&self, queue: &mut Queue) -> bool {
        let Place::Waiting(own) = self.place.get() else { return true };
        let first = queue.waiting.first() == Some(&own);
        if !first || queue.at_work >= self.turns.checks.at_once.max(1) {
            return false;
        }
        queue.waiting.remove(&own);
        queue.at_work += 1;
        self.place.set(Place::AtWork(Instant::now()));
        self.time.go_on();
        // Who is first now may have room as well.
        self.turns.changed.notify_all();
        true
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut queue = self.turns.queue();
        match self.place.get() {
            Place::Waiting(own) => drop(queue.waiting.remove(&own)),
            Place::AtWork(_) => queue.at_work -= 1,
        }
        self.time.go_on();
        self.turns.changed.notify_all();
    }
}
