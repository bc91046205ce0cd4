//! What a process must not carry into a guest, or into the shim.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::{OwnedFd, RawFd};

use ocivisor_core::error::{Error, ErrorKind, Result};

use crate::sys;

/// Settles descriptors, environment, groups, umask, signals and OOM score of this process. `keep`
/// are the descriptors that the command line names.
///
/// # Errors
/// `Host`: the kernel refuses.
pub fn settle(keep: &[RawFd]) -> Result<()> {
    let failed = |what: &str, e: io::Error| Error::new(ErrorKind::Host, format!("{what}: {e}"));
    // First of all: nothing opened here may be hit, nothing opened before may stay.
    sys::close_all_but(keep).map_err(|e| failed("close inherited descriptors", e))?;
    fill_standard_descriptors().map_err(|e| failed("open /dev/null", e))?;
    sys::clear_environment();
    sys::default_signals();
    // Directories of the state of OCI runtimes, and the guest's own umask.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    // libcontainer leaves the groups alone if the guest's user has none; these are the host's.
    nix::unistd::setgroups(&[]).map_err(|e| failed("drop supplementary groups", e.into()))?;
    raise_oom_score().map_err(|e| failed("set the OOM score", e))?;
    std::env::set_current_dir("/").map_err(|e| failed("change to /", e))
}

/// A daemon is often protected from the OOM killer, and the protection is inherited; a guest that
/// had it would make the host kill others. Raising needs no capability.
fn raise_oom_score() -> io::Result<()> {
    let path = "/proc/self/oom_score_adj";
    let score: i32 = std::fs::read_to_string(path)?.trim().parse().unwrap_or(0);
    if score < 0 {
        OpenOptions::new().write(true).open(path)?.write_all(b"0")?;
    }
    Ok(())
}

/// Opens the standard three on /dev/null where they are closed, lest they be given to something
/// else. With everything else closed, the lowest free number is the missing one.
fn fill_standard_descriptors() -> io::Result<()> {
    loop {
        let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        let fd = OwnedFd::from(null);
        if std::os::fd::AsRawFd::as_raw_fd(&fd) > 2 {
            return Ok(());
        }
        std::mem::forget(fd);
    }
}
