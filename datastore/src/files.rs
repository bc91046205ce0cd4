//! The files of an image outside the store: a directory or a tar, read by name.
//!
//! A tar is indexed once by offsets and then read at them. Names lead nowhere but to members of the index, and
//! in a directory only beneath it, so `blobs/sha256/x -> /etc/shadow` is refused in both.
//!
//! In a directory the blob of a layer may be a FIFO: then it comes from somewhere else at this moment, and is nowhere but in
//! the store ([`crate::piped`]).

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use crate::blobs::{Blobs, Opened};
use crate::cancel::Cancel;
use crate::compress::Compression;
use crate::digest::Digest;
use crate::disk;
use crate::document::Descriptor;
use crate::error::{DocumentFault, Doing, Error, Fault, Limit, Refusal, Result, escape};
use crate::expand::Bounded;
use crate::limits::Limits;
use crate::piped::{self, Piped};
use crate::source::open_regular;
use crate::staging::Staged;
use crate::tarball::{Kind, Seeking, Tarball, Trailer};
use crate::worker::Unpacker;

/// Links in a docker archive that lead to a layer; `docker save` once wrote one for a layer used twice.
const LINKS: usize = 4;

/// An image's files.
#[derive(Debug)]
pub(crate) enum Files {
    Layout { dir: File, shown: String, piped: bool, cancel: Cancel },
    Archive { file: File, members: HashMap<Vec<u8>, Member>, shown: String },
}

#[derive(Debug)]
pub(crate) enum Member {
    File { offset: u64, size: u64 },
    Link(Vec<u8>),
}

impl Files {
    /// A directory in OCI image layout. What is waited for is given up when `cancel` says so.
    pub fn layout(path: &Path, cancel: &Cancel) -> Result<Self> {
        let shown = path.display().to_string();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let dir = rustix::fs::openat2(CWD, path, flags, Mode::empty(), resolve)
            .map_err(|e| Error::io("open directory", shown.clone(), e))?;
        let dir = File::from(dir);
        let piped = piped::any(&dir).map_err(|e| Error::io("look into", shown.clone(), e))?;
        Ok(Self::Layout { dir, shown, piped, cancel: cancel.clone() })
    }

    /// Indexes a tar; a compressed one is first expanded in staging.
    pub fn archive(
        path: &Path,
        staged: &Staged,
        limits: &Limits,
        unpacker: &Unpacker,
    ) -> Result<Self> {
        let shown = path.display().to_string();
        let file = open_regular(path)?;
        let about = |fault: Fault| fault.about(shown.clone());
        let file = if Compression::of(&file).map_err(about)? == Compression::None {
            file
        } else {
            let plain = Bounded::file(file, limits, unpacker).map_err(about)?;
            expand(plain, staged).map_err(about)?
        };
        let members = index(&file, limits)
            .map_err(|(fault, at)| fault.about(format!("{shown} file {at}")))?;
        Ok(Self::Archive { file, members, shown })
    }

    /// The source, for messages.
    pub fn shown(&self) -> &str {
        match self {
            Self::Layout { shown, .. } | Self::Archive { shown, .. } => shown,
        }
    }

    /// Opens a file by its name inside the image; returns it with its size.
    pub fn open(&self, name: &str) -> Result<Opened<'_>> {
        let object = || format!("{} file {}", self.shown(), escape(name.as_bytes()));
        let found = match self {
            Self::Layout { dir, .. } => {
                open_beneath(dir, name).map_err(|e| Error::io("open", object(), e))?
            }
            Self::Archive { file, members, .. } => find(members, name).map(|(offset, size)| {
                let section: Box<dyn Read> =
                    Box::new(Section { file, at: offset, end: offset + size });
                (section, size)
            }),
        };
        found.ok_or_else(|| Error::Source {
            from: self.shown().to_owned(),
            why: format!("it has no file \"{}\"", escape(name.as_bytes())),
        })
    }

    /// Reads a document whole.
    pub fn document(&self, name: &str, limits: &Limits) -> Result<Vec<u8>> {
        let (mut from, size) = self.open(name)?;
        let object = || format!("{} file {}", self.shown(), escape(name.as_bytes()));
        read_bounded(&mut from, size, limits, object)
    }
}

impl Blobs for Files {
    fn described(&self, descriptor: &Descriptor, limits: &Limits) -> Result<Vec<u8>> {
        let Descriptor { digest, size: expected, .. } = *descriptor;
        let object = || format!("blob {digest}");
        if expected > limits.document_bytes {
            let why = DocumentFault::limit(Limit::DocumentBytes, limits.document_bytes);
            return Err(Error::document(object(), why));
        }
        let (mut from, size) = self.open(&blob(&digest))?;
        let refused = |why| Error::Refused { object: object(), why };
        if size != expected {
            return Err(refused(Refusal::Size { expected, got: size }));
        }
        let bytes = read_bounded(&mut from, size, limits, object)?;
        let got = bytes.len() as u64;
        if got != expected {
            return Err(refused(Refusal::Size { expected, got }));
        }
        match Digest::of(&bytes) {
            got if got != digest => Err(refused(Refusal::Digest { expected: digest, got })),
            _ => Ok(bytes),
        }
    }

