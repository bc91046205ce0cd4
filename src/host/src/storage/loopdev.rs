//! Loop devices for disk images.
//!
//! A device is bound by one LOOP_CONFIGURE and clears itself when its last user (descriptor or
//! mount) is gone, so no crash leaves one behind. The kernel keeps the very open file it was
//! given, and with it that file's flock: the lock that keeps a second VM away lives exactly as
//! long as the device, across restarts of the daemon.
//!
//! Ours have [numbers](OURS) of their own. What is in them is of tenants: the rule for udev that is installed with us
//! (`src/daemon/udev/60-ocivisor.rules`) names those numbers, so that nobody on the host looks for volume groups,
//! arrays and filesystems in them and brings those up; an admin's filter of LVM does as well. A host without the rule
//! has each device locked instead, by flock, which udev takes for the word of whoever makes something of a disk (systemd,
//! "Locking Block Device Access"). It waits for the end of that for three minutes, and `udevadm settle` with it (seen with
//! systemd 252), so the lock is the second choice.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ocivisor_core::error::{Error, ErrorKind, Result};
use rustix::fs::{fstatfs, major, minor};
use serde::{Deserialize, Serialize};

use super::mounts::{self, Mount};
use super::place::{Lock, try_lock};
use super::sys::{self, LoopConfig};
use crate::fs::io_error;

/// Numbers of our devices: no other program takes one before it has made fifty thousand, and a pattern can name them.
pub(super) const OURS: std::ops::Range<u32> = 50_000..60_000;

/// How long a free device is looked for.
const SEARCH: Duration = Duration::from_secs(30);

/// Where rules for udev are, udev(7).
const RULES: [&str; 5] = [
    "/etc/udev/rules.d",
    "/run/udev/rules.d",
    "/usr/local/lib/udev/rules.d",
    "/usr/lib/udev/rules.d",
    "/lib/udev/rules.d",
];
const RULE: &str = "60-ocivisor.rules";

const FLAG_READ_ONLY: u32 = 1;
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
    /// Whether udev keeps off it only as long as its file is open.
    pub(super) locked: bool,
}

impl LoopDevice {
    /// The device, open.
    pub(super) fn file(&self) -> &File {
        &self.open
    }

    pub(super) fn path(&self) -> String {
        format!("/dev/loop{}", self.number)
    }

    /// Its device number.
    pub(super) fn device(&self) -> io::Result<u64> {
        Ok(self.open.metadata()?.rdev())
    }
}

/// How a device is bound.
#[derive(Debug, Clone, Copy)]
pub(super) struct Binding<'a> {
    /// Bytes of a sector.
    pub(super) sector: u32,
    /// Whether it can be read alone.
    pub(super) read_only: bool,
    /// Shown by losetup; at most 63 bytes of it.
    pub(super) name: &'a [u8],
    /// Bytes that are shown, 0 is all.
    pub(super) most: u64,
    /// Whether it stays when nobody has it open.
    pub(super) stays: bool,
}

/// Binds a free device to `image`, which `path` names in messages.
pub(super) fn attach(image: &File, path: &Path) -> Result<LoopDevice> {
    let name = path.as_os_str().as_encoded_bytes();
    bind(image, path, Binding { sector: BLOCK_SIZE, read_only: false, name, most: 0, stays: false })
}

/// The same, bound as wished.
pub(super) fn bind(image: &File, path: &Path, how: Binding<'_>) -> Result<LoopDevice> {
    let mut numbers = Free::new(path);
    while let Some(number) = numbers.next()? {
        if let Some(device) = bind_at(number, image, path, how)? {
            return Ok(device);
        }
    }
    Err(io_error("attach loop device to", path, &io::Error::from_raw_os_error(libc::EBUSY)))
}

/// Numbers of devices that were free a moment ago, ours if the host can have those. Between that and binding it another
/// process may take or lock one, so each of ours is told once. Where there are none of ours the kernel names the first that
/// is free, which may be the same again. They end when [`SEARCH`] is over.
#[derive(Debug)]
pub(super) struct Free<'a> {
    /// Named in messages.
    path: &'a Path,
    from: u32,
    deadline: Instant,
}

impl<'a> Free<'a> {
    pub(super) fn new(path: &'a Path) -> Self {
        Self { path, from: OURS.start, deadline: Instant::now() + SEARCH }
    }

