//! Filesystems that tenants made: checked by tools without any rights, mounted by the host's kernel.
//!
//! No kernel's filesystem is safe against a crafted image. The check makes a crafted one as hard to write as a bug in
//! the checker and the kernel at once, and finds what is merely damaged; a host that does not want that either says so
//! in its policy, and guests get block devices.
//!
//! Checked is all of it, each time that it is attached: the mark that says it is clean was written by whoever wrote the
//! rest. ext2, ext3 and ext4 are mended where that loses nothing (`e2fsck -p`), also their journal is replayed by the
//! tool; XFS is only looked at, for its tool has no such mode.

use std::borrow::Cow;
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
    // Exit codes of e2fsck(8), to be added up. Of much damage it says as well that it could not go on.
    const MENDED: i32 = 1 | 2;
    const DAMAGED: i32 = 4;
    const BROKE_OFF: i32 = 8;
    if !read_only {
        let mended = look(&["e2fsck", "-f", "-p"], tools, device, read_only)?;
        match mended.status.code() {
            Some(0) => return Ok(Found::Sound),
            // It ends with the first that it does not mend.
            Some(DAMAGED) => return Ok(Found::Damage(words(lines(&mended.out).last()))),
            // Then what is there now decides.
            Some(code) if code & !(MENDED | DAMAGED) == 0 => {}
            _ => return Err(broke_down("e2fsck", &mended)),
        }
    }
    let looked = look(&["e2fsck", "-f", "-n"], tools, device, read_only)?;
    match looked.status.code().map(|code| code & !BROKE_OFF) {
        Some(0) if looked.status.success() => Ok(Found::Sound),
        Some(DAMAGED) => {
            let mut found = lines(&looked.out).filter(|line| !line.starts_with("Pass "));
            Ok(Found::Damage(words(found.next())))
        }
        _ => Err(broke_down("e2fsck", &looked)),
    }
}

/// What a tool said. Only the beginning was kept.
fn lines(said: &[u8]) -> impl DoubleEndedIterator<Item = Cow<'_, str>> {
    let lines = said.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    lines.filter(|line| !line.is_empty()).map(String::from_utf8_lossy)
}

/// One of these, for a log.
fn words(line: Option<Cow<'_, str>>) -> String {
    let line = line.unwrap_or("nothing".into());
    line.chars().filter(|c| !c.is_control()).take(200).collect()
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
            let is_heading = |line: &str| line.starts_with("Phase ") || line.starts_with("- ");
            let mut found = lines(&looked.err).filter(|line| !is_heading(line));
            Ok(Found::Damage(words(found.next())))
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

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::time::Duration;

    use ocivisor_core::units::Bytes;

    use super::super::super::loopdev;
    use super::super::turns::{Checks, Time, Turns};
    use super::*;
    use crate::command::run;

    const LONG: Duration = Duration::from_secs(60);

    /// What a checker says of a file with a filesystem of that kind, after something was done to it.
    fn said(mib: u64, mkfs: &[&str], harm: impl FnOnce(&Path), read_only: bool) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let file = File::options().create_new(true).read(true).write(true).open(&path).unwrap();
        file.set_len(mib << 20).unwrap();
        run(&[mkfs, &[path.to_str().unwrap()]].concat(), LONG).unwrap();
        harm(&path);
        let device = loopdev::attach(&file, &path).unwrap();
        let turns = Turns::new(Checks { limit: LONG, at_once: 1 });
        let time = Time::new(LONG);
        let tools = Tools::new(&turns, &time, Vec::new(), Bytes::mib(512), &|| false).unwrap();
        let check = if mkfs[0] == "mkfs.xfs" { xfs_repair } else { e2fsck };
        match check(&tools, device.device().unwrap(), read_only) {
            Ok(Found::Damage(words)) => words,
            other => panic!("{:?}", other.map(|_| "no damage")),
        }
    }

    #[test]
    fn what_a_checker_found_is_told_and_not_its_own_headings() {
        let harm = |path: &Path| {
            // The root directory is a device, so that the checker gives up.
            let order = ["debugfs", "-w", "-R", "sif <2> mode 060644", path.to_str().unwrap()];
            run(&order, LONG).unwrap();
        };
        let ext4 = ["mkfs.ext4", "-q", "-F", "-b", "4096"];
        let mended = said(16, &ext4, harm, false);
        assert!(mended.ends_with(": Root inode is not a directory."), "{mended}");
        assert_eq!(said(16, &ext4, harm, true), "Root inode is not a directory.  Clear? no");
        let xfs = ["mkfs.xfs", "-q", "-s", "size=4096"];
        let said = said(
            320,
            &xfs,
            |path| {
                let file = File::options().write(true).open(path).unwrap();
                file.write_all_at(&[0xa5; 64 << 10], 64 << 10).unwrap();
            },
            true,
        );
        assert!(said.starts_with("Metadata corruption detected at "), "{said}");
    }
}
