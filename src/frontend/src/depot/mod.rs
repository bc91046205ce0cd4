//! The directory of an image datastore.
//!
//! ```text
//! <base path>/lock                    byte n is locked by who works on image n
//!             store/                  a packed store (ocivisor-datastore); image n has there the name image-<n>
//!             images/<n>.json         what image n is
//!             disks/<n>, <n>.json     a writable disk that belongs to image n, and its manifest
//!             <32 hexadecimal digits> a data disk, as stock datastores keep them
//! ```
//!
//! Every call of a driver is a process of its own, several run at once, and each can be killed at any instant. Files
//! appear whole, by one rename after a sync ([`Draft`]); what a dead process left half made is removed when the
//! depot is opened next. Who changes what belongs to an image holds that image's lock ([`Depot::lock`]); it ends with
//! its process. The store has locks of its own.
//!
//! The order: content, then its name in the store, then the record; to remove, the reverse. So a record leads to
//! content, and content without a record is what a call left that was not finished: it is done again, or removed
//! with the image.
//!
//! The directory belongs to one user, who runs the drivers. It must lie on a file system where flock(2) works on
//! directories; NFS does that only with `local_lock=flock`, and then all drivers must run on one machine.

mod draft;
mod lock;
mod record;
mod strays;

use std::ffi::OsStr;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_datastore::trust::Policy;
use ocivisor_datastore::{Digest, ImageName, Reference, Store};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

pub use draft::Draft;
pub use lock::ImageLock;
pub use record::{Container, Content, DataDisk, ImageRecord, Saved};

use crate::fault::{clip, failed, from_store};
use crate::tool;

/// How long what a build left may take to be removed: a million files take a minute.
const CLEARING: Duration = Duration::from_secs(600);

/// The directory of an image datastore, open.
#[derive(Debug)]
pub struct Depot {
    base: PathBuf,
    real: PathBuf,
    dir: File,
    images: File,
    disks: File,
    store: Store,
}

impl Depot {
    /// The same with a policy of who may bring in what.
    #[must_use]
    pub fn with_policy(self, policy: Option<Policy>) -> Self {
        match policy {
            Some(policy) => Self { store: self.store.with_policy(policy), ..self },
            None => self,
        }
    }
}

impl Depot {
    /// Opens the datastore of that directory, making what is not there yet.
    ///
    /// # Errors
    /// It cannot be used, belongs to another user, or has something of a newer version.
    pub fn open(base: &Path) -> Result<Self> {
        let at = |op| move |e: io::Error| failed(op, base, &e);
        DirBuilder::new().recursive(true).mode(0o750).create(base).map_err(at("make directory"))?;
        let dir = open_dir(rustix::fs::CWD, base).map_err(at("open directory"))?;
        let owner = dir.metadata().map_err(at("inspect"))?.uid();
        let user = rustix::process::geteuid().as_raw();
        if owner != user {
            let text = format!("{} belongs to user {owner}, not to user {user}", base.display());
            return Err(Error::new(ErrorKind::Conflict, text)
                .hint("run the drivers as the owner of the datastore"));
        }
        let images = ensure_dir(&dir, "images").map_err(at("make a directory in"))?;
        let disks = ensure_dir(&dir, "disks").map_err(at("make a directory in"))?;
        drop(lock::open(&dir).map_err(at("make the lock in"))?);
        for folder in [&dir, &images, &disks] {
            draft::sweep(folder).map_err(at("clean"))?;
        }
        let store = Store::open_packed(&base.join("store")).map_err(|e| from_store(&e))?;
        let real = std::fs::canonicalize(base).map_err(at("resolve"))?;
        Ok(Self { base: base.to_owned(), real, dir, images, disks, store })
    }

    /// The directory's path.
    #[must_use]
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// Where a file in the making is until it is published; no part of the path is a link.
    #[must_use]
    pub fn draft_path(&self, draft: &Draft) -> PathBuf {
        self.real.join(draft.name())
    }

    /// Where a file of that name is; no part of the path is a link.
    pub(crate) fn real_path(&self, name: &str) -> PathBuf {
        self.real.join(name)
    }

    /// Begins the archive that a marketplace takes.
    pub(crate) fn new_export(&self, held: &ImageLock) -> Result<Draft> {
        let name = Self::export_name(held.image());
        Draft::create(&self.dir, &name).map_err(|e| failed("make", &self.base.join(name), &e))
    }

    /// An empty directory for tools, and no other call has it.
    pub(crate) fn work(&self, held: &ImageLock) -> Result<Work> {
        let path = self.work_path(held);
        clear(&path)?;
        DirBuilder::new().mode(0o700).create(&path).map_err(|e| failed("make", &path, &e))?;
        Ok(Work { path })
    }

