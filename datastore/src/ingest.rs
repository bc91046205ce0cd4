//! One pass over a layer: count and hash the blob, keep a copy, and hand it on to be unpacked, here or in a worker.
//!
//! ```text
//! source ─► Blob (size, sha256, copy in staging) ─┬─► content            (in this process)
//!                                                 └─► pipe ─► worker: content, confined
//! ```
//!
//! Nothing is read twice, so a source that changes under us cannot show one content to the hash and another to
//! the unpacker. What the blob is, is decided here, whoever unpacks: a worker never sees what it is promised to be.

use std::fs::File;
use std::io::{self, Read, Write};

use sha2::{Digest as _, Sha256};

use crate::cancel::Cancel;
use crate::compress::Compression;
use crate::content::{self, Content, Fallible, Task};
use crate::digest::{DiffId, Digest};
use crate::error::{CopyFailed, Doing, Fault, Refusal};
use crate::flush::Flusher;
use crate::limits::Limits;
use crate::tarball::Trailer;
use crate::unpack::{Direct, Report};
use crate::worker::{self, Unpacker};

/// How often progress is told, in bytes of the blob.
const STEP: u64 = 4 << 20;

/// What an image may still use of its limits, and who uses it.
#[derive(Debug)]
pub(crate) struct Budget<'a> {
    pub limits: &'a Limits,
    unpacker: &'a Unpacker,
    cancel: Cancel,
    pub bytes: u64,
    pub entries: u64,
}

impl<'a> Budget<'a> {
    pub fn new(limits: &'a Limits) -> Self {
        let unpacker = &Unpacker::InProcess;
        let (bytes, entries) = (limits.image_bytes, limits.entries);
        Self { limits, unpacker, cancel: Cancel::default(), bytes, entries }
    }

    /// By whom layers are unpacked, or only measured; else by the caller's process.
    pub fn unpacked_by(self, unpacker: &'a Unpacker) -> Self {
        Self { unpacker, ..self }
    }

    /// By whose word the work ends before its time.
    pub fn until(self, cancel: &Cancel) -> Self {
        Self { cancel: cancel.clone(), ..self }
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
) -> Fallible<Ingested> {
    let from: &mut dyn Read = &mut budget.cancel.watch(from);
    let mut blob = Blob {
        from,
        copy,
        hasher: Sha256::new(),
        count: 0,
        max: promise.size,
        progress,
        told: 0,
        flusher: Flusher::new(match sink {
            Sink::Unpack(into, _) => Some(*into),
            Sink::Verify => copy,
        }),
    };
    let task = Task {
        limits: budget.limits,
        bytes: budget.bytes,
        entries: budget.entries,
        compression: promise.compression,
        into: match sink {
            Sink::Unpack(into, trailer) => Some((*into, *trailer)),
            Sink::Verify => None,
        },
    };
    let content = match budget.unpacker {
        Unpacker::InProcess => content::read(&mut blob, &task, &mut Direct)?,
        Unpacker::Worker(worker) => worker::client::read(worker, &mut blob, &task)?,
    };
    (blob.progress)(blob.count);
    blob.flusher.finish().doing("sync").map_err(|fault| (fault, None))?;
    let Content { diff_id, bytes, headers, compression, report } = content;
    let read = Ingested {
        size: blob.count,
        digest: Digest::finish(blob.hasher),
        diff_id,
        compression,
        report,
    };
    check(&read, promise).map_err(|refusal| (Fault::from(refusal), None))?;
    budget.bytes -= bytes;
    budget.entries -= headers;
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

/// The blob as it comes: counted, hashed, copied.
struct Blob<'a> {
    from: &'a mut dyn Read,
    copy: Option<&'a File>,
    hasher: Sha256,
    count: u64,
    max: Option<u64>,
    progress: &'a mut dyn FnMut(u64),
    told: u64,
    flusher: Flusher<'a>,
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
            self.flusher.at(self.count);
        }
        Ok(n)
    }
}
