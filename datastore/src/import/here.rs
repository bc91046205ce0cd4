//! What of an image is in the store already.
//!
//! An import asks before it reads; who has to bring an image here over a slow way asks before he sends. Both get the same
//! answer: a layer counts if an image that is whole has it from the same blob.

use rustix::fs::FlockOperation;

use super::{check_config, top_of};
use crate::blobs::Blobs;
use crate::digest::{DiffId, Digest};
use crate::disk;
use crate::document::Manifest;
use crate::error::{Error, Result};
use crate::files::Files;
use crate::limits::Limits;
use crate::record::{ImageRecord, LayerRef};
use crate::source::Source;
use crate::store::Store;

/// What an import of a layout would read of layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lacking {
    /// The image.
    pub manifest: Digest,
    /// Blobs of the layers that are not here, lowest first, each once.
    pub blobs: Vec<Digest>,
}

/// Says which layers' blobs an import of a layout would read. Its documents must be there, its layers need not.
///
/// Nothing is held: a prune may take a layer away before the import, which then misses the blob and says so.
pub(crate) fn lacking(store: &Store, source: &Source, limits: &Limits) -> Result<Lacking> {
    let Source::OciLayout { dir, tag } = source else {
        let why = "only of a directory in OCI image layout can it be said what is lacking".into();
        return Err(Error::Source { from: format!("{source:?}"), why });
    };
    let files = Files::layout(dir, &store.cancel)?;
    let top = top_of(&files, tag.as_deref(), limits)?;
    let _lock = store.lock(FlockOperation::LockShared)?;
    let known = store.readable_records()?;
    if image(store, &known, &top.digest)?.is_some() {
        return Ok(Lacking { manifest: top.digest, blobs: Vec::new() });
    }
    let bytes = files.described(&top, limits)?;
    let manifest = Manifest::parse(&bytes, &top.media_type, limits)
        .map_err(|why| Error::document(format!("manifest {}", top.digest), why))?;
    let config = files.described(&manifest.config, limits)?;
    let count = manifest.layers.len();
    let (_, diff_ids) = check_config(&config, &manifest.config.digest, count, limits)?;
    let mut blobs = Vec::new();
    for (wanted, diff_id) in manifest.layers.iter().zip(&diff_ids) {
        // A blob without an image is left of an import that broke off: it is read here.
        if layer(store, &known, &wanted.digest, diff_id)?.is_none()
            && !blob(store, &wanted.digest, wanted.size)?
            && !blobs.contains(&wanted.digest)
        {
            blobs.push(wanted.digest);
        }
    }
    Ok(Lacking { manifest: top.digest, blobs })
}

/// A layer that a whole image of `known` has, made from the same blob.
pub(super) fn layer(
    store: &Store,
    known: &[ImageRecord],
    blob: &Digest,
    diff_id: &DiffId,
) -> Result<Option<LayerRef>> {
    let same = |l: &&LayerRef| l.blob == *blob && l.diff_id == *diff_id;
    let Some(found) = known.iter().flat_map(|r| &r.layers).find(same) else {
        return Ok(None);
    };
    let whole = self::blob(store, blob, found.size)? && store.layer_is_ready(diff_id)?;
    Ok(whole.then(|| found.clone()))
}

/// The image of that manifest, if nothing of it is missing.
pub(super) fn image(
    store: &Store,
    known: &[ImageRecord],
    manifest: &Digest,
) -> Result<Option<ImageRecord>> {
    let Some(record) = known.iter().find(|r| r.manifest == *manifest) else {
        return Ok(None);
    };
    for (digest, size) in record.blobs() {
        if !blob(store, &digest, size)? {
            return Ok(None);
        }
    }
    match store.assemble(record) {
        Ok(_) => Ok(Some(record.clone())),
        // A damaged image is what an import is to repair.
        Err(Error::Damaged { .. } | Error::Document { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Whether a blob of that size is in the store.
pub(super) fn blob(store: &Store, digest: &Digest, size: u64) -> Result<bool> {
    let hex = digest.hex();
    let found = disk::file_size(&store.blobs, &hex)
        .map_err(|e| store.io("inspect", &format!("blobs/sha256/{hex}"), e))?;
    Ok(found == Some(size))
}