    /// A file in the making that is only for this call.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn scratch(&self, held: &ImageLock) -> Result<Draft> {
        let name = format!("scratch-{}", held.image());
        Draft::create(&self.dir, &name).map_err(|e| failed("make", &self.base.join(name), &e))
    }

    /// The directory, to make a file in that this module does not know.
    pub(crate) fn dir(&self) -> &File {
        &self.dir
    }

    /// Where an image lies as an archive while a marketplace takes it.
    pub(crate) fn export_name(image: u32) -> String {
        format!("export-{image}.tar")
    }

    /// Removes what an earlier export left.
    pub(crate) fn remove_export(&self, held: &ImageLock) -> Result<()> {
        let name = Self::export_name(held.image());
        unlink(&self.dir, &name).map_err(|e| failed("remove", &self.base.join(&name), &e))
    }

    /// Removes archives that no marketplace has fetched for so long.
    pub(crate) fn sweep_exports(&self, age: Duration) -> Result<()> {
        let failed = |e: io::Error| failed("clean", &self.base, &e);
        let old = SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
        for entry in std::fs::read_dir(&self.base).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let image = name.to_str().and_then(|n| n.strip_prefix("export-")?.strip_suffix(".tar"));
            let Some(image) = image.filter(|n| n.bytes().all(|c| c.is_ascii_digit())) else {
                continue;
            };
            let made = entry.metadata().and_then(|meta| meta.modified());
            if made.is_ok_and(|made| made < old) {
                unlink(&self.dir, &format!("export-{image}.tar")).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Blobs, images and names.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The store's name of an image.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "letters, a hyphen and digits are a name")]
    #[expect(clippy::expect_used, reason = "letters, a hyphen and digits are a name")]
    pub fn name(image: u32) -> ImageName {
        format!("image-{image}").parse().expect("a name")
    }

    /// Waits until nobody else works on an image. Dropping it, or the end of the process, lets go.
    ///
    /// # Errors
    /// The kernel gives no lock.
    pub fn lock(&self, image: u32) -> Result<ImageLock> {
        ImageLock::take(&self.dir, image).map_err(|e| failed("lock", &self.base.join("lock"), &e))
    }

    /// What an image is; none if it is not known here.
    ///
    /// # Errors
    /// The record cannot be read, is damaged, or is of a newer version.
    pub fn record(&self, image: u32) -> Result<Option<ImageRecord>> {
        let path = self.record_path(image);
        let Some(bytes) = record::read(&self.images, &record::file(image))
            .map_err(|e| failed("read", &path, &e))?
        else {
            return Ok(None);
        };
        let found = ImageRecord::decode(&bytes).and_then(|found| {
            let wrong = || format!("it is about image {}", found.image);
            if found.image == image { Ok(found) } else { Err(wrong()) }
        });
        found.map(Some).map_err(|why| {
            Error::new(ErrorKind::Conflict, format!("{} cannot be used: {why}", path.display()))
        })
    }

    /// Puts down what an image is, in place of what was there. The content is there before.
    ///
    /// # Errors
    /// It cannot be written; then the old one is there.
    pub fn write(&self, _held: &ImageLock, record: &ImageRecord) -> Result<()> {
        let write = || {
            let draft = Draft::create(&self.images, &record::file(record.image))?;
            io::Write::write_all(&mut draft.file(), &record.encode()?)?;
            draft.publish()
        };
        write().map_err(|e| failed("write", &self.record_path(record.image), &e))
    }

    /// Removes an image: its record, its disk, its name in the store. It need not be there, nor whole.
    ///
    /// What the store has for no other image goes with the next [`Store::prune`].
    ///
    /// # Errors
    /// Something cannot be removed; again will go on.
    pub fn remove(&self, held: &ImageLock, image: u32) -> Result<()> {
        let gone = |dir: &File, name: &str, path: &Path| {
            unlink(dir, name).map_err(|e| failed("remove", path, &e))
        };
        gone(&self.images, &record::file(image), &self.record_path(image))?;
        gone(&self.disks, &format!("{image}.json"), &self.disk_manifest_path(image))?;
        gone(&self.disks, &image.to_string(), &self.disk_path(image))?;
        // That a VM's disk came back (`tm::writeback`) means nothing any more.
        gone(&self.disks, &format!(".{image}.written"), &self.disk_path(image))?;
        self.remove_data(held, &data_name(image))?;
        self.remove_export(held)?;
        self.store.remove(&Self::name(image)).map_err(|e| from_store(&e))?;
        for dir in [&self.images, &self.disks] {
            dir.sync_all().map_err(|e| failed("sync", &self.base, &e))?;
        }
        Ok(())
    }

    /// Removes what tools that were killed have left of an image.
    pub(crate) fn clear_work(&self, held: &ImageLock) -> Result<()> {
        clear(&self.work_path(held))
    }

    fn work_path(&self, held: &ImageLock) -> PathBuf {
        self.real.join(format!(".work-{}", held.image()))
    }

    /// Removes a data disk by its name; it need not be there.
    ///
    /// # Errors
    /// It is no name of one, or cannot be removed.
    fn remove_data(&self, _held: &ImageLock, name: &str) -> Result<()> {
        if !is_data_name(name) {
            let text = format!("{:?} is no name of a data disk", clip(name));
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        unlink(&self.dir, name)
            .and_then(|()| unlink(&self.dir, &format!(".{name}.written")))
            .and_then(|()| self.dir.sync_all())
            .map_err(|e| failed("remove", &self.base.join(name), &e))
    }

    /// The image that the store has under an image's name, whether its record was written or not.
    #[must_use]
    pub fn reference(image: u32) -> Reference {
        Self::name(image).into()
    }

    /// Begins a data disk.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn new_data(&self, held: &ImageLock) -> Result<Draft> {
        let name = data_name(held.image());
        Draft::create(&self.dir, &name).map_err(|e| failed("make", &self.base.join(name), &e))
    }

    /// Where the data disk of an image is.
    #[must_use]
    pub fn data_path(&self, image: u32) -> PathBuf {
        self.base.join(data_name(image))
    }

    /// Begins a writable disk of an image; its manifest, if it has one, is written before.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn new_disk(&self, held: &ImageLock) -> Result<Draft> {
        let name = held.image().to_string();
        Draft::create(&self.disks, &name)
            .map_err(|e| failed("make", &self.disk_path(held.image()), &e))
    }

    /// Begins the manifest of a writable disk.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn new_disk_manifest(&self, held: &ImageLock) -> Result<Draft> {
        let name = format!("{}.json", held.image());
        Draft::create(&self.disks, &name)
            .map_err(|e| failed("make", &self.disk_manifest_path(held.image()), &e))
    }

    /// Where the writable disk of an image is, if it has one.
    #[must_use]
    pub fn disk_path(&self, image: u32) -> PathBuf {
        self.base.join("disks").join(image.to_string())
    }

    /// Where the manifest of that disk is.
    #[must_use]
    pub fn disk_manifest_path(&self, image: u32) -> PathBuf {
        self.base.join("disks").join(format!("{image}.json"))
    }

    fn record_path(&self, image: u32) -> PathBuf {
        self.base.join("images").join(record::file(image))
    }
}

