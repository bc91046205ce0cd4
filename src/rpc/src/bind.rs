//! Makes the socket, in the place of one that was left over.
//!
//! The new socket is bound under another name in the same directory, given its mode and group, and
//! then renamed: nobody can connect before the mode is right, and there is no moment without a
//! socket while a daemon is replaced. Two daemons cannot race here, as each first takes the lock of
//! its state directory; the check that nobody answers is for those with different ones.
//!
//! Or systemd made it (`systemd.socket(5)`): then it stays there when the daemon goes, so that callers wait for
//! the next one instead of being refused. Mode and group are what the configuration says all the same.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Why the socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process answers on it.
    #[error(
        "{path:?} is in use: another daemon answers there; stop it, or choose another run directory"
    )]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is not a socket is in the way.
    #[error("{path:?} exists and is not a socket; move it away")]
    NotASocket {
        /// Its path.
        path: PathBuf,
    },
    /// What was handed over is something else.
    #[error(
        "the service manager handed over {got}, not a socket that listens at {path:?}; see ListenStream= of ocivisord.socket"
    )]
    NotOurs {
        /// The path of the configuration.
        path: PathBuf,
        /// What it is.
        got: String,
    },
    /// A call failed.
    #[error("cannot {what} socket {path:?}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl From<BindError> for ocivisor_core::error::Error {
    fn from(error: BindError) -> Self {
        use ocivisor_core::error::ErrorKind;
        let kind = match &error {
            BindError::InUse { .. } | BindError::NotASocket { .. } => ErrorKind::Conflict,
            BindError::NotOurs { .. } => ErrorKind::Invalid,
            BindError::Io { .. } => ErrorKind::Host,
        };
        match std::error::Error::source(&error) {
            Some(source) => Self::new(kind, format!("{error}: {source}")),
            None => Self::new(kind, error),
        }
    }
}

/// The socket's file; removed when dropped, if it is still ours.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|meta| (meta.dev(), meta.ino()) == self.identity);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!("cannot remove socket {:?}: {error}", self.path);
        }
    }
}

/// Makes a listening socket of mode 0660 at `path`, of group `gid` if given.
pub fn bind(path: &Path, gid: Option<u32>) -> Result<(UnixListener, SocketFile), BindError> {
    let fail = |what| {
        let path = path.to_owned();
        move |source| BindError::Io { what, path, source }
    };
    refuse_if_used(path)?;
    let mut temporary = OsString::from(path.as_os_str());
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    remove(&temporary).map_err(fail("remove the left-over of"))?;
    let listener = UnixListener::bind(&temporary).map_err(fail("bind"))?;
    // From here on a failure must not leave the temporary name.
    let finish = || {
        give(&temporary, gid)?;
        let meta = std::fs::symlink_metadata(&temporary).map_err(fail("look at"))?;
        #[expect(
            clippy::disallowed_methods,
            reason = "a socket in a run directory: there is nothing to make durable"
        )]
        std::fs::rename(&temporary, path).map_err(fail("rename"))?;
        Ok(SocketFile { path: path.to_owned(), identity: (meta.dev(), meta.ino()) })
    };
    match finish() {
        Ok(file) => Ok((listener, file)),
        Err(error) => {
            if let Err(second) = remove(&temporary) {
                tracing::warn!("cannot remove {temporary:?}: {second}");
            }
            Err(error)
        }
    }
}

/// Takes a socket that somebody else made and keeps: it must listen at `path`.
pub fn adopt(path: &Path, gid: Option<u32>, socket: OwnedFd) -> Result<UnixListener, BindError> {
    let not_ours = |got: String| BindError::NotOurs { path: path.to_owned(), got };
    let listens = net::sockopt::socket_acceptconn(&socket);
    if !listens.map_err(|e| not_ours(format!("no socket ({e})")))? {
        return Err(not_ours("a socket that does not listen".into()));
    }
    let address = net::getsockname(&socket).map_err(|e| not_ours(format!("a socket ({e})")))?;
    let address = SocketAddrUnix::try_from(address)
        .map_err(|_| not_ours("a socket of another family".into()))?;
    if net::sockopt::socket_type(&socket).ok() != Some(net::SocketType::STREAM) {
        return Err(not_ours("a socket of another type".into()));
    }
    if address.path_bytes() != Some(path.as_os_str().as_bytes()) {
        let at = address.path_bytes().map(String::from_utf8_lossy).unwrap_or_default();
        return Err(not_ours(format!("a socket at {at:?}")));
    }
    give(path, gid)?;
    Ok(UnixListener::from(socket))
}

