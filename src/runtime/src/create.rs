//! `create`: makes a guest, then becomes its shim.
//!
//! This process stays the parent of all that is made (subreaper), so that on failure it can kill
//! whatever there is without knowing how far the OCI runtime came, and so that in the good case the
//! shim, which it becomes, can wait for the guest's first process.

use std::ffi::{CString, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use oci_spec::runtime::Spec;
use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ids::VmId;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait, waitpid};

use crate::args::Options;
use crate::cgroup::{self, Groups};
use crate::console::ConsoleSocket;
use crate::embedded::Embedded;
use crate::external::External;
use crate::runtime::{Created, Creation, Runtime, Start};
use crate::{hygiene, status, sys};

/// How long an OCI runtime may take. It only waits for the kernel; a minute covers hosts in trouble.
const DEADLINE: Duration = Duration::from_secs(60);
/// How long a creator whose connection for the console broke may take to say why it failed.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Number of the status descriptor in the shim.
const SHIM_STATUS: RawFd = 3;
/// Number of the terminal's master in the shim.
const SHIM_CONSOLE: RawFd = 4;
/// Most bytes of a configuration.
const MAX_CONFIG: u64 = 8 << 20;

/// The command line.
#[derive(Debug)]
struct Request {
    id: VmId,
    bundle: PathBuf,
    root: PathBuf,
    vm_dir: PathBuf,
    socket_dir: PathBuf,
    log: PathBuf,
    log_max: u64,
    engine: Engine,
    shim: PathBuf,
    cgroup_procs: Vec<PathBuf>,
    group: Option<u32>,
    status: RawFd,
}

#[derive(Debug)]
enum Engine {
    Embedded,
    External(PathBuf),
}

impl Request {
    fn parse(words: &[OsString]) -> Result<Self> {
        let mut options = Options::parse(words)?;
        let engine = options.required("engine")?;
        let request = Self {
            id: options.parsed("id")?,
            bundle: options.path("bundle")?,
            root: options.path("root")?,
            vm_dir: options.path("vm-dir")?,
            socket_dir: options.path("socket-dir")?,
            log: options.path("log")?,
            log_max: options.parsed("log-max")?,
            engine: match engine.to_str() {
                Some("embedded") => Engine::Embedded,
                Some("runc" | "crun") => Engine::External(engine.into()),
                _ => {
                    let what = format!("--engine is {engine:?}, not embedded, runc or crun");
                    return Err(Error::new(ErrorKind::Invalid, what));
                }
            },
            shim: options.path("shim")?,
            cgroup_procs: options.all("cgroup-procs").into_iter().map(PathBuf::from).collect(),
            group: options.optional_number("group")?,
            status: options.parsed("status-fd")?,
        };
        options.done()?;
        Ok(request)
    }
}

/// Runs the command; returns only on failure.
pub fn main(words: &[OsString]) -> ExitCode {
    let request = match Request::parse(words) {
        Ok(request) => request,
        Err(e) => {
            status::complain(&status::line(&e));
            return ExitCode::from(2);
        }
    };
    let settled = hygiene::settle(&[request.status]);
    let told = match sys::inherited(request.status) {
        Ok(status) => status,
        Err(e) => {
            status::complain(&format!("--status-fd {}: {e}", request.status));
            return ExitCode::from(2);
        }
    };
    let error = match settled.and_then(|()| create(&request)) {
        // The shim takes over all that is left, first of all this process.
        Ok((created, master)) => become_shim(&request, &created, &master, &told),
        Err(e) => e,
    };
    clear(&request);
    status::report(told, &error);
    ExitCode::FAILURE
}

