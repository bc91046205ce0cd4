//! The methods of the API.

mod named;

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ids::{OpId, RequestId, VmId};
use ocivisor_core::state::{Record, Request};
use ocivisor_host::guests::{CopyRequest, ExecRequest};
use ocivisor_rpc::{
    API_VERSION, ApiError, ApiServer, Extensions, MAX_EVENTS, MAX_WAIT_MS, async_trait,
};
use ocivisor_schema::image::{
    CommitOptionsV1, DfReply, HistoryV1, ImageInspect, ImportOptionsV1, LackingV1, MadeV1,
    SourceStatV1,
};
use ocivisor_schema::reply::{
    ConsoleReply, DamagedVm, DiskBackendV1, DiskInfo, EventsReply, ExecReply, HostInfo, ImageInfo,
    ImageOperationReply, LogReply, OpStatusReply, OperationReply, RemovedReply, StatesReply,
    VersionReply, VmInfo, VmSummary,
};
use ocivisor_schema::stats::StatsReply;
use ocivisor_schema::{ChangeV1, Text, TimeV1, VmSpecV1, WhyReply};

use crate::about;
use crate::asking::Asking;
use crate::caller::Caller;
use crate::exec::{self, running};
use crate::failures;
use crate::health::Healths;
use crate::host::Host;
use crate::images;
use crate::jobs::{Jobs, Order, Teller};
use crate::operations::{Status, Subject};
use crate::paths::PathPolicy;
use crate::policy::{self, Policy};
use crate::stats;
use crate::vms::{Vms, blocking};

/// The API on all VMs.
#[derive(Debug)]
pub struct Daemon {
    vms: Arc<Vms>,
    healths: Arc<Healths>,
    jobs: Arc<Jobs>,
    asking: Asking,
    paths: PathPolicy,
    policy: Policy,
}

type Reply<T> = std::result::Result<T, ApiError>;

impl Daemon {
    /// Serves these VMs.
    pub fn new(vms: Arc<Vms>, healths: Arc<Healths>, paths: PathPolicy, policy: Policy) -> Self {
        let (operations, events) = (Arc::clone(&vms.operations), Arc::clone(&vms.events));
        let jobs = Arc::new(Jobs::new(operations, events, crate::host::now));
        Self { vms, healths, jobs, asking: Asking::default(), paths, policy }
    }

    /// The long work on images.
    pub fn jobs(&self) -> Arc<Jobs> {
        Arc::clone(&self.jobs)
    }

    /// Begins long work on images.
    fn image_work(
        &self,
        caller: &Extensions,
        request: Text<RequestId>,
        order: Order,
        work: impl FnOnce(&Vms, &Teller) -> Result<MadeV1> + Send + 'static,
    ) -> Reply<ImageOperationReply> {
        let (vms, caller) = (Arc::clone(&self.vms), Caller::of(caller));
        Ok(self.jobs.begin(request.0, caller, order, move |tell| work(&vms, tell).map(Some))?)
    }

    /// Begins long work on images that needs a VM to be left alone at first.
    fn vm_image_work(
        &self,
        caller: &Extensions,
        request: Text<RequestId>,
        vm: VmId,
        order: Order,
        work: impl FnOnce(&Host, &Record, &Arc<Teller>) -> Result<images::Rest> + Send + 'static,
    ) -> Reply<ImageOperationReply> {
        self.vms.get(&vm)?;
        let (vms, runtime) = (Arc::clone(&self.vms), tokio::runtime::Handle::current());
        let begun = self.jobs.begin(request.0, Caller::of(caller), order, move |tell| {
            let tell = Arc::clone(tell);
            let cancel = tell.cancel().clone();
            let held = vms.hold(&vm, cancel, move |host, record| work(host, record, &tell));
            // On a thread for blocking work, where waiting is allowed.
            runtime.block_on(held)?().map(Some)
        });
        Ok(begun?)
    }

    async fn submit(&self, vm: VmId, request: Request, id: RequestId) -> Reply<OperationReply> {
        let submitted = self.vms.submit(vm.clone(), request, id).await;
        submitted.map_err(|error| ApiError::from(error).vm(&vm))
    }

