//! Giving an image another name.

use std::io;

use rustix::fs::FlockOperation;

use crate::disk;
use crate::error::Result;
use crate::name::{ImageName, Reference};
use crate::record::{Record, RefRecord};
use crate::staging::Staged;
use crate::store::{Image, Store};

impl Store {
    /// Points `name` at an image that is here, whatever it pointed at before, and returns the image.
    ///
    /// The image is found first and only its digest is recorded: a name that is moved meanwhile changes nothing.
    /// Runs beside imports; fails with [`crate::Error::Damaged`] where the image is not whole.
    pub fn tag(&self, reference: &Reference, name: &ImageName) -> Result<Image> {
        self.check_writable()?;
        // No prune between the look and the name.
        let _shared = self.lock(FlockOperation::LockShared)?;
        let image = self.resolve(reference)?;
        // Its importer may have died before it synced the record's name.
        self.images.sync_all().map_err(|e| self.io("sync", "images", e))?;
        let record = RefRecord::new(name.clone(), image.manifest_digest);
        let file = name.file_name().0;
        let write = || {
            let staged = Staged::create(&self.staging, "tag")?;
            disk::write_new(&staged.dir, "record", &record.encode()?)?;
            disk::publish(&staged.dir, "record", &self.refs, &file)
        };
        write().map_err(|e: io::Error| self.io("write", &format!("refs/{file}"), e))?;
        Ok(image)
    }
}
