//! A stand-in of OpenNebula's side of the drivers: of oned, of its driver processes, of what monitors hosts.
//!
//! It is written from the contract that OpenNebula's documents, sources and recordings state; nothing of OpenNebula is in
//! it. What it calls, in which order, with which words and input, and in which states VMs end, is compared with recordings
//! of a real oned ([`replay`]). Then drivers are put in place of the recorder's scripts and have real effects.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::missing_panics_doc,
    clippy::disallowed_methods,
    clippy::needless_pass_by_value,
    reason = "test harness: a panic is a failed test, it starts the programs under test, and numbers are texts in documents"
)]

pub mod cloud;
pub mod desk;
pub mod drivers;
pub mod endpoint;
pub mod live;
pub mod model;
pub mod monitor;
pub mod node;
pub mod oned;
pub mod place;
pub mod recorder;
pub mod recording;
pub mod registry;
pub mod replay;
pub mod sshd;
pub mod state;
pub mod template;
pub mod web;
pub mod xml;

pub use cloud::Cloud;
pub use live::Live;
pub use monitor::Monitor;
pub use oned::Oned;
pub use replay::Replay;
