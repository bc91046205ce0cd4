//! Loop devices for disk images.
//!
//! A device is bound by one LOOP_CONFIGURE and clears itself when its last user (descriptor or
//! mount) is gone, so no crash leaves one behind. The kernel keeps the very open file it was
//! given, and with it that file's flock: the lock that keeps a second VM away lives exactly as
//! long as the device, across restarts of the daemon.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use ocivisor_core::error::{Error, ErrorKind, Result};
use rustix::fs::fstatfs;
use serde::{Deserialize, Serialize};

use super::sys::{self, LoopConfig};
use crate::fs::io_error;

const FLAG_AUTOCLEAR: u32 = 4;
const FLAG_DIRECT_IO: u32 = 16;
/// Magic of FUSE in statfs(2).
const FUSE_SUPER_MAGIC: i64 = 0x6573_5546;
/// Of the filesystems we make, and what direct I/O needs on disks with 4 KiB sectors.
pub(super) const BLOCK_SIZE: u32 = 4096;

/// Which file, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileId {
    dev: u64,
    ino: u64,
}

impl FileId {
    pub(super) fn of(meta: &fs::Metadata) -> Self {
        Self { dev: meta.dev(), ino: meta.ino() }
    }
}

/// A bound loop device, cleared when this is dropped unless it is mounted.
#[derive(Debug)]
pub(super) struct LoopDevice {
    pub(super) number: u32,
    open: File,
}

impl LoopDevice {
    pub(super) fn path(&self) -> String {
        format!("/dev/loop{}", self.number)
    }

    /// Its device number.
    pub(super) fn device(&self) -> io::Result<u64> {
        Ok(self.open.metadata()?.rdev())
    }
}

/// Binds a free device to `image`, which `path` names in messages.
pub(super) fn attach(image: &File, path: &Path) -> Result<LoopDevice> {
    let failed = |e: &io::Error| io_error("attach loop device to", path, e);
    let control = open_control()?;
    let mut config = LoopConfig::zeroed();
    config.fd = u32::try_from(image.as_raw_fd()).map_err(|e| failed(&io::Error::other(e)))?;
    config.block_size = BLOCK_SIZE;
    config.info.flags = FLAG_AUTOCLEAR;
    let filesystem = fstatfs(image).map_err(|e| failed(&e.into()))?;
    // A FUSE server may not expect direct I/O: with one, an image was seen to come out corrupt.
    if filesystem.f_type as i64 != FUSE_SUPER_MAGIC {
        config.info.flags |= FLAG_DIRECT_IO;
    }
    // For people who run losetup; the last byte stays zero.
    let name = path.as_os_str().as_encoded_bytes();
    for (to, from) in config.info.file_name[..63].iter_mut().zip(name) {
        *to = *from;
    }
    // Between asking for a free number and binding it, another process may take it. Each loss
    // means that somebody won, so this ends; the bound is against a broken kernel.
    for _ in 0..10_000 {
        let number = sys::loop_get_free(&control).map_err(|e| failed(&e))?;
        let open = OpenOptions::new().read(true).write(true).open(format!("/dev/loop{number}"));
        let open = match open {
            // Clearing or deleting is under way.
            Err(e) if e.raw_os_error() == Some(libc::ENXIO) => continue,
            other => other.map_err(|e| failed(&e))?,
        };
        match sys::loop_configure(&open, &config) {
            Ok(()) => {
                return Ok(LoopDevice { number, open });
            }
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {}
            Err(e) => return Err(failed(&e)),
        }
    }
    Err(failed(&io::Error::from_raw_os_error(libc::EBUSY)))
}

fn open_control() -> Result<File> {
    let path = Path::new("/dev/loop-control");
    OpenOptions::new().read(true).write(true).open(path).map_err(|e| match e.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            let what = format!("this host has no loop devices: open {}: {e}", path.display());
            Error::new(ErrorKind::Unsupported, what).hint("load the kernel module `loop`")
        }
        _ => io_error("open", path, &e),
    })
}

/// What device `number` is bound to.
pub(super) fn backing(number: u32) -> io::Result<Backing> {
    let flags = libc::O_NONBLOCK;
    let open = OpenOptions::new().read(true).custom_flags(flags).open(format!("/dev/loop{number}"));
    let device = match open {
        Ok(device) => device,
        Err(e) => match e.raw_os_error() {
            Some(libc::ENXIO) => return Ok(Backing::Clearing),
            Some(libc::ENOENT | libc::ENODEV) => return Ok(Backing::Nothing),
            _ => return Err(e),
        },
    };
    match sys::loop_status(&device) {
        Ok(info) => Ok(Backing::File(FileId { dev: info.device, ino: info.inode })),
        Err(e) if e.raw_os_error() == Some(libc::ENXIO) => Ok(Backing::Nothing),
        Err(e) => Err(e),
    }
}

/// State of a loop device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Backing {
    /// Bound.
    File(FileId),
    /// Its last user is gone, the kernel is clearing it.
    Clearing,
    /// Free, or no such device.
    Nothing,
}

/// Numbers of all devices that are bound to `file`, by whomever.
pub(super) fn bound_to(file: FileId) -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block")? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|n| n.strip_prefix("loop")?.parse().ok());
        let Some(number) = number else { continue };
        // Only bound devices have this; it spares opening the others.
        if entry.path().join("loop").exists() && backing(number)? == Backing::File(file) {
            found.push(number);
        }
    }
    Ok(found)
}

impl Backing {
    /// Whether the device is, or may still be, bound to `file`.
    pub(super) fn may_be(self, file: FileId) -> bool {
        match self {
            Self::File(found) => found == file,
            Self::Clearing => true,
            Self::Nothing => false,
        }
    }
}
