//! The shell on a host into which the steps of one action are written (§0.3).

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use super::{Call, Drivers};

/// Ends an answer on standard output.
const END: &str = "ocivisor-conformance: end of output";
/// Ends an answer on standard error, after the status.
const END_OF_ERRORS: &str = "ocivisor-conformance: end of errors";

/// A shell on a host.
#[derive(Debug)]
pub(super) struct Stream {
    shell: Child,
    host: String,
    lines: Receiver<(bool, Option<String>)>,
}

/// What a step of a stream came to.
#[derive(Debug)]
pub(super) enum Step {
    /// It ended: status, lines of standard output, standard error.
    Ended(i32, Vec<String>, String),
    /// oned took the action back.
    Cancelled,
}

impl Drivers {
    /// Opens a shell on a host.
    pub(super) fn stream(&self, host: &str) -> Stream {
        let ssh = self.place.root().join("bin/ssh");
        let mut command = self.on_frontend(Path::new(&ssh));
        command.args([host, "bash", "-s"]);
        let mut shell = command.spawn().expect("the stub ssh");
        let (sender, lines) = channel();
        follow(shell.stdout.take().expect("a pipe"), false, sender.clone());
        follow(shell.stderr.take().expect("a pipe"), true, sender);
        Stream { shell, host: host.to_owned(), lines }
    }

    /// Writes a step into the shell and waits for its end. A script that is not there is copied and called again.
    pub(super) fn step(
        &self,
        stream: &mut Stream,
        script: &str,
        quoted: &str,
        args: &[String],
        stdin: &str,
        token: &AtomicBool,
    ) -> Step {
        self.intervene(script);
        let mut step = stream.run(script, quoted, stdin, token);
        if let Step::Ended(42 | 126 | 127, ..) = step {
            self.place.sync(&stream.host);
            step = stream.run(script, quoted, stdin, token);
        }
        if let Step::Ended(code, out, err) = &step
            && script.starts_with('/')
        {
            let err = err.replace(&format!("ExitCode: {code}"), "");
            self.note(Call {
                on: stream.host.clone(),
                script: script.to_owned(),
                args: args.to_vec(),
                stdin: stdin.as_bytes().to_vec(),
                answer: (*code, out.join("\n"), err.trim_end().to_owned()),
            });
        }
        step
    }
}

fn follow(from: impl Read + Send + 'static, errors: bool, to: Sender<(bool, Option<String>)>) {
    std::thread::spawn(move || {
        for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            if to.send((errors, Some(line))).is_err() {
                return;
            }
        }
        let _nobody = to.send((errors, None));
    });
}

impl Stream {
    fn run(&mut self, script: &str, quoted: &str, stdin: &str, token: &AtomicBool) -> Step {
        // Steps of a shell's own (`mkdir`, `cat`) have no script to look for.
        let call = format!("{script} {quoted}");
        let text = format!(
            "cat << 'EOT' | {}\n{stdin}\nEOT\necho \"ExitCode: $?\" >&2\necho '{END_OF_ERRORS}' >&2\necho '{END}'\n",
            call.trim_end()
        );
        if let Some(pipe) = self.shell.stdin.as_mut() {
            for piece in text.as_bytes().chunks(1000) {
                // A host that is away reads nothing: seen below.
                if pipe.write_all(piece).and_then(|()| pipe.flush()).is_err() {
                    break;
                }
            }
        }
        self.collect(token)
    }

    fn collect(&mut self, token: &AtomicBool) -> Step {
        let (mut out, mut err, mut ended, mut closed) = (Vec::new(), String::new(), [false; 2], 0);
        let deadline = Instant::now() + ocivisor_tests::PATIENCE * 5;
        while !(ended[0] && ended[1]) {
            if token.load(Ordering::Relaxed) {
                return Step::Cancelled;
            }
            match self.lines.recv_timeout(Duration::from_millis(20)) {
                Ok((false, Some(line))) if line == END => ended[0] = true,
                Ok((true, Some(line))) if line == END_OF_ERRORS => ended[1] = true,
                Ok((false, Some(line))) => out.push(line),
                Ok((true, Some(line))) => {
                    err.push_str(&line);
                    err.push('\n');
                }
                Ok((_, None)) => closed += 1,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => closed = 2,
            }
            if closed == 2 || Instant::now() > deadline {
                // The connection is gone, or nothing comes any more: so did the real one end.
                return Step::Ended(255, out, err);
            }
        }
        // On a line of its own only if the script ended its last one.
        let status = err.rsplit_once("ExitCode: ").and_then(|(_, code)| code.trim().parse().ok());
        Step::Ended(status.unwrap_or(-1), out, err)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        // What was taken back goes on on the host; the client here ends.
        let _ended = self.shell.kill();
        let _ended = self.shell.wait();
    }
}
