//! A layer in the making, and how it gets to its place.
//!
//! What lies in staging was unpacked by a worker. A blob that took its worker over can have written any files, and have
//! claimed any diff id. That harms nobody as long as the name is its own: whoever made the blob could have made those
//! files a layer in the first place. So a name that nobody has yet is given to what claims it, and an import costs one
//! pass.
//!
//! Where others share the name, it is proven ([`crate::proof`]): where a layer of it is here, for its files may be
//! those that an earlier blob planted; and where an image knows it by another blob, for that image would get these
//! files. Then the directory, the one that is here or the one in staging, is compared with the blob's plain bytes, and if it
//! does not hold what they say, they are unpacked anew. What was here goes to quarantine.
//!
//! A directory is taken as it is only for a blob that a whole image's record has for it. That the record may be of the
//! very image that planted the files does not matter: it is its own blob, and who brings the right one finds the pair
//! unknown.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use rustix::fs::{FlockOperation, Mode};

use crate::compress::Compression;
use crate::digest::{DiffId, Digest};
use crate::disk;
use crate::error::{Doing, Error, Fault, Refusal, Result};
use crate::fsck::quarantine::Quarantine;
use crate::proof::{self, Reading, Tar, Terms, exact};
use crate::record::{ImageRecord, LayerRecord, LayerRef, Record};
use crate::staging::Staged;
use crate::store::Store;
use crate::unpack::Report;

const BLOB: &str = "blob";

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

/// A blob in staging, read and hashed, and whose layer it is said to be.
pub(crate) struct Candidate<'a> {
    /// For messages.
    pub object: &'a str,
    pub blob: Digest,
    pub diff_id: DiffId,
    pub said_by: SaidBy,
    /// What unpacking told, if a worker did that.
    pub unpacked: Option<Report>,
    /// Whole images: what they have of blobs and layers is known.
    pub known: &'a [ImageRecord],
    /// For another pass.
    pub terms: Terms<'a>,
}

/// Who said what layer a blob is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SaidBy {
    /// The image's config, or this process.
    Config,
    /// The worker that unpacked it, and nobody else.
    Worker,
}

/// Whether the blob is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Synced {
    Yes,
    No,
}

/// How a layer came to its place.
#[derive(Debug)]
pub(crate) enum Placed {
    /// It is new.
    New(Report),
    /// It was here.
    Before,
    /// What was here was something else. It is in quarantine, under this path.
    Instead(Report, String),
}

/// What it took.
#[derive(Debug)]
pub(crate) struct Settled {
    pub placed: Placed,
    /// Plain bytes and tar headers that were read for the first time.
    pub bytes: u64,
    pub headers: u64,
}

impl<'a> Work<'a> {
    pub fn new(store: &'a Store, staged: &'a Staged) -> Result<Self> {
        let blob = Self::blob(staged).map_err(|e| store.io("make a file in", "staging", e))?;
        Self::around(store, staged, blob)
    }

    /// The file that takes the blob, before there is more.
    pub fn blob(staged: &Staged) -> io::Result<File> {
        disk::create_new(&staged.dir, BLOB)
    }

    /// With a blob that is there already.
    pub fn around(store: &'a Store, staged: &'a Staged, blob: File) -> Result<Self> {
        let make = || {
            rustix::fs::mkdirat(&staged.dir, "layer", Mode::RWXU)?;
            let layer = disk::open_dir(&staged.dir, "layer")?;
            rustix::fs::mkdirat(&layer, "fs", Mode::RWXU)?;
            let fs = disk::open_dir(&layer, "fs")?;
            Ok(Self { store, staged, blob, layer, fs })
        };
        make().map_err(|e: io::Error| store.io("make files in", "staging", e))
    }

    /// How the blob in staging is compressed.
    pub fn compression(&self) -> std::result::Result<Compression, Fault> {
        let blob = disk::open_file(&self.staged.dir, BLOB).doing("open")?;
        blob.map_or(Ok(Compression::None), |blob| Compression::of(&blob))
    }

