//! `cargo xtask test --vm`: privileged tests on a host as in production, which this one need not be:
//! cgroup v2 alone, systemd as process 1, the oldest kernel that is supported.
//!
//! ```text
//!   mmdebstrap ─► disk with Debian 12 and its kernel (cached, never written to) ┐
//!   programs, test binaries, fixtures, selection ─► second disk, read-only ─────┼─► QEMU ─► output
//!                                       inside: a unit runs `inside.sh`, then the VM ends itself
//! ```
//!
//! Processors are emulated (TCG), so that this also runs where CI is a VM itself. Tests then take some
//! ten times as long, so a selection of them runs if none is named. Words after `--vm` name suites,
//! which are then run whole, or tests by a part of their name. `cargo xtask test` ends with the
//! [`SHORTEST`] selection: what the machine that runs all other tests need not have.

mod image;
mod load;
mod machine;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

pub use self::image::Module;
use crate::binaries::{What, build, fault_features};
use crate::cmd::{cargo, output, root, say, step};
use crate::packages::{FOR_TESTS, FOR_VM, TO_BUILD, ensure};

/// How long a VM may take in all.
const PATIENCE: Duration = Duration::from_mins(30);

/// The same for [`SHORTEST`], which takes three minutes where nobody else wants the processors.
const PATIENCE_SHORTEST: Duration = Duration::from_mins(12);

/// Names of test binaries, and parts of names of their tests; none are all.
type Selection = [(&'static str, &'static [&'static str])];

/// What runs if nothing is named: one test at least of each part that knows control groups or systemd.
const SHORT: &Selection = &[
    ("host", &["cgroup::"]),
    ("runtime", &["cgroup::"]),
    ("opennebula", &["a_recorded_vm_boots"]),
    ("isolation", &["the_guest_is_confined"]),
    ("crash", &["when_its_shim_is_killed"]),
    ("runc", &[]),
    ("context", &["reaches_the_running_guest"]),
    ("systemd", &[]),
    ("labels", &["apparmor"]),
    ("systems", &[]),
    ("udev", &[]),
    ("qcow2", &[]),
    ("vlans", &[]),
];

/// What every `cargo xtask test` runs there.
const SHORTEST: &Selection = &[
    ("host", &["cgroup::"]),
    ("runtime", &["cgroup::"]),
    ("isolation", &["the_guest_is_confined"]),
    ("systemd", &["guests_outlive", "deploys_go_on", "limits_and_devices"]),
    ("udev", &["the_host_brings_up_nothing"]),
    ("qcow2", &["a_server_that_dies"]),
];

/// A test binary and the parts of names of its tests to be run; none are all.
type Chosen = (String, Vec<String>);

/// Builds, boots, runs, tells.
///
/// # Errors
/// A test failed, or the VM did.
pub fn run(words: &[String], module: Module) -> Result<()> {
    let began = Instant::now();
    check_host()?;
    ensure(&[&TO_BUILD, &FOR_TESTS, &FOR_VM])?;
    let programs = build(What::ProgramsAndTests)?;
    let suites = suites()?;
    let chosen = if words.is_empty() { named(SHORT) } else { choose(words, &suites) };
    let passed = in_vm(&programs, &suites, &chosen, module, PATIENCE)?;
    if passed == 0 {
        bail!("no test has such a name: {}", words.join(" "));
    }
    let seconds = began.elapsed().as_secs();
    let (min, s) = (seconds / 60, seconds % 60);
    say(&format!("\nOK: {passed} tests passed in the VM ({min} min {s} s)"));
    Ok(())
}

/// Runs [`SHORTEST`] with programs and tests that are built already.
///
/// # Errors
/// A test failed, or the VM did.
pub fn run_shortest(programs: &Path) -> Result<()> {
    check_host()?;
    let chosen = named(SHORTEST);
    let module = Module::AppArmor;
    let passed = in_vm(programs, &suites()?, &chosen, module, PATIENCE_SHORTEST)?;
    // A name that no test has any more would run nothing, and say nothing.
    let least = u32::try_from(chosen.len())?;
    if passed < least {
        bail!("only {passed} tests ran in the VM: see SHORTEST in xtask/src/vm.rs");
    }
    Ok(())
}

fn check_host() -> Result<()> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("the VM is one for x86-64: run this on such a host");
    }
    if !rustix::process::geteuid().is_root() {
        bail!("making a disk with a whole system takes root");
    }
    Ok(())
}

/// Makes the disks, and runs the tests; returns how many passed.
fn in_vm(
    programs: &Path,
    suites: &BTreeMap<String, PathBuf>,
    chosen: &[Chosen],
    module: Module,
    patience: Duration,
) -> Result<u32> {
    let cache = root().join(module.cache());
    let quickstart = root().join(".cache/quickstart");
    for dir in [&cache, &quickstart] {
        std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    }
    let systems = crate::quickstart::image::for_tests(&quickstart)?;
    let image = image::debian(&cache, module)?;
    let load = load::make(&cache, programs, &systems, suites, chosen)?;
    step("in the VM");
    let result = machine::run(&image, module, &load, &cache.join("console.log"), patience)?;
    if !result.good {
        bail!("{} tests passed in the VM, {} failed", result.passed, result.failed);
    }
    Ok(result.passed)
}

/// Test binaries by name: the whole-host tests, and those beside the modules of the crates that
/// deal with control groups.
fn suites() -> Result<BTreeMap<String, PathBuf>> {
    let faults = fault_features()?;
    let mut command = cargo(&["build", "--workspace", "--all-targets", "--quiet"]);
    command.args(faults.iter().flat_map(|f| ["--features", f.as_str()]));
    // The same build again, which does nothing but name what it made.
    let text = output(command.arg("--message-format=json-render-diagnostics"))?;
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let artifact: Value = serde_json::from_str(line).context("read cargo's messages")?;
        let (Some(executable), Some(true)) =
            (artifact["executable"].as_str(), artifact["profile"]["test"].as_bool())
        else {
            continue;
        };
        let manifest = artifact["manifest_path"].as_str().unwrap_or_default();
        let name = artifact["target"]["name"].as_str().unwrap_or_default();
        let kind = artifact["target"]["kind"][0].as_str().unwrap_or_default();
        let name = match (manifest.trim_start_matches(&*root().to_string_lossy()), kind) {
            ("/tests/Cargo.toml", "test") => name,
            ("/src/host/Cargo.toml", "lib") => "host",
            ("/src/runtime/Cargo.toml", "bin") => "runtime",
            _ => continue,
        };
        found.insert(name.to_owned(), PathBuf::from(executable));
    }
    if found.len() < SHORT.len() {
        bail!("found only the test binaries {:?}", found.keys());
    }
    Ok(found)
}

