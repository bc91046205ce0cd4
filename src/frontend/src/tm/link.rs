//! The image itself as a VM's disk: persistent images, and CD-ROMs.
//!
//! Where front-end and host have one system datastore and the image's lies on the same file system, the disk is a
//! second name of the image's file; else it is a copy that `mvds` brings back.

use ocivisor_core::error::{ErrorKind, Result};
use ocivisor_opennebula::ImageSource;
use ocivisor_opennebula::tm::{Placed, TmCall};

use super::clone::{self, send};
use super::writeback::forget_receipt;
use super::{Front, data_disk, image_datastore, shared, text};
use crate::MANIFEST_SUFFIX;
use crate::files::Dir;
use crate::manifest;
use crate::packed::OwnDisk;
use crate::ssh::Link;
use crate::wire::Order;

/// `ln`.
pub(super) fn link(call: &TmCall, placed: &Placed, front: &mut Front<'_>) -> Result<()> {
    let mut host = front.ready(call, &placed.disk)?;
    forget_receipt(placed)?;
    let dir = &placed.disk.what.dir;
    let shared = shared::with_here(&dir.datastore, &mut host)?;
    match &placed.source {
        ImageSource::Container { image, manifest } => {
            let whose = (*image, manifest.as_deref());
            if !shared {
                return clone::root(call, placed, whose, &mut host, front);
            }
            if !share_root(call, placed, *image, &mut host, front)? {
                clone::root(call, placed, whose, &mut host, front)?;
                give_root(placed, *image, front)?;
            }
            Ok(())
        }
        ImageSource::File(_) if shared => {
            let (images, name) = data_disk(placed)?;
            match vm_dir(placed)?.link_from(&images, &name, &placed.disk.what.name()) {
                Err(e) if e.kind == ErrorKind::Unsupported => {
                    clone::data(call, placed, &mut host, front)
                }
                other => other,
            }
        }
        ImageSource::File(_) => clone::data(call, placed, &mut host, front),
    }
}

/// The VM's directory, which the front-end sees.
fn vm_dir(placed: &Placed) -> Result<Dir> {
    let dir = &placed.disk.what.dir;
    let found = Dir::open(&dir.datastore.path())?.sub(&dir.name())?;
    found.ok_or_else(|| clone::absent(&dir.path()))
}

/// Gives the VM the image's own disk, if the image has one and both can be one file.
fn share_root(
    call: &TmCall,
    placed: &Placed,
    image: u32,
    host: &mut Link,
    front: &mut Front<'_>,
) -> Result<bool> {
    let base = image_datastore(placed);
    let Some(own) = OwnDisk::open(&base, image)? else { return Ok(false) };
    let Some(disks) = Dir::open(&base)?.sub("disks")? else { return Ok(false) };
    let disk = &placed.disk.what;
    let images = disk.dir.datastore.beside(placed.datastore);
    send(call, &manifest::image_of(&own.manifest)?, &images, disk, host, front)?;
    let dir = vm_dir(placed)?;
    dir.replace(&format!("{}{MANIFEST_SUFFIX}", disk.name()), &own.manifest)?;
    match dir.link_from(&disks, &image.to_string(), &disk.name()) {
        Ok(()) => host.done(&Order::Adopt { dir: text(&disk.dir.path()) }).map(|()| true),
        Err(e) if e.kind == ErrorKind::Unsupported => Ok(false),
        Err(e) => Err(e),
    }
}

/// Makes the VM's first disk that of the image, where both can be one file; else `mvds` copies it.
fn give_root(placed: &Placed, image: u32, front: &mut Front<'_>) -> Result<()> {
    let base = Dir::open(&image_datastore(placed))?;
    let disks = base.make("disks", 0o750)?;
    if disks.stat(&image.to_string())?.is_some() {
        return Ok(());
    }
    let (dir, name) = (vm_dir(placed)?, placed.disk.what.name());
    let Some(manifest) =
        dir.read(&format!("{name}{MANIFEST_SUFFIX}"), crate::wire::MAX_DOCUMENT)?
    else {
        return Err(clone::absent(&placed.disk.what.path()));
    };
    disks.replace(&format!("{image}.json"), &manifest)?;
    match disks.link_from(&dir, &name, &image.to_string()) {
        Err(e) if e.kind == ErrorKind::Unsupported => {
            (front.note)("the image's disk is written back when the VM ends");
            disks.unlink(&format!("{image}.json"))
        }
        other => other,
    }
}
