//! From a machine's disk to an image of one layer.
//!
//! Files are opened here; what is in them is read as a tar, packed, and then goes the way of every layer.

use std::io::{self, Read};
use std::path::Path;

use super::{Held, Import, Progress, Tell, check_config};
use crate::compress::Compression;
use crate::digest::Digest;
use crate::diskimage::{DiskFacts, DiskFiles, DiskOptions, DiskReading, OpenDisk, System};
use crate::error::{Error, Fault, Result};
use crate::ingest::{self, Budget, Promise};
use crate::limits::Limits;
use crate::packed;
use crate::record::ImageRecord;
use crate::store::Store;
use crate::tarball::Trailer;
use crate::work::Work;
use crate::worker::{DiskStream, Unpacker};

impl Import<'_> {
    /// The root file system of a disk.
    pub(super) fn disk(
        &self,
        file: &Path,
        options: &DiskOptions,
        held: &Held,
        tell: Tell<'_>,
    ) -> Result<ImageRecord> {
        let files = DiskFiles::open(file, options)?;
        let mut reader = Reader::open(&files, DiskReading::new(options), self.store, self.limits)?;
        tell(Progress::Started { layers: 1 });
        let mut budget =
            Budget::new(self.limits).unpacked_by(&self.store.unpacker).until(&self.store.cancel);
        let work = Work::new(self.store, &self.staged)?;
        let terms = self.terms(&budget, None);
        let promise = Promise { compression: Some(Compression::Zstd), ..Promise::default() };
        // How much comes is not known before; what the disk could hold would promise too much.
        let progress = &mut |done| tell(Progress::Layer { layer: 1, done, total: 0 });
        let copy = Some(&work.blob);
        let read = if self.store.is_packed() {
            ingest::keep(&mut reader, copy, &promise, &self.store.cancel, progress)
                .map_err(|fault| (fault, None))
                .and_then(|kept| packed::measure(&work, &kept, &promise, &terms, &mut budget))
        } else {
            let into = (&work.fs, Trailer::Required);
            ingest::ingest(&mut reader, copy, &promise, into, &mut budget, progress)
        };
        let mut read = read.map_err(|(fault, at)| {
            reader.fault(&files).unwrap_or_else(|| fault.about_entry(files.shown(), at))
        })?;
        let DiskFacts { system, xattrs_dropped } = reader.facts(&files)?;
        files.unchanged()?;
        read.report.xattrs_dropped += xattrs_dropped;
        let layer = self.unpromised(files.shown(), &work, read, terms, held, tell)?;

        let about = |why| Error::document("synthesized config", why);
        let config = system.config(layer.diff_id).map_err(about)?;
        check_config(&config, &Digest::of(&config), 1, self.limits)?;
        let layers = vec![layer];
        let manifest = self.manifest_for(&config, &layers)?;
        self.commit(&manifest, &config, layers)
    }
}

/// A disk as a tar in zstd.
enum Reader<'a> {
    /// Read by this process.
    Here { disk: OpenDisk, system: System, tar: Box<dyn Read + 'a> },
    /// Read by a worker.
    There(Box<DiskStream>),
}

impl<'a> Reader<'a> {
    /// Finds a root file system for this host.
    fn open(
        files: &DiskFiles,
        reading: DiskReading,
        store: &Store,
        limits: &'a Limits,
    ) -> Result<Self> {
        let copies = files.copies().map_err(|why| files.refused(why))?;
        match &store.unpacker {
            Unpacker::InProcess => {
                let refused = |why| files.refused(why);
                let mut disk = OpenDisk::new(copies, reading, &store.cancel).map_err(refused)?;
                let system = disk.system().map_err(refused)?;
                system.check(files.shown())?;
                let tar = disk.packed(limits).map_err(|e| Error::io("pack", files.shown(), e))?;
                Ok(Self::Here { disk, system, tar: Box::new(tar) })
            }
            Unpacker::Worker(worker) => {
                let about = |fault: Fault| fault.about(files.shown());
                let stream = DiskStream::start(worker, copies, reading, limits, &store.cancel);
                let mut stream = stream.map_err(about)?;
                let begun = stream.begin();
                let mut reader = Self::There(Box::new(stream));
                let begun =
                    begun.map_err(|fault| reader.fault(files).unwrap_or_else(|| about(fault)))?;
                if let Some(system) = begun {
                    system.check(files.shown())?;
                }
                Ok(reader)
            }
        }
    }

    /// What ended the tar, if that was the disk. It reaches the unpacker as a broken stream; the disk knows better.
    fn fault(&mut self, files: &DiskFiles) -> Option<Error> {
        let why = match self {
            Self::Here { disk, .. } => disk.fault(),
            Self::There(stream) => stream.fault(),
        }?;
        // Structures of two states of a disk contradict each other.
        Some(files.unchanged().err().unwrap_or_else(|| files.refused(why)))
    }

    /// After the end of the tar.
    fn facts(self, files: &DiskFiles) -> Result<DiskFacts> {
        match self {
            Self::Here { disk, system, .. } => Ok(disk.facts(system)),
            Self::There(mut stream) => stream.facts().map_err(|fault| fault.about(files.shown())),
        }
    }
}

impl Read for Reader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Here { tar, .. } => tar.read(buf),
            Self::There(stream) => stream.read(buf),
        }
    }
}
