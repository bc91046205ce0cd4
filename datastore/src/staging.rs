//! Work in progress: directories in `staging/`, each locked by the process that fills it.
//!
//! The lock (flock on the directory) dies with its owner, so whoever opens the store next can tell rubbish from
//! work. A directory is ours only if it still has its name after the lock was got: a cleaner may have taken it
//! between `mkdir` and `flock`.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FlockOperation, Mode};
use rustix::io::Errno;

use crate::cancel::Cancel;
use crate::digest::{DiffId, Digest};
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
        Self::claim(staging, format!("{purpose}-{}-{n}", process::id()), &Cancel::default())
    }

    /// The one directory of that name: waits while another has it, and takes over what a dead one left.
    pub fn claim(staging: &File, name: String, cancel: &Cancel) -> io::Result<Self> {
        loop {
            match rustix::fs::mkdirat(staging, &name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(e.into()),
            }
            let dir = match disk::open_dir(staging, &name) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            cancel.until(|| disk::lock(&dir, FlockOperation::NonBlockingLockExclusive))?;
            if still_there(staging, &name, &dir)? {
                let staged = Self { staging: staging.try_clone()?, dir, name };
                staged.empty()?;
                return Ok(staged);
            }
        }
    }

    /// Has prunes leave blobs and layers, also if no image has them, until this is dropped. The caller has the
    /// store's lock.
    pub fn keep(&self, kept: &Kept) -> io::Result<()> {
        let temp = "keep.new";
        disk::unlink(&self.dir, temp)?;
        disk::create_new(&self.dir, temp)?.write_all(kept.encode().as_bytes())?;
        // Whole or not there; what a power failure does to it is no matter, for nobody will be working here then.
        Ok(rustix::fs::renameat(&self.dir, temp, &self.dir, KEEP)?)
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

/// What work in progress needs of the store.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    pub blobs: HashSet<Digest>,
    pub layers: HashSet<DiffId>,
}

/// In a directory of staging: a line per thing.
const KEEP: &str = "keep";
const KEEP_MAX: u64 = 16 << 20;

impl Kept {
    /// Of all work in progress. Nobody may begin to keep something meanwhile: the caller has the store's lock.
    pub fn of_all(staging: &File) -> io::Result<Self> {
        let mut kept = Self::default();
        for name in disk::names(staging)? {
            // Work that just ended, or what is none.
            let Ok(dir) = disk::open_dir(staging, &name) else { continue };
            if disk::lock(&dir, FlockOperation::NonBlockingLockExclusive)? {
                continue;
            }
            if let Some(lines) = disk::read_file(&dir, KEEP, KEEP_MAX)? {
                kept.add(&String::from_utf8_lossy(&lines)).ok_or_else(|| {
                    io::Error::other(format!("{name}/{KEEP} is not what this program writes"))
                })?;
            }
        }
        Ok(kept)
    }

    fn encode(&self) -> String {
        let mut lines = String::new();
        for blob in &self.blobs {
            lines += &format!("blob {}\n", blob.hex());
        }
        for layer in &self.layers {
            lines += &format!("layer {}\n", layer.hex());
        }
        lines
    }

    fn add(&mut self, lines: &str) -> Option<()> {
        for line in lines.lines() {
            let (kind, hex) = line.split_once(' ')?;
            let digest = Digest::from_hex(hex)?;
            match kind {
                "blob" => drop(self.blobs.insert(digest)),
                "layer" => drop(self.layers.insert(DiffId(digest))),
                _ => return None,
            }
        }
        Some(())
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
    fn what_living_work_keeps_is_known_and_what_the_dead_kept_is_not() {
        let top = tempfile::tempdir().unwrap();
        let staging = File::open(top.path()).unwrap();
        let digest = |n: u8| Digest::of(&[n]);
        let of = |blobs: &[u8], layers: &[u8]| Kept {
            blobs: blobs.iter().map(|n| digest(*n)).collect(),
            layers: layers.iter().map(|n| DiffId(digest(*n))).collect(),
        };
        let [one, two, _three] = [1, 2, 3].map(|_| Staged::create(&staging, "import").unwrap());
        one.keep(&of(&[1], &[9])).unwrap();
        one.keep(&of(&[1, 2], &[3])).unwrap();
        two.keep(&of(&[2], &[4])).unwrap();
        assert_eq!(Kept::of_all(&staging).unwrap(), of(&[1, 2], &[3, 4]));
        disk::lock(&two.dir, FlockOperation::Unlock).unwrap();
        assert_eq!(Kept::of_all(&staging).unwrap(), of(&[1, 2], &[3]));
        let mut spoiled = File::create(top.path().join(&one.name).join(KEEP)).unwrap();
        spoiled.write_all(b"layer x").unwrap();
        Kept::of_all(&staging).unwrap_err();
        drop(one);
        assert_eq!(Kept::of_all(&staging).unwrap(), Kept::default());
    }

    #[test]
    fn who_waits_for_a_name_can_be_told_not_to() {
        let top = tempfile::tempdir().unwrap();
        let staging = File::open(top.path()).unwrap();
        let cancel = Cancel::new();
        let _held = Staged::claim(&staging, "layer-x".into(), &cancel).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| Staged::claim(&staging, "layer-x".into(), &cancel));
            cancel.cancel();
            waiting.join().unwrap().unwrap_err();
        });
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
                        let claimed =
                            Staged::claim(&staging, "layer-x".into(), &Cancel::new()).unwrap();
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
