//! The root filesystem of a guest: shared layers below, a writable disk above. Its other disks: [`disks`].
//!
//! ```text
//!   layers (store)   ─ idmapped clones ─┐
//!                                       ├─ overlay ── R/vms/<id>/root
//!   disk image ─ loop ─ ext4 ─ R/vms/<id>/disk ─ idmapped clone ─┘  (upper/, work/)
//! ```
//!
//! [`HostStorage::create_disk`] makes the disk where the platform wants it, with a [`DiskManifest`]
//! beside it; [`Storage::ensure_root`] mounts it from spec and manifest alone.
//!
//! What can go wrong, and what is done:
//! * A crash anywhere. Until the disk is mounted, everything is a descriptor and goes with the
//!   process; the loop device clears itself. Afterwards there are at most the two mounts under
//!   `R/vms/<id>` (and the staging ones of older kernels) and `disk.json` beside them, from which
//!   [`Storage::drop_root`] clears all. The overlay's mount comes last: where it is, all is.
//! * The overlay silently comes up read-only: checked before it is attached.
//! * Two VMs on one disk: see [`claim`].
//! * The platform swaps the disk for a link or a crafted filesystem: see [`place`] and [`ext4`].
//! * Something keeps a mount or the device after unmounting: `drop_root` waits, then names it; the
//!   VM stays observable by its `disk.json` until the device is gone.
//!
//! Deliberately absent: quotas (the image's size is the limit, a directory has the platform's);
//! growing; discard of freed blocks; pinned mapping namespaces; SELinux labels.

mod claim;
mod disk;
mod disks;
mod ext4;
mod fsctx;
mod idmap;
mod layer;
mod loopdev;
mod manifest;
mod mounts;
mod overlay;
mod place;
mod sys;
#[cfg(test)]
mod tests;
mod traffic;
mod upper;

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ids::{IdRange, VmId};
use ocivisor_core::ports::{BlockDevice, GivenDisk, Storage};
use ocivisor_core::spec::VmSpec;
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, StatVfsMountFlags, chmodat, fstat, fstatvfs, major, minor, syncfs,
};

pub use self::disk::{MIN_DISK_SIZE, NewDisk};
pub(crate) use self::disks::given;
pub use self::disks::{Checks, DiskServer, ForGuest, TenantFilesystems};
pub use self::layer::Layers;
pub use self::manifest::{DiskBackend, DiskConfig, DiskImage, DiskManifest};
pub use self::traffic::{DeviceTraffic, DiskMeter, DiskTraffic};
pub use self::upper::Upper;

use self::claim::Attachment;
use self::idmap::{IdMap, clone_tree};
use self::loopdev::{Backing, FileId};
use self::overlay::{Parts, Way};
use self::place::Place;
use crate::cgroup::HostCgroups;
use crate::fs::{ensure_dir, io_error};
use crate::labels::Labels;
use crate::layout::Layout;

/// How long `drop_root` waits for whoever still uses a mount or the loop device.
const PATIENCE: Duration = Duration::from_secs(5);

/// Opens a disk for reading, a file or a block device, by a path that was resolved before: no link of it is followed,
/// for the directory may be a platform's user's.
///
/// # Errors
/// `NotFound`: there is none. `Invalid`: it is something else.
pub fn open_to_read(path: &Path) -> Result<fs::File> {
    Place::of(path)?.open_to_read()
}

/// Root filesystems on this host.
pub struct HostStorage {
    layout: Layout,
    layers: Box<dyn Layers>,
    labels: Labels,
    tenants: TenantFilesystems,
    turns: disks::Turns,
    /// Whose memory and processors a check of a VM's disks uses, and where servers of disks live.
    cgroups: Option<HostCgroups>,
    /// Chosen by a test; else the kernel's best.
    way: Option<Way>,
}

impl std::fmt::Debug for HostStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostStorage").field("layout", &self.layout).finish_non_exhaustive()
    }
}

/// Paths of one VM, as mountinfo shows them.
#[derive(Debug)]
struct VmPlaces {
    dir: PathBuf,
    root: PathBuf,
    disk: PathBuf,
    staging: PathBuf,
    record: PathBuf,
}

