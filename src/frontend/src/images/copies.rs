//! `clone`: an image once more, perhaps of another datastore.
//!
//! Of a container image nothing is copied within a datastore but its writable disk, if it has one. What belongs to another
//! datastore is found beside ours: OpenNebula keeps them in one directory, and numbers of images are the cloud's.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_datastore::{Archive, Digest, Limits, Reference, Source};
use ocivisor_opennebula::ImageSource;

use super::{Driver, bring, data};
use crate::depot::{Container, Content, Depot, ImageLock, ImageRecord, is_data_name};
use crate::fault::{clip, failed, from_store};
use crate::wire::MAX_DOCUMENT;

impl Driver<'_> {
    /// `SOURCE FORMAT`.
    pub(super) fn clone(&mut self) -> Result<String> {
        let depot = self.open()?;
        let held = depot.lock(self.call.id)?;
        match self.call.image.path.parse()? {
            ImageSource::Container { image, manifest } => {
                let manifest = manifest
                    .map(|hex| format!("sha256:{hex}").parse())
                    .transpose()
                    .map_err(|e| from_store(&e))?;
                self.clone_container(&depot, &held, image, manifest)
            }
            ImageSource::File(path) => self.clone_file(&depot, &held, &path),
        }
    }

    fn clone_container(
        &self,
        depot: &Depot,
        held: &ImageLock,
        original: u32,
        manifest: Option<Digest>,
    ) -> Result<String> {
        let other = self.depot_of(depot, original)?;
        let from = other.as_ref().unwrap_or(depot);
        let record = from.record(original)?;
        let own = match record.map(|record| record.content) {
            Some(Content::Container(own)) if own.manifest == manifest => own,
            Some(_) => {
                let text = format!("image {original} is not what its SOURCE says");
                return Err(Error::new(ErrorKind::Integrity, text));
            }
            None => Container { manifest, ..Container::default() },
        };
        // What a saved disk lies upon is its image, whatever becomes of the one it is copied from.
        let below = match manifest {
            Some(digest) => Some(Reference::Digest(digest)),
            None => below(from, original)?,
        };
        if let Some(reference) = &below {
            if let Some(other) = &other {
                copy_image(other, depot, held, reference, self.free()?)?;
            } else {
                let name = Depot::name(held.image());
                depot.store().tag(reference, &name).map_err(|e| from_store(&e))?;
            }
        }
        let disk = self.clone_disk(from, depot, held, original)?;
        if manifest.is_none() && !disk {
            let text = format!("image {original} has no content");
            return Err(Error::new(ErrorKind::NotFound, text));
        }
        let content = Content::Container(Container { saved: None, ..own });
        depot.write(held, &ImageRecord::new(held.image(), content))?;
        let digest = manifest.map_or_else(String::new, |digest| format!("@{digest}"));
        Ok(format!("ocivisor:{}{digest} oci", held.image()))
    }

    /// The writable disk, if there is one; its manifest first, for a disk without it is none.
    fn clone_disk(
        &self,
        from: &Depot,
        to: &Depot,
        held: &ImageLock,
        original: u32,
    ) -> Result<bool> {
        let room = self.free()?;
        let (disk, manifest) = (from.disk_path(original), from.disk_manifest_path(original));
        if !disk.exists() {
            return Ok(false);
        }
        if manifest.exists() {
            let draft = to.new_disk_manifest(held)?;
            copy(&manifest, draft.file(), room)?;
            draft.publish().map_err(|e| failed("write", &manifest, &e))?;
        }
        let draft = to.new_disk(held)?;
        copy(&disk, draft.file(), room)?;
        draft.publish().map_err(|e| failed("write", &disk, &e))?;
        Ok(true)
    }

    fn clone_file(&self, depot: &Depot, held: &ImageLock, path: &Path) -> Result<String> {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let base = &self.call.datastore.base_path;
        let beside = path.parent().and_then(Path::parent) == base.parent();
        if !beside || !is_data_name(name) {
            let text = format!("{:?} is no data disk of a datastore", clip(&self.call.image.path));
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        let shown = path.display().to_string();
        let draft = depot.new_data(held)?;
        copy(path, draft.file(), self.free()?)?;
        // Of a raw disk nobody asks what its first bytes look like.
        let format = if self.call.image.format == "qcow2" {
            data::inspect(draft.file(), &shown)?.format
        } else {
            "raw"
        };
        draft.publish().map_err(|e| failed("write", &depot.data_path(held.image()), &e))?;
        self.keep_data(held, format, Some(shown))?;
        Ok(format!("{} {format}", depot.data_path(held.image()).display()))
    }

    /// Another datastore that has the image; none if it is ours, or nobody's.
    fn depot_of(&self, ours: &Depot, image: u32) -> Result<Option<Depot>> {
        let base = &self.call.datastore.base_path;
        let record = format!("images/{image}.json");
        if base.join(&record).exists() || ours.disk_path(image).exists() {
            return Ok(None);
        }
        let Some(parent) = base.parent() else { return Ok(None) };
        let entries = std::fs::read_dir(parent).map_err(|e| failed("list", parent, &e))?;
        for entry in entries {
            let path = entry.map_err(|e| failed("list", parent, &e))?.path();
            if path != *base && path.join(&record).is_file() {
                return Depot::open(&path).map(Some);
            }
        }
        Ok(None)
    }
}

/// The image that the manifest of a writable disk names; none if there is no such disk.
fn below(depot: &Depot, image: u32) -> Result<Option<Reference>> {
    let path = depot.disk_manifest_path(image);
    let mut bytes = Vec::new();
    match File::open(&path) {
        Ok(file) => {
            let read = file.take(MAX_DOCUMENT).read_to_end(&mut bytes);
            read.map_err(|e| failed("read", &path, &e))?;
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed("open", &path, &e)),
    }
    let digest = crate::manifest::image_of(&bytes)?;
    digest.parse().map(|digest| Some(Reference::Digest(digest))).map_err(|e| from_store(&e))
}

/// From one store to another, by an archive that is gone in the end.
fn copy_image(
    from: &Depot,
    to: &Depot,
    held: &ImageLock,
    image: &Reference,
    room: data::Room,
) -> Result<()> {
    let size = from.store().resolve(image).map_err(|e| from_store(&e))?.size;
    // For a moment it is there as an archive and as an image.
    if size.saturating_mul(2) > room.bytes {
        return Err(room.exceeded());
    }
    let name = Depot::export_name(held.image());
    to.remove_export(held)?;
    let copied = || {
        let images = std::slice::from_ref(image);
        from.store().save(images, Archive::OciArchive, to.dir(), &name, &mut |_| {})?;
        let source = Source::OciArchive { file: to.real_path(&name), tag: None };
        let own = Depot::name(held.image());
        to.store().import(&source, &own, &Limits::default(), &mut |_| {})
    };
    let copied = copied().map(drop).map_err(|e| from_store(&e));
    to.remove_export(held)?;
    copied
}

fn copy(from: &Path, to: &File, room: data::Room) -> Result<()> {
    let real = std::fs::canonicalize(from).map_err(|e| failed("open", from, &e))?;
    data::copy(&mut bring::open(&real)?, to, room, &from.display().to_string()).map(drop)
}
