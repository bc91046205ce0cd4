//! Content-addressed store of container images.
//!
//! ```text
//! <root>/                       0700, all directories below it too
//!   format.json                 version and features; unknown ones refuse
//!   lock                        flock: imports shared, prune exclusive
//!   blobs/sha256/<hex>          manifests, configs, compressed layers: bytes as they came
//!   layers/<diff id hex>/fs     the layer's files, unshifted ids, overlayfs form
//!   layers/<diff id hex>/layer.json
//!   images/<manifest hex>.json  an image that is whole here
//!   refs/<name>                 a name, and the manifest it points at
//!   staging/<op>/               work in progress, locked by its owner
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
//! The crate knows no guests, no registries and no async. A confined worker process for unpacking is the
//! caller's; all that this crate does between `open` and `import`'s return can run in one.
//!
//! On-disk format: `docs/format.md`.

#![forbid(unsafe_code)]

mod compress;
mod config;
mod digest;
mod disk;
mod document;
mod error;
mod files;
mod format;
mod fsck;
mod import;
mod ingest;
mod limits;
mod name;
mod prune;
mod record;
mod source;
mod staging;
mod store;
mod tarball;
mod unpack;
mod work;

pub use compress::Compression;
pub use config::{ImageConfig, ImageUser, Principal};
pub use digest::{DiffId, Digest};
pub use error::{DocumentFault, Error, Limit, Refusal, Result};
pub use fsck::Finding;
pub use import::Progress;
pub use limits::Limits;
pub use name::{ImageName, Reference};
pub use prune::{Pruned, Usage};
pub use source::Source;
pub use store::{Image, Listed, Store};
pub use unpack::Report;
