//! One client: bytes in, wishes and bytes out. It owns no socket, so tests feed it what they like.
//!
//! ```text
//!   bytes ─► Handshake ─► Messages ─► keyboard, mouse ─► Wish
//!   picture ─► View ─► Encoder ─► bytes that wait to be written
//! ```
//!
//! A client costs a bounded amount of memory whatever it does: input is taken as far as there is room for a message, and
//! output is made only while little of it waits; wishes are of the order of the bytes that made them. It costs a bounded amount of time as well: a picture is sent at most
//! every [`PERIOD`], and the next one later if this one took long to encode.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use flate2::CompressError;

use super::auth::{Book, Secret};
use super::handshake::{Door, Handshake, Progress, Refusal, Sharing, put_server_init};
use super::message::{BadMessage, ClientMessage};
use super::session::{Reason, Session};
use super::view::Pixels;
use crate::keys::{Keyboard, Meant};
use crate::mouse::Mouse;
use crate::paste;
use crate::picture::{Picture, Size};
use crate::terminal::Modes;

/// Shortest time between two pictures.
pub const PERIOD: Duration = Duration::from_millis(33);
/// More output is made while less than this waits.
pub const LOW_WATER: usize = 64 * 1024;
/// A client that does not even say which version and security it wants.
pub const IMPATIENCE: Duration = Duration::from_secs(10);
/// A client whose user looks for the password.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Shortest time between two bells.
const BELL_PERIOD: Duration = Duration::from_millis(250);

const BELL: u8 = 2;

/// What a client wants of others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// It is in.
    CameIn(Sharing),
    /// It types, pastes or looks elsewhere. What is pasted is asked for when there is room: [`Client::pasted`].
    Do(Meant),
    /// The screen should have this size.
    Resize(Pixels),
}

/// Why a client goes.
#[derive(Debug, thiserror::Error)]
pub enum Gone {
    /// It was not let in.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It said what nobody understands.
    #[error(transparent)]
    Bad(#[from] BadMessage),
    /// Its stream broke.
    #[error("cannot compress: {0}")]
    Compress(#[from] CompressError),
    /// It took too long to come in.
    #[error("the handshake took too long")]
    TooSlow,
}

/// What is around a client when it speaks.
#[derive(Debug)]
pub struct Surroundings<'a> {
    /// What lets it in.
    pub secret: &'a Secret,
    /// Who failed.
    pub book: &'a mut Book,
    /// Whether there is room for one more.
    pub room: bool,
    /// What the screen is called.
    pub name: &'a str,
    /// Its size.
    pub pixels: Pixels,
    /// The terminal's size.
    pub size: Size,
    /// What the guest's programs asked for.
    pub modes: Modes,
}

/// What is shown to clients.
#[derive(Debug, Clone, Copy)]
pub struct Scene<'a> {
    /// The characters.
    pub picture: &'a Picture,
    /// Counts pictures, so that it is known who saw this one.
    pub number: u64,
    /// The size of the screen they are on.
    pub pixels: Pixels,
    /// How many clients share the time.
    pub clients: u32,
}

/// A client.
#[derive(Debug)]
pub struct Client {
    address: IpAddr,
    since: Instant,
    stage: Stage,
    out: Vec<u8>,
    written: usize,
    keyboard: Keyboard,
    mouse: Mouse,
    copied: String,
    rings: bool,
    rang: Option<Instant>,
}

#[derive(Debug)]
enum Stage {
    Outside(Handshake),
    In(Box<Session>),
    /// What it is told last is still to be written.
    Leaving,
}

