//! Making and removing writable disks.
//!
//! Order of making an image, so that a crash never leaves a disk that looks whole: the image under
//! a temporary name, formatted and synced; the manifest; last the image's own name, which must be
//! free. So a disk that has its name is whole, and a manifest without a disk is a leftover that the
//! next attempt overwrites. Removal goes the other way, by the same temporary name. One lock per directory serializes both.
//!
//! The filesystem is made with `upper/` and `work/` inside by mkfs itself, from a skeleton tree:
//! nothing is mounted or attached, so nothing but a temporary file can be left. There is no cache
//! of formatted images: formatting takes 3 ms for 10 GiB, in memory, and most of that is to begin.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ids::IdRange;
use ocivisor_core::units::Bytes;
use rustix::fs::{FileType, Gid, Mode, OFlags, Stat, Uid, fsync, mkdirat};

use super::claim;
use super::ext4;
use super::manifest::{self, DiskBackend, DiskConfig, DiskImage, DiskManifest};
use super::place::Place;
use super::{HostStorage, layer};
use crate::fs::{ensure_dir, io_error};

/// Smallest image: less has hardly room beside the filesystem's own journal of 4 MiB.
pub const MIN_DISK_SIZE: Bytes = Bytes::mib(32);

/// What a new disk shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDisk {
    /// How it is kept.
    pub backend: DiskBackend,
    /// Size; an image's is at least [`MIN_DISK_SIZE`] and rounded up to 4 KiB.
    pub size: Bytes,
    /// The image below it.
    pub image: DiskImage,
    /// Diff ids of the image's layers, bottom first; they must be on this host.
    pub layers: Vec<String>,
    /// From the image's configuration.
    pub config: DiskConfig,
}

impl NewDisk {
    fn manifest(&self) -> Result<DiskManifest> {
        let size = self.size.0.div_ceil(ext4::GRANULE).saturating_mul(ext4::GRANULE);
        if self.backend == DiskBackend::Ext4Image
            && !(MIN_DISK_SIZE.0..=ext4::MAX_SIZE.0).contains(&size)
        {
            let what = format!(
                "disk size is {}, must be {MIN_DISK_SIZE} to {}",
                self.size,
                ext4::MAX_SIZE
            );
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        let Self { backend, image, layers, config, .. } = self.clone();
        DiskManifest::new(backend, size, image, layers, config)
    }
}

impl HostStorage {
    /// Makes a writable disk and its manifest; durable on return. The same request again finds the
    /// disk and succeeds. Both files belong to the directory's owner, mode 0600; the tree of the
    /// directory backend belongs to root.
    ///
    /// # Errors
    /// Nothing was left. `Conflict`: something else has the name. `NotFound`: the directory or a
    /// layer is missing. `Exhausted`: no room. `Invalid`: the size.
    pub fn create_disk(&self, path: &Path, new: &NewDisk) -> Result<DiskManifest> {
        let manifest = new.manifest()?;
        let bytes = manifest.to_bytes()?;
        // All must be there, not only the top one: better said now than at boot.
        let layers = layer::find_all(&*self.layers, &manifest, path)?;
        let root = layer::root_of_top(&layers, path)?;
        let place = Place::of(path)?;
        place.lock()?;
        if exists(&place, &manifest)? {
            return Ok(manifest);
        }
        let temporary = place.temporary();
        let mut published = false;
        let made = (|| {
            match manifest.backend {
                DiskBackend::Ext4Image => self.make_image(&place, manifest.size_bytes, &root)?,
                DiskBackend::Directory => make_directory(&place, &root)?,
            }
            place.replace(&place.name_with(manifest::SUFFIX), &bytes)?;
            place.publish(&temporary)?;
            published = true;
            place.sync()
        })();
        if let Err(error) = made {
            // The first error matters; what cannot be removed now is removed by the next attempt.
            let _ = place.remove(&temporary);
            let _ = place.remove(&place.name_with(manifest::SUFFIX));
            if published {
                let _ = place.remove(&place.name);
            }
            return Err(error);
        }
        Ok(manifest)
    }

    /// The manifest of a disk, all of whose layers are on this host.
    ///
    /// # Errors
    /// `NotFound`: there is no disk, no manifest, or a layer is missing. `Integrity`: the manifest is damaged.
    pub fn inspect_disk(&self, path: &Path) -> Result<DiskManifest> {
        let place = Place::of(path)?;
        let manifest = DiskManifest::read_at(&place)?;
        if place.stat(&place.name)?.is_none() {
            let what = format!("disk {} does not exist", path.display());
            return Err(Error::new(ErrorKind::NotFound, what));
        }
        layer::find_all(&*self.layers, &manifest, path)?;
        Ok(manifest)
    }

