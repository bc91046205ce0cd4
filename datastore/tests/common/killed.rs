//! A test that runs itself as a process and kills that: what the process said, line by line, until then.
#![allow(dead_code, reason = "each test file uses its part")]

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Small, and the same in every run of a seed: what happens when is the scheduler's choice anyway.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self, below: u32) -> u32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u32::try_from((self.0 >> 33) % u64::from(below)).unwrap()
    }
}

/// This test program, to be the test `child` of it alone.
#[expect(clippy::disallowed_methods, reason = "the test runs itself as the process to be killed")]
pub fn itself() -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["child", "--exact", "--nocapture"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// A line, and when it came.
pub type Line = (Instant, String);

/// Lets the child run until it said such a line and for a while more, kills it, and returns what it said. Only what is
/// whole counts: a child writes each line at once.
pub fn kill_after(
    mut child: Child,
    first: impl Fn(&str) -> bool + Send + 'static,
    time: Duration,
) -> Vec<Line> {
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let (said, words) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut lines: Vec<Line> = Vec::new();
        for line in stdout.lines() {
            lines.push((Instant::now(), line.unwrap()));
            if first(&lines.last().unwrap().1) {
                let _ = said.send(());
            }
        }
        lines
    });
    let started = words.recv_timeout(Duration::from_secs(60));
    // Only a child that died sends nothing any more before the time is over.
    let (never, end) = mpsc::channel::<()>();
    let _ = end.recv_timeout(time);
    drop(never);
    child.kill().unwrap();
    let lines = reader.join().unwrap();
    let mut errors = String::new();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    let status = child.wait().unwrap();
    let killed = status.code().is_none();
    assert!(started.is_ok() && killed, "the child ended: {}\n{errors}", text(&lines));
    lines
}

/// The lines alone.
pub fn text(lines: &[Line]) -> String {
    lines.iter().map(|(_, line)| format!("{line}\n")).collect()
}
