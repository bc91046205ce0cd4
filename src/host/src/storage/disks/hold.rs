//! Device nodes for a guest, and what keeps the devices behind them bound.
//!
//! A node in the guest does not keep a loop device bound, and whoever has one open may ask it to unbind: there is no
//! check (drivers/block/loop.c, LOOP_CLR_FD; seen on 6.18). Its number would then be given to the next image, perhaps
//! another VM's disk, with this guest still allowed to open it. As long as somebody else has the device open nothing
//! comes of that, and the kernel itself is the one who never dies: a second loop device, of one sector, that is bound to
//! the first and that no guest has. For a block device of the host it keeps the lock, and the device from going away.
//!
//! It is found again by its name, which says whose it is: number of the inode of the VM's run directory.

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
use super::super::loopdev::{self, Binding, Bound};
use super::super::mounts;
use crate::fs::io_error;

/// Keeps what `file` is, a device, open until [`Holders::release`].
pub(super) fn hold(vm_dir: &Path, file: &File, path: &Path) -> Result<()> {
    let name = tag(vm_dir).map_err(|e| io_error("look at", vm_dir, &e))?;
    let name = name.as_bytes();
    let how = Binding { sector: 512, read_only: true, name, most: 512, stays: true };
    loopdev::bind(file, path, how).map(drop)
}

fn tag(vm_dir: &Path) -> io::Result<String> {
    let meta = fs::metadata(vm_dir)?;
    Ok(format!("ocivisor holds for {:x}:{:x}", meta.dev(), meta.ino()))
}

/// Devices that hold those of one VM.
#[derive(Debug, Default)]
pub(super) struct Holders(Vec<Bound>);

impl Holders {
    /// Looks at all loop devices; none if the VM has no directory.
    pub(super) fn of(vm_dir: &Path) -> Result<Self> {
        let all = (|| {
            let tag = match tag(vm_dir) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                other => other?,
            };
            let all = loopdev::all()?;
            Ok(all.into_iter().filter(|bound| bound.name() == tag.as_bytes()).collect())
        })();
        all.map(Self).map_err(|e: io::Error| io_error("find loop devices of", vm_dir, &e))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one of them holds this device.
    pub(super) fn hold(&self, device: BlockDevice) -> bool {
        let device = makedev(device.major, device.minor);
        self.0.iter().any(|holder| holder.over == device)
    }

    /// Writes back what the held devices have, and lets go of them. A loop device among them is unbound, whatever its
    /// guest did to it.
    pub(super) fn release(self, deadline: Instant) -> Result<()> {
        let mut synced = Ok(());
        for holder in self.0 {
            let device = Path::new("/dev/block").join(format!(
                "{}:{}",
                rustix::fs::major(holder.over),
                rustix::fs::minor(holder.over)
            ));
            let shown = Path::new("/dev").join(format!("loop{}", holder.number));
            let failed = |e: &io::Error| io_error("detach", &shown, e);
            // Through the holder: names in /dev/block are udev's, not every host has them.
            let held = held_loop(&holder);
            if let Some(number) = held {
                let flushed =
                    File::open(format!("/dev/loop{number}")).and_then(|file| file.sync_all());
                synced = synced.and(flushed.map_err(|e| io_error("write back", &device, &e)));
                loopdev::clear(number).map_err(|e| failed(&e))?;
            }
            loopdev::clear(holder.number).map_err(|e| failed(&e))?;
            let gone = mounts::until(deadline, || {
                let now = loopdev::look(holder.number)?;
                Ok(now.is_none_or(|now| now.over != holder.over || now.name() != holder.name()))
            });
            if !gone.map_err(|e| failed(&e))? {
                return Err(mounts::busy(&shown.display().to_string(), &shown, None));
            }
        }
        synced
    }
}

/// Number of the loop device that is held, if it is one.
fn held_loop(holder: &Bound) -> Option<u32> {
    (rustix::fs::major(holder.over) == 7).then(|| rustix::fs::minor(holder.over))
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
