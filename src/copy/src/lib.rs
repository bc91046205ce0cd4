//! Copies between a guest and a host: a tree of files becomes a tar stream ([`pack`]), a tar stream
//! becomes a tree of files ([`unpack`]). One side runs inside the guest, the other as the user of the
//! client; what goes between them is the same both ways.
//!
//! Neither trusts the other. Who packs looks at each file once, by descriptor, and follows no link but
//! the one that was named: a directory that becomes a link meanwhile is as good as gone. Who unpacks
//! refuses names that lead elsewhere, follows no link below the destination ([`unpack::Trust`]), opens no
//! file that was there before, makes no device, and reads no more into memory than a few bounded headers.
//!
//! Not carried, by purpose: devices, sockets and FIFOs (told of), extended attributes, hard links as
//! such (each name is a file of its own). Holes stay holes, however large they are.
//!
//! The stream is POSIX.1-2001 tar (pax), sparse files in the form that GNU tar calls 1.0; header fields
//! are the tar crate's business, lengths are ours: that crate would take a name of any length into memory.

pub mod pack;
pub mod place;
pub mod read;
pub mod unpack;
mod write;

use ocivisor_core::error::{Error, ErrorKind, one_line};

/// Longest path and longest target of a link, bytes: as of the kernel.
pub const MAX_PATH: usize = 4096;
/// Most directories within each other; each costs a descriptor on both sides.
pub const MAX_DEPTH: usize = 256;
/// Most pieces of a file with holes; what is behind the last becomes one piece.
pub const MAX_PIECES: usize = 1 << 14;
/// Notes that are kept; more are counted.
const MAX_NOTES: usize = 32;

/// What was left out, or is not what it was, for people.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Notes {
    lines: Vec<String>,
    more: u64,
}

impl Notes {
    fn leave_out(&mut self, path: &[u8], why: &str) {
        if self.lines.len() < MAX_NOTES {
            self.lines.push(format!("left out {}: {why}", shown(path)));
        } else {
            self.more += 1;
        }
    }

    fn zeros(&mut self, path: &[u8]) {
        if self.lines.len() < MAX_NOTES {
            self.lines.push(format!("{} became shorter meanwhile: zeros at its end", shown(path)));
        } else {
            self.more += 1;
        }
    }

    /// One line each.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        let more = (self.more > 0).then(|| format!("so {} more", self.more));
        self.lines.iter().cloned().chain(more)
    }
}

/// A path in a message.
fn shown(path: &[u8]) -> String {
    one_line(&String::from_utf8_lossy(path))
}

/// An error of the kernel about a path.
fn failed(what: &str, path: &[u8], error: impl Into<std::io::Error>) -> Error {
    let error = error.into();
    let kind = match error.kind() {
        std::io::ErrorKind::NotFound => ErrorKind::NotFound,
        std::io::ErrorKind::PermissionDenied => ErrorKind::Permission,
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::Exhausted,
        _ => ErrorKind::Host,
    };
    Error::new(kind, format!("{what} {}: {error}", shown(path)))
}
