//! Files of lxcfs(1) in place of the kernel's: /proc and /sys/devices/system/cpu as the guest's own
//! limits have them.
//!
//! lxcfs is a FUSE server of the host that answers by the control group of who reads. Guests get its
//! files by bind mounts, made with the rest of the guest.
//!
//! What can go wrong: a server that died leaves a mount that answers ENOTCONN, one that hangs leaves a
//! mount that never answers, and a look at a path below it never returns. So a thread looks, with a
//! deadline ([`Lxcfs::find`]), and there is never more than one that does not come back. A server that
//! dies later breaks these files in the guests that have them: nothing here can mend that, only another
//! boot of the guest does. That is why lxcfs reloads itself on SIGUSR1 instead of being restarted.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use ocivisor_core::error::{Error, ErrorKind, Result};
use rustix::fs::statfs;

use crate::labels::Use;

/// How long a server may take to answer all questions: long for a host under load, and it is waited
/// for once. While that look does not come back, later ones are not waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// Magic of FUSE in statfs(2).
const FUSE_SUPER_MAGIC: i64 = 0x6573_5546;

/// What is shown, relative to lxcfs's directory and to the guest's root alike. Not slabinfo, which the
/// guest's root could not read either, nor cgroup, which is for guests without namespaces of their own.
const SHOWN: [&str; 8] = [
    "proc/cpuinfo",
    "proc/diskstats",
    "proc/loadavg",
    "proc/meminfo",
    "proc/stat",
    "proc/swaps",
    "proc/uptime",
    "sys/devices/system/cpu",
];

/// One file or directory of lxcfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// On the host.
    pub source: PathBuf,
    /// In the guest.
    pub destination: PathBuf,
}

/// The server of this host.
#[derive(Debug, Clone)]
pub struct Lxcfs {
    dir: PathBuf,
    policy: Use,
    /// A look that has not come back.
    pending: Arc<Mutex<Option<Receiver<Found>>>>,
}

/// What a look found: files, or why there are none.
type Found = std::result::Result<Vec<Shown>, String>;

impl Lxcfs {
    /// The one that is mounted there, if any.
    #[must_use]
    pub fn new(dir: PathBuf, policy: Use) -> Self {
        Self { dir, policy, pending: Arc::default() }
    }

    /// What a guest that is made now gets.
    ///
    /// # Errors
    /// `Unsupported`: lxcfs is required and does not answer.
    pub fn find(&self) -> Result<Vec<Shown>> {
        let found = match self.policy {
            Use::Off => return Ok(Vec::new()),
            Use::Auto | Use::Required => self.look(),
        };
        match found {
            Ok(shown) => Ok(shown),
            Err(why) if self.policy == Use::Required => {
                let what = format!("lxcfs at {} {why}", self.dir.display());
                let hint = "guests.lxcfs is \"required\": start lxcfs, or make it \"auto\"";
                Err(Error::new(ErrorKind::Unsupported, what).hint(hint))
            }
            Err(why) => {
                tracing::debug!("lxcfs at {} {why}: guests see the host's", self.dir.display());
                Ok(Vec::new())
            }
        }
    }

    fn look(&self) -> Found {
        let hangs = || Err("does not answer".to_owned());
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let (receiver, patience) = match pending.take() {
            // It may have come back by now; if not, another would not either.
            Some(receiver) => (receiver, Duration::ZERO),
            None => {
                let (sender, receiver) = channel();
                let dir = self.dir.clone();
                // Nobody listens any more is fine.
                let look = move || drop(sender.send(look_at(&dir)));
                let begun = thread::Builder::new().name("lxcfs".into()).spawn(look);
                begun.map_err(|e| format!("cannot be looked at: {e}"))?;
                (receiver, PATIENCE)
            }
        };
        match receiver.recv_timeout(patience) {
            Ok(found) => found,
            Err(RecvTimeoutError::Disconnected) => hangs(),
            Err(RecvTimeoutError::Timeout) => {
                *pending = Some(receiver);
                hangs()
            }
        }
    }
}

