//! `stat`: how many MiB an image will count, without bringing it in.
//!
//! The answer becomes the size of a VM's disk where the VM's template says nothing. So a container image has at least
//! `images.disk_mb`: its layers are shared and take nothing of that disk, what the guest writes does. A machine's disk has
//! the size that the machine saw. A user waits for the answer, so servers get little time.

use std::path::Path;
use std::time::Duration;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_datastore::{
    Cancel, HttpsUrl, Limits, Patience, Registries, RegistriesConfig, RegistryReference, Source,
};
use ocivisor_opennebula::ds::Place;

use super::{Driver, bring, data};
use crate::fault::{clip, failed, from_store};

impl Driver<'_> {
    pub(super) fn stat(&mut self) -> Result<String> {
        let place = Place::parse(&self.call.image.path)?;
        let least = |bytes: u64| mib(bytes).max(self.config.images.disk_mb);
        // Of `oneimage create --size`.
        let own = self.call.image.size_mb.filter(|mb| *mb > 0);
        let answer = match place {
            Place::Registry { reference, size_mb, .. } => {
                let reference: RegistryReference = reference.parse().map_err(|e| from_store(&e))?;
                let found = self.hasty().inspect(&reference, &Limits::default(), &Cancel::new());
                // Also where the size is given: an image that is not there is better told now.
                let found = found.map_err(|e| from_store(&e))?;
                size_mb.or(own).unwrap_or_else(|| least(found.size))
            }
            Place::Web { url } => {
                let registries = self.hasty();
                let address = HttpsUrl::of(&url, &registries).map_err(|e| from_store(&e))?;
                let length =
                    registries.length(&address, &Cancel::new()).map_err(|e| from_store(&e))?;
                match (own, length) {
                    (Some(own), _) => own,
                    (None, Some(length)) if is_archive(&url) => least(length),
                    (None, Some(length)) => mib(length),
                    (None, None) => {
                        let text =
                            format!("{:?}: the server does not say how long it is", clip(&url));
                        return Err(Error::new(ErrorKind::Image, text).hint("give SIZE"));
                    }
                }
            }
            Place::Dockerfile { path, size_mb, .. } => {
                self.resolve(&path, false)?;
                size_mb.or(own).unwrap_or_else(|| least(0))
            }
            Place::Local { scheme, path } => {
                let (path, _) = self.resolve(&path, scheme.is_some())?;
                let found = self.local_size(scheme, &path)?;
                own.unwrap_or(found)
            }
        };
        Ok(answer.to_string())
    }

    fn local_size(&self, scheme: Option<&str>, path: &Path) -> Result<u64> {
        let least = |bytes: u64| mib(bytes).max(self.config.images.disk_mb);
        if path.is_dir() {
            return Ok(least(directory(path)?));
        }
        let file = bring::open(path)?;
        let length = file.metadata().map_err(|e| failed("inspect", path, &e))?.len();
        let disk = match scheme {
            Some("disk" | "raw" | "qcow2") => true,
            Some(_) => false,
            None => !matches!(
                Source::detect(path),
                Ok(Source::OciArchive { .. }
                    | Source::DockerArchive { .. }
                    | Source::RootfsTar { .. })
            ),
        };
        if disk {
            data::inspect(&file, &path.display().to_string()).map(|disk| mib(disk.size))
        } else {
            Ok(least(length))
        }
    }

    /// Registries with as much patience as a user has.
    fn hasty(&self) -> Registries {
        let most = self.config.images.stat_timeout.max(1);
        let config = RegistriesConfig {
            attempts: 2,
            deadline_seconds: most,
            ..self.config.registries.clone()
        };
        let half = Duration::from_millis(most * 500);
        let patience = Patience { connect: half, answer: half, ..Patience::default() };
        Registries::new(config).with_patience(patience)
    }
}

/// Rounded up, and never 0: that would count as no size at all.
fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20).max(1)
}

/// What a file on a web server is can only be told from its name until it is here.
fn is_archive(url: &str) -> bool {
    let path = url.split(['?', '#']).next().unwrap_or_default().to_ascii_lowercase();
    let plain =
        [".gz", ".xz", ".zst"].iter().find_map(|end| path.strip_suffix(end)).unwrap_or(&path);
    plain.ends_with(".tar") || [".tgz", ".txz"].iter().any(|end| path.ends_with(end))
}

/// Bytes of the blobs of an image layout.
fn directory(path: &Path) -> Result<u64> {
    let blobs = path.join("blobs/sha256");
    let Ok(entries) = std::fs::read_dir(&blobs) else { return Ok(0) };
    let mut total: u64 = 0;
    for entry in entries.take(100_000) {
        let entry = entry.map_err(|e| failed("list", &blobs, &e))?;
        total = total.saturating_add(entry.metadata().map_or(0, |meta| meta.len()));
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_up() {
        assert_eq!([0, 1, 1 << 20, (1 << 20) + 1].map(mib), [1, 1, 1, 2]);
        for url in ["https://a/x.tar", "https://a/x.tar.xz?sig=1", "https://a/X.TGZ"] {
            assert!(is_archive(url), "{url}");
        }
        for url in ["https://a/x.iso", "https://a/x.qcow2.xz", "https://a/tar"] {
            assert!(!is_archive(url), "{url}");
        }
    }
}
