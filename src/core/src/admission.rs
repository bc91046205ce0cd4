//! Whether a request may run now: a pure function of the record and the request.
//!
//! | under way ↓ / asked → | same request | `destroy` | anything else |
//! |---|---|---|---|
//! | nothing | by settled state, see [`admit`] | | |
//! | an operation | join it | preempt it | denied |
//!
//! A request id that was seen before is the same request: its operation is joined, or its outcome
//! repeated, also after a restart of the daemon. If it is not, by its kind, it is denied: a `destroy`
//! must not be answered with how a `start` ended.

use crate::error::{Error, ErrorKind};
use crate::ids::{OpId, RequestId, VmId};
use crate::plan::Plan;
use crate::state::{Finished, OpKind, Operation, Record, Request, VmState};
use crate::upkeep::is_kept;

/// The decision on a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// Carry out this plan.
    Run(Plan),
    /// What is asked for is so already; nothing to do.
    AlreadyTrue,
    /// The operation under way does what is asked for; its outcome is the answer.
    Join(OpId),
    /// Give up the operation under way, then carry out this plan.
    Preempt(OpId, Plan),
    /// This very request was carried out before; repeat its outcome.
    Repeat(Finished),
    /// No.
    Deny(Error),
}

/// Decides on `request` for the VM `id`, whose record is `record` if it is known.
#[must_use]
pub fn admit(
    id: &VmId,
    record: Option<&Record>,
    request: &Request,
    request_id: &RequestId,
) -> Admission {
    if let Request::Define(spec) | Request::Deploy(spec) = request {
        if let Err(error) = spec.check() {
            return Admission::Deny(error);
        }
        if spec.id != *id {
            let what = format!("request for vm {id} carries the spec of vm {}", spec.id);
            return Admission::Deny(Error::new(ErrorKind::Invalid, what));
        }
    }
    let Some(record) = record else {
        return admit_unknown(id, request);
    };
    if let Some(done) = record.outcome_of(request_id) {
        if done.kind != request.kind() {
            return used_before(id, request, request_id, done.kind, done.id);
        }
        return Admission::Repeat(done.clone());
    }
    match &record.op {
        Some(op) => admit_beside(record, op, request, request_id),
        None => admit_settled(record, request),
    }
}

fn admit_unknown(id: &VmId, request: &Request) -> Admission {
    match request {
        Request::Define(_) | Request::Deploy(_) => Admission::Run(Plan::of(request, None)),
        Request::Destroy { forget: true }
        | Request::Shutdown { forget: true, .. }
        | Request::Undefine
        | Request::Collect
        | Request::Restart { .. } => Admission::AlreadyTrue,
        Request::Start
        | Request::Shutdown { forget: false, .. }
        | Request::Destroy { forget: false }
        | Request::Reboot { .. }
        | Request::Reset
        | Request::Change(_) => Admission::Deny(not_found(id)),
    }
}

/// The error for a VM that is not known.
#[must_use]
pub fn not_found(id: &VmId) -> Error {
    Error::new(ErrorKind::NotFound, format!("no vm {id}"))
        .hint("ocivisor list shows those there are")
}

fn admit_beside(
    record: &Record,
    op: &Operation,
    request: &Request,
    request_id: &RequestId,
) -> Admission {
    if op.request_id == *request_id && op.request.kind() != request.kind() {
        return used_before(record.id(), request, request_id, op.request.kind(), op.id);
    }
    if op.request_id == *request_id || does_the_same(&op.request, request) {
        return Admission::Join(op.id);
    }
    if let Request::Destroy { .. } = request {
        return Admission::Preempt(op.id, Plan::of(request, Some(record)));
    }
    let (id, doing) = (record.id(), op.request.kind().progress());
    let busy = Error::new(ErrorKind::Conflict, format!("vm {id} is {doing} ({})", op.id));
    Admission::Deny(busy.hint(format!("wait for {}, or destroy the vm", op.id)))
}

