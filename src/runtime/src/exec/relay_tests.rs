//! Sessions without a guest: how they end.
#![allow(clippy::disallowed_methods, reason = "tests start programs")]

use std::fs;
use std::process::{Child, Command, Stdio};

use rustix::process::{Signal, kill_process_group, test_kill_process};

use super::*;

/// A program that leads a session, and a session for it. Both are gone when dropped.
struct Program {
    child: Child,
    dir: tempfile::TempDir,
}

impl Program {
    fn begin(script: &str) -> (Self, Pid, Streams) {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("setsid");
        command.args(["sh", "-c", script]).current_dir(dir.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let streams = Streams::Pipes {
            stdin: child.stdin.take().unwrap().into(),
            stdout: child.stdout.take().unwrap().into(),
            stderr: child.stderr.take().unwrap().into(),
        };
        let pid = Pid::from_child(&child);
        (Self { child, dir }, pid, streams)
    }

    fn did(&self, name: &str) -> bool {
        self.dir.path().join(name).exists()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Its daemon has a session of its own.
        let daemon = fs::read_to_string(self.dir.path().join("daemon"));
        let daemon = daemon.ok().and_then(|text| Pid::from_raw(text.trim().parse().ok()?));
        let _ = daemon.map(|pid| kill_process_group(pid, Signal::KILL));
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait_for(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "no {what}");
        std::thread::yield_now();
    }
}

/// Runs a session whose client goes away after it heard something.
fn leave(script: &str, terms: Terms<'_>) -> Program {
    let (program, pid, streams) = Program::begin(script);
    let (mut client, ours) = UnixStream::pair().unwrap();
    let session = Session::new(ours, streams, Vec::new()).unwrap();
    std::thread::scope(|scope| {
        let run = scope.spawn(|| {
            let (told, outputs) = session.run(pid, terms);
            told.and(hear_out(outputs))
        });
        assert_eq!(client.read(&mut [0; 1]).unwrap(), 1);
        drop(client);
        run.join().unwrap().unwrap();
    });
    assert!(test_kill_process(pid).is_err(), "it was reaped");
    program
}

#[test]
fn a_daemon_does_not_die_of_a_client_that_leaves() {
    // More than a pipe holds.
    let daemon =
        "setsid sh -c 'echo $$ > daemon; head -c 1000000 /dev/zero && : > done' & sleep 1000";
    let program = leave(daemon, Terms::default());
    wait_for("end of the daemon", || program.did("done"));
}

#[test]
fn input_ends_before_what_tidies_up_does() {
    let script = "echo; cat > got; : > tidied";
    assert!(leave(script, Terms { tidies: true, ..Terms::default() }).did("tidied"));
    assert!(!leave(script, Terms::default()).did("tidied"));
    // One that does not end is killed.
    leave("echo; sleep 1000", Terms { tidies: true, ..Terms::default() });
}

#[test]
fn what_does_not_die_is_not_waited_for() {
    let (program, pid, _streams) = Program::begin("sleep 1000");
    let waited = reap(pid, Duration::from_millis(20)).unwrap_err();
    assert_eq!(waited.kind(), io::ErrorKind::TimedOut);
    kill(pid, Reach::Session, None);
    assert_eq!(reap(pid, DEATH).unwrap(), 137);
    drop(program);
}

#[test]
fn outputs_that_are_waited_for_do_not_block() {
    let (_program, pid, streams) = Program::begin("exec sleep 1000");
    let mut outputs = streams.into_outputs().unwrap();
    for output in &outputs {
        // The program itself may read what was seen there.
        assert!(rustix::fs::fcntl_getfl(output).unwrap().contains(rustix::fs::OFlags::NONBLOCK));
    }
    let limit = Some(Duration::from_millis(20));
    assert_eq!(attend(pid, &mut outputs, limit, None).unwrap(), None);
}
