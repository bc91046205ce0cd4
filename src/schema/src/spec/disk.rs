//! Disks of a VM.

use std::path::PathBuf;

use ocivisor_core::spec::{IoLimits, RootDisk};
use serde::{Deserialize, Serialize};

/// See [`RootDisk`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootDiskV1 {
    /// Absolute path of the writable disk on the host.
    pub path: String,
    /// Bounds on its traffic.
    #[serde(default, skip_serializing_if = "IoLimitsV1::is_none")]
    pub io: IoLimitsV1,
}

/// See [`IoLimits`]. All per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct IoLimitsV1 {
    /// Bytes read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_bytes: Option<u64>,
    /// Bytes written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_bytes: Option<u64>,
    /// Reads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_ops: Option<u64>,
    /// Writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_ops: Option<u64>,
}

impl IoLimitsV1 {
    pub(super) fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

impl From<IoLimitsV1> for IoLimits {
    fn from(io: IoLimitsV1) -> Self {
        let IoLimitsV1 { read_bytes, write_bytes, read_ops, write_ops } = io;
        Self { read_bytes, write_bytes, read_ops, write_ops }
    }
}

impl From<IoLimits> for IoLimitsV1 {
    fn from(io: IoLimits) -> Self {
        let IoLimits { read_bytes, write_bytes, read_ops, write_ops } = io;
        Self { read_bytes, write_bytes, read_ops, write_ops }
    }
}

impl From<&RootDiskV1> for RootDisk {
    fn from(disk: &RootDiskV1) -> Self {
        Self { path: PathBuf::from(&disk.path), io: disk.io.into() }
    }
}

impl From<&RootDisk> for RootDiskV1 {
    fn from(disk: &RootDisk) -> Self {
        Self { path: disk.path.to_string_lossy().into_owned(), io: disk.io.into() }
    }
}
