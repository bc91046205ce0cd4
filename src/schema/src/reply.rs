//! Replies of the API; parameters are the arguments of the methods themselves.

use ocivisor_core::health::Health;
use ocivisor_core::ids::{OpId, VmId};
use ocivisor_core::state::{Record, VmState};
use serde::{Deserialize, Serialize};

use crate::error::OutcomeV1;
use crate::event::EventV1;
use crate::image::MadeV1;
use crate::record::RecordV1;
use crate::spec::PlatformV1;
use crate::text::{Text, TimeV1};

/// Names of the settled states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StateNameV1 {
    /// `stopped`
    Stopped,
    /// `running`
    Running,
    /// `paused`
    Paused,
    /// `suspended`
    Suspended,
    /// `failed`
    Failed,
}

impl StateNameV1 {
    /// The name, as on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Suspended => "suspended",
            Self::Failed => "failed",
        }
    }
}

impl From<&VmState> for StateNameV1 {
    fn from(state: &VmState) -> Self {
        match state {
            VmState::Stopped => Self::Stopped,
            VmState::Running => Self::Running,
            VmState::Paused => Self::Paused,
            VmState::Suspended => Self::Suspended,
            VmState::Failed(_) => Self::Failed,
        }
    }
}

/// A VM whose record cannot be read. Its guest, if there is one, runs on; nothing can be done with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedVm {
    /// The VM.
    pub id: Text<VmId>,
    /// What is wrong with the record, for people.
    pub why: String,
}

/// Answer to a request that changes a VM: the operation is recorded, not yet done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationReply {
    /// The operation to wait for; `null` if the wish is already true.
    pub op: Option<Text<OpId>>,
    /// The VM.
    pub vm: Text<VmId>,
    /// Its settled state now; `null` if it is not known (forgotten already, or not yet made).
    pub state: Option<StateNameV1>,
    /// Whether the operation was begun by another request.
    pub joined: bool,
}

/// Where an operation is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpStatusReply {
    /// Its id.
    pub op: Text<OpId>,
    /// Its VM, if it is about one; an image made of a VM is about both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<Text<VmId>>,
    /// Its image, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// What for.
    pub kind: String,
    /// Whether it ended.
    pub done: bool,
    /// The step it is at, for people.
    pub step: Option<String>,
    /// How far that step is, where it can be counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<ProgressV1>,
    /// How it ended; `null` while it does not.
    pub result: Option<OutcomeV1>,
    /// What it made or found, if it ended well and there is something to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made: Option<MadeV1>,
}

/// How far a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgressV1 {
    /// Bytes done.
    pub done: u64,
    /// Bytes in all, where that is known.
    pub total: Option<u64>,
}

/// Answer to a request for long work on images: it has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageOperationReply {
    /// The operation to wait for.
    pub op: Text<OpId>,
    /// The VM that it is about, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<Text<VmId>>,
    /// The image that it is about, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Whether it was begun by the same request before.
    pub joined: bool,
}

impl ImageOperationReply {
    /// What it is about, for people.
    #[must_use]
    pub fn about(&self) -> String {
        match (&self.vm, &self.image) {
            (Some(vm), Some(image)) => format!("{vm} as {image}"),
            (Some(vm), None) => vm.to_string(),
            (None, Some(image)) => image.clone(),
            (None, None) => "image store".to_owned(),
        }
    }
}

/// One line of a list of VMs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSummary {
    /// Its id.
    pub id: Text<VmId>,
    /// Name for people.
    pub name: String,
    /// Who drives it.
    pub platform: PlatformV1,
    /// Settled state.
    pub state: StateNameV1,
    /// Why it failed, if it did.
    pub failure: Option<String>,
    /// Operation under way in words, else the settled state.
    pub display_state: String,
    /// Host pid of the guest's first process.
    pub pid: Option<u32>,
    /// Addresses of all NICs, with prefix.
    pub addresses: Vec<String>,
    /// Memory limit in bytes.
    pub memory: u64,
    /// Share in hundredths of a core.
    pub cpu_share: u32,
    /// Processors.
    pub vcpus: u32,
    /// Host uid that is root inside.
    pub uid_base: Option<u32>,
    /// When it was defined.
    pub created: TimeV1,
    /// When its settled state last changed.
    pub changed: TimeV1,
    /// Operation under way.
    pub op: Option<Text<OpId>>,
    /// Whether its guest works, if it runs and is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthNameV1>,
}

