//! Proving a layer: that a directory holds what a blob says.
//!
//! ```text
//! blob ─► sha256 ─► worker: decompress ─► plain bytes: limits, sha256 = diff id ─┬─► tar reader ─► compare
//!                                                                               └─► worker: unpack anew
//! ```
//!
//! What decides is computed here, from bytes that this process saw: both digests, and whether the files are those of
//! the tar. A worker that a blob took over may give other plain bytes, but then they have another digest; and to give
//! those of somebody else's layer is to give that layer. So the files under a diff id depend on the bytes of that digest
//! and nothing else, whatever blob they came from.
//!
//! The comparison is in place ([`compare`]). Where it leaves a doubt, the plain bytes are unpacked once more, and the
//! two trees are compared file by file ([`exact`]). The worker that unpacks is given plain bytes, already expanded
//! by another and hashed on the way: only the tar itself can lie to it, and a tar lies about its own layer.

mod attributes;
mod compare;
pub(crate) mod exact;

use std::fs::File;
use std::io::{self, BufReader, Read};

use sha2::{Digest as _, Sha256};

use crate::cancel::Cancel;
use crate::compress::Compression;
use crate::content::Fallible;
use crate::digest::{DiffId, Digest};
use crate::error::{Doing, Fault, Refusal};
use crate::expand::{Bounded, Expanded};
use crate::ingest::{self, Budget, Promise};
use crate::limits::Limits;
use crate::tarball::{Streaming, Tarball, Trailer};
use crate::unpack::Report;
use crate::worker::Unpacker;

use compare::Compare;
pub(crate) use compare::{Doubt, is_disk};

const BUFFER: usize = 128 * 1024;

/// By whom a blob is expanded, and how far.
#[derive(Clone, Debug)]
pub(crate) struct Terms<'a> {
    pub unpacker: &'a Unpacker,
    pub cancel: Cancel,
    pub limits: &'a Limits,
    /// Plain bytes that may come.
    pub bytes: u64,
    /// Tar headers that may come.
    pub entries: u64,
    /// What the blob's media type says.
    pub compression: Option<Compression>,
}

/// What a blob turned out to be.
#[derive(Debug)]
pub(crate) struct Reading {
    pub digest: Digest,
    pub size: u64,
    /// What it holds, unless it cannot be expanded.
    pub tar: Result<Tar, Fault>,
}

/// The plain bytes of a blob.
#[derive(Debug)]
pub(crate) struct Tar {
    pub diff_id: DiffId,
    pub bytes: u64,
    /// Headers, as far as it was compared.
    pub headers: u64,
    /// Whether the directory holds this.
    pub same: Result<(), Doubt>,
}

/// Reads a blob to its end and compares what it holds with a layer's files. An error: it does not even begin, or the disk
/// does not give it.
pub(crate) fn read(blob: File, fs: io::Result<File>, terms: &Terms<'_>) -> Result<Reading, Fault> {
    let compared = examine(blob, Trailer::Optional, terms, |tarball| {
        fs.map_err(|why| Doubt::Unreadable { path: Vec::new(), why })
            .and_then(|fs| Compare::new(&fs).and_then(|compare| compare.run(tarball)))
    })?;
    let tar = compared.tar.map(|Plain { diff_id, bytes, headers, looked: same }| Tar {
        diff_id,
        bytes,
        headers,
        same,
    });
    Ok(Reading { digest: compared.digest, size: compared.size, tar })
}

/// A tar that was read to its end and compared with nothing.
#[derive(Debug)]
pub(crate) struct Measured {
    /// Of the blob.
    pub digest: Digest,
    pub diff_id: DiffId,
    pub bytes: u64,
    pub headers: u64,
}

/// Reads a blob to its end, which must be a tar with something in it.
pub(crate) fn measure(blob: File, trailer: Trailer, terms: &Terms<'_>) -> Result<Measured, Fault> {
    let Examined { digest, tar, .. } = examine(blob, trailer, terms, |mut tarball| {
        let mut entries = 0u64;
        while tarball.next()?.is_some() {
            entries += 1;
        }
        Ok(entries)
    })?;
    let Plain { diff_id, bytes, headers, looked } = tar?;
    match looked {
        Ok(0) => Err(Refusal::NoFiles.into()),
        Ok(_) => Ok(Measured { digest, diff_id, bytes, headers }),
        Err(fault) => Err(fault),
    }
}