/// Makes the guest's first process a child of this one.
fn create(request: &Request) -> Result<(Created, OwnedFd)> {
    let failed = |what: &str, e: io::Error| Error::new(ErrorKind::Host, format!("{what}: {e}"));
    for procs in &request.cgroup_procs {
        cgroup::join(procs)?;
    }
    // EPERM: leads a session already, as the daemon's spawner sees to.
    let _ = rustix::process::setsid();
    rustix::process::set_child_subreaper(Some(Pid::INIT))
        .map_err(|e| failed("become subreaper", e.into()))?;
    let config = load_config(&request.bundle)?;
    fs::create_dir_all(&request.root).map_err(|e| failed("make the runtime's directory", e))?;
    let console = ConsoleSocket::listen(&request.vm_dir)?;
    let (reader, writer) =
        pipe_with(PipeFlags::CLOEXEC).map_err(|e| failed("make a pipe", e.into()))?;
    match sys::fork().map_err(|e| failed("fork", e))? {
        sys::Fork::Child => {
            // libcontainer's process waits for its start with a copy of all that is open here, so
            // that nobody would ever see the end of the caller's pipe. This side uses none of it.
            let line = match sys::close_all_but(&[writer.as_raw_fd()])
                .map_err(|e| failed("close descriptors", e))
                .and_then(|()| run_engine(request, &config, console.path()))
            {
                Ok(created) => format!("ok {} {}\n", created.pid, created.start.argument()),
                Err(e) => format!("{}\n", status::line(&e)),
            };
            let sent = File::from(writer).write_all(line.as_bytes());
            sys::exit_now(u8::from(sent.is_err()));
        }
        sys::Fork::Parent(creator) => {
            drop(writer);
            let (line, master) = supervise(reader, &console)?;
            waitpid(Some(creator), WaitOptions::empty())
                .map_err(|e| failed("wait for the creator", e.into()))?;
            let created = parse_result(&line)?;
            let silent = || Error::new(ErrorKind::Host, "create guest: no console came");
            Ok((created, master.ok_or_else(silent)?))
        }
    }
}

/// Reads the configuration of a bundle.
///
/// # Errors
/// `Host`: missing or malformed.
pub fn load_config(bundle: &Path) -> Result<Spec> {
    let path = bundle.join("config.json");
    let bad = |e: &dyn std::fmt::Display| {
        Error::new(ErrorKind::Host, format!("read {}: {e}", path.display()))
    };
    // Whole, then parsed: serde_json reads a file byte by byte, which took longer than all the rest.
    let mut bytes = Vec::new();
    let read = File::open(&path).and_then(|file| file.take(MAX_CONFIG).read_to_end(&mut bytes));
    read.map_err(|e| bad(&e))?;
    serde_json::from_slice(&bytes).map_err(|e| bad(&e))
}

/// In the creator: settles the control groups, then lets the OCI runtime work.
fn run_engine(request: &Request, config: &Spec, console: &Path) -> Result<Created> {
    let incomplete = || Error::new(ErrorKind::Host, "configuration lacks linux.cgroupsPath");
    let linux = config.linux().as_ref().ok_or_else(incomplete)?;
    let groups = Groups::find(linux.cgroups_path().as_deref().ok_or_else(incomplete)?)?;
    groups.join_unmanaged()?;
    if let Some(root) = delegated_to(config) {
        groups.delegate(root)?;
    }
    let runtime: &dyn Runtime = match &request.engine {
        Engine::Embedded => {
            let rules = linux.resources().as_ref().and_then(|r| r.devices().as_deref());
            if let (true, Some(unified)) = (groups.is_unified(), groups.unified()) {
                cgroup::devices::restrict(unified, rules.unwrap_or_default())?;
            }
            &Embedded
        }
        Engine::External(program) => &External { program: program.clone() },
    };
    runtime.create(&Creation {
        id: request.id.as_str(),
        bundle: &request.bundle,
        root: &request.root,
        console_socket: console,
    })
}

/// The host id of the guest's root, if its configuration mounts control groups writable.
fn delegated_to(config: &Spec) -> Option<u32> {
    let mut mounts = config.mounts().iter().flatten();
    let writable = mounts.any(|mount| {
        let options = mount.options().as_deref().unwrap_or_default();
        mount.typ().as_deref() == Some("cgroup2") && !options.iter().any(|option| option == "ro")
    });
    let mappings = config.linux().as_ref()?.uid_mappings().as_deref()?;
    let root = mappings.iter().find(|mapping| mapping.container_id() == 0)?;
    writable.then(|| root.host_id())
}

