//! What an import tells on its way.

use crate::unpack::Report;

/// What an import is doing; for people, not for decisions.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// The manifest is known.
    Started {
        /// Number of layers.
        layers: usize,
    },
    /// Part of a layer was read.
    Layer {
        /// Counted from 1, lowest first.
        layer: usize,
        /// Bytes of the blob read.
        done: u64,
        /// Bytes of the blob.
        total: u64,
    },
    /// Part of the layers, of several at a time, came from a registry.
    Fetched {
        /// Bytes of their blobs that are here.
        done: u64,
        /// Bytes of their blobs.
        total: u64,
    },
    /// The layer was here already.
    LayerPresent {
        /// Counted from 1, lowest first.
        layer: usize,
    },
    /// The layer was unpacked and is in place.
    LayerDone {
        /// Counted from 1, lowest first.
        layer: usize,
        /// What unpacking left out.
        report: Report,
    },
    /// The image is in the store under its name.
    Done,
}
