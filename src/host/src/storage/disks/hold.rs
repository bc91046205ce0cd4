//! Device nodes for a guest, and what keeps the devices behind them bound.
//!
//! A node in the guest does not keep a loop device bound, and whoever has one open may ask it to unbind: there is no
//! check (drivers/block/loop.c, LOOP_CLR_FD; seen on 6.18). Its number would then be given to the next image, perhaps
//! another VM's disk, with this guest still allowed to open it. As long as somebody else has the device open nothing
//! comes of that, and the kernel itself is the one who never dies: a second loop device, of one sector, that is bound to
//! the first and that no guest has. For a block device of the host it keeps the lock, and the device from going away.
//!
//! Its number is in the record of the VM's disks before it is bound. Its name says what it is to people who run losetup;
//! it proves nothing, for a guest without the filter can give its own device any. What counts is what only binding can
//! set, and the record.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use ocivisor_core::error::Result;
use ocivisor_core::ids::IdRange;
use ocivisor_core::ports::BlockDevice;
use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid, chownat, makedev, mknodat};
use rustix::mount::MountAttrFlags;

use super::super::fsctx::FsContext;
use super::super::loopdev::{self, Binding};
use super::super::mounts;
use crate::fs::io_error;

/// What the holders of all VMs are called; behind it comes the number of the inode of the VM's run directory.
const NAME: &str = "ocivisor holds for";
/// Bytes that it shows of what it holds.
const SHOWN: u64 = 512;

/// Keeps what `file` is, a device, open until [`release`], by the loop device of this number; false if that is not free
/// any more.
pub(super) fn hold(number: u32, vm_dir: &Path, file: &File, path: &Path) -> Result<bool> {
    let meta = fs::metadata(vm_dir).map_err(|e| io_error("look at", vm_dir, &e))?;
    let name = format!("{NAME} {:x}:{:x}", meta.dev(), meta.ino());
    let name = name.as_bytes();
    let how = Binding { sector: 512, read_only: true, name, most: SHOWN, stays: true };
    Ok(loopdev::bind_at(number, file, path, how)?.is_some())
}

/// Whether that device holds this one.
pub(super) fn holds(number: u32, device: BlockDevice) -> io::Result<bool> {
    let over = makedev(device.major, device.minor);
    Ok(loopdev::look(number)?.is_some_and(|bound| {
        bound.over == over
            && bound.read_only
            && bound.most == SHOWN
            && bound.name().starts_with(NAME.as_bytes())
    }))
}

/// Lets go of the device, if it is held.
pub(super) fn release(number: u32, device: BlockDevice, deadline: Instant) -> Result<()> {
    let shown = Path::new("/dev").join(format!("loop{number}"));
    let gone = (|| {
        if !holds(number, device)? {
            return Ok(true);
        }
        loopdev::clear(number)?;
        mounts::until(deadline, || Ok(!holds(number, device)?))
    })();
    match gone {
        Ok(true) => Ok(()),
        Ok(false) => Err(mounts::busy(&shown.display().to_string(), &shown, None)),
        Err(e) => Err(io_error("detach", &shown, &e)),
    }
}

/// A filesystem for nodes, attached nowhere.
pub(super) fn nodes(label: Option<&str>) -> Result<OwnedFd> {
    let made = (|| {
        let context = FsContext::open(c"tmpfs")?;
        context.set(c"size", "65536")?;
        context.set(c"mode", "0755")?;
        if let Some(label) = label {
            context.set(c"context", label)?;
        }
        context.mount(MountAttrFlags::MOUNT_ATTR_NOEXEC | MountAttrFlags::MOUNT_ATTR_NOSUID)
    })();
    made.map_err(|e| io_error("make a filesystem for", Path::new("device nodes"), &e))
}

/// A node that belongs to the guest's root. Whether it may be written is up to the rules of the guest's control group.
pub(super) fn add_node(
    dir: &OwnedFd,
    name: &str,
    device: BlockDevice,
    ids: IdRange,
) -> io::Result<()> {
    let number = makedev(device.major, device.minor);
    mknodat(dir, name, FileType::BlockDevice, Mode::RUSR | Mode::WUSR, number)?;
    let (uid, gid) = (Uid::from_raw(ids.base), Gid::from_raw(ids.base));
    Ok(chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
}
