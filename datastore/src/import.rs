//! Importing: from a source to a name in the store.
//!
//! The order is what makes a crash harmless. Each layer: unpacked in staging, synced, renamed into place. Then the
//! documents, then the image record, last the name. Before the record nothing refers to the new blobs and layers;
//! a prune takes them if the import never comes back.
//!
//! Prunes are held off by the store's lock, shared. While the network is waited for it is not held; then a list in
//! staging says what must stay. `docs/format.md` has the argument why that is enough.
//!
//! A blob that is not yet known to be a given layer is always read and hashed, even where a layer of the claimed diff id
//! is here: to name a digest is not to own the bytes. It is read from the source, or where that is far and an import that
//! did not come to its end left the blob, from the store. And what is here under the diff id is proven by the blob
//! before it is used (`work`).

mod docker;
mod here;
mod layer;
mod progress;
mod rootfs;
mod vmdisk;

use std::fs::File;
use std::rc::Rc;

pub use here::Lacking;
pub(crate) use here::lacking;
use layer::{From, Wanted};
pub use progress::Progress;
use rustix::fs::FlockOperation;

use crate::blobs::Blobs;
use crate::config::ImageConfig;
use crate::digest::{DiffId, Digest};
use crate::document::{self, Class, Descriptor, Manifest, OCI_CONFIG};
use crate::error::{DocumentFault, Error, Limit, Result, escape};
use crate::files::Files;
use crate::ingest::{Budget, Promise};
use crate::limits::Limits;
use crate::name::ImageName;
use crate::namer::By;
use crate::publish::Publisher;
use crate::record::{ImageRecord, LayerRef};
use crate::registry::Registry;
use crate::source::{HttpsSource, RegistrySource, Source};
use crate::staging::{Kept, Staged};
use crate::store::{Image, Store};

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
    let by = By::of(source, name);
    store.check_new_name(name, by)?;
    let import = Import { store, limits, staged, name, by };
    let (record, _held) = match source {
        Source::Registry(source) => {
            import.registry(source, &Registry::open(source, Some(store))?, tell)?
        }
        Source::HttpsTar(source) => import.https(source, tell)?,
        local => import.local(local, import.hold()?, tell)?,
    };
    let image = store.assemble(&record)?;
    import.point(&record.manifest)?;
    tell(Progress::Done);
    Ok(image)
}

struct Import<'a> {
    store: &'a Store,
    limits: &'a Limits,
    staged: Staged,
    /// What the image is to be called, and why.
    name: &'a ImageName,
    by: By,
}

/// The store's lock, shared: nothing is pruned. It is not held while the network is waited for; what the import then
/// needs of the store is kept for it ([`Staged::keep`]).
struct Held {
    _lock: File,
    /// Images that were whole when it was taken; the lock keeps them so.
    known: Rc<[ImageRecord]>,
}

