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

/// What packages install.
const SERVICE: &str = include_str!("../../src/daemon/systemd/ocivisord.service");
const SOCKET: &str = include_str!("../../src/daemon/systemd/ocivisord.socket");

/// A unit that runs the daemon of a host; gone with the test.
struct Service<'a> {
    host: &'a Host,
    unit: String,
}

impl<'a> Service<'a> {
    /// Our own units, with the programs and paths of this host, started; and what [`Host::start`] gives a host.
    fn start(host: &'a Host) -> Self {
        Self::start_with(host, "")
    }

    /// The same with more lines in a drop-in of the service.
    fn start_with(host: &'a Host, more: &str) -> Self {
        let (programs, dir) = (bin_dir().display().to_string(), host.dir().display().to_string());
        let service = Self { host, unit: format!("{}.service", host.name()) };
        let daemon = format!(
            "ExecStart=nsenter --net=/run/netns/{} {programs}/ocivisord --state-dir {dir}/s \
             --run-dir {dir}/r --config {dir}/c.toml\n",
            host.name()
        );
        let socket = format!("ListenStream={}\n", host.socket().display());
        let of_host = |text: &str, was: &str, is: &str| {
            assert!(text.contains(was), "{text}");
            let text = text.replace(was, is);
            text.replace("ocivisord.socket", &format!("{}.socket", host.name()))
        };
        let text = of_host(SERVICE, "ExecStart=/usr/sbin/ocivisord\n", &daemon);
        fs::write(service.file("service"), text).unwrap();
        let text = of_host(SOCKET, "ListenStream=/run/ocivisor/ocivisord.sock\n", &socket);
        fs::write(service.file("socket"), text).unwrap();
        if !more.is_empty() {
            fs::create_dir(service.file("service.d")).unwrap();
            fs::write(service.file("service.d").join("test.conf"), more).unwrap();
        }
        tool(&["systemctl", "daemon-reload"]);
        // Callers start the daemon.
        tool(&["systemctl", "start", &format!("{}.socket", host.name())]);
        assert_eq!(service.state(), "inactive");
        host.cli(&["list"]).ok();
        assert_eq!(service.state(), "active");
        host.add_bridge("br0", "192.168.100.1/24");
        let tar = host.dir().join("busybox.tar");
        image::busybox(&tar);
        let source = format!("rootfs:{}", tar.display());
        host.cli(&["image", "import", &source, "busybox"]).ok();
        service
    }

    fn file(&self, kind: &str) -> PathBuf {
        Path::new("/run/systemd/system").join(format!("{}.{kind}", self.host.name()))
    }

    fn control(&self, verb: &str) {
        tool(&["systemctl", verb, &self.unit]);
    }

    fn state(&self) -> String {
        self.property("ActiveState")
    }

    fn property(&self, name: &str) -> String {
        let property = format!("--property={name}");
        tool(&["systemctl", "show", &property, "--value", &self.unit]).trim().to_owned()
    }

    fn main_pid(&self) -> String {
        self.property("MainPID")
    }

