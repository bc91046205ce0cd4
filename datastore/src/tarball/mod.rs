//! A strict, bounded reader of tar streams.
//!
//! Two readers that disagree about where a file ends are a hole (CVE-2025-62518: PAX size against header
//! size), so there is one reader here for layers and for image archives, the PAX size rules, and every stream
//! that could be read in two ways is refused: data after a link or directory, two path records for one entry,
//! global headers that would change entries. Accepted: v7, ustar, PAX and GNU long names, base-256 numbers.
//! Absent on purpose: sparse files, multi-volume archives, volume labels.
//!
//! Memory is bounded by the limits on paths and PAX headers; data is never buffered.

mod header;
mod pax;

use std::io::{self, BufRead, Read, Seek, SeekFrom};

use crate::error::{Fault, Limit, Refusal};
use crate::limits::Limits;
use header::{BLOCK, RawHeader};
use pax::Pax;

pub(crate) use header::Kind;

/// One entry, its data still in the stream.
#[derive(Debug)]
pub(crate) struct Entry {
    /// As in the archive; not yet checked but for NUL and length.
    pub path: Vec<u8>,
    pub link: Vec<u8>,
    pub kind: Kind,
    pub size: u64,
    pub uid: u64,
    pub gid: u64,
    /// Permission bits, 0o7777.
    pub mode: u32,
    /// Seconds and nanoseconds since the epoch.
    pub mtime: (i64, u32),
    /// Names without the `SCHILY.xattr.` prefix.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Whether a tar must say where it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trailer {
    /// A digest vouches for the length; some builders write no end marker.
    Optional,
    /// Nothing else would tell a cut-off file from a whole one.
    Required,
}

/// A reader that can pass over bytes.
pub(crate) trait Skip: Read {
    fn skip(&mut self, mut n: u64) -> io::Result<()> {
        let mut buf = [0; 16 * 1024];
        while n > 0 {
            let want = usize::try_from(n).unwrap_or(usize::MAX).min(buf.len());
            let got = retry_read(self, &mut buf[..want])?;
            if got == 0 {
                return Err(io::Error::other(Refusal::Truncated));
            }
            n -= got as u64;
        }
        Ok(())
    }
}

/// Skips by seeking; for archives on disk.
#[derive(Debug)]
pub(crate) struct Seeking<R>(pub R);

impl<R: Read> Read for Seeking<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl<R: Read + Seek> Skip for Seeking<R> {
    fn skip(&mut self, n: u64) -> io::Result<()> {
        let n = i64::try_from(n).map_err(|_| io::Error::other(Refusal::Truncated))?;
        // A seek past the end succeeds; step on the last byte to see that it is there.
        if n > 0 {
            self.0.seek(SeekFrom::Current(n - 1))?;
            if retry_read(&mut self.0, &mut [0])? == 0 {
                return Err(io::Error::other(Refusal::Truncated));
            }
        }
        Ok(())
    }
}

/// Skips by reading; for everything else.
#[derive(Debug)]
pub(crate) struct Streaming<R>(pub R);

impl<R: Read> Read for Streaming<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl<R: Read> Skip for Streaming<R> {}

