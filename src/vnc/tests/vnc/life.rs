//! How the two processes begin, live and end.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use ocivisor_shim::exit::Exit;
use ocivisor_shim::message::Code;
use ocivisor_vnc::terminal::{FIRST_SIZE, Terminal};
use rustix::process::Signal;

use crate::program::{GID, Options, Program, UID, socket};
use crate::shim::Shim;
use crate::until;
use crate::viewer::{Viewer, exactly};

const PASSWORD: &str = "secret12";

fn attached(shim: &Shim) {
    until("the viewer's attachment", || (shim.viewers() == 1).then_some(()));
}

/// What a terminal shows on which this was printed.
fn shows(viewer: &mut Viewer, printed: &str) {
    let mut terminal = Terminal::new(FIRST_SIZE);
    terminal.print(printed.as_bytes());
    viewer.shows(&terminal.picture(), exactly);
}

#[test]
fn who_faces_the_network_can_do_nothing_else() {
    let program = Program::start();
    let server = program.server();
    let is = |pid, field: &str| Program::status(pid, field).unwrap();
    assert_eq!(is(server, "Uid"), format!("{UID} {UID} {UID} {UID}"));
    assert_eq!(is(server, "Gid"), format!("{GID} {GID} {GID} {GID}"));
    assert_eq!(is(server, "Groups"), "");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        let kept = if set == "CapBnd" { "00000000000000e0" } else { "0000000000000000" };
        assert_eq!(is(server, set), kept, "{set}");
    }
    // The keeper may kill and change users: bits 5 to 7.
    assert_eq!(is(program.keeper(), "CapEff"), "00000000000000e0");
    for pid in [server, program.keeper()] {
        assert_eq!((is(pid, "NoNewPrivs").as_str(), is(pid, "Seccomp").as_str()), ("1", "2"));
    }
    assert_eq!(is(server, "Threads"), "1");
    let open = fs::read_dir(format!("/proc/{server}/fd")).unwrap();
    let links = open.map(|fd| fs::read_link(fd.unwrap().path()).unwrap());
    let files = links.filter(|link| link.is_absolute() && !link.starts_with("/dev/null"));
    let files: Vec<_> = files.filter(|link| !link.starts_with("/dev/pts")).collect();
    // Standard error is whatever the tests' is.
    assert!(files.len() <= 2, "{files:?}");
    for pid in [server, program.keeper()] {
        for file in ["cmdline", "environ"] {
            let text = fs::read(format!("/proc/{pid}/{file}")).unwrap();
            assert!(!text.windows(8).any(|bytes| bytes == PASSWORD.as_bytes()), "{file}");
        }
    }
}

#[test]
fn a_signal_ends_both_and_nothing_is_left() {
    let mut program = Program::start();
    let server = program.server();
    program.signal(program.keeper(), Signal::TERM);
    assert!(program.wait().success());
    assert_eq!(program.record(), None);
    assert_eq!(Program::status(server, "State"), None, "the server is gone");
    TcpListener::bind(("127.0.0.1", program.port)).unwrap();
}

#[test]
fn a_killed_keeper_takes_the_server_with_it() {
    let mut program = Program::start();
    let server = program.server();
    program.signal(program.keeper(), Signal::KILL);
    assert!(!program.wait().success());
    until("the server's end", || Program::status(server, "State").is_none().then_some(()));
    TcpListener::bind(("127.0.0.1", program.port)).unwrap();
}

#[test]
fn a_server_that_dies_is_replaced() {
    let program = Program::start();
    let shim = Shim::start_with(&program.socket(), b"printed before");
    let first = program.server();
    program.signal(first, Signal::KILL);
    let second = until("another server", || program.try_server().filter(|pid| *pid != first));
    let mut viewer = Viewer::connect(program.port, PASSWORD, "tight", 4).unwrap();
    shows(&mut viewer, "printed before");
    assert_eq!(Program::status(second, "Seccomp").unwrap(), "2");
    assert_eq!(Program::status(second, "CapEff").unwrap(), "0000000000000000");
    drop(shim);
}

#[test]
fn mistakes_at_the_start_are_told_and_leave_nothing() {
    for (password, error) in [
        (&b""[..], "error host the password is empty\n"),
        (b"123456789", "error host the password has more than 8 bytes, and VNC uses no more\n"),
    ] {
        let options = Options { password: Some(password), ..Options::default() };
        assert_eq!(Program::start_with(&options).err().as_deref(), Some(error));
    }
}

