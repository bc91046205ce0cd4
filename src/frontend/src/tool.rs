//! Runs a tool: argv alone, a deadline, bounded output, and an error that says what the tool said.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ocivisor_core::error::{Error, ErrorKind, Result, one_line};

/// The path by which a tool opens the file that is its standard input.
pub(crate) const STDIN: &str = "/proc/self/fd/0";

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
        let Some((program, arguments)) = self.argv.split_first() else {
            return Err(Error::new(ErrorKind::Host, "no program"));
        };
        let name = program.display();
        // Neither sshd nor oned gives users the directories of mkfs and its like.
        let found = Path::new(program).file_name().filter(|name| name == program).and_then(locate);
        let program = found.as_deref().unwrap_or(Path::new(program));
        #[expect(clippy::disallowed_methods, reason = "the one place of this crate for tools")]
        let mut command = Command::new(program);
        command.args(arguments).env("LC_ALL", "C");
        command.stdin(self.stdin.map_or_else(Stdio::null, Stdio::from));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => {
                Error::new(ErrorKind::Unsupported, format!("{name} is not installed"))
            }
            _ => Error::new(ErrorKind::Host, format!("run {name}: {e}")),
        })?;
        let out = child.stdout.take().map(|from| collect(from, self.most));
        let err = child.stderr.take().map(|from| collect(from, 64 * 1024));
        let status = wait(&mut child, Instant::now() + self.timeout);
        let (out, err) = (joined(out), joined(err));
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

fn wait(child: &mut Child, deadline: Instant) -> Option<std::process::ExitStatus> {
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if Instant::now() >= deadline {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        // Nothing tells when it ends but a signal, which is the process's.
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// Where programs are looked for, whatever oned's environment says.
const DIRS: [&str; 6] =
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

/// Reads to the end, keeps the first bytes.
pub(crate) fn collect(mut from: impl Read + Send + 'static, most: u64) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        let _ = from.by_ref().take(most).read_to_end(&mut kept);
        let _ = std::io::copy(&mut from, &mut std::io::sink());
        kept
    })
}

pub(crate) fn joined(reader: Option<JoinHandle<Vec<u8>>>) -> Vec<u8> {
    reader.and_then(|reader| reader.join().ok()).unwrap_or_default()
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
        let want = format!("{sh} failed (exit status: 3): the end");
        assert_eq!(error.unwrap_err().message, want);
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
}
