//! `cargo xtask fuzz`: the parsers of foreign bytes under libFuzzer, with the compiler that we build with.
//!
//! cargo-fuzz wants a nightly compiler, for sanitizers; what guides a fuzzer, coverage, stable rustc can give by options of
//! its code generation. `unsafe` is forbidden where these parsers are, so what remains to be found (panics, endless
//! loops, much memory) shows without a sanitizer. Not so in the decompressors of xz and zstd, which are C: `--sanitize` has
//! them, and all else, compiled for `AddressSanitizer`.
//!
//! What a target learned stays in `<target directory>/fuzz/corpus/<target>` for the next run; inputs that it failed on are in
//! `<target directory>/fuzz/failed/<target>-…` and can be given to the program again as an argument.

mod seeds;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::cmd::{self, cargo, program, run, say, step};
use crate::packages::{FOR_TESTS, TO_BUILD, ensure};

/// Options of `fuzz`.
#[derive(Debug, Args)]
pub struct Options {
    /// The targets; all, one after the other, if none is named
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(seeds::TARGETS))]
    targets: Vec<String>,
    /// How long each of them runs
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// With `AddressSanitizer`, for which a nightly compiler has to be installed
    #[arg(long)]
    sanitize: bool,
}

/// Memory of one target, in MiB; the limits of an import are to see to it that it needs less.
const MEMORY: u32 = 512;
/// What a sanitizer keeps of memory that was freed is a multiple of it.
const SANITIZED_MEMORY: u32 = 2048;
/// Seconds for one input.
const PATIENCE: u32 = 20;

/// What libFuzzer needs of a program: a counter at each edge, its table of places, and operands of comparisons.
const COVERAGE: [&str; 9] = [
    "--cfg fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
    "-Cdebug-assertions=yes",
    "-Coverflow-checks=yes",
];

/// Builds the targets and runs them.
///
/// # Errors
/// A target found an input that its parser fails on, or could not be run.
pub fn fuzz(options: &Options) -> Result<()> {
    ensure(&[&TO_BUILD, &FOR_TESTS])?;
    let programs = build(options.sanitize)?;
    let memory = if options.sanitize { SANITIZED_MEMORY } else { MEMORY };
    let top = cmd::target().join("fuzz");
    let all = seeds::TARGETS.map(str::to_owned).to_vec();
    let targets = if options.targets.is_empty() { &all } else { &options.targets };
    let seeds = top.join("seeds");
    step("seeds");
    seeds::make(&seeds)?;
    for target in targets {
        step(&format!("{target} for {} s", options.seconds));
        let (corpus, failed) = (top.join("corpus").join(target), top.join("failed"));
        for dir in [&corpus, &failed] {
            std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        }
        let mut fuzzer = program(programs.join(target));
        fuzzer.arg(&corpus).arg(seeds.join(target)).args([
            format!("-max_total_time={}", options.seconds),
            format!("-rss_limit_mb={memory}"),
            format!("-timeout={PATIENCE}"),
            format!("-max_len={}", longest(&seeds.join(target))?),
            format!("-artifact_prefix={}/{target}-", failed.display()),
            "-print_final_stats=1".to_owned(),
        ]);
        if let Err(error) = run(&mut fuzzer) {
            bail!("{target} failed on an input that is now in {}: {error}", failed.display());
        }
    }
    say(&format!("\nnothing found by {}", targets.join(", ")));
    Ok(())
}

/// Room for what the fuzzer puts into a seed.
fn longest(seeds: &Path) -> Result<u64> {
    let mut most = 4096;
    for file in std::fs::read_dir(seeds).with_context(|| format!("read {}", seeds.display()))? {
        most = most.max(file?.metadata()?.len() * 5 / 4);
    }
    Ok(most)
}

/// Builds all targets, and returns the directory that they are in.
fn build(sanitize: bool) -> Result<PathBuf> {
    step("build");
    let host = cmd::output(program("rustc").args(["--print", "host-tuple"]))?;
    let host = host.trim();
    let mut target = cmd::target().join("fuzz");
    let mut flags = COVERAGE.join(" ");
    let mut command = cargo(&[]);
    if sanitize {
        target = target.join("sanitized");
        flags += " -Zsanitizer=address";
        command = program("rustup");
        command.args(["run", "nightly", "cargo"]);
        // gcc's instrumentation and LLVM's run time speak the same language.
        let variable = format!("CFLAGS_{}", host.replace('-', "_"));
        command.env(variable, "-fsanitize=address -fno-omit-frame-pointer");
    }
    // With the host named as target, build scripts and procedural macros are left as they are.
    run(command
        .args(["build", "--release", "--manifest-path", "fuzz/Cargo.toml", "--bins"])
        .args(["--target", host])
        .env("CARGO_TARGET_DIR", &target)
        .env("RUSTFLAGS", flags))?;
    Ok(target.join(host).join("release"))
}
