//! The ocivisor command: a thin client of the daemon, and the checks of a host.
//!
//! ```text
//!   argv ─► args (clap) ─► commands/<one file each> ─► connect ─► daemon
//!                                   │                                │
//!                                   └────────► output ◄──────────────┘
//! ```
//!
//! What can go wrong ends as a [`failure::Failure`]: one line on standard error, advice on a second,
//! an exit code that scripts can rely on. The driver scripts of OpenNebula come in by `one` and
//! follow other rules ([`one`]). No command prompts; none needs a terminal but `console` to be of use.

#![forbid(unsafe_code)]

mod args;
mod attach;
mod commands;
mod connect;
mod copy;
mod disk;
mod doctor;
mod failure;
mod nic;
mod offline;
mod one;
mod output;
mod sanitize;
mod session;
mod telling;
mod terminal;
mod typed;
mod units;
mod upkeep;
mod vnc;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind as ClapError;

use args::{Cli, Command};
use connect::{Context, block_on};
use failure::{Exit, Failure};
use output::{complain, print};

fn main() -> ExitCode {
    if let Some(code) = one::early().or_else(offline::early) {
        return code;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return unparsed(&error),
    };
    let context = Context::new(&cli.global);
    let result = match cli.command {
        Command::One(options) => return one::main(&options, &context),
        Command::Exec(options) => commands::exec::main(&options, &context),
        Command::Cp(options) => commands::cp::main(&options, &context),
        command => run(&command, &context).map(|()| 0),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(failure) => fail(&failure),
    }
}

fn run(command: &Command, context: &Context) -> Result<(), Failure> {
    match command {
        // Without daemon and runtime.
        Command::Doctor(options) => commands::doctor::run(options, context),
        Command::Completions(options) => commands::completions::run(options),
        Command::Man(options) => commands::man::run(options, context),
        Command::Exec(_) | Command::Cp(_) | Command::One(_) => Ok(()),
        command => block_on(ask_daemon(command, context)),
    }
}

async fn ask_daemon(command: &Command, context: &Context) -> Result<(), Failure> {
    match command {
        Command::List(options) => commands::list::run(options, context).await,
        Command::Info(options) => commands::info::run(options, context).await,
        Command::Define(options) => commands::define::run(options, context).await,
        Command::Start(options) => commands::start::run(options, context).await,
        Command::Shutdown(options) => commands::shutdown::run(options, context).await,
        Command::Destroy(options) => commands::destroy::run(options, context).await,
        Command::Reboot(options) => commands::reboot::run(options, context).await,
        Command::Reconfigure(options) => commands::reconfigure::run(options, context).await,
        Command::Reset(options) => commands::reset::run(options, context).await,
        Command::Stats(options) => commands::stats::run(options, context).await,
        Command::Resize(options) => commands::resize::run(options, context).await,
        Command::Nic(options) => commands::nic::run(options, context).await,
        Command::Undefine(options) => commands::undefine::run(options, context).await,
        Command::Console(options) => commands::console::run(options, context).await,
        Command::Logs(options) => commands::logs::run(options, context).await,
        Command::Why(options) => commands::why::run(options, context).await,
        Command::Events(options) => commands::events::run(options, context).await,
        Command::Image(options) => commands::image::run(options, context).await,
        Command::Disk(options) => commands::disk::run(options, context).await,
        Command::Host(options) => commands::host::run(options, context).await,
        Command::Version(options) => commands::version::run(options, context).await,
        Command::Exec(_)
        | Command::Cp(_)
        | Command::Doctor(_)
        | Command::Completions(_)
        | Command::Man(_)
        | Command::One(_) => Ok(()),
    }
}

/// Help and version go to standard output; mistakes are one line.
fn unparsed(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ClapError::DisplayHelp | ClapError::DisplayVersion => {
            match print(&error.render().to_string()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(failure) => fail(&failure),
            }
        }
        ClapError::DisplayHelpOnMissingArgumentOrSubcommand => {
            complain(&error.render().to_string());
            ExitCode::from(Exit::Usage as u8)
        }
        _ => fail(&Failure::usage(error)),
    }
}

fn fail(failure: &Failure) -> ExitCode {
    complain(&failure.render());
    ExitCode::from(failure.exit as u8)
}
