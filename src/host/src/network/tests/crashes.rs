use std::env;
use std::time::Duration;

use super::super::fault::{Fault, with};
use super::*;
use crate::command;

fn subject() -> (VmId, NicSpec) {
    ("one-1".parse().unwrap(), nic("ocv-1-0", "ocvbr0", 1))
}

type Verb = fn(&HostNetwork) -> ocivisor_core::error::Result<()>;

const ENSURE_NAMESPACES: Verb = |network| network.ensure_namespaces(&subject().0, IDS);
const ENSURE_NIC: Verb = |network| network.ensure_nic(&subject().0, &subject().1);
const DROP_NIC: Verb = |network| network.drop_nic(&subject().0, &subject().1);
const DROP_NAMESPACES: Verb = |network| network.drop_namespaces(&subject().0);

/// What was done before, and the verb that is cut off.
const CASES: [(&str, &[Verb], Verb); 5] = [
    ("ensure namespaces", &[], ENSURE_NAMESPACES),
    ("ensure nic", &[ENSURE_NAMESPACES], ENSURE_NIC),
    ("drop nic", &[ENSURE_NAMESPACES, ENSURE_NIC], DROP_NIC),
    ("drop namespaces", &[ENSURE_NAMESPACES], DROP_NAMESPACES),
    ("drop namespaces with nic", &[ENSURE_NAMESPACES, ENSURE_NIC], DROP_NAMESPACES),
];

/// Places in a verb, so that a test cannot pass by passing none.
const AT_LEAST: [u32; 5] = [10, 4, 1, 4, 5];

fn complete(host: &Host, id: &VmId) {
    for verb in [ENSURE_NAMESPACES, ENSURE_NIC] {
        verb(&host.network).unwrap();
    }
    assert_eq!(host.addresses_inside(id, "eth0")[0], "10.0.0.1/24");
    for verb in [DROP_NIC, DROP_NAMESPACES] {
        verb(&host.network).unwrap();
    }
}

fn no_namespace_lives() {
    wait_for("all namespaces to end", || match numbered() {
        ids if ids.is_empty() => Ok(()),
        ids => Err(ids),
    });
}

#[test]
fn a_failure_at_any_place_leaves_what_was_before() {
    for (case, (what, before, verb)) in CASES.into_iter().enumerate() {
        on_a_host(|host| {
            host.bridge("ocvbr0", 1500);
            let empty = host.everything();
            let mut at = 0;
            loop {
                before.iter().for_each(|verb| verb(&host.network).unwrap());
                let old = host.everything();
                let (result, passed) = with(at, Fault::Fail, || verb(&host.network));
                if result.is_ok() {
                    assert!(passed == at && at >= AT_LEAST[case], "{what}: {passed} places");
                    break;
                }
                if what.starts_with("ensure") {
                    assert_eq!(host.everything(), old, "{what}, place {at}");
                }
                complete(host, &subject().0);
                assert_eq!(host.everything(), empty, "{what}, place {at}");
                at += 1;
            }
            DROP_NAMESPACES(&host.network).unwrap();
            no_namespace_lives();
        });
    }
}

#[test]
fn after_a_crash_at_any_place_ensuring_and_dropping_both_work() {
    for (case, (what, before, _)) in CASES.into_iter().enumerate() {
        for forward in [false, true] {
            on_a_host(|host| {
                host.bridge("ocvbr0", 1500);
                let empty = host.everything();
                for at in 0.. {
                    before.iter().for_each(|verb| verb(&host.network).unwrap());
                    let old = host.everything();
                    if !crash(host, case, at) {
                        assert!(at >= AT_LEAST[case], "{what}: {at} places");
                        break;
                    }
                    let id = subject().0;
                    if host.everything() != old {
                        let seen = host.network.observe_network().unwrap();
                        assert!(seen.contains(&id) || host.everything() == empty, "{what} {at}");
                    }
                    if forward {
                        complete(host, &id);
                    } else {
                        DROP_NAMESPACES(&host.network).unwrap();
                    }
                    assert_eq!(host.everything(), empty, "{what}, place {at}");
                }
                DROP_NAMESPACES(&host.network).unwrap();
                no_namespace_lives();
            });
        }
    }
}

/// Runs the verb in a process that is killed at the given place; false if it was not.
fn crash(host: &Host, case: usize, at: u32) -> bool {
    let exe = env::current_exe().unwrap();
    let name = "network::tests::crashes::process_that_crashes";
    let task = format!("OCV_CRASH={case},{at},{}", host.layout.run.display());
    let argv = ["env", &task, exe.to_str().unwrap(), "--exact", name, "--test-threads=1"];
    match command::run(&argv, Duration::from_secs(60)) {
        Ok(out) => {
            assert!(String::from_utf8_lossy(&out).contains("1 passed"));
            false
        }
        Err(e) if e.message.contains("signal: 9") => true,
        Err(e) => panic!("{e}"),
    }
}

/// Not a test by itself: the body of the process that [`crash`] starts.
#[test]
fn process_that_crashes() {
    let Ok(task) = env::var("OCV_CRASH") else {
        return;
    };
    let [case, at, run] = *task.split(',').collect::<Vec<_>>() else { panic!("{task}") };
    let run: std::path::PathBuf = run.into();
    let layout = Layout { state: run.clone(), run, cgroup_base: "ocv-none".into() };
    let network = HostNetwork::new(layout);
    let (_, _, verb) = CASES[case.parse::<usize>().unwrap()];
    let (result, _) = with(at.parse().unwrap(), Fault::Kill, || verb(&network));
    result.unwrap();
}
