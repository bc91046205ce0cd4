//! How much of the guest's output is shown without a pause.
//!
//! Bounded twice. In bytes, because a guest that prints without end shall not cost more than a person can see; and in
//! time, because it is the guest who chooses how long a byte takes: two clear the largest screen. What was too long
//! already is made good by a longer pause. So showing takes at most one part of the time in four, as encoding does.

use std::time::{Duration, Instant};

/// Bytes that are shown without a pause.
pub const BYTES: usize = 256 * 1024;
/// Time that showing may take without a pause, but for the last few kilobytes.
pub const TIME: Duration = Duration::from_millis(8);
/// How long a portion has to last while somebody looks.
const WATCHED: Duration = Duration::from_millis(33);
/// And while nobody does.
const UNWATCHED: Duration = Duration::from_millis(100);
/// Parts of the time of which showing takes one.
const PARTS: u32 = 4;

/// What was shown since when.
#[derive(Debug)]
pub struct Portion {
    begin: Instant,
    bytes: usize,
    time: Duration,
}

impl Portion {
    /// Nothing yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { begin: now, bytes: 0, time: Duration::ZERO }
    }

    /// Whether more may be shown before the next pause.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.bytes < BYTES && self.time < TIME
    }

    /// When more may be shown, if not now.
    #[must_use]
    pub fn free_at(&self, watched: bool, now: Instant) -> Option<Instant> {
        let least = if watched { WATCHED } else { UNWATCHED };
        let end = self.begin + least.max(self.time.saturating_mul(PARTS));
        (!self.has_room() && now < end).then_some(end)
    }

    /// Begins the next one if this one is over.
    pub fn renew(&mut self, now: Instant) {
        let end = self.begin + WATCHED.max(self.time.saturating_mul(PARTS));
        if now >= end {
            *self = Self::new(now);
        }
    }

    /// So many bytes were shown, and it took so long.
    pub fn add(&mut self, bytes: usize, time: Duration) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.time += time;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn bytes_are_bounded_more_so_while_nobody_looks() {
        let begin = Instant::now();
        let mut portion = Portion::new(begin);
        portion.add(BYTES - 1, MS);
        assert_eq!((portion.has_room(), portion.free_at(true, begin)), (true, None));
        portion.add(1, MS);
        assert!(!portion.has_room());
        assert_eq!(portion.free_at(true, begin + MS), Some(begin + WATCHED));
        assert_eq!(portion.free_at(false, begin + WATCHED), Some(begin + UNWATCHED));
        assert_eq!(portion.free_at(true, begin + WATCHED), None);
        portion.renew(begin + WATCHED);
        assert!(portion.has_room());
    }

    #[test]
    fn few_bytes_that_take_long_are_followed_by_three_times_as_long_a_pause() {
        let begin = Instant::now();
        let mut portion = Portion::new(begin);
        portion.add(4096, 100 * MS);
        let end = begin + 400 * MS;
        assert!(!portion.has_room());
        for watched in [true, false] {
            assert_eq!(portion.free_at(watched, begin + 399 * MS), Some(end));
            assert_eq!(portion.free_at(watched, end), None);
        }
        portion.renew(begin + 399 * MS);
        assert!(!portion.has_room());
        portion.renew(end);
        assert!(portion.has_room());
    }
}
