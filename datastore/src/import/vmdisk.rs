//! From a machine's disk to an image of one layer.

use std::path::Path;

use super::{Held, Import, Progress, Tell, check_config};
use crate::digest::Digest;
use crate::diskimage::{DiskOptions, OpenDisk};
use crate::error::{Error, Result};
use crate::ingest::{self, Budget, Promise};
use crate::record::ImageRecord;
use crate::tarball::Trailer;
use crate::work::Work;

impl Import<'_> {
    /// The root file system of a disk: read as a tar, packed here, then as any other.
    pub(super) fn disk(
        &self,
        file: &Path,
        options: &DiskOptions,
        held: &Held,
        tell: Tell<'_>,
    ) -> Result<ImageRecord> {
        let mut disk = OpenDisk::open(file, options)?;
        let system = disk.system()?;
        system.check(disk.shown())?;
        tell(Progress::Started { layers: 1 });
        let mut budget =
            Budget::new(self.limits).unpacked_by(&self.store.unpacker).until(&self.store.cancel);
        let work = Work::new(self.store, &self.staged)?;
        let terms = self.terms(&budget, None);
        let mut packed = disk.packed(self.limits)?;
        let read = ingest::ingest(
            &mut packed,
            Some(&work.blob),
            &Promise::default(),
            (&work.fs, Trailer::Required),
            &mut budget,
            // How much comes is not known before; what the disk could hold would promise too much.
            &mut |done| tell(Progress::Layer { layer: 1, done, total: 0 }),
        );
        drop(packed);
        let mut read = read.map_err(|(fault, at)| {
            // A fault of the disk reaches the unpacker as a broken stream; the disk knows better.
            disk.fault().unwrap_or_else(|| fault.about_entry(disk.shown(), at))
        })?;
        read.report.xattrs_dropped += disk.xattrs_dropped();
        let layer = self.unpromised(disk.shown(), &work, read, terms, held, tell)?;

        let about = |why| Error::document("synthesized config", why);
        let config = system.config(layer.diff_id).map_err(about)?;
        check_config(&config, &Digest::of(&config), 1, self.limits)?;
        let layers = vec![layer];
        let manifest = self.manifest_for(&config, &layers)?;
        self.commit(&manifest, &config, layers)
    }
}
