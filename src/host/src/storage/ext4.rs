//! The filesystem inside a disk image: ext4, made by us and by nobody else.
//!
//! The kernel's ext4 is not hardened against crafted images, and the file lies where a platform's
//! user may write. So an image is mounted only if its superblock has nothing that we do not put
//! there: no feature beyond ours, no journal on a device it names, no mount options of its own.
//! That narrows what such a user can reach, it does not make a crafted image safe.
//!
//! An image of a host that crashed is mended by the journal at mount. If the kernel noted errors
//! in it, `e2fsck -p` runs first, and what it cannot mend is not mounted. No tool here has rights of
//! any kind, [`confine`].

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::units::Bytes;
use rustix::fs::{
    AtFlags, FileType, Gid, MemfdFlags, Mode, OFlags, SeekFrom, Uid, chownat, ftruncate,
    memfd_create, mknodat, openat, seek,
};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use super::fsctx::FsContext;
use super::loopdev::{self, BLOCK_SIZE, LoopDevice};
use crate::command;
use crate::confine::{self, Confinement, Input, path_of};
use crate::fs::io_error;

/// Named one by one, not left to the host's /etc/mke2fs.conf: a disk must be mountable on every
/// host it may move to, down to Linux 6.1.
pub(super) const FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,\
    flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum";
/// filetype, recover (journal to be replayed), extents, 64bit, `flex_bg`.
const INCOMPAT: u32 = 0x2 | 0x4 | 0x40 | 0x80 | 0x200;
/// `sparse_super`, `large_file`, `huge_file`, `dir_nlink`, `extra_isize`, `metadata_csum`.
const RO_COMPAT: u32 = 0x1 | 0x2 | 0x8 | 0x20 | 0x40 | 0x400;
const STATE_ERRORS: u16 = 2;

/// What is in a new filesystem, beside `lost+found`: `upper/` and `work/`.
#[derive(Debug)]
pub(super) struct Skeleton {
    /// A directory with both, open to everybody.
    pub(super) dir: OwnedFd,
    /// Permissions that `upper/` gets if it shall be less open than the one in `dir`.
    pub(super) upper_mode: Option<u32>,
}

/// Formats `image`, whose size is set and which is all holes.
///
/// The tool works on memory that everybody who has the descriptor may open, not on the image: that
/// belongs to others, on a filesystem that may know neither the tool's user nor links to open files.
/// It writes little, 1 MiB for 10 GiB and 16 MiB for 1 TiB, and what is not zeroes is copied.
pub(super) fn format(image: &File, size: Bytes, skeleton: &Skeleton, path: &Path) -> Result<()> {
    let memory = memory(size).map_err(|e| io_error("get memory to format disk", path, &e))?;
    let (device, dir) = (path_of(memory.as_fd()), path_of(skeleton.dir.as_fd()) + "/.");
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
    let mut extended = "nodiscard,lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0".to_owned();
    if let Some(blocks) = room_to_grow(size) {
        extended += &format!(",resize={blocks}");
    }
    argv.extend(["-E", &extended]);
    argv.extend(["-d", &dir, &device]);
    let files = [memory.as_fd(), skeleton.dir.as_fd()];
    let to = Confinement {
        files: &files,
        largest_file: size.0,
        input: Input::Ours,
        user: confine::user(),
        groups: &[],
    };
    let context = |e: Error| e.context(format_args!("format disk {}", path.display()));
    command::run_confined(&argv, &to, Duration::from_secs(120)).map_err(context)?;
    if let Some(mode) = skeleton.upper_mode {
        close_upper(&device, mode, &to).map_err(context)?;
    }
    copy_data(&memory, image).map_err(|e| io_error("format disk", path, &e))
}

