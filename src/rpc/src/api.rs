//! The API: one trait, from which server and client are made.
//!
//! Parameters are given by name, as an object. A request that changes a VM carries a `request_id`
//! of the client's choice and returns at once with the id of a recorded operation; `op.wait` waits
//! for it. The same request id is one effect, however often it is sent, also across a restart of
//! the daemon: a client that lost the connection sends the same again.
//!
//! For those who implement [`ApiServer`]: the caller's role was checked before a method runs, and
//! [`Peer`](crate::Peer) is in the extensions. The future of a method is dropped when its client
//! hangs up, at any `.await`: work that must be finished belongs in a task of its own.

#![expect(clippy::too_many_arguments, reason = "vm.exec has as many parameters on the wire")]

use jsonrpsee::proc_macros::rpc;
use ocivisor_core::ids::{OpId, RequestId, VmId};
use ocivisor_schema::image::{
    CommitOptionsV1, DfReply, HistoryV1, ImageInspect, ImportOptionsV1, LackingV1, SourceStatV1,
};
use ocivisor_schema::reply::{
    ConsoleReply, DamagedVm, DiskBackendV1, DiskInfo, EventsReply, ExecReply, HostInfo, ImageInfo,
    ImageOperationReply, LogReply, OpStatusReply, OperationReply, RemovedReply, StatesReply,
    VersionReply, VmInfo, VmSummary,
};
use ocivisor_schema::stats::StatsReply;
use ocivisor_schema::{ChangeV1, Text, VmSpecV1, WhyReply};

use crate::error::ApiError;

/// Version of this API, as `daemon.version` tells it.
pub const API_VERSION: u32 = 1;

/// Longest wait of one `op.wait` or `events.since`, in milliseconds; servers shorten longer ones.
pub const MAX_WAIT_MS: u64 = 60_000;

/// Most events of one `events.since`.
pub const MAX_EVENTS: u32 = 1000;

/// The methods of the daemon.
#[rpc(server, client)]
pub trait Api {
    /// Write a VM down; nothing runs.
    #[method(name = "vm.define", param_kind = map, with_extensions)]
    async fn vm_define(
        &self,
        request_id: Text<RequestId>,
        spec: VmSpecV1,
    ) -> Result<OperationReply, ApiError>;

    /// Boot a defined VM.
    #[method(name = "vm.start", param_kind = map, with_extensions)]
    async fn vm_start(
        &self,
        request_id: Text<RequestId>,
        vm: Text<VmId>,
    ) -> Result<OperationReply, ApiError>;

    /// Define and boot in one; if it fails the VM is forgotten again.
    #[method(name = "vm.deploy", param_kind = map, with_extensions)]
    async fn vm_deploy(
        &self,
        request_id: Text<RequestId>,
        spec: VmSpecV1,
    ) -> Result<OperationReply, ApiError>;

    /// Ask the guest to end.
    #[method(name = "vm.shutdown", param_kind = map, with_extensions)]
    async fn vm_shutdown(
        &self,
        request_id: Text<RequestId>,
        vm: Text<VmId>,
        timeout_ms: Option<u64>,
        force: bool,
        forget: bool,
    ) -> Result<OperationReply, ApiError>;

    /// End the guest at once.
    #[method(name = "vm.destroy", param_kind = map, with_extensions)]
    async fn vm_destroy(
        &self,
        request_id: Text<RequestId>,
        vm: Text<VmId>,
        forget: bool,
    ) -> Result<OperationReply, ApiError>;

    /// Ask the guest to end, then boot it anew.
    #[method(name = "vm.reboot", param_kind = map, with_extensions)]
    async fn vm_reboot(
        &self,
        request_id: Text<RequestId>,
        vm: Text<VmId>,
        timeout_ms: Option<u64>,
    ) -> Result<OperationReply, ApiError>;

    /// End the guest at once, then boot it anew.
    #[method(name = "vm.reset", param_kind = map, with_extensions)]
    async fn vm_reset(
        &self,
        request_id: Text<RequestId>,
        vm: Text<VmId>,
    ) -> Result<OperationReply, ApiError>;

    /// Replace parts of the wish; a guest that runs obeys at once.
    #[method(name = "vm.change", param_kind = map, with_extensions)]
    async fn vm_change(
        &self,
        request_id: Text<RequestId>,
        vm: Text<VmId>,
        change: ChangeV1,
    ) -> Result<OperationReply, ApiError>;

