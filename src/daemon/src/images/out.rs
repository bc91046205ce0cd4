//! Images leave.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::state::Record;
use ocivisor_datastore as store;
use ocivisor_datastore::{
    Archive, BegunDisk, BegunTar, CommitChanges, CommitOptions, DiskExport, DiskFormat, IdMap,
    ImageName, Limits, Omitted, PushProgress, ReadDisk, ReadTar, Reference, RegistryReference,
};
use ocivisor_host::cgroup::Frozen;
use ocivisor_host::fs::io_error;
use ocivisor_host::storage::{DiskManifest, Upper};
use ocivisor_schema::image::{CommitOptionsV1, FileV1, MadeV1, PushedV1};
use ocivisor_schema::reply::ProgressV1;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};

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

    /// Writes the merged root filesystem of an image into a new file.
    pub fn export_image(
        &self,
        image: &str,
        form: Form,
        path: &Path,
        tell: &Teller,
    ) -> Result<FileV1> {
        let reference: Reference = image.parse().map_err(|e| ours(&e))?;
        self.begin_export(&reference, form, path)?.read(None, tell)?.finish(tell)
    }

    /// Makes an image of what a VM changed. It stands still while that is read.
    pub fn commit(
        self,
        host: &Host,
        vm: &Record,
        name: ImageName,
        options: CommitOptionsV1,
        tell: &Arc<Teller>,
    ) -> Result<Rest> {
        let mut changes = CommitChanges {
            author: options.author,
            message: options.message,
            ..CommitChanges::default()
        };
        for line in &options.changes {
            changes.instruction(line).map_err(|e| ours(&e))?;
        }
        let (base, manifest) = base(vm)?;
        let begun = self.store.begin_commit(&base, &name, &CommitOptions::default());
        let begun = begun.map_err(|e| ours(&e))?;
        let read = {
            let still = Still::open(host, vm, &manifest)?;
            let mut progress = |done| tell.at("packing", Some(ProgressV1 { done, total: None }));
            begun.read(still.files(), &mut progress).map_err(|e| ours(&e))?
        };
        let (vm, tell) = (vm.id().clone(), Arc::clone(tell));
        Ok(Box::new(move || {
            tell.at("adding the layer", None);
            let committed = read.finish(&changes).map_err(|e| ours(&e))?;
            if let Some(old) = &committed.replaced {
                super::bring::replaced(&name, &committed.layer, old);
            }
            for note in notes(&committed.omitted) {
                tracing::warn!(vm = %vm, image = %name, note, "commit");
            }
            self.one(&Reference::Name(name)).map(MadeV1::Image)
        }))
    }

    /// Writes what a VM sees as its root filesystem into a new file. It stands still while that is
    /// read.
    pub fn export_vm(
        &self,
        host: &Host,
        vm: &Record,
        form: Form,
        path: &Path,
        tell: &Arc<Teller>,
    ) -> Result<Rest> {
        let (base, manifest) = base(vm)?;
        let begun = self.begin_export(&base, form, path)?;
        let read = {
            let still = Still::open(host, vm, &manifest)?;
            begun.read(Some(still.files()), tell)?
        };
        let tell = Arc::clone(tell);
        Ok(Box::new(move || read.finish(&tell).map(MadeV1::File)))
    }

    fn begin_export(&self, image: &Reference, form: Form, path: &Path) -> Result<Begun> {
        let limits = Limits::default();
        let file = match form {
            Form::Tar => self.store.begin_tar(image, path, &limits).map(BegunFile::Tar),
            Form::Disk(format, size) => {
                let options = DiskExport { format, size, label: None };
                self.store.begin_disk(image, path, &options, &limits).map(BegunFile::Disk)
            }
        };
        Ok(Begun { file: file.map_err(|e| ours(&e))?, path: path.to_owned() })
    }
}

/// What is left to do of work on a VM once the VM is not needed any more.
pub type Rest = Box<dyn FnOnce() -> Result<MadeV1> + Send>;

/// An export that needs nothing any more but files.
struct Begun {
    file: BegunFile,
    path: PathBuf,
}

enum BegunFile {
    Tar(BegunTar),
    Disk(BegunDisk),
}

/// An export that has all files.
struct Read {
    file: ReadFile,
    path: PathBuf,
}

enum ReadFile {
    Tar(ReadTar),
    Disk(Box<ReadDisk>),
}

impl Begun {
    fn read(self, upper: Option<store::Upper<'_>>, tell: &Teller) -> Result<Read> {
        let file = match self.file {
            BegunFile::Tar(begun) => {
                let mut progress =
                    |done| tell.at("writing", Some(ProgressV1 { done, total: None }));
                begun.read(upper, &mut progress).map(ReadFile::Tar)
            }
            BegunFile::Disk(begun) => {
                tell.at("copying files", None);
                begun.read(upper).map(Box::new).map(ReadFile::Disk)
            }
        };
        Ok(Read { file: file.map_err(|e| ours(&e))?, path: self.path })
    }
}

impl Read {
    fn finish(self, tell: &Teller) -> Result<FileV1> {
        let (size_bytes, omitted) = match self.file {
            ReadFile::Tar(read) => {
                let made = read.finish().map_err(|e| ours(&e))?;
                (made.bytes, made.omitted)
            }
            ReadFile::Disk(read) => {
                tell.at("making the disk", None);
                let made = read.finish().map_err(|e| ours(&e))?;
                (made.size, made.content.omitted)
            }
        };
        Ok(FileV1 { path: self.path.display().to_string(), size_bytes, notes: notes(&omitted) })
    }
}

/// The image below a VM's disk.
fn base(vm: &Record) -> Result<(Reference, DiskManifest)> {
    let manifest = DiskManifest::read(&vm.spec.root.path)?;
    let base = manifest.image.manifest_digest.parse().map_err(|e| ours(&e))?;
    Ok((base, manifest))
}

/// What a VM wrote. It stands still, if it runs, until this is dropped: in this order, so that what
/// is open of its disk is closed first.
struct Still<'a> {
    upper: Upper,
    _frozen: Option<Frozen<'a>>,
}

impl<'a> Still<'a> {
    fn open(host: &'a Host, vm: &Record, manifest: &DiskManifest) -> Result<Self> {
        let id = vm.id();
        let frozen = if vm.state.is_live() { Some(host.cgroups.freeze(id)?) } else { None };
        let upper = host.storage.open_upper(id, &vm.spec.root.path, manifest)?;
        Ok(Self { upper, _frozen: frozen })
    }

    fn files(&self) -> store::Upper<'_> {
        store::Upper { dir: &self.upper.dir, ids: IdMap::IDENTITY }
    }
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
