//! What goes to a worker and what comes back.
//!
//! The request is trusted: length in four bytes, little endian, then JSON; the blob follows in the same pipe. The
//! answer is not: one JSON document of bounded size, every field judged. Text in it must be what [`escape`] could have
//! written; reasons that the program knows as constants come back as these constants, and a limit's value is the
//! one that was asked for.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::compress::Compression;
use crate::content::{Content, Fallible, Task};
use crate::digest::DiffId;
use crate::error::{Fault, Limit, Refusal};
use crate::limits::Limits;
use crate::tarball::Trailer;
use crate::unpack::Report;

/// Rises with each change of what is below.
const VERSION: u32 = 1;

const REQUEST_MAX: u32 = 64 * 1024;
pub(super) const ANSWER_MAX: u64 = 16 * 1024;

/// What a worker is to do.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    version: u32,
    limits: Limits,
    bytes: u64,
    entries: u64,
    compression: Option<Compression>,
    unpack: Option<Ending>,
    id_base: u32,
    cgroup_procs: Vec<PathBuf>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Ending {
    Optional,
    Required,
}

impl Request {
    pub(super) fn new(task: &Task<'_>, id_base: u32, cgroup_procs: &[PathBuf]) -> Self {
        Self {
            version: VERSION,
            limits: task.limits.clone(),
            bytes: task.bytes,
            entries: task.entries,
            compression: task.compression,
            unpack: task.into.map(|(_, trailer)| match trailer {
                Trailer::Optional => Ending::Optional,
                Trailer::Required => Ending::Required,
            }),
            id_base,
            cgroup_procs: cgroup_procs.to_vec(),
        }
    }

    pub(super) fn encode(&self) -> io::Result<Vec<u8>> {
        let body = serde_json::to_vec(self)?;
        let length = u32::try_from(body.len()).ok().filter(|l| *l <= REQUEST_MAX);
        let length = length.ok_or_else(|| io::Error::other("request is too long"))?;
        Ok([&length.to_le_bytes(), &body[..]].concat())
    }

    /// Reads the request and leaves the blob in the pipe.
    ///
    /// # Errors
    /// It cannot be read, or is of another version.
    pub fn receive(mut from: &File) -> io::Result<Self> {
        let mut length = [0; 4];
        from.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length);
        if length > REQUEST_MAX {
            return Err(io::Error::other("request is too long"));
        }
        let mut body = vec![0; length as usize];
        from.read_exact(&mut body)?;
        let request: Self = serde_json::from_slice(&body)?;
        if request.version == VERSION {
            Ok(request)
        } else {
            let text = format!("request of version {}, not {VERSION}", request.version);
            Err(io::Error::other(text))
        }
    }

    pub(super) fn task<'a>(&'a self, into: Option<&'a File>) -> Task<'a> {
        Task {
            limits: &self.limits,
            bytes: self.bytes,
            entries: self.entries,
            compression: self.compression,
            into: into.zip(self.unpack.map(|ending| match ending {
                Ending::Optional => Trailer::Optional,
                Ending::Required => Trailer::Required,
            })),
        }
    }

    /// Whether there is a directory to fill.
    #[must_use]
    pub fn unpacks(&self) -> bool {
        self.unpack.is_some()
    }

    /// First of the host's ids for the worker.
    #[must_use]
    pub fn id_base(&self) -> u32 {
        self.id_base
    }

    /// Control groups to join, by their `cgroup.procs`.
    pub fn cgroup_procs(&self) -> impl Iterator<Item = &Path> {
        self.cgroup_procs.iter().map(PathBuf::as_path)
    }

    /// No file that a worker makes can be larger.
    #[must_use]
    pub fn largest_file(&self) -> u64 {
        self.bytes
    }
}

/// The host does not let a worker be confined.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}")]
pub struct Unusable {
    /// The attempt.
    pub step: &'static str,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

/// What a worker says at its end.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub struct Answer(Said);

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Said {
    Done { diff_id: DiffId, bytes: u64, headers: u64, compression: Compression, report: Report },
    Refused { entry: Option<String>, why: Why },
    Failed { entry: Option<String>, op: String, errno: i32 },
    Unusable { step: String, errno: i32 },
    Broken { why: String },
}

/// [`Refusal`], as far as a worker can say it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Why {
    Limit(Limit),
    ParentTraversal,
    Nul,
    Root,
    Header(String),
    Pax(String),
    EntryType(u8),
    Sparse,
    Uid(u64),
    Gid(u64),
    Whiteout(String),
    HardLink(String),
    Symlink(String),
    Parent(String),
    Xattr(String),
    Stream(String),
    Truncated,
    NoFiles,
}

