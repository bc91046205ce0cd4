//! All VMs, each with at most one operation under way. The crossing from async to the engine.
//!
//! A VM's slot is the only way to its record: whoever holds it decides (admission is pure) and
//! records the intent; then the operation runs on a blocking thread while the slot is free for
//! others to be denied, to join, or to preempt. Nothing here is lost with a client that hangs up:
//! every request runs in a task of its own to its recorded intent.

mod losses;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ocivisor_core::admission::{Admission, admit, not_found};
use ocivisor_core::engine::{Hooks, Outcome, Point};
use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::failure::KeptFailure;
use ocivisor_core::ids::{OpId, RequestId, VmId};
use ocivisor_core::reconcile::{self, Decision, Observed};
use ocivisor_core::state::{OpKind, Record, Request};
use ocivisor_core::upkeep::gave_up;
use ocivisor_datastore::Cancel;
use ocivisor_schema::Text;
use ocivisor_schema::event::EventDataV1;
use ocivisor_schema::reply::{OperationReply, StateNameV1};
use tokio::sync::{Mutex as AsyncMutex, Notify, watch};
use tokio::task::spawn_blocking;

use crate::events::Events;
use crate::faults;
use crate::holds::{Free, Holds};
use crate::host::Host;
use crate::operations::{Operations, Subject};

/// All VMs of the daemon.
#[derive(Debug)]
pub struct Vms {
    /// The host that they run on.
    pub host: Arc<Host>,
    /// What happened.
    pub events: Arc<Events>,
    /// What is happening.
    pub operations: Arc<Operations>,
    /// Called when an operation was concluded; for the one who does upkeep.
    pub concluded: Notify,
    slots: Mutex<BTreeMap<VmId, Arc<Slot>>>,
}

/// One VM's place.
#[derive(Debug, Default)]
struct Slot {
    state: AsyncMutex<State>,
    /// The record as last written, for readers that do not wait.
    shown: Mutex<Option<Record>>,
    /// Why requests are refused, if the record on disk is damaged.
    damaged: Mutex<Option<String>>,
    holds: Holds,
}

#[derive(Debug, Default)]
struct State {
    record: Option<Record>,
    running: Option<Running>,
}