/// A blob that was read to its end.
struct Examined<T> {
    digest: Digest,
    size: u64,
    tar: Result<Plain<T>, Fault>,
}

/// What it holds, and what came of looking at that.
struct Plain<T> {
    diff_id: DiffId,
    bytes: u64,
    headers: u64,
    looked: T,
}

type PlainBytes = BufReader<Hashing<Noting<Bounded<Hashing<Heeding>>>>>;

fn examine<T>(
    blob: File,
    trailer: Trailer,
    terms: &Terms<'_>,
    look: impl FnOnce(Tarball<'_, Streaming<&mut PlainBytes>>) -> T,
) -> Result<Examined<T>, Fault> {
    let Terms { limits, bytes, entries, .. } = *terms;
    let compressed = blob.metadata().doing("inspect")?.len();
    let source = Hashing::new(Heeding { from: blob, cancel: terms.cancel.clone() });
    let plain = Expanded::open(terms.unpacker, source, terms.compression)?;
    let bounded = Noting { from: Bounded::new(plain, compressed, limits, bytes), fault: None };
    let mut tar = BufReader::with_capacity(BUFFER, Hashing::new(bounded));
    let mut left = entries;
    let looked = look(Tarball::new(Streaming(&mut tar), limits, &mut left, trailer));
    // Whatever the tar says: what follows its end belongs to its digest.
    let ended = drain(&mut tar);
    let Hashing { from: Noting { from: bounded, fault }, hasher, count } = tar.into_inner();
    let mut rest = bounded.into_inner().into_rest().doing("read")?;
    let more = drain(&mut rest);
    let tar = match (fault, ended, &more) {
        // Of the disk, not of the blob.
        (Some(fault @ Fault::Io(..)), ..) => return Err(fault),
        (Some(fault), ..) => Err(fault),
        (None, Err(e), _) => Err(Fault::from_read(e)),
        (None, Ok(_), Ok(1..)) => Err(Refusal::Stream("bytes after its end".to_owned()).into()),
        (None, Ok(_), _) => Ok(Plain {
            diff_id: DiffId(Digest::finish(hasher)),
            bytes: count,
            headers: entries - left,
            looked,
        }),
    };
    more.doing("read")?;
    let blob = rest.into_inner();
    Ok(Examined { digest: Digest::finish(blob.hasher), size: blob.count, tar })
}

/// Unpacks the layer of that diff id from a blob; no other will do.
pub(crate) fn unpack(
    blob: File,
    diff_id: &DiffId,
    into: &File,
    terms: &Terms<'_>,
) -> Fallible<Report> {
    let alone = |fault| (fault, None);
    let compressed = blob.metadata().doing("inspect").map_err(alone)?.len();
    let plain = Expanded::open(terms.unpacker, blob, terms.compression).map_err(alone)?;
    let mut plain = Bounded::new(plain, compressed, terms.limits, terms.bytes);
    let promise = Promise { compression: Some(Compression::None), ..Promise::default() };
    let mut budget = Budget::new(terms.limits).unpacked_by(terms.unpacker).until(&terms.cancel);
    (budget.bytes, budget.entries) = (terms.bytes, terms.entries);
    let into = (into, Trailer::Optional);
    let read = ingest::ingest(&mut plain, None, &promise, into, &mut budget, &mut |_| {})?;
    // The plain bytes are what was read here, so this is their own digest, and not what a worker says.
    let (expected, got) = (*diff_id, DiffId(read.digest));
    if got != expected {
        return Err(alone(Refusal::DiffId { expected, got }.into()));
    }
    Ok(read.report)
}

/// Digest and size of a file.
pub(crate) fn hash(file: File) -> io::Result<(Digest, u64)> {
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

/// Ends with the work it is done for.
struct Heeding {
    from: File,
    cancel: Cancel,
}

impl Read for Heeding {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.cancel.check()?;
        self.from.read(buf)
    }
}

/// Keeps the first error: what a tar reader makes of it may be another one.
struct Noting<R> {
    from: R,
    fault: Option<Fault>,
}

impl<R: Read> Read for Noting<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.from.read(buf) {
            Err(e) if e.kind() != io::ErrorKind::Interrupted => {
                self.fault.get_or_insert_with(|| Fault::from_read(e));
                Err(io::Error::other("not read to its end"))
            }
            other => other,
        }
    }
}
