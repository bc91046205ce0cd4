//! On the control groups of the machine that runs the tests, under a base of their own.

use std::process::{Child, Command, Stdio};

use ocivisor_core::units::{Bytes, CentiCores};

use super::*;

/// A base group that is removed with the test.
struct Base(HostCgroups);

impl Base {
    fn new(name: &str) -> Self {
        let layout = Layout {
            cgroup_base: format!("ocvtest-{name}-{}", std::process::id()),
            ..Layout::system()
        };
        Self(HostCgroups::new(&layout).unwrap())
    }
}

impl Drop for Base {
    fn drop(&mut self) {
        for root in self.0.hierarchies.all() {
            kill::thaw_all(&root.join(&self.0.base)).unwrap();
        }
        for root in self.0.hierarchies.all() {
            kill::kill_all(&root.join(&self.0.base)).unwrap();
            kill::remove(&root.join(&self.0.base)).unwrap();
        }
    }
}

fn resources() -> Resources {
    Resources {
        cpu_share: CentiCores(50),
        vcpus: 2,
        cpu_quota: Some(CentiCores(150)),
        memory: Bytes::mib(64),
        swap: Bytes(0),
        pids: 20,
        io_weight: None,
        placement: ocivisor_core::spec::Placement::default(),
        hugepages: Vec::new(),
    }
}

#[expect(clippy::disallowed_methods, reason = "a process to be killed by the test")]
fn sleeper() -> Child {
    Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap()
}

fn join(files: &[PathBuf], pid: u32) {
    for file in files {
        file::write(file, &pid.to_string()).unwrap();
    }
}

fn read(base: &Base, controller: &str, id: &VmId, file: &str) -> Option<String> {
    let h = &base.0.hierarchies;
    let root = h.v1(controller).or(h.v2(controller))?;
    Some(fs::read_to_string(base.0.group(root, id, "guest").join(file)).ok()?.trim().to_owned())
}

#[test]
fn limits_are_those_of_the_spec_and_ensure_may_run_twice() {
    let base = Base::new("limits");
    let id: VmId = "one-1".parse().unwrap();
    for _ in 0..2 {
        base.0.ensure_cgroup(&id, &resources()).unwrap();
    }
    if base.0.hierarchies.v1("cpu").is_some() {
        assert_eq!(read(&base, "cpu", &id, "cpu.shares").unwrap(), "512");
        assert_eq!(read(&base, "cpu", &id, "cpu.cfs_quota_us").unwrap(), "150000");
        assert_eq!(read(&base, "memory", &id, "memory.limit_in_bytes").unwrap(), "67108864");
    } else {
        assert_eq!(read(&base, "cpu", &id, "cpu.weight").unwrap(), "50");
        assert_eq!(read(&base, "cpu", &id, "cpu.max").unwrap(), "150000 100000");
        assert_eq!(read(&base, "memory", &id, "memory.max").unwrap(), "67108864");
    }
    assert_eq!(read(&base, "pids", &id, "pids.max").unwrap(), "20");
    assert_eq!(base.0.observe_cgroups().unwrap(), BTreeSet::from([id.clone()]));
    for _ in 0..2 {
        base.0.drop_cgroup(&id).unwrap();
    }
    assert_eq!(base.0.observe_cgroups().unwrap(), BTreeSet::new());
}

#[test]
fn memory_can_be_raised_and_lowered_again() {
    let base = Base::new("memory");
    let id: VmId = "one-1".parse().unwrap();
    for mib in [64, 256, 32] {
        let wanted = Resources { memory: Bytes::mib(mib), ..resources() };
        base.0.ensure_cgroup(&id, &wanted).unwrap();
        let h = &base.0.hierarchies;
        let file = if h.v1("memory").is_some() { "memory.limit_in_bytes" } else { "memory.max" };
        assert_eq!(read(&base, "memory", &id, file).unwrap(), (mib << 20).to_string());
    }
    base.0.drop_cgroup(&id).unwrap();
}

