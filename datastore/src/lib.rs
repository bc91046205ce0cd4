//! Content-addressed store of container images.
//!
//! ```text
//! <root>/                       0700, all directories below it too
//!   format.json                 version and features; unknown ones refuse
//!   lock                        flock: imports shared while they publish, prune exclusive
//!   blobs/sha256/<hex>          manifests, configs, compressed layers: bytes as they came
//!   layers/<diff id hex>/fs     the layer's files, unshifted ids, overlayfs form
//!   layers/<diff id hex>/layer.json
//!   images/<manifest hex>.json  an image that is whole here
//!   refs/<name>                 a name, and the manifest it points at
//!   staging/<op>/               work in progress, locked by its owner
//!   partial/<hex>               blobs on their way from a registry, locked by who fetches them
//! ```
//!
//! A layer is unpacked once per host and shared by all guests: it is named by the digest of its tar, never
//! changes, and holds the ids of the image (guests see them through idmapped mounts). Everything in `blobs`,
//! `layers`, `images` and `refs` appears by one rename after its content was synced, so a crash at any point
//! leaves whole things and rubbish in `staging`, which the next open removes.
//!
//! Every byte of an image is an attacker's. See `unpack` for files, `tarball` for archives, `document` and
//! `config` for JSON, [`Limits`] for what it may cost. Nothing of an image selects a path outside the store.
//!
//! The crate knows no guests and no async. Layers are unpacked, and streams decompressed, by a confined process where
//! the caller names one ([`worker::Worker`]), by the caller's own process otherwise.
//!
//! On-disk format: `docs/format.md`.

#![forbid(unsafe_code)]

mod blobs;
mod cancel;
mod compress;
mod config;
mod content;
mod df;
mod digest;
mod disk;
mod diskimage;
mod document;
mod error;
mod expand;
mod export;
mod files;
mod flush;
mod format;
mod fsck;
#[cfg(any(test, feature = "fuzzing"))]
mod fuzzing;
mod import;
mod ingest;
mod limits;
mod name;
mod namer;
mod out;
mod packed;
mod piped;
mod proof;
mod prune;
mod publish;
mod record;
mod registry;
mod source;
mod sparse;
mod staging;
mod store;
mod tag;
mod tarball;
mod target;
pub mod trust;
mod unpack;
mod unused;
mod walk;
mod work;
pub mod worker;

pub use cancel::Cancel;
pub use compress::Compression;
pub use config::{ImageConfig, ImageUser, Principal};
pub use df::{DiskUsage, ImageSpace, Space};
pub use digest::{DiffId, Digest};
pub use diskimage::{
    BackingName, DiskFault, DiskFormat, DiskOptions, Qcow2File, foreign as foreign_disk,
};
#[cfg(feature = "fuzzing")]
pub use diskimage::{fuzz_disk, fuzz_qcow2};
pub use error::{DocumentFault, Error, Limit, Refusal, Result};
pub use export::{BegunDisk, DiskExport, ExportedDisk, ReadDisk};
pub use fsck::{
    CheckOptions, Checked, Finding, Found, FsckReport, Outcome, Refetch, RepairOptions, Severity,
};
#[cfg(feature = "fuzzing")]
pub use fuzzing::{
    fuzz_answer, fuzz_config, fuzz_header, fuzz_manifest, fuzz_reference, fuzz_stream, fuzz_tar,
};
pub use import::{Lacking, Progress};
pub use limits::Limits;
pub use name::{ImageName, Reference};
pub use out::{
    Archive, BegunCommit, BegunTar, CommitChanges, CommitOptions, Committed, Exported, HistoryRow,
    IdMap, Inspection, LayerInfo, Omitted, Packing, ReadCommit, ReadTar, Upper,
};
pub use packed::{LayerBlob, Parts, expand};
pub use prune::{PruneOptions, Pruned, Usage};
pub use registry::{
    HttpsUrl, Patience, PushProgress, Pushed, Registries, RegistriesConfig, RegistryConfig,
    RegistryFault, RegistryHost, RegistryReference, Remote,
};
pub use source::{HttpsSource, RegistrySource, Source};
pub use store::{Image, Listed, Store};
pub use unpack::Report;
