//! A tar stream into a tree of files.
//!
//! A file is made beside its place, under a name that nobody has, and moved there when it is whole: what was
//! there before is there until then, whatever breaks off. Only the end of the process itself may leave one
//! behind (`.ocivisor-cp-` and 16 hex digits).

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use ocivisor_core::error::{Error, ErrorKind, Result};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, fchmod, fchown,
    fstat, ftruncate, futimens, linkat, mkdirat, openat, openat2, renameat, stat, statat,
    symlinkat, unlinkat, utimensat,
};
use rustix::io::{Errno, pwrite};
use tar::EntryType;

use crate::place::Target;
use crate::read::{Entry, Reader};
use crate::{MAX_DEPTH, Notes, failed, shown};

/// Who wrote the stream, and what lies below the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// A stranger wrote it, onto files of ours: no link is followed, and anything but files, directories and
    /// symbolic links refuses the stream.
    Stranger,
    /// It goes into the guest, by a process that is inside. Who made an archive need not be who unpacks it:
    /// links are followed, but none leads out of the destination.
    Inside,
}

/// What the names in the stream mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming<'a> {
    /// All is below the one name that comes first, which may get another one at the destination.
    One {
        /// The name that must come, see [`Parts::top`](crate::place::Parts::top): who asked for a file must not
        /// get one that is called otherwise (CVE-2019-6111). Any if none: who writes the stream says as well
        /// where it goes.
        expect: Option<&'a [u8]>,
    },
    /// As they are, below the destination, which must be there.
    Own,
}

/// How a stream is unpacked.
#[derive(Debug, Clone, Copy)]
pub struct Rules<'a> {
    /// See there.
    pub trust: Trust,
    /// See there.
    pub naming: Naming<'a>,
    /// Whether owners and set-id bits are kept.
    pub owners: bool,
}

/// Unpacks a stream to `path`.
///
/// # Errors
/// `Invalid`: no tar, or one that is refused. `NotFound`, `Conflict`, `Permission`, `Exhausted`: the
/// destination. What came before the error stays, but for a file that is not whole; what that would have
/// replaced is there as it was.
pub fn unpack(from: impl Read, path: &[u8], rules: Rules<'_>, notes: &mut Notes) -> Result<()> {
    let mut reader = Reader::new(from);
    let (target, top, mut next) = match rules.naming {
        // Looked for before anything is read.
        Naming::Own => (Target::existing(path)?, None, None),
        Naming::One { expect } => {
            let Some(first) = reader.next()? else {
                return Err(Error::new(ErrorKind::Invalid, "tar stream: nothing is in it"));
            };
            let top = top(&first, expect)?;
            let name = (!top.is_empty()).then_some(&top[..]);
            let target = Target::find(path, name, first.kind == EntryType::Directory)?;
            (target, Some(top), Some(first))
        }
    };
    if next.is_none() {
        next = reader.next()?;
    }
    let resolve = rules.trust.resolve(&target.dir).map_err(|e| failed("look at", path, e))?;
    let mut tree = Tree { target: &target, rules, resolve, notes, open: Vec::new() };
    while let Some(entry) = next {
        let names = parts(&entry.path)?;
        let names = match &top {
            Some(top) if !top.is_empty() => {
                let below = names.strip_prefix(&[&top[..]]);
                below.ok_or_else(|| strange(&entry.path))?
            }
            _ => &names[..],
        };
        let names: Vec<&[u8]> =
            target.name.as_deref().into_iter().chain(names.iter().copied()).collect();
        tree.place(&entry, &names, top.as_deref(), &mut reader)?;
        next = reader.next()?;
    }
    tree.leave_to(&[])?;
    // Archives are longer than their members; who writes them wants all to be read.
    let mut rest = reader.into_inner();
    let mut chunk = [0; 16 * 1024];
    while matches!(rest.read(&mut chunk), Ok(n) if n > 0) {}
    Ok(())
}

/// The name that all others are below, if it is the one that is expected; empty: there is none, for what is in
/// a directory is meant.
fn top(first: &Entry, expect: Option<&[u8]>) -> Result<Vec<u8>> {
    let top = match parts(&first.path)?.as_slice() {
        [] if first.kind == EntryType::Directory => b"",
        [top] => *top,
        _ => return Err(strange(&first.path)),
    };
    let expected =
        expect.is_none_or(|name| if name == b"." { top.is_empty() } else { top == name });
    if expected { Ok(top.to_vec()) } else { Err(strange(&first.path)) }
}

fn strange(path: &[u8]) -> Error {
    Error::new(ErrorKind::Invalid, format!("tar stream: {} is not what was asked for", shown(path)))
}

