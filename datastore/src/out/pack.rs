//! Compressing on all processors, hashing both sides.
//!
//! The tar is cut into pieces of fixed size, and each becomes a member of its own (RFC 1952 §2.2; RFC 8878 §3.1):
//! streams of several members are one stream to every reader, and the result does not depend on how many
//! threads there were. The calling thread produces the tar, hashes it, and writes the members in order.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;

use sha2::{Digest as _, Sha256};

use super::commit::Packing;
use crate::digest::{DiffId, Digest};
use crate::error::{Doing, Fault};

/// Bytes of tar per member: what is lost at its borders is far below a percent.
const PIECE: usize = 1 << 20;
const THREADS_MAX: usize = 8;
/// gzip's own default is 6: 4 per cent smaller for twice the time.
const GZIP_LEVEL: u32 = 5;
const ZSTD_LEVEL: i32 = 3;

/// What was written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packed {
    /// Of the blob.
    pub size: u64,
    pub digest: Digest,
    /// Of the tar.
    pub diff_id: DiffId,
}

struct Job {
    piece: Vec<u8>,
    answer: mpsc::SyncSender<io::Result<Vec<u8>>>,
}

/// Takes a tar and writes it compressed.
pub(super) struct Packer<'a> {
    to: &'a File,
    piece: Vec<u8>,
    jobs: mpsc::Sender<Job>,
    /// Members being made, the oldest first.
    ahead: VecDeque<mpsc::Receiver<io::Result<Vec<u8>>>>,
    ahead_max: usize,
    tar: Sha256,
    blob: Sha256,
    size: u64,
}

/// Runs `fill`, which writes the tar, and returns what it returned. Errors come with what they are about.
pub(super) fn pack<T>(
    to: &File,
    packing: Packing,
    fill: impl FnOnce(&mut Packer<'_>) -> Result<T, (Fault, String)>,
) -> Result<(T, Packed), (Fault, String)> {
    let blob = |fault| (fault, String::from("blob"));
    let threads = thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
    let (jobs, queue) = mpsc::channel::<Job>();
    let queue = Mutex::new(queue);
    thread::scope(|scope| {
        for _ in 0..threads {
            let work = || {
                loop {
                    // Held while waiting: the others wait here instead.
                    let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(Job { piece, answer }) = job else { return };
                    // Nobody takes the answer once writing has failed.
                    let _ = answer.send(compress(&piece, packing));
                }
            };
            let named = thread::Builder::new().name("pack".into());
            named.spawn_scoped(scope, work).doing("start a thread for").map_err(blob)?;
        }
        let mut packer = Packer {
            to,
            piece: Vec::with_capacity(PIECE),
            jobs,
            ahead: VecDeque::new(),
            ahead_max: threads * 2,
            tar: Sha256::new(),
            blob: Sha256::new(),
            size: 0,
        };
        let made = fill(&mut packer)?;
        Ok((made, packer.finish().doing("write").map_err(blob)?))
    })
}

fn compress(piece: &[u8], packing: Packing) -> io::Result<Vec<u8>> {
    match packing {
        Packing::Gzip => {
            let level = flate2::Compression::new(GZIP_LEVEL);
            // No name, no time: the same input, the same bytes.
            let mut out = flate2::write::GzEncoder::new(Vec::with_capacity(PIECE / 2), level);
            out.write_all(piece)?;
            out.finish()
        }
        Packing::Zstd => zstd::bulk::compress(piece, ZSTD_LEVEL),
    }
}

impl Packer<'_> {
    fn send(&mut self) -> io::Result<()> {
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE));
        self.tar.update(&piece);
        let (answer, member) = mpsc::sync_channel(1);
        self.jobs.send(Job { piece, answer }).map_err(|_| io::Error::other("compressor died"))?;
        self.ahead.push_back(member);
        if self.ahead.len() > self.ahead_max { self.receive() } else { Ok(()) }
    }

    fn receive(&mut self) -> io::Result<()> {
        let Some(member) = self.ahead.pop_front() else { return Ok(()) };
        let member = member.recv().map_err(|_| io::Error::other("compressor died"))??;
        self.blob.update(&member);
        self.size += member.len() as u64;
        self.to.write_all(&member)
    }

    fn finish(mut self) -> io::Result<Packed> {
        if !self.piece.is_empty() {
            self.send()?;
        }
        while !self.ahead.is_empty() {
            self.receive()?;
        }
        Ok(Packed {
            size: self.size,
            digest: Digest::finish(self.blob),
            diff_id: DiffId(Digest::finish(self.tar)),
        })
    }
}

impl Write for Packer<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = buf.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&buf[..n]);
        if self.piece.len() == PIECE {
            self.send()?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Read, Seek};

    use super::*;
    use crate::compress::Decoder;
    use crate::error::Refusal;

    #[test]
    fn pieces_compressed_beside_each_other_are_one_stream() {
        let tar: Vec<u8> = (0..5_000_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        for packing in [Packing::Gzip, Packing::Zstd] {
            let mut to = tempfile::tempfile().unwrap();
            let fill = |p: &mut Packer<'_>| {
                p.write_all(&tar).unwrap();
                Ok(())
            };
            let ((), packed) = pack(&to, packing, fill).unwrap();
            to.rewind().unwrap();
            let mut blob = Vec::new();
            to.read_to_end(&mut blob).unwrap();
            assert_eq!((packed.size, packed.digest), (blob.len() as u64, Digest::of(&blob)));
            assert_eq!(packed.diff_id, DiffId(Digest::of(&tar)));
            let (mut decoder, _) =
                Decoder::new(BufReader::new(&blob[..]), None).unwrap_or_else(|_| panic!());
            let mut back = Vec::new();
            decoder.read_to_end(&mut back).unwrap();
            assert!(back == tar, "{packing:?}");
        }
    }

    #[test]
    fn a_failed_producer_ends_the_threads() {
        let to = tempfile::tempfile().unwrap();
        let fill = |p: &mut Packer<'_>| -> Result<(), (Fault, String)> {
            p.write_all(&vec![1; 3 * PIECE]).unwrap();
            Err((Refusal::Changed.into(), "here".into()))
        };
        let (fault, at) = pack(&to, Packing::Gzip, fill).unwrap_err();
        assert!(matches!(fault, Fault::Refused(Refusal::Changed)));
        assert_eq!(at, "here");
    }
}
