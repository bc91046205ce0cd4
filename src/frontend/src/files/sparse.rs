//! A sparse file over a connection: its data and no holes.
//!
//! Pieces of `offset (8 bytes) length (4 bytes) data`, big-endian, ascending; the last has length 0 and its offset is the
//! file's size. A piece at the largest offset of all says in words why no more comes. What reads as zeros is not sent, so a disk that lost its holes on a file system without them gets them
//! back.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use ocivisor_core::error::{Error, ErrorKind, Result};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::{broken, failed, garbled, is_broken};

/// Most bytes of a piece.
const PIECE: usize = 256 * 1024;
/// What is looked at for zeros at once.
const GRAIN: usize = 64 * 1024;
/// Largest file: 1 EiB.
const MAX_SIZE: u64 = 1 << 60;
/// The offset of a piece that is none, but why the sender failed.
const FAULT: u64 = u64::MAX;
/// Most bytes of that.
const MAX_FAULT: usize = 1200;

/// Sends a file; says how many bytes of data it has.
///
/// # Errors
/// It cannot be read, shrinks meanwhile, or the other side is gone.
pub fn send(file: &File, path: &Path, to: &mut impl Write) -> Result<u64> {
    let sent = send_pieces(file, path, to);
    if let Err(error) = &sent
        && !is_broken(error)
    {
        // If it cannot be told either, the connection breaks, and that is told.
        let text = error.message.as_bytes();
        let _ = piece(to, FAULT, &text[..text.len().min(MAX_FAULT)])
            .and_then(|()| to.flush().map_err(broken));
    }
    sent
}

fn send_pieces(file: &File, path: &Path, to: &mut impl Write) -> Result<u64> {
    let size = file.metadata().map_err(|e| failed("look at", path, e))?.len();
    let mut buffer = vec![0; PIECE];
    let (mut at, mut sent) = (0, 0);
    while at < size {
        let Some((begin, end)) = extent(file, at, size).map_err(|e| failed("read", path, e))?
        else {
            break;
        };
        at = begin;
        while at < end {
            let want = PIECE.min(usize::try_from(end - at).unwrap_or(PIECE));
            let block = &mut buffer[..want];
            file.read_exact_at(block, at).map_err(|e| failed("read", path, e))?;
            let mut from = at;
            for grain in block.chunks(GRAIN) {
                if grain.iter().any(|byte| *byte != 0) {
                    piece(to, from, grain)?;
                    sent += grain.len() as u64;
                }
                from += grain.len() as u64;
            }
            at += want as u64;
        }
    }
    piece(to, size, &[])?;
    Ok(sent)
}

/// The next data at or after an offset.
fn extent(file: &File, at: u64, size: u64) -> std::result::Result<Option<(u64, u64)>, Errno> {
    let begin = match seek(file, SeekFrom::Data(at)) {
        Ok(begin) => begin,
        Err(Errno::NXIO) => return Ok(None),
        // Not every file system knows of holes: all of it is data.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((at, size))),
        Err(e) => return Err(e),
    };
    let end = seek(file, SeekFrom::Hole(begin))?;
    Ok((begin < size).then_some((begin, end.min(size))))
}

fn piece(to: &mut impl Write, at: u64, data: &[u8]) -> Result<()> {
    let mut head = [0; 12];
    head[..8].copy_from_slice(&at.to_be_bytes());
    head[8..].copy_from_slice(&u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes());
    to.write_all(&head).and_then(|()| to.write_all(data)).map_err(broken)
}

/// What a file's pieces go to.
pub trait Sink {
    /// Takes data at its offset.
    ///
    /// # Errors
    /// It cannot be written.
    fn data(&mut self, at: u64, data: &[u8]) -> Result<()>;

    /// Takes the size.
    ///
    /// # Errors
    /// It cannot be set.
    fn end(&mut self, size: u64) -> Result<()>;
}

/// Receives a file; says how many bytes of data it has.
///
/// # Errors
/// The other side is gone, or sends what is no file.
pub fn receive(from: &mut impl Read, to: &mut impl Sink) -> Result<u64> {
    let mut buffer = vec![0; PIECE];
    let (mut least, mut got) = (0, 0);
    loop {
        let mut head = [0; 12];
        from.read_exact(&mut head).map_err(broken)?;
        let (at, length) = head.split_at(8);
        let at = u64::from_be_bytes(at.try_into().map_err(garbled)?);
        let length = u32::from_be_bytes(length.try_into().map_err(garbled)?) as usize;
        if at == FAULT && (1..=MAX_FAULT).contains(&length) {
            let text = &mut buffer[..length];
            from.read_exact(text).map_err(broken)?;
            return Err(Error::new(ErrorKind::Host, String::from_utf8_lossy(text)));
        }
        if at < least || at > MAX_SIZE || length > PIECE {
            return Err(garbled(format!("{length} bytes at {at}")));
        }
        if length == 0 {
            to.end(at)?;
            return Ok(got);
        }
        let block = &mut buffer[..length];
        from.read_exact(block).map_err(broken)?;
        to.data(at, block)?;
        least = at + length as u64;
        got += length as u64;
    }
}

/// A new, empty file.
#[derive(Debug)]
pub struct NewFile<'a> {
    /// The file.
    pub file: &'a File,
    /// For messages.
    pub path: &'a Path,
}

