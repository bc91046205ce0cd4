//! `kill -9` of the daemon at every step and at random times, of shims, and of the process that is
//! creating a guest: nothing is lost, nothing is left.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::fs;
use std::process::Stdio;

use ocivisor_core::plan::Step;
use ocivisor_tests::{Call, Host, tool, wait_for};
use serde_json::Value;

fn pid(info: &Value) -> u64 {
    info["guest"]["init"]["pid"].as_u64().expect("a running guest")
}

fn name(value: &Value) -> &str {
    value["state"]["name"].as_str().or(value["state"].as_str()).expect("a state")
}

/// The fault points of a plan, in order.
fn points(steps: &[Step]) -> Vec<String> {
    let around =
        |step: &Step| [format!("before-{}", step.name()), format!("after-{}", step.name())];
    let mut points = vec!["intended".to_owned()];
    points.extend(steps.iter().flat_map(around));
    points.push("committed".to_owned());
    points
}

const BOOT: [Step; 10] = [
    Step::Cgroup,
    Step::Namespaces,
    Step::Nics,
    Step::Root,
    Step::Disks,
    Step::Display,
    Step::Create,
    Step::Tell,
    Step::Start,
    Step::Settle,
];
const RELEASE: [Step; 7] = [
    Step::DropGuest,
    Step::DropDisplay,
    Step::DropCgroup,
    Step::DropNics,
    Step::DropDisks,
    Step::DropRoot,
    Step::DropNamespaces,
];

/// Whether the kernel tells how a process ended to others than its parent: Linux 6.15.
fn exits_are_told() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(6_u32), Some(15))
}

/// A VM is in no state between two: known and running whole, known and stopped, or not known.
fn at_rest(host: &Host, before: &ocivisor_tests::Counts) {
    wait_for("rest", || match host.info("one-0") {
        Some(info) if !info["op"].is_null() => Err(info["op"].clone()),
        _ => Ok(()),
    });
    match host.info("one-0") {
        None => assert_eq!(host.counts(), *before),
        Some(info) if name(&info) == "running" => {
            let counts = host.counts();
            assert_eq!(counts.loops.len(), 2, "{counts:?}");
            assert!(counts.links.iter().any(|l| l.starts_with("one-0-0")), "{counts:?}");
            host.in_netns(&["ping", "-c1", "-W5", "192.168.100.10"]).ok();
            assert_eq!(host.cli(&["exec", "one-0", "--", "true"]).code, 0);
        }
        Some(info) => {
            assert_eq!(name(&info), "stopped", "{info}");
            let mut counts = host.counts();
            counts.files.retain(|file| !file.starts_with("s/vms/one-0"));
            assert_eq!(counts, *before);
        }
    }
}

#[test]
fn a_daemon_killed_at_any_step_of_a_deploy_leaves_a_whole_vm_or_none() {
    let mut host = Host::start();
    host.add_disk(0);
    let before = host.counts();
    let deploy = Call::recorded(&host, "0079-vmm-deploy");
    let cancel = Call::recorded(&host, "0119-vmm-cancel").for_vm(2, 0);
    for point in points(&BOOT) {
        host.kill_daemon();
        host.set_env("OCIVISOR_FAULT", &format!("deploy.{point}"));
        host.start_daemon();
        let mut driver = host.driver_command(&deploy).spawn().unwrap();
        std::io::Write::write_all(&mut driver.stdin.take().unwrap(), &deploy.stdin).unwrap();
        host.daemon_dies();
        host.unset_env("OCIVISOR_FAULT");
        host.start_daemon();
        // The driver found its operation again, or was told that it was undone.
        let answer = driver.wait_with_output().unwrap();
        at_rest(&host, &before);
        let running = host.info("one-0").is_some_and(|info| name(&info) == "running");
        let out = String::from_utf8_lossy(&answer.stdout).into_owned();
        assert_eq!(answer.status.success(), running, "{point}: {out} {:?}", answer.stderr);
        host.driver(&deploy).ok();
        host.driver(&cancel).ok();
        assert_eq!(host.counts(), before, "after {point}");
    }
}

