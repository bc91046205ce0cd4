//! The pure heart of ocivisor: what a VM is, which requests it admits, and in which order effects
//! happen so that nothing is lost and nothing leaks.
//!
//! ```text
//!   request ─► admission (pure) ─► plan (pure) ─► engine ─► ports ─► the host
//!                                                   │
//!                                                   └─► records: intent before effect, commit before answer
//! ```
//!
//! Nothing here does I/O: effects go through the traits of [`ports`], and the stateful fakes of
//! `testing` stand in for a host, fail on demand and "crash" at any step. Absent on purpose:
//! async, serde (see `ocivisor-schema`), paths of this or that platform.

pub mod admission;
mod back;
pub mod engine;
pub mod error;
pub mod failure;
pub mod health;
pub mod ids;
pub mod plan;
pub mod ports;
pub mod reconcile;
mod recover;
mod rewire;
pub mod spec;
pub mod state;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod units;
pub mod upkeep;
