//! Blobs on their way here: `partial/<hex>` in the store.
//!
//! A part is what came so far, from the blob's first byte on. It outlives its process, so that a pull after a crash goes on
//! where the last one was. While a blob comes, its part is locked (flock, exclusive) by the one process that writes
//! it; whole, it is locked shared by those that read it. What is in it is worth nothing until its digest was seen:
//! the importer hashes from the first byte, whoever fetched it. A part that turns out wrong is unlinked.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};

use super::net::lock;
use crate::digest::Digest;
use crate::disk;
use crate::error::{Error, Result};
use crate::prune::PARTIAL;
use crate::store::Store;

/// Parts nobody went on with for so long are removed.
const MAX_AGE: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long a blob is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    /// By the word of who named its digest.
    Exactly(u64),
    /// Nobody said; no longer than is allowed.
    AtMost(u64),
}

impl Size {
    /// Most bytes that it can have.
    pub fn most(self) -> u64 {
        let (Self::Exactly(most) | Self::AtMost(most)) = self;
        most
    }

    fn fits(self, length: u64) -> bool {
        match self {
            Self::Exactly(size) => length == size,
            Self::AtMost(most) => length <= most,
        }
    }
}

/// The folder of parts, and the blobs they become.
#[derive(Debug)]
pub(crate) struct Parts {
    dir: File,
    blobs: File,
}

/// What there is of a blob; locked, if it is a part.
#[derive(Debug)]
pub(crate) enum Taken {
    /// Ours to write, or whole.
    Part(File),
    /// Came here while we waited, by another's work.
    Blob(File),
}

impl Parts {
    pub fn open(store: &Store) -> Result<Self> {
        let open = || {
            let dir = disk::ensure_dir(&store.dir, PARTIAL)?;
            Ok(Self { dir, blobs: store.blobs.try_clone()? })
        };
        open().map_err(|e: io::Error| store.io("make the directory", "partial", e))
    }

    /// Locks the part of a blob, waiting by `wait` while another process fetches it; none if that says to stop.
    /// Where the size is not known, it waits until nobody reads it either.
    pub fn take(&self, part: &Part, wait: impl Fn(Duration) -> bool) -> io::Result<Option<Taken>> {
        let (hex, size) = (&*part.digest.hex(), part.size);
        let mut waited = false;
        loop {
            if waited
                && disk::file_size(&self.blobs, hex)?.is_some_and(|length| size.fits(length))
                && let Some(blob) = disk::open_file(&self.blobs, hex)?
            {
                return Ok(Some(Taken::Blob(blob)));
            }
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mode = Mode::RUSR | Mode::WUSR;
            let file: File = rustix::fs::openat(&self.dir, hex, flags, mode)?.into();
            if disk::lock(&file, FlockOperation::NonBlockingLockExclusive)? {
                if !same(&self.dir, hex, &file)? {
                    continue;
                }
                if file.metadata()?.nlink() > 1 {
                    // Of a power failure: it is a published blob by another name, and not to be changed.
                    disk::unlink(&self.dir, hex)?;
                    continue;
                }
                return Ok(Some(Taken::Part(file)));
            }
            waited = true;
            // Whole parts are locked shared, and may be read by any number.
            if disk::lock(&file, FlockOperation::NonBlockingLockShared)?
                && same(&self.dir, hex, &file)?
                && size == Size::Exactly(file.metadata()?.len())
            {
                return Ok(Some(Taken::Part(file)));
            }
            drop(file);
            if wait(Duration::from_millis(100)) {
                return Ok(None);
            }
        }
    }

