//! Runs a tool: argv alone, a deadline, bounded output, and an error that says what the tool said.
//!
//! A tool leads a process group of its own, which ends with it at the deadline; so nothing that it started holds a lock or a
//! thread of oned's driver for longer. It dies with us. What leaves the group, as containers of a build do, becomes our
//! child when its parent dies ([`Tool::run_with_strays`]) and is ended one by one. Whoever still holds the pipes when
//! the tool has ended is not waited for.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ocivisor_core::error::{Error, ErrorKind, Result, one_line};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, kill_process_group};

use crate::sys;

/// The path by which a tool opens the file that is its standard input.
pub(crate) const STDIN: &str = "/proc/self/fd/0";

/// How long what was killed may take to end, and what a tool that ended has left in its pipes to arrive.
const GRACE: Duration = Duration::from_secs(5);

/// A tool to be run.
#[derive(Debug)]
pub(crate) struct Tool<'a> {
    /// Program and arguments.
    pub argv: &'a [&'a OsStr],
    /// Its standard input.
    pub stdin: Option<File>,
    /// How long it may take.
    pub timeout: Duration,
    /// Most bytes of its output.
    pub most: u64,
    /// Exit codes above 0 that are no failure.
    pub fine: i32,
}

impl Tool<'_> {
    /// Runs it; gives its standard output.
    ///
    /// # Errors
    /// `Unsupported`: it is not installed. `Timeout`. `Host`: it failed, with its last line.
    pub fn run(self) -> Result<Vec<u8>> {
        self.go(false)
    }

    /// The same for a tool whose processes leave its group: all that it leaves behind is ended. For a process that runs
    /// nothing else at the time.
    pub fn run_with_strays(self) -> Result<Vec<u8>> {
        self.go(true)
    }

    fn go(self, strays: bool) -> Result<Vec<u8>> {
        let Some((program, arguments)) = self.argv.split_first() else {
            return Err(Error::new(ErrorKind::Host, "no program"));
        };
        let name = Path::new(program).file_name().unwrap_or(program).display();
        // Neither sshd nor oned gives users the directories of mkfs and its like.
        let found = Path::new(program).file_name().filter(|name| name == program).and_then(locate);
        let program = found.as_deref().unwrap_or(Path::new(program));
        #[expect(clippy::disallowed_methods, reason = "the one place of this crate for tools")]
        let mut command = Command::new(program);
        command.args(arguments).env("LC_ALL", "C");
        command.stdin(self.stdin.map_or_else(Stdio::null, Stdio::from));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        sys::tie_to_this_thread(&mut command);
        let orphans = if strays { Some(Orphans::adopt()) } else { None };
        let mut child = command.spawn().map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => {
                Error::new(ErrorKind::Unsupported, format!("{name} is not installed"))
            }
            _ => Error::new(ErrorKind::Host, format!("run {name}: {e}")),
        })?;
        let out = child.stdout.take().map(|from| Pipe::read(from, self.most));
        let err = child.stderr.take().map(|from| Pipe::read(from, 64 * 1024));
        let deadline = Instant::now() + self.timeout;
        let status = wait(&mut child, deadline);
        if let Some(orphans) = orphans {
            orphans.end(&child);
        }
        let patience = Instant::now() + GRACE;
        let [out, err] =
            [out, err].map(|pipe| pipe.map_or_else(Vec::new, |pipe| pipe.until(patience)));
        match status {
            Some(status) if status.code().is_some_and(|code| (0..=self.fine).contains(&code)) => {
                Ok(out)
            }
            Some(status) => Err(Error::new(
                ErrorKind::Host,
                format!("{name} failed ({status}): {}", last_line(&err)),
            )),
            None => Err(Error::new(
                ErrorKind::Timeout,
                format!("{name} was ended after {} s", self.timeout.as_secs()),
            )),
        }
    }
}

