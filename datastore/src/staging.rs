//! Work in progress: directories in `staging/`, each locked by the process that fills it.
//!
//! The lock (flock on the directory) dies with its owner, so whoever opens the store next can tell rubbish from
//! work. A directory is ours only if it still has its name after the lock was got: a cleaner may have taken it
//! between `mkdir` and `flock`.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FlockOperation, Mode};
use rustix::io::Errno;

use crate::disk;

/// A locked directory in `staging/`, removed with all in it when dropped.
#[derive(Debug)]
pub(crate) struct Staged {
    staging: File,
    pub dir: File,
    name: String,
}

impl Staged {
    /// A directory of our own.
    pub fn create(staging: &File, purpose: &str) -> io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        Self::claim(staging, format!("{purpose}-{}-{n}", process::id()))
    }

    /// The one directory of that name: waits while another has it, and takes over what a dead one left.
    pub fn claim(staging: &File, name: String) -> io::Result<Self> {
        loop {
            match rustix::fs::mkdirat(staging, &name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(e.into()),
            }
            let dir = match disk::open_dir(staging, &name) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            disk::lock(&dir, FlockOperation::LockExclusive)?;
            if still_there(staging, &name, &dir)? {
                let staged = Self { staging: staging.try_clone()?, dir, name };
                staged.empty()?;
                return Ok(staged);
            }
        }
    }

    fn empty(&self) -> io::Result<()> {
        for name in disk::names(&self.dir)? {
            disk::remove_tree(self.dir.as_fd(), name.as_bytes())?;
        }
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // What cannot be removed now is removed when the store is opened next; there is nobody to tell.
        drop(disk::remove_tree(self.staging.as_fd(), self.name.as_bytes()));
    }
}

fn still_there(staging: &File, name: &str, dir: &File) -> io::Result<bool> {
    let ours = rustix::fs::fstat(dir)?;
    Ok(disk::stat(staging, name)?
        .is_some_and(|s| (s.st_dev, s.st_ino) == (ours.st_dev, ours.st_ino)))
}

/// Removes what dead processes left.
pub(crate) fn clean(staging: &File) -> io::Result<()> {
    for name in disk::names(staging)? {
        let dir = match disk::open_dir(staging, &name) {
            Ok(dir) => dir,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) if e.raw_os_error() == Some(Errno::NOTDIR.raw_os_error()) => {
                disk::unlink(staging, &name)?;
                continue;
            }
            Err(e) => return Err(e),
        };
        if disk::lock(&dir, FlockOperation::NonBlockingLockExclusive)?
            && still_there(staging, &name, &dir)?
        {
            disk::remove_tree(staging.as_fd(), name.as_bytes())?;
        }
    }
    Ok(())
}

/// Names of directories whose owner is dead.
pub(crate) fn leftovers(staging: &File) -> io::Result<Vec<String>> {
    let mut dead = Vec::new();
    for name in disk::names(staging)? {
        let alive = match disk::open_dir(staging, &name) {
            Ok(dir) => !disk::lock(&dir, FlockOperation::NonBlockingLockExclusive)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => true,
            Err(_) => false,
        };
        if !alive {
            dead.push(name);
        }
    }
    Ok(dead)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleaning_spares_the_living_and_takes_the_dead() {
        let top = tempfile::tempdir().unwrap();
        let staging = File::open(top.path()).unwrap();
        let alive = Staged::create(&staging, "import").unwrap();
        std::fs::create_dir_all(top.path().join("import-1-1/fs/a")).unwrap();
        File::create(top.path().join("stray")).unwrap();
        assert_eq!(leftovers(&staging).unwrap(), ["import-1-1", "stray"]);
        clean(&staging).unwrap();
        assert_eq!(disk::names(&staging).unwrap(), std::slice::from_ref(&alive.name));
        drop(alive);
        assert_eq!(disk::names(&staging).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_claimed_name_has_one_owner_at_a_time() {
        let top = tempfile::tempdir().unwrap();
        let staging = File::open(top.path()).unwrap();
        let busy = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        let claimed = Staged::claim(&staging, "layer-x".into()).unwrap();
                        assert_eq!(busy.fetch_add(1, Ordering::SeqCst), 0);
                        disk::create_new(&claimed.dir, "mine").unwrap();
                        assert_eq!(busy.fetch_sub(1, Ordering::SeqCst), 1);
                    }
                });
            }
        });
        assert_eq!(disk::names(&staging).unwrap(), Vec::<String>::new());
    }
}