    /// Removes a disk, its manifest and what a broken-off [`Self::create_disk`] left; absent is
    /// fine.
    ///
    /// # Errors
    /// It is still there. `Conflict`: a VM uses it, or it has no manifest, so we did not make it.
    pub fn drop_disk(&self, path: &Path) -> Result<()> {
        let place = match Place::of(path) {
            Err(e) if e.kind == ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        place.lock()?;
        let _claim = match place.stat(&place.name)? {
            Some(stat) => {
                if place.stat(&place.name_with(manifest::SUFFIX))?.is_none() {
                    let what = format!("{} is no disk of ours: it has no manifest", path.display());
                    return Err(Error::new(ErrorKind::Conflict, what));
                }
                claim::if_disk(self, &place, stat)?
            }
            None => None,
        };
        // At one stroke: a tree that is half removed must not have a disk's name.
        place.remove(&place.temporary())?;
        place.withdraw(&place.temporary())?;
        place.sync()?;
        for name in [place.temporary(), place.name_with(manifest::SUFFIX)] {
            place.remove(&name)?;
        }
        place.drop_temporary_of(&place.name_with(manifest::SUFFIX))?;
        place.sync()
    }

    fn make_image(&self, place: &Place, size: u64, root: &Stat) -> Result<()> {
        let image = place.create(&place.temporary())?;
        image.set_len(size).map_err(|e| place.error("set size of disk", e))?;
        let skeleton = skeleton(&self.layout.run, root)?;
        ext4::format(&image, Bytes(size), &skeleton, &place.path)?;
        place.hand_over(&image)
    }
}

/// Whether this very disk is there already.
fn exists(place: &Place, want: &DiskManifest) -> Result<bool> {
    let Some(stat) = place.stat(&place.name)? else {
        return Ok(false);
    };
    let taken = |why: &str| {
        let what = format!("disk {} exists already and {why}", place.path.display());
        Err(Error::new(ErrorKind::Conflict, what).hint("remove it or choose another path"))
    };
    let found = match DiskManifest::read_at(place) {
        Err(e) if e.kind == ErrorKind::NotFound => return taken("has no manifest"),
        other => other?,
    };
    let kind = FileType::from_raw_mode(stat.st_mode);
    match want.backend {
        _ if found != *want => taken("was made for another request"),
        DiskBackend::Directory if kind != FileType::Directory => taken("is not a directory"),
        DiskBackend::Ext4Image if kind != FileType::RegularFile => taken("is not a regular file"),
        DiskBackend::Ext4Image if u64::try_from(stat.st_size) != Ok(want.size_bytes) => {
            taken("has another size than its manifest says")
        }
        DiskBackend::Ext4Image | DiskBackend::Directory => Ok(true),
    }
}

/// A tree `upper/`, `work/` to be copied into new filesystems: one per owner and mode, kept in the
/// run directory and made right on every use, so it may be lost or half made at any time. All of it
/// can be read by a tool that is nobody; the run directory above is closed.
fn skeleton(run: &Path, root: &Stat) -> Result<ext4::Skeleton> {
    const READABLE: u32 = 0o005;
    let (uid, gid, mode) = (root.st_uid, root.st_gid, root.st_mode & 0o7777);
    let dir = run.join("skeleton").join(format!("{uid}-{gid}-{mode:04o}"));
    let (upper, work) = (dir.join("upper"), dir.join("work"));
    for (dir, mode) in [(&dir, 0o755), (&work, 0o755), (&upper, mode | READABLE)] {
        ensure_dir(dir, false)?;
        let owner = if *dir == upper { (uid, gid) } else { (0, 0) };
        chown(dir, Some(owner.0), Some(owner.1))
            .and_then(|()| fs::set_permissions(dir, fs::Permissions::from_mode(mode)))
            .map_err(|e| io_error("prepare", dir, &e))?;
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = rustix::fs::open(&dir, flags, Mode::empty());
    let upper_mode = (mode & READABLE != READABLE).then_some(mode);
    Ok(ext4::Skeleton { dir: open.map_err(|e| io_error("open", &dir, &e.into()))?, upper_mode })
}

fn make_directory(place: &Place, root: &Stat) -> Result<()> {
    let temporary = place.temporary();
    place.remove(&temporary)?;
    let failed = |e| place.error("make disk", e);
    mkdirat(&place.dir, &temporary, Mode::RWXU).map_err(failed)?;
    let disk = place.open(&temporary, OFlags::RDONLY, FileType::Directory)?;
    for name in ["upper", "work"] {
        mkdirat(&disk, name, Mode::RWXU).map_err(failed)?;
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let upper = rustix::fs::openat(&disk, "upper", flags, Mode::empty()).map_err(failed)?;
    let owner = (Uid::from_raw(root.st_uid), Gid::from_raw(root.st_gid));
    rustix::fs::fchown(&upper, Some(owner.0), Some(owner.1)).map_err(failed)?;
    rustix::fs::fchmod(&upper, Mode::from_raw_mode(root.st_mode & 0o7777)).map_err(failed)?;
    fsync(&upper).and_then(|()| fsync(&disk)).map_err(failed)
}

/// Ids that a file of a layer may belong to.
pub(super) fn in_range(stat: &Stat) -> bool {
    stat.st_uid < IdRange::LEN && stat.st_gid < IdRange::LEN
}
