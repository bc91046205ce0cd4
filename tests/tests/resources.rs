//! What a VM may use of the host: each limit is met by a guest that wants more, and is seen from the
//! outside by the kernel's own counters.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "tests write specs"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Instant;

use ocivisor_tests::{Answer, Host, wait_for};
use serde_json::{Value, json};

/// Defines a VM on a new disk and boots it; it sleeps.
fn boot(host: &Host, number: u32, resources: &Value, io: &Value) -> String {
    define(host, number, resources, io);
    let vm = format!("vm-{number}");
    host.cli(&["start", &vm]).ok();
    vm
}

fn define(host: &Host, number: u32, resources: &Value, io: &Value) {
    let mut spec = json!({
        "id": format!("vm-{number}"),
        "resources": resources,
        "boot": {"init": "application", "entrypoint": ["/bin/sleep", "100000"]},
        "root": {"path": host.add_disk(number)},
    });
    if *io != json!({}) {
        spec["root"]["io"] = io.clone();
    }
    let file = host.dir().join(format!("vm-{number}.json"));
    fs::write(&file, spec.to_string()).unwrap();
    host.cli(&["define", "--file", &file.display().to_string()]).ok();
}

fn sh(host: &Host, vm: &str, script: &str) -> Answer {
    host.cli(&["exec", vm, "--", "/bin/sh", "-c", script])
}

/// A command in a guest, ended with this.
struct Session(Child);

