//! What to do about a VM whose record and host may disagree: after a crash of the daemon, a reboot
//! of the host, the end of a guest or of its shim. Pure; the daemon carries the decision out.
//!
//! Wishes for absence go forward (shutdown, destroy, undefine, collect), boots are finished if the
//! guest runs and undone otherwise, and a settled VM is made to hold exactly what its state says.
//! A system that rebooted itself is booted anew, as a machine is.

use crate::error::{Error, ErrorKind};
use crate::ports::GuestView;
use crate::state::{
    GuestExit, GuestKind, OpKind, Operation, Phase, Record, Request, Timestamp, VmState,
};

/// How a guest ends that called reboot(2) to restart: that call sends its first process SIGHUP. No other way leads
/// there, for signals without a handler do not reach the first process of a namespace (pid_namespaces(7)).
const REBOOTED_ITSELF: GuestExit = GuestExit::Signal(1);
/// Milliseconds that a guest must have run to be booted anew when it reboots itself. Else it would do nothing but
/// that, and keep the host busy.
const LEAST_RUN: u64 = 1000;
/// So many resets within so many milliseconds are not followed by another one, however long each guest ran.
const MOST_RESETS: usize = 5;
const RESETS_WITHIN: u64 = 60_000;

/// What is seen on the host of one VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observed {
    /// Its guest.
    pub guest: GuestView,
    /// Whether anything of it exists: process, mount, device, link, namespace, cgroup.
    pub remains: bool,
    /// Whether the host has been rebooted since the guest was created.
    pub rebooted: bool,
    /// When this was seen.
    pub at: Timestamp,
    /// Whether the display that it wishes for, if any, is there.
    pub shown: bool,
}

impl Observed {
    /// Whether the guest that was made in this boot of the host runs.
    #[must_use]
    pub fn runs(self) -> bool {
        !self.rebooted && matches!(self.guest, GuestView::Running { .. })
    }

    /// Whether the guest on record ended to be booted anew.
    fn rebooted_itself(self, record: &Record) -> bool {
        let system = record.guest.as_ref().is_some_and(|g| g.kind == GuestKind::System);
        use OpKind::{Deploy, Reboot, Reset, Restart, Start};
        let boot = |kind| matches!(kind, Start | Deploy | Reboot | Reset | Restart);
        let booted = record.finished.iter().rev().find(|op| boot(op.kind)).map(|op| op.at);
        // A clock that was set back says nothing: then it ran.
        let ran =
            booted.is_none_or(|b| self.at.0 >= b.0.saturating_add(LEAST_RUN) || self.at.0 < b.0);
        let recent = record.finished.iter().filter(|op| {
            let age = self.at.0.checked_sub(op.at.0);
            op.kind == OpKind::Reset && age.is_some_and(|age| age < RESETS_WITHIN)
        });
        let ran = ran && recent.count() < MOST_RESETS;
        let exited = self.guest == GuestView::Exited(REBOOTED_ITSELF);
        system && ran && exited && !self.rebooted
    }
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// All is as recorded.
    Nothing,
    /// The guest runs; see that its shim answers.
    Adopt,
    /// The guest runs and its display is gone: make it again. The guest is not touched.
    Show,
    /// The VM holds what it must not: release it, the record stays.
    Clear,
    /// The guest ended: run [`Request::Collect`].
    Collect,
    /// The guest ended to be booted anew: run [`Request::Reset`].
    Reboot,
    /// Carry the recorded operation on.
    Resume,
    /// The recorded boot came far enough: adopt and commit it.
    FinishBoot,
    /// Undo the recorded operation; this is its outcome.
    Undo(Error),
}

/// Decides for one VM whose recorded operation, if any, nobody is carrying out.
#[must_use]
pub fn decide(record: &Record, observed: Observed) -> Decision {
    match &record.op {
        Some(op) => decide_interrupted(record, op, observed),
        None => decide_settled(record, observed),
    }
}

fn decide_settled(record: &Record, observed: Observed) -> Decision {
    match &record.state {
        VmState::Running | VmState::Paused if observed.runs() => match observed.guest {
            GuestView::Running { shim_alive: true } if observed.shown => Decision::Nothing,
            GuestView::Running { shim_alive: true } => Decision::Show,
            _ => Decision::Adopt,
        },
        // Committed as running, so it was started; its shim could not write that down (disk full).
        VmState::Running | VmState::Paused
            if !observed.rebooted && observed.guest == GuestView::Created =>
        {
            Decision::Nothing
        }
        VmState::Running if observed.rebooted_itself(record) => Decision::Reboot,
        VmState::Running | VmState::Paused => Decision::Collect,
        VmState::Stopped | VmState::Suspended if observed.remains => Decision::Clear,
        // Why it failed is what remains; `destroy` tries again.
        VmState::Stopped | VmState::Suspended | VmState::Failed(_) => Decision::Nothing,
    }
}

fn decide_interrupted(record: &Record, op: &Operation, observed: Observed) -> Decision {
    if let Phase::Undoing(error) = &op.phase {
        return Decision::Undo(error.clone());
    }
    match op.request {
        Request::Define(_)
        | Request::Shutdown { .. }
        | Request::Destroy { .. }
        | Request::Undefine
        | Request::Collect => Decision::Resume,
        Request::Start | Request::Deploy(_) | Request::Restart { .. }
            if record.guest.is_some() && observed.runs() =>
        {
            Decision::FinishBoot
        }
        // A run like any other, only that nobody saw it begin: it counts.
        Request::Restart { .. }
            if record.guest.is_some() && matches!(observed.guest, GuestView::Exited(_)) =>
        {
            let what = format!("restart vm {}: the guest ended at once", record.id());
            Decision::Undo(Error::new(ErrorKind::GuestExited, what))
        }
        // Nobody is told of a failure, and none must be counted: on with it.
        Request::Restart { .. } if !observed.rebooted => Decision::Resume,
        // Each step may run twice; of a VM that does not run only the record is changed.
        Request::Change(_) if !record.state.is_live() || observed.runs() => Decision::Resume,
        // Whether the guest seen is the old or the new one cannot be told: once more, from the
        // start. Namespaces and NICs are still those of before, unless the host was rebooted.
        Request::Reboot { .. } | Request::Reset if observed.remains && !observed.rebooted => {
            Decision::Resume
        }
        Request::Start
        | Request::Deploy(_)
        | Request::Restart { .. }
        | Request::Reboot { .. }
        | Request::Reset
        | Request::Change(_) => {
            let kind = op.request.kind();
            let what = format!("{kind} vm {}: ocivisord ended meanwhile", record.id());
            let cut_off = Error::new(ErrorKind::Host, what);
            Decision::Undo(cut_off.hint("nothing of it was left running; try again"))
        }
    }
}