/// An operation on a blocking thread.
#[derive(Debug)]
struct Running {
    give_up: Arc<AtomicBool>,
    /// Of work on the VM as it is, which who wishes it gone need not wait for.
    cancel: Option<Cancel>,
    done: watch::Receiver<bool>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Vms {
    /// No VMs yet.
    pub fn new(host: Arc<Host>, events: Arc<Events>, operations: Arc<Operations>) -> Arc<Self> {
        let concluded = Notify::new();
        Arc::new(Self { host, events, operations, concluded, slots: Mutex::default() })
    }

    /// Takes in a record that was found on disk, with its operations.
    pub async fn load(&self, record: Record) {
        let id = record.id().clone();
        let under_way = record.op.iter().map(|op| op.id);
        for op in record.finished.iter().map(|done| done.id).chain(under_way) {
            self.operations.seen(op);
        }
        for done in &record.finished {
            self.operations.note(done.id, &id, done.kind, done.result.clone());
        }
        if let Some(op) = &record.op {
            self.operations.begin(op.id, Subject::Vm(id.clone()), op.request.kind().name(), None);
        }
        let slot = self.slot(&id);
        *lock(&slot.shown) = Some(record.clone());
        slot.state.lock().await.record = Some(record);
    }

    /// Takes note of a record that cannot be read: its VM is not touched, and cannot be used.
    pub fn load_damaged(&self, id: &VmId, why: String) {
        *lock(&self.slot(id).damaged) = Some(why);
    }

    /// All records, by id.
    pub fn list(&self) -> Vec<Record> {
        self.each(|record| Some(record.clone()))
    }

    /// What `of` says of each record, by id. It is called with the record locked: who only looks at a few fields spares the
    /// copy of a thousand records, and must not ask for a VM meanwhile.
    pub fn each<T>(&self, mut of: impl FnMut(&Record) -> Option<T>) -> Vec<T> {
        let slots: Vec<Arc<Slot>> = lock(&self.slots).values().cloned().collect();
        slots.iter().filter_map(|slot| of(lock(&slot.shown).as_ref()?)).collect()
    }

    /// VMs whose records are damaged, with why, by id.
    pub fn damaged(&self) -> Vec<(VmId, String)> {
        let slots = lock(&self.slots);
        let damaged =
            slots.iter().filter_map(|(id, slot)| Some((id, lock(&slot.damaged).clone()?)));
        damaged.map(|(id, why)| (id.clone(), why)).collect()
    }

    /// The root disks of all VMs.
    ///
    /// # Errors
    /// A record is damaged: its VM may run, and which disk it has is not known.
    pub fn disks(&self) -> Result<Vec<std::path::PathBuf>> {
        for (id, slot) in &*lock(&self.slots) {
            if let Some(why) = &*lock(&slot.damaged) {
                return Err(damaged(id, why));
            }
        }
        Ok(self.each(|record| Some(record.spec.root.path.clone())))
    }

    /// A VM's record.
    pub fn get(&self, id: &VmId) -> Result<Record> {
        let slot = lock(&self.slots).get(id).cloned().ok_or_else(|| not_found(id))?;
        if let Some(why) = lock(&slot.damaged).clone() {
            return Err(damaged(id, &why));
        }
        let shown = lock(&slot.shown).clone();
        shown.ok_or_else(|| not_found(id))
    }

    fn slot(&self, id: &VmId) -> Arc<Slot> {
        lock(&self.slots).entry(id.clone()).or_default().clone()
    }

    /// Asks for something. Returns when the intent is durable, or there is nothing to do.
    pub async fn submit(
        self: &Arc<Self>,
        id: VmId,
        request: Request,
        request_id: RequestId,
    ) -> Result<OperationReply> {
        let vms = Arc::clone(self);
        let task = tokio::spawn(async move {
            let slot = vms.slot(&id);
            let reply = vms.admit(&id, &slot, request, request_id).await;
            // Nothing stays of a VM that was asked for and is not known.
            if slot.state.try_lock().is_ok_and(|s| s.record.is_none() && s.running.is_none()) {
                vms.forget(&id, &slot);
            }
            reply
        });
        task.await.unwrap_or_else(|e| Err(Error::new(ErrorKind::Host, format!("request: {e}"))))
    }

    async fn admit(
        self: &Arc<Self>,
        id: &VmId,
        slot: &Arc<Slot>,
        request: Request,
        request_id: RequestId,
    ) -> Result<OperationReply> {
        if let Some(why) = lock(&slot.damaged).clone() {
            return Err(damaged(id, &why));
        }
        loop {
            let mut state = slot.state.lock().await;
            let decision = admit(id, state.record.as_ref(), &request, &request_id);
            let (wait, give_up) = match (&decision, &state.running) {
                (Admission::Preempt(..), Some(running)) => (running.done.clone(), true),
                // The daemon itself is at work (an adoption, a clearing): short, not to be preempted,
                // and what it leads to is not on record yet.
                (Admission::Run(_) | Admission::AlreadyTrue, Some(running)) => {
                    (running.done.clone(), false)
                }
                // Nobody asked for what is under way: who asks now need not know of it, and waits.
                (Admission::Deny(_), Some(running)) if is_own(state.record.as_ref()) => {
                    (running.done.clone(), false)
                }
                _ => {
                    return self.decide(id, slot, &mut state, decision, request, request_id).await;
                }
            };
            if let Some(running) = &state.running {
                if give_up {
                    running.give_up.store(true, Ordering::Relaxed);
                }
                let ends = matches!(
                    request,
                    Request::Destroy { .. } | Request::Shutdown { force: true, .. }
                );
                if let Some(cancel) = running.cancel.as_ref().filter(|_| ends) {
                    cancel.cancel();
                }
            }
            drop(state);
            ended(wait).await;
        }
    }

    async fn decide(
        self: &Arc<Self>,
        id: &VmId,
        slot: &Arc<Slot>,
        state: &mut State,
        decision: Admission,
        request: Request,
        request_id: RequestId,
    ) -> Result<OperationReply> {
        let reply = |state: &State, op: Option<OpId>, joined: bool| OperationReply {
            op: op.map(Text),
            vm: Text(id.clone()),
            state: state.record.as_ref().map(|record| StateNameV1::from(&record.state)),
            joined,
        };
        match decision {
            Admission::Deny(error) => Err(error),
            Admission::AlreadyTrue => Ok(reply(state, None, false)),
            Admission::Join(op) => Ok(reply(state, Some(op), true)),
            Admission::Repeat(done) => {
                self.operations.note(done.id, id, done.kind, done.result);
                Ok(reply(state, Some(done.id), true))
            }
            Admission::Run(_) | Admission::Preempt(..) => {
                let op = self.operations.next()?;
                let kind = request.kind();
                let victim = state.record.as_ref().and_then(|r| r.op.as_ref().map(|op| op.id));
                let (host, before) = (Arc::clone(&self.host), state.record.clone());
                let vm = id.clone();
                let begun =
                    blocking(move || host.engine().begin(before, &vm, request, request_id, op));
                let record = begun.await??;
                if let Some(victim) = victim {
                    let done = record.finished.iter().find(|done| done.id == victim);
                    let result = done.map_or(Ok(()), |done| done.result.clone());
                    self.operations.finish(victim, result.clone());
                    let operation = done.map_or(kind, |done| done.kind).name().to_owned();
                    let (op, result) = (Text(victim), (&result).into());
                    self.publish(id, EventDataV1::OperationFinished { op, operation, result });
                }
                self.operations.begin(op, Subject::Vm(id.clone()), kind.name(), None);
                tracing::info!(vm = %id, %op, kind = kind.name(), "{kind} {id} begins");
                let operation = kind.name().to_owned();
                self.publish(id, EventDataV1::OperationStarted { op: Text(op), operation });
                state.record = Some(record.clone());
                *lock(&slot.shown) = Some(record.clone());
                let reply = reply(state, Some(op), false);
                self.carry_out(slot, state, id, op, kind, move |host, hooks| {
                    host.engine().carry_out(record, hooks)
                });
                Ok(reply)
            }
        }
    }

    /// Runs `work` for the VM on a blocking thread, with the slot marked as running.
    fn carry_out(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        state: &mut State,
        id: &VmId,
        op: OpId,
        kind: OpKind,
        work: impl FnOnce(&Host, &dyn Hooks) -> Outcome + Send + 'static,
    ) {
        let (done, receiver) = watch::channel(false);
        let give_up = Arc::new(AtomicBool::new(false));
        let running = Running { give_up: Arc::clone(&give_up), cancel: None, done: receiver };
        state.running = Some(running);
        let (vms, slot, id) = (Arc::clone(self), Arc::clone(slot), id.clone());
        tokio::spawn(async move {
            let (host, hooks) =
                (Arc::clone(&vms.host), OpHooks { vms: Arc::clone(&vms), op, kind, give_up });
            let outcome = blocking(move || {
                let outcome = work(&host, &hooks);
                host.failures.concluded(&id, kind, &outcome);
                outcome
            })
            .await;
            vms.conclude(&slot, op, kind, outcome).await;
            done.send_replace(true);
        });
    }

    /// Takes the outcome in: record, events, waiters.
    async fn conclude(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        op: OpId,
        kind: OpKind,
        outcome: Result<Outcome>,
    ) {
        let mut state = slot.state.lock().await;
        state.running = None;
        let Some(before) = state.record.clone() else { return };
        let id = before.id().clone();
        let (record, result) = match outcome {
            Ok(Outcome::Settled(record, result)) => (Some(*record), result),
            Ok(Outcome::Forgotten(result)) => (None, result),
            Ok(Outcome::GivenUp(record)) => {
                *lock(&slot.shown) = Some((*record).clone());
                state.record = Some(*record);
                return;
            }
            // The engine panicked: a bug. The record on disk says what was intended.
            Err(error) => (Some(before.clone()), Err(error)),
        };
        match &result {
            Ok(()) => tracing::info!(vm = %id, %op, kind = kind.name(), "{kind} {id}: done"),
            Err(error) => {
                tracing::error!(vm = %id, %op, kind = kind.name(), "{kind} {id} failed: {error}");
            }
        }
        state.record.clone_from(&record);
        lock(&slot.shown).clone_from(&record);
        self.tell_changes(&id, &before, record.as_ref());
        self.operations.finish(op, result.clone());
        let known = self.operations.get(op).is_some();
        if known {
            self.publish(
                &id,
                EventDataV1::OperationFinished {
                    op: Text(op),
                    operation: kind.name().to_owned(),
                    result: (&result).into(),
                },
            );
        }
        self.concluded.notify_one();
        match record {
            Some(record) if record.state.is_live() => crate::watch::new_guest(self, &record),
            Some(_) => {}
            None => {
                drop(state);
                self.forget(&id, slot);
            }
        }
    }

    /// Drops the slot of a VM that is no longer known, unless somebody is about to use it.
    fn forget(&self, id: &VmId, slot: &Arc<Slot>) {
        let mut slots = lock(&self.slots);
        // The map and our caller: others get at the slot only through the map, which we hold.
        let unknown = lock(&slot.shown).is_none() && lock(&slot.damaged).is_none();
        if Arc::strong_count(slot) <= 2 && unknown {
            slots.remove(id);
        }
    }

    fn tell_changes(&self, id: &VmId, before: &Record, after: Option<&Record>) {
        let Some(after) = after else {
            self.publish(id, EventDataV1::VmForgotten);
            return;
        };
        let (from, to) = (StateNameV1::from(&before.state), StateNameV1::from(&after.state));
        if from != to {
            self.publish(id, EventDataV1::StateChanged { from: Some(from), to });
        }
        if let (Some(exit), None) = (after.last_exit, before.last_exit) {
            self.publish(id, EventDataV1::GuestExited { exit: exit.into() });
        }
        if gave_up(after) && !gave_up(before) {
            let restarts = after.tally.restarts;
            tracing::warn!(vm = %id, restarts, "vm {id}: failed again, not restarted any more");
            self.publish(id, EventDataV1::RestartsExhausted { restarts });
        }
        let shim = |record: &Record| record.guest.as_ref().map(|guest| guest.shim);
        let same_guest =
            before.guest.as_ref().map(|g| g.init) == after.guest.as_ref().map(|g| g.init);
        if same_guest && shim(before) != shim(after) {
            let losses = after.losses.clone();
            self.publish(id, EventDataV1::ShimAdopted { losses });
        }
    }

    /// Adds an event about a VM.
    pub fn publish(&self, id: &VmId, data: EventDataV1) {
        self.events.publish(self.host.now(), &Subject::Vm(id.clone()), data);
    }

    /// Brings one VM's record and host together, if nobody is at work on it.
    /// `remains`: whether anything of it was seen on the host; `None`: look.
    pub async fn reconcile(self: &Arc<Self>, id: &VmId, remains: Option<bool>) -> Result<()> {
        let Some(slot) = lock(&self.slots).get(id).cloned() else { return Ok(()) };
        let mut state = slot.state.lock().await;
        let Some(record) = state.record.clone().filter(|_| state.running.is_none()) else {
            return Ok(());
        };
        let (host, seen) = (Arc::clone(&self.host), record.clone());
        let observed: Observed = blocking(move || {
            let remains = remains.map_or_else(|| host.remains_of(seen.id()), Ok)?;
            host.engine().observe(&seen, remains)
        })
        .await??;
        let decision = reconcile::decide(&record, observed);
        if decision == Decision::Nothing {
            if record.state.is_live() {
                // Dead already, and looking at it just now did not help: the periodic comparison
                // tries again, without haste.
                let _ = crate::watch::guest(self, &record);
            }
            return Ok(());
        }
        tracing::info!(vm = %id, ?decision, "vm {id}: record and host differ");
        let own = if decision == Decision::Reboot { OpKind::Reset } else { OpKind::Collect };
        let kind = record.op.as_ref().map_or(own, |op| op.request.kind());
        let op = match &record.op {
            Some(op) => op.id,
            None => self.operations.next()?,
        };
        if matches!(decision, Decision::Collect | Decision::Reboot) {
            self.operations.begin(op, Subject::Vm(id.clone()), kind.name(), None);
        }
        self.carry_out(&slot, &mut state, id, op, kind, move |host, hooks| {
            host.engine().reconcile(record, observed, op, hooks)
        });
        Ok(())
    }

    /// Now, if the VM is known and nobody holds it ([`Self::hold`]).
    pub fn free(&self, id: &VmId) -> Option<Free> {
        lock(&self.slots).get(id)?.holds.free()
    }

    /// Runs `work` on a VM as it is, with nothing else at work on it: requests that would change it
    /// wait meanwhile; those that end it tell `cancel` first.
    ///
    /// # Errors
    /// `NotFound`: no such VM. `Conflict`: an operation is under way. What `work` says.
    pub async fn hold<T: Send + 'static>(
        self: &Arc<Self>,
        id: &VmId,
        cancel: Cancel,
        work: impl FnOnce(&Host, &Record) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let slot = lock(&self.slots).get(id).cloned().ok_or_else(|| not_found(id))?;
        let mut state = slot.state.lock().await;
        let record = state.record.clone().ok_or_else(|| not_found(id))?;
        if let Some(op) = &record.op {
            let what = format!("vm {id}: {} is under way", op.request.kind());
            return Err(Error::new(ErrorKind::Conflict, what).hint("try again when it is done"));
        }
        if state.running.is_some() {
            let what = format!("vm {id}: something is at work on it");
            return Err(Error::new(ErrorKind::Conflict, what).hint("try again in a moment"));
        }
        let (done, receiver) = watch::channel(false);
        let give_up = Arc::new(AtomicBool::new(false));
        state.running = Some(Running { give_up, cancel: Some(cancel), done: receiver });
        slot.holds.begin();
        drop(state);
        let (vms, vm) = (Arc::clone(self), id.clone());
        // A task of its own, so that the slot is free again whatever becomes of the caller.
        let task = tokio::spawn(async move {
            let host = Arc::clone(&vms.host);
            let worked = blocking(move || work(&host, &record)).await;
            slot.state.lock().await.running = None;
            slot.holds.end();
            done.send_replace(true);
            // What ended meanwhile was not looked at.
            if let Err(error) = vms.reconcile(&vm, None).await {
                tracing::error!(vm = %vm, "vm {vm}: cannot compare record and host: {error}");
            }
            worked.and_then(|worked| worked)
        });
        task.await.unwrap_or_else(|e| Err(Error::new(ErrorKind::Host, format!("vm {id}: {e}"))))
    }