impl From<&Record> for VmSummary {
    fn from(record: &Record) -> Self {
        let spec = &record.spec;
        Self {
            id: Text(spec.id.clone()),
            name: spec.name.to_string(),
            platform: spec.platform.into(),
            state: (&record.state).into(),
            failure: match &record.state {
                VmState::Failed(reason) => Some(reason.clone()),
                VmState::Stopped | VmState::Running | VmState::Paused | VmState::Suspended => None,
            },
            display_state: record.display_state().to_owned(),
            pid: record.guest.as_ref().map(|guest| guest.init.pid),
            addresses: addresses(record),
            memory: spec.resources.memory.0,
            cpu_share: spec.resources.cpu_share.0,
            vcpus: spec.resources.vcpus,
            uid_base: record.ids.map(|ids| ids.base),
            created: record.created.into(),
            changed: record.changed.into(),
            op: record.op.as_ref().map(|op| Text(op.id)),
            health: None,
        }
    }
}

fn addresses(record: &Record) -> Vec<String> {
    let all = record.spec.nics.iter().flat_map(|nic| &nic.addresses);
    all.map(|(address, len)| format!("{address}/{len}")).collect()
}

/// All VMs, and no more of them than monitors ask for every few seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatesReply {
    /// By id.
    pub vms: Vec<VmNow>,
    /// Those whose records cannot be read, see [`DamagedVm`].
    pub damaged: Vec<Text<VmId>>,
}

/// Where a VM is now. Fields are those of [`VmSummary`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmNow {
    /// Its id.
    pub id: Text<VmId>,
    /// Settled state.
    pub state: StateNameV1,
    /// When that last changed.
    pub changed: TimeV1,
    /// Whether an operation is under way.
    pub busy: bool,
    /// Addresses of all NICs, with prefix.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
}

impl From<&Record> for VmNow {
    fn from(record: &Record) -> Self {
        Self {
            id: Text(record.id().clone()),
            state: (&record.state).into(),
            changed: record.changed.into(),
            busy: record.op.is_some(),
            addresses: addresses(record),
        }
    }
}

impl From<VmSummary> for VmNow {
    fn from(vm: VmSummary) -> Self {
        let VmSummary { id, state, changed, op, addresses, .. } = vm;
        Self { id, state, changed, busy: op.is_some(), addresses }
    }
}

/// Everything that is kept of a VM: the fields of its record, and what to show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmInfo {
    /// Operation under way in words, else the settled state.
    pub display_state: String,
    /// Whether its guest works, if it runs and is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthV1>,
    /// The record, secrets hidden.
    #[serde(flatten)]
    pub record: RecordV1,
}

impl From<&Record> for VmInfo {
    fn from(record: &Record) -> Self {
        let shown = RecordV1::from(record).without_secrets();
        let display_state = record.display_state().to_owned();
        Self { display_state, health: None, record: shown }
    }
}

/// See [`Health`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthNameV1 {
    /// `starting`
    Starting,
    /// `healthy`
    Healthy,
    /// `unhealthy`
    Unhealthy,
}

impl HealthNameV1 {
    /// The name, as on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

impl From<Health> for HealthNameV1 {
    fn from(health: Health) -> Self {
        match health {
            Health::Starting => Self::Starting,
            Health::Healthy => Self::Healthy,
            Health::Unhealthy => Self::Unhealthy,
        }
    }
}

/// What checks of a guest said, since this daemon asks it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthV1 {
    /// In a word.
    pub status: HealthNameV1,
    /// Failures in a row.
    pub failures: u32,
    /// The beginning of what the last check wrote, if it wrote anything; bytes that are not UTF-8 replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
}