/// Up to how many blocks the filesystem shall be able to grow, if it can grow at all.
///
/// What is kept for the descriptors of later groups is written now, 4 MiB by default for anything
/// from 8 GiB on, which would be most of the time that formatting takes. So: to 16 times its size,
/// and to 1 TiB at least, though never to more than the default's 1024 times.
fn room_to_grow(size: Bytes) -> Option<u64> {
    let Bytes(size) = size;
    let most = size.saturating_mul(16).max(1 << 40).min(size.saturating_mul(1024));
    let blocks = most.min(MAX_SIZE.0) / u64::from(BLOCK_SIZE);
    (blocks > size / u64::from(BLOCK_SIZE)).then_some(blocks)
}

/// Memory that reads as zeroes, as a file.
pub(super) fn memory(size: Bytes) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL;
    let memory = match memfd_create(c"ocivisor-disk", flags) {
        // The flag is of Linux 6.3.
        Err(Errno::INVAL) => memfd_create(c"ocivisor-disk", MemfdFlags::CLOEXEC),
        other => other,
    }?;
    ftruncate(&memory, size.0)?;
    Ok(memory.into())
}

/// Gives `upper/` the permissions that it could not have while the tool had to look into it.
fn close_upper(device: &str, mode: u32, to: &Confinement<'_>) -> Result<()> {
    let set = format!("set_inode_field /upper mode 04{mode:04o}");
    let limit = Duration::from_secs(60);
    command::run_confined(&["debugfs", "-w", "-R", &set, device], to, limit)?;
    // It succeeds whatever happened.
    let shown = command::run_confined(&["debugfs", "-R", "stat /upper", device], to, limit)?;
    let shown = String::from_utf8_lossy(&shown);
    let mut words = shown.split_ascii_whitespace();
    let is = words.find(|word| *word == "Mode:").and_then(|_| words.next());
    match is.map(|word| u32::from_str_radix(word, 8)) {
        Some(Ok(is)) if is == mode => Ok(()),
        _ => Err(Error::new(ErrorKind::Host, "debugfs did not set the mode of the root directory")),
    }
}

/// Copies all that is not zeroes, in a file of holes.
fn copy_data(from: &File, to: &File) -> io::Result<()> {
    let mut chunk = vec![0; 256 << 10];
    let mut at = 0;
    loop {
        at = match seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        let end = seek(from, SeekFrom::Hole(at))?;
        while at < end {
            let most = usize::try_from(end - at).unwrap_or(usize::MAX).min(chunk.len());
            let n = from.read_at(&mut chunk[..most], at)?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            write_blocks(to, &chunk[..n], at)?;
            at += n as u64;
        }
    }
}

/// Writes the runs of blocks that are not all zeroes.
fn write_blocks(to: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    let blocks: Vec<&[u8]> = bytes.chunks(BLOCK_SIZE as usize).collect();
    let mut position = 0;
    for run in blocks.chunk_by(|a, b| is_zero(a) == is_zero(b)) {
        let length: usize = run.iter().map(|block| block.len()).sum();
        if !is_zero(run[0]) {
            to.write_all_at(&bytes[position..position + length], at + position as u64)?;
        }
        position += length;
    }
    Ok(())
}

fn is_zero(block: &[u8]) -> bool {
    const ZEROES: [u8; BLOCK_SIZE as usize] = [0; BLOCK_SIZE as usize];
    ZEROES.get(..block.len()) == Some(block)
}

/// Checks that `image` holds a filesystem that we made and that can be mounted.
pub(super) fn verify(image: &File, path: &Path) -> Result<()> {
    if Superblock::read(image, path)?.has_errors() {
        tracing::warn!(disk = %path.display(), "errors are noted in the filesystem, running e2fsck");
        // Its exit status is 1 when it mended everything, so the superblock is asked instead.
        let checked = check(image, path);
        if Superblock::read(image, path)?.has_errors() {
            let why = checked.err().map_or(String::new(), |e| format!(": {e}"));
            let what = format!("filesystem of disk {} is damaged{why}", path.display());
            let error = Error::new(ErrorKind::Integrity, what);
            return Err(error.hint(format!("run e2fsck -f {} by hand", path.display())));
        }
    }
    Ok(())
}

