//! Disks that are missing, damaged or forged: refused by name, and nothing stays mounted.

use std::os::unix::fs::{FileExt, symlink};

use ocivisor_core::error::{Error, ErrorKind};
use rustix::fs::rename;

use super::super::DiskManifest;
use super::*;

/// A VM whose disk was spoilt; the error of mounting it.
fn refusal(ground: &Ground, spoil: impl FnOnce(&Path)) -> Error {
    let vm = ground.vm("vm-1");
    spoil(&vm.root.path);
    let error = ground.ensure(&vm).unwrap_err();
    ground.assert_clean();
    assert!(ground.storage.observe_roots().unwrap().is_empty());
    assert_eq!(names(&ground.dir.path().join("run/vms")), Vec::<String>::new());
    assert!(error.message.contains("vm-1") || error.message.contains("layer"), "{error}");
    error
}

fn poke(disk: &Path, at: u64, bytes: &[u8]) {
    let file = fs::OpenOptions::new().write(true).open(disk).unwrap();
    file.write_all_at(bytes, at).unwrap();
}

#[test]
fn what_is_missing_is_named() {
    for (backend, way) in cases() {
        let ground = Ground::new(backend, way);
        let error = refusal(&ground, |disk| {
            rename(disk, disk.with_file_name("away")).unwrap();
        });
        assert_eq!(error.kind, ErrorKind::NotFound);
        assert!(error.message.ends_with("disks/vm-1 does not exist"), "{error}");

        let ground = Ground::new(backend, way);
        let error = refusal(&ground, |d| {
            fs::remove_file(DiskManifest::path_of(d)).unwrap();
        });
        assert_eq!(error.kind, ErrorKind::NotFound);
        assert!(error.message.contains("has no manifest"), "{error}");

        let ground = Ground::new(backend, way);
        let layer = layers_in(ground.dir.path())(&digest(1));
        let error = refusal(&ground, |_| fs::remove_dir_all(layer).unwrap());
        assert_eq!(error.kind, ErrorKind::NotFound);
        assert!(error.message.contains(&digest(1)), "{error}");
        assert_eq!(error.hint.as_deref(), Some("import image tests/base:1 again"));
    }
}

#[test]
fn damaged_manifests_are_refused() {
    for (backend, way) in cases() {
        let ground = Ground::new(backend, way);
        let error = refusal(&ground, |disk| {
            write(&DiskManifest::path_of(disk), "{\"version\":");
        });
        assert_eq!(error.kind, ErrorKind::Integrity);
        let ground = Ground::new(backend, way);
        let error = refusal(&ground, |disk| {
            let path = DiskManifest::path_of(disk);
            rename(&path, ground.disk("elsewhere")).unwrap();
            symlink(ground.disk("elsewhere"), path).unwrap();
        });
        assert_eq!(error.kind, ErrorKind::Integrity);
    }
}

#[test]
fn links_fifos_and_the_wrong_kind_are_no_disks() {
    for (backend, way) in cases() {
        for n in 0..4 {
            let ground = Ground::new(backend, way);
            let error = refusal(&ground, |disk| {
                let real = disk.with_file_name("real");
                rename(disk, &real).unwrap();
                match n {
                    0 => symlink(&real, disk).unwrap(),
                    1 => symlink("/dev/null", disk).unwrap(),
                    2 => mknodat(CWD, disk, FileType::Fifo, Mode::RWXU, 0).unwrap(),
                    _ if backend == DiskBackend::Directory => write(disk, "file"),
                    _ => fs::create_dir(disk).unwrap(),
                }
            });
            assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
        }
    }
}

