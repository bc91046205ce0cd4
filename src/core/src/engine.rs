//! Carries out admitted plans: intent, effects, commit; or intent, effects, undo.
//!
//! ```text
//!   begin      op recorded, generation + 1, durable          nothing was touched before
//!   carry_out  steps in order
//!      ok      commit: state = target, op = none, durable    then publish, then answer
//!      failed  op.phase = Undoing(error), durable; release; commit the old state, or Failed
//!      given up for `destroy`: left as it is, the next plan releases everything
//! ```
//!
//! The engine owns no thread and no lock: one caller per VM (its actor) at a time.

use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::failure::KeptFailure;
use crate::ids::{OpId, RequestId, VmId};
use crate::plan::{Failure, Plan, Step, Target};
use crate::ports::{GuestView, Ports};
use crate::rewire::{self, Move};
use crate::spec::{NicSpec, Upkeep, VmSpec};
use crate::state::{Finished, GuestExit, Operation, Phase, Record, Request, Timestamp, VmState};
use crate::upkeep;

/// What the engine tells while it works, and asks.
pub trait Hooks {
    /// A step of the VM's operation is about to run, or has run. Fault points hang here.
    fn at(&self, id: &VmId, point: Point);

    /// Whether the operation was preempted and shall stop where it is.
    fn given_up(&self) -> bool;

    /// The operation failed, and nothing is released yet. To be kept for who asks why.
    fn failed(&self, failure: KeptFailure);
}

/// Places between two instructions where a crash is worth testing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Point {
    /// The intent is durable.
    Intended,
    /// The step is next.
    Before(Step),
    /// The step is done.
    After(Step),
    /// The undo is recorded.
    Undoing,
    /// The commit is durable.
    Committed,
}

/// How [`Engine::carry_out`] ended.
#[derive(Debug)]
pub enum Outcome {
    /// Committed: this is the record now, this the answer.
    Settled(Box<Record>, Result<()>),
    /// The VM is no longer known; this is the answer.
    Forgotten(Result<()>),
    /// Given up between two steps; the record still carries the operation.
    GivenUp(Box<Record>),
}

/// Runs operations on the ports of a host.
#[derive(Debug, Clone, Copy)]
pub struct Engine<'a> {
    /// The host.
    pub ports: Ports<'a>,
    /// How long a new guest must run before `start` answers: an entrypoint that fails at once is
    /// a failed start, not a running VM.
    pub settle: Duration,
}

/// Whether to go on after the steps of a plan.
enum Walk {
    Done,
    GivenUp,
    Failed(Step, Error),
}

