//! The one place of this module that runs programs: argv, no shell, an empty environment, a deadline, and a bounded
//! piece of what they say when they fail.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::cancel::{Cancel, LOOK};
use crate::error::escape;

/// Most bytes of an error message that are kept.
const SAID_MAX: usize = 8 * 1024;

/// Runs a program to its end. The error is text: why, and what to do where that is known.
pub(super) fn run(
    program: &str,
    package: &str,
    args: &[&str],
    patience: Duration,
    cancel: &Cancel,
) -> Result<(), String> {
    #[expect(clippy::disallowed_methods, reason = "the one place that runs programs here")]
    let spawned = Command::new(program)
        .args(args)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(format!("there is no {program}; install {package}"));
        }
        Err(e) => return Err(format!("cannot run {program}: {e}")),
    };
    let said = match attend(&mut child, patience, cancel) {
        Ok(said) => said,
        Err(why) => {
            // Nobody else waits for it; a child that is gone already is no error.
            drop(child.kill());
            drop(child.wait());
            return Err(format!("{program} {why}"));
        }
    };
    let status = child.wait().map_err(|e| format!("cannot wait for {program}: {e}"))?;
    if status.success() {
        return Ok(());
    }
    let lines: Vec<&[u8]> =
        said.split(|b| *b == b'\n').map(<[u8]>::trim_ascii).filter(|l| !l.is_empty()).collect();
    // The last lines tell; the first are a banner.
    let tail = lines[lines.len().saturating_sub(3)..].join(&b"; "[..]);
    Err(format!("{program} failed ({status}): {}", escape(&tail)))
}

/// Reads what the child says until it ends.
fn attend(child: &mut Child, patience: Duration, cancel: &Cancel) -> Result<Vec<u8>, String> {
    let deadline = Instant::now() + patience;
    let failed = |e: rustix::io::Errno| format!("cannot be watched: {e}");
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or("has no process id")?;
    let end = pidfd_open(pid, PidfdFlags::empty()).map_err(failed)?;
    let mut stderr = child.stderr.take();
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
        if let Some(stderr) = &stderr {
            fds.push(PollFd::new(stderr, PollFlags::IN));
        }
        match poll(&mut fds, Some(&left)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(failed(e)),
        }
        let ended = !fds[0].revents().is_empty();
        let speaks = fds.get(1).is_some_and(|f| !f.revents().is_empty());
        drop(fds);
        if speaks && let Some(from) = &mut stderr {
            let mut buf = [0; 4096];
            match from.read(&mut buf) {
                Ok(0) | Err(_) => stderr = None,
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

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn what_a_program_says_when_it_fails_is_told_and_bounded() {
        assert_eq!(run("true", "coreutils", &[], LONG, &Cancel::new()), Ok(()));
        let why = run("ls", "coreutils", &["/no such file\n"], LONG, &Cancel::new()).unwrap_err();
        assert!(why.starts_with("ls failed (exit status: 2): ls: cannot access"), "{why}");
        let many: Vec<String> = (0..3000).map(|n| format!("/missing/{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let why = run("ls", "coreutils", &many, LONG, &Cancel::new()).unwrap_err();
        assert!(why.len() < 300, "{}", why.len());
        assert_eq!(
            run("no-such-program", "nothing", &[], LONG, &Cancel::new()),
            Err("there is no no-such-program; install nothing".into())
        );
    }

    #[test]
    fn a_program_that_does_not_end_is_ended() {
        let why = run("sleep", "coreutils", &["1000"], Duration::from_millis(50), &Cancel::new())
            .unwrap_err();
        assert_eq!(why, "sleep did not end within 0 seconds");
    }

    #[test]
    fn a_program_that_nobody_wants_any_more_is_ended() {
        let cancel = Cancel::new();
        let why = std::thread::scope(|scope| {
            let running = scope.spawn(|| run("sleep", "coreutils", &["1000"], LONG, &cancel));
            cancel.cancel();
            running.join().unwrap().unwrap_err()
        });
        assert_eq!(why, "sleep was cancelled");
    }
}
