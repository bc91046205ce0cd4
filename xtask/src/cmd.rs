//! Runs programs. Argv only, no shell; what is run is shown first, so that a developer can repeat it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Says one line to the developer.
pub fn say(text: &str) {
    eprintln!("{text}");
}

/// Says what begins now.
pub fn step(text: &str) {
    eprintln!("\n== {text}");
}

/// A program in the workspace's root.
pub fn program(name: impl AsRef<OsStr>) -> Command {
    #[expect(clippy::disallowed_methods, reason = "the one right place of xtask")]
    let mut command = Command::new(name);
    command.current_dir(root());
    command
}

/// The cargo that runs us.
pub fn cargo(args: &[&str]) -> Command {
    let mut command = program(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args);
    command
}

/// The root of the workspace.
#[must_use]
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// Where cargo puts what it builds.
#[must_use]
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// The command as one would type it.
#[must_use]
pub fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<String> = words.map(|w| w.to_string_lossy().into_owned()).collect();
    words.join(" ")
}

/// Runs it with the developer's terminal.
///
/// # Errors
/// It cannot be started or ends with another code than 0.
pub fn run(command: &mut Command) -> Result<()> {
    let text = shown(command);
    say(&format!("$ {text}"));
    let status = command.status().with_context(|| format!("start {text}"))?;
    if !status.success() {
        bail!("{text}: {status}");
    }
    Ok(())
}

/// Runs it and returns its standard output; its standard error goes to the developer.
///
/// # Errors
/// As [`run`].
pub fn output(command: &mut Command) -> Result<String> {
    let text = shown(command);
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("start {text}"))?;
    if !output.status.success() {
        bail!("{text}: {}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether it ends with code 0; says nothing.
#[must_use]
pub fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Whether a program of that name is in PATH or where admins' programs are.
#[must_use]
pub fn installed(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).any(|dir| dir.join(name).is_file())
}

/// Writes a file of ours.
///
/// # Errors
/// It cannot be written.
pub fn write(path: &Path, text: &str) -> Result<()> {
    #[expect(clippy::disallowed_methods, reason = "files of a developer's run, no one's state")]
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

/// Waits until `ready` says so, looking again every 20 ms.
///
/// # Errors
/// What `ready` says, or that the time is up.
pub fn wait_until(
    what: &str,
    limit: std::time::Duration,
    mut ready: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let began = std::time::Instant::now();
    while !ready()? {
        if began.elapsed() > limit {
            bail!("{what} did not happen within {} s", limit.as_secs());
        }
        #[expect(clippy::disallowed_methods, reason = "this waits for a condition")]
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    Ok(())
}
