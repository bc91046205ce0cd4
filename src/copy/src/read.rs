//! Reading tar entries that an attacker wrote.

use std::io::{self, Read};

use ocivisor_core::error::{Error, ErrorKind, Result};
use tar::{EntryType, Header};

use crate::write::BLOCK;
use crate::{MAX_PATH, MAX_PIECES, shown};

/// Most bytes of a header's extensions.
const MAX_EXTENSIONS: u64 = 1 << 16;

/// One member of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// As it stands there.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryType,
    /// Permissions, set-id bits among them.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Seconds since 1970.
    pub mtime: u64,
    /// Target of a link.
    pub link: Vec<u8>,
    /// Size of the file with its holes.
    pub size: u64,
    /// Where its content goes, if it has holes: offset and length, in order.
    pub pieces: Option<Vec<(u64, u64)>>,
}

/// Reads entries one after the other.
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    /// Bytes of this entry's content that were not read yet, and of its padding.
    left: u64,
    padding: u64,
}

fn bad(what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Invalid, format!("tar stream: {what}"))
}

fn broken(error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => bad("ends in the middle"),
        _ => Error::new(ErrorKind::Host, format!("read the tar stream: {error}")),
    }
}

impl<R: Read> Reader<R> {
    /// Reads from the beginning.
    pub fn new(from: R) -> Self {
        Self { from, left: 0, padding: 0 }
    }

    /// Gives back what it reads from.
    pub fn into_inner(self) -> R {
        self.from
    }

    /// The next entry; what was not read of the last one is skipped. None at the end of the archive.
    ///
    /// # Errors
    /// `Invalid`: no tar, or beyond the bounds. `Host`: it cannot be read.
    #[expect(clippy::should_implement_trait, reason = "it fails, and an iterator would go on")]
    pub fn next(&mut self) -> Result<Option<Entry>> {
        let (mut pax, mut name, mut link) = (Vec::new(), None, None);
        loop {
            self.skip()?;
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let size = header.entry_size().map_err(|_| bad("a size is not a number"))?;
            self.begin(size)?;
            match header.entry_type() {
                EntryType::XHeader => pax = self.extension(size)?,
                EntryType::XGlobalHeader if size <= MAX_EXTENSIONS => {}
                EntryType::GNULongName => name = Some(until_nul(self.extension(size)?)),
                EntryType::GNULongLink => link = Some(until_nul(self.extension(size)?)),
                EntryType::GNUSparse => {
                    return Err(bad("holds a sparse file in GNU tar's old form")
                        .hint("make it with tar --format=posix"));
                }
                _ => return self.entry(&header, &pax, name, link).map(Some),
            }
        }
    }

    /// Reads some of the entry's content; nothing at its end.
    ///
    /// # Errors
    /// As [`Reader::next`].
    pub fn content(&mut self, into: &mut [u8]) -> Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(into.len());
        if most == 0 {
            return Ok(0);
        }
        loop {
            match self.from.read(&mut into[..most]) {
                Ok(0) => return Err(bad("ends in the middle")),
                Ok(n) => {
                    self.left -= n as u64;
                    return Ok(n);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(broken(&e)),
            }
        }
    }

    fn begin(&mut self, size: u64) -> Result<()> {
        // Whole blocks must be countable, too.
        let whole = size
            .checked_next_multiple_of(BLOCK as u64)
            .ok_or_else(|| bad("a size is too large"))?;
        (self.left, self.padding) = (size, whole - size);
        Ok(())
    }

    fn skip(&mut self) -> Result<()> {
        let mut chunk = [0; 16 * 1024];
        while self.content(&mut chunk)? > 0 {}
        let padding = usize::try_from(self.padding).unwrap_or(0).min(BLOCK);
        self.from.read_exact(&mut chunk[..padding]).map_err(|e| broken(&e))?;
        self.padding = 0;
        Ok(())
    }

