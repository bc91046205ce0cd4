//! What leaves a host: a guest stands still only while it is read, and others use what was written.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]
#![allow(
    clippy::disallowed_methods,
    reason = "tests make the files and processes that they test with"
)]

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};

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
    fn new() -> Self {
        let mut host = Host::start();
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
        deploy(&host, "busybox");
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
    fn is_frozen(&self) -> bool {
        let groups = tool(&["find", "/sys/fs/cgroup", "-type", "d", "-path", &self.group()]);
        let says = |file: &str, what: &str| {
            groups.lines().any(|group| {
                let text = std::fs::read_to_string(Path::new(group).join(file));
                text.is_ok_and(|text| text.lines().any(|line| line == what))
            })
        };
        assert_ne!(groups, "");
        says("cgroup.events", "frozen 1") || says("freezer.state", "FROZEN")
    }

    fn group(&self) -> String {
        format!("*/{}/one-0/guest", self.host.name())
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
    assert!(!gate.is_frozen());
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
    assert!(gate.is_frozen());
    gate.open(1);
    // From here on the disk is made: mke2fs, and debugfs for mode and times of the root directory.
    gate.reached(2);
    assert!(!gate.is_frozen());
    assert_eq!(inside(host, "echo on"), "on\n");
    (2..=5).for_each(|worker| gate.open(worker));
    ended(export);
    assert_eq!(std::fs::metadata(&to).unwrap().uid(), 0);
}