impl Answer {
    pub(super) fn new(result: Fallible<Content>) -> Self {
        Self(match result {
            Ok(Content { diff_id, bytes, headers, compression, report }) => {
                Said::Done { diff_id, bytes, headers, compression, report }
            }
            Err((Fault::Refused(refusal), entry)) => match why(refusal) {
                Ok(why) => Said::Refused { entry, why },
                Err(other) => Said::Broken { why: format!("refused by {other}") },
            },
            Err((Fault::Io(op, error), entry)) => match error.raw_os_error() {
                Some(errno) => Said::Failed { entry, op: op.into(), errno },
                None => Said::Broken { why: error.to_string() },
            },
            Err((Fault::Worker(why), _)) => Said::Broken { why },
        })
    }

    /// The host does not let a worker be confined.
    #[must_use]
    pub fn unusable(error: &Unusable) -> Self {
        let errno = error.source.raw_os_error().unwrap_or_default();
        Self(Said::Unusable { step: error.step.into(), errno })
    }

    /// Writes the answer.
    ///
    /// # Errors
    /// Nobody reads it.
    pub fn send(&self, mut to: &File) -> io::Result<()> {
        to.write_all(&serde_json::to_vec(self)?)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(bytes).map_err(|e| e.to_string())
    }

    /// Judges the answer to a task: `Err` outside means that it cannot be true.
    pub(super) fn judge(self, task: &Task<'_>) -> Result<Fallible<Content>, &'static str> {
        match self.0 {
            Said::Done { diff_id, bytes, headers, compression, report } => {
                let Report { entries, bytes: content, devices_skipped, aufs_skipped, .. } = report;
                let possible = bytes <= task.bytes
                    && headers <= task.entries
                    && task.compression.is_none_or(|wanted| wanted == compression)
                    && entries <= headers
                    && content <= bytes
                    && devices_skipped <= entries
                    && aufs_skipped <= entries
                    && (task.into.is_some() || report == Report::default());
                if possible {
                    Ok(Ok(Content { diff_id, bytes, headers, compression, report }))
                } else {
                    Err("numbers that cannot be")
                }
            }
            Said::Refused { entry, why } => {
                Ok(Err((refusal(why, task.limits)?.into(), escaped(entry)?)))
            }
            Said::Failed { entry, op, errno } => {
                let op = constant(&op).ok_or("an unknown operation")?;
                let error = io::Error::from_raw_os_error(errno);
                Ok(Err((Fault::Io(op, error), escaped(entry)?)))
            }
            Said::Unusable { step, errno } => {
                let step = escaped(Some(step))?.unwrap_or_default();
                let text = format!(
                    "cannot {step}: {}; see `ocivisor doctor`",
                    io::Error::from_raw_os_error(errno)
                );
                Ok(Err((Fault::Worker(text), None)))
            }
            Said::Broken { why } => {
                let why = escaped(Some(why))?.unwrap_or_default();
                Ok(Err((Fault::Worker(format!("broke: {why}")), None)))
            }
        }
    }
}

/// Reads and judges.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz_answer(bytes: &[u8]) {
    let limits = Limits::default();
    let task = Task { limits: &limits, bytes: 1000, entries: 10, compression: None, into: None };
    drop(Answer::decode(bytes).map(|answer| answer.judge(&task)));
}

fn why(refusal: Refusal) -> Result<Why, Refusal> {
    Ok(match refusal {
        Refusal::Limit { limit, .. } => Why::Limit(limit),
        Refusal::ParentTraversal => Why::ParentTraversal,
        Refusal::Nul => Why::Nul,
        Refusal::Root => Why::Root,
        Refusal::Header(text) => Why::Header(text.into()),
        Refusal::Pax(text) => Why::Pax(text.into()),
        Refusal::EntryType(kind) => Why::EntryType(kind),
        Refusal::Sparse => Why::Sparse,
        Refusal::Id { field: "uid", id } => Why::Uid(id),
        Refusal::Id { id, .. } => Why::Gid(id),
        Refusal::Whiteout(text) => Why::Whiteout(text.into()),
        Refusal::HardLink(text) => Why::HardLink(text.into()),
        Refusal::Symlink(text) => Why::Symlink(text.into()),
        Refusal::Parent(text) => Why::Parent(text.into()),
        Refusal::Xattr(text) => Why::Xattr(text.into()),
        Refusal::Stream(text) => Why::Stream(text),
        Refusal::Truncated => Why::Truncated,
        Refusal::NoFiles => Why::NoFiles,
        // The rest is said by those who know what was promised.
        other => return Err(other),
    })
}

