//! Two trees side by side: the one a layer's blob was just unpacked to, and the one that is in the store.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};

use super::attributes;
use crate::error::escape;
use crate::walk::{Stopped, join};

/// The first difference in the order of the walk, and how many there are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    pub path: String,
    pub why: String,
    pub count: u64,
}

const BUFFER: usize = 64 * 1024;

/// Compares; none if the trees are the same.
pub(crate) fn compare(want: &File, got: &File) -> Result<Option<Difference>, Stopped> {
    let mut pair = Pair {
        first: None,
        count: 0,
        inodes: HashMap::new(),
        buffers: (vec![0; BUFFER], vec![0; BUFFER]),
    };
    let stop = |path: &[u8]| {
        let path = path.to_vec();
        move |why: io::Error| Stopped { path, why }
    };
    let mut path = Vec::new();
    let again = |dir: &File| open(dir, c".", OFlags::DIRECTORY);
    let mut here = (again(want).map_err(stop(b""))?, again(got).map_err(stop(b""))?);
    if let Some(why) = same_directory(&here.0, &here.1).map_err(stop(b""))? {
        pair.differs(b"", why);
    }
    let mut above: Vec<(usize, Vec<CString>)> = Vec::new();
    let mut down = pair.names(&here.0, &here.1, &path)?;
    loop {
        let step = |name: &CStr, dirs: &(File, File)| {
            Ok((open(&dirs.0, name, OFlags::DIRECTORY)?, open(&dirs.1, name, OFlags::DIRECTORY)?))
        };
        if let Some(name) = down.pop() {
            let below = join(&path, name.to_bytes());
            here = step(&name, &here).map_err(stop(&below))?;
            above.push((path.len(), std::mem::take(&mut down)));
            path = below;
            if let Some(why) = same_directory(&here.0, &here.1).map_err(stop(&path))? {
                pair.differs(&path, why);
            }
            down = pair.names(&here.0, &here.1, &path)?;
        } else if let Some((length, rest)) = above.pop() {
            here = step(c"..", &here).map_err(stop(&path))?;
            path.truncate(length);
            down = rest;
        } else {
            let count = pair.count;
            return Ok(pair.first.map(|(path, why)| Difference { path, why, count }));
        }
    }
}

struct Pair {
    first: Option<(String, String)>,
    count: u64,
    /// Inodes of files that were compared.
    inodes: HashMap<u64, u64>,
    buffers: (Vec<u8>, Vec<u8>),
}

impl Pair {
    fn differs(&mut self, path: &[u8], why: String) {
        self.count += 1;
        if self.first.is_none() {
            self.first = Some((if path.is_empty() { ".".into() } else { escape(path) }, why));
        }
    }

    /// Compares the names of two directories and what is not a directory; returns the directories both have.
    fn names(&mut self, want: &File, got: &File, path: &[u8]) -> Result<Vec<CString>, Stopped> {
        let stop = |why: io::Error| Stopped { path: path.to_vec(), why };
        let mut theirs = list(got).map_err(stop)?;
        let mut down = Vec::new();
        for (name, wanted) in list(want).map_err(stop)? {
            let whole = join(path, name.to_bytes());
            let Some(there) = theirs.remove(&name) else {
                self.differs(&whole, "is absent".into());
                continue;
            };
            let (a, b) = (kind(&wanted), kind(&there));
            if a != b {
                self.differs(&whole, format!("is {}, should be {}", word(b), word(a)));
            } else if a == FileType::Directory {
                down.push(name);
            } else {
                let why = self
                    .entry((want, &wanted), (got, &there), &name)
                    .map_err(|why| Stopped { path: whole.clone(), why })?;
                if let Some(why) = why {
                    self.differs(&whole, why);
                }
            }
        }
        for name in theirs.keys() {
            self.differs(&join(path, name.to_bytes()), "should not be there".into());
        }
        Ok(down)
    }

