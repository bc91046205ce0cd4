//! What a mounted root is like, and mounting and unmounting it again and again.

use std::collections::BTreeSet;

use ocivisor_core::error::ErrorKind;
use rustix::fs::StatVfsMountFlags;

use super::*;

#[test]
fn ids_are_shifted_outside_and_unshifted_on_the_disk() {
    for (backend, way) in cases() {
        let ground = Ground::new(backend, way);
        let vm = ground.vm("vm-1");
        ground.ensure(&vm).unwrap();
        let root = ground.root(&vm);
        assert_eq!(owner(&root), (IDS.base, IDS.base));
        assert_eq!(owner(&root.join("etc/hostname")), (IDS.base, IDS.base));
        assert_eq!(owner(&root.join("home/user/file")), (IDS.base + 1000, IDS.base + 1000));
        assert_eq!(fs::metadata(&root).unwrap().mode() & 0o7777, 0o751);

        let new = |path: &str| root.join(path).to_str().unwrap().to_owned();
        ground.as_guest(0, &["touch", &new("etc/new")]).unwrap();
        ground.as_guest(1000, &["touch", &new("home/user/new")]).unwrap();
        ground.as_guest(1000, &["touch", &new("etc/forbidden")]).unwrap_err();
        ground.as_guest(0, &["chown", "33:34", &new("etc/hostname")]).unwrap();
        ground.as_guest(0, &["rm", &new("kept/old")]).unwrap();
        assert_eq!(owner(&root.join("etc/hostname")), (IDS.base + 33, IDS.base + 34));

        let upper = ground.storage.places(&vm.id).disk.join("upper");
        assert_eq!(owner(&upper), (0, 0));
        assert_eq!(owner(&upper.join("etc/new")), (0, 0));
        assert_eq!(owner(&upper.join("home/user/new")), (1000, 1000));
        assert_eq!(owner(&upper.join("etc/hostname")), (33, 34));
        assert_eq!(fs::metadata(upper.join("kept/old")).unwrap().rdev(), 0);
        assert_eq!(fs::read_to_string(upper.join("etc/hostname")).unwrap(), "bottom");
        // The layer is as it was.
        let layer = layers_in(ground.dir.path())(&digest(1));
        assert_eq!(owner(&layer.join("etc/hostname")), (0, 0));
        assert_eq!(fs::read_to_string(layer.join("kept/old")).unwrap(), "old");
        ground.storage.drop_root(&vm.id).unwrap();
        ground.assert_clean();
    }
}

#[test]
fn whiteouts_and_opaque_directories_hide_what_is_below() {
    for (backend, way) in cases() {
        let ground = Ground::new(backend, way);
        let vm = ground.vm("vm-1");
        ground.ensure(&vm).unwrap();
        let root = ground.root(&vm);
        assert_eq!(names(&root), ["bin", "etc", "hidden", "home", "kept"]);
        assert_eq!(names(&root.join("hidden")), ["new"]);
        assert_eq!(names(&root.join("kept")), ["new", "old"]);
        ground.storage.drop_root(&vm.id).unwrap();
    }
}

#[test]
fn set_user_id_and_file_capabilities_work_within_the_guests_ids() {
    for (backend, way) in cases() {
        let ground = Ground::new(backend, way);
        let vm = ground.vm("vm-1");
        ground.ensure(&vm).unwrap();
        let root = ground.root(&vm);
        let program = |name: &str| root.join("bin").join(name).to_str().unwrap().to_owned();
        assert_eq!(ground.as_guest(1000, &["id", "-u"]).unwrap(), "1000");
        assert_eq!(ground.as_guest(1000, &[&program("id"), "-u"]).unwrap(), "0");
        let status = |grep: &str| {
            let line = ground.as_guest(1000, &[grep, "CapEff", "/proc/self/status"]).unwrap();
            line.split_whitespace().last().unwrap().to_owned()
        };
        assert_eq!(status("grep"), "0000000000000000");
        assert_eq!(status(&program("grep")), "0000000000002000");
        // Copied up to the disk, both are still there.
        ground.as_guest(0, &["touch", &program("id"), &program("grep")]).unwrap();
        assert_eq!(ground.as_guest(1000, &[&program("id"), "-u"]).unwrap(), "0");
        assert_eq!(status(&program("grep")), "0000000000002000");
        ground.storage.drop_root(&vm.id).unwrap();
    }
}

