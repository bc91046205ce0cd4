//! This host, as its daemon sees it.

use clap::{Args, Subcommand};
use ocivisor_core::units::Bytes;
use ocivisor_schema::reply::{CgroupLayoutV1, HostInfo};

use crate::connect::Context;
use crate::failure::Failure;
use crate::output::fields;

/// Options of `host`.
#[derive(Debug, Args)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the host and its daemon
    Info,
}

/// Runs it.
///
/// # Errors
/// See [`Context::ask`].
pub async fn run(options: &Options, context: &Context) -> Result<(), Failure> {
    match options.command {
        Command::Info => {
            let client = context.daemon().await?;
            let info = context.ask(client.host_info()).await?;
            context.output.emit(&info, || text(&info))
        }
    }
}

fn text(info: &HostInfo) -> String {
    let cgroups = match info.cgroup_layout {
        CgroupLayoutV1::V2 => "v2",
        CgroupLayoutV1::V1 => "v1",
        CgroupLayoutV1::Hybrid => "hybrid",
    };
    let vms = &info.vms;
    fields(&[
        ("host name", info.hostname.clone()),
        ("kernel", info.kernel.clone()),
        ("control groups", cgroups.to_owned()),
        ("processors", info.cpus.to_string()),
        ("memory", mebibytes(info.memory)),
        ("memory available", mebibytes(info.memory_available)),
        (
            "virtual machines",
            format!(
                "{} running, {} stopped, {} paused, {} suspended, {} failed",
                vms.running, vms.stopped, vms.paused, vms.suspended, vms.failed
            ),
        ),
        ("daemon version", info.version.clone()),
        ("state directory", info.state_dir.clone()),
        ("run directory", info.run_dir.clone()),
    ])
}

/// Memory of a host is no round number.
fn mebibytes(bytes: u64) -> String {
    Bytes::mib(bytes >> 20).to_string()
}
