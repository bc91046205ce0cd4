//! Giving space back.
//!
//! Kept: images that a name points at; images all of whose layers a guest uses (such a guest may still be saved
//! as an image, which needs the blobs below); layers in use; and what the kept images need. All else goes, in an
//! order that leaves no image half there after a crash: records first, then blobs, then layers, each layer by
//! one rename into staging.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, SystemTime};

use rustix::fs::FlockOperation;

use crate::digest::{DiffId, Digest};
use crate::disk;
use crate::error::{Error, Result};
use crate::fsck::quarantine;
use crate::record::{self, ImageRecord};
use crate::staging::{Kept, Staged};
use crate::store::Store;

/// What to prune.
#[derive(Clone, Debug)]
pub struct PruneOptions<'a> {
    /// Every layer that a guest has mounted or will mount after a restart.
    pub in_use: &'a HashSet<DiffId>,
    /// Only say what would go.
    pub dry_run: bool,
    /// Downloads that nobody went on with for so long go, too; none keeps them all.
    pub partial_age: Option<Duration>,
    /// What repairs set aside so long ago goes, too; none keeps all of it. What holds files of a layer in `in_use`
    /// stays: a guest that ran at the repair still reads them.
    pub quarantine_age: Option<Duration>,
}

/// What a prune removed, or would remove.
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
    /// Bytes of file content in these layers.
    pub layer_bytes: u64,
    /// Number of downloads that were never finished.
    pub partials: u64,
    /// Bytes of these downloads.
    pub partial_bytes: u64,
    /// Directories in the quarantine, each of one repair.
    pub quarantined: Vec<String>,
    /// Bytes of these on the disk.
    pub quarantine_bytes: u64,
}

/// What stays and what goes.
pub(crate) struct Plan {
    dropped: Vec<ImageRecord>,
    /// Files in `blobs/sha256`.
    blobs: HashSet<String>,
    layers: HashSet<DiffId>,
}

impl Plan {
    /// Whether a name in `blobs/sha256` goes. What is not ours stays; fsck tells of it.
    pub fn drops_blob(&self, name: &str) -> bool {
        Digest::from_hex(name).is_some() && !self.blobs.contains(name)
    }

    pub fn drops_layer(&self, diff_id: &DiffId) -> bool {
        !self.layers.contains(diff_id)
    }
}

impl Store {
    /// Removes all that no name and no layer in `in_use` needs.
    ///
    /// `in_use` must name every layer that a guest has mounted or will mount after a restart; the caller sees to
    /// it that no guest is made from an unnamed image meanwhile. What an import that waits for the network needs stays.
    /// Fails with [`Error::Busy`] while an import works on the store, and with [`Error::Damaged`], removing nothing, if a record cannot be read: what it needs is then unknown.
    pub fn prune(&self, in_use: &HashSet<DiffId>) -> Result<Pruned> {
        self.prune_with(&PruneOptions {
            in_use,
            dry_run: false,
            partial_age: None,
            quarantine_age: None,
        })
    }

    /// As [`Store::prune`], with more choices. A dry run may be done beside imports.
    pub fn prune_with(&self, options: &PruneOptions<'_>) -> Result<Pruned> {
        let really = !options.dry_run;
        let _lock = if really {
            self.check_writable()?;
            self.lock(FlockOperation::NonBlockingLockExclusive)?
        } else {
            self.lock(FlockOperation::LockShared)?
        };
        let plan = self.plan(options.in_use)?;
        if really {
            // A name that moved or went a moment ago, by a process that died before it synced, must not come back
            // after a power loss to find its image gone.
            self.refs.sync_all().map_err(|e| self.io("sync", "refs", e))?;
        }
        let mut pruned = Pruned::default();
        for record in &plan.dropped {
            if really {
                let file = record::image_file(&record.manifest);
                disk::unlink(&self.images, &file)
                    .map_err(|e| self.io("remove", &format!("images/{file}"), e))?;
            }
            pruned.images.push(record.manifest);
        }
        if really {
            // Before the first blob goes: else an image could come back after a crash without it.
            self.images.sync_all().map_err(|e| self.io("sync", "images", e))?;
        }
        self.prune_blobs(&plan, really, &mut pruned)?;
        self.prune_layers(&plan, really, &mut pruned)?;
        if let Some(age) = options.partial_age {
            self.prune_partials(age, really, &mut pruned)
                .map_err(|e| self.io("clean", PARTIAL, e))?;
        }
        if let Some(age) = options.quarantine_age {
            quarantine::prune(self, age, options.in_use, really, &mut pruned)
                .map_err(|e| self.io("empty", quarantine::NAME, e))?;
        }
        Ok(pruned)
    }

