//! The manifest beside a writable disk: all that a VM needs to boot from it but the layers' bytes.
//!
//! `<disk>.manifest.json` travels with the disk (migration, snapshot, clone), so a VM boots on a
//! host that has the layers and no record of the image. It lies where a platform's user may write,
//! so every field is checked on reading; digests in particular become paths.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use ocivisor_core::error::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use super::place::Place;

/// Most bytes of a manifest.
const MAX_BYTES: u64 = 1 << 20;
/// Version that is written, and the only one there has been.
const VERSION: u32 = 1;
/// Most layers in a manifest; what a kernel takes is another question.
const MAX_LAYERS: usize = 4096;

/// How the writable part of a root filesystem is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DiskBackend {
    /// A sparse raw image with ext4: its size is a hard limit.
    #[serde(rename = "ext4-image")]
    Ext4Image,
    /// A directory of the host: no limit of its own.
    #[serde(rename = "directory")]
    Directory,
}

/// The image a disk was made for, by digest; the name is a label.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskImage {
    /// What the user called it, for messages.
    pub reference: String,
    /// `sha256:…` of the OCI manifest.
    pub manifest_digest: String,
    /// `sha256:…` of the OCI image configuration.
    pub config_digest: String,
}

/// What of the image's configuration makes the first process; OCI image specification, `config`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskConfig {
    /// Arguments that come first.
    #[serde(default)]
    pub entrypoint: Vec<String>,
    /// Arguments after them.
    #[serde(default)]
    pub cmd: Vec<String>,
    /// `NAME=value`.
    #[serde(default)]
    pub env: Vec<String>,
    /// `user[:group]`.
    #[serde(default)]
    pub user: Option<String>,
    /// Absolute path inside.
    #[serde(default)]
    pub working_dir: Option<String>,
    /// Name or number of a signal.
    #[serde(default)]
    pub stop_signal: Option<String>,
}

/// The manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskManifest {
    /// Version of the format, 1.
    pub version: u32,
    /// What a reader must understand to use the disk; an unknown one refuses it. Fields that may
    /// be ignored are added without a feature.
    #[serde(default)]
    pub features: Vec<String>,
    /// Kind of the disk.
    pub backend: DiskBackend,
    /// Size in bytes; of a directory what was asked for.
    pub size_bytes: u64,
    /// The image it was made for.
    pub image: DiskImage,
    /// Diff ids `sha256:…` of the layers, bottom first.
    pub layers: Vec<String>,
    /// How the image says it is run.
    pub config: DiskConfig,
}

impl DiskManifest {
    /// A manifest of the current version, checked.
    ///
    /// # Errors
    /// `Image`: digests, layers or strings are not what they must be.
    pub fn new(
        backend: DiskBackend,
        size_bytes: u64,
        image: DiskImage,
        layers: Vec<String>,
        config: DiskConfig,
    ) -> Result<Self> {
        let features = Vec::new();
        let made = Self { version: VERSION, features, backend, size_bytes, image, layers, config };
        made.check().map_err(|why| Error::new(ErrorKind::Image, format!("image {why}")))?;
        Ok(made)
    }

    /// Where the manifest of a disk is.
    #[must_use]
    pub fn path_of(disk: &Path) -> PathBuf {
        let mut path = OsString::from(disk);
        path.push(SUFFIX);
        path.into()
    }

    /// Reads and checks the manifest of the disk at this path.
    ///
    /// # Errors
    /// `NotFound`: there is none. `Integrity`: it is damaged. `Unsupported`: a newer version made it.
    pub fn read(disk: &Path) -> Result<Self> {
        Self::read_at(&Place::of(disk)?)
    }

    pub(super) fn read_at(place: &Place) -> Result<Self> {
        let path = Self::path_of(&place.path);
        let path = path.display();
        let Some(bytes) = place.read(&place.name_with(SUFFIX), MAX_BYTES)? else {
            let what = format!("disk {} has no manifest {path}", place.path.display());
            return Err(Error::new(ErrorKind::NotFound, what).hint(
                "only disks made by ocivisor can be booted; copy the manifest with the disk",
            ));
        };
        let damaged = |why: String| {
            Error::new(ErrorKind::Integrity, format!("disk manifest {path} is damaged: {why}"))
        };
        let head: Head = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        if head.version != VERSION || !head.features.is_empty() {
            let what = format!(
                "disk manifest {path} is of version {} with features {:?}, known is version \
                 {VERSION} with none",
                head.version, head.features
            );
            return Err(Error::new(ErrorKind::Unsupported, what).hint("upgrade ocivisor"));
        }
        let manifest: Self = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        manifest.check().map_err(damaged)?;
        Ok(manifest)
    }

