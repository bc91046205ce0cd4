//! The host's own tools for groups.

use std::process::{Command, Stdio};

use crate::failure::{Exit, Failure};

/// Runs it; what it says on standard error is the failure.
///
/// # Errors
/// It is not installed, or failed.
pub fn run(argv: &[&str]) -> Result<(), Failure> {
    let Some((tool, args)) = argv.split_first() else { return Ok(()) };
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
        .map_err(|e| Failure::new(Exit::Failure, format!("start {tool}: {e}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(Exit::Failure, format!("{}: {}", argv.join(" "), said.trim())))
}
