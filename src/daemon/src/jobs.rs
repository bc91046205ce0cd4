//! Long work on images, as operations that clients wait for.
//!
//! Nothing of it is recorded: whatever the store does either is whole or leaves nothing, and asking
//! again is the way on after the daemon ended. A request that is repeated while it is remembered
//! leads to the same operation. Work can be ended from outside ([`Jobs::cancel`]): it looks at its
//! [`Cancel`] on its way, and while it still waits for its turn it ends at once.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ids::{OpId, RequestId};
use ocivisor_core::state::Timestamp;
use ocivisor_datastore::Cancel;
use ocivisor_schema::Text;
use ocivisor_schema::event::EventDataV1;
use ocivisor_schema::image::MadeV1;
use ocivisor_schema::reply::{ImageOperationReply, ProgressV1};
use tokio::sync::{Notify, Semaphore};

use crate::events::Events;
use crate::operations::{Operations, Subject};
use crate::vms::blocking;

/// Requests that are remembered.
const KEPT: usize = 1024;
/// Most work of one sort at the same time; more waits.
const AT_ONCE: usize = 4;
/// What may wait for a registry: slow ones must not keep the host's own work from its turn.
const REMOTE: [&str; 2] = ["import", "push"];
/// Most work that waits, so that nobody fills the memory with requests.
const WAITING: usize = 64;
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
    by_request: HashMap<RequestId, ImageOperationReply>,
    order: VecDeque<RequestId>,
    unfinished: HashMap<OpId, Arc<Stop>>,
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
    image: String,
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

    fn publish(&self, data: EventDataV1) {
        self.events.publish((self.now)(), &Subject::Image(self.image.clone()), data);
    }
}

impl Jobs {
    /// None yet.
    pub fn new(operations: Arc<Operations>, events: Arc<Events>, now: fn() -> Timestamp) -> Self {
        let turns = [(); 2].map(|()| Arc::new(Semaphore::new(AT_ONCE)));
        Self { operations, events, now, known: Mutex::default(), turns }
    }

