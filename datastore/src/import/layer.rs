//! One layer of an image: its blob from the source, its files unpacked, or proven where they are here.

use std::fs::File;
use std::io::Read;

use super::{Import, Progress, Tell, here};
use crate::blobs::{Blobs, Opened};
use crate::compress::Compression;
use crate::digest::{DiffId, Digest};
use crate::disk;
use crate::document::{self, Descriptor};
use crate::error::{Error, Result};
use crate::files::Files;
use crate::ingest::{self, Budget, Promise};
use crate::packed;
use crate::proof::Terms;
use crate::record::{ImageRecord, LayerRef};
use crate::staging::Staged;
use crate::store::Store;
use crate::tarball::Trailer;
use crate::work::{Candidate, SaidBy, Work};

/// A layer to be brought in.
pub(super) struct Wanted<'a> {
    /// Counted from 1.
    pub number: usize,
    /// For messages.
    pub object: String,
    pub promise: Promise,
    pub diff_id: DiffId,
    pub from: From<'a>,
}

/// Where a layer's bytes are.
#[derive(Clone, Copy)]
pub(super) enum From<'a> {
    Member(&'a Files, &'a str),
    Blob(&'a dyn Blobs, &'a Descriptor),
}

impl<'a> From<'a> {
    fn open(self) -> Result<Opened<'a>> {
        match self {
            Self::Member(files, name) => files.open(name),
            Self::Blob(blobs, descriptor) => blobs.open_blob(descriptor),
        }
    }

    /// The blob, if the source does not have it because an import that broke off left it in the store
    /// ([`super::lacking`]).
    fn left_in(self, store: &Store) -> Result<Option<Opened<'a>>> {
        let Self::Blob(_, descriptor) = self else { return Ok(None) };
        if !here::blob(store, &descriptor.digest, descriptor.size)? {
            return Ok(None);
        }
        let hex = descriptor.digest.hex();
        let left = disk::open_file(&store.blobs, &hex);
        let left = left.map_err(|e| store.io("open", &format!("blobs/sha256/{hex}"), e))?;
        Ok(left.map(|file| (Box::new(file) as Box<dyn Read>, descriptor.size)))
    }

    /// Whether the blob comes to lie in the store without our copying it.
    fn keeps(self) -> bool {
        matches!(self, Self::Blob(blobs, _) if blobs.keeps())
    }

    fn fetched(self) -> Option<(u64, u64)> {
        match self {
            Self::Blob(blobs, _) => blobs.fetched(),
            Self::Member(..) => None,
        }
    }

    /// Puts the blob, found right, under a name.
    fn settle(self, to: &File, name: &str) -> Result<()> {
        match self {
            Self::Blob(blobs, descriptor) if blobs.keeps() => blobs.settle(descriptor, to, name),
            Self::Blob(..) | Self::Member(..) => Ok(()),
        }
    }

    /// Tells that the blob has its place.
    fn published(self) -> Result<()> {
        match self {
            Self::Blob(blobs, descriptor) => blobs.published(descriptor),
            Self::Member(..) => Ok(()),
        }
    }

    /// Says what to tell of a layer that failed; none if another attempt may succeed.
    fn failed(self, error: Error) -> Result<Option<Error>> {
        match self {
            Self::Member(..) => Ok(Some(error)),
            Self::Blob(blobs, descriptor) => blobs.failed(descriptor, error),
        }
    }
}

/// A layer that is in its place.
pub(super) struct Brought {
    pub diff_id: DiffId,
    pub blob: Digest,
    pub size: u64,
    pub compression: Compression,
}

impl Brought {
    pub fn layer_ref(&self, media_type: &str) -> LayerRef {
        LayerRef {
            diff_id: self.diff_id,
            blob: self.blob,
            media_type: media_type.to_owned(),
            size: self.size,
        }
    }

    /// Under the type that it has in an OCI manifest.
    pub fn typed(&self) -> LayerRef {
        self.layer_ref(document::layer_media_type(self.compression))
    }
}

impl Import<'_> {
    /// Brings one layer in: its blob, and its files unless they are here. `known` are images that are whole.
    pub(super) fn layer(
        &self,
        wanted: &Wanted<'_>,
        known: &[ImageRecord],
        budget: &mut Budget<'_>,
        tell: Tell<'_>,
    ) -> Result<Brought> {
        loop {
            match self.attempt(wanted, known, budget, tell) {
                Ok(read) => return Ok(read),
                // Nothing is wrong with what came so far.
                Err(_) if self.store.cancel.is_cancelled() => return Err(Error::Cancelled),
                Err(error) => match wanted.from.failed(error)? {
                    Some(error) => return Err(error),
                    None => continue,
                },
            }
        }
    }

    fn attempt(
        &self,
        wanted: &Wanted<'_>,
        known: &[ImageRecord],
        budget: &mut Budget<'_>,
        tell: Tell<'_>,
    ) -> Result<Brought> {
        let Wanted { number: layer, object, promise, diff_id, .. } = wanted;
        // One importer per layer; the others wait here, then find it done.
        let name = format!("layer-{}", diff_id.hex());
        let claimed = Staged::claim(&self.store.staging, name, &self.store.cancel)
            .map_err(|e| self.store.io("make a directory in", "staging", e))?;
        let work = Work::new(self.store, &claimed)?;
        let terms = self.terms(budget, promise.compression);
        let (mut from, total) = match wanted.from.open() {
            Err(absent @ Error::Source { .. }) => wanted.from.left_in(self.store)?.ok_or(absent)?,
            other => other?,
        };
        let copy = (!wanted.from.keeps()).then_some(&work.blob);
        let mut progress = |done| {
            tell(Progress::Layer { layer: *layer, done, total });
            if let Some((done, total)) = wanted.from.fetched() {
                tell(Progress::Fetched { done, total });
            }
        };
        let (size, blob, unpacked) = if self.store.layer_is_ready(diff_id)? {
            // Unpacking it once more is the last resort, or no affair of this store's.
            let kept = ingest::keep(&mut from, copy, promise, &self.store.cancel, &mut progress)
                .map_err(|fault| fault.about(object))?;
            (kept.size, kept.digest, None)
        } else {
            let into = (&work.fs, Trailer::Optional);
            let read = ingest::ingest(&mut from, copy, promise, into, budget, &mut progress)
                .map_err(|(fault, at)| fault.about_entry(object, at))?;
            (read.size, read.digest, Some(read.report))
        };
        wanted.from.settle(&claimed.dir, "blob")?;
        let compression = work.compression().map_err(|fault| fault.about(object))?;
        if self.store.is_packed() {
            packed::check_plain(compression, &blob, diff_id)
                .map_err(|why| Error::Refused { object: object.clone(), why })?;
        }
        let said_by = SaidBy::Config;
        let settled = work.place(&Candidate {
            object,
            blob,
            diff_id: *diff_id,
            said_by,
            unpacked,
            known,
            terms,
        })?;
        wanted.from.published()?;
        budget.bytes -= settled.bytes;
        budget.entries -= settled.headers;
        tell(Progress::of(*layer, *diff_id, settled.placed));
        Ok(Brought { diff_id: *diff_id, blob, size, compression })
    }

    pub(super) fn terms<'a>(
        &'a self,
        budget: &Budget<'a>,
        compression: Option<Compression>,
    ) -> Terms<'a> {
        Terms {
            unpacker: &self.store.unpacker,
            cancel: self.store.cancel.clone(),
            limits: budget.limits,
            bytes: budget.bytes,
            entries: budget.entries,
            compression,
        }
    }
}
