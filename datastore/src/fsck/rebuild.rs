//! Making documents again: image records from manifests, and the manifests and configs that the store itself
//! wrote for images that came without one.

use std::fs::File;
use std::io::{self, Read, Write};

use super::Survey;
use super::finding::Finding;
use super::prove::Verdict;
use super::quarantine::Quarantine;
use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::disk;
use crate::document::{self, Descriptor, Manifest, OCI_CONFIG, OCI_MANIFEST};
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::record::{ImageRecord, LayerRef, Record, image_file};
use crate::staging::Staged;
use crate::store::Store;

/// Bounds for what was accepted once, whatever the limits were then.
fn limits() -> Limits {
    Limits { layers: usize::MAX, ..Limits::default() }
}

impl Store {
    /// A document of this image that the store wrote itself, if `wanted` is one.
    pub(super) fn synthesized(&self, record: &ImageRecord, wanted: &Digest) -> Option<Vec<u8>> {
        let bytes = if *wanted == record.config {
            match &record.layers[..] {
                [only] => ImageConfig::synthesize(only.diff_id).ok()?,
                _ => return None,
            }
        } else {
            let descriptor = |media_type: &str, digest, size| Descriptor {
                media_type: media_type.to_owned(),
                digest,
                size,
                platform: None,
                annotations: None,
            };
            let layers =
                record.layers.iter().map(|l| descriptor(&l.media_type, l.blob, l.size)).collect();
            let config = descriptor(OCI_CONFIG, record.config, record.config_size);
            Manifest::synthesize(config, layers).ok()?
        };
        (Digest::of(&bytes) == *wanted).then_some(bytes)
    }

    /// Writes a blob from a source that is not trusted; says what was wrong with it.
    pub(super) fn write_blob(
        &self,
        blob: &Digest,
        from: &mut dyn Read,
        size: Option<u64>,
    ) -> Result<u64> {
        let hex = blob.hex();
        let mut write = || {
            let staged = Staged::create(&self.staging, "fsck")?;
            let mut file = disk::create_new(&staged.dir, "blob")?;
            let count = copy(from, &mut file, size)?;
            file.sync_all()?;
            let written = disk::open_file(&staged.dir, "blob")?;
            let got = written.map(hash).transpose()?;
            if got != Some(*blob) {
                return Err(io::Error::other("the source gave other bytes"));
            }
            disk::publish(&staged.dir, "blob", &self.blobs, &hex)?;
            Ok(count)
        };
        write().map_err(|e: io::Error| self.io("write", &format!("blobs/sha256/{hex}"), e))
    }

