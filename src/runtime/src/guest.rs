//! A guest that is there, created or running, as those who enter it need it.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use ocivisor_core::error::{Error, ErrorKind, Result};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::cgroup::{self, Groups};
use crate::create::{load_config, start_ticks};
use crate::embedded;
use crate::label::Label;

/// A guest.
#[derive(Debug)]
pub struct Guest {
    /// Its configuration.
    pub config: Spec,
    /// Its first process.
    pub init: OwnedFd,
    /// Its control groups.
    pub groups: Groups,
    /// Where the first process is in the unified hierarchy.
    pub beside: PathBuf,
    /// Labels of programs that are run in it.
    pub label: Option<Label>,
}

impl Guest {
    /// Finds the guest of a VM's directory with that first process.
    ///
    /// # Errors
    /// `GuestExited`: the process ended. `Host`: its configuration or its groups are not there.
    pub fn find(vm_dir: &Path, init: u32, start_ticks: u64) -> Result<Self> {
        let incomplete = || Error::new(ErrorKind::Host, "configuration lacks linux.cgroupsPath");
        // The filter is loaded by libcontainer.
        let config = embedded::with_swapped_masks(&load_config(&vm_dir.join("bundle"))?)?;
        let linux = config.linux().as_ref().ok_or_else(incomplete)?;
        let groups = Groups::find(linux.cgroups_path().as_deref().ok_or_else(incomplete)?)?;
        let beside = unified_group(init)?;
        let label = Label::of(&config)
            .map_err(|e| Error::new(ErrorKind::Host, format!("labels of the guest: {e}")))?;
        Ok(Self { init: open_init(init, start_ticks)?, config, groups, beside, label })
    }
}

/// A descriptor of that very process: the pid was looked up by number, only a start time that still
/// matches afterwards proves identity.
fn open_init(pid: u32, ticks: u64) -> Result<OwnedFd> {
    let gone = || Error::new(ErrorKind::GuestExited, format!("process {pid} of the guest ended"));
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(gone)?;
    let fd = pidfd_open(raw, PidfdFlags::empty()).map_err(|_| gone())?;
    if start_ticks(pid) == Some(ticks) { Ok(fd) } else { Err(gone()) }
}

/// The group of the first process in the unified hierarchy.
fn unified_group(init: u32) -> Result<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{init}/cgroup")).unwrap_or_default();
    let below = cgroup::unified_path(&text).unwrap_or("/").trim_start_matches('/').to_owned();
    Ok(cgroup::unified_mount()?.unwrap_or_default().join(below))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reused_pid_is_no_guest() {
        let own = std::process::id();
        let ticks = start_ticks(own).unwrap();
        assert!(open_init(own, ticks).is_ok());
        assert_eq!(open_init(own, ticks + 1).unwrap_err().kind, ErrorKind::GuestExited);
    }
}
