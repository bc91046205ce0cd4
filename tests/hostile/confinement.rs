//! What a worker has, and what it does not.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::Bench;
use crate::confined::*;
use ocivisor_datastore::Store;

/// Bits of capabilities(7).
const CHOWN: u64 = 1 << 0;
const DAC_OVERRIDE: u64 = 1 << 1;
const FOWNER: u64 = 1 << 3;
const FSETID: u64 = 1 << 4;
const SYS_ADMIN: u64 = 1 << 21;
const SETFCAP: u64 = 1 << 31;

fn capabilities(pid: u32, set: &str) -> u64 {
    u64::from_str_radix(&status(pid, set), 16).unwrap()
}

fn namespace(pid: &str, kind: &str) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap()
}

#[test]
fn a_worker_has_namespaces_of_its_own_and_no_network() {
    import_looking(&bench(), |Pair { confined, .. }| {
        for kind in ["user", "mnt", "net", "pid", "ipc", "uts", "cgroup"] {
            assert_ne!(namespace(&confined.to_string(), kind), namespace("self", kind), "{kind}");
        }
        let devices = proc(confined, "net/dev");
        let devices: Vec<_> =
            devices.lines().skip(2).map(|l| l.split(':').next().unwrap().trim()).collect();
        assert_eq!(devices, ["lo"]);
        assert_eq!(proc(confined, "net/fib_trie"), "");
        assert_eq!(
            proc(confined, "uid_map").split_whitespace().collect::<Vec<_>>(),
            ["0", &BASE.to_string(), "65536"]
        );
        assert_eq!(status(confined, "Uid"), format!("{BASE}\t{BASE}\t{BASE}\t{BASE}"));
        assert_eq!(status(confined, "Gid"), format!("{BASE}\t{BASE}\t{BASE}\t{BASE}"));
        assert_eq!(status(confined, "Groups"), "");
    })
    .unwrap();
}

#[test]
fn a_worker_sees_its_layer_and_no_other_file() {
    let bench = bench();
    let mut seen = Vec::new();
    import_looking(&bench, |Pair { confined, .. }| {
        let mounts = proc(confined, "mountinfo");
        assert_eq!(mounts.lines().count(), 1, "{mounts}");
        let fields: Vec<_> = mounts.split_whitespace().collect();
        assert!(fields[3].ends_with("/layer/fs"), "{mounts}");
        for option in ["nosuid", "nodev", "noexec", "idmapped"] {
            assert!(fields[5].split(',').any(|o| o == option), "{option}: {mounts}");
        }
        seen = crate::common::entries(Path::new(&format!("/proc/{confined}/root")));
        for path in ["etc/shadow", "proc", "../etc/shadow"] {
            assert!(!Path::new(&format!("/proc/{confined}/root/{path}")).exists(), "{path}");
        }
    })
    .unwrap();
    assert_eq!(seen, ["first", "long"]);
}

#[test]
fn a_worker_has_no_descriptor_variable_or_directory_but_its_own() {
    // As an importing process might have one that its exec does not close.
    let leak = fs::File::open("/etc/shadow").unwrap();
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
    import_looking(&bench(), |Pair { broker, confined }| {
        assert_eq!(proc(confined, "environ"), "");
        assert_eq!(fs::read_link(format!("/proc/{confined}/cwd")).unwrap(), Path::new("/"));
        for (pid, layer) in [(confined, "/"), (broker, "/layer/fs")] {
            for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
                let to = fs::read_link(entry.unwrap().path()).unwrap();
                let to = to.to_str().unwrap();
                let own = to.starts_with("pipe:[") || to.starts_with("socket:[");
                let files = to == layer || to == "/long" || to.ends_with(layer);
                assert!(own || files || to == "/dev/null", "{pid}: {to}");
            }
        }
    })
    .unwrap();
}