    /// Gives the bytes of a part a second name in `to`, in place of a file that is there. Says no if somebody else
    /// moved them; they have to be copied then.
    fn link(&self, hex: &str, file: &File, to: &File, name: &str) -> io::Result<bool> {
        for from in [&self.dir, &self.blobs] {
            if !same(from, hex, file)? {
                continue;
            }
            disk::unlink(to, name)?;
            let linked = rustix::fs::linkat(from, hex, to, name, AtFlags::empty());
            if linked.is_ok() && same(to, name, file)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Removes what turned out wrong: whoever takes it again begins anew.
    pub fn discard(&self, part: &Part) -> io::Result<()> {
        disk::unlink(&self.dir, &part.digest.hex()).map(drop)
    }

    /// Removes parts that nobody works on and nobody went on with for a week.
    pub fn clean(&self) -> io::Result<()> {
        self.clean_older(MAX_AGE)
    }

    fn clean_older(&self, age: Duration) -> io::Result<()> {
        for name in disk::names(&self.dir)? {
            let Ok(Some(file)) = disk::open_file(&self.dir, &name) else { continue };
            let since = SystemTime::now().duration_since(disk::modified(&self.dir, &name));
            if Digest::from_hex(&name).is_some()
                && since.is_ok_and(|since| since >= age)
                && disk::lock(&file, FlockOperation::NonBlockingLockExclusive)?
                && same(&self.dir, &name, &file)?
            {
                disk::unlink(&self.dir, &name)?;
            }
        }
        Ok(())
    }
}

fn same(at: &File, name: &str, file: &File) -> io::Result<bool> {
    let ours = rustix::fs::fstat(file)?;
    Ok(disk::stat(at, name)?.is_some_and(|s| (s.st_dev, s.st_ino) == (ours.st_dev, ours.st_ino)))
}

/// A blob that comes, or has come, into a file: one thread writes, others read behind it.
#[derive(Debug)]
pub(crate) struct Part {
    pub digest: Digest,
    pub size: Size,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    file: Option<Arc<File>>,
    length: u64,
    /// Bytes that an earlier attempt left.
    found: u64,
    /// The writer is done, well or badly.
    over: bool,
    error: Option<Error>,
}

impl Part {
    pub fn new(digest: Digest, size: Size) -> Self {
        Self { digest, size, state: Mutex::default(), changed: Condvar::new() }
    }

    /// There is a file, with what is left of an earlier attempt.
    pub fn begin(&self, file: Arc<File>, found: u64) {
        let mut state = lock(&self.state);
        state.file = Some(file);
        state.length = found;
        state.found = found;
        self.changed.notify_all();
    }

    pub fn grow(&self, length: u64) {
        lock(&self.state).length = length;
        self.changed.notify_all();
    }

    pub fn end(&self, result: Result<()>) {
        let mut state = lock(&self.state);
        state.over = true;
        state.error = result.err();
        self.changed.notify_all();
    }

    /// Bytes that are here.
    pub fn length(&self) -> u64 {
        lock(&self.state).length
    }

    /// Bytes that an earlier attempt left.
    pub fn found(&self) -> u64 {
        lock(&self.state).found
    }

    /// Why the bytes do not come, once.
    pub fn error(&self) -> Option<Error> {
        lock(&self.state).error.take()
    }

    /// Names the whole part's bytes `name` in `to`, synced.
    pub fn settle(self: &Arc<Self>, parts: &Parts, to: &File, name: &str) -> io::Result<()> {
        let file = lock(&self.state).file.clone();
        let file = file.ok_or_else(|| io::Error::other("no part"))?;
        let hex = self.digest.hex();
        file.sync_all()?;
        if !parts.link(&hex, &file, to, name)? {
            disk::unlink(to, name)?;
            let mut copy = disk::create_new(to, name)?;
            io::copy(&mut self.reader(), &mut copy)?;
            copy.sync_all()?;
        }
        parts.discard(self)
    }

    /// Reads from the first byte on, waiting for what has not come.
    pub fn reader(self: &Arc<Self>) -> Behind {
        Behind { part: self.clone(), at: 0 }
    }
}

/// Reads a part behind its writer.
#[derive(Debug)]
pub(crate) struct Behind {
    part: Arc<Part>,
    at: u64,
}

impl Read for Behind {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut state = lock(&self.part.state);
        let (file, left) = loop {
            if let Some(file) = state.file.as_ref().filter(|_| state.length > self.at) {
                break (file.clone(), state.length - self.at);
            }
            if state.over && state.error.is_none() {
                return Ok(0);
            }
            if state.over {
                return Err(io::Error::other("the blob does not come"));
            }
            state = self.part.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        drop(state);
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        let n = file.read_at(&mut buf[..want], self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::super::net::Stop;
    use super::*;

    fn hello() -> Part {
        Part::new(Digest::of(b"hello"), Size::Exactly(5))
    }

    #[test]
    fn a_reader_follows_its_writer_and_hears_of_its_end() {
        let top = tempfile::tempdir().unwrap();
        let dir = File::open(top.path()).unwrap();
        let file = Arc::new(disk::create_new(&dir, "x").unwrap());
        let part = Arc::new(hello());
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut text = String::new();
                part.reader().read_to_string(&mut text).map(|_| text)
            });
            part.begin(file.clone(), 0);
            for n in 0..5 {
                file.write_at(&b"hello"[n..=n], n as u64).unwrap();
                part.grow(n as u64 + 1);
            }
            part.end(Ok(()));
            assert_eq!(reader.join().unwrap().unwrap(), "hello");
        });
        part.end(Err(Error::damaged("x", "y")));
        let mut text = String::new();
        part.reader().read_to_string(&mut text).unwrap_err();
        assert!(matches!(part.error(), Some(Error::Damaged { .. })));
    }

