//! x
use std::ffi::OsString;
use std::process::ExitCode;
/// x
pub fn main(_: &[OsString]) -> ExitCode { ExitCode::FAILURE }
