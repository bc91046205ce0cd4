//! Empty disks, and larger ones.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::time::Duration;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_opennebula::tm::place::DiskPlace;

use super::{manifest_of, present};
use crate::files::Dir;
use crate::files::dir::is_in_use;
use crate::images::data::inspect;
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

/// Its size is in its header. A disk that leads to other files was not made here, and a tool would open those.
fn grow_qcow2(dir: &Dir, name: &str, file: &File, size: u64) -> Result<()> {
    let shown = dir.path().join(name);
    let found = inspect(file, &shown.display().to_string())?;
    if found.format != "qcow2" {
        let what = format!("{} is no qcow2 disk", shown.display());
        return Err(Error::new(ErrorKind::Invalid, what));
    }
    if found.size >= size {
        return Ok(());
    }
    let size = size.to_string();
    run(&["qemu-img", "resize", "-q", "-f", "qcow2", STDIN, &size], file, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_that_lead_to_other_files_are_not_made_larger() {
        let top = tempfile::tempdir().unwrap();
        let vm = top.path().join("100/7");
        std::fs::create_dir_all(&vm).unwrap();
        let disk: DiskPlace = format!("{}/disk.1", vm.display()).parse().unwrap();
        let at = |name: &str| vm.join(name).display().to_string();
        let make = |options: &str| {
            let option = format!("data_file={},{options}", at("data"));
            let options: &[&str] = if options.is_empty() { &[] } else { &["-o", &option] };
            let own = ["qemu-img", "create", "-q", "-f", "qcow2"];
            let argv: Vec<_> = own
                .iter()
                .chain(options)
                .copied()
                .chain([&*at("disk.1"), "1M"])
                .map(str::to_owned)
                .collect();
            crate::tool::run(&argv, TIME).unwrap();
        };
        let size = || inspect(&File::open(at("disk.1")).unwrap(), "x").unwrap().size;
        make("");
        grow(&disk, 3 << 20, true).unwrap();
        assert_eq!(size(), 3 << 20);
        grow(&disk, 1 << 20, true).unwrap();
        assert_eq!(size(), 3 << 20);

        make("data_file_raw=on");
        let before = std::fs::metadata(at("data")).unwrap().len();
        let error = grow(&disk, 3 << 20, true).unwrap_err();
        assert!(error.message.ends_with("disk.1 is qcow2 with a data file"), "{error}");
        assert_eq!(std::fs::metadata(at("data")).unwrap().len(), before);

        std::fs::File::create(at("disk.1")).unwrap().set_len(1 << 20).unwrap();
        let error = grow(&disk, 3 << 20, true).unwrap_err();
        assert!(error.message.ends_with("disk.1 is no qcow2 disk"), "{error}");
    }
}
