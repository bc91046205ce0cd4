//! A server with canned answers, and helpers to talk to it.
#![allow(missing_docs, dead_code, reason = "each test uses its part")]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ocivisor_core::error::{Error, ErrorKind};
use ocivisor_core::ids::{OpId, RequestId, VmId};
use ocivisor_rpc::{ApiError, ApiServer, Extensions, Peer, Server, ServerConfig, async_trait};
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
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

macro_rules! sample {
    ($name:literal) => {
        serde_json::from_str(include_str!(concat!("../../../schema/tests/golden/", $name, ".json")))
            .unwrap()
    };
}

/// The operation that the fake never ends.
pub const ENDLESS: OpId = OpId(999);

/// How often `vm.start` was called in this process.
pub static STARTS: AtomicU32 = AtomicU32::new(0);

/// Answers with the goldens of the schema.
#[derive(Debug, Clone, Copy)]
pub struct Fake;

type Answer<T> = Result<T, ApiError>;

/// The error of the VM `fails-<kind>`.
fn canned(vm: &VmId) -> Option<ApiError> {
    let kind = vm.as_str().strip_prefix("fails-")?;
    let kind = ErrorKind::from_name(kind)?;
    let error = Error::new(kind, format!("start {vm}: it is made to fail")).hint("do not do that");
    Some(ApiError::from(error).vm(vm).op(OpId(7)).step("mount root"))
}

#[async_trait]
impl ApiServer for Fake {
    async fn vm_define(
        &self,
        _: &Extensions,
        _: Text<RequestId>,
        spec: VmSpecV1,
    ) -> Answer<OperationReply> {
        ocivisor_core::spec::VmSpec::try_from(spec)?;
        Ok(sample!("operation"))
    }

    async fn vm_start(
        &self,
        _: &Extensions,
        _: Text<RequestId>,
        vm: Text<VmId>,
    ) -> Answer<OperationReply> {
        STARTS.fetch_add(1, Ordering::SeqCst);
        match canned(&vm.0) {
            Some(error) => Err(error),
            None => Ok(sample!("operation")),
        }
    }

    async fn vm_deploy(
        &self,
        _: &Extensions,
        _: Text<RequestId>,
        _: VmSpecV1,
    ) -> Answer<OperationReply> {
        Ok(sample!("operation"))
    }

    async fn vm_shutdown(
        &self,
        _: &Extensions,
        _: Text<RequestId>,
        _: Text<VmId>,
        _: Option<u64>,
        _: bool,
        _: bool,
    ) -> Answer<OperationReply> {
        Ok(sample!("operation"))
    }

    async fn vm_destroy(
        &self,
        _: &Extensions,
        _: Text<RequestId>,
        _: Text<VmId>,
        _: bool,
    ) -> Answer<OperationReply> {
        Ok(sample!("operation"))
    }

    async fn vm_reboot(
        &self,
        _: &Extensions,
        _: Text<RequestId>,
        _: Text<VmId>,
        _: Option<u64>,
    ) -> Answer<OperationReply> {
        Ok(sample!("operation"))
    }

    async fn vm_reset(
        &self,
        _: &Extensions,
        _: Text<RequestId>,
        _: Text<VmId>,
    ) -> Answer<OperationReply> {
        Ok(sample!("operation"))
    }

    async fn vm_change(
        &self,
        _: &Extensions,
        _: Text<RequestId>,
        _: Text<VmId>,
        _: ChangeV1,
    ) -> Answer<OperationReply> {
        Ok(sample!("operation"))
    }

    async fn vm_undefine(
        &self,
        _: &Extensions,
        _: Text<RequestId>,
        vm: Text<VmId>,
    ) -> Answer<OperationReply> {
        Ok(OperationReply { op: None, vm, state: None, joined: false })
    }

    async fn op_wait(
        &self,
        ext: &Extensions,
        op: Text<OpId>,
        timeout_ms: u64,
    ) -> Answer<OpStatusReply> {
        if op.0 == ENDLESS {
            tokio::time::sleep(Duration::from_millis(timeout_ms)).await;
        }
        self.op_get(ext, op).await
    }

