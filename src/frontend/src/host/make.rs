//! Empty disks, and larger ones.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_opennebula::tm::place::DiskPlace;

use super::{manifest_of, present};
use crate::files::Dir;
use crate::files::dir::is_in_use;
use crate::tool::{STDIN, Tool};

/// How long a tool may take; the largest file systems take seconds.
const TIME: Duration = Duration::from_secs(600);
/// A page of swap space, as Linux has it on all machines that we build for.
const PAGE: usize = 4096;
/// Smallest swap space: a header and nine pages (mkswap(8)).
const MIN_SWAP: u64 = 10 * PAGE as u64;

/// Makes an empty disk in place of what is there.
pub(super) fn image(disk: &DiskPlace, size: u64, format: &str, fs: Option<&str>) -> Result<()> {
    let dir = present(&disk.dir)?;
    let name = disk.name();
    dir.unlink(&manifest_of(disk))?;
    let mkfs = fs.map(make_fs).transpose()?;
    let path = disk.path();
    match (format, mkfs) {
        ("raw", mkfs) => dir.publish(&name, |file| {
            file.set_len(size).map_err(|e| dir.failed("set size of", &name, e))?;
            mkfs.map_or(Ok(()), |argv| run(&argv, file, 0))
        }),
        ("qcow2", None) => dir.publish(&name, |file| {
            let size = size.to_string();
            run(&["qemu-img", "create", "-q", "-f", "qcow2", STDIN, &size], file, 0)
        }),
        ("qcow2", Some(_)) => {
            let what = format!("{} cannot be made with a file system", path.display());
            Err(Error::new(ErrorKind::Unsupported, what).hint("only raw disks can"))
        }
        (other, _) => {
            let shown: String = other.chars().take(40).collect();
            let what = format!("disks of format {shown:?} cannot be made");
            Err(Error::new(ErrorKind::Unsupported, what).hint("raw and qcow2 can"))
        }
    }
}

fn make_fs(fs: &str) -> Result<Vec<&'static str>> {
    Ok(match fs {
        "ext2" => vec!["mkfs.ext2", "-F", "-q", STDIN],
        "ext3" => vec!["mkfs.ext3", "-F", "-q", STDIN],
        "ext4" => vec!["mkfs.ext4", "-F", "-q", STDIN],
        "xfs" => vec!["mkfs.xfs", "-f", "-q", STDIN],
        "btrfs" => vec!["mkfs.btrfs", "-f", "-q", STDIN],
        "vfat" => vec!["mkfs.vfat", STDIN],
        other => {
            let shown: String = other.chars().take(40).collect();
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("file system {shown:?} cannot be made"),
            )
            .hint("ext2, ext3, ext4, xfs, btrfs and vfat can"));
        }
    })
}

/// Runs a tool on a file, which it opens as its standard input.
fn run(argv: &[&str], file: &File, fine: i32) -> Result<()> {
    let stdin = file.try_clone().map_err(|e| Error::new(ErrorKind::Host, format!("dup: {e}")))?;
    let argv: Vec<&OsStr> = argv.iter().map(OsStr::new).collect();
    let tool = Tool { argv: &argv, stdin: Some(stdin), timeout: TIME, most: 64 * 1024, fine };
    tool.run().map(|_| ())
}

/// Makes swap space in place of what is there.
///
/// The header is written here (`union swap_header` of the kernel's `swap.h`): mkswap would warn of holes, which the
/// file has on purpose.
pub(super) fn swap(disk: &DiskPlace, size: u64) -> Result<()> {
    let size = size - size % PAGE as u64;
    let last_page = u32::try_from(size / PAGE as u64).unwrap_or(u32::MAX).saturating_sub(1);
    if size < MIN_SWAP {
        return Err(Error::new(ErrorKind::Invalid, format!("{size} bytes are no swap space")));
    }
    let mut header = vec![0; PAGE];
    header[1024..1028].copy_from_slice(&1_u32.to_ne_bytes());
    header[1028..1032].copy_from_slice(&last_page.to_ne_bytes());
    header[PAGE - 10..].copy_from_slice(b"SWAPSPACE2");
    let dir = present(&disk.dir)?;
    let name = disk.name();
    dir.unlink(&manifest_of(disk))?;
    dir.publish(&name, |file| {
        let written = file.set_len(size).and_then(|()| file.write_all(&header));
        written.map_err(|e| dir.failed("write", &name, e))
    })
}

/// Makes a disk larger, and the file system of a root disk with it; never smaller.
///
/// Not while a guest has it: the kernel would not see the new size.
pub(super) fn grow(disk: &DiskPlace, size: u64, qcow2: bool) -> Result<()> {
    let dir = present(&disk.dir)?;
    let name = disk.name();
    let path = disk.path();
    let Some(file) = dir.file(&name, true)? else {
        return Err(Error::new(ErrorKind::NotFound, format!("{} does not exist", path.display())));
    };
    if is_in_use(&file, &path)? {
        return Err(Error::new(ErrorKind::Conflict, format!("{} is in use", path.display()))
            .hint("power the VM off to make its disk larger"));
    }
    if dir.stat(&manifest_of(disk))?.is_some() {
        return grow_root(&dir, &name, &file, size);
    }
    if qcow2 {
        return grow_qcow2(&dir, &name, &file, size);
    }
    lengthen(&dir, &name, &file, size)
}

fn lengthen(dir: &Dir, name: &str, file: &File, size: u64) -> Result<()> {
    let failed = |e| dir.failed("set size of", name, e);
    if file.metadata().map_err(failed)?.len() < size {
        file.set_len(size).map_err(failed)?;
        file.sync_all().map_err(failed)?;
    }
    Ok(())
}

/// A file system that is checked and as large as its file; both may be repeated.
fn grow_root(dir: &Dir, name: &str, file: &File, size: u64) -> Result<()> {
    lengthen(dir, name, file, size)?;
    // 1: what was wrong was mended (e2fsck(8)), for example a journal that was not played back.
    run(&["e2fsck", "-f", "-p", STDIN], file, 1)?;
    run(&["resize2fs", STDIN], file, 0)?;
    file.sync_all().map_err(|e| dir.failed("sync", name, e))
}

/// Its size is in its header; a disk that says it lies on another one was not made here.
fn grow_qcow2(dir: &Dir, name: &str, file: &File, size: u64) -> Result<()> {
    let mut header = [0; 32];
    let read = file.read_exact_at(&mut header, 0);
    read.map_err(|e| dir.failed("read", name, e))?;
    let number = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&header[at..at + 8]);
        u64::from_be_bytes(bytes)
    };
    let shown = dir.path().join(name);
    if &header[..4] != b"QFI\xfb" || number(8) != 0 {
        let what = format!("{} is no qcow2 disk of its own", shown.display());
        return Err(Error::new(ErrorKind::Invalid, what));
    }
    if number(24) >= size {
        return Ok(());
    }
    let size = size.to_string();
    run(&["qemu-img", "resize", "-q", "-f", "qcow2", STDIN, &size], file, 0)
}
