//! A host as in production: cgroup v2 alone, and systemd, of which the daemon is a service. The
//! machine that runs all other tests need not be one, so these are run by `cargo xtask test --vm`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "tests write a unit and control files"
)]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use ocivisor_tests::{Call, Host, bin_dir, image, tool, wait_for};

/// A unit that runs the daemon of a host; gone with the test.
struct Service<'a> {
    host: &'a Host,
    unit: String,
}

impl<'a> Service<'a> {
    /// Starts it, and gives the host what [`Host::start`] does.
    fn start(host: &'a Host) -> Self {
        let (programs, dir) = (bin_dir().display().to_string(), host.dir().display().to_string());
        let service = Self { host, unit: format!("{}.service", host.name()) };
        let text = format!(
            "[Service]\nDelegate=yes\nKillMode=process\nRestart=on-failure\nRestartSec=100ms\n\
             ExecStart=nsenter --net=/run/netns/{} {programs}/ocivisord --state-dir {dir}/s \
             --run-dir {dir}/r --config {dir}/c.toml\n",
            host.name()
        );
        fs::write(service.file(), text).unwrap();
        tool(&["systemctl", "daemon-reload"]);
        service.control("start");
        service.answers();
        host.add_bridge("br0", "192.168.100.1/24");
        let tar = host.dir().join("busybox.tar");
        image::busybox(&tar);
        let source = format!("rootfs:{}", tar.display());
        host.cli(&["image", "import", &source, "busybox"]).ok();
        service
    }

    fn file(&self) -> PathBuf {
        Path::new("/run/systemd/system").join(&self.unit)
    }

    fn control(&self, verb: &str) {
        tool(&["systemctl", verb, &self.unit]);
    }

    fn main_pid(&self) -> String {
        tool(&["systemctl", "show", "--property=MainPID", "--value", &self.unit]).trim().to_owned()
    }

    fn answers(&self) {
        wait_for("an answer", || match self.host.cli(&["list"]) {
            answer if answer.code == 0 => Ok(()),
            answer => Err(answer),
        });
    }
}

impl Drop for Service<'_> {
    fn drop(&mut self) {
        let run = |words: &[&str]| std::process::Command::new(words[0]).args(&words[1..]).output();
        if std::thread::panicking() {
            let log = run(&["journalctl", "--no-pager", "--unit", &self.unit]).unwrap();
            eprintln!("--- {} ---\n{}", self.unit, String::from_utf8_lossy(&log.stdout));
        }
        // Best effort, also after a failure; the machine is thrown away.
        let _ = run(&["systemctl", "stop", &self.unit]);
        let _ = fs::remove_file(self.file());
    }
}

fn pid(host: &Host, vm: &str) -> u64 {
    host.info(vm).unwrap()["guest"]["init"]["pid"].as_u64().expect("a running guest")
}

fn group(host: &Host, vm: &str) -> PathBuf {
    Path::new("/sys/fs/cgroup").join(host.name()).join(vm).join("guest")
}

fn read(group: &Path, file: &str) -> String {
    fs::read_to_string(group.join(file)).unwrap().trim().to_owned()
}

#[test]
#[ignore = "needs systemd and cgroup v2 alone: cargo xtask test --vm"]
fn guests_outlive_every_end_of_the_service() {
    let host = Host::without_daemon();
    let service = Service::start(&host);
    host.add_disk(0);
    let echo = "while read line; do echo got $line; done";
    let deploy = Call::recorded(&host, "0079-vmm-deploy").with("sleep 1000", echo);
    host.driver(&deploy).ok();
    let (first, guest) = (pid(&host, "one-0"), group(&host, "one-0"));
    let groups = fs::read_to_string(format!("/proc/{first}/cgroup")).unwrap();
    assert_eq!(groups, format!("0::/{}/one-0/guest\n", host.name()), "not the service's group");

    service.control("restart");
    service.answers();
    assert_eq!(pid(&host, "one-0"), first, "after a restart");

    let daemon = service.main_pid();
    tool(&["kill", "-9", &daemon]);
    wait_for("another daemon", || match service.main_pid() {
        now if now == daemon || now == "0" => Err(now),
        _ => Ok(()),
    });
    service.answers();
    assert_eq!(pid(&host, "one-0"), first, "after kill -9");

    service.control("stop");
    // systemd writes the control groups that it thinks right.
    tool(&["systemctl", "daemon-reload"]);
    tool(&["systemctl", "daemon-reexec"]);
    assert_eq!(read(&guest, "memory.max"), (256 << 20).to_string());
    assert_eq!(read(&guest, "cgroup.controllers"), "cpuset cpu io memory pids");
    service.control("start");
    service.answers();
    assert_eq!(pid(&host, "one-0"), first, "after a stop, and systemd's own restart");

    assert_eq!(host.info("one-0").unwrap()["losses"].to_string(), "[]");
    let mut console = host.cli_command(&["console", "one-0"]);
    let mut console = console.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut input = console.stdin.take().unwrap();
    writeln!(input, "hello").unwrap();
    wait_for("the echo", || match host.cli(&["logs", "one-0"]).ok() {
        log if log.contains("got hello") => Ok(()),
        log => Err(log),
    });
    drop(input);
    console.kill().unwrap();
    console.wait().unwrap();

    host.driver(&Call::recorded(&host, "0119-vmm-cancel").for_vm(2, 0)).ok();
    let counts = host.counts();
    assert_eq!((counts.mounts.len(), counts.loops.len(), counts.cgroups.len()), (0, 0, 0));
}