    fn entry(
        &mut self,
        (want, wanted): (&File, &Stat),
        (got, there): (&File, &Stat),
        name: &CStr,
    ) -> io::Result<Option<String>> {
        if let Some(known) = self.inodes.get(&wanted.st_ino) {
            return Ok((*known != there.st_ino).then(|| "is not linked to its file".into()));
        }
        self.inodes.insert(wanted.st_ino, there.st_ino);
        if let Some(why) = same_inode(wanted, there) {
            return Ok(Some(why));
        }
        if kind(wanted) == FileType::RegularFile {
            if wanted.st_size != there.st_size {
                let text = format!("has {} bytes, should have {}", there.st_size, wanted.st_size);
                return Ok(Some(text));
            }
            let a = open(want, name, OFlags::NONBLOCK)?;
            let b = open(got, name, OFlags::NONBLOCK)?;
            if attributes::of(a.as_fd())? != attributes::of(b.as_fd())? {
                return Ok(Some("has other extended attributes".into()));
            }
            let same = same_content(a, b, &mut self.buffers)?;
            return Ok((!same).then(|| "has other content".into()));
        }
        if kind(wanted) == FileType::Symlink {
            let link = |dir: &File| rustix::fs::readlinkat(dir, name, Vec::new());
            if link(want)? != link(got)? {
                return Ok(Some("leads elsewhere".into()));
            }
        }
        let same = attributes::at(want, name)? == attributes::at(got, name)?;
        Ok((!same).then(|| "has other extended attributes".into()))
    }
}

fn same_directory(want: &File, got: &File) -> io::Result<Option<String>> {
    let (a, b) = (rustix::fs::fstat(want)?, rustix::fs::fstat(got)?);
    if let Some(why) = same_inode(&a, &b) {
        return Ok(Some(why));
    }
    let same = attributes::of(want.as_fd())? == attributes::of(got.as_fd())?;
    Ok((!same).then(|| "has other extended attributes".into()))
}

fn same_inode(want: &Stat, got: &Stat) -> Option<String> {
    let mode = |s: &Stat| s.st_mode & 0o7777;
    if mode(want) != mode(got) {
        return Some(format!("has mode {:04o}, should have {:04o}", mode(got), mode(want)));
    }
    if (want.st_uid, want.st_gid) != (got.st_uid, got.st_gid) {
        return Some(format!(
            "belongs to {}:{}, should belong to {}:{}",
            got.st_uid, got.st_gid, want.st_uid, want.st_gid
        ));
    }
    if (want.st_mtime, want.st_mtime_nsec) != (got.st_mtime, got.st_mtime_nsec) {
        return Some("was written at another time".into());
    }
    if want.st_rdev != got.st_rdev {
        return Some("is another device".into());
    }
    (kind(want) != FileType::Directory && want.st_nlink != got.st_nlink)
        .then(|| format!("has {} links, should have {}", got.st_nlink, want.st_nlink))
}

fn same_content(mut a: File, mut b: File, buffers: &mut (Vec<u8>, Vec<u8>)) -> io::Result<bool> {
    loop {
        let n = a.read(&mut buffers.0)?;
        if n == 0 {
            return Ok(b.read(&mut buffers.1)? == 0);
        }
        match b.read_exact(&mut buffers.1[..n]) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            other => other?,
        }
        if buffers.0[..n] != buffers.1[..n] {
            return Ok(false);
        }
    }
}

fn list(dir: &File) -> io::Result<BTreeMap<CString, Stat>> {
    let mut names = BTreeMap::new();
    for child in Dir::read_from(dir)? {
        let child = child?;
        let name = child.file_name();
        if name != c"." && name != c".." {
            let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            names.insert(name.to_owned(), stat);
        }
    }
    Ok(names)
}

fn open(dir: &File, name: &CStr, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, flags, Mode::empty())?.into())
}

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn word(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a fifo",
        FileType::CharacterDevice => "a whiteout",
        _ => "a device or socket",
    }
}
