//! A command that runs in a guest: its session's frames on one side, our streams on the other.
//!
//! The session (ocivisor-runtime) listens on a socket of its own until who knows the token comes.
//! After `token\n` there are the frames of [`ocivisor_frame::session`].

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use ocivisor_frame::session::{Collected, FromClient, FromSession};
use ocivisor_shim::message::Size;
use rustix::fs::{Mode, OFlags, open};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use crate::attach::Signals;
use crate::failure::{Exit, Failure};
use crate::output::{Reader, complain_bytes, write_bytes};
use crate::terminal;

/// Input that waits for the command to read it; no more is read meanwhile.
const MAX_WAITING: usize = 64 * 1024;
/// What a shell sees of a command whose reader went away: 128 + SIGPIPE.
const NO_READER: u8 = 128 + 13;

/// Whether the command has a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Terminal {
    /// One of its own, of our size.
    Own,
    /// Pipes.
    None,
}

/// Connects to the session at `socket`.
///
/// # Errors
/// It is not there any more.
pub async fn connect(socket: &Path, token: &str) -> Result<UnixStream, Failure> {
    let failed = |e: io::Error| Failure::new(Exit::of_io(&e), format!("join the session: {e}"));
    let (Some(dir), Some(name)) = (socket.parent(), socket.file_name()) else {
        return Err(failed(io::ErrorKind::InvalidInput.into()));
    };
    // An address has room for 107 bytes, a path for more: go by way of the directory.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = open(dir, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
    let near = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
    let mut stream = UnixStream::connect(near).await.map_err(failed)?;
    let line = format!("{token}\n");
    stream.write_all(line.as_bytes()).await.map_err(failed)?;
    Ok(stream)
}

/// Where goes what the command says.
#[derive(Debug)]
pub enum Heard<'a> {
    /// To our own streams, as it comes.
    Streams,
    /// Here, up to a bound.
    Kept(&'a mut Collected),
}

/// Moves bytes until the command ended; returns its exit code. Without `typed` its input is empty.
///
/// # Errors
/// The connection broke, or our standard output cannot be written.
pub async fn run(
    stream: UnixStream,
    mut signals: Signals,
    mut typed: Option<mpsc::Receiver<Vec<u8>>>,
    has: Terminal,
    mut heard: Heard<'_>,
) -> Result<u8, Failure> {
    let broken = |e: io::Error| Failure::new(Exit::Failure, format!("session connection: {e}"));
    let (mut from, mut to) = stream.into_split();
    let mut waiting = Vec::new();
    if has == Terminal::Own {
        put_size(&mut waiting, terminal::size());
    }
    if typed.is_none() {
        FromClient::End.encode(&mut waiting);
    }
    let mut received = Vec::new();
    let mut chunk = [0_u8; 32 * 1024];
    loop {
        let mut done = 0;
        while let Some((said, used)) = FromSession::decode(&received[done..])
            .map_err(|e| Failure::new(Exit::Failure, format!("session connection: {e}")))?
        {
            done += used;
            if let Heard::Kept(kept) = &mut heard {
                kept.hear(&said);
            }
            match said {
                FromSession::Output(_) | FromSession::Error(_)
                    if matches!(heard, Heard::Kept(_)) => {}
                FromSession::Output(bytes) if write_bytes(bytes)? == Reader::Gone => {
                    return Ok(NO_READER);
                }
                FromSession::Output(_) => {}
                FromSession::Error(bytes) => complain_bytes(bytes),
                FromSession::Exit(code) => return Ok(code),
            }
        }
        received.drain(..done);
        tokio::select! {
            read = from.read(&mut chunk) => match read.map_err(broken)? {
                0 => return Err(Failure::new(Exit::Failure, "the session ended without an exit code")),
                n => received.extend_from_slice(&chunk[..n]),
            },
            sent = to.write(&waiting), if !waiting.is_empty() => match sent {
                Ok(n) => drop(waiting.drain(..n)),
                // It ended; what it said last is still to be read.
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => waiting.clear(),
                Err(e) => return Err(broken(e)),
            },
            bytes = next(&mut typed), if waiting.len() < MAX_WAITING => match bytes {
                Some(bytes) => FromClient::Data(&bytes).encode(&mut waiting),
                None => {
                    typed = None;
                    FromClient::End.encode(&mut waiting);
                }
            },
            number = signals.next() => match number {
                Some(number) => return Ok(128 + number),
                None if has == Terminal::Own => put_size(&mut waiting, terminal::size()),
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

fn put_size(out: &mut Vec<u8>, Size { cols: columns, rows }: Size) {
    // Zero is "not known": the terminal keeps the size it has.
    if columns > 0 && rows > 0 {
        FromClient::Resize { columns, rows }.encode(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_that_is_not_known_is_not_sent() {
        let mut out = Vec::new();
        put_size(&mut out, Size { cols: 80, rows: 24 });
        put_size(&mut out, Size { cols: 0, rows: 24 });
        put_size(&mut out, Size::default());
        assert_eq!(out, [3, 0, 4, 0, 80, 0, 24]);
    }
}