    /// Forget a VM that does not run; its disk stays.
    #[method(name = "vm.undefine", param_kind = map, with_extensions)]
    async fn vm_undefine(
        &self,
        request_id: Text<RequestId>,
        vm: Text<VmId>,
    ) -> Result<OperationReply, ApiError>;

    /// Wait until an operation ends, at most `timeout_ms`; `done` tells which it was.
    #[method(name = "op.wait", param_kind = map, with_extensions)]
    async fn op_wait(&self, op: Text<OpId>, timeout_ms: u64) -> Result<OpStatusReply, ApiError>;

    /// Where an operation is.
    #[method(name = "op.get", param_kind = map, with_extensions)]
    async fn op_get(&self, op: Text<OpId>) -> Result<OpStatusReply, ApiError>;

    /// End an operation on images of one's own before its time; it ends soon, with `cancelled`, unless it is done first.
    #[method(name = "op.cancel", param_kind = map, with_extensions)]
    async fn op_cancel(&self, op: Text<OpId>) -> Result<OpStatusReply, ApiError>;

    /// All VMs, by id.
    #[method(name = "vm.list", param_kind = map, with_extensions)]
    async fn vm_list(&self) -> Result<Vec<VmSummary>, ApiError>;

    /// VMs that the list does not have because their records cannot be read, by id. Their guests may run.
    #[method(name = "vm.damaged", param_kind = map, with_extensions)]
    async fn vm_damaged(&self) -> Result<Vec<DamagedVm>, ApiError>;

    /// Where all VMs are now, and no more: for who asks every few seconds.
    #[method(name = "vm.states", param_kind = map, with_extensions)]
    async fn vm_states(&self) -> Result<StatesReply, ApiError>;

    /// Everything that is kept of a VM, its environment included.
    #[method(name = "vm.get", param_kind = map, with_extensions)]
    async fn vm_get(&self, vm: Text<VmId>) -> Result<VmInfo, ApiError>;

    /// What guests use: all that run, or one.
    #[method(name = "vm.stats", param_kind = map, with_extensions)]
    async fn vm_stats(&self, vm: Option<Text<VmId>>) -> Result<StatsReply, ApiError>;

    /// Events from number `seq` on, at most `limit`; if there are none yet, wait at most `wait_ms`.
    #[method(name = "events.since", param_kind = map, with_extensions)]
    async fn events_since(
        &self,
        #[argument(rename = "seq")] from_seq: u64,
        limit: u32,
        wait_ms: u64,
    ) -> Result<EventsReply, ApiError>;

    /// Where the console of a running VM can be attached.
    #[method(name = "vm.console", param_kind = map, with_extensions)]
    async fn vm_console(&self, vm: Text<VmId>) -> Result<ConsoleReply, ApiError>;

    /// Begin a process in a running guest.
    #[method(name = "vm.exec", param_kind = map, with_extensions)]
    async fn vm_exec(
        &self,
        vm: Text<VmId>,
        argv: Vec<String>,
        env: Vec<String>,
        user: Option<String>,
        workdir: Option<String>,
        tty: bool,
        timeout_ms: Option<u64>,
        detach: bool,
    ) -> Result<ExecReply, ApiError>;

    /// Begin to copy files from or to a running guest.
    #[method(name = "vm.copy", param_kind = map, with_extensions)]
    async fn vm_copy(
        &self,
        vm: Text<VmId>,
        direction: String,
        path: String,
        follow: bool,
        owners: bool,
        archive: bool,
    ) -> Result<ExecReply, ApiError>;

    /// The last bytes of a VM's console log.
    #[method(name = "vm.log", param_kind = map, with_extensions)]
    async fn vm_log(&self, vm: Text<VmId>, max_bytes: u64) -> Result<LogReply, ApiError>;

    /// Why a VM is as it is.
    #[method(name = "vm.why", param_kind = map, with_extensions)]
    async fn vm_why(&self, vm: Text<VmId>) -> Result<WhyReply, ApiError>;

    /// Bring an image into the datastore of this host and unpack it.
    #[method(name = "image.import", param_kind = map, with_extensions)]
    async fn image_import(
        &self,
        request_id: Text<RequestId>,
        source: String,
        name: Option<String>,
        options: Option<ImportOptionsV1>,
    ) -> Result<ImageOperationReply, ApiError>;

    /// What a source holds, without bringing it in.
    #[method(name = "image.stat", param_kind = map, with_extensions)]
    async fn image_stat(&self, source: String) -> Result<SourceStatV1, ApiError>;