/// Its exit code; none if it had to be ended.
fn wait(child: &mut Child, deadline: Instant) -> Option<std::process::ExitStatus> {
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if Instant::now() >= deadline {
            // It is not reaped yet, so the number is still its group's.
            if let Some(group) = pid_of(child) {
                let _ = kill_process_group(group, Signal::KILL);
            }
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        // Nothing tells when it ends but a signal, which is the process's.
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

fn pid_of(child: &Child) -> Option<Pid> {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw)
}

/// Processes whose parents died below us (`PR_SET_CHILD_SUBREAPER`).
struct Orphans {
    before: HashSet<Pid>,
}

impl Orphans {
    fn adopt() -> Self {
        let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
        Self { before: children() }
    }

    /// Ends those that came since, and what becomes an orphan by that.
    fn end(self, tool: &Child) {
        let deadline = Instant::now() + GRACE;
        loop {
            let mut left = children();
            left.retain(|pid| !self.before.contains(pid) && Some(*pid) != pid_of(tool));
            if left.is_empty() || Instant::now() >= deadline {
                break;
            }
            for pid in left {
                let _ = kill_process(pid, Signal::KILL);
                let _ = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG);
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
        let _ = rustix::process::set_child_subreaper(None);
    }
}

/// Children of the main thread: orphans become those, and it runs the tools of a driver.
fn children() -> HashSet<Pid> {
    let main = rustix::process::getpid().as_raw_nonzero();
    let path = format!("/proc/self/task/{main}/children");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
}

/// What comes out of a tool; read to the end so that it never waits, and kept up to a bound.
#[derive(Debug)]
pub(crate) struct Pipe {
    kept: Arc<Mutex<Vec<u8>>>,
    end: Receiver<()>,
}

impl Pipe {
    pub fn read(mut from: impl Read + Send + 'static, most: u64) -> Self {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let (open, end) = channel();
        let into = kept.clone();
        std::thread::spawn(move || {
            let _open: std::sync::mpsc::Sender<()> = open;
            let mut buf = vec![0; 16 * 1024];
            while let Ok(n) = from.read(&mut buf) {
                let Ok(mut kept) = into.lock() else { break };
                let left = most.saturating_sub(kept.len() as u64);
                let n_kept = usize::try_from(left).map_or(n, |left| left.min(n));
                kept.extend_from_slice(&buf[..n_kept]);
                if n == 0 {
                    break;
                }
            }
        });
        Self { kept, end }
    }

    /// What came until its end, or until then.
    pub fn until(self, deadline: Instant) -> Vec<u8> {
        let left = deadline.saturating_duration_since(Instant::now());
        let (Err(RecvTimeoutError::Disconnected | RecvTimeoutError::Timeout) | Ok(())) =
            self.end.recv_timeout(left);
        self.kept.lock().map(|mut kept| std::mem::take(&mut *kept)).unwrap_or_default()
    }
}

/// Where programs are looked for, whatever oned's environment says.
pub(crate) const DIRS: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

fn locate(name: &OsStr) -> Option<PathBuf> {
    DIRS.iter().map(|dir| PathBuf::from(dir).join(name)).find(|path| path.is_file())
}

/// The program of that name.
///
/// # Errors
/// `Unsupported`: it is not installed.
pub(crate) fn find(name: &str) -> Result<PathBuf> {
    locate(name.as_ref()).ok_or_else(|| {
        Error::new(ErrorKind::Unsupported, format!("{name} is not installed on the front-end"))
    })
}

/// Runs a program that has nothing to say but that it failed.
///
/// # Errors
/// As [`Tool::run`].
pub(crate) fn run<A: AsRef<OsStr>>(argv: &[A], timeout: Duration) -> Result<()> {
    let argv: Vec<&OsStr> = argv.iter().map(AsRef::as_ref).collect();
    Tool { argv: &argv, stdin: None, timeout, most: 0, fine: 0 }.run().map(drop)
}

/// The last line that says something.
pub(crate) fn last_line(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let line = text.lines().rev().find(|line| !line.trim().is_empty());
    line.map_or_else(|| "it said nothing".to_owned(), |line| one_line(line.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_says_its_last_line() {
        let sh = find("sh").unwrap();
        let sh = sh.to_str().unwrap();
        let long = Duration::from_secs(60);
        run(&[sh, "-c", "echo out; echo err >&2"], long).unwrap();
        let error = run(&[sh, "-c", "echo a >&2; echo; echo 'the end' >&2; exit 3"], long);
        assert_eq!(error.unwrap_err().message, "sh failed (exit status: 3): the end");
        let error = run(&["/does/not/exist"], long).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unsupported);
        find("no-such-program").unwrap_err();
    }

    #[test]
    fn tools_of_administrators_are_found_without_a_path_to_them() {
        let argv = [OsStr::new("mkfs.ext4"), OsStr::new("-V")];
        let tool = || Tool {
            argv: &argv,
            stdin: None,
            timeout: Duration::from_secs(60),
            most: 64,
            fine: 0,
        };
        assert_eq!(tool().run().unwrap(), b"");
        assert!(locate(OsStr::new("mkfs.ext4")).unwrap().parent().unwrap().ends_with("sbin"));
        assert_eq!(locate(OsStr::new("no-such-program")), None);
    }

    #[test]
    fn what_takes_too_long_is_killed() {
        let sleep = find("sleep").unwrap();
        let error = run(&[sleep.as_os_str(), OsStr::new("600")], Duration::ZERO).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Timeout);
    }

    /// Whether somebody runs a program with that argument.
    fn runs(mark: &str) -> bool {
        let processes = std::fs::read_dir("/proc").unwrap();
        processes.filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok()).any(
            |line| {
                let mut argv = line.split(|c| *c == 0);
                let name = argv.next().unwrap_or_default();
                name.ends_with(b"sleep") && argv.any(|word| word == mark.as_bytes())
            },
        )
    }

    fn gone(mark: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while runs(mark) {
            assert!(Instant::now() < deadline, "sleep {mark} goes on");
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    /// Waits so long as nobody else's test does.
    fn mark(number: u32) -> String {
        format!("{number}{}.25", std::process::id())
    }

    fn ended(mark: &str, strays: bool, script: &str) {
        let script = &script.replace("MARK", mark);
        let began = Instant::now();
        let argv = ["sh", "-c", script].map(OsStr::new);
        let timeout = Duration::from_secs(1);
        let tool = Tool { argv: &argv, stdin: None, timeout, most: 100, fine: 0 };
        let error = tool.go(strays).unwrap_err();
        assert_eq!(
            (error.kind, error.message.as_str()),
            (ErrorKind::Timeout, "sh was ended after 1 s")
        );
        // It ended, and nobody waited for what had its pipes.
        assert!(began.elapsed() < Duration::from_secs(30));
        gone(mark);
    }

    #[test]
    fn what_a_tool_started_ends_with_it() {
        ended(&mark(86401), false, "sleep MARK & wait");
    }

    #[test]
    fn what_left_its_group_ends_with_it_where_that_is_wanted() {
        ended(&mark(86402), true, "setsid sleep MARK & wait");
        let script = "(setsid sh -c 'setsid sleep MARK & wait' &) ; wait; sleep MARK";
        ended(&mark(86403), true, script);
    }

    #[test]
    fn pipes_that_others_hold_are_not_waited_for() {
        // The group of who ended by itself is left alone: tools may leave services behind.
        let mark = mark(86404);
        let script = format!("echo out; sleep {mark} & echo $!");
        let argv = ["sh", "-c", &script].map(OsStr::new);
        let timeout = Duration::from_secs(600);
        let said = Tool { argv: &argv, stdin: None, timeout, most: 100, fine: 0 }.run().unwrap();
        let said = String::from_utf8(said).unwrap();
        let pid = said.strip_prefix("out\n").unwrap().trim().parse().unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        gone(&mark);
    }

    const LIFE: &str = "OCIVISOR_TEST_TOOL_LIFE";

    /// The life of a driver that is killed. Without the variable there is nothing to do.
    #[test]
    fn driver() {
        let Some(mark) = std::env::var_os(LIFE) else { return };
        let _ = run(&[OsStr::new("sleep"), &mark], Duration::from_secs(600));
    }

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "the test runs itself as the process to be killed"
    )]
    fn a_tool_ends_with_its_driver() {
        let mark = &mark(86405);
        let mut driver = Command::new(std::env::current_exe().unwrap())
            .args(["tool::tests::driver", "--exact"])
            .env(LIFE, mark)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !runs(mark) {
            assert!(Instant::now() < deadline, "the tool never ran");
            std::thread::park_timeout(Duration::from_millis(5));
        }
        driver.kill().unwrap();
        driver.wait().unwrap();
        gone(mark);
    }
}
