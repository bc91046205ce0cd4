//! Every operation, with every call of it failing, crashing before, halfway and after.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::needless_pass_by_value,
    reason = "tests"
)]

mod common;

use std::time::Duration;

use common::{
    CANCEL, DESTROY, Daemon, REBOOT, SHUTDOWN, Seen, change, define, deploy, rewire, unwire,
};
use ocivisor_core::error::ErrorKind;
use ocivisor_core::spec::{Change, InitKind};
use ocivisor_core::state::{GuestExit, OpKind, Request, VmState};
use ocivisor_core::testing::Fault;

/// An operation and the requests that lead to where it begins.
fn scenarios() -> Vec<(&'static str, Vec<Request>, Request)> {
    let vm = "one-1";
    let other = Request::Deploy(Box::new(common::spec(vm, 1)));
    vec![
        ("define", vec![], define(vm)),
        ("start", vec![define(vm)], Request::Start),
        ("deploy", vec![], deploy(vm)),
        ("deploy again", vec![deploy(vm)], other),
        ("shutdown", vec![deploy(vm)], SHUTDOWN),
        ("destroy", vec![deploy(vm)], DESTROY),
        ("cancel", vec![deploy(vm)], CANCEL),
        ("reboot", vec![deploy(vm)], REBOOT),
        ("reset", vec![deploy(vm)], Request::Reset),
        ("undefine", vec![define(vm)], Request::Undefine),
        ("change", vec![deploy(vm)], change()),
        ("change at rest", vec![define(vm)], change()),
        ("rewire", vec![deploy(vm)], rewire(vm)),
        ("rewire back", vec![deploy(vm), rewire(vm)], unwire(vm)),
    ]
}

fn prepared(before: &[Request]) -> Daemon {
    let daemon = Daemon::new();
    for request in before {
        assert_eq!(daemon.ask("one-1", request.clone()), Seen::Answer(Ok(())));
    }
    daemon.check();
    daemon
}

#[test]
fn a_failure_of_any_call_leaves_exactly_what_the_record_says() {
    for (name, before, request) in scenarios() {
        for n in 0.. {
            let daemon = prepared(&before);
            daemon.host.inject(n, Fault::Fail);
            let answer = daemon.ask("one-1", request.clone());
            if !daemon.host.heal() {
                assert_eq!(answer, Seen::Answer(Ok(())), "{name} without a fault");
                assert!(n >= 2, "{name} made only {n} calls");
                break;
            }
            // Whatever was left half recorded is brought to rest by a restart.
            assert_eq!(daemon.restart(), [], "{name}, call {n}");
            daemon.check();
            assert!(!matches!(daemon.state("one-1"), Some(VmState::Failed(_))), "{name}, call {n}");
            // And the next request works.
            let next = daemon.ask("one-1", deploy("one-1"));
            assert!(matches!(next, Seen::Answer(Ok(())) | Seen::Already), "{name} {n}: {next:?}");
            daemon.check();
        }
    }
}

#[test]
fn a_failed_boot_leaves_nothing_running_before_it_answers() {
    for n in 0.. {
        let daemon = prepared(&[]);
        daemon.host.inject(n, Fault::Fail);
        let answer = daemon.ask("one-1", deploy("one-1"));
        if !daemon.host.heal() {
            break;
        }
        if matches!(answer, Seen::Answer(Err(_))) {
            assert_eq!(daemon.host.things(&common::id("one-1")), [], "call {n}");
        }
    }
}

#[test]
fn a_crash_at_any_call_ends_in_the_old_or_the_new_state() {
    for fault in [Fault::CrashBefore, Fault::CrashHalfway, Fault::CrashAfter] {
        for (name, before, request) in scenarios() {
            for n in 0.. {
                let daemon = prepared(&before);
                daemon.host.inject(n, fault);
                let answer = daemon.ask("one-1", request.clone());
                if !daemon.host.heal() {
                    assert_eq!(answer, Seen::Answer(Ok(())), "{name}");
                    break;
                }
                assert_eq!(answer, Seen::Crashed);
                daemon.restart();
                daemon.check();
                let again = daemon.restart();
                assert_eq!(again, [], "{name} {fault:?} {n}: a second restart finds peace");
                daemon.check();
                let state = daemon.state("one-1");
                assert!(!matches!(state, Some(VmState::Failed(_))), "{name} {fault:?} {n}");
                // What is said to be deployed is what runs.
                if let (Request::Deploy(spec), Some(record)) =
                    (&request, daemon.host.record(&common::id("one-1")))
                    && let Some(last) = record.finished.last()
                    && last.kind == OpKind::Deploy
                    && last.result.is_ok()
                    && record.finished.len() > before.len()
                {
                    assert_eq!(record.spec, **spec, "{name} {fault:?} {n}");
                }
                let next = daemon.ask("one-1", deploy("one-1"));
                assert!(matches!(next, Seen::Answer(Ok(())) | Seen::Already), "{next:?}");
                assert_eq!(daemon.ask("one-1", CANCEL), Seen::Answer(Ok(())));
                daemon.check();
            }
        }
    }
}

