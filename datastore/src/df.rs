//! Where the space went: allocated bytes per image, shared and its own, and what a prune would give back.
//!
//! One pass over the store. Counted are the blocks of each inode, once however many names it has, with directories
//! and the store's documents; what the file system needs for itself is not seen. File systems that share
//! extents between files (reflinks) or compress show what `stat` shows.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io;

use rustix::fs::{FileType, FlockOperation, Stat};

use crate::digest::{DiffId, Digest};
use crate::disk;
use crate::error::{Error, Result};
use crate::fsck::quarantine;
use crate::name::ImageName;
use crate::prune::PARTIAL;
use crate::store::Store;
use crate::walk::{Stopped, walk};

/// Files of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// How many blobs, layers, or files.
    pub count: u64,
    /// Bytes on the disk.
    pub allocated: u64,
}

/// What one image takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSpace {
    /// The image.
    pub manifest_digest: Digest,
    /// Its names, sorted.
    pub names: Vec<ImageName>,
    /// Bytes on the disk of its blobs: manifest, config and compressed layers.
    pub blobs: u64,
    /// Bytes on the disk of its unpacked layers.
    pub layers: u64,
    /// Of both, what other images use, too.
    pub shared: u64,
    /// Of both, what no other image uses.
    pub unique: u64,
}

/// What the store takes on its disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Images, sorted by digest.
    pub images: Vec<ImageSpace>,
    /// All blobs.
    pub blobs: Space,
    /// All unpacked layers.
    pub layers: Space,
    /// Downloads that are not finished.
    pub partial: Space,
    /// Work in progress.
    pub staging: Space,
    /// What repairs set aside.
    pub quarantine: Space,
    /// Everything.
    pub total: u64,
    /// Bytes of blobs and layers that a prune would give back; none if a damaged record hides it.
    pub reclaimable: Option<u64>,
}