    pub(super) fn next(&mut self) -> Result<Option<u32>> {
        if Instant::now() >= self.deadline {
            return Ok(None);
        }
        let control = open_control()?;
        for number in self.from..OURS.end {
            self.from = number + 1;
            match sys::loop_add(&control, number) {
                Ok(()) => {}
                Err(e) if e.raw_os_error() == Some(libc::EEXIST) && is_bound(number) => continue,
                Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {}
                // Devices have fewer numbers where each has partitions (`max_part`).
                Err(_) => break,
            }
            // In a container /dev may be no devtmpfs, and have what somebody put there.
            if Path::new(&format!("/dev/loop{number}")).exists() {
                return Ok(Some(number));
            }
            break;
        }
        self.from = OURS.end;
        let free = sys::loop_get_free(&control);
        free.map(Some).map_err(|e| io_error("attach loop device to", self.path, &e))
    }
}

/// Binds the device of this number; `None` if it is not free any more.
pub(super) fn bind_at(
    number: u32,
    image: &File,
    path: &Path,
    how: Binding<'_>,
) -> Result<Option<LoopDevice>> {
    let failed = |e: &io::Error| io_error("attach loop device to", path, e);
    let mut config = LoopConfig::zeroed();
    config.fd = u32::try_from(image.as_raw_fd()).map_err(|e| failed(&io::Error::other(e)))?;
    config.block_size = how.sector;
    config.info.flags = if how.stays { 0 } else { FLAG_AUTOCLEAR };
    config.info.size_limit = how.most;
    if how.read_only {
        config.info.flags |= FLAG_READ_ONLY;
    }
    let filesystem = fstatfs(image).map_err(|e| failed(&e.into()))?;
    // A FUSE server may not expect direct I/O: with one, an image was seen to come out corrupt.
    if filesystem.f_type as i64 != FUSE_SUPER_MAGIC {
        config.info.flags |= FLAG_DIRECT_IO;
    }
    // For people who run losetup; the last byte stays zero.
    for (to, from) in config.info.file_name[..63].iter_mut().zip(how.name) {
        *to = *from;
    }
    let open = OpenOptions::new().read(true).write(true).open(format!("/dev/loop{number}"));
    let open = match open {
        // Clearing or deleting is under way.
        Err(e) if e.raw_os_error() == Some(libc::ENXIO) => return Ok(None),
        other => other.map_err(|e| failed(&e))?,
    };
    let locked = !udev_has_rule();
    if locked {
        // udev itself has it for some milliseconds, after the device was made.
        let deadline = Instant::now() + Duration::from_secs(2);
        let lock = || Ok(try_lock(&open)? != Lock::Held);
        if !mounts::until(deadline, lock).map_err(|e| failed(&e))? {
            return Ok(None);
        }
    }
    match sys::loop_configure(&open, &config) {
        Ok(()) => Ok(Some(LoopDevice { number, open, locked })),
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => Ok(None),
        Err(e) => Err(failed(&e)),
    }
}

/// Whether udev keeps off our devices by itself, or is not there.
fn udev_has_rule() -> bool {
    !Path::new("/run/udev/control").exists() || has_rule(&RULES.map(Path::new))
}

/// Whether the rule is in one of these directories: the file of the first that has one counts, and one that is empty, or
/// a link to /dev/null, is there to take its place, udev(7).
fn has_rule(dirs: &[&Path]) -> bool {
    let first = dirs.iter().find_map(|dir| fs::metadata(dir.join(RULE)).ok());
    first.is_some_and(|meta| meta.is_file() && meta.len() > 0)
}

