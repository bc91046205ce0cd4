//! Ends a guest at once and boots it anew.

use clap::Args;
use ocivisor_rpc::Client;

use super::Vm;
use crate::connect::Context;
use crate::failure::Failure;

/// Options of `reset`.
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
    let send = async |client: &Client, id| client.vm_reset(id, options.vm.text()).await;
    context.operate("reset", send).await
}
