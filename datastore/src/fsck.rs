//! Checking that the store is what it says.
//!
//! Every name, record and blob is read and every digest computed again; every layer that an image has is compared
//! with its blob, so that what guests run on is proven by the digests of their images (`prove`). Blobs and layers
//! of no image are no finding; an import that was interrupted leaves them for the next attempt or a prune.
//!
//! A check writes nothing but, for a layer in doubt, a directory in staging. It runs beside imports and holds a
//! prune off. A repair is alone with the store (`repair`).
//!
//! What is absent: a journal of what was checked. Each run reads everything; it costs one pass over the blobs and
//! one over the layers, on two processors.

mod finding;
mod permissions;
mod prove;
pub(crate) mod quarantine;
mod rebuild;
mod repair;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::FlockOperation;
use serde::Serialize;

use crate::digest::{DiffId, Digest};
use crate::disk;
use crate::error::{Error, Result};
use crate::name::{FileName, ImageName};
use crate::proof::is_disk;
use crate::prune::PARTIAL;
use crate::record::{ImageRecord, LayerRef, RefRecord, image_file_digest};
use crate::staging;
use crate::store::Store;

pub use finding::{Finding, Found, Outcome, Severity};
pub use repair::{Refetch, RepairOptions};

use prove::Verdict;

/// How thorough a check is.
#[derive(Clone, Debug)]
pub struct CheckOptions {
    /// Compare the files of each layer with its blob.
    pub layers: bool,
    /// Blobs and layers that are read at the same time.
    pub threads: NonZeroUsize,
}

impl Default for CheckOptions {
    fn default() -> Self {
        Self { layers: true, threads: NonZeroUsize::MIN.saturating_add(1) }
    }
}

/// What was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// Names.
    pub names: u64,
    /// Images.
    pub images: u64,
    /// Blobs read.
    pub blobs: u64,
    /// Their bytes.
    pub blob_bytes: u64,
    /// Layers that are there.
    pub layers: u64,
    /// Layers whose files were found to be those of their blob.
    pub layers_proven: u64,
}

/// What a check or repair has to say. No finding: the store is sound.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FsckReport {
    /// What was looked at.
    pub checked: Checked,
    /// Sorted.
    pub findings: Vec<Found>,
}

/// Everything in the root.
const TOP: [&str; 11] = [
    "blobs",
    "format.json",
    "format.json.new",
    "images",
    "layers",
    "lock",
    "lost+found",
    PARTIAL,
    quarantine::NAME,
    "refs",
    "staging",
];

/// What a check saw; a repair starts from it.
#[derive(Default)]
struct Survey {
    found: BTreeSet<Finding>,
    names: Vec<(ImageName, Digest)>,
    images: BTreeMap<Digest, ImageRecord>,
    /// Blobs that can be read, with their sizes.
    blobs: BTreeMap<Digest, u64>,
    /// Those among them that have the digest of their name.
    good: BTreeSet<Digest>,
    /// Layers that are there, whole or not.
    layers: BTreeSet<DiffId>,
    /// Those among them that lack a part.
    incomplete: BTreeSet<DiffId>,
    checked: Checked,
}

impl Store {
    /// Checks the whole store, reading every blob and every layer. Findings are sorted; none means the store is
    /// sound.
    ///
    /// May run beside imports; waits for a prune, and a prune fails while it runs.
    pub fn fsck(&self) -> Result<Vec<Finding>> {
        let _shared = self.lock(FlockOperation::LockShared)?;
        Ok(self.survey(&CheckOptions::default())?.found.into_iter().collect())
    }

    /// As [`Store::fsck`], with a choice of what to look at and an account of it.
    pub fn check(&self, options: &CheckOptions) -> Result<FsckReport> {
        let _shared = self.lock(FlockOperation::LockShared)?;
        let survey = self.survey(options)?;
        let found = |finding| Found::new(finding, Outcome::Open { why: None });
        Ok(FsckReport {
            checked: survey.checked,
            findings: survey.found.into_iter().map(found).collect(),
        })
    }