#[test]
fn drop_kills_guest_and_shim_in_nested_and_frozen_groups_and_nothing_else() {
    let base = Base::new("kill");
    let (id, other): (VmId, VmId) = ("one-1".parse().unwrap(), "one-2".parse().unwrap());
    base.0.ensure_cgroup(&id, &resources()).unwrap();
    base.0.ensure_cgroup(&other, &resources()).unwrap();
    let (mut guest, mut shim, mut nested) = (sleeper(), sleeper(), sleeper());
    let mut bystander = sleeper();
    join(&base.0.guest_procs(&id), guest.id());
    join(&base.0.shim_procs(&id), shim.id());
    join(&base.0.guest_procs(&other), bystander.id());
    for root in base.0.hierarchies.limiting() {
        let inner = base.0.group(root, &id, "guest").join("inner");
        fs::create_dir(&inner).unwrap();
        base.0.hierarchies.inherit_cpuset(&inner).unwrap();
        join(&[inner.join("cgroup.procs")], nested.id());
    }
    if let Some(freezer) = base.0.hierarchies.v1("freezer") {
        let file = base.0.group(freezer, &id, "guest").join("freezer.state");
        file::write(&file, "FROZEN").unwrap();
    }
    base.0.drop_cgroup(&id).unwrap();
    for child in [&mut guest, &mut shim, &mut nested] {
        let status = child.try_wait().unwrap().expect("killed before drop_cgroup returned");
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    }
    assert!(bystander.try_wait().unwrap().is_none());
    bystander.kill().unwrap();
    bystander.wait().unwrap();
    base.0.drop_cgroup(&other).unwrap();
}

#[test]
fn a_limit_that_the_kernel_refuses_leaves_no_group() {
    let base = Base::new("refused");
    let id: VmId = "one-1".parse().unwrap();
    // A quota below one millisecond of the period is refused with EINVAL.
    let bad = Resources { cpu_quota: Some(CentiCores(0)), ..resources() };
    base.0.ensure_cgroup(&id, &bad).unwrap_err();
    assert_eq!(base.0.observe_cgroups().unwrap(), BTreeSet::new());
}

/// As below the daemon's own unit, `Delegate=` or not.
#[test]
fn a_base_below_a_group_with_processes_is_refused_by_name_and_that_group_stays_as_it_was() {
    let outer = Base::new("busy");
    let tracking = outer.0.hierarchies.tracking().join(&outer.0.base);
    fs::create_dir(&tracking).unwrap();
    let mut inhabitant = sleeper();
    join(&[tracking.join("cgroup.procs")], inhabitant.id());
    let layout = Layout { cgroup_base: format!("{}/vms", outer.0.base), ..Layout::system() };
    let inner = HostCgroups::new(&layout).unwrap();
    let id: VmId = "one-1".parse().unwrap();
    let made = inner.ensure_cgroup(&id, &resources());
    if outer.0.hierarchies.kind() == Kind::V2 {
        let error = made.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unsupported);
        let group = tracking.display();
        assert_eq!(error.message, format!("control group {group} has processes of its own"));
        let of_it = |file: &str| fs::read_to_string(tracking.join(file)).unwrap();
        assert_eq!(
            (of_it("cgroup.type").trim(), of_it("cgroup.subtree_control").trim()),
            ("domain", "")
        );
    } else {
        made.unwrap();
    }
    inner.drop_cgroup(&id).unwrap();
    assert!(inhabitant.try_wait().unwrap().is_none());
    inhabitant.kill().unwrap();
    inhabitant.wait().unwrap();
}

#[test]
fn a_base_that_climbs_is_refused() {
    for bad in ["", "/", "..", "a/../b", "a//b"] {
        let layout = Layout { cgroup_base: bad.into(), ..Layout::system() };
        assert!(HostCgroups::new(&layout).is_err(), "{bad:?}");
    }
}

#[test]
fn a_frozen_guest_stands_still_and_goes_on() {
    let base = Base::new("freeze");
    let id: VmId = "one-1".parse().unwrap();
    base.0.ensure_cgroup(&id, &resources()).unwrap();
    drop(base.0.freeze(&id).unwrap());
    // One that answers a signal: a deadly one would end it in cgroup v2, frozen or not.
    let script = "trap 'exit 3' USR1; echo ready; while :; do :; done";
    #[expect(clippy::disallowed_methods, reason = "a process to be frozen by the test")]
    let mut child = Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut ready = [0; 6];
    std::io::Read::read_exact(&mut child.stdout.take().unwrap(), &mut ready).unwrap();
    join(&base.0.guest_procs(&id), child.id());
    let frozen = base.0.freeze(&id).unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::USR1).unwrap();
    assert!(child.try_wait().unwrap().is_none());
    drop(frozen);
    assert_eq!(child.wait().unwrap().code(), Some(3));
}

