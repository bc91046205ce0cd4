//! Data disks on real devices and filesystems.

mod qcow2;
mod volumes;

use std::fs::File;
use std::os::unix::fs::FileTypeExt;

use ocivisor_core::error::ErrorKind;
use ocivisor_core::ports::GivenDisk;
use ocivisor_core::spec::{DataDisk, DiskFormat, Filesystem, View};

use super::super::disks::{ForGuest, TenantFilesystems, given};
use super::super::loopdev;
use super::*;
use crate::command::run;

pub(super) const LONG: Duration = Duration::from_secs(30);

pub(super) fn ground() -> Ground {
    Ground::new(DiskBackend::Ext4Image, Way::probe())
}

pub(super) fn at(path: &str) -> View {
    View::Mount(path.into())
}

pub(super) fn device(name: &str) -> View {
    View::Device(name.parse().unwrap())
}

pub(super) fn either(path: &str, name: &str) -> View {
    View::Either(path.into(), name.parse().unwrap())
}

impl Ground {
    /// A file of holes.
    pub(super) fn file(&self, name: &str, mib: u64) -> PathBuf {
        let path = self.disk(name);
        File::create(&path).unwrap().set_len(mib << 20).unwrap();
        path
    }

    /// A file with a filesystem in it, of these options of mkfs.
    pub(super) fn formatted(&self, name: &str, mib: u64, mkfs: &[&str]) -> PathBuf {
        let path = self.file(name, mib);
        run(&[mkfs, &[path.to_str().unwrap()]].concat(), LONG).unwrap();
        path
    }

    pub(super) fn attach(&self, vm: &VmSpec) -> Result<Vec<GivenDisk>> {
        let given = self.storage.ensure_disks(vm, IDS, &|| false)?;
        let open = fs::Permissions::from_mode(0o711);
        fs::set_permissions(self.storage.places(&vm.id).dir, open).unwrap();
        Ok(given)
    }

    pub(super) fn for_guest(&self, vm: &VmSpec) -> Vec<ForGuest> {
        given(&self.storage.layout.run_vm(&vm.id))
    }

    pub(super) fn detach(&self, vm: &VmSpec) {
        self.storage.drop_disks(&vm.id).unwrap();
        assert!(!self.storage.observe_roots().unwrap().contains(&vm.id));
        // One of a test beside may go between two looks.
        let none = || Ok(holders().is_empty());
        assert!(mounts::until(Instant::now() + LONG, none).unwrap(), "{:?}", holders());
    }
}

pub(super) const MKFS: [&str; 3] = ["mkfs.ext4", "-q", "-F"];

pub(super) fn disk(number: u32, path: &Path, view: View) -> DataDisk {
    let io = IoLimits::default();
    let format = DiskFormat::Raw;
    let (path, backing) = (path.to_owned(), Vec::new());
    DataDisk { number, path, format, backing, read_only: false, io, view, make: None }
}

pub(super) fn only_read(disk: DataDisk) -> DataDisk {
    DataDisk { read_only: true, ..disk }
}

pub(super) fn vm(name: &str, disks: &[DataDisk]) -> VmSpec {
    VmSpec { disks: disks.to_vec(), ..spec(name, Path::new("/nowhere")) }
}

/// Loop devices that hold others and have lost them; those of tests that run beside hold theirs.
fn holders() -> Vec<u32> {
    let lost = |(_, bound): &(u32, loopdev::Bound)| {
        bound.name().starts_with(b"ocivisor holds")
            && rustix::fs::major(bound.over) == 7
            && loopdev::look(rustix::fs::minor(bound.over)).unwrap().is_none()
    };
    loopdev::all().unwrap().into_iter().filter(lost).map(|(number, _)| number).collect()
}

