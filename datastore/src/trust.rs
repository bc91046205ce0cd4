//! Whether an image may come in: containers-policy.json(5), and sigstore signatures.
//!
//! The policy is the host's, in the file that podman, skopeo and CRI-O read, so that one rule holds for all of them. It
//! says, by where an image comes from, what it must satisfy; the most specific scope alone counts. What the
//! file demands and this program cannot check refuses the image; nothing in it is ever passed over.
//!
//! - `insecureAcceptAnything`, `reject`: as they say.
//! - `sigstoreSigned` with public keys (`keyPath`, `keyData`, or lists of them): a cosign signature, found in the
//!   registry under the tag `sha256-<hex>.sig`, over a document that names the manifest's digest and the
//!   image's identity.
//! - `signedBy` (OpenPGP), Fulcio certificates, PKI, and entries in a Rekor log: read, and refused as unsupported.
//!
//! All decisions are pure: a policy, an origin, a digest and signatures in, a yes or a [`Distrust`] out. Images that
//! come as files have no signatures, so a rule that wants one refuses them.
//!
//! What a refusal prevents: nothing of the image is unpacked, recorded or named. What it does not: images that were
//! imported before the rule stay.

mod admit;
mod identity;
mod keys;
mod policy;
mod signature;

use std::path::Path;

use crate::digest::Digest;
use crate::error::escape;

pub use identity::{DockerReference, SignedIdentity};
pub use policy::{Policy, PolicyError, Requirement};
pub use signature::{Signature, SignatureSource, attached_signatures, signature_tag};

/// Where an image comes from, as a policy sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    transport: &'static str,
    /// Most specific first.
    scopes: Vec<String>,
    /// What a signature may be about; only images in registries have one.
    identity: Option<DockerReference>,
}

impl Origin {
    /// An image in a registry; transport `docker`.
    #[must_use]
    pub fn registry(reference: DockerReference) -> Self {
        Self { transport: "docker", scopes: reference.scopes(), identity: Some(reference) }
    }

    /// A directory in OCI layout; transport `oci`. Scopes are the directory with the tag, the directory, and those
    /// above it. The path must be absolute and without links, else no scope matches.
    #[must_use]
    pub fn layout(dir: &Path, tag: Option<&str>) -> Self {
        let mut scopes = above(dir);
        if let (Some(first), Some(tag)) = (scopes.first().cloned(), tag) {
            scopes.insert(0, format!("{first}:{tag}"));
        }
        Self { transport: "oci", scopes, identity: None }
    }

    /// An OCI archive; transport `oci-archive`, scopes as for a layout but for the tag.
    #[must_use]
    pub fn archive(file: &Path) -> Self {
        Self { transport: "oci-archive", scopes: above(file), identity: None }
    }

    /// An archive of `docker save`; transport `docker-archive`, which has only its default scope.
    #[must_use]
    pub fn docker_archive() -> Self {
        Self { transport: "docker-archive", scopes: Vec::new(), identity: None }
    }

    /// A bare root file system, as tar or on a disk; transport `tarball`, which has only its default scope.
    #[must_use]
    pub fn root_file_system() -> Self {
        Self { transport: "tarball", scopes: Vec::new(), identity: None }
    }
}

/// A path and those above it but for `/`, which no scope may be.
fn above(path: &Path) -> Vec<String> {
    let Some(text) = path.to_str().filter(|_| path.is_absolute()) else {
        return Vec::new();
    };
    let mut text = text.trim_end_matches('/');
    let mut scopes = Vec::new();
    while !text.is_empty() {
        scopes.push(text.to_owned());
        text = text.rsplit_once('/').map_or("", |(above, _)| above);
    }
    scopes
}

/// Why an image may not come in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Distrust {
    /// The policy says `reject`.
    #[error("policy rejects images from {scope}")]
    Rejected {
        /// The part of the policy.
        scope: String,
    },
    /// The policy wants what cannot be checked here.
    #[error("policy for {scope} demands {what}, which is not supported")]
    Unsupported {
        /// The part of the policy.
        scope: String,
        /// What it wants.
        what: String,
    },
    /// A signature is wanted, and there is none.
    #[error("policy for {scope} demands a signature, and the image has none")]
    Unsigned {
        /// The part of the policy.
        scope: String,
    },
    /// There are signatures, and none of them will do.
    #[error("policy for {scope} demands a signature, and none of {count} will do: {why}")]
    BadSignatures {
        /// The part of the policy.
        scope: String,
        /// How many there are.
        count: usize,
        /// What is wrong with the last one.
        why: String,
    },
    /// A key of the policy cannot be used.
    #[error("policy for {scope}: key {key} cannot be used: {why}")]
    Key {
        /// The part of the policy.
        scope: String,
        /// Its path, or that it is in the policy.
        key: String,
        /// The reason.
        why: String,
    },
}

impl Policy {
    /// Whether signatures have to be looked for at all.
    #[must_use]
    pub fn wants_signatures(&self, origin: &Origin) -> bool {
        let (_, requirements) = self.decide(origin);
        requirements.iter().any(|r| matches!(r, Requirement::SigstoreSigned { .. }))
    }

    /// Decides on an image of that manifest digest. Every requirement that applies must be met; each by one
    /// signature.
    pub fn verify(
        &self,
        origin: &Origin,
        manifest: &Digest,
        signatures: &[Signature],
    ) -> Result<(), Distrust> {
        let (scope, requirements) = self.decide(origin);
        for requirement in requirements {
            match requirement {
                Requirement::InsecureAcceptAnything => {}
                Requirement::Reject => return Err(Distrust::Rejected { scope }),
                Requirement::Unsupported { what } => {
                    return Err(Distrust::Unsupported { scope, what: what.clone() });
                }
                Requirement::SigstoreSigned { keys, identity } => {
                    signed(&scope, keys, identity, origin, manifest, signatures)?;
                }
            }
        }
        Ok(())
    }
}

fn signed(
    scope: &str,
    sources: &[policy::KeySource],
    identity: &SignedIdentity,
    origin: &Origin,
    manifest: &Digest,
    signatures: &[Signature],
) -> Result<(), Distrust> {
    let mut keys = Vec::new();
    for source in sources {
        let key = source.read().and_then(|pem| keys::PublicKey::parse(&pem));
        keys.push(key.map_err(|why| Distrust::Key {
            scope: scope.into(),
            key: source.to_string(),
            why,
        })?);
    }
    let mut why = None;
    for signature in signatures {
        match signature.check(&keys, identity, origin.identity.as_ref(), manifest) {
            Ok(()) => return Ok(()),
            Err(reason) => why = Some(escape(reason.as_bytes())),
        }
    }
    Err(match why {
        None => Distrust::Unsigned { scope: scope.into() },
        Some(why) => Distrust::BadSignatures { scope: scope.into(), count: signatures.len(), why },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_of_files_are_their_path_and_those_above() {
        let layout = Origin::layout(Path::new("/srv/images/app"), Some("1"));
        assert_eq!(layout.scopes, ["/srv/images/app:1", "/srv/images/app", "/srv/images", "/srv"]);
        assert_eq!(Origin::layout(Path::new("images"), Some("1")).scopes, Vec::<String>::new());
        assert_eq!(Origin::archive(Path::new("/a.tar")).scopes, ["/a.tar"]);
        assert_eq!(Origin::archive(Path::new("/")).scopes, Vec::<String>::new());
    }
}