/// Takes the console and the creator's result, a line, as they come. The end of the pipe tells only
/// of a creator that died: the guest's waiting process keeps the pipe open.
fn supervise(reader: OwnedFd, console: &ConsoleSocket) -> Result<(String, Option<OwnedFd>)> {
    let failed = |e: io::Error| Error::new(ErrorKind::Host, format!("wait for the runtime: {e}"));
    let mut deadline = Instant::now() + DEADLINE;
    let mut reader = File::from(reader);
    let mut line = Vec::new();
    let mut master = None;
    // A creator that fails drops its connection first and tells why a moment later.
    let mut no_console = None;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let wait = Timespec::try_from(left).unwrap_or_default();
        let wanted = master.is_none() && no_console.is_none();
        let listening = if wanted { PollFlags::IN } else { PollFlags::empty() };
        let (pipe, socket) = (reader.as_fd(), console.as_fd());
        let mut fds = [
            PollFd::from_borrowed_fd(pipe, PollFlags::IN),
            PollFd::from_borrowed_fd(socket, listening),
        ];
        match poll(&mut fds, Some(&wait)) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(failed(e.into())),
            Ok(0) => {
                if let Some(error) = no_console {
                    return Err(error);
                }
                let what =
                    format!("the OCI runtime did not finish within {} s", DEADLINE.as_secs());
                return Err(Error::new(ErrorKind::Timeout, what));
            }
            Ok(_) => {}
        }
        let [pipe_ready, socket_ready] = fds.map(|fd| !fd.revents().is_empty());
        if socket_ready && wanted {
            match console.receive() {
                Ok(received) => master = Some(received),
                Err(error) => {
                    no_console = Some(error);
                    deadline = deadline.min(Instant::now() + LAST_WORDS);
                }
            }
        }
        if pipe_ready {
            let mut chunk = [0_u8; 4096];
            let n = reader.read(&mut chunk).map_err(failed)?;
            line.extend_from_slice(&chunk[..n]);
            if n == 0 || line.ends_with(b"\n") {
                let done = line.starts_with(b"ok ");
                match no_console {
                    Some(error) if done || line.is_empty() => return Err(error),
                    // It was sent before the result.
                    None if done && master.is_none() => master = Some(console.receive()?),
                    _ => {}
                }
                return Ok((String::from_utf8_lossy(&line).trim_end().to_owned(), master));
            }
        }
    }
}

fn parse_result(line: &str) -> Result<Created> {
    let parsed = line.strip_prefix("ok ").and_then(|rest| {
        let (pid, start) = rest.split_once(' ')?;
        let start = match start.split_once(':')? {
            ("connect", path) => Start::Connect(path.into()),
            ("fifo", path) => Start::Fifo(path.into()),
            _ => return None,
        };
        Some(Created { pid: pid.parse().ok()?, start })
    });
    parsed.ok_or_else(|| status::parse(line))
}

/// Turns this process into the shim; returns what went wrong.
fn become_shim(request: &Request, created: &Created, master: &OwnedFd, told: &OwnedFd) -> Error {
    let failed = |what: &str, e: io::Error| Error::new(ErrorKind::Host, format!("{what}: {e}"));
    let Some(ticks) = start_ticks(created.pid) else {
        return Error::new(ErrorKind::GuestExited, "the guest's first process ended at once");
    };
    let mut argv: Vec<OsString> = vec![request.shim.clone().into()];
    let mut option = |name: &str, value: OsString| argv.extend([name.into(), value]);
    option("--vm-dir", request.vm_dir.clone().into());
    option("--socket-dir", request.socket_dir.clone().into());
    option("--log", request.log.clone().into());
    option("--log-max", request.log_max.to_string().into());
    option("--init", created.pid.to_string().into());
    option("--start-ticks", ticks.to_string().into());
    option("--console-fd", SHIM_CONSOLE.to_string().into());
    option("--status-fd", SHIM_STATUS.to_string().into());
    option("--start", created.start.argument().into());
    if let Some(group) = request.group {
        option("--group", group.to_string().into());
    }
    let words: std::result::Result<Vec<CString>, _> =
        argv.iter().map(|word| CString::new(word.as_bytes())).collect();
    let Ok(words) = words else {
        return Error::new(ErrorKind::Invalid, "a path for the shim holds a NUL byte");
    };
    // The status may sit on the console's number and the reverse, so both are copied away first.
    let copies = rustix::io::fcntl_dupfd_cloexec(master, 10)
        .and_then(|master| Ok((master, rustix::io::fcntl_dupfd_cloexec(told, 10)?)));
    let (master, told) = match copies {
        Ok(copies) => copies,
        Err(e) => return failed("copy descriptors", e.into()),
    };
    let installed = sys::close_all_on_exec()
        .and_then(|()| sys::install_fd(&told, SHIM_STATUS))
        .and_then(|()| sys::install_fd(&master, SHIM_CONSOLE));
    if let Err(e) = installed {
        return failed("pass descriptors to the shim", e);
    }
    match nix::unistd::execve(&words[0], &words, &[c"LC_ALL=C"]) {
        Ok(never) => match never {},
        Err(e) => failed(&format!("run {}", request.shim.display()), e.into()),
    }
}

