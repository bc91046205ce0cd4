//! What a script prints and with which exit code it ends.
//!
//! The rules are oned's (observed with 6.10 and 7.4):
//! * success: exit 0; the first word of `deploy`'s standard output becomes the deploy id, but the
//!   driver process hands its *whole* output to later steps, so nothing else may be there;
//! * failure: any other exit code but 42, which means "not installed"; the lines of standard error
//!   without a log prefix, glued together, become the text that users see, with `ExitCode: N`
//!   right behind it. So there is exactly one such line and it ends with a full stop;
//! * of that text `onevm show` has the first 100 characters, and the VM's log all: what was done comes in few words, so that
//!   the cause is among them;
//! * a text that begins with `-` is dropped, one that begins with digits is taken for an object's
//!   number, and one that begins like `WORD: ` is taken for a log line: ours begin with a word of
//!   our own;
//! * `INFO: <vm> text` goes to the VM's log, whether the script succeeds or not.

use std::fmt;

use ocivisor_core::error::{Error, one_line};

use crate::OneId;
use crate::invocation::Action;

/// Everything a script says. Write both texts as they are and exit with the code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Standard output, newline included; empty if the action has no value.
    pub stdout: String,
    /// Standard error, newline included; empty on success.
    pub stderr: String,
    /// 0 or 1.
    pub exit: u8,
}

impl Answer {
    pub(crate) fn success(stdout: String) -> Self {
        Self { stdout, stderr: String::new(), exit: 0 }
    }

    /// A failure, as that sentence.
    #[must_use]
    pub fn sentence(text: &str) -> Self {
        Self {
            stdout: String::new(),
            stderr: format!("{}.\n", visible(text.trim_end_matches(['.', ' ']))),
            exit: 1,
        }
    }
}

/// The answer to a failed action, whoever failed: `Cannot <verb> VM <id>: <message>; <hint>.`
///
/// Exactly one line, whatever the error's text holds.
#[must_use]
pub fn failure(action: Action, vm: Option<OneId>, error: &Error) -> Answer {
    let verb = action.verb();
    let whom = vm.map_or_else(|| "the VM".to_owned(), |vm| format!("VM {vm}"));
    let hint = error.hint.as_deref();
    let hint = hint.map_or_else(String::new, |hint| format!("; {hint}"));
    let message = vm.map_or(&*error.message, |vm| cause(&error.message, &vm));
    Answer::sentence(&one_line(&format!(
        "Cannot {verb} {whom}: {}{hint}",
        message.trim_end_matches('.')
    )))
}

/// A message without what the sentence before it says: that something was done with this VM.
fn cause<'a>(message: &'a str, vm: &OneId) -> &'a str {
    let name = format!("one-{vm}");
    let mut rest = message;
    while let Some((done, then)) = rest.split_once(": ") {
        let mut words = done.split(' ').collect::<Vec<_>>();
        let is_named = words.pop_if(|last| *last == name).is_some();
        match (&words[..], is_named) {
            (["guest" | "vm"] | [_, "vm"], true) | (["create", "guest"], false) => rest = then,
            _ => break,
        }
    }
    rest
}

/// A line for the VM's log, to be written to standard error at once: `INFO: <vm> text`.
///
/// The number comes first because oned takes leading digits for the object the line is about.
#[must_use]
pub fn progress(vm: OneId, text: &str) -> String {
    format!("INFO: {vm} {}\n", visible(&one_line(text)))
}

/// Line separators and direction marks are no control characters (category Cc), but they can make
/// one line look like two or like another one; as numbers they are visible.
pub(crate) fn visible(text: &str) -> String {
    let hides = |c: char| matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' | '\u{feff}');
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if hides(c) {
            shown.extend(c.escape_unicode());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// One sentence about something in the template that this version does not honour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note(String);

impl Note {
    /// The line for the VM's log ([`progress`]).
    #[must_use]
    pub fn line(&self, vm: OneId) -> String {
        progress(vm, &self.0)
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Collects notes; a template cannot make more than [`Notes::MAX`] of them.
#[derive(Debug, Default)]
pub struct Notes(Vec<Note>);

impl Notes {
    /// Most notes about one VM; the last one then says that there are more.
    pub const MAX: usize = 40;

    /// Adds a sentence, made one line.
    pub fn add(&mut self, text: impl fmt::Display) {
        if self.0.len() + 1 < Self::MAX {
            self.0.push(Note(one_line(&text.to_string())));
        } else if self.0.len() < Self::MAX {
            self.0.push(Note("further remarks are left out".into()));
        }
    }

    /// All of them, in the order of adding.
    #[must_use]
    pub fn into_vec(self) -> Vec<Note> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ocivisor_core::error::ErrorKind;

    fn said(message: &str) -> String {
        let vm = "7".parse().ok();
        let error = Error::new(ErrorKind::Host, message);
        let answer = failure(Action::Deploy, vm, &error);
        assert_eq!((answer.exit, answer.stdout.as_str()), (1, ""));
        answer.stderr
    }

    #[test]
    fn a_failure_is_one_sentence_whatever_the_error_holds() {
        for (message, want) in [
            ("no disk", "Cannot deploy VM 7: no disk.\n"),
            ("ends.", "Cannot deploy VM 7: ends.\n"),
            ("- dash", "Cannot deploy VM 7: - dash.\n"),
            ("a\nERROR: b\r\nc", "Cannot deploy VM 7: a\\nERROR: b\\r\\nc.\n"),
            ("x\u{2028}y\u{202e}z", "Cannot deploy VM 7: x\\u{2028}y\\u{202e}z.\n"),
        ] {
            assert_eq!(said(message), want);
        }
        assert!(said(&"x".repeat(100_000)).len() < 1100);
    }

    #[test]
    fn what_the_sentence_says_already_is_not_said_again() {
        for (message, want) in [
            (
                "deploy vm one-7: guest one-7: create guest: no such executable",
                "no such executable",
            ),
            (
                "deploy vm one-7: vnc of vm one-7: port 1 is in use",
                "vnc of vm one-7: port 1 is in use",
            ),
            ("deploy vm one-8: no disk", "deploy vm one-8: no disk"),
            ("vm one-7: hostname: no name", "hostname: no name"),
            ("one-7 has no disk", "one-7 has no disk"),
            ("deploy vm one-7", "deploy vm one-7"),
        ] {
            assert_eq!(said(message), format!("Cannot deploy VM 7: {want}.\n"));
        }
    }

    #[test]
    fn a_hint_follows_the_message() {
        let error = Error::new(ErrorKind::Conflict, "VM is busy").hint("try again");
        let answer = failure(Action::Shutdown, None, &error);
        assert_eq!(answer.stderr, "Cannot shut down the VM: VM is busy; try again.\n");
    }

    #[test]
    fn progress_names_the_vm_first() {
        let vm: OneId = "42".parse().unwrap();
        assert_eq!(progress(vm, "disk 1\nis ignored"), "INFO: 42 disk 1\\nis ignored\n");
    }

    #[test]
    fn notes_are_bounded() {
        let mut notes = Notes::default();
        for n in 0..1000 {
            notes.add(n);
        }
        let notes = notes.into_vec();
        assert_eq!(notes.len(), Notes::MAX);
        assert_eq!(notes[Notes::MAX - 2].to_string(), "38");
        assert_eq!(notes[Notes::MAX - 1].to_string(), "further remarks are left out");
    }
}