impl Engine<'_> {
    /// Records the intent of an admitted request. Nothing else is touched.
    ///
    /// # Errors
    /// The intent is not durable; nothing happened. `Exhausted`: no id range is free.
    pub fn begin(
        &self,
        record: Option<Record>,
        id: &VmId,
        request: Request,
        request_id: RequestId,
        op: OpId,
    ) -> Result<Record> {
        let now = self.ports.clock.now();
        let before = record.clone();
        let mut record = match (record, &request) {
            (Some(record), _) => record,
            (None, Request::Define(spec) | Request::Deploy(spec)) => {
                Record::new((**spec).clone(), now)
            }
            (None, _) => return Err(crate::admission::not_found(id)),
        };
        if let Some(preempted) = record.op.take() {
            let what = format!(
                "{} of vm {id} was given up for {}",
                preempted.request.kind(),
                request.kind()
            );
            finish(&mut record, &preempted, now, Err(Error::new(ErrorKind::Cancelled, what)));
        }
        if matches!(request, Request::Deploy(_)) {
            // A guest on record is from here on the one that this deploy made: after a crash the old
            // one must not be taken for it. It is released by the VM's id.
            record.guest = None;
        }
        let defined = match &request {
            Request::Define(spec) | Request::Deploy(spec) => Some(&spec.upkeep),
            _ => None,
        };
        upkeep::begun(&mut record, request.kind(), defined, &self.ports.clock.host_boot());
        if matches!(request, Request::Start | Request::Deploy(_) | Request::Restart { .. }) {
            record.ids = Some(self.ports.ids.take_ids(id)?);
        }
        record.op =
            Some(Operation { id: op, request_id, request, phase: Phase::Doing, started: now });
        if let Err(error) = self.save(&mut record) {
            // It may have been written all the same (the directory's sync failed): put back what the
            // caller is told, as well as can be.
            match before {
                Some(before) => drop(self.ports.records.save(&before)),
                None => {
                    drop(self.ports.records.remove(id));
                    self.ports.ids.free_ids(id);
                }
            }
            return Err(error);
        }
        Ok(record)
    }

    /// Carries out the operation of `record`, from its beginning or again after a crash.
    pub fn carry_out(&self, record: Record, hooks: &dyn Hooks) -> Outcome {
        let mut record = record;
        let Some(op) = record.op.clone() else {
            return Outcome::Settled(Box::new(record), Ok(()));
        };
        hooks.at(record.id(), Point::Intended);
        if let Phase::Undoing(error) = &op.phase {
            return self.go_back(record, &op, error.clone(), hooks);
        }
        let plan = self.plan_of(&record, &op);
        match self.walk(&plan.steps, &mut record, hooks) {
            Walk::Done => self.commit(record, &op, plan.target, hooks),
            Walk::GivenUp => Outcome::GivenUp(Box::new(record)),
            Walk::Failed(step, error) => {
                let error = error.context(format!("{} vm {}", op.request.kind(), record.id()));
                let failure = step.failure();
                // What is stuck is tried once more first.
                if failure != Failure::Stuck {
                    self.tell_failure(&record, &op, Some(step), &error, hooks);
                }
                match failure {
                    _ if matches!(op.request, Request::Change(_)) => {
                        self.revert(record, &op, error, hooks)
                    }
                    Failure::Keep | Failure::Revert => {
                        self.settle_failed(record, &op, error, hooks)
                    }
                    Failure::Release => self.undo(record, &op, error, hooks),
                    Failure::Stuck => self.stuck(record, &op, step, error, hooks),
                }
            }
        }
    }

    /// Writes a settled change of the record (an adoption, a loss).
    ///
    /// # Errors
    /// Not written.
    pub fn save(&self, record: &mut Record) -> Result<()> {
        record.generation = record.generation.next();
        self.ports.records.save(record)
    }

    /// The plan as it was made before the intent was recorded: the same after a crash.
    pub(crate) fn plan_of(&self, record: &Record, op: &Operation) -> Plan {
        let mut before = record.clone();
        before.op = None;
        Plan::of(&op.request, Some(&before))
    }

    fn walk(&self, steps: &[Step], record: &mut Record, hooks: &dyn Hooks) -> Walk {
        for step in steps {
            if hooks.given_up() {
                return Walk::GivenUp;
            }
            hooks.at(record.id(), Point::Before(*step));
            match self.run(*step, record, hooks) {
                Ok(true) => hooks.at(record.id(), Point::After(*step)),
                Ok(false) => return Walk::GivenUp,
                Err(error) => return Walk::Failed(*step, error),
            }
        }
        Walk::Done
    }

    /// One step; false if it was given up while waiting.
    pub(crate) fn run(&self, step: Step, record: &mut Record, hooks: &dyn Hooks) -> Result<bool> {
        let Ports { network, storage, cgroups, guests, .. } = self.ports;
        let id = record.id().clone();
        match step {
            Step::Namespaces => network.ensure_namespaces(&id, ids_of(record)?)?,
            Step::Nics => {
                for nic in &record.spec.nics {
                    network.ensure_nic(&id, nic)?;
                }
            }
            Step::Root => {
                let device = storage.ensure_root(&record.spec, ids_of(record)?)?;
                cgroups.limit_disk(&id, "root", device, &record.spec.root.io)?;
            }
            Step::Disks => {
                let given = self.give_disks(record, hooks);
                // A check that was broken off for whoever asked is no failure of the disk.
                return if hooks.given_up() { Ok(false) } else { given.map(|()| true) };
            }
            Step::Display => self.show(record)?,
            Step::Cgroup => {
                // The first effect of a boot: from here on the spec is that of the operation.
                if let Some(Operation { request: Request::Deploy(spec), .. }) = &record.op {
                    record.spec = (**spec).clone();
                }
                cgroups.ensure_cgroup(&id, &record.spec.resources)?;
            }
            Step::Create => {
                record.guest = Some(guests.create_guest(&record.spec, ids_of(record)?)?);
                record.last_exit = None;
                // Durable before the guest runs, so that a crash after its first instruction
                // finds whom to adopt.
                self.save(record)?;
            }
            Step::Tell => {
                if let Some(facts) = &record.guest {
                    guests.tell_guest(&wish_of(record), facts)?;
                }
            }
            Step::Limit => cgroups.change_limits(&id, &wish_of(record).resources)?,
            Step::Rewire => self.rewire(record)?,
            Step::Start => {
                if let Some(facts) = &record.guest {
                    guests.start_guest(&id, facts)?;
                }
            }
            Step::Settle => return self.settle(record, hooks),
            Step::AskToEnd { timeout_ms, force } => {
                return self.ask_to_end(record, timeout_ms, force, hooks);
            }
            Step::DropGuest => {
                if let (Some(facts), None) = (&record.guest, record.last_exit) {
                    // Last chance to learn how it ended; what is alive now is ended by us.
                    record.last_exit = match guests.observe_guest(&id, Some(facts)) {
                        Ok(GuestView::Exited(exit)) => Some(exit),
                        Ok(GuestView::Running { .. } | GuestView::Created) => {
                            Some(GuestExit::Signal(9))
                        }
                        Ok(GuestView::Absent) | Err(_) => Some(GuestExit::Unknown),
                    };
                    if record.spec.upkeep != Upkeep::default() {
                        // Whether it is started again hangs on it, and it cannot be learnt twice.
                        self.save(record)?;
                    }
                }
                guests.drop_guest(&id)?;
                record.guest = None;
            }
            Step::DropDisplay => self.ports.displays.drop_display(&id)?,
            Step::DropCgroup => cgroups.drop_cgroup(&id)?,
            Step::DropNics => {
                for nic in nics_of(record) {
                    network.drop_nic(&id, &nic)?;
                }
            }
            Step::DropDisks => storage.drop_disks(&id)?,
            Step::DropRoot => storage.drop_root(&id)?,
            Step::DropNamespaces => network.drop_namespaces(&id)?,
        }
        Ok(true)
    }

    /// Forward from the NICs in force to the changed ones, on the way back the other way round: whatever was done
    /// of it is done again, or taken back.
    fn rewire(&self, record: &Record) -> Result<()> {
        let Some(Operation { request: Request::Change(change), phase, .. }) = &record.op else {
            return Ok(());
        };
        let (old, new) = (&record.spec, record.spec.changed(change));
        let (from, to) = match phase {
            Phase::Doing => (&old.nics, &new.nics),
            Phase::Undoing(_) => (&new.nics, &old.nics),
        };
        let (id, network) = (record.id(), self.ports.network);
        let mut result = Ok(());
        for step in rewire::moves(from, to) {
            // Forward the first failure ends it; on the way back one NIC less is no reason for two.
            if result.is_err() && *phase == Phase::Doing {
                break;
            }
            result = result.and(match step {
                Move::Drop(nic) => network.drop_nic(id, nic),
                Move::Alter { from, to } => network.alter_nic(id, from, to),
                Move::Make(nic) => network.ensure_nic(id, nic),
            });
        }
        result
    }

    /// Attaches the data disks and bounds their traffic.
    fn give_disks(&self, record: &mut Record, hooks: &dyn Hooks) -> Result<()> {
        let Ports { storage, cgroups, .. } = self.ports;
        let give_up = || hooks.given_up();
        for given in storage.ensure_disks(&record.spec, ids_of(record)?, &give_up)? {
            let wish = record.spec.disks.iter().find(|disk| disk.number == given.number);
            let io = wish.map(|disk| disk.io).unwrap_or_default();
            let name = format!("disks.{}", given.number);
            cgroups.limit_disk(record.id(), &name, Some(given.device), &io)?;
            if let Some(note) = given.note
                && !record.losses.contains(&note)
            {
                record.note_loss(note);
            }
        }
        Ok(())
    }

    /// Sees that the display that is wished for is there.
    pub(crate) fn show(&self, record: &Record) -> Result<()> {
        match &record.spec.graphics {
            Some(graphics) => {
                let ids = ids_of(record)?;
                self.ports.displays.ensure_display(record.id(), graphics, ids)
            }
            None => Ok(()),
        }
    }

    fn settle(&self, record: &mut Record, hooks: &dyn Hooks) -> Result<bool> {
        let Some(facts) = &record.guest else {
            return Ok(true);
        };
        let (id, guests) = (record.id(), self.ports.guests);
        let exit = guests.wait_exit(id, facts, self.settle, &|| hooks.given_up())?;
        let Some(exit) = exit else {
            return Ok(!hooks.given_up());
        };
        let words = guests.last_words(id).map_or(String::new(), |words| format!(": {words}"));
        let what = format!("the guest ended at once with {exit}{words}");
        let hint = "see the image's entrypoint and command, and the vm's memory limit";
        record.last_exit = Some(exit);
        Err(Error::new(ErrorKind::GuestExited, what).hint(hint))
    }

    fn ask_to_end(
        &self,
        record: &mut Record,
        timeout_ms: u64,
        force: bool,
        hooks: &dyn Hooks,
    ) -> Result<bool> {
        let Some(facts) = record.guest.clone() else {
            return Ok(true);
        };
        let (id, guests) = (record.id().clone(), self.ports.guests);
        match guests.observe_guest(&id, Some(&facts))? {
            GuestView::Running { .. } => {}
            GuestView::Absent | GuestView::Exited(_) => return Ok(true),
            // Of a reboot that a crash cut off: created, never started, there is nobody to ask. Else
            // the record says that it runs, and the record is right.
            GuestView::Created
                if matches!(record.op, Some(Operation { request: Request::Reboot { .. }, .. })) =>
            {
                return Ok(true);
            }
            GuestView::Created => {}
        }
        guests.signal_guest(&id, &facts, facts.stop_signal)?;
        let timeout = Duration::from_millis(timeout_ms);
        let exit = guests.wait_exit(&id, &facts, timeout, &|| hooks.given_up())?;
        record.last_exit = exit;
        match exit {
            Some(_) => Ok(true),
            None if hooks.given_up() => Ok(false),
            None if force => {
                record.last_exit = Some(GuestExit::Signal(9));
                Ok(true)
            }
            None => {
                let what = format!("the guest did not end within {} s", timeout.as_secs());
                let hint = "it runs on; destroy it, or allow force";
                Err(Error::new(ErrorKind::Timeout, what).hint(hint))
            }
        }
    }

    pub(crate) fn settle_failed(
        &self,
        mut record: Record,
        op: &Operation,
        error: Error,
        hooks: &dyn Hooks,
    ) -> Outcome {
        finish(&mut record, op, self.ports.clock.now(), Err(error.clone()));
        // Not durable is fine: the disk still has the operation, and undoing it again ends here.
        if self.save(&mut record).is_ok() {
            hooks.at(record.id(), Point::Committed);
        }
        Outcome::Settled(Box::new(record), Err(error))
    }

    pub(crate) fn commit(
        &self,
        mut record: Record,
        op: &Operation,
        target: Target,
        hooks: &dyn Hooks,
    ) -> Outcome {
        let now = self.ports.clock.now();
        let state = match target {
            Target::Running => VmState::Running,
            Target::Stopped => VmState::Stopped,
            Target::Same => record.state.clone(),
            Target::Forgotten => {
                return match self.forget(&record) {
                    Ok(()) => {
                        hooks.at(record.id(), Point::Committed);
                        Outcome::Forgotten(Ok(()))
                    }
                    Err(error) => {
                        self.tell_failure(&record, op, None, &error, hooks);
                        self.rest(record, op, error, hooks)
                    }
                };
            }
        };
        let before = record.spec.clone();
        match &op.request {
            Request::Define(spec) => record.spec = (**spec).clone(),
            Request::Change(change) => record.spec = record.spec.changed(change),
            _ => {}
        }
        let mut committed = record.clone();
        set_state(&mut committed, state, now);
        finish(&mut committed, op, now, Ok(()));
        let Err(error) = self.save(&mut committed) else {
            hooks.at(committed.id(), Point::Committed);
            return Outcome::Settled(Box::new(committed), Ok(()));
        };
        self.tell_failure(&record, op, None, &error, hooks);
        match target {
            // A guest whose start cannot be recorded must not run on unknown to its caller.
            Target::Running => self.undo(record, op, error, hooks),
            // A guest must not obey what is not on record.
            Target::Same => {
                record.spec = before;
                self.revert(record, op, error, hooks)
            }
            // All is as wished but for the record; a restart finds the operation and commits it.
            Target::Stopped | Target::Forgotten => {
                Outcome::Settled(Box::new(committed), Err(error))
            }
        }
    }

    pub(crate) fn forget(&self, record: &Record) -> Result<()> {
        self.ports.guests.forget_guest(record.id())?;
        self.ports.records.remove(record.id())?;
        self.ports.ids.free_ids(record.id());
        Ok(())
    }
}

