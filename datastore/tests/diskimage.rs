//! Disks of machines, made with the tools that make them: what is on them is what the image has, and what is
//! wrong with them is said.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

mod common;
#[path = "diskimage/filesystems.rs"]
mod filesystems;
#[path = "diskimage/hostile.rs"]
mod hostile;
#[path = "diskimage/make.rs"]
mod make;
#[path = "diskimage/out.rs"]
mod out;
#[path = "diskimage/tables.rs"]
mod tables;
#[path = "diskimage/xfs4.rs"]
mod xfs4;

use common::Bench;

/// A store that reads disks in this process. The same tests run with one that has workers: `tests/hostile`.
fn bench() -> Bench {
    Bench::new()
}
