//! What went wrong, in words for people and in a kind for programs.

use std::fmt;

/// Kinds of failure, stable on the wire; each has one exit code at the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request itself is wrong: bad value, unknown field, impossible combination.
    Invalid,
    /// A named thing (VM, image, bridge, disk file) does not exist.
    NotFound,
    /// The VM is in the wrong state, or another operation is under way, or a name or MAC is taken.
    Conflict,
    /// The caller may not do this.
    Permission,
    /// A deadline passed.
    Timeout,
    /// Memory, disk space, ids or another finite thing is short.
    Exhausted,
    /// This host or this build cannot do it.
    Unsupported,
    /// An image or registry is at fault.
    Image,
    /// Stored bytes are not what they must be.
    Integrity,
    /// The guest ended when it should have run.
    GuestExited,
    /// The operation was given up for another request (`destroy` during `start`).
    Cancelled,
    /// A system call or tool failed for no reason of the caller's.
    Host,
}

impl ErrorKind {
    /// All kinds, for tables and tests.
    pub const ALL: [Self; 12] = [
        Self::Invalid,
        Self::NotFound,
        Self::Conflict,
        Self::Permission,
        Self::Timeout,
        Self::Exhausted,
        Self::Unsupported,
        Self::Image,
        Self::Integrity,
        Self::GuestExited,
        Self::Cancelled,
        Self::Host,
    ];

    /// The kind's name on the wire and on disk.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::Permission => "permission",
            Self::Timeout => "timeout",
            Self::Exhausted => "exhausted",
            Self::Unsupported => "unsupported",
            Self::Image => "image",
            Self::Integrity => "integrity",
            Self::GuestExited => "guest_exited",
            Self::Cancelled => "cancelled",
            Self::Host => "host",
        }
    }

    /// The kind of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// A failure: kind, one line for people, and what to do about it.
///
/// `message` says what failed on which object: lower case, one line, no full stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// For programs.
    pub kind: ErrorKind,
    /// For people.
    pub message: String,
    /// What to do, if we know.
    pub hint: Option<String>,
}

impl Error {
    /// An error of `kind` that says `message`; control characters of foreign text are escaped.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl fmt::Display) -> Self {
        Self { kind, message: one_line(&message.to_string()), hint: None }
    }

    /// The same with advice.
    #[must_use]
    pub fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint = Some(one_line(&hint.to_string()));
        self
    }

    /// The same, with what was being done in front: `start one-7: …`.
    #[must_use]
    pub fn context(mut self, what: impl fmt::Display) -> Self {
        self.message = one_line(&format!("{what}: {}", self.message));
        self
    }

    /// Whether the same request may work a moment later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self.kind, ErrorKind::Conflict | ErrorKind::Timeout | ErrorKind::Exhausted)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// Text of any origin as one line: control characters become escapes, the length is bounded.
#[must_use]
pub fn one_line(text: &str) -> String {
    const MAX: usize = 1000;
    let mut line = String::with_capacity(text.len().min(MAX));
    for c in text.trim().chars() {
        if line.len() >= MAX {
            line.push('…');
            break;
        }
        if c.is_control() || turns(c) {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}

/// Whether a character begins a line, or changes the direction of what is shown around it (`Bidi_Control`, UAX 9): a
/// name with one looks like another.
fn turns(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Result with our error.
pub type Result<T> = std::result::Result<T, Error>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_round_trip_through_their_names() {
        for kind in ErrorKind::ALL {
            assert_eq!(ErrorKind::from_name(kind.name()), Some(kind));
        }
        assert_eq!(ErrorKind::from_name("nope"), None);
    }

    #[test]
    fn foreign_text_stays_on_one_line() {
        let error =
            Error::new(ErrorKind::Host, "mount x\n\x1b[31mfake: root").context("start one-1");
        assert_eq!(error.to_string(), "start one-1: mount x\\n\\u{1b}[31mfake: root");
        // Shown as gpj.exe is a name of an image.
        assert_eq!(one_line("a\u{202e}gpj.exe\u{2066}"), "a\\u{202e}gpj.exe\\u{2066}");
        assert!(one_line(&"x".repeat(5000)).len() < 1010);
    }
}
