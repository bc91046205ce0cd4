//! Checks of tenants' filesystems: what they may use, and what is told of what they find.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, Ordering};

use ocivisor_core::error::ErrorKind;
use ocivisor_core::ports::Cgroups as _;
use ocivisor_core::spec::{DataDisk, Filesystem, View};

use super::super::Checks;
use super::disks::{LONG, MKFS, at, device, disk, either, ground, only_read, text, vm};
use super::*;
use crate::cgroup::HostCgroups;
use crate::command::run;

/// Control groups of a VM, gone with the test.
struct Groups(HostCgroups, VmId);

impl Groups {
    fn of(vm: &VmSpec) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let base = format!("ocvtest-checks-{}-{number}", std::process::id());
        let groups = HostCgroups::new(&Layout { cgroup_base: base, ..Layout::system() }).unwrap();
        groups.ensure_cgroup(&vm.id, &vm.resources).unwrap();
        Self(groups, vm.id.clone())
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        let procs = [self.0.shim_procs(&self.1), self.0.guest_procs(&self.1)].concat();
        let bases: Vec<&Path> = procs.iter().filter_map(|file| file.ancestors().nth(3)).collect();
        let dropped = self.0.drop_cgroup(&self.1);
        // Two files may be in one hierarchy.
        bases.iter().for_each(|base| drop(fs::remove_dir(base)));
        dropped.unwrap();
    }
}

#[test]
fn a_check_has_the_memory_of_its_vm_and_no_more() {
    let mut ground = ground();
    // Some 40 MB of tables for the blocks of one terabyte.
    let path = ground.formatted("data", 1 << 20, &[&MKFS[..], &["-E", LAZY]].concat());
    let mut vm = vm("vm-1", &[disk(1, &path, at("/data"))]);
    for (mib, want) in [(8, Some(ErrorKind::Exhausted)), (512, None)] {
        vm.resources.memory = Bytes::mib(mib);
        let groups = Groups::of(&vm);
        ground.storage = storage_in(ground.dir.path(), Way::probe())
            .with_checks(Checks::default(), groups.0.clone());
        match want {
            Some(kind) => {
                let error = ground.attach(&vm).unwrap_err();
                let want = format!(
                    "data disk 1 ({}): e2fsck was killed, as where it needs more memory than the vm has",
                    path.display()
                );
                assert_eq!((error.kind, error.message), (kind, want));
            }
            None => {
                ground.attach(&vm).unwrap();
                ground.detach(&vm);
            }
        }
        ground.assert_clean();
    }
}

#[test]
fn a_check_has_the_traffic_of_its_disk_and_no_more() {
    let mut ground = ground();
    let path = ground.formatted("data", 64, &MKFS);
    let io = IoLimits { read_bytes: Some(16 << 20), ..IoLimits::default() };
    let vm = vm("vm-1", &[DataDisk { io, ..disk(1, &path, at("/data")) }]);
    let groups = Groups::of(&vm);
    ground.storage = storage_in(ground.dir.path(), Way::probe())
        .with_checks(Checks::default(), groups.0.clone());
    let files = groups.0.guest_procs(&vm.id);
    let text = |path: &Path| fs::read_to_string(path).unwrap();
    let beside =
        |name: &str| files.iter().map(|file| file.with_file_name(name)).find(|file| file.exists());
    let bounds = beside("blkio.throttle.read_bps_device").or(beside("io.max")).unwrap();
    let bound = std::cell::RefCell::new(String::new());
    let is_at_work = || {
        let is = files.iter().any(|file| !text(file).is_empty());
        if is {
            bound.replace(text(&bounds));
        }
        is
    };
    let broken_off =
        || ground.storage.ensure_disks(&vm, IDS, &is_at_work).map(|_| ground.detach(&vm));
    // Unless it was done before it was looked for.
    let error = std::iter::repeat_with(broken_off).take(10).find_map(Result::err).unwrap();
    assert_eq!(error.kind, ErrorKind::Cancelled, "{error}");
    let bound = bound.into_inner();
    assert!(bound.starts_with("7:") && bound.contains("16777216"), "{bound:?}");
    ground.assert_clean();
}

const LAZY: &str = "lazy_itable_init=1,lazy_journal_init=1,nodiscard";

