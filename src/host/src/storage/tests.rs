//! On the real kernel, as root: what is mounted is looked at from outside and used as a guest would.

mod checks;
mod crash;
mod create;
mod disks;
mod hostile;
mod root;
pub(super) mod share;

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ocivisor_core::error::Result;
use ocivisor_core::ids::{DisplayName, Hostname, IdRange, VmId};
use ocivisor_core::ports::Storage;
use ocivisor_core::spec::{
    Boot, Context, InitKind, IoLimits, Isolation, Placement, Platform, Resources, RootDisk, Upkeep,
    VmSpec,
};
use ocivisor_core::units::{Bytes, CentiCores};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, mknodat, setxattr};
use rustix::mount::{UnmountFlags, unmount};
use tempfile::TempDir;

use super::idmap::IdMap;
use super::overlay::Way;
use super::{DiskBackend, DiskConfig, DiskImage, HostStorage, NewDisk, mounts};
use crate::command;
use crate::labels::Labels;
use crate::layout::Layout;

const IDS: IdRange = IdRange { base: 1_000_000 };
const SIZE: Bytes = Bytes::mib(48);

/// Every behaviour must be the same however the disk is kept and the overlay mounted.
const CASES: [(DiskBackend, Way); 4] = [
    (DiskBackend::Ext4Image, Way::Descriptors),
    (DiskBackend::Ext4Image, Way::Paths),
    (DiskBackend::Directory, Way::Descriptors),
    (DiskBackend::Directory, Way::Paths),
];

/// Those that this kernel can do.
fn cases() -> impl Iterator<Item = (DiskBackend, Way)> {
    let best = Way::probe();
    CASES.into_iter().filter(move |(_, way)| *way == best || *way == Way::Paths)
}

fn digest(n: usize) -> String {
    format!("sha256:{n:064x}")
}

fn write(path: &Path, text: &str) {
    crate::fs::replace(path, text.as_bytes()).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
}

/// Layers, a storage, and the promise that nothing of it stays mounted or attached.
struct Ground {
    dir: TempDir,
    storage: HostStorage,
    backend: DiskBackend,
}

