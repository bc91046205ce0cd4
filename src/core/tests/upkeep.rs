//! Restarts and starts with the host: nothing is lost or done twice, whenever the daemon dies.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::needless_pass_by_value,
    reason = "tests"
)]

mod common;

use std::time::Duration;

use common::{DESTROY, Daemon, SHUTDOWN, Seen, id, spec};
use ocivisor_core::error::ErrorKind;
use ocivisor_core::ports::Clock;
use ocivisor_core::spec::{Platform, Restart, Upkeep, VmSpec};
use ocivisor_core::state::{GuestExit, OpKind, Request, VmState};
use ocivisor_core::testing::Fault;
use ocivisor_core::upkeep::{LAST_TURN, Next, gave_up, next};
use proptest::prelude::*;

const FAILED: GuestExit = GuestExit::Code(1);

fn kept(restart: Restart, autostart: Option<u16>) -> Request {
    let upkeep = Upkeep { restart, health: None, autostart };
    let spec = VmSpec { platform: Platform::Local, upkeep, ..spec("web", 1) };
    Request::Define(Box::new(spec))
}

/// A daemon with a VM of this policy that runs.
fn running(restart: Restart, autostart: Option<u16>) -> Daemon {
    let daemon = Daemon::new();
    assert_eq!(daemon.ask("web", kept(restart, autostart)), Seen::Answer(Ok(())));
    assert_eq!(daemon.ask("web", Request::Start), Seen::Answer(Ok(())));
    daemon
}

fn what_next(daemon: &Daemon) -> Next {
    let record = daemon.host.record(&id("web")).unwrap();
    next(&record, daemon.host.now(), &daemon.host.host_boot())
}

/// What the supervisor does once; whether it began anything.
fn supervise(daemon: &Daemon) -> bool {
    let wait = match what_next(daemon) {
        Next::Rest => return false,
        Next::After(wait) => wait,
        Next::InTurn(_) => Duration::ZERO,
    };
    daemon.host.pass(wait);
    let of = daemon.host.record(&id("web")).unwrap().generation;
    daemon.ask("web", Request::Restart { of });
    true
}

fn end(daemon: &Daemon, exit: GuestExit) {
    daemon.host.end_guest(&id("web"), exit);
    daemon.restart();
}

fn runs(daemon: &Daemon) -> bool {
    daemon.state("web") == Some(VmState::Running)
}

/// How often a guest began.
fn begun(daemon: &Daemon) -> usize {
    daemon.host.trace().iter().filter(|call| *call == "start_guest").count()
}

fn tally(daemon: &Daemon) -> ocivisor_core::state::Tally {
    daemon.host.record(&id("web")).unwrap().tally
}

#[test]
fn a_guest_that_fails_is_restarted_so_often_and_then_rests() {
    let daemon = running(Restart::OnFailure { most: Some(3) }, None);
    for n in 0..3 {
        end(&daemon, FAILED);
        assert_eq!(daemon.state("web"), Some(VmState::Stopped));
        assert!(supervise(&daemon), "restart {n}");
        assert!(runs(&daemon), "restart {n}");
    }
    end(&daemon, FAILED);
    assert_eq!(what_next(&daemon), Next::Rest);
    assert!(gave_up(&daemon.host.record(&id("web")).unwrap()));
    assert_eq!((begun(&daemon), tally(&daemon).restarts), (4, 3));
    // Who starts it gives it all its restarts again.
    assert_eq!(daemon.ask("web", Request::Start), Seen::Answer(Ok(())));
    end(&daemon, FAILED);
    assert!(supervise(&daemon));
}

#[test]
fn what_an_end_means_is_the_policys() {
    let powered_off = GuestExit::Signal(2);
    for (restart, exit, again) in [
        (Restart::No, FAILED, false),
        (Restart::OnFailure { most: None }, FAILED, true),
        (Restart::OnFailure { most: None }, GuestExit::Signal(9), true),
        (Restart::OnFailure { most: None }, GuestExit::Unknown, true),
        (Restart::OnFailure { most: None }, GuestExit::Code(0), false),
        (Restart::OnFailure { most: None }, powered_off, false),
        (Restart::OnFailure { most: Some(0) }, FAILED, false),
        (Restart::UnlessStopped, GuestExit::Code(0), true),
        (Restart::Always, powered_off, true),
    ] {
        let daemon = running(restart, None);
        end(&daemon, exit);
        assert_eq!(supervise(&daemon), again, "{restart:?} after {exit}");
        assert_eq!(runs(&daemon), again, "{restart:?} after {exit}");
    }
}

