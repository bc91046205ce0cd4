//! A guest that is there, created or running, as those who enter it need it.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sched::CloneFlags;
use oci_spec::runtime::Spec;
use ocivisor_core::error::{Error, ErrorKind, Result};
use rustix::process::{
    Pid, PidfdFlags, Signal, getppid, pidfd_open, set_parent_process_death_signal,
};

use crate::cgroup::{self, Groups};
use crate::create::{load_config, start_ticks};
use crate::{embedded, sys};

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
        Ok(Self { init: open_init(init, start_ticks)?, config, groups, beside })
    }

    /// In a child of `parent`, for good: into the guest's control groups and namespaces, as its
    /// root, with these capabilities (a bit each) and no others. Not into its process namespace: nothing in
    /// there sees this process. It dies with its parent.
    ///
    /// # Errors
    /// The guest ends just now, or the kernel refuses.
    pub fn enter_for_files(&self, parent: Pid, capabilities: u64) -> Result<()> {
        let failed = |what: &str, e: &dyn std::fmt::Display| {
            Error::new(ErrorKind::Host, format!("{what}: {e}"))
        };
        self.groups.join_all(&self.beside)?;
        let namespaces = CloneFlags::CLONE_NEWUSER
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWCGROUP;
        nix::sched::setns(self.init.as_fd(), namespaces)
            .map_err(|e| failed("enter the guest", &e))?;
        sys::become_user(0, 0, &[]).map_err(|e| failed("become root of the guest", &e))?;
        // Changing ids sets and clears these two.
        sys::set_dumpable(false).map_err(|e| failed("hide from the guest", &e))?;
        set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(|e| failed("set the death signal", &e))?;
        if getppid() != Some(parent) {
            return Err(failed("enter the guest", &"nobody waits for it"));
        }
        sys::clear_ambient().map_err(|e| failed("drop ambient capabilities", &e))?;
        sys::set_capabilities(capabilities).map_err(|e| failed("drop capabilities", &e))?;
        rustix::thread::set_no_new_privs(true).map_err(|e| failed("set no_new_privs", &e))
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
