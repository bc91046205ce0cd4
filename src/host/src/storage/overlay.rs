//! The guest's root: an overlay of idmapped layers and the idmapped writable disk.
//!
//! Two ways. Newer kernels (seen on 6.18) take layers as descriptors of mounts that are attached
//! nowhere: nothing to clean up, no limit but overlayfs's own. Older ones (seen on 6.1) take names
//! in one string of at most a page, resolved in the caller's mount namespace: the clones are
//! attached below a private staging directory for the moment of the mount, and a thread with a
//! working directory of its own calls mount(2), so that 500 layers are `0:1:2:…` and fit.
//!
//! Options, and why: `metacopy=off`, `redirect_dir=nofollow`, because their attributes in a layer
//! could point outside it; `index=off`, because it ties the upper to file handles of this host's
//! layers, and disks move; `xino=off`, because inode numbers then differ between hosts. The mount
//! is `nodev`: device nodes of an image mean nothing, and the guest's /dev is another filesystem.
//! It is not `nosuid`: set-user-id programs work as everywhere, within the guest's ids.

use std::ffi::{CStr, CString};
use std::fmt::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use std::{fs, io};

use ocivisor_core::error::Result;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{
    MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags, mount, move_mount, open_tree,
};

use super::fsctx::FsContext;
use super::mounts;
use crate::fs::io_error;

/// `OVL_MAX_STACK` of the kernel: most lower directories.
pub(super) const MAX_LAYERS: usize = 500;
/// Begin of messages.
const FAILED: &str = "mount overlay on disk";
/// Name of the mount in mountinfo.
const SOURCE: &str = "ocivisor";
const OPTIONS: [(&CStr, &str); 4] =
    [(c"metacopy", "off"), (c"redirect_dir", "nofollow"), (c"index", "off"), (c"xino", "off")];

/// What an overlay is made of; all are detached mounts.
pub(super) struct Parts<'a> {
    /// Idmapped, the topmost first, at least one, none twice; each is made when it is needed, for
    /// the sake of the limit on open files.
    pub(super) layers: &'a mut dyn Iterator<Item = Result<OwnedFd>>,
    /// Idmapped, with the directories `upper` and `work`.
    pub(super) disk: OwnedFd,
    /// Path of the disk, for messages.
    pub(super) path: &'a Path,
    /// SELinux context of all files, if any.
    pub(super) label: Option<&'a str>,
}

/// How layers are handed to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Descriptors,
    Paths,
}

impl Way {
    /// The best one of this kernel.
    pub(super) fn probe() -> Self {
        static WAY: OnceLock<Way> = OnceLock::new();
        *WAY.get_or_init(|| {
            if takes_detached_mounts().is_ok() { Self::Descriptors } else { Self::Paths }
        })
    }
}

/// Tries it: descriptors were taken some releases before those of detached mounts.
fn takes_detached_mounts() -> io::Result<OwnedFd> {
    let empty = || FsContext::open(c"tmpfs")?.mount(MountAttrFlags::empty());
    let layers = [empty()?, empty()?];
    let context = FsContext::open(c"overlay")?;
    for layer in &layers {
        context.set_fd(c"lowerdir+", layer)?;
    }
    context.mount(MountAttrFlags::empty())
}

/// Makes the overlay, attached nowhere. `staging` is a directory of ours that may be made and is
/// gone on return.
pub(super) fn make(way: Way, parts: Parts<'_>, staging: &Path) -> Result<OwnedFd> {
    match way {
        Way::Descriptors => by_descriptors(parts),
        Way::Paths => {
            let deadline = Instant::now() + Duration::from_secs(5);
            let made = by_paths(parts, staging);
            // The overlay holds its layers itself.
            mounts::unmount_below(staging, deadline)?;
            mounts::remove_mount_points(staging).map_err(|e| io_error("remove", staging, &e))?;
            made
        }
    }
}

/// Checks that a disk has its directories, and not links that lead elsewhere.
pub(super) fn check_disk(disk: &OwnedFd) -> io::Result<()> {
    inside(disk, "upper").and(inside(disk, "work")).map(drop)
}

fn inside(disk: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(disk, name, flags, Mode::empty())
        .map_err(|e| io::Error::other(format!("directory {name}: {}", io::Error::from(e))))
}

fn by_descriptors(parts: Parts<'_>) -> Result<OwnedFd> {
    // A detached mount lives as long as its descriptor, and must until the overlay is made.
    let Parts { layers, disk, path, label } = parts;
    let layers = layers.collect::<Result<Vec<_>>>()?;
    let made = (|| {
        let context = FsContext::open(c"overlay")?;
        context.set(c"source", SOURCE)?;
        for layer in &layers {
            context.set_fd(c"lowerdir+", layer)?;
        }
        context.set_fd(c"upperdir", inside(&disk, "upper")?)?;
        context.set_fd(c"workdir", inside(&disk, "work")?)?;
        for (key, value) in OPTIONS {
            context.set(key, value)?;
        }
        if let Some(label) = label {
            context.set(c"context", label)?;
        }
        context.mount(MountAttrFlags::MOUNT_ATTR_NODEV)
    })();
    made.map_err(|e: io::Error| io_error(FAILED, path, &e))
}

fn by_paths(parts: Parts<'_>, staging: &Path) -> Result<OwnedFd> {
    let Parts { layers, disk, path, label } = parts;
    let mut options = String::from("lowerdir=");
    for (n, layer) in layers.enumerate() {
        attach(layer?, &staging.join(n.to_string())).map_err(|e| io_error(FAILED, path, &e))?;
        let colon = if n == 0 { "" } else { ":" };
        // Writing to a string cannot fail.
        let _ = write!(options, "{colon}{n}");
    }
    options.push_str(",upperdir=d/upper,workdir=d/work");
    for (key, value) in OPTIONS {
        let _ = write!(options, ",{}={value}", key.to_string_lossy());
    }
    if let Some(label) = label {
        // Quoted, for the comma between its categories.
        let _ = write!(options, ",context=\"{label}\"");
    }
    let made = (|| {
        check_disk(&disk)?;
        attach(&disk, &staging.join("d"))?;
        let options = CString::new(options)?;
        fs::create_dir(staging.join("m"))?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| mount_in(staging, &options));
            let died = |_| Err(io::Error::other("mounting thread died"));
            thread.join().unwrap_or_else(died)
        })?;
        let how = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        Ok(open_tree(CWD, staging.join("m"), how)?)
    })();
    made.map_err(|e: io::Error| io_error(FAILED, path, &e))
}

/// Mounts the overlay at `m` in `staging`, which becomes the calling thread's own working directory.
fn mount_in(staging: &Path, options: &CStr) -> io::Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)?;
    rustix::process::chdir(staging)?;
    Ok(mount(SOURCE, "m", "overlay", MountFlags::NODEV, options)?)
}

/// Attaches a detached mount at a directory, which is made. What is mounted there stays in this
/// mount namespace and in copies of it.
pub(super) fn attach(mount: impl AsFd, at: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).create(at)?;
    move_mount(&mount, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    let private = super::sys::MountAttr { propagation: libc::MS_PRIVATE, ..Default::default() };
    super::sys::mount_setattr(mount.as_fd(), &private)
}
