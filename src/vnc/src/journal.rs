//! A few lines for the admin, on standard error.
//!
//! Whoever started us reads it, or does not: a pipe that is full or broken must not stop the console. So a line is only
//! written when there is room for it, and a flood (somebody who guesses passwords) is cut to [`BURST`] lines and one
//! more each [`REFILL`]. Nothing that came from a client or a guest is ever in a line, but addresses.

use std::fmt;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Lines at once.
const BURST: u32 = 20;
/// One more line after so long.
const REFILL: Duration = Duration::from_secs(5);
/// Longest line, bytes: less than a pipe takes whole (pipe(7)).
const MAX_LINE: usize = 1024;

/// The journal.
#[derive(Debug)]
pub struct Journal {
    name: String,
    left: u32,
    since: Instant,
    dropped: u32,
}

impl Journal {
    /// One for the guest of this name.
    #[must_use]
    pub fn new(name: &str, now: Instant) -> Self {
        Self { name: name.to_owned(), left: BURST, since: now, dropped: 0 }
    }

    /// Writes a line, if there is room for it.
    pub fn say(&mut self, what: impl fmt::Display, now: Instant) {
        let Some(line) = self.line(what, now) else { return };
        let stderr = rustix::stdio::stderr();
        let mut fds = [PollFd::new(&stderr, PollFlags::OUT)];
        let ready = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        if ready == Ok(1) && fds[0].revents() == PollFlags::OUT {
            // If even that fails there is nobody to tell.
            let _ = rustix::io::write(stderr, line.as_bytes());
        }
    }

    fn line(&mut self, what: impl fmt::Display, now: Instant) -> Option<String> {
        while self.left < BURST && now.saturating_duration_since(self.since) >= REFILL {
            self.left += 1;
            self.since += REFILL;
        }
        if self.left == 0 {
            self.dropped = self.dropped.saturating_add(1);
            return None;
        }
        if self.left == BURST {
            self.since = now;
        }
        self.left -= 1;
        let mut line = format!("ocivisor-vnc {}: {what}", self.name);
        if self.dropped > 0 {
            line += &format!(" ({} more)", std::mem::take(&mut self.dropped));
        }
        let mut line = line.replace(char::is_control, " ");
        let most = line.len().min(MAX_LINE - 1);
        let end = (0..=most).rev().find(|&end| line.is_char_boundary(end));
        line.truncate(end.unwrap_or(0));
        line.push('\n');
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_counted() {
        let now = Instant::now();
        let mut journal = Journal::new("one-42", now);
        let written = (0..100).filter(|n| journal.line(n, now).is_some()).count();
        assert_eq!(written, BURST as usize);
        assert_eq!(journal.line("late", now + REFILL - Duration::from_millis(1)), None);
        let line = journal.line("later", now + REFILL);
        assert_eq!(line.unwrap(), "ocivisor-vnc one-42: later (81 more)\n");
        assert_eq!(journal.line("again", now + REFILL), None);
    }

    #[test]
    fn lines_are_lines() {
        let now = Instant::now();
        let line = Journal::new("a", now).line("b\nc\x1b[31m", now).unwrap();
        assert_eq!(line, "ocivisor-vnc a: b c [31m\n");
        let long = Journal::new("a", now).line("ä".repeat(2000), now).unwrap();
        assert!((MAX_LINE - 1..=MAX_LINE).contains(&long.len()));
    }
}