/// May never return.
fn look_at(dir: &Path) -> Found {
    let answer = |what: &str, e: &dyn std::fmt::Display| Err(format!("{what}: {e}"));
    match statfs(dir) {
        Ok(stat) if stat.f_type == FUSE_SUPER_MAGIC => {}
        Ok(_) => return Err("is not mounted".into()),
        Err(e) => return answer("cannot be used", &e),
    }
    let mut shown = Vec::new();
    for path in SHOWN {
        let source = dir.join(path);
        let Ok(meta) = std::fs::metadata(&source) else {
            // An older lxcfs has fewer.
            continue;
        };
        if meta.is_file() {
            let mut first = [0; 64];
            if let Err(e) = File::open(&source).and_then(|mut file| file.read(&mut first)) {
                return answer(path, &e);
            }
        }
        shown.push(Shown { source, destination: Path::new("/").join(path) });
    }
    if shown.is_empty() {
        Err("has none of the files that guests are shown".into())
    } else {
        Ok(shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A FUSE server, ended and unmounted with this.
    struct Server(std::process::Child, PathBuf);

    impl Server {
        fn start(dir: &Path) -> Self {
            let (mounted, pid) = (dir.join("fs"), dir.join("pid"));
            std::fs::create_dir(&mounted).unwrap();
            #[expect(clippy::disallowed_methods, reason = "the server that the test is about")]
            let mut command = std::process::Command::new("lxcfs");
            command.arg("-f").arg("-p").arg(pid).arg(&mounted);
            command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
            let server = Self(command.spawn().expect("lxcfs is installed"), mounted.clone());
            let deadline = std::time::Instant::now() + Duration::from_secs(30);
            while !mounted.join("proc/uptime").exists() && std::time::Instant::now() < deadline {
                thread::yield_now();
            }
            server
        }

        fn signal(&self, signal: rustix::process::Signal) {
            let pid = rustix::process::Pid::from_child(&self.0);
            rustix::process::kill_process(pid, signal).unwrap();
        }
    }

    impl Drop for Server {
        fn drop(&mut self) {
            // Ended by the test itself, perhaps.
            let _ = self.0.kill();
            let _ = self.0.wait();
            let _ = rustix::mount::unmount(&self.1, rustix::mount::UnmountFlags::DETACH);
        }
    }

    #[test]
    fn a_server_that_hangs_or_died_is_told_and_waited_for_no_longer_than_bound() {
        use rustix::process::Signal;
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(dir.path());
        let lxcfs = Lxcfs::new(server.1.clone(), Use::Required);
        let shown = lxcfs.find().unwrap();
        assert!(shown.contains(&Shown {
            source: server.1.join("proc/meminfo"),
            destination: "/proc/meminfo".into(),
        }));
        server.signal(Signal::STOP);
        for _ in 0..3 {
            let error = lxcfs.find().unwrap_err();
            assert_eq!(error.message, format!("lxcfs at {} does not answer", server.1.display()));
            assert!(lxcfs.pending.lock().unwrap().is_some(), "one thread waits");
        }
        server.signal(Signal::CONT);
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        let mut found = lxcfs.find();
        while found.is_err() && std::time::Instant::now() < deadline {
            thread::yield_now();
            found = lxcfs.find();
        }
        assert_eq!(found.unwrap(), shown, "it answers the first question now");
        assert!(lxcfs.pending.lock().unwrap().is_none());
        server.signal(Signal::KILL);
        while statfs(&server.1).is_ok() && std::time::Instant::now() < deadline {
            thread::yield_now();
        }
        let error = lxcfs.find().unwrap_err();
        assert!(error.message.contains(" cannot be used: "), "{error}");
    }

    #[test]
    fn a_directory_without_lxcfs_shows_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let found = |policy| Lxcfs::new(dir.path().to_owned(), policy).find();
        assert_eq!(found(Use::Auto).unwrap(), []);
        assert_eq!(found(Use::Off).unwrap(), []);
        let error = found(Use::Required).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unsupported);
        assert_eq!(error.message, format!("lxcfs at {} is not mounted", dir.path().display()));
        let absent = Lxcfs::new(dir.path().join("absent"), Use::Required).find().unwrap_err();
        assert!(absent.message.contains(" cannot be used: No such file"), "{absent}");
    }
}
