//! Tells a VM another context: at once if it runs, else at its next start.
//!
//! The context is replaced as a whole: what is not said is taken back. It could not be otherwise, for answers of the
//! daemon hide the secrets of the one that is there.

use std::path::PathBuf;

use clap::Args;
use ocivisor_rpc::Client;
use ocivisor_schema::ChangeV1;
use ocivisor_schema::spec::ContextV1;

use super::{Vm, define};
use crate::connect::Context;
use crate::failure::{Exit, Failure};
use crate::telling::TellingOptions;

/// Options of `reconfigure`.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    vm: Vm,
    /// Read the whole context from a JSON or TOML file; - is standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    telling: TellingOptions,
    /// Take back all that was told
    #[arg(long, conflicts_with = "file")]
    nothing: bool,
}

/// Runs it.
///
/// # Errors
/// A file or an option is wrong; else see [`Context::operate`].
pub async fn run(options: &Options, context: &Context) -> Result<(), Failure> {
    let told = match &options.file {
        Some(path) => define::read_as::<ContextV1>(path)?,
        None => options.telling.context()?,
    };
    if (told == ContextV1::default()) != options.nothing {
        let what = if options.nothing { "something is told, too" } else { "nothing is told" };
        let failure = Failure::new(Exit::Usage, what);
        return Err(failure.hint("--nothing, and no other option, takes back all that was told"));
    }
    let change = ChangeV1 { context: Some(told), ..ChangeV1::default() };
    let send =
        async |client: &Client, id| client.vm_change(id, options.vm.text(), change.clone()).await;
    context.operate("reconfigured", send).await
}
