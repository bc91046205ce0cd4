//! Checking that the store is what it says.
//!
//! Every name, record and blob is read and every digest computed again. The files of a layer are not compared with
//! their blob: that is a new import's work. Blobs and layers of no image are no finding; an import that was
//! interrupted leaves them for the next attempt or a prune.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};

use rustix::fs::FlockOperation;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::digest::{DiffId, Digest};
use crate::disk;
use crate::error::{Error, Result};
use crate::name::{FileName, ImageName};
use crate::record::{ImageRecord, image_file_digest};
use crate::staging;
use crate::store::Store;

/// One thing that is wrong with a store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, thiserror::Error)]
#[serde(tag = "finding", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Finding {
    /// A file the store does not write.
    #[error("{path} does not belong to the store")]
    Stray {
        /// Relative to the root.
        path: String,
    },
    /// A ref, image record or layer record that cannot be read.
    #[error("{path} cannot be used: {why}")]
    Unreadable {
        /// Relative to the root.
        path: String,
        /// The reason.
        why: String,
    },
    /// A name points at an image that is not here.
    #[error("name {name} points at {manifest}, which is absent")]
    DanglingName {
        /// The name.
        name: ImageName,
        /// What it points at.
        manifest: Digest,
    },
    /// An image lacks a blob.
    #[error("image {image} lacks blob {blob}")]
    BlobMissing {
        /// Manifest digest.
        image: Digest,
        /// The blob.
        blob: Digest,
    },
    /// A blob's length is not the one an image has for it.
    #[error("blob {blob} has {got} bytes, image {image} has {expected} for it")]
    BlobSize {
        /// Manifest digest.
        image: Digest,
        /// The blob.
        blob: Digest,
        /// In the image record.
        expected: u64,
        /// On the disk.
        got: u64,
    },
    /// A blob's content is not what its name says.
    #[error("blob {blob} has digest {got}")]
    BlobCorrupt {
        /// By its name.
        blob: Digest,
        /// By its content.
        got: Digest,
    },
    /// An image lacks a layer.
    #[error("image {image} lacks layer {layer}")]
    LayerMissing {
        /// Manifest digest.
        image: Digest,
        /// The layer.
        layer: DiffId,
    },
    /// Config and record of an image disagree, or the config cannot be used.
    #[error("image {image} does not fit together: {why}")]
    ImageInconsistent {
        /// Manifest digest.
        image: Digest,
        /// The reason.
        why: String,
    },
    /// A directory in staging whose owner is dead; opening the store removes it.
    #[error("staging/{name} was left by a dead process")]
    StagingLeftover {
        /// In `staging/`.
        name: String,
    },
}

/// Everything in the root.
const TOP: [&str; 8] =
    ["blobs", "format.json", "format.json.new", "images", "layers", "lock", "lost+found", "refs"];

impl Store {
    /// Checks the whole store, reading every blob. Findings are sorted; none means the store is sound.
    ///
    /// May run beside imports; waits for a prune, and a prune fails while it runs.
    pub fn fsck(&self) -> Result<Vec<Finding>> {
        let _shared = self.lock(FlockOperation::LockShared)?;
        let mut found = BTreeSet::new();
        for name in disk::names(&self.dir).map_err(|e| self.io("list", ".", e))? {
            if !TOP.contains(&name.as_str()) && name != "staging" {
                found.insert(Finding::Stray { path: name });
            }
        }
        // Names before images before blobs and layers: an import that ends meanwhile makes them in reverse.
        let names = self.check_names(&mut found)?;
        let images = self.check_records(&mut found)?;
        for (name, manifest) in names {
            if !images.contains_key(&manifest) {
                found.insert(Finding::DanglingName { name, manifest });
            }
        }
        let blobs = self.check_blobs(&mut found)?;
        let layers = self.check_layers(&mut found)?;
        for record in images.values() {
            self.check_image(record, &blobs, &layers, &mut found);
        }
        for name in staging::leftovers(&self.staging).map_err(|e| self.io("list", "staging", e))? {
            found.insert(Finding::StagingLeftover { name });
        }
        Ok(found.into_iter().collect())
    }

    fn check_names(&self, found: &mut BTreeSet<Finding>) -> Result<Vec<(ImageName, Digest)>> {
        let mut names = Vec::new();
        for file in disk::names(&self.refs).map_err(|e| self.io("list", "refs", e))? {
            let path = format!("refs/{file}");
            let Some(name) = FileName::decode(&file) else {
                found.insert(Finding::Stray { path });
                continue;
            };
            match self.read_ref(&name) {
                Ok(record) => names.push((name, record.manifest)),
                Err(Error::NotFound { .. }) => {}
                Err(e) => drop(found.insert(unreadable(path, &e))),
            }
        }
        Ok(names)
    }