fn retry_read<R: Read + ?Sized>(from: &mut R, buf: &mut [u8]) -> io::Result<usize> {
    loop {
        match from.read(buf) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// The stream of entries.
#[derive(Debug)]
pub(crate) struct Tarball<'a, R> {
    from: R,
    limits: &'a Limits,
    /// Headers that may still come.
    budget: &'a mut u64,
    trailer: Trailer,
    /// Offset in the stream.
    at: u64,
    /// Bytes of data, then of padding, still to come for the current entry.
    data: u64,
    padding: u64,
    done: bool,
}

impl<'a, R: Skip> Tarball<'a, R> {
    /// Reads entries from `from`; each header takes one from `budget`.
    pub fn new(from: R, limits: &'a Limits, budget: &'a mut u64, trailer: Trailer) -> Self {
        Self { from, limits, budget, trailer, at: 0, data: 0, padding: 0, done: false }
    }

    /// Offset of the next unread byte: after `next`, where the entry's data starts.
    pub fn offset(&self) -> u64 {
        self.at
    }

    /// The next entry; what was not read of the one before is passed over.
    pub fn next(&mut self) -> Result<Option<Entry>, Fault> {
        if self.done {
            return Ok(None);
        }
        let mut extras = Extras::default();
        loop {
            self.pass_over()?;
            let Some(raw) = self.header()? else {
                self.done = true;
                if extras.any() {
                    return Err(Refusal::Truncated.into());
                }
                return Ok(None);
            };
            let size = raw.size()?;
            match raw.type_flag() {
                b'x' => {
                    let body = self.body(size, self.limits.pax_bytes, Limit::PaxBytes)?;
                    let parsed = pax::parse(&body, self.limits)?;
                    if extras.pax.replace(parsed).is_some() {
                        return Err(Refusal::Pax("two extended headers for one entry").into());
                    }
                }
                b'g' => {
                    let body = self.body(size, self.limits.pax_bytes, Limit::PaxBytes)?;
                    if !pax::parse(&body, self.limits)?.is_inert() {
                        return Err(Refusal::Pax("global header that changes entries").into());
                    }
                }
                b'L' => self.long_name(size, &mut extras.path)?,
                b'K' => self.long_name(size, &mut extras.link)?,
                _ => return self.entry(&raw, size, extras).map(Some),
            }
        }
    }

    /// Reads data of the current entry; 0 at its end.
    pub fn read(&mut self, buf: &mut [u8]) -> Result<usize, Fault> {
        let want = usize::try_from(self.data).unwrap_or(usize::MAX).min(buf.len());
        if want == 0 {
            return Ok(0);
        }
        let got = retry_read(&mut self.from, &mut buf[..want]).map_err(Fault::from_read)?;
        if got == 0 {
            return Err(Refusal::Truncated.into());
        }
        self.data -= got as u64;
        self.at += got as u64;
        Ok(got)
    }

    fn entry(&mut self, raw: &RawHeader, header_size: u64, extras: Extras) -> Result<Entry, Fault> {
        let pax = extras.pax.unwrap_or_default();
        let path = one_of(pax.path, extras.path)?.unwrap_or_else(|| raw.path());
        let link = one_of(pax.link, extras.link)?.unwrap_or_else(|| raw.link());
        for text in [&path, &link] {
            if text.contains(&0) {
                return Err(Refusal::Nul.into());
            }
            if text.len() > self.limits.path_bytes {
                return Err(Refusal::limit(Limit::PathBytes, self.limits.path_bytes).into());
            }
        }
        let size = pax.size.unwrap_or(header_size);
        let kind = raw.kind(&path)?;
        if kind == Kind::File {
            self.expect_data(size)?;
        } else if size != 0 || header_size != 0 {
            return Err(Refusal::Header("data after an entry that has none").into());
        }
        Ok(Entry {
            kind,
            size,
            uid: pax.uid.map_or_else(|| raw.uid(), Ok)?,
            gid: pax.gid.map_or_else(|| raw.gid(), Ok)?,
            mode: raw.mode()?,
            mtime: pax.mtime.map_or_else(|| raw.mtime().map(|s| (s, 0)), Ok)?,
            xattrs: pax.xattrs,
            path,
            link,
        })
    }

    fn expect_data(&mut self, size: u64) -> Result<(), Fault> {
        // Offsets are i64 to the kernel; more cannot be read and would overflow sums.
        if size > i64::MAX as u64 - BLOCK as u64 {
            return Err(Refusal::Header("size out of range").into());
        }
        self.data = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        Ok(())
    }

    fn pass_over(&mut self) -> Result<(), Fault> {
        let n = self.data + self.padding;
        self.from.skip(n).map_err(Fault::from_read)?;
        self.at += n;
        (self.data, self.padding) = (0, 0);
        Ok(())
    }

    /// The next header; none at the end marker or, where that is allowed, at the end of the stream.
    fn header(&mut self) -> Result<Option<RawHeader>, Fault> {
        let Some(block) = self.block()? else {
            return match self.trailer {
                Trailer::Optional => Ok(None),
                Trailer::Required => Err(Refusal::Truncated.into()),
            };
        };
        if block == [0; BLOCK] {
            return match self.block()? {
                None => Ok(None),
                Some(block) if block == [0; BLOCK] => Ok(None),
                Some(_) => Err(Refusal::Header("empty header between entries").into()),
            };
        }
        if *self.budget == 0 {
            return Err(Refusal::limit(Limit::Entries, self.limits.entries).into());
        }
        *self.budget -= 1;
        Ok(Some(RawHeader::check(block)?))
    }

    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, Fault> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match retry_read(&mut self.from, &mut block[filled..]).map_err(Fault::from_read)? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(Refusal::Truncated.into()),
                n => filled += n,
            }
        }
        self.at += BLOCK as u64;
        Ok(Some(block))
    }

    fn body(&mut self, size: u64, max: u64, limit: Limit) -> Result<Vec<u8>, Fault> {
        if size > max {
            return Err(Refusal::limit(limit, max).into());
        }
        self.expect_data(size)?;
        let mut body = vec![0; usize::try_from(size).map_err(|_| Refusal::limit(limit, max))?];
        let mut filled = 0;
        while filled < body.len() {
            filled += self.read(&mut body[filled..])?;
        }
        Ok(body)
    }

    fn long_name(&mut self, size: u64, slot: &mut Option<Vec<u8>>) -> Result<(), Fault> {
        // One more for the NUL that GNU tar puts at the end.
        let max = self.limits.path_bytes as u64;
        if size > max + 1 {
            return Err(Refusal::limit(Limit::PathBytes, max).into());
        }
        let mut name = self.body(size, max + 1, Limit::PathBytes)?;
        while name.last() == Some(&0) {
            name.pop();
        }
        if slot.replace(name).is_some() {
            return Err(Refusal::Header("two long names for one entry").into());
        }
        Ok(())
    }
}

impl<R: BufRead> Tarball<'_, Streaming<R>> {
    /// The next data of the current entry as it lies in the reader's buffer; empty at its end.
    pub fn chunk(&mut self) -> Result<&[u8], Fault> {
        let most = usize::try_from(self.data).unwrap_or(usize::MAX);
        if most == 0 {
            return Ok(&[]);
        }
        let there = self.from.0.fill_buf().map_err(Fault::from_read)?;
        if there.is_empty() {
            return Err(Refusal::Truncated.into());
        }
        Ok(&there[..there.len().min(most)])
    }

    /// Takes `n` bytes of what [`Self::chunk`] showed.
    pub fn consume(&mut self, n: usize) {
        self.from.0.consume(n);
        self.data -= n as u64;
        self.at += n as u64;
    }
}

/// What extension headers said about the entry to come.
#[derive(Default)]
struct Extras {
    pax: Option<Pax>,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl Extras {
    fn any(&self) -> bool {
        self.pax.is_some() || self.path.is_some() || self.link.is_some()
    }
}

fn one_of(pax: Option<Vec<u8>>, gnu: Option<Vec<u8>>) -> Result<Option<Vec<u8>>, Refusal> {
    match (pax, gnu) {
        (Some(a), Some(b)) if a != b => Err(Refusal::Header("PAX and GNU long names differ")),
        (a, b) => Ok(a.or(b)),
    }
}

#[cfg(test)]
mod tests;
