//! The record of a VM: its settled state, the one operation under way, and what is known of the
//! guest. The record on disk is the truth; everything else is derived or observed.

use std::fmt;

use crate::error::Error;
use crate::ids::{Generation, IdRange, OpId, RequestId, VmId};
use crate::spec::{Change, VmSpec};

/// Settled states. Transit is a settled state plus the recorded [`Operation`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmState {
    /// Nothing of it runs, is mounted or plugged.
    Stopped,
    /// The guest's first process runs.
    Running,
    /// The guest is frozen.
    Paused,
    /// The guest's memory is in a file, nothing runs.
    Suspended,
    /// Neither forward nor back worked; says why. `destroy` leads out.
    Failed(String),
}

impl VmState {
    /// The state's name, as shown, sent and stored.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Suspended => "suspended",
            Self::Failed(_) => "failed",
        }
    }

    /// Whether a guest holds resources of the host in this state.
    #[must_use]
    pub fn is_live(&self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }
}

/// Kinds of operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OpKind {
    /// Write the spec down; nothing runs.
    Define,
    /// Boot a defined VM.
    Start,
    /// Define and boot in one; a failure forgets the VM again.
    Deploy,
    /// Ask the guest to end, wait, then end it by force if so told.
    Shutdown,
    /// End the guest at once.
    Destroy,
    /// Ask the guest to end, then boot it anew; NICs and namespaces stay.
    Reboot,
    /// End the guest at once, then boot it anew; NICs and namespaces stay.
    Reset,
    /// Forget a VM that does not run.
    Undefine,
    /// Replace parts of the wish; a guest that runs obeys at once.
    Change,
    /// The guest ended by itself: clear what it held.
    Collect,
    /// Boot a VM that nobody asked for just now: see [`crate::upkeep`].
    Restart,
}

impl OpKind {
    /// All kinds.
    pub const ALL: [Self; 11] = [
        Self::Define,
        Self::Start,
        Self::Deploy,
        Self::Shutdown,
        Self::Destroy,
        Self::Reboot,
        Self::Reset,
        Self::Undefine,
        Self::Change,
        Self::Collect,
        Self::Restart,
    ];

    /// Name on the wire, on disk and in logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Define => "define",
            Self::Start => "start",
            Self::Deploy => "deploy",
            Self::Shutdown => "shutdown",
            Self::Destroy => "destroy",
            Self::Reboot => "reboot",
            Self::Reset => "reset",
            Self::Undefine => "undefine",
            Self::Change => "change",
            Self::Collect => "collect",
            Self::Restart => "restart",
        }
    }

    /// The kind of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// What a VM under this operation is shown as doing.
    #[must_use]
    pub fn progress(self) -> &'static str {
        match self {
            Self::Define => "defining",
            Self::Start | Self::Deploy | Self::Restart => "starting",
            Self::Shutdown => "shutting down",
            Self::Destroy => "being destroyed",
            Self::Reboot => "rebooting",
            Self::Reset => "resetting",
            Self::Undefine => "being undefined",
            Self::Change => "being changed",
            Self::Collect => "ending",
        }
    }
}

impl fmt::Display for OpKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a caller wants done to one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// See [`OpKind::Define`].
    Define(Box<VmSpec>),
    /// See [`OpKind::Start`].
    Start,
    /// See [`OpKind::Deploy`].
    Deploy(Box<VmSpec>),
    /// See [`OpKind::Shutdown`].
    Shutdown {
        /// How long the guest may take.
        timeout_ms: u64,
        /// Whether to end it by force after that; else the operation fails and the guest runs on.
        force: bool,
        /// Whether to forget the VM afterwards, as platforms want.
        forget: bool,
    },
    /// See [`OpKind::Destroy`].
    Destroy {
        /// Whether to forget the VM afterwards.
        forget: bool,
    },
    /// See [`OpKind::Reboot`].
    Reboot {
        /// How long the guest may take to end before it is ended by force.
        timeout_ms: u64,
    },
    /// See [`OpKind::Reset`].
    Reset,
    /// See [`OpKind::Undefine`].
    Undefine,
    /// See [`OpKind::Change`].
    Change(Box<Change>),
    /// See [`OpKind::Collect`]; of the daemon itself.
    Collect,
    /// See [`OpKind::Restart`]; of the daemon itself.
    Restart {
        /// The record that this was decided upon; if there is a later one, it is void.
        of: Generation,
    },
}

impl Request {
    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> OpKind {
        match self {
            Self::Define(_) => OpKind::Define,
            Self::Start => OpKind::Start,
            Self::Deploy(_) => OpKind::Deploy,
            Self::Shutdown { .. } => OpKind::Shutdown,
            Self::Destroy { .. } => OpKind::Destroy,
            Self::Reboot { .. } => OpKind::Reboot,
            Self::Reset => OpKind::Reset,
            Self::Undefine => OpKind::Undefine,
            Self::Change(_) => OpKind::Change,
            Self::Collect => OpKind::Collect,
            Self::Restart { .. } => OpKind::Restart,
        }
    }
}

