//! The engine's ways back: what follows a step that failed, or an operation that was cut off.
//!
//! ```text
//!   boot      undo    release all; stopped, or forgotten if it was a deploy
//!   absence   stuck   release the rest; as wished if that worked, else failed
//!   change    revert  the guest lives on; the same steps with the wish in force
//! ```

use crate::engine::{Engine, Hooks, Outcome, Point, finish, set_state};
use crate::error::{Error, Result};
use crate::plan::{self, Step, Target};
use crate::state::{Operation, Phase, Record, Request, VmState};

impl Engine<'_> {
    pub(crate) fn undo(
        &self,
        mut record: Record,
        op: &Operation,
        error: Error,
        hooks: &dyn Hooks,
    ) -> Outcome {
        if let Some(op) = &mut record.op {
            op.phase = Phase::Undoing(error.clone());
        }
        // Not durable is fine (the disk may be full): after a crash the operation is found as
        // Doing, and undone all the same.
        let _ = self.save(&mut record);
        hooks.at(record.id(), Point::Undoing);
        match self.release(&mut record, hooks) {
            Ok(()) if matches!(op.request, Request::Deploy(_)) => {
                // A platform that is told of a failed deploy has no such VM here.
                match self.forget(&record) {
                    Ok(()) => Outcome::Forgotten(Err(error)),
                    Err(_) => self.rest(record, op, error, hooks),
                }
            }
            Ok(()) => self.rest(record, op, error, hooks),
            Err(stuck) => self.fail(record, op, &stuck, error),
        }
    }

    /// The way back of an operation that was on it, or is not to go on.
    pub(crate) fn go_back(
        &self,
        record: Record,
        op: &Operation,
        error: Error,
        hooks: &dyn Hooks,
    ) -> Outcome {
        // On its way back it was told of already, with the step that this is for.
        if op.phase == Phase::Doing {
            self.tell_failure(&record, op, None, &error, hooks);
        }
        match op.request {
            Request::Change(_) => self.revert(record, op, error, hooks),
            _ => self.undo(record, op, error, hooks),
        }
    }

    /// Gives a guest that lives what the wish in force says, after a change that failed.
    pub(crate) fn revert(
        &self,
        mut record: Record,
        op: &Operation,
        error: Error,
        hooks: &dyn Hooks,
    ) -> Outcome {
        let steps = self.plan_of(&record, op).steps;
        if let Some(op) = &mut record.op {
            op.phase = Phase::Undoing(error.clone());
        }
        // Not durable is fine: after a crash the operation is found as Doing, and tried again.
        let _ = self.save(&mut record);
        hooks.at(record.id(), Point::Undoing);
        for step in steps.into_iter().rev() {
            hooks.at(record.id(), Point::Before(step));
            if let Err(stuck) = self.run(step, &mut record, hooks) {
                record.note_loss(format!("a failed change was not taken back: {stuck}"));
            }
            hooks.at(record.id(), Point::After(step));
        }
        self.settle_failed(record, op, error, hooks)
    }

    /// Nothing is left on the host: stopped, with the operation failed.
    pub(crate) fn rest(
        &self,
        mut record: Record,
        op: &Operation,
        error: Error,
        hooks: &dyn Hooks,
    ) -> Outcome {
        set_state(&mut record, VmState::Stopped, self.ports.clock.now());
        self.settle_failed(record, op, error, hooks)
    }

    /// Absence was wished for and a step of it failed: release the rest, then say so.
    pub(crate) fn stuck(
        &self,
        mut record: Record,
        op: &Operation,
        step: Step,
        error: Error,
        hooks: &dyn Hooks,
    ) -> Outcome {
        let released = self.release(&mut record, hooks);
        let target = self.plan_of(&record, op).target;
        if released.is_ok() && target != Target::Running {
            // The second try of the failed step worked.
            return self.commit(record, op, target, hooks);
        }
        self.tell_failure(&record, op, Some(step), &error, hooks);
        match released {
            Err(stuck) => self.fail(record, op, &stuck, error),
            Ok(()) => self.undo(record, op, error, hooks),
        }
    }

    /// All of [`plan::release`], going on past failures; the first failure.
    fn release(&self, record: &mut Record, hooks: &dyn Hooks) -> Result<()> {
        let mut result = Ok(());
        for step in plan::release() {
            hooks.at(record.id(), Point::Before(*step));
            result = result.and(self.run(*step, record, hooks).map(|_| ()));
            hooks.at(record.id(), Point::After(*step));
        }
        result
    }

    fn fail(&self, mut record: Record, op: &Operation, stuck: &Error, error: Error) -> Outcome {
        let now = self.ports.clock.now();
        set_state(&mut record, VmState::Failed(stuck.message.clone()), now);
        let error = if error == *stuck {
            error
        } else {
            Error { message: format!("{}; and then: {}", error.message, stuck.message), ..error }
        };
        finish(&mut record, op, now, Err(error.clone()));
        // Not durable is fine: the disk still has the operation, and the next start of the daemon
        // goes on with it.
        let _ = self.save(&mut record);
        Outcome::Settled(Box::new(record), Err(error))
    }
}
