//! From machine to machine.
//!
//! The directory's call moves everything; that for a disk, which comes before, only sees to it that the destination has
//! the layers below it. Between two hosts everything goes through the front-end, which both know; they need not know each
//! other. What has arrived is whole before what it came from is removed; both take their names in one step.

use ocivisor_core::error::Result;
use ocivisor_opennebula::tm::TmCall;
use ocivisor_opennebula::tm::place::{On, Target, VmPlace};

use super::clone::{absent, send};
use super::{Front, known, shared, text};
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
        (Target::Disk(source), Target::Disk(target)) => {
            let mut destination = front.reach(&to.machine)?;
            if !is_host(&mut destination)? {
                return Ok(());
            }
            let facts =
                front.reach(&from.machine)?.disk(&Order::Look { disk: text(&source.path()) })?;
            // Of a disk that moved already, or has no image, there is nothing to bring.
            let Some(image) = facts.and_then(|facts| facts.image) else { return Ok(()) };
            let images = target.dir.datastore.beside(datastore);
            let known = known::disk(call, source, front)?;
            known::lies_on(known.source.as_ref(), &image, &images)?;
            send(call, &image, &images, target, &mut destination, front)
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

/// Whether guests run there: on every host, and on the front-end if it is one, too.
fn is_host(link: &mut Link) -> Result<bool> {
    Ok(!link.is_here() || link.there(&Order::IsHost)?)
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
        adopt(destination, &to)?;
        return remove(origin);
    }
    let same = source == target && shared::between(&source.datastore, origin, destination)?;
    if same {
        return adopt(destination, &to);
    }
    origin.done(&Order::GetDir { dir: from.clone() })?;
    destination.tell(&Order::PutDir { dir: to.clone() })?;
    let moved = relay(origin, destination, known::most(call, front)?)?;
    destination.is_done()?;
    if is_host(destination)? {
        front.make_dir(call, destination, target)?;
    }
    adopt(destination, &to)?;
    (front.note)(&format!("{moved} bytes were moved"));
    remove(origin)
}

/// Tells the daemon of the disks that came, where there is one.
fn adopt(destination: &mut Link, dir: &str) -> Result<()> {
    if is_host(destination)? {
        destination.done(&Order::Adopt { dir: dir.to_owned() })?;
    }
    Ok(())
}