pub(super) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_filesystem_is_mounted_for_the_guests_ids_and_keeps_what_is_written() {
    let ground = ground();
    let path = ground.formatted(
        "data",
        32,
        &[&MKFS[..], &["-b", "1024", "-E", "root_owner=1000:1000"]].concat(),
    );
    let vm = vm("vm-1", &[disk(3, &path, either("/srv/data", "vdb"))]);
    for turn in 0..2 {
        let got = ground.attach(&vm).unwrap();
        assert_eq!((got.len(), got[0].number, got[0].device.major), (1, 3, 7));
        assert_eq!(got[0].note, None);
        let shown = ground.for_guest(&vm);
        assert_eq!((shown.len(), shown[0].at.as_path()), (1, Path::new("/srv/data")));
        assert_eq!((shown[0].read_only, shown[0].device), (false, None));
        let mounted = shown[0].source.clone();
        assert_eq!(owner(&mounted), (IDS.base + 1000, IDS.base + 1000));
        let flags = rustix::fs::statvfs(&mounted).unwrap().f_flag;
        use rustix::fs::StatVfsMountFlags as Flags;
        assert!(flags.contains(Flags::NODEV | Flags::NOSUID) && !flags.contains(Flags::RDONLY));
        // The same again is the same; a reboot of the guest asks so.
        assert_eq!(ground.attach(&vm).unwrap(), got);
        assert!(ground.storage.observe_roots().unwrap().contains(&vm.id));
        if turn == 0 {
            ground.as_guest(1000, &["cp", "/etc/hostname", text(&mounted.join("kept"))]).unwrap();
            assert_eq!(owner(&mounted.join("kept")), (IDS.base + 1000, IDS.base + 1000));
        } else {
            assert!(mounted.join("kept").exists());
        }
        ground.detach(&vm);
        ground.detach(&vm);
        ground.assert_clean();
        run(&["e2fsck", "-f", "-n", text(&path)], LONG).unwrap();
    }
}

#[test]
fn a_device_belongs_to_the_guests_root_and_survives_being_told_to_unbind() {
    let ground = ground();
    let path = ground.file("raw", 4);
    let vm = vm("vm-1", &[disk(1, &path, device("vdb"))]);
    let got = ground.attach(&vm).unwrap();
    let shown = ground.for_guest(&vm);
    assert_eq!(shown[0].at, Path::new("/dev/vdb"));
    assert_eq!(shown[0].device, Some(got[0].device));
    let node = shown[0].source.clone();
    assert!(fs::metadata(&node).unwrap().file_type().is_block_device());
    assert_eq!(owner(&node), (IDS.base, IDS.base));
    assert_eq!(fs::metadata(&node).unwrap().mode() & 0o777, 0o600);
    ground
        .as_guest(0, &["dd", "if=/etc/hostname", &format!("of={}", text(&node)), "status=none"])
        .unwrap();
    assert!(ground.as_guest(1000, &["head", "-c1", text(&node)]).is_err());
    // What a guest could do that may call anything.
    let open = File::options().read(true).write(true).open(&node).unwrap();
    loopdev::clear(got[0].device.minor).unwrap();
    drop(open);
    assert_eq!(ground.attach(&vm).unwrap(), got, "still bound, still ours");
    assert_eq!(ground.leftovers().len(), 2, "{:?}", ground.leftovers());
    ground.detach(&vm);
    ground.assert_clean();
    let name = fs::read("/etc/hostname").unwrap();
    assert_eq!(fs::read(&path).unwrap()[..name.len()], name);
}

#[test]
fn after_a_crash_of_the_daemon_all_is_found_again() {
    let ground = ground();
    let (a, b) = (ground.formatted("a", 16, &MKFS), ground.file("b", 4));
    let vm = vm("vm-1", &[disk(1, &a, at("/a")), disk(2, &b, device("vdb"))]);
    let got = ground.attach(&vm).unwrap();
    let again = storage_in(ground.dir.path(), Way::probe());
    assert_eq!(again.ensure_disks(&vm, IDS, &|| false).unwrap(), got);
    assert!(again.observe_roots().unwrap().contains(&vm.id));
    again.drop_disks(&vm.id).unwrap();
    ground.assert_clean();
    // Cut off in the middle: the record is there, some of the rest, in any order.
    for gone in ["nodes", "disks/1"] {
        ground.attach(&vm).unwrap();
        let dir = ground.storage.places(&vm.id).dir;
        unmount(dir.join(gone), UnmountFlags::DETACH).unwrap();
        assert_eq!(ground.attach(&vm).unwrap().len(), 2, "{gone}");
        ground.detach(&vm);
        ground.assert_clean();
    }
}

