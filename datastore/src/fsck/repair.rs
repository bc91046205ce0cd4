//! Putting right what a check found.
//!
//! The rules: nothing is invented, nothing is trusted that its digest does not prove, and the only copy of
//! anything is moved, never deleted. What is damaged goes to `quarantine`; what can be made again is: a layer from
//! its blob, an image record from its manifest, a document that the store wrote itself, and everything that a
//! [`Refetch`] still has. Each step is one that an import takes, too, and leaves a sound store after a crash.
//!
//! A layer that guests run on is replaced like any other. The new directory takes the old one's name in one step;
//! overlayfs holds the old directory itself, not its name, so a running guest keeps reading what it read before
//! (`tests/fsck_disk.rs`), and its next start is on the new one. The old files stay in quarantine as long as the
//! caller says that the layer is in use.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::Read;

use rustix::fs::FlockOperation;

use super::quarantine::Quarantine;
use super::{CheckOptions, Finding, Found, FsckReport, Outcome, Survey};
use crate::digest::{DiffId, Digest};
use crate::error::{Error, Result};
use crate::name::ImageName;
use crate::record::{LayerRef, image_file, image_file_digest};
use crate::staging;
use crate::store::Store;

/// Where a repair may get lost blobs from: a registry, another store, an archive.
pub trait Refetch {
    /// The bytes of a blob, or nothing if this source has none. They are verified; they need not be trusted.
    fn fetch(&self, blob: &Digest) -> Option<Box<dyn Read + '_>>;
}

/// What a repair may do.
#[derive(Clone)]
pub struct RepairOptions<'a> {
    /// What to look at first.
    pub check: CheckOptions,
    /// Layers that guests have mounted; they are told of in the outcome.
    pub in_use: &'a HashSet<DiffId>,
    /// Where lost blobs may come from.
    pub refetch: Option<&'a dyn Refetch>,
}

impl std::fmt::Debug for RepairOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RepairOptions")
            .field("check", &self.check)
            .field("in_use", &self.in_use)
            .field("refetch", &self.refetch.is_some())
            .finish()
    }
}

impl Store {
    /// Checks the store and puts right what can be. The outcome of each finding says what was done.
    ///
    /// A sound store is only checked. Where there is something to mend, it is checked once more, alone with the
    /// store: that fails with [`Error::Busy`] while an import, a check or a prune runs, and holds them off, also while
    /// it fetches.
    pub fn repair(&self, options: &RepairOptions<'_>) -> Result<FsckReport> {
        self.check_writable()?;
        let report = self.check(&options.check)?;
        if report.findings.is_empty() {
            return Ok(report);
        }
        let _exclusive = self.lock(FlockOperation::NonBlockingLockExclusive)?;
        let survey = self.survey(&options.check)?;
        let checked = survey.checked;
        let found = survey.found.clone();
        let mut repair = Repair {
            store: self,
            options,
            survey,
            quarantine: Quarantine::new(self),
            outcomes: BTreeMap::new(),
        };
        repair.run();
        let mut findings: Vec<Found> = found
            .into_iter()
            .map(|finding| {
                let outcome = repair.outcomes.remove(&finding);
                Found::new(finding, outcome.unwrap_or(Outcome::Open { why: None }))
            })
            .collect();
        findings.sort();
        Ok(FsckReport { checked, findings })
    }
}

struct Repair<'a> {
    store: &'a Store,
    options: &'a RepairOptions<'a>,
    survey: Survey,
    quarantine: Quarantine<'a>,
    outcomes: BTreeMap<Finding, Outcome>,
}