    /// Compares all records with the host, and clears what no record knows.
    ///
    /// `orphans` says whether to clear: only at start, when nobody can be in the middle of making
    /// what is not yet recorded.
    pub async fn reconcile_all(self: &Arc<Self>, orphans: bool) -> Result<()> {
        let host = Arc::clone(&self.host);
        let seen = blocking(move || {
            host.guests.reap();
            host.observe_all()
        })
        .await??;
        let known: Vec<VmId> = lock(&self.slots).keys().cloned().collect();
        for id in &known {
            if let Err(error) = self.reconcile(id, Some(seen.contains(id))).await {
                tracing::error!(vm = %id, "vm {id}: cannot compare record and host: {error}");
            }
        }
        for orphan in seen.iter().filter(|id| orphans && !known.contains(id)) {
            tracing::warn!(vm = %orphan, "vm {orphan}: something is left without a record, clearing it");
            let (host, id) = (Arc::clone(&self.host), orphan.clone());
            if let Err(error) = blocking(move || host.engine().clear_orphan(&id)).await? {
                tracing::error!(vm = %orphan, "vm {orphan}: cannot clear what is left: {error}");
            }
        }
        Ok(())
    }

    /// Evens out on which processors guests run.
    pub async fn balance(&self) -> Result<()> {
        let live = self.each(|record| {
            let settled = record.state.is_live() && record.op.is_none();
            settled.then(|| (record.spec.id.clone(), record.spec.resources.clone()))
        });
        let host = Arc::clone(&self.host);
        blocking(move || host.cgroups.balance(&live)).await?
    }

