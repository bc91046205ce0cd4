//! Asks a guest to end and boots it anew.

use clap::Args;
use ocivisor_rpc::Client;

use super::Vm;
use crate::connect::{Context, millis};
use crate::failure::Failure;

/// Options of `reboot`.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    vm: Vm,
}

/// Runs it.
///
/// # Errors
/// See [`Context::operate`].
pub async fn run(options: &Options, context: &Context) -> Result<(), Failure> {
    let grace = context.timeout.map(millis);
    let send = async |client: &Client, id| client.vm_reboot(id, options.vm.text(), grace).await;
    context.patient().operate("rebooted", send).await
}