#[test]
fn one_vm_writes_a_disk_or_several_read_it() {
    let ground = ground();
    let path = ground.formatted("data", 16, &MKFS);
    let writes = |name: &str, view: View| vm(name, &[disk(1, &path, view)]);
    let reads = |name: &str, view: View| vm(name, &[only_read(disk(1, &path, view))]);
    let conflict = |vm: &VmSpec| {
        let error = ground.attach(vm).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Conflict, "{error}");
        assert!(
            error.message.starts_with(&format!("data disk 1 ({}) is in use by", path.display()))
        );
    };
    for view in [at("/a"), device("vdb")] {
        let one = writes("vm-1", view.clone());
        ground.attach(&one).unwrap();
        conflict(&writes("vm-2", at("/a")));
        conflict(&reads("vm-2", device("vdb")));
        ground.detach(&one);
        let (one, two) = (reads("vm-1", view.clone()), reads("vm-2", at("/b")));
        let (first, second) = (ground.attach(&one).unwrap(), ground.attach(&two).unwrap());
        assert_ne!(first[0].device, second[0].device);
        conflict(&writes("vm-3", device("vdb")));
        let shown = ground.for_guest(&two);
        assert!(shown[0].read_only);
        let new = shown[0].source.join("new");
        assert_eq!(File::create(&new).unwrap_err().raw_os_error(), Some(libc::EROFS));
        ground.detach(&one);
        ground.detach(&two);
    }
    // Nor is it the root disk of another.
    let root = ground.vm("root");
    ground.ensure(&root).unwrap();
    let error = ground.attach(&vm("vm-1", &[disk(1, &root.root.path, device("vdb"))])).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Conflict);
    ground.storage.drop_root(&root.id).unwrap();
    ground.assert_clean();
}

#[test]
fn a_device_that_is_only_read_cannot_be_written() {
    let ground = ground();
    let path = ground.file("cd", 4);
    let vm = vm("vm-1", &[only_read(disk(1, &path, device("hda")))]);
    ground.attach(&vm).unwrap();
    let node = ground.for_guest(&vm)[0].source.clone();
    ground.as_guest(0, &["head", "-c1", text(&node)]).unwrap();
    let write =
        ground.as_guest(0, &["dd", "if=/dev/zero", &format!("of={}", text(&node)), "count=1"]);
    assert!(write.is_err());
    ground.detach(&vm);
    ground.assert_clean();
}

#[test]
fn empty_disks_are_formatted_once_and_only_on_request() {
    let ground = ground();
    for (make, mib) in [(Filesystem::Ext4, 16), (Filesystem::Xfs, 320)] {
        let path = ground.file(make.name(), mib);
        let plain = disk(1, &path, at("/data"));
        let error = ground.attach(&vm("vm-1", std::slice::from_ref(&plain))).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        let want = format!(
            "data disk 1 ({}) cannot be mounted at /data: it holds nothing",
            path.display()
        );
        assert_eq!(error.message, want);
        let vm = vm("vm-1", &[DataDisk { make: Some(make), ..plain }]);
        ground.attach(&vm).unwrap();
        let mounted = ground.for_guest(&vm)[0].source.clone();
        assert_eq!(owner(&mounted), (IDS.base, IDS.base), "{make:?}");
        ground.as_guest(0, &["touch", text(&mounted.join("kept"))]).unwrap();
        ground.detach(&vm);
        ground.attach(&vm).unwrap();
        assert!(mounted.join("kept").exists(), "{make:?} is not formatted again");
        ground.detach(&vm);
        ground.assert_clean();
    }
    // What holds anything at all is left alone.
    let path = ground.file("odd", 16);
    let file = File::options().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"precious", 500_000).unwrap();
    let odd = DataDisk { make: Some(Filesystem::Ext4), ..disk(1, &path, at("/data")) };
    let error = ground.attach(&vm("vm-1", &[odd])).unwrap_err();
    assert!(error.message.ends_with("it holds nothing that is known"), "{error}");
    ground.assert_clean();
}