/// Whether a device is bound to anything, without asking that.
pub(super) fn is_bound(number: u32) -> bool {
    Path::new(&format!("/sys/block/loop{number}/loop")).exists()
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
    let device = match open(number) {
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

/// Numbers of all devices that are bound to `file`, by whomever, or that may be. `id` is that of the file.
///
/// Which file a device has is asked of the file's filesystem, and that of somebody else's may be a share that never
/// answers. So its [path](path_of) comes first, which the kernel has by itself: what is on another share is not ours, and
/// not asked. What is local is asked wherever it seems to be, for a path says little of other mount namespaces; but not
/// ours where the file is `locked` by the caller: they would have that lock.
pub(super) fn bound_to(file: &File, id: FileId, locked: bool) -> io::Result<Vec<u32>> {
    let candidates = bound()?;
    if candidates.is_empty() {
        return Ok(Vec::new());
    }
    let own = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let mounts = mounts::all().map_err(io::Error::other)?;
    let mut found = Vec::new();
    for (number, path) in candidates {
        let is_same = path.as_ref() == Some(&own);
        let is_other = |path: &Path| {
            (locked && !is_same && OURS.contains(&number)) || is_on_other_share(path, id, &mounts)
        };
        if path.as_deref().is_some_and(is_other) {
            continue;
        }
        match backing(number) {
            Ok(Backing::File(other)) if other == id => found.push(number),
            // A share that is away for a moment.
            Err(e) if is_lost(&e) && is_same => found.push(number),
            Err(e) if !is_lost(&e) => return Err(e),
            Ok(_) | Err(_) => {}
        }
    }
    Ok(found)
}

/// Whether a path is on a share, and on none that has this file.
fn is_on_other_share(path: &Path, file: FileId, mounts: &[Mount]) -> bool {
    let own = format!("{}:{}", major(file.dev), minor(file.dev));
    let on = mounts::of_path(mounts, path);
    !on.is_empty() && on.iter().all(|mount| mount.is_share() && mount.device != own)
}

/// Path of the file that a device is bound to, without asking anybody about that: as the kernel knows it, which is as the
/// links in /proc/self/fd have it. `None` if it is bound to nothing, or the path is too long to be told.
fn path_of(number: u32) -> Option<PathBuf> {
    read_path(number).ok()
}

/// The same. `NotFound`: it is bound to nothing.
fn read_path(number: u32) -> io::Result<PathBuf> {
    let mut path = fs::read(format!("/sys/block/loop{number}/loop/backing_file"))?;
    path.pop_if(|last| *last == b'\n');
    Ok(OsString::from_vec(path).into())
}

/// Whether a device's file cannot be asked who it is, as the kernel does for its answer: it is on a share that went
/// away. One such device of anybody's must not stop all others.
fn is_lost(error: &io::Error) -> bool {
    let lost = [
        libc::ENOTCONN,
        libc::ECONNABORTED,
        libc::ESTALE,
        libc::EIO,
        libc::ETIMEDOUT,
        libc::EHOSTDOWN,
    ];
    error.raw_os_error().is_some_and(|errno| lost.contains(&errno))
}

/// What a device with a file of no directory had when it was bound, and has as long as it is: a number that no disk
/// of this boot has twice (`diskseq`, since Linux 5.15). What it is bound to is not asked: that asks the file's
/// filesystem, here a server that may be dead, or hang and have us hang with it.
pub(super) fn sequence(number: u32) -> io::Result<Option<u64>> {
    let dir = Path::new("/sys/block").join(format!("loop{number}"));
    if !dir.join("loop").exists() {
        return Ok(None);
    }
    let text = fs::read_to_string(dir.join("diskseq"))?;
    text.trim().parse().map(Some).map_err(io::Error::other)
}

/// The path of a file of no directory.
const SERVED: &str = "/";

/// Whether a device is bound to a file of no directory, which is what is served and never what a path leads to.
fn is_served(number: u32) -> bool {
    path_of(number).is_some_and(|path| path == Path::new(SERVED))
}

/// All devices that are bound to what a path leads to, with that as far as it can be told.
fn bound() -> io::Result<Vec<(u32, Option<PathBuf>)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block")? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|n| n.strip_prefix("loop")?.parse().ok());
        let Some(number) = number else { continue };
        // It costs as much as asking the device, and there may be thousands: once is enough.
        match read_path(number) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Ok(path) if path == Path::new(SERVED) => {}
            path => found.push((number, path.ok())),
        }
    }
    Ok(found)
}

/// A device that is bound.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bound {
    /// Whether it can be read alone.
    pub(super) read_only: bool,
    /// Bytes that are shown, 0 is all.
    pub(super) most: u64,
    /// Number of the block device that it is bound to, if it is to one.
    pub(super) over: u64,
    name: [u8; 64],
}

impl Bound {
    /// What was given as its name.
    pub(super) fn name(&self) -> &[u8] {
        let end = self.name.iter().position(|byte| *byte == 0).unwrap_or(64);
        &self.name[..end]
    }
}

/// The device, if it is bound.
pub(super) fn look(number: u32) -> io::Result<Option<Bound>> {
    if is_served(number) {
        let read_only = fs::read_to_string(format!("/sys/block/loop{number}/ro"))?.trim() == "1";
        return Ok(Some(Bound { read_only, most: 0, over: 0, name: [0; 64] }));
    }
    let status = open(number).and_then(|device| sys::loop_status(&device));
    match status {
        Ok(info) => Ok(Some(Bound {
            read_only: info.flags & FLAG_READ_ONLY != 0,
            most: info.size_limit,
            over: info.rdevice,
            name: info.file_name,
        })),
        Err(e) => match e.raw_os_error() {
            Some(libc::ENXIO | libc::ENOENT | libc::ENODEV) => Ok(None),
            _ => Err(e),
        },
    }
}

/// All devices that are bound to what a path leads to, with their numbers, but for those on shares.
#[cfg(test)]
pub(super) fn all() -> io::Result<Vec<(u32, Bound)>> {
    let mounts = mounts::all().map_err(io::Error::other)?;
    let on_share = |path: &Option<PathBuf>| {
        let mut on = path.iter().flat_map(|path| mounts::of_path(&mounts, path));
        on.any(|mount| mount.is_share())
    };
    let with_number = |number| Ok(look(number)?.map(|bound| (number, bound)));
    let local = bound()?.into_iter().filter(|(_, path)| !on_share(path)).map(|(number, _)| number);
    local.filter_map(|number| with_number(number).transpose()).collect()
}

