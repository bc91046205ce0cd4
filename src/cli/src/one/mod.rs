//! `ocivisor one DRIVER ACTION …`: what the driver scripts of OpenNebula call.
//!
//! The scripts run under oned's rules, not under those of the other commands: standard output
//! carries the answer alone, a failure is one plain sentence, everything else is an `INFO:` line
//! ([`ocivisor_opennebula`]). There is no terminal and perhaps nobody who reads; the input comes
//! through a pipe, in pieces; `""` and `-` are arguments like others. So these arguments never pass
//! the option parser when they come first, which is how the scripts give them ([`early`]).
//!
//! All scripts are the same two lines, which hand on where they lie: `ocivisor one script PATH …`. The directory
//! tells the driver, the file the action ([`Kind::of_script`]).

mod config;
mod datastore;
mod detached;
mod exec;
mod host;
mod im;
mod install;
mod kind;
mod market;
mod nics;
mod remarks;
mod tm;
mod vmm;

use std::ffi::OsString;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use ocivisor_core::error::{Error, ErrorKind};
use ocivisor_opennebula::{Action, Answer, failure, xml};

use self::kind::Kind;
use crate::connect::Context;
use crate::output::{complain, print};

/// What our drivers are called where a script's place does not say it.
const DRIVER: &str = "ocivisor";

/// The word by which the datastore driver calls this program again, below a user namespace.
const BUILDER: &str = "builder";

/// Options of `one`.
#[derive(Debug, Args)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Prepare a front-end or a host of OpenNebula's, or look at one
    Install(install::Options),
    /// Scripts of the virtual machine manager
    #[command(hide = true, disable_help_flag = true)]
    Vmm(Call),
    /// Scripts of the transfer manager
    #[command(hide = true, disable_help_flag = true)]
    Tm(Call),
    /// What transfer scripts run on a host, by ssh
    #[command(hide = true)]
    Host,
    /// Scripts of the datastore driver
    #[command(hide = true, disable_help_flag = true)]
    Datastore(Call),
    /// Scripts of the marketplace driver
    #[command(hide = true, disable_help_flag = true)]
    Market(Call),
    /// Script of monitoring
    #[command(hide = true, disable_help_flag = true)]
    Im(Call),
}

/// A script, as oned's driver process called it.
#[derive(Debug, Args)]
struct Call {
    /// Name of the script
    action: OsString,
    /// Its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    argv: Vec<OsString>,
    /// Where the script lies, if that is known
    #[arg(skip)]
    dir: Option<PathBuf>,
}

impl Call {
    /// Name of the driver: of the directory that the script lies in.
    fn driver(&self) -> String {
        let name = self.dir.as_deref().and_then(Path::file_name);
        name.map_or_else(|| DRIVER.to_owned(), |name| name.to_string_lossy().into_owned())
    }
}

fn serve(kind: Kind, call: &Call, socket: Option<PathBuf>) -> ExitCode {
    let Call { action, argv, dir } = call;
    remarks::begin(dir.as_deref());
    let action = action.to_string_lossy();
    match kind {
        Kind::Vmm => tell(&match input(xml::MAX_INPUT) {
            Ok(stdin) => vmm::answer(&action, argv, &stdin, socket),
            Err(e) => failure(Action::from_name(&action).unwrap_or(Action::Poll), None, &e),
        }),
        Kind::Tm => tell(&match input(xml::MAX_INPUT) {
            Ok(stdin) => tm::answer(&action, &call.driver(), argv, &stdin),
            Err(e) => ocivisor_opennebula::tm::failure(&action, None, &e),
        }),
        Kind::Datastore => tell(&match input(datastore::MAX_INPUT) {
            Ok(stdin) => datastore::answer(&action, argv, &stdin),
            Err(e) => datastore::unread(&action, &e),
        }),
        Kind::Market => tell(&market::answer(&action, argv)),
        Kind::Im => {
            let dir = dir.as_deref().unwrap_or(Path::new("."));
            tell(&im::answer(argv, dir, input(xml::MAX_INPUT), socket))
        }
    }
}

/// The call, if the command line is `ocivisor one script …` or `ocivisor one vmm …`: no argument of it is an
/// option of ours.
#[must_use]
pub fn early() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next()? != "one" {
        return None;
    }
    let word = args.next()?;
    let socket = std::env::var_os("OCIVISOR_SOCKET").map(PathBuf::from);
    if word == "host" && args.len() == 0 {
        return Some(host::main(socket));
    }
    if word == BUILDER && args.len() == 0 {
        return Some(builder());
    }
    if let Some(code) = detached::early(&word) {
        return Some(code);
    }
    let (kind, action, dir) = if word == "script" {
        let path = PathBuf::from(args.next().unwrap_or_default());
        match Kind::of_script(&path) {
            Some(kind) => {
                let action = path.file_name().unwrap_or_default().to_owned();
                (kind, action, path.parent().map(Path::to_owned))
            }
            None => return Some(tell(&stray(&path))),
        }
    } else {
        (Kind::from_name(word.to_str()?)?, args.next().unwrap_or_default(), None)
    };
    let call = Call { action, argv: args.collect(), dir };
    Some(serve(kind, &call, socket))
}

/// What an admin says, and the call when global options stood before `one`.
#[must_use]
pub fn main(options: &Options, context: &Context) -> ExitCode {
    match &options.command {
        Command::Install(options) => match install::run(options, context.output) {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => {
                complain(&failure.render());
                ExitCode::from(failure.exit as u8)
            }
        },
        Command::Vmm(call) => serve(Kind::Vmm, call, Some(context.socket.clone())),
        Command::Tm(call) => serve(Kind::Tm, call, Some(context.socket.clone())),
        Command::Host => host::main(Some(context.socket.clone())),
        Command::Datastore(call) => serve(Kind::Datastore, call, None),
        Command::Market(call) => serve(Kind::Market, call, None),
        Command::Im(call) => serve(Kind::Im, call, Some(context.socket.clone())),
    }
}

/// Builds a Dockerfile in a root directory of its own.
fn builder() -> ExitCode {
    match ocivisor_frontend::images::builder() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            complain(&format!("{error}\n"));
            ExitCode::FAILURE
        }
    }
}

/// A script that lies where none of ours should.
fn stray(script: &Path) -> Answer {
    let shown = script.display();
    Answer::sentence(&format!("Script {shown} is in no driver's directory that ocivisor knows"))
}

fn tell(answer: &Answer) -> ExitCode {
    complain(&remarks::end(answer));
    // Nobody is left to tell if it cannot be written, and what was done stays done.
    let _ = print(&answer.stdout);
    ExitCode::from(answer.exit)
}

/// All of standard input, one byte more than may be: that much is told from a whole document. An
/// admin's terminal is no input.
fn input(most: usize) -> Result<Vec<u8>, Error> {
    let stdin = io::stdin();
    let mut bytes = Vec::new();
    if !stdin.is_terminal() {
        let read = stdin.lock().take(most as u64 + 1).read_to_end(&mut bytes);
        read.map_err(|e| Error::new(ErrorKind::Host, format!("read standard input: {e}")))?;
    }
    Ok(bytes)
}
