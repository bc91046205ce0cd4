//! sshd of all hosts, and the sudo of their users: root's part of a cloud whose scripts are the platform's user.
//!
//! Whoever asks sends the host's name and a command, and its own standard streams, over a socket that only that user and
//! root may use; what comes back is the command's status.

use std::io::{IoSlice, IoSliceMut, PipeReader, PipeWriter, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::chown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

/// Number of the platform's user on all machines, and of its own group.
pub const ONEADMIN: u32 = 54_321;
/// Number of the group that may operate VMs, of which it is a member.
pub const OPERATORS: u32 = 54_322;

/// The socket, below the directory of all.
const SOCKET: &str = "sshd.sock";
/// What the platform's user may do by sudo.
const BY_SUDO: [&str; 2] = ["ip", "link"];

/// What is asked.
#[derive(Debug, Serialize, Deserialize)]
pub struct Order {
    /// The host.
    pub host: String,
    /// The words, of sudo; else one text for the user's shell.
    pub words: Vec<String>,
    /// Whether root is to do it.
    pub sudo: bool,
}

/// Gives a tree to the platform's user.
///
/// # Panics
/// It is not there.
pub fn give(tree: &Path) {
    ocivisor_tests::tool(&[
        "chown",
        "-hR",
        &format!("{ONEADMIN}:{ONEADMIN}"),
        &tree.display().to_string(),
    ]);
}

/// Opens the socket, for the hosts of that directory.
///
/// # Panics
/// It cannot be made.
pub fn open(root: &Path) {
    let path = root.join(SOCKET);
    let listener = UnixListener::bind(&path).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    chown(&path, Some(ONEADMIN), Some(ONEADMIN)).unwrap();
    let root = root.to_owned();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let root = root.clone();
            std::thread::spawn(move || {
                let status = serve(&stream, &root).unwrap_or(255);
                // Whoever asked may be gone.
                let _gone = (&stream).write_all(&[status]);
            });
        }
    });
}

/// Whether there is one.
#[must_use]
pub fn is_open(root: &Path) -> bool {
    root.join(SOCKET).exists()
}

/// Has a command run with these streams: its status.
///
/// # Errors
/// Nobody answers.
pub fn order(root: &Path, order: &Order, streams: [BorrowedFd<'_>; 3]) -> std::io::Result<u8> {
    ended(&send(root, order, streams)?)
}

/// The same with pipes for input and output, which only the command holds then.
///
/// # Errors
/// Nobody answers.
pub fn order_with(
    root: &Path,
    order: &Order,
    input: PipeReader,
    output: PipeWriter,
) -> std::io::Result<u8> {
    let stream = send(root, order, [input.as_fd(), output.as_fd(), std::io::stderr().as_fd()])?;
    drop((input, output));
    ended(&stream)
}

fn send(root: &Path, order: &Order, streams: [BorrowedFd<'_>; 3]) -> std::io::Result<UnixStream> {
    let mut stream = UnixStream::connect(root.join(SOCKET))?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&streams)) {
        return Err(std::io::Error::other("no room for three descriptors"));
    }
    sendmsg(&stream, &[IoSlice::new(b"-")], &mut control, SendFlags::NOSIGNAL)?;
    stream.write_all(serde_json::to_string(order)?.as_bytes())?;
    stream.shutdown(std::net::Shutdown::Write)?;
    Ok(stream)
}

fn ended(mut stream: &UnixStream) -> std::io::Result<u8> {
    let mut status = [255];
    stream.read_exact(&mut status)?;
    Ok(status[0])
}

fn serve(stream: &UnixStream, root: &Path) -> std::io::Result<u8> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut first = [0];
    recvmsg(
        stream.as_fd(),
        &mut [IoSliceMut::new(&mut first)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let mut streams: Vec<OwnedFd> = rights.flatten().collect();
    let mut text = String::new();
    (&*stream).read_to_string(&mut text)?;
    let order: Order = serde_json::from_str(&text)?;
    let mut command = command(root, &order)?;
    let mut next = || streams.pop().map_or_else(Stdio::null, Stdio::from);
    command.stderr(next()).stdout(next()).stdin(next());
    let mut child = command.spawn()?;
    // Who waits for their end waits for the command's alone.
    drop(command);
    let code = child.wait()?.code();
    Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(255))
}

/// What runs an order on a host.
fn command(root: &Path, order: &Order) -> std::io::Result<Command> {
    let dir = root.join("hosts").join(&order.host);
    let lines = |file: &str| -> Vec<String> {
        let text = std::fs::read_to_string(dir.join(file)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    };
    let mut words = lines("enter");
    if order.sudo {
        if !order.words.iter().zip(BY_SUDO).all(|(word, may)| word == may) || words.is_empty() {
            return Err(std::io::Error::other("not by sudo"));
        }
        words.extend(order.words.iter().cloned());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        return Ok(command);
    }
    let (user, groups) = (ONEADMIN.to_string(), format!("{ONEADMIN},{OPERATORS}"));
    let become_user = ["setpriv", "--reuid", &user, "--regid", &user, "--groups", &groups, "--"];
    words.extend(become_user.map(str::to_owned));
    words.extend(["/bin/bash", "-c"].map(str::to_owned));
    words.extend(order.words.iter().cloned());
    let home = match dir.join("home") {
        home if home.exists() => home,
        _ => root.join("var/lib/one"),
    };
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    session(&mut command, &order.host, &home, &lines("environment"));
    Ok(command)
}

/// The environment that sshd gives a command, from the recordings, and what the machine's own configuration adds.
pub fn session(command: &mut Command, host: &str, home: &Path, more: &[String]) {
    command
        .env_clear()
        .env("HOME", home)
        .env("LC_CTYPE", "C.UTF-8")
        .env("LOGNAME", "oneadmin")
        .env("MAIL", "/var/mail/oneadmin")
        .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/games")
        .env("SHELL", "/bin/bash")
        .env("SSH_CLIENT", "127.0.0.1 37894 22")
        .env("SSH_CONNECTION", "127.0.0.1 37894 127.0.0.1 22")
        .env("USER", "oneadmin")
        .env(MACHINE, host)
        .envs(more.iter().filter_map(|line| line.split_once('=')))
        .current_dir(home);
}

/// Tells programs of the stand-in's on which machine they are.
pub const MACHINE: &str = "OCIVISOR_CONFORMANCE_MACHINE";
