//! A blob read once: its digest, its uncompressed digest, and whether a layer's directory is what it holds.
//!
//! The comparison is in place first (`compare`). Where that leaves a doubt, the blob is unpacked once more by the
//! code that unpacks imports, into staging, and the two trees are compared file by file (`exact`).

use std::fs::File;
use std::io::{self, BufReader, Read};

use sha2::{Digest as _, Sha256};

use super::compare::{Compare, Doubt, is_disk};
use super::exact::{self, Difference};
use crate::compress::{Compression, Decoder};
use crate::digest::{DiffId, Digest};
use crate::disk;
use crate::document;
use crate::error::{Error, Fault, Result, escape};
use crate::ingest::{self, Budget, Ingested, Promise, Sink};
use crate::limits::Limits;
use crate::record::{LayerRecord, LayerRef, Record};
use crate::staging::Staged;
use crate::store::Store;
use crate::tarball::{Streaming, Tarball, Trailer};
use crate::walk::Stopped;

const BUFFER: usize = 128 * 1024;

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

fn compression(media_type: &str) -> Option<Compression> {
    document::layer_compression(media_type).ok()
}

impl Store {
    /// Reads a blob and, if it is to be a layer's, compares; none if there is no such blob.
    pub(super) fn prove(&self, blob: &Digest, of: Option<&LayerRef>) -> io::Result<Option<Proof>> {
        let Some(file) = disk::open_file(&self.blobs, &blob.hex())? else {
            return Ok(None);
        };
        let Some(layer) = of else {
            return hash(file).map(|(digest, size)| Some(Proof { digest, size, layer: None }));
        };
        let compared = self.compare_in_place(file, blob, layer)?;
        let (digest, size, seen) = match compared {
            Some(compared) => compared,
            // The stream does not even begin.
            None => match disk::open_file(&self.blobs, &blob.hex())? {
                None => return Ok(None),
                Some(file) => hash(file).map(|(digest, size)| (digest, size, Seen::Broken))?,
            },
        };
        let verdict = |verdict| Ok(Some(Proof { digest, size, layer: Some(verdict) }));
        if digest != *blob {
            return Ok(Some(Proof { digest, size, layer: None }));
        }
        match seen {
            Seen::Broken => verdict(Verdict::NotThis("its stream is damaged".into())),
            Seen::Other(got) => {
                verdict(Verdict::NotThis(format!("its uncompressed digest is {got}")))
            }
            Seen::Whole(Ok(())) => verdict(Verdict::Same),
            Seen::Whole(Err(Doubt::Unreadable { path, why })) => {
                verdict(Verdict::Unreadable { path: escape(&path), why: why.to_string() })
            }
            Seen::Whole(Err(Doubt::Unclear | Doubt::Tar(_))) => {
                verdict(self.compare_exactly(layer))
            }
        }
    }