/// A directory that is removed with all in it; what a crash leaves goes with the image's next call that needs one.
#[derive(Debug)]
pub(crate) struct Work {
    path: PathBuf,
}

impl Work {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // What stays goes with the image, or with its next build; there is nobody to tell.
        let _ = clear(&self.path);
    }
}

/// Removes a directory of tools with all in it.
///
/// A build leaves files of other users: of ids from `/etc/subuid`, for which our user may only act in a user namespace.
/// buildah, which made them, makes that, too.
fn clear(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    strays::end(path).map_err(|e| failed("look for what runs in", path, &e))?;
    let first = match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => failed("remove", path, &e),
        other => return other.map_err(|e| failed("remove", path, &e)),
    };
    let Ok(buildah) = tool::find("buildah") else {
        return Err(first.hint("install buildah, which made it, or have an admin remove it"));
    };
    let argv = [
        buildah.as_os_str(),
        OsStr::new("unshare"),
        OsStr::new("rm"),
        OsStr::new("-rf"),
        OsStr::new("--one-file-system"),
        OsStr::new("--"),
        path.as_os_str(),
    ];
    tool::run(&argv, CLEARING).map_err(|e| e.context(format!("remove {}", path.display())))
}

/// The name of an image's data disk. It follows from the number, so that a call that was not finished is found again.
fn data_name(image: u32) -> String {
    let mut name = Digest::of(format!("data disk of image {image}").as_bytes()).hex();
    name.truncate(32);
    name
}

/// Whether a data disk may have that name.
#[must_use]
pub fn is_data_name(name: &str) -> bool {
    name.len() == 32 && name.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
}

fn open_dir(at: impl std::os::fd::AsFd, path: impl rustix::path::Arg) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(at, path, flags, Mode::empty())?.into())
}

fn ensure_dir(at: &File, name: &str) -> io::Result<File> {
    match rustix::fs::mkdirat(at, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(e.into()),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(at, name, flags, Mode::empty())?.into())
}

fn unlink(at: &File, name: &str) -> io::Result<()> {
    match rustix::fs::unlinkat(at, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests;