/// The names of a path that leads downwards only.
fn parts(path: &[u8]) -> Result<Vec<&[u8]>> {
    let refuse = |why: &str| {
        Err(Error::new(ErrorKind::Invalid, format!("tar stream: {} {why}", shown(path))))
    };
    if path.is_empty() || path.starts_with(b"/") {
        return refuse("is no relative path");
    }
    let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".");
    let names: Vec<&[u8]> = names.collect();
    if names.contains(&&b".."[..]) {
        return refuse("leads upwards");
    }
    if names.len() > MAX_DEPTH {
        return refuse("is too deep");
    }
    Ok(names)
}

impl Trust {
    /// How names below the destination are resolved.
    fn resolve(self, dir: &OwnedFd) -> rustix::io::Result<ResolveFlags> {
        if self == Self::Stranger {
            return Ok(ResolveFlags::BENEATH
                | ResolveFlags::NO_SYMLINKS
                | ResolveFlags::NO_MAGICLINKS);
        }
        // In the root itself there is nowhere else to go, and links with whole paths are common there
        // (/var/run to /run); elsewhere those lead out.
        let (dir, root) = (fstat(dir)?, stat("/")?);
        let is_root = (dir.st_dev, dir.st_ino) == (root.st_dev, root.st_ino);
        let bound = if is_root { ResolveFlags::IN_ROOT } else { ResolveFlags::BENEATH };
        Ok(bound | ResolveFlags::NO_MAGICLINKS)
    }
}

/// A directory whose members come now.
struct Open {
    names: Vec<Vec<u8>>,
    fd: OwnedFd,
    /// What it gets when they are there; nothing if it was there before.
    entry: Option<Entry>,
}

struct Tree<'t> {
    target: &'t Target,
    rules: Rules<'t>,
    resolve: ResolveFlags,
    notes: &'t mut Notes,
    open: Vec<Open>,
}

