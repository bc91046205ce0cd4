//! The plain bytes of a compressed stream, decompressed where it can do no harm: by a confined process, if the store
//! has one.
//!
//! The decoders are the largest pieces of code that foreign bytes meet, and not written in Rust where it is zstd or
//! xz. What reads the plain bytes, a tar reader say, may stay here.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};

use crate::compress::{Compression, Decoder};
use crate::error::{Doing, Fault, Limit, Refusal};
use crate::limits::Limits;
use crate::worker::{Stream, Unpacker};

const BUFFER: usize = 128 * 1024;

/// A reader of the plain bytes. Its end is that of the whole stream; anything else is an error.
pub(crate) enum Expanded<R: Read> {
    /// Decompressed here, or not compressed at all.
    Here(Decoder<BufReader<R>>),
    /// Decompressed by a worker.
    There(Stream<BufReader<R>>),
}

impl<R: Read + Send + 'static> Expanded<R> {
    /// Looks at the start of `from`; `declared` is what its media type says, if it has one.
    pub fn open(
        unpacker: &Unpacker,
        from: R,
        declared: Option<Compression>,
    ) -> Result<Self, Fault> {
        let mut from = BufReader::with_capacity(BUFFER, from);
        if let Unpacker::Worker(worker) = unpacker {
            let start = from.fill_buf().map_err(Fault::from_read)?;
            let wanted = Compression::wanted(start, declared)?;
            if wanted != Compression::None {
                return Ok(Self::There(Stream::expand(worker, from, Some(wanted))?));
            }
        }
        Ok(Self::Here(Decoder::new(from, declared)?.0))
    }
}

impl<R: Read> Expanded<R> {
    /// What was not read of the compressed stream.
    pub fn into_rest(self) -> io::Result<BufReader<R>> {
        match self {
            Self::Here(decoder) => Ok(decoder.into_inner()),
            Self::There(stream) => stream.into_source(),
        }
    }
}

impl<R: Read> Read for Expanded<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Here(decoder) => decoder.read(buf),
            Self::There(stream) => stream.read(buf),
        }
    }
}

/// Plain bytes, as far as the limits on bytes and ratio allow. They are counted here: no worker is asked.
pub(crate) struct Bounded<R: Read> {
    from: Expanded<R>,
    total: u64,
    max: (u64, Refusal),
}

impl Bounded<File> {
    /// Of a whole file.
    pub fn file(file: File, limits: &Limits, unpacker: &Unpacker) -> Result<Self, Fault> {
        let size = file.metadata().doing("inspect")?.len();
        let from = Expanded::open(unpacker, file, None)?;
        Ok(Self::new(from, size, limits, limits.image_bytes))
    }
}

impl<R: Read> Bounded<R> {
    /// `size` bytes that are compressed may become `bytes`, or fewer if the ratio says so.
    pub fn new(from: Expanded<R>, size: u64, limits: &Limits, bytes: u64) -> Self {
        let fair = size.saturating_mul(limits.ratio).max(limits.ratio_floor);
        let max = if fair < bytes {
            (fair, Refusal::limit(Limit::Ratio, limits.ratio))
        } else {
            (bytes, Refusal::limit(Limit::ImageBytes, limits.image_bytes))
        };
        Self { from, total: 0, max }
    }

    pub fn into_inner(self) -> Expanded<R> {
        self.from
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buf)?;
        self.total += n as u64;
        let (max, refusal) = &self.max;
        if self.total > *max {
            return Err(io::Error::other(refusal.clone()));
        }
        Ok(n)
    }
}
