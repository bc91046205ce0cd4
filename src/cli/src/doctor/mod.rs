//! `ocivisor doctor`: can this host carry guests, and if not, what is to be done?
//!
//! ```text
//!   /proc, /sys, probes ──facts.rs──► Facts ──checks.rs (pure)──► Vec<Check> ──► table or JSON
//! ```
//!
//! Needs no daemon and changes nothing. `fail` means that guests cannot run, `warn` that something
//! is worse than it could be; each says what to do. What cannot be found out without changing the
//! host (do netfilter rules drop bridged traffic?) is not guessed.

pub mod checks;
pub mod facts;
mod modules;
mod onlookers;
mod probes;
mod records;

pub use checks::{Check, Status, decide};
pub use facts::Facts;