    /// Waits until nothing is under way, at most until `deadline`.
    pub async fn settle(&self, deadline: tokio::time::Instant) {
        let slots: Vec<Arc<Slot>> = lock(&self.slots).values().cloned().collect();
        for slot in slots {
            let running = slot.state.lock().await.running.as_ref().map(|r| r.done.clone());
            if let Some(done) = running {
                // What is not done by then is found in its record by the next daemon.
                let _ = tokio::time::timeout_at(deadline, ended(done)).await;
            }
        }
    }
}

fn damaged(id: &VmId, why: &str) -> Error {
    let what = format!("the record of vm {id} is damaged: {why}");
    let hint = "its guest, if it runs, runs on untouched; put a sound copy of its vm.json back and restart ocivisord, \
                or stop ocivisord and run `ocivisor --offline recover`, which ends that guest and forgets the VM";
    Error::new(ErrorKind::Integrity, what).hint(hint)
}

/// Whether the operation under way is of the daemon itself.
fn is_own(record: Option<&Record>) -> bool {
    let op = record.and_then(|record| record.op.as_ref());
    op.is_some_and(|op| matches!(op.request.kind(), OpKind::Collect | OpKind::Restart))
}

async fn ended(mut done: watch::Receiver<bool>) {
    // An error is a sender that is gone: ended all the same.
    let _ = done.wait_for(|done| *done).await;
}

/// Runs synchronous work on a thread where it may wait. A panic in it is an error here.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    spawn_blocking(work)
        .await
        .map_err(|e| Error::new(ErrorKind::Host, format!("internal failure: {e}")))
}

/// Ties an operation of the engine to its events, its waiters and its preemptor.
struct OpHooks {
    vms: Arc<Vms>,
    op: OpId,
    kind: OpKind,
    give_up: Arc<AtomicBool>,
}

impl Hooks for OpHooks {
    fn at(&self, id: &VmId, point: Point) {
        faults::hit(self.kind.name(), point);
        if let Point::Before(step) = point {
            self.vms.operations.step(self.op, step.name(), None);
            let (op, step) = (Text(self.op), step.name().to_owned());
            let progress = None;
            self.vms.publish(id, EventDataV1::OperationProgress { op, step, progress });
        }
    }

    fn given_up(&self) -> bool {
        self.give_up.load(Ordering::Relaxed)
    }

    fn failed(&self, failure: KeptFailure) {
        if let Err(error) = self.vms.host.failures.keep(&failure) {
            let vm = &failure.vm;
            tracing::warn!(%vm, "vm {vm}: why its {} failed is not kept: {error}", failure.kind);
        }
    }
}
