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
const DYNAMIC: [&str; 5] =
    ["ocivisord", "ocivisor", "ocivisor-runtime", "ocivisor-unpack", "ocivisor-vnc"];
/// The package of the static ones.
const SHIM: &str = "ocivisor-shim";
/// The static ones: one is resident once per guest, the other runs inside of guests.
const STATIC: [&str; 2] = ["ocivisor-shim", "ocivisor-init"];

/// What is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// The programs, quickly.
    Programs,
    /// The programs, as users get them, and those of the benchmarks.
    Optimised,
    /// The same, quickly, to try the bench itself.
    Tried,
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
            fixed(SHIM, &STATIC, &[])?;
        }
        What::Optimised | What::Tried => {
            let release: &[&str] = if what == What::Optimised { &["--release"] } else { &[] };
            let packages = DYNAMIC.iter().flat_map(|name| ["-p", name]);
            run(cargo(&["build"]).args(release).args(packages))?;
            run(cargo(&["build", "-p", "xtask", "--bin", "floor", "--bin", "relay"]).args(release))?;
            fixed(SHIM, &STATIC, release)?;
            fixed("xtask", &["first"], release)?;
        }
        What::ProgramsAndTests => {
            let faults = fault_features()?;
            let features = faults.iter().flat_map(|f| ["--features", f.as_str()]);
            let all = ["build", "--workspace", "--all-targets"];
            run(cargo(&all).args(features))?;
            let of_shim = faults.iter().filter(|f| f.starts_with(SHIM));
            let of_shim: Vec<&str> = of_shim.flat_map(|f| ["--features", f.as_str()]).collect();
            fixed(SHIM, &STATIC, &of_shim)?;
        }
    }
    match what {
        What::Programs => gather("programs", "debug", &[]),
        What::Optimised => gather("programs-optimised", "release", &["first", "floor", "relay"]),
        What::Tried => gather("programs-tried", "debug", &["first", "floor", "relay"]),
        What::ProgramsAndTests => gather("programs-for-tests", "debug", &[]),
    }
}

/// Builds an example of a package, and returns where it is.
///
/// # Errors
/// It does not build.
pub fn example(package: &str, name: &str, what: What) -> Result<PathBuf> {
    let optimised = what == What::Optimised;
    let release: &[&str] = if optimised { &["--release"] } else { &[] };
    run(cargo(&["build", "-p", package, "--example", name]).args(release))?;
    let profile = if optimised { "release" } else { "debug" };
    Ok(target().join(profile).join("examples").join(name))
}

/// Links statically. `--target` keeps the flags from build scripts, and its output apart.
fn fixed(package: &str, programs: &[&str], more: &[&str]) -> Result<()> {
    let triple = triple()?;
    let mut command = cargo(&["build", "-p", package, "--target", &triple]);
    command.args(programs.iter().flat_map(|name| ["--bin", name]));
    command.env("RUSTFLAGS", "-C target-feature=+crt-static");
    run(command.args(more))
}

/// The host's own target.
fn triple() -> Result<String> {
    let text = output(crate::cmd::program("rustc").arg("-vV"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(line.context("rustc -vV names no host")?.to_owned())
}

/// Links all programs into one directory. A daemon that still runs keeps the file it was started
/// from: names are replaced, not contents.
fn gather(name: &str, profile: &str, more: &[&str]) -> Result<PathBuf> {
    let dir = target().join(name);
    fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    let fixed = target().join(triple()?).join(profile);
    for program in DYNAMIC.iter().chain(&STATIC).chain(more) {
        let is_fixed = STATIC.contains(program) || *program == "first";
        let from =
            if is_fixed { fixed.join(program) } else { target().join(profile).join(program) };
        place(&from, &dir.join(program))?;
    }
    Ok(dir)
}

fn place(from: &Path, to: &Path) -> Result<()> {
    let _absent_is_fine = fs::remove_file(to);
    fs::hard_link(from, to)
        .or_else(|_| fs::copy(from, to).map(drop))
        .with_context(|| format!("put {} into {}", from.display(), to.display()))
}
