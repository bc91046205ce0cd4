//! What a check can find: one kind of damage per variant, with codes that scripts may rely on.

use std::fmt;

use serde::Serialize;

use crate::digest::{DiffId, Digest};
use crate::name::ImageName;

/// One thing that is wrong with a store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, thiserror::Error)]
#[serde(tag = "finding", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Finding {
    /// A file the store does not write.
    #[error("{path} does not belong to the store")]
    Stray {
        /// Relative to the root.
        path: String,
    },
    /// A ref, image record or layer record that is not what such a document must be.
    #[error("{path} cannot be used: {why}")]
    Unreadable {
        /// Relative to the root.
        path: String,
        /// The reason.
        why: String,
    },
    /// A ref or image record under a name that is not its own.
    #[error("{path} is about {about}")]
    Misnamed {
        /// Relative to the root.
        path: String,
        /// What the document says it is about.
        about: String,
    },
    /// The disk does not give the content back.
    #[error("{path} cannot be read from the disk: {why}")]
    ReadError {
        /// Relative to the root.
        path: String,
        /// What the kernel said.
        why: String,
    },
    /// A directory or document of the store that others than its owner can reach, or that is another's.
    #[error("{path} has {got}, should have {expected}")]
    Permissions {
        /// Relative to the root, which is `.`.
        path: String,
        /// Owner and mode as they are.
        got: String,
        /// Owner and mode as they should be.
        expected: String,
    },
    /// A name points at an image that is not here.
    #[error("name {name} points at {manifest}, which is absent")]
    DanglingName {
        /// The name.
        name: ImageName,
        /// What it points at.
        manifest: Digest,
    },
    /// An image lacks a blob.
    #[error("image {image} lacks blob {blob}")]
    BlobMissing {
        /// Manifest digest.
        image: Digest,
        /// The blob.
        blob: Digest,
    },
    /// A blob's length is not the one an image has for it.
    #[error("blob {blob} has {got} bytes, image {image} has {expected} for it")]
    BlobSize {
        /// Manifest digest.
        image: Digest,
        /// The blob.
        blob: Digest,
        /// In the image record.
        expected: u64,
        /// On the disk.
        got: u64,
    },
    /// A blob's content is not what its name says.
    #[error("blob {blob} has digest {got}")]
    BlobCorrupt {
        /// By its name.
        blob: Digest,
        /// By its content.
        got: Digest,
    },
    /// An image lacks a layer.
    #[error("image {image} lacks layer {layer}")]
    LayerMissing {
        /// Manifest digest.
        image: Digest,
        /// The layer.
        layer: DiffId,
    },
    /// A layer's directory without its files or without a usable record.
    #[error("layer {layer} is not whole: {why}")]
    LayerIncomplete {
        /// The layer.
        layer: DiffId,
        /// What is missing or wrong.
        why: String,
    },
    /// The files of a layer are not those of its tar.
    #[error("layer {layer} was changed at \"{path}\": {why}; {differences} differences in all")]
    LayerChanged {
        /// The layer.
        layer: DiffId,
        /// The first file that differs, escaped.
        path: String,
        /// How it differs.
        why: String,
        /// Number of files that differ.
        differences: u64,
    },
    /// A blob with the right digest that does not unpack to the layer an image has it for.
    #[error("layer {layer} cannot be proven by blob {blob}: {why}")]
    LayerUnproven {
        /// The layer.
        layer: DiffId,
        /// The blob.
        blob: Digest,
        /// The reason.
        why: String,
    },
    /// The process that reads blobs did not do its work.
    #[error("layer {layer} could not be compared with blob {blob}: worker {why}")]
    LayerUnchecked {
        /// The layer.
        layer: DiffId,
        /// The blob.
        blob: Digest,
        /// What became of the worker.
        why: String,
    },
    /// Config and record of an image disagree, or the config cannot be used.
    #[error("image {image} does not fit together: {why}")]
    ImageInconsistent {
        /// Manifest digest.
        image: Digest,
        /// The reason.
        why: String,
    },
    /// A directory in staging whose owner is dead; opening the store removes it.
    #[error("staging/{name} was left by a dead process")]
    StagingLeftover {
        /// In `staging/`.
        name: String,
    },
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Rubbish: costs space, harms nothing.
    Note,
    /// All images work; something is not as it should be.
    Warning,
    /// An image, or a name of one, is not whole or not what it says.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

const IMPORT: &str = "repair with a source that has the blob, or import the image again";
const REPAIR: &str = "repair: it is made anew from the layer's blob";

