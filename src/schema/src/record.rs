//! The record of a VM, as vm.json holds it.

use ocivisor_core::error::{Error, ErrorKind};
use ocivisor_core::ids::{Generation, IdRange, OpId, RequestId};
use ocivisor_core::state::{
    Finished, GuestExit, GuestFacts, GuestKind, OpKind, Operation, Phase, ProcessRef, Record,
    Request, Tally, VmState,
};
use serde::{Deserialize, Serialize};

use crate::error::{ErrorV1, OutcomeV1};
use crate::spec::{ChangeV1, VmSpecV1};
use crate::text::{Text, TimeV1};

/// See [`Record`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordV1 {
    /// [`RecordV1::VERSION`].
    pub version: u32,
    /// Number of this write.
    pub generation: u64,
    /// The wish.
    pub spec: VmSpecV1,
    /// Settled state.
    pub state: VmStateV1,
    /// Operation under way.
    #[serde(default)]
    pub op: Option<OperationV1>,
    /// Host ids of the guest.
    #[serde(default)]
    pub ids: Option<IdRangeV1>,
    /// The guest that runs.
    #[serde(default)]
    pub guest: Option<GuestV1>,
    /// How the last guest ended.
    #[serde(default)]
    pub last_exit: Option<GuestExitV1>,
    /// What upkeep must know.
    #[serde(default, skip_serializing_if = "TallyV1::is_none")]
    pub tally: TallyV1,
    /// What could not be kept whole.
    #[serde(default)]
    pub losses: Vec<String>,
    /// The last operations, oldest first.
    #[serde(default)]
    pub finished: Vec<FinishedV1>,
    /// When it was defined.
    pub created: TimeV1,
    /// When its settled state last changed.
    pub changed: TimeV1,
}

impl RecordV1 {
    /// Version of this layout.
    pub const VERSION: u32 = 1;

    /// For answers: without what only the guest may know.
    #[must_use]
    pub fn without_secrets(mut self) -> Self {
        self.spec = self.spec.without_secrets();
        match self.op.as_mut().map(|op| &mut op.request) {
            Some(RequestV1::Define { spec } | RequestV1::Deploy { spec }) => {
                **spec = spec.as_ref().clone().without_secrets();
            }
            Some(RequestV1::Change { change }) => {
                **change = change.as_ref().clone().without_secrets();
            }
            _ => {}
        }
        self
    }
}

/// See [`VmState`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum VmStateV1 {
    /// `{"name": "stopped"}`
    Stopped,
    /// `{"name": "running"}`
    Running,
    /// `{"name": "paused"}`
    Paused,
    /// `{"name": "suspended"}`
    Suspended,
    /// `{"name": "failed", "reason": "…"}`
    Failed {
        /// Why.
        reason: String,
    },
}

/// See [`Operation`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationV1 {
    /// Its id.
    pub id: Text<OpId>,
    /// Who asked.
    pub request_id: Text<RequestId>,
    /// What for.
    pub request: RequestV1,
    /// Forward or backward.
    pub phase: PhaseV1,
    /// Since when.
    pub started: TimeV1,
}

/// See [`Request`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum RequestV1 {
    /// `define`
    Define {
        /// The wish.
        spec: Box<VmSpecV1>,
    },
    /// `start`
    Start,
    /// `deploy`
    Deploy {
        /// The wish.
        spec: Box<VmSpecV1>,
    },
    /// `shutdown`
    Shutdown {
        /// Milliseconds that the guest may take.
        timeout_ms: u64,
        /// By force after that.
        force: bool,
        /// Forget the VM afterwards.
        forget: bool,
    },
    /// `destroy`
    Destroy {
        /// Forget the VM afterwards.
        forget: bool,
    },
    /// `reboot`
    Reboot {
        /// Milliseconds that the guest may take to end.
        timeout_ms: u64,
    },
    /// `reset`
    Reset,
    /// `undefine`
    Undefine,
    /// `change`
    Change {
        /// What becomes of the wish.
        change: Box<ChangeV1>,
    },
    /// `collect`
    Collect,
    /// `restart`
    Restart {
        /// Generation of the record that it was decided upon.
        of: u64,
    },
}

