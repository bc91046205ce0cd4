//! `ocivisor one vmm ACTION …`: what the driver scripts of OpenNebula call.
//!
//! The scripts run under oned's rules, not under those of the other commands: standard output
//! carries the answer alone, a failure is one plain sentence, everything else is an `INFO:` line
//! ([`ocivisor_opennebula`]). There is no terminal and perhaps nobody who reads; the input comes
//! through a pipe, in pieces; `""` and `-` are arguments like others. So these arguments never pass
//! the option parser when they come first, which is how the scripts give them ([`early`]).
//!
//! Every call is a request of its own: oned's retries must have an effect again. The daemon may be
//! away for a moment (an upgrade); a call waits for it.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use ocivisor_core::error::{Error, ErrorKind};
use ocivisor_opennebula::vmm::{self, VmmCall};
use ocivisor_opennebula::{Action, Answer, failure, progress, xml};
use ocivisor_rpc::Client;
use ocivisor_schema::spec::ResourcesV1;
use ocivisor_schema::{ChangeV1, Text, VmSpecV1};
use serde::Deserialize;

use crate::args::DEFAULT_SOCKET;
use crate::connect::{Context, Wait, Wish, block_on, fresh_request_id, millis};
use crate::failure::{Exit, Failure};
use crate::output::{Format, Output, complain, print};

/// The host's policy.
const CONFIG: &str = "/etc/ocivisor/opennebula.toml";
/// Another place for it, for tests and for several daemons on one host.
const CONFIG_VARIABLE: &str = "OCIVISOR_OPENNEBULA_CONFIG";

/// Options of `one`.
#[derive(Debug, Args)]
pub struct Options {
    #[command(subcommand)]
    driver: Driver,
}

#[derive(Debug, Subcommand)]
enum Driver {
    /// Scripts of the virtual machine manager
    #[command(disable_help_flag = true)]
    Vmm {
        /// Name of the script
        action: OsString,
        /// Its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        argv: Vec<OsString>,
    },
}

/// What the host's admin wants; every field may be left out.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    /// The daemon's socket.
    socket: Option<PathBuf>,
    /// Seconds that every guest may take to end on `shutdown` and `reboot`; else what its template
    /// says, else what the daemon gives.
    shutdown_timeout: Option<u64>,
    /// Whether `shutdown` then ends it by force; else the action fails and the guest runs on.
    force_shutdown: bool,
    /// Seconds that a call waits for a daemon that is away, as during an upgrade.
    daemon_timeout: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { socket: None, shutdown_timeout: None, force_shutdown: true, daemon_timeout: 20 }
    }
}

impl Config {
    /// An absent file is the defaults.
    fn load() -> Result<Self, Error> {
        let path = std::env::var_os(CONFIG_VARIABLE).map_or(PathBuf::from(CONFIG), PathBuf::from);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(bad_config(&path, &e)),
        };
        toml::from_str(&text).map_err(|e| bad_config(&path, &e.message()))
    }
}

fn bad_config(path: &Path, why: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorKind::Invalid, format!("{}: {why}", path.display()))
}

/// The call, if the command line is `ocivisor one vmm …`: no argument of it is an option of ours.
#[must_use]
pub fn early() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next()? != "one" || args.next()? != "vmm" {
        return None;
    }
    let action = args.next().unwrap_or_default();
    let argv: Vec<OsString> = args.collect();
    let socket = std::env::var_os("OCIVISOR_SOCKET").map(PathBuf::from);
    Some(serve(&action.to_string_lossy(), &argv, socket))
}

/// The call when global options stood before `one`.
#[must_use]
pub fn main(options: &Options, context: &Context) -> ExitCode {
    let Driver::Vmm { action, argv } = &options.driver;
    serve(&action.to_string_lossy(), argv, Some(context.socket.clone()))
}

fn serve(action: &str, argv: &[OsString], socket: Option<PathBuf>) -> ExitCode {
    let answer = match input() {
        Ok(stdin) => answer(action, argv, &stdin, socket),
        Err(e) => {
            let error = Error::new(ErrorKind::Host, format!("read standard input: {e}"));
            failure(Action::from_name(action).unwrap_or(Action::Poll), None, &error)
        }
    };
    complain(&answer.stderr);
    // Nobody is left to tell if it cannot be written, and what was done stays done.
    let _ = print(&answer.stdout);
    ExitCode::from(answer.exit)
}

