//! Disks beside the root disk to [`DataDisk`]s.
//!
//! | in the template | becomes |
//! |---|---|
//! | `DISK/OCI_MOUNT`, a path | its filesystem mounted there, or the deploy is refused |
//! | `DISK/OCI_MOUNT = "none"` | a block device, `/dev/<TARGET>` |
//! | `DISK/TARGET`, a path | as `OCI_MOUNT`, as the LXC driver has it |
//! | neither | mounted at `/media/one-disk.<DISK_ID>`, the LXC driver's place, if there is a filesystem that the host mounts; else a block device |
//! | `DRIVER`, else `FORMAT` | `raw` or `qcow2` |
//! | `SOURCE` of a qcow2 image | what the disk may stand on, with its snapshots and its own |
//! | `READONLY`, a CD-ROM | only read |
//! | `TYPE = "fs"` (volatile) | formatted at its first boot: `FS`, else ext4 |
//! | `READ_BYTES_SEC` and its like | bounds on its traffic |
//!
//! What is in a disk is not known here; the host sees it and says what became of it.

use std::path::{Path, PathBuf};

use ocivisor_core::error::Error;
use ocivisor_core::spec::{DataDisk, DeviceName, DiskFormat, Filesystem, View, normal_path};

use crate::answer::Notes;
use crate::resources::io_limits;
use crate::vm::{Disk, DiskKind};
use crate::{clip, invalid};

/// All but the root disk, swap and shared directories; `dir` is the VM's.
pub(crate) fn data_disks(
    disks: &[Disk],
    root: &Disk,
    dir: &Path,
    notes: &mut Notes,
) -> Result<Vec<DataDisk>, Error> {
    let mut all = Vec::new();
    for disk in disks.iter().filter(|disk| disk.id != root.id) {
        match disk.kind {
            DiskKind::Image | DiskKind::Volatile | DiskKind::Cdrom => {
                all.push(data_disk(disk, dir, notes)?);
            }
            DiskKind::Swap | DiskKind::Filesystem => {}
        }
    }
    Ok(all)
}

fn data_disk(disk: &Disk, dir: &Path, notes: &mut Notes) -> Result<DataDisk, Error> {
    let read_only = disk.kind == DiskKind::Cdrom || disk.read_only;
    let (path, format) = (dir.join(format!("disk.{}", disk.id)), format(disk)?);
    Ok(DataDisk {
        number: disk.id,
        backing: if format == DiskFormat::Qcow2 { backing(disk, &path) } else { Vec::new() },
        path,
        format,
        read_only,
        io: io_limits(disk, notes)?,
        view: view(disk)?,
        make: make(disk, notes).filter(|_| !read_only),
    })
}

/// Where the stock drivers (`tm/qcow2`, `tm/shared`, `tm/local`) put what a qcow2 disk stands on: the image that it was
/// cloned from, and snapshots, `<file>.snap/<number>` of either.
fn backing(disk: &Disk, path: &Path) -> Vec<PathBuf> {
    let snapshots = |of: &Path| {
        let mut name = of.as_os_str().to_owned();
        name.push(".snap");
        PathBuf::from(name)
    };
    let mut places = vec![snapshots(path)];
    // oned writes `//` here and there; a source that is no path is no file either.
    if let Some(source) = disk.source.as_deref().and_then(|text| normal_path(Path::new(text))) {
        places.push(snapshots(&source));
        places.push(source);
    }
    places
}

fn format(disk: &Disk) -> Result<DiskFormat, Error> {
    let Some(text) = &disk.format else { return Ok(DiskFormat::Raw) };
    let format = match text.to_ascii_lowercase().as_str() {
        // What datastores of Ceph and of containers call what is a device here.
        "raw" | "rbd" | "block" | "oci" => Some(DiskFormat::Raw),
        other => DiskFormat::from_name(other),
    };
    format.ok_or_else(|| {
        let (id, shown) = (disk.id, clip(text));
        invalid(format!("DRIVER of disk {id} is {shown:?}: it is none of raw, qcow2"))
    })
}

fn make(disk: &Disk, notes: &mut Notes) -> Option<Filesystem> {
    if disk.kind != DiskKind::Volatile {
        return None;
    }
    let Some(text) = &disk.filesystem else { return Some(Filesystem::Ext4) };
    let known = match text.to_ascii_lowercase().as_str() {
        "ext2" | "ext3" => Some(Filesystem::Ext4),
        other => Filesystem::from_name(other),
    };
    if known.is_none() {
        let (id, shown) = (disk.id, clip(text));
        notes.add(format_args!("disk {id} is not formatted: FS is {shown:?}, not ext4 or xfs"));
    }
    known
}

fn view(disk: &Disk) -> Result<View, Error> {
    let target = disk.target.as_deref().unwrap_or_default();
    let is_path = |text: &str| text.starts_with('/');
    let device = || device(disk.id, target);
    match disk.oci_mount.as_deref() {
        Some(none) if none.eq_ignore_ascii_case("none") => Ok(View::Device(device()?)),
        Some(path) => Ok(View::Mount(mount_point(disk.id, "OCI_MOUNT", path)?)),
        None if is_path(target) => Ok(View::Mount(mount_point(disk.id, "TARGET", target)?)),
        None => Ok(View::Either(format!("/media/one-disk.{}", disk.id).into(), device()?)),
    }
}

fn mount_point(id: u32, key: &str, text: &str) -> Result<PathBuf, Error> {
    normal_path(Path::new(text)).ok_or_else(|| {
        let shown = clip(text);
        invalid(format!(
            "{key} of disk {id} is {shown:?}: it is neither an absolute path without .. nor none"
        ))
    })
}

/// As oned names it; what it names with a path, or not at all, has a name of its number.
fn device(id: u32, target: &str) -> Result<DeviceName, Error> {
    if target.is_empty() || target.starts_with('/') {
        return format!("disk{id}").parse().map_err(invalid);
    }
    target.parse().map_err(|why| {
        let shown = clip(target);
        invalid(format!("TARGET of disk {id} is {shown:?}: it {why}"))
    })
}
