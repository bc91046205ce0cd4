//! Giving space back.
//!
//! Kept: images that a name points at; images all of whose layers a guest uses (such a guest may still be saved
//! as an image, which needs the blobs below); layers in use; and what the kept images need. All else goes, in an
//! order that leaves no image half there after a crash: records first, then blobs, then layers, each layer by
//! one rename into staging.

use std::collections::HashSet;
use std::os::fd::AsFd;

use rustix::fs::FlockOperation;

use crate::digest::{DiffId, Digest};
use crate::disk;
use crate::error::{Error, Result};
use crate::record;
use crate::staging::Staged;
use crate::store::Store;

/// What a prune removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Images, by manifest digest.
    pub images: Vec<Digest>,
    /// Number of blobs.
    pub blobs: u64,
    /// Bytes of these blobs.
    pub blob_bytes: u64,
    /// Layers.
    pub layers: Vec<DiffId>,
}

impl Store {
    /// Removes all that no name and no layer in `in_use` needs.
    ///
    /// `in_use` must name every layer that a guest has mounted or will mount after a restart; the caller sees to
    /// it that no guest is made from an unnamed image meanwhile. Fails with [`Error::Busy`] while an import runs,
    /// and with [`Error::Damaged`], removing nothing, if a record cannot be read: what it needs is then unknown.
    pub fn prune(&self, in_use: &HashSet<DiffId>) -> Result<Pruned> {
        self.check_writable()?;
        let _exclusive = self.lock(FlockOperation::NonBlockingLockExclusive)?;
        let named: HashSet<Digest> = self.refs()?.into_iter().map(|r| r.manifest).collect();
        let (kept, dropped): (Vec<_>, Vec<_>) = self.records()?.into_iter().partition(|r| {
            named.contains(&r.manifest) || r.layers.iter().all(|l| in_use.contains(&l.diff_id))
        });
        let blobs: HashSet<String> =
            kept.iter().flat_map(|r| r.blobs()).map(|(digest, _)| digest.hex()).collect();
        let layers: HashSet<DiffId> = kept
            .iter()
            .flat_map(|r| &r.layers)
            .map(|l| l.diff_id)
            .chain(in_use.iter().copied())
            .collect();

        let mut pruned = Pruned::default();
        for record in dropped {
            let file = record::image_file(&record.manifest);
            disk::unlink(&self.images, &file)
                .map_err(|e| self.io("remove", &format!("images/{file}"), e))?;
            pruned.images.push(record.manifest);
        }
        self.images.sync_all().map_err(|e| self.io("sync", "images", e))?;
        self.prune_blobs(&blobs, &mut pruned)?;
        self.prune_layers(&layers, &mut pruned)?;
        Ok(pruned)
    }

    fn prune_blobs(&self, kept: &HashSet<String>, pruned: &mut Pruned) -> Result<()> {
        for name in disk::names(&self.blobs).map_err(|e| self.io("list", "blobs/sha256", e))? {
            let stray = Digest::from_hex(&name).is_none();
            if stray || kept.contains(&name) {
                // What is not ours stays; fsck tells of it.
                continue;
            }
            let io = |op| move |e| self.io(op, "blobs/sha256", e);
            let size = disk::file_size(&self.blobs, &name).map_err(io("inspect a file in"))?;
            disk::unlink(&self.blobs, &name).map_err(io("remove a file in"))?;
            pruned.blobs += 1;
            pruned.blob_bytes += size.unwrap_or(0);
        }
        self.blobs.sync_all().map_err(|e| self.io("sync", "blobs/sha256", e))
    }

    fn prune_layers(&self, kept: &HashSet<DiffId>, pruned: &mut Pruned) -> Result<()> {
        let staged = Staged::create(&self.staging, "prune")
            .map_err(|e| self.io("make a directory in", "staging", e))?;
        for name in disk::names(&self.layers).map_err(|e| self.io("list", "layers", e))? {
            let Some(diff_id) = Digest::from_hex(&name).map(DiffId).filter(|d| !kept.contains(d))
            else {
                continue;
            };
            let object = format!("layers/{name}");
            disk::publish_dir(&self.layers, &name, &staged.dir, &name)
                .and_then(|_| self.layers.sync_all())
                .and_then(|()| disk::remove_tree(staged.dir.as_fd(), name.as_bytes()))
                .map_err(|e| self.io("remove", &object, e))?;
            pruned.layers.push(diff_id);
        }
        Ok(())
    }
}

/// Bytes and counts of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Images.
    pub images: u64,
    /// Names.
    pub names: u64,
    /// Blobs, those of no image included.
    pub blobs: u64,
    /// Bytes of the blobs.
    pub blob_bytes: u64,
    /// Unpacked layers, those of no image included.
    pub layers: u64,
    /// Bytes of file content in the layers (the file system adds its own).
    pub layer_bytes: u64,
}

impl Store {
    /// Counts what the store holds, from its records: no tree is walked.
    pub fn usage(&self) -> Result<Usage> {
        let mut usage = Usage {
            images: self.readable_records()?.len() as u64,
            names: self.readable_refs()?.len() as u64,
            ..Usage::default()
        };
        for name in disk::names(&self.blobs).map_err(|e| self.io("list", "blobs/sha256", e))? {
            let size = disk::file_size(&self.blobs, &name)
                .map_err(|e| self.io("inspect", &format!("blobs/sha256/{name}"), e))?;
            if let Some(size) = size {
                usage.blobs += 1;
                usage.blob_bytes += size;
            }
        }
        for name in disk::names(&self.layers).map_err(|e| self.io("list", "layers", e))? {
            let Some(diff_id) = Digest::from_hex(&name).map(DiffId) else {
                continue;
            };
            match self.layer_record(&diff_id) {
                Ok(record) => {
                    usage.layers += 1;
                    usage.layer_bytes += record.report.bytes;
                }
                // Pruned since the directory was read.
                Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(usage)
    }
}
