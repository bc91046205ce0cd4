//! Sessions in a running guest: each a process of `ocivisor-runtime` that serves one client on a
//! socket of its own, so that a session outlives the daemon that began it.

use std::fs::{self as stdfs, File};
use std::io::{Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ids::VmId;
use ocivisor_core::state::{GuestFacts, ProcessRef};
use ocivisor_shim::{facts, json};
use rustix::fs::{MemfdFlags, memfd_create};
use serde::Serialize;

use super::HostGuests;
use super::spawn::quiet;
use super::sys::Life;
use crate::fs::{self, io_error};
use crate::process;

/// Most sessions in one guest: a client that begins them without end hurts itself alone.
const MAX_SESSIONS: usize = 64;
/// Most that only wait for the end of what their command left running: each is a process of the host.
const MAX_LEFT: usize = 256;

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExecRequest {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// `NAME=value`, on top of the guest's own.
    pub env: Vec<String>,
    /// `user[:group]` of the guest; root if none.
    pub user: Option<String>,
    /// Absolute directory of the guest; its first process's if none.
    pub workdir: Option<String>,
    /// Whether on a terminal of its own.
    pub tty: bool,
    /// How long it may run, in milliseconds: then it and all of its session is killed, and its exit code
    /// is 124. Without limit if none.
    pub timeout_ms: Option<u64>,
    /// Whether to leave it alone once it runs: the client hears of the beginning only.
    pub detach: bool,
    /// Whether what it left in its session ends with it; else that goes on, and counts as a session.
    pub whole: bool,
}

/// Where the session's client is awaited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecSession {
    /// A Unix socket.
    pub socket: PathBuf,
    /// What the client must know.
    pub token: String,
}

/// Files to copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CopyRequest {
    /// Which way.
    pub direction: Direction,
    /// Absolute, in the guest.
    pub path: String,
    /// Out: whether a link at its end is followed.
    pub follow: bool,
    /// In: whether owners and set-id bits are kept.
    pub owners: bool,
    /// In: whether names are as they are, below a directory that is there.
    pub archive: bool,
}

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Into the guest.
    In,
    /// Out of the guest.
    Out,
}

/// As the runtime has it.
#[derive(Serialize)]
struct Copying<'a> {
    copy: &'a CopyRequest,
}

/// The request as the runtime reads it: on a descriptor, for command lines are public.
#[derive(Serialize)]
struct Wire<'a, R> {
    token: &'a str,
    #[serde(flatten)]
    request: &'a R,
}

impl HostGuests {
    /// Begins a session in a guest that runs.
    ///
    /// # Errors
    /// `Invalid`: no command, or texts that cannot be. `Exhausted`: too many sessions.
    pub fn begin_exec(
        &self,
        id: &VmId,
        facts: &GuestFacts,
        request: &ExecRequest,
    ) -> Result<ExecSession> {
        self.begin_session(id, facts, request)
    }

    /// Begins a session that copies files of a guest that runs.
    ///
    /// # Errors
    /// As [`HostGuests::begin_exec`].
    pub fn begin_copy(
        &self,
        id: &VmId,
        facts: &GuestFacts,
        request: &CopyRequest,
    ) -> Result<ExecSession> {
        self.begin_session(id, facts, &Copying { copy: request })
    }

