//! The store's own documents, as they lie on disk: image records, refs, layer records.
//!
//! Each carries a version and its own key, so that a file under a wrong name is noticed. Unknown fields are an
//! error: a newer writer that adds one raises the version or names a feature in `format.json`.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::digest::{DiffId, Digest};
use crate::name::ImageName;
use crate::unpack::Report;

const VERSION: u32 = 1;

/// Far above any record: 127 layers are 40 KiB.
pub(crate) const MAX: u64 = 1 << 20;

/// `images/<manifest hex>.json`: an image that is whole in this store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ImageRecord {
    pub version: u32,
    pub manifest: Digest,
    pub manifest_size: u64,
    pub config: Digest,
    pub config_size: u64,
    /// Lowest first, as in the config.
    pub layers: Vec<LayerRef>,
}

/// A layer of an image: the blob it came as, and the directory it became.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LayerRef {
    pub diff_id: DiffId,
    pub blob: Digest,
    pub media_type: String,
    pub size: u64,
}

/// `refs/<encoded name>`: a name and what it points at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RefRecord {
    pub version: u32,
    pub name: ImageName,
    pub manifest: Digest,
    /// The user who set it; none if it was the owner of the store ([`crate::namer`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<u32>,
}

/// `layers/<diff id hex>/layer.json`: a layer that was unpacked to the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LayerRecord {
    pub version: u32,
    pub diff_id: DiffId,
    pub report: Report,
}

/// A document of the store with its version.
pub(crate) trait Record: Serialize + DeserializeOwned {
    fn version(&self) -> u32;

    fn encode(&self) -> Result<Vec<u8>, std::io::Error> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        let record: Self = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if record.version() == VERSION {
            Ok(record)
        } else {
            Err(format!("record version {} is not {VERSION}", record.version()))
        }
    }
}

impl Record for ImageRecord {
    fn version(&self) -> u32 {
        self.version
    }
}

impl Record for RefRecord {
    fn version(&self) -> u32 {
        self.version
    }
}

impl Record for LayerRecord {
    fn version(&self) -> u32 {
        self.version
    }
}

impl ImageRecord {
    pub fn new(manifest: (Digest, u64), config: (Digest, u64), layers: Vec<LayerRef>) -> Self {
        Self {
            version: VERSION,
            manifest: manifest.0,
            manifest_size: manifest.1,
            config: config.0,
            config_size: config.1,
            layers,
        }
    }

    /// Every blob the image needs, with its size.
    pub fn blobs(&self) -> impl Iterator<Item = (Digest, u64)> {
        let own = [(self.manifest, self.manifest_size), (self.config, self.config_size)];
        own.into_iter().chain(self.layers.iter().map(|l| (l.blob, l.size)))
    }
}

impl RefRecord {
    pub fn new(name: ImageName, manifest: Digest, owner: Option<u32>) -> Self {
        Self { version: VERSION, name, manifest, owner }
    }
}

impl LayerRecord {
    pub fn new(diff_id: DiffId, report: Report) -> Self {
        Self { version: VERSION, diff_id, report }
    }
}

/// The file of an image record.
pub(crate) fn image_file(manifest: &Digest) -> String {
    format!("{}.json", manifest.hex())
}

/// The digest an image record's file is named by.
pub(crate) fn image_file_digest(name: &str) -> Option<Digest> {
    Digest::from_hex(name.strip_suffix(".json")?)
}
