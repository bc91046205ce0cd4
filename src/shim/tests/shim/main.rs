//! A real shim on real processes: a command on a terminal of the test plays the guest. Needs root.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, which clippy does not see")]

mod adopt;
mod console;
mod ends;
mod guest;
mod hostile;
