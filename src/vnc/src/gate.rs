//! Between the two processes of this program: the server asks for the guest's console, the keeper hands it over.
//!
//! A pair of sockets that keep messages apart. One question, one answer; an answer may carry a descriptor. What the
//! server can ask for is all that somebody who broke into it could: to look at and to type at the one console that it is
//! there for. The shim would take more from the host's root (signals, the terminal itself), so the keeper speaks to it
//! alone, and what it hands over has left the part of the protocol where anything can be asked. It keeps a duplicate of
//! what it handed over, to end it when the next one is asked for or the server died.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use crate::picture::Size;

/// Longest message, bytes.
const MAX_MESSAGE: usize = 512;

/// What the server asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// It is confined and begins; an answer is not expected.
    Ready,
    /// It cannot begin, and why; an answer is not expected.
    Failed(String),
    /// To look at the console, its last output first.
    Look,
    /// To type, on a terminal of this size.
    Type(Size),
}

/// What the keeper answers.
#[derive(Debug)]
pub enum Answer {
    /// There it is: a stream of frames.
    Here(OwnedFd),
    /// Somebody else types.
    Busy,
    /// There is no guest, or no shim yet.
    Away,
    /// The guest runs without a console: it was lost with an earlier shim.
    NoConsole,
}

/// The two ends.
///
/// # Errors
/// No descriptor is free.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC;
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Asks.
///
/// # Errors
/// The keeper is gone.
pub fn ask(gate: impl AsFd, question: &Question) -> io::Result<()> {
    let message = match question {
        Question::Ready => b"ready".to_vec(),
        Question::Failed(why) => [b"failed ", why.as_bytes()].concat(),
        Question::Look => b"look".to_vec(),
        Question::Type(size) => format!("type {} {}", size.columns, size.rows).into_bytes(),
    };
    send(gate.as_fd(), &message[..message.len().min(MAX_MESSAGE)], None)
}

/// The next question; waits for it.
///
/// # Errors
/// `UnexpectedEof`: the server is gone. `InvalidData`: it asks what it may not.
pub fn question(gate: impl AsFd) -> io::Result<Question> {
    let (message, _) = receive(gate.as_fd())?;
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let text = std::str::from_utf8(&message).map_err(|_| invalid())?;
    Ok(match text.split_once(' ').unwrap_or((text, "")) {
        ("ready", "") => Question::Ready,
        ("failed", why) => Question::Failed(why.replace(char::is_control, " ")),
        ("look", "") => Question::Look,
        ("type", size) => {
            let (columns, rows) = size.split_once(' ').ok_or_else(invalid)?;
            let number = |text: &str| text.parse().map_err(|_| invalid());
            Question::Type(Size { columns: number(columns)?, rows: number(rows)? })
        }
        _ => return Err(invalid()),
    })
}

/// Answers.
///
/// # Errors
/// The server is gone.
pub fn answer(gate: impl AsFd, answer: &Answer) -> io::Result<()> {
    let (message, fd): (&[u8], _) = match answer {
        Answer::Here(fd) => (b"here", Some(fd.as_fd())),
        Answer::Busy => (b"busy", None),
        Answer::Away => (b"away", None),
        Answer::NoConsole => (b"none", None),
    };
    send(gate.as_fd(), message, fd)
}

/// The next answer; waits for it.
///
/// # Errors
/// `UnexpectedEof`: the keeper is gone.
pub fn answered(gate: impl AsFd) -> io::Result<Answer> {
    match receive(gate.as_fd())? {
        (message, Some(fd)) if message == b"here" => Ok(Answer::Here(fd)),
        (message, None) if message == b"busy" => Ok(Answer::Busy),
        (message, None) if message == b"away" => Ok(Answer::Away),
        (message, None) if message == b"none" => Ok(Answer::NoConsole),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn send(gate: BorrowedFd<'_>, message: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let rights = fd.as_slice();
    if !rights.is_empty() && !control.push(SendAncillaryMessage::ScmRights(rights)) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    sendmsg(gate, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive(gate: BorrowedFd<'_>) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let mut message = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut into = [IoSliceMut::new(&mut message)];
    let got = recvmsg(gate, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut passed = None;
    for rights in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = rights {
            passed = fds.last().or(passed);
        }
    }
    // Empty messages are not sent, so this is the end.
    if got.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    message.truncate(got.bytes);
    Ok((message, passed))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn questions_arrive_one_by_one() {
        let (server, keeper) = pair().unwrap();
        let size = Size { columns: 80, rows: 25 };
        let failed = Question::Failed("no\nroom".into());
        for asked in [Question::Ready, Question::Look, Question::Type(size), failed] {
            ask(&server, &asked).unwrap();
        }
        let told = Question::Failed("no room".into());
        for wanted in [Question::Ready, Question::Look, Question::Type(size), told] {
            assert_eq!(question(&keeper).unwrap(), wanted);
        }
        drop(server);
        assert_eq!(question(&keeper).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn an_intruder_cannot_ask_for_more() {
        let (server, keeper) = pair().unwrap();
        for message in
            [&b"signal 9"[..], b"type 1", b"type 1 70000", b"look twice", b"\xff", b"master"]
        {
            send(server.as_fd(), message, None).unwrap();
            assert_eq!(question(&keeper).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn answers_bring_descriptors() {
        let (server, keeper) = pair().unwrap();
        let (near, mut far) = UnixStream::pair().unwrap();
        for given in [Answer::Busy, Answer::Here(near.into()), Answer::Away, Answer::NoConsole] {
            answer(&keeper, &given).unwrap();
        }
        assert!(matches!(answered(&server), Ok(Answer::Busy)));
        let Ok(Answer::Here(fd)) = answered(&server) else { panic!("no descriptor") };
        UnixStream::from(fd).write_all(b"hello").unwrap();
        let mut bytes = [0; 5];
        far.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"hello");
        assert!(matches!(answered(&server), Ok(Answer::Away)));
        assert!(matches!(answered(&server), Ok(Answer::NoConsole)));
    }
}
