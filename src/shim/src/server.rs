//! The shim's life: one thread, one poll loop, over the guest's end, its terminal, and connections.
//!
//! ```text
//!   created ── start ──► running ──► ended ──► exit.json written ──► waiters told, the shim ends
//!      └───────────────────────────────┘           │ (disk full: tries again, answers meanwhile)
//! ```
//!
//! What must hold: the guest never waits for a viewer, a disk or the daemon; its end is never lost
//! while this process lives; nobody who may connect can make it spin, grow or stop.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use ocivisor_shim::exit::{self, Exit, ExitRecord};
use ocivisor_shim::facts::{self, Facts};
use ocivisor_shim::frame::Frame;
use ocivisor_shim::message::{Access, Code, GuestState, Pong, Refusal, Request, Size};
use ocivisor_shim::sys;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, read};
use rustix::net::sockopt::socket_peercred;
use rustix::process::{WaitOptions, getuid, wait};

use crate::conn::{Conn, Mode};
use crate::files;
use crate::log::Log;
use crate::start::StartAction;
use crate::tty::Tty;

/// Most connections.
const MAX_CONNS: usize = 32;
/// Most of them that are not the host's own, so that viewers cannot lock the daemon out.
const MAX_FOREIGN: usize = 24;
/// Most bytes that one read of a pty master gives.
const CHUNK: usize = 4096;
/// Reads of the console before others get their turn.
const CONSOLE_ROUNDS: usize = 16;
/// Bytes of log that a new viewer is shown.
const REPLAY: usize = 16 * 1024;
/// Longest wait for the init's new parent to collect it, after an adoption.
const COLLECT: Duration = Duration::from_secs(2);
/// Longest wait for clients to read the last words.
const FAREWELL: Duration = Duration::from_secs(1);
/// Pause before trying again what failed for want of room.
const RETRY: Duration = Duration::from_secs(1);

/// A shim that is set up.
#[derive(Debug)]
pub struct Server {
    pub vm_dir: OwnedFd,
    pub facts: Facts,
    pub init: OwnedFd,
    pub start: StartAction,
    pub tty: Option<Tty>,
    pub log: Log,
    /// What was read from the terminal last, for viewers that fell behind while nothing is logged.
    pub last: Vec<u8>,
    pub listener: UnixListener,
    pub children: OwnedFd,
    pub conns: Vec<Conn>,
    pub life: Life,
    pub deaf_until: Option<Instant>,
}

/// Where the guest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// Not ended, or not noticed yet; the facts know whether it was started.
    Lives,
    /// Ended, not yet on disk.
    Ended { exit: Exit, retry: Instant },
    /// On disk; the shim says goodbye.
    Recorded { exit: Exit, until: Instant },
    /// Nothing holds the shim any more.
    Over,
}

/// What one poll found.
struct Ready {
    children: bool,
    init: bool,
    console: PollFlags,
    listener: bool,
    conns: Vec<PollFlags>,
}