    async fn op_get(&self, _: &Extensions, op: Text<OpId>) -> Answer<OpStatusReply> {
        let mut status: OpStatusReply = sample!("op_status");
        status.op = op;
        if op.0 == ENDLESS {
            status.done = false;
            status.step = Some("wait for the guest".into());
            status.result = None;
        }
        Ok(status)
    }

    async fn op_cancel(&self, ext: &Extensions, op: Text<OpId>) -> Answer<OpStatusReply> {
        self.op_get(ext, op).await
    }

    async fn vm_list(&self, _: &Extensions) -> Answer<Vec<VmSummary>> {
        Ok(vec![sample!("vm_summary")])
    }

    async fn vm_damaged(&self, _: &Extensions) -> Answer<Vec<DamagedVm>> {
        Ok(vec![sample!("vm_damaged")])
    }

    async fn vm_states(&self, _: &Extensions) -> Answer<StatesReply> {
        Ok(sample!("states"))
    }

    async fn vm_get(&self, _: &Extensions, _: Text<VmId>) -> Answer<VmInfo> {
        Ok(sample!("vm_info"))
    }

    async fn vm_stats(&self, _: &Extensions, _: Option<Text<VmId>>) -> Answer<StatsReply> {
        Ok(sample!("stats"))
    }

    async fn events_since(&self, _: &Extensions, _: u64, _: u32, _: u64) -> Answer<EventsReply> {
        Ok(sample!("events"))
    }

    async fn vm_console(&self, _: &Extensions, _: Text<VmId>) -> Answer<ConsoleReply> {
        Ok(sample!("console"))
    }

    async fn vm_exec(
        &self,
        _: &Extensions,
        _: Text<VmId>,
        _: Vec<String>,
        _: Vec<String>,
        _: Option<String>,
        _: Option<String>,
        _: bool,
        _: Option<u64>,
        _: bool,
    ) -> Answer<ExecReply> {
        Ok(sample!("exec"))
    }

    async fn vm_copy(
        &self,
        _: &Extensions,
        _: Text<VmId>,
        _: String,
        _: String,
        _: bool,
        _: bool,
        _: bool,
    ) -> Answer<ExecReply> {
        Ok(sample!("exec"))
    }

    async fn vm_log(&self, _: &Extensions, _: Text<VmId>, _: u64) -> Answer<LogReply> {
        Ok(sample!("log"))
    }

    async fn vm_why(&self, _: &Extensions, _: Text<VmId>) -> Answer<WhyReply> {
        Ok(sample!("why"))
    }

    async fn image_import(
        &self,
        _: &Extensions,
        _: Text<RequestId>,
        _: String,
        _: Option<String>,
        _: Option<ImportOptionsV1>,
    ) -> Answer<ImageOperationReply> {
        Ok(sample!("image_operation"))
    }

    async fn image_stat(&self, _: &Extensions, _: String) -> Answer<SourceStatV1> {
        Ok(sample!("source_stat"))
    }

    async fn image_lacking(&self, _: &Extensions, _: String) -> Answer<LackingV1> {
        Ok(sample!("lacking"))
    }

    async fn image_push(
        &self,
        _: &Extensions,
        _: Text<RequestId>,
        _: String,
        _: String,
    ) -> Answer<ImageOperationReply> {
        Ok(sample!("image_operation"))
    }

    async fn image_save(
        &self,
        _: &Extensions,
        _: Text<RequestId>,
        _: Vec<String>,
        _: String,
        _: String,
    ) -> Answer<ImageOperationReply> {
        Ok(sample!("image_operation"))
    }

    async fn image_export(
        &self,
        _: &Extensions,
        _: Text<RequestId>,
        _: Option<String>,
        _: Option<Text<VmId>>,
        _: String,
        _: Option<u64>,
        _: String,
    ) -> Answer<ImageOperationReply> {
        Ok(sample!("image_operation"))
    }

    async fn image_commit(
        &self,
        _: &Extensions,
        _: Text<RequestId>,
        _: Text<VmId>,
        _: String,
        _: Option<CommitOptionsV1>,
    ) -> Answer<ImageOperationReply> {
        Ok(sample!("image_operation_of_vm"))
    }

    async fn image_build(
        &self,
        _: &Extensions,
        _: Text<RequestId>,
        _: String,
        _: String,
    ) -> Answer<ImageOperationReply> {
        Ok(sample!("image_operation"))
    }

