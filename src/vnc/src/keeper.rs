//! The keeper: the process that stays root, so that the server need not be.
//!
//! It does four things. It connects to the shim when the server asks, and hands the connection over once it is attached.
//! It writes down who it is, so that the next daemon finds it. It ends both processes when it is told to. And should the
//! server die (which would be a defect that somebody found), it makes a new one, after a pause that grows.
//!
//! It reads nothing from network or guest: single questions of the server ([`crate::gate`]), and one line of the shim.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use ocivisor_shim::client::{Client, ClientError};
use ocivisor_shim::facts::{Process, start_ticks};
use ocivisor_shim::message::{Access, Code, Size};
use ocivisor_shim::sys::{close_all_but, inherited_fd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Pid, PidfdFlags, WaitOptions, chdir, getpid, pidfd_open, umask, waitpid};
use zeroize::Zeroizing;

use crate::args::Args;
use crate::confine;
use crate::console::{Console, shim_size};
use crate::gate::{self, Answer, Question};
use crate::journal::Journal;
use crate::record::{Home, Record};
use crate::rfb::auth::{MAX_PASSWORD, Password, Secret};
use crate::server::Server;
use crate::sys;

/// Longest step of a conversation with the shim.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest way of a server into confinement.
const CONFINING: Duration = Duration::from_secs(10);
/// Pauses after a server died: the first, and the longest.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];
/// A server that lived so long did not die of the same thing again.
const LONG_LIFE: Duration = Duration::from_secs(600);

/// The program, from its arguments to its end.
#[must_use]
pub fn main(args: &Args) -> ExitCode {
    sys::ignore_signals();
    umask(Mode::RWXG | Mode::RWXO);
    let inherited = match Inherited::take(args) {
        Ok(inherited) => inherited,
        Err(e) => {
            // There is nobody else to tell.
            let _ = writeln!(io::stderr(), "ocivisor-vnc: inherited descriptors: {e}");
            return ExitCode::from(2);
        }
    };
    let Inherited { listeners, password, mut status } = inherited;
    let mut tell = |line: &str| {
        if let Some(status) = &mut status {
            // If the starter is gone meanwhile, the record tells whoever comes.
            let _ = status.write_all(line.as_bytes());
        }
    };
    match Keeper::set_up(args, listeners, password) {
        Ok(mut keeper) => {
            let own = keeper.record.keeper;
            tell(&format!("ready {} {}\n", own.pid, own.start_ticks));
            drop(status);
            let ended = keeper.run();
            // The directory may be gone; what matters is that nobody finds a record that lies.
            let _ = keeper.home.remove();
            ended
        }
        Err(what) => {
            tell(&format!("error host {}\n", what.replace(char::is_control, " ")));
            let _ = writeln!(io::stderr(), "ocivisor-vnc {}: {what}", args.name);
            ExitCode::FAILURE
        }
    }
}

/// What the starter left open for us.
struct Inherited {
    listeners: Vec<TcpListener>,
    password: Option<File>,
    status: Option<File>,
}

impl Inherited {
    fn take(args: &Args) -> io::Result<Self> {
        let numbers = args.listeners.iter().copied();
        let mut keep: Vec<_> = numbers.clone().chain(args.status).chain(args.password).collect();
        let given = keep.len();
        keep.sort_unstable();
        keep.dedup();
        if keep.len() != given {
            return Err(io::Error::new(ErrorKind::InvalidInput, "one number is given twice"));
        }
        close_all_but(&mut keep)?;
        let file = |fd: Option<_>| fd.map(inherited_fd).transpose().map(|fd| fd.map(File::from));
        let (password, status) = (file(args.password)?, file(args.status)?);
        let listeners = numbers.map(|fd| inherited_fd(fd).map(TcpListener::from));
        Ok(Self { listeners: listeners.collect::<io::Result<_>>()?, password, status })
    }
}

/// Where the kernel names the host's boot (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

fn host_boot() -> io::Result<String> {
    Ok(std::fs::read_to_string(BOOT_ID)?.trim().to_owned())
}

struct Keeper<'a> {
    args: &'a Args,
    listeners: Vec<TcpListener>,
    secret: Secret,
    record: Record,
    home: Home,
    signals: SignalFd,
    server: Option<Running>,
    journal: Journal,
    pause: Duration,
}

/// A server that runs.
struct Running {
    pid: Pid,
    pidfd: OwnedFd,
    gate: OwnedFd,
    since: Instant,
    /// What it was handed last: to look, and to type. It has one of each; an intruder who asks for more and more must
    /// not fill the shim with connections of root, which would keep the daemon out.
    handed: [Option<UnixStream>; 2],
}

