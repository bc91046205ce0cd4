//! Disks beside the root disk: found, claimed, checked, mounted or made a device.
//!
//! ```text
//!   file ─ loop ──┬─ filesystem ─ idmapped clone ─ R/vms/<id>/disks/<number>
//!   block device ─┘
//!              or └─ node ─ R/vms/<id>/nodes/<name>          held by a second loop device, see [`hold`]
//! ```
//!
//! The bundle of the guest binds what is there into the guest; see [`given`]. A disk is attached before the guest is made
//! and stays over its reboots.
//!
//! What can go wrong, and what is done:
//! * Hostile content. Nothing is parsed here but magic numbers ([`content`]). The host's kernel mounts only ext2, ext3,
//!   ext4, XFS and ISO 9660, where policy lets it, after a check by a tool that has no rights, `nosuid` and `nodev`
//!   ([`filesystem`]).
//! * Two VMs on one disk. A lock, shared among those who only read, lives in the open file that a loop device keeps, so
//!   exactly as long as the disk is attached; devices that others bound or claimed are looked for ([`claim`]).
//! * A guest that has a loop device as a node could unbind it, and its number would be that of another VM's disk a
//!   moment later: the second loop device keeps it bound, the filter of system calls refuses the calls.
//! * A crash anywhere. What is to be attached is in `disks.json` before anything outlives the process; everything is
//!   found again by that and by the VM's directories.
//!
//! Deliberately absent: btrfs, whose kernel driver joins filesystems of the same UUID, which copies of an image have;
//! partitions (they would have to be parsed by the kernel); growing; discard.

mod claim;
mod content;
mod detach;
mod filesystem;
mod hold;
mod make;
mod qcow2;
mod record;
mod tools;
mod turns;

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ids::{IdRange, VmId};
use ocivisor_core::ports::{BlockDevice, Cgroups as _, GivenDisk};
use ocivisor_core::spec::{DataDisk, DiskFormat, Filesystem, View, VmSpec};
use rustix::fs::{major, minor};

use self::claim::Claim;
use self::content::Content;
pub use self::qcow2::DiskServer;
use self::qcow2::Served;
use self::record::{Attached, Attachments, Shown};
use self::tools::Tools;
pub use self::turns::Checks;
use self::turns::Time;
pub(super) use self::turns::Turns;
use super::loopdev::{self, Binding, LoopDevice};
use super::traffic::{self, DiskMeter};
use super::{HostStorage, VmPlaces, mounts, overlay};
use crate::fs::{ensure_dir, io_error};
use crate::layout::VmRun;

/// What servers of disks have to write back what a failed attempt to attach them made of them, which no guest has seen.
const CLEARING: Duration = Duration::from_secs(30);
/// The same, where it was they who took too long, or nobody waits for it any more.
const CLEARING_SOON: Duration = Duration::from_secs(2);

/// Whether the host's kernel mounts filesystems that tenants made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TenantFilesystems {
    /// Never: guests get block devices.
    Never,
    /// After a check of all of it, each time a disk is attached.
    #[default]
    Checked,
    /// As they are.
    Unchecked,
}

/// A disk that is ready to be bound into the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForGuest {
    /// A directory or a device node of the host.
    pub source: PathBuf,
    /// Path in the guest.
    pub at: PathBuf,
    /// Whether the guest may only read it.
    pub read_only: bool,
    /// What it is to be allowed to open, if `source` is a node.
    pub device: Option<BlockDevice>,
}

/// Where the disks of a VM are on the host.
#[derive(Debug)]
pub(super) struct Places {
    /// Directory of mounts.
    pub(super) mounts: PathBuf,
    /// A filesystem of device nodes.
    pub(super) nodes: PathBuf,
    record: PathBuf,
}

impl Places {
    pub(super) fn of(vm: &Path) -> Self {
        Self { mounts: vm.join("disks"), nodes: vm.join("nodes"), record: vm.join("disks.json") }
    }

    /// Whether there may be anything of a VM's disks: the record is the first and the last.
    fn exist(&self) -> bool {
        [&self.record, &self.mounts, &self.nodes].iter().any(|path| path.exists())
    }
}

/// The disks that are attached for a guest which is to be made, those further up in its tree first.
pub(crate) fn given(run: &VmRun) -> Vec<ForGuest> {
    let places = Places::of(run.dir());
    let attached = Attachments::load(&places.record).map(|all| all.disks).unwrap_or_default();
    let for_guest = |disk: Attached| {
        let (source, at, device) = match disk.shown {
            Shown::Mount(ref at) => (places.mounts.join(disk.number.to_string()), at.clone(), None),
            Shown::Device(ref name) => {
                (places.nodes.join(name), Path::new("/dev").join(name), Some(disk.block_device()))
            }
        };
        ForGuest { source, at, read_only: disk.read_only, device }
    };
    let mut all: Vec<ForGuest> = attached.into_iter().map(for_guest).collect();
    all.sort_by_key(|disk| disk.at.components().count());
    all
}

