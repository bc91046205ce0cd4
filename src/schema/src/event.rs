//! Events: what happened to VMs and images, numbered without gaps within one run of the daemon.

use ocivisor_core::ids::{OpId, VmId};
use serde::{Deserialize, Serialize};

use crate::error::OutcomeV1;
use crate::record::GuestExitV1;
use crate::reply::{HealthNameV1, ProgressV1, StateNameV1};
use crate::text::{Text, TimeV1};

/// One event: `{"seq": 12, "at": "…", "vm": "one-7", "kind": "state_changed", …}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventV1 {
    /// Number of the event; the next one is larger by one.
    pub seq: u64,
    /// When.
    pub at: TimeV1,
    /// To which VM, if to one; an image made of a VM happens to both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<Text<VmId>>,
    /// To which image, if to one: by its name here, or by what was to be brought in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// What.
    #[serde(flatten)]
    pub data: EventDataV1,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum EventDataV1 {
    /// An operation was recorded and begins.
    OperationStarted {
        /// Its id.
        op: Text<OpId>,
        /// What for.
        operation: String,
    },
    /// An operation reached a step.
    OperationProgress {
        /// Its id.
        op: Text<OpId>,
        /// The step that is on, for people.
        step: String,
        /// How far that is, where it can be counted.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        progress: Option<ProgressV1>,
    },
    /// An operation ended, its outcome is on disk.
    OperationFinished {
        /// Its id.
        op: Text<OpId>,
        /// What for.
        operation: String,
        /// How.
        result: OutcomeV1,
    },
    /// The settled state changed.
    StateChanged {
        /// Before; `null` when the VM is new.
        #[serde(default)]
        from: Option<StateNameV1>,
        /// After.
        to: StateNameV1,
    },
    /// The guest's first process ended.
    GuestExited {
        /// How.
        exit: GuestExitV1,
    },
    /// A guest whose shim was lost has a new one.
    ShimAdopted {
        /// What could not be kept.
        losses: Vec<String>,
    },
    /// The kernel killed processes of the guest because the guest's memory was full.
    VmOom {
        /// How many since the last event of this kind.
        count: u64,
        /// How many since the guest booted.
        total: u64,
    },
    /// What the checks of the guest say has changed.
    HealthChanged {
        /// Before.
        from: HealthNameV1,
        /// After.
        to: HealthNameV1,
    },
    /// The guest failed again, and its policy has no more restarts for it.
    RestartsExhausted {
        /// How many there were in a row.
        restarts: u32,
    },
    /// The record is gone.
    VmForgotten,
    /// A kind that is newer than this reader.
    #[serde(other)]
    Unknown,
}
