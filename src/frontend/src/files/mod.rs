//! Files of datastores, on the front-end and on hosts.
//!
//! Whatever has a name here may have been put there by somebody else: a guest's owner cannot, but other drivers and
//! admins do. So everything is opened by descriptors, from the datastore's directory downwards, and no link is
//! followed beneath it.

pub mod dir;
pub mod sparse;
pub mod tree;

pub use dir::Dir;

use std::io;
use std::path::Path;

use ocivisor_core::error::{Error, ErrorKind};

/// `<what> <path>: <why>`.
pub(crate) fn failed(what: &str, path: &Path, why: impl Into<io::Error>) -> Error {
    let why = why.into();
    let kind = match why.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::NOENT) => ErrorKind::NotFound,
        Some(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT) => ErrorKind::Exhausted,
        Some(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM) => ErrorKind::Permission,
        _ => ErrorKind::Host,
    };
    Error::new(kind, format!("{what} {}: {why}", path.display()))
}

/// What a connection carries breaks off, or is not what it must be.
pub(crate) fn broken(why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Host, format!("{BROKEN}{why}"))
}

const BROKEN: &str = "transfer broke off: ";

/// Whether it was the connection that failed, and so the other side may know why.
pub(crate) fn is_broken(error: &Error) -> bool {
    error.kind == ErrorKind::Host && error.message.starts_with(BROKEN)
}

/// What the other side sent is not what it must be.
pub(crate) fn garbled(why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Integrity, format!("transfer is garbled: {why}"))
}
