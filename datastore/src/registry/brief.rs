//! Bodies that must come to an end soon: documents, tokens, error texts.
//!
//! A registry that sends a byte a minute keeps within every time-out of a single read.

use std::io::{self, Read};
use std::time::{Duration, Instant};

/// How long such a body may take in all; the largest has a few mebibytes.
const LONGEST: Duration = Duration::from_secs(120);

/// A body with a deadline.
pub(crate) struct Brief<R> {
    from: R,
    until: Instant,
}

impl<R: Read> Brief<R> {
    pub fn new(from: R) -> Self {
        Self::within(from, LONGEST)
    }

    fn within(from: R, time: Duration) -> Self {
        Self { from, until: Instant::now() + time }
    }
}

impl<R: Read> Read for Brief<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if Instant::now() >= self.until {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.from.read(buf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_does_not_end_is_given_up() {
        let mut bytes = Vec::new();
        Brief::new(&b"all"[..]).read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"all");
        let late = Brief::within(io::repeat(1), Duration::ZERO).read_to_end(&mut bytes);
        assert_eq!(late.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