#[test]
fn a_guest_that_fails_at_once_counts_as_well() {
    let daemon = running(Restart::OnFailure { most: Some(2) }, None);
    end(&daemon, FAILED);
    daemon.host.make_guests_short_lived(FAILED);
    let mut tries = 0;
    while supervise(&daemon) {
        tries += 1;
        assert_eq!(daemon.state("web"), Some(VmState::Stopped));
    }
    assert_eq!((tries, tally(&daemon).restarts), (2, 2));
}

/// The daemon dies at every call of the restart, also after the guest has ended.
#[test]
fn a_job_that_succeeds_at_once_is_not_done_twice() {
    for fault in [Fault::CrashBefore, Fault::CrashHalfway, Fault::CrashAfter] {
        for at in 0..200 {
            let daemon = running(Restart::OnFailure { most: Some(5) }, None);
            end(&daemon, FAILED);
            daemon.host.make_guests_short_lived(GuestExit::Code(0));
            daemon.host.inject(at, fault);
            assert!(supervise(&daemon));
            let reached = daemon.host.heal();
            daemon.restart();
            // It may have died before the restart was on record.
            if what_next(&daemon) != Next::Rest {
                assert_eq!(tally(&daemon).restarts, 0, "{fault:?} at {at}");
                assert!(supervise(&daemon));
            }
            let record = daemon.host.record(&id("web")).unwrap();
            assert_eq!(what_next(&daemon), Next::Rest, "{fault:?} at {at}: {record:?}");
            assert_eq!(record.last_exit, Some(GuestExit::Code(0)), "{fault:?} at {at}");
            assert_eq!(
                (record.tally.restarts, record.tally.failed),
                (1, false),
                "{fault:?} at {at}"
            );
            if !reached {
                break;
            }
            assert!(at < 199, "not all calls were reached");
        }
    }
}

#[test]
fn waits_double_up_to_a_minute_and_a_good_run_ends_the_row() {
    let daemon = running(Restart::Always, None);
    let mut waits = Vec::new();
    for _ in 0..12 {
        end(&daemon, FAILED);
        let Next::After(wait) = what_next(&daemon) else { panic!("it rests") };
        // The fake clock ticks at each look.
        waits.push(wait.as_millis().next_multiple_of(100));
        assert!(supervise(&daemon));
    }
    let expected = [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 51_200, 60_000, 60_000];
    assert_eq!(waits, expected);
    daemon.host.pass(Duration::from_mins(1));
    end(&daemon, FAILED);
    assert_eq!(tally(&daemon).restarts, 0);
}

#[test]
fn an_end_that_was_asked_for_is_not_undone() {
    for ask in [SHUTDOWN, DESTROY] {
        let daemon = running(Restart::UnlessStopped, None);
        assert_eq!(daemon.ask("web", ask.clone()), Seen::Answer(Ok(())));
        assert_eq!(what_next(&daemon), Next::Rest);
        // Also while it waits to be restarted.
        let daemon = running(Restart::UnlessStopped, None);
        end(&daemon, FAILED);
        assert_ne!(what_next(&daemon), Next::Rest);
        let of = daemon.host.record(&id("web")).unwrap().generation;
        assert_eq!(daemon.ask("web", ask.clone()), Seen::Answer(Ok(())));
        assert_eq!(what_next(&daemon), Next::Rest);
        assert_eq!(daemon.ask("web", ask), Seen::Already);
        // What was decided before that is void.
        assert_eq!(daemon.ask("web", Request::Restart { of }), Seen::Already);
        assert!(!runs(&daemon));
    }
}

#[test]
fn a_guest_that_outlives_its_shutdown_is_not_wanted_any_more() {
    let daemon = running(Restart::Always, None);
    daemon.host.make_guests_stubborn();
    let ask = Request::Shutdown { timeout_ms: 1, force: false, forget: false };
    assert!(matches!(daemon.ask("web", ask), Seen::Answer(Err(e)) if e.kind == ErrorKind::Timeout));
    assert!(runs(&daemon));
    end(&daemon, GuestExit::Code(0));
    assert_eq!(what_next(&daemon), Next::Rest);
}

