//! A VM's disk goes into an image: back into its own (`mvds`), or into a new one (`cpds`).
//!
//! The disk is fetched beside what the image has, and takes its place when it is whole and durable; then only it is
//! removed from the host. That it was, a receipt in the image datastore says until the image is used again: so a call
//! that is repeated after its end is told from one whose disk was lost.

use std::fs::File;
use std::path::Path;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_datastore::Reference;
use ocivisor_opennebula::ImageSource;
use ocivisor_opennebula::tm::{Placed, TmCall};

use super::clone::absent;
use super::{Front, data_disk, image_datastore, known, text};
use crate::Depot;
use crate::files::sparse::{self, Bounded, NewFile};
use crate::files::{Dir, garbled};
use crate::manifest;
use crate::ssh::Link;
use crate::wire::{self, Order};

/// `mvds`.
pub(super) fn back(call: &TmCall, placed: &Placed, front: &mut Front<'_>) -> Result<()> {
    let mut host = front.reach(&placed.disk.machine)?;
    let path = text(&placed.disk.what.path());
    if host.disk(&Order::Look { disk: path.clone() })?.is_none() {
        let (base, name) = receipt(placed)?;
        let written = base.read(&name, 4096)?;
        return if written.as_deref() == Some(whose(placed).as_bytes()) {
            Ok(())
        } else {
            Err(absent(&placed.disk.what.path()))
        };
    }
    if !is_one_file(placed)? {
        let most = known::most(call, front)?;
        fetch(placed, &placed.source, most, &mut host)?;
    }
    let (base, name) = receipt(placed)?;
    base.replace(&name, whose(placed).as_bytes())?;
    host.done(&Order::Remove { path })
}

/// `cpds`.
pub(super) fn save_as(
    call: &TmCall,
    placed: &Placed,
    snapshot: Option<u32>,
    front: &mut Front<'_>,
) -> Result<()> {
    if snapshot.is_some() {
        let what = "snapshots of disks cannot be saved as images yet";
        return Err(Error::new(ErrorKind::Unsupported, what).hint("save the disk as it is"));
    }
    // The image is a new one; what the disk lies on is known by the one that it was made of.
    let own = known::disk(call, &placed.disk.what, front)?.source;
    let most = known::most(call, front)?;
    let mut host = front.reach(&placed.disk.machine)?;
    fetch(placed, own.as_ref().unwrap_or(&placed.source), most, &mut host)
}

/// Has the disk in the image, which may have that many bytes. It was made of the image at `own`.
fn fetch(placed: &Placed, own: &ImageSource, most: u64, host: &mut Link) -> Result<()> {
    let disk = text(&placed.disk.what.path());
    let facts = host.disk(&Order::GetDisk { disk })?;
    let facts = facts.ok_or_else(|| absent(&placed.disk.what.path()))?;
    let manifest = match facts.manifest {
        Some(size) => Some(host.read(|from| wire::read_body(from, size))?),
        None => None,
    };
    match (&placed.source, manifest) {
        (ImageSource::Container { image, .. }, Some(bytes)) => {
            // Both images are in one datastore: layers are looked for where the disk is to be.
            let images = placed.disk.what.dir.datastore.beside(placed.datastore);
            known::lies_on(Some(own), &manifest::image_of(&bytes)?, &images)?;
            into_image(placed, *image, &bytes, most, host)
        }
        (ImageSource::File(_), None) => {
            let (dir, name) = data_disk(placed)?;
            let path = dir.path().join(&name);
            dir.publish(&name, |file| take(host, file, &path, most))
        }
        (ImageSource::Container { .. }, None) => Err(garbled("a root disk without a manifest")),
        (ImageSource::File(_), Some(_)) => {
            Err(Error::new(ErrorKind::Invalid, "a root disk cannot become a data disk"))
        }
    }
}

fn take(host: &mut Link, file: &File, path: &Path, mut most: u64) -> Result<()> {
    let largest = most;
    let mut bounded = Bounded { to: NewFile { file, path }, left: &mut most, largest };
    host.read(|from| sparse::receive(from, &mut bounded)).map(|_| ())
}

fn into_image(placed: &Placed, image: u32, bytes: &[u8], most: u64, host: &mut Link) -> Result<()> {
    let base = image_datastore(placed);
    let depot = Depot::open(&base)?;
    let held = depot.lock(image)?;
    let digest = manifest::image_of(bytes)?;
    // What the disk lies upon stays as long as this image, also when the one it was made of goes.
    if let Ok(below) = digest.parse::<Reference>()
        && let Err(error) = depot.store().tag(&below, &Depot::name(image))
    {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("image {digest} of the disk: {error}"),
        ));
    }
    let disk = depot.new_disk(&held)?;
    take(host, disk.file(), &depot.disk_path(image), most)?;
    // A manifest without a disk is nothing, and both kinds of disks fit to either.
    Dir::open(&base)?.make("disks", 0o750)?.replace(&format!("{image}.json"), bytes)?;
    let path = depot.disk_path(image);
    disk.publish().map_err(|e| crate::files::failed("publish", &path, e))
}

/// Whether the VM's disk is a second name of the image's.
fn is_one_file(placed: &Placed) -> Result<bool> {
    let disk = &placed.disk.what;
    let Ok(datastore) = Dir::open(&disk.dir.datastore.path()) else { return Ok(false) };
    let Some(dir) = datastore.sub(&disk.dir.name())? else { return Ok(false) };
    let Some(own) = dir.stat(&disk.name())? else { return Ok(false) };
    let images = match &placed.source {
        ImageSource::Container { image, .. } => {
            let disks = Dir::open(&image_datastore(placed))?.sub("disks")?;
            disks.map(|disks| (disks, image.to_string()))
        }
        ImageSource::File(_) => Some(data_disk(placed)?),
    };
    let stat = images.map(|(dir, name)| dir.stat(&name)).transpose()?.flatten();
    Ok(stat.is_some_and(|stat| (stat.st_dev, stat.st_ino) == (own.st_dev, own.st_ino)))
}

fn receipt(placed: &Placed) -> Result<(Dir, String)> {
    match &placed.source {
        ImageSource::Container { image, .. } => {
            let base = Dir::open(&image_datastore(placed))?;
            Ok((base.make("disks", 0o750)?, format!(".{image}.written")))
        }
        ImageSource::File(_) => {
            let (dir, name) = data_disk(placed)?;
            Ok((dir, format!(".{name}.written")))
        }
    }
}

fn whose(placed: &Placed) -> String {
    format!("{}\n", placed.disk.what.path().display())
}

/// The image is used again.
pub(super) fn forget_receipt(placed: &Placed) -> Result<()> {
    let (dir, name) = receipt(placed)?;
    dir.unlink(&name)
}
