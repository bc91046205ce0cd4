//! What comes back from a worker.
//!
//! One JSON document of bounded size, every field judged. Text in it must be what [`escape`] could have written;
//! reasons that the program knows as constants come back as these constants, and a limit's value is the one that was
//! asked for.
//!
//! [`escape`]: crate::error::escape

use std::fs::File;
use std::io::{self, Write};

use serde::{Deserialize, Serialize};

use crate::compress::Compression;
use crate::content::{Content, Fallible, Task};
use crate::digest::DiffId;
use crate::diskimage::{DiskFacts, DiskFault, System, XATTRS_MAX};
use crate::error::{Fault, Limit, Refusal};
use crate::limits::Limits;
use crate::unpack::Report;

pub(super) const ANSWER_MAX: u64 = 16 * 1024;

/// Far above what is said of a disk: a path, a name and a list of partitions at most.
const DISK_TEXT: usize = 4096;

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

/// What the work came to; outside, what is wrong with an answer that cannot be true.
pub(super) type Judged<T> = Result<Fallible<T>, &'static str>;

/// What a worker says at its end.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub struct Answer(Said);

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Said {
    /// A layer.
    Done {
        diff_id: DiffId,
        bytes: u64,
        headers: u64,
        compression: Compression,
        report: Report,
    },
    /// A stream, of so many bytes.
    Expanded {
        bytes: u64,
    },
    /// A disk; none of its bytes come if its programs are for other hosts.
    Disk {
        bytes: u64,
        init: Option<String>,
        systemd: bool,
        architecture: Option<String>,
        xattrs_dropped: u64,
    },
    /// [`DiskFault`], in its words.
    DiskRefused {
        why: String,
    },
    Refused {
        entry: Option<String>,
        why: Why,
    },
    Failed {
        entry: Option<String>,
        op: String,
        errno: i32,
    },
    Unusable {
        step: String,
        errno: i32,
    },
    Broken {
        why: String,
    },
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
    pub(super) fn content(result: Fallible<Content>) -> Self {
        let done = |Content { diff_id, bytes, headers, compression, report }| Said::Done {
            diff_id,
            bytes,
            headers,
            compression,
            report,
        };
        Self(result.map_or_else(Said::failure, done))
    }

    pub(super) fn expanded(result: Result<u64, Fault>) -> Self {
        let failed = |fault| Said::failure((fault, None));
        Self(result.map_or_else(failed, |bytes| Said::Expanded { bytes }))
    }

    pub(super) fn disk(result: Result<(u64, DiskFacts), DiskEnd>) -> Self {
        Self(match result {
            Ok((bytes, DiskFacts { system, xattrs_dropped })) => {
                let System { init, systemd, architecture } = system;
                let (init, architecture) =
                    (init.map(str::to_owned), architecture.map(str::to_owned));
                Said::Disk { bytes, init, systemd, architecture, xattrs_dropped }
            }
            Err(DiskEnd::Refused(fault)) => {
                let mut why = fault.to_string();
                why.truncate(why.floor_char_boundary(DISK_TEXT));
                Said::DiskRefused { why }
            }
            Err(DiskEnd::Failed(fault)) => Said::failure((fault, None)),
        })
    }

    /// The request asks for what cannot be done with what came with it.
    pub(super) fn without(what: &str) -> Self {
        Self(Said::Broken { why: format!("request came without {what}") })
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
    pub(super) fn judge(self, task: &Task<'_>) -> Judged<Content> {
        let Said::Done { diff_id, bytes, headers, compression, report } = self.0 else {
            return self.0.judge_failure(task.limits).map(Err);
        };
        let Report { entries, bytes: content, devices_skipped, aufs_skipped, .. } = report;
        let possible = bytes <= task.bytes
            && headers <= task.entries
            && task.compression.is_none_or(|wanted| wanted == compression)
            && entries <= headers
            && content <= bytes
            && devices_skipped <= entries
            && aufs_skipped <= entries;
        if possible {
            Ok(Ok(Content { diff_id, bytes, headers, compression, report }))
        } else {
            Err("numbers that cannot be")
        }
    }

    /// Judges the answer to a stream of which `seen` bytes came.
    pub(super) fn judge_stream(self, seen: u64) -> Judged<()> {
        match self.0 {
            Said::Expanded { bytes } if bytes == seen => Ok(Ok(())),
            Said::Expanded { .. } => Err("another length than came"),
            other => match other.judge_failure(&Limits::default())? {
                // It has no files: an error of the kernel is not one of the source.
                (Fault::Io(op, error), at) => {
                    Ok(Err((Fault::Worker(format!("cannot {op}: {error}")), at)))
                }
                fault => Ok(Err(fault)),
            },
        }
    }

    /// Judges the answer of what should have become another program.
    pub(super) fn judge_tool(self) -> Result<Fault, &'static str> {
        Ok(self.0.judge_failure(&Limits::default())?.0)
    }

    /// Judges the answer to a disk of which `seen` bytes came.
    pub(super) fn judge_disk(
        self,
        seen: u64,
        limits: &Limits,
    ) -> Judged<Result<DiskFacts, DiskFault>> {
        match self.0 {
            Said::Disk { bytes, .. } if bytes != seen => Err("another length than came"),
            Said::Disk { init, systemd, architecture, xattrs_dropped, .. } => {
                let system = System::known(init.as_deref(), systemd, architecture.as_deref());
                let system = system.ok_or("a system of no known kind")?;
                let possible = (seen > 0) == system.fits()
                    && xattrs_dropped <= limits.entries.saturating_mul(XATTRS_MAX as u64);
                if possible {
                    Ok(Ok(Ok(DiskFacts { system, xattrs_dropped })))
                } else {
                    Err("numbers that cannot be")
                }
            }
            Said::DiskRefused { why } => Ok(Ok(Err(DiskFault::Told(printable(why, DISK_TEXT)?)))),
            other => match other.judge_failure(limits)? {
                // It is the pipe's: what cannot be read of a disk is a fault of the disk.
                (Fault::Io(op, error), at) => {
                    Ok(Err((Fault::Worker(format!("cannot {op}: {error}")), at)))
                }
                fault => Ok(Err(fault)),
            },
        }
    }
}

