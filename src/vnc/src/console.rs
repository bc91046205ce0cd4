//! The guest's console, seen from the server: two connections to the shim, handed over by the keeper.
//!
//! *The viewer* is there whenever the guest is. It only looks, so it takes nothing from anybody, and the picture is
//! right when a client comes: that of a monitor that was on all the time.
//!
//! *The typist* is there while a client is. It has the writer's role, of which a shim has one to give, and all clients
//! share it, as they share a keyboard. What it could read the viewer reads already; it is thrown away. If somebody else
//! writes (`ocivisor console`), the clients look on. They ask again whenever somebody types, at most once a second, and
//! have the role as soon as it is free; they never take it: who sits at the host comes before who has a password of
//! eight characters. `ocivisor console --take` takes it from us, and the same rule gets it back.
//!
//! What waits to be typed is bounded; a guest that does not read loses keys, as with any terminal.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use ocivisor_shim::client::{Decoder, Event};
use ocivisor_shim::exit::Exit;
use ocivisor_shim::frame::Frame;
use ocivisor_shim::message;
use rustix::event::PollFlags;

use crate::gate::{self, Answer, Question};
use crate::picture::Size;

/// Bytes that wait for the guest to read them; a long paste with its brackets.
pub const MAX_TYPED: usize = 2 * crate::rfb::message::MAX_CUT_TEXT + 64;
/// Shortest time between two questions for the writer's role.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How long the role is kept after the last client left: who loads a page anew comes back within a second.
const LINGER: Duration = Duration::from_secs(2);
/// Pauses between two looks for a guest that is away: the first, and the longest.
const LOOK_AGAIN: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(2)];
/// Bytes of output that are read at once: few, because the clock is looked at between two reads.
const PIECE: usize = 4 * 1024;
/// Bytes that are thrown away at once.
const CHUNK: usize = 16 * 1024;

/// What there is to say of the console.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// It is there. Its last output follows, which may be from before we looked.
    Here,
    /// The guest printed this.
    Output(Vec<u8>),
    /// Something is missing here.
    Gap,
    /// All that was waiting was read.
    CaughtUp,
    /// The guest ended.
    Ended(Exit),
    /// The connection broke; there may be another shim soon.
    Lost,
    /// It is not there yet.
    Away,
    /// The guest has none.
    NoConsole,
    /// Somebody else types.
    Busy,
}

/// Whether what was typed will reach the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Typed {
    /// It will, if the guest reads.
    Taken,
    /// Too much waits already.
    Full,
    /// Somebody else types, or there is no guest.
    InVain,
}

/// The console.
#[derive(Debug)]
pub struct Console {
    gate: OwnedFd,
    asked: Option<Asked>,
    viewer: Viewer,
    typist: Typist,
    /// Frames that wait to be written by the typist.
    typed: Vec<u8>,
    /// Whether somebody else had the writer's role when we asked last.
    busy: bool,
    /// When the role is given back.
    until: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Look,
    Type,
}

#[derive(Debug)]
enum Viewer {
    Away { again: Instant, pause: Duration },
    Here { stream: UnixStream, decoder: Decoder, ended: bool },
}

#[derive(Debug)]
enum Typist {
    /// Nobody is there to type.
    Unneeded,
    /// To be asked for if it is wanted, but not before this.
    Missing {
        wanted: bool,
        not_before: Instant,
    },
    Here(UnixStream),
}

impl Console {
    /// A console at the other end of this gate.
    #[must_use]
    pub fn new(gate: OwnedFd, now: Instant) -> Self {
        let viewer = Viewer::Away { again: now, pause: LOOK_AGAIN[0] };
        Self {
            gate,
            asked: None,
            viewer,
            typist: Typist::Unneeded,
            typed: Vec::new(),
            busy: false,
            until: None,
        }
    }

