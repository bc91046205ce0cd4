//! An image comes to a host: what is lacking, and nothing else.
//!
//! On its way it lies below the system datastore, as a directory in OCI image layout that has the documents and the
//! lacking layers alone; the daemon imports that. The directory is named by the image and locked: of two calls for one
//! image the second finds nothing lacking. A call that breaks off leaves whole blobs, which the next does not ask for
//! again, if there is one within a day.

use std::io::{BufRead, Read, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_opennebula::tm::place::DatastorePlace;
use rustix::fs::FlockOperation;

use super::Daemon;
use crate::files::{Dir, broken, garbled};
use crate::manifest::hex_of;
use crate::wire::{self, Document, Message, Order, Reply};

/// Directory of the system datastore where images are on their way.
const STAGING: &str = ".ocivisor";
/// How long what broke off is kept.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// How often a layer may be taken away by a prune before the import.
const TRIES: usize = 3;

/// What an image is called on hosts: by its content, so that nobody's name is moved.
fn name_of(hex: &str) -> String {
    format!("opennebula/{hex}")
}

/// Has an image of a registry here.
pub(super) fn pull(source: &str, digest: &str, daemon: &mut dyn Daemon) -> Result<()> {
    let hex = hex_of(digest)?;
    if !source.starts_with("docker://") || !source.ends_with(&format!("@{digest}")) {
        return Err(garbled("a registry's image without its digest"));
    }
    daemon.import(source, &name_of(hex))
}

/// Has an image here whose blobs the other side sends.
pub(super) fn bring(
    place: &DatastorePlace,
    (manifest, config): (&Document, &Document),
    from: &mut impl BufRead,
    to: &mut impl Write,
    daemon: &mut dyn Daemon,
) -> Result<()> {
    let mut document = |said: &Document| -> Result<Vec<u8>> {
        hex_of(&said.digest)?;
        wire::read_body(from, said.size)
    };
    let documents = [(manifest, document(manifest)?), (config, document(config)?)];
    let hex = hex_of(&manifest.digest)?.to_owned();
    let datastore = Dir::ensure(&place.path())?;
    let staging = datastore.make(STAGING, 0o700)?;
    sweep(&staging, &hex)?;
    let layout = locked(&staging, &hex)?;
    let blobs = layout.make("blobs", 0o700)?.make("sha256", 0o700)?;
    for (document, bytes) in &documents {
        blobs.replace(hex_of(&document.digest)?, bytes)?;
    }
    layout.replace("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    layout.replace("index.json", &index(manifest)?)?;

    let mut tries = 0;
    loop {
        let mut lacking = daemon.lacking(layout.path())?;
        let mut absent = Vec::new();
        for digest in lacking.drain(..) {
            if blobs.stat(hex_of(&digest)?)?.is_none() {
                absent.push(digest);
            }
        }
        if absent.is_empty() {
            let source = format!("oci:{}", layout.path().display());
            match daemon.import(&source, &name_of(&hex)) {
                Ok(()) => break,
                // A prune took what was here a moment ago; or a blob is not what its name says.
                Err(error) => {
                    tries += 1;
                    let again = error.kind == ErrorKind::NotFound && tries < TRIES;
                    if !again {
                        staging.remove(&hex)?;
                        return Err(error);
                    }
                    continue;
                }
            }
        }
        wire::write_line(to, &Reply::Lacking { blobs: absent.clone() })?;
        to.flush().map_err(broken)?;
        for digest in &absent {
            receive(&blobs, digest, from)?;
        }
    }
    staging.remove(&hex)
}

/// Takes a blob. Whether it is what its name says, the daemon finds out.
fn receive(blobs: &Dir, wanted: &str, from: &mut impl BufRead) -> Result<()> {
    let message: Message = wire::read_line(from)?;
    let Order::Blob { digest, size } = message.order else {
        return Err(garbled("another order than a blob"));
    };
    if digest != wanted {
        return Err(garbled("another blob than the one asked for"));
    }
    let name = hex_of(wanted)?;
    blobs.publish(name, |file| {
        let copied = std::io::copy(&mut from.take(size), file);
        let copied = copied.map_err(|e| blobs.failed("write", name, e))?;
        if copied == size { Ok(()) } else { Err(broken("a blob is cut")) }
    })
}

fn index(manifest: &Document) -> Result<Vec<u8>> {
    let text = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": manifest.media_type, "digest": manifest.digest, "size": manifest.size,
        }],
    });
    serde_json::to_vec(&text).map_err(garbled)
}

/// The directory of that image, ours alone.
fn locked(staging: &Dir, hex: &str) -> Result<Dir> {
    loop {
        let dir = staging.make(hex, 0o700)?;
        dir.lock()?;
        // Who had it before removed it in the end.
        if dir.is_at(staging, hex)? {
            return Ok(dir);
        }
    }
}

/// Removes what broke off long ago, and nobody works on.
fn sweep(staging: &Dir, but: &str) -> Result<()> {
    for name in staging.names()?.into_iter().filter(|name| name != but) {
        let Some(stat) = staging.stat(&name)? else { continue };
        let changed = UNIX_EPOCH + Duration::from_secs(u64::try_from(stat.st_mtime).unwrap_or(0));
        let age = SystemTime::now().duration_since(changed).unwrap_or_default();
        let Some(dir) = staging.sub(&name).ok().flatten().filter(|_| age > KEPT) else { continue };
        if rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok() {
            staging.remove(&name)?;
        }
    }
    Ok(())
}

/// An image that is not in a datastore any more.
pub(crate) fn gone(what: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("{what} is not in its image datastore"))
}