#[test]
#[ignore = "needs systemd and cgroup v2 alone: cargo xtask test --vm"]
fn limits_and_devices_are_kept_in_the_unified_hierarchy() {
    let host = Host::start();
    host.add_disk(0);
    host.driver(&Call::recorded(&host, "0079-vmm-deploy")).ok();
    let guest = group(&host, "one-0");
    for (file, want) in [
        ("cpu.max", "100000 100000"),
        ("cpu.weight", "50"),
        ("memory.max", "268435456"),
        ("memory.swap.max", "0"),
        ("pids.max", "4096"),
        ("cgroup.max.descendants", "4096"),
        ("cgroup.subtree_control", ""),
    ] {
        assert_eq!(read(&guest, file), want, "{file}");
    }
    // The host's own root would be refused there, who may everything else.
    let procs = guest.join("cgroup.procs").display().to_string();
    let open = |device: &str| {
        let script = format!("echo $$ > {procs} && exec < /dev/{device}");
        std::process::Command::new("sh").args(["-c", &script]).output().unwrap()
    };
    for device in ["null", "zero", "urandom"] {
        assert!(open(device).status.success(), "{device}: {:?}", open(device));
    }
    for device in ["kmsg", "loop-control", "vda"] {
        assert!(fs::File::open(Path::new("/dev").join(device)).is_ok(), "{device} is there");
        let error = String::from_utf8(open(device).stderr).unwrap();
        assert!(error.contains("Operation not permitted"), "{device}: {error}");
    }
    // Who takes more memory than there is ends, and nobody else.
    let first = pid(&host, "one-0");
    let eat = ["exec", "one-0", "--", "/bin/sh", "-c", "head -c 400m /dev/zero | tail -c 390m"];
    host.cli_command(&eat).stdout(Stdio::null()).output().unwrap();
    assert!(read(&guest, "memory.events").contains("oom_kill 1"));
    assert_eq!(pid(&host, "one-0"), first);
}

#[test]
#[ignore = "needs systemd and cgroup v2 alone: cargo xtask test --vm"]
fn a_system_limits_its_own_services_below_its_own_limits() {
    let tar = std::env::var("OCIVISOR_TEST_SYSTEMD_TAR").expect("use `cargo xtask test --vm`");
    let host = Host::start();
    host.cli(&["image", "import", &format!("rootfs:{tar}"), "debian"]).ok();
    let disk = host.vm_dir(10).join("disk.0").display().to_string();
    host.cli(&["disk", "create", "--image", "debian", "--size", "1GiB", &disk]).ok();
    let deploy = Call::recorded(&host, "0360-vmm-deploy")
        .with("<MEMORY><![CDATA[128]]>", "<MEMORY><![CDATA[512]]>");
    host.driver(&deploy).ok();
    let exec = |command: &[&str]| host.cli(&[&["exec", "one-10", "--"], command].concat());
    wait_for("systemd's target", || match exec(&["systemctl", "is-system-running"]).out.trim() {
        "running" => Ok(()),
        "degraded" => panic!("{}", exec(&["systemctl", "--failed", "--no-pager"]).out),
        other => Err(other.to_owned()),
    });
    let limits = ["--property=MemoryMax=20M", "--property=TasksMax=9", "--property=CPUQuota=20%"];
    let run = ["systemd-run", "--unit=inner"];
    exec(&[&run[..], &limits, &["sleep", "1000"]].concat()).ok();
    let guest = group(&host, "one-10");
    let inner = guest.join("system.slice/inner.service");
    wait_for("the service's limits", || match read(&inner, "cpu.max") {
        quota if quota == "20000 100000" => Ok(()),
        other => Err(other),
    });
    assert_eq!(read(&inner, "memory.max"), (20 << 20).to_string());
    assert_eq!(read(&inner, "pids.max"), "9");
    assert_ne!(read(&inner, "cgroup.procs"), "");
    // Its own limits are none of its business.
    let raise = "echo max > /sys/fs/cgroup/memory.max";
    assert!(exec(&["/bin/sh", "-c", raise]).err.contains("Permission denied"));
    assert_eq!(read(&guest, "memory.max"), (512 << 20).to_string());
}
