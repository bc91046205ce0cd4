//! Writing tar: POSIX.1-2001 (pax) as every reader of images knows it.
//!
//! A header is plain ustar where that can say it all; an extended header comes before it for what does not fit:
//! names above 100 bytes or not ASCII, times with a fraction, ids above 2097151, sizes from 8 GiB, and xattrs as
//! `SCHILY.xattr.*`. ustar's split of long names into two fields is not used: fewer forms, fewer readers that
//! differ. Names that are not UTF-8 are written as the bytes they are. No owners' names, nothing of the clock.
//!
//! What is written is counted like a reader of ours would count it against [`Limits`], so that nothing is made
//! here that could not be imported.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, Stat};
use rustix::io::Errno;

use super::inode;
use crate::error::{Doing, Fault, Limit, Refusal};
use crate::limits::Limits;

const BLOCK: usize = 512;
const NAME: usize = 100;
/// Largest number in 7 and in 11 octal digits.
const ID_MAX: u64 = 0o7_777_777;
const SIZE_MAX: u64 = 0o77_777_777_777;

const BUFFER: usize = 256 * 1024;

/// Type of an entry; the value is the header's type flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Flag {
    File = b'0',
    HardLink = b'1',
    Symlink = b'2',
    Directory = b'5',
    Fifo = b'6',
}

/// What a header says.
#[derive(Debug)]
pub(super) struct Head<'a> {
    /// A directory's ends in `/`.
    pub path: &'a [u8],
    pub flag: Flag,
    pub link: &'a [u8],
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub size: u64,
    pub mtime: (i64, u32),
    /// Names without the prefix.
    pub xattrs: &'a [(Vec<u8>, Vec<u8>)],
}

impl<'a> Head<'a> {
    /// A regular file of an archive that is no file system: nobody's, of no time.
    pub fn member(path: &'a str, size: u64) -> Self {
        Self::plain(path.as_bytes(), Flag::File, size, 0o644)
    }

    /// A directory of the same.
    pub fn folder(path: &'a str) -> Self {
        Self::plain(path.as_bytes(), Flag::Directory, 0, 0o755)
    }

    pub fn plain(path: &'a [u8], flag: Flag, size: u64, mode: u32) -> Self {
        Self { path, flag, link: b"", mode, uid: 0, gid: 0, size, mtime: (0, 0), xattrs: &[] }
    }

    /// The header without an extended one; a size beyond octal is in base-256, as GNU tar has it.
    pub fn block(&self) -> [u8; BLOCK] {
        block(self, self.flag as u8)
    }
}

/// How much may be written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    bytes: u64,
    headers: u64,
    pax_bytes: u64,
}

impl Bounds {
    /// For what was imported once.
    pub const NONE: Self = Self { bytes: u64::MAX, headers: u64::MAX, pax_bytes: u64::MAX };
}

impl From<&Limits> for Bounds {
    fn from(limits: &Limits) -> Self {
        Self { bytes: limits.image_bytes, headers: limits.entries, pax_bytes: limits.pax_bytes }
    }
}

/// A tar in the making.
pub(super) struct TarWriter<W> {
    out: W,
    bounds: Bounds,
    written: u64,
    headers: u64,
}

impl<W: Write> TarWriter<W> {
    pub fn new(out: W, bounds: Bounds) -> Self {
        Self { out, bounds, written: 0, headers: 0 }
    }

    /// What is written to.
    pub fn out_mut(&mut self) -> &mut W {
        &mut self.out
    }

    /// Bytes written.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Writes the headers of an entry; `head.size` bytes of data must follow.
    pub fn head(&mut self, head: &Head<'_>) -> Result<(), Fault> {
        let records = extended(head);
        if !records.is_empty() {
            let max = self.bounds.pax_bytes;
            if records.len() as u64 > max {
                return Err(Refusal::limit(Limit::PaxBytes, max).into());
            }
            let path = b"././@PaxHeader";
            let own = Head::plain(path, Flag::File, records.len() as u64, 0o644);
            self.header(&block(&own, b'x'))?;
            self.data(&records)?;
            self.pad(records.len() as u64)?;
        }
        self.header(&head.block())
    }

