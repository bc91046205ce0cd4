//! A disk of its own for a VM.
//!
//! Of a container image: the host is sent what it lacks of the image, or fetches it from where it came, and its daemon
//! makes the writable disk. An image with a disk of its own (saved from a VM, or persistent once) gives a copy of that.
//! A data disk is copied without its holes.

use std::path::Path;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_opennebula::ImageSource;
use ocivisor_opennebula::tm::disk::KnownDisk;
use ocivisor_opennebula::tm::place::{DatastorePlace, DiskPlace, On};
use ocivisor_opennebula::tm::{Placed, TmCall};
use ocivisor_opennebula::xml;

use super::{Front, MIN_ROOT, data_disk, image_datastore, known, put, text};
use crate::depot::{Content, Depot};
use crate::host::gone;
use crate::manifest;
use crate::packed::{OwnDisk, PackedImage};
use crate::ssh::Link;
use crate::wire::Order;

/// Size of a root disk that nobody said.
const DEFAULT_ROOT: u64 = 2 << 30;
/// Attribute of an image datastore: where hosts get layers from that came from a registry.
const FETCH: &str = "OCI_FETCH";

/// `clone`.
pub(super) fn clone(call: &TmCall, placed: &Placed, front: &mut Front<'_>) -> Result<()> {
    match &placed.source {
        ImageSource::Container { image, manifest } => {
            let mut host = front.ready(call, &placed.disk)?;
            root(call, placed, (*image, manifest.as_deref()), &mut host, front)
        }
        ImageSource::File(_) => {
            let mut host = front.ready(call, &placed.disk)?;
            data(call, placed, &mut host, front)
        }
    }
}

/// A root disk, with its image on the host.
pub(super) fn root(
    call: &TmCall,
    placed: &Placed,
    (image, digest): (u32, Option<&str>),
    host: &mut Link,
    front: &mut Front<'_>,
) -> Result<()> {
    let known = known::disk(call, &placed.disk.what, front);
    let disk = text(&placed.disk.what.path());
    let base = image_datastore(placed);
    if let Some(own) = OwnDisk::open(&base, image)? {
        let digest = manifest::image_of(&own.manifest)?;
        bring(call, &digest, None, placed, host, front)?;
        put(host, &placed.disk.what, &own.file, &base, Some(&own.manifest))?;
        if let Some(size) = known.ok().and_then(|known| larger(&known, &own)) {
            host.done(&Order::Grow { disk: disk.clone(), size, qcow2: false })?;
        }
        return host.done(&Order::Adopt { dir: text(&placed.disk.what.dir.path()) });
    }
    let digest = digest
        .map(|hex| format!("sha256:{hex}"))
        .ok_or_else(|| gone(&format!("image {image}, whose content is yet to come,")))?;
    let size = match known {
        Ok(KnownDisk { size: Some(size), .. }) => size,
        other => {
            let why = other.err().map_or_else(|| "it has none".into(), |e| e.message);
            (front.note)(&format!(
                "the disk gets {} MB, its SIZE is not known: {why}",
                DEFAULT_ROOT >> 20
            ));
            DEFAULT_ROOT
        }
    };
    if size < MIN_ROOT {
        (front.note)(&format!(
            "the disk gets {} MB, a root disk cannot be smaller",
            MIN_ROOT >> 20
        ));
    }
    bring(call, &digest, Some(image), placed, host, front)?;
    host.done(&Order::CreateDisk { disk, image: digest, size: size.max(MIN_ROOT) })
}

/// The size that a copy is to have, if it is to have more than the image's disk.
fn larger(known: &KnownDisk, own: &OwnDisk) -> Option<u64> {
    let now = own.file.metadata().ok()?.len();
    known.size.filter(|size| *size > now)
}

/// Has an image on a host.
fn bring(
    call: &TmCall,
    digest: &str,
    image: Option<u32>,
    placed: &Placed,
    host: &mut Link,
    front: &mut Front<'_>,
) -> Result<()> {
    let datastore = placed.disk.what.dir.datastore.beside(placed.datastore);
    if let Some(source) =
        image.map(|image| registry(&datastore, image, digest, front)).transpose()?.flatten()
    {
        return host.done(&Order::Pull { source, digest: digest.to_owned() });
    }
    send(call, digest, &datastore, &placed.disk.what, host, front)
}

