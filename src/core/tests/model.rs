//! Random requests, ends of guests, crashes, failures and reboots against a model of three states.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::needless_pass_by_value,
    reason = "tests"
)]

mod common;

use common::{
    CANCEL, DESTROY, Daemon, REBOOT, SHUTDOWN, Seen, change, define, deploy, id, rewire, unwire,
};
use ocivisor_core::state::{GuestExit, Request, VmState};
use ocivisor_core::testing::Fault;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Event {
    Ask(usize, Request),
    AskWithFault(usize, Request, usize, Fault),
    GuestEnds(usize),
    ShimDies(usize),
    DisplayDies(usize),
    Restart,
    HostReboots,
}

/// What a user believes of a VM.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Belief {
    Unknown,
    Stopped,
    Running,
}

const NAMES: [&str; 2] = ["one-1", "one-2"];

fn request(vm: usize) -> impl Strategy<Value = Request> {
    prop_oneof![
        Just(define(NAMES[vm])),
        Just(Request::Start),
        Just(deploy(NAMES[vm])),
        Just(SHUTDOWN),
        Just(DESTROY),
        Just(CANCEL),
        Just(REBOOT),
        Just(Request::Reset),
        Just(Request::Undefine),
        Just(change()),
        Just(rewire(NAMES[vm])),
        Just(unwire(NAMES[vm])),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let faults = prop_oneof![
        Just(Fault::Fail),
        Just(Fault::CrashBefore),
        Just(Fault::CrashHalfway),
        Just(Fault::CrashAfter),
    ];
    let vm = 0..NAMES.len();
    prop_oneof![
        6 => vm.clone().prop_flat_map(|vm| (Just(vm), request(vm))).prop_map(|(v, r)| Event::Ask(v, r)),
        3 => (vm.clone().prop_flat_map(|vm| (Just(vm), request(vm))), 0..20_usize, faults)
            .prop_map(|((v, r), n, f)| Event::AskWithFault(v, r, n, f)),
        1 => vm.clone().prop_map(Event::GuestEnds),
        1 => vm.clone().prop_map(Event::ShimDies),
        1 => vm.prop_map(Event::DisplayDies),
        1 => Just(Event::Restart),
        1 => Just(Event::HostReboots),
    ]
}

fn belief(daemon: &Daemon, vm: usize) -> Belief {
    match daemon.state(NAMES[vm]) {
        None => Belief::Unknown,
        Some(VmState::Stopped) => Belief::Stopped,
        Some(VmState::Running) => Belief::Running,
        Some(other) => panic!("{other:?}"),
    }
}

/// The state after a request that was answered with success.
fn after(belief: Belief, request: &Request) -> Belief {
    match request {
        Request::Start | Request::Deploy(_) | Request::Reboot { .. } | Request::Reset => {
            Belief::Running
        }
        Request::Define(_) if belief == Belief::Running => Belief::Running,
        Request::Define(_) => Belief::Stopped,
        Request::Shutdown { forget, .. } | Request::Destroy { forget } => {
            if *forget {
                Belief::Unknown
            } else {
                Belief::Stopped
            }
        }
        Request::Change(_) => belief,
        Request::Undefine => Belief::Unknown,
        Request::Collect => Belief::Stopped,
        Request::Restart { .. } => Belief::Running,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn records_and_host_agree_with_the_model(events in prop::collection::vec(event(), 1..25)) {
        let daemon = Daemon::new();
        let mut believed = [Belief::Unknown; NAMES.len()];
        for event in events {
            match event {
                Event::Ask(vm, request) => {
                    match daemon.ask(NAMES[vm], request.clone()) {
                        Seen::Answer(Ok(())) | Seen::Already => {
                            believed[vm] = after(believed[vm], &request);
                        }
                        Seen::Answer(Err(_)) => {}
                        other => panic!("{other:?}"),
                    }
                }
                Event::AskWithFault(vm, request, n, fault) => {
                    daemon.host.inject(n, fault);
                    let answer = daemon.ask(NAMES[vm], request.clone());
                    daemon.host.heal();
                    daemon.restart();
                    // Old or new state, or, of what cannot be put back, stopped or forgotten.
                    let now = belief(&daemon, vm);
                    let new = after(believed[vm], &request);
                    let lost = match request {
                        Request::Reboot { .. } | Request::Reset | Request::Deploy(_) => {
                            now != Belief::Running
                        }
                        // Gone from the host, but the record could not be removed.
                        Request::Shutdown { forget: true, .. }
                        | Request::Destroy { forget: true } => now == Belief::Stopped,
                        _ => false,
                    };
                    match answer {
                        Seen::Answer(Ok(())) | Seen::Already => prop_assert_eq!(now, new),
                        _ => prop_assert!(now == new || now == believed[vm] || lost),
                    }
                    believed[vm] = now;
                }
                Event::GuestEnds(vm) => {
                    if believed[vm] == Belief::Running {
                        daemon.host.end_guest(&id(NAMES[vm]), GuestExit::Code(1));
                        prop_assert_eq!(daemon.restart(), []);
                        believed[vm] = Belief::Stopped;
                    }
                }
                Event::ShimDies(vm) => {
                    if believed[vm] == Belief::Running {
                        daemon.host.kill_shim(&id(NAMES[vm]));
                        prop_assert_eq!(daemon.restart(), []);
                    }
                }
                Event::DisplayDies(vm) => {
                    daemon.host.kill_display(&id(NAMES[vm]));
                    prop_assert_eq!(daemon.restart(), []);
                }
                Event::Restart => {
                    prop_assert_eq!(daemon.restart(), []);
                }
                Event::HostReboots => {
                    daemon.host.reboot();
                    prop_assert_eq!(daemon.restart(), []);
                    for belief in &mut believed {
                        if *belief == Belief::Running {
                            *belief = Belief::Stopped;
                        }
                    }
                }
            }
            for (vm, believed) in believed.iter().enumerate() {
                prop_assert_eq!(belief(&daemon, vm), *believed);
            }
            daemon.check();
        }
    }
}
