//! Where saved images go: a tar or a directory that appears whole or not at all.
//!
//! A tar is a file without a name until it is whole ([`Target`]). A directory is filled beside its place under a name
//! of ours, locked as in staging, and moved there at the end; what a killed process left is removed by the next one
//! that saves a directory there.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FlockOperation, Mode};

use super::tar::{Bounds, Head, TarWriter};
use crate::disk;
use crate::error::{Doing, Error, Fault, Result, escape};
use crate::target::Target;

const PREFIX: &str = ".ocivisor-save-";

/// Takes bytes of a file.
pub(super) type Take<'a> = &'a mut dyn FnMut(&[u8]) -> std::result::Result<(), Fault>;

/// Files by name, on their way to the target.
pub(super) struct Output<'a> {
    name: &'a str,
    form: Form<'a>,
    written: u64,
}

enum Form<'a> {
    Tar(TarWriter<BufWriter<File>>, Target),
    Directory(File, Temp<'a>),
}

impl<'a> Output<'a> {
    /// A tar that will be `name` in `dir`, where nothing may have the name.
    pub fn tar(dir: &File, name: &'a str) -> Result<Self> {
        let target = Target::within(dir, name)?;
        let file = target.file().try_clone().map_err(|e| failed("make", name, e))?;
        let out = BufWriter::with_capacity(256 * 1024, file);
        Ok(Self { name, form: Form::Tar(TarWriter::new(out, Bounds::NONE), target), written: 0 })
    }

    /// A directory that will be `name` in `dir`, where nothing may have the name.
    pub fn directory(dir: &'a File, name: &'a str) -> Result<Self> {
        if disk::stat(dir, name).map_err(|e| failed("inspect", name, e))?.is_some() {
            return Err(exists(name));
        }
        let (temp, made) = Temp::create(dir, name)?;
        Ok(Self { name, form: Form::Directory(made, temp), written: 0 })
    }

    /// Bytes of content written so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Makes a directory inside; a parent comes before its children.
    pub fn folder(&mut self, path: &str) -> Result<()> {
        let made = match &mut self.form {
            Form::Tar(tar, _) => tar.head(&Head::folder(&format!("{path}/"))),
            Form::Directory(dir, _) => {
                rustix::fs::mkdirat(&*dir, path, Mode::from_raw_mode(0o755)).doing("make")
            }
        };
        made.map_err(|fault| fault.about(self.shown(path)))
    }

    pub fn document(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        self.file(path, Some(bytes.len() as u64), |take| {
            take(bytes).map_err(|fault| fault.about(path))
        })
    }

    /// Makes a file of what `fill` gives; its size need not be known before.
    pub fn file(
        &mut self,
        path: &str,
        size: Option<u64>,
        fill: impl FnOnce(Take<'_>) -> Result<()>,
    ) -> Result<()> {
        let shown = self.shown(path);
        let about = |fault: Fault| fault.about(shown.clone());
        let mut count = 0;
        match &mut self.form {
            Form::Tar(tar, _) => {
                let start = tar.written();
                tar.head(&Head::member(path, size.unwrap_or(0))).map_err(about)?;
                fill(&mut |bytes| {
                    count += bytes.len() as u64;
                    tar.data(bytes)
                })?;
                tar.pad(count).map_err(about)?;
                if size != Some(count) {
                    tar.resize(start, &Head::member(path, count)).map_err(about)?;
                }
            }
            Form::Directory(dir, _) => {
                let file = disk::create_new(dir, path).doing("make").map_err(about)?;
                rustix::fs::fchmod(&file, Mode::from_raw_mode(0o644))
                    .doing("change mode of")
                    .map_err(about)?;
                fill(&mut |bytes| {
                    count += bytes.len() as u64;
                    (&file).write_all(bytes).doing("write")
                })?;
            }
        }
        self.written += count;
        Ok(())
    }

    /// Makes it durable and gives it its name.
    pub fn finish(self) -> Result<()> {
        let Self { name, form, .. } = self;
        let about = |fault: Fault| fault.about(escape(name.as_bytes()));
        match form {
            Form::Tar(tar, target) => {
                tar.finish().map_err(about)?;
                target.publish().map(drop)
            }
            Form::Directory(made, temp) => {
                let publish = || {
                    rustix::fs::syncfs(made.as_fd()).doing("sync")?;
                    disk::publish_dir(temp.dir, &temp.name, temp.dir, name).doing("publish")
                };
                if publish().map_err(about)? { Ok(()) } else { Err(exists(name)) }
            }
        }
    }

    fn shown(&self, path: &str) -> String {
        format!("{} file {path}", escape(self.name.as_bytes()))
    }
}

impl TarWriter<BufWriter<File>> {
    /// Writes the header at `start` anew, with the size that turned out.
    fn resize(&mut self, start: u64, head: &Head<'_>) -> std::result::Result<(), Fault> {
        let out = self.out_mut();
        out.flush().doing("write")?;
        out.get_ref().write_all_at(&head.block(), start).doing("write")
    }
}

fn failed(op: &'static str, name: &str, e: io::Error) -> Error {
    Error::io(op, escape(name.as_bytes()), e)
}

fn exists(name: &str) -> Error {
    Error::Exists { file: escape(name.as_bytes()) }
}

/// A directory under a name of ours beside its place, removed when dropped.
struct Temp<'a> {
    dir: &'a File,
    name: String,
    /// Keeps the lock.
    _locked: File,
}

impl<'a> Temp<'a> {
    fn create(dir: &'a File, target: &str) -> Result<(Self, File)> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        if matches!(target, "" | "." | "..") || target.contains(['/', '\0']) {
            return Err(failed("save as", target, io::ErrorKind::InvalidInput.into()));
        }
        clean(dir).map_err(|e| failed("clean up beside", target, e))?;
        loop {
            let n = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!("{PREFIX}{}-{n}", process::id());
            let create = || -> io::Result<Option<(Self, File)>> {
                let made = disk::make_dir(dir, &name)?;
                let locked = made.try_clone()?;
                disk::lock(&locked, FlockOperation::LockExclusive)?;
                // A cleaner may have been faster than the lock.
                let there = disk::stat(dir, &name)?;
                let ours = rustix::fs::fstat(&locked)?;
                let is_ours =
                    there.is_some_and(|s| (s.st_dev, s.st_ino) == (ours.st_dev, ours.st_ino));
                Ok(is_ours.then(|| (Self { dir, name: name.clone(), _locked: locked }, made)))
            };
            match create() {
                Ok(Some(made)) => return Ok(made),
                Ok(None) => {}
                // Left by a process that had our id, and in use by somebody who has it elsewhere.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(failed("make a directory beside", target, e)),
            }
        }
    }
}

impl Drop for Temp<'_> {
    fn drop(&mut self) {
        // Moved away by now, or removed by the next one that saves here; there is nobody to tell.
        drop(disk::remove_tree(self.dir.as_fd(), self.name.as_bytes()));
    }
}

/// Removes what dead processes left.
fn clean(dir: &File) -> io::Result<()> {
    for name in disk::names(dir)?.into_iter().filter(|n| n.starts_with(PREFIX)) {
        // Gone, or nothing that we made.
        let Ok(found) = disk::open_dir(dir, &name) else { continue };
        if disk::lock(&found, FlockOperation::NonBlockingLockExclusive)? {
            disk::remove_tree(dir.as_fd(), name.as_bytes())?;
        }
    }
    Ok(())
}
