//! Files that appear whole or not at all.
//!
//! A draft lies beside its place, under a name of its own that ends in `.part`, locked by flock(2) by who writes it. The
//! lock dies with its process, so [`sweep`] can tell rubbish from work. What was locked but has lost its name to a
//! sweep in that instant is begun again.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, RawDir};
use rustix::io::Errno;

const END: &str = ".part";

/// A file in the making. Dropping it removes it.
#[derive(Debug)]
pub struct Draft {
    dir: File,
    name: String,
    place: String,
    file: File,
    published: bool,
}

impl Draft {
    /// Begins the file that will have that name in the directory.
    pub(super) fn create(dir: &File, place: &str) -> io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        loop {
            let n = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!(".{place}.{}.{n}{END}", std::process::id());
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let mode = Mode::RUSR | Mode::WUSR;
            let file: File = match rustix::fs::openat(dir, &name, flags, mode) {
                // Of a process that had the same number.
                Err(Errno::EXIST) => continue,
                other => other?.into(),
            };
            rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
            if is_named(dir, &name, &file)? {
                let (dir, place) = (dir.try_clone()?, place.to_owned());
                return Ok(Self { dir, name, place, file, published: false });
            }
        }
    }

    /// To write and to read.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where it is meanwhile, for tools that take a path: good as long as this lives, and only in this process and what it
    /// starts.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Brings it to the disk and gives it its name, in place of what has that.
    ///
    /// # Errors
    /// The file system cannot; then what had the name has it still.
    pub fn publish(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        rustix::fs::renameat(&self.dir, &self.name, &self.dir, &self.place)?;
        self.published = true;
        self.dir.sync_all()
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.published {
            // What stays is swept later; there is nobody to tell.
            let _ = rustix::fs::unlinkat(&self.dir, &self.name, AtFlags::empty());
        }
    }
}

/// Removes drafts of the dead.
pub(super) fn sweep(dir: &File) -> io::Result<()> {
    let mut names = Vec::new();
    // A descriptor of its own: reading moves its position.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let reading = rustix::fs::openat(dir, ".", flags, Mode::empty())?;
    let mut space = Vec::with_capacity(16 * 1024);
    let mut entries = RawDir::new(reading, space.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') && name.ends_with(END) {
            names.push(name);
        }
    }
    for name in names {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file: File = match rustix::fs::openat(dir, &name, flags, Mode::empty()) {
            Err(Errno::NOENT) => continue,
            other => other?.into(),
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) if is_named(dir, &name, &file)? => {
                match rustix::fs::unlinkat(dir, &name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(e) => return Err(e.into()),
                }
            }
            Ok(()) | Err(Errno::WOULDBLOCK) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

fn is_named(dir: &File, name: &str, file: &File) -> io::Result<bool> {
    let ours = rustix::fs::fstat(file)?;
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(there) => Ok((there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)),
        Err(Errno::NOENT) => Ok(false),
        Err(e) => Err(e.into()),
    }
}
