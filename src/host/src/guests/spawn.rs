//! Making a guest's processes: the runtime that becomes its shim, shims that adopt, sessions, tellings.
//!
//! Besides [`crate::command`] this is the only place that makes processes: these have no output, say on
//! a pipe what came of them, and all but tellings outlive us.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use ocivisor_core::error::{Error, ErrorKind, Result, one_line};
use ocivisor_core::ids::VmId;
use ocivisor_core::state::ProcessRef;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, read};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::HostGuests;
use super::sys::{Life, Passed, spawn_detached};

/// Longest creation of a guest and longest adoption.
const DEADLINE: Duration = Duration::from_secs(30);
/// Longest status line.
const MAX_LINE: usize = 4096;

/// What a status pipe says when all went well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// The guest's first process.
    pub init: ProcessRef,
    /// Its shim, the very process that was started.
    pub shim: ProcessRef,
}

impl HostGuests {
    /// Runs `ocivisor-runtime create` until it became the shim. On failure nothing of it is left
    /// but what is in the VM's control groups.
    pub(super) fn spawn_runtime(&self, id: &VmId) -> Result<Ready> {
        let settings = &self.settings;
        let run = settings.layout.run_vm(id);
        let mut command = quiet(&settings.runtime_bin);
        command.args(["create", "--id", id.as_str(), "--engine", settings.engine.name()]);
        command.arg("--bundle").arg(run.bundle()).arg("--root").arg(run.runtime());
        command.arg("--shim").arg(&settings.shim_bin);
        self.add_shim_options(&mut command, id);
        self.spawn(id, &settings.runtime_bin, command, &[], Life::Own, parse_ready)
    }

    /// Runs a shim for a guest whose own is gone.
    pub(super) fn spawn_shim(
        &self,
        id: &VmId,
        init: ProcessRef,
        start: &str,
        master: Option<BorrowedFd<'_>>,
    ) -> Result<Ready> {
        let mut command = quiet(&self.settings.shim_bin);
        command.args(["--adopt", "--init", &init.pid.to_string(), "--start", start]);
        command.args(["--start-ticks", &init.start_ticks.to_string()]);
        self.add_shim_options(&mut command, id);
        let master: Vec<_> = master.into_iter().map(|fd| ("--console-fd", fd)).collect();
        self.spawn(id, &self.settings.shim_bin, command, &master, Life::Own, parse_ready)
    }

    /// Options that runtime and shim share.
    fn add_shim_options(&self, command: &mut Command, id: &VmId) {
        let settings = &self.settings;
        let run = settings.layout.run_vm(id);
        command.arg("--vm-dir").arg(run.dir()).arg("--socket-dir").arg(run.sockets());
        command.arg("--log").arg(settings.layout.console_log(id));
        command.args(["--log-max", &settings.log_max.0.to_string()]);
        for procs in settings.cgroups.shim_procs(id) {
            command.arg("--cgroup-procs").arg(procs);
        }
        if let Some(group) = settings.console_group {
            command.args(["--group", &group.to_string()]);
        }
    }

