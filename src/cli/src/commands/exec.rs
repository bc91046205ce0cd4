//! Runs a command in a guest.
//!
//! Exit codes are those of docker and podman: the command's own; 128 and the signal's number if one
//! ended it; 127 not found in the guest, 126 found but not executable, 125 our own failure. 124 is that of
//! timeout(1): its time was over.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use ocivisor_core::units::Bytes;
use ocivisor_frame::session::Collected;
use serde::Serialize;

use super::Vm;
use crate::attach::Signals;
use crate::connect::{Context, block_on, millis};
use crate::failure::{Exit, Failure};
use crate::output::{Format, complain};
use crate::session::{Heard, Terminal, connect, run as session};
use crate::terminal::RawMode;
use crate::{typed, units};

/// We failed; the command did not run.
const OURS: u8 = 125;

/// Options of `exec`.
#[derive(Debug, Args)]
#[command(after_help = "--timeout limits how long the command may run.\n\
    Exit codes: the command's own; 128 and the number of the signal that ended it;\n\
    124 its time was over, 125 ocivisor failed, 126 not executable, 127 not found.")]
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
    /// Leave it to itself once it runs
    #[arg(short, long, conflicts_with = "interactive")]
    detach: bool,
    /// With -o json: the most bytes to keep of each of its outputs
    #[arg(long, value_name = "SIZE", default_value = "1MiB", value_parser = units::size)]
    max_output: Bytes,
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

/// The result as JSON; what a program says need not be text.
#[derive(Debug, Serialize)]
struct Report {
    exit_code: u8,
    stdout_base64: String,
    stderr_base64: String,
    left_out_bytes: u64,
}

impl Report {
    fn of(exit_code: u8, all: &Collected) -> Self {
        Self {
            exit_code,
            stdout_base64: STANDARD.encode(&all.output),
            stderr_base64: STANDARD.encode(&all.error),
            left_out_bytes: all.left_out,
        }
    }
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
    let limit = context.timeout.map(millis);
    // What was meant for the command is not our own haste.
    let context = &context.patient();
    let client = context.daemon().await?;
    let begun = client.vm_exec(
        options.vm.text(),
        options.command.clone(),
        environment(options, std::env::var("TERM").ok()),
        options.user.clone(),
        options.workdir.clone(),
        options.tty,
        limit,
        options.detach,
    );
    let place = context.ask(begun).await?;
    let stream = connect(Path::new(&place.socket), &place.token).await?;
    let signals = Signals::catch()?;
    let typed = if options.interactive { Some(typed::chunks()?) } else { None };
    let raw = if options.tty && options.interactive {
        RawMode::enter()
            .map_err(|e| Failure::new(Exit::Failure, format!("set the terminal: {e}")))?
    } else {
        None
    };
    let has = if options.tty { Terminal::Own } else { Terminal::None };
    if context.output.format == Format::Json {
        let most = usize::try_from(options.max_output.0).unwrap_or(usize::MAX);
        let mut all = Collected::up_to(most);
        let code = session(stream, signals, typed, has, Heard::Kept(&mut all)).await;
        drop(raw);
        let report = Report::of(code?, &all);
        context.output.emit(&report, String::new)?;
        return Ok(report.exit_code);
    }
    let code = session(stream, signals, typed, has, Heard::Streams).await;
    drop(raw);
    code
}

/// What was asked for; a terminal is of our kind unless it was said otherwise.
fn environment(options: &Options, term: Option<String>) -> Vec<String> {
    let said = options.env.iter().any(|entry| entry.starts_with("TERM="));
    let term = term.filter(|_| options.tty && !said);
    let term = term.map(|name| format!("TERM={name}"));
    term.into_iter().chain(options.env.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn parse(args: &[&str]) -> Options {
        Line::try_parse_from([&["exec"], args].concat()).unwrap().options
    }

    #[test]
    fn the_command_begins_after_the_vm() {
        for args in [&["web", "ls", "-t", "--env"][..], &["web", "--", "ls", "-t", "--env"]] {
            let options = parse(args);
            assert_eq!(options.command, ["ls", "-t", "--env"]);
            assert!(!options.tty);
        }
        let options = parse(&["-it", "-e", "A=b", "web", "sh"]);
        assert!(options.tty && options.interactive);
        assert_eq!(options.command, ["sh"]);
    }

    #[test]
    fn a_terminal_is_of_our_kind() {
        let term = || Some("xterm".to_owned());
        assert_eq!(environment(&parse(&["web", "sh"]), term()), [""; 0]);
        assert_eq!(environment(&parse(&["-t", "web", "sh"]), term()), ["TERM=xterm"]);
        let own = parse(&["-t", "-e", "TERM=dumb", "web", "sh"]);
        assert_eq!(environment(&own, term()), ["TERM=dumb"]);
    }
}
