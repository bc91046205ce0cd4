//! `quarantine/<time>-<hex>/`: what a repair, or an import that found other files than a layer's, took out of the store,
//! under the paths it had.
//!
//! Nothing is ever taken from there but by a prune that names an age for it. The directory is a compatible feature of
//! the format: a program that does not know it loses nothing by ignoring it.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::df;
use crate::digest::{DiffId, Digest};
use crate::disk;
use crate::format;
use crate::prune::Pruned;
use crate::store::Store;

pub(crate) const NAME: &str = "quarantine";

/// One repair's directory, made when something first goes there; or that of an import.
pub(crate) struct Quarantine<'a> {
    store: &'a Store,
    open: Option<(String, File)>,
}

impl<'a> Quarantine<'a> {
    pub fn new(store: &'a Store) -> Self {
        Self { store, open: None }
    }

    /// Moves `name` there from a directory of the store whose path is `folder`; returns the new path.
    pub fn take(
        &mut self,
        from: &File,
        name: &str,
        folder: &str,
        as_name: &str,
    ) -> io::Result<String> {
        self.put(folder, as_name, |to, free| disk::set_aside(from, name, to, free))
    }

    /// Keeps a file there that is about to be replaced.
    pub fn keep(&mut self, from: &File, name: &str, folder: &str) -> io::Result<String> {
        self.put(folder, name, |to, free| disk::link(from, name, to, free))
    }

    /// Gives `name` of the directory `from` the place of `there` in the store's directory `at`, whose path is `folder`;
    /// what was there comes here. Returns its new path.
    ///
    /// What is new waits here until both change places in one step. So what was there, on which guests may run, has a
    /// name that outlives us at every moment; after a crash there may be a copy here that nobody needs.
    pub fn exchange(
        &mut self,
        (from, name): (&File, &str),
        (at, there, folder): (&File, &str, &str),
    ) -> io::Result<String> {
        let to = self.put(folder, there, |to, free| disk::set_aside(from, name, to, free))?;
        let (dir, free) = to.rsplit_once('/').ok_or(io::ErrorKind::InvalidInput)?;
        let mut here = self.store.dir.try_clone()?;
        for part in dir.split('/') {
            here = disk::open_dir(&here, part)?;
        }
        disk::exchange(&here, free, at, there)?;
        Ok(to)
    }

    fn put(
        &mut self,
        folder: &str,
        as_name: &str,
        place: impl Fn(&File, &str) -> io::Result<()>,
    ) -> io::Result<String> {
        let (own, dir) = self.directory()?;
        let mut to = dir.try_clone()?;
        for part in folder.split('/') {
            to = disk::ensure_dir(&to, part)?;
        }
        let mut free = as_name.to_owned();
        for n in 1.. {
            match place(&to, &free) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && n < 1000 => {
                    free = format!("{as_name}.{n}");
                }
                other => {
                    other?;
                    break;
                }
            }
        }
        Ok(format!("{NAME}/{own}/{folder}/{free}"))
    }

    fn directory(&mut self) -> io::Result<&(String, File)> {
        if self.open.is_none() {
            // Imports may come here at the same time, and a store may be opened: each open(2) has a lock of its own.
            let root = disk::open_dir(&self.store.dir, ".")?;
            disk::lock(&root, FlockOperation::LockExclusive)?;
            format::add_compatible(&self.store.dir, NAME)?;
            let top = disk::ensure_dir(&self.store.dir, NAME)?;
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let seed = format!("{} {}", std::process::id(), now.as_nanos());
            let name = format!("{}-{}", now.as_secs(), &Digest::of(seed.as_bytes()).hex()[..8]);
            self.open = Some((name.clone(), disk::ensure_dir(&top, &name)?));
        }
        self.open.as_ref().ok_or_else(|| Errno::NOENT.into())
    }
}

/// Deletes for good what repairs set aside longer ago than `age`, and counts it; or only counts it.
///
/// The caller has the store's lock. What holds files of a layer in `in_use` stays.
pub(crate) fn prune(
    store: &Store,
    age: Duration,
    in_use: &HashSet<DiffId>,
    really: bool,
    pruned: &mut Pruned,
) -> io::Result<()> {
    let top = match disk::open_dir(&store.dir, NAME) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    for name in disk::names(&top)? {
        let made = name.split('-').next().and_then(|t| t.parse().ok()).map(Duration::from_secs);
        let old = made.is_some_and(|made| now.saturating_sub(made) >= age);
        if !old || holds(&top, &name, in_use)? {
            continue;
        }
        pruned.quarantine_bytes += df::measure_one(&top, &name)?;
        if really {
            disk::remove_tree(top.as_fd(), name.as_bytes())?;
        }
        pruned.quarantined.push(name);
    }
    Ok(())
}

fn holds(top: &File, name: &str, layers: &HashSet<DiffId>) -> io::Result<bool> {
    let inside = disk::open_dir(top, name).and_then(|dir| disk::open_dir(&dir, "layers"));
    match inside {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
        Ok(dir) => Ok(disk::names(&dir)?.iter().any(|name| {
            let hex = name.split('.').next().unwrap_or_default();
            Digest::from_hex(hex).is_some_and(|d| layers.contains(&DiffId(d)))
        })),
    }
}
