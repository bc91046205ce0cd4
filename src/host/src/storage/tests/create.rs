//! Making and removing disks.

use ocivisor_core::error::ErrorKind;
use rustix::mount::{MountFlags, mount};

use super::super::{DiskManifest, MIN_DISK_SIZE};
use super::*;

#[test]
fn a_disk_is_sparse_private_and_described_by_its_manifest() {
    for (backend, way) in cases() {
        let ground = Ground::new(backend, way);
        chown(ground.dir.path().join("disks"), Some(123), Some(456)).unwrap();
        let disk = ground.disk("disk.0");
        let new = NewDisk { size: Bytes(SIZE.0 + 1), ..ground.new_disk() };
        let made = ground.storage.create_disk(&disk, &new).unwrap();
        assert_eq!(DiskManifest::read(&disk).unwrap(), made);
        assert_eq!(made.size_bytes, SIZE.0 + 4096);
        assert_eq!((made.layers, made.config), (new.layers, new.config));
        assert_eq!(names(disk.parent().unwrap()), ["disk.0", "disk.0.manifest.json"]);
        let meta = fs::metadata(&disk).unwrap();
        let manifest = fs::metadata(DiskManifest::path_of(&disk)).unwrap();
        assert_eq!((manifest.uid(), manifest.gid(), manifest.mode() & 0o777), (123, 456, 0o600));
        match backend {
            DiskBackend::Ext4Image => {
                assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o777), (123, 456, 0o600));
                assert_eq!(meta.len(), SIZE.0 + 4096);
                assert!(meta.blocks() * 512 < 1 << 20, "{} blocks", meta.blocks());
            }
            DiskBackend::Directory => {
                assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o777), (0, 0, 0o700));
                assert_eq!(names(&disk), ["upper", "work"]);
            }
        }
        ground.storage.drop_disk(&disk).unwrap();
        assert_eq!(names(disk.parent().unwrap()), Vec::<String>::new());
        ground.storage.drop_disk(&disk).unwrap();
        ground.storage.drop_disk(&ground.dir.path().join("no/such/disk")).unwrap();
    }
}

/// Also those that a tool without rights cannot look into.
#[test]
fn the_root_directory_is_as_the_top_layer_has_it() {
    for (mode, uid, gid) in
        [(0o755, 0, 0), (0o700, 0, 0), (0o1777, 1000, 1001), (0o2710, 7, 8), (0, 65_535, 0)]
    {
        let ground = Ground::new(DiskBackend::Ext4Image, Way::probe());
        let top = layers_in(ground.dir.path())(&digest(2));
        chown(&top, Some(uid), Some(gid)).unwrap();
        fs::set_permissions(&top, fs::Permissions::from_mode(mode)).unwrap();
        let vm = ground.vm("vm-1");
        ground.ensure(&vm).unwrap();
        let root = ground.root(&vm);
        assert_eq!(fs::metadata(&root).unwrap().mode() & 0o7777, mode);
        assert_eq!(owner(&root), (IDS.base + uid, IDS.base + gid));
        let upper = ground.storage.places(&vm.id).disk.join("upper");
        assert_eq!((owner(&upper), names(&upper)), ((uid, gid), Vec::new()));
        ground.storage.drop_root(&vm.id).unwrap();
        let check = ["e2fsck", "-f", "-n", vm.root.path.to_str().unwrap()];
        command::run(&check, Duration::from_secs(20)).unwrap();
    }
}

#[test]
fn the_same_request_finds_the_disk_and_another_one_is_refused() {
    for (backend, way) in cases() {
        let ground = Ground::new(backend, way);
        let vm = ground.vm("vm-1");
        let disk = &vm.root.path;
        ground.ensure(&vm).unwrap();
        write(&ground.root(&vm).join("etc/hostname"), "kept");
        // Also while it is in use.
        let before = fs::metadata(disk).unwrap().ino();
        ground.storage.create_disk(disk, &ground.new_disk()).unwrap();
        assert_eq!(fs::metadata(disk).unwrap().ino(), before);
        ground.storage.drop_root(&vm.id).unwrap();
        for other in [
            NewDisk { size: Bytes::mib(64), ..ground.new_disk() },
            NewDisk { layers: vec![digest(1)], ..ground.new_disk() },
        ] {
            let error = ground.storage.create_disk(disk, &other).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Conflict);
        }
        let foreign = ground.disk("foreign");
        write(&foreign, "precious");
        let error = ground.storage.create_disk(&foreign, &ground.new_disk()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Conflict);
        let error = ground.storage.drop_disk(&foreign).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Conflict);
        assert_eq!(fs::read_to_string(&foreign).unwrap(), "precious");
    }
}