impl HostStorage {
    /// Where the traffic of a VM's data disks is counted.
    pub(super) fn data_disk_meters(&self, id: &VmId) -> Vec<DiskMeter> {
        let places = Places::of(&self.places(id).dir);
        let attached = Attachments::load(&places.record).map(|all| all.disks).unwrap_or_default();
        attached.iter().map(Attached::meter).collect()
    }
}

/// A disk that was opened, and what becomes of it.
struct Ready<'a> {
    wish: &'a DataDisk,
    claim: Claim,
    served: Option<Served>,
    /// Bound until a mount or a second device holds it.
    looped: Option<LoopDevice>,
    shown: Shown,
    content: Content,
    note: Option<String>,
}

impl HostStorage {
    pub(super) fn attach_disks(
        &self,
        spec: &VmSpec,
        ids: IdRange,
        give_up: &dyn Fn() -> bool,
    ) -> Result<Vec<GivenDisk>> {
        let (id, wishes) = (&spec.id, &spec.disks[..]);
        let vm = self.places(id);
        let places = Places::of(&vm.dir);
        if let Some(found) = Attachments::load(&places.record)
            && found.id_base == ids.base
            && are_whole(&places, &found, wishes)
        {
            return Ok(found.disks.into_iter().map(Into::into).collect());
        }
        // Guests' unwritten data has the time that it needs, and not that of the checks.
        self.detach_disks(id)?;
        if wishes.is_empty() {
            return Ok(Vec::new());
        }
        let time = Time::new(self.turns.limit());
        let groups = self.cgroups.as_ref().map(|groups| groups.guest_procs(id));
        let memory = spec.resources.memory;
        let build = |give_up: &dyn Fn() -> bool| {
            let tools =
                Tools::new(&self.turns, &time, groups.unwrap_or_default(), memory, give_up)?;
            self.build_disks(id, &vm, &places, wishes, ids, &tools)
        };
        let built = if wishes.iter().any(|wish| wish.format == DiskFormat::Qcow2) {
            self.hurried(id, &time, give_up, build)
        } else {
            build(give_up)
        };
        built.map_err(|error| {
            let patience = match error.kind {
                ErrorKind::Timeout | ErrorKind::Cancelled => CLEARING_SOON,
                _ => CLEARING,
            };
            match self.detach_within(id, patience) {
                Ok(()) => error,
                Err(left) => error.hint(format!("and clearing up failed: {left}")),
            }
        })
    }

    fn build_disks(
        &self,
        id: &VmId,
        vm: &VmPlaces,
        places: &Places,
        wishes: &[DataDisk],
        ids: IdRange,
        tools: &Tools<'_>,
    ) -> Result<Vec<GivenDisk>> {
        let label = self.labels.files(ids)?;
        let served = wishes.iter().filter(|wish| wish.format == DiskFormat::Qcow2).count() as u64;
        let prepare = |wish| self.prepare(id, (wish, served), ids, tools);
        let ready = wishes.iter().map(prepare).collect::<Result<Vec<_>>>()?;
        let disks = ready.iter().map(Ready::record).collect::<Result<Vec<_>>>()?;
        let mut attachments = Attachments { id_base: ids.base, disks };
        ensure_dir(&vm.dir, false)?;
        attachments.save(&places.record)?;
        let nodes = ready.iter().any(|disk| matches!(disk.shown, Shown::Device(_)));
        let nodes = nodes.then(|| hold::nodes(label.as_deref())).transpose()?;
        for (index, disk) in ready.iter().enumerate() {
            disk.keep(vm, places, index, &mut attachments)?;
            let attached = &attachments.disks[index];
            match (&disk.shown, &nodes) {
                (Shown::Mount(_), _) => {
                    let tree = filesystem::mount(disk, &attached.node(), ids, label.as_deref())?;
                    ensure_dir(&places.mounts, false)?;
                    // Guests pass through.
                    let open = fs::Permissions::from_mode(0o711);
                    fs::set_permissions(&places.mounts, open)
                        .map_err(|e| io_error("open to guests", &places.mounts, &e))?;
                    let at = places.mounts.join(disk.wish.number.to_string());
                    overlay::attach(&tree, &at).map_err(|e| disk.wish.failed("mount", &e))?;
                }
                (Shown::Device(name), Some(nodes)) => {
                    hold::add_node(nodes, name, attached.block_device(), ids)
                        .map_err(|e| disk.wish.failed("make a node for", &e))?;
                }
                (Shown::Device(_), None) => {}
            }
        }
        if let Some(nodes) = nodes {
            overlay::attach(&nodes, &places.nodes)
                .map_err(|e| io_error("mount", &places.nodes, &e))?;
        }
        Ok(attachments.disks.into_iter().map(Into::into).collect())
    }

