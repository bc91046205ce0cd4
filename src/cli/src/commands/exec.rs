//! Runs a command in a guest.
//!
//! Exit codes are those of docker and podman: the command's own; 128 and the signal's number if one
//! ended it; 127 not found in the guest, 126 found but not executable, 125 our own failure.

use std::path::Path;

use clap::Args;

use super::Vm;
use crate::attach::Signals;
use crate::connect::{Context, block_on};
use crate::failure::{Exit, Failure};
use crate::output::complain;
use crate::session::{Terminal, connect, run as session};
use crate::terminal::RawMode;
use crate::typed;

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
        environment(options, std::env::var("TERM").ok()),
        options.user.clone(),
        options.workdir.clone(),
        options.tty,
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
    let code = session(stream, signals, typed, has).await;
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