#[test]
fn whoever_ends_the_vm_ends_the_check_and_nothing_is_left() {
    let ground = ground();
    let path = ground.formatted("data", 16, &MKFS);
    let vm = vm("vm-1", &[disk(1, &path, at("/data"))]);
    let error = ground.storage.ensure_disks(&vm, IDS, &|| true).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Cancelled, "{error}");
    ground.assert_clean();
    assert!(!ground.storage.places(&vm.id).dir.exists());
}

#[test]
fn what_a_check_cannot_tell_is_not_called_damage() {
    let ground = ground();
    let path = ground.formatted("data", 16, &MKFS);
    // A feature of the future.
    run(&["debugfs", "-w", "-R", "feature FEATURE_I21", text(&path)], LONG).unwrap();
    let vm = vm("vm-1", &[disk(1, &path, at("/data"))]);
    let error = ground.attach(&vm).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Host, "{error}");
    let want = format!("data disk 1 ({}): e2fsck failed (exit status: 8): ", path.display());
    assert!(error.message.starts_with(&want), "{error}");
    ground.assert_clean();
}

/// Mounts, writes, and takes the filesystem away, as a crash of the host does.
fn crash(ground: &Ground, path: &Path, kind: &str) {
    let dir = ground.dir.path().join("mnt");
    fs::create_dir_all(&dir).unwrap();
    run(&["mount", "-t", kind, "-o", "loop", text(path), text(&dir)], LONG).unwrap();
    for name in 0..20 {
        fs::create_dir(dir.join(name.to_string())).unwrap();
    }
    // `-f`: the log is written, what it tells about is not.
    let shut = run(&["xfs_io", "-x", "-c", "shutdown -f", text(&dir)], LONG);
    run(&["umount", text(&dir)], LONG).unwrap();
    shut.unwrap();
}

#[test]
fn a_log_to_be_replayed_is_no_damage_and_the_guest_may_have_the_device() {
    let ground = ground();
    let xfs = ground.formatted("xfs", 320, &["mkfs.xfs", "-q"]);
    crash(&ground, &xfs, "xfs");
    let holds = "holds a filesystem xfs that was not unmounted: its log is to be replayed, which no checker does";
    let got = ground.attach(&vm("vm-1", &[disk(1, &xfs, either("/data", "vdb"))])).unwrap();
    let want = format!(
        "data disk 1 ({}) {holds}: the guest has it as block device /dev/vdb",
        xfs.display()
    );
    assert_eq!(got[0].note.as_deref(), Some(&*want));
    let must = vm("vm-1", &[disk(1, &xfs, at("/data"))]);
    ground.detach(&must);
    let error = ground.attach(&must).unwrap_err();
    let want = format!("data disk 1 ({}) cannot be mounted at /data: it {holds}", xfs.display());
    assert_eq!((error.kind, error.message), (ErrorKind::Unsupported, want));
    // ext4's journal is replayed by its checker, unless the disk is only read.
    let ext = ground.formatted("ext", 16, &MKFS);
    crash(&ground, &ext, "ext4");
    let reads = only_read(disk(1, &ext, either("/data", "vdb")));
    let got = ground.attach(&vm("vm-1", &[reads])).unwrap();
    let note = got[0].note.as_ref().unwrap();
    assert!(note.contains("its journal is to be replayed, and the disk is only read"), "{note}");
    ground.detach(&must);
    let writes = vm("vm-1", &[disk(1, &ext, at("/data"))]);
    assert_eq!(ground.attach(&writes).unwrap()[0].note, None);
    let mounted = ground.for_guest(&writes)[0].source.clone();
    assert!(mounted.join("19").is_dir(), "replayed");
    ground.detach(&writes);
    ground.assert_clean();
}

#[test]
fn data_behind_an_empty_beginning_is_never_formatted_over() {
    let ground = ground();
    let path = ground.file("raw", 16);
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"precious", 9 << 20).unwrap();
    let wish = |view: View| DataDisk { make: Some(Filesystem::Ext4), ..disk(1, &path, view) };
    let must = vm("vm-1", &[wish(at("/data"))]);
    let error = ground.attach(&must).unwrap_err();
    assert!(error.message.ends_with("it holds nothing that is known"), "{error}");
    ground.attach(&vm("vm-1", &[wish(device("vdb"))])).unwrap();
    ground.detach(&must);
    let mut bytes = [0; 8];
    File::open(&path).unwrap().read_exact_at(&mut bytes, 9 << 20).unwrap();
    assert_eq!(&bytes, b"precious");
    ground.assert_clean();
}
