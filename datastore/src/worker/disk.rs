//! A disk, read by a worker.
//!
//! The worker gets the open files of the disk and nothing else; what comes is a tar in zstd, or is said to be. It goes
//! the way of every layer, to another worker at the earliest, so one that was taken over by a disk gains no more than
//! what a layer may hold as well. Beside the tar it says what kind of system it found, in words of which each is one of
//! ours, or why it refuses the disk, in words that are shown and nothing else.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};

use super::Worker;
use super::answer::{Answer, Judged};
use super::process::lie;
use super::request::Request;
use super::stream::{Stream, Verdict};
use crate::cancel::Cancel;
use crate::diskimage::{DiskFacts, DiskFault, DiskReading, System};
use crate::error::{Fault, Refusal};
use crate::limits::Limits;

/// What may be under way when the unpacker meets the limit of an image: pipes, and blocks between its threads.
const AHEAD: u64 = 16 << 20;

/// The tar in zstd. Dropping it ends the worker.
#[derive(Debug)]
pub(crate) struct DiskStream {
    bytes: BufReader<Stream<io::Empty, Disk>>,
    left: u64,
}

/// What the worker said at its end.
#[derive(Debug)]
struct Disk {
    limits: Limits,
    said: Option<Result<DiskFacts, DiskFault>>,
}

impl Verdict for Disk {
    fn judge(&mut self, answer: Answer, seen: u64) -> Judged<()> {
        let told = match answer.judge_disk(seen, &self.limits)? {
            Ok(said) => self.said.insert(said).as_ref().err().map(ToString::to_string),
            Err(failed) => return Ok(Err(failed)),
        };
        // Whoever reads sees a stream that breaks off, and then asks for the fault.
        Ok(match told {
            Some(text) => Err((Refusal::Stream(text).into(), None)),
            None => Ok(()),
        })
    }
}

impl DiskStream {
    /// Starts a worker with these files.
    pub fn start(
        worker: &Worker,
        files: Vec<File>,
        reading: DiskReading,
        limits: &Limits,
        cancel: &Cancel,
    ) -> Result<Self, Fault> {
        let request = Request::disk(worker, reading, limits);
        let verdict = Disk { limits: limits.clone(), said: None };
        let stream = Stream::start(worker, request, files, io::empty(), verdict)?;
        let most = limits.image_bytes;
        // ZSTD_compressBound() is a 256th above what goes in. An unpacker counts what comes out, and frames without
        // content have no end.
        let left = most.saturating_add(most / 256).saturating_add(AHEAD);
        Ok(Self { bytes: BufReader::new(stream.until(cancel)), left })
    }

    /// Waits for the first bytes of the tar. Of a system that is for other hosts there is none; says what it is.
    pub fn begin(&mut self) -> Result<Option<System>, Fault> {
        match self.bytes.fill_buf().map_err(Fault::from_read)? {
            [] => Ok(Some(self.facts()?.system)),
            _ => Ok(None),
        }
    }

    /// Why the tar broke off, if that was because of the disk.
    pub fn fault(&mut self) -> Option<DiskFault> {
        self.said()?.err()
    }

    /// What is known after the end of the tar.
    pub fn facts(&mut self) -> Result<DiskFacts, Fault> {
        let missing = || lie("a tar that ends before its stream");
        self.said().and_then(Result::ok).ok_or_else(missing)
    }

    fn said(&mut self) -> Option<Result<DiskFacts, DiskFault>> {
        self.bytes.get_mut().verdict().said.take()
    }
}

impl Read for DiskStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.bytes.read(buf)?;
        self.left = self
            .left
            .checked_sub(n as u64)
            .ok_or_else(|| lie("more than an image of the largest size takes").into_read())?;
        Ok(n)
    }
}