impl Store {
    /// Measures the store. `in_use` is as for [`Store::prune`]. Holds a prune off; runs beside imports.
    pub fn df(&self, in_use: &HashSet<DiffId>) -> Result<DiskUsage> {
        let _shared = self.lock(FlockOperation::LockShared)?;
        let mut seen = Seen::default();
        let mut usage = DiskUsage::default();
        let records = self.readable_records()?;

        let mut blobs: BTreeMap<Digest, u64> = BTreeMap::new();
        let list = |at: &File, what: &str| disk::names(at).map_err(|e| self.io("list", what, e));
        for name in list(&self.blobs, "blobs/sha256")? {
            let stat = disk::stat(&self.blobs, &name)
                .map_err(|e| self.io("inspect", &format!("blobs/sha256/{name}"), e))?;
            if let Some(bytes) = stat.map(|s| seen.add(&s)) {
                usage.blobs.count += 1;
                usage.blobs.allocated += bytes;
                blobs.extend(Digest::from_hex(&name).map(|d| (d, bytes)));
            }
        }
        let mut layers: BTreeMap<DiffId, u64> = BTreeMap::new();
        for name in list(&self.layers, "layers")? {
            let io = |e| self.io("measure", &format!("layers/{name}"), e);
            let Some(space) = measure(&self.layers, &name, &mut seen).map_err(io)? else {
                continue;
            };
            usage.layers.count += 1;
            usage.layers.allocated += space.allocated;
            layers.extend(Digest::from_hex(&name).map(|d| (DiffId(d), space.allocated)));
        }
        for (name, to) in [
            ("staging", &mut usage.staging),
            (PARTIAL, &mut usage.partial),
            (quarantine::NAME, &mut usage.quarantine),
        ] {
            *to = measure(&self.dir, name, &mut seen)
                .map_err(|e| self.io("measure", name, e))?
                .unwrap_or_default();
        }
        let all = measure(&self.dir, ".", &mut Seen::default());
        usage.total = all.map_err(|e| self.io("measure", ".", e))?.unwrap_or_default().allocated;

        let mut users: (BTreeMap<Digest, u64>, BTreeMap<DiffId, u64>) = Default::default();
        let parts = |record: &crate::record::ImageRecord| {
            let blobs: HashSet<Digest> = record.blobs().map(|(b, _)| b).collect();
            let layers: HashSet<DiffId> = record.layers.iter().map(|l| l.diff_id).collect();
            (blobs, layers)
        };
        for record in &records {
            let (own_blobs, own_layers) = parts(record);
            own_blobs.into_iter().for_each(|b| *users.0.entry(b).or_default() += 1);
            own_layers.into_iter().for_each(|l| *users.1.entry(l).or_default() += 1);
        }
        let mut names: BTreeMap<Digest, Vec<ImageName>> = BTreeMap::new();
        for reference in self.readable_refs()? {
            names.entry(reference.manifest).or_default().push(reference.name);
        }
        for record in &records {
            let (own_blobs, own_layers) = parts(record);
            let mut image = ImageSpace {
                manifest_digest: record.manifest,
                names: names.remove(&record.manifest).unwrap_or_default(),
                blobs: 0,
                layers: 0,
                shared: 0,
                unique: 0,
            };
            let mut add = |sum: &mut u64, bytes: u64, users: Option<&u64>| {
                *sum += bytes;
                *(if users == Some(&1) { &mut image.unique } else { &mut image.shared }) += bytes;
            };
            for blob in &own_blobs {
                let bytes = blobs.get(blob).copied().unwrap_or(0);
                add(&mut image.blobs, bytes, users.0.get(blob));
            }
            for layer in &own_layers {
                let bytes = layers.get(layer).copied().unwrap_or(0);
                add(&mut image.layers, bytes, users.1.get(layer));
            }
            usage.images.push(image);
        }
        usage.reclaimable = match self.plan(in_use) {
            Ok(plan) => {
                let blobs = blobs.iter().filter(|(b, _)| plan.drops_blob(&b.hex()));
                let layers = layers.iter().filter(|(l, _)| plan.drops_layer(l));
                Some(blobs.map(|(_, n)| n).chain(layers.map(|(_, n)| n)).sum())
            }
            Err(Error::Damaged { .. }) => None,
            Err(e) => return Err(e),
        };
        Ok(usage)
    }
}

/// Inodes with several names, so that each is counted once.
#[derive(Default)]
struct Seen(HashSet<(u64, u64)>);

impl Seen {
    /// Bytes of an inode, 0 if it was counted before.
    fn add(&mut self, stat: &Stat) -> u64 {
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if !directory && stat.st_nlink > 1 && !self.0.insert((stat.st_dev, stat.st_ino)) {
            return 0;
        }
        // POSIX leaves the unit of st_blocks open; on Linux it is 512 bytes (inode(7)).
        u64::try_from(stat.st_blocks).unwrap_or(0) * 512
    }
}

/// Bytes of a whole tree; 0 if it is not there.
pub(crate) fn measure_one(at: &File, name: &str) -> io::Result<u64> {
    Ok(measure(at, name, &mut Seen::default())?.unwrap_or_default().allocated)
}

/// A whole tree; none if it is not there.
fn measure(at: &File, name: &str, seen: &mut Seen) -> io::Result<Option<Space>> {
    let top = match disk::open_dir(at, name) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => return Ok(None),
        other => other?,
    };
    let mut space = Space { count: 0, allocated: seen.add(&rustix::fs::fstat(&top)?) };
    let walked = walk(&top, &mut |step| {
        space.count += 1;
        space.allocated += seen.add(step.stat);
        Ok::<_, Stopped>(())
    });
    match walked {
        Ok(()) => Ok(Some(space)),
        // Work in progress comes and goes.
        Err(stopped) if stopped.why.kind() == io::ErrorKind::NotFound => Ok(Some(space)),
        Err(stopped) => Err(stopped.why),
    }
}
