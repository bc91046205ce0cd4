//! Records as bytes of vm.json; what is kept of a failure has the same form.
//!
//! The file is one JSON object, so that any tool can read it, and its last field is a checksum of
//! every byte before it:
//!
//! ```text
//!   {
//!     "version": 1,
//!     …
//!     "changed": "…",          ◄─ sha256 of everything up to here
//!     "sha256": "<64 hex>"     ◄─ tail of fixed length
//!   }
//! ```
//!
//! A torn write has no tail, a flipped bit anywhere changes the sum or breaks the tail. It guards
//! against accident, not against those who may write the file. A file changed by hand is refused;
//! `dump` and `recover` of the command line are for that.

use ocivisor_core::error::{Error, ErrorKind};
use ocivisor_core::state::Record;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::record::RecordV1;

/// Most bytes of an encoded record.
pub const MAX_RECORD: usize = 4 << 20;

const TAIL_START: &[u8] = b",\n  \"sha256\": \"";
const TAIL_END: &[u8] = b"\"\n}\n";
const SUM_LEN: usize = 64;
const TAIL_LEN: usize = TAIL_START.len() + SUM_LEN + TAIL_END.len();

/// Why a record cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// It would not be readable again.
    #[error("record of vm {vm} has {bytes} bytes, at most {most} can be read again")]
    TooLarge {
        /// The VM.
        vm: String,
        /// Its size.
        bytes: usize,
        /// The largest that is read.
        most: usize,
    },
    /// A value has no JSON form.
    #[error("record of vm {vm} cannot be written as JSON: {why}")]
    Json {
        /// The VM.
        vm: String,
        /// What serde says.
        why: String,
    },
}

impl From<EncodeError> for Error {
    fn from(error: EncodeError) -> Self {
        Self::new(ErrorKind::Invalid, error)
    }
}

/// Why bytes are not a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Larger than any record that was ever written.
    #[error("{bytes} bytes, a record has at most {most}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The largest that is read.
        most: usize,
    },
    /// The end is missing or is not ours.
    #[error("cut off or not written by ocivisor: no checksum at the end of {bytes} bytes")]
    Torn {
        /// Its size.
        bytes: usize,
    },
    /// The bytes are not those that were written.
    #[error("damaged: sha256 is {found}, the record says {stored}")]
    Checksum {
        /// Of the bytes.
        found: String,
        /// Of the record.
        stored: String,
    },
    /// Whole, but of another version.
    #[error("version {0} is unknown, this build reads 1")]
    Version(u64),
    /// Whole, but not a record.
    #[error("not a record: {0}")]
    Json(String),
    /// A record with values that cannot be.
    #[error("not a valid record: {0}")]
    Invalid(Error),
}

impl From<DecodeError> for Error {
    fn from(error: DecodeError) -> Self {
        let kind = match &error {
            DecodeError::Version(_) => ErrorKind::Unsupported,
            DecodeError::TooLarge { .. }
            | DecodeError::Torn { .. }
            | DecodeError::Checksum { .. }
            | DecodeError::Json(_)
            | DecodeError::Invalid(_) => ErrorKind::Integrity,
        };
        Self::new(kind, error)
    }
}

fn sum(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// The bytes of a record.
///
/// # Errors
/// It is too large to be read again.
pub fn encode(record: &Record) -> Result<Vec<u8>, EncodeError> {
    sealed(record.id().as_str(), &RecordV1::from(record), MAX_RECORD)
}

/// The record of these bytes.
///
/// # Errors
/// They are not what [`encode`] wrote, or not what this build can read.
pub fn decode(bytes: &[u8]) -> Result<Record, DecodeError> {
    let record: RecordV1 = unsealed(bytes, RecordV1::VERSION, MAX_RECORD)?;
    Record::try_from(record).map_err(DecodeError::Invalid)
}

/// An object of a VM, with its checksum; at most so many bytes.
pub(crate) fn sealed(
    vm: &str,
    object: &impl Serialize,
    most: usize,
) -> Result<Vec<u8>, EncodeError> {
    let vm = || vm.to_owned();
    let mut bytes = serde_json::to_vec_pretty(object)
        .map_err(|e| EncodeError::Json { vm: vm(), why: e.to_string() })?;
    // The pretty printer ends an object with "\n}"; the tail brings its own.
    bytes.truncate(bytes.len().saturating_sub(2));
    let sum = sum(&bytes);
    bytes.extend_from_slice(TAIL_START);
    bytes.extend_from_slice(sum.as_bytes());
    bytes.extend_from_slice(TAIL_END);
    if bytes.len() > most {
        return Err(EncodeError::TooLarge { vm: vm(), bytes: bytes.len(), most });
    }
    Ok(bytes)
}

/// The object that [`sealed`] wrote, if it is whole and of this version.
pub(crate) fn unsealed<T: DeserializeOwned>(
    bytes: &[u8],
    known: u32,
    most: usize,
) -> Result<T, DecodeError> {
    #[derive(Deserialize)]
    struct Version {
        version: u64,
    }
    let len = bytes.len();
    if len > most {
        return Err(DecodeError::TooLarge { bytes: len, most });
    }
    let torn = || DecodeError::Torn { bytes: len };
    let (body, tail) = bytes.split_at_checked(len.saturating_sub(TAIL_LEN)).ok_or_else(torn)?;
    let stored = tail
        .strip_prefix(TAIL_START)
        .and_then(|rest| rest.strip_suffix(TAIL_END))
        .and_then(|hex| std::str::from_utf8(hex).ok())
        .ok_or_else(torn)?;
    let found = sum(body);
    if found != stored {
        return Err(DecodeError::Checksum {
            found,
            stored: stored.chars().take(SUM_LEN).collect(),
        });
    }
    let json = |e: serde_json::Error| DecodeError::Json(e.to_string());
    let Version { version } = serde_json::from_slice(bytes).map_err(json)?;
    if version != u64::from(known) {
        return Err(DecodeError::Version(version));
    }
    serde_json::from_slice(bytes).map_err(json)
}
