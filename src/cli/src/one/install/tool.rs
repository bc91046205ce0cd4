//! The host's own tools for groups.

use std::ffi::OsStr;
use std::process::{Command, Stdio};

use crate::failure::{Exit, Failure};

/// Runs it; what it says on standard error is the failure.
///
/// # Errors
/// It is not installed, or failed.
pub fn run(argv: &[&OsStr]) -> Result<(), Failure> {
    let Some((tool, args)) = argv.split_first() else { return Ok(()) };
    let shown = || tool.to_string_lossy();
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place where the command runs a tool of the host"
    )]
    let output = Command::new(tool)
        .args(args)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|e| Failure::new(Exit::Failure, format!("start {}: {e}", shown())))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(Exit::Failure, format!("{}: {}", shown(), said.trim())))
}