    fn open_blob(&self, descriptor: &Descriptor) -> Result<Opened<'_>> {
        match self.piped(descriptor)? {
            Some(piped) => Ok((Box::new(piped), descriptor.size)),
            None => self.open(&blob(&descriptor.digest)),
        }
    }

    fn skip(&self, descriptor: &Descriptor) -> Result<()> {
        let Some(piped) = self.piped(descriptor)? else { return Ok(()) };
        // No longer than it is said to be: who sends more is not waited for.
        let read = io::copy(&mut piped.take(descriptor.size), &mut io::sink());
        read.map(drop).map_err(|e| Error::io("read", format!("blob {}", descriptor.digest), e))
    }

    fn is_far(&self) -> bool {
        matches!(self, Self::Layout { piped: true, .. })
    }
}

impl Files {
    /// A blob that comes, if it does.
    fn piped(&self, descriptor: &Descriptor) -> Result<Option<Piped>> {
        let Self::Layout { dir, piped: true, cancel, shown } = self else { return Ok(None) };
        let name = blob(&descriptor.digest);
        Piped::open(dir, &name, cancel)
            .map_err(|e| Error::io("open", format!("{shown} file {name}"), e))
    }
}

/// Where a layout or archive has a blob.
fn blob(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn read_bounded(
    from: &mut dyn Read,
    size: u64,
    limits: &Limits,
    object: impl Fn() -> String,
) -> Result<Vec<u8>> {
    let max = limits.document_bytes;
    let mut bytes = Vec::new();
    if size <= max {
        from.take(max + 1).read_to_end(&mut bytes).map_err(|e| Error::io("read", object(), e))?;
    }
    if size > max || bytes.len() as u64 > max {
        return Err(Error::document(object(), DocumentFault::limit(Limit::DocumentBytes, max)));
    }
    Ok(bytes)
}

fn open_beneath(dir: &File, name: &str) -> io::Result<Option<(Box<dyn Read>, u64)>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let file: File = match rustix::fs::openat2(dir, name, flags, Mode::empty(), how) {
        Ok(fd) => fd.into(),
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    Ok(Some((Box::new(file), meta.len())))
}

fn expand(mut from: Bounded<File>, staged: &Staged) -> std::result::Result<File, Fault> {
    let mut to = disk::create_new(&staged.dir, "archive.tar").doing("expand into staging")?;
    let mut buf = vec![0; 128 * 1024];
    loop {
        let n = from.read(&mut buf).map_err(Fault::from_read)?;
        if n == 0 {
            return Ok(to);
        }
        to.write_all(&buf[..n]).doing("expand into staging")?;
    }
}

type Members = HashMap<Vec<u8>, Member>;

fn index(file: &File, limits: &Limits) -> std::result::Result<Members, (Fault, String)> {
    let mut members = HashMap::new();
    let mut budget = limits.archive_entries;
    let section = Positioned { file, at: 0 };
    let mut tar = Tarball::new(Seeking(section), limits, &mut budget, Trailer::Optional);
    let mut at = String::from("before the first");
    loop {
        let entry = match tar.next() {
            Ok(Some(entry)) => entry,
            Ok(None) => return Ok(members),
            Err(Fault::Refused(Refusal::Limit { limit: Limit::Entries, .. })) => {
                let why = Refusal::limit(Limit::ArchiveEntries, limits.archive_entries);
                return Err((why.into(), at));
            }
            Err(fault) => return Err((fault, at)),
        };
        at = escape(&entry.path);
        let member = match entry.kind {
            Kind::File => Member::File { offset: tar.offset(), size: entry.size },
            Kind::Symlink => Member::Link(beside(&entry.path, &entry.link)),
            Kind::HardLink => Member::Link(plain(&entry.link)),
            Kind::Directory | Kind::Fifo | Kind::CharDevice | Kind::BlockDevice => continue,
        };
        // Which of two would be meant is anybody's guess, and so an attacker's choice.
        if members.insert(plain(&entry.path), member).is_some() {
            return Err((Refusal::Twice.into(), at));
        }
    }
}

fn find(members: &Members, name: &str) -> Option<(u64, u64)> {
    let mut path = plain(name.as_bytes());
    for _ in 0..=LINKS {
        match members.get(&path)? {
            Member::File { offset, size } => return Some((*offset, *size)),
            Member::Link(target) => path.clone_from(target),
        }
    }
    None
}

/// A path without `.` and, by letters alone, without `..`: it is only ever looked up in the index.
fn plain(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

fn beside(path: &[u8], link: &[u8]) -> Vec<u8> {
    plain(&[path, b"/../", link].concat())
}

/// A reader with a position of its own.
struct Positioned<'a> {
    file: &'a File,
    at: u64,
}

impl Read for Positioned<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(buf, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

impl io::Seek for Positioned<'_> {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        let io::SeekFrom::Current(by) = to else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        self.at = self.at.checked_add_signed(by).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

struct Section<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let want = left.min(buf.len());
        let n = self.file.read_at(&mut buf[..want], self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_between_members_stay_among_members() {
        assert_eq!(beside(b"b/layer.tar", b"../a/layer.tar"), b"a/layer.tar");
        assert_eq!(beside(b"b/layer.tar", b"../../../etc/shadow"), b"etc/shadow");
        assert_eq!(plain(b"./a//b/./c/"), b"a/b/c");
        let members = HashMap::from([
            (b"a".to_vec(), Member::Link(b"b".to_vec())),
            (b"b".to_vec(), Member::Link(b"a".to_vec())),
            (b"c".to_vec(), Member::Link(b"d".to_vec())),
            (b"d".to_vec(), Member::File { offset: 512, size: 7 }),
        ]);
        assert_eq!(find(&members, "a"), None);
        assert_eq!(find(&members, "./c"), Some((512, 7)));
    }
}
