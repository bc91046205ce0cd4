//! What leaves a host: a guest stands still only while it is read, and others use what was written.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]
#![allow(
    clippy::disallowed_methods,
    reason = "tests make the files and processes that they test with"
)]

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use ocivisor_tests::{Call, Host, bin_dir, tool, wait_for};

/// A guest `one-0` on a disk made from that image.
fn deploy(host: &Host, image: &str) {
    let disk = host.vm_dir(0).join("disk.0").display().to_string();
    host.cli(&["disk", "create", "--image", image, "--size", "64MiB", &disk]).ok();
    let answer = host.driver(&Call::recorded(host, "0079-vmm-deploy"));
    assert_eq!((answer.code, answer.out.as_str()), (0, "one-0\n"), "{answer:?}");
}

fn inside(host: &Host, script: &str) -> String {
    host.cli(&["exec", "one-0", "--", "sh", "-c", script]).ok()
}

/// A host whose confined workers wait, each before its first step, until they are let go.
struct Gate {
    host: Host,
    dir: PathBuf,
}

impl Gate {
    /// With a guest `one-0`.
    fn new() -> Self {
        let host = Host::start();
        deploy(&host, "busybox");
        Self::of(host)
    }

    fn of(mut host: Host) -> Self {
        let (libexec, dir) = (host.dir().join("libexec"), host.dir().join("gate"));
        std::fs::create_dir(&libexec).unwrap();
        std::fs::create_dir(&dir).unwrap();
        for program in std::fs::read_dir(bin_dir()).unwrap() {
            let program = program.unwrap();
            symlink(program.path(), libexec.join(program.file_name())).unwrap();
        }
        let program = libexec.join("ocivisor-unpack");
        std::fs::remove_file(&program).unwrap();
        let (at, real) = (dir.display(), bin_dir().join("ocivisor-unpack"));
        let script = format!(
            "#!/bin/sh\nn=1\nwhile ! mkdir {at}/$n 2>/dev/null; do n=$((n + 1)); done\n\
             while [ ! -e {at}/open-$n ]; do sleep 0.01; done\nexec {}\n",
            real.display()
        );
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let config = host.dir().join("c.toml");
        let text = std::fs::read_to_string(&config).unwrap();
        let before = format!("libexec_dir = \"{}\"", bin_dir().display());
        assert!(text.contains(&before), "{text}");
        let after = format!("libexec_dir = \"{}\"", libexec.display());
        std::fs::write(&config, text.replace(&before, &after)).unwrap();
        host.restart_daemon();
        Self { host, dir }
    }

