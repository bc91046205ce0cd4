//! What the host does for guests that no platform owns: restarts, health checks, starts with the host.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use ocivisor_tests::{Host, wait_for};
use serde_json::Value;

/// Defines an application of `busybox` that runs `script`.
fn define(host: &Host, number: u32, vm: &str, options: &[&str], script: &str) {
    let disk = host.add_disk(number).display().to_string();
    let fixed = ["define", vm, "--disk", &disk, "--memory", "64M", "--init", "application"];
    let command = ["--", "/bin/sh", "-c", script];
    host.cli(&[&fixed[..], options, &command].concat()).ok();
}

fn state(host: &Host, vm: &str) -> String {
    let info = host.info(vm).expect("a known VM");
    info["state"]["name"].as_str().unwrap().to_owned()
}

fn wait_for_state(host: &Host, vm: &str, wanted: &str) {
    wait_for(wanted, || match host.info(vm).unwrap() {
        info if info["state"]["name"] == wanted && info["op"].is_null() => Ok(()),
        info => Err(info),
    });
}

fn wait_for_health(host: &Host, vm: &str, wanted: &str) {
    wait_for(wanted, || match host.info(vm).unwrap()["health"].clone() {
        health if health["status"] == wanted => Ok(()),
        health => Err(health),
    });
}

/// How often the guest wrote that it has begun.
fn begun(host: &Host, vm: &str) -> usize {
    host.cli(&["logs", vm]).ok().lines().filter(|line| line.contains("begun")).count()
}

/// Events of a VM and of a kind, as this daemon knows them.
fn events(host: &Host, vm: &str, kind: &str) -> Vec<Value> {
    let text = host.cli(&["events", "--since", "0", "-o", "json"]).ok();
    let events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    events.filter(|event| event["vm"] == vm && event["kind"] == kind).collect()
}

/// Lives longer than what a start must, then fails.
const FAILS: &str = "echo begun; sleep 0.3; exit 1";

fn rests_after(host: &Host, vm: &str, restarts: u64) {
    wait_for("no more restarts", || match host.info(vm).unwrap() {
        info if info["tally"]["restarts"] == restarts && info["state"]["name"] == "stopped" => {
            Ok(())
        }
        info => Err(info["tally"].clone()),
    });
    let info = host.info(vm).unwrap();
    assert_eq!(info["last_exit"]["code"], 1, "{info}");
    assert_eq!(begun(host, vm), usize::try_from(restarts).unwrap() + 1, "{info}");
}

#[test]
fn a_guest_that_fails_is_restarted_so_often_and_then_rests() {
    let host = Host::start();
    define(&host, 0, "web", &["--restart", "on-failure:3"], FAILS);
    define(&host, 1, "done", &["--restart", "on-failure:3"], "echo begun; sleep 0.3");
    host.cli(&["start", "web"]).ok();
    host.cli(&["start", "done"]).ok();
    rests_after(&host, "web", 3);
    let told = events(&host, "web", "restarts_exhausted");
    assert_eq!(told.iter().map(|e| e["restarts"].as_u64()).collect::<Vec<_>>(), [Some(3)]);
    let shown = host.cli(&["info", "web"]).ok();
    assert!(shown.contains("on failure, 3 times; 3 in a row"), "{shown}");
    assert_eq!((state(&host, "done"), begun(&host, "done")), ("stopped".to_owned(), 1));
}

#[test]
fn no_restart_is_lost_or_done_twice_when_the_daemon_is_killed() {
    let mut host = Host::start();
    define(&host, 0, "web", &["--restart", "on-failure:3"], FAILS);
    host.cli(&["start", "web"]).ok();
    for _ in 0..5 {
        host.restart_daemon();
    }
    rests_after(&host, "web", 3);
    let faults = ["restart.intended", "restart.after-create", "restart.after-start"];
    for (number, fault) in (1..).zip(faults.into_iter().chain(["collect.after-drop-guest"])) {
        host.kill_daemon();
        host.set_env("OCIVISOR_FAULT", fault);
        host.start_daemon();
        let vm = format!("web{number}");
        define(&host, number, &vm, &["--restart", "on-failure:2"], FAILS);
        host.cli(&["start", &vm]).ok();
        host.daemon_dies();
        host.unset_env("OCIVISOR_FAULT");
        host.start_daemon();
        rests_after(&host, &vm, 2);
    }
}