#[test]
fn after_the_host_booted_each_has_its_turn_once() {
    let stopped = |restart, autostart| {
        let daemon = running(restart, autostart);
        assert_eq!(daemon.ask("web", SHUTDOWN), Seen::Answer(Ok(())));
        daemon
    };
    for (daemon, turn) in [
        (running(Restart::No, None), None),
        (running(Restart::No, Some(7)), Some(7)),
        (stopped(Restart::No, Some(7)), Some(7)),
        (running(Restart::OnFailure { most: None }, None), Some(LAST_TURN)),
        (stopped(Restart::OnFailure { most: None }, None), None),
        (running(Restart::UnlessStopped, None), Some(LAST_TURN)),
        (stopped(Restart::UnlessStopped, None), None),
        (stopped(Restart::Always, None), Some(LAST_TURN)),
    ] {
        // Not by a new daemon, only by a new boot.
        daemon.restart();
        assert!(!supervise(&daemon) || runs(&daemon));
        daemon.host.reboot();
        daemon.restart();
        let record = daemon.host.record(&id("web")).unwrap();
        assert_eq!(
            what_next(&daemon),
            turn.map_or(Next::Rest, Next::InTurn),
            "{:?}",
            record.spec.upkeep
        );
        assert_eq!(supervise(&daemon), turn.is_some());
        assert_eq!(runs(&daemon), turn.is_some());
        if turn.is_some() {
            assert_eq!(daemon.ask("web", SHUTDOWN), Seen::Answer(Ok(())));
            daemon.restart();
            assert_eq!(what_next(&daemon), Next::Rest, "{:?}", record.spec.upkeep);
        }
    }
}

/// Addresses and bridges may come later than the daemon.
#[test]
fn a_start_with_the_host_that_the_host_let_fail_is_tried_again_for_a_while() {
    let boot = || {
        let daemon = running(Restart::No, Some(7));
        daemon.host.reboot();
        daemon.restart();
        daemon
    };
    let fails = |daemon: &Daemon| {
        // Soon enough that no guest is there.
        daemon.host.inject(2, Fault::Fail);
        assert!(supervise(daemon));
        daemon.host.heal();
        assert!(!runs(daemon));
    };
    let daemon = boot();
    fails(&daemon);
    fails(&daemon);
    assert!(matches!(what_next(&daemon), Next::After(wait) if !wait.is_zero()));
    // As another daemon sees it, too.
    daemon.restart();
    assert!(supervise(&daemon));
    assert!(runs(&daemon));
    // What the guest does then is as it was wished for.
    end(&daemon, FAILED);
    assert_eq!(what_next(&daemon), Next::Rest);

    let daemon = boot();
    for _ in 0..12 {
        fails(&daemon);
    }
    assert_eq!((what_next(&daemon), tally(&daemon).restarts), (Next::Rest, 12));

    // A guest that ends at once is not tried again, nor one that was stopped meanwhile.
    let daemon = boot();
    daemon.host.make_guests_short_lived(FAILED);
    assert!(supervise(&daemon));
    assert_eq!(what_next(&daemon), Next::Rest);
    let daemon = boot();
    fails(&daemon);
    assert_eq!(daemon.ask("web", DESTROY), Seen::Answer(Ok(())));
    assert_eq!(what_next(&daemon), Next::Rest);
}

#[test]
fn a_definition_is_not_started_before_the_host_is_booted() {
    let daemon = Daemon::new();
    daemon.ask("web", kept(Restart::Always, Some(1)));
    assert_eq!(what_next(&daemon), Next::Rest);
    daemon.host.reboot();
    assert_eq!(what_next(&daemon), Next::InTurn(1));
}

#[test]
fn a_platforms_guest_may_not_wish_for_it() {
    let daemon = Daemon::new();
    let Request::Define(mut spec) = kept(Restart::Always, None) else { unreachable!() };
    spec.platform = Platform::OpenNebula;
    let Seen::Answer(Err(error)) = daemon.ask("web", Request::Define(spec)) else { panic!() };
    assert_eq!(error.kind, ErrorKind::Invalid);
    assert!(error.message.contains("started and judged by the platform alone"), "{error}");
}

