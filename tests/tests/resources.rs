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

use ocivisor_tests::{Answer, Call, Host, wait_for};
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

/// The limits in force, as the kernel has them: memory, pids, quota.
fn limits(host: &Host, vm: &str) -> [String; 3] {
    [
        read(&group_file(host, vm, "memory", "memory.limit_in_bytes", "memory.max")),
        read(&group_file(host, vm, "pids", "pids.max", "pids.max")),
        read(&group_file(host, vm, "cpu", "cpu.cfs_quota_us", "cpu.max")).replace(" 100000", ""),
    ]
}

#[test]
fn a_guest_that_runs_is_resized_both_ways_and_keeps_what_it_uses() {
    let host = Host::start();
    let vm = boot(&host, 1, &json!({"memory": 256 << 20, "vcpus": 1, "pids": 100}), &json!({}));
    let pid = |host: &Host| host.info("vm-1").unwrap()["guest"]["init"]["pid"].clone();
    let (first, mib) = (pid(&host), |n: u64| (n << 20).to_string());
    assert_eq!(limits(&host, &vm), [mib(256), "100".into(), "100000".into()]);
    let up = ["resize", &vm, "--memory", "512M", "--vcpus", "2", "--pids", "200"];
    host.cli(&up).ok();
    assert_eq!(limits(&host, &vm), [mib(512), "200".into(), "200000".into()]);
    assert_eq!(
        sh(&host, &vm, "nproc").ok(),
        sh_host("nproc --all | awk '{print ($1 > 2 ? 2 : $1)}'")
    );
    // What is so already is no operation.
    assert!(host.cli(&up).ok().contains("already"));

    // Files in memory are memory that nobody can take from it.
    sh(&host, &vm, "dd if=/dev/zero of=/dev/shm/f bs=1M count=120 2>/dev/null").ok();
    let before = limits(&host, &vm);
    let answer = host.cli(&["resize", &vm, "--memory", "64M", "--pids", "20", "--vcpus", "1"]);
    assert_eq!(answer.code, 7, "{answer:?}");
    assert!(answer.err.contains("the guest uses 12"), "{answer:?}");
    assert!(
        answer.err.contains("of memory that cannot be taken from it, more than 64 MiB"),
        "{answer:?}"
    );
    assert_eq!(limits(&host, &vm), before, "nothing was changed");
    let info = host.info(&vm).unwrap();
    assert_eq!(info["spec"]["resources"]["memory"], 512 << 20, "on record neither");
    assert_eq!(info["spec"]["resources"]["pids"], 200);
    assert_eq!(info["losses"], json!([]));

    // Page cache is given back: less than what is cached is enough.
    sh(
        &host,
        &vm,
        "rm /dev/shm/f; dd if=/dev/zero of=/f bs=1M count=40 2>/dev/null; cat /f > /dev/null",
    )
    .ok();
    let crowd = Session::begin(&host, &vm, "for i in $(seq 30); do sleep 1000 & done; wait");
    wait_for("a crowd", || match stats(&host, &vm)["pids"]["current"].as_u64() {
        Some(31..) => Ok(()),
        few => Err(few),
    });
    let shrink = ["resize", &vm, "--memory", "32M", "--pids", "20", "--cpu-quota", "0.5"];
    let answer = host.cli(&shrink);
    assert_eq!(answer.code, 0, "{answer:?}");
    assert!(answer.err.contains("no new one begins before fewer than 20 are left"), "{answer:?}");
    drop(crowd);
    assert_eq!(limits(&host, &vm), [mib(32), "20".into(), "50000".into()]);
    assert_eq!(pid(&host), first, "the same guest all the time");

    // The limits of a restarted daemon and of the next boot are those of the record.
    let mut host = host;
    host.restart_daemon();
    assert_eq!(limits(&host, &vm), [mib(32), "20".into(), "50000".into()]);
    host.cli(&["reset", &vm]).ok();
    assert_eq!(limits(&host, &vm), [mib(32), "20".into(), "50000".into()]);
    host.cli(&["destroy", &vm]).ok();
    host.cli(&["resize", &vm, "--memory", "128M", "--cpu-quota", "none"]).ok();
    host.cli(&["start", &vm]).ok();
    assert_eq!(limits(&host, &vm)[0], mib(128));
    assert_eq!(host.cli(&["resize", "nobody", "--pids", "20"]).code, 3);
    assert_eq!(host.cli(&["resize", &vm, "--memory", "1M"]).code, 2);
}

