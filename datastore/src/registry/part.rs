//! Blobs on their way here: `partial/<hex>` in the store.
//!
//! A part is what came so far, from the blob's first byte on. It outlives its process, so that a pull after a crash goes on
//! where the last one was. While a blob comes, its part is locked (flock, exclusive) by the one process that writes
//! it; whole, it is locked shared by those that read it. What is in it is worth nothing until its digest was seen:
//! the importer hashes from the first byte, whoever fetched it. A part that turns out wrong is unlinked.
//!
//! A part keeps its name until its bytes have the blob's: at every moment they can be found by one of the two, and need not
//! be fetched again. So it may have two names, here and in staging or `blobs`, and such a file is never written to.

use std::collections::HashSet;
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
    /// What was found wrong, and is not taken from the store again.
    wrong: Mutex<HashSet<Digest>>,
}

/// What there is of a blob; locked, if it is a part.
#[derive(Debug)]
pub(crate) enum Taken {
    /// Ours to write, or whole.
    Part(File),
    /// In the store already: of a pull that did not come to its end, or of another's that we waited for.
    Blob(File),
}

impl Parts {
    pub fn open(store: &Store) -> Result<Self> {
        let open = || {
            let dir = disk::ensure_dir(&store.dir, PARTIAL)?;
            Ok(Self { dir, blobs: store.blobs.try_clone()?, wrong: Mutex::default() })
        };
        open().map_err(|e: io::Error| store.io("make the directory", "partial", e))
    }