#[test]
fn images_that_are_cut_off_empty_or_forged_are_refused() {
    let cut = |disk: &Path, len: u64| {
        fs::OpenOptions::new().write(true).open(disk).unwrap().set_len(len).unwrap();
    };
    type Spoil<'a> = (&'a str, Box<dyn Fn(&Path)>);
    let spoilt: Vec<Spoil<'_>> = vec![
        ("is cut off", Box::new(move |d| cut(d, SIZE.0 - 4096))),
        ("is cut off", Box::new(move |d| cut(d, 0))),
        ("holds no ext4", Box::new(|d| poke(d, 1024, &[0; 1024]))),
        ("holds no ext4", Box::new(|d| poke(d, 0, &vec![0xAA; 1 << 20]))),
        ("features", Box::new(|d| poke(d, 1024 + 0x60, &[0xFF; 4]))),
        ("features", Box::new(|d| poke(d, 1024 + 0x64, &[0xFF; 4]))),
        ("journal on another device", Box::new(|d| poke(d, 1024 + 0xE4, &[1]))),
        ("mount options", Box::new(|d| poke(d, 1024 + 0x200, b"journal_path=/dev/sda"))),
        // A superblock that is plausible, with a wrong checksum, and a wrong size with a right one.
        ("mount disk", Box::new(|d| poke(d, 1024 + 0x04, &[0xFF; 3]))),
        (
            "mount disk",
            Box::new(|d| {
                let d = d.to_str().unwrap();
                let argv = ["debugfs", "-w", "-R", "set_super_value blocks_count 99999999", d];
                command::run(&argv, Duration::from_secs(9)).unwrap();
            }),
        ),
        (
            "is damaged inside: directory work",
            Box::new(|d| {
                let argv = ["debugfs", "-w", "-R", "rmdir work", d.to_str().unwrap()];
                command::run(&argv, Duration::from_secs(9)).unwrap();
            }),
        ),
    ];
    for (_, way) in cases().filter(|c| c.0 == DiskBackend::Ext4Image) {
        for (want, spoil) in &spoilt {
            let ground = Ground::new(DiskBackend::Ext4Image, way);
            let error = refusal(&ground, spoil);
            assert!(error.message.contains(want), "{want}: {error}");
            assert_eq!(error.kind, ErrorKind::Integrity, "{error}");
        }
    }
}

#[test]
fn upper_as_a_link_leads_nowhere() {
    for (backend, way) in cases() {
        let ground = Ground::new(backend, way);
        let victim = ground.dir.path().join("victim");
        fs::create_dir(&victim).unwrap();
        let error = refusal(&ground, |disk| match backend {
            DiskBackend::Directory => {
                fs::remove_dir(disk.join("upper")).unwrap();
                symlink(&victim, disk.join("upper")).unwrap();
            }
            DiskBackend::Ext4Image => {
                let link = format!("symlink upper {}", victim.display());
                for request in ["rmdir upper", &link] {
                    let argv = ["debugfs", "-w", "-R", request, disk.to_str().unwrap()];
                    command::run(&argv, Duration::from_secs(9)).unwrap();
                }
            }
        });
        assert_eq!(error.kind, ErrorKind::Integrity);
        assert!(error.message.contains("is damaged inside: directory upper"), "{error}");
        assert_eq!(names(&victim), Vec::<String>::new());
    }
}

#[test]
fn a_filesystem_with_errors_is_mended_before_it_is_mounted() {
    let ground = Ground::new(DiskBackend::Ext4Image, Way::probe());
    let vm = ground.vm("vm-1");
    let disk = vm.root.path.to_str().unwrap();
    let argv = ["debugfs", "-w", "-R", "set_super_value state 2", disk];
    command::run(&argv, Duration::from_secs(9)).unwrap();
    ground.ensure(&vm).unwrap();
    ground.storage.drop_root(&vm.id).unwrap();
    let state = command::run(&["dumpe2fs", "-h", disk], Duration::from_secs(9)).unwrap();
    let state = String::from_utf8(state).unwrap();
    assert!(state.contains("Filesystem state:         clean\n"), "{state}");
}

#[test]
fn id_ranges_that_reach_into_the_hosts_ids_are_refused() {
    let ground = Ground::new(DiskBackend::Ext4Image, Way::probe());
    let vm = ground.vm("vm-1");
    for base in [0, 1000, u32::MAX - 65_534] {
        let error = ground.storage.ensure_root(&vm, IdRange { base }).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        ground.assert_clean();
    }
}