impl Tree<'_> {
    fn place(
        &mut self,
        entry: &Entry,
        names: &[&[u8]],
        top: Option<&[u8]>,
        reader: &mut Reader<impl Read>,
    ) -> Result<()> {
        self.leave_to(names)?;
        let Some((name, above)) = names.split_last() else {
            // The destination itself, which was there before.
            return if entry.kind == EntryType::Directory {
                Ok(())
            } else {
                Err(strange(&entry.path))
            };
        };
        let dir = self.dir(above, &entry.path)?;
        match entry.kind {
            EntryType::Directory => self.directory(&dir, name, names, entry),
            EntryType::Regular => self.file(&dir, name, entry, reader),
            EntryType::Symlink => self.symlink(&dir, name, entry),
            EntryType::Link if self.rules.trust == Trust::Inside => {
                self.link(&dir, name, entry, top)
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo
                if self.rules.trust == Trust::Inside =>
            {
                self.notes.leave_out(&entry.path, "a device or FIFO");
                Ok(())
            }
            other => {
                let (path, byte) = (shown(&entry.path), other.as_byte().escape_ascii());
                let what =
                    format!("tar stream: {path} is of the type {byte}, which is not unpacked");
                Err(Error::new(ErrorKind::Invalid, what))
            }
        }
    }

    /// Opens a directory that was named, `dir` being the one above it.
    fn below(&self, dir: &OwnedFd, names: &[&[u8]], path: &[u8]) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        // A link may lead anywhere below the destination, so that is what is looked at as a whole. Without
        // links a step does, and is no path that could be too long.
        let opened = match (self.rules.trust, names.last()) {
            (Trust::Stranger, Some(name)) => {
                openat2(dir, *name, flags, Mode::empty(), self.resolve)
            }
            (Trust::Inside, Some(_)) => {
                openat2(&self.target.dir, names.join(&b'/'), flags, Mode::empty(), self.resolve)
            }
            (_, None) => return dup(&self.target.dir, path),
        };
        opened.map_err(|e| match e {
            Errno::LOOP | Errno::NOTDIR => {
                let what = format!("{} has something in its way that is no directory", shown(path));
                Error::new(ErrorKind::Conflict, what)
            }
            Errno::XDEV => {
                let what = format!("{} is behind a link out of the destination", shown(path));
                Error::new(ErrorKind::Conflict, what)
            }
            e => failed("open the directory of", path, e),
        })
    }

    /// The directory of that name; made, with all above it, if nothing said so before.
    fn dir(&mut self, names: &[&[u8]], path: &[u8]) -> Result<OwnedFd> {
        let (mut fd, known) = match self.open.last() {
            Some(open) => (dup(&open.fd, path)?, open.names.len()),
            None => (dup(&self.target.dir, path)?, 0),
        };
        for at in known..names.len() {
            let step = &names[..=at];
            fd = match self.below(&fd, step, path) {
                Err(e) if e.kind == ErrorKind::NotFound => {
                    make_dir(&fd, names[at], 0o755, path)?;
                    self.below(&fd, step, path)?
                }
                found => found?,
            };
        }
        Ok(fd)
    }

    fn directory(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        names: &[&[u8]],
        entry: &Entry,
    ) -> Result<()> {
        // Closed to others until all is in it.
        let made = make_dir(dir, name, 0o700, &entry.path)?;
        let fd = self.below(dir, names, &entry.path)?;
        let names = names.iter().map(|name| name.to_vec()).collect();
        // Who keeps owners wants what is there to become the same.
        let entry = (made || self.rules.owners).then(|| entry.clone());
        self.open.push(Open { names, fd, entry });
        Ok(())
    }

    /// Ends the directories that `names` is not in.
    fn leave_to(&mut self, names: &[&[u8]]) -> Result<()> {
        let inside = |open: &Open| {
            names.len() > open.names.len() && open.names.iter().zip(names).all(|(a, b)| a == b)
        };
        while self.open.last().is_some_and(|open| !inside(open)) {
            if let Some(Open { fd, entry: Some(entry), .. }) = self.open.pop() {
                self.settle(&fd, &entry)?;
            }
        }
        Ok(())
    }

    /// Owner, mode and time, in this order: each change takes back some of what comes after it.
    fn settle(&self, fd: &OwnedFd, entry: &Entry) -> Result<()> {
        let path = &entry.path;
        if self.rules.owners {
            let (uid, gid) = owners(entry)?;
            fchown(fd, Some(uid), Some(gid)).map_err(|e| unowned(entry, e))?;
        }
        // Sticky gives nobody anything, and without it all may delete all in a /tmp.
        let bits = match (self.rules.owners, entry.kind) {
            (true, _) => 0o7777,
            (false, EntryType::Directory) => 0o1777,
            (false, _) => 0o777,
        };
        fchmod(fd, Mode::from_raw_mode(entry.mode & bits))
            .map_err(|e| failed("change", path, e))?;
        futimens(fd, &times(entry)).map_err(|e| failed("change", path, e))
    }

    fn file(
        &self,
        dir: &OwnedFd,
        name: &[u8],
        entry: &Entry,
        reader: &mut Reader<impl Read>,
    ) -> Result<()> {
        check_room(dir, name, &entry.path)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let (fd, made) = Made::by(dir, &entry.path, "create", |made| {
            openat(dir, made, flags, Mode::from_raw_mode(0o600))
        })?;
        fill(&fd, entry, reader)?;
        self.settle(&fd, entry)?;
        made.becomes(name, &entry.path)
    }

    fn symlink(&self, dir: &OwnedFd, name: &[u8], entry: &Entry) -> Result<()> {
        check_room(dir, name, &entry.path)?;
        let ((), made) =
            Made::by(dir, &entry.path, "link", |made| symlinkat(&entry.link[..], dir, made))?;
        if self.rules.owners {
            let (uid, gid) = owners(entry)?;
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::chownat(dir, &made.name, Some(uid), Some(gid), flags)
                .map_err(|e| unowned(entry, e))?;
        }
        utimensat(dir, &made.name, &times(entry), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| failed("change", &entry.path, e))?;
        made.becomes(name, &entry.path)
    }

    /// Another name of a file that is there.
    fn link(&self, dir: &OwnedFd, name: &[u8], entry: &Entry, top: Option<&[u8]>) -> Result<()> {
        let names = parts(&entry.link)?;
        let names = match top {
            Some(top) if !top.is_empty() => {
                names.strip_prefix(&[top]).ok_or_else(|| strange(&entry.link))?
            }
            _ => &names[..],
        };
        let whole: Vec<&[u8]> =
            self.target.name.as_deref().into_iter().chain(names.iter().copied()).collect();
        let (old, above) = whole.split_last().ok_or_else(|| strange(&entry.link))?;
        let from = self.below(&self.target.dir, above, &entry.link)?;
        let stat = statat(&from, *old, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| failed("look at", &entry.link, e))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(strange(&entry.link));
        }
        check_room(dir, name, &entry.path)?;
        let ((), made) = Made::by(dir, &entry.path, "link", |made| {
            linkat(&from, *old, dir, made, AtFlags::empty())
        })?;
        made.becomes(name, &entry.path)
    }
}