#[test]
fn opennebula_resizes_a_vm_that_runs() {
    let host = Host::start();
    host.add_disk(0);
    let deploy = Call::recorded(&host, "0079-vmm-deploy");
    host.driver(&deploy).ok();
    let resize = Call::recorded(&host, "0482-vmm-resize").for_vm(13, 0);
    let answer = host.driver(&resize);
    assert_eq!((answer.code, answer.out.as_str()), (0, ""), "{answer:?}");
    assert!(answer.err.lines().all(|line| line.starts_with("INFO: 0 ")), "{answer:?}");
    let resources = &host.info("one-0").unwrap()["spec"]["resources"];
    assert_eq!((&resources["memory"], &resources["cpu_share"]), (&json!(512 << 20), &json!(100)));
    assert_eq!(limits(&host, "one-0")[0], (512 << 20).to_string());

    let fill = "dd if=/dev/zero of=/dev/shm/f bs=1M count=120 2>/dev/null";
    sh(&host, "one-0", fill).ok();
    let small = resize.with("<MEMORY><![CDATA[512]]></MEMORY><NIC>", "<MEMORY>32</MEMORY><NIC>");
    let answer = host.driver(&small);
    assert_eq!((answer.code, answer.out.as_str()), (1, ""), "{answer:?}");
    let plain: Vec<&str> = answer.err.lines().filter(|line| !line.starts_with("INFO: ")).collect();
    assert_eq!(plain.len(), 1, "{answer:?}");
    assert!(plain[0].starts_with("Cannot resize VM 0: the guest uses 12"), "{plain:?}");
    assert_eq!(limits(&host, "one-0")[0], (512 << 20).to_string());
}

fn stats(host: &Host, vm: &str) -> Value {
    host.cli(&["stats", vm, "-o", "json"]).json()["vms"][0].clone()
}

/// All events of a kind about a VM.
fn events(host: &Host, vm: &str, kind: &str) -> Vec<Value> {
    let lines = host.cli(&["events", "--vm", vm, "-o", "json"]).ok();
    let all = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    all.filter(|event| event["kind"] == kind).collect()
}

#[test]
fn a_guest_that_runs_out_of_memory_hurts_nobody_else_and_is_told_of() {
    let host = Host::start();
    let small = json!({"memory": 64 << 20, "vcpus": 1});
    let (hog, other) = (boot(&host, 1, &small, &json!({})), boot(&host, 2, &small, &json!({})));
    // It wants all the memory there is.
    let killed = sh(&host, &hog, "tail /dev/zero; echo $?");
    assert_eq!(killed.out.trim(), "137", "{killed:?}");
    wait_for("an event", || match events(&host, &hog, "vm_oom").as_slice() {
        [] => Err("none"),
        _ => Ok(()),
    });
    let told = &events(&host, &hog, "vm_oom")[0];
    assert_eq!((&told["count"], &told["total"]), (&json!(1), &json!(1)));
    assert_eq!(stats(&host, &hog)["memory"]["oom_kills"], 1);
    assert_eq!(stats(&host, &other)["memory"]["oom_kills"], 0);
    assert_eq!(events(&host, &other, "vm_oom"), [] as [Value; 0]);
    assert_eq!(sh(&host, &hog, "echo well").ok(), "well\n", "its first process lives on");
    assert_eq!(sh(&host, &other, "echo well").ok(), "well\n");

    // A new daemon tells of what is new.
    let mut host = host;
    host.restart_daemon();
    assert_eq!(events(&host, &hog, "vm_oom"), [] as [Value; 0]);
    sh(&host, &hog, "tail /dev/zero");
    wait_for("an event", || match events(&host, &hog, "vm_oom").as_slice() {
        [] => Err("none"),
        [told, ..] if told["count"] == 1 && told["total"] == 2 => Ok(()),
        _ => Err("another"),
    });
}

