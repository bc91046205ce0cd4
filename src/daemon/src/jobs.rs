//! Long work on images, as operations that clients wait for.
//!
//! Nothing of it is recorded: whatever the store does either is whole or leaves nothing, and asking
//! again is the way on after the daemon ended. A request that is repeated while it is remembered
//! leads to the same operation. Work can be ended from outside ([`Jobs::cancel`]): it looks at its
//! [`Cancel`] on its way, and while it still waits for its turn it ends at once.
//!
//! Work belongs to the user who began it. Request ids are his own: what another user sends under the
//! same id is another request, so nobody is led to what he did not ask for, and nobody can be kept
//! from his own. Admins may touch everything.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ids::{OpId, RequestId};
use ocivisor_core::state::Timestamp;
use ocivisor_datastore::{Cancel, Digest};
use ocivisor_schema::Text;
use ocivisor_schema::event::EventDataV1;
use ocivisor_schema::image::MadeV1;
use ocivisor_schema::reply::{ImageOperationReply, ProgressV1};
use tokio::sync::{Notify, Semaphore};

use crate::caller::Caller;
use crate::events::Events;
use crate::operations::{Operations, Subject};
use crate::vms::blocking;

/// Requests of a user that are remembered.
const KEPT: usize = 1024;
/// Most work of one sort at the same time; more waits.
const AT_ONCE: usize = 4;
/// What may wait for a registry: slow ones must not keep the host's own work from its turn.
const REMOTE: [&str; 2] = ["import", "push"];
/// Most work that waits, so that nobody fills the memory with requests.
const WAITING: usize = 64;
/// Most work of all operators together; the rest is for admins.
const OPERATORS: usize = (AT_ONCE + WAITING) / 2;
/// What can be ended before its time; the rest is short, or must not stop halfway.
const CANCELLABLE: [&str; 6] = ["import", "push", "commit", "save", "export", "build"];
/// How often one operation makes an event of how far it is.
const EVENT_EVERY: Duration = Duration::from_secs(1);

/// The long work of this run of the daemon.
#[derive(Debug)]
pub struct Jobs {
    operations: Arc<Operations>,
    events: Arc<Events>,
    now: fn() -> Timestamp,
    known: Mutex<Known>,
    /// For what waits for a network, and for what works on this host.
    turns: [Arc<Semaphore>; 2],
}

#[derive(Debug, Default)]
struct Known {
    /// By user, each of whom can make only his own be forgotten.
    requests: HashMap<u32, Requests>,
    unfinished: HashMap<OpId, (Caller, Arc<Stop>)>,
}

#[derive(Debug, Default)]
struct Requests {
    begun: HashMap<RequestId, (OpId, Order)>,
    by_age: VecDeque<RequestId>,
}

impl Requests {
    fn remember(&mut self, request: RequestId, op: OpId, order: Order) {
        self.begun.insert(request.clone(), (op, order));
        self.by_age.push_back(request);
        if self.by_age.len() > KEPT
            && let Some(oldest) = self.by_age.pop_front()
        {
            self.begun.remove(&oldest);
        }
    }
}

/// What is asked for. Two that are equal are one request, if their ids are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// What to do.
    pub kind: &'static str,
    /// With what.
    pub subject: Subject,
    /// All of the parameters; they may be long.
    parameters: Digest,
}

impl Order {
    /// `parameters` are all that a repeated request says again.
    pub fn new(kind: &'static str, subject: Subject, parameters: &impl fmt::Debug) -> Self {
        let parameters = Digest::of(format!("{parameters:?}").as_bytes());
        Self { kind, subject, parameters }
    }
}

/// How one is ended.
#[derive(Debug, Default)]
struct Stop {
    cancel: Cancel,
    /// Told when it still waits for its turn.
    told: Notify,
}

/// What the work tells on its way.
#[derive(Debug)]
pub struct Teller {
    op: OpId,
    caller: Caller,
    subject: Subject,
    stop: Arc<Stop>,
    operations: Arc<Operations>,
    events: Arc<Events>,
    now: fn() -> Timestamp,
    last: Mutex<Option<(String, Instant)>>,
}

