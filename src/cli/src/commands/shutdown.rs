//! Asks a guest to end; ends it by force when its time is up, unless told not to.

use std::time::Duration;

use clap::Args;
use ocivisor_rpc::Client;

use super::Vm;
use crate::connect::{Context, millis};
use crate::failure::Failure;

/// What a guest gets if nothing is said; OpenNebula's default too.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(120);

/// Options of `shutdown`.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    vm: Vm,
    /// Fail, and leave the guest running, if it does not end in time
    #[arg(long)]
    no_force: bool,
    /// Forget the virtual machine afterwards; its disk stays
    #[arg(long)]
    forget: bool,
}

/// Runs it.
///
/// # Errors
/// See [`Context::operate`].
pub async fn run(options: &Options, context: &Context) -> Result<(), Failure> {
    let grace = millis(context.timeout.unwrap_or(DEFAULT_GRACE));
    let send = async |client: &Client, id| {
        let vm = options.vm.text();
        client.vm_shutdown(id, vm, grace, !options.no_force, options.forget).await
    };
    context.wishing_absence().patient().operate("shut down", send).await
}
