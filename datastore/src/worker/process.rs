//! A worker's processes, for whoever started them: fed, heard, ended.
//!
//! The end of the answer's pipe is the end of what a worker says, and no more: the confined process may close it and
//! live on. That one has ended when the first process has, which waits for it, or takes it along when it is killed. The
//! kernel ends a worker when the thread that started it ends (`PR_SET_PDEATHSIG`); that thread is here until then.

use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::Worker;
use super::answer::{ANSWER_MAX, Answer};
use super::request::{Request, send_files};
use crate::error::{Doing, Fault, escape};

/// Bytes that are read, hashed, copied and handed on at a time.
const STEP: usize = 256 * 1024;

/// Bytes in a pipe; what an unprivileged user may have, pipe(7).
const PIPE: usize = 1 << 20;

/// Who says that a worker takes too long.
pub(super) enum Clock {
    /// This side, a while after the worker took or said something.
    Patience,
    /// Whoever reads what the worker writes, by closing the other end: a worker that takes nothing may be waiting for
    /// him.
    Reader(PipeReader),
}

/// A worker and our ends of its pipes. Dropping ends it.
pub(super) struct Running {
    child: Child,
    /// Closed to say that the stream has ended.
    feed: Option<File>,
    answer: PipeReader,
    patience: Duration,
    clock: Clock,
    ended: bool,
}

