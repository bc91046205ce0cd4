//! The store: opening, looking up, naming.
//!
//! Who may do what at the same time: importing takes the store's lock shared, pruning exclusive. While an import or a
//! push waits for the network it does without, and what it needs is kept ([`crate::staging`]). Looking up takes
//! none: everything visible is whole and never changes, only names move. A reader that races a prune sees
//! "no such image", as it would a moment later.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{FlockOperation, Mode, OFlags};

use crate::cancel::Cancel;
use crate::config::ImageConfig;
use crate::digest::{DiffId, Digest};
use crate::disk;
use crate::error::{Error, Result};
use crate::format::{self, Access};
use crate::import::{self, Lacking, Progress};
use crate::limits::Limits;
use crate::name::{FileName, ImageName, Reference};
use crate::packed::Kind;
use crate::record::{self, ImageRecord, LayerRecord, Record, RefRecord};
use crate::source::Source;
use crate::staging;
use crate::trust::Policy;
use crate::worker::{Unpacker, Worker};

/// A store of images on a local file system. Handles may be shared between threads, and several processes may
/// have the same store open.
#[derive(Debug)]
pub struct Store {
    pub(crate) root: PathBuf,
    pub(crate) dir: File,
    /// `blobs/sha256`
    pub(crate) blobs: File,
    pub(crate) layers: File,
    pub(crate) images: File,
    pub(crate) refs: File,
    pub(crate) staging: File,
    pub(crate) unpacker: Unpacker,
    pub(crate) policy: Option<Policy>,
    /// For whom names are set; none for the owner of the store.
    pub(crate) user: Option<u32>,
    pub(crate) cancel: Cancel,
    access: Access,
    pub(crate) kind: Kind,
}

/// An image that is whole in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The image's identity; record this, not its name.
    pub manifest_digest: Digest,
    /// Of the config document.
    pub config_digest: Digest,
    /// What the image says about running it; hostile, but well-formed.
    pub config: ImageConfig,
    /// Layers as the config lists them, lowest first. One may occur twice.
    pub layers: Vec<DiffId>,
    /// Bytes of manifest, config and layer blobs, as stored (compressed).
    pub size: u64,
}

impl Image {
    /// The layers as overlayfs wants them: topmost first, each once.
    ///
    /// A layer listed twice takes effect at its upper place: all it adds or hides is added or hidden there, so
    /// the lower place changes nothing. overlayfs refuses the same directory twice.
    #[must_use]
    pub fn overlay_order(&self) -> Vec<DiffId> {
        let mut order: Vec<DiffId> = Vec::with_capacity(self.layers.len());
        for layer in self.layers.iter().rev() {
            if !order.contains(layer) {
                order.push(*layer);
            }
        }
        order
    }
}

/// One line of [`Store::list`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The image's identity.
    pub manifest_digest: Digest,
    /// Its names, sorted; none if only a running guest keeps it.
    pub names: Vec<ImageName>,
    /// Its layers, lowest first.
    pub layers: Vec<DiffId>,
    /// Bytes of manifest, config and layer blobs, as stored (compressed).
    pub size: u64,
    /// When the image came in: its record is written once.
    pub imported: SystemTime,
}

impl Store {
    /// Opens the store at `root`, making it if there is nothing.
    ///
    /// Removes what importers that died left in staging. Fails if the directory holds something else, or a
    /// format this program does not know.
    pub fn open(root: &Path) -> Result<Self> {
        Self::open_kind(root, Kind::Unpacked)
    }

    pub(crate) fn open_kind(root: &Path, kind: Kind) -> Result<Self> {
        let io =
            |op: &'static str| move |e: io::Error| Error::io(op, root.display().to_string(), e);
        let absolute = std::path::absolute(root).map_err(io("resolve"))?;
        DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(io("make directory"))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir: File = rustix::fs::open(root, flags, Mode::empty())
            .map_err(|e| io("open directory")(e.into()))?
            .into();

        // Two that create must not meet halfway. The directory itself is locked, not the file `lock`: opening
        // does not wait for imports.
        disk::lock(&dir, FlockOperation::LockExclusive).map_err(io("lock"))?;
        let access = format::check_or_create(root, &dir, kind)?;
        open_lock(&dir).map_err(io("make the lock in"))?;
        let ensure =
            |at: &File, name: &str| disk::ensure_dir(at, name).map_err(io("make a directory in"));
        let store = Self {
            root: absolute,
            blobs: ensure(&ensure(&dir, "blobs")?, "sha256")?,
            layers: ensure(&dir, "layers")?,
            images: ensure(&dir, "images")?,
            refs: ensure(&dir, "refs")?,
            staging: ensure(&dir, "staging")?,
            unpacker: Unpacker::default(),
            policy: None,
            user: None,
            cancel: Cancel::default(),
            access,
            kind,
            dir,
        };
        disk::lock(&store.dir, FlockOperation::Unlock).map_err(io("unlock"))?;

        if store.access == Access::Full {
            staging::clean(&store.staging).map_err(|e| store.io("clean", "staging", e))?;
        }
        Ok(store)
    }

