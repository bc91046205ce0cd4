//! The command line: global options here, each command's own beside its code in `commands/`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use ocivisor_core::ids::RequestId;

use crate::commands::{
    completions, console, cp, define, destroy, disk, doctor, events, exec, host, image, info, list,
    logs, man, nic, reboot, reconfigure, reset, resize, shutdown, start, stats, undefine, version,
    why,
};
use crate::one;
use crate::output::Format;
use crate::units;

/// Where the daemon of a packaged installation listens.
pub const DEFAULT_SOCKET: &str = "/run/ocivisor/ocivisord.sock";
/// Where it keeps what survives a reboot.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/ocivisor";

/// Runs OCI containers as virtual machines.
#[derive(Debug, Parser)]
#[command(
    name = "ocivisor",
    version,
    propagate_version = false,
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 done, 1 failure, 2 usage, 3 not found, 4 wrong state, 5 permission, \
                  6 timeout,\n7 no resources, 8 unsupported here, 9 daemon unreachable, 10 image, \
                  11 integrity."
)]
pub struct Cli {
    /// Options of all commands.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of all commands.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Socket of the daemon
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "OCIVISOR_SOCKET",
        default_value = DEFAULT_SOCKET,
        hide_env_values = true
    )]
    pub socket: PathBuf,

    /// Form of the output
    #[arg(short, long, global = true, value_enum, value_name = "FORM", default_value = "table")]
    pub output: Format,

    /// Identity of this request: sent again, it has no second effect
    #[arg(long, global = true, value_name = "ID")]
    pub request_id: Option<RequestId>,

    /// How long to wait for the result; for shutdown and reboot: how long the guest may take
    #[arg(long, global = true, value_name = "TIME", value_parser = units::duration)]
    pub timeout: Option<Duration>,

    /// Do not wait for the result; print the operation
    #[arg(long, global = true)]
    pub no_wait: bool,

    /// Print ids only, or nothing
    #[arg(short, long, global = true)]
    pub quiet: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List virtual machines
    #[command(visible_alias = "ps")]
    List(list::Options),
    /// Show everything about a virtual machine
    #[command(visible_alias = "inspect")]
    Info(info::Options),
    /// Write a virtual machine down; nothing runs yet
    Define(Box<define::Options>),
    /// Boot a defined virtual machine
    Start(start::Options),
    /// Ask a guest to end, and end it by force if it does not
    #[command(visible_alias = "stop")]
    Shutdown(shutdown::Options),
    /// End a guest at once, as pulling the plug does
    #[command(visible_alias = "kill")]
    Destroy(destroy::Options),
    /// Ask a guest to end, then boot it anew; its network interfaces stay
    Reboot(reboot::Options),
    /// Tell a virtual machine another context; what is not said is taken back
    Reconfigure(reconfigure::Options),
    /// End a guest at once, then boot it anew; its network interfaces stay
    Reset(reset::Options),
    /// Change what a virtual machine may use; a guest that runs obeys at once
    Resize(resize::Options),
    /// Network interfaces of a virtual machine, while it runs or not
    Nic(nic::Options),
    /// Forget a virtual machine that does not run; its disk stays
    #[command(visible_alias = "rm")]
    Undefine(undefine::Options),
    /// Show what guests use
    #[command(visible_alias = "top")]
    Stats(stats::Options),
    /// Use the console of a guest; Ctrl-] leaves it
    #[command(visible_alias = "attach")]
    Console(console::Options),
    /// Run a command in a guest
    Exec(exec::Options),
    /// Copy files between a guest and here
    Cp(cp::Options),
    /// Show what a guest wrote to its console
    Logs(logs::Options),
    /// Tell why a virtual machine failed or ended, also of one that is forgotten
    Why(why::Options),
    /// Show what happened
    Events(events::Options),
    /// Images of this host
    Image(image::Options),
    /// Disks for virtual machines
    Disk(disk::Options),
    /// This host
    Host(host::Options),
    /// Check whether this host can carry guests, and say what to do
    Doctor(doctor::Options),
    /// Show the versions of this command and of the daemon
    Version(version::Options),
    /// Print completions for a shell
    Completions(completions::Options),
    /// Write the man pages into a directory
    Man(man::Options),
    /// OpenNebula: install the drivers; what their scripts call
    One(one::Options),
}
