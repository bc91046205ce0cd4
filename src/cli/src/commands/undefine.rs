//! Forgets a VM that does not run.

use clap::Args;
use ocivisor_rpc::Client;

use super::Vm;
use crate::connect::Context;
use crate::failure::Failure;

/// Options of `undefine`.
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
    let send = async |client: &Client, id| client.vm_undefine(id, options.vm.text()).await;
    context.wishing_absence().operate("undefined", send).await
}
