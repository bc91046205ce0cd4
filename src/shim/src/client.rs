//! The other end: what daemon and command line say to a shim.

use std::fmt;
use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, open};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, recvmsg, socket_with,
};

use crate::exit::Exit;
use crate::frame::{BadFrame, Frame};
use crate::message::{Access, MAX_LINE, Pong, Refusal, Request, Size};

/// Why a request had no good answer.
#[derive(Debug)]
pub enum ClientError {
    /// No shim, or it does not answer in time.
    Io(io::Error),
    /// It refused.
    Refused(Refusal),
    /// It said something else.
    Protocol(String),
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(e) => write!(f, "shim does not answer: {e}"),
            Self::Refused(refusal) => write!(f, "shim refuses: {}", refusal.text),
            Self::Protocol(line) => write!(f, "shim answers {line:?}"),
        }
    }
}

impl std::error::Error for ClientError {}

impl From<io::Error> for ClientError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A connection to a shim.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
}

impl Client {
    /// Connects to the socket at `path`; each later step may take `timeout`.
    ///
    /// # Errors
    /// `NotFound` or `ConnectionRefused`: no shim listens. `WouldBlock`: it does not accept.
    pub fn connect(path: &Path, timeout: Duration) -> io::Result<Self> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let name = path.file_name().ok_or_else(invalid)?;
        let dir = path.parent().ok_or_else(invalid)?;
        // An address has room for 107 bytes, a path for more: go by way of the directory.
        let dir = open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let address = socket_address(&dir, name.as_ref())?;
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // Before connecting: a stopped shim with a full backlog would block it for ever.
        set_socket_timeout(&socket, Timeout::Send, Some(timeout))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(timeout))?;
        connect(&socket, &address)?;
        Ok(Self { stream: socket.into() })
    }

    /// Asks who is there and how the guest is.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn ping(&mut self) -> Result<Pong, ClientError> {
        let line = self.ask(Request::Ping)?;
        Pong::parse(&line).ok_or(ClientError::Protocol(line))
    }

    /// Lets the guest run; runs already is fine.
    ///
    /// # Errors
    /// See [`ClientError`]; `Gone` if the guest ended.
    pub fn start(&mut self) -> Result<(), ClientError> {
        self.expect_ok(Request::Start)
    }

    /// Sends a signal to the guest's first process.
    ///
    /// # Errors
    /// See [`ClientError`]; `Gone` if the guest ended.
    pub fn signal(&mut self, signal: u8) -> Result<(), ClientError> {
        self.expect_ok(Request::Signal(signal))
    }

    /// Waits for the guest's end, as long as the connection's timeout.
    ///
    /// # Errors
    /// See [`ClientError`]; `Io` with `WouldBlock` if it did not end in time.
    pub fn wait(&mut self) -> Result<Exit, ClientError> {
        let line = self.ask(Request::Wait)?;
        let exit = line.strip_prefix("exited ").and_then(Exit::parse);
        exit.ok_or(ClientError::Protocol(line))
    }

    /// A duplicate of the pty master.
    ///
    /// # Errors
    /// See [`ClientError`]; `NoConsole` if it was lost.
    pub fn master(&mut self) -> Result<OwnedFd, ClientError> {
        self.send(Request::Master)?;
        let (line, fd) = self.line()?;
        match (check(line)?, fd) {
            (_, Some(fd)) => Ok(fd),
            (line, None) => Err(ClientError::Protocol(line)),
        }
    }

    /// Ends a shim whose guest ended.
    ///
    /// # Errors
    /// See [`ClientError`]; `Runs` if the guest did not.
    pub fn quit(&mut self) -> Result<(), ClientError> {
        self.expect_ok(Request::Quit)
    }

    /// Becomes a viewer of the console. Reads and writes have no timeout from then on.
    ///
    /// # Errors
    /// See [`ClientError`]; `NoConsole` if the terminal was lost, `Gone` if the guest ended.
    pub fn attach(
        mut self,
        access: Access,
        size: Size,
        replay: bool,
    ) -> Result<Console, ClientError> {
        let line = self.ask(Request::Attach { access, size, replay })?;
        let writes = match line.as_str() {
            "ok rw" => true,
            "ok ro" => false,
            _ => return Err(ClientError::Protocol(line)),
        };
        self.stream.set_read_timeout(None)?;
        self.stream.set_write_timeout(None)?;
        Ok(Console { stream: self.stream, writes, decoder: Decoder::default() })
    }

    fn expect_ok(&mut self, request: Request) -> Result<(), ClientError> {
        let line = self.ask(request)?;
        if line == "ok" { Ok(()) } else { Err(ClientError::Protocol(line)) }
    }

    fn ask(&mut self, request: Request) -> Result<String, ClientError> {
        self.send(request)?;
        check(self.line()?.0)
    }

    fn send(&mut self, request: Request) -> Result<(), ClientError> {
        match self.stream.write_all(format!("{request}\n").as_bytes()) {
            // A full shim answers and closes without reading; its answer says more than EPIPE.
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e.into()),
            _ => Ok(()),
        }
    }

    /// One line, byte by byte so that nothing after it is taken, and a descriptor sent with it.
    fn line(&mut self) -> Result<(String, Option<OwnedFd>), ClientError> {
        let (mut line, mut passed) = (Vec::new(), None);
        loop {
            let mut byte = [0_u8];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut into = [IoSliceMut::new(&mut byte)];
            let got = recvmsg(&self.stream, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC)
                .map_err(io::Error::from)?;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(fds) = message {
                    passed = fds.last().or(passed);
                }
            }
            if got.bytes == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            if byte == *b"\n" {
                let text = String::from_utf8_lossy(&line).into_owned();
                return Ok((text, passed));
            }
            line.extend_from_slice(&byte);
            if line.len() >= MAX_LINE {
                return Err(ClientError::Protocol("a line without end".into()));
            }
        }
    }
}