impl Repair<'_> {
    fn run(&mut self) {
        let all: Vec<Finding> = self.survey.found.iter().cloned().collect();
        for finding in &all {
            self.tidy(finding);
        }
        // Blobs first: records and layers are made from them. Records next: they say which blob a layer has.
        for finding in &all {
            self.blob(finding);
        }
        for finding in &all {
            self.record(finding);
        }
        for finding in &all {
            self.layer(finding);
        }
        for finding in &all {
            match finding {
                Finding::DanglingName { name, manifest } => self.dangling(finding, name, manifest),
                Finding::LayerUnproven { layer, blob, .. } if !self.claimed(layer, blob) => {
                    self.repaired(finding, "the image record that said so is replaced");
                }
                _ => {}
            }
        }
    }

    fn note(&mut self, finding: &Finding, outcome: Outcome) {
        self.outcomes.insert(finding.clone(), outcome);
    }

    fn repaired(&mut self, finding: &Finding, how: impl Into<String>) {
        self.note(finding, Outcome::Repaired { how: how.into() });
    }

    fn open(&mut self, finding: &Finding, why: impl Into<String>) {
        self.note(finding, Outcome::Open { why: Some(why.into()) });
    }

    /// What needs nothing else.
    fn tidy(&mut self, finding: &Finding) {
        match finding {
            Finding::StagingLeftover { .. } => match staging::clean(&self.store.staging) {
                Ok(()) => self.repaired(finding, "removed"),
                Err(e) => self.open(finding, e.to_string()),
            },
            Finding::Permissions { path, .. } => match self.store.set_permissions(path) {
                Ok(()) => self.repaired(finding, "owner and mode set"),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    self.repaired(finding, "it was set aside");
                }
                Err(e) => self.open(finding, e.to_string()),
            },
            Finding::Stray { path } => match path.rsplit_once('/') {
                Some((folder, name)) => self.aside(finding, folder, name),
                None => {
                    self.open(finding, "what lies beside the store's directories is left alone");
                }
            },
            Finding::Unreadable { path, .. }
            | Finding::Misnamed { path, .. }
            | Finding::ReadError { path, .. } => {
                if let Some((folder @ ("refs" | "images"), name)) = path.rsplit_once('/') {
                    self.aside(finding, folder, name);
                }
            }
            _ => {}
        }
    }

    /// Moves a file to quarantine; that is the outcome.
    fn aside(&mut self, finding: &Finding, folder: &str, name: &str) {
        let outcome = match self.move_away(folder, name) {
            Ok(to) => Outcome::SetAside { to },
            Err(e) => Outcome::Open { why: Some(e) },
        };
        self.note(finding, outcome);
    }

    fn move_away(&mut self, folder: &str, name: &str) -> std::result::Result<String, String> {
        let from = self.store.folder(folder).map_err(|e| e.to_string())?;
        self.quarantine.take(&from, name, folder, name).map_err(|e| e.to_string())
    }

    fn blob(&mut self, finding: &Finding) {
        let blob = match finding {
            Finding::BlobCorrupt { blob, .. } | Finding::BlobMissing { blob, .. } => *blob,
            Finding::ReadError { path, .. } | Finding::Unreadable { path, .. } => {
                match path.strip_prefix("blobs/sha256/").and_then(Digest::from_hex) {
                    Some(blob) => blob,
                    None => return,
                }
            }
            Finding::BlobSize { blob, .. } if !self.survey.good.contains(blob) => *blob,
            _ => return,
        };
        let mut set_aside = None;
        if !self.survey.good.contains(&blob) && self.is_there(&blob) {
            match self.move_away("blobs/sha256", &blob.hex()) {
                Ok(to) => set_aside = Some(to),
                Err(e) => return self.open(finding, e),
            }
            self.survey.blobs.remove(&blob);
        }
        let outcome = match (self.obtain(&blob, None), set_aside) {
            (Ok(how), None) => Outcome::Repaired { how },
            (Ok(how), Some(to)) => {
                Outcome::Repaired { how: format!("{how}; the damaged one is {to}") }
            }
            (Err(_), Some(to)) => Outcome::SetAside { to },
            (Err(why), None) => Outcome::Open { why: Some(why) },
        };
        self.note(finding, outcome);
    }

    fn is_there(&self, blob: &Digest) -> bool {
        let there = crate::disk::stat(&self.store.blobs, &blob.hex());
        there.is_ok_and(|stat| stat.is_some())
    }

    /// Sees to it that a good blob is there; says how.
    fn obtain(&mut self, blob: &Digest, size: Option<u64>) -> std::result::Result<String, String> {
        if self.survey.good.contains(blob) {
            return Ok("it is here again".into());
        }
        let known = self.survey.images.values().flat_map(|r| r.blobs()).find(|(b, _)| b == blob);
        let size = size.or(known.map(|(_, size)| size));
        let synthesized = self.survey.images.values().find_map(|r| {
            let own = *blob == r.manifest || *blob == r.config;
            own.then(|| self.store.synthesized(r, blob)).flatten()
        });
        let (how, written) = if let Some(bytes) = synthesized {
            ("written anew", self.store.write_blob(blob, &mut &bytes[..], None))
        } else {
            let Some(mut from) = self.options.refetch.and_then(|r| r.fetch(blob)) else {
                return Err("no source has the blob".into());
            };
            ("fetched again", self.store.write_blob(blob, &mut from, size))
        };
        match written {
            Ok(size) => {
                self.survey.good.insert(*blob);
                self.survey.blobs.insert(*blob, size);
                Ok(how.into())
            }
            Err(e) => Err(with_source(&e)),
        }
    }

    /// Image records that are gone, set aside, or wrong.
    fn record(&mut self, finding: &Finding) {
        let image = match finding {
            Finding::ImageInconsistent { image, .. } => *image,
            Finding::BlobSize { image, blob, .. }
                if self.survey.blobs.contains_key(blob) && self.is_wrong(image, blob) =>
            {
                *image
            }
            Finding::Unreadable { path, .. }
            | Finding::Misnamed { path, .. }
            | Finding::ReadError { path, .. } => {
                match path.strip_prefix("images/").and_then(image_file_digest) {
                    Some(image) => image,
                    None => return,
                }
            }
            Finding::DanglingName { manifest, .. } => *manifest,
            _ => return,
        };
        let dangling = matches!(finding, Finding::DanglingName { .. });
        if dangling && self.survey.images.contains_key(&image) {
            return;
        }
        let old = match self.outcomes.get(finding) {
            Some(Outcome::SetAside { to }) => Some(to.clone()),
            _ if dangling => None,
            _ => match self.quarantine.keep(&self.store.images, &image_file(&image), "images") {
                Ok(to) => Some(to),
                Err(e) => return self.open(finding, e.to_string()),
            },
        };
        match self.rebuild(&image) {
            Ok(()) if dangling => {}
            Ok(()) => {
                let old = old.map_or_else(String::new, |to| format!("; the old one is {to}"));
                self.repaired(finding, format!("written anew from the manifest{old}"));
            }
            Err(why) if !dangling && !self.outcomes.contains_key(finding) => {
                self.open(finding, why);
            }
            Err(_) => {}
        }
    }

    /// Whether it is the record that is wrong about the size of a good blob.
    fn is_wrong(&self, image: &Digest, blob: &Digest) -> bool {
        let record = self.survey.images.get(image);
        let told = record.and_then(|r| r.blobs().find(|(b, _)| b == blob));
        told.is_some_and(|(_, size)| self.survey.blobs.get(blob) != Some(&size))
    }

    fn rebuild(&mut self, image: &Digest) -> std::result::Result<(), String> {
        let mut wanted = Vec::new();
        // Fetching changes the survey, so what was missing is noted, got, and the work begun again.
        loop {
            let mut missing = None;
            let obtain = &mut |blob: &Digest, size| {
                missing = Some((*blob, size));
                false
            };
            let record =
                self.store.rebuild_record(image, &self.survey, obtain, &mut self.quarantine);
            match (record, missing) {
                (Ok(record), _) => {
                    self.survey.images.insert(*image, record);
                    return Ok(());
                }
                (Err(e), Some((blob, _))) if wanted.contains(&blob) => return Err(with_source(&e)),
                (Err(_), Some((blob, size))) => {
                    wanted.push(blob);
                    self.obtain(&blob, size).map_err(|why| format!("blob {blob}: {why}"))?;
                }
                (Err(e), None) => return Err(with_source(&e)),
            }
        }
    }

    fn layer(&mut self, finding: &Finding) {
        let layer = match finding {
            Finding::LayerMissing { layer, .. }
            | Finding::LayerIncomplete { layer, .. }
            | Finding::LayerChanged { layer, .. } => *layer,
            Finding::ReadError { path, .. } => {
                let hex = path.strip_prefix("layers/").and_then(|p| p.split('/').next());
                match hex.and_then(Digest::from_hex) {
                    Some(layer) => DiffId(layer),
                    None => return,
                }
            }
            _ => return,
        };
        let refs: Vec<LayerRef> = self
            .survey
            .images
            .values()
            .flat_map(|r| &r.layers)
            .filter(|l| l.diff_id == layer)
            .cloned()
            .collect();
        if refs.is_empty() && !self.options.in_use.contains(&layer) {
            // Of no image, and whole it would be rubbish.
            return self.aside(finding, "layers", &layer.hex());
        }
        let mut why = "no image has it any more, so there is no blob to make it from".to_owned();
        for known in refs {
            if let Err(e) = self.obtain(&known.blob, Some(known.size)) {
                why = format!("blob {}: {e}", known.blob);
                continue;
            }
            match self.store.replace_layer(&known, &mut self.quarantine) {
                Ok(to) => {
                    let mut how = "unpacked again from its blob".to_owned();
                    if let Some(to) = to {
                        how.push_str(&format!("; the damaged one is {to}"));
                    }
                    if self.options.in_use.contains(&layer) {
                        how.push_str(
                            "; guests that run on it keep the damaged one until they start again",
                        );
                    }
                    return self.repaired(finding, how);
                }
                Err(e) => why = with_source(&e),
            }
        }
        self.open(finding, why);
    }

    /// Whether an image still has the blob for the layer.
    fn claimed(&self, layer: &DiffId, blob: &Digest) -> bool {
        let mut all = self.survey.images.values().flat_map(|r| &r.layers);
        all.any(|l| l.diff_id == *layer && l.blob == *blob)
    }

    fn dangling(&mut self, finding: &Finding, name: &ImageName, manifest: &Digest) {
        if self.survey.images.contains_key(manifest) {
            return self.repaired(finding, format!("{} is there again", image_file(manifest)));
        }
        self.aside(finding, "refs", &name.file_name().0);
    }
}

fn with_source(error: &Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

impl Store {
    /// A directory of the store by its path.
    fn folder(&self, path: &str) -> Result<File> {
        let how = rustix::fs::ResolveFlags::BENEATH | rustix::fs::ResolveFlags::NO_SYMLINKS;
        let flags = rustix::fs::OFlags::RDONLY
            | rustix::fs::OFlags::DIRECTORY
            | rustix::fs::OFlags::CLOEXEC;
        rustix::fs::openat2(&self.dir, path, flags, rustix::fs::Mode::empty(), how)
            .map(File::from)
            .map_err(|e| self.io("open", path, e))
    }
}
