//! `exec`: one session in a running guest.
//!
//! Our own, because libcontainer's leaves the process in the host's user namespace: with the host's
//! root inside the guest's files, and the guest's programs as the host's root.
//!
//! The session listens on a Unix socket until the right client came: one that knows the token. Only
//! then does the program run. The socket is removed as soon as its client is there. What ends when, and
//! what goes on, is told in [`relay`]; a detached program has no client any more once it runs.
//!
//! ```text
//! exec --vm-dir D --init PID --start-ticks T --socket S [--group GID] [--cgroup-procs F]…
//!      --request-fd N --status-fd M
//! ```
//!
//! `S` gets a neighbour `S` with `.json` for its ending, which names this process while it lives; `.left.json` when
//! it only hears out what its program left running.
//! On the status descriptor comes `ready` or `error KIND MESSAGE`.

mod copy;
mod enter;
mod kill;
mod relay;
pub mod request;
#[path = "../../../host/src/guests/bundle/user.rs"]
mod user;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_frame::session::FromSession;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
    recvmsg, socketpair,
};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;

use crate::args::Options;
use crate::create::start_ticks;
use crate::guest::Guest;
use crate::label::Label;
use crate::{cgroup, hygiene, status, sys};
use enter::{Entry, Refusal};
use kill::{DEATH, reap};
use relay::{Session, Streams, Terms};
use request::{Direction, Request};

/// How long the client may take to come.
const CLIENT: Duration = Duration::from_secs(30);
/// How long one connection may take to send its token.
const TOKEN: Duration = Duration::from_secs(5);
/// How long the way into the guest may take; a guest can make its own files slow.
const ENTRY: Duration = Duration::from_secs(30);

/// The command line.
#[derive(Debug)]
struct Place {
    vm_dir: PathBuf,
    init: u32,
    start_ticks: u64,
    socket: PathBuf,
    group: Option<u32>,
    cgroup_procs: Vec<PathBuf>,
    request: RawFd,
    status: RawFd,
}

impl Place {
    fn parse(words: &[OsString]) -> Result<Self> {
        let mut options = Options::parse(words)?;
        let place = Self {
            vm_dir: options.path("vm-dir")?,
            init: options.parsed("init")?,
            start_ticks: options.parsed("start-ticks")?,
            socket: options.path("socket")?,
            group: options.optional_number("group")?,
            cgroup_procs: options.all("cgroup-procs").into_iter().map(PathBuf::from).collect(),
            request: options.parsed("request-fd")?,
            status: options.parsed("status-fd")?,
        };
        options.done()?;
        Ok(place)
    }
}

/// Runs the command to the end of the session.
pub fn main(words: &[OsString]) -> ExitCode {
    let place = match Place::parse(words) {
        Ok(place) => place,
        Err(e) => {
            status::complain(&status::line(&e));
            return ExitCode::from(2);
        }
    };
    let settled = hygiene::settle(&[place.request, place.status]);
    let (told, asked) = match (sys::inherited(place.status), sys::inherited(place.request)) {
        (Ok(told), Ok(asked)) => (told, asked),
        (Err(e), _) | (_, Err(e)) => {
            status::complain(&format!("--status-fd or --request-fd: {e}"));
            return ExitCode::from(2);
        }
    };
    let prepared = settled.and_then(|()| prepare(&place, asked));
    let (request, guest, mut door) = match prepared {
        Ok(prepared) => prepared,
        Err(e) => {
            status::report(told, &e);
            return ExitCode::FAILURE;
        }
    };
    // The caller, if it is gone, gave up on the session; nobody will come.
    let told = File::from(told).write_all(b"ready\n");
    let served = told.and_then(|()| serve(&request, &guest, &mut door));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            status::complain(&format!("session in {}: {e}", place.vm_dir.display()));
            ExitCode::FAILURE
        }
    }
}

fn prepare(place: &Place, asked: OwnedFd) -> Result<(Request, Guest, Door)> {
    let request = request::read(asked)?;
    for procs in &place.cgroup_procs {
        cgroup::join(procs)?;
    }
    // EPERM: leads a session already, as the daemon's spawner sees to.
    let _ = rustix::process::setsid();
    let guest = Guest::find(&place.vm_dir, place.init, place.start_ticks)?;
    let door = Door::open(place)?;
    Ok((request, guest, door))
}

/// The listening socket and what names this process; both are removed when dropped.
struct Door {
    listener: UnixListener,
    socket: PathBuf,
    card: PathBuf,
}

impl Door {
    fn open(place: &Place) -> Result<Self> {
        let (socket, card) = (place.socket.clone(), place.socket.with_extension("json"));
        let failed = |e: io::Error| {
            Error::new(ErrorKind::Host, format!("session socket {}: {e}", socket.display()))
        };
        let own = std::process::id();
        let ticks = start_ticks(own).unwrap_or_default();
        let mut file = File::create(&card).map_err(failed)?;
        file.write_all(format!("{{\"pid\":{own},\"start_ticks\":{ticks}}}\n").as_bytes())
            .map_err(failed)?;
        let listener = UnixListener::bind(&socket).map_err(failed)?;
        let door = Self { listener, socket: socket.clone(), card };
        // Closed until it has its group.
        let mode = |mode| fs::set_permissions(&socket, fs::Permissions::from_mode(mode));
        mode(0o600)
            .and_then(|()| place.group.map_or(Ok(()), |group| chown(&socket, None, Some(group))))
            .and_then(|()| mode(0o660))
            .map_err(failed)?;
        Ok(door)
    }

