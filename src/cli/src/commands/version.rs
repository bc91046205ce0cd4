//! Shows versions: of this command always, of the daemon if it answers.

use clap::Args;
use ocivisor_rpc::API_VERSION;
use ocivisor_schema::reply::VersionReply;
use serde::Serialize;

use crate::connect::Context;
use crate::failure::Failure;

/// Options of `version`.
#[derive(Debug, Args)]
pub struct Options {
    /// Do not ask the daemon
    #[arg(long)]
    client: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    client: VersionReply,
    /// `null` if it was not asked or did not answer.
    daemon: Option<VersionReply>,
}

/// Runs it. A daemon that does not answer is no failure: its version is not known, that is all.
///
/// # Errors
/// Standard output cannot be written.
pub async fn run(options: &Options, context: &Context) -> Result<(), Failure> {
    let daemon = if options.client { None } else { daemon(context).await };
    let report = Report {
        client: VersionReply { version: env!("CARGO_PKG_VERSION").to_owned(), api: API_VERSION },
        daemon,
    };
    let line = |who, reply: &VersionReply| format!("{who} {} (API {})\n", reply.version, reply.api);
    context.output.emit(&report, || {
        let mut text = line("ocivisor", &report.client);
        match &report.daemon {
            Some(reply) => text.push_str(&line("ocivisord", reply)),
            None if options.client => {}
            None => text.push_str("ocivisord not reachable\n"),
        }
        text
    })
}

async fn daemon(context: &Context) -> Option<VersionReply> {
    let client = context.daemon().await.ok()?;
    context.ask(client.daemon_version()).await.ok()
}