fn ids_of(record: &Record) -> Result<crate::ids::IdRange> {
    let missing = || {
        let what = format!("vm {} has no id range", record.id());
        Error::new(ErrorKind::Integrity, what).hint("destroy it and start it again")
    };
    record.ids.ok_or_else(missing)
}

/// What a step is to bring about: the wish in force; of a change that goes forward, the changed one.
fn wish_of(record: &Record) -> VmSpec {
    match &record.op {
        Some(Operation { request: Request::Change(change), phase: Phase::Doing, .. }) => {
            record.spec.changed(change)
        }
        _ => record.spec.clone(),
    }
}

/// NICs that may exist: of the spec in force and of the one being deployed.
pub(crate) fn nics_of(record: &Record) -> Vec<NicSpec> {
    let mut nics = record.spec.nics.clone();
    if let Some(Operation { request: Request::Deploy(spec), .. }) = &record.op {
        nics.extend(spec.nics.iter().filter(|nic| !record.spec.nics.contains(nic)).cloned());
    }
    nics
}

pub(crate) fn set_state(record: &mut Record, state: VmState, now: Timestamp) {
    if record.state != state {
        record.changed = now;
    }
    if state == VmState::Stopped {
        record.guest = None;
    }
    record.state = state;
}

pub(crate) fn finish(record: &mut Record, op: &Operation, at: Timestamp, result: Result<()>) {
    record.op = None;
    upkeep::ended(record, op.request.kind(), &result, at);
    record.finished.push(Finished {
        id: op.id,
        request_id: op.request_id.clone(),
        kind: op.request.kind(),
        at,
        result,
    });
    let excess = record.finished.len().saturating_sub(Record::KEPT_OPS);
    record.finished.drain(..excess);
}
