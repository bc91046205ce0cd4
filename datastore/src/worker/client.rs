//! The importing side: starts a worker, feeds it the blob, judges what it says.
//!
//! The worker is an enemy from its first byte of the blob on. It may stop reading, say too much or nothing, lie, or
//! live on: each wait has a deadline, the answer a bound, and whatever happens the worker has ended when
//! [`read`] returns, so that nothing writes into staging any more when staging is removed. That its processes have
//! ended is seen by the end of the answer's pipe, which all of them hold.
//!
//! The kernel ends a worker when the thread that started it ends (`PR_SET_PDEATHSIG`); that thread is here until then.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::Worker;
use super::protocol::{ANSWER_MAX, Answer, Request};
use crate::content::{Content, Fallible, Task};
use crate::error::{Doing, Fault, escape};

/// Bytes that are read, hashed, copied and handed on at a time.
const STEP: usize = 256 * 1024;

/// Bytes in the pipe; what an unprivileged user may have, pipe(7).
const PIPE: usize = 1 << 20;

/// Reads the blob to its end through a worker.
pub(crate) fn read(worker: &Worker, blob: &mut dyn Read, task: &Task<'_>) -> Fallible<Content> {
    let plain = |fault: Fault| (fault, None);
    let request = Request::new(task, worker.id_base, &worker.cgroup_procs);
    let head = request.encode().map_err(|e| plain(Fault::Worker(e.to_string())))?;
    let mut running = Running::start(worker, task.into.map(|(dir, _)| dir)).map_err(plain)?;
    let took_all = running.feed(&head, blob).map_err(plain)?;
    let answer = running.answer().map_err(plain)?;
    let judged = answer.judge(task);
    match judged {
        Ok(Ok(_)) if !took_all => Err(plain(lie("done, without having read the whole blob"))),
        Ok(said) => said,
        Err(why) => Err(plain(lie(why))),
    }
}

fn lie(what: &str) -> Fault {
    Fault::Worker(format!("answered nonsense: {what}"))
}

/// A worker and our ends of its pipes. Dropping ends it.
struct Running {
    child: Child,
    /// Closed to say that the blob has ended.
    feed: Option<PipeWriter>,
    answer: PipeReader,
    patience: Duration,
    ended: bool,
}

impl Running {
    fn start(worker: &Worker, dir: Option<&File>) -> Result<Self, Fault> {
        let pipe = || io::pipe().doing("make a pipe for");
        let ((from_us, feed), (answer, to_us)) = (pipe()?, pipe()?);
        let layer = match dir {
            Some(dir) => Stdio::from(dir.try_clone().doing("duplicate descriptor of")?),
            None => Stdio::null(),
        };
        for end in [feed.as_fd(), answer.as_fd()] {
            rustix::fs::fcntl_setfl(end, OFlags::NONBLOCK).doing("prepare a pipe for")?;
        }
        // A small pipe is slower, no more: a user may have used up what he may have.
        let _ = rustix::pipe::fcntl_setpipe_size(&feed, PIPE);

        let program = &worker.program;
        #[expect(clippy::disallowed_methods, reason = "the one right place of this crate")]
        let mut command = Command::new(program);
        // Nothing of ours goes along: no variable, no directory, and every other descriptor is closed on exec.
        command.env_clear().current_dir("/").stdin(from_us).stdout(to_us).stderr(layer);
        let child = command.spawn().map_err(|e| {
            Fault::Worker(format!("{} cannot be started: {e}; is it installed?", program.display()))
        })?;
        Ok(Self { child, feed: Some(feed), answer, patience: worker.patience, ended: false })
    }

    /// Sends request and blob; says whether the worker took all.
    fn feed(&mut self, head: &[u8], blob: &mut dyn Read) -> Result<bool, Fault> {
        if !self.send(head)? {
            return Ok(false);
        }
        let mut buf = vec![0; STEP];
        loop {
            match blob.read(&mut buf) {
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
                    if !wait_for(feed, PollFlags::OUT, self.patience).doing("wait for")? {
                        return Err(hung(self.patience));
                    }
                }
                Err(e) => return Err(e).doing("feed the worker of"),
            }
        }
        Ok(true)
    }

    /// All that the worker says until it ends.
    fn answer(&mut self) -> Result<Answer, Fault> {
        // It may still wait for a blob that we stopped sending.
        self.feed = None;
        let mut said = Vec::new();
        self.listen(Some(&mut said))?;
        let status = self.child.wait().doing("wait for the worker of")?;
        self.ended = true;
        if !status.success() {
            return Err(Fault::Worker(end_of(status)));
        }
        Answer::decode(&said).map_err(|why| lie(&escape(why.as_bytes())))
    }

    /// Reads until all of the worker's processes have ended; into nothing, if it is of no interest any more.
    fn listen(&mut self, mut into: Option<&mut Vec<u8>>) -> Result<(), Fault> {
        let mut buf = [0; 4096];
        let until = Instant::now() + self.patience;
        loop {
            match self.answer.read(&mut buf) {
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
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || !wait_for(&self.answer, PollFlags::IN, left).doing("wait for")? {
                return Err(hung(self.patience));
            }
        }
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
        drop(self.listen(None));
        drop(self.child.wait());
    }
}

fn hung(patience: Duration) -> Fault {
    Fault::Worker(format!("did nothing for {} s and was killed", patience.as_secs_f64()))
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
fn wait_for(fd: &impl AsFd, what: PollFlags, limit: Duration) -> io::Result<bool> {
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