impl Teller {
    /// The step that is on, and how far it is. Steps are told at once, how far they are in between
    /// now and then.
    pub fn at(&self, step: &str, progress: Option<ProgressV1>) {
        self.operations.step(self.op, step, progress);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let due = last.as_ref().is_none_or(|(before, at)| {
            before != step || progress.is_some() && at.elapsed() >= EVENT_EVERY
        });
        if due {
            *last = Some((step.to_owned(), Instant::now()));
            let (op, step) = (Text(self.op), step.to_owned());
            self.publish(EventDataV1::OperationProgress { op, step, progress });
        }
    }

    /// What says that the work is to end.
    pub fn cancel(&self) -> &Cancel {
        &self.stop.cancel
    }

    /// For whom the work is done.
    pub fn caller(&self) -> Caller {
        self.caller
    }

    fn publish(&self, data: EventDataV1) {
        self.events.publish((self.now)(), &self.subject, data);
    }
}

impl Jobs {
    /// None yet.
    pub fn new(operations: Arc<Operations>, events: Arc<Events>, now: fn() -> Timestamp) -> Self {
        let turns = [(); 2].map(|()| Arc::new(Semaphore::new(AT_ONCE)));
        Self { operations, events, now, known: Mutex::default(), turns }
    }

    /// Begins work; it goes on if the client hangs up.
    ///
    /// # Errors
    /// `Conflict`: the user used the id for another request. `Exhausted`: too much waits already.
    pub fn begin(
        self: &Arc<Self>,
        request: RequestId,
        caller: Caller,
        order: Order,
        work: impl FnOnce(&Arc<Teller>) -> Result<Option<MadeV1>> + Send + 'static,
    ) -> Result<ImageOperationReply> {
        let Order { kind, subject, .. } = order.clone();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(op) = known.begun_before(&request, caller, &order)? {
            return Ok(reply(op, &subject, true));
        }
        let unfinished = known.unfinished.len();
        let operators = known.unfinished.values().filter(|(who, _)| !who.is_admin()).count();
        if unfinished >= AT_ONCE + WAITING || !caller.is_admin() && operators >= OPERATORS {
            let what = format!("{kind} {subject}: {unfinished} operations on images are under way");
            return Err(Error::new(ErrorKind::Exhausted, what).hint("try again when some ended"));
        }
        let op = self.operations.next()?;
        let stop = Arc::new(Stop::default());
        known.unfinished.insert(op, (caller, Arc::clone(&stop)));
        known.requests.entry(caller.uid()).or_default().remember(request, op, order);
        drop(known);
        self.operations.begin(op, subject.clone(), kind, Some(caller.uid()));
        tracing::info!(%subject, %op, kind, uid = caller.uid(), "{kind} {subject} begins");
        let begun = reply(op, &subject, false);
        let teller = Teller {
            op,
            caller,
            subject,
            stop,
            operations: Arc::clone(&self.operations),
            events: Arc::clone(&self.events),
            now: self.now,
            last: Mutex::default(),
        };
        let started = EventDataV1::OperationStarted { op: Text(op), operation: kind.to_owned() };
        teller.publish(started);
        let jobs = Arc::clone(self);
        tokio::spawn(async move { jobs.run(kind, teller, work).await });
        Ok(begun)
    }

