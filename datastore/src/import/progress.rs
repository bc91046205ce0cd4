//! What an import tells on its way.

use crate::digest::DiffId;
use crate::unpack::Report;
use crate::work::Placed;

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
    /// The layer was here, but its files were not those of its blob: an earlier image had put others under its name, or
    /// the store is damaged. It was unpacked anew; guests that run on the old files keep them until they start again.
    LayerReplaced {
        /// Counted from 1, lowest first.
        layer: usize,
        /// Which layer.
        diff_id: DiffId,
        /// What unpacking left out.
        report: Report,
        /// Where the old files are, relative to the store's root.
        old: String,
    },
    /// The image is in the store under its name.
    Done,
}

impl Progress {
    pub(super) fn of(layer: usize, diff_id: DiffId, placed: Placed) -> Self {
        match placed {
            Placed::New(report) => Self::LayerDone { layer, report },
            Placed::Before => Self::LayerPresent { layer },
            Placed::Instead(report, old) => Self::LayerReplaced { layer, diff_id, report, old },
        }
    }
}
