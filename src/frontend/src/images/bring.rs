//! `cp`: what a user named becomes an image of the datastore.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_datastore::{
    Cancel, DiskFormat, DiskOptions, Error as StoreError, HttpsUrl, Image, Limit, Limits, Progress,
    Refusal, RegistrySource, Source,
};
use ocivisor_opennebula::ds::{ImageType, Place};

use super::size::mib;
use super::{Driver, build, data, tell};
use crate::depot::{Container, Content, DataDisk, Draft, ImageLock, ImageRecord};
use crate::fault::{clip, failed, from_store};

impl Driver<'_> {
    /// `SOURCE FORMAT`.
    pub(super) fn cp(&mut self) -> Result<String> {
        let place = Place::parse(&self.call.image.path)?;
        let depot = self.open()?;
        let held = depot.lock(self.call.id)?;
        match self.call.image.kind {
            ImageType::Os => {
                let (image, origin) = self.container(&held, place)?;
                self.tell(&held, &image, origin.as_deref());
                Ok(format!("ocivisor:{}@{} oci", self.call.id, image.manifest_digest))
            }
            ImageType::Cdrom | ImageType::Datablock | ImageType::File => self.data(&held, place),
            ImageType::Other(number) => {
                let text = format!("an image of TYPE {number} cannot be brought in from a PATH");
                Err(Error::new(ErrorKind::Unsupported, text))
            }
        }
    }

    /// A container image, on record.
    fn container(&mut self, held: &ImageLock, place: Place) -> Result<(Image, Option<String>)> {
        let checksums = !self.call.image.checksums.is_empty();
        let (image, origin) = match place {
            Place::Registry { reference, ignored, .. } => {
                self.ignored(&ignored);
                if checksums {
                    self.log("MD5 and SHA1 are of files and say nothing of an image in a registry");
                }
                let reference = reference.parse().map_err(|e| from_store(&e))?;
                let source = RegistrySource { reference, registries: self.registries() };
                let place = format!(
                    "docker://{}/{}",
                    source.reference.host(),
                    source.reference.repository()
                );
                let image = self.import(&Source::Registry(source))?;
                let origin = format!("{place}@{}", image.manifest_digest);
                (image, Some(origin))
            }
            Place::Web { url } => {
                let draft = self.download(held, &url)?;
                let path = self.depot()?.draft_path(&draft);
                let shown = self.call.image.path.clone();
                let image = self.file(held, draft.file(), &path, &shown)?;
                (image, Some(url.split('?').next().unwrap_or(&url).to_owned()))
            }
            Place::Dockerfile { path, ignored, .. } => {
                self.ignored(&ignored);
                let context = self.context(&path)?;
                (self.build(held, &context)?, None)
            }
            Place::Local { scheme, path } => {
                let (path, tag) = self.resolve(&path, scheme.is_some())?;
                (self.local(held, scheme, &path, tag)?, None)
            }
        };
        let container = Container {
            manifest: Some(image.manifest_digest),
            origin: origin.clone(),
            saved: None,
        };
        let record = ImageRecord::new(self.call.id, Content::Container(container));
        self.depot()?.write(held, &record)?;
        Ok((image, origin))
    }

    /// What lies on the front-end, may be read, and has no link in its path.
    fn local(
        &mut self,
        held: &ImageLock,
        scheme: Option<&str>,
        path: &Path,
        tag: Option<String>,
    ) -> Result<Image> {
        let shown = path.display().to_string();
        let (dir, file) = (path.to_owned(), path.to_owned());
        let disk = |format| {
            let partition = tag.as_deref().map(str::parse).transpose().map_err(|_| {
                Error::new(ErrorKind::Invalid, "the partition after the last ':' is no number")
            })?;
            let options = DiskOptions { format, partition, ..DiskOptions::default() };
            Ok::<_, Error>(Source::DiskImage { file: path.to_owned(), options })
        };
        let source = match scheme {
            None if path.is_dir() && build::has_dockerfile(path) => {
                let context = self.context(path)?;
                return self.build(held, &context);
            }
            None if path.is_dir() => {
                check_layout(path)?;
                Source::OciLayout { dir, tag }
            }
            None => {
                let opened = open(path)?;
                return self.file(held, &opened, path, &shown);
            }
            Some("oci") => Source::OciLayout { dir, tag },
            Some("oci-archive") => Source::OciArchive { file, tag },
            Some("docker-archive") => Source::DockerArchive { file, tag },
            Some("rootfs") => Source::RootfsTar { file },
            Some("raw") => disk(Some(DiskFormat::Raw))?,
            Some("qcow2") => disk(Some(DiskFormat::Qcow2))?,
            Some(_) => disk(None)?,
        };
        if !path.is_dir() {
            data::check(&open(path)?, &self.call.image.checksums, &shown)?;
        }
        self.import(&source).map_err(|error| match scheme {
            Some(scheme) if error.hint.is_none() && error.message.starts_with("cannot import ") => {
                error.hint(format!("without {scheme}: the content says what it is"))
            }
            _ => error,
        })
    }

    /// A file whose content says what it is.
    fn file(&mut self, held: &ImageLock, file: &File, path: &Path, shown: &str) -> Result<Image> {
        data::check(file, &self.call.image.checksums, shown)?;
        let detected = Source::detect(path);
        let source = match detected {
            Ok(source) => source,
            Err(unknown) => {
                // It may be a disk that is compressed as a whole.
                let Some(draft) = self.expanded(held, file, shown)? else {
                    return Err(self.unknown(file, &unknown, path, shown));
                };
                let inside = self.depot()?.draft_path(&draft);
                let source = Source::detect(&inside)
                    .map_err(|e| self.unknown(draft.file(), &e, &inside, shown))?;
                return self.import(&source).map_err(|e| self.rename(e, &inside, shown));
            }
        };
        self.import(&source).map_err(|e| self.rename(e, path, shown))
    }

    /// Errors name what the user named.
    fn rename(&self, error: Error, path: &Path, shown: &str) -> Error {
        let message = error.message.replace(&path.display().to_string(), &clip(shown));
        Error { message, ..error }
    }

    /// A file that is nothing that an image is made of.
    fn unknown(&self, file: &File, why: &StoreError, path: &Path, shown: &str) -> Error {
        let mut head = [0; 512];
        let n = data::read_at(file, &mut head).unwrap_or(0);
        if let Err(known) = data::check_known(&head[..n], shown) {
            return known;
        }
        let error = self.rename(from_store(why), path, shown);
        if error.kind == ErrorKind::Image {
            return error.hint(
                "images are archives, tars of root file systems and disks with one; data has the type DATABLOCK",
            );
        }
        error
    }

    fn expanded(&self, held: &ImageLock, file: &File, shown: &str) -> Result<Option<Draft>> {
        if self.call.datastore.no_decompress {
            return Ok(None);
        }
        let depot = self.depot()?;
        let room = match self.call.image.kind {
            // Only what becomes of it counts, and is seen then.
            ImageType::Os => self.free()?,
            _ => self.room()?,
        };
        let limits = Limits { image_bytes: room.bytes.saturating_add(1), ..Limits::default() };
        let again = file.try_clone().map_err(|e| failed("open", Path::new(shown), &e))?;
        std::io::Seek::rewind(&mut &again).map_err(|e| failed("read", Path::new(shown), &e))?;
        let Some(mut plain) =
            depot.store().expanded(again, shown, &limits).map_err(|e| from_store(&e))?
        else {
            return Ok(None);
        };
        let draft = depot.scratch(held)?;
        data::copy(&mut plain, draft.file(), room, shown)?;
        Ok(Some(draft))
    }

    /// Brings it in under the image's name. The image is refused as soon as it is known to be too large.
    pub(super) fn import(&self, source: &Source) -> Result<Image> {
        let depot = self.depot()?;
        let room = self.room()?;
        let cancel = Cancel::new();
        let mut layers = HashMap::new();
        let mut too_large = false;
        let store = depot.store().cancelled_by(&cancel).map_err(|e| from_store(&e))?;
        let name = crate::Depot::name(self.call.id);
        let imported = store.import(source, &name, &Limits::default(), &mut |at| {
            let came = match at {
                Progress::Fetched { total, .. } => total,
                Progress::Layer { layer, done, .. } => {
                    layers.insert(layer, done);
                    layers.values().sum()
                }
                _ => 0,
            };
            if came > room.bytes {
                too_large = true;
                cancel.cancel();
            }
        });
        match imported {
            Err(_) if too_large => Err(room.exceeded()),
            // What is there already is not told above, and counts all the same.
            Ok(image) if room.size.is_some() && image.size > room.bytes => {
                depot.store().remove(&name).map_err(|e| from_store(&e))?;
                Err(room.exceeded())
            }
            other => other.map_err(|e| from_store(&e)),
        }
    }

    /// A file of a web server, whole, as a draft.
    pub(super) fn download(&self, held: &ImageLock, url: &str) -> Result<Draft> {
        let registries = self.registries();
        let address = HttpsUrl::of(url, &registries).map_err(|e| from_store(&e))?;
        let draft = self.depot()?.scratch(held)?;
        let began = Instant::now();
        let bandwidth = self.call.datastore.bandwidth;
        let told = &mut |came: u64| {
            // Not before so many bytes may be here.
            let due = bandwidth
                .map_or(Duration::ZERO, |b| Duration::from_millis(came.saturating_mul(1000) / b));
            while let Some(left) = due.checked_sub(began.elapsed()).filter(|left| !left.is_zero()) {
                std::thread::park_timeout(left);
            }
        };
        let room = match self.call.image.kind {
            ImageType::Os => self.free()?,
            _ => self.room()?,
        };
        let came = registries.download(&address, draft.file(), room.bytes, &Cancel::new(), told);
        came.map_err(|e| match e.refusal() {
            Some(Refusal::Limit { limit: Limit::ImageBytes, .. }) => room.exceeded(),
            _ => from_store(&e),
        })?;
        Ok(draft)
    }

    /// A disk that is kept as a file.
    fn data(&mut self, held: &ImageLock, place: Place) -> Result<String> {
        let shown = self.call.image.path.clone();
        let (source, origin) = match place {
            Place::Web { url } => {
                let draft = self.download(held, &url)?;
                let file = draft.file().try_clone();
                let file = file.map_err(|e| failed("open", Path::new(&shown), &e))?;
                (file, url.split('?').next().unwrap_or(&url).to_owned())
            }
            Place::Local { scheme: None | Some("disk" | "raw" | "qcow2"), path } => {
                let (path, _) = self.resolve(&path, false)?;
                if path.is_dir() {
                    let text = format!("{shown} is a directory, and a disk for data is a file");
                    let hint = "container images, also those that are built, have the type OS";
                    return Err(Error::new(ErrorKind::Invalid, text).hint(hint));
                }
                (open(&path)?, path.display().to_string())
            }
            Place::Local { .. } | Place::Registry { .. } | Place::Dockerfile { .. } => {
                let text = "a container image is no disk for data";
                return Err(Error::new(ErrorKind::Invalid, text).hint("use the type OS"));
            }
        };
        data::check(&source, &self.call.image.checksums, &shown)?;
        let depot = self.depot()?;
        let expanded = match self.call.image.kind {
            // As it is: nobody but the guest reads it.
            ImageType::File => None,
            _ => self.expanded(held, &source, &shown)?,
        };
        let draft = depot.new_data(held)?;
        let mut from = match &expanded {
            Some(draft) => draft.file(),
            None => &source,
        };
        std::io::Seek::rewind(&mut from).map_err(|e| failed("read", Path::new(&shown), &e))?;
        let length = data::copy(&mut from.take(u64::MAX), draft.file(), self.room()?, &shown)?;
        let disk = match self.call.image.kind {
            ImageType::File => data::Disk { format: "raw", size: length },
            _ => data::inspect(draft.file(), &shown)?,
        };
        self.check_size(disk.counted(length))?;
        draft.publish().map_err(|e| failed("write", &depot.data_path(held.image()), &e))?;
        self.keep_data(held, disk.format, Some(origin))?;
        Ok(format!("{} {}", depot.data_path(held.image()).display(), disk.format))
    }

    /// What was counted is what may stay.
    fn check_size(&self, bytes: u64) -> Result<()> {
        let size = self.call.image.size_mb.filter(|mb| *mb > 0);
        match size {
            Some(size) if mib(bytes) > size => {
                Err(data::Room { bytes, size: Some(size) }.exceeded())
            }
            _ => Ok(()),
        }
    }

    pub(super) fn keep_data(
        &self,
        held: &ImageLock,
        format: &str,
        origin: Option<String>,
    ) -> Result<()> {
        let content = Content::Data(DataDisk { format: format.to_owned(), origin });
        self.depot()?.write(held, &ImageRecord::new(held.image(), content))
    }

    fn tell(&mut self, held: &ImageLock, image: &Image, origin: Option<&str>) {
        if self.config.images.oneimage.as_os_str().is_empty() {
            return;
        }
        let told = self
            .depot()
            .and_then(|depot| tell::append(depot, held, image, origin, &self.config.images));
        if let Err(error) = told {
            self.log(&format!("OCI_DIGEST is not in the image's template: {error}"));
        }
    }
}

/// Opens a regular file; no part of its path is a link.
pub(super) fn open(path: &Path) -> Result<File> {
    use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let file: File = rustix::fs::openat2(CWD, path, flags, Mode::empty(), resolve)
        .map_err(|e| match failed("open", path, &e.into()) {
            error if error.kind == ErrorKind::Permission => {
                error.hint("let the user read it who runs the drivers (oneadmin)")
            }
            error => error,
        })?
        .into();
    let meta = file.metadata().map_err(|e| failed("inspect", path, &e))?;
    if meta.is_file() {
        Ok(file)
    } else {
        Err(Error::new(ErrorKind::Invalid, format!("{} is no regular file", path.display())))
    }
}

/// Refuses a directory that is nothing that an image is made of.
pub(super) fn check_layout(dir: &Path) -> Result<()> {
    if dir.join("oci-layout").exists() {
        return Ok(());
    }
    let text = format!("{} is no image layout, and has no Dockerfile", dir.display());
    Err(Error::new(ErrorKind::Image, text).hint("pack a root file system into a tar and name that"))
}
