//! From a disk to the file system that is a system's root.
//!
//! A root is what the partition table says is one (Discoverable Partitions Specification); where it says
//! nothing, what looks like one. A choice between several is the caller's, never ours.

use std::rc::Rc;

use super::device::{self, Device, Disk, Part};
use super::fault::{DiskFault, Res};
use super::fs::{FileSystem, Id, Kind};
use super::partition::{self, Partition, Role};
use super::{btrfs, ext4, xfs};

/// What lies on a disk or partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Ext,
    Xfs,
    Btrfs,
    /// Something that can hold a root and is not read here.
    Closed(&'static str),
    /// Something that holds none.
    Other(&'static str),
    Nothing,
}

impl Found {
    fn name(self) -> &'static str {
        match self {
            Self::Ext => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Closed(name) | Self::Other(name) => name,
            Self::Nothing => "nothing known",
        }
    }

    fn is_fs(self) -> bool {
        matches!(self, Self::Ext | Self::Xfs | Self::Btrfs)
    }
}

/// Magic numbers: where, what, whose.
const CLOSED: [(u64, &[u8], &str); 9] = [
    (0, b"LUKS\xba\xbe", "LUKS encryption"),
    (0, b"LABELONE", "an LVM physical volume"),
    (512, b"LABELONE", "an LVM physical volume"),
    (1024, b"LABELONE", "an LVM physical volume"),
    (1536, b"LABELONE", "an LVM physical volume"),
    (4096, b"\xfc\x4e\x2b\xa9", "a member of an MD RAID"),
    (0, b"\xfc\x4e\x2b\xa9", "a member of an MD RAID"),
    (0x400, b"\x10\x20\xf5\xf2", "an F2FS file system"),
    (0, b"-FVE-FS-", "BitLocker encryption"),
];
const OTHER: [(u64, &[u8], &str); 7] = [
    (3, b"NTFS    ", "an NTFS file system"),
    (54, b"FAT", "a FAT file system"),
    (82, b"FAT32", "a FAT file system"),
    (0xff6, b"SWAPSPACE2", "swap"),
    (0x8001, b"CD001", "an ISO 9660 file system"),
    (0, b"hsqs", "a squashfs file system"),
    (0x400, b"\xe2\xe1\xf5\xe0", "an EROFS file system"),
];

fn look(disk: &dyn Device) -> Found {
    let is = |(at, magic, _): &&(u64, &[u8], &'static str)| {
        device::bytes(disk, *at, magic.len(), "magic").is_ok_and(|b| b == *magic)
    };
    if let Some((_, _, name)) = CLOSED.iter().find(is) {
        return Found::Closed(name);
    }
    if xfs::matches(disk) {
        return Found::Xfs;
    }
    if btrfs::matches(disk) {
        return Found::Btrfs;
    }
    if ext4::matches(disk) {
        return Found::Ext;
    }
    OTHER.iter().find(is).map_or(Found::Nothing, |(_, _, name)| Found::Other(name))
}

/// What a raw disk holds that starts at the beginning of `file`, if anything.
pub(super) fn raw_content(file: &dyn Device) -> Option<&'static str> {
    match partition::read(file) {
        Ok(Some(_)) | Err(_) => return Some("a partition table"),
        Ok(None) => {}
    }
    match look(file) {
        Found::Nothing => None,
        found => Some(found.name()),
    }
}

fn open(disk: &Disk, found: Found, at: &str) -> Res<Rc<dyn FileSystem>> {
    Ok(match found {
        Found::Ext => Rc::new(ext4::Ext4::open(disk)?),
        Found::Xfs => Rc::new(xfs::Xfs::open(disk)?),
        Found::Btrfs => Rc::new(btrfs::Btrfs::open(disk)?),
        Found::Closed(what) | Found::Other(what) => {
            return Err(DiskFault::Content { at: at.to_owned(), what });
        }
        Found::Nothing => {
            return Err(DiskFault::Content { at: at.to_owned(), what: "nothing known" });
        }
    })
}

/// The root file system of a disk. `wanted` names a partition, 0 the disk as a whole.
pub(super) fn root(disk: &Disk, wanted: Option<u32>) -> Res<Rc<dyn FileSystem>> {
    let whole = look(&**disk);
    if wanted == Some(0) {
        return open(disk, whole, "the disk");
    }
    let Some(table) = partition::read(&**disk)? else {
        return match wanted {
            None => open(disk, whole, "the disk"),
            Some(number) => {
                let there = format!("no partition table, but {} (0)", whole.name());
                Err(DiskFault::NoPartition { number, there })
            }
        };
    };
    if wanted.is_none() && whole.is_fs() {
        return Err(DiskFault::TableAndFs { table: table.name, fs: whole.name() });
    }
    let mut all = Vec::new();
    for partition in table.partitions {
        // One that leaves the disk is damage only for whoever wants it.
        let part: Option<Disk> = match Part::new(disk, partition.at, partition.size) {
            Ok(part) => Some(Rc::new(part)),
            Err(_) => None,
        };
        let found = part.as_ref().map_or(Found::Other("no place on the disk"), |p| look(&**p));
        all.push(Candidate { partition, part, found });
    }
    match wanted {
        Some(number) => {
            let one = all.iter().find(|c| c.partition.number == number);
            one.ok_or_else(|| DiskFault::NoPartition { number, there: list(all.iter()) })?.open()
        }
        None => choose(&all),
    }
}

