//! Which requests run, join, preempt, repeat or are denied.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::needless_pass_by_value,
    reason = "tests"
)]

mod common;

use common::{CANCEL, DESTROY, Daemon, REBOOT, SHUTDOWN, Seen, define, deploy, id, spec};
use ocivisor_core::admission::{Admission, admit};
use ocivisor_core::error::ErrorKind;
use ocivisor_core::ids::OpId;
use ocivisor_core::plan::Step;
use ocivisor_core::state::{OpKind, Operation, Phase, Record, Request, Timestamp, VmState};

fn under(request: Request) -> Record {
    let mut record = Record::new(spec("one-1", 2), Timestamp(1));
    record.op = Some(Operation {
        id: OpId(7),
        request_id: "first".parse().unwrap(),
        request,
        phase: Phase::Doing,
        started: Timestamp(1),
    });
    record
}

fn ask(record: &Record, request: &Request, request_id: &str) -> Admission {
    admit(&id("one-1"), Some(record), request, &request_id.parse().unwrap())
}

#[test]
fn the_same_request_joins_the_operation_under_way() {
    for request in [deploy("one-1"), Request::Start, SHUTDOWN, DESTROY, CANCEL, REBOOT] {
        let record = under(request.clone());
        assert_eq!(ask(&record, &request, "second"), Admission::Join(OpId(7)), "{request:?}");
        assert_eq!(ask(&record, &request, "first"), Admission::Join(OpId(7)), "{request:?}");
        // The same id for something else is a mistake that must not look like success.
        let Admission::Deny(error) = ask(&record, &Request::Reset, "first") else {
            panic!("{request:?}");
        };
        let want = format!(
            "reset vm one-1: request id first was used for another request, {} (op-7)",
            request.kind()
        );
        assert_eq!((error.kind, error.message), (ErrorKind::Conflict, want));
    }
}

#[test]
fn only_destroy_preempts() {
    for doing in [deploy("one-1"), Request::Start, SHUTDOWN, REBOOT, Request::Collect] {
        let record = under(doing.clone());
        for request in [DESTROY, CANCEL] {
            assert!(matches!(ask(&record, &request, "2"), Admission::Preempt(OpId(7), _)));
        }
        for request in [Request::Reset, Request::Undefine, define("one-1")] {
            let Admission::Deny(error) = ask(&record, &request, "2") else {
                panic!("{request:?} beside {doing:?}");
            };
            assert_eq!(error.kind, ErrorKind::Conflict);
            assert!(error.is_retryable());
        }
    }
    assert!(matches!(ask(&under(DESTROY), &CANCEL, "2"), Admission::Preempt(OpId(7), _)));
    assert!(matches!(ask(&under(CANCEL), &DESTROY, "2"), Admission::Preempt(OpId(7), _)));
}

#[test]
fn unknown_vms_are_absent_and_not_found() {
    let ask = |request: &Request| admit(&id("one-1"), None, request, &"r".parse().unwrap());
    for request in [CANCEL, Request::Undefine, Request::Collect] {
        assert_eq!(ask(&request), Admission::AlreadyTrue, "{request:?}");
    }
    for request in [Request::Start, SHUTDOWN, DESTROY, REBOOT, Request::Reset, common::change()] {
        let Admission::Deny(error) = ask(&request) else { panic!("{request:?}") };
        assert_eq!(error.kind, ErrorKind::NotFound);
    }
}

#[test]
fn a_spec_that_cannot_be_is_denied() {
    let mut bad = spec("one-1", 2);
    bad.nics[1].mac = bad.nics[0].mac;
    let request = Request::Deploy(Box::new(bad));
    let Admission::Deny(error) = admit(&id("one-1"), None, &request, &"r".parse().unwrap()) else {
        panic!()
    };
    assert_eq!(error.kind, ErrorKind::Invalid);
    assert_eq!(error.message, "vm one-1: two network interfaces have the MAC 02:00:00:00:00:00");
    let other = Request::Deploy(Box::new(spec("one-2", 0)));
    let denied = admit(&id("one-1"), None, &other, &"r".parse().unwrap());
    assert!(matches!(denied, Admission::Deny(error) if error.kind == ErrorKind::Invalid));
}

#[test]
fn the_same_request_id_is_one_effect() {
    let daemon = Daemon::new();
    assert_eq!(daemon.ask("one-1", define("one-1")), Seen::Answer(Ok(())));
    let start = || daemon.ask_as("one-1", Request::Start, "r-1".parse().unwrap(), daemon.next_op());
    assert_eq!(start(), Seen::Answer(Ok(())));
    assert_eq!(daemon.ask("one-1", DESTROY), Seen::Answer(Ok(())));
    let calls = daemon.host.trace().len();
    // Also after a restart, for the outcome is in the record.
    assert_eq!(daemon.restart(), []);
    assert_eq!(start(), Seen::Answer(Ok(())));
    let destroy = daemon.ask_as("one-1", DESTROY, "r-1".parse().unwrap(), daemon.next_op());
    let Seen::Answer(Err(error)) = destroy else { panic!("{destroy:?}") };
    assert_eq!(error.kind, ErrorKind::Conflict);
    assert_eq!(daemon.host.trace().len(), calls);
    assert_eq!(daemon.state("one-1"), Some(VmState::Stopped));
}

#[test]
fn destroy_gives_up_a_start_at_any_step_and_leaves_nothing() {
    for n in 0..7 {
        let daemon = Daemon::new();
        daemon.hooks.give_up_after.set(Some(n));
        assert_eq!(daemon.ask("one-1", deploy("one-1")), Seen::GivenUp, "after {n} steps");
        daemon.hooks.give_up_after.set(None);
        let record = daemon.host.record(&id("one-1")).unwrap();
        assert_eq!(record.op.as_ref().unwrap().request.kind(), OpKind::Deploy);
        assert_eq!(daemon.ask("one-1", DESTROY), Seen::Answer(Ok(())));
        let record = daemon.host.record(&id("one-1")).unwrap();
        let deploy = &record.finished[0];
        assert_eq!(deploy.result.as_ref().unwrap_err().kind, ErrorKind::Cancelled);
        daemon.check();
    }
}

#[test]
fn destroy_gives_up_the_check_of_disks_while_it_is_under_way() {
    let daemon = Daemon::new();
    daemon.hooks.give_up_in.set(Some(Step::Disks));
    assert_eq!(daemon.ask("one-1", deploy("one-1")), Seen::GivenUp);
    daemon.hooks.give_up_in.set(None);
    daemon.hooks.give_up.set(false);
    assert_eq!(daemon.hooks.failures.borrow().len(), 0, "being told to stop is no failure");
    assert_eq!(daemon.ask("one-1", DESTROY), Seen::Answer(Ok(())));
    daemon.check();
}

#[test]
fn finished_operations_are_kept_but_not_without_bound() {
    let daemon = Daemon::new();
    assert_eq!(daemon.ask("one-1", deploy("one-1")), Seen::Answer(Ok(())));
    for _ in 0..40 {
        assert_eq!(daemon.ask("one-1", Request::Reset), Seen::Answer(Ok(())));
    }
    let record = daemon.host.record(&id("one-1")).unwrap();
    assert_eq!(record.finished.len(), Record::KEPT_OPS);
    daemon.check();
}
