//! From the host into a guest: the two processes between a session and its program.
//!
//! The first joins the guest's control groups and all its namespaces in one call by pidfd (setns(2)):
//! the user namespace with the others, so that the rest is checked with the rights there, and so
//! that the program is not left in the host's. The second is made from it with `CLONE_PARENT`: the
//! session can wait for it, and nothing of the host stays behind in the guest.
//!
//! Until execve(2) the second is a program of the host within sight of the guest. It cannot be
//! opened there, neither its memory nor `/proc/PID/exe` (CVE-2019-5736): it is not dumpable, so that
//! takes `CAP_SYS_PTRACE` in the user namespace its memory belongs to, which is the host's, because
//! that is where the program was started (ptrace(2), "Ptrace access mode checking"). And were it
//! opened, the file belongs to an id that no guest has, so it could not be written. A sealed copy in
//! memory would add nothing to that. execve(2) of the guest's program makes new memory that belongs
//! to the guest, with nothing of ours in it: every descriptor but the standard three closes.

use std::ffi::CString;
use std::fs;
use std::io::{self, IoSlice, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::sched::CloneFlags;
use oci_spec::runtime::{PosixRlimitType, Spec};
use rustix::fs::{CWD, FileType, Mode, OFlags, fchown, fstat, openat};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};

use super::request::Request;
use super::user::{self, User};
use crate::console::is_pty_master;
use crate::guest::Guest;
use crate::label::Label;
use crate::{embedded, sys};

/// Why there is no program, with the exit code that shells and Docker have for it.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// 125: ours; 126: cannot be run; 127: not found.
    pub code: u8,
    /// One line.
    pub message: String,
}

type Result<T> = std::result::Result<T, Refusal>;

fn ours(what: &str, error: impl std::fmt::Display) -> Refusal {
    Refusal { code: 125, message: format!("{what}: {error}") }
}

/// All that both processes need, gathered on the host.
#[derive(Debug)]
pub struct Entry<'a> {
    /// What to run.
    pub request: &'a Request,
    /// Where.
    pub guest: &'a Guest,
    /// Labels of the program.
    pub label: Option<&'a Label>,
    /// Where the session's ends of the standard streams go.
    pub streams: &'a OwnedFd,
}

/// In the first process: joins, and makes the second. Returns in both: the second's id, or `None`
/// in the second itself.
///
/// # Errors
/// The guest ends just now, or the kernel refuses.
pub fn join(entry: &Entry<'_>) -> Result<Option<u32>> {
    let guest = entry.guest;
    guest.groups.join_all(&guest.beside).map_err(|e| ours("join control groups", e))?;
    let namespaces = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    nix::sched::setns(guest.init.as_fd(), namespaces).map_err(|e| ours("enter the guest", e))?;
    // The host's root is nobody in there.
    sys::become_user(0, 0, &[]).map_err(|e| ours("become root of the guest", e))?;
    // Changing ids sets it by a setting of the host, so it is said after that.
    sys::set_dumpable(false).map_err(|e| ours("hide from the guest", e))?;
    match sys::fork_sibling().map_err(|e| ours("fork into the guest", e))? {
        sys::Fork::Child => Ok(None),
        sys::Fork::Parent(pid) => Ok(Some(pid.as_raw_nonzero().get().cast_unsigned())),
    }
}

/// In the second process: drops to the guest's profile and runs the program.
pub fn run(entry: &Entry<'_>) -> Refusal {
    match try_run(entry) {
        Ok(never) => match never {},
        Err(refusal) => refusal,
    }
}