    /// Opens the blob in staging to read.
    pub fn reopen(&self) -> std::result::Result<File, Fault> {
        let blob = disk::open_file(&self.staged.dir, BLOB).doing("open")?;
        blob.ok_or_else(|| Fault::Io("open", io::ErrorKind::NotFound.into()))
    }

    /// Moves blob and layer to their places, or sees to it that the layer there is the right one.
    pub fn place(&self, candidate: &Candidate<'_>) -> Result<Settled> {
        let Candidate { blob, diff_id, unpacked, known, .. } = candidate;
        let unread = |placed| Settled { placed, bytes: 0, headers: 0 };
        if self.store.is_packed() {
            self.publish_blob(blob, Synced::No)?;
            return Ok(unread(Placed::New(unpacked.clone().unwrap_or_default())));
        }
        let mut pairs =
            known.iter().flat_map(|r| &r.layers).filter(|l: &&LayerRef| l.diff_id == *diff_id);
        let here = self.store.has_layer(diff_id)?;
        if here && pairs.clone().any(|l| l.blob == *blob) {
            self.publish_blob(blob, Synced::No)?;
            return Ok(unread(Placed::Before));
        }
        if !here
            && pairs.all(|l| l.blob == *blob)
            && let Some(report) = unpacked
            && self.publish(candidate, "layer", &self.layer, report)?
        {
            return Ok(unread(Placed::New(report.clone())));
        }
        self.prove(candidate)
    }

    fn prove(&self, candidate: &Candidate<'_>) -> Result<Settled> {
        let Candidate { object, diff_id, unpacked, terms, .. } = candidate;
        let here = self.store.has_layer(diff_id)?;
        let about = |fault: Fault| fault.about(*object);
        let fs = if here { self.there(diff_id) } else { self.fs.try_clone() };
        let read = proof::read(self.open_blob(candidate)?, fs, terms).map_err(about)?;
        let tar = Self::check(candidate, read).map_err(about)?;
        let settled = |placed| match unpacked {
            // The pass that unpacked it has counted.
            Some(_) => Settled { placed, bytes: 0, headers: 0 },
            None => Settled { placed, bytes: tar.bytes, headers: tar.headers },
        };
        let same = tar.same.is_ok();
        if same && here && self.store.layer_record(diff_id).is_ok() {
            self.publish_blob(&candidate.blob, Synced::No)?;
            return Ok(settled(Placed::Before));
        }
        if same
            && !here
            && let Some(report) = unpacked
            && self.publish(candidate, "layer", &self.layer, report)?
        {
            return Ok(settled(Placed::New(report.clone())));
        }
        self.again(candidate).map(settled)
    }

    /// Whether the blob is what it is said to be.
    fn check(candidate: &Candidate<'_>, read: Reading) -> std::result::Result<Tar, Fault> {
        if read.digest != candidate.blob {
            // It was this a moment ago.
            let (expected, got) = (candidate.blob, read.digest);
            return Err(Refusal::Digest { expected, got }.into());
        }
        let tar = read.tar?;
        if tar.diff_id == candidate.diff_id {
            return Ok(tar);
        }
        let (expected, got) = (candidate.diff_id, tar.diff_id);
        Err(match candidate.said_by {
            SaidBy::Config => Refusal::DiffId { expected, got }.into(),
            SaidBy::Worker => {
                Fault::Worker(format!("answered nonsense: diff id {expected} for {got}"))
            }
        })
    }

