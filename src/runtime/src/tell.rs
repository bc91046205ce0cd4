//! `tell`: writes what a guest is told about itself into its files, from within the guest.
//!
//! ```text
//! tell --vm-dir D --init PID --start-ticks T [--cgroup-procs F]… --telling-fd N [--disk-fd N] --status-fd M
//! ```
//!
//! Two processes. This one stays on the host and keeps the time. Its child joins the guest's control groups, user and
//! mount namespace, keeps the capabilities that files need and no other, and does the work (`ocivisor_context`): to
//! the guest's kernel objects it is the guest's own root, to the host nobody. As in `exec`, nothing of the host can
//! be reached through it from the guest: it is not dumpable, and its program belongs to an id that no guest has.
//!
//! The daemon that asked dies: this process dies with it, and its child with this one, so that the next telling is
//! alone at work. What an agent of the image does afterwards (`exec::run_unheard`) is not part of the telling.
//!
//! On the status descriptor comes `told JSON` or `error KIND MESSAGE`.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ocivisor_context::{Root, Telling, Told, patience, tell};
use ocivisor_core::error::{Error, ErrorKind, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, Signal, WaitOptions, kill_process, set_parent_process_death_signal, waitpid,
};
use serde::Serialize;

use crate::args::Options;
use crate::exec::{self, request::Request};
use crate::guest::Guest;
use crate::{cgroup, hygiene, status, sys};

/// How long an agent of the image may take afterwards; it may wait for the network.
const AGENT: Duration = Duration::from_secs(120);
/// And if it is only asked to begin (`systemctl --no-block`), which the answer waits for.
const ASKED: Duration = Duration::from_secs(5);
/// How long the child may take to die; a frozen group of cgroup v1 keeps it.
const DEATH: Duration = Duration::from_secs(2);
/// What the child keeps, by number in linux/capability.h: `CHOWN`, `DAC_OVERRIDE`, `FOWNER`, `FSETID`, and `SETGID`
/// and `SETUID` to work with a user's rights.
const CAPABILITIES: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7;
/// Most notes that are passed on, and their length: the line has a bound.
const MAX_NOTES: usize = 8;
const MAX_NOTE: usize = 300;
/// Most bytes that the child says.
const MAX_SAID: u64 = 1 << 20;

/// The command line.
#[derive(Debug)]
struct Place {
    vm_dir: PathBuf,
    init: u32,
    start_ticks: u64,
    cgroup_procs: Vec<PathBuf>,
    telling: RawFd,
    disk: Option<RawFd>,
    status: RawFd,
}

impl Place {
    fn parse(words: &[OsString]) -> Result<Self> {
        let mut options = Options::parse(words)?;
        let disk = options.optional_number("disk-fd")?;
        let place = Self {
            vm_dir: options.path("vm-dir")?,
            init: options.parsed("init")?,
            start_ticks: options.parsed("start-ticks")?,
            cgroup_procs: options.all("cgroup-procs").into_iter().map(PathBuf::from).collect(),
            telling: options.parsed("telling-fd")?,
            disk: disk.and_then(|fd| RawFd::try_from(fd).ok()),
            status: options.parsed("status-fd")?,
        };
        options.done()?;
        Ok(place)
    }
}

/// What is told to the caller.
#[derive(Serialize)]
struct Outcome<'a> {
    notes: Vec<&'a str>,
    /// Whether an agent of the image was called.
    agent: bool,
}

/// Runs the command.
pub fn main(words: &[OsString]) -> ExitCode {
    let place = match Place::parse(words) {
        Ok(place) => place,
        Err(e) => {
            status::complain(&status::line(&e));
            return ExitCode::from(2);
        }
    };
    let kept: Vec<RawFd> = [place.status, place.telling].into_iter().chain(place.disk).collect();
    let settled = hygiene::settle(&kept);
    let status = match sys::inherited(place.status) {
        Ok(status) => status,
        Err(e) => {
            status::complain(&format!("--status-fd {}: {e}", place.status));
            return ExitCode::from(2);
        }
    };
    match settled.and_then(|()| work(&place)) {
        Err(error) => {
            status::report(status, &error);
            ExitCode::FAILURE
        }
        Ok((guest, mut told)) => {
            if told.run.as_ref().is_some_and(|argv| argv.iter().any(|word| word == "--no-block")) {
                let argv = told.run.clone().unwrap_or_default();
                if let Err(e) = exec::run_unheard(&Request::of(argv.clone()), &guest, ASKED) {
                    told.notes.insert(0, format!("{}: {e}", argv.join(" ")));
                }
                answer(status, &told);
                return ExitCode::SUCCESS;
            }
            answer(status, &told);
            match told.run.map_or(Ok(()), |argv| call_agent(&guest, argv)) {
                Ok(()) => ExitCode::SUCCESS,
                Err(e) => {
                    status::complain(&format!("agent of {}: {e}", place.vm_dir.display()));
                    ExitCode::FAILURE
                }
            }
        }
    }
}

