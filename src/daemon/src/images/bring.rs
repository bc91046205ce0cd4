//! Images come in.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_datastore as store;
use ocivisor_datastore::{
    Cancel, DiskFormat, ImageName, Limits, Reference, RegistryReference, Source,
};
use ocivisor_host::command;
use ocivisor_host::fs::{drop_dir_all, ensure_dir};
use ocivisor_schema::image::{ImportOptionsV1, LackingV1, SourceStatV1};
use ocivisor_schema::reply::{ImageInfo, ProgressV1};

use super::{Images, named, ours};
use crate::caller::Caller;
use crate::jobs::Teller;
use crate::paths::PathPolicy;

/// How long a build may take.
const BUILD: Duration = Duration::from_secs(3600);
/// Capabilities that no build needs.
const UNNEEDED: [&str; 5] =
    ["CAP_KILL", "CAP_SYS_CHROOT", "CAP_MKNOD", "CAP_NET_RAW", "CAP_AUDIT_WRITE"];
/// Its files: either name.
const BUILD_FILES: [&str; 2] = ["Containerfile", "Dockerfile"];

impl Images {
    /// Brings an image in; without a name it gets that of its reference.
    ///
    /// # Errors
    /// `Invalid`: no name, and none can be made of the source. `Image`: what the source is at fault
    /// for.
    pub fn import(&self, source: &Source, name: &ImageName, tell: &Teller) -> Result<ImageInfo> {
        let source = source.clone().with_registries(&self.registries);
        let mut layers = 0;
        let mut progress = |at: store::Progress| match at {
            store::Progress::Started { layers: all } => {
                layers = all;
                tell.at(&format!("{all} layers"), None);
            }
            store::Progress::Layer { layer, done, total } => {
                let progress = ProgressV1 { done, total: Some(total) };
                tell.at(&format!("layer {layer} of {layers}"), Some(progress));
            }
            // Before anything is known of layers: a file from a web server.
            store::Progress::Fetched { done, total } if layers == 0 => {
                let total = (total > 0).then_some(total);
                tell.at("fetching", Some(ProgressV1 { done, total }));
            }
            store::Progress::LayerReplaced { diff_id, old, .. } => replaced(name, &diff_id, &old),
            _ => {}
        };
        let imported = self.store.import(&source, name, &Limits::default(), &mut progress);
        let image = imported.map_err(|e| ours(&e))?;
        tracing::info!(image = %name, digest = %image.manifest_digest, "image imported");
        self.one(&Reference::Name(name.clone()))
    }

    /// What a registry has, without bringing it in.
    ///
    /// # Errors
    /// `Invalid`: no source at a registry. `Image`: the registry has none, or is at fault.
    pub fn stat(&self, source: &str, cancel: &Cancel) -> Result<SourceStatV1> {
        let reference: RegistryReference = source.parse().map_err(|e| ours(&e))?;
        let found = self.asked.inspect(&reference, &Limits::default(), cancel);
        let found = found.map_err(|e| ours(&e))?;
        let config = &found.config;
        Ok(SourceStatV1 {
            reference: format!(
                "docker://{}/{}@{}",
                reference.host().as_str(),
                reference.repository(),
                found.manifest_digest
            ),
            digest: found.manifest_digest.to_string(),
            platform: format!("{}/{}", config.os, config.architecture),
            layers: u32::try_from(found.layers.len()).unwrap_or(u32::MAX),
            size_bytes: found.size,
        })
    }

    /// Which layers of an image in a directory an import would read.
    ///
    /// # Errors
    /// `Invalid`: the source is no such directory. `Image`: what is in it is at fault.
    pub fn lacking(&self, source: &Source) -> Result<LackingV1> {
        let found = self.store.lacking(source, &Limits::default()).map_err(|e| ours(&e))?;
        Ok(LackingV1 {
            digest: found.manifest.to_string(),
            blobs: found.blobs.iter().map(ToString::to_string).collect(),
        })
    }

    /// Builds an image by buildah and takes it over.
    ///
    /// # Errors
    /// `Unsupported`: there is no buildah. `NotFound`: there is nothing to build. `Image`: the build
    /// fails, with its last line.
    pub fn build(&self, dir: &Path, name: &ImageName, tell: &Teller) -> Result<ImageInfo> {
        let file = BUILD_FILES.iter().map(|file| dir.join(file)).find(|file| file.is_file());
        let file = file.ok_or_else(|| {
            let what = format!("build {}: no Containerfile or Dockerfile in it", dir.display());
            Error::new(ErrorKind::NotFound, what)
        })?;
        let work = self.builds.join(uuid::Uuid::new_v4().to_string());
        ensure_dir(&work, false)?;
        let built = self.build_in(&work, dir, &file, name, tell);
        // The next start of the daemon clears what cannot be removed now.
        let cleared = drop_dir_all(&work);
        let image = built?;
        cleared.map(|()| image)
    }