    /// Writes an entry and the content of a file that is as `stat` says; holes are not read.
    pub fn file(&mut self, head: &Head<'_>, file: &File, stat: &Stat) -> Result<(), Fault> {
        self.check_room(head.size)?;
        self.head(head)?;
        let mut buffer = vec![0; BUFFER.min(usize::try_from(head.size).unwrap_or(BUFFER).max(1))];
        let sparse = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512) < head.size;
        let mut at = 0;
        while at < head.size {
            let (data, hole) = if sparse { extent(file, at, head.size)? } else { (at, head.size) };
            self.zeros(data - at)?;
            at = data;
            while at < hole {
                let want = buffer.len().min(usize::try_from(hole - at).unwrap_or(usize::MAX));
                let n = match file.read_at(&mut buffer[..want], at) {
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    other => other.doing("read")?,
                };
                if n == 0 {
                    return Err(Refusal::Changed.into());
                }
                self.data(&buffer[..n])?;
                at += n as u64;
            }
        }
        if !inode::same_content(file, stat)? {
            return Err(Refusal::Changed.into());
        }
        self.pad(head.size)
    }

    /// Writes data that comes from elsewhere; the caller pads when it is complete.
    pub fn data(&mut self, data: &[u8]) -> Result<(), Fault> {
        self.check_room(data.len() as u64)?;
        self.out.write_all(data).doing("write")?;
        self.written += data.len() as u64;
        Ok(())
    }

    /// Fills up the block after `size` bytes of data.
    pub fn pad(&mut self, size: u64) -> Result<(), Fault> {
        let left = size.next_multiple_of(BLOCK as u64) - size;
        self.zeros(left)
    }

    /// Writes the end marker and hands the output back.
    pub fn finish(mut self) -> Result<W, Fault> {
        self.zeros(2 * BLOCK as u64)?;
        self.out.flush().doing("write")?;
        Ok(self.out)
    }

    fn header(&mut self, block: &[u8; BLOCK]) -> Result<(), Fault> {
        self.headers += 1;
        if self.headers > self.bounds.headers {
            return Err(Refusal::limit(Limit::Entries, self.bounds.headers).into());
        }
        self.data(block)
    }

    fn zeros(&mut self, mut n: u64) -> Result<(), Fault> {
        static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
        self.check_room(n)?;
        while n > 0 {
            let part = usize::try_from(n).unwrap_or(usize::MAX).min(ZEROS.len());
            self.data(&ZEROS[..part])?;
            n -= part as u64;
        }
        Ok(())
    }

    fn check_room(&self, more: u64) -> Result<(), Fault> {
        let max = self.bounds.bytes;
        if self.written.checked_add(more).is_none_or(|total| total > max) {
            return Err(Refusal::limit(Limit::ImageBytes, max).into());
        }
        Ok(())
    }
}

/// The next data at or after `at`, and the hole after it; both at most `end`.
fn extent(file: &File, at: u64, end: u64) -> Result<(u64, u64), Fault> {
    let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(data) => data.min(end),
        // Nothing but a hole to the end.
        Err(Errno::NXIO) => return Ok((end, end)),
        // A file system that does not tell.
        Err(Errno::INVAL) => return Ok((at, end)),
        Err(e) => return Err(e).doing("seek in"),
    };
    if data == end {
        return Ok((end, end));
    }
    match rustix::fs::seek(file, SeekFrom::Hole(data)) {
        Ok(hole) => Ok((data, hole.clamp(data + 1, end))),
        Err(Errno::NXIO) => Err(Refusal::Changed.into()),
        Err(e) => Err(e).doing("seek in"),
    }
}