    fn begin_session(
        &self,
        id: &VmId,
        facts: &GuestFacts,
        request: &impl Serialize,
    ) -> Result<ExecSession> {
        self.reap();
        let run = self.settings.layout.run_vm(id);
        self.ensure_sockets(id)?;
        let dir = run.sockets();
        let (left, busy): (Vec<_>, Vec<_>) =
            living(dir)?.into_iter().partition(|path| path.as_os_str().as_bytes().ends_with(LEFT));
        if busy.len() >= MAX_SESSIONS {
            let what = format!("vm {id} has {MAX_SESSIONS} exec sessions already");
            return Err(Error::new(ErrorKind::Exhausted, what).hint("end some of them"));
        }
        if left.len() >= MAX_LEFT {
            let what =
                format!("vm {id} has {MAX_LEFT} commands that ended and left something running");
            let hint = "end it, or let it close its standard output and error";
            return Err(Error::new(ErrorKind::Exhausted, what).hint(hint));
        }
        let token = random()?;
        let socket = dir.join(&token[..12]);
        let wire = serde_json::to_vec(&Wire { token: &token, request })
            .map_err(|e| Error::new(ErrorKind::Invalid, format!("exec in vm {id}: {e}")))?;
        let passed = in_memory("exec-request", &wire)
            .map_err(|e| io_error("keep the request of", &socket, &e))?;

        let mut command = quiet(&self.settings.runtime_bin);
        command.arg("exec").arg("--vm-dir").arg(run.dir()).arg("--socket").arg(&socket);
        command.args(["--init", &facts.init.pid.to_string()]);
        command.args(["--start-ticks", &facts.init.start_ticks.to_string()]);
        if let Some(group) = self.settings.console_group {
            command.args(["--group", &group.to_string()]);
        }
        for procs in self.settings.cgroups.shim_procs(id) {
            command.arg("--cgroup-procs").arg(procs);
        }
        let ready = |line: &str, _: u32| (line == "ready").then_some(());
        let descriptors = [("--request-fd", passed.as_fd())];
        self.spawn(id, &self.settings.runtime_bin, command, &descriptors, Life::Own, ready)?;
        Ok(ExecSession { socket, token })
    }
}

/// How the card of one that only hears out what is left ends.
const LEFT: &[u8] = b".left.json";

/// The cards of a VM's sessions: what names their processes, if it is whole.
pub(super) fn cards(dir: &Path) -> Vec<(PathBuf, Option<ProcessRef>)> {
    let entries = stdfs::read_dir(dir).into_iter().flatten().filter_map(std::io::Result::ok);
    let paths = entries.map(|entry| entry.path());
    let read = |path: &Path| {
        let value = json::parse(&fs::read_bounded(path, facts::MAX_FILE).ok()??)?;
        let pid = u32::try_from(value.number("pid")?).ok()?;
        Some(ProcessRef { pid, start_ticks: value.number("start_ticks")? })
    };
    let cards = paths.filter(|path| path.extension().is_some_and(|ext| ext == "json"));
    let whole = |path: PathBuf| {
        let process = read(&path);
        (path, process)
    };
    cards.map(whole).collect()
}

/// The cards of sessions that live, or are just about to say so. What one left that was killed goes.
fn living(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut living = Vec::new();
    for (card, process) in cards(dir) {
        if process.is_none_or(process::is_alive) {
            living.push(card);
            continue;
        }
        let socket = card.file_name().and_then(|name| name.to_str()?.split('.').next());
        if let Some(socket) = socket {
            fs::drop_file(&dir.join(socket))?;
        }
        fs::drop_file(&card)?;
    }
    Ok(living)
}

/// 32 hex digits that nobody guesses.
fn random() -> Result<String> {
    let path = Path::new("/dev/urandom");
    let mut bytes = [0_u8; 16];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut bytes));
    read.map_err(|e| io_error("read", path, &e))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A file without a name, at its beginning.
pub(super) fn in_memory(name: &str, bytes: &[u8]) -> std::io::Result<File> {
    let mut file = File::from(memfd_create(name, MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sessions_that_live_count() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let me = process::process_ref(std::process::id()).unwrap();
        let card = |ticks: u64| format!("{{\"pid\":{},\"start_ticks\":{ticks}}}\n", me.pid);
        for (name, text) in [
            ("alive.json", card(me.start_ticks)),
            ("left.left.json", card(me.start_ticks)),
            ("begins.json", String::new()),
            ("dead.json", card(me.start_ticks + 1)),
            ("dead", String::new()),
            ("gone.left.json", card(me.start_ticks + 1)),
            ("other", String::new()),
        ] {
            fs::replace(&at(name), text.as_bytes()).unwrap();
        }
        let mut found = living(dir.path()).unwrap();
        found.sort();
        assert_eq!(found, ["alive.json", "begins.json", "left.left.json"].map(at));
        let rest = stdfs::read_dir(dir.path()).unwrap();
        let mut rest: Vec<_> = rest.map(|entry| entry.unwrap().path()).collect();
        rest.sort();
        assert_eq!(rest, ["alive.json", "begins.json", "left.left.json", "other"].map(at));
        assert_eq!(living(&at("none")).unwrap(), Vec::<PathBuf>::new());
    }
}