#[test]
fn a_damaged_filesystem_is_mended_if_that_is_harmless_and_else_refused() {
    use std::os::unix::fs::FileExt;
    let ground = ground();
    let path = ground.formatted("data", 16, &MKFS);
    let vm = vm("vm-1", &[disk(1, &path, either("/data", "vdb"))]);
    // A wrong count of free blocks.
    run(&["debugfs", "-w", "-R", "ssv free_blocks_count 7", text(&path)], LONG).unwrap();
    ground.attach(&vm).unwrap();
    ground.detach(&vm);
    run(&["e2fsck", "-f", "-n", text(&path)], LONG).unwrap();
    // The root directory is a device.
    run(&["debugfs", "-w", "-R", "sif <2> mode 060644", text(&path)], LONG).unwrap();
    let error = ground.attach(&vm).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Integrity);
    let want =
        format!("data disk 1 ({}) is not mounted: its filesystem ext4 is damaged", path.display());
    assert_eq!(error.message, want);
    // Options of its own, which no checker minds.
    let path = ground.formatted("options", 16, &MKFS);
    run(&["tune2fs", "-E", "mount_opts=nodelalloc", text(&path)], LONG).unwrap();
    let error =
        ground.attach(&super::disks::vm("vm-1", &[disk(1, &path, at("/data"))])).unwrap_err();
    assert!(error.message.ends_with("its filesystem brings mount options of its own"), "{error}");
    let path = ground.formatted("xfs", 320, &["mkfs.xfs", "-q"]);
    let vm = super::disks::vm("vm-1", &[disk(1, &path, at("/data"))]);
    ground.attach(&vm).unwrap();
    ground.detach(&vm);
    // The root inode of XFS is in the block of inode 128 or so: all inodes of the first chunk are overwritten.
    let file = File::options().write(true).read(true).open(&path).unwrap();
    file.write_all_at(&[0xa5; 64 << 10], 64 << 10).unwrap();
    let error = ground.attach(&vm).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Integrity, "{error}");
    assert!(error.message.ends_with("its filesystem xfs is damaged"), "{error}");
    ground.assert_clean();
}

#[test]
fn what_cannot_be_mounted_is_a_device_with_a_note_or_refused() {
    let mut ground = ground();
    let table = ground.file("table", 8);
    let mut mbr = vec![0; 512];
    mbr[510..].copy_from_slice(&[0x55, 0xaa]);
    let file = File::options().write(true).open(&table).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &mbr, 0).unwrap();
    let vm = |view: View| vm("vm-1", &[disk(1, &table, view)]);
    let got = ground.attach(&vm(either("/data", "vdb"))).unwrap();
    let want = format!(
        "data disk 1 ({}) holds a partition table and no filesystem of its own: the guest has it as block device \
         /dev/vdb",
        table.display()
    );
    assert_eq!(got[0].note.as_deref(), Some(&*want));
    assert_eq!(ground.for_guest(&vm(at("/x")))[0].at, Path::new("/dev/vdb"));
    ground.detach(&vm(at("/data")));
    assert_eq!(ground.attach(&vm(at("/data"))).unwrap_err().kind, ErrorKind::Invalid);
    // The host's policy.
    ground.storage.tenants = TenantFilesystems::Never;
    let data = ground.formatted("data", 16, &MKFS);
    let vm = |view: View| super::disks::vm("vm-1", &[disk(1, &data, view)]);
    assert_eq!(ground.attach(&vm(at("/data"))).unwrap_err().kind, ErrorKind::Permission);
    let got = ground.attach(&vm(either("/data", "vdb"))).unwrap();
    assert!(got[0].note.as_ref().unwrap().contains("which this host does not mount"));
    ground.detach(&vm(device("vdb")));
    ground.assert_clean();
}

