//! All tests and checks; `.ci/run` runs exactly this.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::binaries::{What, build, fault_features};
use crate::check;
use crate::cmd::{self, cargo, say, step, succeeds};
use crate::packages::{FOR_CHECKS, FOR_TESTS, FOR_VM, TO_BUILD, ensure};
use crate::vm::Module;

/// Options of `test`.
#[derive(Debug, Default, Args)]
pub struct Options {
    /// Only tests whose name contains this, without the checks; more than one are alternatives
    filter: Vec<String>,
    /// In a VM with cgroup v2 and systemd: a short selection of the tests that need root, or the
    /// suites and tests that are named
    #[arg(long)]
    vm: bool,
    /// That VM with SELinux in place of AppArmor
    #[arg(long, requires = "vm")]
    selinux: bool,
}

/// Runs everything. The first check that fails ends it; tests all run before they fail.
///
/// # Errors
/// Something failed.
fn everything(options: &Options) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("the tests make namespaces, mounts and control groups: run them as root");
    }
    ensure(&[&TO_BUILD, &FOR_TESTS, &FOR_CHECKS])?;
    if options.filter.is_empty() {
        ensure(&[&FOR_VM])?;
        check::format()?;
        check::shell()?;
    }
    let programs = build(What::ProgramsAndTests)?;
    let cache = cmd::root().join(".cache/quickstart");
    std::fs::create_dir_all(&cache).with_context(|| format!("make {}", cache.display()))?;
    let systems = crate::quickstart::image::for_tests(&cache)?;
    let faults = fault_features()?;
    let features: Vec<&str> = faults.iter().flat_map(|f| ["--features", f.as_str()]).collect();
    step("tests");
    let nextest = succeeds(&mut cargo(&["nextest", "--version"]));
    let mut tests = if nextest {
        cargo(&["nextest", "run", "--workspace", "--no-fail-fast"])
    } else {
        say("cargo-nextest is not installed: using cargo test");
        cargo(&["test", "--workspace", "--all-targets", "--no-fail-fast"])
    };
    tests.args(&features).env("OCIVISOR_BIN_DIR", &programs);
    tests.envs(systems);
    // A snapshot that differs is a failure, not a question.
    tests.env("INSTA_UPDATE", "no");
    cmd::run(tests.args(&options.filter))?;
    if options.filter.is_empty() {
        step("examples in the documentation");
        let examples = ["test", "--workspace", "--doc", "--quiet"];
        cmd::run(cargo(&examples).args(&features))?;
        crate::vm::run_shortest(&programs)?;
        check::lints()?;
        check::documentation()?;
    }
    Ok(())
}

/// Runs and tells how it went.
///
/// # Errors
/// Something failed.
pub fn run(options: &Options) -> Result<()> {
    if options.vm {
        let module = if options.selinux { Module::Selinux } else { Module::AppArmor };
        return crate::vm::run(&options.filter, module);
    }
    let began = Instant::now();
    everything(options)?;
    let seconds = began.elapsed().as_secs();
    let what = if options.filter.is_empty() {
        "all tests and checks passed"
    } else {
        "the chosen tests passed; checks were left out"
    };
    say(&format!("\nOK: {what} ({} min {} s)", seconds / 60, seconds % 60));
    Ok(())
}
