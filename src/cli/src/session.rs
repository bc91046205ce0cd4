//! A command that runs in a guest: its session's frames on one side, our streams on the other.
//!
//! The session (ocivisor-runtime) listens on a socket of its own until who knows the token comes.
//! After `token\n` there are frames both ways: type (u8), length (u16, network order), payload.
//!
//! ```text
//! 0 data     standard output or terminal to us, standard input from us
//! 1 error    standard error to us
//! 2 end      standard input ends
//! 3 resize   columns u16, rows u16
//! 4 exit     code u8, the last frame
//! ```

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use ocivisor_shim::message::Size;
use rustix::fs::{Mode, OFlags, open};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use crate::attach::Signals;
use crate::failure::{Exit, Failure};
use crate::output::{Reader, complain_bytes, write_bytes};
use crate::terminal;

/// Longest payload, bytes.
const MAX_PAYLOAD: usize = 16 * 1024;
/// Bytes before the payload.
const HEADER: usize = 3;
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

/// What the session says.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Said {
    Output(Vec<u8>),
    Error(Vec<u8>),
    Exit(u8),
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

/// Moves bytes until the command ended; returns its exit code. Without `typed` its input is empty.
///
/// # Errors
/// The connection broke, or our standard output cannot be written.
pub async fn run(
    stream: UnixStream,
    mut signals: Signals,
    mut typed: Option<mpsc::Receiver<Vec<u8>>>,
    has: Terminal,
) -> Result<u8, Failure> {
    let broken = |e: io::Error| Failure::new(Exit::Failure, format!("session connection: {e}"));
    let (mut from, mut to) = stream.into_split();
    let mut waiting = Vec::new();
    if has == Terminal::Own {
        put_size(&mut waiting, terminal::size());
    }
    if typed.is_none() {
        put(&mut waiting, 2, &[]);
    }
    let mut received = Vec::new();
    let mut chunk = [0_u8; 32 * 1024];
    loop {
        while let Some((said, used)) = decode(&received)? {
            received.drain(..used);
            match said {
                Said::Output(bytes) if write_bytes(&bytes)? == Reader::Gone => {
                    return Ok(NO_READER);
                }
                Said::Output(_) => {}
                Said::Error(bytes) => complain_bytes(&bytes),
                Said::Exit(code) => return Ok(code),
            }
        }
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
                Some(bytes) => put_input(&mut waiting, &bytes),
                None => {
                    typed = None;
                    put(&mut waiting, 2, &[]);
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

/// The first frame of `bytes` and how many bytes it took; `None` if it is not complete yet.
fn decode(bytes: &[u8]) -> Result<Option<(Said, usize)>, Failure> {
    let Some((&[kind, high, low], rest)) = bytes.split_first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    let malformed = || Failure::new(Exit::Failure, "session connection: malformed frame");
    if length > MAX_PAYLOAD || !matches!(kind, 0 | 1 | 4) {
        return Err(malformed());
    }
    let Some(payload) = rest.get(..length) else {
        return Ok(None);
    };
    let said = match (kind, payload) {
        (0, bytes) => Said::Output(bytes.to_vec()),
        (1, bytes) => Said::Error(bytes.to_vec()),
        (_, &[code]) => Said::Exit(code),
        _ => return Err(malformed()),
    };
    Ok(Some((said, HEADER + length)))
}

fn put_input(out: &mut Vec<u8>, bytes: &[u8]) {
    for chunk in bytes.chunks(MAX_PAYLOAD) {
        put(out, 0, chunk);
    }
}

fn put_size(out: &mut Vec<u8>, size: Size) {
    let ([a, b], [c, d]) = (size.cols.to_be_bytes(), size.rows.to_be_bytes());
    // Zero is "not known": the terminal keeps the size it has.
    if size.cols > 0 && size.rows > 0 {
        put(out, 3, &[a, b, c, d]);
    }
}

fn put(out: &mut Vec<u8>, kind: u8, payload: &[u8]) {
    // Payloads are chunks of at most MAX_PAYLOAD, so the length always fits.
    let [high, low] = u16::try_from(payload.len()).unwrap_or(u16::MAX).to_be_bytes();
    out.extend_from_slice(&[kind, high, low]);
    out.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_one_after_the_other() {
        let bytes = [0, 0, 2, b'h', b'i', 1, 0, 1, b'!', 4, 0, 1, 7];
        let mut rest = &bytes[..];
        for want in [Said::Output(b"hi".to_vec()), Said::Error(b"!".to_vec()), Said::Exit(7)] {
            let (got, used) = decode(rest).unwrap().unwrap();
            assert_eq!(got, want);
            for short in 0..used {
                assert_eq!(decode(&rest[..short]).unwrap(), None);
            }
            rest = &rest[used..];
        }
        assert!(rest.is_empty());
    }

    #[test]
    fn garbage_is_refused() {
        for bad in [&[2, 0, 0][..], &[9, 0, 0], &[0, 255, 255], &[4, 0, 0], &[4, 0, 2, 0, 0]] {
            assert!(decode(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_is_sent_is_framed() {
        let mut out = Vec::new();
        put_size(&mut out, Size { cols: 80, rows: 24 });
        put_size(&mut out, Size::default());
        put_input(&mut out, b"x");
        put(&mut out, 2, &[]);
        assert_eq!(out, [3, 0, 4, 0, 80, 0, 24, 0, 0, 1, b'x', 2, 0, 0]);
    }
}