#[test]
fn a_crash_during_the_recovery_from_a_crash_is_recovered_from() {
    for (name, before, request) in scenarios() {
        for n in 0.. {
            let mut met = false;
            for m in 0.. {
                let daemon = prepared(&before);
                daemon.host.inject(n, Fault::CrashHalfway);
                daemon.ask("one-1", request.clone());
                met |= daemon.host.heal();
                daemon.host.inject(m, Fault::CrashHalfway);
                let whole = daemon.try_restart();
                daemon.host.heal();
                daemon.restart();
                daemon.check();
                assert!(!matches!(daemon.state("one-1"), Some(VmState::Failed(_))), "{name}");
                if whole {
                    break;
                }
            }
            if !met {
                break;
            }
        }
    }
}

#[test]
fn absence_that_cannot_be_had_is_a_failed_vm_and_destroy_leads_out() {
    let daemon = prepared(&[deploy("one-1")]);
    // The same step fails in the plan and when released once more: inject twice by hand.
    let record = daemon.host.record(&common::id("one-1")).unwrap();
    let mut failed = record.clone();
    failed.state = VmState::Failed("root is busy".into());
    daemon.host.ports().records.save(&failed).unwrap();
    for request in [Request::Start, REBOOT, Request::Undefine, define("one-1")] {
        let answer = daemon.ask("one-1", request.clone());
        match request {
            Request::Define(_) => assert_eq!(answer, Seen::Already),
            _ => assert!(matches!(answer, Seen::Answer(Err(e)) if e.kind == ErrorKind::Conflict)),
        }
    }
    assert_eq!(daemon.ask("one-1", DESTROY), Seen::Answer(Ok(())));
    assert_eq!(daemon.state("one-1"), Some(VmState::Stopped));
    daemon.check();
}

#[test]
fn a_change_that_fails_leaves_the_guest_running_by_the_old_wish() {
    for request in [change(), rewire("one-1")] {
        for n in 0.. {
            let daemon = prepared(&[deploy("one-1")]);
            let before = daemon.host.record(&common::id("one-1")).unwrap();
            daemon.host.inject(n, Fault::Fail);
            let answer = daemon.ask("one-1", request.clone());
            if !daemon.host.heal() {
                assert_eq!(answer, Seen::Answer(Ok(())));
                let after = daemon.host.record(&common::id("one-1")).unwrap();
                let Request::Change(change) = &request else { panic!() };
                assert_eq!(after.spec, before.spec.changed(change));
                assert_eq!((after.guest, after.state), (before.guest, before.state));
                daemon.check();
                break;
            }
            daemon.restart();
            daemon.check();
            let after = daemon.host.record(&common::id("one-1")).unwrap();
            assert_eq!((after.guest, after.state), (before.guest, before.state), "call {n}");
        }
    }
}

#[test]
fn a_guest_boots_anew_with_the_nics_that_it_was_given_while_it_ran() {
    let daemon = prepared(&[deploy("one-1"), rewire("one-1")]);
    let nics = daemon.host.nics(&common::id("one-1"));
    assert_eq!(nics.len(), 3);
    for request in [REBOOT, Request::Reset, DESTROY, Request::Start] {
        assert_eq!(daemon.ask("one-1", request), Seen::Answer(Ok(())));
        daemon.check();
    }
    assert_eq!(daemon.host.nics(&common::id("one-1")), nics);
}