    /// Which layers of an image in a directory an import would read.
    #[method(name = "image.lacking", param_kind = map, with_extensions)]
    async fn image_lacking(&self, source: String) -> Result<LackingV1, ApiError>;

    /// Send an image to a registry.
    #[method(name = "image.push", param_kind = map, with_extensions)]
    async fn image_push(
        &self,
        request_id: Text<RequestId>,
        image: String,
        target: String,
    ) -> Result<ImageOperationReply, ApiError>;

    /// Write images into an archive.
    #[method(name = "image.save", param_kind = map, with_extensions)]
    async fn image_save(
        &self,
        request_id: Text<RequestId>,
        images: Vec<String>,
        format: String,
        path: String,
    ) -> Result<ImageOperationReply, ApiError>;

    /// Write the root filesystem of an image, or of a VM, into a tarball or disk image.
    #[method(name = "image.export", param_kind = map, with_extensions)]
    async fn image_export(
        &self,
        request_id: Text<RequestId>,
        image: Option<String>,
        vm: Option<Text<VmId>>,
        format: String,
        size_bytes: Option<u64>,
        path: String,
    ) -> Result<ImageOperationReply, ApiError>;

    /// Make an image of what a VM changed on its root disk.
    #[method(name = "image.commit", param_kind = map, with_extensions)]
    async fn image_commit(
        &self,
        request_id: Text<RequestId>,
        vm: Text<VmId>,
        name: String,
        options: Option<CommitOptionsV1>,
    ) -> Result<ImageOperationReply, ApiError>;

    /// Build an image from a directory with a Dockerfile.
    #[method(name = "image.build", param_kind = map, with_extensions)]
    async fn image_build(
        &self,
        request_id: Text<RequestId>,
        dir: String,
        name: String,
    ) -> Result<ImageOperationReply, ApiError>;

    /// Compare the datastore with its digests, and mend it if told to.
    #[method(name = "image.fsck", param_kind = map, with_extensions)]
    async fn image_fsck(
        &self,
        request_id: Text<RequestId>,
        repair: bool,
    ) -> Result<ImageOperationReply, ApiError>;

    /// Give back what no name, no disk and no VM needs, and what repairs set aside long enough ago.
    #[method(name = "image.prune", param_kind = map, with_extensions)]
    async fn image_prune(
        &self,
        request_id: Text<RequestId>,
        dry_run: bool,
        quarantine_age_s: Option<u64>,
    ) -> Result<ImageOperationReply, ApiError>;

    /// Give an image another name.
    #[method(name = "image.tag", param_kind = map, with_extensions)]
    async fn image_tag(&self, image: String, name: String) -> Result<ImageInfo, ApiError>;

    /// An image in full.
    #[method(name = "image.inspect", param_kind = map, with_extensions)]
    async fn image_inspect(&self, image: String) -> Result<ImageInspect, ApiError>;

    /// How an image came to be, newest first.
    #[method(name = "image.history", param_kind = map, with_extensions)]
    async fn image_history(&self, image: String) -> Result<Vec<HistoryV1>, ApiError>;

    /// What the datastore takes of the disk.
    #[method(name = "image.df", param_kind = map, with_extensions)]
    async fn image_df(&self) -> Result<DfReply, ApiError>;

    /// Images of this host, by name.
    #[method(name = "image.list", param_kind = map, with_extensions)]
    async fn image_list(&self) -> Result<Vec<ImageInfo>, ApiError>;

    /// Forget an image; layers that disks still need stay.
    #[method(name = "image.remove", param_kind = map, with_extensions)]
    async fn image_remove(&self, name: String) -> Result<RemovedReply, ApiError>;

    /// Make a writable disk on top of an image.
    #[method(name = "disk.create", param_kind = map, with_extensions)]
    async fn disk_create(
        &self,
        image: String,
        size_bytes: u64,
        path: String,
        backend: DiskBackendV1,
    ) -> Result<DiskInfo, ApiError>;

    /// Take a disk that was brought here for one of this host's.
    #[method(name = "disk.adopt", param_kind = map, with_extensions)]
    async fn disk_adopt(&self, path: String) -> Result<DiskInfo, ApiError>;

    /// The host and its daemon.
    #[method(name = "host.info", param_kind = map, with_extensions)]
    async fn host_info(&self) -> Result<HostInfo, ApiError>;

    /// Who answers.
    #[method(name = "daemon.version", param_kind = map, with_extensions)]
    async fn daemon_version(&self) -> Result<VersionReply, ApiError>;
}