fn refusal(why: Why, limits: &Limits) -> Result<Refusal, &'static str> {
    let known = |text: String| constant(&text).ok_or("an unknown reason");
    Ok(match why {
        Why::Limit(limit) => Refusal::limit(limit, value(limit, limits).ok_or("a foreign limit")?),
        Why::ParentTraversal => Refusal::ParentTraversal,
        Why::Nul => Refusal::Nul,
        Why::Root => Refusal::Root,
        Why::Header(text) => Refusal::Header(known(text)?),
        Why::Pax(text) => Refusal::Pax(known(text)?),
        Why::EntryType(kind) => Refusal::EntryType(kind),
        Why::Sparse => Refusal::Sparse,
        Why::Uid(id) => Refusal::Id { field: "uid", id },
        Why::Gid(id) => Refusal::Id { field: "gid", id },
        Why::Whiteout(text) => Refusal::Whiteout(known(text)?),
        Why::HardLink(text) => Refusal::HardLink(known(text)?),
        Why::Symlink(text) => Refusal::Symlink(known(text)?),
        Why::Parent(text) => Refusal::Parent(known(text)?),
        Why::Xattr(text) => Refusal::Xattr(known(text)?),
        Why::Stream(text) => Refusal::Stream(escaped(Some(text))?.unwrap_or_default()),
        Why::Truncated => Refusal::Truncated,
        Why::NoFiles => Refusal::NoFiles,
    })
}

/// The value of a limit that unpacking can meet.
fn value(limit: Limit, limits: &Limits) -> Option<u64> {
    let wide = |n: usize| u64::try_from(n).ok();
    match limit {
        Limit::ImageBytes => Some(limits.image_bytes),
        Limit::Ratio => Some(limits.ratio),
        Limit::Entries => Some(limits.entries),
        Limit::Depth => wide(limits.depth),
        Limit::NameBytes => wide(limits.name_bytes),
        Limit::PathBytes => wide(limits.path_bytes),
        Limit::PaxBytes => Some(limits.pax_bytes),
        _ => None,
    }
}

/// Text that is no other than [`escape`] writes.
///
/// [`escape`]: crate::error::escape
fn escaped(text: Option<String>) -> Result<Option<String>, &'static str> {
    // Four characters for a byte, and dots.
    const MAX: usize = 200 * 4 + 3;
    match text {
        Some(text) if text.len() > MAX || !text.bytes().all(|b| matches!(b, b' '..=b'~')) => {
            Err("text that is not escaped")
        }
        other => Ok(other),
    }
}

/// Reasons and operations that unpacking can give.
const CONSTANTS: &[&str] = &[
    // Refusal::Header
    "PAX and GNU long names differ",
    "data after an entry that has none",
    "empty header between entries",
    "empty path",
    "mode out of range",
    "negative number",
    "number is not octal",
    "number out of range",
    "size out of range",
    "two long names for one entry",
    "wrong checksum",
    // Refusal::Pax
    "bad number",
    "bad time",
    "global header that changes entries",
    "record without '='",
    "record without a key",
    "record without a proper length",
    "two extended headers for one entry",
    // Refusal::Whiteout
    "hides no name",
    "not a regular file",
    "opaque root of a layer",
    "used as a directory",
    // Refusal::HardLink
    "more links than the file system allows",
    "target climbs with '..'",
    "target is not a regular file",
    "target is not in this layer",
    "target is the root",
    "target lies behind a symbolic link",
    // Refusal::Symlink
    "empty target",
    "target too long",
    // Refusal::Parent
    "not a directory",
    "path too long",
    "symbolic link to no directory of this layer",
    "symbolic links in a circle",
    // Refusal::Xattr
    "bad name",
    "larger than the file system takes",
    "more than 128 on one entry",
    "security.capability of no known revision",
    "security.capability with unknown flags",
    "value above 65536 bytes",
    // Fault::Io
    "change mode of",
    "change owner of",
    "duplicate descriptor of",
    "inspect",
    "make directory",
    "make fifo",
    "make hard link",
    "make opaque",
    "make symbolic link",
    "make whiteout",
    "open",
    "open directory",
    "open directory of link target of",
    "read",
    "remove whiteout",
    "replace",
    "set extended attribute of",
    "set times of",
    "start a thread for",
    "write",
];

fn constant(text: &str) -> Option<&'static str> {
    CONSTANTS.iter().find(|known| **known == text).copied()
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
