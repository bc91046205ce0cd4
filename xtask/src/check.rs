//! Checks that are no tests: format, lints, shell scripts, dependencies.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::binaries::fault_features;
use crate::cmd::{cargo, installed, program, root, run, step};

/// The format is rustfmt's.
///
/// # Errors
/// It is not.
pub fn format() -> Result<()> {
    step("format");
    run(&mut cargo(&["fmt", "--all", "--check"]))
}

/// No lint of the workspace's list fires.
///
/// # Errors
/// One does.
pub fn lints() -> Result<()> {
    step("lints");
    let faults = fault_features()?;
    let features = faults.iter().flat_map(|f| ["--features", f.as_str()]);
    let mut command = cargo(&["clippy", "--workspace", "--all-targets"]);
    run(command.args(features).args(["--", "-D", "warnings"]))
}

/// The API's documentation builds without a warning; a broken link in it is one.
///
/// # Errors
/// It does not.
pub fn documentation() -> Result<()> {
    step("documentation");
    let mut command = cargo(&["doc", "--workspace", "--no-deps", "--quiet"]);
    run(command.env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links"))
}

/// Shell scripts have no defect that shellcheck knows.
///
/// # Errors
/// One has.
pub fn shell() -> Result<()> {
    step("shell scripts");
    let mut scripts = Vec::new();
    for dir in ["driver-scripts", ".ci", "xtask/src/vm"] {
        find_scripts(&root().join(dir), &mut scripts)?;
    }
    if scripts.is_empty() {
        bail!("found no shell script to check");
    }
    scripts.sort();
    run(program("shellcheck").args(&scripts))
}

/// Files whose first line names a shell.
fn find_scripts(dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            find_scripts(&path, found)?;
        } else if is_shell(&path)? {
            found.push(path);
        }
    }
    Ok(())
}

fn is_shell(path: &Path) -> Result<bool> {
    use std::io::Read;
    let mut start = [0_u8; 32];
    let mut file = std::fs::File::open(path).with_context(|| format!("read {}", path.display()))?;
    let n = file.read(&mut start)?;
    let first = start[..n].split(|b| *b == b'\n').next().unwrap_or_default();
    Ok(first.starts_with(b"#!") && first.ends_with(b"sh"))
}

/// Licences, sources, bans and advisories by cargo-deny, which takes minutes to install and the net
/// to know advisories. What of this needs neither is a test (`xtask/tests/structure.rs`).
///
/// # Errors
/// cargo-deny is not installed or finds something.
pub fn deny() -> Result<()> {
    step("cargo deny");
    if !installed("cargo-deny") {
        bail!("cargo-deny is not installed: cargo install --locked cargo-deny");
    }
    run(&mut cargo(&["deny", "--workspace", "check"]))
}
