//! The daemon is replaceable at any instant; guests do not notice.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "tests start the programs under test and damage their files"
)]

use std::collections::BTreeMap;
use std::io::Write;
use std::process::Stdio;
use std::thread;

use ocivisor_tests::{Call, Host, wait_for};
use serde_json::Value;

fn pids(host: &Host) -> BTreeMap<String, u64> {
    let listed = host.cli(&["list", "-o", "json"]).json();
    let vms = listed["vms"].as_array().unwrap().iter();
    vms.map(|vm| (vm["id"].as_str().unwrap().to_owned(), vm["pid"].as_u64().unwrap())).collect()
}

#[test]
fn fifty_guests_survive_restarts_with_pids_and_consoles() {
    let mut host = Host::start();
    let echo = "while read line; do echo got $line; done";
    let deploy = Call::recorded(&host, "0079-vmm-deploy").with("sleep 1000", echo);
    for vm in 0..50 {
        host.add_disk(vm);
    }
    thread::scope(|scope| {
        for part in 0..4 {
            let (host, deploy) = (&host, &deploy);
            scope.spawn(move || {
                for vm in (part..50).step_by(4) {
                    host.driver(&deploy.clone().for_vm(0, vm)).ok();
                }
            });
        }
    });
    let before = pids(&host);
    assert_eq!(before.len(), 50);
    host.restart_daemon();
    assert_eq!(pids(&host), before, "after kill -9");
    assert_eq!(host.stop_daemon(), 0);
    host.start_daemon();
    assert_eq!(pids(&host), before, "after a clean stop");

    for vm in before.keys() {
        let mut console = host.cli_command(&["console", vm]);
        let mut console = console.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let mut input = console.stdin.take().unwrap();
        writeln!(input, "{vm}").unwrap();
        wait_for("the echo", || {
            let log = host.cli(&["logs", vm]).ok();
            if log.contains(&format!("got {vm}")) { Ok(()) } else { Err(log) }
        });
        drop(input);
        console.kill().unwrap();
        console.wait().unwrap();
    }
}

#[test]
fn a_second_daemon_on_the_same_state_is_refused() {
    let host = Host::start();
    let mut second = std::process::Command::new(ocivisor_tests::bin_dir().join("ocivisord"));
    let output = second
        .arg("--state-dir")
        .arg(host.state_dir())
        .arg("--run-dir")
        .arg(host.run_dir())
        .arg("--config")
        .arg(host.dir().join("c.toml"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(4));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("in use by another ocivisord"), "{error}");
    assert_eq!(host.cli(&["list"]).code, 0, "the first one goes on");
}

#[test]
fn a_damaged_record_is_told_set_aside_offline_and_its_guest_cleared() {
    let mut host = Host::start();
    host.add_disk(0);
    let before = host.counts();
    host.driver(&Call::recorded(&host, "0079-vmm-deploy")).ok();
    host.kill_daemon();
    let record = host.state_dir().join("vms/one-0/vm.json");
    let mut bytes = std::fs::read(&record).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&record, bytes).unwrap();

    let offline = |what: &str| {
        let mut command = std::process::Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", host.name()));
        command.arg(ocivisor_tests::bin_dir().join("ocivisor")).args(["--offline", what]);
        command.arg("--state-dir").arg(host.state_dir()).arg("--run-dir").arg(host.run_dir());
        command.arg("--config").arg(host.dir().join("c.toml")).output().unwrap()
    };
    let fsck = offline("fsck");
    assert_eq!(fsck.status.code(), Some(11), "{fsck:?}");
    assert!(String::from_utf8_lossy(&fsck.stdout).contains("vm one-0: damaged record"));
    assert_eq!(offline("recover").status.code(), Some(0));
    assert_eq!(offline("fsck").status.code(), Some(0));
    host.start_daemon();
    assert_eq!(host.info("one-0"), None);
    let mut counts = host.counts();
    counts.files.retain(|file| !file.contains("one-0"));
    assert_eq!(counts, before);
    host.driver(&Call::recorded(&host, "0079-vmm-deploy")).ok();
}

#[test]
fn events_are_numbered_without_gaps_and_replayed() {
    let host = Host::start();
    host.add_disk(0);
    host.driver(&Call::recorded(&host, "0079-vmm-deploy")).ok();
    host.driver(&Call::recorded(&host, "0083-vmm-shutdown")).ok();
    let text = host.cli(&["events", "--since", "0", "-o", "json"]).ok();
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let numbers: Vec<u64> = events.iter().map(|event| event["seq"].as_u64().unwrap()).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
    let kinds: Vec<&str> = events
        .iter()
        // The others are of the image that the host begins with.
        .filter(|event| event["vm"] == "one-0")
        .map(|event| event["kind"].as_str().unwrap())
        .filter(|kind| *kind != "operation_progress")
        .collect();
    let want = [
        "operation_started",
        "state_changed",
        "operation_finished",
        "operation_started",
        "vm_forgotten",
        "operation_finished",
    ];
    assert_eq!(kinds, want);
}