impl Import<'_> {
    fn hold(&self) -> Result<Held> {
        let lock = self.store.lock(FlockOperation::LockShared)?;
        Ok(Held { _lock: lock, known: self.store.readable_records()?.into() })
    }

    fn local(&self, source: &Source, held: Held, tell: Tell<'_>) -> Result<(ImageRecord, Held)> {
        let record = match source {
            Source::OciLayout { dir, tag } => {
                return self.oci(
                    &Files::layout(dir, &self.store.cancel)?,
                    tag.as_deref(),
                    held,
                    tell,
                );
            }
            Source::OciArchive { file, tag } => {
                let files = Files::archive(file, &self.staged, self.limits, &self.store.unpacker)?;
                return self.oci(&files, tag.as_deref(), held, tell);
            }
            Source::DockerArchive { file, tag } => {
                let files = Files::archive(file, &self.staged, self.limits, &self.store.unpacker)?;
                self.docker(&files, tag.as_deref(), &held, tell)?
            }
            Source::RootfsTar { file } => self.rootfs(file, &held, tell)?,
            Source::DiskImage { file, options } => self.disk(file, options, &held, tell)?,
            Source::Registry(RegistrySource { reference: from, .. }) => {
                return Err(not_local(from));
            }
            Source::HttpsTar(HttpsSource { url: from, .. }) => return Err(not_local(from)),
        };
        Ok((record, held))
    }

    fn oci(
        &self,
        files: &Files,
        tag: Option<&str>,
        held: Held,
        tell: Tell<'_>,
    ) -> Result<(ImageRecord, Held)> {
        let top = top_of(files, tag, self.limits)?;
        self.image(files, &top, held, tell)
    }

    fn registry(
        &self,
        source: &RegistrySource,
        registry: &Registry,
        tell: Tell<'_>,
    ) -> Result<(ImageRecord, Held)> {
        // What is here under its digest needs no question, unless it has to be signed.
        let signed = self.store.wants_signatures(source);
        if !signed && let Some(digest) = registry.digest() {
            let held = self.hold()?;
            if let Some(record) = here::image(self.store, &held.known, &digest)? {
                return Ok((record, held));
            }
        }
        let top = registry.choose(self.limits)?;
        self.store.admit_signed(source, &registry.chain(&top.digest), registry)?;
        self.image(registry, &top, self.hold()?, tell)
    }

    /// Brings in the image of a manifest.
    fn image(
        &self,
        blobs: &dyn Blobs,
        top: &Descriptor,
        held: Held,
        tell: Tell<'_>,
    ) -> Result<(ImageRecord, Held)> {
        self.store.check_name(self.name, Some(&top.digest), self.by)?;
        if let Some(record) = here::image(self.store, &held.known, &top.digest)? {
            return Ok((record, held));
        }
        let held = release(blobs, held);
        let manifest_bytes = blobs.described(top, self.limits)?;
        let about = |why| Error::document(format!("manifest {}", top.digest), why);
        let manifest =
            Manifest::parse(&manifest_bytes, &top.media_type, self.limits).map_err(about)?;
        let config_bytes = blobs.described(&manifest.config, self.limits)?;
        let config = manifest.config.digest;
        let (_, diff_ids) =
            check_config(&config_bytes, &config, manifest.layers.len(), self.limits)?;

        tell(Progress::Started { layers: diff_ids.len() });
        let held = self.regain(held)?;
        let kept = Kept {
            blobs: manifest.layers.iter().map(|l| l.digest).collect(),
            layers: diff_ids.iter().copied().collect(),
        };
        self.staged.keep(&kept).map_err(|e| self.store.io("write a file in", "staging", e))?;
        let mut known = Vec::new();
        for (layer, diff_id) in manifest.layers.iter().zip(&diff_ids) {
            known.push(here::layer(self.store, &held.known, &layer.digest, diff_id)?);
        }
        let images = Rc::clone(&held.known);
        let held = release(blobs, held);
        let needed: Vec<&Descriptor> = manifest
            .layers
            .iter()
            .zip(&known)
            .filter(|(_, known)| known.is_none())
            .map(|(layer, _)| layer)
            .collect();
        blobs.announce(&needed, self.limits)?;
        let mut budget =
            Budget::new(self.limits).unpacked_by(&self.store.unpacker).until(&self.store.cancel);
        let mut layers: Vec<LayerRef> = Vec::new();
        let all = manifest.layers.iter().zip(diff_ids).zip(known);
        for (n, ((layer, diff_id), known)) in all.enumerate() {
            let number = n + 1;
            // A blob may come only once, so a layer that occurs twice is read once.
            let twice = layers.iter().find(|l| l.blob == layer.digest && l.diff_id == diff_id);
            if known.is_some() {
                blobs.skip(layer)?;
            }
            if let Some(known) = known.or_else(|| twice.cloned()) {
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
                from: From::Blob(blobs, layer),
            };
            let read = self.layer(&wanted, &images, &mut budget, tell)?;
            layers.push(read.layer_ref(&layer.media_type));
        }
        let held = self.regain(held)?;
        self.check_kept(&layers)?;
        Ok((self.commit(&manifest_bytes, &config_bytes, layers)?, held))
    }

    fn regain(&self, held: Option<Held>) -> Result<Held> {
        held.map_or_else(|| self.hold(), Ok)
    }

    /// No prune takes what was kept, but a repair puts aside what is damaged.
    fn check_kept(&self, layers: &[LayerRef]) -> Result<()> {
        for layer in layers {
            let gone = |what| Err(Error::damaged(what, "went away while the image came in"));
            if !here::blob(self.store, &layer.blob, layer.size)? {
                return gone(format!("blob {}", layer.blob));
            }
            if !self.store.layer_is_ready(&layer.diff_id)? {
                return gone(format!("layer {}", layer.diff_id));
            }
        }
        Ok(())
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

    /// Makes the image visible under its digest, if it may have its name.
    fn commit(&self, manifest: &[u8], config: &[u8], layers: Vec<LayerRef>) -> Result<ImageRecord> {
        self.store.check_name(self.name, Some(&Digest::of(manifest)), self.by)?;
        self.publisher().image(manifest, config, layers)
    }

    fn point(&self, manifest: &Digest) -> Result<()> {
        self.publisher().name(self.name, manifest, self.by)
    }

    fn publisher(&self) -> Publisher<'_> {
        Publisher { store: self.store, staged: &self.staged }
    }
}