/// Gives a socket's file its group and mode.
fn give(path: &Path, gid: Option<u32>) -> Result<(), BindError> {
    let fail = |what| move |source| BindError::Io { what, path: path.to_owned(), source };
    if let Some(gid) = gid {
        std::os::unix::fs::lchown(path, None, Some(gid)).map_err(fail("set the group of"))?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
        .map_err(fail("set the mode of"))
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn refuse_if_used(path: &Path) -> Result<(), BindError> {
    let path = path.to_owned();
    match std::fs::symlink_metadata(&path) {
        Ok(meta) if !meta.file_type().is_socket() => return Err(BindError::NotASocket { path }),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => {
            return Err(BindError::Io { what: "look at", path, source });
        }
    }
    match try_connect(&path) {
        // EAGAIN: somebody listens and the queue is full (connect(2)).
        Ok(()) | Err(Errno::AGAIN) => Err(BindError::InUse { path }),
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(()),
        Err(error) => Err(BindError::Io { what: "connect to", path, source: error.into() }),
    }
}

/// Connects without waiting: std's connect would wait for ever for a daemon that hangs with a full
/// queue.
fn try_connect(path: &Path) -> rustix::io::Result<()> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    net::connect(&socket, &SocketAddrUnix::new(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        // std does not remove the file when the listener goes.
        drop(UnixListener::bind(&path).unwrap());
        let (listener, file) = bind(&path, None).unwrap();
        let mode = std::fs::symlink_metadata(&path).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o660);
        let error = bind(&path, None).unwrap_err();
        assert!(matches!(error, BindError::InUse { .. }), "{error}");
        drop(listener);
        drop(file);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_in_the_way_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        std::fs::File::create(&path).unwrap();
        let error = bind(&path, None).unwrap_err();
        assert!(matches!(error, BindError::NotASocket { .. }), "{error}");
        assert!(path.exists());
    }

    #[test]
    fn the_socket_of_a_successor_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (listener, file) = bind(&path, None).unwrap();
        drop(listener);
        let (_next, _next_file) = bind(&path, None).unwrap();
        drop(file);
        assert!(path.exists());
    }

    #[test]
    fn the_group_is_set_before_anyone_can_connect() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (_listener, _file) = bind(&path, Some(12_345)).unwrap();
        assert_eq!(std::fs::symlink_metadata(&path).unwrap().gid(), 12_345);
    }

    #[test]
    fn a_failure_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x".repeat(200));
        let error = bind(&path, None).unwrap_err();
        assert!(matches!(error, BindError::Io { what: "bind", .. }), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_socket_that_is_handed_over_must_listen_where_it_is_looked_for() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("s"), dir.path().join("o"));
        let listener = UnixListener::bind(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
        let again = || OwnedFd::from(listener.try_clone().unwrap());
        let adopted = adopt(&path, Some(12_345), again()).unwrap();
        let meta = std::fs::symlink_metadata(&path).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.gid()), (0o660, 12_345));
        drop(adopted);
        assert!(path.exists(), "it is not ours to remove");

        let why = |socket: OwnedFd| adopt(&other, None, socket).unwrap_err().to_string();
        let got = |what: &str| {
            format!(
                "the service manager handed over {what}, not a socket that listens at {other:?}; \
                 see ListenStream= of ocivisord.socket"
            )
        };
        assert_eq!(why(again()), got(&format!("a socket at {:?}", path.to_str().unwrap())));
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(why(tcp.into()), got("a socket of another family"));
        let (pair, _) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(why(pair.into()), got("a socket that does not listen"));
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(why(file.into()).starts_with("the service manager handed over no socket ("));
    }

    #[test]
    fn a_daemon_that_hangs_is_still_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (listener, _file) = bind(&path, None).unwrap();
        net::listen(&listener, 0).unwrap();
        // The kernel queues one more than was asked for.
        let _queued = std::os::unix::net::UnixStream::connect(&path).unwrap();
        assert_eq!(try_connect(&path), Err(Errno::AGAIN));
        let error = bind(&path, None).unwrap_err();
        assert!(matches!(error, BindError::InUse { .. }), "{error}");
    }
}
