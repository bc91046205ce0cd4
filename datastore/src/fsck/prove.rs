//! A blob read once: its digest, its uncompressed digest, and whether a layer's directory is what it holds.

use std::fs::File;
use std::io;

use super::quarantine::Quarantine;
use crate::cancel::Cancel;
use crate::digest::Digest;
use crate::disk;
use crate::document;
use crate::error::{Error, Fault, Result, escape};
use crate::limits::Limits;
use crate::proof::exact::{self, Difference};
use crate::proof::{self, Doubt, Reading, Tar, Terms};
use crate::record::{LayerRecord, LayerRef, Record};
use crate::staging::Staged;
use crate::store::Store;
use crate::unpack::Report;
use crate::walk::Stopped;

/// What a blob turned out to be.
#[derive(Debug)]
pub(super) struct Proof {
    pub digest: Digest,
    pub size: u64,
    /// Of the layer asked for; none if the blob itself is wrong.
    pub layer: Option<Verdict>,
}

/// What a layer's directory turned out to be.
#[derive(Debug)]
pub(super) enum Verdict {
    Same,
    Changed(Difference),
    /// A file of it cannot be read.
    Unreadable {
        path: String,
        why: String,
    },
    /// The blob is good and is not this layer, or cannot be unpacked.
    NotThis(String),
    /// It is not known: the worker did not do its work.
    Unchecked(String),
}

/// What was once accepted is accepted still: a blob with the right digest is not judged again.
fn limits() -> Limits {
    Limits {
        image_bytes: u64::MAX,
        ratio: u64::MAX,
        entries: u64::MAX,
        layers: usize::MAX,
        ..Limits::default()
    }
}

impl Store {
    fn terms<'a>(&'a self, limits: &'a Limits, layer: &LayerRef) -> Terms<'a> {
        Terms {
            unpacker: &self.unpacker,
            // A check that ends before its time would take every blob that is left for unreadable.
            cancel: Cancel::default(),
            limits,
            bytes: limits.image_bytes,
            entries: limits.entries,
            // A type that is not known to this program was to the one that wrote the record; the bytes tell, too.
            compression: document::layer_compression(&layer.media_type).ok(),
        }
    }

    /// Reads a blob and, if it is to be a layer's, compares; none if there is no such blob.
    pub(super) fn prove(&self, blob: &Digest, of: Option<&LayerRef>) -> io::Result<Option<Proof>> {
        let Some(file) = disk::open_file(&self.blobs, &blob.hex())? else {
            return Ok(None);
        };
        let Some(layer) = of else {
            return proof::hash(file)
                .map(|(digest, size)| Some(Proof { digest, size, layer: None }));
        };
        let fs = disk::open_dir(&self.layers, &layer.diff_id.hex())
            .and_then(|dir| disk::open_dir(&dir, "fs"));
        let limits = limits();
        let (digest, size, tar) = match proof::read(file, fs, &self.terms(&limits, layer)) {
            Ok(Reading { digest, size, tar }) => (digest, size, tar),
            Err(Fault::Io(_, e)) => return Err(e),
            // It does not even begin.
            Err(fault) => match disk::open_file(&self.blobs, &blob.hex())? {
                None => return Ok(None),
                Some(file) => proof::hash(file).map(|(digest, size)| (digest, size, Err(fault)))?,
            },
        };
        if digest != *blob {
            return Ok(Some(Proof { digest, size, layer: None }));
        }
        let verdict = match tar {
            Err(Fault::Worker(why)) => Verdict::Unchecked(why),
            Err(Fault::Refused(_) | Fault::Io(..)) => {
                Verdict::NotThis("its stream is damaged".into())
            }
            Ok(Tar { diff_id, .. }) if diff_id != layer.diff_id => {
                Verdict::NotThis(format!("its uncompressed digest is {diff_id}"))
            }
            Ok(Tar { same: Ok(()), .. }) => Verdict::Same,
            Ok(Tar { same: Err(Doubt::Unreadable { path, why }), .. }) => {
                Verdict::Unreadable { path: escape(&path), why: why.to_string() }
            }
            Ok(Tar { same: Err(Doubt::Unclear), .. }) => self.compare_exactly(layer),
        };
        Ok(Some(Proof { digest, size, layer: Some(verdict) }))
    }

    fn compare_exactly(&self, layer: &LayerRef) -> Verdict {
        let compare = || {
            self.check_writable()?;
            let again = self.unpack_again(layer)?;
            let hex = layer.diff_id.hex();
            let fs = disk::open_dir(&self.layers, &hex)
                .and_then(|dir| disk::open_dir(&dir, "fs"))
                .map_err(|e| self.io("open", &format!("layers/{hex}/fs"), e))?;
            Ok(exact::compare(&again.fs, &fs))
        };
        match compare() {
            Ok(Ok(None)) => Verdict::Same,
            Ok(Ok(Some(difference))) => Verdict::Changed(difference),
            Ok(Err(Stopped { path, why })) => {
                Verdict::Unreadable { path: escape(&path), why: why.to_string() }
            }
            Err(Error::Io { op, source, object }) => {
                Verdict::NotThis(format!("cannot {op} {object}: {source}"))
            }
            Err(Error::Worker { why, .. }) => Verdict::Unchecked(why),
            Err(e) => Verdict::NotThis(e.to_string()),
        }
    }

    /// Unpacks a layer's blob into staging; that it is this layer is checked on the way.
    fn unpack_again(&self, layer: &LayerRef) -> Result<Again> {
        let hex = layer.blob.hex();
        let file = disk::open_file(&self.blobs, &hex)
            .map_err(|e| self.io("open", &format!("blobs/sha256/{hex}"), e))?
            .ok_or_else(|| Error::damaged(format!("blob {}", layer.blob), "is absent"))?;
        let make = || {
            let staged = Staged::create(&self.staging, "fsck")?;
            let dir = disk::make_dir(&staged.dir, "layer")?;
            let fs = disk::make_dir(&dir, "fs")?;
            Ok((staged, dir, fs))
        };
        let (staged, dir, fs) =
            make().map_err(|e: io::Error| self.io("make files in", "staging", e))?;
        let limits = limits();
        let report = proof::unpack(file, &layer.diff_id, &fs, &self.terms(&limits, layer))
            .map_err(|(fault, at)| fault.about_entry(&format!("layer {}", layer.diff_id), at))?;
        Ok(Again { staged, dir, fs, report })
    }

    /// Unpacks a layer's blob once more and puts it in the place of what is there, in one step. What was there goes to
    /// quarantine: returns where it is.
    pub(super) fn replace_layer(
        &self,
        layer: &LayerRef,
        quarantine: &mut Quarantine<'_>,
    ) -> Result<Option<String>> {
        let hex = layer.diff_id.hex();
        let again = self.unpack_again(layer)?;
        let record = LayerRecord::new(layer.diff_id, again.report.clone());
        let mut place = || {
            disk::write_new(&again.dir, "layer.json", &record.encode()?)?;
            disk::sync_all_of(&again.dir)?;
            let from = (&again.staged.dir, "layer");
            if disk::stat(&self.layers, &hex)?.is_some() {
                quarantine.exchange(from, (&self.layers, &hex, "layers")).map(Some)
            } else {
                disk::publish_dir(from.0, from.1, &self.layers, &hex).map(|_| None)
            }
        };
        place().map_err(|e: io::Error| self.io("replace", &format!("layers/{hex}"), e))
    }
}

/// A layer unpacked anew, in staging.
struct Again {
    staged: Staged,
    dir: File,
    fs: File,
    report: Report,
}
