//! The state directory: locked by one daemon (or offline command), with a format version.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_host::fs::{ensure_dir, io_error, read_bounded, replace};
use ocivisor_host::layout::Layout;
use rustix::event::{Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

/// The format this build reads and writes.
const VERSION: u32 = 1;

/// How long a daemon that was killed may seem to be there: a child that it was making just then has the lock as well,
/// until it runs its program.
const LEAVING: Duration = Duration::from_secs(2);

/// meta.json.
#[derive(Debug, Serialize, Deserialize)]
struct Meta {
    version: u32,
    /// Features that a build must know to touch the directory at all.
    #[serde(default)]
    incompatible_features: Vec<String>,
}

/// The lock; given back when dropped, or by the kernel when the process ends.
#[derive(Debug)]
pub struct StateDir {
    _lock: File,
}

impl StateDir {
    /// Makes the directories, takes the lock, checks the format.
    ///
    /// # Errors
    /// `Conflict`: another daemon has it. `Unsupported`: a newer format. `Integrity`: meta.json
    /// cannot be read.
    pub fn open(layout: &Layout) -> Result<Self> {
        let (vms, run_vms, sockets) = (layout.vms(), layout.run_vms(), layout.run_sockets());
        for dir in [&layout.state, &vms, &layout.run, &run_vms, &sockets] {
            ensure_dir(dir, true)?;
        }
        let path = layout.lock();
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|e| io_error("open", &path, &e))?;
        if !locked_within(&lock, LEAVING) {
            let what = format!("{} is in use by another ocivisord", layout.state.display());
            let error = Error::new(ErrorKind::Conflict, what);
            return Err(error.hint("stop it, or give --state-dir another one"));
        }
        check_meta(layout)?;
        Ok(Self { _lock: lock })
    }
}

fn locked_within(lock: &File, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    let look = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
    while flock(lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        if Instant::now() >= deadline {
            return false;
        }
        // A blocking flock(2) knows no deadline. Interrupted or not, it is tried again.
        let _ = poll(&mut [], Some(&look));
    }
    true
}

fn check_meta(layout: &Layout) -> Result<()> {
    let path = layout.meta();
    let Some(bytes) = read_bounded(&path, 1 << 16)? else {
        let meta = Meta { version: VERSION, incompatible_features: Vec::new() };
        let text = serde_json::to_vec_pretty(&meta)
            .map_err(|e| Error::new(ErrorKind::Host, format!("encode meta.json: {e}")))?;
        return replace(&path, &text);
    };
    let meta: Meta = serde_json::from_slice(&bytes).map_err(|e| {
        let what = format!("{} cannot be read: {e}", path.display());
        Error::new(ErrorKind::Integrity, what)
    })?;
    if meta.version != VERSION || !meta.incompatible_features.is_empty() {
        let what = format!(
            "{} has format {} with features {:?}, this ocivisord knows format {VERSION} without",
            layout.state.display(),
            meta.version,
            meta.incompatible_features
        );
        return Err(Error::new(ErrorKind::Unsupported, what).hint("use the newer ocivisord"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_daemon_at_a_time_and_no_newer_format() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout {
            state: dir.path().join("s"),
            run: dir.path().join("r"),
            cgroup_base: "x".into(),
        };
        let first = StateDir::open(&layout).unwrap();
        assert_eq!(StateDir::open(&layout).unwrap_err().kind, ErrorKind::Conflict);
        // Whether it is let go before the second one looks or after.
        std::thread::scope(|scope| {
            let second = scope.spawn(|| StateDir::open(&layout).map(drop));
            drop(first);
            second.join().unwrap().unwrap();
        });
        replace(&layout.meta(), b"{\"version\":2}").unwrap();
        assert_eq!(StateDir::open(&layout).unwrap_err().kind, ErrorKind::Unsupported);
        replace(&layout.meta(), b"{").unwrap();
        assert_eq!(StateDir::open(&layout).unwrap_err().kind, ErrorKind::Integrity);
    }
}
