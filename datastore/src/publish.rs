//! Making an image visible: the order of `docs/format.md`, for whatever makes one.

use std::fs::File;

use crate::digest::Digest;
use crate::disk;
use crate::error::Result;
use crate::name::ImageName;
use crate::namer::By;
use crate::record::{self, ImageRecord, LayerRef, Record, RefRecord};
use crate::staging::Staged;
use crate::store::Store;

/// Writes documents in staging and moves them to their places.
pub(crate) struct Publisher<'a> {
    pub store: &'a Store,
    pub staged: &'a Staged,
}

impl Publisher<'_> {
    /// Documents and record; the layers' blobs and files are in place.
    pub fn image(
        &self,
        manifest: &[u8],
        config: &[u8],
        layers: Vec<LayerRef>,
    ) -> Result<ImageRecord> {
        let manifest_digest = self.blob(manifest)?;
        let config_digest = self.blob(config)?;
        // What was reused may have been put in place by a process that was killed before it synced.
        for (dir, name) in [(&self.store.blobs, "blobs/sha256"), (&self.store.layers, "layers")] {
            dir.sync_all().map_err(|e| self.store.io("sync", name, e))?;
        }
        let record = ImageRecord::new(
            (manifest_digest, manifest.len() as u64),
            (config_digest, config.len() as u64),
            layers,
        );
        let file = record::image_file(&manifest_digest);
        self.record(&record, &self.store.images, "images", &file)?;
        Ok(record)
    }

    /// Points the name at an image whose record is in place, though its importer may have died before it synced.
    ///
    /// Fails with [`crate::Error::NotYours`] where the user of the store's handle may not.
    pub fn name(&self, name: &ImageName, manifest: &Digest, by: By) -> Result<()> {
        self.store.images.sync_all().map_err(|e| self.store.io("sync", "images", e))?;
        self.store.with_name(name, manifest, by, |owner| {
            let record = RefRecord::new(name.clone(), *manifest, owner);
            self.record(&record, &self.store.refs, "refs", &name.file_name().0)
        })
    }

    fn blob(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        let hex = digest.hex();
        let write = || {
            disk::write_new(&self.staged.dir, &hex, bytes)?;
            disk::publish(&self.staged.dir, &hex, &self.store.blobs, &hex)
        };
        write().map_err(|e| self.store.io("write", &format!("blobs/sha256/{hex}"), e))?;
        Ok(digest)
    }

    fn record(&self, record: &impl Record, to: &File, folder: &str, file: &str) -> Result<()> {
        let write = || {
            disk::write_new(&self.staged.dir, "record", &record.encode()?)?;
            disk::publish(&self.staged.dir, "record", to, file)
        };
        write().map_err(|e| self.store.io("write", &format!("{folder}/{file}"), e))
    }
}
