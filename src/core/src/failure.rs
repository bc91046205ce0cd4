//! What is kept of an operation that failed, so that people can ask why: also of a VM that was forgotten for it.
//!
//! It is made before anything of the VM is released, while the guest's last lines and its exit are still to be had.

use crate::engine::{Engine, Hooks};
use crate::error::Error;
use crate::ids::{OpId, VmId};
use crate::plan::Step;
use crate::state::{GuestExit, OpKind, Operation, Record, Timestamp};

/// The last failure of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptFailure {
    /// The VM.
    pub vm: VmId,
    /// The operation.
    pub op: OpId,
    /// What for.
    pub kind: OpKind,
    /// Name of the step that failed; `None` if it was none (a restart of the daemon, the record).
    pub step: Option<String>,
    /// The cause, and the remedy if one is known.
    pub error: Error,
    /// When.
    pub at: Timestamp,
    /// How the guest ended, if the operation had one and it ended.
    pub exit: Option<GuestExit>,
    /// What it last wrote to its console: escaped lines, at most [`KeptFailure::LINES`] and [`KeptFailure::BYTES`].
    pub console: Vec<String>,
}

impl KeptFailure {
    /// Most lines of the console.
    pub const LINES: usize = 20;
    /// Most bytes of all lines together.
    pub const BYTES: usize = 4096;

    /// Whether the success of such an operation makes this the past: the same one worked, or a guest was booted.
    #[must_use]
    pub fn is_mended_by(&self, kind: OpKind) -> bool {
        use OpKind::{Deploy, Reboot, Reset, Restart, Start};
        kind == self.kind || matches!(kind, Deploy | Reboot | Reset | Restart | Start)
    }
}

impl Engine<'_> {
    /// Tells of a failure, before what it left is released.
    pub(crate) fn tell_failure(
        &self,
        record: &Record,
        op: &Operation,
        step: Option<Step>,
        error: &Error,
        hooks: &dyn Hooks,
    ) {
        // Without a guest, exit and console would be those of an earlier one.
        let has_guest = record.guest.is_some();
        let console = has_guest.then(|| self.ports.guests.last_lines(record.id()));
        hooks.failed(KeptFailure {
            vm: record.id().clone(),
            op: op.id,
            kind: op.request.kind(),
            step: step.map(|step| step.name().to_owned()),
            error: error.clone(),
            at: self.ports.clock.now(),
            exit: record.last_exit.filter(|_| has_guest),
            console: console.unwrap_or_default(),
        });
    }
}