    /// One pass; none if the decoder refuses to start.
    fn compare_in_place(
        &self,
        file: File,
        blob: &Digest,
        layer: &LayerRef,
    ) -> io::Result<Option<(Digest, u64, Seen)>> {
        let input = BufReader::with_capacity(BUFFER, Hashing::new(file));
        let Ok((decoder, _)) = Decoder::new(input, compression(&layer.media_type)) else {
            return Ok(None);
        };
        let mut tar = BufReader::with_capacity(BUFFER, Hashing::new(decoder));
        let limits = limits();
        let mut budget = limits.entries;
        let tarball = Tarball::new(Streaming(&mut tar), &limits, &mut budget, Trailer::Optional);
        let outcome = disk::open_dir(&self.layers, &layer.diff_id.hex())
            .and_then(|dir| disk::open_dir(&dir, "fs"))
            .map_err(|why| Doubt::Unreadable { path: Vec::new(), why })
            .and_then(|fs| Compare::new(&fs).and_then(|compare| compare.run(tarball)));
        if let Err(Doubt::Tar(Fault::Io(_, e))) = &outcome
            && is_disk(e)
        {
            let text = format!("blob {blob}: {e}");
            return Err(e
                .raw_os_error()
                .map_or_else(|| io::Error::other(text), io::Error::from_raw_os_error));
        }
        let whole = drain(&mut tar);
        let tar = tar.into_inner();
        let diff_id = DiffId(Digest::finish(tar.hasher));
        let mut rest = tar.from.into_inner();
        let more = drain(&mut rest)?;
        let input = rest.into_inner();
        let seen = match whole {
            Err(e) if is_disk(&e) => return Err(e),
            Err(_) => Seen::Broken,
            Ok(_) if more > 0 => Seen::Broken,
            Ok(_) if diff_id != layer.diff_id => Seen::Other(diff_id),
            Ok(_) => Seen::Whole(outcome),
        };
        Ok(Some((Digest::finish(input.hasher), input.count, seen)))
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
            Err(e) => Verdict::NotThis(e.to_string()),
        }
    }

    /// Unpacks a layer's blob into staging; its digests are checked on the way.
    fn unpack_again(&self, layer: &LayerRef) -> Result<Again> {
        let hex = layer.blob.hex();
        let mut file = disk::open_file(&self.blobs, &hex)
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
        let promise = Promise {
            size: Some(layer.size),
            digest: Some(layer.blob),
            diff_id: Some(layer.diff_id),
            compression: compression(&layer.media_type),
        };
        let limits = limits();
        let mut budget = Budget::new(&limits).unpacked_by(&self.unpacker);
        let sink = Sink::Unpack(&fs, Trailer::Optional);
        let read = ingest::ingest(&mut file, None, &promise, &sink, &mut budget, &mut |_| {})
            .map_err(|(fault, at)| {
                let object = format!("layer {}", layer.diff_id);
                fault.about(at.map_or(object.clone(), |at| format!("{object} entry \"{at}\"")))
            })?;
        Ok(Again { staged, dir, fs, read })
    }

    /// Unpacks a layer's blob once more and puts it in the place of what is there, in one step. What was there
    /// goes to `aside`; if that fails it is removed with the staging directory, for it can be made again.
    pub(super) fn replace_layer(
        &self,
        layer: &LayerRef,
        aside: &mut dyn FnMut(&File, &str) -> io::Result<()>,
    ) -> Result<()> {
        let hex = layer.diff_id.hex();
        let again = self.unpack_again(layer)?;
        let record = LayerRecord::new(layer.diff_id, again.read.report.clone());
        let mut place = || {
            disk::write_new(&again.dir, "layer.json", &record.encode()?)?;
            disk::sync_all_of(&again.dir)?;
            let there = disk::stat(&self.layers, &hex)?.is_some();
            if there {
                disk::exchange(&again.staged.dir, "layer", &self.layers, &hex)?;
                aside(&again.staged.dir, "layer")
            } else {
                disk::publish_dir(&again.staged.dir, "layer", &self.layers, &hex).map(drop)
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
    read: Ingested,
}

/// What the stream was.
enum Seen {
    Broken,
    Other(DiffId),
    Whole(std::result::Result<(), Doubt>),
}

fn hash(file: File) -> io::Result<(Digest, u64)> {
    let mut file = Hashing::new(file);
    drain(&mut file)?;
    Ok((Digest::finish(file.hasher), file.count))
}

fn drain(from: &mut impl Read) -> io::Result<u64> {
    let mut buf = vec![0; BUFFER];
    let mut total = 0;
    loop {
        match from.read(&mut buf) {
            Ok(0) => return Ok(total),
            Ok(n) => total += n as u64,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

struct Hashing<R> {
    from: R,
    hasher: Sha256,
    count: u64,
}

impl<R> Hashing<R> {
    fn new(from: R) -> Self {
        Self { from, hasher: Sha256::new(), count: 0 }
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buf)?;
        self.hasher.update(&buf[..n]);
        self.count += n as u64;
        Ok(n)
    }
}
