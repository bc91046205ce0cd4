//! ocivisord: keeps VMs as their records say.
//!
//! ```text
//!   main ─► state dir locked ─► records loaded ─► reconciled ─► socket ─► ready
//!                                    │
//!   api (jsonrpsee) ─► vms: admission, one operation per VM at a time ─► engine on a blocking thread
//!                        ▲                                                     │
//!   watch (pidfds) ──────┤            events, operations ◄─────────────────────┘
//!   upkeep, health ──────┘
//! ```
//!
//! The daemon may be killed at any instant: the disk is the truth, guests belong to their shims.
//! Async is here and in the RPC alone; [`vms`] is the one crossing to the synchronous engine.

mod about;
mod api;
mod asking;
mod caller;
mod config;
mod events;
mod exec;
mod failures;
mod faults;
mod health;
mod holds;
mod host;
mod ids;
mod images;
mod jobs;
mod logging;
mod manager;
mod offline;
mod oom;
mod operations;
mod paths;
mod policy;
mod records;
mod serve;
mod state_dir;
mod stats;
mod upkeep;
mod vms;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ocivisor_core::error::ErrorKind;

use crate::config::Config;

/// The ocivisor daemon.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    /// Configuration file; without one, /etc/ocivisor/ocivisor.toml is read if it exists.
    #[arg(long, global = true)]
    config: Option<PathBuf>,
    /// Where records and images are kept.
    #[arg(long, global = true)]
    state_dir: Option<PathBuf>,
    /// Where sockets and mounts are; lost at a reboot.
    #[arg(long, global = true)]
    run_dir: Option<PathBuf>,
    /// Read the configuration, print what is in force, and exit.
    #[arg(long)]
    check_config: bool,
    /// Work on the state directory while no daemon runs.
    #[command(subcommand)]
    offline: Option<Offline>,
}

/// What can be done without a daemon.
#[derive(Debug, Clone, Copy, Subcommand)]
enum Offline {
    /// Check records and images; change nothing.
    Fsck,
    /// Print all records as JSON.
    Dump,
    /// Set damaged records aside and clear what no record knows.
    Recover,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            // Before logging is set up and after it is gone, standard error is all there is.
            eprintln!("ocivisord: {error}");
            if let Some(hint) = &error.hint {
                eprintln!("hint: {hint}");
            }
            ExitCode::from(match error.kind {
                ErrorKind::Invalid => 2,
                ErrorKind::Conflict => 4,
                ErrorKind::Permission => 5,
                ErrorKind::Unsupported => 8,
                ErrorKind::Integrity => 11,
                _ => 1,
            })
        }
    }
}

fn run(arguments: &Arguments) -> ocivisor_core::error::Result<ExitCode> {
    let mut config = Config::load(arguments.config.as_deref())?;
    if let Some(dir) = &arguments.state_dir {
        config.state_dir.clone_from(dir);
    }
    if let Some(dir) = &arguments.run_dir {
        config.run_dir.clone_from(dir);
    }
    config.check()?;
    if arguments.check_config {
        images::policy(&config.images.policy)?;
        println!("{}", config.to_toml());
        return Ok(ExitCode::SUCCESS);
    }
    match arguments.offline {
        Some(what) => offline::run(&config, what),
        None => {
            logging::start(&config.log_level);
            serve::run(&config).map(|()| ExitCode::SUCCESS)
        }
    }
}
