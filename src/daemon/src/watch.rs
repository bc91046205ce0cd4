//! Notices the end of a guest, of its shim, of its display or of who serves its disks at once, by pidfds.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use ocivisor_core::ids::VmId;
use ocivisor_core::state::Record;
use ocivisor_host::cgroup::Tells;
use ocivisor_host::process::pidfd;
use ocivisor_host::storage::DiskServer;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::oom::Oom;
use crate::vms::{Vms, blocking};

/// A display that dies as soon as it is made is not made faster than this.
const SHOW_AGAIN: Duration = Duration::from_secs(1);

/// How often it is tried to note that a disk is lost, a second apart.
const LOST_PATIENCE: u32 = 600;

/// Watches a guest and its display until it or its shim ends, then has the VM looked at. Watching twice is
/// fine: the second look finds all as recorded. False: guest or shim is dead already.
pub fn guest(vms: &Arc<Vms>, record: &Record) -> bool {
    let Some(facts) = record.guest.clone() else { return true };
    display(vms, record.id());
    disks(vms, record.id());
    let (Some(init), Some(shim)) = (pidfd(facts.init), pidfd(facts.shim)) else { return false };
    if !vms.host.begin_watch(record.id(), &facts) {
        return true;
    }
    let (vms, id) = (Arc::clone(vms), record.id().clone());
    tokio::spawn(async move {
        // A second holder of the console, so that it outlives its shim.
        let (host, vm) = (Arc::clone(&vms.host), id.clone());
        if let Err(error) = blocking(move || host.guests.keep_master(&vm)).await {
            tracing::warn!(vm = %id, "vm {id}: its shim alone holds the console: {error}");
        }
        let oom = Oom::new(&vms, &id);
        tokio::select! {
            () = ended(init) => {}
            () = ended(shim) => {}
            () = oom.watch() => {}
        }
        // It may be why the guest ended.
        oom.look();
        vms.host.guests.reap();
        vms.host.end_watch(&id, &facts);
        look(&vms, &id).await;
    });
    true
}

/// Watches the display that a VM has now until it ends, then has the VM looked at. By itself: displays come and go
/// while their guest runs, and how slowly they are made again must not keep anybody from seeing the guest's end.
fn display(vms: &Arc<Vms>, id: &VmId) {
    // Without one there is none to be missed, or it could not be made: the periodic comparison tries again.
    let Some((keeper, fd)) = vms.host.guests.display_fd(id) else { return };
    if !vms.host.begin_helper_watch(id, keeper) {
        return;
    }
    let (vms, id) = (Arc::clone(vms), id.clone());
    tokio::spawn(async move {
        ended(fd).await;
        tokio::time::sleep(SHOW_AGAIN).await;
        vms.host.end_helper_watch(&id, keeper);
        look(&vms, &id).await;
    });
}

/// Watches who serves the VM's disks. One that ends while its disk is attached has lost it for the guest, which then
/// only sees errors; the next boot has it anew, and its owner is told until then.
fn disks(vms: &Arc<Vms>, id: &VmId) {
    for server in vms.host.storage.disk_servers(id) {
        if !vms.host.begin_helper_watch(id, server.process) {
            continue;
        }
        let (vms, id) = (Arc::clone(vms), id.clone());
        tokio::spawn(async move {
            // One that is gone already is told as well.
            if let Some(fd) = pidfd(server.process) {
                ended(fd).await;
            }
            tell_lost(&vms, &id, &server).await;
            vms.host.end_helper_watch(&id, server.process);
        });
    }
}

/// Unless the disk was let go of. An operation under way is waited for: it may be what does that.
async fn tell_lost(vms: &Arc<Vms>, id: &VmId, server: &DiskServer) {
    for _ in 0..LOST_PATIENCE {
        let (host, vm) = (Arc::clone(&vms.host), id.clone());
        let attached = blocking(move || host.storage.disk_servers(&vm)).await;
        if !attached.is_ok_and(|all| all.contains(server)) {
            return;
        }
        let (number, path) = (server.number, server.path.display());
        let loss = format!(
            "data disk {number} ({path}): its server died, the guest has errors of it until its next boot"
        );
        match vms.note_loss(id, &loss).await {
            Ok(true) => return tracing::error!(vm = %id, "vm {id}: {loss}"),
            Ok(false) => return,
            Err(error) => tracing::debug!(vm = %id, "vm {id}: {loss}: not yet noted: {error}"),
        }
        tokio::time::sleep(SHOW_AGAIN).await;
    }
}

/// Watches a guest that was just made. If it ended in between, the VM is looked at now.
pub fn new_guest(vms: &Arc<Vms>, record: &Record) {
    if !guest(vms, record) {
        let (vms, id) = (Arc::clone(vms), record.id().clone());
        tokio::spawn(async move { look(&vms, &id).await });
    }
}

async fn look(vms: &Arc<Vms>, id: &VmId) {
    if let Err(error) = vms.reconcile(id, None).await {
        tracing::error!(vm = %id, "vm {id}: cannot see how the guest ended: {error}");
    }
}

/// What to wait for.
pub fn interest(tells: Tells) -> Interest {
    match tells {
        Tells::ByReading => Interest::READABLE,
        Tells::ByPriority => Interest::PRIORITY,
    }
}

/// A descriptor to wait on; `None` if it cannot be waited on.
pub fn register(fd: OwnedFd, tells: Tells) -> Option<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` always gives the same open descriptor, and the `AsyncFd` owns it: it is
    // deregistered before it is closed.
    #[allow(unsafe_code, reason = "tokio leaves this promise about the descriptor to its caller")]
    let registered = unsafe { AsyncFd::<OwnedFd>::register_with_interest(fd, interest(tells)) };
    registered.ok()
}

/// Resolves when the process is gone, or cannot be watched.
async fn ended(fd: OwnedFd) {
    let Some(fd) = register(fd, Tells::ByReading) else { return };
    // An error is as good as the end: the VM is looked at either way.
    let _ = fd.readable().await;
}