    fn status(op: OpId, status: Option<Status>) -> Reply<OpStatusReply> {
        status.map(|status| status.reply(op)).ok_or_else(|| {
            let what = format!("no operation {op} (only the last ones are remembered)");
            ApiError::new(ErrorKind::NotFound, what).op(op)
        })
    }

    /// Runs work on images or the host's files to its end, also if the client hangs up.
    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Vms) -> Result<T> + Send + 'static,
    ) -> Reply<T> {
        let vms = Arc::clone(&self.vms);
        Ok(blocking(move || work(&vms)).await??)
    }
}

fn bounded(wait_ms: u64) -> Duration {
    Duration::from_millis(wait_ms.min(MAX_WAIT_MS))
}

#[async_trait]
impl ApiServer for Daemon {
    async fn vm_define(
        &self,
        caller: &Extensions,
        request_id: Text<RequestId>,
        spec: VmSpecV1,
    ) -> Reply<OperationReply> {
        let mut spec = self.spec(spec)?;
        self.resolve_spec(caller, &mut spec).await?;
        self.submit(spec.id.clone(), Request::Define(spec), request_id.0).await
    }

    async fn vm_start(
        &self,
        _: &Extensions,
        request_id: Text<RequestId>,
        vm: Text<VmId>,
    ) -> Reply<OperationReply> {
        // Where it is not known, the answer is the engine's.
        if let Ok(record) = self.vms.get(&vm.0) {
            self.policy.grant(&record.spec)?;
        }
        self.submit(vm.0, Request::Start, request_id.0).await
    }

    async fn vm_deploy(
        &self,
        caller: &Extensions,
        request_id: Text<RequestId>,
        spec: VmSpecV1,
    ) -> Reply<OperationReply> {
        let mut spec = self.spec(spec)?;
        self.resolve_spec(caller, &mut spec).await?;
        self.submit(spec.id.clone(), Request::Deploy(spec), request_id.0).await
    }

    async fn vm_shutdown(
        &self,
        _: &Extensions,
        request_id: Text<RequestId>,
        vm: Text<VmId>,
        timeout_ms: Option<u64>,
        force: bool,
        forget: bool,
    ) -> Reply<OperationReply> {
        let timeout_ms = policy::grace(self.vms.get(&vm.0).ok().as_ref(), timeout_ms);
        let request = Request::Shutdown { timeout_ms, force, forget };
        self.submit(vm.0, request, request_id.0).await
    }

    async fn vm_destroy(
        &self,
        _: &Extensions,
        request_id: Text<RequestId>,
        vm: Text<VmId>,
        forget: bool,
    ) -> Reply<OperationReply> {
        self.submit(vm.0, Request::Destroy { forget }, request_id.0).await
    }

    async fn vm_reboot(
        &self,
        _: &Extensions,
        request_id: Text<RequestId>,
        vm: Text<VmId>,
        timeout_ms: Option<u64>,
    ) -> Reply<OperationReply> {
        let timeout_ms = policy::grace(self.vms.get(&vm.0).ok().as_ref(), timeout_ms);
        self.submit(vm.0, Request::Reboot { timeout_ms }, request_id.0).await
    }

    async fn vm_reset(
        &self,
        _: &Extensions,
        request_id: Text<RequestId>,
        vm: Text<VmId>,
    ) -> Reply<OperationReply> {
        self.submit(vm.0, Request::Reset, request_id.0).await
    }

    async fn vm_change(
        &self,
        caller: &Extensions,
        request_id: Text<RequestId>,
        vm: Text<VmId>,
        change: ChangeV1,
    ) -> Reply<OperationReply> {
        let mut change = change.for_vm(vm.0.as_str())?;
        if let Some(context) = &mut change.context {
            self.resolve_context(caller, context).await?;
        }
        self.submit(vm.0, Request::Change(Box::new(change)), request_id.0).await
    }

    async fn vm_undefine(
        &self,
        _: &Extensions,
        request_id: Text<RequestId>,
        vm: Text<VmId>,
    ) -> Reply<OperationReply> {
        self.submit(vm.0, Request::Undefine, request_id.0).await
    }

    async fn op_wait(
        &self,
        _: &Extensions,
        op: Text<OpId>,
        timeout_ms: u64,
    ) -> Reply<OpStatusReply> {
        Self::status(op.0, self.vms.operations.wait(op.0, bounded(timeout_ms)).await)
    }

