//! How long servers of disks are waited for.
//!
//! Whoever reads a disk waits in the kernel until its server answers or is gone; nothing else frees them. So the reading
//! is done in one thread, and another one looks at the clock, and kills the servers when the time is over.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ids::VmId;

use super::super::HostStorage;
use super::super::turns::Time;

/// What attaching has to end by itself, when its time is over or nobody wants it any more.
const GRACE: Duration = Duration::from_secs(2);
/// How often is looked whether it is still wanted.
const LOOK: Duration = Duration::from_millis(200);

/// Kills servers that take too long, unless it is dropped before.
#[derive(Debug)]
pub(in super::super) struct Patience {
    _over: std::sync::mpsc::Sender<()>,
}

impl HostStorage {
    /// Attaches disks that are served, by `work`, which is told when it is to give up. If it then does not, its servers
    /// are killed, which ends what it waits for; also any that it starts after that.
    ///
    /// # Errors
    /// What `work` says. `Timeout`, `Cancelled`: it had to be ended.
    pub(in super::super) fn hurried<T: Send>(
        &self,
        id: &VmId,
        time: &Time,
        give_up: &dyn Fn() -> bool,
        work: impl FnOnce(&dyn Fn() -> bool) -> Result<T> + Send,
    ) -> Result<T> {
        let stop = AtomicBool::new(false);
        let (done, ended) = channel();
        thread::scope(|scope| {
            let stop = &stop;
            let work = scope.spawn(move || {
                // Whose end is waited for below in any case.
                let _told = done;
                work(&|| stop.load(Ordering::Relaxed))
            });
            let (mut why, mut killed) = (None, false);
            while ended.recv_timeout(LOOK) == Err::<(), _>(RecvTimeoutError::Timeout) {
                let over = || match () {
                    () if give_up() => Some((ErrorKind::Cancelled, Instant::now())),
                    () if time.left().is_zero() => Some((ErrorKind::Timeout, Instant::now())),
                    () => None,
                };
                why = why.or_else(over);
                let Some((_, since)) = why else { continue };
                stop.store(true, Ordering::Relaxed);
                if since.elapsed() >= GRACE {
                    if !killed {
                        tracing::error!(vm = %id, "servers of disks hold up attaching and are killed");
                    }
                    killed = true;
                    self.kill_servers(id);
                }
            }
            let done = work.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            let (kind, what) = match why {
                Some((ErrorKind::Cancelled, _)) => {
                    (ErrorKind::Cancelled, "attaching the disks was broken off".to_owned())
                }
                Some((kind, _)) => {
                    let minutes = time.limit().as_millis().div_ceil(60_000);
                    (kind, format!("the disks of the vm were not attached within {minutes} min"))
                }
                None => return done,
            };
            match done {
                Ok(done) if !killed => Ok(done),
                Err(error) if error.kind == kind => Err(error),
                // It is told to give up in the same words, whyever.
                Err(error) if !killed && error.kind != ErrorKind::Cancelled => Err(error),
                Err(error) => Err(Error::new(kind, what).hint(format!("it waited: {error}"))),
                Ok(_) => Err(Error::new(kind, what)),
            }
        })
    }

    /// Kills a VM's servers when detaching its disks takes longer than this.
    pub(in super::super) fn bounded(&self, id: &VmId, patience: Duration) -> Option<Patience> {
        let groups = self.cgroups.clone().filter(|groups| groups.has_disk_servers(id))?;
        let (over, wait) = channel::<()>();
        let id = id.clone();
        thread::spawn(move || {
            if wait.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
                tracing::error!(vm = %id, "servers of disks hang and are killed");
                // Whoever detaches ends them again, and tells what is in the way.
                let _ = groups.end_disk_servers(&id, Duration::ZERO);
            }
        });
        Some(Patience { _over: over })
    }

    fn kill_servers(&self, id: &VmId) {
        let Some(groups) = &self.cgroups else { return };
        if let Err(error) = groups.end_disk_servers(id, Duration::ZERO) {
            tracing::error!(vm = %id, "{error}");
        }
    }
}
