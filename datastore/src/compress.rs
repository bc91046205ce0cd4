//! Compressed streams, with their memory bounded.
//!
//! What a stream is follows from its media type or, for files without one, from its first bytes. Both must
//! agree: a gzip layer served as "tar" is refused, not guessed at. Every format may consist of several members
//! (RFC 1952 §2.2, zstd frames, xz streams); bytes after the last one are refused by the decoders.

use std::fs::File;
use std::io::{self, BufRead, Read};
use std::os::unix::fs::FileExt;

use crate::error::{Doing, Fault, Refusal};

/// How a layer's tar is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// A plain tar.
    None,
    /// gzip, RFC 1952.
    Gzip,
    /// Zstandard, RFC 8878.
    Zstd,
    /// xz; only root file systems come so, image-spec has no such layers.
    Xz,
}

/// Largest zstd window, as a power of two: 128 MiB, what `zstd --ultra -22` uses. A frame may ask for 2^41.
const ZSTD_WINDOW_LOG: u32 = 27;

/// Memory for the xz decoder; `xz -9` needs 65 MiB.
const XZ_MEMORY: u64 = 130 << 20;

impl Compression {
    /// Judges by the first bytes of a file, whose position stays.
    pub(crate) fn of(file: &File) -> Result<Self, Fault> {
        let mut start = [0; 8];
        let n = file.read_at(&mut start, 0).doing("read")?;
        Ok(Self::detect(&start[..n]))
    }

    /// Judges by the first bytes of a stream.
    pub(crate) fn detect(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A frame, or a skippable frame before it (zstd:chunked and friends).
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            _ => Self::None,
        }
    }

    /// What a stream that begins so is to be read as; `declared` is what its media type says, if it has one.
    pub(crate) fn wanted(start: &[u8], declared: Option<Self>) -> Result<Self, Refusal> {
        let found = Self::detect(start);
        // An empty blob of a compressed type is no stream of that type either: the decoders say so.
        let wanted = declared.unwrap_or(found);
        if wanted != found && !start.is_empty() {
            let text = format!("media type says {wanted:?}, the bytes say {found:?}");
            return Err(Refusal::Stream(text.to_lowercase()));
        }
        Ok(wanted)
    }
}

/// A decoder over a buffered reader.
pub(crate) enum Decoder<R: BufRead> {
    None(R),
    Gzip(Box<flate2::bufread::MultiGzDecoder<R>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, R>>),
    Xz(Box<liblzma::bufread::XzDecoder<R>>),
}

impl<R: BufRead> Decoder<R> {
    /// Looks at the start of `from`; `declared` is what its media type says, if it has one.
    pub fn new(mut from: R, declared: Option<Compression>) -> Result<(Self, Compression), Fault> {
        let start = from.fill_buf().map_err(Fault::from_read)?;
        let wanted = Compression::wanted(start, declared)?;
        let decoder = match wanted {
            Compression::None => Self::None(from),
            Compression::Gzip => Self::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(from))),
            Compression::Zstd => {
                let mut zstd =
                    zstd::stream::read::Decoder::with_buffer(from).map_err(Fault::from_read)?;
                zstd.window_log_max(ZSTD_WINDOW_LOG).map_err(Fault::from_read)?;
                Self::Zstd(Box::new(zstd))
            }
            Compression::Xz => {
                let flags = liblzma::stream::CONCATENATED;
                let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, flags)
                    .map_err(|e| Fault::from_read(e.into()))?;
                Self::Xz(Box::new(liblzma::bufread::XzDecoder::new_stream(from, stream)))
            }
        };
        Ok((decoder, wanted))
    }

    pub fn get_ref(&self) -> &R {
        match self {
            Self::None(r) => r,
            Self::Gzip(d) => d.get_ref(),
            Self::Zstd(d) => d.get_ref(),
            Self::Xz(d) => d.get_ref(),
        }
    }

    pub fn into_inner(self) -> R {
        match self {
            Self::None(r) => r,
            Self::Gzip(d) => d.into_inner(),
            Self::Zstd(d) => d.finish(),
            Self::Xz(d) => d.into_inner(),
        }
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::None(r) => r.read(buf),
            Self::Gzip(d) => d.read(buf),
            Self::Zstd(d) => d.read(buf),
            Self::Xz(d) => d.read(buf),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gz(bytes: &[u8]) -> Vec<u8> {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    }

    fn xz(bytes: &[u8]) -> Vec<u8> {
        let mut out = liblzma::write::XzEncoder::new(Vec::new(), 1);
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    }

    fn zst(bytes: &[u8]) -> Vec<u8> {
        zstd::encode_all(bytes, 1).unwrap()
    }

    fn decode(bytes: &[u8], declared: Option<Compression>) -> Result<Vec<u8>, Refusal> {
        let refusal = |fault| match fault {
            Fault::Refused(refusal) => refusal,
            other => panic!("{other:?}"),
        };
        let (mut decoder, _) = Decoder::new(bytes, declared).map_err(refusal)?;
        let mut out = Vec::new();
        decoder.read_to_end(&mut out).map_err(|e| refusal(Fault::from_read(e)))?;
        assert!(decoder.into_inner().is_empty(), "left over");
        Ok(out)
    }

    #[test]
    fn members_in_a_row_are_one_stream_in_every_format() {
        for encode in [gz, xz, zst] {
            let two = [encode(b"one "), encode(b"two")].concat();
            assert_eq!(decode(&two, None).unwrap(), b"one two");
        }
    }

    #[test]
    fn a_hundred_thousand_empty_members_end() {
        for encode in [gz, xz, zst] {
            let many = [encode(b"").repeat(100_000), encode(b"end")].concat();
            assert_eq!(decode(&many, None).unwrap(), b"end");
        }
    }

    #[test]
    fn garbage_after_the_last_member_is_refused() {
        for encode in [gz, xz, zst] {
            let dirty = [encode(b"data"), b"garbage that is no member".to_vec()].concat();
            assert!(matches!(decode(&dirty, None), Err(Refusal::Stream(_))));
        }
    }

    #[test]
    fn a_cut_off_stream_is_refused() {
        for encode in [gz, xz, zst] {
            let whole = encode(b"some data to cut");
            for cut in 6..whole.len() {
                assert!(matches!(decode(&whole[..cut], None), Err(Refusal::Stream(_))), "at {cut}");
            }
        }
    }

    #[test]
    fn a_stream_that_is_not_what_it_is_declared_to_be_is_refused() {
        let said = |r: Result<Vec<u8>, Refusal>| r.unwrap_err().to_string();
        assert_eq!(
            said(decode(&gz(b"x"), Some(Compression::None))),
            "bad compressed stream: media type says none, the bytes say gzip"
        );
        assert_eq!(
            said(decode(b"plain", Some(Compression::Zstd))),
            "bad compressed stream: media type says zstd, the bytes say none"
        );
    }

    #[test]
    fn a_zstd_window_of_four_gigabytes_is_refused() {
        // Frame header: magic, no single segment, window descriptor exponent 22 (2^32), one raw last block.
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 22 << 3, 0x09, 0x00, 0x00, b'x'];
        let why = decode(&frame, None).unwrap_err().to_string();
        assert_eq!(why, "bad compressed stream: Frame requires too much memory for decoding");
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 17 << 3, 0x09, 0x00, 0x00, b'x'];
        assert_eq!(decode(&frame, None).unwrap(), b"x");
    }
}
