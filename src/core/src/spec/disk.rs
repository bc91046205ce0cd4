//! Disks of a VM.

use std::path::PathBuf;

use super::normal_path;

/// The root disk, where the platform put it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootDisk {
    /// The writable disk: a file (ext4 image) or, for the plain backend, a directory. Its manifest
    /// is beside it, `<path>.manifest.json`. Absolute and normal ([`normal_path`]).
    pub path: PathBuf,
    /// How fast it may be read and written.
    pub io: IoLimits,
}

/// Bounds on the traffic of a disk per second; `None` is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IoLimits {
    /// Bytes read.
    pub read_bytes: Option<u64>,
    /// Bytes written.
    pub write_bytes: Option<u64>,
    /// Reads.
    pub read_ops: Option<u64>,
    /// Writes.
    pub write_ops: Option<u64>,
}

impl RootDisk {
    pub(super) fn check(&self) -> Result<(), String> {
        if normal_path(&self.path).as_deref() != Some(self.path.as_path()) {
            return Err(format!("root disk path {:?} is not absolute and normal", self.path));
        }
        self.io.check()
    }
}

impl IoLimits {
    pub(super) fn check(&self) -> Result<(), String> {
        let all = [self.read_bytes, self.write_bytes, self.read_ops, self.write_ops];
        // The kernel takes no zero, and no limit is written as its largest number.
        if all.into_iter().flatten().any(|limit| limit == 0 || limit > 1 << 50) {
            return Err("limits on the traffic of a disk must be 1 to 2^50 per second".into());
        }
        Ok(())
    }
}
