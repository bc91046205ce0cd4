//! When this host starts a VM of its own accord. Pure; the daemon's supervisor carries it out.
//!
//! ```text
//!   ended by itself ─► does its policy start it again? ─► wait, longer each time ─► restart (an operation)
//!                        no: it rests, until somebody asks            │
//!                                                                     └ ran well for a while: from the beginning
//!   host booted     ─► autostart, or was it to run? ─► in its turn ─► restart
//! ```
//!
//! All that counts is in the record, in the same write as the operation that changes it ([`Tally`]): whoever
//! dies in between has either begun a restart, which the next daemon finishes and counts once, or not, and
//! the next daemon decides the same again. An end that somebody asked for is never undone.

use std::time::Duration;

use crate::error::{ErrorKind, Result};
use crate::spec::{Platform, Restart, Upkeep};
use crate::state::{Finished, GuestExit, OpKind, Record, Tally, Timestamp, VmState};

/// Wait before the first restart of a row; each further one waits twice as long. As Docker's.
const FIRST_DELAY: Duration = Duration::from_millis(100);

/// Longest wait. As Docker's.
const LONGEST_DELAY: Duration = Duration::from_mins(1);

/// A guest that ran for so long begins a new row: long against the longest wait, so that one that
/// cannot live does not look as if it could.
const GOOD_RUN: Duration = Duration::from_mins(1);

/// How often in a row a start with the host is tried that the host itself let fail: with the waits between
/// them for some minutes, in which addresses, bridges and mounts of a host that boots come.
const WITH_THE_HOST: u32 = 12;

/// What is to be done for a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing, until something happens to it.
    Rest,
    /// Start it after that time; zero is now.
    After(Duration),
    /// The host was booted: start it in its turn, smaller numbers first.
    InTurn(u32),
}

/// Turn of those that have none: after all others.
pub const LAST_TURN: u32 = u32::MAX;

/// Decides for one VM.
#[must_use]
pub fn next(record: &Record, now: Timestamp, host_boot: &str) -> Next {
    let (upkeep, tally) = (&record.spec.upkeep, &record.tally);
    let settled = record.op.is_none() && record.state == VmState::Stopped;
    if !settled || record.spec.platform != Platform::Local || *upkeep == Upkeep::default() {
        return Next::Rest;
    }
    if tally.host_boot != host_boot {
        let due = upkeep.autostart.is_some()
            || match upkeep.restart {
                Restart::No => false,
                Restart::OnFailure { .. } => tally.wanted && tally.failed,
                Restart::UnlessStopped => tally.wanted,
                Restart::Always => true,
            };
        let turn = upkeep.autostart.map_or(LAST_TURN, u32::from);
        return if due { Next::InTurn(turn) } else { Next::Rest };
    }
    let again = match upkeep.restart {
        Restart::No => upkeep.autostart.is_some() && host_failed(record),
        Restart::OnFailure { .. } => tally.failed && !gave_up(record),
        Restart::UnlessStopped | Restart::Always => true,
    };
    if !(tally.wanted && again) {
        return Next::Rest;
    }
    // A clock that was set back says nothing about how long it has waited; it has waited enough.
    let waited = now.0.checked_sub(tally.since.0).map_or(LONGEST_DELAY, Duration::from_millis);
    Next::After(delay(tally.restarts).saturating_sub(waited))
}

/// Whether its policy has no more restarts for a guest that fails.
#[must_use]
pub fn gave_up(record: &Record) -> bool {
    let Restart::OnFailure { most: Some(most) } = record.spec.upkeep.restart else { return false };
    let Tally { wanted, failed, restarts, .. } = record.tally;
    record.state == VmState::Stopped && wanted && failed && restarts >= most
}

/// Whether the last that happened is a start of our own that failed by the host, not by the guest, and may
/// succeed if it is tried again.
fn host_failed(record: &Record) -> bool {
    let last = record.finished.iter().rfind(|done| done.kind != OpKind::Change);
    let Some(Finished { kind: OpKind::Restart, result: Err(error), .. }) = last else {
        return false;
    };
    let passes = matches!(error.kind, ErrorKind::Host | ErrorKind::NotFound | ErrorKind::Conflict);
    passes && record.tally.restarts < WITH_THE_HOST
}

/// Whether it may be started although nobody asks, now or in its turn: then a wish for its end must be
/// put on record, although it does not run.
#[must_use]
pub(crate) fn is_kept(record: &Record) -> bool {
    let upkeep = &record.spec.upkeep;
    let in_turn = upkeep.autostart.is_some() || upkeep.restart == Restart::Always;
    in_turn || record.tally.wanted && upkeep.restart != Restart::No
}

fn delay(restarts: u32) -> Duration {
    let factor = 1_u32.checked_shl(restarts).unwrap_or(u32::MAX);
    FIRST_DELAY.saturating_mul(factor).min(LONGEST_DELAY)
}

/// Whether this end is a failure. The kernel tells of a guest that powered itself off as of one that was
/// ended by SIGINT (reboot(2), pid namespaces); no other process of a guest can end its first one so.
fn is_failure(exit: GuestExit) -> bool {
    const POWERED_OFF: u8 = 2;
    !matches!(exit, GuestExit::Code(0) | GuestExit::Signal(POWERED_OFF))
}

/// Takes down what the beginning of an operation means, to be written with it. `defined`: the wish that it
/// brings, if it does.
pub(crate) fn begun(record: &mut Record, kind: OpKind, defined: Option<&Upkeep>, host_boot: &str) {
    if let Some(upkeep) = defined {
        record.tally = Tally::default();
        if *upkeep != Upkeep::default() {
            host_boot.clone_into(&mut record.tally.host_boot);
        }
        return;
    }
    let tally = &mut record.tally;
    if record.spec.upkeep == Upkeep::default() || matches!(kind, OpKind::Collect | OpKind::Change) {
        return;
    }
    let another_boot = tally.host_boot != host_boot;
    if kind != OpKind::Restart || another_boot {
        tally.restarts = 0;
    }
    match kind {
        OpKind::Shutdown | OpKind::Destroy | OpKind::Undefine => tally.wanted = false,
        OpKind::Restart => tally.wanted = true,
        _ => {}
    }
    host_boot.clone_into(&mut tally.host_boot);
}

/// Takes down what the end of an operation means, to be written with it.
pub(crate) fn ended(record: &mut Record, kind: OpKind, result: &Result<()>, at: Timestamp) {
    let tally = &mut record.tally;
    if record.spec.upkeep == Upkeep::default() {
        return;
    }
    match kind {
        OpKind::Start | OpKind::Deploy | OpKind::Reboot | OpKind::Reset if result.is_ok() => {
            // Wanted from now on: of a start that failed its caller knows, and decides.
            (tally.wanted, tally.failed) = (true, false);
        }
        OpKind::Restart => {
            tally.restarts = tally.restarts.saturating_add(1);
            tally.failed = match result {
                Ok(()) => false,
                // It ran and ended as any other, only that it did so at once.
                Err(error) if error.kind == ErrorKind::GuestExited => {
                    record.last_exit.is_none_or(is_failure)
                }
                Err(_) => true,
            };
        }
        OpKind::Collect => {
            if at.0.saturating_sub(tally.since.0) >= GOOD_RUN.as_millis() as u64 {
                tally.restarts = 0;
            }
            tally.failed = record.last_exit.is_none_or(is_failure);
        }
        _ => return,
    }
    tally.since = at;
}