    /// Unpacks the blob anew, from bytes that are proven, and gives the result the name.
    fn again(&self, candidate: &Candidate<'_>) -> Result<Placed> {
        let Candidate { object, diff_id, terms, .. } = candidate;
        let make = || {
            let layer = disk::make_dir(&self.staged.dir, "again")?;
            let fs = disk::make_dir(&layer, "fs")?;
            Ok((layer, fs))
        };
        let (layer, fs) =
            make().map_err(|e: io::Error| self.store.io("make files in", "staging", e))?;
        let report = proof::unpack(self.open_blob(candidate)?, diff_id, &fs, terms)
            .map_err(|(fault, at)| fault.about_entry(object, at))?;
        loop {
            let there = match self.there(diff_id) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    if self.publish(candidate, "again", &layer, &report)? {
                        return Ok(Placed::New(report));
                    }
                    None
                }
                other => other.ok(),
            };
            // A tar may be unusual, and the files right all the same.
            let same = there.is_some_and(|there| matches!(exact::compare(&fs, &there), Ok(None)));
            if same && self.store.layer_record(diff_id).is_ok() {
                self.publish_blob(&candidate.blob, Synced::No)?;
                return Ok(Placed::Before);
            }
            if self.store.has_layer(diff_id)? {
                return self.exchange(candidate, &layer, report);
            }
        }
    }

    /// Puts `again` in the place of what is there.
    fn exchange(&self, candidate: &Candidate<'_>, layer: &File, report: Report) -> Result<Placed> {
        let hex = candidate.diff_id.hex();
        self.complete(candidate, layer, &report)?;
        self.publish_blob(&candidate.blob, Synced::Yes)?;
        // Whoever empties the quarantine has it alone.
        let _shared = self.store.lock(FlockOperation::LockShared)?;
        let old = Quarantine::new(self.store)
            .exchange((&self.staged.dir, "again"), (&self.store.layers, &hex, "layers"))
            .map_err(|e| self.store.io("replace", &format!("layers/{hex}"), e))?;
        Ok(Placed::Instead(report, old))
    }

    /// Gives blob and layer their names, their content first on the disk; says whether the layer's was free.
    fn publish(
        &self,
        candidate: &Candidate<'_>,
        name: &str,
        layer: &File,
        report: &Report,
    ) -> Result<bool> {
        let hex = candidate.diff_id.hex();
        self.complete(candidate, layer, report)?;
        self.publish_blob(&candidate.blob, Synced::Yes)?;
        disk::publish_dir(&self.staged.dir, name, &self.store.layers, &hex)
            .map_err(|e| self.store.io("publish", &format!("layers/{hex}"), e))
    }

    /// Writes the record beside the files, unless it was written, and brings all to the disk.
    fn complete(&self, candidate: &Candidate<'_>, layer: &File, report: &Report) -> Result<()> {
        let record = LayerRecord::new(candidate.diff_id, report.clone());
        let write = || {
            disk::unlink(layer, "layer.json")?;
            disk::write_new(layer, "layer.json", &record.encode()?)?;
            // One sync for all files instead of one each; it covers the blob too.
            Ok(rustix::fs::syncfs(layer.as_fd())?)
        };
        write().map_err(|e: io::Error| self.store.io("sync", "staging", e))
    }

    fn publish_blob(&self, blob: &Digest, synced: Synced) -> Result<()> {
        let hex = blob.hex();
        let publish = || {
            // If it is not there, it has its name already.
            let Some(file) = disk::open_file(&self.staged.dir, BLOB)? else { return Ok(()) };
            if synced == Synced::No {
                file.sync_all()?;
            }
            disk::publish(&self.staged.dir, BLOB, &self.store.blobs, &hex)
        };
        publish()
            .map_err(|e: io::Error| self.store.io("publish", &format!("blobs/sha256/{hex}"), e))
    }

    /// The files of the layer that is here.
    fn there(&self, diff_id: &DiffId) -> io::Result<File> {
        disk::open_dir(&self.store.layers, &diff_id.hex())
            .and_then(|layer| disk::open_dir(&layer, "fs"))
    }

    /// Opens the blob where it is now.
    fn open_blob(&self, candidate: &Candidate<'_>) -> Result<File> {
        let hex = candidate.blob.hex();
        let open = || match disk::open_file(&self.staged.dir, BLOB)? {
            None => disk::open_file(&self.store.blobs, &hex),
            found => Ok(found),
        };
        open()
            .map_err(|e: io::Error| self.store.io("open", &format!("blobs/sha256/{hex}"), e))?
            .ok_or_else(|| Error::damaged(format!("blob {}", candidate.blob), "is absent"))
    }
}
