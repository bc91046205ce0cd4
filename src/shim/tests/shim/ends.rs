//! How guests end, and who is told.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};

use ocivisor_shim::client::ClientError;
use ocivisor_shim::exit::Exit;
use ocivisor_shim::message::{Code, GuestState};
use ocivisor_shim::sys;

use crate::guest::{Guest, Options, until};

fn refusal<T: std::fmt::Debug>(result: Result<T, ClientError>) -> Code {
    match result.unwrap_err() {
        ClientError::Refused(refusal) => refusal.code,
        other => panic!("{other}"),
    }
}

#[test]
fn an_exit_code_is_recorded_and_waiters_are_told() {
    let mut guest = Guest::run("read x; exit 7");
    // Asked before the guest is let end, so it is told whatever it does meanwhile.
    let mut waiter = UnixStream::connect(guest.socket()).unwrap();
    waiter.write_all(b"wait\n").unwrap();
    let pong = guest.client().ping().unwrap();
    assert_eq!((pong.shim, pong.init), (guest.shim.id(), guest.init.pid));
    assert_eq!(pong.state, GuestState::Running);
    assert_eq!(refusal(guest.client().quit()), Code::Runs);
    assert!(guest.record().is_none());
    let mut console = guest.attach(ocivisor_shim::message::Access::Write);
    console.type_bytes(b"go\n").unwrap();
    let mut told = String::new();
    waiter.read_to_string(&mut told).unwrap();
    assert_eq!(told, "exited code 7\n");
    assert_eq!(guest.end(), Exit::Code(7));
    let text = fs::read_to_string(guest.vm_dir.join("exit.json")).unwrap();
    assert!(text.starts_with("{\"version\":1,\"kind\":\"code\",\"value\":7,"), "{text}");
}

#[test]
fn signals_of_any_number_arrive_and_a_fatal_one_is_recorded() {
    // 37 is SIGRTMIN+3 as the kernel counts: what asks systemd to halt.
    let mut guest = Guest::run("trap 'echo got usr1' USR1; echo armed; while :; do read x; done");
    until("trap", || guest.log_text().contains("armed").then_some(()));
    guest.client().signal(10).unwrap();
    until("handler", || guest.log_text().contains("got usr1").then_some(()));
    guest.client().signal(37).unwrap();
    assert_eq!(guest.end(), Exit::Signal(37));
}

#[test]
fn everything_printed_before_the_end_is_in_the_log() {
    let mut guest =
        Guest::run("i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done; exit 3");
    assert_eq!(guest.end(), Exit::Code(3));
    let want: String = (0..5000).map(|n| format!("line {n}\r\n")).collect();
    assert_eq!(guest.log_text(), want);
}

#[test]
fn a_guest_that_ended_before_its_shim_came_is_recorded() {
    let mut guest = Guest::with("read x", Options { kill: true, ..Options::default() });
    assert_eq!(guest.end(), Exit::Signal(9));
    let mut guest = Guest::run("exit 9");
    assert_eq!(guest.end(), Exit::Code(9));
}

#[test]
fn orphans_of_the_guest_are_collected() {
    let mut guest =
        Guest::run("(sh -c 'exec sleep 0' & echo $! >&2; exec sleep 0) & wait; echo x; read x");
    until("output", || guest.log_text().contains('x').then_some(()));
    let children = format!("/proc/{0}/task/{0}/children", guest.shim.id());
    let only = format!("{} ", guest.init.pid);
    until("only init left", || (fs::read_to_string(&children).unwrap() == only).then_some(()));
    guest.client().signal(9).unwrap();
    assert_eq!(guest.end(), Exit::Signal(9));
}

#[test]
fn signals_to_the_shim_do_not_end_it() {
    let mut guest = Guest::run("read x; exit 1");
    let shim = crate::guest::pidfd(guest.facts().shim).unwrap();
    for signal in [1, 2, 3, 13, 15] {
        sys::send_signal(shim.as_fd(), signal).unwrap();
    }
    assert_eq!(guest.client().ping().unwrap().state, GuestState::Running);
    guest.client().signal(9).unwrap();
    assert_eq!(guest.end(), Exit::Signal(9));
}

#[test]
fn a_guest_behind_a_socket_is_started_once() {
    let dir = tempfile::tempdir().unwrap();
    let door = dir.path().join("notify.sock");
    let listener = UnixListener::bind(&door).unwrap();
    listener.set_nonblocking(true).unwrap();
    let start = Some(format!("connect:{}", door.display()));
    let guest = Guest::with("read x", Options { start, ..Options::default() });
    assert_eq!(guest.client().ping().unwrap().state, GuestState::Created);
    assert!(!guest.facts().started);
    guest.client().start().unwrap();
    guest.client().start().unwrap();
    assert_eq!(guest.client().ping().unwrap().state, GuestState::Running);
    assert!(guest.facts().started);
    listener.accept().unwrap();
    assert!(listener.accept().is_err());
}

#[test]
fn a_start_without_a_door_fails() {
    let dir = tempfile::tempdir().unwrap();
    for kind in ["connect", "fifo"] {
        let start = Some(format!("{kind}:{}/none", dir.path().display()));
        let guest = Guest::with("read x", Options { start, ..Options::default() });
        assert_eq!(refusal(guest.client().start()), Code::Host);
        assert_eq!(guest.client().ping().unwrap().state, GuestState::Created);
    }
}

#[test]
fn a_guest_behind_a_fifo_is_started() {
    let dir = tempfile::tempdir().unwrap();
    let door = dir.path().join("exec.fifo");
    let start = Some(format!("fifo:{}", door.display()));
    let script = format!("mkfifo {0}; echo made; echo 0 >{0}; echo runs; read x", door.display());
    let guest = Guest::with(&script, Options { start, ..Options::default() });
    until("fifo", || guest.log_text().contains("made").then_some(()));
    assert!(!guest.log_text().contains("runs"));
    guest.client().start().unwrap();
    assert!(!door.exists());
    until("start", || guest.log_text().contains("runs").then_some(()));
}

#[test]
fn an_exit_that_finds_no_room_is_answered_and_written_later() {
    let disk = crate::hostile::Tmpfs::mount(32 * 1024);
    let options = Options { vm_dir: Some(disk.path().to_owned()), ..Options::default() };
    let mut guest = Guest::with("read x; exit 4", options);
    let filler = disk.fill();
    guest.attach(ocivisor_shim::message::Access::Write).type_bytes(b"\n").unwrap();
    until("exit", || {
        (guest.client().ping().unwrap().state == GuestState::Exited(Exit::Code(4))).then_some(())
    });
    assert_eq!(guest.client().wait().unwrap(), Exit::Code(4));
    assert_eq!(refusal(guest.client().start()), Code::Gone);
    assert!(guest.record().is_none());
    fs::remove_file(filler).unwrap();
    assert_eq!(guest.end(), Exit::Code(4));
}

#[test]
fn quit_releases_a_shim_that_cannot_write() {
    let disk = crate::hostile::Tmpfs::mount(32 * 1024);
    let options = Options { vm_dir: Some(disk.path().to_owned()), ..Options::default() };
    let mut guest = Guest::with("read x", options);
    disk.fill();
    guest.client().signal(9).unwrap();
    until("exit", || (guest.client().ping().unwrap().state != GuestState::Running).then_some(()));
    guest.client().quit().unwrap();
    assert!(crate::guest::reaped(&mut guest.shim).success());
    assert!(guest.record().is_none());
}
