//! What a VM wrote on its root disk, opened for reading.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ids::VmId;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use super::idmap::clone_tree;
use super::manifest::{DiskBackend, DiskManifest};
use super::place::Place;
use super::{HostStorage, claim, ext4, loopdev, open_dir};
use crate::fs::io_error;

/// The upper directory of a disk. Its files have the guest's own ids, unshifted. Dropping it gives
/// everything back.
#[derive(Debug)]
pub struct Upper {
    /// The directory.
    pub dir: File,
    /// Of a disk that nothing else had mounted: in this order, the mount goes before its device.
    _mount: Option<OwnedFd>,
    _device: Option<loopdev::LoopDevice>,
    _claim: Option<claim::Claim>,
}

impl HostStorage {
    /// Opens the upper directory of a VM's disk: where the VM has it mounted, or else mounted for this
    /// alone and attached nowhere. The caller sees to it that the VM is not started or ended
    /// meanwhile.
    ///
    /// # Errors
    /// `Conflict`: another VM uses the disk. `Integrity`: it is damaged.
    pub fn open_upper(&self, id: &VmId, disk: &Path, manifest: &DiskManifest) -> Result<Upper> {
        let places = self.places(id);
        if super::mounts::below(&places.disk)?.iter().any(|mount| mount.point == places.disk) {
            let tree = open_dir(&places.disk)?;
            let dir = upper_of(&tree, disk)?;
            return Ok(Upper { dir, _mount: None, _device: None, _claim: None });
        }
        let claim = claim::disk(self, &Place::of(disk)?, manifest)?;
        let (mount, device) = match manifest.backend {
            DiskBackend::Ext4Image => {
                ext4::verify(&claim.file, disk)?;
                let device = loopdev::attach(&claim.file, disk)?;
                (ext4::mount(&device, disk, None)?, Some(device))
            }
            DiskBackend::Directory => {
                (clone_tree(&claim.file).map_err(|e| io_error("mount disk", disk, &e))?, None)
            }
        };
        let dir = upper_of(&mount, disk)?;
        Ok(Upper { dir, _mount: Some(mount), _device: device, _claim: Some(claim) })
    }
}

fn upper_of(tree: impl AsFd, disk: &Path) -> Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let dir = openat2(tree, "upper", flags, Mode::empty(), resolve).map_err(|e| {
        let what = format!("disk {} is damaged inside: upper: {e}", disk.display());
        Error::new(ErrorKind::Integrity, what)
    })?;
    Ok(File::from(dir))
}
