//! Builds the programs and puts them side by side, as a package does.
//!
//! The shim is linked statically (it is resident once per guest, and small that way), which needs
//! another target directory; everything else comes from one invocation, so that each dependency is
//! compiled once with one set of features.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cmd::{cargo, output, run, step, target};

/// Programs of the workspace that are linked dynamically.
const DYNAMIC: [&str; 3] = ["ocivisord", "ocivisor", "ocivisor-runtime"];
/// The static one.
const SHIM: &str = "ocivisor-shim";

/// What is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// The programs, as users get them.
    Programs,
    /// The programs with fault points, and all tests.
    ProgramsAndTests,
}

/// `--features` for fault points: each crate that has the feature gets it.
///
/// # Errors
/// cargo metadata fails.
pub fn fault_features() -> Result<Vec<String>> {
    let metadata = metadata()?;
    let packages = metadata["packages"].as_array().cloned().unwrap_or_default();
    let with = packages.iter().filter(|package| package["features"].get("faults").is_some());
    let names = with.filter_map(|package| package["name"].as_str());
    Ok(names.map(|name| format!("{name}/faults")).collect())
}

/// `cargo metadata` of the workspace alone.
///
/// # Errors
/// It fails.
pub fn metadata() -> Result<serde_json::Value> {
    let text = output(&mut cargo(&["metadata", "--format-version=1", "--no-deps"]))?;
    serde_json::from_str(&text).context("read cargo metadata")
}

/// Builds, and returns the directory with all programs.
///
/// # Errors
/// Something does not build.
pub fn build(what: What) -> Result<PathBuf> {
    step("building");
    match what {
        What::Programs => {
            let packages = DYNAMIC.iter().flat_map(|name| ["-p", name]);
            run(cargo(&["build"]).args(packages))?;
            shim(&[])?;
        }
        What::ProgramsAndTests => {
            let faults = fault_features()?;
            let features = faults.iter().flat_map(|f| ["--features", f.as_str()]);
            let all = ["build", "--workspace", "--all-targets"];
            run(cargo(&all).args(features))?;
            let of_shim: Vec<&str> =
                faults.iter().map(String::as_str).filter(|f| f.starts_with(SHIM)).collect();
            shim(&of_shim)?;
        }
    }
    gather(match what {
        What::Programs => "programs",
        What::ProgramsAndTests => "programs-for-tests",
    })
}

/// `--target` keeps the flags from build scripts, and its output apart from that of the others.
fn shim(features: &[&str]) -> Result<()> {
    let mut command = cargo(&["build", "-p", SHIM, "--bin", SHIM, "--target", &triple()?]);
    command.env("RUSTFLAGS", "-C target-feature=+crt-static");
    run(command.args(features.iter().flat_map(|f| ["--features", f])))
}

/// The host's own target.
fn triple() -> Result<String> {
    let text = output(crate::cmd::program("rustc").arg("-vV"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(line.context("rustc -vV names no host")?.to_owned())
}

/// Links all programs into one directory. A daemon that still runs keeps the file it was started
/// from: names are replaced, not contents.
fn gather(name: &str) -> Result<PathBuf> {
    let dir = target().join(name);
    fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    for program in DYNAMIC {
        place(&target().join("debug").join(program), &dir.join(program))?;
    }
    let from = target().join(triple()?).join("debug").join(SHIM);
    place(&from, &dir.join(SHIM))?;
    Ok(dir)
}

fn place(from: &Path, to: &Path) -> Result<()> {
    let _absent_is_fine = fs::remove_file(to);
    fs::hard_link(from, to)
        .or_else(|_| fs::copy(from, to).map(drop))
        .with_context(|| format!("put {} into {}", from.display(), to.display()))
}
