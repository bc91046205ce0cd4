//! Disks beside the root disk.
//!
//! A disk is shown to a guest as what it is, a block device, or as the filesystem in it, mounted. Who asks for either
//! ([`View::Either`]) leaves it to what is found inside: platforms do not know that.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::{IoLimits, normal_path};

/// Most disks of a VM beside its root disk.
const MOST: usize = 64;
/// Most places of backing files of a disk.
const MOST_BACKING: usize = 16;

/// A disk beside the root disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataDisk {
    /// Which of the VM's disks; the platform's number of it.
    pub number: u32,
    /// Where it is on the host: a file, a block device, or in `/dev` a link to one. Absolute and normal
    /// ([`normal_path`]).
    pub path: PathBuf,
    /// How its content is kept in the file.
    pub format: DiskFormat,
    /// Files, and directories of files, that a qcow2 file may stand on. What else it names is refused.
    pub backing: Vec<PathBuf>,
    /// Whether the guest may only read it. A disk that is only read may be that of several VMs.
    pub read_only: bool,
    /// How fast it may be read and written.
    pub io: IoLimits,
    /// How the guest sees it.
    pub view: View,
    /// The filesystem that is made in it if it is all zeroes where one would begin; `None` leaves it empty.
    pub make: Option<Filesystem>,
}

/// How the content of a disk is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiskFormat {
    /// As it is.
    Raw,
    /// In a qcow2 file.
    Qcow2,
}

/// Filesystems that are made on demand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Filesystem {
    /// ext4
    Ext4,
    /// XFS
    Xfs,
}

/// How a guest sees a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum View {
    /// Its filesystem, mounted at this path of the guest, absolute and normal. What cannot be mounted is refused.
    Mount(PathBuf),
    /// A block device in the guest's `/dev`, readable, and writable unless the disk is read-only, by its root.
    Device(DeviceName),
    /// The first where the disk has a filesystem that this host mounts, else the second.
    Either(PathBuf, DeviceName),
}

/// Name of a block device in a guest's `/dev`: 1 to 15 small letters and digits, a letter first, and none that
/// something else has there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceName(String);

impl DeviceName {
    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for DeviceName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const TAKEN: [&str; 12] = [
            "console", "core", "fd", "full", "fuse", "kmsg", "log", "mqueue", "net", "null", "pts",
            "random",
        ];
        const TAKEN_TOO: [&str; 6] = ["shm", "stderr", "stdin", "stdout", "urandom", "zero"];
        let first = text.bytes().next().is_some_and(|c| c.is_ascii_lowercase());
        let all = text.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        if !first || !all || text.len() > 15 {
            return Err("is not 1 to 15 small letters and digits, a letter first");
        }
        if TAKEN.contains(&text)
            || TAKEN_TOO.contains(&text)
            || ["tty", "pt"].iter().any(|t| text.starts_with(t))
        {
            return Err("is the name of something else in /dev");
        }
        Ok(Self(text.to_owned()))
    }
}

impl View {
    /// Where it is mounted, if it may be.
    #[must_use]
    pub fn mount(&self) -> Option<&Path> {
        match self {
            Self::Mount(at) | Self::Either(at, _) => Some(at),
            Self::Device(_) => None,
        }
    }

    /// Its device, if it may have one.
    #[must_use]
    pub fn device(&self) -> Option<&DeviceName> {
        match self {
            Self::Device(name) | Self::Either(_, name) => Some(name),
            Self::Mount(_) => None,
        }
    }
}

impl DiskFormat {
    /// Name in configuration, on the wire and on disk.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }

    /// The format of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Raw, Self::Qcow2].into_iter().find(|format| format.name() == name)
    }
}

impl Filesystem {
    /// Name of the kernel's filesystem.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }

    /// The filesystem of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Ext4, Self::Xfs].into_iter().find(|filesystem| filesystem.name() == name)
    }
}

/// Checks disks, each and against each other and the root disk.
pub(super) fn check(disks: &[DataDisk], root: &Path) -> Result<(), String> {
    if disks.len() > MOST {
        return Err(format!("{} data disks, at most {MOST}", disks.len()));
    }
    let (mut numbers, mut paths) = (BTreeSet::new(), BTreeSet::from([root]));
    let (mut mounts, mut devices) = (BTreeSet::new(), BTreeSet::new());
    for disk in disks {
        let number = disk.number;
        if !numbers.insert(number) {
            return Err(format!("two data disks have the number {number}"));
        }
        if !is_normal(&disk.path) {
            return Err(format!(
                "data disk {number}: path {:?} is not absolute and normal",
                disk.path
            ));
        }
        if !paths.insert(&disk.path) {
            return Err(format!(
                "data disk {number}: {:?} is another disk of the vm as well",
                disk.path
            ));
        }
        check_backing(disk).map_err(|why| format!("data disk {number}: {why}"))?;
        disk.io.check().map_err(|why| format!("data disk {number}: {why}"))?;
        if disk.make.is_some() && disk.read_only {
            return Err(format!(
                "data disk {number}: a filesystem is wished for in a disk that is only read"
            ));
        }
        if let Some(at) = disk.view.mount() {
            check_mount(at)
                .map_err(|why| format!("data disk {number}: mount point {at:?} {why}"))?;
            if !mounts.insert(at) {
                return Err(format!("two data disks are mounted at {}", at.display()));
            }
        }
        if let Some(name) = disk.view.device()
            && !devices.insert(name)
        {
            return Err(format!("two data disks are /dev/{name}"));
        }
    }
    Ok(())
}

