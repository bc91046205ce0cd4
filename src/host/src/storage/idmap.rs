//! Mounts that show ids shifted into a VM's range, while the disk holds the unshifted ones.
//!
//! A mapping is carried by a user namespace that exists only as a descriptor: a child makes it,
//! the parent writes its maps and keeps its nsfs file, the child is killed. Nothing is pinned.
//!
//! Two mappings. Layers get `0 BASE 65536`. The disk gets one id more, `65536 0 1`: overlayfs
//! creates its work directory and whiteouts as the mounter, host id 0, and a mount that cannot
//! express that id refuses with EOVERFLOW, upon which overlayfs silently mounts read-only. On the
//! disk such files belong to id 65536, which no image may hold and no guest can have.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ids::IdRange;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::sys::{MountAttr, NamespaceHolder, mount_setattr};

/// What maps ids on the disk to ids of the host.
#[derive(Debug)]
pub(super) struct IdMap(File);

impl IdMap {
    /// For layers: the range alone.
    pub(super) fn for_layers(ids: IdRange) -> Result<Self> {
        Self::make(ids, &format!("0 {} {}\n", ids.base, IdRange::LEN))
    }

    /// For the writable disk: the range, and the mounter.
    pub(super) fn for_disk(ids: IdRange) -> Result<Self> {
        let len = IdRange::LEN;
        Self::make(ids, &format!("0 {} {len}\n{len} 0 1\n", ids.base))
    }

    fn make(ids: IdRange, map: &str) -> Result<Self> {
        if ids.base < IdRange::LEN || ids.base.checked_add(IdRange::LEN).is_none() {
            let what = format!("id range {ids} overlaps the host's own ids or the end of all ids");
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        Self::make_inner(map).map_err(|e| match e.raw_os_error() {
            // user.max_user_namespaces, or nesting too deep: user_namespaces(7).
            Some(libc::ENOSPC | libc::EUSERS) => {
                Error::new(ErrorKind::Exhausted, format!("make user namespace: {e}"))
                    .hint("raise sysctl user.max_user_namespaces")
            }
            _ => Error::new(ErrorKind::Host, format!("make user namespace for ids {ids}: {e}")),
        })
    }

    fn make_inner(map: &str) -> io::Result<Self> {
        let holder = NamespaceHolder::spawn()?;
        let proc = format!("/proc/{}", holder.pid);
        for file in ["uid_map", "gid_map"] {
            let mut file = OpenOptions::new().write(true).open(format!("{proc}/{file}"))?;
            // One write: the kernel takes a map only whole, user_namespaces(7).
            let written = file.write(map.as_bytes())?;
            if written != map.len() {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Ok(Self(File::open(format!("{proc}/ns/user"))?))
    }

    /// The namespace, for a process to enter.
    #[cfg(test)]
    pub(super) fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// A detached copy of the mount at `tree`, seen through this mapping.
    pub(super) fn apply(&self, tree: impl AsFd, flags: u64) -> io::Result<OwnedFd> {
        let clone = clone_tree(tree)?;
        self.shift(&clone, flags)?;
        Ok(clone)
    }

    /// Has a new mount, which nobody has seen yet, seen through this mapping. It cannot be copied before: until Linux
    /// 6.15 there are no copies of mounts that are nowhere.
    pub(super) fn shift(&self, tree: impl AsFd, flags: u64) -> io::Result<()> {
        let attr = MountAttr {
            set: libc::MOUNT_ATTR_IDMAP | flags,
            userns_fd: u64::try_from(self.0.as_raw_fd()).map_err(io::Error::other)?,
            ..MountAttr::default()
        };
        mount_setattr(tree.as_fd(), &attr)
    }
}

/// A detached copy of the mount at `tree`, without what is mounted below.
pub(super) fn clone_tree(tree: impl AsFd) -> io::Result<OwnedFd> {
    let how = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(open_tree(tree, "", how)?)
}