    /// Ends an operation, soon; one that is done stays done.
    ///
    /// # Errors
    /// `NotFound`: no such operation. `Permission`: it is another user's. `Conflict`: it is not ended
    /// this way.
    pub fn cancel(&self, op: OpId, caller: Caller) -> Result<()> {
        let Some(status) = self.operations.get(op) else {
            let what = format!("no operation {op} (only the last ones are remembered)");
            return Err(Error::new(ErrorKind::NotFound, what));
        };
        let Some(owner) = status.owner else {
            let what = format!(
                "{op} is the {} of vm {}: it is not cancelled",
                status.kind, status.subject
            );
            let hint = "vm.destroy ends whatever the vm is in";
            return Err(Error::new(ErrorKind::Conflict, what).hint(hint));
        };
        if !caller.may_touch_what_is_of(owner) {
            let what = format!("{op} was begun by another user");
            return Err(Error::new(ErrorKind::Permission, what).hint("ask an admin to cancel it"));
        }
        if !CANCELLABLE.contains(&status.kind) && status.result.is_none() {
            let what = format!("{op}: {} cannot be cancelled", status.kind);
            return Err(Error::new(ErrorKind::Conflict, what).hint("wait for it"));
        }
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let stop = known.unfinished.get(&op).map(|(_, stop)| Arc::clone(stop));
        drop(known);
        if let Some(stop) = stop {
            tracing::info!(%op, kind = status.kind, uid = caller.uid(), "operation is to end");
            stop.told.notify_one();
            stop.cancel.cancel();
        }
        Ok(())
    }

    /// Ends all that can be ended: the daemon stops.
    pub fn cancel_all(&self) {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, stop) in known.unfinished.values() {
            stop.told.notify_one();
            stop.cancel.cancel();
        }
    }

    async fn run(
        &self,
        kind: &'static str,
        teller: Teller,
        work: impl FnOnce(&Arc<Teller>) -> Result<Option<MadeV1>> + Send + 'static,
    ) {
        let teller = Arc::new(teller);
        let told = Arc::clone(&teller);
        let done = tokio::select! {
            biased;
            () = teller.stop.told.notified() => Err(Error::new(ErrorKind::Cancelled, "")),
            // Closed never: an error would only mean no limit.
            _turn = self.turns[usize::from(REMOTE.contains(&kind))].acquire() => {
                blocking(move || work(&told)).await.and_then(|done| done)
            }
        };
        let (op, subject) = (teller.op, &teller.subject);
        let done = done.map_err(|error| match error.kind {
            ErrorKind::Cancelled => {
                Error::new(ErrorKind::Cancelled, format!("{kind} {subject}: cancelled"))
            }
            _ => error,
        });
        let (result, made) = match done {
            Ok(made) => (Ok(()), made),
            Err(error) => (Err(error), None),
        };
        match &result {
            Ok(()) => tracing::info!(%subject, %op, kind, "{kind} {subject}: done"),
            Err(error) if error.kind == ErrorKind::Cancelled => {
                tracing::info!(%subject, %op, kind, "operation cancelled");
            }
            Err(error) => tracing::error!(%subject, %op, kind, "{kind} {subject} failed: {error}"),
        }
        self.operations.finish_with(op, result.clone(), made);
        self.known.lock().unwrap_or_else(PoisonError::into_inner).unfinished.remove(&op);
        let (operation, result) = (kind.to_owned(), (&result).into());
        teller.publish(EventDataV1::OperationFinished { op: Text(op), operation, result });
    }
}

impl Known {
    /// The operation that this request began when it came before.
    fn begun_before(
        &self,
        request: &RequestId,
        caller: Caller,
        order: &Order,
    ) -> Result<Option<OpId>> {
        let of = |requests: &Requests| requests.begun.get(request).cloned();
        if let Some((op, before)) = self.requests.get(&caller.uid()).and_then(of) {
            if before == *order {
                return Ok(Some(op));
            }
            let (kind, subject) = (before.kind, before.subject);
            let what = format!(
                "{} {}: request id {request} was used for another request, {kind} {subject} ({op})",
                order.kind, order.subject
            );
            return Err(Error::new(ErrorKind::Conflict, what).hint("give each request its own id"));
        }
        let others = self.requests.iter().filter(|(owner, _)| caller.may_touch_what_is_of(**owner));
        let same =
            others.filter_map(|(_, requests)| of(requests)).find(|(_, theirs)| theirs == order);
        Ok(same.map(|(op, _)| op))
    }
}

fn reply(op: OpId, subject: &Subject, joined: bool) -> ImageOperationReply {
    let (vm, image) = (subject.vm().cloned().map(Text), subject.image().map(str::to_owned));
    ImageOperationReply { op: Text(op), vm, image, joined }
}

#[cfg(test)]
mod tests;