    /// Begins work about `image`; it goes on if the client hangs up.
    ///
    /// # Errors
    /// `Exhausted`: too much waits already.
    pub fn begin(
        self: &Arc<Self>,
        request: RequestId,
        kind: &'static str,
        image: String,
        work: impl FnOnce(&Arc<Teller>) -> Result<Option<MadeV1>> + Send + 'static,
    ) -> Result<ImageOperationReply> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reply) = known.by_request.get(&request) {
            return Ok(ImageOperationReply { joined: true, ..reply.clone() });
        }
        let unfinished = known.unfinished.len();
        if unfinished >= AT_ONCE + WAITING {
            let what = format!("{kind} {image}: {unfinished} operations on images are under way");
            return Err(Error::new(ErrorKind::Exhausted, what).hint("try again when some ended"));
        }
        let op = self.operations.next()?;
        let reply = ImageOperationReply { op: Text(op), image: image.clone(), joined: false };
        let stop = Arc::new(Stop::default());
        known.unfinished.insert(op, Arc::clone(&stop));
        known.by_request.insert(request.clone(), reply.clone());
        known.order.push_back(request);
        if known.order.len() > KEPT
            && let Some(oldest) = known.order.pop_front()
        {
            known.by_request.remove(&oldest);
        }
        drop(known);
        self.operations.begin(op, Subject::Image(image.clone()), kind);
        tracing::info!(%image, %op, kind, "{kind} {image} begins");
        let teller = Teller {
            op,
            image,
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
        Ok(reply)
    }

    /// Ends an operation, soon; one that is done stays done.
    ///
    /// # Errors
    /// `NotFound`: no such operation. `Conflict`: it is not ended this way.
    pub fn cancel(&self, op: OpId) -> Result<()> {
        let Some(status) = self.operations.get(op) else {
            let what = format!("no operation {op} (only the last ones are remembered)");
            return Err(Error::new(ErrorKind::NotFound, what));
        };
        if let Subject::Vm(vm) = &status.subject {
            let what = format!("{op} is the {} of vm {vm}: it is not cancelled", status.kind);
            let hint = "vm.destroy ends whatever the vm is in";
            return Err(Error::new(ErrorKind::Conflict, what).hint(hint));
        }
        if !CANCELLABLE.contains(&status.kind) && status.result.is_none() {
            let what = format!("{op}: {} cannot be cancelled", status.kind);
            return Err(Error::new(ErrorKind::Conflict, what).hint("wait for it"));
        }
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let stop = known.unfinished.get(&op).cloned();
        drop(known);
        if let Some(stop) = stop {
            tracing::info!(%op, kind = status.kind, "operation is to end");
            stop.told.notify_one();
            stop.cancel.cancel();
        }
        Ok(())
    }

    /// Ends all that can be ended: the daemon stops.
    pub fn cancel_all(&self) {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for stop in known.unfinished.values() {
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
        let (op, image) = (teller.op, &teller.image);
        let done = done.map_err(|error| match error.kind {
            ErrorKind::Cancelled => {
                Error::new(ErrorKind::Cancelled, format!("{kind} {image}: cancelled"))
            }
            _ => error,
        });
        let (result, made) = match done {
            Ok(made) => (Ok(()), made),
            Err(error) => (Err(error), None),
        };
        match &result {
            Ok(()) => tracing::info!(%image, %op, kind, "{kind} {image}: done"),
            Err(error) if error.kind == ErrorKind::Cancelled => {
                tracing::info!(%image, %op, kind, "operation cancelled");
            }
            Err(error) => tracing::error!(%image, %op, kind, "{kind} {image} failed: {error}"),
        }
        self.operations.finish_with(op, result.clone(), made);
        self.known.lock().unwrap_or_else(PoisonError::into_inner).unfinished.remove(&op);
        let (operation, result) = (kind.to_owned(), (&result).into());
        teller.publish(EventDataV1::OperationFinished { op: Text(op), operation, result });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ocivisor_host::layout::Layout;

    fn jobs(dir: &std::path::Path) -> Arc<Jobs> {
        let layout = Layout { state: dir.into(), run: dir.into(), cgroup_base: "x".into() };
        let operations = Arc::new(Operations::open(&layout).unwrap());
        Arc::new(Jobs::new(operations, Arc::new(Events::new(Timestamp(1))), || Timestamp(7)))
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn work_is_an_operation_with_events_and_a_result() {
        let dir = tempfile::tempdir().unwrap();
        let jobs = jobs(dir.path());
        let request: RequestId = "r-1".parse().unwrap();
        let made = MadeV1::Pruned(ocivisor_schema::image::PrunedV1::default());
        let result = made.clone();
        let begun = jobs.begin(request.clone(), "import", "debian".into(), move |teller| {
            teller.at("layer 1", Some(ProgressV1 { done: 1, total: Some(9) }));
            teller.at("layer 1", Some(ProgressV1 { done: 2, total: Some(9) }));
            Ok(Some(result))
        });
        let begun = begun.unwrap();
        let status = jobs.operations.wait(begun.op.0, LONG).await.unwrap();
        assert_eq!(status.subject, Subject::Image("debian".into()));
        assert_eq!((status.kind, status.result, status.made), ("import", Some(Ok(())), Some(made)));
        // Started, one step, finished: how far it is makes an event only now and then.
        let events = jobs.events.since(0, 9, Duration::ZERO).await.events;
        assert!(events.iter().all(|event| event.image.as_deref() == Some("debian")));
        assert_eq!(events.len(), 3, "{events:?}");

        let again = jobs.begin(request, "import", "debian".into(), |_| panic!("once")).unwrap();
        assert_eq!((again.op, again.joined), (begun.op, true));
    }

    #[tokio::test]
    async fn work_beyond_the_limit_is_refused_and_the_rest_gets_its_turn() {
        let dir = tempfile::tempdir().unwrap();
        let jobs = jobs(dir.path());
        let (open, gate) = std::sync::mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let begin = |n: usize| {
            let gate = Arc::clone(&gate);
            jobs.begin(format!("r-{n}").parse().unwrap(), "pull", "x".into(), move |_| {
                // Ends when the other side is dropped.
                let _ = gate.lock().unwrap().recv();
                Ok(None)
            })
        };
        let begun: Vec<_> = (0..AT_ONCE + WAITING).map(|n| begin(n).unwrap()).collect();
        assert_eq!(begin(1000).unwrap_err().kind, ErrorKind::Exhausted);
        drop(open);
        for reply in begun {
            let status = jobs.operations.wait(reply.op.0, LONG).await.unwrap();
            assert_eq!(status.result, Some(Ok(())));
        }
        assert!(begin(1001).is_ok());
    }

    #[tokio::test]
    async fn a_failure_is_the_operations_result() {
        let dir = tempfile::tempdir().unwrap();
        let jobs = jobs(dir.path());
        let error = Error::new(ErrorKind::Image, "no such manifest");
        let told = error.clone();
        let begun = jobs.begin("r".parse().unwrap(), "pull", "x".into(), move |_| Err(told));
        let status = jobs.operations.wait(begun.unwrap().op.0, LONG).await.unwrap();
        assert_eq!(status.result, Some(Err(error)));
    }

    fn cancelled(kind: &str) -> Option<Result<()>> {
        Some(Err(Error::new(ErrorKind::Cancelled, format!("{kind} x: cancelled"))))
    }

    #[tokio::test]
    async fn work_that_runs_or_waits_can_be_ended_and_what_is_done_stays_done() {
        let dir = tempfile::tempdir().unwrap();
        let jobs = jobs(dir.path());
        let begin = |n: usize| {
            let begun = jobs.begin(format!("r-{n}").parse().unwrap(), "push", "x".into(), |tell| {
                while !tell.cancel().is_cancelled() {
                    std::thread::yield_now();
                }
                Err(Error::new(ErrorKind::Cancelled, "cancelled"))
            });
            begun.unwrap().op.0
        };
        let begun: Vec<OpId> = (0..=AT_ONCE).map(begin).collect();
        // The last one waits for a turn that does not come.
        for op in begun.into_iter().rev() {
            jobs.cancel(op).unwrap();
            let status = jobs.operations.wait(op, LONG).await.unwrap();
            assert_eq!(status.result, cancelled("push"));
            jobs.cancel(op).unwrap();
        }
        let done = jobs.begin("d".parse().unwrap(), "import", "x".into(), |_| Ok(None));
        let op = done.unwrap().op.0;
        jobs.operations.wait(op, LONG).await.unwrap();
        jobs.cancel(op).unwrap();
        assert_eq!(jobs.operations.get(op).unwrap().result, Some(Ok(())));
    }

    #[tokio::test]
    async fn what_is_not_ended_this_way_says_how_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let jobs = jobs(dir.path());
        let none = jobs.cancel(OpId(77)).unwrap_err();
        assert_eq!(none.kind, ErrorKind::NotFound);
        let vm = jobs.operations.next().unwrap();
        jobs.operations.begin(vm, Subject::Vm("one-1".parse().unwrap()), "start");
        let refused = jobs.cancel(vm).unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Conflict);
        assert_eq!(refused.message, format!("{vm} is the start of vm one-1: it is not cancelled"));
        assert_eq!(refused.hint.as_deref(), Some("vm.destroy ends whatever the vm is in"));

        let (open, gate) = std::sync::mpsc::channel::<()>();
        let prune = jobs.begin("p".parse().unwrap(), "prune", "x".into(), move |_| {
            // Ends when the other side is dropped.
            let _ = gate.recv();
            Ok(None)
        });
        let op = prune.unwrap().op.0;
        let refused = jobs.cancel(op).unwrap_err();
        assert_eq!(refused.message, format!("{op}: prune cannot be cancelled"));
        drop(open);
        assert_eq!(jobs.operations.wait(op, LONG).await.unwrap().result, Some(Ok(())));
    }
}