    /// Hears out what a program left running. That goes on for days, and is no session that anybody has.
    fn hear_out(&mut self, outputs: Vec<OwnedFd>) -> io::Result<()> {
        let left = self.socket.with_extension("left.json");
        // If it cannot be said, this counts as a session.
        if !outputs.is_empty() && rename_card(&self.card, &left).is_ok() {
            self.card = left;
        }
        relay::hear_out(outputs)
    }

    /// The first connection with the right token, and what came behind the token.
    fn admit(&self, token: &str) -> io::Result<(UnixStream, Vec<u8>)> {
        let deadline = Instant::now() + CLIENT;
        loop {
            if !ready(self.listener.as_fd(), deadline)? {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "no client came"));
            }
            let (mut client, _) = self.listener.accept()?;
            client.set_nonblocking(true)?;
            let until = deadline.min(Instant::now() + TOKEN);
            if let Ok(rest) = check_token(&mut client, token, until) {
                return Ok((client, rest));
            }
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "it names who lives; a crash ends that, so nothing is synced"
)]
fn rename_card(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)
}

impl Drop for Door {
    fn drop(&mut self) {
        // Best effort: the directory is removed with the guest.
        let _ = fs::remove_file(&self.socket);
        let _ = fs::remove_file(&self.card);
    }
}

/// Waits until something can be read; false if the deadline passed.
fn ready(fd: std::os::fd::BorrowedFd<'_>, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let wait = Timespec::try_from(left).unwrap_or_default();
        match poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&wait)) {
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
            Ok(n) => return Ok(n > 0),
        }
    }
}

fn check_token(client: &mut UnixStream, token: &str, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while bytes.len() <= token.len() {
        if !ready(client.as_fd(), deadline)? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut chunk = [0_u8; 1024];
        match client.read(&mut chunk)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => bytes.extend_from_slice(&chunk[..n]),
        }
    }
    let rest = bytes.split_off(token.len() + 1);
    let wanted = token.bytes().chain([b'\n']);
    // All bytes are looked at, so the time tells nothing of how many were right.
    let difference = bytes.iter().zip(wanted).fold(0, |sum, (got, want)| sum | (got ^ want));
    if difference == 0 { Ok(rest) } else { Err(io::ErrorKind::PermissionDenied.into()) }
}

fn serve(request: &Request, guest: &Guest, door: &mut Door) -> io::Result<()> {
    let (mut client, early) = door.admit(&request.token)?;
    // Nobody else needs the socket; the card stays, because this process does.
    fs::remove_file(&door.socket)?;
    let begun = match &request.copy {
        Some(wish) => Ok(copy::begin(wish, guest)?),
        None => begin(request, guest, &client)?,
    };
    // The program has the default; this process writes to it and to the client.
    sys::ignore_broken_pipes();
    match begun {
        Ok((program, streams)) if request.detach => {
            let mut last = Vec::new();
            FromSession::Exit(0).encode(&mut last);
            // A client that left has no say any more.
            let _ = relay::send_all(&mut client, &last, Instant::now() + TOKEN);
            drop(client);
            let mut outputs = streams.into_outputs()?;
            let groups = Some(&guest.groups);
            let attended = relay::attend(program, &mut outputs, request.limit(), groups);
            // What it left behind goes on in any case.
            let heard = door.hear_out(outputs);
            attended.and(heard)
        }
        Ok((program, streams)) => {
            let receives = |copy: &request::CopyRequest| copy.direction == Direction::In;
            let terms = Terms {
                limit: request.limit(),
                whole: request.whole,
                // What is not whole is taken away.
                tidies: request.copy.as_ref().is_some_and(receives),
                groups: Some(&guest.groups),
            };
            let (told, outputs) = Session::new(client, streams, early)?.run(program, terms);
            let heard = door.hear_out(outputs);
            told.and(heard)
        }
        Err(refusal) => {
            let mut last = Vec::new();
            let line = format!("ocivisor: {}\n", refusal.message);
            FromSession::Error(line.as_bytes()).encode(&mut last);
            FromSession::Exit(refusal.code).encode(&mut last);
            relay::send_all(&mut client, &last, Instant::now() + TOKEN)
        }
    }
}

/// Runs a program to its end, with nothing to read and nobody who listens.
///
/// # Errors
/// It could not be run, or failed, or not in time; then it was killed.
pub fn run_unheard(request: &Request, guest: &Guest, patience: Duration) -> io::Result<()> {
    let (client, _nobody) = UnixStream::pair()?;
    let (program, streams) =
        begin(request, guest, &client)?.map_err(|refusal| io::Error::other(refusal.message))?;
    let mut outputs = streams.into_outputs()?;
    match relay::attend(program, &mut outputs, Some(patience), Some(&guest.groups))? {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::other(format!("it ended with {code}"))),
        None => Err(io::ErrorKind::TimedOut.into()),
    }
}

