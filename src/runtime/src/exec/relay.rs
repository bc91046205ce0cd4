//! Moves bytes between a session's program and its client, with bounded buffers both ways.
//!
//! A client that does not read stops the program's output, a program that does not read stops the
//! client's input; neither costs more memory than the buffers.
//!
//! When the program ends, what it has written by then is delivered, and the client is told. Whatever the
//! program left running goes on: what it says from then on is read and thrown away, so that no daemon
//! dies of a closed pipe, however the session ended. A client that goes away, and a time limit, take the program with
//! them, and all that it left in its session; but who merely lost a terminal ([`Reach::Group`]) expects what he put into
//! the background there to go on.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use ocivisor_frame::BadFrame;
use ocivisor_frame::session::{FromClient, FromSession};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio, ioctl_fionread, read, write};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::termios::{Winsize, tcsetwinsize};

use super::kill::{DEATH, Reach, kill, reap};
use crate::cgroup::Groups;

/// Which stream of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stream {
    /// Standard output or the terminal.
    Out,
    /// Standard error.
    Error,
}

/// Bytes that wait in one direction; no more is read meanwhile.
const MAX_WAITING: usize = 64 * 1024;
/// How long a client may take to read the rest once the program ended.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// Most that is delivered of what a terminal showed until its program ended.
const MAX_LAST: usize = 1 << 20;
/// How long a program that tidies up may take for it.
const TIDY: Duration = Duration::from_secs(2);
/// The exit code of a program whose time was over, as of timeout(1).
const TIME_OVER: u8 = 124;
/// End of file on a terminal.
const CONTROL_D: u8 = 4;

/// The session's ends of the program's streams.
#[derive(Debug)]
pub enum Streams {
    /// Master of its terminal.
    Terminal(OwnedFd),
    /// Its standard three.
    Pipes {
        /// To its standard input.
        stdin: OwnedFd,
        /// From its standard output.
        stdout: OwnedFd,
        /// From its standard error.
        stderr: OwnedFd,
    },
}

/// What is agreed about a program's end.
#[derive(Debug, Clone, Copy, Default)]
pub struct Terms<'g> {
    /// How long it may run.
    pub limit: Option<Duration>,
    /// Whether what it left in its session ends with it.
    pub whole: bool,
    /// Whether it ends by itself when its input does, and has something to tidy up then: a client that goes away ends
    /// its input first.
    pub tidies: bool,
    /// What all of it is in, if that is known.
    pub groups: Option<&'g Groups>,
}

/// A running program and its client.
#[derive(Debug)]
pub struct Session {
    client: UnixStream,
    terminal: bool,
    input: Option<OwnedFd>,
    outputs: Vec<(Stream, OwnedFd)>,
    to_program: Vec<u8>,
    input_ends: bool,
    from_client: Vec<u8>,
    to_client: Vec<u8>,
}

/// What ended the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It waits to be reaped.
    Program,
    ClientGone,
    TimeOver,
}

impl Streams {
    /// What the program says; its input ends. Not blocking: the program may itself read what it said, between
    /// our seeing it and our reading it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn into_outputs(self) -> io::Result<Vec<OwnedFd>> {
        let outputs = match self {
            Self::Terminal(master) => vec![master],
            Self::Pipes { stdin: _, stdout, stderr } => vec![stdout, stderr],
        };
        outputs.iter().try_for_each(|fd| ioctl_fionbio(fd, true))?;
        Ok(outputs)
    }
}

