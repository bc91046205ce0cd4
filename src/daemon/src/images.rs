//! Images and disks: the datastore as the API shows it.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::state::Timestamp;
use ocivisor_core::units::Bytes;
use ocivisor_datastore as store;
use ocivisor_datastore::{DiffId, ImageName, Limits, Listed, Reference, Source, Store};
use ocivisor_host::fs::{drop_file, ensure_dir, io_error, read_bounded, replace};
use ocivisor_host::layout::Layout;
use ocivisor_host::storage::{
    DiskBackend, DiskConfig, DiskImage, DiskManifest, HostStorage, Layers, NewDisk,
};
use ocivisor_schema::TimeV1;
use ocivisor_schema::reply::{DiskBackendV1, DiskInfo, ImageInfo};

use crate::paths::{Caller, PathPolicy};

/// The store of this host, and which disks were made from it.
#[derive(Debug)]
pub struct Images {
    store: Arc<Store>,
    disks: PathBuf,
    /// Disks are made under the one side, layers are pruned under the other: a disk half made names
    /// no layers yet.
    making: RwLock<()>,
}

impl Images {
    /// Opens the store.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn open(layout: &Layout) -> Result<Self> {
        let disks = layout.state.join("disks");
        ensure_dir(&disks, true)?;
        let store = Store::open(&layout.datastore()).map_err(|e| ours(&e))?;
        Ok(Self { store: Arc::new(store), disks, making: RwLock::new(()) })
    }

    /// Where layers are, for the storage adapter.
    pub fn layers(&self) -> impl Layers + use<> {
        let store = Arc::clone(&self.store);
        move |diff_id: &str| match diff_id.parse::<DiffId>() {
            Ok(id) => store.layer_path(&id),
            // Manifests are checked when read, so this is none of ours: a path that does not exist.
            Err(_) => PathBuf::from("/nonexistent"),
        }
    }

    /// Brings an image in.
    pub fn import(&self, source: &Source, name: &str) -> Result<ImageInfo> {
        let name: ImageName = name.parse().map_err(|e| ours(&e))?;
        let mut progress = |at: store::Progress| tracing::debug!(image = %name, ?at, "import");
        let imported = self.store.import(source, &name, &Limits::default(), &mut progress);
        let image = imported.map_err(|e| ours(&e))?;
        tracing::info!(image = %name, digest = %image.manifest_digest, "image imported");
        let mut all = self.store.list().map_err(|e| ours(&e))?;
        let listed = all.extract_if(.., |l| l.manifest_digest == image.manifest_digest).next();
        let missing =
            || Error::new(ErrorKind::NotFound, format!("image {name} was removed meanwhile"));
        self.info(name.as_str(), &listed.ok_or_else(missing)?)
    }

    /// All images, a line per name.
    pub fn list(&self) -> Result<Vec<ImageInfo>> {
        let mut infos = Vec::new();
        for listed in self.store.list().map_err(|e| ours(&e))? {
            if listed.names.is_empty() {
                infos.push(self.info("", &listed)?);
            }
            for name in &listed.names {
                infos.push(self.info(name.as_str(), &listed)?);
            }
        }
        infos.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(infos)
    }

    fn info(&self, name: &str, listed: &Listed) -> Result<ImageInfo> {
        let reference = Reference::Digest(listed.manifest_digest);
        let image = self.store.resolve(&reference).map_err(|e| ours(&e))?;
        let since = listed.imported.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let imported = Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        Ok(ImageInfo {
            name: name.to_owned(),
            digest: listed.manifest_digest.to_string(),
            platform: format!("{}/{}", image.config.os, image.config.architecture),
            layers: u32::try_from(listed.layers.len()).unwrap_or(u32::MAX),
            size_bytes: listed.size,
            imported: TimeV1(imported),
        })
    }

    /// Forgets a name, then gives back what nothing needs: no name, no disk of `disks`, and no disk
    /// made here that still exists.
    pub fn remove(&self, name: &str, disks: &[PathBuf]) -> Result<bool> {
        let parsed: ImageName = name.parse().map_err(|e| ours(&e))?;
        let removed = self.store.remove(&parsed).map_err(|e| ours(&e))?;
        if !removed {
            let what = format!("no image {name}");
            return Err(
                Error::new(ErrorKind::NotFound, what).hint("ocivisor image list shows them")
            );
        }
        let _pruning = self.making.write().unwrap_or_else(PoisonError::into_inner);
        let mut in_use = HashSet::new();
        for disk in disks.iter().cloned().chain(self.known_disks()?) {
            match DiskManifest::read(&disk) {
                Ok(manifest) => {
                    in_use.extend(manifest.layers.iter().filter_map(|l| l.parse::<DiffId>().ok()));
                }
                // Only of a disk that no VM has: a guest may run on layers whose manifest was removed.
                Err(error) if error.kind == ErrorKind::NotFound && !disks.contains(&disk) => {}
                Err(error) => {
                    // What it needs is unknown: keep everything rather than break it.
                    tracing::warn!(disk = %disk.display(), %error, "nothing is pruned");
                    return Ok(true);
                }
            }
        }
        match self.store.prune(&in_use) {
            Ok(pruned) => tracing::info!(?pruned, "pruned"),
            Err(store::Error::Busy { .. }) => tracing::info!("an import runs: pruned another time"),
            Err(error) => return Err(ours(&error)),
        }
        Ok(true)
    }

    /// Disks made here that are still where they were made; forgets the others.
    fn known_disks(&self) -> Result<Vec<PathBuf>> {
        let mut known = Vec::new();
        let entries = fs::read_dir(&self.disks).map_err(|e| io_error("list", &self.disks, &e))?;
        for entry in entries.filter_map(std::io::Result::ok) {
            let bytes = read_bounded(&entry.path(), 8192)?.unwrap_or_default();
            let path = PathBuf::from(String::from_utf8_lossy(&bytes).into_owned());
            let gone = |path: &Path| {
                let found = fs::symlink_metadata(path);
                found.is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound)
            };
            // A file system that is not mounted just now shows as a directory that is gone, too:
            // only a disk that is missing from its own, present directory is forgotten.
            if gone(&path) && !path.parent().is_none_or(gone) {
                drop_file(&entry.path())?;
            } else {
                known.push(path);
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

    /// What is wrong with the store, a line each.
    pub fn fsck(&self) -> Result<Vec<String>> {
        let found = self.store.fsck().map_err(|e| ours(&e))?;
        Ok(found.iter().map(ToString::to_string).collect())
    }
}

/// A source as a caller wrote it, with its path resolved.
///
/// # Errors
/// It is none, or the caller may not name it. Operators say what it is, so that nothing is opened
/// to find out.
pub fn source(text: &str, caller: Caller, paths: &PathPolicy) -> Result<Source> {
    let schemes = ["oci:", "oci-archive:", "docker-archive:", "rootfs:"];
    if caller == Caller::Operator && !schemes.iter().any(|scheme| text.starts_with(scheme)) {
        let what = format!("image source {text}: operators must say what it is");
        let hint = "put oci:, oci-archive:, docker-archive: or rootfs: in front";
        return Err(Error::new(ErrorKind::Permission, what).hint(hint));
    }
    let mut source: Source = text.parse().map_err(|e| ours(&e))?;
    let path = match &mut source {
        Source::OciLayout { dir, .. } => dir,
        Source::OciArchive { file, .. }
        | Source::DockerArchive { file, .. }
        | Source::RootfsTar { file } => file,
    };
    *path = paths.resolve(caller, path)?;
    Ok(source)
}

fn principal(principal: &store::Principal) -> String {
    match principal {
        store::Principal::Id(id) => id.to_string(),
        store::Principal::Name(name) => name.clone(),
    }
}

/// The store's error as ours.
fn ours(error: &store::Error) -> Error {
    let kind = match error {
        store::Error::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
            ErrorKind::Exhausted
        }
        store::Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            ErrorKind::NotFound
        }
        store::Error::Io { .. } => ErrorKind::Host,
        store::Error::NotFound { .. } => ErrorKind::NotFound,
        store::Error::Busy { .. } => ErrorKind::Conflict,
        store::Error::Damaged { .. } => ErrorKind::Integrity,
        store::Error::Format { .. } | store::Error::ReadOnly { .. } => ErrorKind::Unsupported,
        store::Error::BadDigest { .. }
        | store::Error::BadName { .. }
        | store::Error::NotAStore { .. } => ErrorKind::Invalid,
        _ => ErrorKind::Image,
    };
    let source = std::error::Error::source(error);
    match source {
        Some(source) => Error::new(kind, format!("{error}: {source}")),
        None => Error::new(kind, error),
    }
}
