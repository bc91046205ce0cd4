//! One file per command: its options and what it does.

pub mod completions;
pub mod console;
pub mod cp;
pub mod define;
pub mod destroy;
pub mod disk;
pub mod doctor;
pub mod events;
pub mod exec;
pub mod host;
pub mod image;
pub mod info;
pub mod list;
pub mod logs;
pub mod man;
pub mod nic;
pub mod reboot;
pub mod reconfigure;
pub mod reset;
pub mod resize;
pub mod shutdown;
pub mod start;
pub mod stats;
pub mod undefine;
pub mod version;
pub mod why;

use std::path::{Path, PathBuf};

use clap::Args;
use ocivisor_core::ids::VmId;
use ocivisor_core::spec::normal_path;
use ocivisor_schema::Text;

use crate::failure::{Exit, Failure};

/// The VM that most commands are about.
#[derive(Debug, Args)]
pub struct Vm {
    /// Id of the virtual machine
    #[arg(value_name = "VM")]
    pub vm: VmId,
}

impl Vm {
    /// For the wire.
    #[must_use]
    pub fn text(&self) -> Text<VmId> {
        Text(self.vm.clone())
    }
}

/// A path for the daemon, which has another working directory.
///
/// # Errors
/// It has `..` or control characters.
pub fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    let shown = path.display();
    let whole = std::path::absolute(path)
        .map_err(|e| Failure::new(Exit::Usage, format!("path {shown}: {e}")))?;
    normal_path(&whole).ok_or_else(|| {
        Failure::new(Exit::Usage, format!("path {shown} has .. or control characters in it"))
    })
}
