//! Layers: directories that somebody else keeps, found by diff id, shared by all VMs.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use ocivisor_core::error::{Error, ErrorKind, Result};
use rustix::fs::{Mode, OFlags, Stat, fstat};

use super::disk::in_range;
use super::manifest::DiskManifest;
use super::overlay::MAX_LAYERS;
use crate::fs::io_error;

/// Knows where layers are; implemented by every function of that shape.
pub trait Layers: Send + Sync {
    /// The directory with the files of the layer `diff_id` (`sha256:…`), whether it is there or
    /// not: unshifted ids, whiteouts and opaque directories as overlayfs wants them, never changed.
    fn layer_path(&self, diff_id: &str) -> PathBuf;
}

impl<F: Fn(&str) -> PathBuf + Send + Sync> Layers for F {
    fn layer_path(&self, diff_id: &str) -> PathBuf {
        self(diff_id)
    }
}

/// The layers' directories, the topmost first, all of which are there.
///
/// Of a layer that occurs twice only the upper one is taken: overlayfs refuses the same directory
/// twice, and the lower one is hidden by the upper one in all it says. (Docker's empty layer
/// occurs often.)
pub(super) fn find_all(
    layers: &dyn Layers,
    manifest: &DiskManifest,
    disk: &Path,
) -> Result<Vec<PathBuf>> {
    let mut seen = HashSet::new();
    let ids: Vec<&String> = manifest.layers.iter().rev().filter(|id| seen.insert(*id)).collect();
    if ids.len() > MAX_LAYERS {
        let what = format!(
            "image {} of disk {} has {} layers, the kernel's overlay takes {MAX_LAYERS}",
            manifest.image.reference,
            disk.display(),
            ids.len()
        );
        return Err(Error::new(ErrorKind::Unsupported, what).hint("squash the image"));
    }
    ids.into_iter().map(|id| find(layers, id, manifest, disk)).collect()
}

fn find(layers: &dyn Layers, id: &str, manifest: &DiskManifest, disk: &Path) -> Result<PathBuf> {
    let path = layers.layer_path(id);
    match open(&path) {
        Ok(_) => Ok(path),
        Err(e) if e.kind == ErrorKind::NotFound => {
            let image = &manifest.image.reference;
            let what = format!(
                "layer {id} of image {image}, below disk {}, is not on this host",
                disk.display()
            );
            Err(Error::new(ErrorKind::NotFound, what).hint(format!("import image {image} again")))
        }
        Err(e) => Err(e),
    }
}

/// Opens a layer's directory.
pub(super) fn open(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .map_err(|e| io_error("open layer", path, &e.into()))
}

/// Owner and mode of `/` in the topmost layer, which the guest's `/` shall have.
pub(super) fn root_of_top(layers: &[PathBuf], disk: &Path) -> Result<Stat> {
    let none = || {
        let what = format!("disk {} has no layers", disk.display());
        Error::new(ErrorKind::Image, what)
    };
    let top = open(layers.first().ok_or_else(none)?)?;
    let stat = fstat(top).map_err(|e| io_error("look at top layer of disk", disk, &e.into()))?;
    if !in_range(&stat) {
        let what = format!(
            "top layer of disk {} belongs to {}:{}, beyond the ids a guest has",
            disk.display(),
            stat.st_uid,
            stat.st_gid
        );
        return Err(Error::new(ErrorKind::Integrity, what));
    }
    Ok(stat)
}
