//! Disks and directories go.
//!
//! A disk is locked from the moment at which it was found to be no guest's until it has lost its name, and the daemon looks
//! after it locked a disk whether that still has its name: so no guest ever begins on a disk that is going.

use std::fs::File;
use std::time::{Duration, Instant};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_opennebula::tm::place::{DiskPlace, Target, VmPlace};

use super::disk::in_use;
use super::manifest_of;
use crate::files::Dir;
use crate::files::dir::{is_in_use, temporary};

/// How long what is busy is waited for: a guest that was just ended lets its disks go.
const PATIENCE: Duration = Duration::from_secs(5);

/// Removes it; absent is fine.
pub(super) fn remove(target: &Target) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let removed = match target {
            Target::Directory(dir) => remove_dir(dir),
            Target::Disk(disk) => remove_disk(disk),
        };
        match removed {
            Err(e) if e.kind == ErrorKind::Conflict && Instant::now() < deadline => {
                // Nothing tells when a lock or a mount is gone.
                std::thread::park_timeout(Duration::from_millis(250));
            }
            other => return other,
        }
    }
}

/// A disk, its manifest and its snapshots.
pub(super) fn remove_disk(disk: &DiskPlace) -> Result<()> {
    let Some(dir) = super::vm_dir(&disk.dir)? else { return Ok(()) };
    let name = disk.name();
    let _held = hold(&dir, &name)?;
    // The disk first: a manifest without a disk is nothing, a disk without a manifest cannot be booted.
    dir.remove(&name)?;
    for name in [manifest_of(disk), format!("{name}.snap"), temporary(&name)] {
        dir.remove(&name)?;
    }
    dir.sync()
}

/// A directory: first its name, so that what is removed half is no VM's.
fn remove_dir(place: &VmPlace) -> Result<()> {
    let datastore = match Dir::open(&place.datastore.path()) {
        Err(e) if e.kind == ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let going = format!(".{}.going", place.name());
    if let Some(dir) = datastore.sub(&place.name())? {
        let _held = hold_all(&dir)?;
        datastore.remove(&going)?;
        datastore.rename(&place.name(), &going)?;
        datastore.sync()?;
        datastore.remove(&going)?;
    }
    datastore.remove(&going)?;
    datastore.remove(&temporary(&place.name()))?;
    datastore.sync()
}

/// Locks a disk, if there is one; refuses what a guest has attached.
pub(super) fn hold(dir: &Dir, name: &str) -> Result<Option<File>> {
    if !name.starts_with("disk.") {
        return Ok(None);
    }
    let file = match dir.file_to_lock(name) {
        // What is no file has no lock.
        Err(Error { kind: ErrorKind::Invalid, .. }) => return Ok(None),
        other => other?,
    };
    let path = dir.path().join(name);
    match file {
        Some(file) if is_in_use(&file, &path)? => Err(in_use(&path)),
        other => Ok(other),
    }
}

/// The same with all of a directory.
pub(super) fn hold_all(dir: &Dir) -> Result<Vec<File>> {
    let held = dir.names()?.into_iter().map(|name| hold(dir, &name));
    held.filter_map(Result::transpose).collect()
}
