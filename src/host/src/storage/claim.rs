//! One disk, one VM.
//!
//! A disk is claimed by flock on the open file. For an image the loop device keeps that open file,
//! so the lock lives exactly as long as the image is attached, whoever crashes; on NFS it holds
//! across hosts. A directory has nothing that keeps it open: there the lock only covers the moment
//! of mounting, and the record and mount of the other VM show that it is in use. Loop devices made
//! by hand (`mount -o loop`) take no lock, so they are looked for as well.
//!
//! Not covered: a directory disk used by another daemon with a run directory of its own, or mounted
//! by hand.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ids::VmId;
use rustix::fs::{FileType, OFlags, Stat};
use serde::{Deserialize, Serialize};

use super::loopdev::{self, FileId};
use super::manifest::{DiskBackend, DiskManifest};
use super::mounts;
use super::place::{Lock, Place, try_lock};
use super::traffic::DiskTraffic;
use super::{HostStorage, VmPlaces};
use crate::fs::{drop_file, io_error, read_bounded, replace};

/// How long a lock whose holder is not known is waited for: that of a process that just died, or of
/// a child that did not exec yet.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// What a VM has attached; in its run directory, written before the first mount and removed after
/// the last device is gone. Only a hint: it counts as far as the kernel confirms it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Attachment {
    pub(super) path: PathBuf,
    pub(super) disk: FileId,
    pub(super) loop_number: Option<u32>,
    pub(super) id_base: u32,
    pub(super) layers: Vec<String>,
    /// What the loop device had counted before.
    #[serde(default)]
    pub(super) counted: DiskTraffic,
}

impl Attachment {
    /// `None` if there is none or it cannot be read: it is a hint.
    pub(super) fn load(places: &VmPlaces) -> Option<Self> {
        let bytes = read_bounded(&places.record, 1 << 20).ok()??;
        serde_json::from_slice(&bytes).ok()
    }

    pub(super) fn save(&self, places: &VmPlaces) -> Result<()> {
        let bytes = serde_json::to_vec(self)
            .map_err(|e| Error::new(ErrorKind::Host, format!("encode attachment: {e}")))?;
        replace(&places.record, &bytes)
    }

    pub(super) fn forget(places: &VmPlaces) -> Result<()> {
        drop_file(&places.record)
    }

    /// Whether the kernel still has it, or may.
    pub(super) fn holds(&self, places: &VmPlaces) -> bool {
        match self.loop_number {
            Some(number) => loopdev::may_have(number, self.disk),
            None => fs::metadata(&places.disk).is_ok_and(|m| FileId::of(&m) == self.disk),
        }
    }
}

/// An open disk that no other VM uses, for as long as the file (or its loop device) is open.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) file: File,
    pub(super) id: FileId,
}

/// Claims the disk that `manifest` describes.
pub(super) fn disk(storage: &HostStorage, place: &Place, manifest: &DiskManifest) -> Result<Claim> {
    let file = match manifest.backend {
        DiskBackend::Ext4Image => place.open(&place.name, OFlags::RDWR, FileType::RegularFile)?,
        DiskBackend::Directory => place.open(&place.name, OFlags::RDONLY, FileType::Directory)?,
    };
    let meta = file.metadata().map_err(|e| place.error("look at disk", e))?;
    if manifest.backend == DiskBackend::Directory && (meta.uid() != 0 || meta.mode() & 0o077 != 0) {
        // Ids are not shifted on the disk: where others of the host can look, a set-id program that a
        // guest makes is one of the host's root.
        let what = format!("directory disk {} is not root's alone", place.path.display());
        return Err(
            Error::new(ErrorKind::Integrity, what).hint("make it by `ocivisor disk create`")
        );
    }
    if manifest.backend == DiskBackend::Ext4Image && meta.len() < manifest.size_bytes {
        let what = format!(
            "disk {} is cut off: it has {} bytes of {}",
            place.path.display(),
            meta.len(),
            manifest.size_bytes
        );
        return Err(Error::new(ErrorKind::Integrity, what));
    }
    claim(storage, place, file, &meta)
}

/// Claims whatever is there before it is removed; things that no VM can use need no claim.
pub(super) fn if_disk(storage: &HostStorage, place: &Place, stat: Stat) -> Result<Option<Claim>> {
    let kind = FileType::from_raw_mode(stat.st_mode);
    if !matches!(kind, FileType::RegularFile | FileType::Directory) {
        return Ok(None);
    }
    let flags = if kind == FileType::RegularFile { OFlags::RDWR } else { OFlags::RDONLY };
    let file = place.open(&place.name, flags, kind)?;
    let meta = file.metadata().map_err(|e| place.error("look at disk", e))?;
    claim(storage, place, file, &meta).map(Some)
}

/// Whether that very disk is still found by its path, also if its directory was moved.
fn still_there(place: &Place, id: FileId) -> bool {
    fs::symlink_metadata(&place.path).is_ok_and(|meta| FileId::of(&meta) == id)
}

fn claim(storage: &HostStorage, place: &Place, file: File, meta: &fs::Metadata) -> Result<Claim> {
    let id = FileId::of(meta);
    let conflict = |by: &str| {
        let what = format!("disk {} is in use by {by}", place.path.display());
        Err(Error::new(ErrorKind::Conflict, what))
    };
    let mut user = "another process, which holds a lock on it".to_owned();
    let is_image = meta.is_file();
    let free = mounts::until(Instant::now() + PATIENCE, || {
        let lock = try_lock(&file)?;
        let locked = lock != Lock::Held;
        let loops = match is_image {
            true => loopdev::bound_to(&file, id, lock == Lock::Taken)?,
            false => Vec::new(),
        };
        // With many VMs the look through all of them costs more than all the rest.
        if is_image && locked && loops.is_empty() {
            return Ok(true);
        }
        if let Some(vm) = holder(storage, id) {
            user = format!("vm {vm}");
            return Err(std::io::ErrorKind::ResourceBusy.into());
        }
        if let Some(number) = loops.first() {
            user = format!("/dev/loop{number}");
        }
        Ok(locked && loops.is_empty())
    });
    match free {
        // Who removes or moves a disk locks it until its name is gone: what we waited for may have been that.
        Ok(true) if !still_there(place, id) => {
            let what = format!("disk {} was removed or replaced meanwhile", place.path.display());
            Err(Error::new(ErrorKind::NotFound, what))
        }
        Ok(true) => Ok(Claim { file, id }),
        Ok(false) => conflict(&user),
        Err(e) if e.kind() == std::io::ErrorKind::ResourceBusy => conflict(&user),
        Err(e) => Err(io_error("claim disk", &place.path, &e)),
    }
}

/// The VM that has this disk.
fn holder(storage: &HostStorage, disk: FileId) -> Option<VmId> {
    storage.vms_with_run_dir().into_iter().find(|id| {
        let places = storage.places(id);
        Attachment::load(&places).is_some_and(|a| a.disk == disk && a.holds(&places))
    })
}
