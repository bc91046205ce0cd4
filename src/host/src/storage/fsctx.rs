//! A filesystem being configured, fsopen(2) and fsconfig(2), with the kernel's own words in errors.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_fd, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

/// What failed, with what the kernel said about it.
pub(super) type Refusal = io::Error;

/// The context; dropping it forgets everything.
#[derive(Debug)]
pub(super) struct FsContext(OwnedFd);

impl FsContext {
    pub(super) fn open(filesystem: &CStr) -> Result<Self, Refusal> {
        Ok(Self(fsopen(filesystem, FsOpenFlags::FSOPEN_CLOEXEC)?))
    }

    pub(super) fn set(&self, key: &CStr, value: &str) -> Result<(), Refusal> {
        fsconfig_set_string(&self.0, key, value).map_err(|e| self.refusal(e))
    }

    pub(super) fn set_flag(&self, key: &CStr) -> Result<(), Refusal> {
        fsconfig_set_flag(&self.0, key).map_err(|e| self.refusal(e))
    }

    pub(super) fn set_fd(&self, key: &CStr, value: impl AsFd) -> Result<(), Refusal> {
        fsconfig_set_fd(&self.0, key, value).map_err(|e| self.refusal(e))
    }

    /// The mount, attached nowhere.
    pub(super) fn mount(&self, flags: MountAttrFlags) -> Result<OwnedFd, Refusal> {
        fsconfig_create(&self.0).map_err(|e| self.refusal(e))?;
        fsmount(&self.0, FsMountFlags::FSMOUNT_CLOEXEC, flags).map_err(|e| self.refusal(e))
    }

    /// The error with the messages that wait in the context: one per read, prefixed by `e `, `w `
    /// or `i ` for its level, ENODATA when there are no more.
    fn refusal(&self, errno: Errno) -> Refusal {
        let mut said = Vec::new();
        let mut buffer = [0_u8; 1024];
        while let Ok(n) = rustix::io::read(&self.0, &mut buffer) {
            let line = String::from_utf8_lossy(&buffer[..n]);
            if let Some(text) = line.trim_end().strip_prefix("e ") {
                said.push(text.to_owned());
            }
            if n == 0 || said.len() == 8 {
                break;
            }
        }
        if said.is_empty() {
            return errno.into();
        }
        Refused { errno, said: said.join(", ") }.into()
    }
}

/// An error number and the kernel's reason.
#[derive(Debug, thiserror::Error)]
#[error("{} ({said})", io::Error::from(*errno))]
struct Refused {
    errno: Errno,
    said: String,
}

impl From<Refused> for io::Error {
    fn from(refused: Refused) -> Self {
        Self::new(Self::from(refused.errno).kind(), refused)
    }
}

/// The error number behind a refusal.
pub(super) fn errno(refusal: &Refusal) -> Option<i32> {
    let inner = refusal.get_ref().and_then(|e| e.downcast_ref::<Refused>());
    refusal.raw_os_error().or_else(|| inner.map(|r| r.errno.raw_os_error()))
}