    /// Has layers unpacked, and whatever is compressed decompressed, by confined processes from now on.
    #[must_use]
    pub fn with_worker(mut self, worker: Worker) -> Self {
        self.unpacker = Unpacker::Worker(worker);
        self
    }

    /// Another handle of the store, whose operations end when `cancel` says so.
    ///
    /// They fail with [`Error::Cancelled`], soon: within a second where bytes, a lock or another attempt are waited
    /// for; a connection that is being made may take its time ([`crate::Patience::connect`]), and so may the disk.
    pub fn cancelled_by(&self, cancel: &Cancel) -> Result<Self> {
        Ok(Self { cancel: cancel.clone(), ..self.again()? })
    }

    /// Another handle of the same, for work that outlives a call.
    pub(crate) fn again(&self) -> Result<Self> {
        let again = |file: &File| file.try_clone().map_err(|e| self.io("open", "", e));
        Ok(Self {
            root: self.root.clone(),
            dir: again(&self.dir)?,
            blobs: again(&self.blobs)?,
            layers: again(&self.layers)?,
            images: again(&self.images)?,
            refs: again(&self.refs)?,
            staging: again(&self.staging)?,
            unpacker: self.unpacker.clone(),
            policy: self.policy.clone(),
            user: self.user,
            cancel: self.cancel.clone(),
            access: self.access.clone(),
            kind: self.kind,
        })
    }

    /// Reads what a user says an image's source is, as [`Source`] says. What a bare path names is looked into; a
    /// compressed file is expanded where layers are.
    pub fn source(&self, text: &str) -> Result<Source> {
        Source::parse(text, &self.unpacker)
    }

