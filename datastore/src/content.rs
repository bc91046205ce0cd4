//! What a blob holds: decompressed, measured against the limits, hashed, unpacked.
//!
//! ```text
//! this thread    blob ─► Decoder ─► Plain (limits, sha256 = diff id) ─┐ blocks
//! another        directory ◄── tree ◄── tar reader ◄──────────────────┘
//! ```
//!
//! Inflating and hashing take about as long as making the files, so each has a thread; a few blocks between them are
//! all that is ever in memory. This is all that may run in a confined worker: it reads a stream, writes below one
//! directory, and knows no store.
//!
//! The stream is read to its end whatever the tar says: what follows the end of the tar belongs to its digest.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use sha2::{Digest as _, Sha256};

use crate::compress::{Compression, Decoder};
use crate::digest::{DiffId, Digest};
use crate::error::{Doing, Fault, Limit, Refusal};
use crate::limits::Limits;
use crate::tarball::{Streaming, Tarball, Trailer};
use crate::unpack::{self, Marks, Report};

const BUFFER: usize = 128 * 1024;

/// Bytes in a block. Small enough that it is still in the processor's cache when it is written.
const BLOCK: usize = 256 * 1024;

/// Blocks between the threads.
const AHEAD: usize = 16;

/// What is allowed and wanted.
#[derive(Debug)]
pub(crate) struct Task<'a> {
    pub limits: &'a Limits,
    /// Uncompressed bytes that the image may still have.
    pub bytes: u64,
    /// Tar headers that the image may still have.
    pub entries: u64,
    pub compression: Option<Compression>,
}

/// Where the files go, and how the tar must end.
pub(crate) type Into<'a> = (&'a File, Trailer);

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Content {
    pub diff_id: DiffId,
    /// Uncompressed.
    pub bytes: u64,
    /// Tar headers.
    pub headers: u64,
    pub compression: Compression,
    pub report: Report,
}

/// An error of the tar reader comes with the path of the entry, escaped.
pub(crate) type Fallible<T> = Result<T, (Fault, Option<String>)>;

/// Reads a blob to its end.
pub(crate) fn read<R: Read>(
    from: R,
    task: &Task<'_>,
    into: Into<'_>,
    marks: &mut dyn Marks,
) -> Fallible<Content> {
    let plain = |fault: Fault| (fault, None);
    let counted = BufReader::with_capacity(BUFFER, Counted { from, count: 0 });
    let (decoder, compression) = Decoder::new(counted, task.compression).map_err(plain)?;
    let mut layer =
        Plain { decoder, hasher: Sha256::new(), count: 0, limits: task.limits, max: task.bytes };
    let unpacked = unpack(&mut layer, task, into, marks)?;
    drain(&mut layer).map_err(plain)?;

    if drain(&mut layer.decoder.into_inner()).map_err(plain)? > 0 {
        return Err(plain(Refusal::Stream("bytes after its end".to_owned()).into()));
    }
    Ok(Content {
        diff_id: DiffId(Digest::finish(layer.hasher)),
        bytes: layer.count,
        headers: unpacked.headers,
        compression,
        report: unpacked.report,
    })
}

/// Decompresses a stream to its end; says how many bytes it was.
///
/// What came before a fault is handed on: to look at the first bytes of a stream that is cut off, say.
pub(crate) fn expand<R: Read>(
    from: R,
    compression: Option<Compression>,
    mut to: impl Write,
) -> Result<u64, Fault> {
    let from = BufReader::with_capacity(BUFFER, from);
    let (mut decoder, _) = Decoder::new(from, compression)?;
    let mut block = vec![0; BLOCK];
    let mut count = 0;
    loop {
        match decoder.read(&mut block) {
            Ok(0) => break,
            Ok(n) => {
                to.write_all(&block[..n]).doing("write")?;
                count += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Fault::from_read(e)),
        }
    }
    if drain(&mut decoder.into_inner())? > 0 {
        return Err(Refusal::Stream("bytes after its end".to_owned()).into());
    }
    Ok(count)
}

