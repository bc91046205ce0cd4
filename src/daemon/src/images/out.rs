//! Images leave.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::state::Record;
use ocivisor_datastore as store;
use ocivisor_datastore::{
    Archive, CommitChanges, CommitOptions, DiskExport, DiskFormat, IdMap, ImageName, Limits,
    Omitted, PushProgress, Reference, RegistryReference,
};
use ocivisor_host::fs::{io_error, sync_dir};
use ocivisor_host::storage::Upper;
use ocivisor_schema::image::{CommitOptionsV1, FileV1, PushedV1};
use ocivisor_schema::reply::{ImageInfo, ProgressV1};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, openat, openat2, renameat, unlinkat};

use super::{Images, ours};
use crate::host::Host;
use crate::jobs::Teller;

/// What a root filesystem is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A tarball.
    Tar,
    /// A disk image with ext4 and no partitions, of that size or of what the files need.
    Disk(DiskFormat, Option<u64>),
}

impl Form {
    /// As a caller names it.
    ///
    /// # Errors
    /// `Invalid`.
    pub fn of(name: &str, size: Option<u64>) -> Result<Self> {
        let bad = |what: String| Err(Error::new(ErrorKind::Invalid, what));
        match (name, size) {
            ("tar", None) => Ok(Self::Tar),
            ("tar", Some(_)) => bad("a tarball is as large as its files: no size".into()),
            ("raw", size) => Ok(Self::Disk(DiskFormat::Raw, size)),
            ("qcow2", size) => Ok(Self::Disk(DiskFormat::Qcow2, size)),
            _ => bad(format!("format {name} is none of tar, raw, qcow2")),
        }
    }
}

impl Images {
    /// Sends an image to a registry.
    pub fn push(&self, image: &str, target: &str, tell: &Teller) -> Result<PushedV1> {
        let reference: Reference = image.parse().map_err(|e| ours(&e))?;
        let to: RegistryReference = target.parse().map_err(|e| ours(&e))?;
        // An image that has a name of the same registry may have its blobs there already.
        let mount_from: Vec<String> = match &reference {
            Reference::Name(name) => format!("docker://{name}")
                .parse::<RegistryReference>()
                .ok()
                .filter(|from| from.host() == to.host() && from.repository() != to.repository())
                .map(|from| from.repository().to_owned())
                .into_iter()
                .collect(),
            Reference::Digest(_) => Vec::new(),
        };
        let (mut blobs, mut at) = (0, 0);
        let mut progress = |what: PushProgress| match what {
            PushProgress::Started { blobs: all } => blobs = all,
            PushProgress::Present { .. }
            | PushProgress::Mounted { .. }
            | PushProgress::Sent { .. } => at += 1,
            PushProgress::Sending { from, size, .. } => {
                let progress = ProgressV1 { done: from, total: Some(size) };
                tell.at(&format!("blob {} of {blobs}", at + 1), Some(progress));
            }
            _ => {}
        };
        let pushed = self.store.push(&reference, &to, &self.registries, &mount_from, &mut progress);
        let pushed = pushed.map_err(|e| ours(&e))?;
        let digest = self.store.resolve(&reference).map_err(|e| ours(&e))?.manifest_digest;
        Ok(PushedV1 {
            reference: to.to_string(),
            digest: digest.to_string(),
            sent_bytes: pushed.sent_bytes,
        })
    }

    /// Writes images into an archive at `path`, which an admin chose.
    pub fn save(
        &self,
        images: &[String],
        form: &str,
        path: &Path,
        tell: &Teller,
    ) -> Result<FileV1> {
        let form = match form {
            "oci-archive" => Archive::OciArchive,
            "docker-archive" => Archive::DockerArchive,
            other => {
                let what = format!("format {other} is neither oci-archive nor docker-archive");
                return Err(Error::new(ErrorKind::Invalid, what));
            }
        };
        let parse = |image: &String| image.parse::<Reference>().map_err(|e| ours(&e));
        let images = images.iter().map(parse).collect::<Result<Vec<_>>>()?;
        let (dir, name) = place(path)?;
        let mut progress = |done| tell.at("writing", Some(ProgressV1 { done, total: None }));
        self.store.save(&images, form, &dir, &name, &mut progress).map_err(|e| ours(&e))?;
        let size = std::fs::metadata(path).map_err(|e| io_error("inspect", path, &e))?.len();
        Ok(FileV1 { path: path.display().to_string(), size_bytes: size, notes: Vec::new() })
    }

    /// Writes the merged root filesystem of an image into a file.
    pub fn export_image(
        &self,
        image: &str,
        form: Form,
        path: &Path,
        tell: &Teller,
    ) -> Result<FileV1> {
        let reference: Reference = image.parse().map_err(|e| ours(&e))?;
        self.export(&reference, None, form, path, tell)
    }

