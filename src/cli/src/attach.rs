//! An attached console: the shim's frames on one side, the user's terminal on the other.

use std::io;
use std::path::Path;
use std::time::Duration;

use ocivisor_shim::client::{Client, ClientError, Console, Decoder, Event};
use ocivisor_shim::exit::Exit as GuestExit;
use ocivisor_shim::frame::Frame;
use ocivisor_shim::message::{Access, Code};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::failure::{Exit, Failure};
use crate::output::Reader;
use crate::terminal;
use crate::typed::{DetachKey, Leave};

/// How long a shim may take to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// Typed bytes that wait for the guest to read them; no more is read meanwhile.
const MAX_WAITING: usize = 64 * 1024;

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The user left, or standard input ended.
    Left,
    /// Standard output has no reader any more.
    ReaderGone,
    /// The guest ended.
    GuestEnded(GuestExit),
    /// The shim hung up; another user may have taken the console.
    HungUp,
    /// We were asked to end by this signal.
    Signalled(u8),
}

/// Connects to the shim at `socket` and asks for the console.
///
/// # Errors
/// The shim refuses or does not answer.
pub fn attach(socket: &Path, access: Access, replay: bool) -> Result<Console, Failure> {
    let size = match access {
        Access::Read => ocivisor_shim::message::Size::default(),
        Access::Write | Access::Take => terminal::size(),
    };
    let connected = Client::connect(socket, ANSWER).map_err(ClientError::Io);
    let attached = connected.and_then(|client| client.attach(access, size, replay));
    attached.map_err(|error| {
        let exit = match &error {
            ClientError::Refused(refusal) => match refusal.code {
                Code::NoConsole | Code::Gone => Exit::Conflict,
                Code::Denied => Exit::Permission,
                Code::Busy => Exit::Resources,
                Code::BadRequest | Code::Runs | Code::Host => Exit::Failure,
            },
            ClientError::Io(e) if e.kind() == io::ErrorKind::PermissionDenied => Exit::Permission,
            ClientError::Io(_) | ClientError::Protocol(_) => Exit::Failure,
        };
        Failure::new(exit, format!("attach the console: {error}"))
    })
}

/// The signals that end a session in order, so that the terminal is put back. To be made before the
/// terminal is touched: until then they end the process.
#[derive(Debug)]
pub struct Signals {
    window: Signal,
    terminate: Signal,
    hangup: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Catches them from now on. Needs a runtime.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn catch() -> Result<Self, Failure> {
        let all = || {
            Ok(Self {
                window: signal(SignalKind::window_change())?,
                terminate: signal(SignalKind::terminate())?,
                hangup: signal(SignalKind::hangup())?,
                interrupt: signal(SignalKind::interrupt())?,
            })
        };
        all().map_err(|e: io::Error| Failure::new(Exit::Failure, format!("catch signals: {e}")))
    }

    /// The next one: a signal to end by, or `None` when the terminal's size changed.
    pub async fn next(&mut self) -> Option<u8> {
        tokio::select! {
            _ = self.window.recv() => None,
            _ = self.terminate.recv() => Some(15),
            _ = self.hangup.recv() => Some(1),
            _ = self.interrupt.recv() => Some(2),
        }
    }
}

/// Moves bytes until one side ends. `typed` is what goes to the guest; `show` gets what it prints.
///
/// # Errors
/// The connection broke, or standard output cannot be written.
pub async fn run(
    console: Console,
    mut signals: Signals,
    mut typed: Option<mpsc::Receiver<Vec<u8>>>,
    key: DetachKey,
    mut show: impl FnMut(&[u8]) -> Result<Reader, Failure>,
) -> Result<End, Failure> {
    let broken = |e: io::Error| Failure::new(Exit::Failure, format!("console connection: {e}"));
    let writes = console.writes();
    let (stream, mut decoder) = console.into_stream();
    stream.set_nonblocking(true).map_err(broken)?;
    let (mut from, mut to) = UnixStream::from_std(stream).map_err(broken)?.into_split();
    let mut waiting: Vec<u8> = Vec::new();
    let mut chunk = [0_u8; 16 * 1024];
    loop {
        if let Some(end) = take_events(&mut decoder, &mut show)? {
            return Ok(end);
        }
        tokio::select! {
            read = from.read(&mut chunk) => match read.map_err(broken)? {
                0 => return Ok(End::HungUp),
                n => decoder.push(&chunk[..n]),
            },
            sent = to.write(&waiting), if !waiting.is_empty() => {
                waiting.drain(..sent.map_err(broken)?);
            }
            bytes = next(&mut typed), if waiting.len() < MAX_WAITING => {
                let leave = match bytes {
                    Some(bytes) => {
                        let (keep, leave) = key.cut(&bytes);
                        if writes {
                            Frame::Data(keep).encode(&mut waiting);
                        }
                        leave
                    }
                    None => Leave::Yes,
                };
                if leave == Leave::Yes {
                    Frame::Detach.encode(&mut waiting);
                    // What was typed before must arrive; a guest that never reads must not hold us.
                    let all = tokio::time::timeout(ANSWER, to.write_all(&waiting)).await;
                    return all.map_or(Ok(End::Left), |sent| {
                        sent.map(|()| End::Left).map_err(broken)
                    });
                }
            }
            number = signals.next() => match number {
                Some(number) => return Ok(End::Signalled(number)),
                None if writes => Frame::Resize(terminal::size()).encode(&mut waiting),
                None => {}
            },
        }
    }
}

/// Without an input nothing ever comes.
async fn next(typed: &mut Option<mpsc::Receiver<Vec<u8>>>) -> Option<Vec<u8>> {
    match typed {
        Some(typed) => typed.recv().await,
        None => std::future::pending().await,
    }
}

fn take_events(
    decoder: &mut Decoder,
    show: &mut impl FnMut(&[u8]) -> Result<Reader, Failure>,
) -> Result<Option<End>, Failure> {
    loop {
        let event = decoder
            .next_event()
            .map_err(|e| Failure::new(Exit::Failure, format!("console connection: {e}")))?;
        let shown = match event {
            None => return Ok(None),
            Some(Event::Output(bytes)) => show(&bytes)?,
            Some(Event::Gap(bytes)) => {
                show(format!("\r\n[{bytes} bytes left out]\r\n").as_bytes())?
            }
            Some(Event::Exit(exit)) => return Ok(Some(End::GuestEnded(exit))),
            Some(Event::Detached) => return Ok(Some(End::HungUp)),
        };
        if shown == Reader::Gone {
            return Ok(Some(End::ReaderGone));
        }
    }
}