impl VmPlaces {
    /// What is mounted on top first.
    fn mount_points(&self) -> [&Path; 3] {
        [&self.root, &self.staging, &self.disk]
    }
}

impl HostStorage {
    /// Storage below these directories, with layers where `layers` says.
    #[must_use]
    pub fn new(layout: Layout, layers: impl Layers + 'static, labels: Labels) -> Self {
        Self {
            layout,
            layers: Box::new(layers),
            labels,
            tenants: TenantFilesystems::default(),
            turns: disks::Turns::default(),
            cgroups: None,
            way: None,
        }
    }

    /// The same with another policy for filesystems that tenants made.
    #[must_use]
    pub fn with_tenant_filesystems(self, tenants: TenantFilesystems) -> Self {
        Self { tenants, ..self }
    }

    /// The same with these bounds on checks, each of them in the control group of the guest whose disk it is, and with
    /// disks that are served.
    #[must_use]
    pub fn with_checks(self, checks: Checks, cgroups: HostCgroups) -> Self {
        Self { turns: disks::Turns::new(checks), cgroups: Some(cgroups), ..self }
    }

    fn places(&self, id: &VmId) -> VmPlaces {
        // mountinfo shows no symbolic links (/var/run), so ours must not have any.
        let run = fs::canonicalize(&self.layout.run).unwrap_or_else(|_| self.layout.run.clone());
        let vm = Layout { run, ..self.layout.clone() }.run_vm(id);
        VmPlaces {
            dir: vm.dir().to_owned(),
            root: vm.root(),
            disk: vm.disk(),
            staging: vm.dir().join("lower"),
            record: vm.dir().join("disk.json"),
        }
    }

    fn vms_with_run_dir(&self) -> Vec<VmId> {
        let entries = fs::read_dir(self.layout.run_vms()).into_iter().flatten().flatten();
        entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
    }

    /// Whether the VM's root is mounted as it would be mounted now.
    fn is_whole(&self, places: &VmPlaces, manifest: &DiskManifest, want: &Wanted<'_>) -> bool {
        let once = |at: &Path| mounts::below(at).is_ok_and(|m| m.len() == 1 && m[0].point == at);
        let Some(found) = Attachment::load(places) else {
            return false;
        };
        found.path == want.disk
            && found.id_base == want.ids.base
            && found.layers == manifest.layers
            && fs::symlink_metadata(want.disk).is_ok_and(|m| FileId::of(&m) == found.disk)
            && found.holds(places)
            && once(&places.root)
            && once(&places.disk)
            && open_dir(&places.root).is_ok_and(|root| check(&root, want).is_ok())
    }

    fn build(&self, places: &VmPlaces, manifest: &DiskManifest, want: &Wanted<'_>) -> Result<()> {
        let layers = layer::find_all(&*self.layers, manifest, want.disk)?;
        let label = self.labels.files(want.ids)?;
        let claim = claim::disk(self, &Place::of(want.disk)?, manifest)?;
        let failed = |what: &str, e| io_error(what, want.disk, &e);
        ensure_dir(&places.dir, false)?;
        let mut attachment = Attachment {
            path: want.disk.to_owned(),
            disk: claim.id,
            loop_number: None,
            id_base: want.ids.base,
            layers: manifest.layers.clone(),
            counted: DiskTraffic::default(),
        };
        // Bound until the mount holds it.
        let device;
        let tree = match manifest.backend {
            DiskBackend::Ext4Image => {
                ext4::verify(&claim.file, want.disk)?;
                device = loopdev::attach(&claim.file, want.disk)?;
                attachment.loop_number = Some(device.number);
                attachment.counted = traffic::of_loop(device.number);
                attachment.save(places)?;
                ext4::mount(&device, want.disk, label.as_deref())?
            }
            DiskBackend::Directory => {
                attachment.save(places)?;
                clone_tree(&claim.file).map_err(|e| failed("mount disk", e))?
            }
        };
        overlay::attach(&tree, &places.disk).map_err(|e| failed("mount disk", e))?;
        if let Err(e) = overlay::check_disk(&tree) {
            let what = format!("disk {} is damaged inside: {e}", want.disk.display());
            return Err(Error::new(ErrorKind::Integrity, what));
        }
        let root = self.overlay(places, &layers, tree, want, label.as_deref())?;
        check(&root, want)?;
        overlay::attach(&root, &places.root).map_err(|e| failed("mount root on disk", e))
    }

