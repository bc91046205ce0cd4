use std::env;
use std::time::Duration;

use super::super::fault::{Fault, with};
use super::*;
use crate::command;

fn subject() -> (VmId, NicSpec) {
    ("one-1".parse().unwrap(), nic("ocv-1-0", "ocvbr0", 1))
}

/// The subject with another MTU, an address less and one more, and another route.
fn altered() -> NicSpec {
    let mut nic = subject().1;
    nic.mtu = Some(1400);
    nic.addresses[0] = (IpAddr::from([10, 0, 1, 1]), 24);
    nic.routes[0] = route("10.0.1.254");
    let rate = ocivisor_core::spec::Rate { average: 1_000_000, peak: None, burst: None };
    (nic.inbound, nic.outbound) = (Some(rate), Some(rate));
    nic
}

type Verb = fn(&HostNetwork) -> ocivisor_core::error::Result<()>;

const ENSURE_NAMESPACES: Verb = |network| network.ensure_namespaces(&subject().0, IDS);
const ENSURE_NIC: Verb = |network| network.ensure_nic(&subject().0, &subject().1);
const ALTER_NIC: Verb = |network| network.alter_nic(&subject().0, &subject().1, &altered());
const ENSURE_BOUNDED: Verb = |network| network.ensure_nic(&subject().0, &altered());
const DROP_NIC: Verb = |network| network.drop_nic(&subject().0, &subject().1);
const DROP_NAMESPACES: Verb = |network| network.drop_namespaces(&subject().0);

/// What was done before, and the verb that is cut off.
const CASES: [(&str, &[Verb], Verb); 7] = [
    ("ensure namespaces", &[], ENSURE_NAMESPACES),
    ("ensure nic", &[ENSURE_NAMESPACES], ENSURE_NIC),
    ("alter nic", &[ENSURE_NAMESPACES, ENSURE_NIC], ALTER_NIC),
    ("ensure bounded nic", &[ENSURE_NAMESPACES], ENSURE_BOUNDED),
    ("drop nic", &[ENSURE_NAMESPACES, ENSURE_NIC], DROP_NIC),
    ("drop namespaces", &[ENSURE_NAMESPACES], DROP_NAMESPACES),
    ("drop namespaces with nic", &[ENSURE_NAMESPACES, ENSURE_NIC], DROP_NAMESPACES),
];

/// Places in a verb, so that a test cannot pass by passing none.
const AT_LEAST: [u32; 7] = [10, 4, 8, 8, 1, 4, 5];

fn complete(host: &Host, id: &VmId) {
    for verb in [ENSURE_NAMESPACES, ENSURE_NIC] {
        verb(&host.network).unwrap();
    }
    assert_eq!(host.addresses_inside(id, "eth0")[0], "10.0.0.1/24");
    for verb in [DROP_NIC, DROP_NAMESPACES] {
        verb(&host.network).unwrap();
    }
}

#[test]
fn a_change_that_fails_or_crashes_at_any_place_is_gone_on_with_or_taken_back() {
    let alter = |host: &Host, from: &NicSpec, to: &NicSpec| {
        host.network.alter_nic(&subject().0, from, to).unwrap();
    };
    let seen = |host: &Host| {
        host.inside(&subject().0, || {
            let routes = fs::read_to_string("/proc/thread-self/net/route").unwrap();
            let given = addresses("eth0").into_iter().filter(|a| !a.contains("fe80"));
            (mtu("eth0"), given.collect::<Vec<_>>(), routes.matches("FE").count())
        })
    };
    let index =
        |host: &Host| (host.find("ocv-1-0").unwrap().index, host.find("ocv-1-0").unwrap().mtu);
    let case = CASES.iter().position(|case| case.0 == "alter nic").unwrap();
    on_a_host(|host| {
        host.bridge("ocvbr0", 1500);
        ENSURE_NAMESPACES(&host.network).unwrap();
        ENSURE_NIC(&host.network).unwrap();
        let (old, link) = (seen(host), index(host));
        alter(host, &subject().1, &altered());
        let new = seen(host);
        assert_eq!(new.0, 1400);
        assert_eq!(new.1, ["10.0.1.1/24", "fd00::1/64"]);
        assert_eq!(index(host), (link.0, 1400), "the same link");
        alter(host, &altered(), &subject().1);
        assert_eq!((seen(host), index(host)), (old.clone(), link));
        for at in 0.. {
            if !crash(host, case, at) {
                break;
            }
            if at % 2 == 0 {
                alter(host, &subject().1, &altered());
                assert_eq!(seen(host), new, "place {at}");
            }
            alter(host, &altered(), &subject().1);
            assert_eq!((seen(host), index(host)), (old.clone(), link), "place {at}");
        }
    });
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