/// Runs `e2fsck -p`, which reads what may be crafted, and need not open anything else.
///
/// It gets a loop device by a node of its own, since the image is its owner's alone. The device is
/// not used again: the tool may do to it what it wants.
fn check(image: &File, path: &Path) -> Result<()> {
    let device = loopdev::attach(image, path)?;
    let user = confine::user();
    let device_number = device.device().map_err(|e| io_error("look at", path, &e))?;
    let node = private_node(device_number, user, false)
        .map_err(|e| io_error("make node for", path, &e))?;
    let files = [node.as_fd()];
    let to =
        Confinement { files: &files, largest_file: 0, input: Input::Foreign, user, groups: &[] };
    let argv = ["e2fsck", "-p", &path_of(node.as_fd())];
    command::run_confined(&argv, &to, Duration::from_secs(3600)).map(drop)
}

/// The device, opened by a node on a filesystem that nobody can reach, which belongs to `user`.
pub(super) fn private_node(device: u64, user: u32, read_only: bool) -> io::Result<OwnedFd> {
    let context = FsContext::open(c"tmpfs")?;
    context.set(c"size", "65536")?;
    let dir = context.mount(MountAttrFlags::MOUNT_ATTR_NOEXEC)?;
    let mode = Mode::RUSR | Mode::WUSR;
    mknodat(&dir, "disk", FileType::BlockDevice, mode, device)?;
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
    chownat(&dir, "disk", Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    let access = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
    Ok(openat(&dir, "disk", access | OFlags::CLOEXEC, Mode::empty())?)
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
/// mount, the guest sees the overlay above it. `label` is the SELinux context of its files.
pub(super) fn mount(device: &LoopDevice, path: &Path, label: Option<&str>) -> Result<OwnedFd> {
    let mounted = (|| {
        let context = FsContext::open(c"ext4")?;
        context.set(c"source", &device.path())?;
        context.set(c"errors", "remount-ro")?;
        // The tables read as zero already; writing them would make the sparse file grow.
        context.set_flag(c"noinit_itable")?;
        if let Some(label) = label {
            context.set(c"context", label)?;
        }
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
/// Largest filesystem with 4 KiB blocks and what a file can hold: 16 TiB less one block.
pub(super) const MAX_SIZE: Bytes = Bytes((1 << 44) - GRANULE);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_can_grow_sixteenfold_and_to_a_tebibyte_but_not_a_thousandfold() {
        let blocks = |bytes: u64| Some(bytes / 4096);
        for (size, want) in [
            (Bytes::mib(32), blocks(32 << 30)),
            (Bytes::mib(10 << 10), blocks(1 << 40)),
            (Bytes::mib(100 << 10), blocks(1600 << 30)),
            (Bytes(8 << 40), blocks(MAX_SIZE.0)),
            (MAX_SIZE, None),
        ] {
            assert_eq!(room_to_grow(size), want, "{size}");
        }
    }

    #[test]
    fn what_is_not_zeroes_is_copied_to_its_place() {
        let (from, to) = (memory(Bytes::mib(8)).unwrap(), memory(Bytes::mib(8)).unwrap());
        let places = [(0, 1), (4096 * 3 - 1, 2), (300 << 10, 400 << 10), ((8 << 20) - 5, 5)];
        for (at, length) in places {
            from.write_all_at(&vec![7; length], at).unwrap();
        }
        // Written, and zeroes all the same.
        from.write_all_at(&[0; 8192], 2 << 20).unwrap();
        copy_data(&from, &to).unwrap();
        let read = |file: &File| {
            let mut bytes = vec![0; 8 << 20];
            file.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        };
        assert!(read(&from) == read(&to));
        assert_eq!(seek(&to, SeekFrom::Data(1 << 20)).unwrap(), (8 << 20) - 4096);
    }
}