/// Why a disk was not read to its end: because of what it is, or because of the host.
pub(super) enum DiskEnd {
    Refused(DiskFault),
    Failed(Fault),
}

impl Said {
    fn failure((fault, entry): (Fault, Option<String>)) -> Self {
        match fault {
            Fault::Refused(refusal) => match why(refusal) {
                Ok(why) => Self::Refused { entry, why },
                Err(other) => Self::Broken { why: format!("refused by {other}") },
            },
            Fault::Io(op, error) => match error.raw_os_error() {
                Some(errno) => Self::Failed { entry, op: op.into(), errno },
                None => Self::Broken { why: error.to_string() },
            },
            Fault::Worker(why) => Self::Broken { why },
        }
    }

    fn judge_failure(self, limits: &Limits) -> Result<(Fault, Option<String>), &'static str> {
        match self {
            Self::Refused { entry, why } => Ok((refusal(why, limits)?.into(), escaped(entry)?)),
            Self::Failed { entry, op, errno } => {
                let op = constant(&op).ok_or("an unknown operation")?;
                let error = io::Error::from_raw_os_error(errno);
                Ok((Fault::Io(op, error), escaped(entry)?))
            }
            Self::Unusable { step, errno } => {
                let step = escaped(Some(step))?.unwrap_or_default();
                let text = format!(
                    "cannot {step}: {}; see `ocivisor doctor`",
                    io::Error::from_raw_os_error(errno)
                );
                Ok((Fault::Worker(text), None))
            }
            Self::Broken { why } => {
                let why = escaped(Some(why))?.unwrap_or_default();
                Ok((Fault::Worker(format!("broke: {why}")), None))
            }
            Self::Done { .. }
            | Self::Expanded { .. }
            | Self::Disk { .. }
            | Self::DiskRefused { .. } => Err("what another job would"),
        }
    }
}

/// Reads and judges.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz_answer(bytes: &[u8]) {
    let limits = Limits::default();
    let task = Task { limits: &limits, bytes: 1000, entries: 10, compression: None };
    drop(Answer::decode(bytes).map(|answer| answer.judge(&task)));
    drop(Answer::decode(bytes).map(|answer| answer.judge_stream(7)));
    drop(Answer::decode(bytes).map(|answer| answer.judge_disk(7, &limits)));
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
    text.map(|text| printable(text, MAX)).transpose()
}

/// Text that a terminal and a log take for nothing else.
fn printable(text: String, max: usize) -> Result<String, &'static str> {
    if text.len() <= max && text.bytes().all(|b| matches!(b, b' '..=b'~')) {
        Ok(text)
    } else {
        Err("text that is not escaped")
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
    "pack",
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
#[path = "answer_tests.rs"]
mod tests;
