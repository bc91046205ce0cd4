//! Why a VM is as it is: the failure that is kept of it on disk, and what is told of it.

use ocivisor_core::error::one_line;
use ocivisor_core::failure::KeptFailure;
use ocivisor_core::ids::{OpId, VmId};
use ocivisor_core::state::{OpKind, Record, VmState};
use serde::{Deserialize, Serialize};

use crate::codec::{self, DecodeError, EncodeError};
use crate::error::ErrorV1;
use crate::record::GuestExitV1;
use crate::reply::StateNameV1;
use crate::text::{Text, TimeV1};

/// Most bytes of an encoded failure. Its texts are bounded, and escapes of JSON at most double them.
pub const MAX_FAILURE: usize = 32 << 10;

/// See [`KeptFailure`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptFailureV1 {
    /// [`KeptFailureV1::VERSION`].
    pub version: u32,
    /// The VM.
    pub vm: Text<VmId>,
    /// The operation that failed.
    pub op: Text<OpId>,
    /// What for.
    pub operation: Text<OpKind>,
    /// The step of it; `null` if it was none (a restart of the daemon, the record).
    #[serde(default)]
    pub step: Option<String>,
    /// Cause and remedy.
    pub error: ErrorV1,
    /// When.
    pub at: TimeV1,
    /// How the guest ended, if the operation had one and it ended.
    #[serde(default)]
    pub exit: Option<GuestExitV1>,
    /// The last lines of the guest's console then, escaped.
    #[serde(default)]
    pub console: Vec<String>,
}

impl KeptFailureV1 {
    /// Version of this layout.
    pub const VERSION: u32 = 1;
}

impl From<&KeptFailure> for KeptFailureV1 {
    fn from(failure: &KeptFailure) -> Self {
        Self {
            version: Self::VERSION,
            vm: Text(failure.vm.clone()),
            op: Text(failure.op),
            operation: Text(failure.kind),
            step: failure.step.clone(),
            error: (&failure.error).into(),
            at: failure.at.into(),
            exit: failure.exit.map(Into::into),
            console: failure.console.clone(),
        }
    }
}

impl From<KeptFailureV1> for KeptFailure {
    fn from(failure: KeptFailureV1) -> Self {
        let console = failure.console.iter().take(Self::LINES);
        Self {
            vm: failure.vm.0,
            op: failure.op.0,
            kind: failure.operation.0,
            step: failure.step.as_deref().map(one_line),
            error: failure.error.into(),
            at: failure.at.0,
            exit: failure.exit.map(Into::into),
            console: console.map(|line| one_line(line)).collect(),
        }
    }
}

/// The bytes of a failure; the form is that of records ([`codec`]).
///
/// # Errors
/// It has no JSON form.
pub fn encode(failure: &KeptFailure) -> Result<Vec<u8>, EncodeError> {
    codec::sealed(failure.vm.as_str(), &KeptFailureV1::from(failure), MAX_FAILURE)
}

/// The failure of these bytes.
///
/// # Errors
/// They are not what [`encode`] wrote, or not what this build can read.
pub fn decode(bytes: &[u8]) -> Result<KeptFailure, DecodeError> {
    codec::unsealed::<KeptFailureV1>(bytes, KeptFailureV1::VERSION, MAX_FAILURE).map(Into::into)
}

/// What is known of why a VM is as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhyReply {
    /// The VM.
    pub vm: Text<VmId>,
    /// Its settled state; `null` if it is not known (any more).
    pub state: Option<StateNameV1>,
    /// Operation under way in words, else the settled state.
    pub display_state: Option<String>,
    /// Since when it is in that state.
    pub changed: Option<TimeV1>,
    /// Why it is `failed`, if it is.
    pub reason: Option<String>,
    /// How its last guest ended, if none runs.
    pub last_exit: Option<GuestExitV1>,
    /// Whether that guest ended by itself: nobody asked for it.
    pub ended_by_itself: bool,
    /// The last operation that failed, if nothing has mended that since.
    pub failure: Option<KeptFailureV1>,
    /// The last lines of its console now, escaped; none if it is not known.
    pub console: Vec<String>,
}

impl WhyReply {
    /// Of a VM that is known or not.
    #[must_use]
    pub fn new(
        vm: &VmId,
        record: Option<&Record>,
        failure: Option<&KeptFailure>,
        console: Vec<String>,
    ) -> Self {
        let rests = record.filter(|record| !record.state.is_live());
        let last = rests.and_then(|record| record.finished.last());
        Self {
            vm: Text(vm.clone()),
            state: record.map(|record| (&record.state).into()),
            display_state: record.map(|record| record.display_state().to_owned()),
            changed: record.map(|record| record.changed.into()),
            reason: record.and_then(|record| match &record.state {
                VmState::Failed(reason) => Some(reason.clone()),
                VmState::Stopped | VmState::Running | VmState::Paused | VmState::Suspended => None,
            }),
            last_exit: rests.and_then(|record| record.last_exit).map(Into::into),
            ended_by_itself: last.is_some_and(|op| op.kind == OpKind::Collect),
            failure: failure.map(Into::into),
            console,
        }
    }
}
