//! The corpus of hostile images, through a store that unpacks in confined workers; and attacks on the confinement.
//!
//! Numbers in headings are those of the list of attacks that the suite was built from. Each test states how the attack
//! ends, and [`common::Bench`] checks that the host is as before and nothing is left of a refused image.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

mod archives;
mod bombs;
#[path = "../../datastore/tests/common/mod.rs"]
mod common;
mod confined;
mod confinement;
#[path = "../../datastore/tests/diskimage/hostile.rs"]
mod disk_attacks;
#[path = "../../datastore/tests/diskimage/tables.rs"]
mod disk_tables;
mod disks;
mod documents;
mod ends;
mod entries;
#[cfg(feature = "faults")]
mod escape;
mod images;
mod liars;
#[path = "../../datastore/tests/diskimage/make.rs"]
mod make;
mod planted;
mod same;
mod streams;
mod tools;

use confined::bench;