    /// Opens and claims a disk, sees what is in it and decides how the guest gets it. So many of its VM are served.
    fn prepare<'a>(
        &self,
        id: &VmId,
        (wish, served): (&'a DataDisk, u64),
        ids: IdRange,
        tools: &Tools<'_>,
    ) -> Result<Ready<'a>> {
        let claim = claim::open(wish, &|number| self.uses(number))?;
        let served = match wish.format {
            DiskFormat::Raw => None,
            DiskFormat::Qcow2 => {
                tools.go_on()?;
                Some(self.serve(id, (wish, served), &claim, ids)?)
            }
        };
        // Of a qcow2 file, what is in it.
        let file = served.as_ref().map_or(&claim.file, |served| &served.export);
        let looped = match claim.device {
            Some(_) => None,
            None => {
                let name = wish.path.as_os_str().as_encoded_bytes();
                // Tenants' filesystems and partition tables may count in 512 bytes.
                let how =
                    Binding { sector: 512, read_only: wish.read_only, name, most: 0, stays: false };
                Some(loopdev::bind(file, &wish.path, how)?)
            }
        };
        self.bound_traffic(id, wish, number_of(&claim, looped.as_ref()))?;
        // Where a guest writes a block device as it likes, some places that are empty do not prove that all of it is.
        let is_raw = match wish.view {
            View::Mount(_) => false,
            View::Either(..) => self.tenants == TenantFilesystems::Never,
            View::Device(_) => true,
        };
        let make = wish.make.filter(|_| claim.device.is_none() || !is_raw);
        let content = content_of(wish, make, (file, claim.device), looped.as_ref(), tools)?;
        let (shown, mut note) = show(wish, self.unmountable(content))?;
        if wish.make.is_some() && make.is_none() && content == Content::Empty {
            note = Some(format!(
                "{} is not formatted here, for the guest writes it as a block device",
                name(wish)
            ));
        }
        let mut ready = Ready { wish, claim, served, looped, shown, content, note };
        if matches!(ready.shown, Shown::Mount(_)) && self.tenants != TenantFilesystems::Never {
            filesystem::is_plain(&ready)?;
        }
        if matches!(ready.shown, Shown::Mount(_))
            && self.tenants == TenantFilesystems::Checked
            && let Some(why) = filesystem::check(&ready, tools)?
        {
            (ready.shown, ready.note) = show(wish, Some((ErrorKind::Unsupported, why.to_owned())))?;
        }
        Ok(ready)
    }

    /// Bounds what checks read and write, which are among the guest's processes, as what the guest will.
    fn bound_traffic(&self, id: &VmId, wish: &DataDisk, device: io::Result<u64>) -> Result<()> {
        let Some(groups) = &self.cgroups else { return Ok(()) };
        let device = device.map_err(|e| wish.failed("look at", &e))?;
        let device = BlockDevice { major: major(device), minor: minor(device) };
        groups.limit_disk(id, &format!("disks.{}", wish.number), Some(device), &wish.io)
    }

    /// Why a disk with this content is not mounted here: what it holds.
    fn unmountable(&self, content: Content) -> Option<(ErrorKind, String)> {
        let unchecked = self.tenants == TenantFilesystems::Unchecked;
        // Nothing checks a CD-ROM.
        let forbidden =
            self.tenants == TenantFilesystems::Never || (content == Content::Iso9660 && !unchecked);
        match content.filesystem() {
            None => Some((ErrorKind::Invalid, content.what().to_owned())),
            Some(name) if forbidden => {
                let why = format!("a filesystem {name}, which this host does not mount");
                Some((ErrorKind::Permission, why))
            }
            Some(name) if !filesystem::is_known(name) => {
                let why = format!("a filesystem {name}, which this host's kernel does not know");
                Some((ErrorKind::Unsupported, why))
            }
            Some(_) => None,
        }
    }
}

/// Whether these disks are attached as they would be attached now.
fn are_whole(places: &Places, found: &Attachments, wishes: &[DataDisk]) -> bool {
    let once = |at: &Path| mounts::below(at).is_ok_and(|m| m.len() == 1 && m[0].point == at);
    found.disks.len() == wishes.len()
        && found.disks.iter().zip(wishes).all(|(disk, wish)| {
            disk.is_of(wish)
                && disk.is_bound()
                && !disk.is_lost()
                && match &disk.shown {
                    Shown::Mount(_) => once(&places.mounts.join(disk.number.to_string())),
                    Shown::Device(name) => {
                        disk.is_held().unwrap_or(false) && places.nodes.join(name).exists()
                    }
                }
        })
}

