//! Images are kept, named, checked, or forgotten.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::PoisonError;
use std::time::{Duration, Instant, SystemTime};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_datastore as store;
use ocivisor_datastore::{
    CheckOptions, Digest, ImageName, Outcome, PruneOptions, Reference, RepairOptions,
};
use ocivisor_schema::image::{DfReply, FindingV1, FindingsV1, ImageUseV1, PrunedV1};
use ocivisor_schema::reply::ImageInfo;

use super::look::since_1970;
use super::{Images, ours};
use crate::jobs::Teller;

/// Downloads that nobody went on with for so long are given up by a prune.
const PARTIAL_AGE: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long the store's lock is waited for.
const FREE: Duration = Duration::from_secs(2);

impl Images {
    /// Gives an image another name.
    pub fn tag(&self, image: &str, name: &str) -> Result<ImageInfo> {
        let reference: Reference = image.parse().map_err(|e| ours(&e))?;
        let name: ImageName = name.parse().map_err(|e| ours(&e))?;
        self.store.tag(&reference, &name).map_err(|e| ours(&e))?;
        self.one(&Reference::Name(name))
    }

    /// Forgets a name, then gives back what nothing needs: no name, no disk of `disks`, and no disk
    /// made here that still exists.
    pub fn remove(&self, name: &str, disks: impl Fn() -> Result<Vec<PathBuf>>) -> Result<bool> {
        let parsed: ImageName = name.parse().map_err(|e| ours(&e))?;
        let removed = self.store.remove(&parsed).map_err(|e| ours(&e))?;
        if !removed {
            let what = format!("no image {name}");
            return Err(
                Error::new(ErrorKind::NotFound, what).hint("ocivisor image list shows them")
            );
        }
        match self.prune(disks, None, false) {
            Ok(pruned) => tracing::info!(?pruned, "pruned"),
            Err(error) if error.kind == ErrorKind::Conflict => {
                tracing::info!("an import runs: pruned another time");
            }
            // Keep everything rather than break what it is needed by.
            Err(error) => tracing::warn!(%error, "nothing is pruned"),
        }
        Ok(true)
    }

    /// Gives back what nothing needs, and what repairs set aside longer than `quarantine_age` ago.
    /// `disks` are those of all VMs, asked for when no disk is made any more.
    ///
    /// # Errors
    /// `Conflict`: an import runs. What a disk or an image needs is not known.
    pub fn prune(
        &self,
        disks: impl Fn() -> Result<Vec<PathBuf>>,
        quarantine_age: Option<Duration>,
        dry_run: bool,
    ) -> Result<PrunedV1> {
        let _pruning = self.making.write().unwrap_or_else(PoisonError::into_inner);
        let in_use = self.in_use(&disks()?, !dry_run)?;
        let partial_age = Some(PARTIAL_AGE);
        let options = PruneOptions { in_use: &in_use, dry_run, partial_age, quarantine_age };
        let pruned = when_free(|| self.store.prune_with(&options)).map_err(|e| ours(&e))?;
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        Ok(PrunedV1 {
            images: count(pruned.images.len()),
            layers: count(pruned.layers.len()),
            blobs: pruned.blobs,
            quarantined: count(pruned.quarantined.len()),
            freed_bytes: pruned.blob_bytes
                + pruned.layer_bytes
                + pruned.partial_bytes
                + pruned.quarantine_bytes,
            dry_run,
        })
    }