/// See [`Phase`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum PhaseV1 {
    /// `{"name": "doing"}`
    Doing,
    /// `{"name": "undoing", "error": {…}}`
    Undoing {
        /// Why.
        error: ErrorV1,
    },
}

/// See [`IdRange`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRangeV1 {
    /// First host id.
    pub base: u32,
}

/// See [`ProcessRef`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessV1 {
    /// Host pid.
    pub pid: u32,
    /// Field 22 of /proc/PID/stat.
    pub start_ticks: u64,
}

/// See [`GuestKind`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestKindV1 {
    /// `system`
    System,
    /// `application`
    Application,
}

/// See [`GuestFacts`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestV1 {
    /// First process.
    pub init: ProcessV1,
    /// Shim.
    pub shim: ProcessV1,
    /// Kind of guest.
    pub kind: GuestKindV1,
    /// Signal that asks it to end.
    pub stop_signal: u8,
    /// Boot id of the host.
    pub host_boot: String,
}

/// See [`GuestExit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum GuestExitV1 {
    /// `{"kind": "code", "code": 3}`
    Code {
        /// Exit code.
        code: u8,
    },
    /// `{"kind": "signal", "signal": 9}`
    Signal {
        /// Signal number.
        signal: u8,
    },
    /// `{"kind": "unknown"}`
    Unknown,
}

/// See [`Tally`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TallyV1 {
    /// Whether it is to run.
    pub wanted: bool,
    /// Restarts in a row, none of which lasted.
    pub restarts: u32,
    /// Whether its last end, or the last try to start it again, was a failure.
    pub failed: bool,
    /// When its guest last began or ended.
    pub since: TimeV1,
    /// Boot id of the host in which it was last begun, ended or defined.
    pub host_boot: String,
}

impl TallyV1 {
    fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

impl From<&Tally> for TallyV1 {
    fn from(tally: &Tally) -> Self {
        Self {
            wanted: tally.wanted,
            restarts: tally.restarts,
            failed: tally.failed,
            since: tally.since.into(),
            host_boot: tally.host_boot.clone(),
        }
    }
}

impl From<TallyV1> for Tally {
    fn from(tally: TallyV1) -> Self {
        Self {
            wanted: tally.wanted,
            restarts: tally.restarts,
            failed: tally.failed,
            since: tally.since.0,
            host_boot: tally.host_boot,
        }
    }
}

/// See [`Finished`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinishedV1 {
    /// Its id.
    pub id: Text<OpId>,
    /// Who asked.
    pub request_id: Text<RequestId>,
    /// What for.
    pub kind: Text<OpKind>,
    /// When it ended.
    pub at: TimeV1,
    /// How.
    pub result: OutcomeV1,
}

impl From<&VmState> for VmStateV1 {
    fn from(state: &VmState) -> Self {
        match state {
            VmState::Stopped => Self::Stopped,
            VmState::Running => Self::Running,
            VmState::Paused => Self::Paused,
            VmState::Suspended => Self::Suspended,
            VmState::Failed(reason) => Self::Failed { reason: reason.clone() },
        }
    }
}

impl From<VmStateV1> for VmState {
    fn from(state: VmStateV1) -> Self {
        match state {
            VmStateV1::Stopped => Self::Stopped,
            VmStateV1::Running => Self::Running,
            VmStateV1::Paused => Self::Paused,
            VmStateV1::Suspended => Self::Suspended,
            VmStateV1::Failed { reason } => Self::Failed(reason),
        }
    }
}

