//! A VM's changes as a new layer of a new image.
//!
//! The tar is written once, straight into the blob in staging. That blob is then imported: what a guest left in its
//! upper directory is as hostile as what a registry sends, so it passes the same reader, limits and unpacker,
//! and what the layer will show is what any other importer of the image would get. Of [`Limits`] only the
//! ratio is not asked, for the sender is known: a sparse file is no bomb, and its bytes count.
//!
//! ```text
//! begin    lock, base, a place in staging     may wait for others
//! read     upper directory ─► tar ─► blob     the VM stands still
//! finish   blob ─► layer, documents, name     the VM is not needed
//! ```
//!
//! Publication is that of an import: blob and layer, documents, record, name. Until the record is there a crash
//! leaves nothing but what the next open or prune removes. Whether the tree holds still is the caller's affair;
//! a file that changes while it is read ends the commit.

use std::fs::File;
use std::io::Seek;
use std::os::fd::OwnedFd;

use rustix::fs::FlockOperation;

use super::changes::CommitChanges;
use super::ids::Upper;
use super::layer::{self, Omitted, Written};
use super::merge::{Part, Tree, View};
use super::pack::{self, Packed};
use crate::compress::Compression;
use crate::digest::{DiffId, Digest};
use crate::disk;
use crate::document::{self, Descriptor, Manifest, OCI_CONFIG};
use crate::error::{DocumentFault, Error, Limit, Result};
use crate::ingest::{self, Budget, Promise};
use crate::limits::Limits;
use crate::name::{ImageName, Reference};
use crate::namer::By;
use crate::proof::Terms;
use crate::publish::Publisher;
use crate::record::{ImageRecord, LayerRef};
use crate::staging::Staged;
use crate::store::{Image, Store};
use crate::tarball::Trailer;
use crate::work::{Candidate, Placed, SaidBy, Work};

/// How a new layer is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Packing {
    /// Read by everybody.
    #[default]
    Gzip,
    /// Smaller and faster; docker before 23 and podman before 3 do not read it.
    Zstd,
}

impl Packing {
    fn compression(self) -> Compression {
        match self {
            Self::Gzip => Compression::Gzip,
            Self::Zstd => Compression::Zstd,
        }
    }
}

/// How a commit is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommitOptions {
    /// Compression of the new layer.
    pub packing: Packing,
    /// Bounds on the new layer; the ratio is not asked.
    pub limits: Limits,
}

/// An image made from a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The image.
    pub image: Image,
    /// Its new topmost layer.
    pub layer: DiffId,
    /// The blob of that layer.
    pub blob: Digest,
    /// Bytes of the blob.
    pub size: u64,
    /// Bytes of the tar.
    pub tar_size: u64,
    /// Files, directories and links in the layer, whiteouts included.
    pub entries: u64,
    /// Names and directories of lower layers that it hides.
    pub whiteouts: u64,
    /// What was there and is not in the layer.
    pub omitted: Omitted,
    /// Where files are, relative to the store's root, that had the layer's name and were others.
    pub replaced: Option<String>,
}

impl Store {
    /// Makes an image of `base` and the changes in `upper`, and points `name` at it: the three steps of
    /// [`Store::begin_commit`] in a row.
    pub fn commit(
        &self,
        base: &Reference,
        upper: Upper<'_>,
        changes: &CommitChanges,
        name: &ImageName,
        options: &CommitOptions,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Committed> {
        self.begin_commit(base, name, options)?.read(upper, progress)?.finish(changes)
    }

    /// Begins to make an image: does all that may have to wait for others before anything of a VM is touched.
    ///
    /// Name the base by digest: it must be the image that the VM runs, whatever its name means today.
    pub fn begin_commit(
        &self,
        base: &Reference,
        name: &ImageName,
        options: &CommitOptions,
    ) -> Result<BegunCommit> {
        self.check_writable()?;
        self.check_unpacked()?;
        self.check_name(name, None, By::Choice)?;
        let shared = self.lock(FlockOperation::LockShared)?;
        let limits = Limits { ratio: u64::MAX, ..options.limits.clone() };
        let (base, config) = self.base(base, &limits)?;
        let staged = Staged::create(&self.staging, "commit")
            .map_err(|e| self.io("make a directory in", "staging", e))?;
        let blob = Work::blob(&staged).map_err(|e| self.io("make a file in", "staging", e))?;
        let (store, name, packing) = (self.again()?, name.clone(), options.packing);
        Ok(BegunCommit { store, shared, base, config, name, limits, packing, staged, blob })
    }

    /// The image below, with its config; all of it must be here, for the new image needs it.
    fn base(&self, base: &Reference, limits: &Limits) -> Result<(ImageRecord, Vec<u8>)> {
        let image = self.resolve(base)?;
        let record = self
            .record(&image.manifest_digest)?
            .ok_or_else(|| Error::NotFound { reference: base.to_string() })?;
        if record.layers.len() >= limits.layers {
            let why = DocumentFault::limit(Limit::Layers, limits.layers);
            return Err(Error::document(format!("image {}", record.manifest), why));
        }
        for (digest, size) in record.blobs() {
            let hex = digest.hex();
            let found = disk::file_size(&self.blobs, &hex)
                .map_err(|e| self.io("inspect", &format!("blobs/sha256/{hex}"), e))?;
            if found != Some(size) {
                let why = if found.is_none() { "is absent" } else { "has another size" };
                return Err(Error::damaged(format!("blob {digest}"), why));
            }
        }
        let config = self.small_blob(&record.config, record.config_size)?;
        Ok((record, config))
    }
}

/// A commit that needs nothing any more but the VM's files. It keeps prunes away.
#[derive(Debug)]
pub struct BegunCommit {
    store: Store,
    shared: File,
    base: ImageRecord,
    config: Vec<u8>,
    name: ImageName,
    limits: Limits,
    packing: Packing,
    staged: Staged,
    blob: File,
}

impl BegunCommit {
    /// Reads what the VM changed; only for this long has it to stand still.
    ///
    /// `upper` is an overlay's upper directory above the layers of the base, not mounted or frozen. `progress` is told
    /// the bytes of tar written so far.
    pub fn read(self, upper: Upper<'_>, progress: &mut dyn FnMut(u64)) -> Result<ReadCommit> {
        let source = upper.dir.try_clone().map_err(|e| Error::io("open", "upper directory", e))?;
        let tree = Tree {
            parts: vec![Part { dir: OwnedFd::from(source), ids: upper.ids }],
            view: View::Upper,
            limits: &self.limits,
        };
        let fill = |out: &mut pack::Packer<'_>| {
            layer::write(&tree, self.store.cancel.watch(out), &self.limits, progress)
                .map(|(_, written)| written)
        };
        let (written, packed) = pack::pack(&self.blob, self.packing, fill)
            .map_err(|(fault, at)| fault.about(format!("upper directory, \"{at}\"")))?;
        Ok(ReadCommit { begun: self, written, packed })
    }
}