#[test]
fn what_stays_as_it_is_is_not_touched() {
    let daemon = prepared(&[deploy("one-1")]);
    let mut nics = common::spec("one-1", 3).nics;
    nics[1].dns = vec!["10.0.0.1".parse().unwrap()];
    let calls = daemon.host.trace().len();
    let change = Change { nics: Some(nics), ..Change::default() };
    assert_eq!(daemon.ask("one-1", Request::Change(Box::new(change))), Seen::Answer(Ok(())));
    let trace = daemon.host.trace();
    assert_eq!(trace[calls..], ["save", "ensure_nic", "tell_guest", "save"]);
    daemon.check();
}

#[test]
fn a_change_of_nothing_is_true_already_and_one_that_cannot_be_is_denied() {
    let daemon = prepared(&[deploy("one-1")]);
    assert_eq!(daemon.ask("one-1", Request::Change(Box::default())), Seen::Already);
    let Request::Change(mut bad) = change() else { panic!() };
    bad.resources.as_mut().unwrap().vcpus = 0;
    let Seen::Answer(Err(error)) = daemon.ask("one-1", Request::Change(bad)) else { panic!() };
    assert_eq!(error.kind, ErrorKind::Invalid);
    assert_eq!(error.message, "vm one-1: vcpus is 0, must be 1 to 4096");
    daemon.check();
}

#[test]
fn a_guest_that_ends_at_once_is_a_failed_start() {
    let daemon = prepared(&[]);
    daemon.host.make_guests_short_lived(GuestExit::Code(3));
    let Seen::Answer(Err(error)) = daemon.ask("one-1", deploy("one-1")) else { panic!() };
    assert_eq!(error.kind, ErrorKind::GuestExited);
    assert_eq!(error.message, "deploy vm one-1: the guest ended at once with exit code 3");
    assert_eq!(daemon.state("one-1"), None);
    daemon.check();
}

#[test]
fn a_guest_that_does_not_end_runs_on_unless_force_is_allowed() {
    let daemon = prepared(&[deploy("one-1")]);
    daemon.host.make_guests_stubborn();
    let gentle = Request::Shutdown { timeout_ms: 1, force: false, forget: true };
    let Seen::Answer(Err(error)) = daemon.ask("one-1", gentle) else { panic!() };
    assert_eq!(error.kind, ErrorKind::Timeout);
    assert_eq!(daemon.state("one-1"), Some(VmState::Running));
    daemon.check();
    assert_eq!(daemon.ask("one-1", SHUTDOWN), Seen::Answer(Ok(())));
    let record = daemon.host.record(&common::id("one-1")).unwrap();
    assert_eq!(record.last_exit, Some(GuestExit::Signal(9)));
    daemon.check();
}

#[test]
fn the_end_of_a_guest_is_collected_and_its_exit_kept() {
    let daemon = prepared(&[deploy("one-1")]);
    daemon.host.end_guest(&common::id("one-1"), GuestExit::Code(7));
    assert_eq!(daemon.restart(), []);
    let record = daemon.host.record(&common::id("one-1")).unwrap();
    assert_eq!((record.state, record.last_exit), (VmState::Stopped, Some(GuestExit::Code(7))));
    daemon.check();
}

#[test]
fn a_system_that_reboots_itself_is_booted_anew_but_not_in_a_loop() {
    let mut spec = common::spec("one-1", 1);
    spec.boot.init = InitKind::System;
    let id = common::id("one-1");
    let mut ended = |init: InitKind, ran: Duration, exit: GuestExit| {
        spec.boot.init = init;
        let daemon = prepared(&[Request::Deploy(Box::new(spec.clone()))]);
        daemon.host.pass(ran);
        daemon.host.end_guest(&id, exit);
        assert_eq!(daemon.restart(), []);
        daemon.check();
        let record = daemon.host.record(&id).unwrap();
        (record.state, record.last_exit, record.finished.last().unwrap().kind)
    };
    let (hangup, second) = (GuestExit::Signal(1), Duration::from_secs(1));
    assert_eq!(ended(InitKind::System, second, hangup), (VmState::Running, None, OpKind::Reset));
    for (init, ran, exit) in [
        (InitKind::System, Duration::from_millis(900), hangup),
        // It halted.
        (InitKind::System, second, GuestExit::Signal(2)),
        (InitKind::Application, second, hangup),
    ] {
        let collected = (VmState::Stopped, Some(exit), OpKind::Collect);
        assert_eq!(ended(init, ran, exit), collected, "{init:?} {ran:?}");
    }
}

