//! Disks beside the root disk.

use std::path::PathBuf;

use ocivisor_core::error::Error;
use ocivisor_core::spec::{DataDisk, DiskFormat, Filesystem, View};
use serde::{Deserialize, Serialize};

use super::IoLimitsV1;
use super::fields::Fields;

/// See [`DataDisk`]. `mount` alone: mounted there, or refused. `device` alone: a block device. Both: mounted if there is
/// a filesystem inside that this host mounts, else a block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataDiskV1 {
    /// Which of the VM's disks.
    pub number: u32,
    /// Absolute path of the file or block device on the host.
    pub path: String,
    /// How the content is kept in a file; else `raw`.
    #[serde(default)]
    pub format: DiskFormatV1,
    /// Absolute paths of files, and of directories of files, that a qcow2 file may stand on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backing: Vec<String>,
    /// Whether the guest may only read it.
    #[serde(default)]
    pub read_only: bool,
    /// Where its filesystem is mounted in the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount: Option<String>,
    /// Its name in the guest's `/dev`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The filesystem that is made in it if it is empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub make: Option<FilesystemV1>,
    /// Bounds on its traffic.
    #[serde(default, skip_serializing_if = "IoLimitsV1::is_none")]
    pub io: IoLimitsV1,
}

/// See [`DiskFormat`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormatV1 {
    /// `raw`
    #[default]
    Raw,
    /// `qcow2`
    Qcow2,
}

/// See [`Filesystem`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FilesystemV1 {
    /// `ext4`
    Ext4,
    /// `xfs`
    Xfs,
}

impl From<DiskFormatV1> for DiskFormat {
    fn from(format: DiskFormatV1) -> Self {
        match format {
            DiskFormatV1::Raw => Self::Raw,
            DiskFormatV1::Qcow2 => Self::Qcow2,
        }
    }
}

impl From<DiskFormat> for DiskFormatV1 {
    fn from(format: DiskFormat) -> Self {
        match format {
            DiskFormat::Raw => Self::Raw,
            DiskFormat::Qcow2 => Self::Qcow2,
        }
    }
}

impl From<FilesystemV1> for Filesystem {
    fn from(filesystem: FilesystemV1) -> Self {
        match filesystem {
            FilesystemV1::Ext4 => Self::Ext4,
            FilesystemV1::Xfs => Self::Xfs,
        }
    }
}

impl From<Filesystem> for FilesystemV1 {
    fn from(filesystem: Filesystem) -> Self {
        match filesystem {
            Filesystem::Ext4 => Self::Ext4,
            Filesystem::Xfs => Self::Xfs,
        }
    }
}

impl Fields<'_> {
    pub(super) fn data_disk(&self, disk: &DataDiskV1) -> Result<DataDisk, Error> {
        let bad = |why: &dyn std::fmt::Display| self.bad(&format!("disks.{}", disk.number), why);
        let device = disk.device.as_deref().map(|name| {
            let shown: String = name.chars().take(40).collect();
            name.parse().map_err(|why| bad(&format_args!("device {shown:?} {why}")))
        });
        let view = match (disk.mount.as_ref().map(PathBuf::from), device.transpose()?) {
            (Some(at), Some(name)) => View::Either(at, name),
            (Some(at), None) => View::Mount(at),
            (None, Some(name)) => View::Device(name),
            (None, None) => return Err(bad(&"neither mount nor device is given")),
        };
        Ok(DataDisk {
            number: disk.number,
            path: PathBuf::from(&disk.path),
            format: disk.format.into(),
            backing: disk.backing.iter().map(PathBuf::from).collect(),
            read_only: disk.read_only,
            io: disk.io.into(),
            view,
            make: disk.make.map(Into::into),
        })
    }
}

impl From<&DataDisk> for DataDiskV1 {
    fn from(disk: &DataDisk) -> Self {
        Self {
            number: disk.number,
            path: disk.path.to_string_lossy().into_owned(),
            format: disk.format.into(),
            backing: disk.backing.iter().map(|path| path.to_string_lossy().into_owned()).collect(),
            read_only: disk.read_only,
            mount: disk.view.mount().map(|at| at.to_string_lossy().into_owned()),
            device: disk.view.device().map(ToString::to_string),
            make: disk.make.map(Into::into),
            io: disk.io.into(),
        }
    }
}