/// Gives the lock back where the network will be waited for.
fn release(blobs: &dyn Blobs, held: Held) -> Option<Held> {
    if blobs.is_far() { None } else { Some(held) }
}

fn not_local(from: &dyn std::fmt::Display) -> Error {
    Error::Source { from: escape(from.to_string().as_bytes()), why: "it is not local".into() }
}

/// The manifest that a layout leads to.
fn top_of(files: &Files, tag: Option<&str>, limits: &Limits) -> Result<Descriptor> {
    check_layout(files, limits)?;
    let object = format!("{} file index.json", files.shown());
    let bytes = files.document("index.json", limits)?;
    follow(files, object, bytes, None, tag, limits)
}

fn check_layout(files: &Files, limits: &Limits) -> Result<()> {
    #[derive(serde::Deserialize)]
    struct Layout {
        #[serde(rename = "imageLayoutVersion")]
        version: String,
    }
    let bytes = files.document("oci-layout", limits)?;
    let about = |why| Error::document(format!("{} file oci-layout", files.shown()), why);
    let layout: Layout = document::parse(&bytes).map_err(about)?;
    if layout.version == "1.0.0" {
        Ok(())
    } else {
        let text = format!("imageLayoutVersion {} is not 1.0.0", escape(layout.version.as_bytes()));
        Err(about(DocumentFault::Json(text)))
    }
}

/// Follows an index, which is `object`, down to one manifest.
pub(crate) fn follow(
    blobs: &dyn Blobs,
    mut object: String,
    mut bytes: Vec<u8>,
    mut media_type: Option<String>,
    tag: Option<&str>,
    limits: &Limits,
) -> Result<Descriptor> {
    let host = document::host_platform();
    for depth in 0..=limits.index_nesting {
        let about = |why| Error::document(object.clone(), why);
        let entries =
            document::parse_index(&bytes, media_type.as_deref(), limits).map_err(about)?;
        // Only the outermost index has tags.
        let tag = tag.filter(|_| depth == 0);
        let next = document::choose(entries, tag, &host).map_err(about)?;
        match Class::of(&next.media_type).map_err(about)? {
            Class::Manifest => return Ok(next),
            Class::Index => {
                bytes = blobs.described(&next, limits)?;
                object = format!("index {}", next.digest);
                media_type = Some(next.media_type);
            }
        }
    }
    let why = DocumentFault::limit(Limit::IndexNesting, limits.index_nesting);
    Err(Error::document(object, why))
}

/// Reads the config of an image of so many layers, which must be for this host.
pub(crate) fn check_config(
    bytes: &[u8],
    digest: &Digest,
    layers: usize,
    limits: &Limits,
) -> Result<(ImageConfig, Vec<DiffId>)> {
    let about = |why| Error::document(format!("config {digest}"), why);
    let (config, diff_ids) = ImageConfig::parse(bytes, limits).map_err(about)?;
    let (platform, host) = (config.platform(), document::host_platform());
    if platform != host {
        return Err(Error::Platform {
            image: digest.to_string(),
            image_platform: platform.to_string(),
            host: host.to_string(),
        });
    }
    if diff_ids.len() != layers {
        return Err(about(DocumentFault::LayerCount { manifest: layers, config: diff_ids.len() }));
    }
    Ok((config, diff_ids))
}