#[test]
fn a_daemon_killed_at_any_step_of_a_cancel_finishes_it_when_it_is_back() {
    let mut host = Host::start();
    host.add_disk(0);
    let before = host.counts();
    let deploy = Call::recorded(&host, "0079-vmm-deploy");
    let cancel = Call::recorded(&host, "0119-vmm-cancel").for_vm(2, 0);
    for point in points(&RELEASE) {
        host.driver(&deploy).ok();
        host.kill_daemon();
        host.set_env("OCIVISOR_FAULT", &format!("destroy.{point}"));
        host.start_daemon();
        let mut driver = host.driver_command(&cancel).spawn().unwrap();
        std::io::Write::write_all(&mut driver.stdin.take().unwrap(), &cancel.stdin).unwrap();
        host.daemon_dies();
        host.unset_env("OCIVISOR_FAULT");
        host.start_daemon();
        driver.wait_with_output().unwrap();
        wait_for("the cancel", || match host.info("one-0") {
            None => Ok(()),
            Some(info) => Err(info["display_state"].clone()),
        });
        assert_eq!(host.counts(), before, "after {point}");
    }
}

#[test]
fn a_daemon_killed_at_any_step_of_a_reboot_ends_in_a_whole_guest_or_a_stopped_one() {
    let mut host = Host::start();
    host.add_disk(0);
    let before = host.counts();
    let deploy = Call::recorded(&host, "0079-vmm-deploy");
    for step in [Step::DropGuest, Step::DropCgroup, Step::Create, Step::Start] {
        for point in [format!("before-{}", step.name()), format!("after-{}", step.name())] {
            host.driver(&deploy).ok();
            host.kill_daemon();
            host.set_env("OCIVISOR_FAULT", &format!("reset.{point}"));
            host.start_daemon();
            let mut reset = host.cli_command(&["reset", "one-0"]);
            let mut reset = reset.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            host.daemon_dies();
            host.unset_env("OCIVISOR_FAULT");
            host.start_daemon();
            reset.wait().unwrap();
            at_rest(&host, &before);
        }
    }
}

#[test]
fn a_guest_keeps_running_with_its_console_when_its_shim_is_killed() {
    let host = Host::start();
    host.add_disk(0);
    let deploy = Call::recorded(&host, "0079-vmm-deploy");
    let echo = "while read line; do echo got $line; done";
    host.driver(&deploy.with("sleep 1000", echo)).ok();
    let info = host.info("one-0").unwrap();
    let shim = info["guest"]["shim"]["pid"].as_u64().unwrap();
    tool(&["kill", "-9", &shim.to_string()]);
    wait_for("another shim", || {
        let now = host.info("one-0").unwrap();
        let other = now["guest"]["shim"]["pid"].as_u64();
        if other.is_some_and(|other| other != shim) { Ok(()) } else { Err(now["guest"].clone()) }
    });
    let after = host.info("one-0").unwrap();
    assert_eq!(pid(&after), pid(&info), "the guest itself goes on");
    // Before Linux 6.15 only the shim that ended could have heard how the guest ends.
    let told = exits_are_told();
    let losses = after["losses"].as_array().unwrap();
    assert_eq!(losses.len(), usize::from(!told), "{losses:?}");
    assert!(losses.iter().all(|loss| loss.as_str().unwrap().starts_with("exit status: ")));

    // The console works both ways on the new shim.
    let mut console = host.cli_command(&["console", "one-0"]);
    let mut console = console.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = console.stdin.take().unwrap();
    std::io::Write::write_all(&mut input, b"hello\n").unwrap();
    wait_for("the echo in the log", || {
        let log = host.cli(&["logs", "one-0"]).ok();
        if log.contains("got hello") { Ok(()) } else { Err(log) }
    });
    drop(input);
    console.kill().unwrap();
    console.wait().unwrap();

    // And how the guest ends is still known, where it can be.
    tool(&["kill", "-9", &pid(&info).to_string()]);
    wait_for("the end", || match host.info("one-0") {
        Some(info) if name(&info) == "stopped" => Ok(()),
        other => Err(other),
    });
    let want = if told { "signal" } else { "unknown" };
    assert_eq!(host.info("one-0").unwrap()["last_exit"]["kind"], want);
}

