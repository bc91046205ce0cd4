//! Many requests at once: each ends as admission says.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::thread;

use ocivisor_tests::{Call, Host};

#[test]
fn twenty_deploys_at_once_are_twenty_guests_and_go_without_a_trace() {
    let host = Host::start();
    for vm in 0..20 {
        host.add_disk(vm);
    }
    let before = host.counts();
    let deploy = Call::recorded(&host, "0079-vmm-deploy");
    thread::scope(|scope| {
        for vm in 0..20 {
            let (host, call) = (&host, deploy.clone().for_vm(0, vm));
            scope.spawn(move || assert_eq!(host.driver(&call).ok(), format!("one-{vm}\n")));
        }
    });
    let listed = host.cli(&["list", "-o", "json"]).json();
    let vms = listed["vms"].as_array().unwrap();
    assert_eq!(vms.len(), 20);
    let mut bases: Vec<u64> = vms.iter().map(|vm| vm["uid_base"].as_u64().unwrap()).collect();
    bases.sort_unstable();
    bases.dedup();
    assert_eq!(bases.len(), 20, "every guest has ids of its own");
    let cancel = Call::recorded(&host, "0119-vmm-cancel");
    thread::scope(|scope| {
        for vm in 0..20 {
            let (host, call) = (&host, cancel.clone().for_vm(2, vm));
            scope.spawn(move || host.driver(&call).ok());
        }
    });
    assert_eq!(host.counts(), before);
}

#[test]
fn twenty_conflicting_requests_on_one_vm_leave_it_in_a_defined_state() {
    let host = Host::start();
    host.add_disk(0);
    let before = host.counts();
    let deploy = Call::recorded(&host, "0079-vmm-deploy");
    for _ in 0..3 {
        host.driver(&deploy).ok();
        thread::scope(|scope| {
            for n in 0..20 {
                let (host, deploy) = (&host, &deploy);
                scope.spawn(move || {
                    let answer = match n % 5 {
                        0 => host.driver(deploy),
                        1 => host.cli(&["destroy", "one-0"]),
                        2 => host.cli(&["reset", "one-0"]),
                        3 => host.cli(&["start", "one-0"]),
                        _ => host.cli(&["shutdown", "one-0", "--timeout", "1"]),
                    };
                    // Done, denied (4), given up for a destroy (4), not known (3), failed (1).
                    assert!([0, 1, 3, 4].contains(&answer.code), "{n}: {answer:?}");
                });
            }
        });
        let state = host.info("one-0").map(|info| info["display_state"].clone());
        if let Some(state) = state {
            assert!(state == "running" || state == "stopped", "{state}");
        }
        host.driver(&Call::recorded(&host, "0119-vmm-cancel").for_vm(2, 0)).ok();
        assert_eq!(host.counts(), before);
    }
}
