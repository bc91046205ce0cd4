//! Looks at directories that may never end: each system call about a share (NFS, FUSE) whose server is away waits, maybe
//! for hours, and nothing ends it.
//!
//! Each look is on a thread of its own and has a limited time. Who is not back by then is left out, and not looked at again
//! until he is. So a dead share costs a thread of each kind of look at it, however often there is one, and what lies elsewhere
//! is told as ever.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout_at};

/// How long looks may take, all of them together.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Those of one kind.
#[derive(Debug, Clone, Default)]
pub struct Looks {
    away: Away,
}

/// Where somebody looks and is not back yet.
type Away = Arc<Mutex<BTreeSet<PathBuf>>>;

fn lock(away: &Away) -> MutexGuard<'_, BTreeSet<PathBuf>> {
    away.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes sure that somebody is known to be back, also if he panicked.
struct Back(Away, PathBuf);

impl Drop for Back {
    fn drop(&mut self) {
        lock(&self.0).remove(&self.1);
    }
}

impl Looks {
    /// What was seen at these paths; what did not come within `patience` is left out.
    pub async fn each<T: Send + 'static>(
        &self,
        paths: impl IntoIterator<Item = PathBuf>,
        patience: Duration,
        look: impl Fn(&Path) -> T + Clone + Send + 'static,
    ) -> BTreeMap<PathBuf, T> {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        for path in paths {
            if !lock(&self.away).insert(path.clone()) {
                continue;
            }
            let back = Back(Arc::clone(&self.away), path.clone());
            let (look, sender) = (look.clone(), sender.clone());
            spawn_blocking(move || {
                let seen = look(&path);
                drop(back);
                // Nobody waits for who comes too late.
                let _ = sender.send((path, seen));
            });
        }
        drop(sender);
        let (deadline, mut found) = (Instant::now() + patience, BTreeMap::new());
        while let Ok(Some((path, seen))) = timeout_at(deadline, receiver.recv()).await {
            found.insert(path, seen);
        }
        found
    }

    /// The same, at one path.
    pub async fn one<T: Send + 'static>(
        &self,
        path: &Path,
        patience: Duration,
        look: impl Fn(&Path) -> T + Clone + Send + 'static,
    ) -> Option<T> {
        self.each([path.to_owned()], patience, look).await.into_values().next()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn who_is_not_back_hides_nobody_and_is_not_followed() {
        let looks = Looks::default();
        let (open, gate) = channel::<()>();
        let (looked, count) = channel();
        let gate = Arc::new(Mutex::new(gate));
        let look = move |path: &Path| {
            looked.send(()).unwrap();
            if path == Path::new("/dead") {
                // Until the other end is gone.
                let _ = gate.lock().unwrap().recv();
            }
            path.as_os_str().len()
        };
        let paths = || ["/a", "/dead", "/bb"].map(PathBuf::from);
        let alive = BTreeMap::from([("/a".into(), 2), ("/bb".into(), 3)]);
        // Only the first time somebody is waited for in vain.
        for (patience, looks_there) in [(Duration::from_secs(3), 3), (LONG, 2), (LONG, 2)] {
            assert_eq!(looks.each(paths(), patience, look.clone()).await, alive);
            assert_eq!(count.try_iter().count(), looks_there);
        }
        drop(open);
        while lock(&looks.away).contains(Path::new("/dead")) {
            tokio::task::yield_now().await;
        }
        assert_eq!(looks.one(Path::new("/dead"), LONG, look).await, Some(5));
    }
}
