//! One connection: bounded buffers both ways, lines first, frames after an attach.
//!
//! Nothing here waits. Input is read only while there is room for it, so a client that sends faster
//! than it is served is slowed by its own socket. Output to a viewer that does not read is left out
//! beyond [`MAX_OUTPUT`]; once it reads again, a gap frame says how much, and the newest output
//! follows. The guest is never slowed by a viewer.

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use ocivisor_shim::frame::{BadFrame, Frame, HEADER, MAX_PAYLOAD};
use ocivisor_shim::message::MAX_LINE;
use rustix::event::PollFlags;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// Bytes that wait for a client to read them.
pub const MAX_OUTPUT: usize = 64 * 1024;
/// A connection that asks nothing is closed after this.
pub const IDLE: Duration = Duration::from_secs(10);

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Asks and is answered.
    Lines,
    /// Waits for the guest's end.
    Waiting,
    /// Watches the console.
    Viewer,
    /// Watches the console and types.
    Writer,
    /// Left the console; only the last words are still to be written.
    Leaving,
}

/// A connection.
#[derive(Debug)]
pub struct Conn {
    stream: UnixStream,
    /// Whether the peer has our own uid.
    pub trusted: bool,
    /// What it is for.
    pub mode: Mode,
    input: Vec<u8>,
    output: Vec<u8>,
    left_out: u32,
    idle_until: Instant,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// The peer sends nothing more.
    HalfClosed,
    /// Nothing more is read; ends when all is written.
    Closing,
    Dead,
}

impl Conn {
    /// A fresh connection; the stream does not block.
    pub fn new(stream: UnixStream, trusted: bool, now: Instant) -> Self {
        Self {
            stream,
            trusted,
            mode: Mode::Lines,
            input: Vec::new(),
            output: Vec::new(),
            left_out: 0,
            idle_until: now + IDLE,
            state: State::Open,
        }
    }

    /// The descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// What to poll for; `typing` tells whether the guest takes input.
    pub fn interest(&self, typing: bool) -> PollFlags {
        let mut flags = PollFlags::empty();
        let limit = match self.mode {
            Mode::Lines | Mode::Waiting => MAX_LINE,
            Mode::Viewer => HEADER + MAX_PAYLOAD,
            Mode::Writer if typing => HEADER + MAX_PAYLOAD,
            Mode::Writer | Mode::Leaving => 0,
        };
        if self.state == State::Open && self.input.len() < limit && self.may_ask() {
            flags |= PollFlags::IN;
        }
        if !self.output.is_empty() {
            flags |= PollFlags::OUT;
        }
        flags
    }

    /// Whether its next line may be served: answers that nobody reads must not pile up.
    pub fn may_ask(&self) -> bool {
        self.mode != Mode::Lines || self.output.len() < MAX_LINE
    }

    /// When to look at it even if nothing comes.
    pub fn deadline(&self) -> Option<Instant> {
        match (self.mode, self.state) {
            (Mode::Lines, _) | (_, State::Closing) => Some(self.idle_until),
            (Mode::Waiting | Mode::Viewer | Mode::Writer | Mode::Leaving, _) => None,
        }
    }