impl From<&Request> for RequestV1 {
    fn from(request: &Request) -> Self {
        let boxed = |spec: &_| Box::new(VmSpecV1::from(spec));
        match request {
            Request::Define(spec) => Self::Define { spec: boxed(spec) },
            Request::Start => Self::Start,
            Request::Deploy(spec) => Self::Deploy { spec: boxed(spec) },
            &Request::Shutdown { timeout_ms, force, forget } => {
                Self::Shutdown { timeout_ms, force, forget }
            }
            &Request::Destroy { forget } => Self::Destroy { forget },
            &Request::Reboot { timeout_ms } => Self::Reboot { timeout_ms },
            Request::Reset => Self::Reset,
            Request::Undefine => Self::Undefine,
            Request::Change(change) => Self::Change { change: Box::new((&**change).into()) },
            Request::Collect => Self::Collect,
            &Request::Restart { of } => Self::Restart { of: of.0 },
        }
    }
}

impl TryFrom<RequestV1> for Request {
    type Error = Error;

    fn try_from(request: RequestV1) -> Result<Self, Error> {
        Ok(match request {
            RequestV1::Define { spec } => Self::Define(Box::new((*spec).try_into()?)),
            RequestV1::Start => Self::Start,
            RequestV1::Deploy { spec } => Self::Deploy(Box::new((*spec).try_into()?)),
            RequestV1::Shutdown { timeout_ms, force, forget } => {
                Self::Shutdown { timeout_ms, force, forget }
            }
            RequestV1::Destroy { forget } => Self::Destroy { forget },
            RequestV1::Reboot { timeout_ms } => Self::Reboot { timeout_ms },
            RequestV1::Reset => Self::Reset,
            RequestV1::Undefine => Self::Undefine,
            RequestV1::Change { change } => Self::Change(Box::new(change.for_vm("on record")?)),
            RequestV1::Collect => Self::Collect,
            RequestV1::Restart { of } => Self::Restart { of: Generation(of) },
        })
    }
}

impl From<&Operation> for OperationV1 {
    fn from(op: &Operation) -> Self {
        Self {
            id: Text(op.id),
            request_id: Text(op.request_id.clone()),
            request: (&op.request).into(),
            phase: match &op.phase {
                Phase::Doing => PhaseV1::Doing,
                Phase::Undoing(error) => PhaseV1::Undoing { error: error.into() },
            },
            started: op.started.into(),
        }
    }
}

impl TryFrom<OperationV1> for Operation {
    type Error = Error;

    fn try_from(op: OperationV1) -> Result<Self, Error> {
        Ok(Self {
            id: op.id.0,
            request_id: op.request_id.0,
            request: op.request.try_into()?,
            phase: match op.phase {
                PhaseV1::Doing => Phase::Doing,
                PhaseV1::Undoing { error } => Phase::Undoing(error.into()),
            },
            started: op.started.0,
        })
    }
}

impl From<IdRange> for IdRangeV1 {
    fn from(ids: IdRange) -> Self {
        Self { base: ids.base }
    }
}

impl TryFrom<IdRangeV1> for IdRange {
    type Error = Error;

    /// A range that contains id 0 would hand the host's root to a guest; one that passes
    /// 2^32 - 2 would contain the id that means "none" (4294967295).
    fn try_from(ids: IdRangeV1) -> Result<Self, Error> {
        let base = ids.base;
        if base == 0 || base.checked_add(Self::LEN).is_none() {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("id range of 65536 at {base} is not within 1 to 4294967294"),
            ));
        }
        Ok(Self { base })
    }
}

impl From<ProcessRef> for ProcessV1 {
    fn from(process: ProcessRef) -> Self {
        Self { pid: process.pid, start_ticks: process.start_ticks }
    }
}

impl TryFrom<ProcessV1> for ProcessRef {
    type Error = Error;

    /// kill(2) takes 0 and numbers that are negative as `pid_t` for groups: never let them in.
    fn try_from(process: ProcessV1) -> Result<Self, Error> {
        if process.pid == 0 || i32::try_from(process.pid).is_err() {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("process id {} is not 1 to 2147483647", process.pid),
            ));
        }
        Ok(Self { pid: process.pid, start_ticks: process.start_ticks })
    }
}

impl From<GuestKind> for GuestKindV1 {
    fn from(kind: GuestKind) -> Self {
        match kind {
            GuestKind::System => Self::System,
            GuestKind::Application => Self::Application,
        }
    }
}

