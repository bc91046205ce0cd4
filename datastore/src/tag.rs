//! Giving an image another name.

use rustix::fs::FlockOperation;

use crate::error::Result;
use crate::name::{ImageName, Reference};
use crate::namer::By;
use crate::publish::Publisher;
use crate::staging::Staged;
use crate::store::{Image, Store};

impl Store {
    /// Points `name` at an image that is here, whatever it pointed at before if the handle's user may, and returns the image.
    ///
    /// The image is found first and only its digest is recorded: a name that is moved meanwhile changes nothing.
    /// Runs beside imports; fails with [`crate::Error::Damaged`] where the image is not whole.
    pub fn tag(&self, reference: &Reference, name: &ImageName) -> Result<Image> {
        self.check_writable()?;
        // No prune between the look and the name.
        let _shared = self.lock(FlockOperation::LockShared)?;
        let image = self.resolve(reference)?;
        let staged = Staged::create(&self.staging, "tag")
            .map_err(|e| self.io("make a directory in", "staging", e))?;
        Publisher { store: self, staged: &staged }.name(
            name,
            &image.manifest_digest,
            By::Choice,
        )?;
        Ok(image)
    }
}