fn answer(status: OwnedFd, told: &Told) {
    let notes = told.notes.iter().take(MAX_NOTES);
    let notes = notes.map(|note| &note[..note.floor_char_boundary(MAX_NOTE)]).collect();
    let outcome = Outcome { notes, agent: told.run.is_some() };
    let json = serde_json::to_string(&outcome).unwrap_or_default();
    // A caller that is gone took us with it, or is told by the next telling.
    let _ = File::from(status).write_all(format!("told {json}\n").as_bytes());
}

fn call_agent(guest: &Guest, argv: Vec<String>) -> io::Result<()> {
    // The telling is done: whoever asked for it may go now.
    set_parent_process_death_signal(None)?;
    exec::run_unheard(&Request::of(argv), guest, AGENT)
}

fn work(place: &Place) -> Result<(Guest, Told)> {
    let passed = |fd: RawFd| {
        let taken = sys::inherited(fd).map(File::from);
        taken.map_err(|e| Error::new(ErrorKind::Invalid, format!("descriptor {fd}: {e}")))
    };
    let telling = Telling::read(passed(place.telling)?)?;
    let disk = place.disk.map(passed).transpose()?;
    let time = patience(disk.as_ref())?;
    for procs in &place.cgroup_procs {
        cgroup::join(procs)?;
    }
    let guest = Guest::find(&place.vm_dir, place.init, place.start_ticks)?;
    let failed = |what: &str, e: io::Error| Error::new(ErrorKind::Host, format!("{what}: {e}"));
    let (reader, writer) =
        pipe_with(PipeFlags::CLOEXEC).map_err(|e| failed("make a pipe", e.into()))?;
    let own = rustix::process::getpid();
    let child = match sys::fork().map_err(|e| failed("fork", e))? {
        sys::Fork::Child => {
            let said =
                match enter(&guest, own).and_then(|root| tell(&root, &telling, disk.as_ref())) {
                    Ok(told) => serde_json::to_string(&(told.notes, told.run)).unwrap_or_default(),
                    Err(error) => status::line(&error),
                };
            // The other side is there, or this process is being killed.
            let _ = File::from(writer).write_all(said.as_bytes());
            sys::exit_now(0);
        }
        sys::Fork::Parent(child) => child,
    };
    drop((writer, disk));
    let said = listen(reader, time).map_err(|e| failed("hear what was told", e));
    // It has said all it had to say, or is too slow.
    end(child);
    Ok((guest, understand(&said?)?))
}

/// In the child: into the guest.
fn enter(guest: &Guest, parent: Pid) -> Result<Root> {
    guest.enter_for_files(parent, CAPABILITIES)?;
    // setns(2) made the guest's root directory ours.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, "/", flags, Mode::empty());
    root.map(Root::new)
        .map_err(|e| Error::new(ErrorKind::Host, format!("open the guest's root: {e}")))
}

/// All that the child says, until it ends or the time is over.
fn listen(reader: OwnedFd, time: Duration) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + time;
    let mut reader = File::from(reader).take(MAX_SAID);
    let mut said = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let wait = Timespec::try_from(left).unwrap_or_default();
        match poll(&mut [PollFd::new(reader.get_ref(), PollFlags::IN)], Some(&wait)) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
            Ok(0) => {
                let what =
                    format!("the guest's files are too slow: not done in {} s", time.as_secs());
                return Ok(status::line(&Error::new(ErrorKind::Timeout, what)).into());
            }
            Ok(_) => {}
        }
        let mut chunk = [0_u8; 4096];
        match reader.read(&mut chunk)? {
            0 => return Ok(said),
            n => said.extend_from_slice(&chunk[..n]),
        }
    }
}

/// Kills the child and waits for it, but not for ever.
fn end(child: Pid) {
    // ESRCH cannot be: it is not reaped yet.
    let _ = kill_process(child, Signal::KILL);
    let gone = rustix::process::pidfd_open(child, rustix::process::PidfdFlags::empty());
    let wait = Timespec::try_from(DEATH).unwrap_or_default();
    if let Ok(gone) = gone {
        let _ = poll(&mut [PollFd::new(&gone, PollFlags::IN)], Some(&wait));
    }
    // Still there, it is stuck in the kernel, and killed with the VM's groups.
    let _ = waitpid(Some(child), WaitOptions::NOHANG);
}

fn understand(said: &[u8]) -> Result<Told> {
    if let Ok((notes, run)) = serde_json::from_slice(said) {
        return Ok(Told { notes, run });
    }
    let text = String::from_utf8_lossy(said);
    if text.starts_with("error ") {
        return Err(status::parse(&text));
    }
    let what = "it was killed while it was told: its memory limit may be too low";
    Err(Error::new(ErrorKind::Exhausted, what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_child_says_is_understood() {
        let told = Told { notes: vec!["a\nb".into()], run: Some(vec!["x".into()]) };
        let said = serde_json::to_vec(&(&told.notes, &told.run)).unwrap();
        assert_eq!(understand(&said).unwrap(), told);
        assert_eq!(understand(b"error image no").unwrap_err().kind, ErrorKind::Image);
        for cut in [&b""[..], b"[[\"a"] {
            assert_eq!(understand(cut).unwrap_err().kind, ErrorKind::Exhausted);
        }
    }
}