    #[test]
    fn one_process_writes_a_part_and_many_read_it_whole() {
        let top = tempfile::tempdir().unwrap();
        let store = Store::open(&top.path().join("store")).unwrap();
        let parts = Parts::open(&store).unwrap();
        let stop = Stop::default();
        let Some(Taken::Part(first)) = parts.take(&hello(), |t| stop.wait(t)).unwrap() else {
            panic!()
        };
        std::thread::scope(|scope| {
            let second = scope.spawn(|| parts.take(&hello(), |t| stop.wait(t)).unwrap());
            first.write_at(b"hello", 0).unwrap();
            disk::lock(&first, FlockOperation::LockShared).unwrap();
            assert!(matches!(second.join().unwrap(), Some(Taken::Part(_))));
        });
        let left = |age| {
            parts.clean_older(age).unwrap();
            disk::names(&parts.dir).unwrap().len()
        };
        assert_eq!(left(Duration::ZERO), 1);
        drop(first);
        assert_eq!(left(Duration::from_secs(60)), 1);
        assert_eq!(left(Duration::ZERO), 0);
    }

    #[test]
    fn who_waited_finds_the_blob_that_another_brought() {
        let top = tempfile::tempdir().unwrap();
        let store = Store::open(&top.path().join("store")).unwrap();
        let parts = Parts::open(&store).unwrap();
        let hex = hello().digest.hex();
        let stop = Stop::default();
        let Some(Taken::Part(file)) = parts.take(&hello(), |t| stop.wait(t)).unwrap() else {
            panic!()
        };
        file.write_at(b"hello", 0).unwrap();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| parts.take(&hello(), |t| stop.wait(t)).unwrap());
            rustix::fs::renameat(&parts.dir, &hex, &parts.blobs, &hex).unwrap();
            drop(file);
            let taken = second.join().unwrap();
            assert!(matches!(taken, Some(Taken::Blob(_) | Taken::Part(_))));
        });
        stop.set();
        let other = Part::new(hello().digest, Size::Exactly(6));
        let Some(Taken::Part(_held)) = parts.take(&other, |t| stop.wait(t)).unwrap() else {
            panic!()
        };
        assert!(parts.take(&other, |t| stop.wait(t)).unwrap().is_none());
    }
}