fn named(selection: &Selection) -> Vec<Chosen> {
    let own = |parts: &[&str]| parts.iter().map(ToString::to_string).collect();
    selection.iter().map(|(suite, parts)| ((*suite).to_owned(), own(parts))).collect()
}

/// What the words name.
fn choose(words: &[String], suites: &BTreeMap<String, PathBuf>) -> Vec<Chosen> {
    let (whole, parts): (Vec<String>, Vec<String>) =
        words.iter().cloned().partition(|word| suites.contains_key(word));
    let others = suites.keys().filter(|suite| !parts.is_empty() && !whole.contains(suite));
    let others = others.map(|suite| (suite.clone(), parts.clone())).collect::<Vec<_>>();
    whole.iter().map(|suite| (suite.clone(), Vec::new())).chain(others).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_suites_or_parts_of_names() {
        let suites = ["crash", "host", "restart"].map(|s| (s.to_owned(), PathBuf::from(s)));
        let suites = BTreeMap::from(suites);
        let choose = |words: &[&str]| {
            choose(&words.iter().map(ToString::to_string).collect::<Vec<_>>(), &suites)
        };
        let chosen = |suite: &str, parts: &[&str]| {
            (suite.to_owned(), parts.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(choose(&["crash"]), [chosen("crash", &[])]);
        assert_eq!(
            choose(&["kill", "host"]),
            [chosen("host", &[]), chosen("crash", &["kill"]), chosen("restart", &["kill"])]
        );
    }
}
