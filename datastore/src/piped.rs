//! Blobs that come through a FIFO in a directory in OCI image layout.
//!
//! So a program without privilege hands layers on that it receives, and their bytes are written once, by us, into the
//! store. Nothing of his has to be copied; nor need he be trusted not to change it, as with a file of his that became the
//! store's by a link: what is hashed is what is kept. Which file systems the directory and the store are on does not matter.
//!
//! The other side holds each FIFO open from before the import begins until all of its bytes are read, so the end
//! of a blob is that nobody has it open for writing any more, fifo(7).

use std::fs::File;
use std::io::{self, Read};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::cancel::{Cancel, LOOK};
use crate::disk;

/// How long nothing may come.
const PATIENCE: Duration = Duration::from_secs(600);

/// A blob that comes.
#[derive(Debug)]
pub(crate) struct Piped {
    fifo: File,
    cancel: Cancel,
    patience: Duration,
}

/// Whether a layout has a blob that comes.
pub(crate) fn any(layout: &File) -> io::Result<bool> {
    let blobs = match open(layout, "blobs/sha256", OFlags::DIRECTORY) {
        Ok(blobs) => blobs,
        // What is missing, or no directory, is told when it is read.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => return Ok(false),
        Err(e) => return Err(e.into()),
    };
    for entry in Dir::read_from(&blobs)? {
        let entry = entry?;
        let kind = match entry.file_type() {
            // Not every file system tells.
            FileType::Unknown => {
                let name = entry.file_name().to_string_lossy();
                disk::stat(&blobs, &name)?.map(|stat| FileType::from_raw_mode(stat.st_mode))
            }
            told => Some(told),
        };
        if kind == Some(FileType::Fifo) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn open(layout: &File, name: &str, how: OFlags) -> Result<File, Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | how;
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    rustix::fs::openat2(layout, name, flags, Mode::empty(), within).map(File::from)
}

impl Piped {
    /// Opens what has that name; none if it is no FIFO.
    pub fn open(layout: &File, name: &str, cancel: &Cancel) -> io::Result<Option<Self>> {
        let fifo = match open(layout, name, OFlags::empty()) {
            Ok(fifo) => fifo,
            Err(Errno::NOENT | Errno::LOOP) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let stat = rustix::fs::fstat(&fifo)?;
        let is_fifo = FileType::from_raw_mode(stat.st_mode) == FileType::Fifo;
        Ok(is_fifo.then(|| Self { fifo, cancel: cancel.clone(), patience: PATIENCE }))
    }
}

impl Read for Piped {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let deadline = Instant::now() + self.patience;
        loop {
            match self.fifo.read(buf) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
            self.cancel.check()?;
            if Instant::now() >= deadline {
                let why = format!("nothing came for {} s", self.patience.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
            let pause = Timespec { tv_sec: 0, tv_nsec: LOOK.subsec_nanos().into() };
            match poll(&mut [PollFd::new(&self.fifo, PollFlags::IN)], Some(&pause)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A layout with a FIFO, open for writing.
    fn layout() -> (tempfile::TempDir, File, File) {
        let top = tempfile::tempdir().unwrap();
        let dir = File::open(top.path()).unwrap();
        let blobs = disk::ensure_dir(&disk::ensure_dir(&dir, "blobs").unwrap(), "sha256").unwrap();
        assert!(!any(&dir).unwrap());
        disk::write_new(&blobs, "file", b"x").unwrap();
        assert!(!any(&dir).unwrap());
        rustix::fs::mknodat(&blobs, "x", FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        assert!(any(&dir).unwrap());
        let path = top.path().join("blobs/sha256/x");
        let other = File::options().read(true).write(true).open(path).unwrap();
        (top, dir, other)
    }

    fn piped(dir: &File, cancel: &Cancel) -> Piped {
        Piped::open(dir, "blobs/sha256/x", cancel).unwrap().unwrap()
    }

    #[test]
    fn bytes_come_until_the_other_side_lets_go() {
        let (_top, dir, mut other) = layout();
        let cancel = Cancel::new();
        assert!(Piped::open(&dir, "blobs/sha256/file", &cancel).unwrap().is_none());
        assert!(Piped::open(&dir, "blobs/sha256/none", &cancel).unwrap().is_none());
        let mut coming = piped(&dir, &cancel);
        std::thread::scope(|scope| {
            let reading = scope.spawn(|| {
                let mut all = Vec::new();
                coming.read_to_end(&mut all).map(|_| all)
            });
            let bytes = vec![7; 300_000];
            other.write_all(&bytes).unwrap();
            drop(other);
            assert_eq!(reading.join().unwrap().unwrap(), bytes);
        });
        // Nobody is there from the beginning.
        assert_eq!(piped(&dir, &cancel).read(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn who_waits_for_bytes_can_be_told_not_to_and_does_not_wait_for_ever() {
        let (_top, dir, _other) = layout();
        let cancel = Cancel::new();
        let mut coming = Piped { patience: Duration::ZERO, ..piped(&dir, &cancel) };
        assert_eq!(coming.read(&mut [0; 1]).unwrap_err().kind(), io::ErrorKind::TimedOut);
        let mut coming = piped(&dir, &cancel);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| coming.read(&mut [0; 1]));
            cancel.cancel();
            let error = waiting.join().unwrap().unwrap_err();
            assert_eq!(error.raw_os_error(), Some(Errno::CANCELED.raw_os_error()));
        });
    }
}
