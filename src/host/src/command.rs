//! Runs a host tool: argv only, stdin closed, locale C, a deadline, bounded output, and an error
//! that says what the tool said. The one place besides the shims' spawner that makes processes.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use ocivisor_core::error::{Error, ErrorKind, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::confine::{Confinement, confine};

/// Most bytes of output that are kept.
const MAX_OUTPUT: usize = 64 * 1024;

/// How often it is asked whether a tool is still wanted.
const LOOK: Duration = Duration::from_millis(200);

/// Runs `argv` and returns its standard output.
///
/// # Errors
/// `Unsupported` if the tool is not installed, `Timeout` if it was killed after `timeout`, `Host`
/// with the last line of its standard error if it failed.
pub fn run(argv: &[&str], timeout: Duration) -> Result<Vec<u8>> {
    run_changed(argv, |_| (), timeout, &|| false)
}

/// The same for work that can be cancelled: the tool is killed soon after `unwanted` says so.
///
/// # Errors
/// As [`run`], and `Cancelled`.
pub fn run_unless(
    argv: &[&str],
    timeout: Duration,
    unwanted: &dyn Fn() -> bool,
) -> Result<Vec<u8>> {
    run_changed(argv, |_| (), timeout, unwanted)
}

/// The same for a tool that is to have no rights.
///
/// # Errors
/// As [`run`].
pub fn run_confined(argv: &[&str], to: &Confinement<'_>, timeout: Duration) -> Result<Vec<u8>> {
    run_changed(argv, |command| confine(command, to), timeout, &|| false)
}

/// What is wanted of a tool that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// That it works.
    Work,
    /// That it stands still, where it is.
    Rest,
    /// That it ends now.
    End,
}

/// A tool that came to its end, however that was.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code, or the signal that killed it.
    pub status: ExitStatus,
    /// The beginning of its standard output.
    pub out: Vec<u8>,
    /// The beginning of its standard error.
    pub err: Vec<u8>,
}

impl Ended {
    /// The last line of its standard error.
    #[must_use]
    pub fn last_words(&self) -> String {
        let text = String::from_utf8_lossy(&self.err);
        text.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("no message").to_owned()
    }
}

/// The same for one whose exit code says more than that it failed, for as long as `wish` says, which is asked several
/// times a second.
///
/// # Errors
/// As [`run_unless`]; that it failed is none.
pub fn watch_confined(
    argv: &[&str],
    to: &Confinement<'_>,
    wish: &dyn Fn() -> Wish,
) -> Result<Ended> {
    watch_changed(argv, |command| confine(command, to), Duration::MAX, wish)
}

fn run_changed(
    argv: &[&str],
    change: impl FnOnce(&mut Command),
    timeout: Duration,
    unwanted: &dyn Fn() -> bool,
) -> Result<Vec<u8>> {
    let wish = || if unwanted() { Wish::End } else { Wish::Work };
    let ended = watch_changed(argv, change, timeout, &wish)?;
    if ended.status.success() {
        return Ok(ended.out);
    }
    let tool = argv.first().unwrap_or(&"");
    Err(host(format!("{tool} failed ({}): {}", ended.status, ended.last_words())))
}

fn watch_changed(
    argv: &[&str],
    change: impl FnOnce(&mut Command),
    timeout: Duration,
    wish: &dyn Fn() -> Wish,
) -> Result<Ended> {
    let (tool, args) = argv.split_first().ok_or_else(|| host("empty command".into()))?;
    tracing::debug!(?argv, "running tool");
    #[expect(clippy::disallowed_methods, reason = "this is the one right place")]
    let mut command = Command::new(tool);
    command
        .args(args)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    change(&mut command);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let missing = Error::new(ErrorKind::Unsupported, format!("{tool} is not installed"));
            return Err(missing.hint(format!("install the package that has {tool}")));
        }
        Err(e) => return Err(host(format!("start {tool}: {e}"))),
    };
    let outcome = collect(&mut child, timeout, wish);
    if !matches!(outcome, Ok(Some(_))) {
        // Failing to kill means it ended; either way it must be reaped.
        let _ = child.kill();
        let _ = child.wait();
    }
    match outcome {
        Ok(Some((out, err))) => {
            let status = child.wait().map_err(|e| host(format!("wait for {tool}: {e}")))?;
            Ok(Ended { status, out, err })
        }
        Ok(None) if wish() == Wish::End => {
            Err(Error::new(ErrorKind::Cancelled, format!("{tool} was cancelled")))
        }
        Ok(None) => {
            let what = format!("{tool} did not end within {} s", timeout.as_secs());
            Err(Error::new(ErrorKind::Timeout, what))
        }
        Err(e) => Err(host(format!("run {tool}: {e}"))),
    }
}

fn host(what: String) -> Error {
    Error::new(ErrorKind::Host, what)
}

