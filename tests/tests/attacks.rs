//! Guests that attack, while the host goes about its work.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::fs;
use std::process::{Child, Stdio};

use ocivisor_tests::{Answer, Call, Counts, Host, wait_for};

fn two_guests() -> (Host, Counts) {
    let host = Host::start();
    for vm in 0..2 {
        host.add_disk(vm);
    }
    let before = Counts::of(&host);
    let deploy = Call::recorded(&host, "0079-vmm-deploy");
    for vm in 0..2 {
        host.driver(&deploy.clone().for_vm(0, vm)).ok();
    }
    (host, before)
}

fn sh(host: &Host, vm: &str, script: &str) -> Answer {
    host.cli(&["exec", vm, "--", "/bin/sh", "-c", script])
}

/// Goes on in the guest until the guest or this ends.
fn attack(host: &Host, script: &str) -> Child {
    let mut command = host.cli_command(&["exec", "one-0", "--", "/bin/sh", "-c", script]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn end_all(host: &Host, attacks: Vec<Child>, before: &Counts) {
    for vm in ["one-0", "one-1"] {
        host.cli(&["destroy", "--forget", vm]).ok();
    }
    for mut child in attacks {
        child.wait().unwrap();
    }
    assert_eq!(&Counts::of(host), before);
}

#[test]
fn a_guest_that_takes_all_it_can_get_hurts_neither_daemon_nor_neighbour() {
    let (host, before) = two_guests();
    let hogs = [
        // Processes, as fast as they come.
        "f() { f | f & }; f; sleep 1000",
        // Memory, again and again.
        "while :; do tail /dev/zero; done",
        // Memory file systems, and the disk.
        "while :; do dd if=/dev/zero of=/dev/shm/x bs=1M; rm /dev/shm/x; done",
        "while :; do dd if=/dev/zero of=/tmp/x bs=1M; rm /tmp/x; done",
        // Terminals, one per process.
        "while :; do sleep 1000 < /dev/ptmx & done",
        // Names, and the console.
        "i=0; while :; do mkdir -p /tmp/d/$i; i=$((i+1)); done",
        "yes '\\033]52;c;aGk=\\007' > /dev/console",
    ];
    let attacks: Vec<Child> = hogs.iter().map(|script| attack(&host, script)).collect();
    wait_for("the guest is at its limit of processes", || {
        // A session cannot begin: there is no process left for it.
        if sh(&host, "one-0", "true").code == 0 { Err("it still forks") } else { Ok(()) }
    });
    for round in 0..20 {
        assert_eq!(host.info("one-1").unwrap()["state"]["name"], "running", "round {round}");
        assert_eq!(sh(&host, "one-1", "echo alive; df /tmp | tail -1 | wc -l").ok(), "alive\n1\n");
        sh(&host, "one-1", "dd if=/dev/zero of=/tmp/x bs=64k count=16 2>/dev/null && rm /tmp/x")
            .ok();
    }
    end_all(&host, attacks, &before);
}

fn pid(host: &Host) -> u64 {
    host.info("one-0").unwrap()["guest"]["init"]["pid"].as_u64().unwrap()
}

/// Where the guest's /proc can be written: mounts of that type that are not read-only, by mount point and root.
fn writable_proc(host: &Host) -> Vec<String> {
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", pid(host))).unwrap();
    let mut found: Vec<String> = mounts
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let words: Vec<&str> = left.split(' ').collect();
            let writable = words[5].split(',').any(|option| option == "rw");
            (right.starts_with("proc ") && writable).then(|| format!("{} {}", words[3], words[4]))
        })
        .collect();
    found.sort();
    found
}

/// CVE-2025-31133, CVE-2025-52565: what a runtime binds over masked files and the console was replaced by a link.
#[test]
fn devices_that_become_links_while_sessions_and_boots_begin_lead_nowhere() {
    let (host, before) = two_guests();
    let clean = writable_proc(&host);
    assert_eq!(
        clean,
        ["/ /proc"],
        "an application has but one /proc, with everything masked below"
    );
    let swap = "while :; do for d in null console tty ptmx pts/0; do \
        rm -f /dev/$d; ln -s /proc/sysrq-trigger /dev/$d; rm -f /dev/$d; \
        ln -s /proc/sys/kernel/core_pattern /dev/$d; done; done";
    let core_pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let mut attacks = vec![attack(&host, swap)];
    for _ in 0..10 {
        // It may fail, in a guest without /dev/null; it must not do what the links say.
        drop(host.cli(&["exec", "-t", "one-0", "--", "/bin/sh", "-c", "echo c > /dev/console"]));
        drop(sh(&host, "one-0", "echo c > /dev/null"));
        assert_eq!(writable_proc(&host), clean);
    }
    for _ in 0..3 {
        host.cli(&["reset", "one-0"]).ok();
        attacks.push(attack(&host, swap));
        assert_eq!(writable_proc(&host), clean);
    }
    assert_eq!(fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(), core_pattern);
    end_all(&host, attacks, &before);
}
