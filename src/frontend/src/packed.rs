//! An image in its datastore, as transfer drivers read it: documents and blobs.

use std::fs::File;
use std::path::Path;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_opennebula::tm::place::DatastorePlace;
use serde::Deserialize;

use crate::files::{Dir, garbled};
use crate::manifest::hex_of;
use crate::ssh::{Link, send_blob};
use crate::wire::{Document, MAX_DOCUMENT, Order, Reply};

/// Most layers of an image.
const MAX_LAYERS: usize = 4096;
/// How often a host may ask for more.
const ROUNDS: usize = 8;
/// What a manifest is that does not say it.
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// An image whose documents were read.
#[derive(Debug)]
pub struct PackedImage {
    blobs: Dir,
    manifest: (Document, Vec<u8>),
    config: (Document, Vec<u8>),
    /// Digests and sizes of the layers' blobs.
    layers: Vec<(String, u64)>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    media_type: Option<String>,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
}

impl PackedImage {
    /// Reads the image of a manifest, `sha256:…`, of a datastore.
    ///
    /// # Errors
    /// `NotFound`: it is not there. `Integrity`: it is damaged; hosts check digests, here it only has to be readable.
    pub fn open(datastore: &DatastorePlace, digest: &str) -> Result<Self> {
        let path = datastore.path().join("store/blobs/sha256");
        let blobs = Dir::open(&path)?;
        let bytes = document(&blobs, digest)?;
        let manifest: Manifest = serde_json::from_slice(&bytes)
            .map_err(|e| garbled(format!("manifest {digest}: {e}")))?;
        if manifest.layers.len() > MAX_LAYERS {
            return Err(garbled(format!("manifest {digest} has too many layers")));
        }
        let config_bytes = document(&blobs, &manifest.config.digest)?;
        let config = Document {
            media_type: manifest.config.media_type,
            digest: manifest.config.digest,
            size: config_bytes.len() as u64,
        };
        let own = Document {
            media_type: manifest.media_type.unwrap_or_else(|| OCI_MANIFEST.to_owned()),
            digest: digest.to_owned(),
            size: bytes.len() as u64,
        };
        let layers = manifest.layers.into_iter().map(|l| (l.digest, l.size)).collect();
        Ok(Self { blobs, manifest: (own, bytes), config: (config, config_bytes), layers })
    }

    /// The manifest's digest.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.manifest.0.digest
    }

    /// Has it on a host, which is sent what it lacks; says how many bytes of layers that were.
    ///
    /// # Errors
    /// The host says why not, or asks for what is not the image's.
    pub fn send(&self, link: &mut Link, datastore: &DatastorePlace) -> Result<u64> {
        link.tell(&Order::Image {
            datastore: datastore.path().display().to_string(),
            manifest: self.manifest.0.clone(),
            config: self.config.0.clone(),
        })?;
        link.write(|to| {
            use std::io::Write;
            let written =
                to.write_all(&self.manifest.1).and_then(|()| to.write_all(&self.config.1));
            written.map_err(crate::files::broken)
        })?;
        let mut sent = 0;
        for _ in 0..ROUNDS {
            match link.answer()? {
                Reply::Done => return Ok(sent),
                Reply::Lacking { blobs } if blobs.len() <= self.layers.len() => {
                    for digest in &blobs {
                        sent += self.send_layer(link, digest)?;
                    }
                }
                other => return Err(link.out_of_turn(&other)),
            }
        }
        Err(garbled("the host asks for the same again and again"))
    }

    fn send_layer(&self, link: &mut Link, digest: &str) -> Result<u64> {
        let Some((_, size)) = self.layers.iter().find(|(known, _)| known == digest) else {
            let what = format!("the host asks for {}, which is no layer", clip(digest));
            return Err(Error::new(ErrorKind::Integrity, what));
        };
        let file = open(&self.blobs, digest)?;
        let there = file.metadata().map_err(|e| self.blobs.failed("look at", digest, e))?.len();
        if there != *size {
            return Err(garbled(format!("blob {digest} has {there} bytes, not {size}"))
                .hint("check the image datastore"));
        }
        send_blob(link, digest, *size, file)?;
        Ok(*size)
    }
}

fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}

fn open(blobs: &Dir, digest: &str) -> Result<File> {
    let file = blobs.file(hex_of(digest)?, false)?;
    file.ok_or_else(|| crate::host::gone(&format!("blob {digest}")))
}

fn document(blobs: &Dir, digest: &str) -> Result<Vec<u8>> {
    let bytes = blobs.read(hex_of(digest)?, MAX_DOCUMENT)?;
    bytes.ok_or_else(|| crate::host::gone(&format!("image {digest}")))
}

/// A writable disk that belongs to an image, and its manifest: `disks/<image>`.
#[derive(Debug)]
pub struct OwnDisk {
    /// The disk.
    pub file: File,
    /// Its manifest as it is.
    pub manifest: Vec<u8>,
}

impl OwnDisk {
    /// Opens that of an image, if it has one.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn open(datastore: &Path, image: u32) -> Result<Option<Self>> {
        let Some(disks) = Dir::open(datastore)?.sub("disks")? else { return Ok(None) };
        let name = image.to_string();
        let Some(file) = disks.file(&name, false)? else { return Ok(None) };
        let manifest = disks.read(&format!("{name}.json"), MAX_DOCUMENT)?.ok_or_else(|| {
            let what = format!("disk of image {image} has no manifest");
            Error::new(ErrorKind::Integrity, what)
        })?;
        Ok(Some(Self { file, manifest }))
    }
}