/// Sends a host what it lacks of an image, and tells how much that was.
pub(super) fn send(
    _: &TmCall,
    digest: &str,
    datastore: &DatastorePlace,
    disk: &DiskPlace,
    host: &mut Link,
    front: &mut Front<'_>,
) -> Result<()> {
    let image = PackedImage::open(datastore, digest).map_err(|e| match e.kind {
        ErrorKind::NotFound => gone(&format!("image {digest}")),
        _ => e,
    })?;
    let sent = image.send(host, &disk.dir.datastore)?;
    (front.note)(&format!("{sent} bytes of layers were sent for image {digest}"));
    Ok(())
}

/// Where the image came from, if hosts are to fetch from there what that datastore has.
fn registry(
    datastore: &DatastorePlace,
    image: u32,
    digest: &str,
    front: &mut Front<'_>,
) -> Result<Option<String>> {
    let record = Depot::open(&datastore.path())?.record(image)?;
    let origin = record.and_then(|record| match record.content {
        Content::Container(container) => container.origin,
        Content::Data(_) => None,
    });
    let fits = |origin: &String| {
        origin.starts_with("docker://") && origin.ends_with(&format!("@{digest}"))
    };
    let Some(origin) = origin.filter(fits) else { return Ok(None) };
    let program = front.config.onedatastore.as_os_str();
    let wish = known::ask(program, &datastore.datastore.to_string()).and_then(|answer| {
        let root = xml::read(&answer)?;
        let wish = root.only("TEMPLATE")?.map(|t| t.value(FETCH)).transpose()?.flatten();
        Ok(wish.is_some_and(|wish| wish.eq_ignore_ascii_case("registry")))
    });
    match wish {
        Ok(wanted) => Ok(wanted.then_some(origin)),
        Err(error) => {
            (front.note)(&format!("layers come from the front-end: {}", error.message));
            Ok(None)
        }
    }
}

/// A copy of a data disk.
pub(super) fn data(
    call: &TmCall,
    placed: &Placed,
    host: &mut Link,
    front: &mut Front<'_>,
) -> Result<()> {
    let (dir, name) = data_disk(placed)?;
    let shown = dir.path().join(&name);
    let file = dir.file(&name, false)?.ok_or_else(|| gone(&shown.display().to_string()))?;
    put(host, &placed.disk.what, &file, &shown, None)?;
    let known = match known::disk(call, &placed.disk.what, front) {
        Ok(known) => known,
        Err(error) => {
            (front.note)(&format!("the disk keeps its image's size: {}", error.message));
            return Ok(());
        }
    };
    let wanted = known.size.filter(|size| known.original_size.is_none_or(|own| *size > own));
    let Some(size) = wanted else { return Ok(()) };
    let disk = text(&placed.disk.what.path());
    host.done(&Order::Grow { disk, size, qcow2: is_qcow2(&known) })
}

fn is_qcow2(known: &KnownDisk) -> bool {
    known.format.as_deref() == Some("qcow2")
}

/// `resize`.
pub(super) fn resize(
    call: &TmCall,
    disk: &On<DiskPlace>,
    size: u64,
    front: &mut Front<'_>,
) -> Result<()> {
    let away = known::is_away(disk.what.dir.vm, front).unwrap_or_else(|error| {
        (front.note)(&format!("the disk is looked for on {}: {}", disk.machine, error.message));
        false
    });
    // Of an undeployed VM the host is named where it was last, which may be gone meanwhile.
    let mut host = if away { Link::here(front.config)? } else { front.reach(&disk.machine)? };
    let path = text(&disk.what.path());
    let facts = host.disk(&Order::Look { disk: path.clone() })?;
    let facts = facts.ok_or_else(|| absent(&disk.what.path()))?;
    let qcow2 = facts.image.is_none() && is_qcow2(&known::disk(call, &disk.what, front)?);
    host.done(&Order::Grow { disk: path, size, qcow2 })
}

/// A disk that should be there.
pub(super) fn absent(path: &Path) -> Error {
    Error::new(ErrorKind::NotFound, format!("{} does not exist", path.display()))
}