    /// Drops it if its time is over.
    pub fn expire(&mut self, now: Instant) {
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            self.state = State::Dead;
        }
    }

    /// Whether it can be forgotten.
    pub fn is_dead(&self) -> bool {
        self.state == State::Dead
    }

    /// Whether nothing waits to be written.
    pub fn is_flushed(&self) -> bool {
        self.output.is_empty()
    }

    /// Reads what there is and there is room for.
    pub fn fill(&mut self, revents: PollFlags) {
        let room = (HEADER + MAX_PAYLOAD).saturating_sub(self.input.len());
        if revents.contains(PollFlags::IN) && self.state == State::Open && room > 0 {
            let mut chunk = [0_u8; HEADER + MAX_PAYLOAD];
            match self.stream.read(&mut chunk[..room]) {
                Ok(0) => self.state = State::HalfClosed,
                Ok(n) => self.input.extend_from_slice(&chunk[..n]),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(_) => self.state = State::Dead,
            }
        } else if revents.intersects(PollFlags::HUP | PollFlags::ERR) {
            self.state = State::Dead;
        }
    }

    /// The next line without its newline, `Err` if there can be none.
    pub fn next_line(&mut self, now: Instant) -> Option<Result<Vec<u8>, ()>> {
        if matches!(self.state, State::Closing | State::Dead) {
            return None;
        }
        let Some(end) = self.input.iter().take(MAX_LINE).position(|&c| c == b'\n') else {
            if self.input.len() >= MAX_LINE {
                return Some(Err(()));
            }
            if self.state == State::HalfClosed {
                self.state = State::Closing;
            }
            return None;
        };
        let mut line: Vec<u8> = self.input.drain(..=end).collect();
        line.pop();
        self.idle_until = now + IDLE;
        Some(Ok(line))
    }

    /// Hands the next frame to `take`; `Ok(false)` if there is none.
    pub fn next_frame(&mut self, take: impl FnOnce(Frame<'_>)) -> Result<bool, BadFrame> {
        if matches!(self.state, State::Closing | State::Dead) {
            return Ok(false);
        }
        let Some((frame, used)) = Frame::decode(&self.input)? else {
            return Ok(false);
        };
        take(frame);
        self.input.drain(..used);
        Ok(true)
    }

    /// Answers with a line.
    pub fn put_line(&mut self, line: &str) {
        self.output.extend_from_slice(line.as_bytes());
        self.output.push(b'\n');
    }

    /// Answers with a line and a descriptor.
    pub fn put_line_with(&mut self, line: &str, fd: BorrowedFd<'_>) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let text = format!("{line}\n");
        let fds = [fd];
        let sent =
            control.push(SendAncillaryMessage::ScmRights(&fds)) && self.output.is_empty() && {
                let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
                sendmsg(&self.stream, &[IoSlice::new(text.as_bytes())], &mut control, flags)
                    .is_ok_and(|n| n == text.len())
            };
        if !sent {
            self.state = State::Dead;
        }
    }

    /// Shows a viewer what the guest printed. One that fell behind is shown nothing more until it
    /// has read all that waits, see [`Conn::behind`].
    pub fn show(&mut self, bytes: &[u8]) {
        if self.state == State::Closing {
            return;
        }
        let room = MAX_OUTPUT.saturating_sub(self.output.len() + 2 * HEADER + 4);
        if self.left_out > 0 || bytes.len() > room {
            self.left_out = self.left_out.saturating_add(bytes.len() as u32);
        } else {
            Frame::Data(bytes).encode(&mut self.output);
        }
    }

    /// Bytes that were left out, if the viewer has read everything else.
    pub fn behind(&self) -> Option<u32> {
        (self.left_out > 0 && self.output.is_empty()).then_some(self.left_out)
    }

    /// Bytes that were left out.
    pub fn left_out(&self) -> u32 {
        self.left_out
    }

    /// Goes on with the newest output: what was printed last (a prompt) is what matters to somebody
    /// who fell behind.
    pub fn catch_up(&mut self, newest: &[u8]) {
        let newest = &newest[newest.len().saturating_sub(self.left_out as usize)..];
        let missing = self.left_out - newest.len() as u32;
        if missing > 0 {
            Frame::Gap(missing).encode(&mut self.output);
        }
        Frame::Data(newest).encode(&mut self.output);
        self.left_out = 0;
    }

    /// Sends a frame that must not be left out; there are few of them.
    pub fn put_frame(&mut self, frame: Frame<'_>) {
        frame.encode(&mut self.output);
    }

    /// Ends the connection once all is written, or its idle time is over.
    pub fn close(&mut self, now: Instant) {
        if self.state != State::Dead {
            self.state = State::Closing;
            self.idle_until = now + IDLE;
        }
    }

    /// Writes as much as the peer takes now.
    pub fn flush(&mut self) {
        while !self.output.is_empty() && self.state != State::Dead {
            match self.stream.write(&self.output) {
                Ok(0) => self.state = State::Dead,
                Ok(n) => {
                    self.output.drain(..n);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.state = State::Dead,
            }
        }
        if self.state == State::Closing {
            self.state = State::Dead;
        }
    }
}