#[test]
fn device_nodes_of_an_image_are_dead() {
    for (backend, way) in cases() {
        let ground = Ground::new(backend, way);
        let null = rustix::fs::makedev(1, 3);
        let node = ground.add_layer(2).join("null");
        mknodat(CWD, &node, FileType::CharacterDevice, Mode::from_raw_mode(0o666), null).unwrap();
        let vm = ground.vm("vm-1");
        ground.ensure(&vm).unwrap();
        let opened = fs::File::open(ground.root(&vm).join("null")).unwrap_err();
        assert_eq!(opened.raw_os_error(), Some(libc::EACCES));
        let flags = rustix::fs::statvfs(ground.root(&vm)).unwrap().f_flag;
        assert!(flags.contains(StatVfsMountFlags::NODEV));
        assert!(!flags.intersects(StatVfsMountFlags::RDONLY | StatVfsMountFlags::NOSUID));
        ground.storage.drop_root(&vm.id).unwrap();
    }
}

#[test]
fn what_the_guest_wrote_is_there_after_unmounting_and_moving_the_disk() {
    for (backend, way) in cases() {
        let ground = Ground::new(backend, way);
        let mut vm = ground.vm("vm-1");
        ground.ensure(&vm).unwrap();
        write(&ground.root(&vm).join("etc/hostname"), "changed");
        ground.storage.drop_root(&vm.id).unwrap();
        ground.assert_clean();
        let moved = ground.disk("moved");
        for suffix in ["", ".manifest.json"] {
            let (from, to) = (ground.disk("vm-1"), moved.clone());
            let name = |p: PathBuf| PathBuf::from(format!("{}{suffix}", p.display()));
            rustix::fs::rename(name(from), name(to)).unwrap();
        }
        vm.root.path = moved;
        // Another range, as on another host.
        ground.storage.ensure_root(&vm, IdRange { base: 70_000_000 }).unwrap();
        let file = ground.root(&vm).join("etc/hostname");
        assert_eq!(fs::read_to_string(&file).unwrap(), "changed");
        assert_eq!(owner(&ground.root(&vm).join("home/user")), (70_001_000, 70_001_000));
        ground.storage.drop_root(&vm.id).unwrap();
    }
}

#[test]
fn an_image_ends_where_its_size_says_and_mounts_again_when_full() {
    for (backend, way) in cases().filter(|c| c.0 == DiskBackend::Ext4Image) {
        let ground = Ground::new(backend, way);
        let vm = ground.vm("vm-1");
        ground.ensure(&vm).unwrap();
        let root = ground.root(&vm);
        let size = rustix::fs::statvfs(&root).unwrap();
        let total = size.f_blocks * size.f_frsize;
        assert!((SIZE.0 * 7 / 8..SIZE.0).contains(&total), "{total}");
        let big = root.join("home/user/big");
        let of = format!("of={}", big.display());
        let dd = ["dd", "if=/dev/zero", &of, "bs=4k", "count=1000000"];
        ground.as_guest(1000, &dd).unwrap_err();
        let written = fs::metadata(&big).unwrap().len();
        assert!((SIZE.0 / 2..SIZE.0).contains(&written), "{written}");
        // To the last block, small files included.
        for n in 0.. {
            if let Err(e) = fs::create_dir(root.join(format!("home/user/d{n}"))) {
                assert_eq!(e.raw_os_error(), Some(libc::ENOSPC));
                break;
            }
        }
        ground.storage.drop_root(&vm.id).unwrap();
        ground.ensure(&vm).unwrap();
        assert_eq!(fs::metadata(&big).unwrap().len(), written);
        ground.as_guest(1000, &["rm", big.to_str().unwrap()]).unwrap();
        ground.as_guest(1000, &["cp", "/usr/bin/id", big.to_str().unwrap()]).unwrap();
        ground.storage.drop_root(&vm.id).unwrap();
    }
}

#[test]
fn vms_share_layers_and_nothing_else() {
    for (backend, way) in cases() {
        let ground = Ground::new(backend, way);
        let (a, b) = (ground.vm("vm-a"), ground.vm("vm-b"));
        ground.ensure(&a).unwrap();
        ground.storage.ensure_root(&b, IdRange { base: 2_000_000 }).unwrap();
        write(&ground.root(&a).join("etc/hostname"), "a");
        let seen = fs::read_to_string(ground.root(&b).join("etc/hostname")).unwrap();
        assert_eq!(seen, "bottom");
        assert_eq!(owner(&ground.root(&b).join("etc/hostname")), (2_000_000, 2_000_000));
        let both = BTreeSet::from([a.id.clone(), b.id.clone()]);
        assert_eq!(ground.storage.observe_roots().unwrap(), both);
        ground.storage.drop_root(&a.id).unwrap();
        assert_eq!(ground.storage.observe_roots().unwrap(), BTreeSet::from([b.id.clone()]));
        ground.storage.drop_root(&b.id).unwrap();
        assert_eq!(ground.storage.observe_roots().unwrap(), BTreeSet::new());
    }
}