impl Running {
    /// `second` is its descriptor 2; `files` come beside the request.
    pub fn start(
        worker: &Worker,
        second: Stdio,
        files: &[BorrowedFd<'_>],
        clock: Clock,
    ) -> Result<Self, Fault> {
        let (from_us, feed) =
            if files.is_empty() { pipe() } else { socket(files) }.doing("make a pipe for")?;
        let (answer, to_us) = io::pipe().doing("make a pipe for")?;
        for end in [feed.as_fd(), answer.as_fd()] {
            rustix::fs::fcntl_setfl(end, OFlags::NONBLOCK).doing("prepare a pipe for")?;
        }

        let program = &worker.program;
        #[expect(clippy::disallowed_methods, reason = "the one right place of this crate")]
        let mut command = Command::new(program);
        // Nothing of ours goes along: no variable, no directory, and every other descriptor is closed on exec.
        command.env_clear().current_dir("/").stdin(from_us).stdout(to_us).stderr(second);
        let child = command.spawn().map_err(|e| {
            Fault::Worker(format!("{} cannot be started: {e}; is it installed?", program.display()))
        })?;
        let (feed, patience) = (Some(feed.into()), worker.patience);
        Ok(Self { child, feed, answer, patience, clock, ended: false })
    }

    /// Sends request and stream; says whether the worker took all.
    pub fn feed(&mut self, request: &Request, stream: &mut dyn Read) -> Result<bool, Fault> {
        let head = request.encode().map_err(|e| Fault::Worker(e.to_string()))?;
        if !self.send(&head)? {
            return Ok(false);
        }
        let mut buf = vec![0; STEP];
        loop {
            match stream.read(&mut buf) {
                Ok(0) => {
                    self.feed = None;
                    return Ok(true);
                }
                Ok(n) => {
                    if !self.send(&buf[..n])? {
                        return Ok(false);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Fault::from_read(e)),
            }
        }
    }

    /// Whether the worker took it; if not, it has something to say, or is dead.
    fn send(&mut self, mut bytes: &[u8]) -> Result<bool, Fault> {
        let Some(feed) = &mut self.feed else { return Ok(false) };
        while !bytes.is_empty() {
            match feed.write(bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(false),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.clock.wait(feed, PollFlags::OUT, self.patience, Instant::now())?;
                }
                Err(e) => return Err(e).doing("feed the worker of"),
            }
        }
        Ok(true)
    }

    /// All that the worker says until it ends.
    pub fn answer(&mut self) -> Result<Answer, Fault> {
        let (said, status) = self.end()?;
        if !status.success() {
            return Err(Fault::Worker(end_of(status)));
        }
        Answer::decode(&said).map_err(|why| lie(&escape(why.as_bytes())))
    }

    /// The first of its processes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// What it said on the answer's pipe, and how its first process ended.
    pub fn end(&mut self) -> Result<(Vec<u8>, ExitStatus), Fault> {
        // It may still wait for a stream that we stopped sending.
        self.feed = None;
        let mut said = Vec::new();
        listen(&self.answer, Some(&mut said), &self.clock, self.patience)?;
        let pid = Pid::from_child(&self.child);
        let ended = pidfd_open(pid, PidfdFlags::empty()).doing("wait for the worker of")?;
        let since = Instant::now();
        let status = loop {
            match self.child.try_wait().doing("wait for the worker of")? {
                Some(status) => break status,
                None => self.clock.wait(&ended, PollFlags::IN, self.patience, since)?,
            }
        };
        self.ended = true;
        Ok((said, status))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        self.feed = None;
        // Its first process; the others die with it. If it is dead already, there is nothing to do but to wait.
        drop(self.child.kill());
        drop(listen(&self.answer, None, &Clock::Patience, self.patience));
        drop(self.child.wait());
    }
}

impl Clock {
    /// Waits until the worker is ready for it; an error if that takes too long.
    fn wait(
        &self,
        fd: &impl AsFd,
        what: PollFlags,
        patience: Duration,
        since: Instant,
    ) -> Result<(), Fault> {
        match self {
            Self::Patience => {
                let left = patience.saturating_sub(since.elapsed());
                if wait_for(fd, what, left).doing("wait for")? {
                    Ok(())
                } else {
                    Err(hung(patience))
                }
            }
            Self::Reader(gone) => {
                let mut fds = [PollFd::new(fd, what), PollFd::new(gone, PollFlags::empty())];
                match rustix::event::poll(&mut fds, None) {
                    Ok(_) if fds[1].revents().is_empty() => Ok(()),
                    Ok(_) => Err(Fault::Worker("was not needed any more".into())),
                    Err(Errno::INTR) => Ok(()),
                    Err(e) => Err(e).doing("wait for"),
                }
            }
        }
    }
}

/// Reads until the worker says nothing more; into nothing, if it is of no interest any more.
fn listen(
    mut answer: &PipeReader,
    mut into: Option<&mut Vec<u8>>,
    clock: &Clock,
    patience: Duration,
) -> Result<(), Fault> {
    let mut buf = [0; 4096];
    let since = Instant::now();
    loop {
        match answer.read(&mut buf) {
            Ok(0) => return Ok(()),
            Ok(n) => {
                if let Some(into) = &mut into {
                    into.extend_from_slice(&buf[..n]);
                    if into.len() as u64 > ANSWER_MAX {
                        return Err(lie("too much"));
                    }
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e).doing("hear the worker of"),
        }
        clock.wait(&answer, PollFlags::IN, patience, since)?;
    }
}

pub(super) fn lie(what: &str) -> Fault {
    Fault::Worker(format!("answered nonsense: {what}"))
}

pub(super) fn hung(patience: Duration) -> Fault {
    Fault::Worker(format!("did nothing for {} s and was killed", patience.as_secs_f64()))
}

/// A pipe, as large as may be: the worker's end, then ours.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (theirs, ours) = io::pipe()?;
    widen(&ours);
    Ok((theirs.into(), ours.into()))
}

/// A small pipe is slower, no more: a user may have used up what he may have.
pub(super) fn widen(pipe: impl AsFd) {
    let _ = rustix::pipe::fcntl_setpipe_size(pipe, PIPE);
}

/// A socket with files in it, which the worker cannot write to: its end, then ours.
fn socket(files: &[BorrowedFd<'_>]) -> io::Result<(OwnedFd, OwnedFd)> {
    let (theirs, ours) = UnixStream::pair()?;
    ours.shutdown(Shutdown::Read)?;
    send_files(&ours, files)?;
    Ok((theirs.into(), ours.into()))
}

fn end_of(status: ExitStatus) -> String {
    // The first process tells by its code how the confined one ended, as shells do.
    let signal = status.signal().or_else(|| status.code().filter(|c| *c > 128).map(|c| c - 128));
    match signal {
        Some(9) => {
            "was killed by signal 9; the memory limit of its control group may be too low".into()
        }
        Some(31) => "was killed by signal 31: it made a system call that no layer needs".into(),
        Some(signal) => format!("was killed by signal {signal}"),
        None => format!("ended with {status}"),
    }
}

/// Whether it happened in time.
pub(super) fn wait_for(fd: &impl AsFd, what: PollFlags, limit: Duration) -> io::Result<bool> {
    let until = Instant::now() + limit;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|_| io::Error::from(Errno::INVAL))?;
        match rustix::event::poll(&mut [PollFd::new(fd, what)], Some(&left)) {
            Ok(n) => return Ok(n > 0),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}