#[test]
fn stats_count_what_guests_use() {
    let host = Host::start();
    host.add_disk(0);
    host.driver(&Call::recorded(&host, "0079-vmm-deploy")).ok();
    let quiet = boot(&host, 1, &json!({"memory": 64 << 20, "vcpus": 1}), &json!({}));
    define(&host, 2, &json!({"memory": 64 << 20}), &json!({}));
    let before = stats(&host, "one-0");
    host.in_netns(&["ping", "-c5", "-i0.2", "-s1000", "192.168.100.10"]).ok();
    let work = "dd if=/dev/urandom of=/f bs=1M count=8 conv=fsync 2>/dev/null; \
                dd if=/dev/zero of=/dev/shm/f bs=1M count=16 2>/dev/null; \
                dd if=/dev/urandom of=/media/one-disk.1/f bs=1M count=8 conv=fsync 2>/dev/null";
    sh(&host, "one-0", work).ok();
    let after = stats(&host, "one-0");
    let grew = |path: &str| {
        let of = |stats: &Value| stats.pointer(path).and_then(Value::as_u64).expect("a number");
        of(&after).checked_sub(of(&before)).expect("counters grow")
    };
    assert!(grew("/cpu/usage_us") > 1000, "{after}");
    assert!(grew("/memory/used") >= 16 << 20, "{after}");
    assert!(after["memory"]["peak"].as_u64() >= after["memory"]["used"].as_u64(), "{after}");
    assert_eq!(after["memory"]["limit"], 256 << 20);
    // Both disks, the root's and the volatile one.
    assert!((16 << 20..24 << 20).contains(&grew("/disk/write_bytes")), "{after}");
    assert!(grew("/disk/write_ops") > 0);
    // Five requests and five answers with 1000 bytes and their headers, and some ARP.
    for way in ["rx", "tx"] {
        assert!((5..50).contains(&grew(&format!("/nics/0/{way}_packets"))), "{after}");
        assert!((5 * 1042..20_000).contains(&grew(&format!("/nics/0/{way}_bytes"))), "{after}");
    }
    assert!(after["pids"]["current"].as_u64().unwrap() >= 1);
    let pressure = fs::read_to_string("/proc/pressure/cpu").is_ok();
    assert_eq!(after["pressure"].is_object(), pressure, "{after}");

    // All that run, in one answer; others by name say why not.
    let all = host.cli(&["stats", "-o", "json"]).json();
    let ids: Vec<&str> =
        all["vms"].as_array().unwrap().iter().map(|vm| vm["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["one-0", "vm-1"]);
    assert_eq!(host.cli(&["stats", "vm-2"]).code, 4);
    assert_eq!(host.cli(&["stats", "vm-1", "nobody"]).code, 3);
    let table = host.cli(&["stats", "--interval", "100ms"]).ok();
    assert_eq!(table.lines().count(), 3, "{table}");

    // Another boot counts anew; its disk and its NICs are the same.
    sh(&host, &quiet, "for i in $(seq 20000); do :; done").ok();
    let before = stats(&host, &quiet);
    host.cli(&["reset", &quiet]).ok();
    let after = stats(&host, &quiet);
    assert!(after["cpu"]["usage_us"].as_u64() < before["cpu"]["usage_us"].as_u64(), "{after}");
    assert!(after["disk"]["write_bytes"].as_u64() >= before["disk"]["write_bytes"].as_u64());
}

/// A FUSE server of this test's own, ended and unmounted with it.
struct Lxcfs {
    server: Child,
    dir: PathBuf,
}

impl Lxcfs {
    fn start(host: &Host) -> Self {
        let dir = host.dir().join("lxcfs");
        fs::create_dir_all(&dir).unwrap();
        // All below the host's directory is to be passed through by guests' ids.
        ocivisor_tests::tool(&["chmod", "755", &host.dir().display().to_string()]);
        let pid_file = host.dir().join("lxcfs.pid");
        let server = std::process::Command::new("lxcfs")
            .args(["-f", "--enable-cfs", "--enable-loadavg", "-p"])
            .arg(pid_file)
            .arg(&dir)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("lxcfs is installed");
        let started = Self { server, dir };
        wait_for("lxcfs", || match fs::read_to_string(started.dir.join("proc/uptime")) {
            Ok(_) => Ok(()),
            Err(e) => Err(e.to_string()),
        });
        started
    }

    fn signal(&self, name: &str) {
        ocivisor_tests::tool(&["kill", name, &self.server.id().to_string()]);
    }
}

impl Drop for Lxcfs {
    fn drop(&mut self) {
        // It may be stopped or dead already.
        let _ = self.server.kill();
        let _ = self.server.wait();
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.dir).output();
    }
}

#[test]
fn a_guest_sees_its_own_limits_where_lxcfs_answers() {
    let host = Host::start();
    let lxcfs = Lxcfs::start(&host);
    let small = json!({"memory": 96 << 20, "vcpus": 1, "swap": 0});
    let vm = boot(&host, 1, &small, &json!({}));
    let shown = |file: &str| sh(&host, &vm, &format!("cat {file}")).ok();
    assert!(
        shown("/proc/meminfo").contains("MemTotal:          98304 kB"),
        "{}",
        shown("/proc/meminfo")
    );
    assert_eq!(shown("/proc/cpuinfo").matches("processor\t:").count(), 1);
    assert_eq!(shown("/proc/stat").lines().filter(|l| l.starts_with("cpu")).count(), 2);
    let uptime = shown("/proc/uptime");
    let seconds: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
    assert!(seconds < 3600.0, "that of the guest, not of the host: {uptime}");
    assert_eq!(shown("/sys/devices/system/cpu/online").trim().split([',', '-']).count(), 1);
    for file in ["/proc/loadavg", "/proc/swaps", "/proc/diskstats"] {
        shown(file);
    }
    assert_ne!(sh(&host, &vm, "echo 0 > /sys/devices/system/cpu/cpu0/online").code, 0);
    // A change of limits shows at once.
    host.cli(&["resize", &vm, "--memory", "128M"]).ok();
    assert!(shown("/proc/meminfo").contains("MemTotal:         131072 kB"));

    // One that hangs, or died, keeps no guest from booting; the look at it is bounded.
    lxcfs.signal("-STOP");
    let without = boot(&host, 2, &small, &json!({}));
    let total = |vm: &str| {
        let meminfo = sh(&host, vm, "cat /proc/meminfo").ok();
        meminfo.lines().next().unwrap().to_owned()
    };
    assert!(!total(&without).contains(" 98304 kB"), "{}", total(&without));
    lxcfs.signal("-CONT");
    // The look that did not come back has to, first.
    wait_for("a boot with it", || {
        host.cli(&["reset", &without]).ok();
        let total = total(&without);
        if total.contains(" 98304 kB") { Ok(()) } else { Err(total) }
    });
    lxcfs.signal("-KILL");
    wait_for("its end", || match fs::metadata(&lxcfs.dir) {
        Err(_) => Ok(()),
        Ok(_) => Err("it answers"),
    });
    host.cli(&["reset", &without]).ok();
    assert!(!total(&without).contains(" 98304 kB"), "{}", total(&without));
}

#[test]
fn lxcfs_is_required_or_off_where_the_admin_says_so() {
    let host = Host::start_with("lxcfs = \"required\"\n");
    let small = json!({"memory": 96 << 20, "vcpus": 1});
    define(&host, 1, &small, &json!({}));
    let before = host.counts();
    let answer = host.cli(&["start", "vm-1"]);
    assert_eq!(answer.code, 8, "{answer:?}");
    assert!(answer.err.contains("/lxcfs cannot be used: No such file"), "{answer:?}");
    assert_eq!(host.counts(), before);
    let _lxcfs = Lxcfs::start(&host);
    host.cli(&["start", "vm-1"]).ok();

    let host = Host::start_with("lxcfs = \"off\"\n");
    let _lxcfs = Lxcfs::start(&host);
    let vm = boot(&host, 1, &small, &json!({}));
    assert!(!sh(&host, &vm, "cat /proc/meminfo").ok().contains(" 98304 kB"));
}