impl Ground {
    fn new(backend: DiskBackend, way: Way) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Processes with a guest's ids walk through here.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let ground = Self { storage: storage_in(dir.path(), way), dir, backend };
        for name in ["run/vms", "disks", "layers"] {
            fs::create_dir_all(ground.dir.path().join(name)).unwrap();
        }
        ground.fill_bottom(&ground.add_layer(1));
        ground.fill_top(&ground.add_layer(2));
        ground
    }

    fn add_layer(&self, n: usize) -> PathBuf {
        let path = layers_in(self.dir.path())(&digest(n));
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn fill_bottom(&self, layer: &Path) {
        for dir in ["bin", "etc", "home/user", "hidden", "kept"] {
            fs::create_dir_all(layer.join(dir)).unwrap();
        }
        write(&layer.join("etc/hostname"), "bottom");
        write(&layer.join("gone"), "x");
        write(&layer.join("hidden/old"), "x");
        write(&layer.join("kept/old"), "old");
        write(&layer.join("home/user/file"), "mine");
        for path in ["home/user", "home/user/file"] {
            chown(layer.join(path), Some(1000), Some(1000)).unwrap();
        }
        let id = layer.join("bin/id");
        fs::copy("/usr/bin/id", &id).unwrap();
        fs::set_permissions(&id, fs::Permissions::from_mode(0o4755)).unwrap();
        let grep = layer.join("bin/grep");
        fs::copy("/usr/bin/grep", &grep).unwrap();
        // struct vfs_cap_data revision 2 with the effective bit: permitted CAP_NET_RAW (13).
        let capability = [0x0200_0001_u32, 1 << 13, 0, 0, 0].map(u32::to_le_bytes).concat();
        setxattr(&grep, "security.capability", &capability, XattrFlags::empty()).unwrap();
    }

    fn fill_top(&self, layer: &Path) {
        fs::set_permissions(layer, fs::Permissions::from_mode(0o751)).unwrap();
        for dir in ["hidden", "kept"] {
            fs::create_dir_all(layer.join(dir)).unwrap();
        }
        mknodat(CWD, layer.join("gone"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
        write(&layer.join("hidden/new"), "new");
        setxattr(layer.join("hidden"), "trusted.overlay.opaque", b"y", XattrFlags::empty())
            .unwrap();
        write(&layer.join("kept/new"), "new");
    }

    fn disk(&self, name: &str) -> PathBuf {
        self.dir.path().join("disks").join(name)
    }

    fn new_disk(&self) -> NewDisk {
        new_disk(self.backend)
    }

    /// A VM with a disk of its own.
    fn vm(&self, name: &str) -> VmSpec {
        let disk = self.disk(name);
        self.storage.create_disk(&disk, &self.new_disk()).unwrap();
        spec(name, &disk)
    }

    fn ensure(&self, vm: &VmSpec) -> Result<()> {
        self.storage.ensure_root(vm, IDS)?;
        // For processes with a guest's ids that come by path; a guest is born inside.
        let open = fs::Permissions::from_mode(0o711);
        fs::set_permissions(self.storage.places(&vm.id).dir, open).unwrap();
        Ok(())
    }

    fn root(&self, vm: &VmSpec) -> PathBuf {
        self.storage.places(&vm.id).root
    }

    /// Runs a program with the ids of the guest's user `uid`, in a user namespace like the guest's.
    fn as_guest(&self, uid: u32, argv: &[&str]) -> Result<String> {
        let map = IdMap::for_layers(IDS).unwrap();
        let ns = format!("--user=/proc/{}/fd/{}", std::process::id(), map.fd().as_raw_fd());
        let uid = uid.to_string();
        let mut all = vec!["nsenter", &ns, "--setuid", &uid, "--setgid", &uid, "--"];
        all.extend(argv);
        let out = command::run(&all, Duration::from_secs(20))?;
        Ok(String::from_utf8(out).unwrap().trim().to_owned())
    }

    /// Mounts below the ground, and loop devices with a file in it.
    fn leftovers(&self) -> Vec<String> {
        leftovers_in(self.dir.path())
    }

    fn assert_clean(&self) {
        assert_eq!(self.leftovers(), Vec::<String>::new());
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        for mount in mounts::below(self.dir.path()).unwrap().iter().rev() {
            let _ = unmount(&mount.point, UnmountFlags::DETACH);
        }
        let far = Instant::now() + Duration::from_secs(10);
        let clean = mounts::until(far, || Ok(self.leftovers().is_empty())).unwrap();
        if !clean && !std::thread::panicking() {
            panic!("left behind: {:?}", self.leftovers());
        }
    }
}

fn leftovers_in(dir: &Path) -> Vec<String> {
    let mut found: Vec<String> =
        mounts::below(dir).unwrap().iter().map(|m| m.point.display().to_string()).collect();
    for entry in fs::read_dir("/sys/block").unwrap().flatten() {
        if let Ok(file) = fs::read_to_string(entry.path().join("loop/backing_file"))
            && Path::new(&file).starts_with(dir)
        {
            found.push(format!("{}: {}", entry.file_name().display(), file.trim()));
        }
    }
    found
}

fn storage_in(dir: &Path, way: Way) -> HostStorage {
    let layout =
        Layout { state: dir.join("state"), run: dir.join("run"), cgroup_base: "unused".to_owned() };
    let mut storage = HostStorage::new(layout, layers_in(dir), Labels::none());
    storage.way = Some(way);
    storage
}

fn layers_in(dir: &Path) -> impl Fn(&str) -> PathBuf + Send + Sync + 'static {
    let dir = dir.join("layers");
    move |id: &str| dir.join(id).join("fs")
}

fn new_disk(backend: DiskBackend) -> NewDisk {
    NewDisk {
        backend,
        size: SIZE,
        image: DiskImage {
            reference: "tests/base:1".to_owned(),
            manifest_digest: digest(98),
            config_digest: digest(99),
        },
        layers: vec![digest(1), digest(2)],
        config: DiskConfig { cmd: vec!["/bin/id".to_owned()], ..DiskConfig::default() },
    }
}

fn spec(id: &str, disk: &Path) -> VmSpec {
    let id: VmId = id.parse().unwrap();
    VmSpec {
        name: id.as_str().parse::<DisplayName>().unwrap(),
        hostname: id.as_str().parse::<Hostname>().unwrap(),
        id,
        platform: Platform::Local,
        resources: Resources {
            cpu_share: CentiCores(100),
            vcpus: 1,
            cpu_quota: None,
            memory: Bytes::mib(64),
            swap: Bytes(0),
            pids: 64,
            io_weight: None,
            placement: Placement::default(),
            hugepages: Vec::new(),
        },
        boot: Boot { init: InitKind::Auto, ..Boot::default() },
        root: RootDisk { path: disk.to_owned(), io: IoLimits::default() },
        disks: Vec::new(),
        nics: Vec::new(),
        isolation: Isolation::Default,
        context: Context::default(),
        graphics: None,
        upkeep: Upkeep::default(),
    }
}

fn owner(path: &Path) -> (u32, u32) {
    let meta = fs::symlink_metadata(path).unwrap();
    (meta.uid(), meta.gid())
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().flatten();
    let mut names: Vec<String> = entries.map(|e| e.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
