//! Filesystems that tenants made: checked by tools without any rights, mounted by the host's kernel.
//!
//! No kernel's filesystem is safe against a crafted image. The check makes a crafted one as hard to write as a bug in
//! the checker and the kernel at once, and finds what is merely damaged; a host that does not want that either says so
//! in its policy, and guests get block devices.
//!
//! Checked is all of it, each time that it is attached: the mark that says it is clean was written by whoever wrote the
//! rest. ext2, ext3 and ext4 are mended where that loses nothing (`e2fsck -p`), also their journal is replayed by the
//! tool; XFS is only looked at, for its tool has no such mode.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ids::IdRange;
use rustix::fs::fstat;
use rustix::mount::MountAttrFlags;

use super::super::ext4;
use super::super::fsctx::{self, FsContext};
use super::super::idmap::IdMap;
use super::tools::{Tools, as_nobody, broke_down};
use super::{Content, Failed, Ready, name};
use crate::command::Ended;
use crate::confine::{Input, path_of};
use crate::fs::io_error;

/// In the lowest byte of ext4's `s_feature_incompat`: its journal is to be replayed.
const NEEDS_RECOVERY: u8 = 4;

/// Whether the kernel has this filesystem, or a module of it.
pub(super) fn is_known(filesystem: &str) -> bool {
    std::ffi::CString::new(filesystem).is_ok_and(|name| FsContext::open(&name).is_ok())
}

/// Checks all of the filesystem in a disk. What it returns is why a sound one cannot be mounted as it is, as what the
/// disk holds.
///
/// Only what the tool itself calls damage is damage: e2fsck(8) has a bit for it, xfs_repair(8) ends with 1. That it was
/// killed, has no memory or does not know a feature is not the owner's fault.
pub(super) fn check(disk: &Ready<'_>, tools: &Tools<'_>) -> Result<Option<&'static str>> {
    let device = disk.number().map_err(|e| disk.wish.failed("look at", &e))?;
    let read_only = disk.wish.read_only;
    let found = match disk.content {
        Content::Ext if read_only && superblock(disk)?[0x60] & NEEDS_RECOVERY != 0 => {
            return Ok(Some(
                "a filesystem ext4 that was not unmounted: its journal is to be replayed, and the disk is only read",
            ));
        }
        Content::Ext => e2fsck(tools, device, read_only),
        Content::Xfs => xfs_repair(tools, device, read_only),
        // Of the rest only ISO 9660 is mounted; there is no checker for it.
        _ => return Ok(None),
    };
    match found.map_err(|e| e.context(name(disk.wish)))? {
        Found::Sound => Ok(None),
        Found::Unreplayed => Ok(Some(
            "a filesystem xfs that was not unmounted: its log is to be replayed, which no checker does",
        )),
        Found::Damage(words) => {
            tracing::warn!(disk = %disk.wish.path.display(), "the checker says: {words}");
            let kind = disk.content.filesystem().unwrap_or_default();
            let what =
                format!("{} is not mounted: its filesystem {kind} is damaged", name(disk.wish));
            Err(Error::new(ErrorKind::Integrity, what).hint(
                "have it repaired, or ask for it as a block device and repair it in the guest",
            ))
        }
    }
}

/// What a checker found.
enum Found {
    Sound,
    /// Perhaps sound; only the log would tell.
    Unreplayed,
    /// In its own words.
    Damage(String),
}

fn e2fsck(tools: &Tools<'_>, device: u64, read_only: bool) -> Result<Found> {
    // Exit codes of e2fsck(8), to be added up.
    const MENDED: i32 = 1 | 2;
    const DAMAGED: i32 = 4;
    if !read_only {
        let mended = look(&["e2fsck", "-f", "-p"], tools, device, read_only)?;
        match mended.status.code() {
            Some(0) => return Ok(Found::Sound),
            Some(DAMAGED) => return Ok(Found::Damage(mended.last_words())),
            // Then what is there now decides.
            Some(code) if code & !(MENDED | DAMAGED) == 0 => {}
            _ => return Err(broke_down("e2fsck", &mended)),
        }
    }
    let looked = look(&["e2fsck", "-f", "-n"], tools, device, read_only)?;
    match looked.status.code() {
        Some(0) => Ok(Found::Sound),
        Some(DAMAGED) => Ok(Found::Damage(looked.last_words())),
        _ => Err(broke_down("e2fsck", &looked)),
    }
}

fn xfs_repair(tools: &Tools<'_>, device: u64, read_only: bool) -> Result<Found> {
    // It would plan with most of the host's memory.
    let memory = tools.memory_mib().to_string();
    let looked = look(&["xfs_repair", "-n", "-m", &memory], tools, device, read_only)?;
    let says = |words: &[u8]| looked.err.windows(words.len()).any(|at| at == words);
    match looked.status.code() {
        Some(0) => Ok(Found::Sound),
        // The same code is for all of these.
        Some(1) if says(b"valuable metadata changes in a log") => Ok(Found::Unreplayed),
        Some(1) if !says(b"fatal error -- ") && !says(b"-m option") => {
            Ok(Found::Damage(looked.last_words()))
        }
        _ => Err(broke_down("xfs_repair", &looked)),
    }
}

