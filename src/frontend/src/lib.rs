//! OpenNebula's datastore, transfer and marketplace drivers, on the front-end.
//!
//! Synchronous, without a daemon and without root: one process per call, as oneadmin. `docs/adr/0011-front-end.md`
//! has the layout of an image datastore and why it is so.

#![forbid(unsafe_code)]

pub mod depot;
mod fault;

pub use depot::Depot;