#[test]
fn a_system_that_does_nothing_but_reboot_is_stopped() {
    let mut spec = common::spec("one-1", 1);
    spec.boot.init = InitKind::System;
    let id = common::id("one-1");
    let reboots = |every: Duration| {
        let daemon = prepared(&[Request::Deploy(Box::new(spec.clone()))]);
        for n in 0..20 {
            daemon.host.pass(every);
            daemon.host.end_guest(&id, GuestExit::Signal(1));
            assert_eq!(daemon.restart(), []);
            daemon.check();
            if daemon.state("one-1") == Some(VmState::Stopped) {
                return n;
            }
        }
        20
    };
    assert_eq!(reboots(Duration::from_millis(1100)), 5);
    assert_eq!(reboots(Duration::from_secs(20)), 20);
}

#[test]
fn a_reboot_of_its_own_that_a_crash_cuts_off_is_carried_on() {
    let mut spec = common::spec("one-1", 1);
    spec.boot.init = InitKind::System;
    let id = common::id("one-1");
    for fault in [Fault::CrashBefore, Fault::CrashHalfway, Fault::CrashAfter] {
        for n in 0.. {
            let daemon = prepared(&[Request::Deploy(Box::new(spec.clone()))]);
            daemon.host.pass(Duration::from_secs(1));
            daemon.host.end_guest(&id, GuestExit::Signal(1));
            daemon.host.inject(n, fault);
            daemon.try_restart();
            let met = daemon.host.heal();
            assert_eq!(daemon.restart(), [], "{fault:?} at {n}");
            daemon.check();
            assert_eq!(daemon.state("one-1"), Some(VmState::Running), "{fault:?} at {n}");
            if !met {
                break;
            }
        }
    }
}

#[test]
fn after_a_reboot_of_the_host_guests_are_stopped_never_restarted() {
    let daemon = prepared(&[deploy("one-1")]);
    daemon.host.reboot();
    assert_eq!(daemon.restart(), []);
    let record = daemon.host.record(&common::id("one-1")).unwrap();
    assert_eq!((record.state, record.last_exit), (VmState::Stopped, Some(GuestExit::Unknown)));
    daemon.check();
}

#[test]
fn a_guest_whose_shim_died_is_adopted_and_the_loss_is_kept() {
    let daemon = prepared(&[deploy("one-1")]);
    daemon.host.kill_shim(&common::id("one-1"));
    assert_eq!(daemon.restart(), []);
    let record = daemon.host.record(&common::id("one-1")).unwrap();
    assert_eq!((record.state, record.losses), (VmState::Running, vec!["console".to_owned()]));
    assert_eq!(daemon.restart(), []);
    daemon.check();
}

#[test]
fn a_display_that_died_is_made_again_and_the_guest_is_left_alone() {
    let daemon = prepared(&[deploy("one-1")]);
    let vm = common::id("one-1");
    let before = daemon.host.record(&vm).unwrap();
    daemon.host.kill_display(&vm);
    // It cannot be had (its port was taken meanwhile): that is told, and the guest runs on without.
    daemon.host.inject(0, Fault::Fail);
    assert_eq!(daemon.restart().len(), 1);
    assert!(daemon.host.heal());
    assert_eq!(daemon.host.record(&vm).unwrap(), before);
    let calls = daemon.host.trace().len();
    assert_eq!(daemon.restart(), []);
    assert_eq!(daemon.host.trace()[calls..], ["ensure_display"]);
    assert_eq!(daemon.host.record(&vm).unwrap(), before);
    daemon.check();
}

#[test]
fn a_display_is_the_same_after_a_reboot_of_its_guest() {
    for request in [REBOOT, Request::Reset] {
        let daemon = prepared(&[deploy("one-1")]);
        let calls = daemon.host.trace().len();
        assert_eq!(daemon.ask("one-1", request), Seen::Answer(Ok(())));
        let displays = |call: &&String| call.ends_with("_display");
        assert_eq!(daemon.host.trace()[calls..].iter().filter(displays).count(), 0);
        daemon.check();
    }
}

#[test]
fn a_vm_without_a_record_is_cleared() {
    let daemon = prepared(&[deploy("one-1")]);
    daemon.host.ports().records.remove(&common::id("one-1")).unwrap();
    assert_eq!(daemon.restart(), []);
    daemon.check();
}