#[test]
fn the_end_of_the_guest_is_shown_until_it_is_back() {
    let program = Program::start();
    let mut viewer = Viewer::connect(program.port, PASSWORD, "zrle copyrect", 4).unwrap();
    shows(&mut viewer, "\r\n[ocivisor: waiting for the guest]\r\n");
    let shim = Shim::start_with(&program.socket(), b"first boot\r\n");
    shows(&mut viewer, "first boot\r\n");
    shim.print(b"\x1b[?1049h\x1b[?25l\x1b[41mfull screen");
    attached(&shim);
    until("the typist", || shim.has_writer().then_some(()));
    shim.end(Exit::Code(3));
    let ended = "first boot\r\n\r\n[ocivisor: the guest ended with code 3]\r\n";
    shows(&mut viewer, ended);
    let shim = Shim::start_with(&program.socket(), b"second boot\r\nlogin: ");
    shows(&mut viewer, "second boot\r\nlogin: ");
    until("the typist", || shim.has_writer().then_some(()));
    viewer.type_text("root");
    until("typing", || (shim.typed() == b"root").then_some(()));
}

#[test]
fn another_shim_is_found() {
    let program = Program::start();
    let mut viewer = Viewer::connect(program.port, PASSWORD, "tight", 4).unwrap();
    let shim = Shim::start(&program.socket());
    attached(&shim);
    shim.print(b"before");
    shows(&mut viewer, "before");
    shim.die();
    let shim = Shim::start_with(&program.socket(), b"before, and after");
    shows(&mut viewer, "before, and after");
    until("the typist", || shim.has_writer().then_some(()));
}

#[test]
fn a_lost_console_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let shim = Shim::start(&socket(&dir));
    // Before anybody looks: what is said first stands there.
    shim.refuse(Some(Code::NoConsole));
    let program = Program::start_in(dir, &Options::default()).unwrap();
    let mut viewer = Viewer::connect(program.port, PASSWORD, "tight", 4).unwrap();
    shows(&mut viewer, "\r\n[ocivisor: the guest's console was lost; restart the guest]\r\n");
    shim.refuse(None);
    shim.print(b"there");
    shows(&mut viewer, "there");
}

#[test]
fn clients_share_one_writer_and_ask_for_it_when_somebody_types() {
    let program = Program::start();
    let shim = Shim::start(&program.socket());
    attached(&shim);
    assert!(!shim.has_writer(), "nobody looks");
    shim.set_busy(true);
    let mut viewer = Viewer::connect(program.port, PASSWORD, "tight", 4).unwrap();
    let asked = |shim: &Shim| shim.asked().iter().filter(|line| *line == "attach rw 80x25").count();
    until("the first question", || (asked(&shim) == 1).then_some(()));
    // Until it is asked again, and refused again, and says so.
    until("the second question", || {
        viewer.type_text("lost");
        (asked(&shim) == 2).then_some(())
    });
    let note = "\x1b[25;1H\x1b[7m\x1b[Ksomebody else types; you look on\x1b[K\x1b[0m\x1b[H";
    let line = format!(
        "{note}{}",
        "\x1b[25;33H\x1b[7m                                                \x1b[0m\x1b[H"
    );
    shows(&mut viewer, &line);
    assert_eq!(shim.typed(), b"");
    shim.set_busy(false);
    until("the role", || {
        viewer.type_text("x");
        shim.has_writer().then_some(())
    });
    until("typing", || shim.typed().starts_with(b"x").then_some(()));
    // Taken by somebody else, and free again.
    shim.take();
    until("the loss", || (!shim.has_writer()).then_some(()));
    shim.set_busy(false);
    until("the role again", || {
        viewer.type_text("y");
        shim.has_writer().then_some(())
    });
    drop(viewer);
    until("nobody", || (!shim.has_writer()).then_some(()));
    assert_eq!(shim.viewers(), 1, "it goes on looking");
}

#[test]
fn the_guests_questions_are_answered_while_somebody_is_there() {
    let program = Program::start();
    let shim = Shim::start_with(&program.socket(), b"old question \x1b[6n");
    attached(&shim);
    shim.print(b"\x1b[6n");
    let _viewer = Viewer::connect(program.port, PASSWORD, "tight", 4).unwrap();
    until("the typist", || shim.has_writer().then_some(()));
    assert_eq!(shim.typed(), b"");
    shim.print(b"\x1b[5;7H\x1b[6n");
    until("the answer", || (shim.typed() == b"\x1b[5;7R").then_some(()));
}

#[test]
fn who_wants_the_screen_alone_gets_it() {
    let options = Options { password: None, ..Options::default() };
    let program = Program::start_with(&options).unwrap();
    let ends = |stream: &mut TcpStream| stream.read(&mut [0; 100]).unwrap_or(0) == 0;
    let mut first = program.come_in();
    let mut shares = program.come_in();
    let mut alone = program.connect();
    alone.write_all(b"RFB 003.008\n\x01\x00").unwrap();
    assert!(ends(&mut first) && ends(&mut shares));
    alone.read_exact(&mut [0; 42]).unwrap();
}
