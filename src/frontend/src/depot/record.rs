//! `images/<n>.json`: what an image is.
//!
//! A version, and a list of features as `format.json` of a store has it: who does not know one of them refuses. Unknown
//! fields are refused, too: whoever adds one names a feature.

use std::fs::File;
use std::io::{self, Read};

use ocivisor_datastore::Digest;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

const VERSION: u32 = 1;

/// Far above any record.
const MAX: u64 = 64 * 1024;

/// What an image is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageRecord {
    version: u32,
    features: Vec<String>,
    /// Its number in OpenNebula, and the name of the record's file.
    pub image: u32,
    /// What it holds.
    pub content: Content,
}

/// What an image holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// A container image, or a disk that a VM wrote over one.
    Container(Container),
    /// A data disk.
    Data(DataDisk),
}

/// A container image. Without a manifest it has a writable disk alone, perhaps one that is yet to come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Container {
    /// In the store. None where the content is a disk that a VM has written.
    pub manifest: Option<Digest>,
    /// Where it came from, by digest where that is known: `docker://HOST/NAME@sha256:…`.
    pub origin: Option<String>,
    /// Of which VM's disk it is a copy.
    pub saved: Option<Saved>,
}

/// A VM's disk that an image was made to take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// The VM's number.
    pub vm: u32,
    /// The disk's number in it.
    pub disk: u32,
    /// The image that the disk was made of.
    pub image: Option<u32>,
}

/// A data disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataDisk {
    /// `raw` or `qcow2`.
    pub format: String,
    /// Where it came from; none for one that was made empty.
    pub origin: Option<String>,
}

impl ImageRecord {
    /// Of this version.
    #[must_use]
    pub fn new(image: u32, content: Content) -> Self {
        Self { version: VERSION, features: Vec::new(), image, content }
    }

    pub(super) fn encode(&self) -> io::Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Head {
            version: u32,
            features: Vec<String>,
        }
        let head: Head = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if head.version != VERSION {
            return Err(format!("version {} needs a newer ocivisor", head.version));
        }
        if let Some(feature) = head.features.first() {
            return Err(format!("feature {feature:?} needs a newer ocivisor"));
        }
        serde_json::from_slice(bytes).map_err(|e| e.to_string())
    }
}

pub(super) fn file(image: u32) -> String {
    format!("{image}.json")
}

/// A whole file of bounded size; none if it is not there.
pub(super) fn read(dir: &File, name: &str) -> io::Result<Option<Vec<u8>>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file: File = match rustix::fs::openat(dir, name, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        other => other?.into(),
    };
    let mut bytes = Vec::new();
    file.take(MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(Some(bytes)) }
}
