//! The filesystem inside a disk image: ext4, made by us and by nobody else.
//!
//! The kernel's ext4 is not hardened against crafted images, and the file lies where a platform's
//! user may write. So an image is mounted only if its superblock has nothing that we do not put
//! there: no feature beyond ours, no journal on a device it names, no mount options of its own.
//! That narrows what such a user can reach, it does not make a crafted image safe.
//!
//! An image of a host that crashed is mended by the journal at mount. If the kernel noted errors
//! in it, `e2fsck -p` runs first, and what it cannot mend is not mounted.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::units::Bytes;
use rustix::mount::MountAttrFlags;

use super::fsctx::FsContext;
use super::loopdev::{BLOCK_SIZE, LoopDevice};
use crate::command;
use crate::fs::io_error;

/// Named one by one, not left to the host's /etc/mke2fs.conf: a disk must be mountable on every
/// host it may move to, down to Linux 6.1.
const FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,\
    flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum";
/// filetype, recover (journal to be replayed), extents, 64bit, `flex_bg`.
const INCOMPAT: u32 = 0x2 | 0x4 | 0x40 | 0x80 | 0x200;
/// `sparse_super`, `large_file`, `huge_file`, `dir_nlink`, `extra_isize`, `metadata_csum`.
const RO_COMPAT: u32 = 0x1 | 0x2 | 0x8 | 0x20 | 0x40 | 0x400;
const STATE_ERRORS: u16 = 2;

/// Formats `image`, whose size is set, with a copy of the tree `skeleton` inside.
///
/// The tool gets the open file, not a name: the directory may belong to a platform's user.
pub(super) fn format(image: &File, size: Bytes, skeleton: &Path, path: &Path) -> Result<()> {
    let device = proc_path(image);
    let skeleton = skeleton.to_str().ok_or_else(|| {
        Error::new(ErrorKind::Invalid, format!("run directory of {} is not UTF-8", path.display()))
    })?;
    // A root filesystem of a small disk has as many small files as that of a large one.
    let bytes_per_inode = if size < Bytes::mib(4096) { "8192" } else { "16384" };
    let mut argv = vec!["mkfs.ext4", "-q", "-F", "-b", "4096", "-I", "256"];
    argv.extend(["-i", bytes_per_inode, "-m", "0", "-e", "remount-ro", "-O", FEATURES]);
    // Up to here the default is at most 64 MiB; beyond, it grows to 1 GiB, which a sparse file
    // would come to hold in full.
    if size >= Bytes::mib(4096) {
        argv.extend(["-J", "size=64"]);
    }
    // A new sparse file is all zeroes: nothing needs to be written to make it so, or discarded.
    argv.extend(["-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0"]);
    argv.extend(["-d", skeleton, device.as_str()]);
    command::run(&argv, Duration::from_secs(120)).map_err(|mut e| {
        if e.message.contains("No space left") || e.message.contains("Disk quota exceeded") {
            e.kind = ErrorKind::Exhausted;
        }
        e.context(format_args!("format disk {}", path.display()))
    })?;
    Ok(())
}

fn proc_path(file: &File) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd())
}

/// Checks that `image` holds a filesystem that we made and that can be mounted.
pub(super) fn verify(image: &File, path: &Path) -> Result<()> {
    if Superblock::read(image, path)?.has_errors() {
        tracing::warn!(disk = %path.display(), "errors are noted in the filesystem, running e2fsck");
        // Its exit status is 1 when it mended everything, so the superblock is asked instead.
        let checked = command::run(&["e2fsck", "-p", &proc_path(image)], Duration::from_secs(3600));
        if Superblock::read(image, path)?.has_errors() {
            let why = checked.err().map_or(String::new(), |e| format!(": {e}"));
            let what = format!("filesystem of disk {} is damaged{why}", path.display());
            let error = Error::new(ErrorKind::Integrity, what);
            return Err(error.hint(format!("run e2fsck -f {} by hand", path.display())));
        }
    }
    Ok(())
}

/// The fields that matter; offsets from the kernel's Documentation/filesystems/ext4.
#[derive(Debug)]
struct Superblock([u8; 1024]);

impl Superblock {
    fn read(image: &File, path: &Path) -> Result<Self> {
        let mut bytes = [0; 1024];
        image.read_exact_at(&mut bytes, 1024).map_err(|e| io_error("read disk", path, &e))?;
        let sb = Self(bytes);
        let bad = match () {
            () if sb.u16(0x38) != 0xEF53 => "holds no ext4 filesystem",
            () if sb.u32(0x18) != 2 => "has blocks of another size than 4096 bytes",
            () if sb.u32(0x60) & !INCOMPAT != 0 || sb.u32(0x64) & !RO_COMPAT != 0 => {
                "has features that ocivisor does not use"
            }
            () if sb.u32(0xE4) != 0 => "has its journal on another device",
            () if sb.0[0x200..0x240].iter().any(|b| *b != 0) => "brings mount options of its own",
            () => return Ok(sb),
        };
        let what = format!("disk {} {bad}", path.display());
        Err(Error::new(ErrorKind::Integrity, what).hint("only disks made by ocivisor are mounted"))
    }

    fn has_errors(&self) -> bool {
        self.u16(0x3A) & STATE_ERRORS != 0
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from(self.u16(at)) | u32::from(self.u16(at + 2)) << 16
    }
}

/// Mounts the image behind `device`, attached nowhere. Nothing is run or opened through this
/// mount, the guest sees the overlay above it.
pub(super) fn mount(device: &LoopDevice, path: &Path) -> Result<OwnedFd> {
    let mounted = (|| {
        let context = FsContext::open(c"ext4")?;
        context.set(c"source", &device.path())?;
        context.set(c"errors", "remount-ro")?;
        // The tables read as zero already; writing them would make the sparse file grow.
        context.set_flag(c"noinit_itable")?;
        context.mount(
            MountAttrFlags::MOUNT_ATTR_NODEV
                | MountAttrFlags::MOUNT_ATTR_NOSUID
                | MountAttrFlags::MOUNT_ATTR_NOEXEC,
        )
    })();
    mounted.map_err(|e| {
        let mut error = io_error("mount disk", path, &e);
        if matches!(
            super::fsctx::errno(&e),
            Some(libc::EINVAL | libc::EUCLEAN | libc::EBADMSG | libc::EIO)
        ) {
            error.kind = ErrorKind::Integrity;
            error = error.hint(format!(
                "the image is damaged or cut off; see dmesg, and e2fsck -n {}",
                path.display()
            ));
        }
        error
    })
}

/// Sizes are rounded up to this.
pub(super) const GRANULE: u64 = BLOCK_SIZE as u64;
