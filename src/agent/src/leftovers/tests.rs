#![expect(clippy::disallowed_methods, reason = "tests make directories")]

use ocivisor_core::state::Timestamp;
use ocivisor_schema::TimeV1;

use super::*;

const NONE: [u32; 0] = [];
const MINUTE: Duration = Duration::from_secs(60);
const SIX: Duration = Duration::from_secs(360);

fn vm(id: &str, state: StateNameV1) -> VmNow {
    let changed = TimeV1(Timestamp(1_795_000_000_000));
    VmNow { id: Text(id.parse().unwrap()), state, changed, busy: false, addresses: Vec::new() }
}

fn stopped(id: &str) -> VmNow {
    vm(id, StateNameV1::Stopped)
}

/// A host's datastores, as directories.
struct Host {
    dir: tempfile::TempDir,
    known: Known,
    now: Instant,
}

impl Host {
    /// One that has seen these directories of VMs.
    fn that_saw(vms: &[VmNow], dirs: &[&str]) -> Self {
        let known = Known { wait: SIX, homes: BTreeMap::new(), gone: BTreeMap::new() };
        let mut host = Self { dir: tempfile::tempdir().unwrap(), known, now: Instant::now() };
        for dir in dirs {
            std::fs::create_dir_all(host.path(dir)).unwrap();
        }
        assert_eq!(host.after(0, vms), NONE);
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn remove(&self, name: &str) {
        std::fs::remove_dir(self.path(name)).unwrap();
    }

    fn stores(&self) -> BTreeMap<u32, Store> {
        let read = |number: u32| Some((number, read(&self.path(&number.to_string()))?));
        disks::numbers(self.dir.path()).into_iter().filter_map(read).collect()
    }

    /// What is left over, so many minutes later.
    fn after(&mut self, minutes: u32, vms: &[VmNow]) -> Vec<u32> {
        self.now += MINUTE * minutes;
        let stores = self.stores();
        self.known.look(vms, &stores, self.now).into_iter().map(OneId::number).collect()
    }
}

#[test]
fn a_stopped_vm_without_its_directory_is_left_over_after_a_while() {
    let vms = [stopped("one-7"), stopped("one-8")];
    let mut host = Host::that_saw(&vms, &["100/7", "100/8"]);
    assert_eq!(host.after(60, &vms), NONE, "it is powered off");
    host.remove("100/7");
    assert_eq!(host.after(3, &vms), NONE, "one look is not enough");
    assert_eq!(host.after(3, &vms), NONE);
    assert_eq!(host.after(3, &vms), [7]);
    assert_eq!(host.after(3, &vms), [7], "until it is forgotten");
    assert_eq!(host.after(3, &vms[1..]), NONE);
    assert!(!host.known.gone.contains_key(&"7".parse().unwrap()));
}

#[test]
fn a_directory_that_cannot_be_seen_is_not_gone() {
    let vms = [stopped("one-7")];
    // What is under a mount point may hold what was written while nothing was mounted.
    let mut host = Host::that_saw(&vms, &["100/7", "under/8"]);
    std::fs::rename(host.path("100"), host.path("away")).unwrap();
    assert_eq!(host.after(3, &vms), NONE);
    assert_eq!(host.after(60, &vms), NONE, "there is no datastore");
    std::fs::rename(host.path("under"), host.path("100")).unwrap();
    assert_eq!(host.after(3, &vms), NONE);
    assert_eq!(host.after(60, &vms), NONE, "another directory is in its place");
    std::fs::rename(host.path("100"), host.path("under")).unwrap();
    std::fs::rename(host.path("away"), host.path("100")).unwrap();
    host.remove("100/7");
    assert_eq!(host.after(3, &vms), NONE, "what could not be seen does not count");
    assert_eq!(host.after(6, &vms), [7]);
}

#[test]
fn one_datastore_of_two_is_not_enough() {
    let vms = [stopped("one-7")];
    let mut host = Host::that_saw(&vms, &["100/7", "101/7"]);
    host.remove("100/7");
    assert_eq!((host.after(3, &vms), host.after(60, &vms)), (vec![], vec![]));
    std::fs::rename(host.path("101"), host.path("away")).unwrap();
    assert_eq!((host.after(3, &vms), host.after(60, &vms)), (vec![], vec![]));
}

#[test]
fn whatever_happens_to_the_vm_begins_the_wait_anew() {
    let vms = [stopped("one-7")];
    let mut host = Host::that_saw(&vms, &["100/7"]);
    host.remove("100/7");
    assert_eq!(host.after(3, &vms), NONE);
    let busy = [VmNow { busy: true, ..stopped("one-7") }];
    assert_eq!(host.after(60, &busy), NONE, "something is done to it");
    assert_eq!(host.after(1, &vms), NONE);
    let again = TimeV1(Timestamp(1_795_000_100_000));
    let again = [VmNow { changed: again, ..stopped("one-7") }];
    assert_eq!(host.after(60, &again), NONE, "it ran in between");
    std::fs::create_dir(host.path("100/7")).unwrap();
    assert_eq!(host.after(60, &again), NONE, "it came back");
    host.remove("100/7");
    assert_eq!((host.after(1, &again), host.after(6, &again)), (vec![], vec![7]));
}

#[test]
fn only_opennebulas_own_that_are_stopped_and_were_seen_are_left_over() {
    use StateNameV1::{Failed, Paused, Running, Suspended};
    let states = [Running, Paused, Suspended, Failed];
    let mut vms: Vec<VmNow> = (1..).zip(states).map(|(n, s)| vm(&format!("one-{n}"), s)).collect();
    vms.extend(["web", "one-007", "one-x", "7", "one-9"].map(stopped));
    let dirs = ["100/1", "100/2", "100/3", "100/4", "100/7", "100/8"];
    let mut host = Host::that_saw(&vms, &dirs);
    for dir in dirs {
        host.remove(dir);
    }
    assert_eq!((host.after(3, &vms), host.after(600, &vms)), (vec![], vec![]));
}

#[test]
fn a_datastore_that_is_not_a_directory_says_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("100");
    assert_eq!(read(&file), None);
    std::fs::File::create(&file).unwrap();
    assert_eq!(read(&file), None);
}
