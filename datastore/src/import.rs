//! Importing: from a source to a name in the store.
//!
//! The order is what makes a crash harmless. Each layer: unpacked in staging, synced, renamed into place. Then the
//! documents, then the image record, last the name. Before the record nothing refers to the new blobs and layers;
//! a prune takes them if the import never comes back.
//!
//! A blob that is not yet known to be a given layer is always read from the source and hashed, even where a
//! layer of the claimed diff id is here: to name a digest is not to own the bytes.

use std::fs::File;
use std::io::Read;

use crate::config::ImageConfig;
use crate::digest::{DiffId, Digest};
use crate::disk;
use crate::document::{self, Class, Descriptor, Manifest, OCI_CONFIG};
use crate::error::{DocumentFault, Error, Limit, Refusal, Result, escape};
use crate::files::Files;
use crate::ingest::{self, Budget, Ingested, Promise, Sink};
use crate::limits::Limits;
use crate::name::ImageName;
use crate::record::{self, ImageRecord, LayerRef, Record, RefRecord};
use crate::source::{Source, open_regular};
use crate::staging::Staged;
use crate::store::{Image, Store};
use crate::tarball::Trailer;
use crate::unpack::Report;
use crate::work::{Unpacked, Work};

/// What an import is doing; for people, not for decisions.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// The manifest is known.
    Started {
        /// Number of layers.
        layers: usize,
    },
    /// Part of a layer was read.
    Layer {
        /// Counted from 1, lowest first.
        layer: usize,
        /// Bytes of the blob read.
        done: u64,
        /// Bytes of the blob.
        total: u64,
    },
    /// The layer was here already.
    LayerPresent {
        /// Counted from 1, lowest first.
        layer: usize,
    },
    /// The layer was unpacked and is in place.
    LayerDone {
        /// Counted from 1, lowest first.
        layer: usize,
        /// What unpacking left out.
        report: Report,
    },
    /// The image is in the store under its name.
    Done,
}

type Tell<'a> = &'a mut dyn FnMut(Progress);

pub(crate) fn run(
    store: &Store,
    source: &Source,
    name: &ImageName,
    limits: &Limits,
    tell: Tell<'_>,
) -> Result<Image> {
    let staged = Staged::create(&store.staging, "import")
        .map_err(|e| store.io("make a directory in", "staging", e))?;
    let import = Import { store, limits, staged, known: store.readable_records()? };
    let record = match source {
        Source::OciLayout { dir, tag } => import.oci(&Files::layout(dir)?, tag.as_deref(), tell)?,
        Source::OciArchive { file, tag } => {
            import.oci(&Files::archive(file, &import.staged, limits)?, tag.as_deref(), tell)?
        }
        Source::DockerArchive { file, tag } => {
            import.docker(&Files::archive(file, &import.staged, limits)?, tag.as_deref(), tell)?
        }
        Source::RootfsTar { file } => {
            import.rootfs(&open_regular(file)?, &file.display().to_string(), tell)?
        }
    };
    let image = store.assemble(&record)?;
    import.point(name, &record.manifest)?;
    tell(Progress::Done);
    Ok(image)
}

struct Import<'a> {
    store: &'a Store,
    limits: &'a Limits,
    staged: Staged,
    /// Images that were whole when we started; our lock keeps them so.
    known: Vec<ImageRecord>,
}

/// A layer to be brought in.
struct Wanted<'a> {
    /// Counted from 1.
    number: usize,
    /// For messages.
    object: String,
    promise: Promise,
    diff_id: DiffId,
    from: &'a dyn Fn() -> Result<(Box<dyn Read + 'a>, u64)>,
}

