//! One pass over a layer: count and hash the blob, keep a copy, decompress, hash the tar, unpack.
//!
//! ```text
//! source ─► Meter (size, sha256) ─► copy in staging
//!              └─► Decoder ─► Meter (limits, sha256 = diff id) ─► tar reader ─► tree
//! ```
//!
//! Nothing is read twice, so a source that changes under us cannot show one content to the hash and another to
//! the unpacker. Both ends are drained: what follows the end of the tar belongs to its digest all the same.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};

use sha2::{Digest as _, Sha256};

use crate::compress::{Compression, Decoder};
use crate::digest::{DiffId, Digest};
use crate::error::{CopyFailed, Fault, Limit, Refusal};
use crate::limits::Limits;
use crate::tarball::{Streaming, Tarball, Trailer};
use crate::unpack::{self, Report};

const BUFFER: usize = 128 * 1024;

/// How often progress is told, in bytes of the blob.
const STEP: u64 = 4 << 20;

/// What an image may still use of its limits.
#[derive(Debug)]
pub(crate) struct Budget<'a> {
    pub limits: &'a Limits,
    pub bytes: u64,
    pub entries: u64,
}

impl<'a> Budget<'a> {
    pub fn new(limits: &'a Limits) -> Self {
        Self { limits, bytes: limits.image_bytes, entries: limits.entries }
    }
}

/// What the descriptor and the config promise; nothing for a bare root file system.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Promise {
    pub size: Option<u64>,
    pub digest: Option<Digest>,
    pub diff_id: Option<DiffId>,
    pub compression: Option<Compression>,
}

/// Where the layer's files go.
#[derive(Debug)]
pub(crate) enum Sink<'a> {
    /// Into this empty directory.
    Unpack(&'a File, Trailer),
    /// Nowhere: the layer is there already, only the blob is to be proven.
    Verify,
}

/// What was read.
#[derive(Debug)]
pub(crate) struct Ingested {
    pub size: u64,
    pub digest: Digest,
    pub diff_id: DiffId,
    pub compression: Compression,
    /// Of the unpacking, if there was one.
    pub report: Report,
}

/// Reads one layer to its end. An error of the tar reader comes with the path of the entry, escaped.
pub(crate) fn ingest(
    from: &mut dyn Read,
    copy: Option<&File>,
    promise: &Promise,
    sink: &Sink<'_>,
    budget: &mut Budget<'_>,
    progress: &mut dyn FnMut(u64),
) -> Result<Ingested, (Fault, Option<String>)> {
    let blob =
        Blob { from, copy, hasher: Sha256::new(), count: 0, max: promise.size, progress, told: 0 };
    let buffered = BufReader::with_capacity(BUFFER, blob);
    let plain = |fault: Fault| (fault, None);
    let (decoder, compression) = Decoder::new(buffered, promise.compression).map_err(plain)?;
    let layer = Layer {
        decoder,
        hasher: Sha256::new(),
        count: 0,
        limits: budget.limits,
        max: budget.bytes,
    };
    let mut layer = BufReader::with_capacity(BUFFER, layer);

    let mut report = Report::default();
    if let Sink::Unpack(into, trailer) = sink {
        let source = Streaming(&mut layer);
        let tarball = Tarball::new(source, budget.limits, &mut budget.entries, *trailer);
        report = unpack::unpack(tarball, into, budget.limits).map_err(|(f, at)| (f, Some(at)))?;
        if *trailer == Trailer::Required && report.entries == 0 {
            return Err(plain(Refusal::NoFiles.into()));
        }
    }
    drain(&mut layer).map_err(plain)?;
    let layer = layer.into_inner();
    budget.bytes -= layer.count;
    let diff_id = DiffId(Digest::finish(layer.hasher));

    let mut rest = layer.decoder.into_inner();
    if drain(&mut rest).map_err(plain)? > 0 {
        let text = "bytes after its end".to_owned();
        return Err(plain(Refusal::Stream(text).into()));
    }
    let blob = rest.into_inner();
    (blob.progress)(blob.count);
    let read = Ingested {
        size: blob.count,
        digest: Digest::finish(blob.hasher),
        diff_id,
        compression,
        report,
    };
    check(&read, promise).map_err(|refusal| plain(refusal.into()))?;
    Ok(read)
}

fn check(read: &Ingested, promise: &Promise) -> Result<(), Refusal> {
    let Promise { size, digest, diff_id, compression: _ } = *promise;
    if let Some(expected) = size.filter(|s| *s != read.size) {
        return Err(Refusal::Size { expected, got: read.size });
    }
    if let Some(expected) = digest.filter(|d| *d != read.digest) {
        return Err(Refusal::Digest { expected, got: read.digest });
    }
    if let Some(expected) = diff_id.filter(|d| *d != read.diff_id) {
        return Err(Refusal::DiffId { expected, got: read.diff_id });
    }
    Ok(())
}

fn drain(from: &mut impl Read) -> Result<u64, Fault> {
    io::copy(from, &mut io::sink()).map_err(Fault::from_read)
}

/// The blob as it comes: counted, hashed, copied.
struct Blob<'a> {
    from: &'a mut dyn Read,
    copy: Option<&'a File>,
    hasher: Sha256,
    count: u64,
    max: Option<u64>,
    progress: &'a mut dyn FnMut(u64),
    told: u64,
}

impl Read for Blob<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buf)?;
        self.count += n as u64;
        if let Some(expected) = self.max.filter(|max| self.count > *max) {
            return Err(io::Error::other(Refusal::Size { expected, got: self.count }));
        }
        self.hasher.update(&buf[..n]);
        if let Some(mut copy) = self.copy {
            copy.write_all(&buf[..n]).map_err(|e| io::Error::other(CopyFailed(e)))?;
        }
        if self.count - self.told >= STEP {
            self.told = self.count;
            (self.progress)(self.count);
        }
        Ok(n)
    }
}

/// The uncompressed tar: counted against the limits, hashed.
struct Layer<'a, R: io::BufRead> {
    decoder: Decoder<R>,
    hasher: Sha256,
    count: u64,
    limits: &'a Limits,
    max: u64,
}

impl Read for Layer<'_, BufReader<Blob<'_>>> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.decoder.read(buf)?;
        self.count += n as u64;
        if self.count > self.max {
            return Err(io::Error::other(Refusal::limit(
                Limit::ImageBytes,
                self.limits.image_bytes,
            )));
        }
        let compressed = self.decoder.get_ref().get_ref().count;
        let fair = compressed.saturating_mul(self.limits.ratio);
        if self.count > self.limits.ratio_floor && self.count > fair {
            return Err(io::Error::other(Refusal::limit(Limit::Ratio, self.limits.ratio)));
        }
        self.hasher.update(&buf[..n]);
        Ok(n)
    }
}