/// The daemon dies at every call of every operation of a guest's row of failures.
#[test]
fn no_restart_is_lost_or_done_twice_wherever_the_daemon_dies() {
    for fault in [Fault::CrashBefore, Fault::CrashHalfway, Fault::CrashAfter] {
        for at in 0..200 {
            let daemon = running(Restart::OnFailure { most: Some(2) }, None);
            daemon.host.inject(at, fault);
            for _ in 0..20 {
                if runs(&daemon) {
                    daemon.host.end_guest(&id("web"), FAILED);
                }
                // Dies in it once, where it does.
                if !daemon.try_restart() {
                    daemon.host.heal();
                    daemon.restart();
                }
                if !supervise(&daemon) && daemon.state("web") == Some(VmState::Stopped) {
                    break;
                }
            }
            daemon.restart();
            daemon.check();
            let record = daemon.host.record(&id("web")).unwrap();
            assert_eq!(record.tally.restarts, 2, "{fault:?} at {at}: {record:?}");
            let restarts = record.finished.iter().filter(|op| op.kind == OpKind::Restart).count();
            assert_eq!(restarts, 2, "{fault:?} at {at}");
            assert!(gave_up(&record), "{fault:?} at {at}");
            if !daemon.host.heal() {
                break;
            }
            assert!(at < 199, "not all calls were reached");
        }
    }
}

#[derive(Debug, Clone)]
enum Event {
    Ends(GuestExit),
    Asked(Request),
    Supervised,
    SupervisedWithCrash(usize),
    NewDaemon,
    HostBoots,
    Passes(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        prop_oneof![Just(GuestExit::Code(0)), Just(FAILED), Just(GuestExit::Unknown)]
            .prop_map(Event::Ends),
        prop_oneof![Just(Request::Start), Just(SHUTDOWN), Just(DESTROY), Just(Request::Reset)]
            .prop_map(Event::Asked),
        Just(Event::Supervised),
        (0..25_usize).prop_map(Event::SupervisedWithCrash),
        Just(Event::NewDaemon),
        Just(Event::HostBoots),
        (0..200_000_u64).prop_map(Event::Passes),
    ]
}

proptest! {
    #[test]
    fn only_what_the_policy_says_is_ever_started(
        events in proptest::collection::vec(event(), 1..40),
        policy in prop_oneof![
            Just(Restart::No),
            Just(Restart::OnFailure { most: Some(2) }),
            Just(Restart::UnlessStopped),
            Just(Restart::Always),
        ],
        autostart in proptest::option::of(0..3_u16),
    ) {
        let daemon = running(policy, autostart);
        // Stopped by its admin in this boot of the host.
        let mut stopped = false;
        for event in events {
            match event {
                Event::Ends(exit) if runs(&daemon) => end(&daemon, exit),
                Event::Ends(_) => {}
                Event::Asked(request) => {
                    let answer = daemon.ask("web", request.clone());
                    if matches!(answer, Seen::Answer(Ok(())) | Seen::Already) {
                        stopped = matches!(request.kind(), OpKind::Shutdown | OpKind::Destroy);
                    }
                }
                Event::Supervised => { supervise(&daemon); }
                Event::SupervisedWithCrash(at) => {
                    daemon.host.inject(at, Fault::CrashAfter);
                    supervise(&daemon);
                    daemon.host.heal();
                    daemon.restart();
                }
                Event::NewDaemon => { daemon.restart(); }
                Event::HostBoots => {
                    daemon.host.reboot();
                    daemon.restart();
                    prop_assert!(!runs(&daemon));
                    if policy == Restart::UnlessStopped && autostart.is_none() && stopped {
                        prop_assert_eq!(what_next(&daemon), Next::Rest);
                    } else {
                        stopped = false;
                    }
                }
                Event::Passes(time) => daemon.host.pass(Duration::from_millis(time)),
            }
            daemon.check();
            prop_assert!(!(stopped && runs(&daemon)));
            prop_assert!(!stopped || what_next(&daemon) == Next::Rest);
            if let Restart::OnFailure { most: Some(most) } = policy {
                prop_assert!(tally(&daemon).restarts <= most.max(1));
            }
            if policy == Restart::No && !matches!(what_next(&daemon), Next::InTurn(_)) {
                prop_assert_eq!(what_next(&daemon), Next::Rest);
            }
        }
    }
}
