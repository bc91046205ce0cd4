//! Ends a guest at once.

use clap::Args;
use ocivisor_rpc::Client;

use super::Vm;
use crate::connect::Context;
use crate::failure::Failure;

/// Options of `destroy`.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    vm: Vm,
    /// Forget the virtual machine afterwards; its disk stays
    #[arg(long)]
    forget: bool,
}

/// Runs it.
///
/// # Errors
/// See [`Context::operate`].
pub async fn run(options: &Options, context: &Context) -> Result<(), Failure> {
    let send =
        async |client: &Client, id| client.vm_destroy(id, options.vm.text(), options.forget).await;
    context.wishing_absence().operate("destroyed", send).await
}