    async fn op_get(&self, _: &Extensions, op: Text<OpId>) -> Reply<OpStatusReply> {
        Self::status(op.0, self.vms.operations.get(op.0))
    }

    async fn op_cancel(&self, caller: &Extensions, op: Text<OpId>) -> Reply<OpStatusReply> {
        self.jobs
            .cancel(op.0, Caller::of(caller))
            .map_err(|error| ApiError::from(error).op(op.0))?;
        Self::status(op.0, self.vms.operations.get(op.0))
    }

    async fn vm_list(&self, _: &Extensions) -> Reply<Vec<VmSummary>> {
        Ok(self.vms.each(|record| Some(self.healths.summary(record))))
    }

    async fn vm_damaged(&self, _: &Extensions) -> Reply<Vec<DamagedVm>> {
        let damaged = self.vms.damaged().into_iter();
        Ok(damaged.map(|(id, why)| DamagedVm { id: Text(id), why }).collect())
    }

    async fn vm_states(&self, _: &Extensions) -> Reply<StatesReply> {
        let damaged = self.vms.damaged().into_iter().map(|(id, _)| Text(id)).collect();
        Ok(StatesReply { vms: self.vms.each(|record| Some(record.into())), damaged })
    }

    async fn vm_get(&self, _: &Extensions, vm: Text<VmId>) -> Reply<VmInfo> {
        Ok(self.healths.info(&self.vms.get(&vm.0)?))
    }

    async fn vm_stats(&self, _: &Extensions, vm: Option<Text<VmId>>) -> Reply<StatsReply> {
        let at = TimeV1(self.vms.host.now());
        let vms = match vm {
            None => {
                let live = self.vms.each(|r| r.state.is_live().then(|| r.clone()));
                self.work(move |vms| stats::all(&vms.host, &live)).await?
            }
            Some(vm) => {
                let record = self.vms.get(&vm.0)?;
                running(&record)?;
                let seen = self.work(move |vms| stats::one(&vms.host, &record)).await?;
                seen.into_iter().collect()
            }
        };
        Ok(StatsReply { at, vms })
    }

    async fn events_since(
        &self,
        _: &Extensions,
        from_seq: u64,
        limit: u32,
        wait_ms: u64,
    ) -> Reply<EventsReply> {
        let limit = limit.min(MAX_EVENTS) as usize;
        Ok(self.vms.events.since(from_seq, limit, bounded(wait_ms)).await)
    }

    async fn vm_console(&self, _: &Extensions, vm: Text<VmId>) -> Reply<ConsoleReply> {
        let record = self.vms.get(&vm.0)?;
        running(&record)?;
        let socket = self.vms.host.layout.run_vm(&vm.0).shim_socket();
        Ok(ConsoleReply { socket: socket.display().to_string() })
    }

    async fn vm_exec(
        &self,
        _: &Extensions,
        vm: Text<VmId>,
        argv: Vec<String>,
        env: Vec<String>,
        user: Option<String>,
        workdir: Option<String>,
        tty: bool,
        timeout_ms: Option<u64>,
        detach: bool,
    ) -> Reply<ExecReply> {
        let record = self.vms.get(&vm.0)?;
        let facts = running(&record)?;
        let request =
            ExecRequest { argv, env, user, workdir, tty, timeout_ms, detach, whole: false };
        self.work(move |vms| exec::begin(&vms.host, &vm.0, &facts, &request)).await
    }

    async fn vm_copy(
        &self,
        _: &Extensions,
        vm: Text<VmId>,
        direction: String,
        path: String,
        follow: bool,
        owners: bool,
        archive: bool,
    ) -> Reply<ExecReply> {
        let record = self.vms.get(&vm.0)?;
        let facts = running(&record)?;
        let direction = exec::direction(&direction)?;
        let request = CopyRequest { direction, path, follow, owners, archive };
        self.work(move |vms| exec::copy(&vms.host, &vm.0, &facts, &request)).await
    }

    async fn vm_log(&self, _: &Extensions, vm: Text<VmId>, max_bytes: u64) -> Reply<LogReply> {
        self.vms.get(&vm.0)?;
        let max = max_bytes.min(4 << 20);
        let (bytes, truncated) =
            self.work(move |vms| exec::console_tail(&vms.host.layout, &vm.0, max)).await?;
        let text_base64 = base64::engine::general_purpose::STANDARD.encode(bytes);
        Ok(LogReply { text_base64, truncated })
    }