/// Events after a number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventsReply {
    /// In order.
    pub events: Vec<EventV1>,
    /// What to ask for next.
    pub next_seq: u64,
    /// Whether events between the asked number and the first one here are no longer kept, or the
    /// daemon was restarted: read the list of VMs anew.
    pub lost: bool,
}

/// Where a console can be attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleReply {
    /// Path of the shim's Unix socket.
    pub socket: String,
}

/// Where a process begun in a guest can be attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecReply {
    /// Path of a Unix socket.
    pub socket: String,
    /// To be sent first there; good for one connection.
    pub token: String,
}

/// The end of a console log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogReply {
    /// The bytes of the guest in base64 (RFC 4648 section 4): they need not be UTF-8.
    pub text_base64: String,
    /// Whether older bytes were left out.
    pub truncated: bool,
}

/// An image of this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// Its name here.
    pub name: String,
    /// Digest of its manifest, `sha256:…`.
    pub digest: String,
    /// `os/architecture[/variant]`.
    pub platform: String,
    /// Number of layers.
    pub layers: u32,
    /// Bytes of its layers unpacked; layers shared with other images are counted here too.
    pub size_bytes: u64,
    /// When it came here.
    pub imported: TimeV1,
    /// The operator who set the name, by number; nothing if an admin did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner_uid: Option<u32>,
}

/// Answer to a removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedReply {
    /// Whether there was something to remove.
    pub removed: bool,
}

/// What a writable disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskBackendV1 {
    /// `ext4`: a sparse file with an ext4 filesystem; its size is a hard limit.
    #[default]
    Ext4,
    /// `directory`: a plain directory without a limit.
    Directory,
}

/// A writable disk that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskInfo {
    /// The disk.
    pub path: String,
    /// The manifest beside it.
    pub manifest: String,
    /// Digest of the image's manifest.
    pub image_digest: String,
}

/// Which hierarchies of control groups the host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CgroupLayoutV1 {
    /// `v2`: one hierarchy.
    V2,
    /// `v1`: one per controller.
    V1,
    /// `hybrid`: controllers in v1, and a v2 hierarchy for tracking.
    Hybrid,
}

/// Number of VMs by settled state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VmCounts {
    /// Stopped ones.
    pub stopped: u32,
    /// Running ones.
    pub running: u32,
    /// Paused ones.
    pub paused: u32,
    /// Suspended ones.
    pub suspended: u32,
    /// Failed ones.
    pub failed: u32,
}

impl VmCounts {
    /// Counts one more.
    pub fn add(&mut self, state: StateNameV1) {
        let slot = match state {
            StateNameV1::Stopped => &mut self.stopped,
            StateNameV1::Running => &mut self.running,
            StateNameV1::Paused => &mut self.paused,
            StateNameV1::Suspended => &mut self.suspended,
            StateNameV1::Failed => &mut self.failed,
        };
        *slot = slot.saturating_add(1);
    }
}

/// The host and its daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostInfo {
    /// Version of the daemon.
    pub version: String,
    /// Host name.
    pub hostname: String,
    /// Release of the kernel.
    pub kernel: String,
    /// Boot id (/proc/sys/kernel/random/boot_id).
    pub boot_id: String,
    /// Control groups.
    pub cgroup_layout: CgroupLayoutV1,
    /// Processors that are online.
    pub cpus: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes of memory available (MemAvailable of /proc/meminfo).
    pub memory_available: u64,
    /// VMs by state.
    pub vms: VmCounts,
    /// State directory.
    pub state_dir: String,
    /// Run directory.
    pub run_dir: String,
}

/// Who answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionReply {
    /// Version of the daemon.
    pub version: String,
    /// Version of this API; grows only when something is taken away or changes its meaning.
    pub api: u32,
}