    async fn image_fsck(
        &self,
        _: &Extensions,
        _: Text<RequestId>,
        _: bool,
    ) -> Answer<ImageOperationReply> {
        Ok(sample!("image_operation_of_store"))
    }

    async fn image_prune(
        &self,
        _: &Extensions,
        _: Text<RequestId>,
        _: bool,
        _: Option<u64>,
    ) -> Answer<ImageOperationReply> {
        Ok(sample!("image_operation_of_store"))
    }

    async fn image_tag(&self, _: &Extensions, _: String, _: String) -> Answer<ImageInfo> {
        Ok(sample!("image"))
    }

    async fn image_inspect(&self, _: &Extensions, _: String) -> Answer<ImageInspect> {
        Ok(sample!("image_inspect"))
    }

    async fn image_history(&self, _: &Extensions, _: String) -> Answer<Vec<HistoryV1>> {
        Ok(vec![sample!("history")])
    }

    async fn image_df(&self, _: &Extensions) -> Answer<DfReply> {
        Ok(sample!("df"))
    }

    async fn image_list(&self, _: &Extensions) -> Answer<Vec<ImageInfo>> {
        Ok(vec![sample!("image")])
    }

    async fn image_remove(&self, _: &Extensions, _: String) -> Answer<RemovedReply> {
        Ok(sample!("removed"))
    }

    async fn disk_create(
        &self,
        _: &Extensions,
        _: String,
        _: u64,
        _: String,
        _: DiskBackendV1,
    ) -> Answer<DiskInfo> {
        Ok(sample!("disk"))
    }

    async fn disk_adopt(&self, _: &Extensions, _: String) -> Answer<DiskInfo> {
        Ok(sample!("disk"))
    }

    async fn host_info(&self, ext: &Extensions) -> Answer<HostInfo> {
        assert!(ext.get::<Peer>().is_some(), "methods know their caller");
        Ok(sample!("host"))
    }

    async fn daemon_version(&self, _: &Extensions) -> Answer<VersionReply> {
        Ok(sample!("version"))
    }
}

/// A server in a directory of its own.
#[derive(Debug)]
pub struct Running {
    pub path: PathBuf,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
    _dir: Option<tempfile::TempDir>,
}

impl Running {
    pub fn start(change: impl FnOnce(&mut ServerConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut made = Self::start_at(&dir.path().join("ocivisord.sock"), change);
        made._dir = Some(dir);
        made
    }

    pub fn start_at(path: &Path, change: impl FnOnce(&mut ServerConfig)) -> Self {
        let mut config = ServerConfig::new(path);
        // The owner of a fresh file is the user of this test.
        let probe = tempfile::tempfile().unwrap();
        let uid = std::os::unix::fs::MetadataExt::uid(&probe.metadata().unwrap());
        config.policy.admin_uids.push(uid);
        change(&mut config);
        let server = Server::bind(config).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(server.serve(Fake, async {
            let _either_way = stopped.await;
        }));
        Self { path: path.to_owned(), stop, task, _dir: None }
    }

    /// Stops it; says how long that took.
    pub async fn stop(self) -> Duration {
        let began = Instant::now();
        self.stop.send(()).unwrap();
        self.task.await.unwrap();
        assert!(!self.path.exists(), "the socket stays");
        began.elapsed()
    }
}

/// Runs a program in a thread of its own, so that the server goes on; its standard output.
pub async fn run(program: &str, args: &[&str]) -> String {
    #[expect(clippy::disallowed_methods, reason = "a foreign client of the API under test")]
    let mut command = std::process::Command::new(program);
    command.args(args).stdin(std::process::Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output())
        .await
        .unwrap()
        .unwrap_or_else(|e| panic!("this test needs {program}: {e}"));
    assert!(
        output.status.success(),
        "{program} {args:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

pub fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// Compares with a file, or rewrites it when told by `UPDATE_GOLDENS=1`.
pub fn assert_file(path: &Path, got: &str) {
    if std::env::var_os("UPDATE_GOLDENS").is_some() {
        use std::io::Write;
        std::fs::File::create(path).unwrap().write_all(got.as_bytes()).unwrap();
    }
    let want = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
    assert!(got == want, "{path:?} is not what it must be; UPDATE_GOLDENS=1 rewrites it:\n{got}");
}
