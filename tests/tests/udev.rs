//! What a host's own programs make of disks of guests: nothing. Guests make volume groups and filesystems of them that
//! udev, LVM and the btrfs driver would bring up by themselves.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests make disks")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ocivisor_tests::{Host, tool, wait_for, write};

/// A volume group on a file, not active.
struct Group {
    path: PathBuf,
    name: String,
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A loop device of the host's own, as `losetup` makes it, gone with this.
struct Loop(String);

impl Loop {
    fn of(path: &Path) -> Self {
        Self(tool(&["losetup", "--find", "--show", text(path)]).trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        tool(&["losetup", "--detach", &self.0]);
    }
}

impl Group {
    fn new(host: &Host, name: &str) -> Self {
        let path = host.dir().join(name);
        File::create(&path).unwrap().set_len(64 << 20).unwrap();
        let device = Loop::of(&path);
        tool(&["vgcreate", "--quiet", name, &device.0]);
        tool(&[
            "lvcreate",
            "--quiet",
            "--wipesignatures",
            "n",
            "--zero",
            "n",
            "-L",
            "8M",
            "-n",
            "lv",
            name,
        ]);
        tool(&["vgchange", "--quiet", "--activate", "n", name]);
        settle();
        Self { path, name: name.to_owned() }
    }

    fn is_active(&self) -> bool {
        tool(&["dmsetup", "ls"]).lines().any(|line| line.starts_with(&format!("{}-lv", self.name)))
    }
}

fn settle() {
    tool(&["udevadm", "settle", "--timeout=60"]);
}

/// What udev has written down of a device.
fn known(device: &str) -> String {
    tool(&["udevadm", "info", "--query=property", &format!("--name={device}")])
}

/// Starts a VM with these disks; returns the devices of the host behind them.
fn start(host: &Host, vm: &str, disks: &[&Path]) -> Vec<String> {
    let root = host.dir().join(format!("ds/{vm}.disk"));
    host.cli(&["disk", "create", "--image", "busybox", "--size", "64MiB", text(&root)]).ok();
    let names = ["vdb", "vdc", "vdd"];
    let options: Vec<String> = disks
        .iter()
        .zip(names)
        .map(|(path, name)| format!("path={},target={name}", path.display()))
        .collect();
    let mut words = vec!["define", vm, "--disk", text(&root), "--memory", "64M"];
    words.extend(options.iter().flat_map(|disk| ["--data-disk", disk.as_str()]));
    words.extend(["--", "sleep", "1000"]);
    host.cli(&words).ok();
    host.cli(&["start", vm]).ok();
    let shown = |path: &&Path| {
        let shown =
            tool(&["losetup", "--noheadings", "--output", "NAME", "--associated", text(path)]);
        let name = shown.trim().to_owned();
        assert!(name.starts_with("/dev/loop5") && name.len() == 14, "{name}");
        name
    };
    disks.iter().map(shown).collect()
}

fn nothing_is_known_of(devices: &[String]) {
    for device in devices {
        let known = known(device);
        assert!(!known.contains("ID_FS_") && !known.contains("ID_BTRFS"), "{known}");
        assert!(known.contains("SYSTEMD_READY=0"), "{known}");
    }
}

fn ends(host: &Host, vm: &str) {
    host.cli(&["destroy", vm]).ok();
    host.cli(&["undefine", vm]).ok();
}

#[test]
#[ignore = "needs udev and LVM: cargo xtask test --vm udev"]
fn the_host_brings_up_nothing_of_what_is_in_a_guests_disk() {
    let host = Host::start();
    let (group, control) = (Group::new(&host, "ocvtenant"), Group::new(&host, "ocvhost"));
    let btrfs = host.dir().join("btrfs");
    File::create(&btrfs).unwrap().set_len(128 << 20).unwrap();
    tool(&["mkfs.btrfs", "-q", text(&btrfs)]);
    // The host's own are: that is what there is to be kept off.
    let own = (Loop::of(&control.path), Loop::of(&btrfs));
    wait_for("the host to bring up its own", || {
        let seen = (control.is_active(), known(&own.1.0).contains("ID_BTRFS_READY=1"));
        if seen == (true, true) { Ok(()) } else { Err(seen) }
    });
    tool(&["vgchange", "--quiet", "--activate", "n", &control.name]);
    settle();
    drop(own);
    settle();

    let began = Instant::now();
    let devices = start(&host, "a", &[&group.path, &btrfs]);
    settle();
    assert!(began.elapsed() < Duration::from_secs(60), "udev is not kept waiting");
    nothing_is_known_of(&devices);
    assert!(!group.is_active());
    // Nor when somebody writes to it, or udev is asked to look again.
    host.cli(&[
        "exec",
        "a",
        "--",
        "dd",
        "if=/dev/zero",
        "of=/dev/vdb",
        "bs=512",
        "seek=100000",
        "count=1",
    ])
    .ok();
    tool(&["udevadm", "trigger", "--settle", "--action=change", "--subsystem-match=block"]);
    nothing_is_known_of(&devices);
    assert!(!group.is_active());
    ends(&host, "a");
    settle();
}

/// The rule, away as long as this lives.
struct NoRule;

const RULE: &str = "/etc/udev/rules.d/60-ocivisor.rules";

impl NoRule {
    fn new() -> Self {
        tool(&["rm", RULE]);
        tool(&["udevadm", "control", "--reload"]);
        Self
    }
}

impl Drop for NoRule {
    fn drop(&mut self) {
        let text = include_str!("../../src/daemon/udev/60-ocivisor.rules");
        write(Path::new(RULE), text);
        tool(&["udevadm", "control", "--reload"]);
    }
}

#[test]
#[ignore = "needs udev and LVM: cargo xtask test --vm udev"]
fn without_the_rule_a_lock_keeps_the_host_off() {
    let host = Host::start();
    let (tenants, own) = (Group::new(&host, "ocvtenant"), Group::new(&host, "ocvhost"));
    let rule = NoRule::new();
    let devices = start(&host, "a", &[&tenants.path]);
    // What comes after it was brought up, so its own turn has come.
    let after = Loop::of(&own.path);
    wait_for("the host to bring up its own", || {
        if own.is_active() { Ok(()) } else { Err(known(&after.0)) }
    });
    assert!(!known(&devices[0]).contains("ID_FS_"), "{}", known(&devices[0]));
    assert!(!tenants.is_active());
    ends(&host, "a");
    tool(&["vgchange", "--quiet", "--activate", "n", &own.name]);
    drop(after);
    drop(rule);
    settle();
}
