//! From machine to machine.
//!
//! The directory's call moves everything; that for a disk, which comes before, only sees to it that the destination has
//! the layers below it. Between two hosts everything goes through the front-end, which both know; they need not know each
//! other. What has arrived is whole before what it came from is removed; both take their names in one step.

use ocivisor_core::error::Result;
use ocivisor_opennebula::tm::TmCall;
use ocivisor_opennebula::tm::place::{DiskPlace, On, Target, VmPlace};

use super::clone::{absent, send};
use super::{Front, shared, text};
use crate::ssh::{Link, relay};
use crate::wire::Order;

/// `mv`.
pub(super) fn mv(
    call: &TmCall,
    from: &On<Target>,
    to: &On<Target>,
    datastore: u32,
    front: &mut Front<'_>,
) -> Result<()> {
    if from == to {
        return Ok(());
    }
    match (&from.what, &to.what) {
        (Target::Disk(_), _) if front.config.is_here(to.machine.name()) => Ok(()),
        (Target::Disk(source), Target::Disk(target)) => {
            let mut origin = front.reach(&from.machine)?;
            let facts = origin.disk(&Order::Look { disk: text(&source.path()) })?;
            layers(call, facts.and_then(|facts| facts.image), to, target, datastore, front)
        }
        (Target::Directory(source), Target::Directory(target)) => {
            let mut origin = front.reach(&from.machine)?;
            let mut destination = front.reach(&to.machine)?;
            directory(call, (source, &mut origin), (target, &mut destination), front)
        }
        // The words were read so that both are of one kind.
        _ => Ok(()),
    }
}

/// Layers of a root disk; of a disk that moved already, or has no image, there is nothing to bring.
fn layers(
    call: &TmCall,
    image: Option<String>,
    to: &On<Target>,
    disk: &DiskPlace,
    datastore: u32,
    front: &mut Front<'_>,
) -> Result<()> {
    let Some(digest) = image else { return Ok(()) };
    let mut host = front.reach(&to.machine)?;
    let images = disk.dir.datastore.beside(datastore);
    send(call, &digest, &images, disk, &mut host, front)
}

fn directory(
    call: &TmCall,
    (source, origin): (&VmPlace, &mut Link),
    (target, destination): (&VmPlace, &mut Link),
    front: &mut Front<'_>,
) -> Result<()> {
    let (from, to) = (text(&source.path()), text(&target.path()));
    let remove = |origin: &mut Link| origin.done(&Order::Remove { path: from.clone() });
    if !origin.there(&Order::Has { dir: from.clone() })? {
        // It moved at an earlier try, which may have broken off while it cleaned up.
        if !destination.there(&Order::Has { dir: to.clone() })? {
            return Err(absent(&source.path()));
        }
        known(destination, &to)?;
        return remove(origin);
    }
    let same = source == target && shared::between(&source.datastore, origin, destination)?;
    if same {
        return known(destination, &to);
    }
    origin.done(&Order::GetDir { dir: from.clone() })?;
    destination.tell(&Order::PutDir { dir: to.clone() })?;
    let moved = relay(origin, destination)?;
    destination.is_done()?;
    if !destination.is_here() {
        front.make_dir(call, destination, target)?;
    }
    known(destination, &to)?;
    (front.note)(&format!("{moved} bytes were moved"));
    remove(origin)
}

/// Tells a host's daemon of the disks that came. The front-end has none.
fn known(destination: &mut Link, dir: &str) -> Result<()> {
    if destination.is_here() {
        Ok(())
    } else {
        destination.done(&Order::Adopt { dir: dir.to_owned() })
    }
}
