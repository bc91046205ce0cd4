//! Moves bytes between a session's program and its client, with bounded buffers both ways.
//!
//! A client that does not read stops the program's output, a program that does not read stops the
//! client's input; neither costs more memory than the buffers. A client that goes away takes the
//! program with it. When the program ends, what it has written by then is delivered; what its
//! background children may write later is not waited for.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use ocivisor_frame::BadFrame;
use ocivisor_frame::session::{FromClient, FromSession};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio, read, write};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, kill_process_group, pidfd_open, waitpid,
};
use rustix::termios::{Winsize, tcsetwinsize};

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
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// It waits to be reaped.
    Program,
    ClientGone,
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

    /// Relays until the program, a child of this process, ended or the client went away.
    ///
    /// # Errors
    /// The kernel refuses to wait. The program is killed in any case.
    pub fn run(mut self, program: Pid) -> io::Result<()> {
        let end = self.relay(program);
        // All of its process group. Before it is reaped: until then nobody else can have its number.
        // ESRCH: none is left.
        let _ = kill_process_group(program, Signal::KILL);
        let code = reap(program);
        match end? {
            End::ClientGone => Ok(()),
            End::Program => {
                let code = code?;
                // What is in the pipes now was written before the end.
                while self.take_output()? {
                    self.flush(Instant::now() + LAST_WORDS)?;
                }
                FromSession::Exit(code).encode(&mut self.to_client);
                self.flush(Instant::now() + LAST_WORDS)
            }
        }
    }

    fn relay(&mut self, program: Pid) -> io::Result<End> {
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
            match poll(&mut fds, None) {
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

    /// One read of each output; whether anything came.
    fn take_output(&mut self) -> io::Result<bool> {
        let mut came = false;
        let mut chunk = [0_u8; 16 * 1024];
        let mut open = Vec::new();
        for (stream, fd) in self.outputs.drain(..) {
            match read(&fd, &mut chunk) {
                // EIO: nobody has the terminal open.
                Ok(0) | Err(Errno::IO) => {}
                Ok(n) => {
                    came = true;
                    let frame = match stream {
                        Stream::Out => FromSession::Output(&chunk[..n]),
                        Stream::Error => FromSession::Error(&chunk[..n]),
                    };
                    frame.encode(&mut self.to_client);
                    open.push((stream, fd));
                }
                Err(Errno::AGAIN | Errno::INTR) => open.push((stream, fd)),
                Err(e) => return Err(e.into()),
            }
        }
        self.outputs = open;
        Ok(came)
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

/// Waits for a child and gives its exit code as shells do.
fn reap(program: Pid) -> io::Result<u8> {
    loop {
        match waitpid(Some(program), WaitOptions::empty()) {
            Err(Errno::INTR) | Ok(None) => {}
            Err(e) => return Err(e.into()),
            Ok(Some((_, status))) => {
                let code = status.exit_status().or(status.terminating_signal().map(|s| 128 + s));
                return Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(125));
            }
        }
    }
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