impl Server {
    /// Serves until the guest ended and its end is on disk.
    pub fn run(&mut self) {
        while !self.is_over() {
            let Ok(ready) = self.poll() else { continue };
            let now = Instant::now();
            if ready.children {
                self.reap(now);
            }
            if ready.init && self.life == Life::Lives {
                self.init_ended(now);
            }
            if ready.console.contains(PollFlags::OUT)
                && let Some(tty) = &mut self.tty
            {
                tty.flush();
            }
            if ready.console.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                self.pass_output(CONSOLE_ROUNDS);
            }
            for (at, revents) in ready.conns.into_iter().enumerate() {
                self.conns[at].fill(revents);
            }
            if ready.listener {
                self.accept(now);
            }
            for at in 0..self.conns.len() {
                self.serve(at, now);
            }
            self.record(now);
            for conn in &mut self.conns {
                conn.flush();
                if let Some(bytes) = conn.behind() {
                    let newest = self.log.newest(REPLAY.min(bytes as usize));
                    conn.catch_up(newest.as_deref().unwrap_or(&self.last));
                    conn.flush();
                }
                conn.expire(now);
            }
            self.conns.retain(|conn| !conn.is_dead());
        }
    }

    fn is_over(&self) -> bool {
        match self.life {
            Life::Lives | Life::Ended { .. } => false,
            Life::Recorded { until, .. } => {
                self.conns.iter().all(Conn::is_flushed) || until <= Instant::now()
            }
            Life::Over => true,
        }
    }

    fn poll(&self) -> Result<Ready, Errno> {
        let now = Instant::now();
        let typing = self.tty.as_ref().is_none_or(Tty::takes_input);
        let paused = self.tty.as_ref().and_then(|tty| tty.paused(now));
        let mut wake = [paused, self.deaf_until].into_iter().flatten().min();
        let retry = match self.life {
            Life::Lives | Life::Over => None,
            Life::Ended { retry, .. } => Some(retry),
            Life::Recorded { until, .. } => Some(until),
        };
        for deadline in self.conns.iter().filter_map(Conn::deadline).chain(retry) {
            wake = Some(wake.map_or(deadline, |wake| wake.min(deadline)));
        }
        let mut fds = Vec::with_capacity(4 + self.conns.len());
        fds.push(PollFd::new(&self.children, PollFlags::IN));
        fds.push(PollFd::new(&self.init, PollFlags::IN));
        fds.push(PollFd::new(&self.listener, PollFlags::IN));
        for conn in &self.conns {
            fds.push(PollFd::from_borrowed_fd(conn.fd(), conn.interest(typing)));
        }
        if let (Some(tty), None) = (&self.tty, paused) {
            let out = if tty.takes_input() { PollFlags::empty() } else { PollFlags::OUT };
            fds.push(PollFd::from_borrowed_fd(tty.fd(), PollFlags::IN | out));
        }
        if self.life != Life::Lives {
            // A pidfd stays readable once the process ended.
            fds[1].set_fd(&self.children);
        }
        if self.deaf_until.is_some_and(|until| until > now) {
            fds[2].set_fd(&self.children);
        }
        let timeout = wake.map(|wake| {
            // Rounded up, else the loop would spin through the last millisecond.
            let left = wake.saturating_duration_since(now) + Duration::from_millis(1);
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() }
        });
        poll(&mut fds, timeout.as_ref())?;
        let seen = |at: usize| fds.get(at).map_or(PollFlags::empty(), PollFd::revents);
        let conns = self.conns.len();
        Ok(Ready {
            children: !seen(0).is_empty(),
            init: self.life == Life::Lives && !seen(1).is_empty(),
            listener: self.deaf_until.is_none_or(|until| until <= now) && !seen(2).is_empty(),
            conns: (0..conns).map(|at| seen(3 + at)).collect(),
            console: seen(3 + conns),
        })
    }

    /// Collects children that ended: the guest's first process, and what it or an exec session left
    /// to us as their subreaper.
    fn reap(&mut self, now: Instant) {
        // One signal may stand for many children: only an empty wait tells that none is left.
        while read(&self.children, &mut [0_u8; 1024]).is_ok_and(|n| n > 0) {}
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let is_init = u32::try_from(pid.as_raw_nonzero().get()) == Ok(self.facts.init.pid);
            if is_init && !self.facts.adopted && self.life == Life::Lives {
                self.ended(Exit::from_wait_status(status.as_raw()), now);
            }
        }
    }

    /// The init's pidfd says that it ended; as a rule its SIGCHLD was seen in the same poll.
    fn init_ended(&mut self, now: Instant) {
        self.reap(now);
        if self.life == Life::Lives {
            let exit = exit::ask_until_collected(self.init.as_fd(), COLLECT);
            self.ended(exit, now);
        }
    }

    fn ended(&mut self, exit: Exit, now: Instant) {
        // All that was printed is in the terminal's buffer now: every process of the guest is gone
        // with its first one. Bounded for the case that something else prints on.
        self.pass_output(256);
        self.life = Life::Ended { exit, retry: now };
        self.record(now);
        for conn in &mut self.conns {
            match conn.mode {
                Mode::Lines | Mode::Leaving => {}
                Mode::Waiting => {
                    conn.put_line(&format!("exited {exit}"));
                    conn.close(now);
                }
                Mode::Viewer | Mode::Writer => {
                    if conn.left_out() > 0 {
                        let newest = self.log.newest(REPLAY);
                        conn.catch_up(newest.as_deref().unwrap_or(&self.last));
                    }
                    conn.put_frame(Frame::Exit(exit));
                    conn.put_frame(Frame::Detach);
                    conn.close(now);
                }
            }
        }
    }

    fn record(&mut self, now: Instant) {
        let Life::Ended { exit, retry } = self.life else {
            return;
        };
        if retry > now {
            return;
        }
        let record = ExitRecord { init: self.facts.init, exit };
        self.life = match files::replace(&self.vm_dir, exit::FILE, record.to_json().as_bytes()) {
            Ok(()) => Life::Recorded { exit, until: now + FAREWELL },
            // The directory was removed: whoever did that does not want to know.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Life::Recorded { exit, until: now + FAREWELL }
            }
            Err(_) => Life::Ended { exit, retry: now + RETRY },
        };
    }

    /// Console to log and viewers.
    fn pass_output(&mut self, rounds: usize) {
        let Some(tty) = &mut self.tty else { return };
        for _ in 0..rounds {
            let mut chunk = [0_u8; CHUNK];
            let n = tty.read(&mut chunk);
            if n == 0 {
                return;
            }
            self.last.clear();
            self.last.extend_from_slice(&chunk[..n]);
            self.log.write(&self.last);
            for conn in &mut self.conns {
                if matches!(conn.mode, Mode::Viewer | Mode::Writer) {
                    conn.show(&self.last);
                    conn.flush();
                }
            }
        }
    }

    fn accept(&mut self, now: Instant) {
        self.deaf_until = None;
        for _ in 0..MAX_CONNS {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    // Out of descriptors or memory: the listener stays readable, do not spin.
                    self.deaf_until = Some(now + RETRY);
                    return;
                }
            };
            if let Some(conn) = self.admit(stream, now) {
                self.conns.push(conn);
            }
        }
    }

    fn admit(&self, stream: UnixStream, now: Instant) -> Option<Conn> {
        stream.set_nonblocking(true).ok()?;
        let trusted = socket_peercred(&stream).ok()?.uid == getuid();
        let foreign = self.conns.iter().filter(|conn| !conn.trusted).count();
        let mut conn = Conn::new(stream, trusted, now);
        if self.conns.len() < MAX_CONNS && (trusted || foreign < MAX_FOREIGN) {
            return Some(conn);
        }
        conn.put_line(&Refusal::new(Code::Busy, "too many connections").to_string());
        conn.flush();
        None
    }

    /// Serves what a connection sent.
    fn serve(&mut self, at: usize, now: Instant) {
        while self.conns[at].mode == Mode::Lines && self.conns[at].may_ask() {
            let Some(line) = self.conns[at].next_line(now) else {
                return;
            };
            let line = line.ok().and_then(|line| String::from_utf8(line).ok());
            let Some(request) = line.as_deref().and_then(Request::parse) else {
                self.conns[at].put_line(&Refusal::new(Code::BadRequest, "no request").to_string());
                self.conns[at].close(now);
                return;
            };
            if let Err(refusal) = self.answer(at, request, now) {
                self.conns[at].put_line(&refusal.to_string());
            }
        }
        while matches!(self.conns[at].mode, Mode::Viewer | Mode::Writer) {
            let writes = self.conns[at].mode == Mode::Writer;
            let tty = self.tty.as_mut();
            if writes && !tty.as_ref().is_some_and(|tty| tty.takes_input()) {
                return;
            }
            let mut leave = false;
            let taken = self.conns[at].next_frame(|frame| match (frame, tty) {
                (Frame::Data(bytes), Some(tty)) if writes => tty.type_bytes(bytes),
                (Frame::Resize(size), Some(tty)) if writes => tty.resize(size),
                (Frame::Detach, _) => leave = true,
                // Of a viewer, or such as only we send.
                (Frame::Data(_) | Frame::Resize(_) | Frame::Exit(_) | Frame::Gap(_), _) => {}
            });
            match taken {
                Ok(true) if !leave => {}
                Ok(false) => return,
                Ok(true) | Err(_) => {
                    self.detach(at, now);
                    return;
                }
            }
        }
    }

    fn detach(&mut self, at: usize, now: Instant) {
        let conn = &mut self.conns[at];
        conn.put_frame(Frame::Detach);
        conn.close(now);
        // Nothing more is shown to it, and somebody else may write.
        conn.mode = Mode::Leaving;
    }

    fn answer(&mut self, at: usize, request: Request, now: Instant) -> Result<(), Refusal> {
        let trusted = self.conns[at].trusted;
        let only_host = match request {
            Request::Ping | Request::Wait | Request::Attach { .. } => false,
            Request::Start | Request::Signal(_) | Request::Master | Request::Quit => true,
        };
        if only_host && !trusted {
            return Err(Refusal::new(Code::Denied, "only the host may do this"));
        }
        match request {
            Request::Ping => {
                let state = self.state();
                let (shim, init) = (self.facts.shim.pid, self.facts.init.pid);
                self.conns[at].put_line(&Pong { shim, init, state }.to_string());
                return Ok(());
            }
            Request::Wait => {
                match self.state() {
                    GuestState::Exited(exit) => self.conns[at].put_line(&format!("exited {exit}")),
                    GuestState::Created | GuestState::Running => {
                        self.conns[at].mode = Mode::Waiting;
                    }
                }
                return Ok(());
            }
            Request::Attach { access, size, replay } => {
                return self.attach(at, access, size, replay, now);
            }
            Request::Master => {
                let master = self.tty.as_ref().ok_or_else(no_console)?;
                self.conns[at].put_line_with("ok", master.fd());
                return Ok(());
            }
            Request::Start => self.let_go()?,
            Request::Signal(signal) => {
                sys::send_signal(self.init.as_fd(), signal).map_err(|e| {
                    match e.raw_os_error().map(Errno::from_raw_os_error) {
                        Some(Errno::SRCH) => gone(),
                        _ => Refusal::new(Code::Host, &format!("send signal {signal}: {e}")),
                    }
                })?;
            }
            Request::Quit => match self.state() {
                GuestState::Exited(_) => self.life = Life::Over,
                GuestState::Created | GuestState::Running => {
                    return Err(Refusal::new(Code::Runs, "the guest has not ended"));
                }
            },
        }
        self.conns[at].put_line("ok");
        self.conns[at].flush();
        Ok(())
    }

    fn state(&self) -> GuestState {
        match self.life {
            Life::Ended { exit, .. } | Life::Recorded { exit, .. } => GuestState::Exited(exit),
            Life::Over => GuestState::Exited(Exit::Unknown),
            Life::Lives if self.facts.started => GuestState::Running,
            Life::Lives => GuestState::Created,
        }
    }

    fn let_go(&mut self) -> Result<(), Refusal> {
        match self.state() {
            GuestState::Running => return Ok(()),
            GuestState::Exited(_) => return Err(gone()),
            GuestState::Created => {}
        }
        self.start.perform(self.init.as_fd(), self.facts.adopted)?;
        self.facts.started = true;
        // Should this fail, the file says `created` for a guest that runs. Starting it once more
        // by an adopter is harmless, see StartAction, so the start itself is not taken back.
        let _ = files::replace(&self.vm_dir, facts::FILE, self.facts.to_json().as_bytes());
        Ok(())
    }

    fn attach(
        &mut self,
        at: usize,
        access: Access,
        size: Size,
        replay: bool,
        now: Instant,
    ) -> Result<(), Refusal> {
        if let GuestState::Exited(_) = self.state() {
            return Err(gone());
        }
        if self.tty.is_none() {
            return Err(no_console());
        }
        let types = |conn: &Conn| conn.mode == Mode::Writer && !conn.is_dead();
        let writer = self.conns.iter().position(types);
        if let (Access::Take, Some(writer)) = (access, writer) {
            self.detach(writer, now);
        }
        let writes = match access {
            Access::Read => false,
            Access::Write => writer.is_none(),
            Access::Take => true,
        };
        if let (true, Some(tty)) = (writes, &self.tty) {
            tty.resize(size);
        }
        let tail = if replay { self.log.tail(REPLAY) } else { Vec::new() };
        let conn = &mut self.conns[at];
        conn.mode = if writes { Mode::Writer } else { Mode::Viewer };
        conn.put_line(if writes { "ok rw" } else { "ok ro" });
        conn.show(&tail);
        Ok(())
    }
}

fn gone() -> Refusal {
    Refusal::new(Code::Gone, "the guest ended")
}

fn no_console() -> Refusal {
    Refusal::new(Code::NoConsole, "the console was lost with an earlier shim")
}