fn try_run(entry: &Entry<'_>) -> Result<std::convert::Infallible> {
    let process =
        entry.guest.config.process().as_ref().ok_or_else(|| ours("configuration", "no process"))?;
    rustix::process::setsid().map_err(|e| ours("begin a session", e))?;
    let user = find_user(entry.request.user.as_deref().unwrap_or("0"))?;
    let workdir = entry.request.workdir.as_deref().map_or(process.cwd().as_path(), Path::new);
    std::env::set_current_dir(workdir)
        .map_err(|e| ours(&format!("change to {}", workdir.display()), e))?;
    // What is outside of the guest has no path in here (CVE-2024-21626).
    if !std::env::current_dir().is_ok_and(|here| here.is_absolute()) {
        return Err(ours(&format!("{}", workdir.display()), "is outside of the guest"));
    }
    let terminal = entry.request.tty.then(|| open_terminal(&user)).transpose()?;
    limit_files(process.rlimits().as_deref().unwrap_or_default())?;
    let confined = process.no_new_privileges() == Some(true);
    if !confined {
        // Without no_new_privs a filter takes CAP_SYS_ADMIN, which is about to be dropped.
        load_filter(&entry.guest.config)?;
    }
    let kept = capability_bits(&entry.guest.config);
    drop_privileges(&user, kept)?;
    if confined {
        rustix::thread::set_no_new_privs(true).map_err(|e| ours("set no_new_privs", e))?;
        load_filter(&entry.guest.config)?;
    }
    // Changing ids cleared it. The session's end is the program's end.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(|e| ours("set the death signal", e))?;
    match terminal {
        Some((master, terminal)) => {
            send(entry.streams, &[&master])?;
            install([&terminal, &terminal, &terminal])?;
            sys::take_terminal(&terminal).map_err(|e| ours("take the terminal", e))?;
        }
        None => {
            // Made here, so that they belong to the user, who may then reopen /dev/stdout.
            let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|e| ours("make a pipe", e));
            let ((in_read, in_write), (out_read, out_write), (err_read, err_write)) =
                (pipe()?, pipe()?, pipe()?);
            send(entry.streams, &[&in_write, &out_read, &err_read])?;
            install([&in_read, &out_write, &err_write])?;
        }
    }
    if let Some(label) = entry.label {
        label.apply().map_err(|e| ours("set the label of the program", e))?;
    }
    execute(entry.request, process.env().as_deref().unwrap_or_default(), &user)
}

/// The user by the guest's own files, read from within, where no link leads out.
fn find_user(text: &str) -> Result<User> {
    let passwd = read_regular("/etc/passwd")?;
    let group = read_regular("/etc/group")?;
    user::resolve(text, &passwd, &group).map_err(|e| Refusal { code: 126, message: e.to_string() })
}

/// A regular file of bounded size; nothing if it is missing or something else. A FIFO does not
/// block, and the guest's devices are harmless to open.
fn read_regular(path: &str) -> Result<Vec<u8>> {
    let flags =
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let Ok(file) = openat(CWD, path, flags, Mode::empty()) else {
        return Ok(Vec::new());
    };
    let stat = fstat(&file).map_err(|e| ours(path, e))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(Vec::new());
    }
    let mut bytes = Vec::new();
    let file = fs::File::from(file);
    io::Read::read_to_end(&mut io::Read::take(file, user::MAX_FILE), &mut bytes)
        .map_err(|e| ours(path, e))?;
    Ok(bytes)
}

/// A terminal of the guest's own devpts. The slave is taken by descriptor: the guest may have put
/// anything at its path.
fn open_terminal(user: &User) -> Result<(OwnedFd, OwnedFd)> {
    let flags =
        OFlags::RDWR | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let master = openat(CWD, "/dev/pts/ptmx", flags, Mode::empty())
        .map_err(|e| ours("open a terminal of the guest", e))?;
    if !is_pty_master(master.as_fd()) {
        return Err(ours("open a terminal of the guest", "/dev/pts/ptmx is something else"));
    }
    unlockpt(&master).map_err(|e| ours("unlock the terminal", e))?;
    let peer = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let terminal = ioctl_tiocgptpeer(&master, peer).map_err(|e| ours("open the terminal", e))?;
    fchown(&terminal, Some(rustix::fs::Uid::from_raw(user.uid)), None)
        .map_err(|e| ours("give the terminal to the user", e))?;
    Ok((master, terminal))
}

fn limit_files(limits: &[oci_spec::runtime::PosixRlimit]) -> Result<()> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    for limit in limits.iter().filter(|limit| limit.typ() == PosixRlimitType::RlimitNofile) {
        let wanted = Rlimit { current: Some(limit.soft()), maximum: Some(limit.hard()) };
        setrlimit(Resource::Nofile, wanted).map_err(|e| ours("limit open files", e))?;
    }
    Ok(())
}

fn load_filter(config: &Spec) -> Result<()> {
    let annotations = config.annotations().as_ref();
    let isolation = annotations.and_then(|all| all.get("org.ocivisor.isolation"));
    let filter = match config.linux().as_ref().and_then(|linux| linux.seccomp().as_ref()) {
        Some(filter) => filter,
        None if isolation.is_some_and(|name| name == "privileged") => return Ok(()),
        // All other guests of ours have one; without it nothing is run.
        None => return Err(ours("configuration", "no system call filter")),
    };
    libcontainer::seccomp::initialize_seccomp(filter)
        .map(|_| ())
        .map_err(|e| ours("load the system call filter", e))
}