    /// Forgets images that a platform brought here under a name that is their digest (`opennebula/<digest>`), and that
    /// nobody asked for, nor any disk needed, for so long. Then gives back what only they kept.
    ///
    /// # Errors
    /// What a disk needs is not known: then nothing is forgotten.
    pub fn forget_unused(
        &self,
        disks: impl Fn() -> Result<Vec<PathBuf>>,
        age: Duration,
    ) -> Result<()> {
        let by_digest = |name: &ImageName, digest: &Digest| {
            name.as_str().rsplit_once('/').is_some_and(|(_, last)| last == digest.hex())
        };
        let before = SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
        let forgotten = {
            // A disk half made names no layers yet.
            let _pruning = self.making.write().unwrap_or_else(PoisonError::into_inner);
            let in_use = self.in_use(&disks()?, false)?;
            self.store.forget_unused(before, &in_use, &by_digest).map_err(|e| ours(&e))?
        };
        for name in &forgotten {
            tracing::info!("image {name} was not used for {} days", age.as_secs() / 86_400);
        }
        if forgotten.is_empty() {
            return Ok(());
        }
        match self.prune(disks, None, false) {
            // The next one takes it along.
            Err(error) if error.kind == ErrorKind::Conflict => Ok(()),
            other => other.map(|pruned| tracing::info!(?pruned, "pruned")),
        }
    }

    /// What is wrong with the store; mends it if told to.
    pub fn fsck(
        &self,
        disks: impl Fn() -> Result<Vec<PathBuf>>,
        repair: bool,
        tell: &Teller,
    ) -> Result<FindingsV1> {
        tell.at("comparing blobs and layers", None);
        let report = if repair {
            let in_use = self.in_use(&disks()?, false)?;
            let options =
                RepairOptions { check: CheckOptions::default(), in_use: &in_use, refetch: None };
            when_free(|| self.store.repair(&options))
        } else {
            self.store.check(&CheckOptions::default())
        };
        let report = report.map_err(|e| ours(&e))?;
        let finding = |found: &store::Found| FindingV1 {
            code: found.finding.code().to_owned(),
            severity: found.severity.to_string(),
            object: found.object.clone(),
            message: found.finding.to_string(),
            repair: match &found.outcome {
                Outcome::Repaired { how } => Some(how.clone()),
                Outcome::SetAside { to } => Some(format!("set aside: {to}")),
                _ => None,
            },
        };
        Ok(FindingsV1 {
            findings: report.findings.iter().map(finding).collect(),
            checked_bytes: report.checked.blob_bytes,
        })
    }

    /// What is wrong with the store, a line each; for a daemon that does not run.
    pub fn findings(&self) -> Result<Vec<String>> {
        let found = self.store.fsck().map_err(|e| ours(&e))?;
        Ok(found.iter().map(ToString::to_string).collect())
    }

    /// What the store takes of the disk.
    pub fn df(&self, disks: Result<Vec<PathBuf>>) -> Result<DfReply> {
        // A disk whose layers are not known takes nothing from what the rest is measured by.
        let in_use = disks.and_then(|disks| self.in_use(&disks, false)).unwrap_or_else(|error| {
            tracing::warn!("what can be given back is not known: {error}");
            HashSet::new()
        });
        let usage = self.store.df(&in_use).map_err(|e| ours(&e))?;
        let listed = self.store.list().map_err(|e| ours(&e))?;
        let images = usage.images.iter().map(|image| {
            let found = listed.iter().find(|l| l.manifest_digest == image.manifest_digest);
            ImageUseV1 {
                names: image.names.iter().map(ToString::to_string).collect(),
                digest: image.manifest_digest.to_string(),
                unique_bytes: image.unique,
                shared_bytes: image.shared,
                imported: since_1970(found.map_or(std::time::UNIX_EPOCH, |l| l.imported)),
            }
        });
        Ok(DfReply {
            images: images.collect(),
            blob_bytes: usage.blobs.allocated,
            layer_bytes: usage.layers.allocated,
            partial_bytes: usage.partial.allocated,
            staging_bytes: usage.staging.allocated,
            quarantine_bytes: usage.quarantine.allocated,
            total_bytes: usage.total,
            reclaimable_bytes: usage.reclaimable.unwrap_or(0),
        })
    }
}

/// Tries again for a moment while others hold the store: a process that was just begun holds a copy of
/// their lock until it executes its program.
fn when_free<T>(work: impl Fn() -> store::Result<T>) -> store::Result<T> {
    let deadline = Instant::now() + FREE;
    loop {
        match work() {
            Err(store::Error::Busy { .. }) if Instant::now() < deadline => {
                // Nothing tells when it is free.
                std::thread::park_timeout(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}