    fn survey(&self, options: &CheckOptions) -> Result<Survey> {
        let mut survey = Survey::default();
        for name in self.list_names(&self.dir, ".")? {
            if !TOP.contains(&name.as_str()) {
                survey.found.insert(Finding::Stray { path: name });
            }
        }
        for name in disk::open_dir(&self.dir, "blobs")
            .and_then(|dir| disk::names(&dir))
            .map_err(|e| self.io("list", "blobs", e))?
        {
            if name != "sha256" {
                survey.found.insert(Finding::Stray { path: format!("blobs/{name}") });
            }
        }
        // Names before images before layers and blobs: an import that ends meanwhile makes them in reverse.
        self.survey_names(&mut survey)?;
        self.survey_images(&mut survey)?;
        for (name, manifest) in &survey.names {
            if !survey.images.contains_key(manifest) {
                let (name, manifest) = (name.clone(), *manifest);
                survey.found.insert(Finding::DanglingName { name, manifest });
            }
        }
        self.survey_layers(&mut survey)?;
        self.survey_blobs(&mut survey, options)?;
        let images: Vec<ImageRecord> = survey.images.values().cloned().collect();
        for record in &images {
            self.survey_image(record, &mut survey);
        }
        for name in staging::leftovers(&self.staging).map_err(|e| self.io("list", "staging", e))? {
            survey.found.insert(Finding::StagingLeftover { name });
        }
        self.survey_permissions(&mut survey.found)?;
        survey.checked.names = survey.names.len() as u64;
        survey.checked.images = survey.images.len() as u64;
        survey.checked.layers = survey.layers.len() as u64;
        Ok(survey)
    }

    fn list_names(&self, at: &File, path: &str) -> Result<Vec<String>> {
        disk::names(at).map_err(|e| self.io("list", path, e))
    }

    fn survey_names(&self, survey: &mut Survey) -> Result<()> {
        for file in self.list_names(&self.refs, "refs")? {
            let path = format!("refs/{file}");
            let Some(name) = FileName::decode(&file) else {
                survey.found.insert(Finding::Stray { path });
                continue;
            };
            match self.read_record::<RefRecord>(&self.refs, "refs", &file) {
                // Removed since the directory was read.
                Ok(None) => {}
                Ok(Some(record)) if record.name == name => {
                    survey.names.push((name, record.manifest));
                }
                Ok(Some(record)) => {
                    let about = record.name.to_string();
                    survey.found.insert(Finding::Misnamed { path, about });
                }
                Err(e) => drop(survey.found.insert(unreadable(path, &e))),
            }
        }
        Ok(())
    }

    fn survey_images(&self, survey: &mut Survey) -> Result<()> {
        for file in self.list_names(&self.images, "images")? {
            let path = format!("images/{file}");
            let Some(digest) = image_file_digest(&file) else {
                survey.found.insert(Finding::Stray { path });
                continue;
            };
            match self.read_record::<ImageRecord>(&self.images, "images", &file) {
                Ok(None) => {}
                Ok(Some(record)) if record.manifest == digest => {
                    survey.images.insert(digest, record);
                }
                Ok(Some(record)) => {
                    let about = record.manifest.to_string();
                    survey.found.insert(Finding::Misnamed { path, about });
                }
                Err(e) => drop(survey.found.insert(unreadable(path, &e))),
            }
        }
        Ok(())
    }

