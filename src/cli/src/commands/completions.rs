//! Prints completions for a shell.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::args::Cli;
use crate::failure::Failure;
use crate::output::print;

/// Options of `completions`.
#[derive(Debug, Args)]
pub struct Options {
    /// Which shell
    #[arg(value_enum, value_name = "SHELL")]
    shell: Shell,
}

/// Runs it.
///
/// # Errors
/// Standard output cannot be written.
pub fn run(options: &Options) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(options.shell, &mut Cli::command(), "ocivisor", &mut script);
    print(&String::from_utf8_lossy(&script))
}