    /// Waits until systemd started another daemon than that.
    fn another_than(&self, daemon: &str) {
        wait_for("another daemon", || match self.main_pid() {
            now if now == daemon || now == "0" => Err(now),
            _ => Ok(()),
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
        let _ = run(&["systemctl", "stop", &format!("{}.socket", self.host.name()), &self.unit]);
        let _ = (fs::remove_file(self.file("service")), fs::remove_file(self.file("socket")));
        let _ = fs::remove_dir_all(self.file("service.d"));
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

/// The lines of a section of a unit.
fn section<'a>(unit: &'a str, name: &str) -> Vec<&'a str> {
    let lines = unit.lines().skip_while(|line| *line != format!("[{name}]")).skip(1);
    lines.take_while(|line| !line.starts_with('[')).collect()
}

#[test]
fn the_service_is_never_given_up_and_waits_for_what_it_needs() {
    let (unit, service) = (section(SERVICE, "Unit"), section(SERVICE, "Service"));
    // In the section of the service systemd ignores it, and gives up after five starts in ten seconds.
    assert!(unit.contains(&"StartLimitIntervalSec=0"), "{unit:?}");
    assert!(service.contains(&"Restart=on-failure") && service.contains(&"RestartSec=1s"));
    assert!(unit.contains(&"RequiresMountsFor=/var/lib/ocivisor"), "{unit:?}");
    // Ordering alone would not bring the target about.
    assert!(unit.contains(&"Wants=network-online.target"), "{unit:?}");
    let after = unit.iter().find_map(|line| line.strip_prefix("After=")).unwrap();
    for other in ["network-online.target", "openvswitch-switch.service", "openvswitch.service"] {
        assert!(after.split(' ').any(|unit| unit == other), "{after}");
    }
}

#[test]
#[ignore = "needs systemd and cgroup v2 alone: cargo xtask test --vm"]
fn a_daemon_that_dies_again_and_again_is_started_each_time() {
    let host = Host::without_daemon();
    let service = Service::start(&host);
    // One more than systemd bears in ten seconds of a service that says nothing of it.
    for _ in 0..6 {
        let daemon = service.main_pid();
        tool(&["kill", "-9", &daemon]);
        service.another_than(&daemon);
    }
    host.cli(&["list"]).ok();
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

    let analysed = tool(&["systemd-analyze", "verify", &service.unit]);
    assert_eq!(analysed, "");

    // The socket stays while there is no daemon: nobody is refused.
    service.control("restart");
    assert_eq!(pid(&host, "one-0"), first, "after a restart");

    let daemon = service.main_pid();
    tool(&["kill", "-9", &daemon]);
    assert_eq!(pid(&host, "one-0"), first, "after kill -9");
    service.another_than(&daemon);

    service.control("stop");
    assert_eq!(service.state(), "inactive");
    assert!(fs::exists(format!("/proc/{first}")).unwrap(), "a stop ends no guest");
    // systemd writes the control groups that it thinks right.
    tool(&["systemctl", "daemon-reload"]);
    tool(&["systemctl", "daemon-reexec"]);
    assert_eq!(read(&guest, "memory.max"), (256 << 20).to_string());
    assert_eq!(read(&guest, "cgroup.controllers"), "cpuset cpu io memory hugetlb pids");
    assert_eq!(pid(&host, "one-0"), first, "after a stop, and systemd's own restart");
    assert_eq!(service.state(), "active", "who asks starts the daemon");

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

/// Our units and programs where a package has them; gone with the test.
struct Installed;

impl Installed {
    const UNITS: [(&str, &str); 2] = [
        ("/etc/systemd/system/ocivisord.service", SERVICE),
        ("/etc/systemd/system/ocivisord.socket", SOCKET),
    ];
    const DAEMON: &str = "/usr/sbin/ocivisord";

    fn new() -> Self {
        let (installed, programs) = (Self, bin_dir().join("ocivisord"));
        for (path, text) in Self::UNITS {
            fs::write(path, text).unwrap();
        }
        // What it starts is beside where this leads.
        tool(&["ln", "-s", programs.to_str().unwrap(), Self::DAEMON]);
        tool(&["systemctl", "daemon-reload"]);
        tool(&["systemctl", "--quiet", "enable", "--now", "ocivisord.service"]);
        installed
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        let run = |words: &[&str]| std::process::Command::new(words[0]).args(&words[1..]).output();
        if std::thread::panicking() {
            let log = run(&["journalctl", "--no-pager", "--unit", "ocivisord.service"]).unwrap();
            eprintln!("--- ocivisord.service ---\n{}", String::from_utf8_lossy(&log.stdout));
        }
        // Best effort, also after a failure; the machine is thrown away.
        let _ = run(&["systemctl", "disable", "--now", "ocivisord.socket", "ocivisord.service"]);
        Self::UNITS.iter().for_each(|(path, _)| drop(fs::remove_file(path)));
        let _ = fs::remove_file(Self::DAEMON);
    }
}

#[test]
#[ignore = "needs systemd and cgroup v2 alone: cargo xtask test --vm"]
fn the_units_as_they_are_shipped_start_stop_and_restart_below_a_guest_that_lives_on() {
    let cli =
        |words: &[&str]| tool(&[&[bin_dir().join("ocivisor").to_str().unwrap()], words].concat());
    let property = |name: &str| {
        let property = format!("--property={name}");
        tool(&["systemctl", "show", &property, "--value", "ocivisord"]).trim().to_owned()
    };
    let directory = tool(&["mktemp", "--directory"]);
    let directory = Path::new(directory.trim());
    let installed = Installed::new();
    assert_eq!(
        (property("ActiveState"), property("SubState")),
        ("active".into(), "running".into())
    );
    for unit in ["ocivisord.service", "ocivisord.socket"] {
        assert_eq!(tool(&["systemctl", "is-enabled", unit]), "enabled\n");
        assert_eq!(tool(&["systemd-analyze", "verify", unit]), "");
    }

    let (tar, disk) = (directory.join("busybox.tar"), directory.join("disk"));
    let (tar, disk) = (tar.to_str().unwrap(), disk.to_str().unwrap());
    image::busybox(Path::new(tar));
    cli(&["image", "import", &format!("rootfs:{tar}"), "busybox"]);
    cli(&["disk", "create", "--image", "busybox", "--size", "64MiB", disk]);
    cli(&["define", "web", "--disk", disk, "--memory", "64M", "--", "sleep", "1003"]);
    cli(&["start", "web"]);
    let first = || -> u64 {
        let info: serde_json::Value =
            serde_json::from_str(&cli(&["info", "web", "-o", "json"])).unwrap();
        info["guest"]["init"]["pid"].as_u64().expect("a running guest")
    };
    let guest = first();
    let groups = fs::read_to_string(format!("/proc/{guest}/cgroup")).unwrap();
    assert_eq!(groups, "0::/ocivisor/web/guest\n");
    let mut daemons = vec![property("MainPID")];
    for verbs in [&["restart"][..], &["stop", "start"], &["reload-or-restart"]] {
        for verb in verbs {
            tool(&["systemctl", verb, "ocivisord.service"]);
            assert!(fs::exists(format!("/proc/{guest}")).unwrap(), "{verb}");
        }
        daemons.push(property("MainPID"));
        assert_eq!(first(), guest, "{verbs:?}");
        assert_eq!(cli(&["exec", "web", "--", "echo", "alive"]), "alive\n");
    }
    daemons.sort();
    daemons.dedup();
    assert_eq!(daemons.len(), 4, "each was another daemon");
    assert_eq!((property("Result"), property("NRestarts")), ("success".into(), "0".into()));

    cli(&["destroy", "web"]);
    cli(&["undefine", "web"]);
    cli(&["image", "rm", "busybox"]);
    drop(installed);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(
        !mounts.contains(" /run/ocivisor") && !mounts.contains(" /var/lib/ocivisor"),
        "{mounts}"
    );
    assert!(!fs::exists("/run/ocivisor/ocivisord.sock").unwrap());
    for path in [directory, Path::new("/run/ocivisor"), Path::new("/var/lib/ocivisor")] {
        fs::remove_dir_all(path).unwrap();
    }
}

#[test]
#[ignore = "needs systemd and cgroup v2 alone: cargo xtask test --vm"]
fn deploys_go_on_while_the_service_is_restarted_and_killed() {
    const GUESTS: u32 = 6;
    const CUT_OFF: &str = "ocivisord ended meanwhile; nothing of it was left running; try again";
    let host = Host::without_daemon();
    let service = Service::start(&host);
    for vm in 0..GUESTS {
        host.add_disk(vm);
    }
    let deploy = Call::recorded(&host, "0079-vmm-deploy");
    std::thread::scope(|scope| {
        for part in 0..2 {
            let (host, deploy) = (&host, &deploy);
            scope.spawn(move || {
                for vm in (part..GUESTS).step_by(2) {
                    let deploy = deploy.clone().for_vm(0, vm);
                    let mut answer = host.driver(&deploy);
                    // One that was cut off halfway is undone, and says so.
                    while answer.code != 0 {
                        assert!(answer.err.contains(CUT_OFF), "{answer:?}");
                        answer = host.driver(&deploy);
                    }
                    assert_eq!(answer.out, format!("one-{vm}\n"));
                }
            });
        }
        // Each time something more is under way or done.
        for (vms, end) in [(0, "restart"), (1, "kill"), (2, "restart"), (3, "kill")] {
            wait_for("deploys", || match group_names(&host).len() {
                n if n > vms => Ok(()),
                n => Err(n),
            });
            let daemon = service.main_pid();
            match end {
                "kill" => drop(tool(&["kill", "-9", &daemon])),
                _ => service.control("restart"),
            }
            service.another_than(&daemon);
        }
    });
    let listed = host.cli(&["list", "-o", "json"]).json();
    let vms = listed["vms"].as_array().unwrap();
    let running = vms.iter().filter(|vm| vm["pid"].is_u64());
    assert_eq!(running.count(), GUESTS as usize, "{listed}");
    for vm in 0..GUESTS {
        let groups = read(&group(&host, &format!("one-{vm}")), "cgroup.procs");
        let (name, first) = (format!("one-{vm}"), groups.lines().next().unwrap().to_owned());
        assert_eq!(pid(&host, &name).to_string(), first, "{groups}");
        host.cli(&["destroy", &name]).ok();
    }
    let counts = host.counts();
    assert_eq!((counts.mounts.len(), counts.loops.len(), counts.cgroups.len()), (0, 0, 0));
}

/// VMs that have control groups.
fn group_names(host: &Host) -> Vec<String> {
    let Ok(entries) = fs::read_dir(Path::new("/sys/fs/cgroup").join(host.name())) else {
        return Vec::new();
    };
    let names = entries.filter_map(|e| Some(e.ok()?.file_name().to_string_lossy().into_owned()));
    names.filter(|name| name.starts_with("one-")).collect()
}

#[test]
#[ignore = "needs systemd and cgroup v2 alone: cargo xtask test --vm"]
fn a_daemon_that_hangs_is_replaced() {
    let host = Host::without_daemon();
    let service = Service::start_with(&host, "[Service]\nWatchdogSec=5s\n");
    let daemon = service.main_pid();
    tool(&["kill", "-STOP", &daemon]);
    service.another_than(&daemon);
    host.cli(&["list"]).ok();
    let log = tool(&["journalctl", "--no-pager", "--unit", &service.unit]);
    assert!(log.contains("Watchdog timeout"), "{log}");
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
