//! A copy between a guest and here: a session's frames on one side, a tree of files or a tar stream on the other.
//!
//! The guest's side says what it has to say on its standard error, a line each: `note TEXT`, `error KIND TEXT`.
//! All of it is the guest's word: escaped, bounded, and never the reason to write anywhere but below the
//! destination, for which [`ocivisor_copy`] sees.
//!
//! Files are read and written by a thread that blocks; a signal closes the connection under it, which ends it as any
//! broken stream does: what is not whole is taken away.

use std::io::{self, BufReader, BufWriter, IsTerminal, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use ocivisor_copy::Notes;
use ocivisor_copy::pack::{Source, pack};
use ocivisor_copy::unpack::{Naming, Rules, Trust, unpack};
use ocivisor_core::error::{Error, ErrorKind, one_line};
use ocivisor_frame::session::{FromClient, FromSession};
use tokio::sync::oneshot;

use crate::attach::Signals;
use crate::failure::{Exit, Failure};
use crate::output::{Reader, complain, write_bytes};

/// Most bytes of what the other side says.
const MAX_SAID: usize = 64 * 1024;
/// How long the end may take after a signal.
const TIDY: Duration = Duration::from_secs(2);
/// Bytes that are gathered before they are passed on.
const BUFFER: usize = 64 * 1024;

/// Our end.
#[derive(Debug)]
pub enum Here {
    /// A path.
    Path(Vec<u8>),
    /// Standard input or output.
    Stream,
}

/// What is to be done.
#[derive(Debug)]
pub enum Job {
    /// Out of the guest.
    Out {
        /// Where to.
        to: Here,
        /// The name that must come, of [`Parts::top`](ocivisor_copy::place::Parts::top).
        expect: Vec<u8>,
        /// Whether owners and set-id bits are kept.
        owners: bool,
    },
    /// Into the guest.
    In {
        /// What.
        from: Here,
        /// Whether a link that it names is followed.
        follow: bool,
    },
}

impl Job {
    /// Looks for what can be known before anything is done.
    ///
    /// # Errors
    /// It cannot be done.
    pub fn check(&self) -> Result<(), Failure> {
        match self {
            Self::Out { to: Here::Stream, .. } if io::stdout().is_terminal() => {
                let refusal = Failure::new(Exit::Usage, "a tar stream is not for a terminal");
                Err(refusal.hint("redirect it"))
            }
            Self::In { from: Here::Stream, .. } if io::stdin().is_terminal() => {
                let refusal =
                    Failure::new(Exit::Usage, "a tar stream does not come from a terminal");
                Err(refusal.hint("redirect it"))
            }
            Self::In { from: Here::Path(path), .. } => {
                use std::os::unix::ffi::OsStrExt;
                let path = std::path::Path::new(std::ffi::OsStr::from_bytes(path));
                let found = std::fs::symlink_metadata(path).map(|_| ());
                found.map_err(|e| Failure::new(Exit::of_io(&e), format!("{}: {e}", path.display())))
            }
            Self::Out { .. } | Self::In { .. } => Ok(()),
        }
    }
}

/// Does it, to its end or to a signal, whose number and 128 is returned then.
///
/// # Errors
/// What failed, here or there.
pub async fn run(
    job: Job,
    stream: tokio::net::UnixStream,
    mut signals: Signals,
    quiet: bool,
) -> Result<u8, Failure> {
    let broken = |e: io::Error| Failure::new(Exit::Failure, format!("session connection: {e}"));
    let stream = stream.into_std().map_err(broken)?;
    stream.set_nonblocking(false).map_err(broken)?;
    let ours = stream.try_clone().map_err(broken)?;
    let (tell, mut told) = oneshot::channel();
    // A thread of our own: one that waits for standard input must not keep the process.
    std::thread::Builder::new()
        .name("copy".into())
        .spawn(move || {
            // Nobody listens after a signal.
            let _ = tell.send(copy(job, &stream, quiet));
        })
        .map_err(|e| Failure::new(Exit::Failure, format!("start a thread: {e}")))?;
    let vanished = || Failure::new(Exit::Failure, "the copy ended without a result");
    let number = loop {
        tokio::select! {
            done = &mut told => return done.map_err(|_| vanished())?.map(|()| 0),
            number = signals.next() => if let Some(number) = number { break number; }
        }
    };
    // ENOTCONN: it ended just now.
    let _ = ours.shutdown(Shutdown::Both);
    let _ = tokio::time::timeout(TIDY, told).await;
    Ok(128 + number)
}

fn copy(job: Job, stream: &UnixStream, quiet: bool) -> Result<(), Failure> {
    let mut from = Incoming::new(stream);
    let mut notes = Notes::default();
    let done = match job {
        Job::Out { to: Here::Path(path), expect, owners } => {
            let naming = Naming::One { expect: Some(&expect) };
            let rules = Rules { trust: Trust::Stranger, naming, owners };
            unpack(&mut from, &path, rules, &mut notes).map_err(Failure::from)
        }
        Job::Out { to: Here::Stream, .. } => pass_out(&mut from),
        Job::In { from: source, follow } => {
            let mut to = BufWriter::with_capacity(BUFFER, Outgoing { stream, hung_up: false });
            let sent = match source {
                Here::Path(path) => {
                    let source = Source { path: &path, follow };
                    pack(source, &mut to, &mut notes).map_err(Failure::from)
                }
                Here::Stream => {
                    let passed = io::copy(&mut BufReader::new(io::stdin().lock()), &mut to);
                    passed.and_then(|_| to.flush()).map_err(|e| {
                        Failure::new(Exit::Failure, format!("pass the tar stream on: {e}"))
                    })
                }
            };
            // Without its end the other side knows that it is not whole.
            let ended = sent.and_then(|()| to.get_mut().end());
            match ended {
                Ok(()) => io::copy(&mut from, &mut io::sink())
                    .map(|_| ())
                    .map_err(|e| Failure::new(Exit::Failure, format!("session connection: {e}"))),
                Err(failure) => {
                    // If the other side ended, its reason is still to be read, and better than ours.
                    if to.get_ref().hung_up {
                        let _ = io::copy(&mut from, &mut io::sink());
                    }
                    Err(failure)
                }
            }
        }
    };
    if !quiet {
        notes.lines().chain(from.notes()).for_each(|note| complain(&format!("ocivisor: {note}\n")));
    }
    match from.failure() {
        Some(failure) => Err(failure),
        None => done,
    }
}

/// The tar stream as it is.
fn pass_out(from: &mut Incoming<'_>) -> Result<(), Failure> {
    let mut chunk = vec![0; BUFFER];
    loop {
        let n = from.read(&mut chunk);
        let n = n.map_err(|e| Failure::new(Exit::Failure, format!("session connection: {e}")))?;
        if n == 0 {
            return Ok(());
        }
        if write_bytes(&chunk[..n])? == Reader::Gone {
            return Err(Failure::new(Exit::Failure, "the reader of the tar stream is gone"));
        }
    }
}

/// What the session sends: its output to be read, its word to be kept.
struct Incoming<'s> {
    stream: &'s UnixStream,
    received: Vec<u8>,
    output: Vec<u8>,
    at: usize,
    said: Vec<u8>,
    code: Option<u8>,
}

