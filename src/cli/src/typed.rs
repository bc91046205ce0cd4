//! What the user types: read by a thread, because reading a terminal cannot be given up.
//!
//! The thread ends with the process. Bytes that it read and nobody took are lost, as type-ahead is.

use std::io::{self, Read};

use tokio::sync::mpsc;

use crate::failure::{Exit, Failure};

/// Chunks of standard input; closed at its end.
///
/// # Errors
/// The thread cannot be started.
pub fn chunks() -> Result<mpsc::Receiver<Vec<u8>>, Failure> {
    let (sender, receiver) = mpsc::channel(4);
    let read = move || {
        let mut buffer = [0_u8; 4096];
        loop {
            match io::stdin().lock().read(&mut buffer) {
                Ok(0) => return,
                Ok(n) if sender.blocking_send(buffer[..n].to_vec()).is_err() => return,
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // An unreadable input is one that ended.
                Err(_) => return,
            }
        }
    };
    std::thread::Builder::new()
        .name("stdin".into())
        .spawn(read)
        .map_err(|e| Failure::new(Exit::Failure, format!("start a thread: {e}")))?;
    Ok(receiver)
}

/// The key that leaves a console: a control character, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DetachKey(Option<u8>);

impl Default for DetachKey {
    /// Ctrl-], as of telnet and virsh.
    fn default() -> Self {
        Self(Some(0x1d))
    }
}

impl std::str::FromStr for DetachKey {
    type Err = String;

    /// `^]`, `^A` … or `none`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_uppercase().as_bytes() {
            b"NONE" => Ok(Self(None)),
            [b'^', key @ b'@'..=b'_'] => Ok(Self(Some(key - b'@'))),
            _ => Err("must be ^ and one of A-Z [ \\ ] ^ _, or none".into()),
        }
    }
}

impl DetachKey {
    /// What of `typed` goes to the guest, and whether the key was pressed after it.
    #[must_use]
    pub fn cut(self, typed: &[u8]) -> (&[u8], Leave) {
        let at = self.0.and_then(|key| typed.iter().position(|byte| *byte == key));
        match at {
            Some(at) => (&typed[..at], Leave::Yes),
            None => (typed, Leave::No),
        }
    }
}

/// Whether the user wants to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// The key was pressed.
    Yes,
    /// It was not.
    No,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_detach_key_ends_what_is_typed() {
        let key = DetachKey::default();
        assert_eq!(key.cut(b"ls\r"), (&b"ls\r"[..], Leave::No));
        assert_eq!(key.cut(b"ls\x1dx"), (&b"ls"[..], Leave::Yes));
        assert_eq!(key.cut(b"\x1d"), (&b""[..], Leave::Yes));
        let none: DetachKey = "none".parse().unwrap();
        assert_eq!(none.cut(b"a\x1db"), (&b"a\x1db"[..], Leave::No));
    }

    #[test]
    fn keys_are_control_characters() {
        assert_eq!("^]".parse(), Ok(DetachKey::default()));
        assert_eq!("^a".parse(), Ok(DetachKey(Some(1))));
        for bad in ["", "]", "^", "^1", "^aa", "ctrl-]"] {
            assert!(bad.parse::<DetachKey>().is_err(), "{bad}");
        }
    }
}
