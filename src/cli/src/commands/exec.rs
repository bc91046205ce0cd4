//! Runs a command in a guest.
//!
//! Exit codes are those of docker and podman: the command's own; 128 and the signal's number if one
//! ended it; 127 not found in the guest, 126 found but not executable, 125 our own failure.

use clap::Args;

use super::Vm;
use crate::connect::{Context, block_on};
use crate::failure::{Exit, Failure};
use crate::output::complain;

/// We failed; the command did not run.
const OURS: u8 = 125;

/// Options of `exec`.
#[derive(Debug, Args)]
pub struct Options {
    /// Pass standard input to the command
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// A variable of its environment
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// User, instead of root
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Working directory, instead of the guest's
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    #[command(flatten)]
    vm: Vm,
    /// The command and its arguments
    #[arg(
        value_name = "COMMAND",
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    command: Vec<String>,
}

/// Runs it; failures of our own are printed here, because their code is another.
///
/// # Errors
/// Never: every failure becomes a code.
pub fn main(options: &Options, context: &Context) -> Result<u8, Failure> {
    match block_on(run(options, context)) {
        Ok(code) => Ok(code),
        Err(failure) => {
            complain(&failure.render());
            Ok(OURS)
        }
    }
}

async fn run(options: &Options, context: &Context) -> Result<u8, Failure> {
    let client = context.daemon().await?;
    let begun = client.vm_exec(
        options.vm.text(),
        options.command.clone(),
        options.env.clone(),
        options.user.clone(),
        options.workdir.clone(),
        options.tty,
    );
    let _place = context.ask(begun).await?;
    Err(Failure::new(Exit::Unsupported, "exec"))
}