    /// The overlay, attached nowhere.
    fn overlay(
        &self,
        places: &VmPlaces,
        layers: &[PathBuf],
        disk: OwnedFd,
        want: &Wanted<'_>,
        label: Option<&str>,
    ) -> Result<OwnedFd> {
        let shift = |what: &str, e: std::io::Error| match e.raw_os_error() {
            // The filesystem has no FS_ALLOW_IDMAP.
            Some(libc::EINVAL) => {
                let what = format!(
                    "filesystem of the {what} of {} cannot be mounted with shifted ids",
                    want.disk.display()
                );
                Error::new(ErrorKind::Unsupported, what)
                    .hint("keep it on ext4, xfs, btrfs or another filesystem with idmapped mounts")
            }
            _ => io_error(&format!("shift ids of {what} of disk"), want.disk, &e),
        };
        let map = IdMap::for_layers(want.ids)?;
        let mut layers = layers.iter().map(|path| {
            let flags = libc::MOUNT_ATTR_RDONLY;
            map.apply(layer::open(path)?, flags).map_err(|e| shift("layers", e))
        });
        let parts = Parts {
            layers: &mut layers,
            disk: IdMap::for_disk(want.ids)?.apply(disk, 0).map_err(|e| shift("disk", e))?,
            path: want.disk,
            label,
        };
        overlay::make(self.way.unwrap_or_else(Way::probe), parts, &places.staging)
    }
}

/// What is to be mounted.
#[derive(Debug)]
struct Wanted<'a> {
    disk: &'a Path,
    ids: IdRange,
}

impl Storage for HostStorage {
    fn ensure_root(&self, spec: &VmSpec, ids: IdRange) -> Result<Option<BlockDevice>> {
        let places = self.places(&spec.id);
        let want = Wanted { disk: &spec.root.path, ids };
        let manifest = DiskManifest::read(want.disk)?;
        if self.is_whole(&places, &manifest, &want) {
            return device(&places, &manifest);
        }
        let built = tear_down(&places).and_then(|()| self.build(&places, &manifest, &want));
        built.and_then(|()| device(&places, &manifest)).map_err(|error| match tear_down(&places) {
            Ok(()) => error,
            Err(left) => error.hint(format!("and clearing up failed: {left}")),
        })
    }

    fn drop_root(&self, id: &VmId) -> Result<()> {
        tear_down(&self.places(id))
    }

    fn ensure_disks(
        &self,
        spec: &VmSpec,
        ids: IdRange,
        give_up: &dyn Fn() -> bool,
    ) -> Result<Vec<GivenDisk>> {
        self.attach_disks(spec, ids, give_up)
    }

    fn drop_disks(&self, id: &VmId) -> Result<()> {
        self.detach_disks(id)
    }

    fn observe_roots(&self) -> Result<BTreeSet<VmId>> {
        let mut found = BTreeSet::new();
        let Ok(run_vms) = fs::canonicalize(self.layout.run_vms()) else {
            return Ok(found);
        };
        for mount in mounts::below(&run_vms)? {
            let mut parts = mount.point.strip_prefix(&run_vms).unwrap_or(&mount.point).components();
            let id = parts.next().and_then(|c| c.as_os_str().to_str()?.parse::<VmId>().ok());
            let Some(id) = id else { continue };
            let places = self.places(&id);
            let disks = disks::Places::of(&places.dir);
            let of_disks = [disks.mounts.as_path(), &disks.nodes];
            let mut ours = places.mount_points().into_iter().chain(of_disks);
            if ours.any(|p| mount.point.starts_with(p)) {
                found.insert(id);
            }
        }
        if let Some(cgroups) = &self.cgroups {
            found.extend(cgroups.observe_disk_servers()?);
        }
        found.extend(self.vms_with_run_dir().into_iter().filter(|id| {
            let places = self.places(id);
            Attachment::load(&places).is_some_and(|a| a.holds(&places)) || self.has_disks(id)
        }));
        Ok(found)
    }
}