#[test]
fn helpers_share_a_limited_group_that_is_no_vm() {
    let base = Base::new("helper");
    for _ in 0..2 {
        let files = base.0.helper_procs("unpack", &resources()).unwrap();
        assert!(!files.is_empty() && files.iter().all(|file| file.exists()), "{files:?}");
    }
    assert_eq!(base.0.observe_cgroups().unwrap(), BTreeSet::new());
}

fn bounded() -> (Resources, String) {
    let machine = Machine::look(&Hierarchies::of_this_host().unwrap(), "nonexistent").unwrap();
    let last = machine.cpus.iter().last().unwrap();
    let cpus = NumberSet::new([last]);
    let placement = ocivisor_core::spec::Placement { cpus, nodes: Some(machine.nodes) };
    (Resources { vcpus: 1, placement, ..resources() }, last.to_string())
}

#[test]
fn a_guest_is_placed_where_it_wishes_and_anywhere_when_it_does_not_care() {
    let base = Base::new("place");
    let id: VmId = "one-1".parse().unwrap();
    let (wish, last) = bounded();
    base.0.ensure_cgroup(&id, &wish).unwrap();
    assert_eq!(read(&base, "cpuset", &id, "cpuset.cpus").unwrap(), last);
    let free = Resources { vcpus: 4096, placement: Default::default(), ..wish };
    base.0.change_limits(&id, &free).unwrap();
    let machine = Machine::look(base.0.hierarchies(), &base.0.base).unwrap();
    let all = match base.0.hierarchies.v1("cpuset") {
        Some(_) => machine.cpus.to_string(),
        None => String::new(),
    };
    assert_eq!(read(&base, "cpuset", &id, "cpuset.cpus").unwrap(), all);
    let mut gone = free;
    gone.placement.cpus = NumberSet::new([8000]);
    let error = base.0.change_limits(&id, &gone).unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert_eq!(error.message, "this host has no processor 8000 for guests");
    assert_eq!(read(&base, "cpuset", &id, "cpuset.cpus").unwrap(), all, "nothing was changed");
    base.0.drop_cgroup(&id).unwrap();
}

/// Guests with fewer processors than the machine has are spread over them, and spread anew.
#[test]
fn guests_are_spread_over_the_processors() {
    let base = Base::new("spread");
    let machine = Machine::look(base.0.hierarchies(), "nonexistent").unwrap();
    assert!(machine.cpus.count() > 1, "a machine with one processor spreads nothing");
    let one = Resources { vcpus: 1, cpu_quota: None, ..resources() };
    let ids: Vec<VmId> = (0..4).map(|n| format!("one-{n}").parse().unwrap()).collect();
    ids.iter().for_each(|id| base.0.ensure_cgroup(id, &one).unwrap());
    let on = |id: &VmId| read(&base, "cpuset", id, "cpuset.cpus").unwrap();
    let mut first: Vec<String> = ids[..2].iter().map(on).collect();
    first.sort();
    first.dedup();
    assert_eq!(first.len(), 2, "two guests are on two processors");
    // All on one processor, as after many comings and goings.
    let crowded = on(&ids[0]);
    for id in &ids {
        let root = base.0.hierarchies.v1("cpuset").or(base.0.hierarchies.v2("cpuset")).unwrap();
        let file = base.0.group(root, id, "guest").join("cpuset.cpus");
        file::write(&file, &crowded).unwrap();
    }
    let live: Vec<(VmId, Resources)> = ids.iter().map(|id| (id.clone(), one.clone())).collect();
    base.0.balance(&live).unwrap();
    let still = ids.iter().filter(|id| on(id) == crowded).count();
    assert!(still <= 2, "{still} of 4 are on processor {crowded}");
    let unspread = base.0.clone().with_policy(Policy { spread_cpus: false, ..Policy::default() });
    unspread.change_limits(&ids[0], &one).unwrap();
    assert!(["", &machine.cpus.to_string()].contains(&on(&ids[0]).as_str()));
    ids.iter().for_each(|id| base.0.drop_cgroup(id).unwrap());
}

