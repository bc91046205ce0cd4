//! `format.json`: which version of the layout this is, and which features were used in writing it.
//!
//! The three lists work as those of ext4: a program that does not know a *compatible* feature may go on, one that
//! does not know a *read-only compatible* one may only read, one that does not know an *incompatible* one must
//! not touch anything.

use std::fs::File;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::disk;
use crate::error::{Error, Result};
use crate::packed::{self, Kind};

const NAME: &str = "format.json";
const DRAFT: &str = "format.json.new";
const KIND: &str = "ocivisor-datastore";
const VERSION: u32 = 1;
const MAX: u64 = 64 * 1024;

/// Features this program knows, by list.
const READ_ONLY_COMPATIBLE: &[&str] = &[];
const INCOMPATIBLE: &[&str] = &[packed::FEATURE];

#[derive(Debug, Serialize, Deserialize)]
struct Format {
    kind: String,
    version: u32,
    #[serde(default)]
    compatible: Vec<String>,
    #[serde(default)]
    read_only_compatible: Vec<String>,
    #[serde(default)]
    incompatible: Vec<String>,
}

/// What may be done with a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Full,
    /// A feature is in the way.
    ReadOnly(String),
}

/// Checks the format, or writes it into an empty directory. The caller holds the store's lock.
pub(crate) fn check_or_create(root: &Path, dir: &File, kind: Kind) -> Result<Access> {
    let io = |op| move |e| Error::io(op, root.join(NAME).display().to_string(), e);
    match disk::read_file(dir, NAME, MAX).map_err(io("read"))? {
        Some(bytes) => check(root, &bytes, kind),
        None => create(root, dir, kind).map(|()| Access::Full),
    }
}

fn create(root: &Path, dir: &File, kind: Kind) -> Result<()> {
    let io = |op| move |e| Error::io(op, root.join(NAME).display().to_string(), e);
    let known = ["lock", DRAFT, "lost+found"];
    if disk::names(dir).map_err(io("look for"))?.iter().any(|n| !known.contains(&n.as_str())) {
        return Err(Error::NotAStore { root: root.into() });
    }
    let format = Format {
        kind: KIND.into(),
        version: VERSION,
        compatible: vec![],
        read_only_compatible: vec![],
        incompatible: match kind {
            Kind::Unpacked => vec![],
            Kind::Packed => vec![packed::FEATURE.into()],
        },
    };
    let mut bytes = serde_json::to_vec_pretty(&format).map_err(|e| io("encode")(e.into()))?;
    bytes.push(b'\n');
    let write = || {
        // An empty directory that was there, the root of a fresh file system say, has any mode.
        rustix::fs::fchmod(dir, rustix::fs::Mode::RWXU)?;
        disk::unlink(dir, DRAFT)?;
        disk::write_new(dir, DRAFT, &bytes)?;
        disk::publish(dir, DRAFT, dir, NAME)?;
        // The root itself may be new.
        disk::open_dir(dir, "..")?.sync_all()
    };
    write().map_err(io("write"))
}

/// Notes that a compatible feature is in use. The caller has locked `dir`, as who opens a store does.
pub(crate) fn add_compatible(dir: &File, feature: &str) -> io::Result<()> {
    let bytes = disk::read_file(dir, NAME, MAX)?.ok_or(io::ErrorKind::NotFound)?;
    let mut format: serde_json::Value = serde_json::from_slice(&bytes)?;
    // Edited as a value: what a newer program wrote stays.
    let list = format.get_mut("compatible").and_then(serde_json::Value::as_array_mut);
    match list {
        Some(list) if list.iter().any(|f| f == feature) => return Ok(()),
        Some(list) => list.push(feature.into()),
        None => format["compatible"] = serde_json::json!([feature]),
    }
    let mut bytes = serde_json::to_vec_pretty(&format)?;
    bytes.push(b'\n');
    disk::unlink(dir, DRAFT)?;
    disk::write_new(dir, DRAFT, &bytes)?;
    disk::publish(dir, DRAFT, dir, NAME)
}

fn check(root: &Path, bytes: &[u8], kind: Kind) -> Result<Access> {
    let damaged = |why: String| Error::damaged(root.join(NAME).display().to_string(), why);
    let format: Format = serde_json::from_slice(bytes).map_err(|e| damaged(e.to_string()))?;
    if format.kind != KIND {
        return Err(damaged(format!("kind is {:?}, not {KIND:?}", format.kind)));
    }
    let newer = |what: String| Error::Format { root: root.into(), what };
    if format.version != VERSION {
        return Err(newer(format!("format version {}", format.version)));
    }
    let packed = format.incompatible.iter().any(|feature| feature == packed::FEATURE);
    let unknown =
        |list: Vec<String>, known: &[&str]| list.into_iter().find(|f| !known.contains(&f.as_str()));
    if let Some(feature) = unknown(format.incompatible, INCOMPATIBLE) {
        return Err(newer(format!("feature {feature:?}")));
    }
    match (kind, packed) {
        (Kind::Unpacked, true) => return Err(packed::wrong_kind(root, Kind::Packed)),
        (Kind::Packed, false) => return Err(packed::wrong_kind(root, Kind::Unpacked)),
        _ => {}
    }
    Ok(match unknown(format.read_only_compatible, READ_ONLY_COMPATIBLE) {
        Some(feature) => Access::ReadOnly(feature),
        None => Access::Full,
    })
}