    /// Makes an image of what a VM changed. The VM stands still meanwhile, if it runs.
    pub fn commit(
        &self,
        host: &Host,
        vm: &Record,
        name: &ImageName,
        options: &CommitOptionsV1,
        tell: &Teller,
    ) -> Result<ImageInfo> {
        let mut changes = CommitChanges {
            author: options.author.clone(),
            message: options.message.clone(),
            ..CommitChanges::default()
        };
        for line in &options.changes {
            changes.instruction(line).map_err(|e| ours(&e))?;
        }
        let committed = with_upper(host, vm, |upper, base| {
            let mut progress = |done| tell.at("packing", Some(ProgressV1 { done, total: None }));
            let upper = store::Upper { dir: &upper.dir, ids: IdMap::IDENTITY };
            let options = CommitOptions::default();
            self.store
                .commit(&base, upper, &changes, name, &options, &mut progress)
                .map_err(|e| ours(&e))
        })?;
        if let Some(old) = &committed.replaced {
            super::bring::replaced(name, &committed.layer, old);
        }
        for note in notes(&committed.omitted) {
            tracing::warn!(vm = %vm.id(), image = %name, note, "commit");
        }
        self.one(&Reference::Name(name.clone()))
    }

    /// Writes what a VM sees as its root filesystem into a file. It stands still meanwhile.
    pub fn export_vm(
        &self,
        host: &Host,
        vm: &Record,
        form: Form,
        path: &Path,
        tell: &Teller,
    ) -> Result<FileV1> {
        with_upper(host, vm, |upper, base| self.export(&base, Some(upper), form, path, tell))
    }

    fn export(
        &self,
        image: &Reference,
        upper: Option<&Upper>,
        form: Form,
        path: &Path,
        tell: &Teller,
    ) -> Result<FileV1> {
        let upper = upper.map(|upper| store::Upper { dir: &upper.dir, ids: IdMap::IDENTITY });
        match form {
            Form::Tar => self.export_tar(image, upper, path, tell),
            Form::Disk(format, size) => {
                tell.at("making the disk", None);
                let options = DiskExport { format, size, label: None };
                let made = self.store.export_disk(image, upper, path, &options, &Limits::default());
                let made = made.map_err(|e| ours(&e))?;
                Ok(FileV1 {
                    path: path.display().to_string(),
                    size_bytes: made.size,
                    notes: notes(&made.content.omitted),
                })
            }
        }
    }

    fn export_tar(
        &self,
        image: &Reference,
        upper: Option<store::Upper<'_>>,
        path: &Path,
        tell: &Teller,
    ) -> Result<FileV1> {
        let mut progress = |done| tell.at("writing", Some(ProgressV1 { done, total: None }));
        write_file(path, |file| {
            let mut out = std::io::BufWriter::with_capacity(1 << 20, file);
            let limits = Limits::default();
            let exported = self.store.export_tar(image, upper, &mut out, &limits, &mut progress);
            let exported = exported.map_err(|e| ours(&e))?;
            out.flush().map_err(|e| io_error("write", path, &e))?;
            Ok(FileV1 {
                path: path.display().to_string(),
                size_bytes: exported.bytes,
                notes: notes(&exported.omitted),
            })
        })
    }
}

/// Runs `work` on what a VM wrote, and the image below it.
fn with_upper<T>(
    host: &Host,
    vm: &Record,
    work: impl FnOnce(&Upper, Reference) -> Result<T>,
) -> Result<T> {
    let id = vm.id();
    let _still = if vm.state.is_live() { Some(host.cgroups.freeze(id)?) } else { None };
    let upper = host.storage.open_upper(id, &vm.spec.root.path)?;
    let base = upper.manifest.image.manifest_digest.parse().map_err(|e| ours(&e))?;
    work(&upper, base)
}

/// Writes a new file that has its name when it is whole, instead of what had the name.
fn write_file<T>(path: &Path, write: impl FnOnce(&mut File) -> Result<T>) -> Result<T> {
    let (dir, name) = place(path)?;
    let temporary = format!(".{}.part", uuid::Uuid::new_v4());
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = openat(&dir, &temporary, flags, Mode::RUSR | Mode::WUSR);
    let mut file = File::from(made.map_err(|e| io_error("make", path, &e.into()))?);
    let written = write(&mut file).and_then(|written| {
        file.sync_all().map_err(|e| io_error("write", path, &e))?;
        renameat(&dir, &temporary, &dir, &name).map_err(|e| io_error("write", path, &e.into()))?;
        Ok(written)
    });
    if written.is_err() {
        // The first error is the one to report.
        let _ = unlinkat(&dir, &temporary, AtFlags::empty());
    }
    let written = written?;
    if let Some(parent) = path.parent() {
        sync_dir(parent)?;
    }
    Ok(written)
}

/// Directory and name; no part of the way is a link, for it was resolved before.
fn place(path: &Path) -> Result<(File, String)> {
    let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(|| {
        Error::new(ErrorKind::Invalid, format!("path {} names no file", path.display()))
    })?;
    let parent = path.parent().unwrap_or(Path::new("/"));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let dir = openat2(CWD, parent, flags, Mode::empty(), resolve)
        .map_err(|e| io_error("open the directory of", path, &e.into()))?;
    Ok((File::from(dir), name.to_owned()))
}

/// What was left out, in words.
fn notes(omitted: &Omitted) -> Vec<String> {
    let all = [
        (omitted.sockets, "sockets"),
        (omitted.devices, "device nodes"),
        (omitted.xattrs, "extended attributes that no image has"),
        (omitted.capabilities, "file capabilities of a namespace inside the guest"),
    ];
    let some = all.into_iter().filter(|(count, _)| *count > 0);
    some.map(|(count, what)| format!("{count} {what} left out")).collect()
}