/// All of standard input, one byte more than may be: that much is told from a whole document. An
/// admin's terminal is no input.
fn input() -> io::Result<Vec<u8>> {
    let stdin = io::stdin();
    let mut bytes = Vec::new();
    if !stdin.is_terminal() {
        let most = xml::MAX_INPUT as u64 + 1;
        stdin.lock().take(most).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

fn answer(action: &str, argv: &[OsString], stdin: &[u8], socket: Option<PathBuf>) -> Answer {
    let call = match vmm::plan(action, argv, stdin) {
        Ok(call) => call,
        Err(refusal) => return refusal.answer(),
    };
    for note in call.notes() {
        complain(&note.line(call.vm()));
    }
    let began = Instant::now();
    let done = Config::load().and_then(|config| {
        let socket =
            socket.or_else(|| config.socket.clone()).unwrap_or_else(|| DEFAULT_SOCKET.into());
        block_on(carry_out(&call, &config, &context(socket))).map_err(Error::from)
    });
    match done {
        Ok(()) => {
            let text = format!("{} took {} ms", call.action().name(), began.elapsed().as_millis());
            complain(&progress(call.vm(), &text));
            call.success()
        }
        Err(error) => call.failure(&error),
    }
}

impl From<Failure> for Error {
    /// For the sentence; its kind is not told to oned.
    fn from(failure: Failure) -> Self {
        let error = Self::new(ErrorKind::Host, &failure.message);
        match &failure.hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

fn context(socket: PathBuf) -> Context {
    Context {
        socket,
        output: Output { format: Format::Table, quiet: true },
        request_id: fresh_request_id(),
        timeout: None,
        wait: Wait::ForResult,
        wish: Wish::Presence,
        // A failure told to oned while the operation goes on would be worse than any wait: oned
        // believes it, and the guest runs unknown to it. oned has a timeout of its own if one is wanted.
        patience: Duration::MAX,
    }
}

async fn carry_out(call: &VmmCall, config: &Config, context: &Context) -> Result<(), Failure> {
    if matches!(call, VmmCall::Prereconfigure { .. }) {
        // Nothing is held: the disk is read when the guest is told.
        return Ok(());
    }
    let away = Duration::from_secs(config.daemon_timeout);
    let client = reach(call, context, away).await?;
    let vm = || Text(call.vm_id());
    let grace = config.shutdown_timeout.map(|seconds| millis(Duration::from_secs(seconds)));
    match call {
        VmmCall::Deploy { spec, .. } => {
            // What an earlier try left is cleared within the operation, unless it is this very guest.
            let spec = VmSpecV1::from(spec.as_ref());
            let send = async |c: &Client, id| c.vm_deploy(id, spec.clone()).await;
            context.run_operation(&client, &send).await?;
        }
        VmmCall::Shutdown { .. } => {
            let force = config.force_shutdown;
            let send = async |c: &Client, id| c.vm_shutdown(id, vm(), grace, force, true).await;
            context.wishing_absence().run_operation(&client, &send).await?;
        }
        VmmCall::Cancel { .. } => {
            let send = async |c: &Client, id| c.vm_destroy(id, vm(), true).await;
            context.wishing_absence().run_operation(&client, &send).await?;
        }
        VmmCall::Reboot { .. } => {
            let send = async |c: &Client, id| c.vm_reboot(id, vm(), grace).await;
            context.run_operation(&client, &send).await?;
        }
        VmmCall::Reset { .. } => {
            let send = async |c: &Client, id| c.vm_reset(id, vm()).await;
            context.run_operation(&client, &send).await?;
        }
        VmmCall::Resize { resources, .. } => {
            let resources = Some(ResourcesV1::from(resources.as_ref()));
            let change = ChangeV1 { resources, ..ChangeV1::default() };
            let send = async |c: &Client, id| c.vm_change(id, vm(), change.clone()).await;
            context.run_operation(&client, &send).await?;
        }
        VmmCall::Prereconfigure { .. } => {}
        VmmCall::Reconfigure { context: told, .. } => {
            let change = ChangeV1 { context: Some(told.as_ref().into()), ..ChangeV1::default() };
            let send = async |c: &Client, id| c.vm_change(id, vm(), change.clone()).await;
            if let Err(failure) = context.run_operation(&client, &send).await {
                // Of a VM that is powered off (COLD_NIC_ATTACH) there is no record: the next deploy tells it.
                let known = client.vm_get(vm()).await;
                let unknown = known.is_err_and(|e| Failure::from(e).exit == Exit::NotFound);
                if failure.exit != Exit::NotFound || !unknown {
                    return Err(failure);
                }
                complain(&progress(call.vm(), "no guest to tell: it is told when it is deployed"));
            }
        }
    }
    Ok(())
}

/// A client of a daemon that may be away for a moment.
async fn reach(call: &VmmCall, context: &Context, away: Duration) -> Result<Client, Failure> {
    let began = Instant::now();
    let mut told = false;
    loop {
        match context.daemon().await {
            Err(failure) if failure.exit == Exit::Unreachable && began.elapsed() < away => {
                if !told {
                    complain(&progress(call.vm(), "waiting for ocivisord"));
                    told = true;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use ocivisor_core::spec::Boot;

    use super::*;

    #[test]
    fn the_configuration_has_defaults_and_refuses_typos() {
        assert_eq!(toml::from_str::<Config>("").unwrap(), Config::default());
        let config: Config =
            toml::from_str("shutdown_timeout = 5\nforce_shutdown = false").unwrap();
        assert_eq!((config.shutdown_timeout, config.force_shutdown), (Some(5), false));
        assert!(toml::from_str::<Config>("shutdown_timout = 5").is_err());
    }

    #[test]
    fn the_documented_configuration_is_the_default() {
        let document = include_str!("../../../docs/cli.md");
        let (_, block) = document.split_once("all keys are optional:\n").unwrap();
        let config: Config = toml::from_str(&block.replace("\n    ", "\n")).unwrap();
        let socket = Some(DEFAULT_SOCKET.into());
        let shutdown_timeout = Some(Boot::STOP_TIMEOUT.as_secs());
        assert_eq!(config, Config { socket, shutdown_timeout, ..Config::default() });
    }
}
