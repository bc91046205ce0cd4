//! Killed at any moment, and how long things take.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use rustix::mount::{MountFlags, mount};

use super::*;

/// Set in the child: the ground it works on.
const GROUND: &str = "OCIVISOR_TEST_STORAGE_GROUND";
const CASE: &str = "OCIVISOR_TEST_STORAGE_CASE";

/// Not a test of its own: what the child of the test below does until it is killed.
#[test]
fn crash_child() {
    let Ok(dir) = std::env::var(GROUND) else {
        return;
    };
    let case = std::env::var(CASE).unwrap().parse().unwrap();
    let (backend, way) = cases().nth(case).unwrap();
    let dir = Path::new(&dir);
    let storage = storage_in(dir, way);
    let vm = spec("vm-1", &dir.join("disks/disk.0"));
    println!("\ngo");
    loop {
        one_turn(&storage, &vm, backend);
    }
}

fn one_turn(storage: &HostStorage, vm: &VmSpec, backend: DiskBackend) {
    let disk = &vm.root.path;
    storage.create_disk(disk, &new_disk(backend)).unwrap();
    storage.ensure_root(vm, IDS).unwrap();
    storage.drop_root(&vm.id).unwrap();
    storage.drop_disk(disk).unwrap();
}

fn start(ground: &Ground, case: usize) -> Child {
    #[expect(clippy::disallowed_methods, reason = "it must be killed while it works")]
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "storage::tests::crash::crash_child", "--nocapture"])
        .env(GROUND, ground.dir.path())
        .env(CASE, case.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map_while(|l| l.ok()).any(|l| l == "go"));
    child
}

#[test]
fn killed_at_any_moment_everything_can_be_cleared_and_done_again() {
    for (case, (backend, way)) in cases().enumerate() {
        let ground = Ground::new(backend, way);
        let vm = spec("vm-1", &ground.disk("disk.0"));
        let begin = Instant::now();
        one_turn(&ground.storage, &vm, backend);
        // The moments are spread over two turns of the child, fast or slow as the machine is.
        let turn = begin.elapsed();
        let mut found_something = 0;
        for round in 0..30 {
            let mut child = start(&ground, case);
            let moment = Instant::now() + turn * round / 15;
            assert!(!mounts::until(moment, || Ok(false)).unwrap());
            child.kill().unwrap();
            child.wait().unwrap();
            found_something += usize::from(!ground.leftovers().is_empty());
            if round % 2 == 0 {
                ground.storage.drop_root(&vm.id).unwrap();
                ground.assert_clean();
            }
            assert!(
                !vm.root.path.exists() || super::super::DiskManifest::read(&vm.root.path).is_ok()
            );
            ground.storage.create_disk(&vm.root.path, &ground.new_disk()).unwrap();
            ground.ensure(&vm).unwrap();
            write(&ground.root(&vm).join("etc/hostname"), "works");
            ground.storage.drop_root(&vm.id).unwrap();
            ground.assert_clean();
            if backend == DiskBackend::Ext4Image {
                let check = ["e2fsck", "-f", "-n", vm.root.path.to_str().unwrap()];
                command::run(&check, Duration::from_secs(20)).unwrap();
            }
            ground.storage.drop_disk(&vm.root.path).unwrap();
            assert_eq!(names(&ground.dir.path().join("disks")), Vec::<String>::new());
        }
        println!("{backend:?} {way:?}: {found_something} of 30 left something to clear");
        // Else the moments were badly chosen and the test shows nothing.
        assert!(found_something > 0);
    }
}

#[test]
#[ignore = "prints figures"]
fn figures() {
    for (backend, way) in cases() {
        let ground = Ground::new(backend, way);
        // As most images have it.
        let top = layers_in(ground.dir.path())(&digest(2));
        fs::set_permissions(top, fs::Permissions::from_mode(0o755)).unwrap();
        // As in production: what is lost at a reboot costs no fsync.
        let run = ground.dir.path().join("run");
        mount("tmpfs", &run, "tmpfs", MountFlags::empty(), c"mode=711").unwrap();
        let (mut create, mut ensure, mut again, mut drop) = (vec![], vec![], vec![], vec![]);
        let timed = |into: &mut Vec<Duration>, work: &mut dyn FnMut()| {
            let start = Instant::now();
            work();
            into.push(start.elapsed());
        };
        for n in 0..50 {
            let vm = spec(&format!("vm-{n}"), &ground.disk(&n.to_string()));
            let new = NewDisk { size: Bytes::mib(10_240), ..ground.new_disk() };
            timed(&mut create, &mut || {
                ground.storage.create_disk(&vm.root.path, &new).unwrap();
            });
            timed(&mut ensure, &mut || ground.ensure(&vm).unwrap());
            timed(&mut again, &mut || ground.ensure(&vm).unwrap());
            timed(&mut drop, &mut || ground.storage.drop_root(&vm.id).unwrap());
        }
        let median = |all: &mut Vec<Duration>| {
            all.sort();
            format!("{:.2} (max {:.2})", all[25].as_secs_f64() * 1e3, all[49].as_secs_f64() * 1e3)
        };
        println!(
            "{backend:?} {way:?}, ms: create {} ensure {} again {} drop {}",
            median(&mut create),
            median(&mut ensure),
            median(&mut again),
            median(&mut drop)
        );
    }
}