impl<'s> Incoming<'s> {
    fn new(stream: &'s UnixStream) -> Self {
        let (received, output, said) = (Vec::new(), Vec::new(), Vec::new());
        Self { stream, received, output, at: 0, said, code: None }
    }

    fn lines(&self) -> impl Iterator<Item = String> {
        let said = String::from_utf8_lossy(&self.said).into_owned();
        let lines: Vec<String> = said.lines().map(one_line).collect();
        lines.into_iter()
    }

    fn notes(&self) -> impl Iterator<Item = String> {
        self.lines().filter_map(|line| line.strip_prefix("note ").map(str::to_owned))
    }

    /// Why the other side failed, if it did.
    fn failure(&self) -> Option<Failure> {
        let code = self.code.filter(|code| *code != 0)?;
        let said = self.lines().find_map(|line| {
            let (kind, message) = line.strip_prefix("error ")?.split_once(' ')?;
            let kind = ErrorKind::from_name(kind)?;
            Some(Error::new(kind, format!("in the guest: {message}")))
        });
        Some(match said {
            Some(error) => error.into(),
            None if code == 137 => {
                let what = "in the guest: the copy was killed; its memory limit may be too low";
                Failure::new(Exit::Resources, what)
            }
            None => {
                let last = self.lines().last().unwrap_or_default();
                let last = last.strip_prefix("ocivisor: ").unwrap_or(&last);
                Failure::new(Exit::Failure, format!("in the guest: exit code {code}: {last}"))
            }
        })
    }

    /// Takes one whole frame, if there is one.
    fn take(&mut self) -> io::Result<bool> {
        let bad = |e| io::Error::new(io::ErrorKind::InvalidData, e);
        let Some((said, used)) = FromSession::decode(&self.received).map_err(bad)? else {
            return Ok(false);
        };
        match said {
            FromSession::Output(bytes) => {
                self.output.clear();
                self.output.extend_from_slice(bytes);
                self.at = 0;
            }
            FromSession::Error(bytes) => {
                let room = MAX_SAID.saturating_sub(self.said.len()).min(bytes.len());
                self.said.extend_from_slice(&bytes[..room]);
            }
            FromSession::Exit(code) => self.code = Some(code),
        }
        self.received.drain(..used);
        Ok(true)
    }
}

impl Read for Incoming<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.at == self.output.len() && self.code.is_none() {
            if self.take()? {
                continue;
            }
            let mut chunk = [0; 32 * 1024];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => self.received.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        let n = into.len().min(self.output.len() - self.at);
        into[..n].copy_from_slice(&self.output[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

/// Our input for the session.
struct Outgoing<'s> {
    stream: &'s UnixStream,
    /// Whether the other side did.
    hung_up: bool,
}

impl Outgoing<'_> {
    fn send(&mut self, frames: &[u8]) -> io::Result<()> {
        let sent = self.stream.write_all(frames);
        // Reset: it did so with something of ours unread, unix(7). What it said before is there all the same.
        let gone = [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset];
        self.hung_up |= sent.as_ref().is_err_and(|e| gone.contains(&e.kind()));
        sent
    }

    fn end(&mut self) -> Result<(), Failure> {
        let mut frame = Vec::new();
        FromClient::End.encode(&mut frame);
        let sent = self.send(&frame);
        sent.map_err(|e| Failure::new(Exit::Failure, format!("session connection: {e}")))
    }
}

impl Write for Outgoing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut frames = Vec::with_capacity(bytes.len() + 64);
        FromClient::Data(bytes).encode(&mut frames);
        self.send(&frames).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
