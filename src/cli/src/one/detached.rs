//! What a script leaves behind: this program again, as a process of its own.
//!
//! Scripts are called through ssh, which waits until nobody has the script's streams open. So what stays is in a session of
//! its own, with `/dev/null` and a descriptor from us. It says how its begin went: one line, and what it has to say beyond
//! that. Only then does the script end.

use std::ffi::OsStr;
use std::future::Future;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

use ocivisor_core::error::{Error, ErrorKind, one_line};
use rustix::fs::{Mode, OFlags, open};

/// The word that the one who stays says when all is well.
const WELL: &str = "ok";
/// What it says if it has something to say and does not stay.
const GONE: &str = "gone";
/// Most bytes that it says.
const MOST: u64 = 64 << 20;

/// What stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// The monitoring agent; its descriptor holds its orders.
    Agent,
    /// Who holds a command in a guest; its descriptor is the slot.
    Exec,
}

impl Task {
    const ALL: [Self; 2] = [Self::Agent, Self::Exec];

    /// As in `ocivisor one agent`.
    fn word(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Exec => "exec",
        }
    }
}

/// How it went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// Whether it stays.
    pub stays: bool,
    /// What it had to say.
    pub said: String,
}

/// Leaves somebody behind, and waits until it has begun.
///
/// # Errors
/// What it said, or that it could not be begun.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place where a script leaves a process behind"
)]
pub fn leave(task: Task, descriptor: OwnedFd) -> Result<Left, Error> {
    let failed = |e: io::Error| Error::new(ErrorKind::Host, format!("begin {}: {e}", task.word()));
    // Also while the program is being replaced.
    let mut child = Command::new("/proc/self/exe")
        .arg0("ocivisor")
        .args(["one", task.word()])
        .env_clear()
        .current_dir("/")
        .stdin(descriptor)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    let mut said = String::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MOST).read_to_string(&mut said).map_err(failed)?;
    }
    let (first, rest) = said.split_once('\n').unwrap_or((&said, ""));
    match first {
        WELL | GONE => Ok(Left { stays: first == WELL, said: rest.to_owned() }),
        "" => Err(failed(io::Error::other("it ended"))),
        why => Err(Error::new(ErrorKind::Host, why)),
    }
}

/// Being the one who stays, if that is what the command line says.
#[must_use]
pub fn early(word: &OsStr) -> Option<ExitCode> {
    let task = Task::ALL.into_iter().find(|task| word == task.word())?;
    let done = stay(|descriptor| match task {
        Task::Agent => Box::pin(ocivisor_agent::resident::run(descriptor, |begun| match begun {
            Ok(document) => say(WELL, document),
            Err(document) => say(GONE, document),
        })),
        Task::Exec => Box::pin(super::exec::hold(descriptor, || say(WELL, ""))),
    });
    Some(match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&one_line(&error.to_string()), "");
            ExitCode::FAILURE
        }
    })
}

type Work = std::pin::Pin<Box<dyn Future<Output = Result<(), Error>>>>;

fn stay(work: impl FnOnce(OwnedFd) -> Work) -> Result<(), Error> {
    let failed = |e: io::Error| Error::new(ErrorKind::Host, format!("leave the session: {e}"));
    rustix::process::setsid().map_err(|e| failed(e.into()))?;
    let descriptor = io::stdin().as_fd().try_clone_to_owned().map_err(failed)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(failed)?;
    let done = runtime.block_on(work(descriptor));
    // Nothing that hangs on a dead share keeps it from ending.
    runtime.shutdown_background();
    done
}

/// Says the one line and what follows, if that was not done yet.
fn say(line: &str, rest: &str) {
    let mut stdout = io::stdout();
    // Whoever waited may be gone.
    let _ = write!(stdout, "{line}\n{rest}").and_then(|()| stdout.flush());
    if let Ok(null) = open("/dev/null", OFlags::RDWR, Mode::empty()) {
        let _ = rustix::stdio::dup2_stdout(null);
    }
}