/// Bits of the guest's bounding set. Names are those of linux/capability.h in its order.
fn capability_bits(config: &Spec) -> u64 {
    let process = config.process().as_ref();
    let sets = process.and_then(|process| process.capabilities().as_ref());
    let bounding = sets.and_then(|sets| sets.bounding().as_ref()).into_iter().flatten();
    let number = |capability: &oci_spec::runtime::Capability| {
        let name = capability.to_string();
        CAPABILITIES.iter().position(|known| *known == name)
    };
    bounding.filter_map(number).fold(0, |bits, number| bits | 1 << number)
}

/// By number, linux/capability.h.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

fn drop_privileges(user: &User, kept: u64) -> Result<()> {
    for number in 0..64_u8 {
        let keep = kept & 1 << number != 0;
        if !keep && !sys::drop_bounding(number).map_err(|e| ours("drop capabilities", e))? {
            break;
        }
    }
    sys::clear_ambient().map_err(|e| ours("drop ambient capabilities", e))?;
    // Leaving root clears permitted and effective; staying root does not.
    sys::become_user(user.uid, user.gid, &user.groups).map_err(|e| ours("become the user", e))?;
    let left = if user.uid == 0 { kept } else { 0 };
    sys::set_capabilities(left).map_err(|e| ours("set capabilities", e))
}

fn send(streams: &OwnedFd, ends: &[&OwnedFd]) -> Result<()> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = ends.iter().map(|fd| fd.as_fd()).collect();
    let fits = ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    let sent = sendmsg(streams, &[IoSlice::new(b"s")], &mut ancillary, SendFlags::NOSIGNAL);
    match sent {
        Ok(_) if fits => Ok(()),
        Ok(_) => Err(ours("hand over the streams", "too many")),
        Err(e) => Err(ours("hand over the streams", e)),
    }
}

fn install(streams: [&OwnedFd; 3]) -> Result<()> {
    for (number, stream) in (0..).zip(streams) {
        sys::install_fd(stream, number).map_err(|e| ours("install the streams", e))?;
    }
    Ok(())
}

fn execute(request: &Request, base: &[String], user: &User) -> Result<std::convert::Infallible> {
    let home = format!("HOME={}", user.home.as_deref().unwrap_or("/"));
    let mut env: Vec<&str> = Vec::new();
    for entry in base.iter().chain([&home]).chain(&request.env).map(String::as_str) {
        let name = entry.split_once('=').map_or(entry, |(name, _)| name);
        let same = |old: &&str| old.split_once('=').is_some_and(|(known, _)| known == name);
        env.retain(|old| !same(old));
        env.push(entry);
    }
    let path = env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or_default();
    let name = request.argv.first().map(String::as_str).unwrap_or_default();
    let program = embedded::find_program(name, path).map_err(|message| {
        let code = if message.contains("not executable") { 126 } else { 127 };
        Refusal { code, message }
    })?;
    let words = |texts: &mut dyn Iterator<Item = &str>| -> Result<Vec<CString>> {
        texts.map(|text| CString::new(text).map_err(|e| ours("argument", e))).collect()
    };
    let argv = words(&mut request.argv.iter().map(String::as_str))?;
    let env = words(&mut env.into_iter())?;
    let file =
        CString::new(program.as_os_str().as_encoded_bytes()).map_err(|e| ours("program", e))?;
    sys::close_all_on_exec().map_err(|e| ours("close descriptors", e))?;
    match nix::unistd::execve(&file, &argv, &env) {
        Ok(never) => Ok(never),
        Err(e) => Err(Refusal { code: 126, message: format!("{}: {e}", program.display()) }),
    }
}

/// Tells the session a line. In one write: the two processes share the pipe, and only writes of
/// less than `PIPE_BUF` bytes keep apart, pipe(7).
pub fn tell(report: &mut impl Write, what: &str) {
    let text: String =
        what.chars().map(|c| if c.is_control() { ' ' } else { c }).take(500).collect();
    // A session that is gone needs no answer.
    let _ = report.write_all(format!("{text}\n").as_bytes());
}

/// Tells the session why there is no program.
pub fn refuse(report: &mut impl Write, refusal: &Refusal) {
    tell(report, &format!("fail {} {}", refusal.code, refusal.message));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_become_bits_by_their_number() {
        let json = r#"{"ociVersion":"1.0.2","process":{"cwd":"/","user":{"uid":0,"gid":0},
            "capabilities":{"bounding":["CAP_CHOWN","CAP_SYS_ADMIN","CAP_CHECKPOINT_RESTORE"]}}}"#;
        let config: Spec = serde_json::from_str(json).unwrap();
        assert_eq!(capability_bits(&config), 1 | 1 << 21 | 1 << 40);
    }
}