impl Client {
    /// Greets a client.
    #[must_use]
    pub fn new(address: IpAddr, now: Instant) -> Self {
        let mut out = Vec::new();
        let stage = Stage::Outside(Handshake::new(&mut out));
        Self {
            address,
            since: now,
            stage,
            out,
            written: 0,
            keyboard: Keyboard::default(),
            mouse: Mouse::default(),
            copied: String::new(),
            rings: false,
            rang: None,
        }
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Whether it is in.
    #[must_use]
    pub fn is_in(&self) -> bool {
        matches!(self.stage, Stage::In(_))
    }

    /// Since when it knocks, if it still does.
    #[must_use]
    pub fn knocks(&self) -> Option<Instant> {
        matches!(self.stage, Stage::Outside(_)).then_some(self.since)
    }

    /// Whether it has to go.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        matches!(self.stage, Stage::Leaving)
    }

    /// Nothing more is heard; it goes when it has read what waits, or soon.
    pub fn leave(&mut self, now: Instant) {
        self.stage = Stage::Leaving;
        self.since = now;
    }

    /// How many bytes may be received now.
    #[must_use]
    pub fn wants(&self) -> usize {
        match &self.stage {
            Stage::Outside(handshake) => handshake.wants(),
            Stage::In(session) => session.messages.room(),
            Stage::Leaving => 0,
        }
    }

    /// Takes what came, at most [`Client::wants`] bytes; none for a look at the clock.
    ///
    /// # Errors
    /// It has to go; what it is told before waits in the output.
    pub fn receive(
        &mut self,
        bytes: &[u8],
        around: &mut Surroundings<'_>,
        now: Instant,
        wishes: &mut Vec<Wish>,
    ) -> Result<(), Gone> {
        let late = self.late_at().is_some_and(|late| late <= now);
        match &mut self.stage {
            Stage::Outside(handshake) => {
                let (secret, book, room) = (around.secret, &mut *around.book, around.room);
                let mut door = Door { secret, book, address: self.address, room };
                match handshake.go_on(bytes, &mut door, now, &mut self.out) {
                    Progress::Waiting if late => Err(Gone::TooSlow),
                    Progress::Waiting => Ok(()),
                    Progress::Refused(refusal) => Err(refusal.into()),
                    Progress::In(sharing) => {
                        let Pixels { width, height } = around.pixels;
                        put_server_init(width, height, around.name, &mut self.out);
                        self.stage = Stage::In(Box::new(Session::new(around.pixels, now)));
                        wishes.push(Wish::CameIn(sharing));
                        Ok(())
                    }
                }
            }
            Stage::In(session) => {
                session.messages.push(bytes);
                while let Stage::In(session) = &mut self.stage
                    && let Some(message) = session.messages.next_message()?
                {
                    wishes.extend(self.hear(message, around));
                }
                Ok(())
            }
            Stage::Leaving => Ok(()),
        }
    }

    fn hear(&mut self, message: ClientMessage, around: &Surroundings<'_>) -> Option<Wish> {
        let Stage::In(session) = &mut self.stage else { return None };
        let meant = match message {
            ClientMessage::SetPixelFormat(format) => {
                session.set_format(format);
                return None;
            }
            ClientMessage::SetEncodings(wanted) => {
                session.understand(&wanted);
                return None;
            }
            ClientMessage::UpdateRequest { incremental, region } => {
                session.want(region, incremental);
                return None;
            }
            ClientMessage::SetDesktopSize { width: 0, .. }
            | ClientMessage::SetDesktopSize { height: 0, .. } => {
                session.tell_size(Reason::Invalid);
                return None;
            }
            ClientMessage::SetDesktopSize { width, height } => {
                session.tell_size(Reason::Client);
                return Some(Wish::Resize(Pixels { width, height }));
            }
            ClientMessage::CutText(text) => {
                self.copied = paste::cleaned(&text.unwrap_or_default());
                return None;
            }
            ClientMessage::Key { down: true, keysym } => self.keyboard.press(keysym, around.modes),
            ClientMessage::Key { down: false, keysym } => {
                self.keyboard.release(keysym);
                return None;
            }
            ClientMessage::Pointer { buttons, x, y } => {
                self.mouse.moved(buttons, x, y, around.size, around.modes)
            }
        };
        match meant {
            Meant::Nothing => None,
            Meant::Paste if self.copied.is_empty() => None,
            Meant::Paste | Meant::Typed(_) | Meant::Look(_) => Some(Wish::Do(meant)),
        }
    }