type Begun = std::result::Result<(Pid, Streams), Refusal>;

/// Makes the program. It is a child of this process, in the guest. Given up if `client` hangs up.
fn begin(request: &Request, guest: &Guest, client: &UnixStream) -> io::Result<Begun> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let label = Label::of(&guest.config)?;
    let entry = Entry { request, guest, label: label.as_ref(), streams: &theirs };
    let first = match sys::fork()? {
        sys::Fork::Child => {
            let mut report = File::from(writer);
            match enter::join(&entry) {
                Ok(Some(pid)) => enter::tell(&mut report, &format!("pid {pid}")),
                Ok(None) => enter::refuse(&mut report, &enter::run(&entry)),
                Err(refusal) => enter::refuse(&mut report, &refusal),
            }
            sys::exit_now(0);
        }
        sys::Fork::Parent(first) => first,
    };
    drop(writer);
    let said = listen_to(reader, client);
    // It has said all it had to say, or hangs: in a group that the guest froze, it would for ever.
    let _ = rustix::process::kill_process(first, rustix::process::Signal::KILL);
    // If it cannot die there it is the guest's to keep, until it thaws.
    let _ = reap(first, DEATH);
    let said = said?;
    let program = said.lines().find_map(|line| line.strip_prefix("pid ")?.parse().ok());
    let program = program.and_then(Pid::from_raw);
    let refused = said.lines().find_map(|line| {
        let (code, message) = line.strip_prefix("fail ")?.split_once(' ')?;
        Some(Refusal { code: code.parse().ok()?, message: message.to_owned() })
    });
    let give_up = |refusal: Refusal| {
        if let Some(program) = program {
            // It may hang on a file of the guest; ESRCH: it does not.
            let _ = rustix::process::kill_process(program, rustix::process::Signal::KILL);
            let _ = reap(program, DEATH);
        }
        Ok(Err(refusal))
    };
    if let Some(refusal) = refused {
        return give_up(refusal);
    }
    match (program, receive_streams(&ours, request.tty)) {
        (Some(program), Ok(streams)) => Ok(Ok((program, streams))),
        (_, Err(e)) => give_up(Refusal { code: 125, message: format!("enter the guest: {e}") }),
        (None, Ok(_)) => {
            give_up(Refusal { code: 125, message: "enter the guest: no process".into() })
        }
    }
}

/// All that the two processes report, until both closed the pipe: one by its end, one by execve.
/// Stops early if the client hangs up or nothing comes in time.
fn listen_to(reader: OwnedFd, client: &UnixStream) -> io::Result<String> {
    let deadline = Instant::now() + ENTRY;
    let mut reader = File::from(reader);
    let mut said = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let wait = Timespec::try_from(left).unwrap_or_default();
        let mut fds = [
            PollFd::from_borrowed_fd(reader.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(client.as_fd(), PollFlags::empty()),
        ];
        let came = match poll(&mut fds, Some(&wait)) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
            Ok(came) => came,
        };
        let [report, hangup] = fds.map(|fd| !fd.revents().is_empty());
        if report {
            let mut chunk = [0_u8; 4096];
            match reader.read(&mut chunk)? {
                0 => return Ok(String::from_utf8_lossy(&said).into_owned()),
                n => said.extend_from_slice(&chunk[..n]),
            }
        } else if came == 0 || hangup {
            let why = if hangup { "the client left" } else { "the guest is too slow" };
            said.extend_from_slice(format!("\nfail 125 {why}\n").as_bytes());
            return Ok(String::from_utf8_lossy(&said).into_owned());
        }
    }
}

fn receive_streams(from: &OwnedFd, terminal: bool) -> io::Result<Streams> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0_u8; 1];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    recvmsg(from, &mut [io::IoSliceMut::new(&mut byte)], &mut ancillary, flags)?;
    let mut fds: Vec<OwnedFd> = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(more) = message {
            fds.extend(more);
        }
    }
    let mut fds = fds.into_iter();
    let odd = || io::Error::other("not the streams that were expected");
    let streams = match (terminal, fds.next(), fds.next(), fds.next()) {
        (true, Some(master), None, None) => Streams::Terminal(master),
        (false, Some(stdin), Some(stdout), Some(stderr)) => {
            Streams::Pipes { stdin, stdout, stderr }
        }
        _ => return Err(odd()),
    };
    Ok(streams)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_compared_whole_and_the_rest_is_kept() {
        let try_token = |bytes: &[u8]| {
            let (mut client, mut session) = UnixStream::pair().unwrap();
            client.write_all(bytes).unwrap();
            drop(client);
            check_token(&mut session, "0123456789abcdef", Instant::now() + TOKEN)
        };
        assert_eq!(try_token(b"0123456789abcdef\n\x02\0\0").unwrap(), b"\x02\0\0");
        for bad in [&b""[..], b"0123456789abcdef", b"0123456789abcdeX\n", b"0123456789abcdefg\n"] {
            assert!(try_token(bad).is_err(), "{bad:?}");
        }
    }
}
