//! How a command fails: one line for people, advice on a second, and an exit code for scripts.
//! Every failure becomes a [`Failure`] at the edge and is printed in one place.

use std::fmt;

use ocivisor_core::error::{Error, ErrorKind, one_line};

/// Exit codes, the same for every command (`docs/cli.md`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// Failed for no reason of the caller's.
    Failure = 1,
    /// The command line or a value in it is wrong.
    Usage = 2,
    /// No such VM, image, bridge or file.
    NotFound = 3,
    /// Wrong state, another operation is under way, or a name is taken.
    Conflict = 4,
    /// The caller may not do this.
    Permission = 5,
    /// A deadline passed.
    Timeout = 6,
    /// Memory, disk space, ids or another finite thing is short.
    Resources = 7,
    /// This host or this build cannot do it.
    Unsupported = 8,
    /// The daemon cannot be reached.
    Unreachable = 9,
    /// An image or registry is at fault.
    Image = 10,
    /// Stored bytes are not what they must be.
    Integrity = 11,
}

impl Exit {
    /// The code of an error of the operating system, about a file that the caller named.
    #[must_use]
    pub fn of_io(error: &std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::NotFound => Self::NotFound,
            std::io::ErrorKind::PermissionDenied => Self::Permission,
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Self::Resources,
            _ => Self::Failure,
        }
    }

    /// The code of a kind of error.
    #[must_use]
    pub fn of(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Invalid => Self::Usage,
            ErrorKind::NotFound => Self::NotFound,
            ErrorKind::Conflict | ErrorKind::Cancelled => Self::Conflict,
            ErrorKind::Permission => Self::Permission,
            ErrorKind::Timeout => Self::Timeout,
            ErrorKind::Exhausted => Self::Resources,
            ErrorKind::Unsupported => Self::Unsupported,
            ErrorKind::Image => Self::Image,
            ErrorKind::Integrity => Self::Integrity,
            ErrorKind::GuestExited | ErrorKind::Host => Self::Failure,
        }
    }
}

/// Why a command did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What the process ends with.
    pub exit: Exit,
    /// What failed, on which object; one line, lower case, no full stop.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Failure {
    /// A failure that says `message`; control characters of foreign text are escaped.
    #[must_use]
    pub fn new(exit: Exit, message: impl fmt::Display) -> Self {
        Self { exit, message: one_line(&message.to_string()), hint: None }
    }

    /// The same with advice.
    #[must_use]
    pub fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint = Some(one_line(&hint.to_string()));
        self
    }

    /// What is printed on standard error.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = format!("ocivisor: {}\n", self.message);
        if let Some(hint) = &self.hint {
            text.push_str("hint: ");
            text.push_str(hint);
            text.push('\n');
        }
        text
    }

    /// What clap has to say, in our form: its first paragraph as one line, its tips as the hint.
    #[must_use]
    pub fn usage(error: &clap::Error) -> Self {
        let text = error.render().to_string();
        let mut paragraphs = text.split("\n\n").map(str::trim);
        let first = paragraphs.next().unwrap_or_default();
        let first = first.strip_prefix("error: ").unwrap_or(first);
        let joined: Vec<&str> = first.lines().map(str::trim).collect();
        let tip = paragraphs.clone().find_map(|p| p.strip_prefix("tip: ").map(str::to_owned));
        let usage = paragraphs.find_map(|p| p.strip_prefix("Usage: "));
        let hint = match (tip, usage) {
            (Some(tip), _) => tip,
            (None, Some(usage)) => format!("usage: {}", usage.lines().next().unwrap_or_default()),
            (None, None) => "see ocivisor --help".into(),
        };
        Self::new(Exit::Usage, joined.join(" ")).hint(hint)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { exit: Exit::of(error.kind), message: error.message, hint: error.hint }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_the_documented_code() {
        let codes: Vec<(&str, u8)> =
            ErrorKind::ALL.into_iter().map(|kind| (kind.name(), Exit::of(kind) as u8)).collect();
        assert_eq!(
            codes,
            [
                ("invalid", 2),
                ("not_found", 3),
                ("conflict", 4),
                ("permission", 5),
                ("timeout", 6),
                ("exhausted", 7),
                ("unsupported", 8),
                ("image", 10),
                ("integrity", 11),
                ("guest_exited", 1),
                ("cancelled", 4),
                ("host", 1),
            ]
        );
    }

    #[test]
    fn a_failure_is_one_line_and_its_advice_another() {
        let failure = Failure::new(Exit::NotFound, "no vm\nweb").hint("ocivisor list");
        assert_eq!(failure.render(), "ocivisor: no vm\\nweb\nhint: ocivisor list\n");
    }
}