    /// Reads the record of an image out of its manifest and config, and proves its layers; layers that are absent, or
    /// of other files, are unpacked.
    pub(super) fn rebuild_record(
        &self,
        manifest: &Digest,
        survey: &Survey,
        obtain: &mut dyn FnMut(&Digest, Option<u64>) -> bool,
        quarantine: &mut Quarantine<'_>,
    ) -> Result<ImageRecord> {
        let absent = |blob: &Digest| Error::damaged(format!("blob {blob}"), "is absent");
        let mut have = |blob: &Digest, size: Option<u64>| {
            if survey.good.contains(blob) || obtain(blob, size) {
                Ok(())
            } else {
                Err(absent(blob))
            }
        };
        let limits = limits();
        have(manifest, None)?;
        let bytes = self.document(manifest, &limits)?;
        let about = |why| Error::document(format!("manifest {manifest}"), why);
        let media_type = media_type(&bytes);
        let parsed = Manifest::parse(&bytes, &media_type, &limits).map_err(about)?;
        let config = parsed.config.digest;
        have(&config, Some(parsed.config.size))?;
        let config_bytes = self.document(&config, &limits)?;
        let (_, diff_ids) = ImageConfig::parse(&config_bytes, &limits)
            .map_err(|why| Error::document(format!("config {config}"), why))?;
        if diff_ids.len() != parsed.layers.len() {
            return Err(Error::damaged(
                format!("config {config}"),
                "lists other layers than the manifest",
            ));
        }
        let mut layers = Vec::new();
        for (layer, diff_id) in parsed.layers.iter().zip(diff_ids) {
            have(&layer.digest, Some(layer.size))?;
            let layer = LayerRef {
                diff_id,
                blob: layer.digest,
                media_type: layer.media_type.clone(),
                size: layer.size,
            };
            let object = || format!("layer {diff_id}");
            if self.is_packed() {
                // Hosts prove it.
            } else if self.has_layer(&diff_id)? {
                // The pair of blob and layer is what a record vouches for.
                let proof = self.prove(&layer.blob, Some(&layer)).map_err(|e| {
                    self.io("read", &format!("blobs/sha256/{}", layer.blob.hex()), e)
                })?;
                match proof.and_then(|p| p.layer) {
                    Some(Verdict::Same) => {}
                    Some(Verdict::Changed(_) | Verdict::Unreadable { .. }) => {
                        let told = |f: &Finding| matches!(f, Finding::LayerChanged { layer, .. } if *layer == diff_id);
                        // Else the finding has it replaced.
                        if !survey.found.iter().any(told) {
                            self.replace_layer(&layer, quarantine)?;
                        }
                    }
                    Some(Verdict::NotThis(why)) => return Err(Error::damaged(object(), why)),
                    Some(Verdict::Unchecked(why)) => {
                        return Err(Error::Worker { object: object(), why });
                    }
                    None => return Err(absent(&layer.blob)),
                }
            } else {
                self.replace_layer(&layer, quarantine)?;
            }
            layers.push(layer);
        }
        let size = |bytes: &[u8]| bytes.len() as u64;
        let record =
            ImageRecord::new((*manifest, size(&bytes)), (config, size(&config_bytes)), layers);
        self.write_record(&record)?;
        Ok(record)
    }

    fn document(&self, blob: &Digest, limits: &Limits) -> Result<Vec<u8>> {
        let size = disk::file_size(&self.blobs, &blob.hex())
            .map_err(|e| self.io("inspect", &format!("blobs/sha256/{}", blob.hex()), e))?
            .unwrap_or_default();
        if size > limits.document_bytes {
            return Err(Error::damaged(format!("blob {blob}"), "is too large for a document"));
        }
        self.small_blob(blob, size)
    }

    fn write_record(&self, record: &ImageRecord) -> Result<()> {
        let file = image_file(&record.manifest);
        let write = || {
            let staged = Staged::create(&self.staging, "fsck")?;
            disk::write_new(&staged.dir, "record", &record.encode()?)?;
            disk::publish(&staged.dir, "record", &self.images, &file)
        };
        write().map_err(|e: io::Error| self.io("write", &format!("images/{file}"), e))
    }
}

/// What a manifest says it is. An OCI one need not say so (image-spec, "Image Manifest"), any other must; one that says
/// nothing, or is no JSON, is therefore read as an OCI manifest, and refused there if it is none.
fn media_type(manifest: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Typed {
        media_type: Option<String>,
    }
    let typed: Option<Typed> = document::parse(manifest).ok();
    typed.and_then(|t| t.media_type).unwrap_or_else(|| OCI_MANIFEST.to_owned())
}

fn copy(from: &mut dyn Read, to: &mut File, size: Option<u64>) -> io::Result<u64> {
    let mut buf = vec![0; 128 * 1024];
    let mut total = 0;
    loop {
        let n = match from.read(&mut buf) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        if n == 0 {
            return Ok(total);
        }
        total += n as u64;
        if size.is_some_and(|size| total > size) {
            return Err(io::Error::other("the source gave more bytes than the blob has"));
        }
        to.write_all(&buf[..n])?;
    }
}

fn hash(mut file: File) -> io::Result<Digest> {
    use sha2::Digest as _;
    let mut hasher = sha2::Sha256::new();
    let mut buf = vec![0; 128 * 1024];
    loop {
        match file.read(&mut buf)? {
            0 => return Ok(Digest::finish(hasher)),
            n => hasher.update(&buf[..n]),
        }
    }
}