#[test]
fn requests_at_the_same_time_make_one_disk() {
    for (backend, way) in cases() {
        let ground = Ground::new(backend, way);
        let disk = ground.disk("disk.0");
        let make = |size: Bytes| {
            let new = NewDisk { size, ..ground.new_disk() };
            ground.storage.create_disk(&disk, &new)
        };
        let results: Vec<_> = std::thread::scope(|scope| {
            let make = &make;
            let sizes = [48, 64, 48, 64, 48, 64].map(Bytes::mib);
            let threads = sizes.map(|size| scope.spawn(move || make(size)));
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        let manifest = DiskManifest::read(&disk).unwrap();
        for result in results {
            match result {
                Ok(made) => assert_eq!(made, manifest),
                Err(error) => assert_eq!(error.kind, ErrorKind::Conflict, "{error}"),
            }
        }
        let vm = spec("vm-1", &disk);
        ground.ensure(&vm).unwrap();
        ground.storage.drop_root(&vm.id).unwrap();
    }
}

#[test]
fn sizes_that_cannot_be_are_refused_by_name() {
    let ground = Ground::new(DiskBackend::Ext4Image, Way::probe());
    let disk = ground.disk("disk.0");
    for size in [Bytes(0), Bytes(MIN_DISK_SIZE.0 - 4096), Bytes(1 << 44), Bytes(u64::MAX)] {
        let error =
            ground.storage.create_disk(&disk, &NewDisk { size, ..ground.new_disk() }).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        let want = format!("disk size is {size}, must be 32 MiB to ");
        assert!(error.message.starts_with(&want), "{error}");
    }
    let smallest = NewDisk { size: MIN_DISK_SIZE, ..ground.new_disk() };
    ground.storage.create_disk(&disk, &smallest).unwrap();
    let vm = spec("vm-1", &disk);
    ground.ensure(&vm).unwrap();
    let free = rustix::fs::statvfs(ground.root(&vm)).unwrap();
    assert!(free.f_bavail * free.f_frsize > 24 << 20);
    ground.storage.drop_root(&vm.id).unwrap();
}

#[test]
fn without_room_nothing_is_left() {
    for (backend, way) in cases() {
        let ground = Ground::new(backend, way);
        let small = ground.disk("small");
        fs::create_dir(&small).unwrap();
        mount("tmpfs", &small, "tmpfs", MountFlags::empty(), c"size=16k,nr_inodes=3").unwrap();
        let error =
            ground.storage.create_disk(&small.join("disk.0"), &ground.new_disk()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Exhausted, "{error}");
        assert_eq!(names(&small), Vec::<String>::new());
        // Children of other tests that did not exec yet hold copies of our descriptors.
        let far = Instant::now() + Duration::from_secs(10);
        let gone = || Ok(unmount(&small, UnmountFlags::empty()).is_ok());
        assert!(mounts::until(far, gone).unwrap());
    }
}

#[test]
fn missing_layers_and_directories_are_named() {
    for (backend, way) in cases() {
        let ground = Ground::new(backend, way);
        let disk = ground.disk("disk.0");
        let new = NewDisk { layers: vec![digest(1), digest(7)], ..ground.new_disk() };
        let error = ground.storage.create_disk(&disk, &new).unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotFound);
        assert!(error.message.contains(&digest(7)), "{error}");
        assert_eq!(error.hint.as_deref(), Some("import image tests/base:1 again"));
        let nowhere = ground.dir.path().join("nowhere/disk.0");
        let error = ground.storage.create_disk(&nowhere, &ground.new_disk()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotFound);
        assert_eq!(names(disk.parent().unwrap()), Vec::<String>::new());
    }
}

#[test]
fn links_planted_in_the_disks_directory_lead_nowhere() {
    for (backend, way) in cases() {
        let ground = Ground::new(backend, way);
        let victim = ground.dir.path().join("victim");
        write(&victim, "precious");
        let disk = ground.disk("disk.0");
        for name in [".disk.0.new", "disk.0.manifest.json", ".disk.0.manifest.json.new"] {
            std::os::unix::fs::symlink(&victim, ground.disk(name)).unwrap();
        }
        ground.storage.create_disk(&disk, &ground.new_disk()).unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
        assert_eq!(names(disk.parent().unwrap()), ["disk.0", "disk.0.manifest.json"]);
        assert!(fs::symlink_metadata(DiskManifest::path_of(&disk)).unwrap().is_file());
    }
}
