//! The steps of an operation, in order, and what a failure of each means. Pure.
//!
//! Every way down is the same list, [`release`]: each of its steps succeeds on absence, so it
//! clears whole guests, half-made ones and nothing alike, and serves as the undo of every boot.

use crate::rewire;
use crate::state::{Record, Request, VmState};

/// One step; each may run twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// User and network namespace.
    Namespaces,
    /// All NICs of the spec.
    Nics,
    /// Root filesystem.
    Root,
    /// Disks beside the root disk.
    Disks,
    /// What shows the console, if one is wished for.
    Display,
    /// Control groups with limits.
    Cgroup,
    /// First process, waiting; then its facts are recorded.
    Create,
    /// The guest's files say what it is told.
    Tell,
    /// A guest that lives has the limits of the changed wish.
    Limit,
    /// A guest that lives has the NICs of the changed wish; those that are the same in both are not touched.
    Rewire,
    /// First process runs.
    Start,
    /// It still runs a moment later.
    Settle,
    /// Stop signal, then wait.
    AskToEnd {
        /// For so long.
        timeout_ms: u64,
        /// Whether going on by force is right after that.
        force: bool,
    },
    /// Guest and shim are gone.
    DropGuest,
    /// What showed the console is gone.
    DropDisplay,
    /// Nothing is left in the control groups, nor they.
    DropCgroup,
    /// All NICs, of the old and of the new spec.
    DropNics,
    /// No data disk is mounted or attached.
    DropDisks,
    /// Nothing is mounted or attached.
    DropRoot,
    /// Namespaces are unpinned.
    DropNamespaces,
}

impl Step {
    /// Its name in events, logs and fault points.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Namespaces => "namespaces",
            Self::Nics => "nics",
            Self::Root => "root",
            Self::Disks => "disks",
            Self::Display => "display",
            Self::Cgroup => "cgroup",
            Self::Create => "create",
            Self::Tell => "tell",
            Self::Limit => "limit",
            Self::Rewire => "rewire",
            Self::Start => "start",
            Self::Settle => "settle",
            Self::AskToEnd { .. } => "ask-to-end",
            Self::DropGuest => "drop-guest",
            Self::DropDisplay => "drop-display",
            Self::DropCgroup => "drop-cgroup",
            Self::DropNics => "drop-nics",
            Self::DropDisks => "drop-disks",
            Self::DropRoot => "drop-root",
            Self::DropNamespaces => "drop-namespaces",
        }
    }

    /// What it means if this step fails.
    #[must_use]
    pub fn failure(self) -> Failure {
        match self {
            Self::AskToEnd { .. } => Failure::Keep,
            Self::Limit | Self::Rewire => Failure::Revert,
            Self::Namespaces
            | Self::Nics
            | Self::Root
            | Self::Disks
            | Self::Display
            | Self::Cgroup
            | Self::Create
            | Self::Tell
            | Self::Start
            | Self::Settle => Failure::Release,
            Self::DropGuest
            | Self::DropDisplay
            | Self::DropCgroup
            | Self::DropNics
            | Self::DropDisks
            | Self::DropRoot
            | Self::DropNamespaces => Failure::Stuck,
        }
    }
}

/// What a failed step leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Nothing was changed: back to the old state.
    Keep,
    /// The guest lives on by the old wish: the steps once more, with that.
    Revert,
    /// Undo: [`release`] all, the VM is stopped (or forgotten).
    Release,
    /// Absence is wished for and cannot be had: release the rest, the VM is failed.
    Stuck,
}

/// Where an operation leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Defined, nothing runs.
    Stopped,
    /// The guest runs.
    Running,
    /// As it was, with another wish.
    Same,
    /// No record either.
    Forgotten,
}

/// Steps and target of one operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// In this order.
    pub steps: Vec<Step>,
    /// To there.
    pub target: Target,
}

/// From nothing to a guest that runs. Its NICs are whole before its first instruction. Control
/// groups come first: where moving a process into them must wait for the kernel, the adapter has
/// the time of the other steps for that. What others on the host may have taken (disk, port) is in hand
/// before the guest is made.
const BOOT: [Step; 10] = [
    Step::Cgroup,
    Step::Namespaces,
    Step::Nics,
    Step::Root,
    Step::Disks,
    Step::Display,
    Step::Create,
    Step::Tell,
    Step::Start,
    Step::Settle,
];

/// From anything to nothing: processes first, then what they held, namespaces last.
const RELEASE: [Step; 7] = [
    Step::DropGuest,
    Step::DropDisplay,
    Step::DropCgroup,
    Step::DropNics,
    Step::DropDisks,
    Step::DropRoot,
    Step::DropNamespaces,
];

/// A new first process on the same disks, NICs and namespaces, and the same display.
const REBOOT: [Step; 9] = [
    Step::DropGuest,
    Step::DropCgroup,
    Step::Cgroup,
    Step::Root,
    Step::Disks,
    Step::Create,
    Step::Tell,
    Step::Start,
    Step::Settle,
];

/// The steps that leave nothing of a VM on the host, whatever there is.
#[must_use]
pub fn release() -> &'static [Step] {
    &RELEASE
}

impl Plan {
    /// The plan of an admitted request.
    #[must_use]
    pub fn of(request: &Request, record: Option<&Record>) -> Self {
        let fresh = record.is_none_or(|r| r.state == VmState::Stopped && r.op.is_none());
        let absence = |forget: bool| Self {
            steps: RELEASE.to_vec(),
            target: if forget { Target::Forgotten } else { Target::Stopped },
        };
        match request {
            Request::Define(_) => Self { steps: Vec::new(), target: Target::Stopped },
            Request::Start => Self { steps: BOOT.to_vec(), target: Target::Running },
            // What an interrupted one left is cleared first.
            Request::Restart { .. } => {
                Self { steps: [&RELEASE[..], &BOOT].concat(), target: Target::Running }
            }
            Request::Deploy(_) => {
                // A platform deploys what it believes not to run: leftovers are cleared first.
                let clear: &[Step] = if fresh { &[] } else { &RELEASE };
                Self { steps: [clear, &BOOT].concat(), target: Target::Running }
            }
            Request::Shutdown { timeout_ms, force, forget } => {
                let mut plan = absence(*forget);
                let ask = Step::AskToEnd { timeout_ms: *timeout_ms, force: *force };
                plan.steps.insert(0, ask);
                plan
            }
            Request::Destroy { forget } => absence(*forget),
            Request::Reboot { timeout_ms } => {
                let ask = Step::AskToEnd { timeout_ms: *timeout_ms, force: true };
                Self { steps: [&[ask], &REBOOT[..]].concat(), target: Target::Running }
            }
            Request::Reset => Self { steps: REBOOT.to_vec(), target: Target::Running },
            Request::Change(change) => {
                let live = record.filter(|r| r.state.is_live());
                let mut steps = Vec::new();
                if let Some(Record { spec, .. }) = live {
                    let wished = spec.changed(change);
                    if wished.resources != spec.resources {
                        steps.push(Step::Limit);
                    }
                    if !rewire::moves(&spec.nics, &wished.nics).is_empty() {
                        steps.push(Step::Rewire);
                    }
                    if spec.is_told_apart_from(&wished) {
                        steps.push(Step::Tell);
                    }
                }
                Self { steps, target: Target::Same }
            }
            Request::Undefine => absence(true),
            Request::Collect => absence(false),
        }
    }
}
