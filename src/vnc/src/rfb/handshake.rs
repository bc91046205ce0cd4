//! From the first byte to the first picture: version, security, ClientInit, ServerInit (RFC 6143, section 7.1 to 7.3).
//!
//! ```text
//!   Version ──► Choice ──► Response ──► Init ──► in
//!      │ 3.3      │ 3.7, 3.8   └──► Verdict (a failure is said late)
//!      └──────────┴──► Init (security none)
//! ```
//!
//! A pure machine: bytes and the time in, bytes and a verdict out. Deadlines are the server's business.

use std::net::IpAddr;
use std::time::Instant;

use super::auth::{Book, CHALLENGE, Secret, challenge};
use super::pixel::PixelFormat;

/// What the server says first.
pub const GREETING: &[u8; 12] = b"RFB 003.008\n";
/// Most bytes of a name; what is longer is cut.
const MAX_NAME: usize = 255;

const NONE: u8 = 1;
const VNC_AUTHENTICATION: u8 = 2;

/// The protocol's versions, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Version {
    /// The server chooses the security.
    V3,
    /// The client chooses.
    V7,
    /// Refusals have reasons, and security none a result.
    V8,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Version,
    Choice(Version),
    Response { version: Version, challenge: [u8; CHALLENGE] },
    Verdict { version: Version, at: Instant },
    Init,
    Over,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// More bytes are needed, or more time.
    Waiting,
    /// The client is in.
    In(Sharing),
    /// It is not, for this reason; the connection ends when it was told.
    Refused(Refusal),
}

/// What a client says about others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// They may stay.
    Shared,
    /// They have to go.
    Exclusive,
}

/// Why a client is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not RFB.
    #[error("the client does not speak RFB")]
    NotRfb,
    /// It chose what was not offered.
    #[error("no such security type")]
    NoSuchSecurity,
    /// Wrong password.
    #[error("authentication failed")]
    WrongPassword,
    /// Too often wrong.
    #[error("too many authentication failures, try again later")]
    TooManyFailures,
    /// The house is full.
    #[error("too many clients")]
    TooManyClients,
    /// No random bytes.
    #[error("no challenge could be made")]
    NoChallenge,
}

/// What decides about a client.
#[derive(Debug)]
pub struct Door<'a> {
    /// What it has to know.
    pub secret: &'a Secret,
    /// Who failed.
    pub book: &'a mut Book,
    /// Where the client is.
    pub address: IpAddr,
    /// Whether there is room for one more.
    pub room: bool,
}

/// A handshake.
#[derive(Debug)]
pub struct Handshake {
    state: State,
    input: Vec<u8>,
}

impl Handshake {
    /// Begins one.
    #[must_use]
    pub fn new(out: &mut Vec<u8>) -> Self {
        out.extend_from_slice(GREETING);
        Self { state: State::Version, input: Vec::new() }
    }