/// An operation under way, as recorded before its first effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// Its number.
    pub id: OpId,
    /// Who asked.
    pub request_id: RequestId,
    /// What for.
    pub request: Request,
    /// Forward or backward.
    pub phase: Phase,
    /// Since when.
    pub started: Timestamp,
}

/// Direction of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Towards its target.
    Doing,
    /// Back to where it came from, because of this error.
    Undoing(Error),
}

/// How an operation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// Its number.
    pub id: OpId,
    /// Who asked.
    pub request_id: RequestId,
    /// What for.
    pub kind: OpKind,
    /// When it ended.
    pub at: Timestamp,
    /// How.
    pub result: Result<(), Error>,
}

/// Milliseconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub u64);

/// A process that cannot be taken for another: pids are reused, pid and start time are not within
/// one boot of the host (proc(5), field 22 of /proc/PID/stat).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProcessRef {
    /// Process id in the host's pid namespace.
    pub pid: u32,
    /// Clock ticks after the host's boot.
    pub start_ticks: u64,
}

/// What the guest's first process turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GuestKind {
    /// An init system of the image.
    System,
    /// The image's entrypoint.
    Application,
}

/// Facts of the guest that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestFacts {
    /// The guest's first process, as the host sees it.
    pub init: ProcessRef,
    /// Its shim.
    pub shim: ProcessRef,
    /// What kind of guest.
    pub kind: GuestKind,
    /// Signal that asks it to end, 1 to 64.
    pub stop_signal: u8,
    /// The host's boot in which it runs (/proc/sys/kernel/random/boot_id).
    pub host_boot: String,
}

/// How a guest ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestExit {
    /// By itself, with this code.
    Code(u8),
    /// By this signal.
    Signal(u8),
    /// Nobody was there to see: the shim was lost and this kernel cannot tell (before 6.15).
    Unknown,
}

impl fmt::Display for GuestExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Unknown => f.write_str("unknown exit status"),
        }
    }
}

/// What is remembered for a VM's upkeep; nothing if it has none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tally {
    /// Whether it is to run: it was started, and nobody has asked for its end since.
    pub wanted: bool,
    /// Restarts in a row, none of which lasted.
    pub restarts: u32,
    /// Whether its last end, or the last try to start it again, was a failure.
    pub failed: bool,
    /// When its guest last began or ended.
    pub since: Timestamp,
    /// Boot of the host in which it was last begun, ended or defined.
    pub host_boot: String,
}

/// Everything that is kept of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Number of this write.
    pub generation: Generation,
    /// The wish.
    pub spec: VmSpec,
    /// Where it is.
    pub state: VmState,
    /// What is being done to it.
    pub op: Option<Operation>,
    /// Its ids on this host, from the first start until nothing carries them.
    pub ids: Option<IdRange>,
    /// The guest, while one runs.
    pub guest: Option<GuestFacts>,
    /// How the last guest ended.
    pub last_exit: Option<GuestExit>,
    /// What upkeep must know.
    pub tally: Tally,
    /// What could not be kept whole, in words (a console lost with its shim), oldest first.
    pub losses: Vec<String>,
    /// The last operations, oldest first, at most [`Record::KEPT_OPS`].
    pub finished: Vec<Finished>,
    /// When it was defined.
    pub created: Timestamp,
    /// When its settled state last changed.
    pub changed: Timestamp,
}

impl Record {
    /// Finished operations kept for request ids that come again.
    pub const KEPT_OPS: usize = 16;
    /// Losses kept.
    pub const KEPT_LOSSES: usize = 16;

    /// A VM that was just defined.
    #[must_use]
    pub fn new(spec: VmSpec, now: Timestamp) -> Self {
        Self {
            generation: Generation(0),
            spec,
            state: VmState::Stopped,
            op: None,
            ids: None,
            guest: None,
            last_exit: None,
            tally: Tally::default(),
            losses: Vec::new(),
            finished: Vec::new(),
            created: now,
            changed: now,
        }
    }

    /// The VM's id.
    #[must_use]
    pub fn id(&self) -> &VmId {
        &self.spec.id
    }

    /// How the operation of this request ended, if it is among those kept.
    #[must_use]
    pub fn outcome_of(&self, request_id: &RequestId) -> Option<&Finished> {
        self.finished.iter().rev().find(|done| done.request_id == *request_id)
    }

    /// What to show: the operation under way, else the settled state.
    #[must_use]
    pub fn display_state(&self) -> &'static str {
        self.op.as_ref().map_or(self.state.name(), |op| op.request.kind().progress())
    }

    /// Keeps a loss, forgetting the oldest beyond the bound.
    pub fn note_loss(&mut self, loss: String) {
        self.losses.push(loss);
        let excess = self.losses.len().saturating_sub(Self::KEPT_LOSSES);
        self.losses.drain(..excess);
    }
}