/// Lets go of what the device is bound to as soon as nobody has it open; bound to nothing is fine.
pub(super) fn clear(number: u32) -> io::Result<()> {
    match open(number).and_then(|device| sys::loop_clear(&device)) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENXIO | libc::ENOENT | libc::ENODEV)) => {
            Ok(())
        }
        other => other,
    }
}

fn open(number: u32) -> io::Result<File> {
    let flags = libc::O_NONBLOCK;
    OpenOptions::new().read(true).custom_flags(flags).open(format!("/dev/loop{number}"))
}

/// Whether a device is, or may still be, bound to this file. One whose file cannot be asked, as where its share is away,
/// is bound to something.
pub(super) fn may_have(number: u32, file: FileId) -> bool {
    match backing(number) {
        Ok(Backing::File(found)) => found == file,
        Ok(Backing::Clearing) | Err(_) => true,
        Ok(Backing::Nothing) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_could_not_be_had_is_not_tried_again() {
        let mut free = Free::new(Path::new("disk"));
        let [one, other] = [(); 2].map(|()| free.next().unwrap().unwrap());
        assert!(OURS.contains(&one) && one < other, "{one} {other}");
        free.deadline = Instant::now();
        assert_eq!(free.next().unwrap(), None);
    }

    #[test]
    fn devices_of_others_are_asked_by_whatever_name_they_have_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let [path, other] = ["file", "other"].map(|name| dir.path().join(name));
        let open = |path: &Path| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(path)
                .unwrap()
        };
        let file = open(&path);
        file.set_len(1 << 20).unwrap();
        fs::hard_link(&path, &other).unwrap();
        let id = FileId::of(&file.metadata().unwrap());
        let bound_to = |locked| super::bound_to(&file, id, locked).unwrap();
        let gone = || {
            // A child of a test beside that did not exec yet may have a copy of the descriptor.
            let far = Instant::now() + Duration::from_secs(30);
            assert!(mounts::until(far, || Ok(bound_to(false).is_empty())).unwrap());
        };
        let how = Binding { sector: 512, read_only: true, name: b"", most: 0, stays: false };
        let ours = bind(&open(&other), &other, how).unwrap();
        assert!(OURS.contains(&ours.number));
        assert_eq!((bound_to(false), bound_to(true)), (vec![ours.number], vec![]));
        drop(ours);
        gone();
        let same = bind(&open(&path), &path, how).unwrap();
        assert_eq!((bound_to(false), bound_to(true)), (vec![same.number], vec![same.number]));
        drop(same);
        gone();
        let control = open_control().unwrap();
        let mut tries = std::iter::repeat_with(|| {
            let free = sys::loop_get_free(&control).unwrap();
            bind_at(free, &open(&other), &other, how).unwrap()
        });
        let theirs = tries.find_map(|device| device).unwrap();
        assert!(!OURS.contains(&theirs.number));
        assert_eq!((bound_to(false), bound_to(true)), (vec![theirs.number], vec![theirs.number]));
    }

    #[test]
    fn a_rule_that_an_admin_masked_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = ["etc", "lib"].map(|name| dir.path().join(name));
        dirs.iter().for_each(|dir| fs::create_dir(dir).unwrap());
        let [etc, lib] = dirs.each_ref().map(|dir| dir.join(RULE));
        let has = || has_rule(&dirs.each_ref().map(PathBuf::as_path));
        assert!(!has());
        fs::copy("/proc/version", &lib).unwrap();
        assert!(has());
        File::create(&etc).unwrap();
        assert!(!has(), "an empty one in its place");
        fs::remove_file(&etc).unwrap();
        std::os::unix::fs::symlink("/dev/null", &etc).unwrap();
        assert!(!has());
        fs::remove_file(&etc).unwrap();
        fs::copy("/proc/version", &etc).unwrap();
        File::create(&lib).unwrap();
        assert!(has(), "what comes first counts");
    }

    #[test]
    fn an_error_of_a_share_is_not_one_of_ours() {
        let of = |errno| is_lost(&io::Error::from_raw_os_error(errno));
        // A dead FUSE server, a file that the NFS server removed, a dead disk.
        assert!([libc::ENOTCONN, libc::ESTALE, libc::EIO].map(of).iter().all(|lost| *lost));
        assert!(![libc::EMFILE, libc::EPERM, libc::EINTR].map(of).iter().any(|lost| *lost));
    }
}