    /// Begins a command that will have workers.
    fn begin(&self, arguments: &[&str]) -> Child {
        let mut command = self.host.cli_command(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Waits until the worker of that number, counted from 1, stands before the gate.
    fn reached(&self, worker: u32) {
        wait_for(&format!("worker {worker}"), || {
            if self.dir.join(worker.to_string()).exists() {
                Ok(())
            } else {
                Err(self.host.daemon_log())
            }
        });
    }

    fn open(&self, worker: u32) {
        std::fs::write(self.dir.join(format!("open-{worker}")), "").unwrap();
    }

    /// Whether the guest stands still.
    fn is_frozen(&self, vm: &str) -> bool {
        let group = format!("*/{}/{vm}/guest", self.host.name());
        let groups = tool(&["find", "/sys/fs/cgroup", "-type", "d", "-path", &group]);
        let says = |file: &str, what: &str| {
            groups.lines().any(|group| {
                let text = std::fs::read_to_string(Path::new(group).join(file));
                text.is_ok_and(|text| text.lines().any(|line| line == what))
            })
        };
        assert_ne!(groups, "");
        says("cgroup.events", "frozen 1") || says("freezer.state", "FROZEN")
    }
}

fn ended(child: Child) -> Output {
    let ended = child.wait_with_output().unwrap();
    assert!(ended.status.success(), "{ended:?}");
    ended
}

#[test]
fn a_guest_goes_on_while_its_layer_is_made_and_may_even_end() {
    let gate = Gate::new();
    let host = &gate.host;
    inside(host, "echo before > /root/note");
    let commit = gate.begin(&["image", "commit", "one-0", "made"]);
    gate.reached(1);
    assert!(!gate.is_frozen("one-0"));
    assert_eq!(inside(host, "echo after > /root/note; cat /root/note"), "after\n");
    // Nobody waits for the rest of the commit, and it needs the guest no more.
    host.cli(&["destroy", "one-0"]).ok();
    assert_eq!(host.cli(&["image", "list", "-q"]).ok(), "busybox\n");
    gate.open(1);
    ended(commit);
    let tar = host.dir().join("made.tar").display().to_string();
    host.cli(&["image", "export", "-f", &tar, "made"]).ok();
    assert_eq!(tool(&["tar", "-xOf", &tar, "root/note"]), "before\n");
}

#[test]
fn a_guest_stands_still_while_its_files_are_copied_for_a_disk() {
    let gate = Gate::new();
    let host = &gate.host;
    let to = host.dir().join("out.raw").display().to_string();
    let export = gate.begin(&["image", "export", "--vm", "one-0", "--format", "raw", "-f", &to]);
    gate.reached(1);
    assert!(gate.is_frozen("one-0"));
    gate.open(1);
    // From here on the disk is made: mke2fs, and debugfs for mode and times of the root directory.
    gate.reached(2);
    assert!(!gate.is_frozen("one-0"));
    assert_eq!(inside(host, "echo on"), "on\n");
    (2..=5).for_each(|worker| gate.open(worker));
    ended(export);
    assert_eq!(std::fs::metadata(&to).unwrap().uid(), 0);
}

#[test]
fn a_guest_that_stands_still_is_not_taken_for_a_dead_one() {
    let host = Host::start();
    let health = ["--health-interval", "100ms", "--health-timeout", "2s", "--health-retries", "1"];
    // The machine may be slow; until a check succeeds once, none that fails counts.
    let patient = ["--health-start-period", "10m", "--health-on-failure", "kill"];
    let lives = ["--", "sleep", "1000"];
    for (number, vm, check) in [(0, "read", "true"), (1, "other", "echo >> /checks")] {
        let disk = host.add_disk(number).display().to_string();
        let fixed = ["define", vm, "--disk", &disk, "--memory", "64M", "--init", "application"];
        let check = ["--health-cmd", check];
        // How the other one fares says nothing; it counts the time.
        let patient = if vm == "read" { &patient[..] } else { &[] };
        host.cli(&[&fixed[..], &health, patient, &check, &lives].concat()).ok();
        host.cli(&["start", vm]).ok();
    }
    let gate = Gate::of(host);
    let host = &gate.host;
    let health = || host.info("read").unwrap()["health"]["status"].clone();
    let healthy = || if health() == "healthy" { Ok(()) } else { Err(host.info("read")) };
    wait_for("a first check", healthy);
    let first = host.info("read").unwrap()["guest"]["init"].clone();
    let checks = || host.cli(&["exec", "other", "--", "wc", "-l", "/checks"]).ok();
    let checks = || checks().split_whitespace().next().unwrap().parse::<u32>().unwrap();

    let to = host.dir().join("out.raw").display().to_string();
    let export = gate.begin(&["image", "export", "--vm", "read", "--format", "raw", "-f", &to]);
    gate.reached(1);
    assert!(gate.is_frozen("read"));
    // At least three seconds: a check and its timeout.
    let enough = checks() + 30;
    wait_for("time", || if checks() >= enough { Ok(()) } else { Err(checks()) });
    assert_eq!(health(), "healthy");
    (1..=5).for_each(|worker| gate.open(worker));
    ended(export);
    assert_eq!(host.info("read").unwrap()["guest"]["init"], first);
    let events = host.cli(&["events", "--since", "0", "-o", "json"]).ok();
    let mut told = events.lines().filter(|line| line.contains("\"read\""));
    assert!(!told.any(|line| line.contains("unhealthy")), "{events}");
}

/// podman with a storage of its own. Containers it makes are in control groups named after the host.
struct Podman {
    dir: PathBuf,
    group: String,
}

impl Podman {
    fn new(host: &Host) -> Self {
        let dir = host.dir().join("podman");
        std::fs::create_dir(&dir).unwrap();
        Self { dir, group: format!("{}-podman", host.name()) }
    }

    fn call(&self, arguments: &[&str]) -> String {
        let at = |name: &str| self.dir.join(name).display().to_string();
        let own = ["--root", &at("root"), "--runroot", &at("run"), "--tmpdir", &at("tmp")];
        // No driver that mounts: nothing is left then by whoever is killed.
        let how = ["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--runtime", "runc"];
        tool(&[&["podman"], &own[..], &how, arguments].concat())
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // The kernel takes a moment to forget processes that have ended.
        wait_for("the end of podman's control groups", || {
            let named = format!("*/{}*", self.group);
            let find = ["-depth", "-type", "d", "-path", &named];
            let mut command = Command::new("find");
            let gone = command.arg("/sys/fs/cgroup").args(find).arg("-delete").output().unwrap();
            if gone.status.success() { Ok(()) } else { Err(gone) }
        });
    }
}

#[test]
fn podman_runs_what_was_committed_here() {
    let host = Host::start();
    deploy(&host, "busybox");
    inside(
        &host,
        "mkdir /srv; echo changed > /srv/note; ln /srv/note /srv/twin; ln -s note /srv/link; \
         chown 1000:1001 /srv/note; chmod 640 /srv/note; rm -r /etc/init.d; \
         mkdir /srv/suid; cp /bin/busybox /srv/suid/id; chmod 4711 /srv/suid/id; \
         dd if=/dev/zero of=/srv/sparse bs=1 count=1 seek=9999999 2>/dev/null; sync",
    );
    let show = "cat /srv/link; stat -c '%n %u:%g %a %h %s' /srv/note /srv/suid/id /srv/sparse; \
                ls /etc/init.d 2>&1; echo $MADE by $0; pwd";
    let entry = format!("ENTRYPOINT {}", serde_json::json!(["/bin/sh", "-c", show]));
    let change = |line: &str| ["-c".to_owned(), line.to_owned()];
    let changes = [&entry, "CMD [\"us\"]", "ENV MADE=committed", "WORKDIR /srv"].map(change);
    let changes: Vec<&str> = changes.iter().flatten().map(String::as_str).collect();
    host.cli(&[&["image", "commit", "one-0", "made:1"], &changes[..]].concat()).ok();
    let size = inside(&host, "stat -c %s /bin/busybox");
    let archive = host.dir().join("made.oci").display().to_string();
    host.cli(&["image", "save", "-f", &archive, "made:1"]).ok();

    let podman = Podman::new(&host);
    podman.call(&["load", "-q", "-i", &archive]);
    // runc may not raise limits here, and podman would.
    let limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=512:512"];
    let run = ["run", "--rm", "--network", "none", "--cgroup-parent", &podman.group];
    let said = podman.call(&[&run[..], &limits, &["made:1"]].concat());
    let want = format!(
        "changed\n/srv/note 1000:1001 640 2 8\n/srv/suid/id 0:0 4711 1 {}\n\
         /srv/sparse 0:0 644 1 10000000\nls: /etc/init.d: No such file or directory\n\
         committed by us\n/srv\n",
        size.trim()
    );
    assert_eq!(said, want);
}