#[test]
fn who_was_stopped_stays_so() {
    let mut host = Host::start();
    let lives = "echo begun; exec sleep 1000";
    define(&host, 0, "always", &["--restart", "always"], lives);
    define(&host, 1, "fails", &["--restart", "always"], FAILS);
    for vm in ["always", "fails"] {
        host.cli(&["start", vm]).ok();
    }
    // One that runs, and one that is now up and now down.
    wait_for("a restart", || if begun(&host, "fails") > 1 { Ok(()) } else { Err(()) });
    for vm in ["always", "fails"] {
        host.cli(&["shutdown", vm, "--timeout", "1s"]).ok();
    }
    let runs = begun(&host, "fails");
    host.restart_daemon();
    assert_eq!((state(&host, "always"), begun(&host, "always")), ("stopped".to_owned(), 1));
    assert_eq!((state(&host, "fails"), begun(&host, "fails")), ("stopped".to_owned(), runs));
}

#[test]
fn health_goes_both_ways_and_is_told() {
    let host = Host::start();
    let health = ["--health-interval", "200ms", "--health-retries", "2", "--health-cmd"];
    let options = [&health[..], &["test -e /ok || { echo no answer; exit 1; }"]].concat();
    define(&host, 0, "web", &options, "exec sleep 1000");
    host.cli(&["start", "web"]).ok();
    wait_for_health(&host, "web", "unhealthy");
    let shown = host.cli(&["info", "web"]).ok();
    assert!(shown.contains("unhealthy, failures in a row: ") && shown.contains("(no answer)"));
    host.cli(&["exec", "web", "--", "touch", "/ok"]).ok();
    wait_for_health(&host, "web", "healthy");
    let listed = host.cli(&["list"]).ok();
    assert!(listed.contains("running (healthy)"), "{listed}");
    host.cli(&["exec", "web", "--", "rm", "/ok"]).ok();
    wait_for_health(&host, "web", "unhealthy");
    let changes = events(&host, "web", "health_changed");
    let to: Vec<&str> = changes.iter().map(|event| event["to"].as_str().unwrap()).collect();
    assert_eq!(to, ["unhealthy", "healthy", "unhealthy"]);
    assert_eq!(state(&host, "web"), "running", "it is told of, no more");
}

#[test]
fn a_check_that_hangs_is_killed_and_its_guest_ended_if_so_wished() {
    let host = Host::start();
    let health = ["--health-interval", "100ms", "--health-timeout", "200ms"];
    let hang = ["--health-retries", "3", "--health-cmd", "sleep 4321 & sleep 1234"];
    let options = [&health[..], &hang].concat();
    define(&host, 0, "slow", &options, "exec sleep 1000");
    let killed = ["--restart", "on-failure:1", "--health-on-failure", "kill"];
    define(&host, 1, "dead", &[&options[..], &killed].concat(), "echo begun; exec sleep 1000");
    host.cli(&["start", "slow"]).ok();
    host.cli(&["start", "dead"]).ok();
    wait_for_health(&host, "slow", "unhealthy");
    let left = host.cli(&["exec", "slow", "--", "ps"]).ok();
    // One check may be under way.
    for leftover in ["sleep 4321", "sleep 1234"] {
        let count = left.lines().filter(|line| line.ends_with(leftover)).count();
        assert!(count <= 1, "{left}");
    }
    let info = host.info("slow").unwrap();
    assert_eq!(info["health"]["output"], "no answer within 200 ms", "{info}");
    // Killed, restarted, killed again, and then its policy has no more.
    wait_for("the end", || {
        let told = events(&host, "dead", "restarts_exhausted");
        if told.len() == 1 { Ok(()) } else { Err(host.info("dead")) }
    });
    assert_eq!(begun(&host, "dead"), 2);
    assert_eq!(host.info("dead").unwrap()["last_exit"]["signal"], 9);
}

