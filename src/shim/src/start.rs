//! Letting a created guest go. Both ways are those of the runtime that made it: libcontainer's init
//! waits for a connection on a socket, runc's blocks on opening a fifo for writing.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ocivisor_shim::client::socket_address;
use ocivisor_shim::message::{Code, Refusal};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, fstat, open, unlinkat};
use rustix::io::{Errno, read, write};
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};

/// Longest wait for runc's init to take notice. It is microseconds: nothing of the guest runs yet.
const PATIENCE: Duration = Duration::from_secs(10);

/// How a guest is let go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartAction {
    /// Connect to this socket, say a word, hang up.
    Connect(PathBuf),
    /// Read this fifo.
    Fifo(PathBuf),
    /// It runs already.
    None,
}

impl StartAction {
    /// Reads the argument of `--start`.
    pub fn parse(text: &OsStr) -> Result<Self, String> {
        let path = |bytes: &[u8]| PathBuf::from(OsString::from_vec(bytes.to_vec()));
        let bytes = text.as_bytes();
        if let Some(rest) = bytes.strip_prefix(b"connect:") {
            Ok(Self::Connect(path(rest)))
        } else if let Some(rest) = bytes.strip_prefix(b"fifo:") {
            Ok(Self::Fifo(path(rest)))
        } else if bytes == b"none" {
            Ok(Self::None)
        } else {
            Err("--start is neither connect:PATH, fifo:PATH nor none".into())
        }
    }

    /// As the argument, for `shim.json`.
    pub fn to_text(&self) -> String {
        match self {
            Self::Connect(path) => format!("connect:{}", path.display()),
            Self::Fifo(path) => format!("fifo:{}", path.display()),
            Self::None => "none".into(),
        }
    }

    /// Lets the guest go. After an adoption its door may be gone, because it went before (by a shim
    /// that died before it could write so), and that is fine.
    pub fn perform(&self, init: BorrowedFd<'_>, adopted: bool) -> Result<(), Refusal> {
        let done = match self {
            Self::Connect(path) => knock(path),
            Self::Fifo(path) => read_fifo(path, init),
            Self::None => Ok(()),
        };
        match done {
            Ok(()) => Ok(()),
            Err(Errno::NOENT | Errno::CONNREFUSED) if adopted => Ok(()),
            Err(Errno::SRCH) => Err(Refusal::new(Code::Gone, "the guest ended")),
            Err(e) => Err(Refusal::new(Code::Host, &format!("start by {}: {e}", self.to_text()))),
        }
    }
}

fn knock(path: &Path) -> Result<(), Errno> {
    let dir = path.parent().ok_or(Errno::INVAL)?;
    let name = path.file_name().ok_or(Errno::INVAL)?;
    let dir = open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let address = socket_address(&dir, name.as_ref()).map_err(|_| Errno::INVAL)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &address)?;
    // The word does not matter, the end of file does.
    match write(&socket, b"start") {
        Err(e) if e != Errno::PIPE => Err(e),
        _ => Ok(()),
    }
}

fn read_fifo(path: &Path, init: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fifo = open(path, flags, Mode::empty())?;
    if FileType::from_raw_mode(fstat(&fifo)?.st_mode) != FileType::Fifo {
        return Err(Errno::INVAL);
    }
    let wait = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    let mut fds = [
        PollFd::from_borrowed_fd(fifo.as_fd(), PollFlags::IN),
        PollFd::from_borrowed_fd(init, PollFlags::IN),
    ];
    match poll(&mut fds, Some(&wait)) {
        Ok(0) => return Err(Errno::TIMEDOUT),
        Ok(_) | Err(Errno::INTR) => {}
        Err(e) => return Err(e),
    }
    match read(&fifo, &mut [0_u8; 8]) {
        Ok(n) if n > 0 => {}
        // Nothing in it: it was the guest's end that woke us.
        Ok(_) | Err(_) => return Err(Errno::SRCH),
    }
    // Best effort, as runc itself does it: a second start finds no door, which is fine as well.
    let _ = unlinkat(CWD, path, AtFlags::empty());
    Ok(())
}
