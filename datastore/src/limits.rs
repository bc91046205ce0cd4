//! What an image may cost us before it is refused.
//!
//! Every number here bounds something an attacker chooses. The defaults let through what public registries
//! hold; a caller that trusts a source may raise them.

use serde::{Deserialize, Serialize};

/// Bounds on one import. All are inclusive: a value equal to the limit is still accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Uncompressed bytes of all layers together.
    pub image_bytes: u64,
    /// Uncompressed bytes per compressed byte of one layer, once `ratio_floor` is passed.
    pub ratio: u64,
    /// Uncompressed bytes of one layer below which no ratio is asked.
    pub ratio_floor: u64,
    /// Tar headers of all layers together, extension headers included.
    pub entries: u64,
    /// Components in the path of an entry.
    pub depth: usize,
    /// Bytes in one component of a path; the kernel's `NAME_MAX` is 255.
    pub name_bytes: usize,
    /// Bytes in a path or link target; the kernel's `PATH_MAX` leaves 4095.
    pub path_bytes: usize,
    /// Bytes in one PAX extended header.
    pub pax_bytes: u64,
    /// Layers in an image.
    pub layers: usize,
    /// Bytes in a JSON document: index, manifest, config.
    pub document_bytes: u64,
    /// Descriptors in an index, and images in a docker archive.
    pub index_entries: usize,
    /// Indexes inside indexes.
    pub index_nesting: usize,
    /// Files in an image archive (not in its layers).
    pub archive_entries: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            image_bytes: 64 << 30,
            ratio: 250,
            ratio_floor: 1 << 30,
            entries: 2_000_000,
            depth: 256,
            name_bytes: 255,
            path_bytes: 4095,
            pax_bytes: 1 << 20,
            layers: 127,
            document_bytes: 4 << 20,
            index_entries: 1024,
            index_nesting: 4,
            archive_entries: 16_384,
        }
    }
}
