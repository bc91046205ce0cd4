//! cosign's signatures of container images: a signed JSON document ("simple signing"), kept in the registry as the
//! layer of a manifest whose tag is made of the digest that was signed.

use std::collections::BTreeMap;

use base64::Engine as _;
use serde::Deserialize;

use super::identity::{DockerReference, SignedIdentity};
use super::keys::PublicKey;
use crate::digest::Digest;
use crate::document;
use crate::error::{DocumentFault, Error, Result, escape};

const MEDIA_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const ANNOTATION: &str = "dev.cosignproject.cosign/signature";
const KIND: &str = "cosign container image signature";

/// More than that on one image are an attack on our time.
const MAX_SIGNATURES: usize = 64;

/// Bytes of one signed document; they have a few hundred.
const MAX_PAYLOAD: u64 = 64 * 1024;

/// A signature and what it signs; not yet checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// The signed document.
    pub payload: Vec<u8>,
    /// The signature's bytes.
    pub signature: Vec<u8>,
}

/// Where the signatures of an image are found.
pub trait SignatureSource {
    /// All signatures of a manifest; none if it has no.
    fn signatures(&self, manifest: &Digest) -> Result<Vec<Signature>>;
}

/// The tag under which a registry keeps the signatures of a manifest.
#[must_use]
pub fn signature_tag(manifest: &Digest) -> String {
    format!("sha256-{}.sig", manifest.hex())
}

/// Reads the manifest behind [`signature_tag`]; `blob` gets the bytes of a digest and verifies them.
pub fn attached_signatures(
    manifest: &[u8],
    blob: &mut dyn FnMut(&Digest, u64) -> Result<Vec<u8>>,
) -> Result<Vec<Signature>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Manifest {
        layers: Vec<Layer>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Layer {
        media_type: String,
        digest: Digest,
        size: u64,
        #[serde(default)]
        annotations: BTreeMap<String, String>,
    }
    let about = |why| Error::document("manifest of signatures", why);
    let parsed: Manifest = document::parse(manifest).map_err(about)?;
    // Attestations and whatever else is attached are not ours.
    let ours: Vec<Layer> =
        parsed.layers.into_iter().filter(|l| l.media_type == MEDIA_TYPE).collect();
    if ours.len() > MAX_SIGNATURES {
        return Err(about(DocumentFault::Json(format!("more than {MAX_SIGNATURES} signatures"))));
    }
    let mut signatures = Vec::new();
    for layer in ours {
        let text = layer.annotations.get(ANNOTATION).map(String::as_str).unwrap_or_default();
        let Ok(signature) = base64::engine::general_purpose::STANDARD.decode(text) else {
            // Others may be good; this one proves nothing.
            continue;
        };
        if layer.size > MAX_PAYLOAD {
            return Err(about(DocumentFault::Json("a signed document is too large".into())));
        }
        signatures.push(Signature { payload: blob(&layer.digest, layer.size)?, signature });
    }
    Ok(signatures)
}

/// What is signed.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Payload {
    critical: Critical,
    /// Says who and when; nothing is decided by it.
    #[serde(default, rename = "optional")]
    _optional: Option<serde_json::Map<String, serde_json::Value>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Critical {
    identity: Identity,
    image: Image,
    r#type: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Identity {
    #[serde(rename = "docker-reference")]
    reference: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Image {
    #[serde(rename = "docker-manifest-digest")]
    digest: Digest,
}

impl Signature {
    /// Checks key, kind, digest and identity, in this order: nothing of an unsigned document is believed.
    pub(super) fn check(
        &self,
        keys: &[PublicKey],
        identity: &SignedIdentity,
        image: Option<&DockerReference>,
        manifest: &Digest,
    ) -> std::result::Result<(), String> {
        if !keys.iter().any(|key| key.verifies(&self.payload, &self.signature)) {
            return Err("it is not by the demanded key".into());
        }
        let payload: Payload =
            document::parse(&self.payload).map_err(|e| format!("its document is odd: {e}"))?;
        let Critical { identity: about, image: signed, r#type } = payload.critical;
        if r#type != KIND {
            return Err(format!(
                "it is a signature of another kind: {}",
                escape(r#type.as_bytes())
            ));
        }
        if signed.digest != *manifest {
            return Err(format!("it is for another image: {}", signed.digest));
        }
        if !identity.accepts(image, &about.reference) {
            let about = escape(about.reference.as_bytes());
            return Err(format!("it is for the image under another name: {about}"));
        }
        Ok(())
    }
}