#[test]
fn guests_start_with_the_host_in_their_order_and_once() {
    let mut host = Host::start_with("autostart_pause_ms = 200\n");
    let lives = "echo begun; exec sleep 1000";
    define(&host, 0, "c-first", &["--autostart=1"], lives);
    define(&host, 1, "a-second", &["--autostart=2"], lives);
    define(&host, 2, "b-second", &["--autostart=2"], lives);
    define(&host, 3, "last", &["--restart", "always"], lives);
    define(&host, 4, "unless", &["--restart", "unless-stopped"], lives);
    define(&host, 5, "never", &[], lives);
    for vm in ["last", "unless", "never", "b-second"] {
        host.cli(&["start", vm]).ok();
    }
    for vm in ["last", "unless"] {
        host.cli(&["shutdown", vm, "--timeout", "1s"]).ok();
    }
    host.restart_daemon();
    assert_eq!(state(&host, "c-first"), "stopped", "a new daemon is no boot of the host");

    host.reboot();
    wait_for_state(&host, "last", "running");
    for (vm, expected) in [
        ("c-first", "running"),
        ("a-second", "running"),
        ("b-second", "running"),
        ("unless", "stopped"),
        ("never", "stopped"),
    ] {
        assert_eq!(state(&host, vm), expected, "{vm}");
    }
    let number = |vm: &str, kind: &str, operation: &str| {
        let events = events(&host, vm, kind);
        let event = events.iter().find(|event| event["operation"] == operation);
        event.unwrap_or_else(|| panic!("{vm}: {events:?}"))["seq"].as_u64().unwrap()
    };
    let began = |vm| number(vm, "operation_started", "restart");
    let ended = |vm| number(vm, "operation_finished", "restart");
    assert!(ended("c-first") < began("a-second").min(began("b-second")));
    assert!(ended("a-second").max(ended("b-second")) < began("last"));

    host.cli(&["shutdown", "c-first", "--timeout", "1s"]).ok();
    host.restart_daemon();
    wait_for_state(&host, "last", "running");
    assert_eq!((state(&host, "c-first"), begun(&host, "c-first")), ("stopped".to_owned(), 1));
}

#[test]
fn a_platforms_guest_is_left_to_its_platform() {
    let host = Host::start();
    let file = host.dir().join("vm.toml");
    let spec = "id = 'one-9'\nplatform = 'opennebula'\n[resources]\nmemory = 67108864\n\
        [root]\npath = '/d'\n[upkeep]\nrestart = { when = 'always' }\n";
    ocivisor_tests::write(&file, spec);
    let answer = host.cli(&["define", "--file", &file.display().to_string()]);
    assert_eq!(answer.code, 2, "{answer:?}");
    let why = "a guest of a platform is started and judged by the platform alone";
    assert!(answer.err.contains(why), "{answer:?}");
}

#[test]
fn a_guest_has_its_own_time_to_end() {
    let host = Host::start();
    let stubborn = "trap '' TERM; echo begun; while :; do sleep 1; done";
    define(&host, 0, "web", &["--stop-timeout", "1s", "--restart", "always"], stubborn);
    host.cli(&["start", "web"]).ok();
    wait_for("its trap", || if begun(&host, "web") == 1 { Ok(()) } else { Err(()) });
    let kept = host.cli(&["shutdown", "web", "--no-force"]);
    assert_eq!((kept.code, state(&host, "web")), (6, "running".to_owned()), "{kept:?}");
    assert!(kept.err.contains("did not end within 1 s"), "{kept:?}");
    host.cli(&["shutdown", "web"]).ok();
    assert_eq!(state(&host, "web"), "stopped");
}
