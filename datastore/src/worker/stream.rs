//! What a worker makes of a stream, as a reader.
//!
//! ```text
//! a thread of its own   source ─► pipe, fd 0 ─► worker
//! the reader                  ◄── pipe, fd 2 ◄─┘  answer, fd 1, judged at the end
//! ```
//!
//! Three run at the same time: who produces the source's bytes, the worker, and who reads. Nothing that comes out is
//! believed to be anything: a worker may give what it likes, so whoever needs certain bytes hashes them. Only the end is
//! certain: the reader sees one if the worker said that this was all, having taken all of the source. Any other end is
//! an error.
//!
//! Time is taken by the reader, for a worker that takes nothing may be waiting until he reads. It does not count
//! while the source is waited for.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::fs::OFlags;

use super::Worker;
use super::answer::{Answer, Judged};
use super::process::{Clock, Running, hung, lie, wait_for, widen};
use super::request::Request;
use crate::cancel::{Cancel, LOOK};
use crate::compress::Compression;
use crate::error::{Doing, Fault};

/// What a worker writes. Dropping ends the worker.
#[derive(Debug)]
pub(crate) struct Stream<R, V = Expansion> {
    bytes: PipeReader,
    count: u64,
    patience: Duration,
    cancel: Cancel,
    verdict: V,
    state: State<R>,
}

/// Who judges the answer at the end of a stream.
pub(crate) trait Verdict {
    /// `seen` bytes came before it.
    fn judge(&mut self, answer: Answer, seen: u64) -> Judged<()>;
}

/// What was decompressed.
#[derive(Debug)]
pub(crate) struct Expansion;

impl Verdict for Expansion {
    fn judge(&mut self, answer: Answer, seen: u64) -> Judged<()> {
        answer.judge_stream(seen)
    }
}

#[derive(Debug)]
enum State<R> {
    Running(Feeder<R>),
    /// The worker has ended; whether well, and what was left of the source.
    Ended {
        well: bool,
        source: Option<R>,
    },
}

/// The thread that starts the worker, feeds it, and waits until it has ended.
#[derive(Debug)]
struct Feeder<R> {
    thread: JoinHandle<Fed<R>>,
    /// Nothing ever comes; it ends when the thread does.
    done: Receiver<()>,
    /// Whether the source is being read.
    reading: Arc<AtomicBool>,
    /// Closed to have the worker ended.
    stop: PipeWriter,
}

#[derive(Debug)]
struct Fed<R> {
    source: R,
    /// Whether the worker took all, and what it said.
    came: Result<(bool, Answer), Fault>,
}

impl<R: Read + Send + 'static> Stream<R> {
    /// Decompresses.
    pub fn expand(
        worker: &Worker,
        source: R,
        compression: Option<Compression>,
    ) -> Result<Self, Fault> {
        Self::start(worker, Request::expand(worker, compression), Vec::new(), source, Expansion)
    }
}

impl<R: Read + Send + 'static, V: Verdict> Stream<R, V> {
    /// Has a worker do what the request says with the source and these files.
    pub(super) fn start(
        worker: &Worker,
        request: Request,
        files: Vec<File>,
        source: R,
        verdict: V,
    ) -> Result<Self, Fault> {
        let pipe = || io::pipe().doing("make a pipe for");
        let ((bytes, to_us), (gone, stop)) = (pipe()?, pipe()?);
        rustix::fs::fcntl_setfl(&bytes, OFlags::NONBLOCK).doing("prepare a pipe for")?;
        widen(&bytes);
        let reading = Arc::new(AtomicBool::new(false));
        let (ended, done) = sync_channel::<()>(0);
        let (request, worker) = (request.with_files(files.len()), worker.clone());
        let patience = worker.patience;
        let mut watched = Watched { from: source, reading: Arc::clone(&reading) };
        let feed = move || {
            let came = feed(&worker, &request, to_us.into(), files, gone, &mut watched);
            drop(ended);
            Fed { source: watched.from, came }
        };
        let thread = std::thread::Builder::new().name("feed".into()).spawn(feed);
        let thread = thread.doing("start a thread for")?;
        let state = State::Running(Feeder { thread, done, reading, stop });
        Ok(Self { bytes, count: 0, patience, cancel: Cancel::new(), verdict, state })
    }

    /// By whose word the waiting ends before its time.
    pub(super) fn until(mut self, cancel: &Cancel) -> Self {
        self.cancel = cancel.clone();
        self
    }
}

