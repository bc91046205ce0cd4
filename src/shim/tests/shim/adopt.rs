//! A shim is killed, another one takes over.

use std::os::fd::AsFd;

use ocivisor_shim::client::ClientError;
use ocivisor_shim::exit::{self, Exit, Told};
use ocivisor_shim::facts::Process;
use ocivisor_shim::message::{Access, Code, GuestState};

use crate::guest::{Guest, read_until, until};

/// Whether this kernel tells how processes of others ended; Linux 6.15.
fn kernel_tells() -> bool {
    #[expect(clippy::disallowed_methods, reason = "the test makes the processes it tests")]
    let mut child = std::process::Command::new("true").spawn().unwrap();
    let start_ticks = ocivisor_shim::facts::start_ticks(child.id()).unwrap();
    let init = crate::guest::pidfd(Process { pid: child.id(), start_ticks }).unwrap();
    child.wait().unwrap();
    exit::ask_kernel(init.as_fd()) == Told::Exit(Exit::Code(0))
}

fn expected(exit: Exit) -> Exit {
    if kernel_tells() { exit } else { Exit::Unknown }
}

const ECHO: &str =
    "stty -echo; echo ready; while read x; do echo \"<$x>\"; [ $x = end ] && exit 5; done";

#[test]
fn with_the_master_the_console_goes_on_and_the_exit_code_is_known() {
    let mut guest = Guest::run(ECHO);
    until("ready", || guest.log_text().contains("ready").then_some(()));
    let master = guest.client().master().unwrap();
    guest.kill_shim();
    guest.adopt(Some(master)).unwrap();
    let facts = guest.facts();
    assert!(facts.adopted && facts.started && facts.console);
    assert_eq!(facts.shim.pid, guest.shim.id());
    assert_eq!(guest.client().ping().unwrap().state, GuestState::Running);
    let mut console = guest.attach(Access::Write);
    assert!(console.writes());
    console.type_bytes(b"hello\n").unwrap();
    read_until(&mut console, "<hello>");
    console.type_bytes(b"end\n").unwrap();
    assert_eq!(guest.end(), expected(Exit::Code(5)));
    assert_eq!(guest.log_text(), "ready\r\n<hello>\r\n<end>\r\n");
}

#[test]
fn without_the_master_the_guest_runs_on_and_its_end_is_known() {
    // Losing the last master hangs the terminal up; an init ignores that.
    let mut guest = Guest::run("trap '' HUP; echo ready; while :; do sleep 1; done");
    until("ready", || guest.log_text().contains("ready").then_some(()));
    guest.kill_shim();
    guest.adopt(None).unwrap();
    assert!(!guest.facts().console);
    match guest.client().attach(Access::Read, Default::default(), false).unwrap_err() {
        ClientError::Refused(refusal) => assert_eq!(refusal.code, Code::NoConsole),
        other => panic!("{other}"),
    }
    assert!(matches!(guest.client().master(), Err(ClientError::Refused(_))));
    guest.client().signal(9).unwrap();
    assert_eq!(guest.end(), expected(Exit::Signal(9)));
}

#[test]
fn adoption_can_happen_again_and_again() {
    let mut guest = Guest::run(ECHO);
    until("ready", || guest.log_text().contains("ready").then_some(()));
    for round in 0..5 {
        let master = guest.client().master().unwrap();
        guest.kill_shim();
        guest.adopt(Some(master)).unwrap();
        let mut console = guest.attach(Access::Take);
        console.type_bytes(format!("{round}\n").as_bytes()).unwrap();
        read_until(&mut console, &format!("<{round}>"));
    }
    guest.attach(Access::Take).type_bytes(b"end\n").unwrap();
    assert_eq!(guest.end(), expected(Exit::Code(5)));
}

#[test]
fn a_reused_process_id_is_not_adopted() {
    let mut guest = Guest::run("read x");
    guest.kill_shim();
    let init = guest.init;
    guest.init.start_ticks += 1;
    let error = guest.adopt(None).unwrap_err();
    guest.init = init;
    assert_eq!(
        error,
        format!("error host process {} is not the guest's first process\n", init.pid)
    );
    // A failed adoption does not touch the guest.
    assert_eq!(ocivisor_shim::facts::start_ticks(init.pid), Some(init.start_ticks));
}