impl Session {
    /// Prepares; everything becomes non-blocking.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn new(client: UnixStream, streams: Streams, early: Vec<u8>) -> io::Result<Self> {
        client.set_nonblocking(true)?;
        let (terminal, input, outputs) = match streams {
            Streams::Terminal(master) => {
                let reader = rustix::io::fcntl_dupfd_cloexec(&master, 3)?;
                (true, master, vec![(Stream::Out, reader)])
            }
            Streams::Pipes { stdin, stdout, stderr } => {
                (false, stdin, vec![(Stream::Out, stdout), (Stream::Error, stderr)])
            }
        };
        for fd in outputs.iter().map(|(_, fd)| fd).chain([&input]) {
            ioctl_fionbio(fd, true)?;
        }
        Ok(Self {
            client,
            terminal,
            input: Some(input),
            outputs,
            to_program: Vec::new(),
            input_ends: false,
            from_client: early,
            to_client: Vec::new(),
        })
    }

    /// Relays until the program, a child of this process, ended, or had its time, or the client went
    /// away. What the program left behind may write on to the outputs that are given back, so they are for
    /// [`hear_out`].
    ///
    /// # Errors
    /// The kernel refuses to wait, or the client to listen. The program is killed in any case.
    pub fn run(mut self, program: Pid, terms: Terms<'_>) -> (io::Result<()>, Vec<OwnedFd>) {
        let end = self.relay(program, terms.limit.map(|limit| Instant::now() + limit));
        if matches!(end, Ok(End::ClientGone)) && terms.tidies {
            self.end_input(program);
        }
        // Before it is reaped: until then nobody else can have its number.
        match end {
            Ok(End::Program) if terms.whole => kill(program, Reach::Session, terms.groups),
            Ok(End::Program) => {}
            Ok(End::ClientGone) if self.terminal => kill(program, Reach::Group, terms.groups),
            Ok(End::ClientGone | End::TimeOver) | Err(_) => {
                kill(program, Reach::Session, terms.groups);
            }
        }
        let code = reap(program, DEATH);
        let told = end.and_then(|end| self.tell(end, code, terms.limit));
        // The client knows all that there is to know, or will not hear it.
        drop((self.client, self.input));
        (told, self.outputs.into_iter().map(|(_, fd)| fd).collect())
    }

    /// The last that the client is told.
    fn tell(&mut self, end: End, code: io::Result<u8>, limit: Option<Duration>) -> io::Result<()> {
        let code = match end {
            End::ClientGone => return Ok(()),
            End::Program => code?,
            // Whether it died of it or not.
            End::TimeOver => TIME_OVER,
        };
        self.deliver_rest()?;
        if let (End::TimeOver, Some(limit)) = (end, limit) {
            let line = format!("ocivisor: killed, its time of {limit:?} is over\n");
            FromSession::Error(line.as_bytes()).encode(&mut self.to_client);
        }
        FromSession::Exit(code).encode(&mut self.to_client);
        self.flush(Instant::now() + LAST_WORDS)
    }

    /// Ends the program's input and waits for its end, for a while.
    fn end_input(&mut self, program: Pid) {
        self.input = None;
        let deadline = Instant::now() + TIDY;
        let Ok(pidfd) = pidfd_open(program, PidfdFlags::empty()) else { return };
        let mut outputs = self.outputs.drain(..).map(|(_, fd)| fd).collect();
        while deadline > Instant::now() {
            // What cannot be waited for is killed at once.
            let ended = throw_away(&mut outputs, Some(&pidfd), until(Some(deadline)).as_ref());
            if !matches!(ended, Ok(false)) {
                break;
            }
        }
        self.outputs = outputs.into_iter().map(|fd| (Stream::Out, fd)).collect();
    }

    fn relay(&mut self, program: Pid, deadline: Option<Instant>) -> io::Result<End> {
        let pidfd = pidfd_open(program, PidfdFlags::empty())?;
        loop {
            if self.take_frames().is_err() {
                return Ok(End::ClientGone);
            }
            self.feed_program()?;
            let room = self.to_client.len() < MAX_WAITING;
            let flags = |wanted: bool, flag| if wanted { flag } else { PollFlags::empty() };
            // HUP and ERR are always told.
            let mut client = flags(self.to_program.len() < MAX_WAITING, PollFlags::IN);
            client |= flags(!self.to_client.is_empty(), PollFlags::OUT);
            let mut fds = vec![
                PollFd::from_borrowed_fd(self.client.as_fd(), client),
                PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN),
            ];
            if let Some(input) = self.input.as_ref().filter(|_| !self.to_program.is_empty()) {
                fds.push(PollFd::from_borrowed_fd(input.as_fd(), PollFlags::OUT));
            }
            if room {
                let outputs = self.outputs.iter();
                fds.extend(
                    outputs.map(|(_, fd)| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)),
                );
            }
            match poll(&mut fds, until(deadline).as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
            let client = fds[0].revents();
            let ended = !fds[1].revents().is_empty();
            drop(fds);
            if room {
                self.take_output()?;
            }
            if client.contains(PollFlags::OUT) && self.send_some().is_err() {
                return Ok(End::ClientGone);
            }
            let readable = PollFlags::IN | PollFlags::HUP | PollFlags::ERR;
            if client.intersects(readable) && !self.hear_client(client)? {
                return Ok(End::ClientGone);
            }
            if ended {
                return Ok(End::Program);
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Ok(End::TimeOver);
            }
        }
    }

    /// One read of the client; false if it is gone.
    fn hear_client(&mut self, events: PollFlags) -> io::Result<bool> {
        if events.intersects(PollFlags::ERR) {
            return Ok(false);
        }
        if self.to_program.len() >= MAX_WAITING {
            return Ok(!events.contains(PollFlags::HUP));
        }
        let mut chunk = [0_u8; 16 * 1024];
        match self.client.read(&mut chunk) {
            Ok(0) => Ok(false),
            Ok(n) => {
                self.from_client.extend_from_slice(&chunk[..n]);
                Ok(true)
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Acts on all whole frames.
    fn take_frames(&mut self) -> Result<(), BadFrame> {
        let mut done = 0;
        while let Some((frame, used)) = FromClient::decode(&self.from_client[done..])? {
            done += used;
            match frame {
                FromClient::Data(_) if self.input.is_none() || self.input_ends => {}
                FromClient::Data(bytes) => self.to_program.extend_from_slice(bytes),
                FromClient::End if self.terminal => self.to_program.push(CONTROL_D),
                FromClient::End => self.input_ends = true,
                FromClient::Resize { columns, rows } => self.resize(columns, rows),
            }
        }
        self.from_client.drain(..done);
        Ok(())
    }

    fn resize(&self, columns: u16, rows: u16) {
        if let (true, Some(master)) = (self.terminal, &self.input) {
            let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
            // A terminal without anybody on it cannot be resized, which nobody sees.
            let _ = tcsetwinsize(master, size);
        }
    }

    fn feed_program(&mut self) -> io::Result<()> {
        while let Some(input) = self.input.as_ref().filter(|_| !self.to_program.is_empty()) {
            match write(input, &self.to_program) {
                Ok(n) => drop(self.to_program.drain(..n)),
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                // It reads no more.
                Err(Errno::PIPE | Errno::IO) => {
                    self.to_program.clear();
                    self.input = None;
                }
                Err(e) => return Err(e.into()),
            }
        }
        if self.input_ends && self.to_program.is_empty() {
            self.input = None;
        }
        Ok(())
    }

    /// What is there now: it was written before the end. No more, for what the program left behind may
    /// write without end.
    fn deliver_rest(&mut self) -> io::Result<()> {
        // A terminal passes on with delay what was written to it, and says when it is all.
        let mut left = if self.terminal { MAX_LAST } else { 0 };
        for (_, fd) in self.outputs.iter().filter(|_| !self.terminal) {
            left += usize::try_from(ioctl_fionread(fd)?).unwrap_or(usize::MAX);
        }
        while left > 0 {
            let came = self.take_output()?;
            if came == 0 {
                break;
            }
            left = left.saturating_sub(came);
            self.flush(Instant::now() + LAST_WORDS)?;
        }
        Ok(())
    }

    /// One read of each output; how much came.
    fn take_output(&mut self) -> io::Result<usize> {
        let mut came = 0;
        let mut chunk = [0_u8; 16 * 1024];
        let mut open = Vec::new();
        let mut failed = None;
        for (stream, fd) in self.outputs.drain(..) {
            match read(&fd, &mut chunk) {
                // EIO: nobody has the terminal open.
                Ok(0) | Err(Errno::IO) => {}
                Ok(n) => {
                    came += n;
                    let frame = match stream {
                        Stream::Out => FromSession::Output(&chunk[..n]),
                        Stream::Error => FromSession::Error(&chunk[..n]),
                    };
                    frame.encode(&mut self.to_client);
                    open.push((stream, fd));
                }
                Err(Errno::AGAIN | Errno::INTR) => open.push((stream, fd)),
                Err(e) => failed = Some(e),
            }
        }
        self.outputs = open;
        failed.map_or(Ok(came), |e| Err(e.into()))
    }

    fn send_some(&mut self) -> io::Result<()> {
        match self.client.write(&self.to_client) {
            Ok(n) => {
                self.to_client.drain(..n);
                Ok(())
            }
            Err(e)
                if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) =>
            {
                Ok(())
            }
            Err(e) => Err(e),
        }
    }

    /// Sends all that waits.
    fn flush(&mut self, deadline: Instant) -> io::Result<()> {
        send_all(&mut self.client, &self.to_client, deadline)?;
        self.to_client.clear();
        Ok(())
    }
}

/// Waits for a child whose output nobody wants to know: its exit code. None if its time was over; then
/// it was killed with all its session.
///
/// # Errors
/// The kernel refuses to wait. The program is killed in any case.
pub fn attend(
    program: Pid,
    outputs: &mut Vec<OwnedFd>,
    limit: Option<Duration>,
    groups: Option<&Groups>,
) -> io::Result<Option<u8>> {
    let deadline = limit.map(|limit| Instant::now() + limit);
    let mut wait = || -> io::Result<bool> {
        let pidfd = pidfd_open(program, PidfdFlags::empty())?;
        loop {
            if throw_away(outputs, Some(&pidfd), until(deadline).as_ref())? {
                return Ok(true);
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Ok(false);
            }
        }
    };
    let ended = wait();
    if !matches!(ended, Ok(true)) {
        kill(program, Reach::Session, groups);
    }
    let code = reap(program, DEATH);
    if ended? { code.map(Some) } else { Ok(None) }
}

/// Reads what nobody wants to know until nobody can write any more.
///
/// # Errors
/// The kernel refuses to wait.
pub fn hear_out(mut outputs: Vec<OwnedFd>) -> io::Result<()> {
    while !outputs.is_empty() {
        throw_away(&mut outputs, None, None)?;
    }
    Ok(())
}

/// One wait, and a read of each output that has something; those that ended are left out from then on.
/// Whether `other` can be read.
fn throw_away(
    outputs: &mut Vec<OwnedFd>,
    other: Option<&OwnedFd>,
    wait: Option<&Timespec>,
) -> io::Result<bool> {
    let watched = outputs.iter().chain(other);
    let mut fds: Vec<_> = watched.map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    match poll(&mut fds, wait) {
        Err(Errno::INTR) => return Ok(false),
        Err(e) => return Err(e.into()),
        Ok(_) => {}
    }
    let mut spoke: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
    let others = spoke.split_off(outputs.len()).pop().unwrap_or_default();
    let mut chunk = [0_u8; 16 * 1024];
    let mut spoke = spoke.into_iter();
    outputs.retain(|fd| {
        // EIO: nobody has the terminal open, nor will.
        !spoke.next().unwrap_or_default() || !matches!(read(fd, &mut chunk), Ok(0) | Err(Errno::IO))
    });
    Ok(others)
}

/// How long to wait for a deadline.
fn until(deadline: Option<Instant>) -> Option<Timespec> {
    let left = deadline?.saturating_duration_since(Instant::now());
    Timespec::try_from(left).ok()
}

/// Sends bytes to a non-blocking client before a deadline.
///
/// # Errors
/// It is gone or too slow.
pub fn send_all(client: &mut UnixStream, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        match client.write(bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                let left = deadline.saturating_duration_since(Instant::now());
                let wait = Timespec::try_from(left).unwrap_or_default();
                let mut fds = [PollFd::from_borrowed_fd(client.as_fd(), PollFlags::OUT)];
                if matches!(poll(&mut fds, Some(&wait)), Ok(0)) {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "relay_tests.rs"]
mod tests;