    /// None at the end: a block of zeros, or nothing where a header could be.
    fn header(&mut self) -> Result<Option<Header>> {
        let mut block = [0; BLOCK];
        let mut got = 0;
        while got < BLOCK {
            match self.from.read(&mut block[got..]) {
                Ok(0) if got == 0 => return Ok(None),
                Ok(0) => return Err(bad("ends in the middle")),
                Ok(n) => got += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(broken(&e)),
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        // The field of the sum counts as blanks.
        let sum = |range: &[u8]| range.iter().map(|byte| u32::from(*byte)).sum::<u32>();
        let found = sum(&block[..148]) + 8 * u32::from(b' ') + sum(&block[156..]);
        let header = Header::from_byte_slice(&block).clone();
        if header.cksum().ok() != Some(found) {
            return Err(bad(
                "a header's checksum is wrong; is it a tar archive, and not compressed?",
            ));
        }
        Ok(Some(header))
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > MAX_EXTENSIONS {
            return Err(bad("a header is longer than 64 KiB"));
        }
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        let mut got = 0;
        while got < bytes.len() {
            got += self.content(&mut bytes[got..])?;
        }
        Ok(bytes)
    }

    fn entry(
        &mut self,
        header: &Header,
        pax: &[u8],
        name: Option<Vec<u8>>,
        link: Option<Vec<u8>>,
    ) -> Result<Entry> {
        let number =
            |field: io::Result<u64>| field.map_err(|_| bad("a header's field is not a number"));
        let mut entry = Entry {
            path: name.unwrap_or_else(|| header.path_bytes().into_owned()),
            kind: header.entry_type(),
            mode: header.mode().map_err(|_| bad("a mode is not a number"))? & 0o7777,
            uid: number(header.uid())?,
            gid: number(header.gid())?,
            // Times before 1970, and none at all.
            mtime: header.mtime().unwrap_or(0),
            link: link
                .or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned))
                .unwrap_or_default(),
            size: self.left,
            pieces: None,
        };
        let mut sparse = (None, None);
        // The name that a sparse file has; its other one nobody should see.
        let mut own = None;
        for record in Records(pax) {
            let (key, value) = record?;
            let number = || {
                let text = std::str::from_utf8(value).ok();
                text.and_then(|text| text.parse::<u64>().ok())
                    .ok_or_else(|| bad("a pax header has no number"))
            };
            match key {
                b"path" => entry.path = value.to_vec(),
                b"linkpath" => entry.link = value.to_vec(),
                b"size" => {
                    let size = number()?;
                    self.begin(size)?;
                    entry.size = size;
                }
                b"uid" => entry.uid = number()?,
                b"gid" => entry.gid = number()?,
                b"mtime" => entry.mtime = seconds(value),
                b"GNU.sparse.major" => sparse.0 = Some(number()?),
                b"GNU.sparse.name" => own = Some(value.to_vec()),
                b"GNU.sparse.realsize" => sparse.1 = Some(number()?),
                b"GNU.sparse.size" | b"GNU.sparse.map" | b"GNU.sparse.numblocks" => {
                    return Err(bad("holds a sparse file in an old form")
                        .hint("make it with tar --format=posix --sparse-version=1.0"));
                }
                _ => {}
            }
        }
        if let Some(own) = own {
            entry.path = own;
        }
        if entry.path.len() > MAX_PATH || entry.link.len() > MAX_PATH {
            return Err(bad("a name is longer than 4096 bytes"));
        }
        if entry.path.contains(&0) || entry.link.contains(&0) {
            return Err(bad("a name has a NUL byte"));
        }
        if entry.kind == EntryType::Continuous {
            entry.kind = EntryType::Regular;
        }
        // Tar before POSIX knew directories by their names.
        if entry.kind == EntryType::Regular && entry.path.ends_with(b"/") {
            entry.kind = EntryType::Directory;
        }
        if let (Some(1), Some(size)) = sparse {
            entry.pieces = Some(self.pieces(size).map_err(|e| e.context(shown(&entry.path)))?);
            entry.size = size;
        }
        Ok(entry)
    }

