//! Tells when the kernel killed processes of a guest for want of memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ocivisor_core::ids::VmId;
use ocivisor_host::cgroup::{OomWatch, Tells};
use ocivisor_schema::event::EventDataV1;
use tokio::io::unix::AsyncFd;

use crate::vms::Vms;
use crate::watch;

/// Least time between two events of one guest: what it does to itself must not push everybody else's
/// events out of the journal.
const PAUSE: Duration = Duration::from_secs(1);

/// One guest's watch.
#[derive(Debug)]
pub struct Oom {
    vms: Arc<Vms>,
    id: VmId,
    watch: Option<OomWatch>,
    told: AtomicU64,
}

impl Oom {
    /// Begins with what is so already: kills of before were told before, or are in the guest's statistics.
    pub fn new(vms: &Arc<Vms>, id: &VmId) -> Self {
        let watched = vms.host.cgroups.watch_oom(id).and_then(|watch| {
            let kills = watch.kills()?;
            Ok((watch, kills))
        });
        let (watch, told) = match watched {
            Ok((watch, kills)) => (Some(watch), kills),
            Err(error) => {
                // Gone already, or a kernel that cannot tell; the guest's statistics count on.
                tracing::debug!(vm = %id, "vm {id}: kills for want of memory are not told: {error}");
                (None, 0)
            }
        };
        Self { vms: Arc::clone(vms), id: id.clone(), watch, told: AtomicU64::new(told) }
    }

    /// Tells as it happens; never ends by itself.
    pub async fn watch(&self) {
        let registered = self.watch.as_ref().and_then(|watch| {
            let (fd, tells) = watch.descriptor();
            Some((watch::register(fd.try_clone_to_owned().ok()?, tells)?, tells))
        });
        let Some((fd, tells)) = registered else {
            return std::future::pending().await;
        };
        loop {
            // Before each wait, so that nothing is missed between two.
            self.look();
            if ready(&fd, tells).await.is_none() {
                return std::future::pending().await;
            }
            self.look();
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Tells what was not told yet.
    pub fn look(&self) {
        let kills = self.watch.as_ref().and_then(|watch| watch.kills().ok());
        let total = kills.unwrap_or(0);
        let before = self.told.fetch_max(total, Ordering::Relaxed);
        if total > before {
            let (id, count) = (&self.id, total - before);
            tracing::warn!(vm = %id, "vm {id}: memory is full, processes killed: {count}");
            self.vms.publish(id, EventDataV1::VmOom { count, total });
        }
    }
}

async fn ready(fd: &AsyncFd<std::os::fd::OwnedFd>, tells: Tells) -> Option<()> {
    let mut guard = fd.ready(watch::interest(tells)).await.ok()?;
    guard.clear_ready();
    Some(())
}