/// Field 22 of /proc/PID/stat, proc(5); the command's name in parentheses may hold anything.
#[must_use]
pub fn start_ticks(pid: u32) -> Option<u64> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&stat);
    let after = &text[text.rfind(')')? + 1..];
    after.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}

/// After a failure: kills every descendant and removes the OCI runtime's state.
fn clear(request: &Request) {
    let own = format!("/proc/self/task/{}/children", std::process::id());
    // Killing one hands its children to this process, so until there are none.
    while let Ok(children) = fs::read_to_string(&own) {
        let pids = children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok());
        for pid in pids.filter_map(Pid::from_raw) {
            // ESRCH: a zombie, to be reaped now.
            let _ = kill_process(pid, Signal::KILL);
        }
        match wait(WaitOptions::empty()) {
            Err(rustix::io::Errno::INTR) | Ok(_) => {}
            Err(_) => break,
        }
    }
    let state = request.root.join(request.id.as_str());
    // Best effort: what is left is in the VM's run directory, which is removed as a whole, and the
    // first error is the one to report.
    let _ = fs::remove_dir_all(state);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(more: &[&str]) -> Vec<OsString> {
        let all = [
            "--id",
            "one-7",
            "--bundle",
            "/b",
            "--root",
            "/r",
            "--vm-dir",
            "/d",
            "--socket-dir",
            "/s",
            "--log",
            "/l",
            "--log-max",
            "5",
            "--engine",
            "embedded",
            "--shim",
            "/s",
            "--status-fd",
            "3",
        ];
        all.iter().chain(more).map(OsString::from).collect()
    }

    #[test]
    fn command_lines_are_read() {
        let request = Request::parse(&words(&[
            "--cgroup-procs",
            "/a",
            "--cgroup-procs",
            "/b",
            "--group",
            "44",
        ]))
        .unwrap();
        assert_eq!(request.cgroup_procs, [Path::new("/a"), Path::new("/b")]);
        assert_eq!((request.group, request.status, request.log_max), (Some(44), 3, 5));
        assert!(Request::parse(&words(&["--engine", "kata"])).is_err());
        assert!(Request::parse(&words(&["--id", "../x"])).is_err());
        assert!(Request::parse(&words(&["--more", "x"])).is_err());
    }

    #[test]
    fn results_of_the_creator_are_read() {
        let made = parse_result("ok 7 connect:/r/x y/notify.sock").unwrap();
        assert_eq!(made, Created { pid: 7, start: Start::Connect("/r/x y/notify.sock".into()) });
        assert_eq!(parse_result("error image no such program").unwrap_err().kind, ErrorKind::Image);
        for odd in ["", "ok", "ok x connect:/", "ok 7 other:/"] {
            assert_eq!(parse_result(odd).unwrap_err().kind, ErrorKind::Host);
        }
    }

    #[test]
    fn own_start_time_is_known() {
        assert!(start_ticks(std::process::id()).unwrap() > 0);
        assert_eq!(start_ticks(0), None);
    }

    /// What `supervise` makes of a creator that closes its connection and then says `last`.
    fn without_console(last: Option<&str>) -> Result<String> {
        let dir = tempfile::tempdir().unwrap();
        let console = ConsoleSocket::listen(dir.path()).unwrap();
        drop(std::os::unix::net::UnixStream::connect(console.path()).unwrap());
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let told = std::thread::scope(|scope| {
            let told = scope.spawn(|| supervise(reader, &console));
            // The socket is empty again as soon as the connection was looked at.
            while poll(&mut [PollFd::new(&console, PollFlags::IN)], Some(&Timespec::default()))
                != Ok(0)
            {
                std::thread::yield_now();
            }
            if let Some(last) = last {
                File::from(writer).write_all(last.as_bytes()).unwrap();
            } else {
                drop(writer);
            }
            told.join().unwrap()
        });
        told.map(|(line, _)| line)
    }

    #[test]
    fn why_a_guest_was_not_made_is_told_though_its_console_broke_before() {
        let why = "error host create guest: failed to prepare rootfs";
        assert_eq!(without_console(Some(&format!("{why}\n"))).unwrap(), why);
        let broken = "receive the console: no descriptor came";
        for last in [None, Some("ok 7 connect:/s\n")] {
            assert_eq!(without_console(last).unwrap_err().message, broken, "{last:?}");
        }
    }
}