#[test]
fn a_cd_is_mounted_unchecked_where_the_kernel_knows_them_and_a_device_elsewhere() {
    let mut ground = ground();
    let (tree, path) = (ground.dir.path().join("tree"), ground.disk("cd.iso"));
    fs::create_dir(&tree).unwrap();
    write(&tree.join("read.me"), "hello");
    run(&["genisoimage", "-quiet", "-R", "-o", text(&path), text(&tree)], LONG).unwrap();
    let vm = vm("vm-1", &[only_read(disk(1, &path, either("/media/cd", "hda")))]);
    let note = ground.attach(&vm).unwrap()[0].note.clone().unwrap();
    assert!(note.contains("a filesystem iso9660, which this host does not mount"), "{note}");
    ground.detach(&vm);
    ground.storage.tenants = TenantFilesystems::Unchecked;
    let got = ground.attach(&vm).unwrap();
    let source = ground.for_guest(&vm)[0].source.clone();
    match &got[0].note {
        None => assert_eq!(
            ground.as_guest(0, &["cat", text(&source.join("read.me"))]).unwrap(),
            "hello"
        ),
        Some(note) => {
            assert!(note.contains("iso9660, which this host's kernel does not know"), "{note}");
            assert_eq!(fs::read(&source).unwrap(), fs::read(&path).unwrap());
        }
    }
    ground.detach(&vm);
    ground.assert_clean();
}

#[test]
fn a_name_makes_no_holder() {
    let ground = ground();
    let (path, own) = (ground.file("raw", 4), ground.file("own", 4));
    let one = vm("vm-1", &[disk(1, &path, device("vdb"))]);
    ground.attach(&one).unwrap();
    // What a guest without the filter may call its own device.
    let of = fs::metadata(ground.storage.places(&one.id).dir).unwrap();
    let name = format!("ocivisor holds for {:x}:{:x}", of.dev(), of.ino());
    let names = |bound: &loopdev::Bound| bound.name() == name.as_bytes();
    assert_eq!(loopdev::all().unwrap().iter().filter(|(_, bound)| names(bound)).count(), 1);
    let file = File::options().read(true).write(true).open(&own).unwrap();
    let how = loopdev::Binding {
        sector: 512,
        read_only: false,
        name: name.as_bytes(),
        most: 0,
        stays: true,
    };
    let forged = loopdev::bind(&file, &own, how).unwrap();
    ground.detach(&one);
    assert!(loopdev::look(forged.number).unwrap().is_some(), "it is not let go of for the name");
    loopdev::clear(forged.number).unwrap();
    drop((forged, file));
    let far = Instant::now() + Duration::from_secs(10);
    assert!(mounts::until(far, || Ok(ground.leftovers().is_empty())).unwrap());
}

#[test]
fn links_and_other_things_are_no_disks() {
    let ground = ground();
    let target = ground.file("target", 4);
    let link = ground.disk("link");
    std::os::unix::fs::symlink(&target, &link).unwrap();
    let error = ground.attach(&vm("vm-1", &[disk(1, &link, device("vdb"))])).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
    let error =
        ground.attach(&vm("vm-1", &[disk(1, Path::new("/dev/null"), device("vdb"))])).unwrap_err();
    assert_eq!(error.message, "disk /dev/null is not a file or block device");
    let absent = ground.disk("absent");
    let error = ground.attach(&vm("vm-1", &[disk(1, &absent, device("vdb"))])).unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    // Nothing is left of those that were fine.
    let both = vm("vm-1", &[disk(1, &target, device("vdb")), disk(2, &absent, device("vdc"))]);
    ground.attach(&both).unwrap_err();
    // A child of a test beside that did not exec yet has a copy of the descriptor.
    let far = Instant::now() + Duration::from_secs(10);
    assert!(mounts::until(far, || Ok(ground.leftovers().is_empty())).unwrap());
    assert!(!ground.storage.places(&both.id).dir.exists());
}
