//! What is told of operations that fail: one failure each, made while the guest's traces are still there.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::needless_pass_by_value,
    reason = "tests"
)]

mod common;

use common::{CANCEL, DESTROY, Daemon, REBOOT, SHUTDOWN, Seen, change, deploy, rewire};
use ocivisor_core::error::ErrorKind;
use ocivisor_core::failure::KeptFailure;
use ocivisor_core::state::{GuestExit, OpKind, Request};
use ocivisor_core::testing::Fault;

fn told(daemon: &Daemon) -> Vec<KeptFailure> {
    daemon.hooks.failures.take()
}

#[test]
fn an_entrypoint_that_dies_is_told_with_step_exit_and_last_lines() {
    let daemon = Daemon::new();
    daemon.host.make_guests_short_lived(GuestExit::Code(3));
    let Seen::Answer(Err(error)) = daemon.ask("one-1", deploy("one-1")) else { panic!() };
    assert_eq!(error.kind, ErrorKind::GuestExited);
    let [failure] = &told(&daemon)[..] else { panic!() };
    assert_eq!((failure.vm.as_str(), failure.kind), ("one-1", OpKind::Deploy));
    assert_eq!(failure.step.as_deref(), Some("settle"));
    assert_eq!(failure.error, error);
    assert_eq!(failure.exit, Some(GuestExit::Code(3)));
    assert_eq!(failure.console, ["one-1 was here"]);
    assert_eq!(daemon.state("one-1"), None, "a failed deploy forgets the vm");
}

#[test]
fn before_there_is_a_guest_nothing_is_told_of_an_earlier_one() {
    let daemon = Daemon::new();
    daemon.ask("one-1", deploy("one-1"));
    daemon.host.end_guest(&common::id("one-1"), GuestExit::Code(9));
    assert_eq!(daemon.restart(), []);
    // The intent's write, then the control groups.
    daemon.host.inject(1, Fault::Fail);
    assert!(matches!(daemon.ask("one-1", Request::Start), Seen::Answer(Err(_))));
    let [failure] = &told(&daemon)[..] else { panic!() };
    assert_eq!(failure.step.as_deref(), Some("cgroup"));
    assert_eq!((failure.exit, failure.console.len()), (None, 0));
}

#[test]
fn each_answer_that_is_a_failure_was_told_once_and_no_success_was() {
    for (before, request) in [
        (None, deploy("one-1")),
        (Some(deploy("one-1")), REBOOT),
        (Some(deploy("one-1")), Request::Reset),
        (Some(deploy("one-1")), SHUTDOWN),
        (Some(deploy("one-1")), DESTROY),
        (Some(deploy("one-1")), CANCEL),
        (Some(deploy("one-1")), change()),
        (Some(deploy("one-1")), rewire("one-1")),
    ] {
        // Call 0 is the intent's write: what is not recorded was never begun.
        for n in 1.. {
            let daemon = Daemon::new();
            if let Some(request) = &before {
                assert_eq!(daemon.ask("one-1", request.clone()), Seen::Answer(Ok(())));
            }
            daemon.host.inject(n, Fault::Fail);
            let answer = daemon.ask("one-1", request.clone());
            if !daemon.host.heal() {
                break;
            }
            let told = told(&daemon);
            match answer {
                Seen::Answer(Ok(())) => assert_eq!(told, [], "{request:?} {n}"),
                Seen::Answer(Err(error)) => {
                    assert_eq!(told.len(), 1, "{request:?} {n}: {error}");
                    assert!(error.message.starts_with(&told[0].error.message), "{error}");
                }
                other => panic!("{request:?} {n}: {other:?}"),
            }
        }
    }
}

#[test]
fn what_a_crash_cut_off_is_told_by_the_next_daemon() {
    let daemon = Daemon::new();
    daemon.host.inject(4, Fault::CrashAfter);
    assert_eq!(daemon.ask("one-1", deploy("one-1")), Seen::Crashed);
    daemon.host.heal();
    daemon.restart();
    let [failure] = &told(&daemon)[..] else { panic!() };
    assert_eq!((failure.step.as_deref(), failure.kind), (None, OpKind::Deploy));
    assert_eq!(failure.error.message, "deploy vm one-1: ocivisord ended meanwhile");
}

#[test]
fn a_failure_is_mended_by_the_same_operation_or_a_boot() {
    let daemon = Daemon::new();
    daemon.host.make_guests_short_lived(GuestExit::Code(3));
    daemon.ask("one-1", deploy("one-1"));
    let failure = KeptFailure { kind: OpKind::Change, ..told(&daemon).remove(0) };
    let mends: Vec<_> =
        OpKind::ALL.into_iter().filter(|kind| failure.is_mended_by(*kind)).collect();
    use OpKind::{Change, Deploy, Reboot, Reset, Restart, Start};
    assert_eq!(mends, [Start, Deploy, Reboot, Reset, Change, Restart]);
}
