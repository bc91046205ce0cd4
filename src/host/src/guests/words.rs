//! What a guest last wrote to its console, as lines for people. Its bytes are hostile.

use std::os::unix::fs::FileExt;
use std::path::Path;

use ocivisor_core::error::one_line;
use ocivisor_core::failure::KeptFailure;
use rustix::fs::{Mode, OFlags};

/// Bytes read of a log's end. Colours and blank lines take some of them.
const TAIL: u64 = 16 << 10;
/// Most characters of the one line that is part of an error's message.
const LAST_LINE: usize = 200;

/// The last line of a console log with something in it, escaped.
pub(super) fn last_line(log: &Path) -> Option<String> {
    let plain = tail(log)?;
    let line = lines_from_the_end(&plain).next()?;
    Some(one_line(&line.chars().take(LAST_LINE).collect::<String>()))
}

/// The last lines of a console log with something in them, escaped, within the bounds of what is kept.
pub(super) fn last_lines(log: &Path) -> Vec<String> {
    let plain = tail(log).unwrap_or_default();
    let mut room = KeptFailure::BYTES;
    let mut lines = Vec::new();
    for line in lines_from_the_end(&plain).map(one_line).take(KeptFailure::LINES) {
        let Some(left) = room.checked_sub(line.len()) else { break };
        room = left;
        lines.push(line);
    }
    lines.reverse();
    lines
}

fn tail(log: &Path) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = std::fs::File::from(rustix::fs::open(log, flags, Mode::empty()).ok()?);
    let mut tail = vec![0; TAIL as usize];
    let from = file.metadata().ok()?.len().saturating_sub(TAIL);
    let n = file.read_at(&mut tail, from).ok()?;
    Some(without_escapes(&String::from_utf8_lossy(&tail[..n])))
}

/// Of a line that was written over (progress that is counted up) what was to be seen last.
fn lines_from_the_end(text: &str) -> impl Iterator<Item = &str> {
    let seen = |line: &str| !line.trim().is_empty();
    text.lines().rev().filter_map(move |line| line.rsplit('\r').find(|part| seen(part)))
}

/// Text without the sequences by which it was coloured or placed on a terminal (ECMA-48: ESC and
/// one character, or ESC [ … up to a letter).
fn without_escapes(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\u{1b}' {
            plain.push(c);
        } else if chars.next() == Some('[') {
            chars.by_ref().find(|c| ('@'..='~').contains(c));
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &[u8]) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("console.log");
        crate::fs::replace(&log, text).unwrap();
        last_lines(&log)
    }

    #[test]
    fn last_lines_are_bounded_and_plain() {
        assert_eq!(last_lines(Path::new("/nonexistent/log")), Vec::<String>::new());
        assert_eq!(
            of(b"one\r\n\r\n10%\r20%\r\n\x1b[31mred\x1b[0m \x07bell\xff"),
            ["one", "20%", "red \\u{7}bell\u{fffd}"]
        );
        let numbers: String = (0..100).map(|n| format!("line {n}\n")).collect();
        let lines = of(numbers.as_bytes());
        assert_eq!((lines.len(), &lines[0][..], &lines[19][..]), (20, "line 80", "line 99"));
        let long = format!("{}\n", "x".repeat(900)).repeat(9);
        assert_eq!(of(long.as_bytes()).len(), 4);
        // Bytes that grow when they are escaped.
        let bytes: usize = of(&[7; 100_000]).iter().map(String::len).sum();
        assert!((1..=KeptFailure::BYTES).contains(&bytes), "{bytes}");
    }
}
