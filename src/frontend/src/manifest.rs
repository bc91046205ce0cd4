//! The manifest beside a root disk, as far as the platform's side reads it: of which image the disk is.
//!
//! Daemons check every field (`docs/format.md`); here it only decides what is sent.

use ocivisor_core::error::Result;
use serde::Deserialize;

use crate::files::garbled;

#[derive(Deserialize)]
struct Manifest {
    image: Image,
}

#[derive(Deserialize)]
struct Image {
    manifest_digest: String,
}

/// Digest of the manifest of the image that a disk was made for: `sha256:…`.
///
/// # Errors
/// `Integrity`: it is damaged.
pub fn image_of(bytes: &[u8]) -> Result<String> {
    let manifest: Manifest = serde_json::from_slice(bytes)
        .map_err(|e| garbled(format!("the manifest of a disk: {e}")))?;
    let digest = manifest.image.manifest_digest;
    hex_of(&digest)?;
    Ok(digest)
}

/// The 64 digits of `sha256:…`.
///
/// # Errors
/// `Integrity`: it is none.
pub fn hex_of(digest: &str) -> Result<&str> {
    let hex = digest.strip_prefix("sha256:").filter(|hex| {
        hex.len() == 64 && hex.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
    });
    hex.ok_or_else(|| garbled("a digest that is none"))
}