#[test]
fn a_worker_has_no_right_but_over_files_and_its_broker_few() {
    import_looking(&bench(), |Pair { broker, confined }| {
        let rights = [
            (confined, CHOWN | DAC_OVERRIDE | FOWNER | FSETID),
            (broker, SYS_ADMIN | SETFCAP | DAC_OVERRIDE),
        ];
        for (pid, rights) in rights {
            assert_eq!(status(pid, "NoNewPrivs"), "1");
            assert_eq!(status(pid, "Seccomp"), "2");
            for set in ["CapEff", "CapPrm", "CapBnd"] {
                assert_eq!(capabilities(pid, set), rights, "{set}");
            }
            for set in ["CapInh", "CapAmb"] {
                assert_eq!(capabilities(pid, set), 0, "{set}");
            }
        }
        // Threads too: a filter is one thread's until it is inherited.
        for task in fs::read_dir(format!("/proc/{confined}/task")).unwrap() {
            let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            assert!(status.contains("\nSeccomp:\t2\n"), "{status}");
        }
    })
    .unwrap();
}

#[test]
fn a_worker_is_limited() {
    import_looking(&bench(), |Pair { confined, .. }| {
        let limits = proc(confined, "limits");
        let soft_and_hard = |name: &str| -> Vec<String> {
            let line = limits.lines().find_map(|l| l.strip_prefix(name)).unwrap();
            line.split_whitespace().take(2).map(str::to_owned).collect()
        };
        for (name, most) in [
            ("Max address space", 1u64 << 30),
            ("Max core file size", 0),
            ("Max open files", 256),
            ("Max locked memory", 0),
            ("Max file size", 64 << 30),
        ] {
            assert_eq!(soft_and_hard(name), [most.to_string(), most.to_string()], "{name}");
        }
    })
    .unwrap();
}

/// A directory that is a mount which others would share, as all are where systemd is process 1.
struct Shared(PathBuf);

impl Shared {
    fn new(dir: &Path) -> Self {
        use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
        fs::create_dir(dir).unwrap();
        mount_bind(dir, dir).unwrap();
        let made = Self(dir.to_owned());
        mount_change(dir, MountPropagationFlags::SHARED).unwrap();
        made
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

#[test]
fn a_store_on_a_shared_mount_shares_no_mount_with_a_worker() {
    let mut shared = None;
    let bench = Bench::opened(|root| {
        shared = Some(Shared::new(root));
        Store::open(root).unwrap().with_worker(worker())
    });
    // Dropped before the bench removes its directory.
    let _shared = shared;
    import_looking(&bench, |Pair { confined, .. }| {
        let mounts = proc(confined, "mountinfo");
        assert!(!mounts.contains(" shared:"), "{mounts}");
    })
    .unwrap();
}

/// A control group of the test's, removed at its end.
struct Group(PathBuf);

impl Group {
    fn new() -> Self {
        let top = Path::new("/sys/fs/cgroup");
        let unified = top.join("cgroup.controllers").exists();
        let hierarchy = if unified { top.to_owned() } else { top.join("pids") };
        let dir = hierarchy.join(format!("ocv-hostile-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The kernel takes a moment to forget processes that have ended.
        until("the control group is empty", || fs::remove_dir(&self.0).is_ok());
    }
}

#[test]
fn a_worker_joins_the_control_groups_that_are_named() {
    let group = Group::new();
    let procs = group.0.join("cgroup.procs");
    let bench = bench_of(worker().with_cgroups(vec![procs.clone()]));
    import_looking(&bench, |Pair { broker, confined }| {
        let inside = fs::read_to_string(&procs).unwrap();
        let mut inside: Vec<u32> = inside.lines().map(|l| l.parse().unwrap()).collect();
        inside.sort_unstable();
        let mut both = [broker, confined];
        both.sort_unstable();
        assert_eq!(inside, both);
    })
    .unwrap();
}

#[test]
fn a_control_group_that_is_not_there_is_an_error_that_says_so() {
    let bench = bench_of(worker().with_cgroups(vec!["/sys/fs/cgroup/no-such/cgroup.procs".into()]));
    let error = bench.import_tar(crate::common::RawTar::new().file("a", b"").end()).unwrap_err();
    let text = error.to_string();
    assert!(
        text.ends_with("worker cannot join the control group for workers: No such file or directory (os error 2); see `ocivisor doctor`"),
        "{text}"
    );
    bench.assert_nothing_happened();
}
