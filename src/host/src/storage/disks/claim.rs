//! One writer, or any number of readers.
//!
//! The lock is flock's on the open file, exclusive for a writer and shared among readers; a loop device keeps the file
//! and with it the lock. Of a block device it is that of its node in /dev; as a partition has another node than its disk,
//! those are looked at as well. What takes no such locks is looked for: loop devices of others on the file, and, for a
//! device, whoever has it for himself alone (a mount, LVM, md).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::spec::DataDisk;
use rustix::fs::{FileType, OFlags, major, minor};

use super::super::claim::PATIENCE;
use super::super::loopdev::{self, FileId};
use super::super::mounts;
use super::super::place::{Lock, Place, try_lock, try_lock_shared};
use super::{Failed, name};

/// An open disk that nobody else writes, or nobody else uses, while the file or a loop device on it is open.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) file: File,
    pub(super) id: FileId,
    /// Its number, if it is a block device.
    pub(super) device: Option<u64>,
}

/// Opens and claims a disk. Numbers say which loop devices are ours, but for those of hosts that have no such high ones:
/// of them `is_ours` says it.
pub(super) fn open(wish: &DataDisk, is_ours: &dyn Fn(u32) -> bool) -> Result<Claim> {
    let access = if wish.read_only { OFlags::RDONLY } else { OFlags::RDWR };
    let (file, device) = open_either(&wish.path, access)?;
    let meta = file.metadata().map_err(|e| wish.failed("look at", &e))?;
    let id = FileId::of(&meta);
    let mut user = "another process, which holds a lock on it".to_owned();
    let free = mounts::until(Instant::now() + PATIENCE, || {
        let try_lock = |file: &File| match wish.read_only {
            true => try_lock_shared(file),
            false => try_lock(file),
        };
        let lock = try_lock(&file)?;
        if let Some(device) = device {
            // With our own lock in hand: of two who do this at once, at least one sees the other.
            for node in relatives(device)? {
                let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
                let other = match OpenOptions::new().read(true).custom_flags(flags).open(&node) {
                    // Nobody can have it by that.
                    Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                    other => other?,
                };
                if try_lock(&other)? == Lock::Held {
                    user = format!("another process, which holds a lock on {}", node.display());
                    return Ok(false);
                }
            }
        } else {
            for number in loopdev::bound_to(&file, id, lock == Lock::Taken)? {
                // One that cannot be looked at may write.
                let reads = loopdev::look(number)
                    .is_ok_and(|bound| bound.is_none_or(|bound| bound.read_only));
                if !(wish.read_only && reads) {
                    user = format!("/dev/loop{number}");
                    return Ok(false);
                }
            }
        }
        Ok(lock != Lock::Held)
    });
    if !free.map_err(|e| wish.failed("claim", &e))? {
        return Err(conflict(wish, &user));
    }
    if let Some(device) = device {
        not_ours(wish, device, is_ours)?;
        look_for_others(wish, device)?;
    }
    Ok(Claim { file, id, device })
}

/// A loop device of ours is another VM's disk, or becomes one as soon as it is free.
fn not_ours(wish: &DataDisk, device: u64, is_ours: &dyn Fn(u32) -> bool) -> Result<()> {
    let number = loop_number(device).map_err(|e| wish.failed("look at", &e))?;
    if !number.is_some_and(|number| loopdev::OURS.contains(&number) || is_ours(number)) {
        return Ok(());
    }
    let what = format!("{} is a loop device of ocivisor's own", name(wish));
    Err(Error::new(ErrorKind::Permission, what).hint("name the file behind it"))
}

/// Number of the loop device that this one is, or is a partition of. Its minor number is another one where loop devices
/// have partitions (`max_part`).
fn loop_number(device: u64) -> io::Result<Option<u32>> {
    let link = fs::read_link(format!("/sys/dev/block/{}:{}", major(device), minor(device)))?;
    let number = |name: &std::ffi::OsStr| name.to_str()?.strip_prefix("loop")?.parse().ok();
    Ok(link.iter().find_map(number))
}

/// Nodes of the partitions of a device, or of the one that it is a partition of.
fn relatives(device: u64) -> io::Result<Vec<PathBuf>> {
    let dir = PathBuf::from(format!("/sys/dev/block/{}:{}", major(device), minor(device)));
    let dir = fs::canonicalize(dir)?;
    let is_partition = |dir: &Path| dir.join("partition").exists();
    let dirs: Vec<PathBuf> = if is_partition(&dir) {
        dir.parent().map(Path::to_owned).into_iter().collect()
    } else {
        let entries = fs::read_dir(dir)?.collect::<io::Result<Vec<_>>>()?;
        entries.into_iter().map(|entry| entry.path()).filter(|dir| is_partition(dir)).collect()
    };
    // A slash in the name of a device is an exclamation mark there.
    let name = |dir: &PathBuf| Some(dir.file_name()?.to_str()?.replace('!', "/"));
    Ok(dirs.iter().filter_map(name).map(|name| Path::new("/dev").join(name)).collect())
}

/// Whether somebody of the host has the device for himself alone, or writes it where it is only read. Only a look: a
/// guest that makes a filesystem wants to be alone as well.
fn look_for_others(wish: &DataDisk, device: u64) -> Result<()> {
    let flags = libc::O_EXCL | libc::O_NONBLOCK | libc::O_NOFOLLOW;
    let open = OpenOptions::new().read(true).custom_flags(flags).open(resolved(&wish.path));
    let meta = match open.and_then(|file| file.metadata()) {
        Ok(meta) => meta,
        // Readers share it with mounts that only read.
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
            return if wish.read_only && mounts::is_only_read(device) {
                Ok(())
            } else {
                Err(conflict(wish, "the host: mounted, or part of another device"))
            };
        }
        Err(e) => return Err(wish.failed("claim", &e)),
    };
    if meta.rdev() == device { Ok(()) } else { Err(conflict(wish, "another device of that name")) }
}

fn conflict(wish: &DataDisk, by: &str) -> Error {
    Error::new(ErrorKind::Conflict, format!("{} is in use by {by}", name(wish)))
}

/// What is used of a path: in /dev, where root alone makes links, what it leads to.
pub(super) fn resolved(path: &Path) -> PathBuf {
    if path.starts_with("/dev") {
        return fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    }
    path.to_owned()
}

fn open_either(path: &Path, access: OFlags) -> Result<(File, Option<u64>)> {
    let place = Place::of(&resolved(path))?;
    match place.open(&place.name, access, FileType::RegularFile) {
        Err(e) if e.kind == ErrorKind::Invalid => {
            let file = place.open(&place.name, access, FileType::BlockDevice)?;
            let meta = file.metadata().map_err(|e| place.error("look at disk", e))?;
            Ok((file, Some(meta.rdev())))
        }
        other => Ok((other?, None)),
    }
}