    fn survey_layers(&self, survey: &mut Survey) -> Result<()> {
        for name in self.list_names(&self.layers, "layers")? {
            let path = format!("layers/{name}");
            let Some(layer) = Digest::from_hex(&name).map(DiffId) else {
                survey.found.insert(Finding::Stray { path });
                continue;
            };
            survey.layers.insert(layer);
            let inside = disk::open_dir(&self.layers, &name).and_then(|dir| disk::names(&dir));
            let inside = match inside {
                Ok(inside) => inside,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    // Pruned since the directory was read: no prune runs now.
                    survey.layers.remove(&layer);
                    continue;
                }
                Err(e) => {
                    survey.incomplete.insert(layer);
                    let why = e.to_string();
                    survey.found.insert(if is_disk(&e) {
                        Finding::ReadError { path, why }
                    } else {
                        Finding::LayerIncomplete { layer, why }
                    });
                    continue;
                }
            };
            for file in inside.iter().filter(|f| !matches!(f.as_str(), "fs" | "layer.json")) {
                survey.found.insert(Finding::Stray { path: format!("{path}/{file}") });
            }
            if !inside.iter().any(|f| f == "fs") {
                survey.incomplete.insert(layer);
                let why = "it has no files".to_owned();
                survey.found.insert(Finding::LayerIncomplete { layer, why });
            } else if let Err(e) = self.layer_record(&layer) {
                survey.incomplete.insert(layer);
                survey.found.insert(match unreadable(format!("{path}/layer.json"), &e) {
                    Finding::Unreadable { why, .. } => Finding::LayerIncomplete { layer, why },
                    other => other,
                });
            }
        }
        Ok(())
    }

    /// Reads all blobs, and the layers along with them.
    fn survey_blobs(&self, survey: &mut Survey, options: &CheckOptions) -> Result<()> {
        let mut blobs = BTreeSet::new();
        for file in self.list_names(&self.blobs, "blobs/sha256")? {
            match Digest::from_hex(&file) {
                Some(blob) => drop(blobs.insert(blob)),
                None => {
                    survey.found.insert(Finding::Stray { path: format!("blobs/sha256/{file}") });
                }
            }
        }
        let mut candidates = Candidates::new();
        if options.layers {
            for layer in survey.images.values().flat_map(|r| &r.layers) {
                let whole = survey.layers.contains(&layer.diff_id)
                    && !survey.incomplete.contains(&layer.diff_id);
                let known = candidates.entry(layer.diff_id).or_default();
                if whole
                    && blobs.contains(&layer.blob)
                    && !known.iter().any(|k| k.blob == layer.blob)
                {
                    known.push(layer.clone());
                }
            }
        }
        let mut next = assign(&mut candidates);
        let mut jobs: Vec<Job> = blobs.iter().map(|blob| (*blob, next.remove(blob))).collect();
        while !jobs.is_empty() {
            for (blob, layer, proof) in self.prove_all(&jobs, options.threads) {
                if Self::note_blob(survey, &blob, layer.as_ref(), proof)
                    && let Some(layer) = layer
                {
                    candidates.remove(&layer.diff_id);
                }
            }
            // A layer whose blob is damaged may have come in another blob, too.
            jobs = assign(&mut candidates).into_iter().map(|(b, l)| (b, Some(l))).collect();
        }
        Ok(())
    }

    /// Notes what came of a blob; says whether something is known of the layer now.
    fn note_blob(
        survey: &mut Survey,
        blob: &Digest,
        layer: Option<&LayerRef>,
        proof: io::Result<Option<prove::Proof>>,
    ) -> bool {
        let path = format!("blobs/sha256/{}", blob.hex());
        let proof = match proof {
            // Pruned before we took the lock.
            Ok(None) => return false,
            Ok(Some(proof)) => proof,
            Err(e) => {
                let why = e.to_string();
                survey.found.insert(if is_disk(&e) {
                    Finding::ReadError { path, why }
                } else {
                    Finding::Unreadable { path, why }
                });
                return false;
            }
        };
        if survey.blobs.insert(*blob, proof.size).is_none() {
            survey.checked.blobs += 1;
            survey.checked.blob_bytes += proof.size;
        }
        if proof.digest != *blob {
            survey.found.insert(Finding::BlobCorrupt { blob: *blob, got: proof.digest });
            return false;
        }
        survey.good.insert(*blob);
        let (Some(layer), Some(verdict)) = (layer, proof.layer) else {
            return false;
        };
        let layer = layer.diff_id;
        match verdict {
            Verdict::Same => survey.checked.layers_proven += 1,
            Verdict::Changed(difference) => {
                survey.found.insert(Finding::LayerChanged {
                    layer,
                    path: difference.path,
                    why: difference.why,
                    differences: difference.count,
                });
            }
            Verdict::Unreadable { path, why } => {
                let path = format!("layers/{}/fs/{path}", layer.hex());
                survey.found.insert(Finding::ReadError { path, why });
            }
            Verdict::NotThis(why) => {
                survey.found.insert(Finding::LayerUnproven { layer, blob: *blob, why });
                return false;
            }
            Verdict::Unchecked(why) => {
                survey.found.insert(Finding::LayerUnchecked { layer, blob: *blob, why });
                return false;
            }
        }
        true
    }

    fn prove_all(&self, jobs: &[Job], threads: NonZeroUsize) -> Vec<Proven> {
        let next = AtomicUsize::new(0);
        let done = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..threads.get().min(jobs.len()) {
                scope.spawn(|| {
                    while let Some((blob, layer)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let proof = self.prove(blob, layer.as_ref());
                        let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                        done.push((*blob, layer.clone(), proof));
                    }
                });
            }
        });
        done.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn survey_image(&self, record: &ImageRecord, survey: &mut Survey) {
        let image = record.manifest;
        let before = survey.found.len();
        for (blob, expected) in record.blobs() {
            let object = format!("blobs/sha256/{}", blob.hex());
            let said = |f: &Finding| match f {
                Finding::ReadError { path, .. } | Finding::Unreadable { path, .. } => {
                    *path == object
                }
                _ => false,
            };
            match survey.blobs.get(&blob) {
                None if survey.found.iter().any(said) => {}
                None => drop(survey.found.insert(Finding::BlobMissing { image, blob })),
                Some(got) if *got != expected => {
                    survey.found.insert(Finding::BlobSize { image, blob, expected, got: *got });
                }
                Some(_) => {}
            }
        }
        for layer in record.layers.iter().map(|l| l.diff_id) {
            if !self.is_packed() && !survey.layers.contains(&layer) {
                survey.found.insert(Finding::LayerMissing { image, layer });
            }
        }
        // With a part missing or damaged this would only repeat it.
        if survey.found.len() == before
            && survey.good.contains(&record.config)
            && let Err(e) = self.assemble(record)
        {
            survey.found.insert(Finding::ImageInconsistent { image, why: e.to_string() });
        }
    }
}

/// Blobs that a layer could be compared with.
type Candidates = BTreeMap<DiffId, Vec<LayerRef>>;

/// Takes one candidate of each layer; a blob that two layers claim serves one of them per round.
fn assign(candidates: &mut Candidates) -> BTreeMap<Digest, LayerRef> {
    let mut assigned = BTreeMap::new();
    candidates.retain(|_, refs| {
        if let Some(first) = refs.first()
            && !assigned.contains_key(&first.blob)
        {
            let layer = refs.remove(0);
            assigned.insert(layer.blob, layer);
            return true;
        }
        !refs.is_empty()
    });
    assigned
}

type Job = (Digest, Option<LayerRef>);
type Proven = (Digest, Option<LayerRef>, io::Result<Option<prove::Proof>>);

fn unreadable(path: String, error: &Error) -> Finding {
    match error {
        Error::Damaged { why, .. } => Finding::Unreadable { path, why: why.clone() },
        Error::Io { source, .. } if is_disk(source) => {
            Finding::ReadError { path, why: source.to_string() }
        }
        Error::Io { source, .. } => Finding::Unreadable { path, why: source.to_string() },
        other => Finding::Unreadable { path, why: other.to_string() },
    }
}