/// The records of the extended header; empty where ustar can say it all.
fn extended(head: &Head<'_>) -> Vec<u8> {
    let mut records = Vec::new();
    let mut add = |key: &[u8], value: &[u8]| record(&mut records, key, value);
    if !fits(head.path) {
        add(b"path", head.path);
    }
    if !fits(head.link) {
        add(b"linkpath", head.link);
    }
    if head.size > SIZE_MAX {
        add(b"size", head.size.to_string().as_bytes());
    }
    if head.uid > ID_MAX {
        add(b"uid", head.uid.to_string().as_bytes());
    }
    if head.gid > ID_MAX {
        add(b"gid", head.gid.to_string().as_bytes());
    }
    let (seconds, nanos) = head.mtime;
    if nanos != 0 || !u64::try_from(seconds).is_ok_and(|s| s <= SIZE_MAX) {
        add(b"mtime", time(seconds, nanos).as_bytes());
    }
    for (name, value) in head.xattrs {
        add(&[b"SCHILY.xattr.", &name[..]].concat(), value);
    }
    records
}

/// ASCII fits; other bytes have no agreed meaning in ustar, unless they have none in UTF-8 either.
fn fits(text: &[u8]) -> bool {
    text.len() <= NAME && (text.is_ascii() || str::from_utf8(text).is_err())
}

/// `LENGTH KEY=VALUE\n`, where LENGTH counts itself.
fn record(to: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    to.extend_from_slice(length.to_string().as_bytes());
    to.push(b' ');
    to.extend_from_slice(key);
    to.push(b'=');
    to.extend_from_slice(value);
    to.push(b'\n');
}