/// What a disk holds, after a filesystem was made in it if one is to be and it was empty.
fn content_of(
    wish: &DataDisk,
    make: Option<Filesystem>,
    (file, device): (&fs::File, Option<u64>),
    looped: Option<&LoopDevice>,
    tools: &Tools<'_>,
) -> Result<Content> {
    let disk = looped.map_or(file, LoopDevice::file);
    let read = || Content::of(disk).map_err(|e| wish.failed("read", &e));
    let content = read()?;
    let Some(kind) = make else { return Ok(content) };
    let made = match content {
        Content::HalfMade => make::make(kind, disk, tools),
        Content::Empty => match make::is_empty(file, device.is_some(), tools) {
            Ok(true) => make::make(kind, disk, tools),
            Ok(false) => return Ok(Content::Unknown),
            Err(e) => Err(e),
        },
        _ => return Ok(content),
    };
    made.map_err(|e| e.context(name(wish)))?;
    read()
}

/// How the guest gets a disk, and what its owner should know of that; `why` it is not mounted is what it holds.
fn show(wish: &DataDisk, why: Option<(ErrorKind, String)>) -> Result<(Shown, Option<String>)> {
    match (&wish.view, why) {
        (View::Device(device), _) => Ok((Shown::Device(device.to_string()), None)),
        (View::Mount(at) | View::Either(at, _), None) => Ok((Shown::Mount(at.clone()), None)),
        (View::Either(_, device), Some((_, why))) => {
            let note = format!(
                "{} holds {why}: the guest has it as block device /dev/{device}",
                name(wish)
            );
            Ok((Shown::Device(device.to_string()), Some(note)))
        }
        (View::Mount(at), Some((kind, why))) => {
            let what =
                format!("{} cannot be mounted at {}: it holds {why}", name(wish), at.display());
            Err(Error::new(kind, what).hint("ask for it as a block device"))
        }
    }
}

impl Ready<'_> {
    fn record(&self) -> Result<Attached> {
        let device = self.number().map_err(|e| self.wish.failed("look at", &e))?;
        let server = self.served.as_ref().zip(self.looped.as_ref());
        let server = server.map(|(served, device)| served.record(device));
        Ok(Attached {
            number: self.wish.number,
            path: self.wish.path.clone(),
            file: self.claim.id,
            server: server.transpose().map_err(|e| self.wish.failed("look at", &e))?,
            read_only: self.wish.read_only,
            loop_number: self.looped.as_ref().map(|device| device.number),
            holder: None,
            device: (major(device), minor(device)),
            shown: self.shown.clone(),
            wish: record::asked(&self.wish.view),
            note: self.note.clone(),
            counted: traffic::of_device((major(device), minor(device))),
        })
    }

    /// Number of the device that has its content.
    fn number(&self) -> io::Result<u64> {
        number_of(&self.claim, self.looped.as_ref())
    }

    /// Its content.
    fn file(&self) -> &fs::File {
        self.looped.as_ref().map_or(&self.claim.file, LoopDevice::file)
    }

    /// Sees that the device stays bound, and locked, when this process is gone.
    fn keep(
        &self,
        vm: &VmPlaces,
        places: &Places,
        index: usize,
        attachments: &mut Attachments,
    ) -> Result<()> {
        let path = &self.wish.path;
        let file = match (&self.looped, &self.shown) {
            // The mount does that, but for a lock on the device itself.
            (Some(device), Shown::Mount(_)) if !device.locked => return Ok(()),
            (Some(device), _) => device.file(),
            (None, _) => &self.claim.file,
        };
        let mut numbers = loopdev::Free::new(path);
        while let Some(number) = numbers.next()? {
            attachments.disks[index].holder = Some(number);
            // Before the effect, so that it is found again.
            attachments.save(&places.record)?;
            if hold::hold(number, &vm.dir, file, path)? {
                return Ok(());
            }
        }
        Err(self.wish.failed("hold", &io::ErrorKind::ResourceBusy.into()))
    }
}

fn number_of(claim: &Claim, looped: Option<&LoopDevice>) -> io::Result<u64> {
    match looped {
        Some(device) => device.device(),
        None => claim.device.ok_or_else(|| io::ErrorKind::InvalidInput.into()),
    }
}

/// A disk in messages.
fn name(wish: &DataDisk) -> String {
    format!("data disk {} ({})", wish.number, wish.path.display())
}

trait Failed {
    fn failed(&self, what: &str, e: &std::io::Error) -> Error;
}

impl Failed for DataDisk {
    fn failed(&self, what: &str, e: &std::io::Error) -> Error {
        io_error(&format!("{what} data disk {}", self.number), &self.path, e)
    }
}