/// A commit that holds all that the VM changed, and does not need it any more.
#[derive(Debug)]
pub struct ReadCommit {
    begun: BegunCommit,
    written: Written,
    packed: Packed,
}

impl ReadCommit {
    /// Imports the new layer, and points the name at the image.
    pub fn finish(self, changes: &CommitChanges) -> Result<Committed> {
        let Self { begun, written, packed } = self;
        let BegunCommit { store, shared, base, config, name, limits, packing, staged, blob } =
            begun;
        let work = Work::around(&store, &staged, blob)?;
        let promise = Promise {
            size: Some(packed.size),
            digest: Some(packed.digest),
            diff_id: Some(packed.diff_id),
            compression: Some(packing.compression()),
        };
        // This process wrote the tar, hashed it and compressed it: the diff id needs no proof, and a blob of our own
        // encoder does not take its worker over. So files that are new are those of the tar, whoever else knows the
        // diff id. Files that are here may be another's, who guessed what a guest would leave: they are compared.
        let object = format!("layer {}", packed.diff_id);
        let mut budget = Budget::new(&limits).unpacked_by(&store.unpacker).until(&store.cancel);
        let terms = Terms {
            unpacker: &store.unpacker,
            cancel: store.cancel.clone(),
            limits: &limits,
            bytes: budget.bytes,
            entries: budget.entries,
            compression: promise.compression,
        };
        let unpacked = if store.has_layer(&packed.diff_id)? {
            None
        } else {
            let mut blob = &work.blob;
            blob.rewind().map_err(|e| store.io("read", "staging", e))?;
            let into = (&work.fs, Trailer::Required);
            let read = ingest::ingest(&mut blob, None, &promise, into, &mut budget, &mut |_| {})
                .map_err(|(fault, at)| fault.about_entry(&object, at))?;
            Some(read.report)
        };
        let settled = work.place(&Candidate {
            object: &object,
            blob: packed.digest,
            diff_id: packed.diff_id,
            said_by: SaidBy::Config,
            unpacked,
            known: &[],
            terms,
        })?;

        let layer = LayerRef {
            diff_id: packed.diff_id,
            blob: packed.digest,
            media_type: document::layer_media_type(packing.compression()).to_owned(),
            size: packed.size,
        };
        let about = |what: &'static str| move |why| Error::document(what, why);
        let config =
            changes.apply(&config, packed.diff_id, &limits).map_err(about("new config"))?;
        let layers: Vec<LayerRef> = base.layers.into_iter().map(oci).chain([layer]).collect();
        let manifest = manifest(&config, &layers).map_err(about("new manifest"))?;
        let publisher = Publisher { store: &store, staged: &staged };
        let record = publisher.image(&manifest, &config, layers)?;
        let image = store.assemble(&record)?;
        publisher.name(&name, &record.manifest, By::Choice)?;
        // Until the record is there, prunes are kept away.
        drop(shared);
        Ok(Committed {
            image,
            layer: packed.diff_id,
            blob: packed.digest,
            size: packed.size,
            tar_size: written.bytes,
            entries: written.entries,
            whiteouts: written.whiteouts,
            omitted: written.omitted,
            replaced: match settled.placed {
                Placed::Instead(_, old) => Some(old),
                Placed::New(_) | Placed::Before => None,
            },
        })
    }
}

pub(super) fn manifest(
    config: &[u8],
    layers: &[LayerRef],
) -> std::result::Result<Vec<u8>, DocumentFault> {
    let describe = |media_type: &str, digest, size| Descriptor {
        media_type: media_type.to_owned(),
        digest,
        size,
        platform: None,
        annotations: None,
    };
    let own = describe(OCI_CONFIG, Digest::of(config), config.len() as u64);
    let layers = layers.iter().map(|l| describe(&l.media_type, l.blob, l.size)).collect();
    Manifest::synthesize(own, layers)
}

/// The same layer under the name it has in an OCI manifest.
pub(super) fn oci(layer: LayerRef) -> LayerRef {
    // The types were checked at import; what has no other name keeps the one it has.
    let media_type = document::layer_compression(&layer.media_type)
        .map_or(layer.media_type, |c| document::layer_media_type(c).to_owned());
    LayerRef { media_type, ..layer }
}