#[test]
fn one_disk_is_never_mounted_for_two_vms() {
    for (backend, way) in cases() {
        let ground = Ground::new(backend, way);
        let a = ground.vm("vm-a");
        let b = spec("vm-b", &a.root.path);
        ground.ensure(&a).unwrap();
        let error = ground.ensure(&b).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Conflict);
        assert!(error.message.ends_with("is in use by vm vm-a"), "{error}");
        let error = ground.storage.drop_disk(&a.root.path).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Conflict);
        assert_eq!(ground.storage.observe_roots().unwrap(), BTreeSet::from([a.id.clone()]));
        // A daemon that was restarted knows as well.
        let again = storage_in(ground.dir.path(), way);
        assert_eq!(again.ensure_root(&b, IDS).unwrap_err().kind, ErrorKind::Conflict);
        again.drop_root(&a.id).unwrap();
        again.ensure_root(&b, IDS).unwrap();
        again.drop_root(&b.id).unwrap();
    }
}

#[test]
fn a_disk_that_an_admin_attached_by_hand_is_in_use() {
    let ground = Ground::new(DiskBackend::Ext4Image, Way::probe());
    let vm = ground.vm("vm-1");
    let disk = vm.root.path.to_str().unwrap();
    let argv = ["losetup", "--find", "--show", disk];
    let device = String::from_utf8(command::run(&argv, Duration::from_secs(9)).unwrap()).unwrap();
    let error = ground.ensure(&vm).unwrap_err();
    command::run(&["losetup", "--detach", device.trim()], Duration::from_secs(9)).unwrap();
    assert_eq!(error.kind, ErrorKind::Conflict);
    assert!(error.message.ends_with(&format!("is in use by {}", device.trim())), "{error}");
    ground.ensure(&vm).unwrap();
    ground.storage.drop_root(&vm.id).unwrap();
}

#[test]
fn ensure_twice_keeps_the_same_mount_and_drop_twice_succeeds() {
    for (backend, way) in cases() {
        let ground = Ground::new(backend, way);
        let vm = ground.vm("vm-1");
        ground.ensure(&vm).unwrap();
        let before = ground.leftovers();
        let device = fs::metadata(ground.root(&vm)).unwrap().dev();
        ground.ensure(&vm).unwrap();
        assert_eq!(ground.leftovers(), before);
        assert_eq!(fs::metadata(ground.root(&vm)).unwrap().dev(), device);
        ground.storage.drop_root(&vm.id).unwrap();
        ground.assert_clean();
        ground.storage.drop_root(&vm.id).unwrap();
        assert_eq!(names(&ground.dir.path().join("run/vms")), Vec::<String>::new());
    }
}

#[test]
fn half_a_root_and_another_range_are_mounted_anew() {
    for (backend, way) in cases() {
        let ground = Ground::new(backend, way);
        let vm = ground.vm("vm-1");
        ground.ensure(&vm).unwrap();
        unmount(ground.root(&vm), UnmountFlags::empty()).unwrap();
        ground.ensure(&vm).unwrap();
        assert_eq!(owner(&ground.root(&vm)), (IDS.base, IDS.base));
        ground.storage.ensure_root(&vm, IdRange { base: 3_000_000 }).unwrap();
        assert_eq!(owner(&ground.root(&vm)), (3_000_000, 3_000_000));
        fs::remove_file(ground.storage.places(&vm.id).record).unwrap();
        ground.ensure(&vm).unwrap();
        assert_eq!(owner(&ground.root(&vm)), (IDS.base, IDS.base));
        ground.storage.drop_root(&vm.id).unwrap();
        ground.assert_clean();
    }
}

#[test]
fn dropping_needs_the_id_alone_and_clears_stacked_mounts() {
    for (backend, way) in cases() {
        let ground = Ground::new(backend, way);
        let vm = ground.vm("vm-1");
        ground.ensure(&vm).unwrap();
        let places = ground.storage.places(&vm.id);
        for point in [&places.root, &places.disk] {
            rustix::mount::mount_bind(point, point).unwrap();
        }
        assert_eq!(mounts::below(&places.dir).unwrap().len(), 4);
        fs::remove_file(super::super::DiskManifest::path_of(&vm.root.path)).unwrap();
        fs::remove_file(&places.record).unwrap();
        if backend == DiskBackend::Ext4Image {
            fs::remove_file(&vm.root.path).unwrap();
        }
        fs::remove_dir_all(ground.dir.path().join("layers")).unwrap();
        ground.storage.drop_root(&vm.id).unwrap();
        ground.assert_clean();
    }
}

