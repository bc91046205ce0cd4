//! From a locked state directory to an answering socket, and back.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ports::Loaded;
use ocivisor_core::spec::Isolation;
use ocivisor_rpc::{RolePolicy, Server, ServerConfig};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use crate::api::Daemon;
use crate::config::Config;
use crate::events::Events;
use crate::health::Healths;
use crate::host::Host;
use crate::manager;
use crate::operations::Operations;
use crate::paths::PathPolicy;
use crate::policy::Policy;
use crate::state_dir::StateDir;
use crate::upkeep::Upkeep;
use crate::vms::Vms;

/// How long operations under way may take when the daemon is told to stop. What is not done by
/// then is found in its record by the next daemon.
const STOP_GRACE: Duration = Duration::from_secs(10);

/// Runs the daemon until it is told to stop. Guests run on.
///
/// # Errors
/// It could not begin.
pub fn run(config: &Config) -> Result<()> {
    let socket = manager::socket()?;
    let layout = config.layout();
    let locked = StateDir::open(&layout)?;
    raise_open_files();
    crate::ids::warn_of_overlaps(config);
    let host = Arc::new(Host::new(config)?);
    let operations = Arc::new(Operations::open(&layout)?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::new(ErrorKind::Host, format!("start threads: {e}")))?;
    let events = Arc::new(Events::new(host.now()));
    let vms = Vms::new(host, events, operations);
    let result = runtime.block_on(serve(config, vms, socket));
    // Blocking threads may wait for guests; they end with the process.
    runtime.shutdown_background();
    drop(locked);
    result
}

/// As many open files as the host allows: a root filesystem takes one per layer while it is mounted,
/// each guest a console and its watchers.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, wanted) {
        tracing::warn!("the limit of open files stays as it is: {error}");
    }
}

async fn serve(config: &Config, vms: Arc<Vms>, socket: Option<OwnedFd>) -> Result<()> {
    for loaded in vms.host.load()? {
        match loaded {
            Loaded::Record(record) => vms.load(*record).await,
            Loaded::Damaged(id, why) => {
                tracing::error!(vm = %id, "vm {id}: damaged record, the vm is left alone: {why}");
                vms.host.cgroups.thaw(&id);
                vms.load_damaged(&id, why);
            }
        }
    }
    // By a daemon that died while it had a guest stand still.
    thaw_all(&vms);
    vms.reconcile_all(true).await?;

    let mut server = ServerConfig::new(vms.host.layout.socket());
    server.group = config.access.operate_gid;
    server.policy = RolePolicy {
        admin_uids: [vec![0], config.access.admin_uids.clone()].concat(),
        operate_gids: config.access.operate_gid.into_iter().collect(),
        read_gids: config.access.read_gids.clone(),
    };
    let server = match socket {
        Some(socket) => Server::adopt(server, socket),
        None => Server::bind(server),
    };
    let server = server.map_err(Error::from)?;
    tracing::info!(socket = %server.path().display(), vms = vms.list().len(), "ready");
    manager::ready();
    let living = tokio::spawn(manager::live());

    let periodic = tokio::spawn(reconcile_often(
        Arc::clone(&vms),
        Duration::from_secs(config.reconcile_seconds),
    ));
    let tidying = tokio::spawn(forget_often(Arc::clone(&vms), config.images.unused()));
    let paths = PathPolicy::new(&config.access.operate_dirs);
    let granted = config.guests.isolation.iter().map(|profile| Isolation::from(*profile));
    let policy = Policy { isolation: granted.collect() };
    let healths = Healths::new();
    let between = Duration::from_millis(config.guests.autostart_pause_ms);
    let upkeep = Upkeep::new(Arc::clone(&vms), Arc::clone(&healths), policy.clone(), between);
    let upkeep = tokio::spawn(upkeep.run());
    let daemon = Daemon::new(Arc::clone(&vms), Arc::clone(&healths), paths, policy);
    let jobs = daemon.jobs();
    server.serve(daemon, told_to_stop()).await;
    periodic.abort();
    tidying.abort();
    upkeep.abort();
    healths.stop();
    tracing::info!("stopping; guests run on");
    jobs.cancel_all();
    manager::stopping();
    vms.settle(Instant::now() + STOP_GRACE).await;
    // Work that does not end in time ends with this process; no guest stands still for it any more.
    thaw_all(&vms);
    living.abort();
    Ok(())
}

fn thaw_all(vms: &Vms) {
    vms.list().iter().for_each(|record| vms.host.cgroups.thaw(record.id()));
}

async fn reconcile_often(vms: Arc<Vms>, period: Duration) {
    let mut ticks = tokio::time::interval_at(Instant::now() + period, period);
    loop {
        ticks.tick().await;
        if let Err(error) = vms.reconcile_all(false).await {
            tracing::error!("cannot compare records and host: {error}");
        }
        if let Err(error) = vms.balance().await {
            tracing::error!("cannot spread guests over the processors: {error}");
        }
    }
}

/// Once a day: images that platforms brought here and nobody needs any more.
async fn forget_often(vms: Arc<Vms>, age: Option<Duration>) {
    let Some(age) = age else { return };
    let mut ticks = tokio::time::interval_at(
        Instant::now() + Duration::from_hours(1),
        Duration::from_hours(24),
    );
    loop {
        ticks.tick().await;
        let vms = Arc::clone(&vms);
        let forgot = spawn_blocking(move || vms.host.images.forget_unused(|| vms.disks(), age));
        if let Ok(Err(error)) = forgot.await {
            tracing::warn!("images that nobody needs stay: {error}");
        }
    }
}

async fn told_to_stop() {
    let (term, int) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (Ok(mut term), Ok(mut int)) = (term, int) else {
        tracing::error!("signals cannot be received; stop by SIGKILL, nothing is lost");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}
