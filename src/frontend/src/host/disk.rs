//! Disks: looked at, made, taken and given.

use std::io::{BufRead, Write};
use std::path::Path;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_opennebula::tm::place::{DiskPlace, VmPlace};

use super::{Daemon, manifest_of, present, remove, vm_dir};
use crate::files::dir::is_in_use;
use crate::files::sparse::{self, NewFile};
use crate::manifest;
use crate::wire::{self, DiskFacts, MAX_DOCUMENT, Reply};

/// What a disk is; none if it is not there.
pub(super) fn look(disk: &DiskPlace) -> Result<Option<DiskFacts>> {
    let Some(dir) = vm_dir(&disk.dir)? else { return Ok(None) };
    let Some(file) = dir.file(&disk.name(), false)? else { return Ok(None) };
    let size = file.metadata().map_err(|e| dir.failed("look at", &disk.name(), e))?.len();
    let manifest = dir.read(&manifest_of(disk), MAX_DOCUMENT)?;
    let image = manifest.as_deref().map(manifest::image_of).transpose()?;
    Ok(Some(DiskFacts { size, manifest: manifest.map(|bytes| bytes.len() as u64), image }))
}

/// Makes a root disk. One that an earlier try made of something else was never used: it goes.
pub(super) fn create(
    disk: &DiskPlace,
    image: &str,
    size: u64,
    daemon: &mut dyn Daemon,
) -> Result<()> {
    let path = disk.path();
    match daemon.create_disk(image, size, &path) {
        Err(e) if e.kind == ErrorKind::Conflict => {
            remove::remove_disk(disk)?;
            daemon.create_disk(image, size, &path)
        }
        other => other,
    }
}

/// Tells the daemon of all root disks in a directory.
pub(super) fn adopt(place: &VmPlace, daemon: &mut dyn Daemon) -> Result<()> {
    let dir = present(place)?;
    for name in dir.names()? {
        let manifest = format!("{name}{}", crate::MANIFEST_SUFFIX);
        if name.starts_with("disk.") && dir.stat(&manifest)?.is_some() {
            daemon.adopt(&place.path().join(&name))?;
        }
    }
    Ok(())
}

/// Takes a disk in the place of what is there.
pub(super) fn put(disk: &DiskPlace, manifest: Option<u64>, from: &mut impl BufRead) -> Result<()> {
    let manifest = manifest.map(|size| wire::read_body(from, size)).transpose()?;
    if let Some(bytes) = &manifest {
        manifest::image_of(bytes)?;
    }
    let dir = present(&disk.dir)?;
    let name = disk.name();
    let path = dir.path().join(&name);
    // A manifest without a disk is nothing; a disk without its own is no root disk.
    if manifest.is_none() {
        dir.unlink(&manifest_of(disk))?;
    }
    dir.publish(&name, |file| {
        sparse::receive(from, &mut NewFile { file, path: &path })?;
        manifest.map_or(Ok(()), |bytes| dir.replace(&manifest_of(disk), &bytes))
    })
}

/// Gives a disk.
pub(super) fn get(disk: &DiskPlace, to: &mut impl Write) -> Result<()> {
    let dir = present(&disk.dir)?;
    let name = disk.name();
    let Some(file) = dir.file_to_lock(&name)? else {
        let what = format!("{} does not exist", disk.path().display());
        return Err(Error::new(ErrorKind::NotFound, what));
    };
    if is_in_use(&file, &disk.path())? {
        return Err(in_use(&disk.path()));
    }
    let manifest = dir.read(&manifest_of(disk), MAX_DOCUMENT)?;
    let facts = look(disk)?;
    wire::write_line(to, &Reply::Disk(facts))?;
    if let Some(bytes) = manifest {
        to.write_all(&bytes).map_err(crate::files::broken)?;
    }
    sparse::send(&file, &disk.path(), to).map(|_| ())
}

/// A copy of what a guest writes to would be of no moment.
pub(super) fn in_use(path: &Path) -> Error {
    let what = format!("{} is in use", path.display());
    Error::new(ErrorKind::Conflict, what).hint("end the guest that runs on it")
}