/// Runs a checker on a node of its own.
fn look(argv: &[&str], tools: &Tools<'_>, device: u64, read_only: bool) -> Result<Ended> {
    let nobody = as_nobody(Input::Foreign);
    let node = ext4::private_node(device, nobody.1, read_only)
        .map_err(|e| io_error("make node for", Path::new(argv.first().unwrap_or(&"")), &e))?;
    // It gives up if it may not have files of any size.
    let largest_file = if argv.first() == Some(&"xfs_repair") { u64::MAX } else { 0 };
    let path = path_of(node.as_fd());
    tools.run(&[argv, &[path.as_str()]].concat(), &[node.as_fd()], largest_file, nobody)
}

/// What no checker refuses: a journal elsewhere, and options of its own for whoever mounts it.
pub(super) fn is_plain(disk: &Ready<'_>) -> Result<()> {
    if disk.content != Content::Ext {
        return Ok(());
    }
    let superblock = superblock(disk)?;
    let bad = match () {
        () if superblock[0xE4..0xE8] != [0; 4] => "has its journal on another device",
        () if superblock[0x200..0x240].iter().any(|byte| *byte != 0) => {
            "brings mount options of its own"
        }
        () => return Ok(()),
    };
    let what = format!("{} is not mounted: its filesystem {bad}", name(disk.wish));
    Err(Error::new(ErrorKind::Integrity, what).hint("ask for it as a block device"))
}

/// Of ext4.
fn superblock(disk: &Ready<'_>) -> Result<[u8; 1024]> {
    let mut superblock = [0; 1024];
    let read = disk.file().read_exact_at(&mut superblock, 1024);
    read.map_err(|e| disk.wish.failed("read", &e))?;
    Ok(superblock)
}

/// Mounts the filesystem of a disk, seen through the guest's ids, attached nowhere.
pub(super) fn mount(
    disk: &Ready<'_>,
    source: &Path,
    ids: IdRange,
    label: Option<&str>,
) -> Result<OwnedFd> {
    let filesystem = disk.content.filesystem().unwrap_or_default();
    let read_only = disk.wish.read_only || disk.content == Content::Iso9660;
    let mut flags = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
    if read_only {
        flags |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    let (base, source) = (ids.base.to_string(), source.to_string_lossy());
    let mounted = (|| {
        let context = FsContext::open(&std::ffi::CString::new(filesystem)?)?;
        context.set(c"source", &source)?;
        if read_only {
            context.set_flag(c"ro")?;
        }
        match disk.content {
            Content::Ext => {
                context.set(c"errors", "remount-ro")?;
                // What is not yet zeroed reads as zeroes; writing that would make a sparse file grow.
                context.set_flag(c"noinit_itable")?;
                if read_only {
                    context.set_flag(c"noload")?;
                }
            }
            Content::Xfs => {
                // Copies of one image have the same.
                context.set_flag(c"nouuid")?;
                if read_only {
                    context.set_flag(c"norecovery")?;
                }
            }
            // It cannot be seen through shifted ids; all of it is the guest's root's, who may read it.
            Content::Iso9660 => {
                for (key, value) in
                    [(c"uid", &*base), (c"gid", &base), (c"mode", "0555"), (c"dmode", "0555")]
                {
                    context.set(key, value)?;
                }
            }
            _ => {}
        }
        if let Some(label) = label {
            context.set(c"context", label)?;
        }
        context.mount(flags)
    })();
    let tree = mounted.map_err(|e| refused(disk, filesystem, &e))?;
    let device = disk.number().map_err(|e| disk.wish.failed("look at", &e))?;
    if fstat(&tree).map_err(|e| disk.wish.failed("look at", &e.into()))?.st_dev != device {
        let what = format!("{} was exchanged while it was mounted", name(disk.wish));
        return Err(Error::new(ErrorKind::Conflict, what));
    }
    if disk.content == Content::Iso9660 {
        return Ok(tree);
    }
    let shifted = IdMap::for_layers(ids)?.shift(&tree, 0);
    shifted.map_err(|e| disk.wish.failed("shift ids of", &e))?;
    Ok(tree)
}

fn refused(disk: &Ready<'_>, filesystem: &str, e: &io::Error) -> Error {
    let mut error = disk.wish.failed(&format!("mount filesystem {filesystem} of"), e);
    let damaged = [libc::EINVAL, libc::EUCLEAN, libc::EBADMSG, libc::EIO];
    if fsctx::errno(e).is_some_and(|errno| damaged.contains(&errno)) {
        error.kind = ErrorKind::Integrity;
        error = error.hint("see dmesg; have it repaired, or ask for it as a block device");
    }
    error
}