impl Import<'_> {
    fn oci(&self, files: &Files, tag: Option<&str>, tell: Tell<'_>) -> Result<ImageRecord> {
        self.check_layout(files)?;
        let top = self.choose(files, tag)?;
        if let Some(record) = self.present(&top.digest)? {
            return Ok(record);
        }
        let manifest_bytes = files.described(&top, self.limits)?;
        let about = |why| Error::document(format!("manifest {}", top.digest), why);
        let manifest =
            Manifest::parse(&manifest_bytes, &top.media_type, self.limits).map_err(about)?;
        let config_bytes = files.described(&manifest.config, self.limits)?;
        let config = manifest.config.digest;
        let diff_ids = self.check_config(&config_bytes, &config, manifest.layers.len())?;

        tell(Progress::Started { layers: diff_ids.len() });
        let mut budget = Budget::new(self.limits);
        let mut layers = Vec::new();
        for (n, (layer, diff_id)) in manifest.layers.iter().zip(diff_ids).enumerate() {
            let number = n + 1;
            if let Some(known) = self.known_layer(&layer.digest, &diff_id)? {
                tell(Progress::LayerPresent { layer: number });
                layers.push(LayerRef { media_type: layer.media_type.clone(), ..known });
                continue;
            }
            let compression = document::layer_compression(&layer.media_type).map_err(about)?;
            let wanted = Wanted {
                number,
                object: format!("layer {}", layer.digest),
                promise: Promise {
                    size: Some(layer.size),
                    digest: Some(layer.digest),
                    diff_id: Some(diff_id),
                    compression: Some(compression),
                },
                diff_id,
                from: &|| files.open_blob(&layer.digest),
            };
            let read = self.layer(&wanted, &mut budget, tell)?;
            layers.push(layer_ref(&read, &layer.media_type));
        }
        self.commit(&manifest_bytes, &config_bytes, layers)
    }

    fn check_layout(&self, files: &Files) -> Result<()> {
        #[derive(serde::Deserialize)]
        struct Layout {
            #[serde(rename = "imageLayoutVersion")]
            version: String,
        }
        let bytes = files.document("oci-layout", self.limits)?;
        let about = |why| Error::document(format!("{} file oci-layout", files.shown()), why);
        let layout: Layout = document::parse(&bytes).map_err(about)?;
        if layout.version == "1.0.0" {
            Ok(())
        } else {
            let text =
                format!("imageLayoutVersion {} is not 1.0.0", escape(layout.version.as_bytes()));
            Err(about(DocumentFault::Json(text)))
        }
    }

    /// Follows indexes down to one manifest.
    fn choose(&self, files: &Files, tag: Option<&str>) -> Result<Descriptor> {
        let host = document::host_platform();
        let mut bytes = files.document("index.json", self.limits)?;
        let mut object = format!("{} file index.json", files.shown());
        let mut media_type: Option<String> = None;
        for depth in 0..=self.limits.index_nesting {
            let about = |why| Error::document(object.clone(), why);
            let entries =
                document::parse_index(&bytes, media_type.as_deref(), self.limits).map_err(about)?;
            // Only the outermost index has tags.
            let tag = tag.filter(|_| depth == 0);
            let next = document::choose(entries, tag, &host).map_err(about)?;
            match Class::of(&next.media_type).map_err(about)? {
                Class::Manifest => return Ok(next),
                Class::Index => {
                    bytes = files.described(&next, self.limits)?;
                    object = format!("index {}", next.digest);
                    media_type = Some(next.media_type);
                }
            }
        }
        let why = DocumentFault::limit(Limit::IndexNesting, self.limits.index_nesting);
        Err(Error::document(object, why))
    }

    fn check_config(&self, bytes: &[u8], digest: &Digest, layers: usize) -> Result<Vec<DiffId>> {
        let about = |why| Error::document(format!("config {digest}"), why);
        let (config, diff_ids) = ImageConfig::parse(bytes, self.limits).map_err(about)?;
        let (platform, host) = (config.platform(), document::host_platform());
        if platform != host {
            return Err(Error::Platform {
                image: digest.to_string(),
                image_platform: platform.to_string(),
                host: host.to_string(),
            });
        }
        if diff_ids.len() != layers {
            return Err(about(DocumentFault::LayerCount {
                manifest: layers,
                config: diff_ids.len(),
            }));
        }
        Ok(diff_ids)
    }

    fn docker(&self, files: &Files, tag: Option<&str>, tell: Tell<'_>) -> Result<ImageRecord> {
        let bytes = files.document("manifest.json", self.limits)?;
        let saved = document::choose_saved(&bytes, tag, self.limits)
            .map_err(|why| Error::document(format!("{} file manifest.json", files.shown()), why))?;
        let config_bytes = files.document(&saved.config, self.limits)?;
        let got = Digest::of(&config_bytes);
        // The file is named by its digest: `HEX.json`, or `blobs/sha256/HEX`.
        let named = saved
            .config
            .rsplit('/')
            .next()
            .and_then(|f| Digest::from_hex(f.trim_end_matches(".json")));
        if let Some(expected) = named.filter(|d| *d != got) {
            let why = Refusal::Digest { expected, got };
            return Err(Error::Refused { object: format!("config {expected}"), why });
        }
        let diff_ids = self.check_config(&config_bytes, &got, saved.layers.len())?;

        tell(Progress::Started { layers: diff_ids.len() });
        let mut budget = Budget::new(self.limits);
        let mut layers = Vec::new();
        for (n, (file, diff_id)) in saved.layers.iter().zip(diff_ids).enumerate() {
            let wanted = Wanted {
                number: n + 1,
                object: format!("layer {diff_id}"),
                promise: Promise { diff_id: Some(diff_id), ..Promise::default() },
                diff_id,
                from: &|| files.open(file),
            };
            let read = self.layer(&wanted, &mut budget, tell)?;
            layers.push(layer_ref(&read, document::layer_media_type(read.compression)));
        }
        let manifest = self.manifest_for(&config_bytes, &layers)?;
        self.commit(&manifest, &config_bytes, layers)
    }

    fn rootfs(&self, file: &File, shown: &str, tell: Tell<'_>) -> Result<ImageRecord> {
        tell(Progress::Started { layers: 1 });
        let total = file.metadata().map_err(|e| Error::io("inspect", shown, e))?.len();
        let mut budget = Budget::new(self.limits);
        let work = Work::new(self.store, &self.staged)?;
        let sink = Sink::Unpack(&work.fs, Trailer::Required);
        let mut input = file;
        let read = ingest::ingest(
            &mut input,
            Some(&work.blob),
            &Promise::default(),
            &sink,
            &mut budget,
            &mut |done| {
                tell(Progress::Layer { layer: 1, done, total });
            },
        )
        .map_err(|(fault, at)| {
            fault.about(at.map_or(shown.to_owned(), |at| format!("{shown} entry \"{at}\"")))
        })?;
        work.publish(&read, Unpacked::Yes)?;
        tell(Progress::LayerDone { layer: 1, report: read.report.clone() });

        let about = |why| Error::document("synthesized config", why);
        let config = ImageConfig::synthesize(read.diff_id).map_err(about)?;
        let layers = vec![layer_ref(&read, document::layer_media_type(read.compression))];
        let manifest = self.manifest_for(&config, &layers)?;
        self.commit(&manifest, &config, layers)
    }

    /// Brings one layer in: its blob, and its files unless they are here.
    fn layer(
        &self,
        wanted: &Wanted<'_>,
        budget: &mut Budget<'_>,
        tell: Tell<'_>,
    ) -> Result<Ingested> {
        let layer = wanted.number;
        // One importer per layer; the others wait here, then find it done.
        let name = format!("layer-{}", wanted.diff_id.hex());
        let claimed = Staged::claim(&self.store.staging, name)
            .map_err(|e| self.store.io("make a directory in", "staging", e))?;
        let work = Work::new(self.store, &claimed)?;
        let unpacked =
            if self.store.has_layer(&wanted.diff_id)? { Unpacked::Before } else { Unpacked::Yes };
        let sink = match unpacked {
            Unpacked::Yes => Sink::Unpack(&work.fs, Trailer::Optional),
            Unpacked::Before => Sink::Verify,
        };
        let (mut from, total) = (wanted.from)()?;
        let read = ingest::ingest(
            &mut from,
            Some(&work.blob),
            &wanted.promise,
            &sink,
            budget,
            &mut |done| tell(Progress::Layer { layer, done, total }),
        )
        .map_err(|(fault, at)| {
            let object = &wanted.object;
            fault.about(at.map_or(object.clone(), |at| format!("{object} entry \"{at}\"")))
        })?;
        work.publish(&read, unpacked)?;
        tell(match unpacked {
            Unpacked::Yes => Progress::LayerDone { layer, report: read.report.clone() },
            Unpacked::Before => Progress::LayerPresent { layer },
        });
        Ok(read)
    }

    /// A layer that a whole image has, made from the same blob.
    fn known_layer(&self, blob: &Digest, diff_id: &DiffId) -> Result<Option<LayerRef>> {
        let same = |l: &&LayerRef| l.blob == *blob && l.diff_id == *diff_id;
        let Some(known) = self.known.iter().flat_map(|r| &r.layers).find(same) else {
            return Ok(None);
        };
        let whole = self.has_blob(blob, known.size)? && self.store.has_layer(diff_id)?;
        Ok(whole.then(|| known.clone()))
    }

    /// The image of that manifest, if nothing of it is missing.
    fn present(&self, manifest: &Digest) -> Result<Option<ImageRecord>> {
        let Some(record) = self.known.iter().find(|r| r.manifest == *manifest) else {
            return Ok(None);
        };
        for (digest, size) in record.blobs() {
            if !self.has_blob(&digest, size)? {
                return Ok(None);
            }
        }
        match self.store.assemble(record) {
            Ok(_) => Ok(Some(record.clone())),
            // A damaged image is what an import is to repair.
            Err(Error::Damaged { .. } | Error::Document { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn has_blob(&self, digest: &Digest, size: u64) -> Result<bool> {
        let hex = digest.hex();
        let found = disk::file_size(&self.store.blobs, &hex)
            .map_err(|e| self.store.io("inspect", &format!("blobs/sha256/{hex}"), e))?;
        Ok(found == Some(size))
    }

    fn manifest_for(&self, config: &[u8], layers: &[LayerRef]) -> Result<Vec<u8>> {
        let descriptor = |media_type: &str, digest, size| Descriptor {
            media_type: media_type.to_owned(),
            digest,
            size,
            platform: None,
            annotations: None,
        };
        let own = descriptor(OCI_CONFIG, Digest::of(config), config.len() as u64);
        let layers = layers.iter().map(|l| descriptor(&l.media_type, l.blob, l.size)).collect();
        Manifest::synthesize(own, layers)
            .map_err(|why| Error::document("synthesized manifest", why))
    }

    /// Makes the image visible under its digest.
    fn commit(&self, manifest: &[u8], config: &[u8], layers: Vec<LayerRef>) -> Result<ImageRecord> {
        let manifest_digest = self.put_blob(manifest)?;
        let config_digest = self.put_blob(config)?;
        let record = ImageRecord::new(
            (manifest_digest, manifest.len() as u64),
            (config_digest, config.len() as u64),
            layers,
        );
        self.put(&record, &self.store.images, "images", &record::image_file(&manifest_digest))?;
        Ok(record)
    }

    fn point(&self, name: &ImageName, manifest: &Digest) -> Result<()> {
        let record = RefRecord::new(name.clone(), *manifest);
        self.put(&record, &self.store.refs, "refs", &name.file_name().0)
    }

    fn put_blob(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        let hex = digest.hex();
        let write = || {
            disk::write_new(&self.staged.dir, &hex, bytes)?;
            disk::publish(&self.staged.dir, &hex, &self.store.blobs, &hex)
        };
        write().map_err(|e| self.store.io("write", &format!("blobs/sha256/{hex}"), e))?;
        Ok(digest)
    }

    fn put(&self, record: &impl Record, to: &File, folder: &str, file: &str) -> Result<()> {
        let write = || {
            disk::write_new(&self.staged.dir, "record", &record.encode()?)?;
            disk::publish(&self.staged.dir, "record", to, file)
        };
        write().map_err(|e| self.store.io("write", &format!("{folder}/{file}"), e))
    }
}

fn layer_ref(read: &Ingested, media_type: &str) -> LayerRef {
    LayerRef {
        diff_id: read.diff_id,
        blob: read.digest,
        media_type: media_type.to_owned(),
        size: read.size,
    }
}
