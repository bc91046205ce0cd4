//! Disks made from images, and what they need of the store.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::units::Bytes;
use ocivisor_datastore as store;
use ocivisor_datastore::{DiffId, Reference};
use ocivisor_host::fs::{drop_file, io_error, read_bounded, replace};
use ocivisor_host::storage::{
    DiskBackend, DiskConfig, DiskImage, DiskManifest, HostStorage, NewDisk,
};
use ocivisor_schema::reply::{DiskBackendV1, DiskInfo};

use super::{Images, ours};

impl Images {
    /// Layers that are below a disk of `disks`, or below one made here that still exists. Those that
    /// do not are forgotten if `forget`, which is for callers alone that have no disk made meanwhile.
    ///
    /// # Errors
    /// What one of them needs is not known: then nothing may be taken away.
    pub(super) fn in_use(&self, disks: &[PathBuf], forget: bool) -> Result<HashSet<DiffId>> {
        let mut in_use = HashSet::new();
        for disk in disks.iter().cloned().chain(self.known_disks(forget)?) {
            match DiskManifest::read(&disk) {
                Ok(manifest) => {
                    in_use.extend(manifest.layers.iter().filter_map(|l| l.parse::<DiffId>().ok()));
                }
                // Only of a disk that no VM has: a guest may run on layers whose manifest was removed.
                Err(error) if error.kind == ErrorKind::NotFound && !disks.contains(&disk) => {}
                Err(error) => return Err(error.context(format!("layers of {}", disk.display()))),
            }
        }
        Ok(in_use)
    }

    /// Disks made here that are still where they were made.
    fn known_disks(&self, forget: bool) -> Result<Vec<PathBuf>> {
        let mut known = Vec::new();
        let entries = fs::read_dir(&self.disks).map_err(|e| io_error("list", &self.disks, &e))?;
        for entry in entries {
            let entry = entry.map_err(|e| io_error("list", &self.disks, &e))?;
            let bytes = read_bounded(&entry.path(), 8192)?.unwrap_or_default();
            let path = PathBuf::from(String::from_utf8_lossy(&bytes).into_owned());
            let gone = |path: &Path| {
                let found = fs::symlink_metadata(path);
                found.is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound)
            };
            // A file system that is not mounted just now shows as a directory that is gone, too:
            // only a disk that is missing from its own, present directory is forgotten.
            if !gone(&path) || path.parent().is_none_or(gone) {
                known.push(path);
            } else if forget {
                drop_file(&entry.path())?;
            }
        }
        Ok(known)
    }

    /// Makes a VM's root disk from an image.
    pub fn create_disk(
        &self,
        storage: &HostStorage,
        image: &str,
        size: u64,
        path: &Path,
        backend: DiskBackendV1,
    ) -> Result<DiskInfo> {
        let _making = self.making.read().unwrap_or_else(PoisonError::into_inner);
        let reference: Reference = image.parse().map_err(|e| ours(&e))?;
        let found = self.store.resolve(&reference).map_err(|e| ours(&e))?;
        // Known before it exists, so that no prune takes its layers in between.
        let entry = self.disks.join(uuid::Uuid::new_v4().to_string());
        replace(&entry, path.as_os_str().as_encoded_bytes())?;
        let config = found.config;
        let user = match (&config.user.user, &config.user.group) {
            (user, None) => principal(user),
            (user, Some(group)) => format!("{}:{}", principal(user), principal(group)),
        };
        let new = NewDisk {
            backend: match backend {
                DiskBackendV1::Ext4 => DiskBackend::Ext4Image,
                DiskBackendV1::Directory => DiskBackend::Directory,
            },
            size: Bytes(size),
            image: DiskImage {
                reference: image.to_owned(),
                manifest_digest: found.manifest_digest.to_string(),
                config_digest: found.config_digest.to_string(),
            },
            layers: found.layers.iter().map(ToString::to_string).collect(),
            config: DiskConfig {
                entrypoint: config.entrypoint,
                cmd: config.cmd,
                env: config.env.iter().map(|(name, value)| format!("{name}={value}")).collect(),
                user: Some(user),
                working_dir: Some(config.working_dir),
                stop_signal: config.stop_signal,
            },
        };
        let made = storage.create_disk(path, &new).inspect_err(|_| {
            // Left over, it names a disk that is not there, and the next prune forgets it.
            let _ = drop_file(&entry);
        })?;
        Ok(DiskInfo {
            path: path.display().to_string(),
            manifest: DiskManifest::path_of(path).display().to_string(),
            image_digest: made.image.manifest_digest,
        })
    }
}

impl Images {
    /// Takes a disk that was brought here, by a move or a copy, for one of this host's: no prune takes its
    /// layers from then on. Asked again it is the same.
    ///
    /// # Errors
    /// `NotFound`: there is no disk, or it has no manifest, or its image or one of its layers is not on this host: then
    /// it is not one of this host's. `Integrity`: its layers are not those of the image that it names.
    pub fn adopt_disk(&self, storage: &HostStorage, path: &Path) -> Result<DiskInfo> {
        let _making = self.making.read().unwrap_or_else(PoisonError::into_inner);
        let manifest = storage.inspect_disk(path)?;
        // It came from elsewhere: who wrote its manifest could know of layers that he never had.
        let image = &manifest.image.manifest_digest;
        let found = image.parse().and_then(|image: Reference| self.store.resolve(&image));
        let found = found.map_err(|e| ours(&e).context(format!("disk {}", path.display())))?;
        if !found.layers.iter().map(ToString::to_string).eq(manifest.layers.iter().cloned()) {
            let what = format!("disk {} names other layers than image {image} has", path.display());
            return Err(Error::new(ErrorKind::Integrity, what));
        }
        if !self.known_disks(false)?.iter().any(|known| known == path) {
            let entry = self.disks.join(uuid::Uuid::new_v4().to_string());
            replace(&entry, path.as_os_str().as_encoded_bytes())?;
        }
        Ok(DiskInfo {
            path: path.display().to_string(),
            manifest: DiskManifest::path_of(path).display().to_string(),
            image_digest: manifest.image.manifest_digest,
        })
    }
}

fn principal(principal: &store::Principal) -> String {
    match principal {
        store::Principal::Id(id) => id.to_string(),
        store::Principal::Name(name) => name.clone(),
    }
}