impl Sink for NewFile<'_> {
    fn data(&mut self, at: u64, data: &[u8]) -> Result<()> {
        self.file.write_all_at(data, at).map_err(|e| failed("write", self.path, e))
    }

    fn end(&mut self, size: u64) -> Result<()> {
        self.file.set_len(size).map_err(|e| failed("set size of", self.path, e))
    }
}

/// Takes no more than that, of data or in size.
#[derive(Debug)]
pub struct Bounded<'a, S> {
    /// Where it goes.
    pub to: S,
    /// Bytes of data that are left.
    pub left: &'a mut u64,
    /// Largest size of a file: what is no data now costs as much when it is copied to where there are no holes.
    pub largest: u64,
}

impl<S: Sink> Sink for Bounded<'_, S> {
    fn data(&mut self, at: u64, data: &[u8]) -> Result<()> {
        *self.left = self.left.checked_sub(data.len() as u64).ok_or_else(too_much)?;
        self.to.data(at, data)
    }

    fn end(&mut self, size: u64) -> Result<()> {
        if size > self.largest { Err(too_much()) } else { self.to.end(size) }
    }
}

/// The other side sends more than it may.
fn too_much() -> Error {
    Error::new(ErrorKind::Exhausted, "more comes than the VM's disks can have")
        .hint("look at the host: it may be broken, or not be trusted any more")
}

/// Another connection.
#[derive(Debug)]
pub struct Onward<'a, W>(pub &'a mut W);

impl<W: Write> Sink for Onward<'_, W> {
    fn data(&mut self, at: u64, data: &[u8]) -> Result<()> {
        piece(self.0, at, data)
    }

    fn end(&mut self, size: u64) -> Result<()> {
        piece(self.0, size, &[])
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use ocivisor_core::error::ErrorKind;

    use super::*;

    #[test]
    fn holes_stay_holes_and_zeros_become_holes() {
        let source = tempfile::tempfile().unwrap();
        source.set_len(64 << 20).unwrap();
        source.write_all_at(b"begin", 0).unwrap();
        source.write_all_at(&vec![0; 1 << 20], 8 << 20).unwrap();
        source.write_all_at(b"end", (64 << 20) - 3).unwrap();
        let path = Path::new("x");
        let mut wire = Vec::new();
        let sent = send(&source, path, &mut wire).unwrap();
        assert!(sent <= 2 * GRAIN as u64, "{sent}");
        let mut onward = Vec::new();
        assert_eq!(receive(&mut &wire[..], &mut Onward(&mut onward)).unwrap(), sent);
        assert_eq!(onward, wire);
        let copy = tempfile::tempfile().unwrap();
        receive(&mut &wire[..], &mut NewFile { file: &copy, path }).unwrap();
        let meta = copy.metadata().unwrap();
        assert_eq!(meta.len(), 64 << 20);
        assert!(meta.blocks() * 512 < 1 << 20);
        let mut tail = [0; 3];
        copy.read_exact_at(&mut tail, (64 << 20) - 3).unwrap();
        assert_eq!(&tail, b"end");
    }

    #[test]
    fn the_other_side_learns_why_a_file_does_not_come() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::File::options().write(true).open(file.path()).unwrap().set_len(10).unwrap();
        // Open for writing alone: it has a size, and cannot be read.
        let closed = File::options().write(true).open(file.path()).unwrap();
        closed.write_all_at(b"0123456789", 0).unwrap();
        let mut wire = Vec::new();
        let error = send(&closed, Path::new("/d/1/2/disk.0"), &mut wire).unwrap_err();
        let heard = receive(&mut &wire[..], &mut Onward(&mut Vec::new())).unwrap_err();
        assert_eq!(heard.message, error.message);
        assert!(heard.message.starts_with("read /d/1/2/disk.0: "), "{heard}");
    }

    #[test]
    fn no_more_is_taken_than_there_may_be() {
        let source = tempfile::tempfile().unwrap();
        source.write_all_at(&[1; 1000], 0).unwrap();
        let mut wire = Vec::new();
        send(&source, Path::new("x"), &mut wire).unwrap();
        for (mut left, largest, fits) in
            [(1000, 1000, true), (999, 1000, false), (1000, 999, false)]
        {
            let mut onward = Vec::new();
            let mut sink = Bounded { to: Onward(&mut onward), left: &mut left, largest };
            let done = receive(&mut &wire[..], &mut sink);
            assert_eq!(done.is_ok(), fits, "{done:?}");
        }
    }

    #[test]
    fn what_is_no_file_is_refused() {
        struct Nowhere;
        impl Sink for Nowhere {
            fn data(&mut self, _: u64, _: &[u8]) -> Result<()> {
                Ok(())
            }
            fn end(&mut self, _: u64) -> Result<()> {
                Ok(())
            }
        }
        let mut backwards = Vec::new();
        piece(&mut backwards, 10, b"ab").unwrap();
        piece(&mut backwards, 5, b"ab").unwrap();
        let huge = [u64::MAX.to_be_bytes().as_slice(), &[0; 4]].concat();
        let long = [[0; 8].as_slice(), &u32::MAX.to_be_bytes()].concat();
        for (bytes, kind) in [
            (&backwards, ErrorKind::Integrity),
            (&huge, ErrorKind::Integrity),
            (&long, ErrorKind::Integrity),
            (&backwards[..13].to_vec(), ErrorKind::Host),
        ] {
            assert_eq!(receive(&mut &bytes[..], &mut Nowhere).unwrap_err().kind, kind);
        }
    }
}
