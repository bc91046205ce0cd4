//! OpenNebula's datastore, transfer and marketplace drivers, on the front-end.
//!
//! Synchronous, without a daemon and without root: one process per call, as oneadmin. `docs/adr/0011-front-end.md`
//! has the layout of an image datastore and why it is so.

pub mod config;
pub mod depot;
mod fault;
pub mod files;
pub mod host;
pub mod images;
pub mod manifest;
pub mod market;
mod ofd;
pub mod packed;
pub mod ssh;
mod sys;
mod timed;
pub mod tm;
mod tool;
pub mod wire;

pub use config::{Config, Images as ImagesConfig, RegistriesConfig, Transfer};
pub use depot::Depot;

/// What is behind a disk's name in that of its manifest.
pub const MANIFEST_SUFFIX: &str = ".manifest.json";
