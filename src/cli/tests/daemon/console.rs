//! The console on a real terminal, against a shim of a few lines.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{Termios, tcgetattr};
use nix::unistd::Pid;
use ocivisor_shim::client::{Decoder, Event};
use ocivisor_shim::exit::Exit;
use ocivisor_shim::frame::Frame;
use serde_json::json;

use crate::fake::{Answer, Fake};

const PATIENCE: Duration = Duration::from_secs(20);

/// A terminal, the command on it, and the shim's end of the attached console.
struct Session {
    pty: OpenptyResult,
    before: Termios,
    child: Child,
    shim: UnixStream,
    request: String,
    _fake: Fake,
    _dir: tempfile::TempDir,
}

impl Session {
    fn start(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shim.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let socket = path.display().to_string();
        let fake = Fake::start(move |_, _| Answer::Result(json!({"socket": socket})));
        let size = Winsize { ws_row: 33, ws_col: 101, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).unwrap();
        let before = tcgetattr(&pty.slave).unwrap();
        let end = || Stdio::from(pty.slave.try_clone().unwrap());
        #[expect(clippy::disallowed_methods, reason = "a test runs the program under test")]
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ocivisor"));
        command.env_clear().env("OCIVISOR_SOCKET", fake.socket()).args(["console", "web"]);
        command.args(args).stdin(end()).stdout(end()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        let (shim, _) = listener.accept().unwrap();
        shim.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut request = String::new();
        // One byte at a time, so that frames after the line stay in the socket.
        BufReader::with_capacity(1, &shim).read_line(&mut request).unwrap();
        let answer = if request.contains(" ro ") { "ok ro\n" } else { "ok rw\n" };
        (&shim).write_all(answer.as_bytes()).unwrap();
        let mut session = Self { pty, before, child, shim, request, _fake: fake, _dir: dir };
        session.wait_for("raw mode", |s| s.flags() != Self::all_flags(&s.before));
        session
    }

    fn all_flags(t: &Termios) -> [u32; 4] {
        [t.input_flags.bits(), t.output_flags.bits(), t.control_flags.bits(), t.local_flags.bits()]
    }

    fn flags(&self) -> [u32; 4] {
        Self::all_flags(&tcgetattr(&self.pty.slave).unwrap())
    }

    fn wait_for(&mut self, what: &str, mut ready: impl FnMut(&mut Self) -> bool) {
        let began = Instant::now();
        while !ready(self) {
            assert!(began.elapsed() < PATIENCE, "no {what}");
            std::thread::park_timeout(Duration::from_millis(2));
        }
    }

    fn keys(&self, bytes: &[u8]) {
        File::from(self.pty.master.try_clone().unwrap()).write_all(bytes).unwrap();
    }

    /// What the terminal shows, until it ends with `end`.
    fn screen(&self, end: &str) -> String {
        let mut master = File::from(self.pty.master.try_clone().unwrap());
        let mut shown = Vec::new();
        while !shown.ends_with(end.as_bytes()) {
            let mut byte = [0];
            master.read_exact(&mut byte).unwrap();
            shown.extend_from_slice(&byte);
        }
        String::from_utf8(shown).unwrap()
    }

    fn send(&self, frames: &[Frame<'_>]) {
        let mut bytes = Vec::new();
        for frame in frames {
            frame.encode(&mut bytes);
        }
        (&self.shim).write_all(&bytes).unwrap();
    }

    /// What was typed, up to the frame that leaves.
    fn typed_until_detached(&self) -> Vec<u8> {
        let mut decoder = Decoder::default();
        let mut typed = Vec::new();
        loop {
            while let Some(event) = decoder.next_event().unwrap() {
                match event {
                    Event::Output(bytes) => typed.extend(bytes),
                    Event::Detached => return typed,
                    other => panic!("unexpected {other:?}"),
                }
            }
            let mut chunk = [0; 512];
            let n = (&self.shim).read(&mut chunk).unwrap();
            assert_ne!(n, 0, "hung up without a word");
            decoder.push(&chunk[..n]);
        }
    }

    /// Its status and standard error; the terminal is as it was.
    fn end(&mut self) -> (ExitStatus, String) {
        self.wait_for("end", |s| s.child.try_wait().unwrap().is_some());
        let status = self.child.wait().unwrap();
        let mut stderr = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!(self.flags(), Self::all_flags(&self.before), "the terminal is not put back");
        (status, stderr)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Ended already in the good case.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn keys_reach_the_guest_and_its_output_the_terminal_until_ctrl_bracket() {
    let mut session = Session::start(&[]);
    assert_eq!(session.request, "attach rw 101x33\n");
    session.send(&[Frame::Data(b"login: ")]);
    assert!(session.screen("login: ").ends_with("login: "));
    session.keys(b"root\r\x03\x1a");
    session.keys(b"\x1d");
    assert_eq!(session.typed_until_detached(), b"root\r\x03\x1a");
    let (status, stderr) = session.end();
    assert!(status.success(), "{stderr}");
    assert_eq!(stderr, "web: console attached\n\nweb: detached\n");
}

#[test]
fn the_end_of_the_guest_ends_the_console() {
    let mut session = Session::start(&[]);
    session.send(&[Frame::Exit(Exit::Code(3)), Frame::Detach]);
    let (status, stderr) = session.end();
    assert!(status.success());
    assert!(stderr.ends_with("web: guest ended with code 3\n"), "{stderr}");
}

#[test]
fn a_signal_puts_the_terminal_back() {
    let mut session = Session::start(&[]);
    let pid = Pid::from_raw(i32::try_from(session.child.id()).unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    let (status, stderr) = session.end();
    assert_eq!(status.code(), Some(1));
    assert!(stderr.ends_with("ocivisor: ended by signal 15\n"), "{stderr}");
}

#[test]
fn a_shim_that_dies_puts_the_terminal_back() {
    let mut session = Session::start(&[]);
    session.shim.shutdown(std::net::Shutdown::Both).unwrap();
    let (status, _) = session.end();
    assert!(status.success());
}

#[test]
fn who_looks_on_types_nothing() {
    let mut session = Session::start(&["--read-only"]);
    assert_eq!(session.request, "attach ro 0x0\n");
    session.keys(b"rm -rf\r\x1d");
    assert_eq!(session.typed_until_detached(), b"");
    assert!(session.end().0.success());
}

#[test]
fn a_missing_shim_is_told_before_the_terminal_is_touched() {
    let fake = Fake::start(|_, _| Answer::Result(json!({"socket": "/nonexistent/shim.sock"})));
    let mut command = crate::ocivisor(&fake, &["console", "web"]);
    let (code, _, stderr) = crate::run(&mut command);
    assert_eq!(code, 1);
    assert!(stderr.starts_with("ocivisor: attach the console: "), "{stderr}");
    assert!(Path::new(&fake.socket()).exists());
}