fn check_backing(disk: &DataDisk) -> Result<(), String> {
    let all = &disk.backing;
    if all.len() > MOST_BACKING {
        return Err(format!("{} places of backing files, at most {MOST_BACKING}", all.len()));
    }
    if !all.is_empty() && disk.format != DiskFormat::Qcow2 {
        return Err("backing files are named for a disk that is not qcow2".to_owned());
    }
    match all.iter().find(|path| !is_normal(path)) {
        Some(path) => Err(format!("backing file {path:?} is not absolute and normal")),
        None => Ok(()),
    }
}

/// As text: paths that name the same compare as equal.
fn is_normal(path: &Path) -> bool {
    normal_path(path).is_some_and(|normal| normal.as_os_str() == path.as_os_str())
}

/// Not over what makes the guest one.
fn check_mount(at: &Path) -> Result<(), &'static str> {
    const NOT_BELOW: [&str; 3] = ["/proc", "/sys", "/dev"];
    if !is_normal(at) {
        return Err("is not absolute and normal");
    }
    if at == Path::new("/") || NOT_BELOW.iter().any(|dir| at.starts_with(dir)) {
        return Err("is the root, or in /proc, /sys or /dev");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(number: u32, path: &str, view: View) -> DataDisk {
        let io = IoLimits::default();
        DataDisk {
            number,
            path: path.into(),
            format: DiskFormat::Raw,
            backing: Vec::new(),
            read_only: false,
            io,
            view,
            make: None,
        }
    }

    fn device(name: &str) -> DeviceName {
        name.parse().unwrap()
    }

    #[test]
    fn names_of_devices_are_plain_and_free() {
        for name in ["vdb", "sda", "sdaa", "xvdb", "nvme1n1", "a"] {
            assert_eq!(device(name).as_str(), name);
        }
        for name in [
            "",
            "1a",
            "a b",
            "../x",
            "sd/b",
            "Sdb",
            "sdb\n",
            "abcdefghijklmnop",
            "null",
            "tty0",
            "ptmx",
            "net",
        ] {
            assert!(name.parse::<DeviceName>().is_err(), "{name}");
        }
    }

    #[test]
    fn disks_that_are_fine() {
        let mut shared = disk(7, "/d/cd", View::Either("/media/cd".into(), device("hda")));
        shared.read_only = true;
        let disks = [
            disk(1, "/d/1", View::Mount("/data".into())),
            disk(2, "/d/2", View::Device(device("vdb"))),
            disk(4, "/d/4", View::Mount("/data/inner".into())),
            shared,
        ];
        assert_eq!(check(&disks, Path::new("/d/0")), Ok(()));
    }

    #[test]
    fn disks_that_are_not() {
        let at = |path: &str| View::Mount(path.into());
        let refused = |disks: &[DataDisk], want: &str| {
            let error = check(disks, Path::new("/d/0")).unwrap_err();
            assert!(error.contains(want), "{want} in {error}");
        };
        refused(&[disk(1, "/d/1", at("/a")), disk(1, "/d/2", at("/b"))], "the number 1");
        refused(&[disk(1, "/d/1", at("/a")), disk(2, "/d/1", at("/b"))], "another disk of the vm");
        refused(&[disk(1, "/d/0", at("/a"))], "another disk of the vm");
        refused(&[disk(1, "/d/1", at("/a")), disk(2, "/d/2", at("/a"))], "mounted at /a");
        let vdb = || View::Device(device("vdb"));
        refused(&[disk(1, "/d/1", vdb()), disk(2, "/d/2", vdb())], "are /dev/vdb");
        for path in ["d/1", "/d/../1", "/d//1", "/d/1\n"] {
            refused(&[disk(1, path, vdb())], "not absolute and normal");
        }
        for path in ["/", "/proc", "/proc/x", "/sys/fs", "/dev/x", "data", "/a/../proc", "/a\n"] {
            refused(&[disk(1, "/d/1", at(path))], "mount point");
        }
        let only_read =
            DataDisk { read_only: true, make: Some(Filesystem::Ext4), ..disk(1, "/d/1", at("/a")) };
        refused(&[only_read], "only read");
        let io = IoLimits { read_ops: Some(0), ..IoLimits::default() };
        refused(&[DataDisk { io, ..disk(1, "/d/1", at("/a")) }], "traffic");
        let beneath = |format, paths: &[&str]| DataDisk {
            format,
            backing: paths.iter().map(PathBuf::from).collect(),
            ..disk(1, "/d/1", at("/a"))
        };
        refused(&[beneath(DiskFormat::Raw, &["/b"])], "not qcow2");
        refused(&[beneath(DiskFormat::Qcow2, &["/b", "b"])], "not absolute and normal");
        refused(&[beneath(DiskFormat::Qcow2, &["/b"; 17])], "at most 16");
        assert_eq!(check(&[beneath(DiskFormat::Qcow2, &["/b"; 16])], Path::new("/d/0")), Ok(()));
        let many: Vec<DataDisk> =
            (0..65).map(|n| disk(n, &format!("/e/{n}"), at(&format!("/m/{n}")))).collect();
        refused(&many, "at most 64");
    }
}
