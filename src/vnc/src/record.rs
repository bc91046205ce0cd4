//! `vnc.json`: who serves a VM's console, for whoever finds the VM's run directory later.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use ocivisor_shim::facts::Process;
use ocivisor_shim::json;
use rustix::fs::{AtFlags, Mode, OFlags, fsync, open, openat, renameat, unlinkat};
use rustix::io::Errno;

/// Its name in the VM's run directory.
pub const FILE: &str = "vnc.json";
const TEMPORARY: &str = "vnc.json.new";

/// Its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The keeper: SIGTERM to it ends both processes.
    pub keeper: Process,
    /// Where clients are awaited.
    pub listen: Vec<SocketAddr>,
    /// Whether they need a password.
    pub password: bool,
    /// The host's boot, as the kernel names it: numbers of processes mean nothing in another one.
    pub host_boot: String,
}

impl Record {
    /// As stored.
    #[must_use]
    pub fn to_json(&self) -> String {
        let listen: Vec<String> = self.listen.iter().map(SocketAddr::to_string).collect();
        format!(
            "{{\"version\":1,\"vnc\":{{\"pid\":{},\"start_ticks\":{}}},\"listen\":{},\"password\":{},\"host_boot\":{}}}\n",
            self.keeper.pid,
            self.keeper.start_ticks,
            json::quote(&listen.join(" ")),
            self.password,
            json::quote(&self.host_boot),
        )
    }

    /// Reads what was stored; `None` if it is damaged or of another version.
    #[must_use]
    pub fn from_json(bytes: &[u8]) -> Option<Self> {
        let value = json::parse(bytes)?;
        if value.number("version") != Some(1) {
            return None;
        }
        let vnc = value.get("vnc")?;
        let (pid, start_ticks) = (vnc.number("pid")?, vnc.number("start_ticks")?);
        let listen = value.text("listen")?.split_whitespace().map(str::parse);
        Some(Self {
            keeper: Process { pid: u32::try_from(pid).ok()?, start_ticks },
            listen: listen.collect::<Result<_, _>>().ok()?,
            password: value.bool("password")?,
            host_boot: value.text("host_boot")?.to_owned(),
        })
    }
}

/// The directory of a record.
#[derive(Debug)]
pub struct Home(OwnedFd);

impl Home {
    /// The VM's run directory.
    ///
    /// # Errors
    /// It is not there.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(open(path, flags, Mode::empty())?))
    }

    /// Writes the record so that a crash leaves the old or the new one: temporary file, fsync, rename, fsync.
    ///
    /// # Errors
    /// No room, or the directory was removed.
    pub fn write(&self, record: &Record) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW;
        let mode = Mode::RUSR | Mode::WUSR;
        let dir = self.0.as_fd();
        let mut file = std::fs::File::from(openat(dir, TEMPORARY, flags | OFlags::CLOEXEC, mode)?);
        let written = file.write_all(record.to_json().as_bytes()).and_then(|()| Ok(fsync(&file)?));
        let renamed = written.and_then(|()| Ok(renameat(dir, TEMPORARY, dir, FILE)?));
        if renamed.is_err() {
            // Best effort: the first error matters, and the next try truncates the leftover.
            let _ = unlinkat(dir, TEMPORARY, AtFlags::empty());
            return renamed;
        }
        Ok(fsync(dir)?)
    }

    /// Removes the record; none is fine.
    ///
    /// # Errors
    /// The file system cannot be written.
    pub fn remove(&self) -> io::Result<()> {
        match unlinkat(&self.0, FILE, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            keeper: Process { pid: 7, start_ticks: 100 },
            listen: vec!["0.0.0.0:5942".parse().unwrap(), "[::1]:5942".parse().unwrap()],
            password: true,
            host_boot: "5b2d6e0c-6a7a-4f5e-9f53-0f6f4f8f2a11".to_owned(),
        }
    }

    #[test]
    fn records_round_trip_and_are_pinned() {
        let json = record().to_json();
        assert_eq!(
            json,
            "{\"version\":1,\"vnc\":{\"pid\":7,\"start_ticks\":100},\
             \"listen\":\"0.0.0.0:5942 [::1]:5942\",\"password\":true,\
             \"host_boot\":\"5b2d6e0c-6a7a-4f5e-9f53-0f6f4f8f2a11\"}\n"
        );
        assert_eq!(Record::from_json(json.as_bytes()), Some(record()));
        assert_eq!(Record::from_json(json.replace(":1,", ":2,").as_bytes()), None);
        assert_eq!(Record::from_json(b""), None);
    }

    #[test]
    fn records_are_replaced_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path()).unwrap();
        home.remove().unwrap();
        home.write(&record()).unwrap();
        let other = Record { password: false, ..record() };
        home.write(&other).unwrap();
        let read = std::fs::read(dir.path().join(FILE)).unwrap();
        assert_eq!(Record::from_json(&read), Some(other));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        home.remove().unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        std::fs::remove_dir(dir.path()).unwrap();
        assert!(home.write(&record()).is_err());
    }
}