    /// What is typed when it pastes, if no more than `room` bytes of it. Made when there is room: it may be thousands of
    /// times as long as the message that asks for it.
    #[must_use]
    pub fn pasted(&self, room: usize, modes: Modes) -> Option<Vec<u8>> {
        (self.copied.len() <= room).then(|| paste::typed(&self.copied, modes))
    }

    fn late_at(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Outside(handshake) if handshake.awaits_user() => Some(self.since + PATIENCE),
            Stage::Outside(_) | Stage::Leaving => Some(self.since + IMPATIENCE),
            Stage::In(_) => None,
        }
    }

    /// When to look at it though nothing came, if the picture has this number.
    #[must_use]
    pub fn deadline(&self, number: u64) -> Option<Instant> {
        match &self.stage {
            Stage::Outside(handshake) => {
                handshake.deadline().into_iter().chain(self.late_at()).min()
            }
            // The rest of an update, for which there is room.
            Stage::In(session) if !session.is_between_updates() => {
                (self.output().len() < LOW_WATER).then_some(self.since)
            }
            Stage::In(session) => session.due(number),
            Stage::Leaving => self.late_at(),
        }
    }

    /// Whether it can be dropped: all was said, or it does not listen.
    #[must_use]
    pub fn is_over(&self, now: Instant) -> bool {
        let late = self.late_at().is_some_and(|late| late <= now);
        self.is_leaving() && (self.output().is_empty() || late)
    }

    /// Whether it is to be shown the picture of this number now.
    #[must_use]
    pub fn is_due(&self, number: u64, now: Instant) -> bool {
        let room = self.output().len() < LOW_WATER;
        match &self.stage {
            Stage::In(session) => room && session.due(number).is_some_and(|due| due <= now),
            Stage::Outside(_) | Stage::Leaving => false,
        }
    }

    /// It hears a bell.
    pub fn ring(&mut self) {
        self.rings = self.is_in();
    }

    /// Makes output of a scene, as far as the client reads.
    ///
    /// # Errors
    /// It has to go.
    pub fn show(&mut self, scene: Scene<'_>, now: Instant) -> Result<(), Gone> {
        let waiting = self.output().len();
        let Stage::In(session) = &mut self.stage else { return Ok(()) };
        if waiting >= LOW_WATER {
            return Ok(());
        }
        if session.is_between_updates() {
            // Other messages have a place here, and nowhere else.
            let silent = |rang: Instant| now.saturating_duration_since(rang) >= BELL_PERIOD;
            if std::mem::take(&mut self.rings) && self.rang.is_none_or(silent) {
                self.out.push(BELL);
                self.rang = Some(now);
            }
            if session.due(scene.number).is_some_and(|due| due <= now) {
                session.begin(scene, now, &mut self.out);
            }
        }
        let enough = self.written + LOW_WATER;
        session.go_on(scene, enough, &mut self.out)?;
        Ok(())
    }

    /// It took so much time. If that was much, it is not shown another picture before others had theirs.
    pub fn charge(&mut self, time: Duration, clients: u32) {
        if let Stage::In(session) = &mut self.stage {
            session.charge(time, clients);
        }
    }

    /// What waits to be written.
    #[must_use]
    pub fn output(&self) -> &[u8] {
        &self.out[self.written..]
    }

    /// So much of it was written.
    pub fn wrote(&mut self, bytes: usize) {
        self.written = self.written.saturating_add(bytes);
        if self.written >= self.out.len() {
            // Most of the time nothing waits; then nothing is kept for it.
            (self.out, self.written) = (Vec::new(), 0);
        } else if self.written >= LOW_WATER {
            self.out.drain(..self.written);
            self.written = 0;
        }
    }
}

#[cfg(test)]
mod tests;