impl From<GuestKindV1> for GuestKind {
    fn from(kind: GuestKindV1) -> Self {
        match kind {
            GuestKindV1::System => Self::System,
            GuestKindV1::Application => Self::Application,
        }
    }
}

impl From<&GuestFacts> for GuestV1 {
    fn from(guest: &GuestFacts) -> Self {
        Self {
            init: guest.init.into(),
            shim: guest.shim.into(),
            kind: guest.kind.into(),
            stop_signal: guest.stop_signal,
            host_boot: guest.host_boot.clone(),
        }
    }
}

impl TryFrom<GuestV1> for GuestFacts {
    type Error = Error;

    fn try_from(guest: GuestV1) -> Result<Self, Error> {
        if !(1..=64).contains(&guest.stop_signal) {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("stop signal {} is not 1 to 64", guest.stop_signal),
            ));
        }
        Ok(Self {
            init: guest.init.try_into()?,
            shim: guest.shim.try_into()?,
            kind: guest.kind.into(),
            stop_signal: guest.stop_signal,
            host_boot: guest.host_boot,
        })
    }
}

impl From<GuestExit> for GuestExitV1 {
    fn from(exit: GuestExit) -> Self {
        match exit {
            GuestExit::Code(code) => Self::Code { code },
            GuestExit::Signal(signal) => Self::Signal { signal },
            GuestExit::Unknown => Self::Unknown,
        }
    }
}

impl From<GuestExitV1> for GuestExit {
    fn from(exit: GuestExitV1) -> Self {
        match exit {
            GuestExitV1::Code { code } => Self::Code(code),
            GuestExitV1::Signal { signal } => Self::Signal(signal),
            GuestExitV1::Unknown => Self::Unknown,
        }
    }
}

impl From<&Finished> for FinishedV1 {
    fn from(done: &Finished) -> Self {
        Self {
            id: Text(done.id),
            request_id: Text(done.request_id.clone()),
            kind: Text(done.kind),
            at: done.at.into(),
            result: (&done.result).into(),
        }
    }
}

impl From<FinishedV1> for Finished {
    fn from(done: FinishedV1) -> Self {
        Self {
            id: done.id.0,
            request_id: done.request_id.0,
            kind: done.kind.0,
            at: done.at.0,
            result: done.result.into(),
        }
    }
}

impl From<&Record> for RecordV1 {
    fn from(record: &Record) -> Self {
        Self {
            version: Self::VERSION,
            generation: record.generation.0,
            spec: (&record.spec).into(),
            state: (&record.state).into(),
            op: record.op.as_ref().map(Into::into),
            ids: record.ids.map(Into::into),
            guest: record.guest.as_ref().map(Into::into),
            last_exit: record.last_exit.map(Into::into),
            tally: (&record.tally).into(),
            losses: record.losses.clone(),
            finished: record.finished.iter().map(Into::into).collect(),
            created: record.created.into(),
            changed: record.changed.into(),
        }
    }
}

impl TryFrom<RecordV1> for Record {
    type Error = Error;

    fn try_from(record: RecordV1) -> Result<Self, Error> {
        if record.version != RecordV1::VERSION {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "record version {} is unknown, this build reads {}",
                    record.version,
                    RecordV1::VERSION
                ),
            ));
        }
        let made = Self {
            generation: Generation(record.generation),
            spec: record.spec.try_into()?,
            state: record.state.into(),
            op: record.op.map(TryInto::try_into).transpose()?,
            ids: record.ids.map(TryInto::try_into).transpose()?,
            guest: record.guest.map(TryInto::try_into).transpose()?,
            last_exit: record.last_exit.map(Into::into),
            tally: record.tally.into(),
            losses: record.losses,
            finished: record.finished.into_iter().map(Into::into).collect(),
            created: record.created.0,
            changed: record.changed.0,
        };
        if let Some(Request::Define(spec) | Request::Deploy(spec)) =
            made.op.as_ref().map(|op| &op.request)
            && spec.id != made.spec.id
        {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("record of vm {} holds an operation for vm {}", made.spec.id, spec.id),
            ));
        }
        Ok(made)
    }
}