impl Session {
    fn begin(host: &Host, vm: &str, script: &str) -> Self {
        let mut command = host.cli_command(&["exec", vm, "--", "/bin/sh", "-c", script]);
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// A file of the guest's group: by its name in v1, where the controller is in a hierarchy of its own,
/// else by that in v2.
fn group_file(host: &Host, vm: &str, controller: &str, v1: &str, v2: &str) -> PathBuf {
    let root = Path::new("/sys/fs/cgroup");
    let below = format!("{}/{vm}/guest", host.name());
    let own = root.join(controller).join(&below);
    let places =
        [own.join(v1), root.join("unified").join(&below).join(v2), root.join(below).join(v2)];
    places.iter().find(|path| path.exists()).cloned().unwrap_or_else(|| panic!("{places:?}"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap().trim().to_owned()
}

/// A number of a file with a name and a number per line.
fn counter(path: &Path, name: &str) -> u64 {
    let text = read(path);
    let found = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    found.unwrap_or_else(|| panic!("no {name} in {}: {text}", path.display()))
}

/// Bytes read from and written to a VM's root disk (proc_diskstats(5)).
fn traffic(host: &Host, vm: &str) -> (u64, u64) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let disk = host.run_dir().join("vms").join(vm).join("disk").display().to_string();
    let device = mounts.lines().find_map(|line| {
        let mut words = line.split(' ');
        let device = words.nth(2)?.replace(':', " ");
        (words.nth(1)? == disk).then_some(device)
    });
    let device = device.expect("its disk is mounted");
    let stats = fs::read_to_string("/proc/diskstats").unwrap();
    let line = stats
        .lines()
        .find(|line| line.split_ascii_whitespace().take(2).collect::<Vec<_>>().join(" ") == device);
    let words: Vec<&str> = line.unwrap().split_ascii_whitespace().collect();
    let sectors = |at: usize| words[at].parse::<u64>().unwrap() * 512;
    (sectors(5), sectors(9))
}

#[test]
fn a_guest_has_as_many_processors_as_vcpus_and_those_it_is_pinned_to() {
    let host = Host::start();
    let all = sh_host("nproc");
    let memory = 64 << 20;
    let one = boot(&host, 1, &json!({"memory": memory, "vcpus": 1}), &json!({}));
    assert_eq!(sh(&host, &one, "nproc").ok().trim(), "1");
    let many = boot(&host, 2, &json!({"memory": memory, "vcpus": 4096}), &json!({}));
    assert_eq!(sh(&host, &many, "nproc").ok(), all);
    let pinned = json!({"memory": memory, "vcpus": 2, "cpus": "1", "nodes": "0"});
    let pinned = boot(&host, 3, &pinned, &json!({}));
    let status = sh(&host, &pinned, "cat /proc/self/status").ok();
    assert!(status.contains("Cpus_allowed_list:\t1\n"), "{status}");
    assert!(status.contains("Mems_allowed_list:\t0\n"), "{status}");
    assert_eq!(read(&group_file(&host, &pinned, "cpuset", "cpuset.mems", "cpuset.mems")), "0");

    define(&host, 4, &json!({"memory": memory, "vcpus": 1, "cpus": "4000"}), &json!({}));
    let before = host.counts();
    let answer = host.cli(&["start", "vm-4"]);
    assert_eq!(answer.code, 3, "{answer:?}");
    assert!(answer.err.contains("this host has no processor 4000 for guests"), "{answer:?}");
    assert!(answer.err.contains("hint: it has "), "{answer:?}");
    assert_eq!(host.counts(), before);
}

fn sh_host(command: &str) -> String {
    ocivisor_tests::tool(&["sh", "-c", command])
}

#[test]
fn a_guest_gets_no_more_time_than_its_quota() {
    // By its own wish, and because the host wants shares to be quotas.
    let host = Host::start_with("cpu = \"quota\"\n");
    let resources = json!({"memory": 64 << 20, "vcpus": 1, "cpu_share": 25});
    let vm = boot(&host, 1, &resources, &json!({}));
    let stat = group_file(&host, &vm, "cpu", "cpu.stat", "cpu.stat");
    let idle = counter(&stat, "nr_throttled ");
    let _busy = Session::begin(&host, &vm, "while :; do :; done");
    wait_for("being throttled", || {
        let throttled = counter(&stat, "nr_throttled ");
        if throttled >= idle + 5 { Ok(()) } else { Err(throttled) }
    });
    let quota = read(&group_file(&host, &vm, "cpu", "cpu.cfs_quota_us", "cpu.max"));
    assert!(["25000", "25000 100000"].contains(&quota.as_str()), "{quota}");
}

#[test]
fn a_fork_bomb_ends_at_the_limit_of_its_guest() {
    let host = Host::start();
    let small = json!({"memory": 128 << 20, "vcpus": 1, "pids": 40});
    let (bomb, other) = (boot(&host, 1, &small, &json!({})), boot(&host, 2, &small, &json!({})));
    let script =
        "for i in $(seq 200); do (sleep 1000 > /dev/null 2>&1 < /dev/null &) 2>/dev/null; done";
    sh(&host, &bomb, script);
    let of = |file: &str| group_file(&host, &bomb, "pids", file, file);
    wait_for("refused forks", || match counter(&of("pids.events"), "max ") {
        0 => Err(read(&of("pids.current"))),
        _ => Ok(()),
    });
    let current: u32 = read(&of("pids.current")).parse().unwrap();
    assert!(current <= 40, "{current}");
    assert_eq!(sh(&host, &other, "echo well").ok(), "well\n");
    assert_eq!(
        counter(&group_file(&host, &other, "pids", "pids.events", "pids.events"), "max "),
        0
    );
}

#[test]
fn a_disks_traffic_is_bounded() {
    let host = Host::start();
    let resources = json!({"memory": 256 << 20, "vcpus": 1, "io_weight": 50});
    let rate: u64 = 2 << 20;
    let io = json!({"write_bytes": rate, "read_bytes": 1 << 30});
    let vm = boot(&host, 1, &resources, &io);
    let before = traffic(&host, &vm).1;
    let began = Instant::now();
    // Direct: what a guest leaves to the page cache is bounded in cgroup v2 alone.
    let writing =
        Session::begin(&host, &vm, "dd if=/dev/zero of=/f bs=256k count=160 oflag=direct");
    let most = |seconds: f64| (rate as f64 * (seconds + 0.5)) as u64 + (1 << 20);
    wait_for("some writing", || {
        let written = traffic(&host, &vm).1 - before;
        let seconds = began.elapsed().as_secs_f64();
        assert!(written <= most(seconds), "{written} bytes in {seconds} s");
        if written >= 3 * rate { Ok(()) } else { Err(written) }
    });
    drop(writing);
    let weight = group_file(&host, &vm, "blkio", "blkio.bfq.weight", "io.weight");
    assert!(["50", "default 50"].contains(&read(&weight).lines().next().unwrap()), "{weight:?}");

    // After a reboot the group is another one, and perhaps the device.
    host.cli(&["reset", &vm]).ok();
    let file = group_file(&host, &vm, "blkio", "blkio.throttle.write_bps_device", "io.max");
    let bounds = read(&file);
    assert!(bounds.contains(&rate.to_string()), "{bounds}");

    // A directory has no device of its own.
    let path = host.vm_dir(2).join("disk.0").display().to_string();
    host.cli(&["disk", "create", "--image", "busybox", "--backend", "directory", &path]).ok();
    let spec = json!({
        "id": "vm-2", "resources": {"memory": 64 << 20}, "root": {"path": path, "io": io},
        "boot": {"entrypoint": ["/bin/sleep", "1000"]},
    });
    let spec_file = host.dir().join("vm-2.json");
    fs::write(&spec_file, spec.to_string()).unwrap();
    host.cli(&["define", "--file", &spec_file.display().to_string()]).ok();
    let before = host.counts();
    let answer = host.cli(&["start", "vm-2"]);
    assert_eq!(answer.code, 8, "{answer:?}");
    assert!(answer.err.contains("root.io: the traffic of a directory"), "{answer:?}");
    assert_eq!(host.counts(), before);
}

#[test]
fn huge_pages_are_limited_to_what_was_wished_for() {
    let host = Host::start();
    let resources = json!({
        "memory": 64 << 20, "hugepages": [{"page": 2 << 20, "limit": 8 << 20}]
    });
    let vm = boot(&host, 1, &resources, &json!({}));
    let limit = |vm: &str, size: &str| {
        let (v1, v2) = (format!("hugetlb.{size}.limit_in_bytes"), format!("hugetlb.{size}.max"));
        read(&group_file(&host, vm, "hugetlb", &v1, &v2))
    };
    assert_eq!(limit(&vm, "2MB"), (8 << 20).to_string());
    assert_eq!(limit(&boot(&host, 2, &json!({"memory": 64 << 20}), &json!({})), "2MB"), "0");
    define(
        &host,
        3,
        &json!({"memory": 64 << 20, "hugepages": [{"page": 8 << 20, "limit": 8 << 20}]}),
        &json!({}),
    );
    let answer = host.cli(&["start", "vm-3"]);
    assert_eq!(answer.code, 3, "{answer:?}");
    assert!(answer.err.contains("this host has no huge pages of 8 MiB"), "{answer:?}");
}