/// Something that is not in its place yet, and goes if it does not get there.
struct Made<'d> {
    dir: &'d OwnedFd,
    name: String,
}

impl<'d> Made<'d> {
    /// Makes it with a name of its own.
    fn by<T>(
        dir: &'d OwnedFd,
        path: &[u8],
        what: &str,
        make: impl Fn(&str) -> rustix::io::Result<T>,
    ) -> Result<(T, Self)> {
        loop {
            let name = format!(".ocivisor-cp-{:016x}", RandomState::new().build_hasher().finish());
            match make(&name) {
                Ok(made) => return Ok((made, Self { dir, name })),
                // Another's, as unlikely as it is.
                Err(Errno::EXIST) => {}
                Err(e) => return Err(failed(what, path, e)),
            }
        }
    }

    /// Moves it to its place.
    fn becomes(self, name: &[u8], path: &[u8]) -> Result<()> {
        renameat(self.dir, &self.name, self.dir, name).map_err(|e| failed("replace", path, e))
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        // After it was moved it is still there if its place had the same file, rename(2). If it cannot go, the
        // error is told all the same.
        let _ = unlinkat(self.dir, &self.name, AtFlags::empty());
    }
}

fn dup(fd: &OwnedFd, path: &[u8]) -> Result<OwnedFd> {
    rustix::io::fcntl_dupfd_cloexec(fd.as_fd(), 0).map_err(|e| failed("open", path, e))
}

/// False if something has that name already.
fn make_dir(dir: &OwnedFd, name: &[u8], mode: u32, path: &[u8]) -> Result<bool> {
    match mkdirat(dir, name, Mode::from_raw_mode(mode)) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(e) => Err(failed("make the directory", path, e)),
    }
}

/// Whether what is there may be replaced: a file or link; nothing is written into it.
fn check_room(dir: &OwnedFd, name: &[u8], path: &[u8]) -> Result<()> {
    let stat = match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(()),
        stat => stat.map_err(|e| failed("look at", path, e))?,
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile | FileType::Symlink => Ok(()),
        _ => {
            let what = format!("{} is there, and neither a file nor a link", shown(path));
            Err(Error::new(ErrorKind::Conflict, what))
        }
    }
}

fn fill(fd: &OwnedFd, entry: &Entry, reader: &mut Reader<impl Read>) -> Result<()> {
    let wrong = |e: Errno| failed("write", &entry.path, e);
    let whole = [(0, entry.size)];
    let mut chunk = vec![0; 64 * 1024];
    for (offset, length) in entry.pieces.as_deref().unwrap_or(&whole) {
        let (mut at, end) = (*offset, offset + length);
        while at < end {
            let most = usize::try_from(end - at).unwrap_or(usize::MAX).min(chunk.len());
            let got = reader.content(&mut chunk[..most])?;
            if got == 0 {
                return Err(strange(&entry.path));
            }
            let mut rest = &chunk[..got];
            while !rest.is_empty() {
                match pwrite(fd, rest, at) {
                    Ok(n) => {
                        rest = &rest[n..];
                        at += n as u64;
                    }
                    Err(Errno::INTR) => {}
                    Err(e) => return Err(wrong(e)),
                }
            }
        }
    }
    match entry.pieces {
        Some(_) => ftruncate(fd, entry.size).map_err(wrong),
        None => Ok(()),
    }
}

fn owners(entry: &Entry) -> Result<(Uid, Gid)> {
    // All ones mean "unchanged" to the kernel.
    let id = |id: u64| u32::try_from(id).ok().filter(|id| *id != u32::MAX);
    let none = || {
        let what = format!("{} belongs to {}:{}", shown(&entry.path), entry.uid, entry.gid);
        Error::new(ErrorKind::Invalid, format!("{what}, which is no id"))
    };
    let (uid, gid) = (id(entry.uid).ok_or_else(none)?, id(entry.gid).ok_or_else(none)?);
    Ok((Uid::from_raw(uid), Gid::from_raw(gid)))
}

fn unowned(entry: &Entry, error: Errno) -> Error {
    let Entry { uid, gid, .. } = entry;
    if error == Errno::INVAL {
        let what =
            format!("{} belongs to {uid}:{gid}, which the guest does not have", shown(&entry.path));
        return Error::new(ErrorKind::Invalid, what).hint("without -a all belongs to root");
    }
    failed(&format!("give to {uid}:{gid}"), &entry.path, error)
}

fn times(entry: &Entry) -> Timestamps {
    // Beyond what a kernel keeps, it takes its latest.
    let seconds = i64::try_from(entry.mtime).unwrap_or(i64::MAX);
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}