    /// The gate, to be polled.
    #[must_use]
    pub fn gate(&self) -> BorrowedFd<'_> {
        self.gate.as_fd()
    }

    /// The viewer's connection, to be polled.
    #[must_use]
    pub fn viewer(&self) -> Option<BorrowedFd<'_>> {
        match &self.viewer {
            Viewer::Here { stream, .. } => Some(stream.as_fd()),
            Viewer::Away { .. } => None,
        }
    }

    /// The typist's connection, and what to poll it for.
    #[must_use]
    pub fn typist(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let Typist::Here(stream) = &self.typist else { return None };
        let writes = if self.typed.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        Some((stream.as_fd(), PollFlags::IN | writes))
    }

    /// When to ask for something though nothing came.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let look = match (self.asked, &self.viewer) {
            (None, Viewer::Away { again, .. }) => Some(*again),
            (Some(_), _) | (None, Viewer::Here { .. }) => None,
        };
        look.into_iter().chain(self.until).min()
    }

    /// Asks for what is missing.
    ///
    /// # Errors
    /// The keeper is gone.
    pub fn ask(&mut self, size: Size, now: Instant) -> io::Result<()> {
        if self.asked.is_some() {
            return Ok(());
        }
        if let Viewer::Away { again, .. } = &self.viewer {
            if *again <= now {
                self.asked = Some(Asked::Look);
                gate::ask(&self.gate, &Question::Look)?;
            }
            // Without a console nobody types at it.
            return Ok(());
        }
        if let Typist::Missing { wanted: true, not_before } = &self.typist
            && *not_before <= now
        {
            self.asked = Some(Asked::Type);
            gate::ask(&self.gate, &Question::Type(size))?;
        }
        Ok(())
    }

    /// Hears an answer. `None` if there is nothing to say about it.
    ///
    /// # Errors
    /// The keeper is gone.
    pub fn hear(&mut self, now: Instant) -> io::Result<Option<Said>> {
        let answer = gate::answered(&self.gate)?;
        Ok(match (self.asked.take(), answer) {
            (Some(Asked::Look), Answer::Here(fd)) => {
                let stream = nonblocking(fd)?;
                self.viewer = Viewer::Here { stream, decoder: Decoder::default(), ended: false };
                if let Typist::Missing { wanted, .. } = &mut self.typist {
                    *wanted = true;
                }
                Some(Said::Here)
            }
            (Some(Asked::Look), answer) => {
                if let Viewer::Away { again, pause } = &mut self.viewer {
                    *again = now + *pause;
                    *pause = (*pause * 2).min(LOOK_AGAIN[1]);
                }
                let none = matches!(answer, Answer::NoConsole);
                Some(if none { Said::NoConsole } else { Said::Away })
            }
            (Some(Asked::Type), Answer::Here(fd)) => {
                // The last client may have left meanwhile.
                self.busy = false;
                if matches!(self.typist, Typist::Missing { .. }) {
                    self.typist = Typist::Here(nonblocking(fd)?);
                }
                None
            }
            (Some(Asked::Type), answer) => {
                let typed = !self.typed.is_empty();
                self.miss_typist(now + ASK_AGAIN);
                self.busy = matches!(answer, Answer::Busy);
                (typed && self.busy).then_some(Said::Busy)
            }
            (None, _) => return Err(ErrorKind::InvalidData.into()),
        })
    }

    /// Whether there is anybody to type. To be said in every round.
    pub fn need_typist(&mut self, needed: bool, now: Instant) {
        if needed {
            self.until = None;
            if matches!(self.typist, Typist::Unneeded) {
                self.typist = Typist::Missing { wanted: true, not_before: now };
            }
            return;
        }
        match &mut self.typist {
            Typist::Unneeded => {}
            Typist::Here(_) if *self.until.get_or_insert(now + LINGER) > now => {}
            Typist::Here(stream) => {
                let mut last = Vec::new();
                Frame::Detach.encode(&mut last);
                // If there is no room for it the shim sees the end of the stream, a little later.
                let _ = stream.write(&last);
                self.give_up();
            }
            Typist::Missing { .. } => self.give_up(),
        }
    }

    fn give_up(&mut self) {
        hang_up(&self.typist);
        self.typist = Typist::Unneeded;
        self.typed = Vec::new();
        self.until = None;
    }

    /// Whether somebody else types, as far as we know.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.busy && !matches!(self.typist, Typist::Here(_))
    }

    /// Types for the guest.
    pub fn type_bytes(&mut self, bytes: &[u8], now: Instant) -> Typed {
        let here = matches!(self.viewer, Viewer::Here { ended: false, .. });
        match &mut self.typist {
            Typist::Missing { wanted, not_before } if here && *not_before <= now => *wanted = true,
            Typist::Here(_) if here => {}
            Typist::Unneeded | Typist::Missing { .. } | Typist::Here(_) => return Typed::InVain,
        }
        if bytes.len() > self.room() {
            return Typed::Full;
        }
        Frame::Data(bytes).encode(&mut self.typed);
        Typed::Taken
    }

    /// How many more bytes may wait to be typed.
    #[must_use]
    pub fn room(&self) -> usize {
        MAX_TYPED.saturating_sub(self.typed.len())
    }

    /// Tells the guest the terminal's size, if we are the one whose size counts.
    pub fn resize(&mut self, size: Size) {
        if matches!(self.typist, Typist::Here(_)) && self.typed.len() < MAX_TYPED {
            Frame::Resize(shim_size(size)).encode(&mut self.typed);
        }
    }

    /// Reads what the viewer has until it is as many bytes as wanted, a few thousand at once; returns how many it was.
    pub fn read(&mut self, most: usize, now: Instant, mut take: impl FnMut(Said)) -> usize {
        let mut chunk = [0; PIECE];
        let mut read = 0;
        while read < most
            && let Viewer::Here { stream, decoder, ended } = &mut self.viewer
        {
            let lost = match stream.read(&mut chunk) {
                Ok(0) => true,
                Ok(n) => {
                    read += n;
                    decoder.push(&chunk[..n]);
                    pass(decoder, ended, &mut take)
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    take(Said::CaughtUp);
                    return read;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => false,
                Err(_) => true,
            };
            if lost {
                // As in `hang_up`.
                let _ = stream.shutdown(Shutdown::Both);
                if !*ended {
                    take(Said::Lost);
                }
                self.viewer = Viewer::Away { again: now, pause: LOOK_AGAIN[0] };
            }
        }
        read
    }

    /// Lets the typist write, and throws away what it could read.
    pub fn flush(&mut self, now: Instant) {
        let Typist::Here(stream) = &mut self.typist else { return };
        let mut lost = drained(stream);
        while !self.typed.is_empty() && !lost {
            match stream.write(&self.typed) {
                Ok(n) => drop(self.typed.drain(..n)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => lost = true,
            }
        }
        if self.typed.is_empty() {
            self.typed = Vec::new();
        }
        if lost {
            self.miss_typist(now);
        }
    }

    /// Without the role, and what was to be typed is not typed later.
    fn miss_typist(&mut self, not_before: Instant) {
        self.typed = Vec::new();
        hang_up(&self.typist);
        if !matches!(self.typist, Typist::Unneeded) {
            self.typist = Typist::Missing { wanted: false, not_before };
        }
    }
}

/// Passes events on; returns whether nothing more comes.
fn pass(decoder: &mut Decoder, ended: &mut bool, take: &mut impl FnMut(Said)) -> bool {
    loop {
        match decoder.next_event() {
            Ok(None) => return false,
            Ok(Some(Event::Output(bytes))) => take(Said::Output(bytes)),
            Ok(Some(Event::Gap(_))) => take(Said::Gap),
            Ok(Some(Event::Exit(exit))) => {
                *ended = true;
                take(Said::Ended(exit));
            }
            Ok(Some(Event::Detached)) | Err(_) => return true,
        }
    }
}

/// Reads some of what nobody needs; returns whether that was the end.
fn drained(stream: &mut UnixStream) -> bool {
    let mut chunk = [0; CHUNK];
    // Not all there may be: a guest that prints without end must not hold us.
    for _ in 0..4 {
        match stream.read(&mut chunk) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => return false,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(_) => return true,
        }
    }
    false
}

/// Ends a connection though the keeper has it, too.
fn hang_up(typist: &Typist) {
    if let Typist::Here(stream) = typist {
        // It may be at its end already.
        let _ = stream.shutdown(Shutdown::Both);
    }
}

fn nonblocking(fd: OwnedFd) -> io::Result<UnixStream> {
    let stream = UnixStream::from(fd);
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// The size in the shim's terms.
#[must_use]
pub fn shim_size(size: Size) -> message::Size {
    message::Size { cols: size.columns, rows: size.rows }
}

#[cfg(test)]
mod tests;