fn used_before(
    id: &VmId,
    request: &Request,
    request_id: &RequestId,
    before: OpKind,
    op: OpId,
) -> Admission {
    let what = format!(
        "{} vm {id}: request id {request_id} was used for another request, {before} ({op})",
        request.kind()
    );
    let error = Error::new(ErrorKind::Conflict, what);
    Admission::Deny(error.hint("give each request its own id"))
}

/// Whether the outcome of `under_way` answers `asked`.
fn does_the_same(under_way: &Request, asked: &Request) -> bool {
    match (under_way, asked) {
        // A destroy that also forgets does all that one that keeps the record promises but keeping it.
        (Request::Destroy { forget: a }, Request::Destroy { forget: b })
        | (Request::Shutdown { forget: a, .. }, Request::Shutdown { forget: b, .. }) => a == b,
        (Request::Reboot { .. }, Request::Reboot { .. }) => true,
        (a, b) => a == b,
    }
}

fn admit_settled(record: &Record, request: &Request) -> Admission {
    let run = || Admission::Run(Plan::of(request, Some(record)));
    let deny = |what: &str, hint: &str| {
        let message = format!("vm {} is {}: {what}", record.id(), record.state.name());
        Admission::Deny(Error::new(ErrorKind::Conflict, message).hint(hint))
    };
    match (request, &record.state) {
        (Request::Define(spec), VmState::Stopped) if **spec == record.spec => {
            Admission::AlreadyTrue
        }
        (Request::Define(_), VmState::Stopped) => run(),
        (Request::Define(spec), _) if **spec == record.spec => Admission::AlreadyTrue,
        (Request::Define(_), _) => deny("its definition cannot be replaced", "shut it down first"),

        (Request::Start, VmState::Stopped) => run(),
        (Request::Start, VmState::Running) => Admission::AlreadyTrue,
        (Request::Start, VmState::Paused | VmState::Suspended) => {
            deny("it cannot be started", "resume it, or destroy it first")
        }
        (Request::Start, VmState::Failed(_)) => deny("it cannot be started", "destroy it first"),

        // The platform says what shall run; a guest of the same spec is that.
        (Request::Deploy(spec), VmState::Running) if **spec == record.spec => {
            Admission::AlreadyTrue
        }
        (Request::Deploy(_), _) => run(),

        (Request::Shutdown { forget: false, .. }, VmState::Stopped) if !is_kept(record) => {
            Admission::AlreadyTrue
        }
        (Request::Shutdown { .. }, VmState::Paused | VmState::Suspended) => {
            deny("it cannot be asked to shut down", "resume it, or destroy it")
        }
        (Request::Shutdown { .. }, _) => run(),

        (Request::Destroy { forget: false }, VmState::Stopped) if !is_kept(record) => {
            Admission::AlreadyTrue
        }
        (Request::Destroy { .. }, _) => run(),

        (Request::Reboot { .. } | Request::Reset, VmState::Running) => run(),
        (Request::Reset, VmState::Paused) => run(),
        (Request::Reboot { .. } | Request::Reset, _) => deny("it does not run", "start it"),

        (Request::Change(change), state) => {
            let wished = record.spec.changed(change);
            if let Err(error) = wished.check() {
                return Admission::Deny(error);
            }
            match state {
                _ if wished == record.spec => Admission::AlreadyTrue,
                VmState::Stopped | VmState::Running => run(),
                // Its files are changed by processes of its own, which stand still as well.
                VmState::Paused if !wished.is_told_apart_from(&record.spec) => run(),
                VmState::Paused => deny("it cannot be told anything", "resume it first"),
                VmState::Suspended => deny("it cannot be changed", "resume it first"),
                VmState::Failed(_) => deny("it cannot be changed", "destroy it first"),
            }
        }

        (Request::Undefine, VmState::Stopped) => run(),
        (Request::Undefine, _) => {
            deny("it cannot be undefined", "shut it down or destroy it first")
        }

        // Whatever happened since it was decided upon: it is decided anew.
        (Request::Restart { of }, VmState::Stopped) if *of == record.generation => run(),
        (Request::Restart { .. }, _) => Admission::AlreadyTrue,

        (Request::Collect, VmState::Running | VmState::Paused) => run(),
        (Request::Collect, _) => Admission::AlreadyTrue,
    }
}