impl Finding {
    /// A name for the kind of damage, the same as `finding` in JSON. Released codes do not change.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Stray { .. } => "stray",
            Self::Unreadable { .. } => "unreadable",
            Self::Misnamed { .. } => "misnamed",
            Self::ReadError { .. } => "read_error",
            Self::Permissions { .. } => "permissions",
            Self::DanglingName { .. } => "dangling_name",
            Self::BlobMissing { .. } => "blob_missing",
            Self::BlobSize { .. } => "blob_size",
            Self::BlobCorrupt { .. } => "blob_corrupt",
            Self::LayerMissing { .. } => "layer_missing",
            Self::LayerIncomplete { .. } => "layer_incomplete",
            Self::LayerChanged { .. } => "layer_changed",
            Self::LayerUnproven { .. } => "layer_unproven",
            Self::LayerUnchecked { .. } => "layer_unchecked",
            Self::ImageInconsistent { .. } => "image_inconsistent",
            Self::StagingLeftover { .. } => "staging_leftover",
        }
    }

    /// How bad it is.
    #[must_use]
    pub fn severity(&self) -> Severity {
        match self {
            Self::Stray { .. } | Self::StagingLeftover { .. } => Severity::Note,
            Self::Permissions { .. } => Severity::Warning,
            _ => Severity::Error,
        }
    }

    /// What it is about, as a path relative to the root.
    #[must_use]
    pub fn object(&self) -> String {
        match self {
            Self::Stray { path }
            | Self::Unreadable { path, .. }
            | Self::Misnamed { path, .. }
            | Self::ReadError { path, .. }
            | Self::Permissions { path, .. } => path.clone(),
            Self::DanglingName { name, .. } => format!("refs/{}", name.file_name().0),
            Self::BlobMissing { blob, .. }
            | Self::BlobSize { blob, .. }
            | Self::BlobCorrupt { blob, .. } => format!("blobs/sha256/{}", blob.hex()),
            Self::LayerMissing { layer, .. }
            | Self::LayerIncomplete { layer, .. }
            | Self::LayerChanged { layer, .. }
            | Self::LayerUnproven { layer, .. }
            | Self::LayerUnchecked { layer, .. } => format!("layers/{}", layer.hex()),
            Self::ImageInconsistent { image, .. } => format!("images/{}.json", image.hex()),
            Self::StagingLeftover { name } => format!("staging/{name}"),
        }
    }

    /// What to do.
    #[must_use]
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Stray { .. } => "look at it, then move it out of the store",
            Self::Unreadable { .. } => {
                "repair: it is set aside, and written anew where its blobs are here"
            }
            Self::Misnamed { .. } => "repair: it is set aside",
            Self::ReadError { .. } => "look after the disk first, then repair",
            Self::Permissions { .. } => "repair: owner and mode are set; find out who changed them",
            Self::DanglingName { .. } => "import the image again, or remove the name",
            Self::BlobMissing { .. } | Self::BlobSize { .. } | Self::BlobCorrupt { .. } => IMPORT,
            Self::LayerMissing { .. } | Self::LayerIncomplete { .. } => REPAIR,
            Self::LayerChanged { .. } => {
                "find out who wrote there, then repair: it is made anew from the layer's blob"
            }
            Self::LayerUnproven { .. } => "remove the image and import it again",
            Self::LayerUnchecked { .. } => {
                "check again; if only this layer fails again, do not trust its image"
            }
            Self::ImageInconsistent { .. } => {
                "repair: the record is written anew from its manifest"
            }
            Self::StagingLeftover { .. } => "open the store: that removes it",
        }
    }
}

/// A finding with what became of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Found {
    /// What is wrong.
    #[serde(flatten)]
    pub finding: Finding,
    /// How bad it is.
    pub severity: Severity,
    /// Path relative to the root.
    pub object: String,
    /// What to do, if it is still so.
    pub advice: &'static str,
    /// What was done.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What became of a finding.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Outcome {
    /// Nothing: it is still so.
    Open {
        /// Why a repair could not help; none after a mere check.
        #[serde(skip_serializing_if = "Option::is_none")]
        why: Option<String>,
    },
    /// It is as it should be.
    Repaired {
        /// What was done.
        how: String,
    },
    /// It is out of the way and lies in `quarantine`; what it was is not there any more.
    SetAside {
        /// Relative to the root.
        to: String,
    },
}

impl Found {
    pub(super) fn new(finding: Finding, outcome: Outcome) -> Self {
        let (severity, object, advice) = (finding.severity(), finding.object(), finding.advice());
        Self { finding, severity, object, advice, outcome }
    }

    /// Whether it is still so.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.outcome, Outcome::Open { .. })
    }
}
