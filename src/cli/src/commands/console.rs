//! Attaches the user's terminal to a guest's console.

use std::path::Path;

use clap::Args;
use ocivisor_shim::message::Access;

use super::Vm;
use crate::attach::{End, Signals, attach, run as session};
use crate::connect::{Context, progress};
use crate::failure::{Exit, Failure};
use crate::output::write_bytes;
use crate::sanitize::{Policy, RESET, Sanitizer};
use crate::terminal::{self, RawMode};
use crate::typed::{self, DetachKey};

/// Options of `console`.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    vm: Vm,
    /// Look only
    #[arg(short, long, conflicts_with = "take")]
    read_only: bool,
    /// Take the console from who writes on it now
    #[arg(long)]
    take: bool,
    /// Show the end of the console's log first
    #[arg(long)]
    replay: bool,
    /// Pass every byte to the terminal, also what reaches past its screen (clipboard, titles, printing)
    #[arg(long)]
    raw: bool,
    /// The key that leaves: ^ and a character, or none
    #[arg(long, value_name = "KEY", default_value = "^]")]
    detach_key: DetachKey,
}

/// Runs it.
///
/// # Errors
/// The VM does not run, the shim refuses, or the connection breaks.
pub async fn run(options: &Options, context: &Context) -> Result<(), Failure> {
    let client = context.daemon().await?;
    let place = context.ask(client.vm_console(options.vm.text())).await?;
    let access = match (options.read_only, options.take) {
        (true, _) => Access::Read,
        (false, true) => Access::Take,
        (false, false) => Access::Write,
    };
    let console = attach(Path::new(&place.socket), access, options.replay)?;
    let vm = &options.vm.vm;
    if access != Access::Read && !console.writes() {
        progress(
            context.output,
            &format!("{vm}: somebody else types here, you look on; --take takes over"),
        );
    }
    progress(context.output, &format!("{vm}: console attached"));
    let typed = typed::chunks()?;
    let signals = Signals::catch()?;
    let raw = RawMode::enter()
        .map_err(|e| Failure::new(Exit::Failure, format!("set the terminal: {e}")))?;
    let mut guard = (!options.raw).then(|| Sanitizer::new(Policy::Screen));
    let show = |bytes: &[u8]| match &mut guard {
        Some(guard) => write_bytes(&guard.clean(bytes)),
        None => write_bytes(bytes),
    };
    let end = session(console, signals, Some(typed), options.detach_key, show).await;
    if raw.is_some() && terminal::is_shown() {
        // Who has gone needs no terminal put back.
        drop(write_bytes(RESET));
    }
    drop(raw);
    match end? {
        End::Left | End::ReaderGone => progress(context.output, &format!("\n{vm}: detached")),
        End::GuestEnded(exit) => {
            progress(context.output, &format!("\n{vm}: guest ended with {exit}"));
        }
        End::HungUp => {
            let what = format!("{vm}: the console was taken over or the guest ended");
            progress(context.output, &format!("\n{what}"));
        }
        End::Signalled(number) => {
            return Err(Failure::new(Exit::Failure, format!("ended by signal {number}")));
        }
    }
    Ok(())
}
