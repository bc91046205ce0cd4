//! The plain bytes of a compressed stream, decompressed where it can do no harm: by a confined process, if the store
//! has one.
//!
//! The decoders are the largest pieces of code that foreign bytes meet, and not written in Rust where it is zstd or
//! xz. What reads the plain bytes, a tar reader say, may stay here.

use std::io::{self, BufRead, BufReader, Read};

use crate::compress::{Compression, Decoder};
use crate::error::Fault;
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