/// Seconds with as many decimals as there are; a fraction counts away from zero.
fn time(seconds: i64, nanos: u32) -> String {
    let (sign, whole, fraction) = match (seconds, nanos) {
        (s, 0) if s < 0 => ("-", s.unsigned_abs(), 0),
        (s, n) if s < 0 => ("-", (s + 1).unsigned_abs(), 1_000_000_000 - n),
        (s, n) => ("", s.unsigned_abs(), n),
    };
    let text = format!("{sign}{whole}.{fraction:09}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn block(head: &Head<'_>, flag: u8) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    let cut = |text: &'_ [u8]| text[..text.len().min(NAME)].to_vec();
    let octal = |value: u64, digits: usize| format!("{value:0digits$o}").into_bytes();
    put(0, &cut(head.path));
    put(100, &octal(u64::from(head.mode & 0o7777), 7));
    // What does not fit stands in the extended header, and zero here.
    let id = |id: u64| if id > ID_MAX { 0 } else { id };
    put(108, &octal(id(head.uid), 7));
    put(116, &octal(id(head.gid), 7));
    if head.size > SIZE_MAX {
        // Beside the extended header, so that readers that skip it see the same size.
        put(124, &[&[0x80, 0, 0, 0][..], &head.size.to_be_bytes()].concat());
    } else {
        put(124, &octal(head.size, 11));
    }
    let seconds = u64::try_from(head.mtime.0).ok().filter(|s| *s <= SIZE_MAX);
    put(136, &octal(seconds.unwrap_or(0), 11));
    put(148, b"        ");
    put(156, &[flag]);
    put(157, &cut(head.link));
    put(257, b"ustar\x0000");
    put(329, b"0000000");
    put(337, b"0000000");
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tarball::{Kind, Streaming, Tarball, Trailer};

    impl TarWriter<Vec<u8>> {
        fn bytes(&mut self, head: &Head<'_>, data: &[u8]) -> Result<(), Fault> {
            self.head(head)?;
            self.data(data)?;
            self.pad(head.size)
        }
    }

    fn written(fill: impl Fn(&mut TarWriter<Vec<u8>>)) -> Vec<u8> {
        let limits = Limits::default();
        let mut tar = TarWriter::new(Vec::new(), (&limits).into());
        fill(&mut tar);
        tar.finish().unwrap()
    }

    #[test]
    fn times_are_written_with_the_digits_they_have() {
        for (time_, want) in [
            ((0, 0), "0"),
            ((100, 0), "100"),
            ((1, 500_000_000), "1.5"),
            ((1, 1), "1.000000001"),
            ((-1, 0), "-1"),
            ((-1, 750_000_000), "-0.25"),
            ((-2, 750_000_000), "-1.25"),
        ] {
            assert_eq!(time(time_.0, time_.1), want, "{time_:?}");
        }
    }

    #[test]
    fn our_reader_reads_back_what_ustar_cannot_say() {
        let long = [b"d/".repeat(60), "n\u{e4}me\n\u{0}".as_bytes()[..6].to_vec()].concat();
        let target = vec![0xff; 3000];
        let xattrs = [(b"user.a".to_vec(), b"=\n\0".to_vec())];
        let head = Head {
            path: &long,
            flag: Flag::Symlink,
            link: &target,
            mode: 0o4755,
            uid: 4_000_000_000,
            gid: 2_097_152,
            size: 0,
            mtime: (-3, 250_000_000),
            xattrs: &xattrs,
        };
        let tar = written(|t| t.head(&head).unwrap());
        let limits = Limits::default();
        let mut budget = 100;
        let mut read = Tarball::new(Streaming(&tar[..]), &limits, &mut budget, Trailer::Required);
        let entry = read.next().unwrap().unwrap();
        assert_eq!((&entry.path, &entry.link, entry.kind), (&long, &target, Kind::Symlink));
        assert_eq!((entry.uid, entry.gid, entry.mode), (4_000_000_000, 2_097_152, 0o4755));
        assert_eq!((entry.mtime, &entry.xattrs[..]), ((-3, 250_000_000), &xattrs[..]));
        assert!(read.next().unwrap().is_none());
    }

    #[test]
    fn a_plain_entry_has_one_header_and_the_same_bytes_every_time() {
        let tar = || written(|t| t.bytes(&Head::member("a", 3), b"abc").unwrap());
        assert_eq!(tar().len(), 512 + 512 + 1024);
        assert_eq!(tar(), tar());
        assert_eq!(&tar()[512..516], b"abc\0");
    }

    #[test]
    fn a_size_beyond_octal_is_said_the_same_twice() {
        let size = 9 << 30;
        let limits = Limits::default();
        let mut tar = TarWriter::new(Vec::new(), (&limits).into());
        tar.head(&Head::member("a", size)).unwrap();
        let bytes = tar.finish().unwrap();
        let mut budget = 100;
        let mut read = Tarball::new(Streaming(&bytes[..]), &limits, &mut budget, Trailer::Required);
        assert_eq!(read.next().unwrap().unwrap().size, size);
        // Without the extended header, as it is written when the size turns out later.
        let bytes = Head::member("a", size).block();
        let mut read = Tarball::new(Streaming(&bytes[..]), &limits, &mut budget, Trailer::Required);
        assert_eq!(read.next().unwrap().unwrap().size, size);
    }

    #[test]
    fn a_file_that_changed_since_it_was_looked_at_is_an_error() {
        use std::os::unix::fs::FileExt;
        for change in [
            &(|f: &File| f.set_len(2000).unwrap()) as &dyn Fn(&File),
            &|f| {
                f.set_len(9000).unwrap();
            },
            &|f| f.write_all_at(b"x", 5000).unwrap(),
        ] {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&[1; 6000], 0).unwrap();
            file.set_modified(std::time::UNIX_EPOCH).unwrap();
            let stat = rustix::fs::fstat(&file).unwrap();
            change(&file);
            let limits = Limits::default();
            let mut tar = TarWriter::new(Vec::new(), (&limits).into());
            let made = tar.file(&Head::member("a", 6000), &file, &stat);
            assert!(matches!(made, Err(Fault::Refused(Refusal::Changed))), "{made:?}");
        }
    }

    #[test]
    fn what_could_not_be_imported_is_not_written() {
        let limits = Limits { image_bytes: 4096, entries: 3, ..Limits::default() };
        let refused = |r: Result<(), Fault>| match r {
            Err(Fault::Refused(Refusal::Limit { limit, .. })) => limit,
            other => panic!("{other:?}"),
        };
        let mut tar = TarWriter::new(Vec::new(), (&limits).into());
        assert_eq!(refused(tar.bytes(&Head::member("a", 4000), &[1; 4000])), Limit::ImageBytes);
        let mut tar = TarWriter::new(Vec::new(), (&limits).into());
        for _ in 0..3 {
            tar.head(&Head::member("a", 0)).unwrap();
        }
        assert_eq!(refused(tar.head(&Head::member("a", 0))), Limit::Entries);
    }
}