    fn check_records(
        &self,
        found: &mut BTreeSet<Finding>,
    ) -> Result<BTreeMap<Digest, ImageRecord>> {
        let mut images = BTreeMap::new();
        for file in disk::names(&self.images).map_err(|e| self.io("list", "images", e))? {
            let path = format!("images/{file}");
            let Some(digest) = image_file_digest(&file) else {
                found.insert(Finding::Stray { path });
                continue;
            };
            match self.record(&digest) {
                Ok(record) => drop(record.and_then(|r| images.insert(digest, r))),
                Err(e) => drop(found.insert(unreadable(path, &e))),
            }
        }
        Ok(images)
    }

    fn check_blobs(&self, found: &mut BTreeSet<Finding>) -> Result<BTreeMap<Digest, u64>> {
        let mut blobs = BTreeMap::new();
        let list = |at: &File, path: &str| disk::names(at).map_err(|e| self.io("list", path, e));
        for file in list(&self.blobs, "blobs/sha256")? {
            let path = format!("blobs/sha256/{file}");
            let Some(blob) = Digest::from_hex(&file) else {
                found.insert(Finding::Stray { path });
                continue;
            };
            match hash(&self.blobs, &file) {
                Ok(None) => {}
                Ok(Some((got, size))) => {
                    blobs.insert(blob, size);
                    if got != blob {
                        found.insert(Finding::BlobCorrupt { blob, got });
                    }
                }
                Err(e) => drop(found.insert(Finding::Unreadable { path, why: e.to_string() })),
            }
        }
        Ok(blobs)
    }

    fn check_layers(&self, found: &mut BTreeSet<Finding>) -> Result<BTreeSet<DiffId>> {
        let mut layers = BTreeSet::new();
        for name in disk::names(&self.layers).map_err(|e| self.io("list", "layers", e))? {
            let path = format!("layers/{name}");
            let Some(diff_id) = Digest::from_hex(&name).map(DiffId) else {
                found.insert(Finding::Stray { path });
                continue;
            };
            layers.insert(diff_id);
            let files = |dir: File| disk::is_dir(&dir, "fs");
            let whole =
                self.layer_record(&diff_id).map(|_| ()).and_then(|()| {
                    match disk::open_dir(&self.layers, &name).and_then(files) {
                        Ok(true) => Ok(()),
                        Ok(false) => Err(Error::damaged(self.path(&path, "fs"), "is absent")),
                        Err(e) => Err(self.io("open", &path, e)),
                    }
                });
            if let Err(e) = whole {
                found.insert(unreadable(path, &e));
            }
        }
        Ok(layers)
    }

    fn check_image(
        &self,
        record: &ImageRecord,
        blobs: &BTreeMap<Digest, u64>,
        layers: &BTreeSet<DiffId>,
        found: &mut BTreeSet<Finding>,
    ) {
        let image = record.manifest;
        let before = found.len();
        for (blob, expected) in record.blobs() {
            match blobs.get(&blob) {
                None => drop(found.insert(Finding::BlobMissing { image, blob })),
                Some(got) if *got != expected => {
                    found.insert(Finding::BlobSize { image, blob, expected, got: *got });
                }
                Some(_) => {}
            }
        }
        for layer in record.layers.iter().map(|l| l.diff_id).filter(|l| !layers.contains(l)) {
            found.insert(Finding::LayerMissing { image, layer });
        }
        // With a part missing this would only repeat it.
        if found.len() == before
            && let Err(e) = self.assemble(record)
            && !found
                .iter()
                .any(|f| matches!(f, Finding::BlobCorrupt { blob, .. } if *blob == record.config))
        {
            found.insert(Finding::ImageInconsistent { image, why: e.to_string() });
        }
    }
}

fn unreadable(path: String, error: &Error) -> Finding {
    let why = match error {
        Error::Damaged { why, .. } => why.clone(),
        Error::Io { source, .. } => source.to_string(),
        other => other.to_string(),
    };
    Finding::Unreadable { path, why }
}

fn hash(at: &File, name: &str) -> io::Result<Option<(Digest, u64)>> {
    let Some(mut file) = disk::open_file(at, name)? else {
        return Ok(None);
    };
    let mut hasher = Sha256::new();
    let mut size = 0;
    let mut buf = vec![0; 128 * 1024];
    loop {
        let n = file.read(&mut buf)?;
        if n == 0 {
            return Ok(Some((Digest::finish(hasher), size)));
        }
        hasher.update(&buf[..n]);
        size += n as u64;
    }
}
