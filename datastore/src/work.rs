//! A layer in the making, and how it gets to its place.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use rustix::fs::Mode;

use crate::disk;
use crate::error::Result;
use crate::ingest::Ingested;
use crate::record::{LayerRecord, Record};
use crate::staging::Staged;
use crate::store::Store;

/// Whether this import unpacked the layer, or another did before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unpacked {
    Yes,
    Before,
}

/// A layer in the making: `blob`, and `layer/` with `fs/` and `layer.json`, in a staging directory.
pub(crate) struct Work<'a> {
    store: &'a Store,
    staged: &'a Staged,
    /// Takes the bytes as they come.
    pub blob: File,
    layer: File,
    /// Takes the files.
    pub fs: File,
}

impl<'a> Work<'a> {
    pub fn new(store: &'a Store, staged: &'a Staged) -> Result<Self> {
        let make = || {
            let blob = disk::create_new(&staged.dir, "blob")?;
            rustix::fs::mkdirat(&staged.dir, "layer", Mode::RWXU)?;
            let layer = disk::open_dir(&staged.dir, "layer")?;
            rustix::fs::mkdirat(&layer, "fs", Mode::RWXU)?;
            let fs = disk::open_dir(&layer, "fs")?;
            Ok(Self { store, staged, blob, layer, fs })
        };
        make().map_err(|e: io::Error| store.io("make files in", "staging", e))
    }

    /// Moves blob and layer to their places, their content first on the disk.
    pub fn publish(&self, read: &Ingested, unpacked: Unpacked) -> Result<()> {
        let (blob, layer) = (read.digest.hex(), read.diff_id.hex());
        if unpacked == Unpacked::Yes {
            let record = LayerRecord::new(read.diff_id, read.report.clone());
            let write = || {
                disk::write_new(&self.layer, "layer.json", &record.encode()?)?;
                // One sync for all files instead of one each; it covers the blob too.
                Ok(rustix::fs::syncfs(self.layer.as_fd())?)
            };
            write().map_err(|e: io::Error| self.store.io("sync", "staging", e))?;
        } else {
            self.blob.sync_all().map_err(|e| self.store.io("sync", "staging", e))?;
        }
        disk::publish(&self.staged.dir, "blob", &self.store.blobs, &blob)
            .map_err(|e| self.store.io("publish", &format!("blobs/sha256/{blob}"), e))?;
        if unpacked == Unpacked::Yes {
            // Taken only if a root file system turned out to be a layer that is here: same bytes, same files.
            disk::publish_dir(&self.staged.dir, "layer", &self.store.layers, &layer)
                .map_err(|e| self.store.io("publish", &format!("layers/{layer}"), e))?;
        }
        Ok(())
    }
}
