//! Operations that clients can ask about and wait for.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ocivisor_core::error::Result;
use ocivisor_core::ids::{OpId, VmId};
use ocivisor_core::state::OpKind;
use ocivisor_host::fs::{read_bounded, replace};
use ocivisor_host::layout::Layout;
use ocivisor_schema::Text;
use ocivisor_schema::image::MadeV1;
use ocivisor_schema::reply::{OpStatusReply, ProgressV1};
use tokio::sync::watch;

/// Finished operations that are remembered.
const KEPT: usize = 4096;

/// Numbers reserved on disk at a time, so that no number is given twice over restarts.
const BLOCK: u64 = 1000;

/// What an operation is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A virtual machine.
    Vm(VmId),
    /// An image, by its name here or as the caller named it.
    Image(String),
    /// An image that is made of a virtual machine, and that one.
    ImageOf(VmId, String),
    /// The store as a whole.
    Store,
}

impl Subject {
    /// The virtual machine, if it is about one.
    pub fn vm(&self) -> Option<&VmId> {
        match self {
            Self::Vm(vm) | Self::ImageOf(vm, _) => Some(vm),
            Self::Image(_) | Self::Store => None,
        }
    }

    /// The image, if it is about one.
    pub fn image(&self) -> Option<&str> {
        match self {
            Self::Image(image) | Self::ImageOf(_, image) => Some(image),
            Self::Vm(_) | Self::Store => None,
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vm(vm) => vm.fmt(f),
            Self::Image(image) => image.fmt(f),
            Self::ImageOf(vm, image) => write!(f, "{vm} as {image}"),
            Self::Store => f.write_str("image store"),
        }
    }
}

/// What is known of one operation.
#[derive(Debug, Clone)]
pub struct Status {
    /// About what.
    pub subject: Subject,
    /// The user who began it, where it belongs to one: those on VMs are every operator's.
    pub owner: Option<u32>,
    /// What.
    pub kind: &'static str,
    /// The step it is at.
    pub step: Option<String>,
    /// How far that is.
    pub progress: Option<ProgressV1>,
    /// How it ended.
    pub result: Option<Result<()>>,
    /// What it made.
    pub made: Option<MadeV1>,
}

impl Status {
    /// For the wire.
    pub fn reply(self, op: OpId) -> OpStatusReply {
        OpStatusReply {
            op: Text(op),
            vm: self.subject.vm().cloned().map(Text),
            image: self.subject.image().map(str::to_owned),
            kind: self.kind.to_owned(),
            done: self.result.is_some(),
            step: self.step,
            progress: self.progress,
            result: self.result.as_ref().map(Into::into),
            made: self.made,
        }
    }
}

/// All operations of this run of the daemon.
#[derive(Debug)]
pub struct Operations {
    layout: Layout,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    next: u64,
    reserved: u64,
    known: HashMap<OpId, watch::Sender<Status>>,
    finished: VecDeque<OpId>,
}