    /// Brings an image in and points `name` at it, replacing what the name pointed at if the handle's user may.
    ///
    /// On an error nothing of the image is visible. Layers that were already unpacked to the end stay for the
    /// next attempt, until a prune. Several imports may run at once; each layer is unpacked by one of them.
    pub fn import(
        &self,
        source: &Source,
        name: &ImageName,
        limits: &Limits,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Image> {
        self.check_writable()?;
        self.admit(source)?;
        self.cancel.told(import::run(self, source, name, limits, progress))
    }

    /// Which layers' blobs an import of a directory in OCI image layout would read; the others need not be in it.
    pub fn lacking(&self, layout: &Source, limits: &Limits) -> Result<Lacking> {
        import::lacking(self, layout, limits)
    }

    /// Finds an image by name or digest, and verifies its config and that its layers are there.
    pub fn resolve(&self, reference: &Reference) -> Result<Image> {
        let manifest = match reference {
            Reference::Digest(digest) => *digest,
            Reference::Name(name) => self.read_ref(name)?.manifest,
        };
        let record = self.record(&manifest)?.ok_or_else(|| match reference {
            Reference::Digest(_) => not_found(reference),
            Reference::Name(name) => Error::damaged(
                self.path("refs", &name.file_name().0),
                format!("names {manifest}, which is absent"),
            ),
        })?;
        self.assemble(&record)
    }

    /// Where a layer's files are; the directory exists if an image that lists the layer was resolved.
    #[must_use]
    pub fn layer_path(&self, diff_id: &DiffId) -> PathBuf {
        self.root.join("layers").join(diff_id.hex()).join("fs")
    }

    /// All images that can be read, sorted by digest. [`Store::fsck`] tells of those that cannot.
    pub fn list(&self) -> Result<Vec<Listed>> {
        let mut names: BTreeMap<Digest, Vec<ImageName>> = BTreeMap::new();
        for reference in self.readable_refs()? {
            names.entry(reference.manifest).or_default().push(reference.name);
        }
        let listed = |record: ImageRecord| Listed {
            manifest_digest: record.manifest,
            names: names.remove(&record.manifest).unwrap_or_default(),
            layers: record.layers.iter().map(|l| l.diff_id).collect(),
            size: size(&record),
            imported: disk::modified(&self.images, &record::image_file(&record.manifest)),
        };
        Ok(self.readable_records()?.into_iter().map(listed).collect())
    }

    /// Removes a name; says whether it was there. The image stays until [`Store::prune`].
    ///
    /// Runs beside imports: it takes no lock, for a name comes and goes in one step.
    pub fn remove(&self, name: &ImageName) -> Result<bool> {
        self.check_writable()?;
        let file = name.file_name().0;
        let removed = disk::unlink(&self.refs, &file)
            .map_err(|e| self.io("remove", &format!("refs/{file}"), e))?;
        self.refs.sync_all().map_err(|e| self.io("sync", "refs", e))?;
        Ok(removed)
    }

    pub(crate) fn assemble(&self, record: &ImageRecord) -> Result<Image> {
        let bytes = self.small_blob(&record.config, record.config_size)?;
        // What was accepted at import is accepted still, whatever the limits of this call would be.
        let limits = Limits { layers: usize::MAX, ..Limits::default() };
        let object = || format!("config {}", record.config);
        let (config, layers) =
            ImageConfig::parse(&bytes, &limits).map_err(|why| Error::document(object(), why))?;
        if !layers.iter().eq(record.layers.iter().map(|l| &l.diff_id)) {
            return Err(Error::damaged(object(), "lists other layers than the image record"));
        }
        for layer in &layers {
            if !self.layer_is_ready(layer)? {
                return Err(Error::damaged(format!("layer {layer}"), "is absent"));
            }
        }
        Ok(Image {
            manifest_digest: record.manifest,
            config_digest: record.config,
            config,
            layers,
            size: size(record),
        })
    }

    pub(crate) fn has_layer(&self, diff_id: &DiffId) -> Result<bool> {
        let hex = diff_id.hex();
        disk::is_dir(&self.layers, &hex)
            .map_err(|e| self.io("inspect", &format!("layers/{hex}"), e))
    }

    /// Reads and verifies a blob that is a document.
    pub(crate) fn small_blob(&self, digest: &Digest, size: u64) -> Result<Vec<u8>> {
        let hex = digest.hex();
        let bytes = disk::read_file(&self.blobs, &hex, size)
            .map_err(|e| self.io("read", &format!("blobs/sha256/{hex}"), e))?
            .ok_or_else(|| Error::damaged(format!("blob {digest}"), "is absent"))?;
        let got = Digest::of(&bytes);
        if got != *digest {
            return Err(Error::damaged(format!("blob {digest}"), format!("has digest {got}")));
        }
        Ok(bytes)
    }

    pub(crate) fn read_ref(&self, name: &ImageName) -> Result<RefRecord> {
        let file = name.file_name().0;
        let found: RefRecord = self
            .read_record(&self.refs, "refs", &file)?
            .ok_or_else(|| not_found(&name.clone().into()))?;
        if found.name == *name {
            Ok(found)
        } else {
            Err(Error::damaged(self.path("refs", &file), format!("is about {}", found.name)))
        }
    }

    /// All refs, sorted by name; an error if one cannot be read.
    pub(crate) fn refs(&self) -> Result<Vec<RefRecord>> {
        self.each_ref()?.collect()
    }

    pub(crate) fn readable_refs(&self) -> Result<Vec<RefRecord>> {
        undamaged(self.each_ref()?)
    }

    fn each_ref(&self) -> Result<impl Iterator<Item = Result<RefRecord>>> {
        let files = disk::names(&self.refs).map_err(|e| self.io("list", "refs", e))?;
        Ok(files.into_iter().filter_map(|file| {
            let Some(name) = FileName::decode(&file) else {
                return Some(Err(Error::damaged(self.path("refs", &file), "is no encoded name")));
            };
            match self.read_ref(&name) {
                // Removed since the directory was read.
                Err(Error::NotFound { .. }) => None,
                other => Some(other),
            }
        }))
    }

    pub(crate) fn record(&self, manifest: &Digest) -> Result<Option<ImageRecord>> {
        let file = record::image_file(manifest);
        let found: Option<ImageRecord> = self.read_record(&self.images, "images", &file)?;
        match found {
            Some(r) if r.manifest != *manifest => {
                Err(Error::damaged(self.path("images", &file), format!("is about {}", r.manifest)))
            }
            other => Ok(other),
        }
    }

    /// All image records, sorted by digest; an error if one cannot be read.
    pub(crate) fn records(&self) -> Result<Vec<ImageRecord>> {
        self.each_record()?.collect()
    }

    /// Image records without the damaged ones: one of them must not stop work on all other images.
    pub(crate) fn readable_records(&self) -> Result<Vec<ImageRecord>> {
        undamaged(self.each_record()?)
    }

    fn each_record(&self) -> Result<impl Iterator<Item = Result<ImageRecord>>> {
        let files = disk::names(&self.images).map_err(|e| self.io("list", "images", e))?;
        Ok(files.into_iter().filter_map(|file| match record::image_file_digest(&file) {
            Some(digest) => self.record(&digest).transpose(),
            None => {
                Some(Err(Error::damaged(self.path("images", &file), "is not named by a digest")))
            }
        }))
    }

    pub(crate) fn layer_record(&self, diff_id: &DiffId) -> Result<LayerRecord> {
        let hex = diff_id.hex();
        let dir = disk::open_dir(&self.layers, &hex)
            .map_err(|e| self.io("open directory", &format!("layers/{hex}"), e))?;
        let object = format!("layers/{hex}");
        let found: LayerRecord = self
            .read_record(&dir, &object, "layer.json")?
            .ok_or_else(|| Error::damaged(self.path(&object, "layer.json"), "is absent"))?;
        if found.diff_id == *diff_id {
            Ok(found)
        } else {
            Err(Error::damaged(
                self.path(&object, "layer.json"),
                format!("is about {}", found.diff_id),
            ))
        }
    }

    pub(crate) fn read_record<R: Record>(
        &self,
        at: &File,
        folder: &str,
        file: &str,
    ) -> Result<Option<R>> {
        let Some(bytes) = disk::read_file(at, file, record::MAX)
            .map_err(|e| self.io("read", &format!("{folder}/{file}"), e))?
        else {
            return Ok(None);
        };
        R::decode(&bytes).map(Some).map_err(|why| Error::damaged(self.path(folder, file), why))
    }

    /// Takes the store's lock for as long as the file lives.
    pub(crate) fn lock(&self, how: FlockOperation) -> Result<File> {
        let file = open_lock(&self.dir).map_err(|e| self.io("open", "lock", e))?;
        let failed = |e| self.io("lock", "lock", e);
        // A repair may hold it for long: who waits can be told not to.
        let (once, wait) = match how {
            FlockOperation::LockShared => (FlockOperation::NonBlockingLockShared, true),
            FlockOperation::LockExclusive => (FlockOperation::NonBlockingLockExclusive, true),
            other => (other, false),
        };
        if wait {
            self.cancel.until(|| disk::lock(&file, once)).map_err(failed)?;
        } else if !disk::lock(&file, once).map_err(failed)? {
            return Err(Error::Busy { root: self.root.clone() });
        }
        Ok(file)
    }

    pub(crate) fn check_writable(&self) -> Result<()> {
        match &self.access {
            Access::Full => Ok(()),
            Access::ReadOnly(feature) => {
                Err(Error::ReadOnly { root: self.root.clone(), feature: feature.clone() })
            }
        }
    }

    pub(crate) fn path(&self, folder: &str, file: &str) -> String {
        self.root.join(folder).join(file).display().to_string()
    }

    pub(crate) fn io(&self, op: &'static str, what: &str, e: impl Into<io::Error>) -> Error {
        Error::io(op, self.root.join(what).display().to_string(), e)
    }
}

fn undamaged<T>(all: impl Iterator<Item = Result<T>>) -> Result<Vec<T>> {
    all.filter(|r| !matches!(r, Err(Error::Damaged { .. }))).collect()
}

fn size(record: &ImageRecord) -> u64 {
    record.blobs().map(|(_, size)| size).sum()
}

pub(crate) fn not_found(reference: &Reference) -> Error {
    Error::NotFound { reference: reference.to_string() }
}

fn open_lock(dir: &File) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, "lock", flags, Mode::RUSR | Mode::WUSR)?.into())
}
