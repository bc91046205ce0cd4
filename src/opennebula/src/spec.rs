//! A VM of OpenNebula to a [`VmSpec`].
//!
//! What the spec has no place for is not dropped silently: each such thing becomes a [`Note`] for
//! the VM's log, so that who looks for a missing disk finds the reason there.
//!
//! The root disk is the first `diskN` of `OS/BOOT` that can be one, else the disk with the lowest
//! id; CD-ROMs, swap and shared directories cannot. The rule is the LXC driver's, so templates
//! keep their meaning.

use std::collections::BTreeMap;
use std::path::Path;

use ocivisor_core::error::{Error, ErrorKind};
use ocivisor_core::ids::{DisplayName, Hostname, VmId};
use ocivisor_core::spec::{Isolation, Platform, RootDisk, Upkeep, VmSpec, normal_path};

use crate::answer::{Note, Notes};
use crate::boot::boot;
use crate::disks::data_disks;
use crate::graphics::graphics;
use crate::nics::nics;
use crate::resources::{io_limits, resources};
use crate::vm::{Disk, DiskKind, DriverVm, Vector};
use crate::{clip, decimal, invalid, told};

/// Translates; `vm_dir` is the VM's directory in the system datastore (doubled slashes are fine).
///
/// The result has passed [`VmSpec::check`]. The notes are what is not honoured, one sentence each.
///
/// # Errors
/// A value that is missing or wrong, by its name in the template, or a device that this version
/// cannot give to a guest.
pub fn to_spec(vm: &DriverVm, vm_dir: &Path) -> Result<(VmSpec, Vec<Note>), Error> {
    let mut notes = Notes::default();
    let id = vm.id.vm_id();
    let dir = normal_path(vm_dir).ok_or_else(|| {
        invalid(format!("the VM's directory {vm_dir:?} is not an absolute path without .."))
    })?;
    let root = root_disk(vm)?;
    let mut boot = boot(vm.oci.as_ref(), &mut notes)?;
    // Later ones win: the tenant's own.
    boot.env.splice(0..0, told::environment(vm.context.as_ref()));
    let spec = VmSpec {
        name: display_name(&vm.name, &id, &mut notes)?,
        hostname: hostname(vm, &id, &mut notes),
        platform: Platform::OpenNebula,
        resources: resources(vm, &mut notes)?,
        boot,
        root: RootDisk {
            path: dir.join(format!("disk.{}", root.id)),
            io: io_limits(root, &mut notes)?,
        },
        disks: data_disks(&vm.disks, root, &dir, &mut notes)?,
        nics: nics(vm, &mut notes)?,
        isolation: isolation(vm.oci.as_ref())?,
        context: told::context(vm.context.as_ref(), &dir, &mut notes),
        graphics: graphics(vm.graphics.as_ref(), &mut notes)?,
        upkeep: Upkeep::default(),
        id,
    };
    remark(vm, root, &mut notes);
    spec.check()?;
    Ok((spec, notes.into_vec()))
}

/// A wish of the tenant's; whether the host grants it is the host's affair.
fn isolation(oci: Option<&Vector>) -> Result<Isolation, Error> {
    let Some(text) = oci.and_then(|oci| oci.get("ISOLATION")) else {
        return Ok(Isolation::Default);
    };
    Isolation::from_name(&text.to_ascii_lowercase()).ok_or_else(|| {
        let shown = clip(text);
        invalid(format!("the template's OCI/ISOLATION is {shown:?}: it is none of strict, default, nested, privileged"))
    })
}

/// OpenNebula allows 128 characters, which can be more than our 256 bytes.
fn display_name(name: &str, id: &VmId, notes: &mut Notes) -> Result<DisplayName, Error> {
    const MAX: usize = 256;
    if name.is_empty() {
        return id.as_str().parse().map_err(invalid);
    }
    if name.len() > MAX {
        notes.add("the VM's NAME is cut to 256 bytes");
    }
    name[..name.floor_char_boundary(MAX)].parse().map_err(|error| invalid(error).context("NAME"))
}

/// `SET_HOSTNAME` as the packages read it: what cannot be in a name is a hyphen. Else the VM's name.
pub(crate) fn hostname(vm: &DriverVm, id: &VmId, notes: &mut Notes) -> Hostname {
    for key in ["SET_HOSTNAME", "HOSTNAME"] {
        let Some(text) = vm.context.as_ref().and_then(|context| context.get(key)) else {
            continue;
        };
        let kept = |c: char| if c.is_ascii_alphanumeric() || "-.".contains(c) { c } else { '-' };
        let name: String = text.chars().map(kept).collect();
        match name.trim_matches('-').parse() {
            Ok(name) => return name,
            Err(_) => notes.add(format_args!(
                "CONTEXT/{key} {:?} is not a host name and is not used",
                clip(text)
            )),
        }
    }
    Hostname::from_display(&vm.name, id)
}

fn can_be_root(disk: &Disk) -> bool {
    match disk.kind {
        DiskKind::Image | DiskKind::Volatile => true,
        DiskKind::Swap | DiskKind::Cdrom | DiskKind::Filesystem => false,
    }
}

fn root_disk(vm: &DriverVm) -> Result<&Disk, Error> {
    let disks: BTreeMap<u32, &Disk> = vm.disks.iter().map(|disk| (disk.id, disk)).collect();
    let order = vm.os.get("BOOT").map_or("", String::as_str);
    let named = order.split(',').filter_map(|device| device.trim().strip_prefix("disk"));
    let mut first = None;
    for number in named {
        let disk = decimal(number).and_then(|id| disks.get(&id)).ok_or_else(|| {
            invalid(format!("OS/BOOT names disk{}, which the VM does not have", clip(number)))
        })?;
        first = first.or(Some(*disk).filter(|disk| can_be_root(disk)));
    }
    let lowest = || disks.values().copied().find(|disk| can_be_root(disk));
    let root = first.or_else(lowest).ok_or_else(|| {
        Error::new(
            ErrorKind::NotFound,
            format!(
                "{} has no root disk: no DISK of an image, CD-ROMs and swap apart",
                vm.id.vm_id()
            ),
        )
        .hint("add a DISK with a container image to the template")
    })?;
    if root.shared_read_only {
        return Err(invalid(format!("root disk {} is READONLY and no copy of its image", root.id))
            .hint("guests write to their root disk: use an image that is not read-only"));
    }
    Ok(root)
}

/// Notes about everything outside the spec.
fn remark(vm: &DriverVm, root: &Disk, notes: &mut Notes) {
    for disk in vm.disks.iter().filter(|disk| disk.id != root.id) {
        let id = disk.id;
        match disk.kind {
            DiskKind::Image | DiskKind::Volatile | DiskKind::Cdrom => {}
            DiskKind::Swap => {
                notes.add(format_args!("disk {id} is that much of the host's swap, no device"));
            }
            DiskKind::Filesystem => {
                notes.add(format_args!(
                    "disk {id} is a shared directory, which the guest does not get yet"
                ));
            }
        }
    }
    if vm.raw {
        notes.add("RAW has no effect");
    }
}

#[cfg(test)]
mod tests;