fn feed(
    worker: &Worker,
    request: &Request,
    output: OwnedFd,
    files: Vec<File>,
    gone: PipeReader,
    source: &mut impl Read,
) -> Result<(bool, Answer), Fault> {
    let beside: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    let mut running = Running::start(worker, Stdio::from(output), &beside, Clock::Reader(gone))?;
    drop(files);
    let took_all = running.feed(request, source)?;
    Ok((took_all, running.answer()?))
}

/// The source, and whether somebody waits for it.
struct Watched<R> {
    from: R,
    reading: Arc<AtomicBool>,
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.reading.store(true, Ordering::Relaxed);
        let read = self.from.read(buf);
        self.reading.store(false, Ordering::Relaxed);
        read
    }
}

impl<R, V> Stream<R, V> {
    /// What was made of the answer.
    pub(super) fn verdict(&mut self) -> &mut V {
        &mut self.verdict
    }

    /// Ends the worker, if it still runs, and gives back what is left of the source.
    pub fn into_source(mut self) -> io::Result<R> {
        self.end();
        match &mut self.state {
            State::Ended { source, .. } => source.take().ok_or_else(panicked),
            State::Running(_) => Err(panicked()),
        }
    }

    /// Ends the worker; gives what came of it.
    fn end(&mut self) -> Option<Result<(bool, Answer), Fault>> {
        let over = State::Ended { well: false, source: None };
        match std::mem::replace(&mut self.state, over) {
            State::Running(Feeder { thread, stop, .. }) => {
                drop(stop);
                let Fed { source, came } = thread.join().ok()?;
                self.state = State::Ended { well: false, source: Some(source) };
                Some(came)
            }
            ended @ State::Ended { .. } => {
                self.state = ended;
                None
            }
        }
    }

    /// Whether the worker made itself felt before its time was over. `wait` waits that long.
    fn in_time(&self, wait: impl Fn(&Feeder<R>, Duration) -> io::Result<bool>) -> io::Result<bool> {
        let State::Running(feeder) = &self.state else { return Ok(true) };
        let mut since = Instant::now();
        loop {
            self.cancel.check()?;
            let left = self.patience.saturating_sub(since.elapsed());
            if wait(feeder, left.min(LOOK))? {
                return Ok(true);
            }
            if feeder.reading.load(Ordering::Relaxed) {
                since = Instant::now();
            } else if left.is_zero() {
                return Ok(false);
            }
        }
    }
}

impl<R, V: Verdict> Stream<R, V> {
    /// No more bytes come. Says why, unless all is well.
    fn conclude(&mut self) -> io::Result<()> {
        if let State::Ended { well, .. } = self.state {
            return if well { Ok(()) } else { Err(io::Error::other("worker has failed before")) };
        }
        let in_time = self.in_time(|feeder, patience| {
            Ok(feeder.done.recv_timeout(patience) != Err(RecvTimeoutError::Timeout))
        })?;
        let came = self.end().ok_or_else(panicked)?;
        if !in_time {
            return Err(hung(self.patience).into_read());
        }
        let (took_all, answer) = came.map_err(Fault::into_read)?;
        match self.verdict.judge(answer, self.count) {
            Ok(Ok(())) if !took_all => {
                Err(lie("done, without having read the whole stream").into_read())
            }
            Ok(Ok(())) => {
                if let State::Ended { well, .. } = &mut self.state {
                    *well = true;
                }
                Ok(())
            }
            Ok(Err((fault, _))) => Err(fault.into_read()),
            Err(why) => Err(lie(why).into_read()),
        }
    }
}

fn panicked() -> io::Error {
    io::Error::other("thread that feeds a worker panicked")
}

impl<R, V: Verdict> Read for Stream<R, V> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            if !matches!(self.state, State::Running(_)) {
                return self.conclude().map(|()| 0);
            }
            match self.bytes.read(buf) {
                Ok(0) => return self.conclude().map(|()| 0),
                Ok(n) => {
                    self.count += n as u64;
                    return Ok(n);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if !self
                        .in_time(|_, patience| wait_for(&self.bytes, PollFlags::IN, patience))?
                    {
                        self.end();
                        return Err(hung(self.patience).into_read());
                    }
                }
                Err(e) => return Err(e),
            }
        }
    }
}

impl<R, V> Drop for Stream<R, V> {
    fn drop(&mut self) {
        self.end();
    }
}