impl Running {
    /// Ends what it was handed, one kind or all.
    fn hang_up(&mut self, kinds: std::ops::Range<usize>) {
        for stream in self.handed[kinds].iter_mut().filter_map(Option::take) {
            // It may be at its end already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl<'a> Keeper<'a> {
    /// Everything up to the first client. On failure nothing is left.
    fn set_up(
        args: &'a Args,
        listeners: Vec<TcpListener>,
        password: Option<File>,
    ) -> Result<Self, String> {
        for path in &args.cgroup_procs {
            let joined = open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
                .and_then(|file| rustix::io::write(&file, b"0"));
            joined.map_err(|e| format!("join {}: {e}", path.display()))?;
        }
        chdir("/").map_err(|e| format!("change to /: {e}"))?;
        let secret = match password {
            None => Secret::None,
            Some(pipe) => Secret::Password(read_password(pipe)?),
        };
        let home =
            Home::open(&args.vm_dir).map_err(|e| format!("open {}: {e}", args.vm_dir.display()))?;
        let mut listen = Vec::new();
        for listener in &listeners {
            let awaits = rustix::net::sockopt::socket_acceptconn(listener).map_err(io::Error::from);
            let known = awaits.and_then(|awaits| match awaits {
                true => listener.set_nonblocking(true).and_then(|()| listener.local_addr()),
                false => Err(ErrorKind::InvalidInput.into()),
            });
            listen.push(known.map_err(|e| format!("take a listening socket over: {e}"))?);
        }
        let pid = u32::try_from(getpid().as_raw_nonzero().get()).unwrap_or(0);
        let start_ticks = start_ticks(pid).ok_or("own start time is unknown")?;
        let record = Record {
            keeper: Process { pid, start_ticks },
            listen,
            password: matches!(secret, Secret::Password(_)),
            host_boot: host_boot().map_err(|e| format!("read {BOOT_ID}: {e}"))?,
        };
        let signals = signals().map_err(|e| format!("listen to signals: {e}"))?;
        confine::keeper().map_err(|e| e.to_string())?;
        let journal = Journal::new(&args.name, Instant::now());
        let pause = PAUSES[0];
        let mut keeper =
            Self { args, listeners, secret, record, home, signals, server: None, journal, pause };
        let server = keeper.start().map_err(|e| format!("start the server: {e}"))?;
        keeper.server = Some(server);
        let named = |e| format!("write {}/vnc.json: {e}", args.vm_dir.display());
        let written = keeper.home.write(&keeper.record).map_err(named);
        let confined = written.and_then(|()| confine::filter_keeper().map_err(|e| e.to_string()));
        if confined.is_err() {
            keeper.stop();
            // Best effort; the first error matters.
            let _ = keeper.home.remove();
        }
        confined.map(|()| keeper)
    }

    fn run(&mut self) -> ExitCode {
        loop {
            let Some(server) = &self.server else {
                if self.told_to_end(self.pause) {
                    return ExitCode::SUCCESS;
                }
                self.pause = (self.pause * 2).min(PAUSES[1]);
                match self.start() {
                    Ok(server) => self.server = Some(server),
                    Err(e) => self.say(&format!("cannot start the server: {e}")),
                }
                continue;
            };
            let mut fds = [
                PollFd::new(&self.signals, PollFlags::IN),
                PollFd::new(&server.gate, PollFlags::IN),
                PollFd::new(&server.pidfd, PollFlags::IN),
            ];
            if poll(&mut fds, None).is_err() {
                // Interrupted.
                continue;
            }
            let [signal, asked, ended] = fds.map(|fd| !fd.revents().is_empty());
            if signal {
                self.stop();
                return ExitCode::SUCCESS;
            }
            if ended {
                self.bury();
            } else if asked && self.answer().is_err() {
                // It asked for what there is not, or closed the gate: it cannot go on, and must not.
                self.stop();
                self.say("the server misbehaved");
            }
        }
    }

    /// Waits so long for a signal that asks to end.
    fn told_to_end(&self, most: Duration) -> bool {
        let deadline = Instant::now() + most;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let seconds = left.as_secs().try_into().unwrap_or(i64::MAX);
            let timeout = Timespec { tv_sec: seconds, tv_nsec: left.subsec_nanos().into() };
            let mut fds = [PollFd::new(&self.signals, PollFlags::IN)];
            match poll(&mut fds, Some(&timeout)) {
                Ok(0) => return false,
                Ok(_) => return true,
                // Interrupted.
                Err(_) => {}
            }
        }
    }

    /// Makes a server and waits until it is confined.
    fn start(&self) -> io::Result<Running> {
        let (gate, far) = gate::pair()?;
        let Some(pid) = sys::fork()? else {
            drop(gate);
            self.serve(&far);
        };
        drop(far);
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        let running = Running { pid, pidfd, gate, since: Instant::now(), handed: [None, None] };
        let ready = wait_for(&running.gate, CONFINING).and_then(|()| gate::question(&running.gate));
        let refused = match ready {
            Ok(Question::Ready) => return Ok(running),
            Ok(Question::Failed(why)) => io::Error::other(why),
            Ok(Question::Look | Question::Type(_)) => ErrorKind::InvalidData.into(),
            Err(e) => e,
        };
        end(&running);
        Err(refused)
    }

    /// The life of the server, in its own process, which ends with it.
    fn serve(&self, gate: &OwnedFd) -> ! {
        let ended = self.try_serve(gate);
        if let Err(why) = &ended {
            // If the keeper is gone there is nobody to tell.
            let _ = gate::ask(gate, &Question::Failed(why.clone()));
        }
        #[expect(clippy::disallowed_methods, reason = "what this copy would drop is the keeper's")]
        std::process::exit(i32::from(ended.is_err()))
    }

    fn try_serve(&self, gate: &OwnedFd) -> Result<(), String> {
        let listeners: Result<Vec<_>, _> =
            self.listeners.iter().map(TcpListener::try_clone).collect();
        let listeners = listeners.map_err(|e| format!("take the listening sockets: {e}"))?;
        let gate = gate.try_clone().map_err(|e| format!("take the gate: {e}"))?;
        let mut keep: Vec<_> = listeners.iter().map(AsRawFd::as_raw_fd).collect();
        keep.push(gate.as_raw_fd());
        // All that is the keeper's, its directory and signals. Nothing here drops or uses them any more.
        close_all_but(&mut keep).map_err(|e| format!("close what is the keeper's: {e}"))?;
        SigSet::empty().thread_set_mask().map_err(|e| format!("unblock signals: {e}"))?;
        confine::server(self.args.uid, self.args.gid).map_err(|e| e.to_string())?;
        gate::ask(&gate, &Question::Ready).map_err(|e| format!("reach the keeper: {e}"))?;
        let console = Console::new(gate, Instant::now());
        let mut server = Server::new(listeners, console, self.secret.clone(), &self.args.name);
        // It ends when the keeper did, and then nobody wants to know.
        let _ = server.run();
        Ok(())
    }

    /// Answers the server's question.
    fn answer(&mut self) -> io::Result<()> {
        let Some(mut server) = self.server.take() else { return Ok(()) };
        let answered = self.answer_to(&mut server);
        self.server = Some(server);
        answered
    }

    fn answer_to(&self, server: &mut Running) -> io::Result<()> {
        let (kind, access, size) = match gate::question(&server.gate)? {
            Question::Look => (0, Access::Read, Size::default()),
            Question::Type(size) => (1, Access::Write, shim_size(size)),
            Question::Ready | Question::Failed(_) => return Err(ErrorKind::InvalidData.into()),
        };
        // The one before first, else it would be in the way of the role.
        server.hang_up(kind..kind + 1);
        let answer = self.attach(access, size);
        if let Answer::Here(stream) = &answer {
            server.handed[kind] = Some(stream.try_clone()?.into());
        }
        gate::answer(&server.gate, &answer)
    }

    fn attach(&self, access: Access, size: Size) -> Answer {
        let Ok(client) = Client::connect(&self.args.socket, PATIENCE) else { return Answer::Away };
        let replay = access == Access::Read;
        match client.attach(access, size, replay) {
            Ok(console) if access == Access::Write && !console.writes() => Answer::Busy,
            Ok(console) => Answer::Here(console.into_stream().0.into()),
            Err(ClientError::Refused(refusal)) if refusal.code == Code::NoConsole => {
                Answer::NoConsole
            }
            Err(_) => Answer::Away,
        }
    }

    /// Collects a server that ended by itself.
    fn bury(&mut self) {
        let Some(mut server) = self.server.take() else { return };
        server.hang_up(0..2);
        let status = waitpid(Some(server.pid), WaitOptions::empty());
        let how = match status.ok().flatten().map(|(_, status)| status) {
            Some(status) if status.signaled() => {
                format!("by signal {:?}", status.terminating_signal())
            }
            Some(status) => format!("with code {:?}", status.exit_status()),
            None => "somehow".to_owned(),
        };
        if server.since.elapsed() >= LONG_LIFE {
            self.pause = PAUSES[0];
        }
        let pause = self.pause.as_secs();
        self.say(&format!("the server ended {how}; another one follows in {pause} s"));
    }

    /// Ends the server.
    fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.hang_up(0..2);
            end(&server);
        }
    }

    fn say(&mut self, what: &str) {
        self.journal.say(what, Instant::now());
    }
}

fn end(server: &Running) {
    // Both fail only if it ended already.
    let _ = rustix::process::pidfd_send_signal(&server.pidfd, rustix::process::Signal::KILL);
    let _ = waitpid(Some(server.pid), WaitOptions::empty());
}

/// SIGTERM and SIGINT, to be read instead of suffered.
fn signals() -> nix::Result<SignalFd> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.add(Signal::SIGINT);
    set.thread_block()?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

fn read_password(mut pipe: File) -> Result<Password, String> {
    // One more, to see that it is too long.
    let mut text = Zeroizing::new([0; MAX_PASSWORD + 1]);
    let mut length = 0;
    while length < text.len() {
        let read = wait_for(&pipe, CONFINING).and_then(|()| pipe.read(&mut text[length..]));
        match read {
            Ok(0) => break,
            Ok(n) => length += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(format!("read the password: {e}")),
        }
    }
    Password::new(&text[..length]).map_err(|e| e.to_string())
}

fn wait_for(fd: &impl AsFd, most: Duration) -> io::Result<()> {
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    let timeout = Timespec { tv_sec: most.as_secs().try_into().unwrap_or(1), tv_nsec: 0 };
    match poll(&mut fds, Some(&timeout))? {
        0 => Err(ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}