    /// Starts `program` with descriptors named by options, and waits for its word, which `parse` reads.
    pub(super) fn spawn<T>(
        &self,
        id: &VmId,
        program: &Path,
        command: Command,
        descriptors: &[(&str, BorrowedFd<'_>)],
        life: Life,
        parse: fn(&str, u32) -> Option<T>,
    ) -> Result<T> {
        self.spawn_within(DEADLINE, id, program, command, descriptors, life, parse)
    }

    /// As [`Self::spawn`], with a time of its own for its word.
    #[expect(clippy::too_many_arguments, reason = "those of spawn")]
    pub(super) fn spawn_within<T>(
        &self,
        deadline: Duration,
        id: &VmId,
        program: &Path,
        mut command: Command,
        descriptors: &[(&str, BorrowedFd<'_>)],
        life: Life,
        parse: fn(&str, u32) -> Option<T>,
    ) -> Result<T> {
        let name = program.display();
        let failed = |what: &str, e: io::Error| {
            Error::new(ErrorKind::Host, format!("{what} {name} for guest {id}: {e}"))
        };
        let (status, theirs) =
            pipe_with(PipeFlags::CLOEXEC).map_err(|e| failed("make a pipe to", e.into()))?;
        let pass =
            |fd: BorrowedFd<'_>| Passed::new(fd).map_err(|e| failed("pass a descriptor to", e));
        let mut passed = vec![pass(theirs.as_fd())?];
        drop(theirs);
        command.args(["--status-fd", &passed[0].number()]);
        for (option, fd) in descriptors {
            let fd = pass(*fd)?;
            command.args([option, fd.number().as_str()]);
            passed.push(fd);
        }
        tracing::debug!(vm = %id, ?command, "starting");
        let spawned = spawn_detached(&mut command, passed, life);
        // Holds our end of the pipe for writing, without which it would never end.
        drop(command);
        let mut child = match spawned {
            Ok(child) => child,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let error = Error::new(ErrorKind::Unsupported, format!("{name} is not installed"));
                return Err(error.hint("reinstall ocivisor, its programs belong together"));
            }
            Err(e) => return Err(failed("start", e)),
        };
        match wait_ready(&status, &mut child, deadline, parse) {
            Ok(ready) => {
                super::adapter::lock(&self.children).push(child);
                Ok(ready)
            }
            Err(error) => {
                // Failing to kill means that it ended; either way it must be reaped.
                let _ = child.kill();
                let _ = child.wait();
                Err(error.context(format!("guest {id}")))
            }
        }
    }
}

pub(super) fn quiet(program: &Path) -> Command {
    #[expect(clippy::disallowed_methods, reason = "see the module's comment")]
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// Reads the status line: `ready …` or `error KIND MESSAGE`.
fn wait_ready<T>(
    status: &OwnedFd,
    child: &mut Child,
    patience: Duration,
    parse: fn(&str, u32) -> Option<T>,
) -> Result<T> {
    let deadline = Instant::now() + patience;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH);
    // Not reaped before the end of this function, so the number is its own.
    let pidfd = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
    let pidfd = pidfd.map_err(|e| Error::new(ErrorKind::Host, format!("watch its shim: {e}")))?;
    let mut line = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let wait = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let mut fds = [PollFd::new(status, PollFlags::IN), PollFd::new(&pidfd, PollFlags::IN)];
        match poll(&mut fds, Some(&wait)) {
            Ok(0) => {
                let what = format!("did not answer within {} s", patience.as_secs());
                return Err(Error::new(ErrorKind::Timeout, what));
            }
            // What it left behind may hold the pipe open: its own end counts as the pipe's.
            Ok(_) if fds[0].revents().is_empty() => return Err(died(child, &line)),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(e) => {
                return Err(Error::new(ErrorKind::Host, format!("wait for its shim: {e}")));
            }
        }
        let mut chunk = [0_u8; 512];
        match read(status, &mut chunk) {
            Ok(0) => return Err(died(child, &line)),
            Ok(n) => line.extend_from_slice(&chunk[..n]),
            Err(Errno::INTR) => continue,
            Err(e) => return Err(Error::new(ErrorKind::Host, format!("hear its shim: {e}"))),
        }
        if let Some(end) = line.iter().position(|&c| c == b'\n') {
            return parse_status(&String::from_utf8_lossy(&line[..end]), child.id(), parse);
        }
        if line.len() > MAX_LINE {
            return Err(Error::new(ErrorKind::Host, "its runtime talks without end"));
        }
    }
}

/// The pipe ended without a line: the process is dying or dead, and why is all that can be said.
fn died(child: &mut Child, said: &[u8]) -> Error {
    // It holds nothing of ours any more; should it hang nevertheless, it has no reason to live.
    let _ = child.kill();
    let how = child.wait().map_or_else(|e| e.to_string(), describe);
    let said = one_line(&String::from_utf8_lossy(said));
    let said = if said.is_empty() { String::new() } else { format!(", saying {said:?}") };
    Error::new(ErrorKind::Host, format!("its runtime ended without an answer ({how}){said}"))
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown".into(),
    }
}

fn parse_status<T>(line: &str, child: u32, parse: fn(&str, u32) -> Option<T>) -> Result<T> {
    let strange = || Error::new(ErrorKind::Host, format!("its runtime says {line:?}"));
    if let Some(rest) = line.strip_prefix("error ") {
        let (kind, message) = rest.split_once(' ').ok_or_else(strange)?;
        return Err(Error::new(ErrorKind::from_name(kind).ok_or_else(strange)?, message));
    }
    parse(line, child).ok_or_else(strange)
}

/// `ready INIT INITTICKS SHIMTICKS`; the shim is the very child.
fn parse_ready(line: &str, child: u32) -> Option<Ready> {
    let mut words = line.strip_prefix("ready ")?.split(' ');
    let mut number = || words.next()?.parse::<u64>().ok();
    let init = ProcessRef { pid: u32::try_from(number()?).ok()?, start_ticks: number()? };
    let shim = ProcessRef { pid: child, start_ticks: number()? };
    words.next().is_none().then_some(Ready { init, shim })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_lines_are_read_strictly() {
        let init = ProcessRef { pid: 7, start_ticks: 8 };
        let shim = ProcessRef { pid: 5, start_ticks: 9 };
        assert_eq!(parse_status("ready 7 8 9", 5, parse_ready).unwrap(), Ready { init, shim });
        let image = parse_status("error image no such user: x", 5, parse_ready).unwrap_err();
        assert_eq!((image.kind, image.message.as_str()), (ErrorKind::Image, "no such user: x"));
        for bad in
            ["", "ready", "ready 7 8", "ready 7 8 9 10", "ready -1 8 9", "error", "error x y"]
        {
            let error = parse_status(bad, 5, parse_ready).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Host, "{bad}");
            assert!(error.message.starts_with("its runtime says"), "{error}");
        }
    }
}