    async fn vm_why(&self, _: &Extensions, vm: Text<VmId>) -> Reply<WhyReply> {
        let record = match self.vms.get(&vm.0) {
            Err(error) if error.kind == ErrorKind::NotFound => None,
            record => Some(record?),
        };
        self.work(move |vms| failures::why(&vms.host, &vm.0, record.as_ref())).await
    }

    async fn image_import(
        &self,
        caller: &Extensions,
        request_id: Text<RequestId>,
        source: String,
        name: Option<String>,
        options: Option<ImportOptionsV1>,
    ) -> Reply<ImageOperationReply> {
        let (who, paths) = (Caller::of(caller), self.paths.clone());
        let options = options.unwrap_or_default();
        let said = format!("{source} {options:?}");
        let find = move |vms: &Vms| {
            let images = &vms.host.images;
            images::source(images, &source, name.as_deref(), &options, who, &paths)
        };
        let (source, name) = self.work(find).await?;
        let order = Order::new("import", Subject::Image(name.to_string()), &said);
        self.image_work(caller, request_id, order, move |vms, tell| {
            vms.host.images.heeding(tell)?.import(&source, &name, tell).map(MadeV1::Image)
        })
    }

    async fn image_stat(&self, caller: &Extensions, source: String) -> Reply<SourceStatV1> {
        let vms = Arc::clone(&self.vms);
        let what = format!("stat {source}");
        let question = move |cancel: &_| vms.host.images.stat(&source, cancel);
        Ok(self.asking.ask(Caller::of(caller), &what, question).await?)
    }

    async fn image_lacking(&self, caller: &Extensions, source: String) -> Reply<LackingV1> {
        let (who, paths) = (Caller::of(caller), self.paths.clone());
        self.work(move |vms| {
            let source = images::layout(&source, who, &paths)?;
            vms.host.images.lacking(&source)
        })
        .await
    }

    async fn image_push(
        &self,
        caller: &Extensions,
        request_id: Text<RequestId>,
        image: String,
        target: String,
    ) -> Reply<ImageOperationReply> {
        let order = Order::new("push", Subject::Image(image.clone()), &target);
        self.image_work(caller, request_id, order, move |vms, tell| {
            vms.host.images.heeding(tell)?.push(&image, &target, tell).map(MadeV1::Pushed)
        })
    }

    async fn image_save(
        &self,
        caller: &Extensions,
        request_id: Text<RequestId>,
        images: Vec<String>,
        format: String,
        path: String,
    ) -> Reply<ImageOperationReply> {
        let path = self.resolve(caller, path.into()).await?;
        let order =
            Order::new("save", Subject::Image(images.join(" ")), &(&images, &format, &path));
        self.image_work(caller, request_id, order, move |vms, tell| {
            vms.host.images.heeding(tell)?.save(&images, &format, &path, tell).map(MadeV1::File)
        })
    }

    async fn image_export(
        &self,
        caller: &Extensions,
        request_id: Text<RequestId>,
        image: Option<String>,
        vm: Option<Text<VmId>>,
        format: String,
        size_bytes: Option<u64>,
        path: String,
    ) -> Reply<ImageOperationReply> {
        let path = self.resolve(caller, path.into()).await?;
        let form = images::Form::of(&format, size_bytes)?;
        let order = |subject| Order::new("export", subject, &(form, &path));
        match (image, vm) {
            (Some(image), None) => {
                let order = order(Subject::Image(image.clone()));
                self.image_work(caller, request_id, order, move |vms, tell| {
                    vms.host
                        .images
                        .heeding(tell)?
                        .export_image(&image, form, &path, tell)
                        .map(MadeV1::File)
                })
            }
            (None, Some(vm)) => {
                let order = order(Subject::Vm(vm.0.clone()));
                self.vm_image_work(caller, request_id, vm.0, order, move |host, record, tell| {
                    host.images.heeding(tell)?.export_vm(host, record, form, &path, tell)
                })
            }
            _ => {
                let what = "an image or a vm is to be exported: name one of them";
                Err(Error::new(ErrorKind::Invalid, what).into())
            }
        }
    }