struct Candidate {
    partition: Partition,
    part: Option<Disk>,
    found: Found,
}

impl Candidate {
    fn open(&self) -> Res<Rc<dyn FileSystem>> {
        let at = format!("partition {}", self.partition.number);
        let part = self.part.as_ref();
        let part = part.ok_or(DiskFault::damaged("partition", "lies outside of the disk"))?;
        open(part, self.found, &at)
    }
}

fn list<'a>(all: impl Iterator<Item = &'a Candidate>) -> String {
    let one = |c: &Candidate| format!("{} ({})", c.partition.number, c.found.name());
    // A table may have a thousand.
    let some: Vec<String> = all.take(16).map(one).collect();
    if some.is_empty() { "none".into() } else { some.join(", ") }
}

fn choose(all: &[Candidate]) -> Res<Rc<dyn FileSystem>> {
    let said: Vec<&Candidate> = all.iter().filter(|c| c.partition.role == Role::Root).collect();
    match said[..] {
        [one] => return one.open(),
        [] => {}
        _ => return Err(DiskFault::ManyRoots { there: list(said.into_iter()) }),
    }
    let (mut good, mut failed) = (Vec::new(), None);
    for candidate in all.iter().filter(|c| c.partition.role == Role::Any && c.found.is_fs()) {
        match candidate.open().and_then(|fs| Ok(looks_like_root(&*fs)?.then_some(fs))) {
            Ok(Some(fs)) => good.push((candidate, fs)),
            Ok(None) => {}
            Err(e) => failed = failed.or(Some(e)),
        }
    }
    if good.len() > 1 {
        return Err(DiskFault::ManyRoots { there: list(good.iter().map(|(c, _)| *c)) });
    }
    if let Some((_, fs)) = good.pop() {
        return Ok(fs);
    }
    // What could not be read may have been the root: that tells more than a list.
    if let Some(fault) = failed {
        return Err(fault);
    }
    match all.iter().find(|c| matches!(c.found, Found::Closed(_))) {
        Some(closed) => closed.open(),
        None => Err(DiskFault::NoRoot { there: list(all.iter()) }),
    }
}

/// Whether there is what a system has: its name, or its first program.
pub(super) fn looks_like_root(fs: &dyn FileSystem) -> Res<bool> {
    for path in ["etc/os-release", "usr/lib/os-release", "sbin/init"] {
        if lookup(fs, path.as_bytes())?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// As many as Linux follows.
const LINKS_MAX: usize = 40;
/// More names than a directory on the way to a program has.
pub(super) const NAMES_MAX: usize = 200_000;

/// The file of that path, links followed inside the file system; none if there is none.
pub(super) fn lookup(fs: &dyn FileSystem, path: &[u8]) -> Res<Option<Id>> {
    let mut trail = vec![fs.root()];
    let mut rest: Vec<Vec<u8>> = parts(path);
    let mut links = 0;
    while let Some(name) = rest.pop() {
        if name == b".." {
            if trail.len() > 1 {
                trail.pop();
            }
            continue;
        }
        let Some(here) = trail.last().copied() else {
            return Ok(None);
        };
        if fs.node(here)?.kind != Kind::Directory {
            return Ok(None);
        }
        let names = fs.names(here, NAMES_MAX)?;
        let Some(id) = names.into_iter().find(|n| n.name == name).map(|n| n.id) else {
            return Ok(None);
        };
        if fs.node(id)?.kind != Kind::Symlink {
            trail.push(id);
            continue;
        }
        links += 1;
        let target = fs.target(id)?;
        if links > LINKS_MAX || target.is_empty() {
            return Ok(None);
        }
        if target.starts_with(b"/") {
            trail.truncate(1);
        }
        rest.extend(parts(&target));
    }
    Ok(trail.last().copied())
}

/// The components of a path, last one first.
fn parts(path: &[u8]) -> Vec<Vec<u8>> {
    let parts = path.split(|b| *b == b'/').filter(|p| !matches!(*p, b"" | b"."));
    parts.rev().map(<[u8]>::to_vec).collect()
}
