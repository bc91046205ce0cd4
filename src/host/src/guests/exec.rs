//! Sessions in a running guest: each a process of `ocivisor-runtime` that serves one client on a
//! socket of its own, so that a session outlives the daemon that began it.

use std::fs::{self as stdfs, File};
use std::io::{Read, Seek, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ids::VmId;
use ocivisor_core::state::GuestFacts;
use rustix::fs::{MemfdFlags, memfd_create};
use serde::Serialize;

use super::HostGuests;
use super::spawn::quiet;
use super::sys::Life;
use crate::fs::io_error;

/// Most sessions in one guest: a client that begins them without end hurts itself alone.
const MAX_SESSIONS: usize = 64;

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
        if sessions(dir) >= MAX_SESSIONS {
            let what = format!("vm {id} has {MAX_SESSIONS} exec sessions already");
            return Err(Error::new(ErrorKind::Exhausted, what).hint("end some of them"));
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

/// Sessions there, as their cards tell.
fn sessions(dir: &Path) -> usize {
    let entries = stdfs::read_dir(dir).map(|e| e.filter_map(std::io::Result::ok));
    let is_session = |e: &stdfs::DirEntry| e.path().extension().is_some_and(|ext| ext == "json");
    entries.map_or(0, |entries| entries.filter(is_session).count())
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
