//! One pass over a layer: count and hash the blob, keep a copy, and hand it on to be unpacked, here or in a worker; or
//! leave it at the copy.
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
use crate::content::{self, Content, Fallible, Into, Task};
use crate::digest::{DiffId, Digest};
use crate::error::{CopyFailed, Doing, Fault, Refusal};
use crate::flush::Flusher;
use crate::limits::Limits;
use crate::unpack::{Direct, Report};
use crate::worker::{self, Unpacker};

/// How often progress is told, in bytes of the blob.
const STEP: u64 = 4 << 20;

const BUFFER: usize = 256 * 1024;

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

/// A blob that was only kept.
#[derive(Debug)]
pub(crate) struct Kept {
    pub size: u64,
    pub digest: Digest,
}

/// What was read.
#[derive(Debug)]
pub(crate) struct Ingested {
    pub size: u64,
    pub digest: Digest,
    pub diff_id: DiffId,
    pub compression: Compression,
    pub report: Report,
}

/// Reads a blob to its end: of what it is promised to be, its size and digest.
pub(crate) fn keep(
    from: &mut dyn Read,
    copy: Option<&File>,
    promise: &Promise,
    cancel: &Cancel,
    progress: &mut dyn FnMut(u64),
) -> Result<Kept, Fault> {
    let from: &mut dyn Read = &mut cancel.watch(from);
    let mut blob = Blob::new(from, copy, copy, promise, progress);
    let mut buf = vec![0; BUFFER];
    loop {
        match blob.read(&mut buf) {
            Ok(0) => break,
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Fault::from_read(e)),
        }
    }
    let (size, digest) = blob.finish()?;
    check(size, &digest, promise)?;
    Ok(Kept { size, digest })
}

/// Reads one layer to its end and unpacks it into an empty directory. An error of the tar reader comes with the path
/// of the entry, escaped.
pub(crate) fn ingest(
    from: &mut dyn Read,
    copy: Option<&File>,
    promise: &Promise,
    into: Into<'_>,
    budget: &mut Budget<'_>,
    progress: &mut dyn FnMut(u64),
) -> Fallible<Ingested> {
    let from: &mut dyn Read = &mut budget.cancel.watch(from);
    let mut blob = Blob::new(from, copy, Some(into.0), promise, progress);
    let task = Task {
        limits: budget.limits,
        bytes: budget.bytes,
        entries: budget.entries,
        compression: promise.compression,
    };
    let content = match budget.unpacker {
        Unpacker::InProcess => content::read(&mut blob, &task, into, &mut Direct)?,
        Unpacker::Worker(worker) => worker::client::read(worker, &mut blob, &task, into)?,
    };
    let alone = |fault| (fault, None);
    let (size, digest) = blob.finish().map_err(alone)?;
    check(size, &digest, promise).map_err(|refusal| alone(refusal.into()))?;
    let Content { diff_id, bytes, headers, compression, report } = content;
    if let Some(expected) = promise.diff_id.filter(|d| *d != diff_id) {
        return Err(alone(Refusal::DiffId { expected, got: diff_id }.into()));
    }
    budget.bytes -= bytes;
    budget.entries -= headers;
    Ok(Ingested { size, digest, diff_id, compression, report })
}

fn check(size: u64, digest: &Digest, promise: &Promise) -> Result<(), Refusal> {
    if let Some(expected) = promise.size.filter(|s| *s != size) {
        return Err(Refusal::Size { expected, got: size });
    }
    if let Some(expected) = promise.digest.filter(|d| d != digest) {
        return Err(Refusal::Digest { expected, got: *digest });
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

impl<'a> Blob<'a> {
    /// What is `written` is brought to the disk on the way.
    fn new(
        from: &'a mut dyn Read,
        copy: Option<&'a File>,
        written: Option<&'a File>,
        promise: &Promise,
        progress: &'a mut dyn FnMut(u64),
    ) -> Self {
        let (hasher, flusher) = (Sha256::new(), Flusher::new(written));
        Self { from, copy, hasher, count: 0, max: promise.size, progress, told: 0, flusher }
    }

    /// Its size and digest.
    fn finish(self) -> Result<(u64, Digest), Fault> {
        (self.progress)(self.count);
        self.flusher.finish().doing("sync")?;
        Ok((self.count, Digest::finish(self.hasher)))
    }
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
