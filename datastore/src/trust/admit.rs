//! Where imports ask: before anything of an image is read from its source, and again when its digest is known.

use std::path::Path;

use super::{Distrust, DockerReference, Origin, Policy, SignatureSource};
use crate::digest::Digest;
use crate::error::{Error, Result, escape};
use crate::source::{RegistrySource, Source};
use crate::store::Store;

impl Store {
    /// Lets in from now on only what the policy allows. Without one everything may come in.
    #[must_use]
    pub fn with_policy(mut self, policy: Policy) -> Self {
        self.policy = Some(policy);
        self
    }

    /// Refuses a source whose images cannot satisfy the policy whatever they are. For an image in a registry that
    /// needs a signature this is not the last word: see [`Store::admit_signed`].
    pub(crate) fn admit(&self, source: &Source) -> Result<()> {
        let Some(policy) = &self.policy else { return Ok(()) };
        let origin = origin(source);
        if matches!(source, Source::Registry(_)) && policy.wants_signatures(&origin) {
            return Ok(());
        }
        // Without signatures no digest matters.
        policy.verify(&origin, &Digest::of(b""), &[]).map_err(|why| untrusted(source, why))
    }

    /// Whether [`Store::admit_signed`] has to be asked before an image of this source is used.
    pub(crate) fn wants_signatures(&self, source: &RegistrySource) -> bool {
        let origin = registry(source);
        self.policy.as_ref().is_some_and(|policy| policy.wants_signatures(&origin))
    }

    /// Decides on an image in a registry. `chain` is its manifest and the index that led there, if there is one:
    /// a signature of either is one of the image, for the index holds the manifest's digest.
    pub(crate) fn admit_signed(
        &self,
        source: &RegistrySource,
        chain: &[Digest],
        signatures: &dyn SignatureSource,
    ) -> Result<()> {
        let Some(policy) = self.policy.as_ref().filter(|_| self.wants_signatures(source)) else {
            return Ok(());
        };
        let origin = registry(source);
        let mut first = None;
        for digest in chain {
            match policy.verify(&origin, digest, &signatures.signatures(digest)?) {
                Ok(()) => return Ok(()),
                // What is wrong with a signature says more than that there is none.
                Err(why) => match first {
                    None | Some(Distrust::Unsigned { .. }) => first = Some(why),
                    Some(_) => {}
                },
            }
        }
        let unsigned = || Distrust::Unsigned { scope: policy.decide(&origin).0 };
        let from = escape(source.reference.to_string().as_bytes());
        Err(Error::Untrusted { from, why: first.unwrap_or_else(unsigned) })
    }
}

fn origin(source: &Source) -> Origin {
    // Scopes are paths without links; a path that is not there fails later, with its own message.
    let plain = |path: &Path| std::fs::canonicalize(path).unwrap_or_default();
    match source {
        Source::OciLayout { dir, tag } => Origin::layout(&plain(dir), tag.as_deref()),
        Source::OciArchive { file, .. } => Origin::archive(&plain(file)),
        Source::DockerArchive { .. } => Origin::docker_archive(),
        Source::Registry(source) => registry(source),
        Source::RootfsTar { .. } | Source::HttpsTar(_) | Source::DiskImage { .. } => {
            Origin::root_file_system()
        }
    }
}

fn registry(source: &RegistrySource) -> Origin {
    let reference = &source.reference;
    let digest = reference.digest().copied();
    // With both the digest decides; with neither it is the tag that is fetched.
    let tag = if digest.is_some() { None } else { Some(reference.tag().unwrap_or("latest")) };
    let (host, repository) = (reference.host().as_str(), reference.repository());
    Origin::registry(DockerReference::new(host, repository, tag, digest))
}

fn untrusted(source: &Source, why: Distrust) -> Error {
    let from = match source {
        Source::OciLayout { dir: path, .. }
        | Source::OciArchive { file: path, .. }
        | Source::DockerArchive { file: path, .. }
        | Source::RootfsTar { file: path }
        | Source::DiskImage { file: path, .. } => path.display().to_string(),
        Source::Registry(source) => source.reference.to_string(),
        Source::HttpsTar(source) => source.url.to_string(),
    };
    Error::Untrusted { from: escape(from.as_bytes()), why }
}
