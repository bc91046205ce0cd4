//! The console socket: where an OCI runtime sends the master of the guest's terminal.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use ocivisor_core::error::{Error, ErrorKind, Result};
use rustix::fs::{fstat, fstatfs, major, minor};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix,
    SocketFlags, SocketType, accept_with, bind, listen, recvmsg, socket_with,
};

/// Longest path that fits into an address, unix(7).
const MAX_PATH: usize = 107;
/// Magic of devpts, statfs(2).
const DEVPTS_SUPER_MAGIC: u64 = 0x1cd1;

/// A listening socket in the VM's directory, removed when dropped.
#[derive(Debug)]
pub struct ConsoleSocket {
    socket: OwnedFd,
    path: PathBuf,
}

impl ConsoleSocket {
    /// Listens; a leftover of a crash is replaced.
    ///
    /// # Errors
    /// `Host`: the path is too long, or the kernel refuses.
    pub fn listen(dir: &Path) -> Result<Self> {
        let path = dir.join("console.sock");
        let made = Self::make(&path);
        let socket = made.map_err(|e| {
            Error::new(ErrorKind::Host, format!("console socket {}: {e}", path.display()))
        })?;
        Ok(Self { socket, path })
    }

    fn make(path: &Path) -> io::Result<OwnedFd> {
        if path.as_os_str().as_bytes().len() > MAX_PATH {
            return Err(io::ErrorKind::InvalidFilename.into());
        }
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // Root alone may connect: the OCI runtime does so before it enters the guest's namespaces.
        let old = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
        let bound = bind(&socket, &SocketAddrUnix::new(path)?);
        rustix::process::umask(old);
        bound?;
        listen(&socket, 1)?;
        Ok(socket)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Accepts a connection, takes a descriptor from it, and checks that it is a pty master.
    ///
    /// # Errors
    /// `Host`: nothing came, or something else.
    pub fn receive(&self) -> Result<OwnedFd> {
        let bad = |e: io::Error| Error::new(ErrorKind::Host, format!("receive the console: {e}"));
        let peer = accept_with(&self.socket, SocketFlags::CLOEXEC).map_err(|e| bad(e.into()))?;
        let master = receive_fd(&peer).map_err(bad)?;
        if is_pty_master(master.as_fd()) {
            return Ok(master);
        }
        Err(Error::new(ErrorKind::Host, "the console that was received is no pty master"))
    }
}

impl AsFd for ConsoleSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        // Best effort; the next boot replaces a leftover.
        let _ = fs::remove_file(&self.path);
    }
}

/// Takes exactly one descriptor from a message.
///
/// # Errors
/// None came, or the connection failed.
pub fn receive_fd(socket: impl AsFd) -> io::Result<OwnedFd> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0_u8; 4096];
    let mut parts = [io::IoSliceMut::new(&mut bytes)];
    recvmsg(socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    fds.next().ok_or_else(|| io::Error::other("no descriptor came"))
}

/// Whether a descriptor is the multiplexer of some devpts, as TIOCGPTPEER and the like expect: the
/// guest chose what is at `/dev/pts/ptmx` (CVE-2025-52565).
#[must_use]
pub fn is_pty_master(fd: BorrowedFd<'_>) -> bool {
    let on_devpts = fstatfs(fd).is_ok_and(|fs| fs.f_type as u64 == DEVPTS_SUPER_MAGIC);
    let is_ptmx = fstat(fd).is_ok_and(|stat| {
        rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::CharacterDevice
            && (major(stat.st_rdev), minor(stat.st_rdev)) == (5, 2)
    });
    on_devpts && is_ptmx
}