#[test]
fn who_keeps_a_root_busy_is_named_and_the_vm_stays_observable() {
    let ground = Ground::new(DiskBackend::Ext4Image, Way::probe());
    let vm = ground.vm("vm-1");
    ground.ensure(&vm).unwrap();
    #[expect(clippy::disallowed_methods, reason = "it must outlive the call")]
    let mut keeper = std::process::Command::new("unshare")
        .args(["--mount", "sh", "-c", "echo ready; exec sleep 1000"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = [0; 6];
    std::io::Read::read_exact(keeper.stdout.as_mut().unwrap(), &mut line).unwrap();
    let kept = ground.storage.drop_root(&vm.id);
    let observed = ground.storage.observe_roots();
    let other = ground.ensure(&spec("vm-2", &vm.root.path));
    keeper.kill().unwrap();
    keeper.wait().unwrap();
    let error = kept.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Timeout);
    let who = format!("is still in use by process {}", keeper.id());
    assert!(error.message.contains(&who), "{error}");
    assert_eq!(observed.unwrap(), BTreeSet::from([vm.id.clone()]));
    assert_eq!(other.unwrap_err().kind, ErrorKind::Conflict);
    ground.storage.drop_root(&vm.id).unwrap();
    ground.assert_clean();
    // A file open below the mount.
    ground.ensure(&vm).unwrap();
    let open = fs::File::open(ground.root(&vm).join("etc/hostname")).unwrap();
    let error = ground.storage.drop_root(&vm.id).unwrap_err();
    assert!(error.message.contains(&format!("process {}", std::process::id())), "{error}");
    drop(open);
    ground.storage.drop_root(&vm.id).unwrap();
}

#[test]
fn images_have_one_to_500_layers_and_may_repeat_one() {
    for (backend, way) in cases() {
        let ground = Ground::new(backend, way);
        for n in 3..=501 {
            let layer = ground.add_layer(n);
            write(&layer.join("last"), &n.to_string());
        }
        let ids = |range: std::ops::RangeInclusive<usize>| range.map(digest).collect::<Vec<_>>();
        for (name, layers, last) in [
            ("one", ids(1..=1), None),
            ("many", ids(1..=500), Some("500")),
            ("repeated", [ids(1..=4), ids(3..=3)].concat(), Some("3")),
        ] {
            let disk = ground.disk(name);
            let new = NewDisk { layers, ..ground.new_disk() };
            ground.storage.create_disk(&disk, &new).unwrap();
            let vm = spec(name, &disk);
            ground.ensure(&vm).unwrap();
            let seen = fs::read_to_string(ground.root(&vm).join("last")).ok();
            assert_eq!(seen.as_deref(), last, "{name}");
            ground.storage.drop_root(&vm.id).unwrap();
            ground.assert_clean();
        }
        let new = NewDisk { layers: ids(1..=501), ..ground.new_disk() };
        let error = ground.storage.create_disk(&ground.disk("more"), &new).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unsupported);
        assert!(error.message.contains("has 501 layers"), "{error}");
    }
}

#[test]
fn twenty_at_once() {
    for (backend, way) in cases() {
        let ground = Ground::new(backend, way);
        let vms: Vec<VmSpec> = (0..20).map(|n| ground.vm(&format!("vm-{n}"))).collect();
        let each = |work: &(dyn Fn(&VmSpec) + Sync)| {
            std::thread::scope(|scope| {
                for vm in &vms {
                    scope.spawn(move || work(vm));
                }
            });
        };
        each(&|vm| ground.ensure(vm).unwrap());
        assert_eq!(ground.storage.observe_roots().unwrap().len(), 20);
        each(&|vm| write(&ground.root(vm).join("etc/hostname"), vm.id.as_str()));
        each(&|vm| ground.storage.drop_root(&vm.id).unwrap());
        ground.assert_clean();
        each(&|vm| ground.ensure(vm).unwrap());
        each(&|vm| {
            let text = fs::read_to_string(ground.root(vm).join("etc/hostname")).unwrap();
            assert_eq!(text, vm.id.as_str());
            ground.storage.drop_root(&vm.id).unwrap();
        });
        ground.assert_clean();
    }
}

/// Who removes a VM's directory first takes its name away: what was opened before is nobody's disk any more.
#[test]
fn no_guest_begins_on_a_disk_whose_name_is_gone() {
    let ground = Ground::new(DiskBackend::Ext4Image, Way::probe());
    let _vm = ground.vm("a");
    let disk = ground.disk("a");
    let manifest = ground.storage.inspect_disk(&disk).unwrap();
    let place = super::super::place::Place::of(&disk).unwrap();
    let claim = || super::super::claim::disk(&ground.storage, &place, &manifest).map(drop);
    claim().unwrap();
    let parent = disk.parent().unwrap();
    rustix::fs::rename(parent, parent.with_extension("going")).unwrap();
    assert_eq!(claim().unwrap_err().kind, ErrorKind::NotFound);
    // Another one that has the name meanwhile is not the one that was opened.
    fs::create_dir(parent).unwrap();
    fs::copy(parent.with_extension("going").join("a"), &disk).unwrap();
    let error = claim().unwrap_err();
    assert!(error.message.ends_with("was removed or replaced meanwhile"), "{error}");
}