#[test]
fn a_shim_that_dies_with_the_daemon_is_replaced_and_the_record_says_what_was_lost() {
    let mut host = Host::start();
    host.add_disk(0);
    host.driver(&Call::recorded(&host, "0079-vmm-deploy")).ok();
    let info = host.info("one-0").unwrap();
    host.kill_daemon();
    tool(&["kill", "-9", &info["guest"]["shim"]["pid"].to_string()]);
    host.start_daemon();
    wait_for("an adoption", || {
        let now = host.info("one-0").unwrap();
        if now["guest"]["shim"] == info["guest"]["shim"] { Err(now) } else { Ok(()) }
    });
    let after = host.info("one-0").unwrap();
    assert_eq!((name(&after), pid(&after)), ("running", pid(&info)));
    assert!(after["losses"].to_string().contains("console"), "{}", after["losses"]);
}

#[test]
fn the_death_of_the_process_that_creates_a_guest_is_a_failed_deploy_without_a_trace() {
    let host = Host::start();
    host.add_disk(0);
    let before = host.counts();
    let deploy = Call::recorded(&host, "0079-vmm-deploy");
    let mut hit = 0;
    for _ in 0..40 {
        let mut driver = host.driver_command(&deploy).spawn().unwrap();
        std::io::Write::write_all(&mut driver.stdin.take().unwrap(), &deploy.stdin).unwrap();
        let killed = ocivisor_tests::wait::wait_for_option(ocivisor_tests::PATIENCE, || {
            let creating = fs::read_dir("/proc").unwrap().filter_map(Result::ok).find(|entry| {
                let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
                let line = String::from_utf8_lossy(&line).replace('\0', " ");
                line.contains("ocivisor-runtime create")
                    && line.contains(host.run_dir().to_str().unwrap())
            });
            let pid = creating.map(|entry| entry.file_name().into_string().unwrap());
            match (pid, driver.try_wait().unwrap()) {
                // Gone meanwhile, or a shim by now: then this round hit something else.
                (Some(pid), _) => Some(host.in_netns(&["kill", "-9", &pid]).code == 0),
                (None, Some(_)) => Some(false),
                (None, None) => None,
            }
        });
        hit += usize::from(killed == Some(true));
        driver.wait_with_output().unwrap();
        host.driver(&Call::recorded(&host, "0119-vmm-cancel").for_vm(2, 0)).ok();
        assert_eq!(host.counts(), before);
    }
    assert!(hit > 5, "the creating process was met only {hit} times");
    host.driver(&deploy).ok();
}

#[test]
fn two_hundred_deploys_and_cancels_under_kills_at_random_times_leave_nothing() {
    let mut host = Host::start();
    for vm in 0..4 {
        host.add_disk(vm);
    }
    // One guest that must not be touched by any of it.
    let deploy = Call::recorded(&host, "0079-vmm-deploy");
    let cancel = Call::recorded(&host, "0119-vmm-cancel");
    host.driver(&deploy.clone().for_vm(0, 3)).ok();
    let bystander = pid(&host.info("one-3").unwrap());
    let before = host.counts();
    let mut seed = u64::from(std::process::id());
    let mut random = |below: u64| {
        // xorshift64*: any spread will do, and the seed is printed by a failure.
        seed ^= seed >> 12;
        seed ^= seed << 25;
        seed ^= seed >> 27;
        seed.wrapping_mul(0x2545_F491_4F6C_DD1D) % below
    };
    for round in 0..200_u32 {
        let vm = u32::try_from(random(3)).unwrap();
        let call = if round % 2 == 0 {
            deploy.clone().for_vm(0, vm)
        } else {
            cancel.clone().for_vm(2, vm)
        };
        let mut driver = host.driver_command(&call).spawn().unwrap();
        std::io::Write::write_all(&mut driver.stdin.take().unwrap(), &call.stdin).unwrap();
        if random(2) == 0 {
            // A time, on purpose: the kill shall hit anywhere.
            let timeout = std::time::Duration::from_millis(random(120));
            ocivisor_tests::wait::wait_for_option(timeout, || driver.try_wait().unwrap());
            host.restart_daemon();
        }
        driver.wait_with_output().unwrap();
    }
    for vm in 0..3 {
        host.driver(&cancel.clone().for_vm(2, vm)).ok();
    }
    assert_eq!(pid(&host.info("one-3").unwrap()), bystander);
    assert_eq!(host.counts(), before);
}