/// Unmounts all of a VM and waits until its loop devices are gone.
fn tear_down(places: &VmPlaces) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let disks = mounts::below(&places.disk)?;
    let mut devices: Vec<(u32, Option<FileId>)> = disks.iter().filter_map(loop_below).collect();
    let attachment = Attachment::load(places);
    devices.extend(attachment.as_ref().and_then(|a| Some((a.loop_number?, Some(a.disk)))));
    mounts::unmount_below(&places.root, deadline)?;
    mounts::unmount_below(&places.staging, deadline)?;
    // An error of writing back is seen here; unmounting would swallow it.
    let synced = match disks.last() {
        Some(disk) => open_dir(&disk.point).and_then(|dir| {
            syncfs(dir).map_err(|e| io_error("write back disk mounted at", &disk.point, &e.into()))
        }),
        None => Ok(()),
    };
    mounts::unmount_below(&places.disk, deadline)?;
    for (number, file) in devices {
        let device = PathBuf::from(format!("/dev/loop{number}"));
        let may_have = || match file {
            Some(file) => loopdev::may_have(number, file),
            None => loopdev::is_bound(number),
        };
        let gone = mounts::until(deadline, || Ok(!may_have()));
        if !gone.map_err(|e| io_error("detach", &device, &e))? {
            let path = attachment.as_ref().map_or(&places.disk, |a| &a.path);
            let what = format!("disk {} (loop{number})", path.display());
            return Err(mounts::busy(&what, &places.disk, Some(&format!("7:{number}"))));
        }
    }
    Attachment::forget(places)?;
    for dir in places.mount_points() {
        mounts::remove_mount_points(dir).map_err(|e| io_error("remove", dir, &e))?;
    }
    // What is left belongs to others.
    let _ = fs::remove_dir(&places.dir);
    synced
}

/// The device of a mounted disk; a directory has none of its own.
fn device(places: &VmPlaces, manifest: &DiskManifest) -> Result<Option<BlockDevice>> {
    match manifest.backend {
        DiskBackend::Ext4Image => {
            let meta = fs::metadata(&places.disk);
            let number = meta.map_err(|e| io_error("look at", &places.disk, &e))?.dev();
            Ok(Some(BlockDevice { major: major(number), minor: minor(number) }))
        }
        DiskBackend::Directory => Ok(None),
    }
}

/// The loop device below a mount (major number 7), and what it is bound to, if that can be told.
fn loop_below(mount: &mounts::Mount) -> Option<(u32, Option<FileId>)> {
    let number = mount.device.strip_prefix("7:")?.parse().ok()?;
    match loopdev::backing(number) {
        Ok(Backing::File(file)) => Some((number, Some(file))),
        Ok(Backing::Clearing | Backing::Nothing) => None,
        Err(_) => Some((number, None)),
    }
}

fn open_dir(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty())
        .map_err(|e| io_error("open", path, &e.into()))
}

/// Checks that a root is writable and shows ids of the range. Overlayfs mounts read-only, without
/// an error, when it cannot use its work directory.
fn check(root: &OwnedFd, want: &Wanted<'_>) -> Result<()> {
    let failed = |e: rustix::io::Errno| io_error("check root on disk", want.disk, &e.into());
    let disk = want.disk.display();
    let flags = fstatvfs(root).map_err(failed)?.f_flag;
    if flags.contains(StatVfsMountFlags::RDONLY) {
        let what = format!("root on disk {disk} came up read-only");
        return Err(Error::new(ErrorKind::Host, what).hint("see dmesg for what overlayfs says"));
    }
    let stat = fstat(root).map_err(failed)?;
    let range = want.ids.base..want.ids.base + IdRange::LEN;
    if !range.contains(&stat.st_uid) || !range.contains(&stat.st_gid) {
        let what = format!(
            "root on disk {disk} belongs to {}:{}, not to an id of {}",
            stat.st_uid, stat.st_gid, want.ids
        );
        return Err(Error::new(ErrorKind::Integrity, what));
    }
    // A write that changes nothing, through all layers down to the image.
    let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
    chmodat(root.as_fd(), ".", mode, AtFlags::empty()).map_err(failed)
}