    /// The bytes on disk.
    pub(super) fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec_pretty(self)
            .map_err(|e| Error::new(ErrorKind::Host, format!("encode disk manifest: {e}")))?;
        bytes.push(b'\n');
        if bytes.len() as u64 > MAX_BYTES {
            let what = format!(
                "configuration of image {} is too large: the disk manifest would have {} bytes of \
                 at most {MAX_BYTES}",
                self.image.reference,
                bytes.len()
            );
            return Err(Error::new(ErrorKind::Image, what));
        }
        Ok(bytes)
    }

    fn check(&self) -> std::result::Result<(), String> {
        let digests = [&self.image.manifest_digest, &self.image.config_digest];
        for digest in digests.into_iter().chain(&self.layers) {
            if !is_sha256(digest) {
                let shown: String = digest.chars().take(100).collect();
                return Err(format!("has {shown:?} where a sha256 digest must be"));
            }
        }
        if self.layers.is_empty() || self.layers.len() > MAX_LAYERS {
            return Err(format!("has {} layers, must be 1 to {MAX_LAYERS}", self.layers.len()));
        }
        let c = &self.config;
        let lists = [&c.entrypoint, &c.cmd, &c.env].into_iter().flatten();
        let mut strings = lists.chain(c.user.iter().chain(&c.working_dir).chain(&c.stop_signal));
        if strings.any(|s| s.contains('\0')) {
            return Err("has a NUL character in its configuration".to_owned());
        }
        Ok(())
    }
}

/// Read first, so that a newer version is told from a damaged file.
#[derive(Deserialize)]
struct Head {
    version: u32,
    #[serde(default)]
    features: Vec<String>,
}

/// After the disk's name.
pub(super) const SUFFIX: &str = ".manifest.json";

fn is_sha256(text: &str) -> bool {
    let hex = text.strip_prefix("sha256:").unwrap_or_default();
    hex.len() == 64 && hex.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(c: char) -> String {
        format!("sha256:{}", c.to_string().repeat(64))
    }

    fn manifest() -> DiskManifest {
        let image = DiskImage {
            reference: "debian:13".into(),
            manifest_digest: digest('a'),
            config_digest: digest('b'),
        };
        let config = DiskConfig { cmd: vec!["bash".into()], ..DiskConfig::default() };
        let layers = vec![digest('c'), digest('d')];
        DiskManifest::new(DiskBackend::Ext4Image, 64 << 20, image, layers, config).unwrap()
    }

    fn read(text: &[u8]) -> Result<DiskManifest> {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("disk.0");
        crate::fs::replace(&DiskManifest::path_of(&disk), text).unwrap();
        DiskManifest::read(&disk)
    }

    #[test]
    fn the_format_of_version_1_stays() {
        let text = format!(
            r#"{{"version":1,"features":[],"backend":"ext4-image","size_bytes":67108864,
               "image":{{"reference":"debian:13","manifest_digest":"{}","config_digest":"{}"}},
               "layers":["{}","{}"],"config":{{"cmd":["bash"]}},"later":"ignored"}}"#,
            digest('a'),
            digest('b'),
            digest('c'),
            digest('d')
        );
        assert_eq!(read(text.as_bytes()).unwrap(), manifest());
    }

    #[test]
    fn what_is_written_is_read_back() {
        assert_eq!(read(&manifest().to_bytes().unwrap()).unwrap(), manifest());
    }

    #[test]
    fn damage_is_told_from_absence_and_from_newer_versions() {
        let good = String::from_utf8(manifest().to_bytes().unwrap()).unwrap();
        let escape = format!("sha256:../../{}", "c".repeat(58));
        for (text, kind) in [
            (String::new(), ErrorKind::Integrity),
            (good[..good.len() / 2].to_owned(), ErrorKind::Integrity),
            (good.replace(&digest('c'), &escape), ErrorKind::Integrity),
            (good.replace(&digest('a'), "latest"), ErrorKind::Integrity),
            (good.replace("bash", "ba\\u0000sh"), ErrorKind::Integrity),
            (good.replace("ext4-image", "zfs"), ErrorKind::Integrity),
            (good.replace("\"version\": 1", "\"version\": 2"), ErrorKind::Unsupported),
            (good.replace("\"features\": []", "\"features\": [\"x\"]"), ErrorKind::Unsupported),
            (" ".repeat((1 << 20) + 1), ErrorKind::Integrity),
        ] {
            let error = read(text.as_bytes()).unwrap_err();
            assert_eq!(error.kind, kind, "{error}");
            assert!(error.message.contains("disk.0.manifest.json"), "{error}");
        }
        let dir = tempfile::tempdir().unwrap();
        let absent = DiskManifest::read(&dir.path().join("disk.0")).unwrap_err();
        assert_eq!(absent.kind, ErrorKind::NotFound);
    }

    #[test]
    fn images_without_layers_or_with_too_much_configuration_are_refused() {
        let DiskManifest { backend, size_bytes, image, config, .. } = manifest();
        let none = DiskManifest::new(backend, size_bytes, image.clone(), vec![], config.clone());
        assert_eq!(none.unwrap_err().kind, ErrorKind::Image);
        let mut large = manifest();
        large.config.env = vec!["x".repeat(1 << 20)];
        assert_eq!(large.to_bytes().unwrap_err().kind, ErrorKind::Image);
    }
}
