//! Agents: packages of an image that configure it from what a platform gives them. Where one is there, it wins.
//!
//! one-context reads `/context`, cloud-init a seed below `/var/lib/cloud/seed`. What they do themselves is left out of
//! our own writing: users, keys, passwords, time zone; one-context also name servers, files and the start script.
//! Applications run no init and so no agent: they are told by us, and have `/context` as well, as OpenNebula's LXC
//! driver gives it to all.

pub mod cloud_init;
mod disk;
pub mod one_context;

pub use disk::{Disk, Platform};

use ocivisor_core::error::Result;
use ocivisor_core::state::GuestKind;
use rustix::fs::FileType;

use crate::root::Root;
use crate::telling::Telling;

/// Who in the guest configures it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Agent {
    /// Nobody: we do.
    None,
    /// OpenNebula's.
    OneContext,
    /// The one of most clouds.
    CloudInit,
}

/// Looks for one that has something to read.
#[must_use]
pub fn find(root: &Root, telling: &Telling, disk: Option<&Disk<'_>>) -> Agent {
    let is_file = |path| root.leads_to(path, FileType::RegularFile);
    let one_context = is_file("/usr/sbin/one-contextd")
        || root.leads_to("/etc/one-context.d", FileType::Directory);
    let for_opennebula = disk.is_some_and(|disk| disk.platform == Platform::OpenNebula)
        || !telling.spec.context.variables.is_empty();
    if telling.kind == GuestKind::Application {
        Agent::None
    } else if one_context && for_opennebula {
        Agent::OneContext
    } else if is_file("/usr/bin/cloud-init") && !is_file("/etc/cloud/cloud-init.disabled") {
        Agent::CloudInit
    } else {
        Agent::None
    }
}

/// OpenNebula's variables: those of the disk, which oned wrote in clear, else those of the spec.
///
/// # Errors
/// `Invalid`, `Host`: the disk cannot be read.
pub fn variables(telling: &Telling, disk: Option<&Disk<'_>>) -> Result<Vec<(String, String)>> {
    if let Some(disk) = disk
        && let Some(found) = disk.variables()?
    {
        return Ok(found);
    }
    let pairs = telling.spec.context.variables.iter();
    Ok(pairs.map(|(name, value)| (name.clone(), value.0.clone())).collect())
}