    /// Locks the part of a blob, waiting by `wait` while another process fetches it; none if that says to stop.
    /// Where the size is not known, it waits until nobody reads it either.
    pub fn take(&self, part: &Part, wait: impl Fn(Duration) -> bool) -> io::Result<Option<Taken>> {
        let (hex, size) = (&*part.digest.hex(), part.size);
        loop {
            if !lock(&self.wrong).contains(&part.digest)
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
                let found = file.metadata()?;
                if found.nlink() > 1 && size != Size::Exactly(found.len()) {
                    // Somebody else's bytes by another name, and not to be changed.
                    disk::unlink(&self.dir, hex)?;
                    continue;
                }
                return Ok(Some(Taken::Part(file)));
            }
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

    /// Hears that a part's bytes have the blob's name, durably: they do not need this one any more.
    pub fn published(&self, part: &Part) -> io::Result<()> {
        let file = lock(&part.state).file.clone();
        let hex = part.digest.hex();
        if let Some(file) = file
            && same(&self.dir, &hex, &file)?
        {
            disk::unlink(&self.dir, &hex)?;
        }
        Ok(())
    }

    /// Removes what turned out wrong: whoever takes it again begins anew.
    pub fn discard(&self, part: &Part) -> io::Result<()> {
        lock(&self.wrong).insert(part.digest);
        disk::unlink(&self.dir, &part.digest.hex()).map(drop)
    }

    /// Removes parts that nobody works on, and nobody went on with for a week or needs: they are blobs.
    pub fn clean(&self) -> io::Result<()> {
        self.clean_older(MAX_AGE)
    }

    fn clean_older(&self, age: Duration) -> io::Result<()> {
        for name in disk::names(&self.dir)? {
            let Ok(Some(file)) = disk::open_file(&self.dir, &name) else { continue };
            let since = SystemTime::now().duration_since(disk::modified(&self.dir, &name));
            let is_old = since.is_ok_and(|since| since >= age);
            if Digest::from_hex(&name).is_some()
                && (is_old || same(&self.blobs, &name, &file)?)
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

    /// Names the whole part's bytes `name` in `to`, synced. They keep the name they have until [`Parts::published`].
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
        Ok(())
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

    /// A store whose part and blob are one file, as a crash after the blob's publication leaves it.
    fn published(top: &tempfile::TempDir, bytes: &[u8]) -> Parts {
        let store = Store::open(&top.path().join("store")).unwrap();
        let parts = Parts::open(&store).unwrap();
        let hex = hello().digest.hex();
        disk::write_new(&parts.blobs, &hex, bytes).unwrap();
        disk::link(&parts.blobs, &hex, &parts.dir, &hex).unwrap();
        parts
    }

    #[test]
    fn what_became_a_blob_is_read_and_never_written_to() {
        let top = tempfile::tempdir().unwrap();
        let parts = published(&top, b"hello");
        let stop = Stop::default();
        let take = |size| parts.take(&Part::new(hello().digest, size), |t| stop.wait(t)).unwrap();
        for size in [Size::Exactly(5), Size::AtMost(5), Size::AtMost(9)] {
            assert!(matches!(take(size), Some(Taken::Blob(_))), "{size:?}");
        }
        for size in [Size::Exactly(6), Size::AtMost(4)] {
            disk::unlink(&parts.dir, &hello().digest.hex()).unwrap();
            disk::link(&parts.blobs, &hello().digest.hex(), &parts.dir, &hello().digest.hex())
                .unwrap();
            let Some(Taken::Part(fresh)) = take(size) else { panic!("{size:?}") };
            assert_eq!(
                (fresh.metadata().unwrap().nlink(), fresh.metadata().unwrap().len()),
                (1, 0)
            );
        }
    }

    #[test]
    fn a_blob_that_was_found_wrong_is_not_taken_again() {
        let top = tempfile::tempdir().unwrap();
        let parts = published(&top, b"HELLO");
        let stop = Stop::default();
        assert!(matches!(parts.take(&hello(), |t| stop.wait(t)).unwrap(), Some(Taken::Blob(_))));
        parts.discard(&hello()).unwrap();
        let Some(Taken::Part(file)) = parts.take(&hello(), |t| stop.wait(t)).unwrap() else {
            panic!()
        };
        assert_eq!(file.metadata().unwrap().len(), 0);
    }

    #[test]
    fn what_staging_of_the_dead_has_too_is_read_if_it_is_whole() {
        let top = tempfile::tempdir().unwrap();
        let store = Store::open(&top.path().join("store")).unwrap();
        let parts = Parts::open(&store).unwrap();
        let (hex, stop) = (hello().digest.hex(), Stop::default());
        for (bytes, links) in [(&b"hello"[..], 2), (b"hell", 1)] {
            disk::unlink(&parts.dir, &hex).unwrap();
            disk::unlink(&store.staging, "blob").unwrap();
            disk::write_new(&parts.dir, &hex, bytes).unwrap();
            disk::link(&parts.dir, &hex, &store.staging, "blob").unwrap();
            let Some(Taken::Part(file)) = parts.take(&hello(), |t| stop.wait(t)).unwrap() else {
                panic!()
            };
            assert_eq!(file.metadata().unwrap().nlink(), links);
        }
    }

    #[test]
    fn a_part_goes_when_its_bytes_are_a_blob_and_not_before() {
        let top = tempfile::tempdir().unwrap();
        let store = Store::open(&top.path().join("store")).unwrap();
        let parts = Parts::open(&store).unwrap();
        let (hex, stop, part) = (hello().digest.hex(), Stop::default(), Arc::new(hello()));
        let Some(Taken::Part(file)) = parts.take(&part, |t| stop.wait(t)).unwrap() else {
            panic!()
        };
        file.write_at(b"hello", 0).unwrap();
        part.begin(Arc::new(file), 5);
        part.end(Ok(()));
        part.settle(&parts, &store.staging, "blob").unwrap();
        assert_eq!(disk::names(&parts.dir).unwrap(), std::slice::from_ref(&hex));
        disk::publish(&store.staging, "blob", &store.blobs, &hex).unwrap();
        // Whoever comes now does not wait for those that read it.
        let other = parts.take(&hello(), |_| panic!("waited")).unwrap();
        assert!(matches!(other, Some(Taken::Blob(_))));
        parts.clean().unwrap();
        assert_eq!(disk::names(&parts.dir).unwrap(), std::slice::from_ref(&hex));
        parts.published(&part).unwrap();
        assert_eq!(disk::names(&parts.dir).unwrap(), Vec::<String>::new());
        // Somebody else's part of the same name stays.
        disk::write_new(&parts.dir, &hex, b"h").unwrap();
        parts.published(&part).unwrap();
        assert_eq!(disk::names(&parts.dir).unwrap(), std::slice::from_ref(&hex));
    }

    #[test]
    fn cleaning_takes_parts_that_are_blobs_at_once() {
        let top = tempfile::tempdir().unwrap();
        let parts = published(&top, b"hello");
        parts.clean().unwrap();
        assert_eq!(disk::names(&parts.dir).unwrap(), Vec::<String>::new());
        assert_eq!(disk::names(&parts.blobs).unwrap(), [hello().digest.hex()]);
    }
}