/// Both outputs until the process ended; `None` if the deadline passed or nobody wants it. The process's end counts,
/// not end-of-file: a daemon that a tool leaves behind may keep the pipe open.
fn collect(
    child: &mut Child,
    timeout: Duration,
    wish: &dyn Fn() -> Wish,
) -> io::Result<Option<(Vec<u8>, Vec<u8>)>> {
    let begun = Instant::now();
    let mut rests = false;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pidfd = pidfd_open(pid.ok_or(io::ErrorKind::InvalidInput)?, PidfdFlags::empty())?;
    let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
    let (mut out, mut err) = (Vec::new(), Vec::new());
    loop {
        let mut ended = false;
        let left = timeout.saturating_sub(begun.elapsed());
        let wish = wish();
        if wish == Wish::End {
            return Ok(None);
        }
        if rests != (wish == Wish::Rest) {
            rests = !rests;
            let signal = if rests { Signal::STOP } else { Signal::CONT };
            // That it ended meanwhile is seen below.
            let _ = pidfd_send_signal(&pidfd, signal);
        }
        let look = left.min(LOOK);
        let wait = Timespec { tv_sec: look.as_secs() as i64, tv_nsec: look.subsec_nanos().into() };
        let mut fds = vec![PollFd::new(&pidfd, PollFlags::IN)];
        let pipes = [stdout.as_ref().map(AsFd::as_fd), stderr.as_ref().map(AsFd::as_fd)];
        fds.extend(pipes.iter().flatten().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)));
        match poll(&mut fds, Some(&wait)) {
            Ok(0) if left.is_zero() => return Ok(None),
            Ok(0) => continue,
            Ok(_) => ended |= !fds[0].revents().is_empty(),
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
        }
        let mut ready = fds[1..].iter().map(|fd| !fd.revents().is_empty()).collect::<Vec<_>>();
        drop(fds);
        let mut ready = ready.drain(..);
        if stdout.is_some() && ready.next() == Some(true) {
            drain(&mut stdout, &mut out)?;
        }
        if stderr.is_some() && ready.next() == Some(true) {
            drain(&mut stderr, &mut err)?;
        }
        if ended || (stdout.is_none() && stderr.is_none() && left.is_zero()) {
            // What is in the pipes now was written before the end.
            drain_ready(&mut stdout, &mut out)?;
            drain_ready(&mut stderr, &mut err)?;
            return Ok(Some((out, err)));
        }
    }
}

/// One read; end-of-file closes the pipe, excess is thrown away.
fn drain(pipe: &mut Option<impl Read>, into: &mut Vec<u8>) -> io::Result<()> {
    let mut chunk = [0_u8; 8192];
    let Some(reader) = pipe else { return Ok(()) };
    let n = reader.read(&mut chunk)?;
    if n == 0 {
        *pipe = None;
    }
    let room = MAX_OUTPUT.saturating_sub(into.len()).min(n);
    into.extend_from_slice(&chunk[..room]);
    Ok(())
}

/// All that can be read without waiting.
fn drain_ready<R: Read + AsFd>(pipe: &mut Option<R>, into: &mut Vec<u8>) -> io::Result<()> {
    while let Some(reader) = pipe.as_ref() {
        let mut fds = [PollFd::new(reader, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        if poll(&mut fds, Some(&now))? == 0 {
            return Ok(());
        }
        drain(pipe, into)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn output_of_a_tool_that_worked() {
        assert_eq!(run(&["echo", "a b"], LONG).unwrap(), b"a b\n");
    }

    #[test]
    fn failures_carry_the_last_line_of_the_tool() {
        let error = run(&["ls", "/no/such/path"], LONG).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Host);
        assert!(error.message.contains("No such file or directory"), "{error}");
    }

    #[test]
    fn a_missing_tool_is_named() {
        let error = run(&["no-such-tool-here"], LONG).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unsupported);
        assert_eq!(error.message, "no-such-tool-here is not installed");
    }

    #[test]
    fn a_tool_that_hangs_is_killed() {
        let error = run(&["sleep", "1000"], Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Timeout);
    }

    #[test]
    fn a_tool_that_nobody_wants_any_more_is_killed() {
        let asked = Cell::new(0);
        let unwanted = || asked.replace(asked.get() + 1) > 1;
        let error = run_unless(&["sleep", "1000"], LONG, &unwanted).unwrap_err();
        assert_eq!(
            (error.kind, error.message.as_str()),
            (ErrorKind::Cancelled, "sleep was cancelled")
        );
    }

    #[test]
    fn a_tool_rests_where_it_is_and_goes_on() {
        // The state of a sleep that nobody else has.
        let length = format!("1000.{}", std::process::id());
        let state = || {
            let is_it = |dir: &PathBuf| {
                let line = fs::read(dir.join("cmdline")).unwrap_or_default();
                line == format!("sleep\0{length}\0").as_bytes()
            };
            let dirs = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
            let stat = fs::read_to_string(dirs.into_iter().find(is_it)?.join("stat")).ok()?;
            stat.split(' ').nth(2).map(str::to_owned)
        };
        let (seen, end) = (Cell::new(0), Instant::now() + LONG);
        let wish = || {
            let state = state();
            let is_stopped = state.as_deref() == Some("T");
            match seen.get() {
                0 if is_stopped => seen.set(1),
                1 if state.is_some() && !is_stopped => seen.set(2),
                _ => {}
            }
            match seen.get() {
                _ if Instant::now() > end => Wish::End,
                0 => Wish::Rest,
                1 => Wish::Work,
                _ => Wish::End,
            }
        };
        let to = Confinement {
            files: &[],
            largest_file: 0,
            input: crate::confine::Input::Ours,
            user: crate::confine::user(),
            groups: &[],
        };
        let error = watch_confined(&["sleep", &length], &to, &wish).unwrap_err();
        assert_eq!((error.kind, seen.get()), (ErrorKind::Cancelled, 2));
    }

    #[test]
    fn more_output_than_is_kept_does_not_block_the_tool() {
        let out = run(&["head", "-c", "1000000", "/dev/zero"], LONG).unwrap();
        assert_eq!(out.len(), MAX_OUTPUT);
    }
}
