//! The console log: everything the guest prints, in two files of bounded size.
//!
//! Writing never fails from outside and never waits: a guest must not stop because a disk is full
//! or a directory was removed. What could not be written is counted, and a line in the log says so
//! as soon as there is room again. The directory belongs to the host alone; nevertheless the file
//! is never opened through a symbolic link, and nothing but a regular file is written.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, fstat, ftruncate, openat, renameat};

use crate::files;

/// The log.
#[derive(Debug)]
pub struct Log {
    dir: Option<OwnedFd>,
    name: OsString,
    older: OsString,
    max: u64,
    file: Option<File>,
    size: u64,
    lost: u64,
}

impl Log {
    /// The log at `path`, continued if it exists; each of its files has at most `max` bytes.
    pub fn new(path: &Path, max: u64) -> Self {
        let name = path.file_name().unwrap_or(OsStr::new("console.log")).to_owned();
        let mut older = name.clone();
        older.push(".1");
        // Without the directory there is no log, and the guest runs nevertheless.
        let dir = path.parent().and_then(|dir| files::open_dir(dir).ok());
        Self { dir, name, older, max, file: None, size: 0, lost: 0 }
    }

    /// Appends what the guest printed.
    pub fn write(&mut self, bytes: &[u8]) {
        if self.max == 0 || self.dir.is_none() {
            return;
        }
        if self.lost > 0 {
            let note = format!("\r\n[ocivisor: {} bytes of output were not logged]\r\n", self.lost);
            if self.append(note.as_bytes()) == note.len() {
                self.lost = 0;
            }
        }
        let kept = self.append(bytes);
        self.lost += (bytes.len() - kept) as u64;
    }

    /// The last bytes that were written, at most `max`, from the beginning of a line if cut.
    pub fn tail(&mut self, max: usize) -> Vec<u8> {
        let mut tail = self.bytes_from_end(max);
        if tail.len() == max {
            let line = tail.iter().position(|&c| c == b'\n').map_or(0, |at| at + 1);
            tail.drain(..line);
        }
        tail
    }

    /// The last bytes that the guest printed, at most `max`; `None` if they were not all written.
    pub fn newest(&self, max: usize) -> Option<Vec<u8>> {
        let whole = self.file.is_some() && self.lost == 0;
        whole.then(|| self.bytes_from_end(max))
    }

    fn bytes_from_end(&self, max: usize) -> Vec<u8> {
        let mut tail = Vec::new();
        if self.max == 0 {
            return tail;
        }
        let here = self.size.min(max as u64);
        if (here as usize) < max {
            // Unreadable is like empty: a replay is a courtesy. Without a log there is nothing.
            tail = self.end_of_older(max - here as usize).unwrap_or_default();
        }
        if let Some(file) = &self.file {
            let from = tail.len();
            tail.resize(from + here as usize, 0);
            if file.read_exact_at(&mut tail[from..], self.size - here).is_err() {
                tail.truncate(from);
            }
        }
        tail
    }

    fn end_of_older(&self, max: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        if let Some(dir) = &self.dir {
            let file = open_regular(dir, &self.older, OFlags::RDONLY)?;
            let size = fstat(&file)?.st_size.unsigned_abs();
            let mut file = File::from(file);
            io::Seek::seek(&mut file, io::SeekFrom::Start(size.saturating_sub(max as u64)))?;
            file.take(max as u64).read_to_end(&mut bytes)?;
        }
        Ok(bytes)
    }

    /// Appends as much as possible; returns how much that was.
    fn append(&mut self, bytes: &[u8]) -> usize {
        let mut done = 0;
        while done < bytes.len() {
            match self.append_some(&bytes[done..]) {
                Ok(0) | Err(_) => break,
                Ok(n) => done += n,
            }
        }
        done
    }

    fn append_some(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.file.is_none() {
            self.open()?;
        }
        if self.size >= self.max {
            self.rotate()?;
        }
        let room = usize::try_from(self.max - self.size).unwrap_or(usize::MAX);
        let Some(file) = &mut self.file else {
            return Ok(0);
        };
        let n = file.write(&bytes[..bytes.len().min(room)])?;
        self.size += n as u64;
        Ok(n)
    }

    fn open(&mut self) -> io::Result<()> {
        let Some(dir) = &self.dir else { return Ok(()) };
        let file = open_regular(dir, &self.name, OFlags::RDWR | OFlags::APPEND | OFlags::CREATE)?;
        self.size = fstat(&file)?.st_size.unsigned_abs();
        self.file = Some(File::from(file));
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let (Some(dir), Some(file)) = (&self.dir, &self.file) else {
            return Ok(());
        };
        if renameat(dir, &self.name, dir, &self.older).is_err() {
            // No room for a name: rather lose the older part than grow beyond the bound.
            ftruncate(file, 0)?;
            self.size = 0;
            return Ok(());
        }
        self.file = None;
        self.open()
    }
}

fn open_regular(dir: impl AsFd, name: &OsStr, flags: OFlags) -> io::Result<OwnedFd> {
    // NONBLOCK: should it be a fifo, opening it must not wait.
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?;
    if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn both_files_stay_within_the_bound_and_hold_the_newest_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut log = Log::new(&path, 100);
        let all: Vec<u8> = (0..357).map(|n| b'a' + (n % 26) as u8).collect();
        for chunk in all.chunks(7) {
            log.write(chunk);
        }
        let (new, old) =
            (fs::read(&path).unwrap(), fs::read(dir.path().join("console.log.1")).unwrap());
        assert_eq!((new.len(), old.len()), (57, 100));
        assert_eq!([old, new].concat(), &all[200..]);
        assert_eq!(log.tail(80), &all[357 - 80..]);
        assert_eq!(log.tail(10_000), &all[200..]);
    }

    #[test]
    fn an_existing_log_is_continued() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        Log::new(&path, 10).write(b"12345678");
        Log::new(&path, 10).write(b"90AB");
        assert_eq!(fs::read(&path).unwrap(), b"AB");
        assert_eq!(fs::read(dir.path().join("console.log.1")).unwrap(), b"1234567890");
    }

    #[test]
    fn tails_begin_with_a_line_if_they_were_cut() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::new(&dir.path().join("console.log"), 1000);
        log.write(b"first line\nsecond line\n");
        assert_eq!(log.tail(15), b"second line\n");
        assert_eq!(log.tail(100), b"first line\nsecond line\n");
    }

    #[test]
    fn links_fifos_and_missing_directories_are_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let target = dir.path().join("target");
        std::os::unix::fs::symlink(&target, &path).unwrap();
        let mut log = Log::new(&path, 1000);
        log.write(b"x");
        assert!(!target.exists());
        fs::remove_file(&path).unwrap();
        log.write(b"y");
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, "\r\n[ocivisor: 1 bytes of output were not logged]\r\ny");
        Log::new(&dir.path().join("none/console.log"), 1000).write(b"x");
        Log::new(&path, 0).write(b"z");
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
}
