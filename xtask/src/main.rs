//! What developers and CI run: `cargo xtask test`, `quickstart`, `bench`, `fuzz`, `ci`.
//!
//! Each installs what it misses (Debian and Ubuntu: apt), says what it does while it does it, and
//! ends with one clear line. A check that cannot run is a failure, never a skip.

#![forbid(unsafe_code)]

mod bench;
mod binaries;
mod check;
mod cmd;
mod fuzz;
mod packages;
mod quickstart;
mod test;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Tasks for developers of ocivisor.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Line {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Run all tests and checks, those that need root included
    Test(test::Options),
    /// The same, and the checks that need tools which take long to install
    Ci,
    /// Measure ours beside the floor, runc, crun and docker
    Bench(bench::Options),
    /// Run the fuzz targets of the parsers of foreign bytes
    Fuzz(fuzz::Options),
    /// Build, start a daemon of its own, deploy a guest as OpenNebula does, show it, stop it
    Quickstart(quickstart::Options),
}

fn main() -> ExitCode {
    let done = match Line::parse().task {
        Task::Test(options) => test::run(&options),
        Task::Ci => test::run(&test::Options::default()).and_then(|()| check::deny()),
        Task::Bench(options) => bench::run(&options),
        Task::Fuzz(options) => fuzz::fuzz(&options),
        Task::Quickstart(options) => quickstart::run(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cmd::say(&format!("FAILED: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
