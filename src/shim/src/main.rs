//! `ocivisor-shim`: stays with one guest, holds its terminal, logs what it prints, and writes down
//! how it ended. See the crate's library for what it is told, `server` for how it lives.
//!
//! It is the same process that created the guest, gone on by exec, so that the guest's first
//! process is its child; or, with `--adopt`, a later one that takes over from a shim that died.
//!
//! It makes no processes, starts no threads and never executes anything. Signals that ask it to end
//! are ignored: it ends when its guest did.

mod args;
mod conn;
mod files;
mod log;
mod server;
mod start;
mod tty;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::ExitCode;

use ocivisor_shim::client::socket_address;
use ocivisor_shim::facts::{self, Facts, Process, start_ticks};
use ocivisor_shim::sys;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, chmodat, chownat, open, renameat, unlinkat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with};
use rustix::process::{Pid, PidfdFlags, chdir, getpid, pidfd_open, set_child_subreaper, umask};

use crate::args::Args;
use crate::log::Log;
use crate::server::{Life, Server};
use crate::start::StartAction;
use crate::tty::Tty;

fn main() -> ExitCode {
    sys::ignore_signals();
    umask(Mode::RWXG | Mode::RWXO);
    let args = match Args::parse(std::env::args_os().skip(1)) {
        Ok(args) => args,
        Err(what) => {
            // Nobody may listen there; there is nobody else to tell.
            let _ = writeln!(io::stderr(), "ocivisor-shim: {what}");
            return ExitCode::from(2);
        }
    };
    let (mut status, console) = match inherit(&args) {
        Ok(fds) => fds,
        Err(e) => {
            let _ = writeln!(io::stderr(), "ocivisor-shim: inherited descriptors: {e}");
            return ExitCode::from(2);
        }
    };
    match set_up(&args, console) {
        Ok(mut server) => {
            let init = server.facts.init;
            let shim = server.facts.shim;
            let ready = format!("ready {} {} {}\n", init.pid, init.start_ticks, shim.start_ticks);
            tell(&mut status, &ready);
            drop((status, args));
            server.run();
            ExitCode::SUCCESS
        }
        Err(what) => {
            tell(&mut status, &format!("error host {what}\n"));
            ExitCode::FAILURE
        }
    }
}

/// Says it to whoever made us. If that one is gone meanwhile the guest stays as it is, and the next
/// daemon finds it by its files.
fn tell(status: &mut Option<File>, line: &str) {
    if let Some(status) = status {
        let _ = status.write_all(line.as_bytes());
    }
}

fn inherit(args: &Args) -> io::Result<(Option<File>, Option<OwnedFd>)> {
    let mut keep: Vec<_> = args.status.into_iter().chain(args.console).collect();
    sys::close_all_but(&mut keep)?;
    let status = args.status.map(sys::inherited_fd).transpose()?;
    let console = args.console.map(sys::inherited_fd).transpose()?;
    Ok((status.map(File::from), console))
}

/// Everything up to the first poll. On failure a guest of ours is killed: its creation failed.
fn set_up(args: &Args, console: Option<OwnedFd>) -> Result<Server, String> {
    let init = open_init(args.init)?;
    let server = build(args, console, init.try_clone().map_err(said("duplicate init's pidfd"))?);
    if server.is_err() && !args.adopt {
        // ESRCH: it ended by itself. Its new parent collects it, as we end as well.
        let _ = sys::send_signal(init.as_fd(), 9);
    }
    server
}

fn build(args: &Args, console: Option<OwnedFd>, init: OwnedFd) -> Result<Server, String> {
    for path in &args.cgroup_procs {
        let joined = open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
            .and_then(|file| rustix::io::write(&file, b"0"));
        joined.map_err(|e| format!("join {}: {e}", path.display()))?;
    }
    chdir("/").map_err(|e| format!("change to /: {e}"))?;
    set_child_subreaper(Some(getpid())).map_err(|e| format!("become subreaper: {e}"))?;
    let children = sys::child_signals().map_err(said("watch children"))?;
    let vm_dir = files::open_dir(&args.vm_dir)
        .map_err(|e| format!("open {}: {e}", args.vm_dir.display()))?;
    let socket_dir = files::open_dir(&args.socket_dir)
        .map_err(|e| format!("open {}: {e}", args.socket_dir.display()))?;
    let tty = console.map(Tty::new).transpose().map_err(said("take the console over"))?;
    let own = u32::try_from(getpid().as_raw_nonzero().get()).unwrap_or(0);
    let facts = Facts {
        shim: Process {
            pid: own,
            start_ticks: start_ticks(own).ok_or("own start time is unknown")?,
        },
        init: args.init,
        adopted: args.adopt,
        started: args.start == StartAction::None,
        console: tty.is_some(),
        start: args.start.to_text(),
    };
    // The socket first: who reads the facts may connect at once.
    let listener = serve_socket(&socket_dir, args.group)
        .map_err(|e| format!("listen on {}/{}: {e}", args.socket_dir.display(), facts::SOCKET))?;
    files::replace(&vm_dir, facts::FILE, facts.to_json().as_bytes())
        .map_err(|e| format!("write {}/{}: {e}", args.vm_dir.display(), facts::FILE))?;
    Ok(Server {
        vm_dir,
        facts,
        init,
        start: args.start.clone(),
        tty,
        log: Log::new(&args.log, args.log_max),
        last: Vec::new(),
        listener,
        children,
        conns: Vec::new(),
        life: Life::Lives,
        deaf_until: None,
    })
}

fn said(what: &'static str) -> impl Fn(io::Error) -> String {
    move |e| format!("{what}: {e}")
}

/// A pidfd of that very process: the start time, read after opening, proves that the number was not
/// reused.
fn open_init(init: Process) -> Result<OwnedFd, String> {
    let pid = i32::try_from(init.pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| format!("{} is no process id", init.pid))?;
    let fd = pidfd_open(pid, PidfdFlags::empty())
        .map_err(|e| format!("open the guest's first process {}: {e}", init.pid))?;
    if start_ticks(init.pid) != Some(init.start_ticks) {
        return Err(format!("process {} is not the guest's first process", init.pid));
    }
    Ok(fd)
}

/// The listening socket, put in place only when owner and mode are right, and in place of that of
/// a shim before us.
fn serve_socket(dir: &OwnedFd, group: Option<u32>) -> Result<UnixListener, Errno> {
    let temporary = "shim.sock.new";
    match unlinkat(dir, temporary, AtFlags::empty()) {
        Err(e) if e != Errno::NOENT => return Err(e),
        _ => {}
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    bind(&socket, &socket_address(dir, temporary.as_ref()).map_err(|_| Errno::NAMETOOLONG)?)?;
    listen(&socket, 128)?;
    let group = group.map(Gid::from_raw);
    chownat(dir, temporary, None, group, AtFlags::SYMLINK_NOFOLLOW)?;
    let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::WGRP;
    chmodat(dir, temporary, mode, AtFlags::empty())?;
    renameat(dir, temporary, dir, facts::SOCKET)?;
    Ok(UnixListener::from(socket))
}
