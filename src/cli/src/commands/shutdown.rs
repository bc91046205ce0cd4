//! Asks a guest to end; ends it by force when its time is up, unless told not to.

use clap::Args;
use ocivisor_rpc::Client;

use super::Vm;
use crate::connect::{Context, millis};
use crate::failure::Failure;

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
    let grace = context.timeout.map(millis);
    let send = async |client: &Client, id| {
        let vm = options.vm.text();
        client.vm_shutdown(id, vm, grace, !options.no_force, options.forget).await
    };
    context.wishing_absence().patient().operate("shut down", send).await
}
