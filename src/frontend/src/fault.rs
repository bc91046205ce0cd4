//! Errors of the file system and of the store as errors of ours.

use std::io;
use std::path::Path;

use ocivisor_core::error::{Error, ErrorKind};
use ocivisor_datastore as store;
use ocivisor_datastore::RegistryFault as Fault;

/// A system call that failed on a path.
pub(crate) fn failed(op: &str, path: &Path, error: &io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::Exhausted,
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::PermissionDenied => ErrorKind::Permission,
        _ => ErrorKind::Host,
    };
    Error::new(kind, format!("cannot {op} {}: {error}", path.display()))
}

/// What the store said.
pub(crate) fn from_store(error: &store::Error) -> Error {
    let kind = match error {
        store::Error::Io { source, .. } => match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::Exhausted,
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::PermissionDenied => ErrorKind::Permission,
            _ => ErrorKind::Host,
        },
        store::Error::NotFound { .. } => ErrorKind::NotFound,
        store::Error::Busy { .. } | store::Error::Exists { .. } => ErrorKind::Conflict,
        store::Error::Cancelled => ErrorKind::Cancelled,
        store::Error::Damaged { .. } => ErrorKind::Integrity,
        store::Error::Format { .. }
        | store::Error::ReadOnly { .. }
        | store::Error::OtherKind { .. } => ErrorKind::Unsupported,
        store::Error::BadDigest { .. }
        | store::Error::BadName { .. }
        | store::Error::NotAStore { .. } => ErrorKind::Invalid,
        _ => ErrorKind::Image,
    };
    let told = match std::error::Error::source(error) {
        Some(source) => Error::new(kind, format!("{error}: {source}")),
        None => Error::new(kind, error),
    };
    match error {
        store::Error::Registry { why: Fault::Unreachable(_) | Fault::Timeout(_), .. } => {
            told.hint("check its address, and that the front-end reaches it (proxies too)")
        }
        store::Error::BadName { .. } => told.hint("write docker://registry/repository:tag"),
        _ => told,
    }
}

/// Foreign text for a message, cut to 80 characters. Print it with `{:?}`.
pub(crate) fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}