impl Operations {
    /// Numbers go on where the last daemon's reservation ended.
    pub fn open(layout: &Layout) -> Result<Self> {
        let bytes = read_bounded(&path(layout), 64)?.unwrap_or_default();
        // Unreadable: the records tell which were given ([`Self::seen`]).
        let next = String::from_utf8_lossy(&bytes).trim().parse().unwrap_or(0).max(1);
        let (known, finished) = (HashMap::new(), VecDeque::new());
        let inner = Mutex::new(Inner { next, reserved: next, known, finished });
        Ok(Self { layout: layout.clone(), inner })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number never given before.
    ///
    /// # Errors
    /// The next block of numbers cannot be reserved on disk.
    pub fn next(&self) -> Result<OpId> {
        let mut inner = self.inner();
        if inner.next >= inner.reserved {
            let reserved = inner.next + BLOCK;
            replace(&path(&self.layout), format!("{reserved}\n").as_bytes())?;
            inner.reserved = reserved;
        }
        inner.next += 1;
        Ok(OpId(inner.next - 1))
    }

    /// A number found in a record: later ones are larger, also if the counter was lost.
    pub fn seen(&self, op: OpId) {
        let mut inner = self.inner();
        if op.0 >= inner.next {
            inner.next = op.0 + 1;
            inner.reserved = inner.reserved.min(inner.next);
        }
    }

    /// An operation that begins, or is found in a record.
    pub fn begin(&self, op: OpId, subject: Subject, kind: &'static str, owner: Option<u32>) {
        let (step, progress, result, made) = (None, None, None, None);
        let status = Status { subject, owner, kind, step, progress, result, made };
        self.inner().known.entry(op).or_insert_with(|| watch::channel(status).0);
    }

    /// An operation that is known to have ended.
    pub fn note(&self, op: OpId, vm: &VmId, kind: OpKind, result: Result<()>) {
        self.begin(op, Subject::Vm(vm.clone()), kind.name(), None);
        self.finish(op, result);
    }

    /// The step it is at, and how far.
    pub fn step(&self, op: OpId, step: &str, progress: Option<ProgressV1>) {
        if let Some(sender) = self.inner().known.get(&op) {
            sender.send_modify(|status| {
                status.progress = progress;
                if status.step.as_deref() != Some(step) {
                    status.step = Some(step.to_owned());
                }
            });
        }
    }

    /// It ended. A second end changes nothing.
    pub fn finish(&self, op: OpId, result: Result<()>) {
        self.finish_with(op, result, None);
    }

    /// It ended and made something.
    pub fn finish_with(&self, op: OpId, result: Result<()>, made: Option<MadeV1>) {
        let mut inner = self.inner();
        let Some(sender) = inner.known.get(&op) else { return };
        let first = sender.send_if_modified(|status| {
            let first = status.result.is_none();
            if first {
                (status.result, status.made) = (Some(result), made);
            }
            first
        });
        if first {
            inner.finished.push_back(op);
            if inner.finished.len() > KEPT
                && let Some(oldest) = inner.finished.pop_front()
            {
                inner.known.remove(&oldest);
            }
        }
    }

    /// Where it is.
    pub fn get(&self, op: OpId) -> Option<Status> {
        self.inner().known.get(&op).map(|sender| sender.borrow().clone())
    }

    /// Where it is when it ended, or after `timeout`.
    pub async fn wait(&self, op: OpId, timeout: Duration) -> Option<Status> {
        let mut status = self.inner().known.get(&op)?.subscribe();
        let ended = status.wait_for(|status| status.result.is_some());
        // Timed out, or forgotten meanwhile: the last status is the answer.
        let _ = tokio::time::timeout(timeout, ended).await;
        let last = status.borrow().clone();
        Some(last)
    }
}

fn path(layout: &Layout) -> std::path::PathBuf {
    layout.state.join("next-op")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(dir: &std::path::Path) -> Layout {
        Layout { state: dir.into(), run: dir.into(), cgroup_base: "x".into() }
    }

    #[tokio::test]
    async fn waiting_ends_with_the_operation_or_the_timeout() {
        let dir = tempfile::tempdir().unwrap();
        let operations = Operations::open(&layout(dir.path())).unwrap();
        let (op, vm) = (operations.next().unwrap(), "one-1".parse().unwrap());
        operations.begin(op, Subject::Vm(vm), OpKind::Start.name(), None);
        operations.step(op, "root", None);
        let early = operations.wait(op, Duration::ZERO).await.unwrap();
        assert_eq!((early.step.as_deref(), early.result), (Some("root"), None));
        let long = Duration::from_secs(60);
        let (late, ()) = tokio::join!(operations.wait(op, long), async {
            operations.finish(op, Ok(()));
        });
        assert_eq!(late.unwrap().result, Some(Ok(())));
        assert!(operations.wait(OpId(999_999), long).await.is_none());
    }

    #[test]
    fn numbers_grow_over_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let first = Operations::open(&layout(dir.path())).unwrap();
        let a = first.next().unwrap();
        let second = Operations::open(&layout(dir.path())).unwrap();
        assert!(second.next().unwrap() > a);
    }
}
