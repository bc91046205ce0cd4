//! Labels of security modules for the program that a process becomes, apparmor(7) and selinux(8).
//!
//! The kernel takes them by files of `/proc`, for the writing thread alone. Whoever enters a guest must
//! not look for them there: the guest may have put anything at that path, and a label that was written to
//! a file of the guest's leaves the program without. So `/proc` of the host is opened before.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use libcontainer::oci_spec::runtime::Spec;
use rustix::fs::{CWD, Mode, OFlags, PROC_SUPER_MAGIC, fstatfs, openat};
use rustix::io::Errno;

/// The labels, and the `/proc` by which they are set.
#[derive(Debug)]
pub struct Label {
    proc: OwnedFd,
    profile: Option<String>,
    context: Option<String>,
}

impl Label {
    /// Those of a configuration; `None` if it has none. What is at `/proc` must be trusted.
    ///
    /// # Errors
    /// There is no procfs.
    pub fn of(config: &Spec) -> io::Result<Option<Self>> {
        let process = config.process().as_ref();
        let profile = process.and_then(|process| process.apparmor_profile().clone());
        let context = process.and_then(|process| process.selinux_label().clone());
        if profile.is_none() && context.is_none() {
            return Ok(None);
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let proc = openat(CWD, "/proc", flags, Mode::empty())?;
        if fstatfs(&proc)?.f_type != PROC_SUPER_MAGIC {
            return Err(io::Error::other("/proc is something else"));
        }
        Ok(Some(Self { proc, profile, context }))
    }

    /// Without the AppArmor profile, which somebody else sees to.
    pub fn without_profile(self) -> Self {
        Self { profile: None, ..self }
    }

    /// Gives them to the next program of this thread. To be called right before execve(2): the kernel
    /// refuses where credentials changed between opening and writing.
    ///
    /// # Errors
    /// The module is off or refuses; then the program must not be run.
    pub fn apply(&self) -> io::Result<()> {
        if let Some(profile) = &self.profile {
            // A directory of its own since Linux 5.8.
            self.write(&["apparmor/exec", "exec"], &format!("exec {profile}"))?;
        }
        if let Some(context) = &self.context {
            self.write(&["exec"], context)?;
        }
        Ok(())
    }

    fn write(&self, files: &[&str], text: &str) -> io::Result<()> {
        let mut file = Err(Errno::NOENT);
        for name in files {
            let path = format!("thread-self/attr/{name}");
            file = openat(&self.proc, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
            if !matches!(file, Err(Errno::NOENT)) {
                break;
            }
        }
        File::from(file?).write_all(text.as_bytes())
    }
}