    async fn image_commit(
        &self,
        caller: &Extensions,
        request_id: Text<RequestId>,
        vm: Text<VmId>,
        name: String,
        options: Option<CommitOptionsV1>,
    ) -> Reply<ImageOperationReply> {
        let name = images::name(&name)?;
        let options = options.unwrap_or_default();
        let subject = Subject::ImageOf(vm.0.clone(), name.to_string());
        let order = Order::new("commit", subject, &options);
        self.vm_image_work(caller, request_id, vm.0, order, move |host, record, tell| {
            host.images.heeding(tell)?.commit(host, record, name, options, tell)
        })
    }

    async fn image_build(
        &self,
        caller: &Extensions,
        request_id: Text<RequestId>,
        dir: String,
        name: String,
    ) -> Reply<ImageOperationReply> {
        let dir = self.resolve(caller, dir.into()).await?;
        let parsed = images::name(&name)?;
        let order = Order::new("build", Subject::Image(name), &dir);
        self.image_work(caller, request_id, order, move |vms, tell| {
            vms.host.images.heeding(tell)?.build(&dir, &parsed, tell).map(MadeV1::Image)
        })
    }

    async fn image_fsck(
        &self,
        caller: &Extensions,
        request_id: Text<RequestId>,
        repair: bool,
    ) -> Reply<ImageOperationReply> {
        let order = Order::new("fsck", Subject::Store, &repair);
        self.image_work(caller, request_id, order, move |vms, tell| {
            vms.host.images.fsck(|| vms.disks(), repair, tell).map(MadeV1::Findings)
        })
    }

    async fn image_prune(
        &self,
        caller: &Extensions,
        request_id: Text<RequestId>,
        dry_run: bool,
        quarantine_age_s: Option<u64>,
    ) -> Reply<ImageOperationReply> {
        let order = Order::new("prune", Subject::Store, &(dry_run, quarantine_age_s));
        let age = quarantine_age_s.map(Duration::from_secs);
        self.image_work(caller, request_id, order, move |vms, _| {
            vms.host.images.prune(|| vms.disks(), age, dry_run).map(MadeV1::Pruned)
        })
    }

    async fn image_tag(&self, _: &Extensions, image: String, name: String) -> Reply<ImageInfo> {
        self.work(move |vms| vms.host.images.tag(&image, &name)).await
    }

    async fn image_inspect(&self, _: &Extensions, image: String) -> Reply<ImageInspect> {
        self.work(move |vms| vms.host.images.inspect(&image)).await
    }

    async fn image_history(&self, _: &Extensions, image: String) -> Reply<Vec<HistoryV1>> {
        self.work(move |vms| vms.host.images.history(&image)).await
    }

    async fn image_df(&self, _: &Extensions) -> Reply<DfReply> {
        self.work(|vms| vms.host.images.df(vms.disks())).await
    }

    async fn image_list(&self, _: &Extensions) -> Reply<Vec<ImageInfo>> {
        self.work(|vms| vms.host.images.list()).await
    }

    async fn image_remove(&self, _: &Extensions, name: String) -> Reply<RemovedReply> {
        self.work(move |vms| {
            let removed = vms.host.images.remove(&name, || vms.disks())?;
            Ok(RemovedReply { removed })
        })
        .await
    }

    async fn disk_create(
        &self,
        caller: &Extensions,
        image: String,
        size_bytes: u64,
        path: String,
        backend: DiskBackendV1,
    ) -> Reply<DiskInfo> {
        let path = self.resolve(caller, path.into()).await?;
        self.work(move |vms| {
            let host = &vms.host;
            host.images.create_disk(&host.storage, &image, size_bytes, &path, backend)
        })
        .await
    }

    async fn disk_adopt(&self, caller: &Extensions, path: String) -> Reply<DiskInfo> {
        let path = self.resolve(caller, path.into()).await?;
        self.work(move |vms| vms.host.images.adopt_disk(&vms.host.storage, &path)).await
    }

    async fn host_info(&self, _: &Extensions) -> Reply<HostInfo> {
        Ok(about::host(&self.vms.host, &self.vms.list()))
    }

    async fn daemon_version(&self, _: &Extensions) -> Reply<VersionReply> {
        Ok(VersionReply { version: about::VERSION.into(), api: API_VERSION })
    }
}