fn check(line: String) -> Result<String, ClientError> {
    match Refusal::parse(&line) {
        Some(refusal) => Err(ClientError::Refused(refusal)),
        None => Ok(line),
    }
}

/// Address of the socket `name` in the directory `dir`, whatever the length of its path.
///
/// # Errors
/// The name itself is too long.
pub fn socket_address(dir: impl AsFd, name: &Path) -> io::Result<SocketAddrUnix> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd());
    Ok(SocketAddrUnix::new(Path::new(&path).join(name).as_os_str())?)
}

/// An attached console. For poll loops of other kinds take it apart with
/// [`Console::into_stream`] and use [`Decoder`] and [`Frame::encode`].
#[derive(Debug)]
pub struct Console {
    stream: UnixStream,
    writes: bool,
    decoder: Decoder,
}

/// What came from the console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The guest printed this.
    Output(Vec<u8>),
    /// So many bytes were left out because we read too slowly.
    Gap(u32),
    /// The guest ended.
    Exit(Exit),
    /// Nothing more comes.
    Detached,
}

impl Console {
    /// Whether what is typed reaches the guest; else somebody else writes.
    #[must_use]
    pub fn writes(&self) -> bool {
        self.writes
    }

    /// The socket, to poll it.
    #[must_use]
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// The bare socket and what was read ahead.
    #[must_use]
    pub fn into_stream(self) -> (UnixStream, Decoder) {
        (self.stream, self.decoder)
    }

    /// The next event; blocks.
    ///
    /// # Errors
    /// The connection broke or what comes is no frame.
    pub fn next_event(&mut self) -> io::Result<Event> {
        let mut chunk = [0_u8; 8192];
        loop {
            match self.decoder.next_event() {
                Ok(Some(event)) => return Ok(event),
                Ok(None) => {}
                Err(bad) => return Err(io::Error::new(io::ErrorKind::InvalidData, bad)),
            }
            match self.stream.read(&mut chunk) {
                Ok(0) => return Ok(Event::Detached),
                Ok(n) => self.decoder.push(&chunk[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Types these bytes; blocks while the guest does not read.
    ///
    /// # Errors
    /// The connection broke.
    pub fn type_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.send(Frame::Data(bytes))
    }

    /// Tells the size of the terminal.
    ///
    /// # Errors
    /// The connection broke.
    pub fn resize(&mut self, size: Size) -> io::Result<()> {
        self.send(Frame::Resize(size))
    }

    /// Leaves.
    ///
    /// # Errors
    /// The connection broke.
    pub fn detach(&mut self) -> io::Result<()> {
        self.send(Frame::Detach)
    }

    fn send(&mut self, frame: Frame<'_>) -> io::Result<()> {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        self.stream.write_all(&bytes)
    }
}

/// Bytes from the shim to events.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    done: usize,
}

impl Decoder {
    /// Adds what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.done);
        self.done = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next event, if it is complete.
    ///
    /// # Errors
    /// What was read is no frame.
    pub fn next_event(&mut self) -> Result<Option<Event>, BadFrame> {
        let Some((frame, used)) = Frame::decode(&self.bytes[self.done..])? else {
            return Ok(None);
        };
        let event = match frame {
            Frame::Data(data) => Event::Output(data.to_vec()),
            Frame::Gap(bytes) => Event::Gap(bytes),
            Frame::Exit(exit) => Event::Exit(exit),
            Frame::Detach => Event::Detached,
            Frame::Resize(_) => return Err(BadFrame),
        };
        self.done += used;
        Ok(Some(event))
    }
}