    /// When to look at it though nothing came.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Verdict { at, .. } => Some(at),
            State::Version
            | State::Choice(_)
            | State::Response { .. }
            | State::Init
            | State::Over => None,
        }
    }

    /// Whether the next word is a person's, who may have to look for the password.
    #[must_use]
    pub fn awaits_user(&self) -> bool {
        matches!(self.state, State::Response { .. } | State::Verdict { .. })
    }

    /// How many bytes it takes now. What follows a handshake is not for it.
    #[must_use]
    pub fn wants(&self) -> usize {
        let whole = match self.state {
            State::Version => GREETING.len(),
            State::Choice(_) | State::Init => 1,
            State::Response { .. } => CHALLENGE,
            State::Verdict { .. } | State::Over => 0,
        };
        whole - self.input.len().min(whole)
    }

    /// Goes on with what came, at most [`Handshake::wants`] bytes, or with the time alone.
    pub fn go_on(
        &mut self,
        bytes: &[u8],
        door: &mut Door<'_>,
        now: Instant,
        out: &mut Vec<u8>,
    ) -> Progress {
        self.input.extend_from_slice(bytes);
        if let State::Verdict { version, at } = self.state {
            if at > now {
                return Progress::Waiting;
            }
            return self.fail(version, Refusal::WrongPassword, out);
        }
        if self.wants() > 0 {
            return Progress::Waiting;
        }
        let input = std::mem::take(&mut self.input);
        match self.state {
            State::Version => self.version(&input, door, now, out),
            State::Choice(version) => {
                if input.first() != Some(&offered(door.secret)) {
                    return self.fail(version, Refusal::NoSuchSecurity, out);
                }
                self.secure(version, door.secret, out)
            }
            State::Response { version, challenge } => {
                let response = input.try_into().unwrap_or([0; CHALLENGE]);
                let right = match door.secret {
                    Secret::None => true,
                    Secret::Password(password) => password.accepts(challenge, response),
                };
                if !right {
                    let at = now + door.book.failed(door.address, now);
                    self.state = State::Verdict { version, at };
                    return Progress::Waiting;
                }
                door.book.succeeded(door.address);
                out.extend_from_slice(&0_u32.to_be_bytes());
                self.state = State::Init;
                Progress::Waiting
            }
            State::Init => {
                self.state = State::Over;
                match input.first() {
                    // It sends the others away.
                    Some(0) => Progress::In(Sharing::Exclusive),
                    // There is no word for this after the security result (RFC 6143, section 7.3.1): the end says it.
                    _ if !door.room => Progress::Refused(Refusal::TooManyClients),
                    _ => Progress::In(Sharing::Shared),
                }
            }
            State::Verdict { .. } | State::Over => Progress::Waiting,
        }
    }

    fn version(
        &mut self,
        line: &[u8],
        door: &mut Door<'_>,
        now: Instant,
        out: &mut Vec<u8>,
    ) -> Progress {
        let Some(version) = parse_version(line) else {
            self.state = State::Over;
            return Progress::Refused(Refusal::NotRfb);
        };
        if !door.book.admits(door.address, now) {
            let refusal = Refusal::TooManyFailures;
            // No security type at all, and why.
            match version {
                Version::V3 => out.extend_from_slice(&0_u32.to_be_bytes()),
                Version::V7 | Version::V8 => out.push(0),
            }
            put_text(&refusal.to_string(), out);
            self.state = State::Over;
            return Progress::Refused(refusal);
        }
        let security = offered(door.secret);
        match version {
            Version::V3 => {
                out.extend_from_slice(&u32::from(security).to_be_bytes());
                self.secure(version, door.secret, out)
            }
            Version::V7 | Version::V8 => {
                out.extend_from_slice(&[1, security]);
                self.state = State::Choice(version);
                Progress::Waiting
            }
        }
    }

    fn secure(&mut self, version: Version, secret: &Secret, out: &mut Vec<u8>) -> Progress {
        match secret {
            Secret::None => {
                if version == Version::V8 {
                    out.extend_from_slice(&0_u32.to_be_bytes());
                }
                self.state = State::Init;
            }
            Secret::Password(_) => {
                let Ok(challenge) = challenge() else {
                    return self.fail(version, Refusal::NoChallenge, out);
                };
                out.extend_from_slice(&challenge);
                self.state = State::Response { version, challenge };
            }
        }
        Progress::Waiting
    }

    fn fail(&mut self, version: Version, refusal: Refusal, out: &mut Vec<u8>) -> Progress {
        out.extend_from_slice(&1_u32.to_be_bytes());
        if version == Version::V8 {
            put_text(&refusal.to_string(), out);
        }
        self.state = State::Over;
        Progress::Refused(refusal)
    }
}

fn offered(secret: &Secret) -> u8 {
    match secret {
        Secret::None => NONE,
        Secret::Password(_) => VNC_AUTHENTICATION,
    }
}

/// `RFB 003.008` and a newline. Of what is no known version the RFC wants that it be taken as 3.3; newer ones than ours
/// would be a mistake of the client, but it speaks 3.8 then.
fn parse_version(line: &[u8]) -> Option<Version> {
    let number = |digits: &[u8]| -> Option<u32> {
        let text = std::str::from_utf8(digits).ok()?;
        text.bytes().all(|digit| digit.is_ascii_digit()).then(|| text.parse().ok())?
    };
    let numbers = line.strip_prefix(b"RFB ")?.strip_suffix(b"\n")?;
    let (major, minor) = (number(numbers.get(..3)?)?, number(numbers.get(4..)?)?);
    if numbers.get(3) != Some(&b'.') {
        return None;
    }
    match (major, minor) {
        (3, 7) => Some(Version::V7),
        (3, 8..) | (4.., _) => Some(Version::V8),
        (3, _) => Some(Version::V3),
        _ => None,
    }
}

fn put_text(text: &str, out: &mut Vec<u8>) {
    // Texts of ours, and names that were cut.
    out.extend_from_slice(&(text.len() as u32).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Appends what a client is told when it is in: the screen's size, its pixels, a name.
pub fn put_server_init(width: u16, height: u16, name: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(&width.to_be_bytes());
    out.extend_from_slice(&height.to_be_bytes());
    out.extend_from_slice(&PixelFormat::NATIVE.wire());
    let end = (0..=name.len().min(MAX_NAME)).rev().find(|&end| name.is_char_boundary(end));
    put_text(&name[..end.unwrap_or(0)], out);
}

#[cfg(test)]
mod tests;
