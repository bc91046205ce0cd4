//! Packed stores: images kept as they came, where no guest runs.
//!
//! A cloud's front-end hands images on to hosts. It reads no file of a layer, and it is nobody privileged: it could not
//! give files the owners that layers say. So a packed store has blobs, images and names like any other, and its
//! `layers` stays empty. `format.json` says so by a feature that others must refuse: a program that expects layers
//! would take each for lost, and one that packs would leave them where nobody looks.
//!
//! What is proven here are the digests of blobs, of all that came. That a blob unpacks to the diff id that its image's
//! config says is proven where it is unpacked, by each host for itself; here it is proven where it costs nothing, for
//! layers that are not compressed, and where nobody else could say what the diff id is: for a root file system or a
//! disk that becomes a layer. So decoders meet no bytes of registries and archives here, but those of an
//! archive that is compressed as a whole.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::compress::Compression;
use crate::content::Fallible;
use crate::digest::{DiffId, Digest};
use crate::disk;
use crate::document::{self, OCI_MANIFEST};
use crate::error::{Error, Fault, Refusal, Result};
use crate::expand::Bounded;
use crate::ingest::{Budget, Ingested, Kept, Promise};
use crate::limits::Limits;
use crate::name::Reference;
use crate::proof;
use crate::store::{Store, not_found};
use crate::tarball::Trailer;
use crate::unpack::Report;
use crate::work::Work;
use crate::worker::Unpacker;

/// The feature in `format.json`, incompatible.
pub(crate) const FEATURE: &str = "packed";

/// What a store does with layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Unpacks them.
    #[default]
    Unpacked,
    /// Keeps their blobs.
    Packed,
}

/// Everything that makes up an image, for handing it on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    /// The image's identity.
    pub manifest_digest: Digest,
    /// The manifest as it came.
    pub manifest: Vec<u8>,
    /// Its media type.
    pub media_type: String,
    /// Of the config document.
    pub config_digest: Digest,
    /// The config as it came.
    pub config: Vec<u8>,
    /// Lowest first; a layer may occur twice.
    pub layers: Vec<LayerBlob>,
}

/// The blob of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerBlob {
    /// Digest of the blob.
    pub blob: Digest,
    /// Its bytes.
    pub size: u64,
    /// Media type of the blob, which tells how it is compressed.
    pub media_type: String,
    /// Digest of the tar in it, by the image's config.
    pub diff_id: DiffId,
}

impl Store {
    /// As [`Store::open`], for a store that keeps layers packed. The process need not be root, but always the same user.
    pub fn open_packed(root: &Path) -> Result<Self> {
        Self::open_kind(root, Kind::Packed)
    }

    /// Whether layers are kept as blobs only.
    #[must_use]
    pub fn is_packed(&self) -> bool {
        self.kind == Kind::Packed
    }

    /// Documents and layers of an image that is whole; the documents are proven by their digests. Of the layers
    /// themselves see [`Store::open_blob`].
    pub fn parts(&self, reference: &Reference) -> Result<Parts> {
        let image = self.resolve(reference)?;
        let record = self.record(&image.manifest_digest)?.ok_or_else(|| not_found(reference))?;
        let manifest = self.small_blob(&record.manifest, record.manifest_size)?;
        let layer = |l: &crate::record::LayerRef| LayerBlob {
            blob: l.blob,
            size: l.size,
            media_type: l.media_type.clone(),
            diff_id: l.diff_id,
        };
        Ok(Parts {
            manifest_digest: record.manifest,
            // An OCI manifest need not say what it is, any other must.
            media_type: document::media_type_inside(&manifest)
                .unwrap_or_else(|| OCI_MANIFEST.to_owned()),
            manifest,
            config_digest: record.config,
            config: self.small_blob(&record.config, record.config_size)?,
            layers: record.layers.iter().map(layer).collect(),
        })
    }

    /// Opens a blob to read. It had this digest when it came in; whoever needs to be sure reads and hashes it.
    pub fn open_blob(&self, blob: &Digest) -> Result<File> {
        let hex = blob.hex();
        disk::open_file(&self.blobs, &hex)
            .map_err(|e| self.io("open", &format!("blobs/sha256/{hex}"), e))?
            .ok_or_else(|| Error::damaged(format!("blob {blob}"), "is absent"))
    }

    /// The plain bytes of a file that is compressed with gzip, xz or zstd, as far as limits on bytes and ratio allow; none if
    /// it is not compressed.
    pub fn expanded(
        &self,
        file: File,
        shown: &str,
        limits: &Limits,
    ) -> Result<Option<Box<dyn Read>>> {
        expanded(file, shown, limits, &self.unpacker)
    }

    /// Whether there is of a layer what there should be beside its blob.
    pub(crate) fn layer_is_ready(&self, diff_id: &DiffId) -> Result<bool> {
        Ok(self.is_packed() || self.has_layer(diff_id)?)
    }

    /// For what needs a layer's files.
    pub(crate) fn check_unpacked(&self) -> Result<()> {
        if self.is_packed() { Err(wrong_kind(&self.root, Kind::Packed)) } else { Ok(()) }
    }
}

/// The same without a store, and where no process is confined: for who only wants to know how much it is.
pub fn expand(file: File, shown: &str, limits: &Limits) -> Result<Option<Box<dyn Read>>> {
    expanded(file, shown, limits, &Unpacker::InProcess)
}

fn expanded(
    file: File,
    shown: &str,
    limits: &Limits,
    unpacker: &Unpacker,
) -> Result<Option<Box<dyn Read>>> {
    if Compression::of(&file).map_err(|f| f.about(shown))? == Compression::None {
        return Ok(None);
    }
    let plain = Bounded::file(file, limits, unpacker).map_err(|f| f.about(shown))?;
    Ok(Some(Box::new(plain)))
}

/// The store there is of that kind, and another is needed.
pub(crate) fn wrong_kind(root: &Path, is: Kind) -> Error {
    let (is, wanted) = match is {
        Kind::Packed => ("keeps layers packed", "one that unpacks them"),
        Kind::Unpacked => ("keeps layers unpacked", "one that is packed"),
    };
    Error::OtherKind { root: root.into(), is, wanted }
}

/// A blob that is not compressed is the layer itself.
pub(crate) fn check_plain(
    compression: Compression,
    blob: &Digest,
    expected: &DiffId,
) -> std::result::Result<(), Refusal> {
    let got = DiffId(*blob);
    if compression == Compression::None && got != *expected {
        return Err(Refusal::DiffId { expected: *expected, got });
    }
    Ok(())
}

/// Finds out what layer a blob is that was kept and that nobody promised to be one.
pub(crate) fn measure(
    work: &Work<'_>,
    kept: &Kept,
    promise: &Promise,
    terms: &proof::Terms<'_>,
    budget: &mut Budget<'_>,
) -> Fallible<Ingested> {
    let alone = |fault: Fault| (fault, None);
    let blob = work.reopen().map_err(alone)?;
    let compression = work.compression().map_err(alone)?;
    let terms = proof::Terms { compression: promise.compression, ..terms.clone() };
    let read = proof::measure(blob, Trailer::Required, &terms).map_err(alone)?;
    if read.digest != kept.digest {
        let (expected, got) = (kept.digest, read.digest);
        return Err(alone(Refusal::Digest { expected, got }.into()));
    }
    budget.bytes -= read.bytes;
    budget.entries -= read.headers;
    let (size, digest, diff_id) = (kept.size, kept.digest, read.diff_id);
    Ok(Ingested { size, digest, diff_id, compression, report: Report::default() })
}
