//! Starts what is to run without being asked: after an end that a policy answers, and with the host.
//!
//! ```text
//!   records ─► core::upkeep::next ─► now: an operation `restart`, by the same door as everybody's
//!      ▲                             later: sleep until then, or until something is concluded
//!      └── concluded ◄───────────────┘
//! ```
//!
//! Nothing is remembered here that must not be forgotten: what counts is in the records, and a decision is void
//! if its record has changed before the VM's slot is reached. Only the pace is of this daemon: how many
//! restarts are under way, whose turn it is after a boot of the host, and who could not even be begun.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ocivisor_core::error::{ErrorKind, Result};
use ocivisor_core::ids::VmId;
use ocivisor_core::state::{OpKind, Record, Request};
use ocivisor_core::upkeep::{Next, next};
use tokio::time::Instant;

use crate::health::Healths;
use crate::policy::Policy;
use crate::vms::Vms;

/// Restarts under way at once: guests that all fail at once must not take the host from those that run.
const AT_ONCE: usize = 8;

/// When a restart that could not be begun (no id range, a full disk, a profile not granted) is tried again.
const RETRY: Duration = Duration::from_secs(30);

/// Longest sleep; whatever wakes us may have been missed.
const LONGEST: Duration = Duration::from_secs(30);

/// How long one VM that is not free may keep others waiting.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long guests of the last daemon are waited for before anything is begun.
const SETTLE: Duration = Duration::from_secs(30);

/// The supervisor.
#[derive(Debug)]
pub struct Upkeep {
    vms: Arc<Vms>,
    healths: Arc<Healths>,
    policy: Policy,
    /// Between the end of one turn and the beginning of the next.
    between_turns: Duration,
    turn: Option<Turn>,
    held: BTreeMap<VmId, Instant>,
}

/// A turn of starts after the host booted.
#[derive(Debug)]
struct Turn {
    number: u32,
    begun: BTreeSet<VmId>,
    rested: Instant,
}

impl Upkeep {
    /// For these VMs.
    pub fn new(
        vms: Arc<Vms>,
        healths: Arc<Healths>,
        policy: Policy,
        between_turns: Duration,
    ) -> Self {
        Self { vms, healths, policy, between_turns, turn: None, held: BTreeMap::new() }
    }

    /// Works until it is dropped.
    pub async fn run(mut self) {
        // Whoever is being collected after a boot of the host has its turn, too.
        self.vms.settle(Instant::now() + SETTLE).await;
        loop {
            let records = self.vms.list();
            self.healths.watch(&self.vms, &records);
            let sleep = self.look(&records).await.min(LONGEST);
            // Keeps one call that came meanwhile.
            let _ = tokio::time::timeout(sleep, self.vms.concluded.notified()).await;
        }
    }

    /// Begins what is due; how long until something else is.
    async fn look(&mut self, records: &[Record]) -> Duration {
        let (now, boot) = (self.vms.host.now(), self.vms.host.boot().to_owned());
        self.held.retain(|_, until| *until > Instant::now());
        let mut sleep = LONGEST;
        let mut due = Vec::new();
        let mut turns: BTreeMap<u32, Vec<&Record>> = BTreeMap::new();
        for record in records.iter().filter(|record| !self.held.contains_key(record.id())) {
            match next(record, now, &boot) {
                Next::Rest => {}
                Next::After(Duration::ZERO) => due.push(record),
                Next::After(wait) => sleep = sleep.min(wait),
                Next::InTurn(number) => turns.entry(number).or_default().push(record),
            }
        }
        self.rest(records);
        if let Some((number, members)) = turns.into_iter().next() {
            let wait = self.wait_for_turn(number);
            if wait.is_zero() {
                due.extend(members);
            } else {
                sleep = sleep.min(wait);
            }
        }
        let restarting = |record: &&Record| {
            record.op.as_ref().is_some_and(|op| op.request.kind() == OpKind::Restart)
        };
        let room = AT_ONCE.saturating_sub(records.iter().filter(restarting).count());
        for record in due.into_iter().take(room) {
            self.begin(record).await;
        }
        until_first(&self.held, Instant::now()).map_or(sleep, |wait| sleep.min(wait))
    }

    /// Notes which starts of this turn have ended.
    fn rest(&mut self, records: &[Record]) {
        if let Some(turn) = self.turn.as_mut().filter(|turn| !turn.begun.is_empty()) {
            turn.begun.retain(|id| records.iter().any(|r| r.id() == id && r.op.is_some()));
            turn.rested = Instant::now();
        }
    }

    /// How long until it is this turn: all of the one before have started or failed, and it was quiet
    /// for a moment.
    fn wait_for_turn(&mut self, number: u32) -> Duration {
        if let Some(turn) = &self.turn {
            if turn.number == number {
                return Duration::ZERO;
            }
            if !turn.begun.is_empty() {
                return LONGEST;
            }
            let left = self.between_turns.saturating_sub(turn.rested.elapsed());
            if !left.is_zero() {
                return left;
            }
        }
        tracing::info!("turn {number} of the starts with the host");
        self.turn = Some(Turn { number, begun: BTreeSet::new(), rested: Instant::now() });
        Duration::ZERO
    }

    async fn begin(&mut self, record: &Record) {
        let id = record.id();
        match self.try_begin(record).await {
            Ok(true) => {
                if let Some(turn) = &mut self.turn {
                    turn.begun.insert(id.clone());
                }
            }
            // The request stays, and begins by itself when it can: asking again is for the case that it was lost.
            Ok(false) => {
                self.held.insert(id.clone(), Instant::now() + RETRY);
            }
            // Somebody else was faster; what they do will be concluded.
            Err(error) if error.kind == ErrorKind::Conflict => {
                self.held.insert(id.clone(), Instant::now() + PATIENCE);
            }
            Err(error) => {
                tracing::error!(vm = %id, "vm {id}: cannot be started again: {error}");
                self.held.insert(id.clone(), Instant::now() + RETRY);
            }
        }
    }

    /// False: somebody is at work on it, for longer than others shall wait.
    async fn try_begin(&self, record: &Record) -> Result<bool> {
        self.policy.grant(&record.spec)?;
        let of = record.generation;
        // One per record and write: asked again, it is the same.
        #[expect(clippy::expect_used, reason = "printable ASCII without blanks by construction")]
        let request_id = format!("upkeep-{}", of.0).parse().expect("a valid request id");
        let begun = self.vms.submit(record.id().clone(), Request::Restart { of }, request_id);
        // An export may have the VM for long.
        match tokio::time::timeout(PATIENCE, begun).await {
            Ok(begun) => begun.map(|_| true),
            Err(_) => Ok(false),
        }
    }
}

/// How long until the first of those that are held is looked at again.
fn until_first(held: &BTreeMap<VmId, Instant>, now: Instant) -> Option<Duration> {
    held.values().min().map(|until| until.saturating_duration_since(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_that_is_held_waits_for_longer_than_it_must() {
        let now = Instant::now();
        let mut held = BTreeMap::new();
        assert_eq!(until_first(&held, now), None);
        held.insert("a".parse().unwrap(), now + RETRY);
        assert_eq!(until_first(&held, now), Some(RETRY));
        held.insert("b".parse().unwrap(), now + PATIENCE);
        assert_eq!(until_first(&held, now), Some(PATIENCE));
        // Its time has come: at once.
        assert_eq!(until_first(&held, now + PATIENCE * 2), Some(Duration::ZERO));
    }
}
