//! Replies about images: what long work on them made or found.

use serde::{Deserialize, Serialize};

use crate::reply::ImageInfo;
use crate::text::TimeV1;

/// How an image is to be brought in; what is left out is found out, or not wished.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImportOptionsV1 {
    /// Of a disk image: `raw` or `qcow2`.
    pub format: Option<String>,
    /// Of a disk image: number of the partition with the root filesystem, from 1.
    pub partition: Option<u32>,
    /// Of a disk image: whether kernel and boot loader come along.
    pub keep_boot: bool,
    /// Of a file that is fetched: what it must be, `sha256:…`.
    pub digest: Option<String>,
}

/// What of an image in a directory is not on this host yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LackingV1 {
    /// Digest of the image's manifest.
    pub digest: String,
    /// Digests of the layers' blobs that an import would read, lowest first.
    pub blobs: Vec<String>,
}

/// What a committed image says besides its files; what is left out stays as in the image that the
/// VM was made from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CommitOptionsV1 {
    /// Who made it.
    pub author: Option<String>,
    /// What was done.
    pub message: Option<String>,
    /// `ENTRYPOINT ["/bin/x"]`, `CMD …`, `ENV NAME=value`, `USER …`, `WORKDIR …`, `LABEL name=value`,
    /// `STOPSIGNAL …`, as a Dockerfile has them.
    pub changes: Vec<String>,
}

/// An image in full.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInspect {
    /// What a list shows; of the name that was asked for.
    #[serde(flatten)]
    pub info: ImageInfo,
    /// All names here.
    pub names: Vec<String>,
    /// Layers, lowest first.
    pub layer_details: Vec<LayerV1>,
    /// The manifest, as it came.
    pub manifest: serde_json::Value,
    /// The config, as it came.
    pub config: serde_json::Value,
}

/// A layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerV1 {
    /// Digest of its files as a tar.
    pub diff_id: String,
    /// Digest of it as stored.
    pub digest: String,
    /// What it is stored as.
    pub media_type: String,
    /// Bytes of it as stored.
    pub size_bytes: u64,
}

/// What a source holds, without bringing it in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatV1 {
    /// The source with the digest that it has now.
    pub reference: String,
    /// Digest of its manifest.
    pub digest: String,
    /// `os/architecture[/variant]`.
    pub platform: String,
    /// Number of layers.
    pub layers: u32,
    /// Bytes that a transfer takes.
    pub size_bytes: u64,
}

/// What an operation on images made or found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum MadeV1 {
    /// An image of this host.
    Image(ImageInfo),
    /// A file or directory outside of the store.
    File(FileV1),
    /// An image at a registry.
    Pushed(PushedV1),
    /// What is wrong with the store.
    Findings(FindingsV1),
    /// What was given back.
    Pruned(PrunedV1),
    /// A kind that is newer than this reader.
    #[serde(other)]
    Unknown,
}

/// A file that was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileV1 {
    /// Absolute path.
    pub path: String,
    /// Bytes of it.
    pub size_bytes: u64,
    /// What could not be taken along, a sentence each.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// An image that was pushed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushedV1 {
    /// Where it is.
    pub reference: String,
    /// Digest of its manifest there.
    pub digest: String,
    /// Bytes of blobs that were sent; what was there was not.
    pub sent_bytes: u64,
}

/// What is wrong with the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FindingsV1 {
    /// One for each damage.
    pub findings: Vec<FindingV1>,
    /// Bytes that were read and compared.
    pub checked_bytes: u64,
}

/// One damage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FindingV1 {
    /// Name of the kind of damage.
    pub code: String,
    /// `note`, `warning` or `error`.
    pub severity: String,
    /// What it is about.
    pub object: String,
    /// What is wrong with it.
    pub message: String,
    /// What was done about it; nothing if there was no repair.
    #[serde(default)]
    pub repair: Option<String>,
}

/// What was given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PrunedV1 {
    /// Images without a name that nothing used.
    pub images: u64,
    /// Layers.
    pub layers: u64,
    /// Blobs.
    pub blobs: u64,
    /// Repairs whose quarantine was emptied.
    #[serde(default)]
    pub quarantined: u64,
    /// Bytes of all that, and of downloads that nobody went on with.
    pub freed_bytes: u64,
    /// Whether nothing was done but counting.
    pub dry_run: bool,
}

/// A step of how an image came to be, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryV1 {
    /// When, as the image says.
    pub created: Option<String>,
    /// By which command, as the image says.
    pub created_by: String,
    /// Bytes of its layer as stored; none if it made no layer.
    pub size_bytes: Option<u64>,
    /// What its author says.
    pub comment: String,
}

/// What an image takes of the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageUseV1 {
    /// Its names here.
    pub names: Vec<String>,
    /// Digest of its manifest.
    pub digest: String,
    /// Bytes that this image alone needs.
    pub unique_bytes: u64,
    /// Bytes that others need too.
    pub shared_bytes: u64,
    /// When it came here.
    pub imported: TimeV1,
}

/// What the store takes of the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DfReply {
    /// By image.
    pub images: Vec<ImageUseV1>,
    /// Bytes of blobs.
    pub blob_bytes: u64,
    /// Bytes of unpacked layers.
    pub layer_bytes: u64,
    /// Bytes of downloads that are not finished.
    #[serde(default)]
    pub partial_bytes: u64,
    /// Bytes of work in progress.
    #[serde(default)]
    pub staging_bytes: u64,
    /// Bytes that repairs set aside.
    #[serde(default)]
    pub quarantine_bytes: u64,
    /// Bytes of everything, the store's records included.
    #[serde(default)]
    pub total_bytes: u64,
    /// Bytes of blobs and layers that a prune would give back.
    pub reclaimable_bytes: u64,
}