    /// The map at the beginning of a sparse file's content: how many pieces, then offset and length of
    /// each, a line each, padded to whole blocks.
    fn pieces(&mut self, size: u64) -> Result<Vec<(u64, u64)>> {
        let mut read = 0_u64;
        let mut block = [0; BLOCK];
        let mut at = BLOCK;
        let mut number = || -> Result<u64> {
            let mut value = 0_u64;
            for digits in 0.. {
                if at == BLOCK {
                    let mut got = 0;
                    while got < BLOCK {
                        match self.content(&mut block[got..])? {
                            0 => return Err(bad("a map of holes ends in the middle")),
                            n => got += n,
                        }
                    }
                    at = 0;
                    read += 1;
                }
                let byte = block[at];
                at += 1;
                match byte {
                    b'\n' if digits > 0 => return Ok(value),
                    b'0'..=b'9' if digits < 20 => {
                        let more = value
                            .checked_mul(10)
                            .and_then(|v| v.checked_add(u64::from(byte - b'0')));
                        value = more.ok_or_else(|| bad("a map of holes has too large a number"))?;
                    }
                    _ => return Err(bad("a map of holes is malformed")),
                }
            }
            Err(bad("a map of holes is malformed"))
        };
        let count = number()?;
        if count > MAX_PIECES as u64 {
            return Err(bad(format!("a file has more than {MAX_PIECES} pieces")));
        }
        let mut pieces = Vec::new();
        let mut end = 0;
        let mut sum = 0_u64;
        for _ in 0..count {
            let (offset, length) = (number()?, number()?);
            let next = offset.checked_add(length).filter(|next| offset >= end && *next <= size);
            end = next.ok_or_else(|| bad("the pieces of a file overlap or reach past its end"))?;
            sum += length;
            pieces.push((offset, length));
        }
        if sum != self.left {
            return Err(bad("the pieces of a file are not its content"));
        }
        Ok(pieces)
    }
}

/// The records of a pax header: a number of bytes that counts all of the record, a blank, key, `=`, value, newline.
/// Only the number tells where one ends; values hold any bytes, newlines too (names of files, attributes).
struct Records<'a>(&'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = Result<(&'a [u8], &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let split = || {
            let blank = self.0.iter().position(|byte| *byte == b' ')?;
            let (number, rest) = (&self.0[..blank], blank + 1);
            let length: usize = std::str::from_utf8(number).ok()?.parse().ok()?;
            let record = self.0.get(rest..length)?.strip_suffix(b"\n")?;
            let equals = record.iter().position(|byte| *byte == b'=')?;
            Some((&record[..equals], &record[equals + 1..], &self.0[length..]))
        };
        let Some((key, value, rest)) = split() else {
            self.0 = &[];
            return Some(Err(bad("a pax header is malformed")));
        };
        self.0 = rest;
        Some(Ok((key, value)))
    }
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    bytes
}

/// The whole seconds of a decimal number; those before 1970 are none.
fn seconds(text: &[u8]) -> u64 {
    let whole = text.split(|byte| *byte == b'.').next().unwrap_or_default();
    std::str::from_utf8(whole).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_end_where_their_length_says() {
        let read = |bytes| Records(bytes).map(|r| r.map_err(|e| e.message)).collect::<Vec<_>>();
        let (a, b) = (&b"a"[..], &b"b"[..]);
        assert_eq!(read(b"10 a=x\n\ny\n5 b=\n"), [Ok((a, &b"x\n\ny"[..])), Ok((b, &b""[..]))]);
        assert_eq!(read(b"7 a==\xff\n"), [Ok((a, &b"=\xff"[..]))]);
        let bad = Err("tar stream: a pax header is malformed".to_owned());
        for bytes in [
            &b"5 a=\0"[..],
            b"6 a=\n",
            b"4 a=\n",
            b"5 ab\n",
            b"a=b\n",
            b"0 a=\n",
            b"2 a=\n",
            b"-6 a=\n",
            b"99999999999999999999999 a=\n",
            b" a=\n",
            b"\0\0",
        ] {
            assert_eq!(read(bytes), std::slice::from_ref(&bad), "{}", bytes.escape_ascii());
        }
        assert_eq!(read(b"5 a=\n7 b\n"), [Ok((a, &b""[..])), bad]);
    }
}