    pub(crate) fn plan(&self, in_use: &HashSet<DiffId>) -> Result<Plan> {
        let named: HashSet<Digest> = self.refs()?.into_iter().map(|r| r.manifest).collect();
        let (kept, dropped): (Vec<_>, Vec<_>) = self.records()?.into_iter().partition(|r| {
            named.contains(&r.manifest) || r.layers.iter().all(|l| in_use.contains(&l.diff_id))
        });
        // Of imports that wait for the network.
        let coming = Kept::of_all(&self.staging).map_err(|e| self.io("read", "staging", e))?;
        let blobs = kept.iter().flat_map(|r| r.blobs()).map(|(digest, _)| digest);
        let blobs = blobs.chain(coming.blobs).map(|digest| digest.hex()).collect();
        let layers = kept.iter().flat_map(|r| &r.layers).map(|l| l.diff_id).chain(coming.layers);
        Ok(Plan { dropped, blobs, layers: layers.chain(in_use.iter().copied()).collect() })
    }

    fn prune_blobs(&self, plan: &Plan, really: bool, pruned: &mut Pruned) -> Result<()> {
        for name in disk::names(&self.blobs).map_err(|e| self.io("list", "blobs/sha256", e))? {
            if !plan.drops_blob(&name) {
                continue;
            }
            let io = |op| move |e| self.io(op, "blobs/sha256", e);
            let size = disk::file_size(&self.blobs, &name).map_err(io("inspect a file in"))?;
            if really {
                disk::unlink(&self.blobs, &name).map_err(io("remove a file in"))?;
            }
            pruned.blobs += 1;
            pruned.blob_bytes += size.unwrap_or(0);
        }
        if really {
            self.blobs.sync_all().map_err(|e| self.io("sync", "blobs/sha256", e))?;
        }
        Ok(())
    }

    fn prune_layers(&self, plan: &Plan, really: bool, pruned: &mut Pruned) -> Result<()> {
        let staged = if really {
            let staged = Staged::create(&self.staging, "prune");
            Some(staged.map_err(|e| self.io("make a directory in", "staging", e))?)
        } else {
            None
        };
        for name in disk::names(&self.layers).map_err(|e| self.io("list", "layers", e))? {
            let Some(diff_id) = Digest::from_hex(&name).map(DiffId).filter(|d| plan.drops_layer(d))
            else {
                continue;
            };
            // A layer that is damaged goes all the same.
            pruned.layer_bytes +=
                self.layer_record(&diff_id).map_or(0, |record| record.report.bytes);
            if let Some(staged) = &staged {
                let object = format!("layers/{name}");
                disk::publish_dir(&self.layers, &name, &staged.dir, &name)
                    .and_then(|_| self.layers.sync_all())
                    .and_then(|()| disk::remove_tree(staged.dir.as_fd(), name.as_bytes()))
                    .map_err(|e| self.io("remove", &object, e))?;
            }
            pruned.layers.push(diff_id);
        }
        Ok(())
    }

    /// Downloads that were broken off and are kept to go on with. Each is locked by whoever works on it.
    fn prune_partials(&self, age: Duration, really: bool, pruned: &mut Pruned) -> io::Result<()> {
        let dir = match disk::open_dir(&self.dir, PARTIAL) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        for name in disk::names(&dir)?.iter().filter(|n| Digest::from_hex(n).is_some()) {
            let Ok(Some(file)) = disk::open_file(&dir, name) else { continue };
            let meta = file.metadata()?;
            let since = SystemTime::now().duration_since(meta.modified()?).unwrap_or_default();
            if since >= age && disk::lock(&file, FlockOperation::NonBlockingLockExclusive)? {
                if really && is_named(&dir, name, &file)? {
                    disk::unlink(&dir, name)?;
                }
                pruned.partials += 1;
                pruned.partial_bytes += meta.len();
            }
        }
        Ok(())
    }
}

/// Where downloads are until they are whole.
pub(crate) const PARTIAL: &str = "partial";

fn is_named(dir: &File, name: &str, file: &File) -> io::Result<bool> {
    let ours = rustix::fs::fstat(file)?;
    let there = disk::stat(dir, name)?;
    Ok(there.is_some_and(|s| (s.st_dev, s.st_ino) == (ours.st_dev, ours.st_ino)))
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
