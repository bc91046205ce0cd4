//! The one place of this module that runs programs: argv, no shell, an empty environment, a deadline, and a bounded
//! piece of what they say when they fail. Where the store has a worker they run confined ([`crate::worker`]), else as
//! this process.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::cancel::{Cancel, LOOK};
use crate::disk;
use crate::error::{Fault, escape};
use crate::worker::{self, Unpacker};

/// Most bytes of an error message that are kept.
const SAID_MAX: usize = 8 * 1024;

/// Where programs are looked for.
const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// An argument of a tool.
#[derive(Clone, Copy, Debug)]
pub(super) enum Arg<'a> {
    Text(&'a str),
    /// A directory that it reads.
    Tree(&'a File),
    /// A file that it may write, and that belongs to [`Tools::owner`].
    File(&'a File),
}

/// How tools are run.
#[derive(Debug)]
pub(super) struct Tools<'a> {
    pub unpacker: &'a Unpacker,
    pub cancel: &'a Cancel,
    pub patience: Duration,
}

impl Tools<'_> {
    /// Whose the files must be that tools write; nothing if it is the same who asks.
    pub fn owner(&self) -> Option<u32> {
        match self.unpacker {
            Unpacker::InProcess => None,
            Unpacker::Worker(worker) => Some(worker.root()),
        }
    }

    /// Runs a program to its end. No file may become larger than that. The error is text: why, and what to do where
    /// that is known.
    pub fn run(
        &self,
        program: &str,
        package: &str,
        args: &[Arg<'_>],
        largest: u64,
    ) -> Result<(), String> {
        let path = find(program).ok_or(format!("there is no {program}; install {package}"))?;
        let mut running = match self.unpacker {
            Unpacker::InProcess => Running::Plain(
                start(&path, program, args).map_err(|e| format!("cannot run {program}: {e}"))?,
            ),
            Unpacker::Worker(worker) => {
                let confined = confine(worker, &path, program, args, largest);
                Running::Confined(confined.map_err(|fault| format!("{program}: {}", told(fault)))?)
            }
        };
        let mut stderr = running.child().stderr.take();
        let said = match attend(running.child(), &mut stderr, self.patience, self.cancel) {
            Ok(said) => said,
            Err(why) => {
                running.kill();
                // Open as long as it lives, whoever its parent is.
                drop(stderr.map(|mut rest| io::copy(&mut rest, &mut io::sink())));
                return Err(format!("{program} {why}"));
            }
        };
        let status = running.end().map_err(|why| format!("{program}: {why}"))?;
        if status.success() {
            return Ok(());
        }
        let lines: Vec<&[u8]> =
            said.split(|b| *b == b'\n').map(<[u8]>::trim_ascii).filter(|l| !l.is_empty()).collect();
        // The last lines tell; the first are a banner.
        let tail = lines[lines.len().saturating_sub(3)..].join(&b"; "[..]);
        Err(format!("{program} failed ({status}): {}", escape(&tail)))
    }
}

fn find(program: &str) -> Option<PathBuf> {
    let is_program = |path: &PathBuf| {
        path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    DIRECTORIES.iter().map(|dir| Path::new(dir).join(program)).find(is_program)
}

/// With the rights of this process.
fn start(path: &Path, program: &str, args: &[Arg<'_>]) -> io::Result<Child> {
    let args = args.iter().map(|arg| match arg {
        Arg::Text(text) => (*text).to_owned(),
        Arg::Tree(file) | Arg::File(file) => disk::path_of(file),
    });
    #[expect(clippy::disallowed_methods, reason = "the one place that runs programs here")]
    Command::new(path)
        .arg0(program)
        .args(args)
        .env_clear()
        .env("PATH", DIRECTORIES.join(":"))
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
}

/// With no rights but over what is among its arguments.
fn confine(
    worker: &worker::Worker,
    path: &Path,
    program: &str,
    args: &[Arg<'_>],
    largest: u64,
) -> Result<worker::Confined, Fault> {
    let (mut tree, mut files, mut argv) = (None, Vec::new(), vec![program.to_owned()]);
    for arg in args {
        argv.push(match arg {
            Arg::Text(text) => (*text).to_owned(),
            Arg::Tree(file) => {
                tree = Some(*file);
                worker::TREE.to_owned()
            }
            Arg::File(file) => {
                files.push(*file);
                worker::file(files.len() - 1)
            }
        });
    }
    let tool = worker::Tool { program: path, argv: &argv, tree, files: &files, largest };
    worker::Confined::start(worker, &tool)
}

/// A tool at work.
enum Running {
    Plain(Child),
    Confined(worker::Confined),
}

impl Running {
    fn child(&mut self) -> &mut Child {
        match self {
            Self::Plain(child) => child,
            Self::Confined(confined) => confined.child(),
        }
    }

    fn kill(self) {
        match self {
            Self::Plain(mut child) => {
                // Nobody else waits for it; a child that is gone already is no error.
                drop(child.kill());
                drop(child.wait());
            }
            Self::Confined(confined) => drop(confined),
        }
    }

    fn end(self) -> Result<ExitStatus, String> {
        match self {
            Self::Plain(mut child) => {
                child.wait().map_err(|e| format!("cannot be waited for: {e}"))
            }
            Self::Confined(confined) => confined.end().map_err(told),
        }
    }
}

/// What became of a worker, in words.
fn told(fault: Fault) -> String {
    match fault {
        Fault::Worker(why) => format!("worker {why}"),
        Fault::Io(op, e) => format!("cannot {op} its worker: {e}"),
        Fault::Refused(why) => why.to_string(),
    }
}

/// Reads what the child says until it ends.
fn attend(
    child: &mut Child,
    stderr: &mut Option<ChildStderr>,
    patience: Duration,
    cancel: &Cancel,
) -> Result<Vec<u8>, String> {
    let deadline = Instant::now() + patience;
    let failed = |e: rustix::io::Errno| format!("cannot be watched: {e}");
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or("has no process id")?;
    let end = pidfd_open(pid, PidfdFlags::empty()).map_err(failed)?;
    let mut said = Vec::new();
    loop {
        let Some(left) = deadline.checked_duration_since(Instant::now()) else {
            return Err(format!("did not end within {} seconds", patience.as_secs()));
        };
        cancel.check().map_err(|_| "was cancelled")?;
        let left = left.min(LOOK);
        let left = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut fds = vec![PollFd::new(&end, PollFlags::IN)];
        if let Some(stderr) = &*stderr {
            fds.push(PollFd::new(stderr, PollFlags::IN));
        }
        match poll(&mut fds, Some(&left)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(failed(e)),
        }
        let ended = !fds[0].revents().is_empty();
        let speaks = fds.get(1).is_some_and(|f| !f.revents().is_empty());
        drop(fds);
        if speaks && let Some(from) = stderr {
            let mut buf = [0; 4096];
            match from.read(&mut buf) {
                Ok(0) | Err(_) => *stderr = None,
                Ok(n) => {
                    said.extend_from_slice(&buf[..n]);
                    let over = said.len().saturating_sub(SAID_MAX);
                    said.drain(..over);
                }
            }
        } else if ended {
            return Ok(said);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(
        program: &str,
        package: &str,
        args: &[&str],
        seconds: f64,
        cancel: &Cancel,
    ) -> Result<(), String> {
        let args: Vec<_> = args.iter().copied().map(Arg::Text).collect();
        let patience = Duration::from_secs_f64(seconds);
        let tools = Tools { unpacker: &Unpacker::InProcess, cancel, patience };
        tools.run(program, package, &args, 0)
    }

    #[test]
    fn what_a_program_says_when_it_fails_is_told_and_bounded() {
        let run =
            |program, package, args: &[&str]| run(program, package, args, 60.0, &Cancel::new());
        assert_eq!(run("true", "coreutils", &[]), Ok(()));
        let why = run("ls", "coreutils", &["/no such file\n"]).unwrap_err();
        assert!(why.starts_with("ls failed (exit status: 2): ls: cannot access"), "{why}");
        let many: Vec<String> = (0..3000).map(|n| format!("/missing/{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let why = run("ls", "coreutils", &many).unwrap_err();
        assert!(why.len() < 300, "{}", why.len());
        assert_eq!(
            run("no-such-program", "nothing", &[]),
            Err("there is no no-such-program; install nothing".into())
        );
    }

    #[test]
    fn a_program_that_does_not_end_is_ended() {
        let why = run("sleep", "coreutils", &["1000"], 0.05, &Cancel::new()).unwrap_err();
        assert_eq!(why, "sleep did not end within 0 seconds");
    }

    #[test]
    fn a_program_that_nobody_wants_any_more_is_ended() {
        let cancel = Cancel::new();
        let why = std::thread::scope(|scope| {
            let running = scope.spawn(|| run("sleep", "coreutils", &["1000"], 60.0, &cancel));
            cancel.cancel();
            running.join().unwrap().unwrap_err()
        });
        assert_eq!(why, "sleep was cancelled");
    }
}
