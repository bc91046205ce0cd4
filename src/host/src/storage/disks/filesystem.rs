//! Filesystems that tenants made: checked by tools without any rights, mounted by the host's kernel.
//!
//! No kernel's filesystem is safe against a crafted image. The check makes a crafted one as hard to write as a bug in
//! the checker and the kernel at once, and finds what is merely damaged; a host that does not want that either says so
//! in its policy, and guests get block devices.
//!
//! Checked is all of it, each time that it is attached: the mark that says it is clean was written by whoever wrote the
//! rest. ext2, ext3 and ext4 are mended where that loses nothing (`e2fsck -p`), also their journal is replayed by the
//! tool; XFS is only looked at, for its tool has no such mode.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ids::IdRange;
use ocivisor_core::spec::Filesystem;
use ocivisor_core::units::Bytes;
use rustix::fs::{SeekFrom, fstat, seek};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use super::super::ext4;
use super::super::fsctx::{self, FsContext};
use super::super::idmap::IdMap;
use super::{Content, Failed, Ready, name};
use crate::command;
use crate::confine::{self, Confinement, Input, path_of};
use crate::fs::io_error;

/// What a check may take: some minutes for a terabyte full of small files.
const CHECK: Duration = Duration::from_secs(3600);
const MAKE: Duration = Duration::from_secs(600);

/// Whether the kernel has this filesystem, or a module of it.
pub(super) fn is_known(filesystem: &str) -> bool {
    std::ffi::CString::new(filesystem).is_ok_and(|name| FsContext::open(&name).is_ok())
}

/// Makes a filesystem in an empty disk, which is open here. Its root belongs to the guest's root.
pub(super) fn make(kind: Filesystem, disk: &File, device: u64) -> Result<()> {
    match kind {
        Filesystem::Ext4 => {
            // Nothing is reserved: the guest's root is a tenant like its users.
            let mut argv = vec!["mkfs.ext4", "-q", "-F", "-m", "0", "-e", "remount-ro"];
            argv.extend(["-O", ext4::FEATURES, "-E"]);
            argv.push("nodiscard,lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0");
            run(&argv, device, Input::Ours, false, MAKE)
        }
        Filesystem::Xfs => make_xfs(disk),
    }
}

/// In memory, then copied: the tool asks a device for what only the host's root is given (BLKBSZSET). Its log has to be
/// all zeroes, so that what was written is copied as it is.
fn make_xfs(disk: &File) -> Result<()> {
    let failed = |e: io::Error| Error::new(ErrorKind::Host, format!("make a filesystem xfs: {e}"));
    let size = seek(disk, SeekFrom::End(0)).map_err(|e| failed(e.into()))?;
    let memory = ext4::memory(Bytes(size)).map_err(failed)?;
    let files = [memory.as_fd()];
    let user = confine::user();
    let to = Confinement { files: &files, largest_file: size, input: Input::Ours, user };
    command::run_confined(&["mkfs.xfs", "-q", "-K", &path_of(memory.as_fd())], &to, MAKE)?;
    copy_written(&memory, disk).map_err(failed)
}

fn copy_written(from: &File, to: &File) -> io::Result<()> {
    let mut chunk = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        at = match seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => return to.sync_all(),
            Err(e) => return Err(e.into()),
        };
        let end = seek(from, SeekFrom::Hole(at))?;
        while at < end {
            let most = usize::try_from(end - at).unwrap_or(usize::MAX).min(chunk.len());
            from.read_exact_at(&mut chunk[..most], at)?;
            to.write_all_at(&chunk[..most], at)?;
            at += most as u64;
        }
    }
}

/// Checks the filesystem in a disk.
pub(super) fn check(disk: &Ready<'_>) -> Result<()> {
    let device = disk.number().map_err(|e| disk.wish.failed("look at", &e))?;
    let read_only = disk.wish.read_only;
    let look = |argv: &[&str]| run(argv, device, Input::Foreign, read_only, CHECK);
    let (kind, checked) = match disk.content {
        Content::Ext => {
            plain_superblock(disk)?;
            let mended = if read_only { Ok(()) } else { look(&["e2fsck", "-f", "-p"]) };
            // It also fails when it mended everything, so that what is there now decides.
            let checked = match mended {
                Ok(()) if !read_only => Ok(()),
                Err(e) if e.kind != ErrorKind::Host => Err(e),
                Ok(()) | Err(_) => look(&["e2fsck", "-f", "-n"]),
            };
            ("ext4", checked)
        }
        Content::Xfs => ("xfs", look(&["xfs_repair", "-n"])),
        // Of the rest only ISO 9660 is mounted; there is no checker for it.
        _ => return Ok(()),
    };
    checked.map_err(|e| match e.kind {
        ErrorKind::Host => {
            tracing::warn!(disk = %disk.wish.path.display(), "the checker says: {e}");
            let what =
                format!("{} is not mounted: its filesystem {kind} is damaged", name(disk.wish));
            Error::new(ErrorKind::Integrity, what).hint(
                "have it repaired, or ask for it as a block device and repair it in the guest",
            )
        }
        _ => e.context(name(disk.wish)),
    })
}

/// What no checker refuses: a journal elsewhere, and options of its own for whoever mounts it.
fn plain_superblock(disk: &Ready<'_>) -> Result<()> {
    let mut superblock = [0; 1024];
    let file = disk.file();
    file.read_exact_at(&mut superblock, 1024).map_err(|e| disk.wish.failed("read", &e))?;
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

/// Runs a tool on a node of its own.
fn run(argv: &[&str], device: u64, input: Input, read_only: bool, limit: Duration) -> Result<()> {
    let user = confine::user();
    let node = ext4::private_node(device, user, read_only)
        .map_err(|e| io_error("make node for", Path::new(argv.first().unwrap_or(&"")), &e))?;
    let files = [node.as_fd()];
    // It gives up if it may not have files of any size.
    let largest_file = if argv.first() == Some(&"xfs_repair") { u64::MAX } else { 0 };
    let to = Confinement { files: &files, largest_file, input, user };
    let path = path_of(node.as_fd());
    command::run_confined(&[argv, &[path.as_str()]].concat(), &to, limit).map(drop)
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