struct Unpacked {
    report: Report,
    headers: u64,
}

fn unpack<R: Read>(
    layer: &mut Plain<'_, BufReader<Counted<R>>>,
    task: &Task<'_>,
    (into, trailer): Into<'_>,
    marks: &mut dyn Marks,
) -> Fallible<Unpacked> {
    let (filled, full) = sync_channel(AHEAD);
    let (emptied, empty) = channel();
    std::thread::scope(|scope| {
        let files =
            std::thread::Builder::new().name("files".into()).spawn_scoped(scope, move || {
                let mut blocks = Blocks { full, emptied, now: Vec::new(), at: 0 };
                let mut left = task.entries;
                let tarball = Tarball::new(Streaming(&mut blocks), task.limits, &mut left, trailer);
                let report = unpack::unpack(tarball, into, task.limits, marks);
                // What was read ahead is hashed already; an error in it counts, if no other came first.
                let unseen = report.is_ok().then(|| blocks.full.into_iter().find_map(Result::err));
                (report, task.entries - left, unseen.flatten())
            });
        let files = files.map_err(|e| (Fault::Io("start a thread for", e), None))?;
        feed(layer, &filled, &empty);
        drop(filled);
        let Ok((report, headers, unseen)) = files.join() else {
            return Err((Fault::Worker("thread that makes files panicked".into()), None));
        };
        let report = report.map_err(|(fault, at)| (fault, Some(at)))?;
        if let Some(error) = unseen {
            return Err((Fault::from_read(error), None));
        }
        if trailer == Trailer::Required && report.entries == 0 {
            return Err((Refusal::NoFiles.into(), None));
        }
        Ok(Unpacked { report, headers })
    })
}

/// Sends blocks until the stream ends or nobody wants more.
fn feed(
    layer: &mut impl Read,
    filled: &SyncSender<io::Result<Vec<u8>>>,
    empty: &Receiver<Vec<u8>>,
) {
    loop {
        let mut block = empty.try_recv().unwrap_or_default();
        block.resize(BLOCK, 0);
        let read = fill(layer, &mut block);
        let end = !matches!(read, Ok(n) if n == BLOCK);
        let sent = match read {
            Ok(n) => {
                block.truncate(n);
                filled.send(Ok(block))
            }
            Err(e) => filled.send(Err(e)),
        };
        if end || sent.is_err() {
            return;
        }
    }
}

/// Reads until the block is full or the stream ends.
fn fill(from: &mut impl Read, block: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < block.len() {
        match from.read(&mut block[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

fn drain(from: &mut impl Read) -> Result<u64, Fault> {
    io::copy(from, &mut io::sink()).map_err(Fault::from_read)
}

/// The blocks as a stream again.
struct Blocks {
    full: Receiver<io::Result<Vec<u8>>>,
    emptied: Sender<Vec<u8>>,
    now: Vec<u8>,
    at: usize,
}

impl BufRead for Blocks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.now.len()
            && let Ok(next) = self.full.recv()
        {
            let used = std::mem::replace(&mut self.now, next?);
            self.at = 0;
            // Nobody reads any more once the stream has ended.
            let _ = self.emptied.send(used);
        }
        Ok(&self.now[self.at..])
    }

    fn consume(&mut self, n: usize) {
        self.at += n;
    }
}

impl Read for Blocks {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let there = self.fill_buf()?;
        let n = there.len().min(buf.len());
        buf[..n].copy_from_slice(&there[..n]);
        self.consume(n);
        Ok(n)
    }
}

/// The compressed stream: counted, for the ratio.
struct Counted<R> {
    from: R,
    count: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buf)?;
        self.count += n as u64;
        Ok(n)
    }
}

/// The uncompressed tar: counted against the limits, hashed.
struct Plain<'a, R: BufRead> {
    decoder: Decoder<R>,
    hasher: Sha256,
    count: u64,
    limits: &'a Limits,
    max: u64,
}

impl<R: Read> Read for Plain<'_, BufReader<Counted<R>>> {
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
