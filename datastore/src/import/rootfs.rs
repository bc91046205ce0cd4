//! From a root file system as a tar to an image of one layer.
//!
//! One from a web server is first fetched whole, without the store's lock: nobody knows what layer it will be, so there is
//! nothing that prunes could be told to leave. Its digest is proven by the same pass that unpacks it.

use std::io::Read;
use std::path::Path;

use super::{Held, Import, Progress, Tell, layer_ref};
use crate::blobs::Opened;
use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::document;
use crate::error::{Error, Result};
use crate::ingest::{self, Budget, Promise, Sink};
use crate::record::{ImageRecord, LayerRef};
use crate::registry::HttpsFile;
use crate::source::{HttpsSource, open_regular};
use crate::staging::Staged;
use crate::tarball::Trailer;
use crate::work::{Unpacked, Work};

type Settle<'a> = &'a dyn Fn(&Staged) -> Result<()>;

impl Import<'_> {
    /// A file of the host.
    pub(super) fn rootfs(&self, file: &Path, tell: Tell<'_>) -> Result<ImageRecord> {
        let shown = file.display().to_string();
        let file = open_regular(file)?;
        tell(Progress::Started { layers: 1 });
        let total = file.metadata().map_err(|e| Error::io("inspect", &*shown, e))?.len();
        self.whole(&shown, (Box::new(&file), total), &Promise::default(), None, tell)
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
        if let Some(layer) = self.known_blob(&held, &digest)? {
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
            let settle = |to: &Staged| file.settle(&part, &to.dir, "blob");
            match self.whole(&shown, from, &promise, Some(&settle), tell) {
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

    /// Unpacks a tar. `settle` puts its bytes into staging where they lie in the store's file system already; else
    /// they are copied.
    fn whole(
        &self,
        shown: &str,
        (mut from, total): Opened<'_>,
        promise: &Promise,
        settle: Option<Settle<'_>>,
        tell: Tell<'_>,
    ) -> Result<ImageRecord> {
        let staged = Staged::create(&self.store.staging, "rootfs")
            .map_err(|e| self.store.io("make a directory in", "staging", e))?;
        let work = Work::new(self.store, &staged)?;
        let mut budget =
            Budget::new(self.limits).unpacked_by(&self.store.unpacker).until(&self.store.cancel);
        let read = ingest::ingest(
            &mut from as &mut dyn Read,
            settle.is_none().then_some(&work.blob),
            promise,
            &Sink::Unpack(&work.fs, Trailer::Required),
            &mut budget,
            &mut |done| tell(Progress::Layer { layer: 1, done, total }),
        )
        .map_err(|(fault, at)| {
            fault.about(at.map_or(shown.to_owned(), |at| format!("{shown} entry \"{at}\"")))
        })?;
        if let Some(settle) = settle {
            settle(&staged)?;
        }
        work.publish(&read, Unpacked::Yes)?;
        tell(Progress::LayerDone { layer: 1, report: read.report.clone() });
        self.of_layer(layer_ref(&read, document::layer_media_type(read.compression)))
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
        let whole = self.known_layer(held, blob, &known.diff_id)?;
        Ok(whole.map(|layer| LayerRef { media_type, ..layer }))
    }
}