/// A process that holds that much memory until it is killed.
#[expect(clippy::disallowed_methods, reason = "a process to be limited by the test")]
fn hog(base: &Base, id: &VmId, mib: u32) -> Child {
    let script = format!(
        "import sys\nsys.stdin.read(1)\nb = b'x' * ({mib} << 20)\nprint('holds', flush=True)\nsys.stdin.read()"
    );
    let mut child = Command::new("python3")
        .args(["-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    join(&base.0.guest_procs(id), child.id());
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"go").unwrap();
    let mut said = [0; 6];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut said).unwrap();
    child
}

#[test]
fn memory_is_not_taken_from_a_guest_that_uses_it() {
    let base = Base::new("shrink");
    let id: VmId = "one-1".parse().unwrap();
    let with = |mib: u64, swap: u64| Resources {
        memory: Bytes::mib(mib),
        swap: Bytes::mib(swap),
        pids: 100,
        ..resources()
    };
    base.0.ensure_cgroup(&id, &with(256, 0)).unwrap();
    let mut hog = hog(&base, &id, 100);
    let names: &[&str] = match base.0.hierarchies.v1("memory") {
        Some(_) => &["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"],
        None => &["memory.max", "memory.high", "memory.swap.max"],
    };
    let now = || -> Vec<Option<String>> {
        let memory = names.iter().map(|file| read(&base, "memory", &id, file));
        memory.chain([read(&base, "pids", &id, "pids.max")]).collect()
    };
    let before = now();
    let refused = Resources { pids: 50, ..with(64, 0) };
    let error = base.0.change_limits(&id, &refused).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Exhausted);
    assert!(error.message.starts_with("the guest uses 1"), "{error}");
    assert!(error.message.ends_with(" of memory that cannot be taken from it, more than 64 MiB"));
    assert_eq!(now(), before, "nothing was changed");
    assert!(hog.try_wait().unwrap().is_none(), "and nobody was killed");
    // Down to what it uses, up, and below again when it is gone.
    base.0.change_limits(&id, &with(160, 0)).unwrap();
    assert_ne!(now(), before);
    base.0.change_limits(&id, &with(512, 64)).unwrap();
    assert!(hog.try_wait().unwrap().is_none());
    hog.kill().unwrap();
    hog.wait().unwrap();
    base.0.change_limits(&id, &with(32, 0)).unwrap();
    let high = read(&base, "memory", &id, "memory.high");
    assert!(high.is_none_or(|high| high == "max"));
    base.0.drop_cgroup(&id).unwrap();
}

/// A change that fails in the middle of its list.
#[test]
fn a_change_that_fails_halfway_is_taken_back() {
    let base = Base::new("halfway");
    let id: VmId = "one-1".parse().unwrap();
    base.0.ensure_cgroup(&id, &resources()).unwrap();
    let limits = || {
        let pids = read(&base, "pids", &id, "pids.max");
        let v1 = read(&base, "memory", &id, "memory.limit_in_bytes");
        (pids, v1.or(read(&base, "memory", &id, "memory.max")))
    };
    let before = limits();
    // A quota that the kernel refuses, behind memory and pids in the list.
    let bad = Resources {
        cpu_quota: Some(CentiCores(0)),
        memory: Bytes::mib(128),
        pids: 99,
        ..resources()
    };
    base.0.change_limits(&id, &bad).unwrap_err();
    assert_eq!(limits(), before);
    assert_eq!(base.0.observe_cgroups().unwrap(), BTreeSet::from([id.clone()]), "it lives on");
    base.0.drop_cgroup(&id).unwrap();
}

#[test]
fn a_display_stays_when_the_vm_s_groups_go_and_is_found_and_killed_by_id() {
    let base = Base::new("display");
    let id: VmId = "one-1".parse().unwrap();
    base.0.ensure_cgroup(&id, &resources()).unwrap();
    let mut display = sleeper();
    for _ in 0..2 {
        join(&[base.0.ensure_display_procs(&id).unwrap()], display.id());
    }
    base.0.drop_cgroup(&id).unwrap();
    assert_eq!(base.0.observe_cgroups().unwrap(), BTreeSet::new());
    assert_eq!(base.0.observe_displays().unwrap(), BTreeSet::from([id.clone()]));
    assert!(display.try_wait().unwrap().is_none());
    for _ in 0..2 {
        base.0.drop_display(&id).unwrap();
    }
    let status = display.try_wait().unwrap().expect("killed before drop_display returned");
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    assert_eq!(base.0.observe_displays().unwrap(), BTreeSet::new());
}