    fn build_in(
        &self,
        work: &Path,
        dir: &Path,
        file: &Path,
        name: &ImageName,
        tell: &Teller,
    ) -> Result<ImageInfo> {
        let text = |path: PathBuf| path.display().to_string();
        let (root, run) = (text(work.join("root")), text(work.join("run")));
        let layout = work.join("image");
        // Nothing of it lies where the host's own buildah keeps its images.
        let own = ["buildah", "--root", &root, "--runroot", &run, "--storage-driver", "vfs"];
        let (file, dir) = (text(file.to_owned()), text(dir.to_owned()));
        // Its processes share the host's processes and files by root's hand: no rights that reach them.
        let without = UNNEEDED.map(|capability| format!("--cap-drop={capability}"));
        let policy = self
            .policy
            .is_file()
            .then(|| format!("--signature-policy={}", text(self.policy.clone())));
        let mut build = vec!["build", "--isolation", "chroot", "--file", &file, "--tag", "built"];
        build.extend(without.iter().chain(&policy).map(String::as_str));
        build.push(&dir);
        let target = format!("oci:{}:built", layout.display());
        let failed = |error: Error| match error.kind {
            ErrorKind::Unsupported => error.hint("install buildah, or build the image elsewhere"),
            ErrorKind::Cancelled => error,
            ErrorKind::Host => Error::new(ErrorKind::Image, format!("build {dir}: {error}")),
            _ => error.context(format!("build {dir}")),
        };
        let unwanted = || tell.cancel().is_cancelled();
        tell.at("building", None);
        command::run_unless(&[&own[..], &build].concat(), BUILD, &unwanted).map_err(failed)?;
        tell.at("taking over", None);
        let push = ["push", "built", &target];
        command::run_unless(&[&own[..], &push].concat(), BUILD, &unwanted).map_err(failed)?;
        self.import(&Source::OciLayout { dir: layout, tag: None }, name, tell)
    }
}

/// Says that a layer was not what its name says.
pub(super) fn replaced(image: &ImageName, layer: &store::DiffId, old: &str) {
    tracing::warn!(
        %image, %layer, set_aside = old,
        "files of a layer that was here were not those of its tar, and are replaced; \
         guests keep the old ones until they start again"
    );
}

/// A name as a caller wrote it.
///
/// # Errors
/// `Invalid`.
pub fn name(text: &str) -> Result<ImageName> {
    text.parse().map_err(|e| ours(&e))
}

/// A directory with an image as a caller wrote it, with its path resolved.
///
/// # Errors
/// It is none, or the caller may not name it.
pub fn layout(text: &str, caller: Caller, paths: &PathPolicy) -> Result<Source> {
    match named::source(text, caller, paths)? {
        Source::OciLayout { dir, tag } => {
            Ok(Source::OciLayout { dir: paths.resolve(caller, &dir)?, tag })
        }
        _ => Err(Error::new(ErrorKind::Invalid, format!("{text} is not oci: and a directory"))),
    }
}

/// A source as a caller wrote it, with its path resolved, and the name that the image gets.
///
/// # Errors
/// It is none, or the caller may not name it.
pub fn source(
    images: &Images,
    text: &str,
    name: Option<&str>,
    options: &ImportOptionsV1,
    caller: Caller,
    paths: &PathPolicy,
) -> Result<(Source, ImageName)> {
    let mut source = match caller {
        Caller::Admin(_) => images.store.source(text).map_err(|e| ours(&e))?,
        Caller::Operator(_) => named::source(text, caller, paths)?,
    };
    if let Source::DiskImage { options: disk, .. } = &mut source {
        disk.partition = options.partition.or(disk.partition);
        disk.keep_boot |= options.keep_boot;
        disk.format = match options.format.as_deref() {
            None => disk.format,
            Some("raw") => Some(DiskFormat::Raw),
            Some("qcow2") => Some(DiskFormat::Qcow2),
            Some(other) => {
                let what = format!("format {other} is neither raw nor qcow2");
                return Err(Error::new(ErrorKind::Invalid, what));
            }
        };
    } else if options.format.is_some() || options.partition.is_some() || options.keep_boot {
        let what = format!("{text} is no disk image: format, partition and keep_boot mean nothing");
        return Err(Error::new(ErrorKind::Invalid, what));
    }
    let digest = options.digest.as_deref().map(str::parse).transpose().map_err(|e| ours(&e))?;
    match (&mut source, digest) {
        (Source::HttpsTar(https), Some(digest)) => https.digest = Some(digest),
        (Source::HttpsTar(https), None) => {
            let what = format!("image source {}: what it must be is not known", https.url);
            let hint = "state the digest of the file, as sha256:HEX";
            return Err(Error::new(ErrorKind::Invalid, what).hint(hint));
        }
        (_, Some(_)) => {
            let what = format!("{text} is no file of a web server: a digest means nothing");
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        (_, None) => {}
    }
    let path = match &mut source {
        Source::Registry(_) | Source::HttpsTar(_) => None,
        Source::OciLayout { dir, .. } => Some(dir),
        Source::OciArchive { file, .. }
        | Source::DockerArchive { file, .. }
        | Source::DiskImage { file, .. }
        | Source::RootfsTar { file } => Some(file),
    };
    if let Some(path) = path {
        *path = paths.resolve(caller, path)?;
    }
    let own = match &source {
        Source::Registry(source) => source.reference.image_name(),
        _ => None,
    };
    let name = match name {
        Some(given) => self::name(given)?,
        None => own.ok_or_else(|| {
            let what = format!("{text}: an image from there has no name of its own");
            Error::new(ErrorKind::Invalid, what).hint("give it one")
        })?,
    };
    Ok((source, name))
}
