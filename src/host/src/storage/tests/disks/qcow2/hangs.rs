//! Servers that stop and do not answer.

use std::sync::atomic::{AtomicBool, Ordering};

use ocivisor_core::error::Error;
use rustix::process::{Pid, Signal, kill_process};

use super::*;

impl Served {
    /// Attaches, wanted until its server hangs or all the time; the server stops when it begins or when its disk is read.
    /// `None`: it was attached before that. What is returned besides is whether it had to be freed.
    fn attach_hanging(&self, vm: &VmSpec, limit: Duration, read: bool) -> Option<(Error, bool)> {
        let checks = Checks { limit, at_once: 2 };
        let storage = storage_in(self.ground.dir.path(), Way::probe())
            .with_checks(checks, groups(&self.base));
        let group = self.groups.hierarchies().tracking().join(&self.base).join("+disks");
        let servers = || pids(&group.join(vm.id.as_str()).join("cgroup.procs"));
        // Whoever checks the filesystem is among the guest's.
        let is_read = || self.groups.guest_procs(&vm.id).iter().any(|file| !pids(file).is_empty());
        let (hangs, done) = (AtomicBool::new(false), AtomicBool::new(false));
        let give_up = || limit == LONG && hangs.load(Ordering::Relaxed);
        std::thread::scope(|scope| {
            let stopper = scope.spawn(|| {
                let is_time = || if read { is_read() } else { !servers().is_empty() };
                while !is_time() {
                    if done.load(Ordering::Relaxed) {
                        return false;
                    }
                    std::thread::yield_now();
                }
                let stopped = servers();
                let tell = |signal| {
                    for pid in &stopped {
                        // Killed meanwhile is what is wanted.
                        let _ = kill_process(*pid, signal);
                    }
                };
                tell(Signal::STOP);
                hangs.store(true, Ordering::Relaxed);
                let far = Instant::now() + LONG / 2;
                let ended = mounts::until(far, || Ok(done.load(Ordering::Relaxed))).unwrap();
                tell(Signal::CONT);
                !ended
            });
            let got = storage.ensure_disks(vm, IDS, &give_up);
            done.store(true, Ordering::Relaxed);
            let freed = stopper.join().unwrap();
            got.err().map(|error| (error, freed))
        })
    }
}

fn pids(file: &Path) -> Vec<Pid> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)).collect()
}

#[test]
fn a_server_that_hangs_holds_up_attaching_no_longer_than_it_may_or_is_wanted() {
    let served = Served::new();
    let a = served.formatted("a", 64);
    let vm = vm("vm-1", &[qcow2(1, &a, at("/a"))]);
    for (limit, kind) in
        [(Duration::from_secs(2), ErrorKind::Timeout), (LONG, ErrorKind::Cancelled)]
    {
        for read in [false, true] {
            let tries = std::iter::repeat_with(|| {
                let got = served.attach_hanging(&vm, limit, read);
                if got.is_none() {
                    served.detach(&vm);
                }
                got
            });
            let (error, freed) = tries.take(10).flatten().next().unwrap();
            assert_eq!((error.kind, freed), (kind, false), "{read} {error}");
            assert!(!served.groups.has_disk_servers(&vm.id));
            served.ground.assert_clean();
        }
    }
    served.attach(&vm).unwrap();
    served.detach(&vm);
    check(&a);
}

#[test]
fn what_is_attached_still_has_longer_than_checks_for_writing_back() {
    let served = Served::new();
    let a = served.formatted("a", 64);
    let [before, now] = ["/a", "/b"].map(|path| vm("vm-1", &[qcow2(1, &a, at(path))]));
    served.attach(&before).unwrap();
    let [server] = served.servers(&before)[..] else { panic!("one disk, one server") };
    let server = Pid::from_raw(server.cast_signed()).unwrap();
    kill_process(server, Signal::STOP).unwrap();
    // The new one's server has it all, and starts within it.
    let limit = Duration::from_secs(10);
    let checks = Checks { limit, at_once: 2 };
    let storage = storage_in(served.ground.dir.path(), Way::probe())
        .with_checks(checks, groups(&served.base));
    std::thread::scope(|scope| {
        let attached = scope.spawn(|| storage.ensure_disks(&now, IDS, &|| false).map(drop));
        let until = Instant::now() + limit + Duration::from_secs(1);
        assert!(!mounts::until(until, || Ok(attached.is_finished())).unwrap());
        kill_process(server, Signal::CONT).unwrap();
        assert_eq!(attached.join().unwrap(), Ok(()));
    });
    served.detach(&now);
    check(&a);
}

#[test]
fn waiting_for_the_checks_of_others_is_not_the_time_of_a_served_disk() {
    let served = Served::new();
    let a = served.formatted("a", 64);
    let vm = vm("vm-1", &[qcow2(1, &a, at("/a"))]);
    let limit = Duration::from_secs(20);
    let storage = storage_in(served.ground.dir.path(), Way::probe())
        .with_checks(Checks { limit, at_once: 1 }, groups(&served.base));
    // As if somebody else had the only turn for longer than that.
    storage.turns.queue().at_work = 1;
    std::thread::scope(|scope| {
        let attached = scope.spawn(|| storage.ensure_disks(&vm, IDS, &|| false).map(drop));
        let waits = || Ok(!storage.turns.queue().waiting.is_empty() || attached.is_finished());
        assert!(mounts::until(Instant::now() + LONG, waits).unwrap());
        let until = Instant::now() + limit + Duration::from_secs(1);
        assert!(!mounts::until(until, || Ok(attached.is_finished())).unwrap());
        storage.turns.queue().at_work = 0;
        assert_eq!(attached.join().unwrap(), Ok(()));
    });
    served.detach(&vm);
}
