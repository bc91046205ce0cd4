//! From a root file system as a tar to an image of one layer.
//!
//! One from a web server is first fetched whole, without the store's lock: nobody knows what layer it will be, so there is
//! nothing that prunes could be told to leave. Its digest is proven by the same pass that unpacks it.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use super::layer::Brought;
use super::{Held, Import, Progress, Tell, here};
use crate::blobs::Opened;
use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::document;
use crate::error::{Error, Fault, Result};
use crate::ingest::{self, Budget, Ingested, Promise};
use crate::packed;
use crate::proof::Terms;
use crate::record::{ImageRecord, LayerRef};
use crate::registry::{HttpsFile, Part};
use crate::source::{HttpsSource, open_regular};
use crate::staging::Staged;
use crate::tarball::Trailer;
use crate::work::{Candidate, SaidBy, Work};

impl Import<'_> {
    /// A file of the host.
    pub(super) fn rootfs(&self, file: &Path, held: &Held, tell: Tell<'_>) -> Result<ImageRecord> {
        let shown = file.display().to_string();
        let file = open_regular(file)?;
        tell(Progress::Started { layers: 1 });
        let total = file.metadata().map_err(|e| Error::io("inspect", &*shown, e))?.len();
        self.whole(&shown, (Box::new(&file), total), &Promise::default(), None, held, tell)
    }

    /// A file of a web server.
    pub(super) fn https(
        &self,
        source: &HttpsSource,
        tell: Tell<'_>,
    ) -> Result<(ImageRecord, Held)> {
        let shown = source.url.to_string();
        let digest = source.digest.ok_or_else(|| Error::Source {
            from: shown.clone(),
            why: "state the digest that the file must have, as sha256:HEX".into(),
        })?;
        let held = self.hold()?;
        // What a packed store has of diff ids is what images say, and one that lies would be believed here.
        if !self.store.is_packed()
            && let Some(layer) = self.known_blob(&held, &digest)?
        {
            tell(Progress::Started { layers: 1 });
            tell(Progress::LayerPresent { layer: 1 });
            return Ok((self.of_layer(layer)?, held));
        }
        drop(held);
        let file = HttpsFile::open(self.store, source, digest, self.limits)?;
        loop {
            let part = file.fetch(&mut |done, total| tell(Progress::Fetched { done, total }))?;
            let held = self.hold()?;
            tell(Progress::Started { layers: 1 });
            let promise = Promise { digest: Some(digest), ..Promise::default() };
            let from: Opened<'_> = (Box::new(part.reader()), part.length());
            match self.whole(&shown, from, &promise, Some((&file, &part)), &held, tell) {
                Ok(record) => return Ok((record, held)),
                Err(_) if self.store.cancel.is_cancelled() => return Err(Error::Cancelled),
                Err(error) => {
                    if let Some(error) = file.failed(&part, error)? {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Unpacks a tar. Its bytes are copied, unless they are a `part` in the store's file system already.
    fn whole(
        &self,
        shown: &str,
        (mut from, total): Opened<'_>,
        promise: &Promise,
        part: Option<(&HttpsFile, &Arc<Part>)>,
        held: &Held,
        tell: Tell<'_>,
    ) -> Result<ImageRecord> {
        let staged = Staged::create(&self.store.staging, "rootfs")
            .map_err(|e| self.store.io("make a directory in", "staging", e))?;
        let work = Work::new(self.store, &staged)?;
        let mut budget =
            Budget::new(self.limits).unpacked_by(&self.store.unpacker).until(&self.store.cancel);
        let terms = self.terms(&budget, None);
        let copy = part.is_none().then_some(&work.blob);
        let settle = || match part {
            Some((file, part)) => file.settle(part, &staged.dir, "blob"),
            None => Ok(()),
        };
        let progress = &mut |done| tell(Progress::Layer { layer: 1, done, total });
        let about = |(fault, at): (Fault, _)| fault.about_entry(shown, at);
        let read = if self.store.is_packed() {
            let kept = ingest::keep(&mut from, copy, promise, &self.store.cancel, progress)
                .map_err(|fault| fault.about(shown))?;
            settle()?;
            packed::measure(&work, &kept, promise, &terms, &mut budget).map_err(about)?
        } else {
            let from = &mut from as &mut dyn Read;
            let into = (&work.fs, Trailer::Required);
            let read = ingest::ingest(from, copy, promise, into, &mut budget, progress);
            let read = read.map_err(about)?;
            settle()?;
            read
        };
        let layer = self.unpromised(shown, &work, read, terms, held, tell)?;
        if let Some((file, part)) = part {
            file.published(part)?;
        }
        self.of_layer(layer)
    }

    /// Places the layer of a blob that nobody promised to be one: a worker alone says which it is.
    pub(super) fn unpromised(
        &self,
        object: &str,
        work: &Work<'_>,
        read: Ingested,
        terms: Terms<'_>,
        held: &Held,
        tell: Tell<'_>,
    ) -> Result<LayerRef> {
        let Ingested { size, digest: blob, diff_id, compression, report } = read;
        let settled = work.place(&Candidate {
            object,
            blob,
            diff_id,
            said_by: SaidBy::Worker,
            unpacked: Some(report),
            known: &held.known,
            terms,
        })?;
        tell(Progress::of(1, diff_id, settled.placed));
        Ok(Brought { diff_id, blob, size, compression }.typed())
    }

    /// The image that has nothing but this layer.
    fn of_layer(&self, layer: LayerRef) -> Result<ImageRecord> {
        let about = |why| Error::document("synthesized config", why);
        let config = ImageConfig::synthesize(layer.diff_id).map_err(about)?;
        let layers = vec![layer];
        let manifest = self.manifest_for(&config, &layers)?;
        self.commit(&manifest, &config, layers)
    }

    /// A layer that a whole image has from that blob, under the media type it gets here.
    fn known_blob(&self, held: &Held, blob: &Digest) -> Result<Option<LayerRef>> {
        let Some(known) = held.known.iter().flat_map(|r| &r.layers).find(|l| l.blob == *blob)
        else {
            return Ok(None);
        };
        // What has no other name keeps the one it has.
        let media_type = document::layer_compression(&known.media_type)
            .map_or(known.media_type.clone(), |c| document::layer_media_type(c).to_owned());
        let whole = here::layer(self.store, &held.known, blob, &known.diff_id)?;
        Ok(whole.map(|layer| LayerRef { media_type, ..layer }))
    }
}
