//! A tree of files into a tar stream.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ocivisor_core::error::{Error, ErrorKind, Result};
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, SeekFrom, Stat, fstat, fstatfs, openat,
    openat2, readlinkat, seek, statat,
};
use rustix::io::{Errno, pread};
use tar::EntryType;

use crate::place::{Parts, open_dir};
use crate::write::{Attributes, BLOCK, Writer};
use crate::{MAX_DEPTH, MAX_PATH, MAX_PIECES, Notes, failed, shown};

/// File systems that hold no files but the kernel's word (linux/magic.h): proc, sysfs, both of cgroup,
/// devpts, mqueue, bpf, tracefs, debugfs, securityfs, fusectl.
const KERNELS: [u64; 11] = [
    0x9fa0,
    0x6265_6572,
    0x27_e0eb,
    0x6367_7270,
    0x1cd1,
    0x1980_0202,
    0xcafe_4a11,
    0x7472_6163,
    0x6462_6720,
    0x7363_6673,
    0x6573_5543,
];

/// What is copied.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// Its path, for this process.
    pub path: &'a [u8],
    /// Whether a link at its end is followed.
    pub follow: bool,
}

/// Writes what `source` names as an archive whose only member at the top has its name, or is `./`.
///
/// # Errors
/// `NotFound`, `Permission`: as the kernel says. `Invalid`: it is no file, directory or link. `Host`:
/// reading or writing failed.
pub fn pack(source: Source<'_>, out: impl Write, notes: &mut Notes) -> Result<()> {
    let parts = Parts::of(source.path);
    let parent = open_dir(&parts.parent).map_err(|e| failed("open", &parts.parent, e))?;
    let mut packer = Packer { writer: Writer::new(out), levels: Vec::new(), notes };
    let top = parts.top();
    match &parts.name {
        None => packer.directory(reopen(&parent, b".", source.path)?, top.to_vec())?,
        Some(name) => packer.named(parent.as_fd(), name, &parts, source, top)?,
    }
    packer.walk()?;
    packer.writer.finish().map_err(|e| unwritten(&e))
}

fn unwritten(error: &std::io::Error) -> Error {
    Error::new(ErrorKind::Host, format!("write the tar stream: {error}"))
}

const READ: OFlags =
    OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

fn reopen(dir: &OwnedFd, name: &[u8], path: &[u8]) -> Result<OwnedFd> {
    openat(dir, name, READ | OFlags::DIRECTORY, Mode::empty()).map_err(|e| failed("open", path, e))
}

/// A directory that is being read.
struct Level {
    dir: Dir,
    fd: OwnedFd,
    device: u64,
    path: Vec<u8>,
}

struct Packer<'n, W> {
    writer: Writer<W>,
    levels: Vec<Level>,
    notes: &'n mut Notes,
}

impl<W: Write> Packer<'_, W> {
    /// The one thing that was named: here a link may be followed, and what cannot be copied is an error.
    fn named(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        parts: &Parts,
        source: Source<'_>,
        top: &[u8],
    ) -> Result<()> {
        let look = |e: Errno| failed("look at", source.path, e);
        let follow = source.follow || parts.directory;
        let flags = if follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
        let stat = statat(parent, name, flags).map_err(look)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if parts.directory && kind != FileType::Directory {
            let what = format!("{} is no directory", shown(source.path));
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        if !matches!(kind, FileType::Directory | FileType::RegularFile | FileType::Symlink) {
            let what = format!("{} is {}", shown(source.path), called(kind));
            return Err(
                Error::new(ErrorKind::Invalid, what).hint("for a stream, use exec and a pipe")
            );
        }
        if !follow {
            return self.member(parent, name, top.to_vec());
        }
        let opened = openat2(parent, name, READ, Mode::empty(), ResolveFlags::NO_MAGICLINKS);
        let opened = opened.map_err(|e| failed("open", source.path, e))?;
        match kind {
            FileType::Directory => self.directory(opened, top.to_vec()),
            _ => self.file(&opened, top),
        }
    }

    fn walk(&mut self) -> Result<()> {
        while let Some(level) = self.levels.last_mut() {
            let Some(entry) = level.dir.read() else {
                self.levels.pop();
                continue;
            };
            let entry = entry.map_err(|e| failed("read the directory", &level.path, e))?;
            let name = entry.file_name().to_bytes().to_vec();
            if name == b"." || name == b".." {
                continue;
            }
            let path = [&level.path[..], b"/", &name].concat();
            let fd = rustix::io::fcntl_dupfd_cloexec(&level.fd, 0)
                .map_err(|e| failed("open", &path, e))?;
            self.member(fd.as_fd(), &name, path)?;
        }
        Ok(())
    }

    /// One thing of a directory. What vanishes or changes its kind meanwhile was not there.
    fn member(&mut self, dir: BorrowedFd<'_>, name: &[u8], path: Vec<u8>) -> Result<()> {
        // What the other side would refuse; a directory's name gets a slash.
        if path.len() >= MAX_PATH {
            self.notes.leave_out(&path, &format!("its path has {MAX_PATH} bytes or more"));
            return Ok(());
        }
        if self.levels.len() >= MAX_DEPTH {
            self.notes.leave_out(&path, &format!("more than {MAX_DEPTH} directories deep"));
            return Ok(());
        }
        let stat = match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(()),
            stat => stat.map_err(|e| failed("look at", &path, e))?,
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let more = match kind {
            FileType::Symlink => {
                let link = match readlinkat(dir, name, Vec::new()) {
                    Err(Errno::NOENT | Errno::INVAL) => return Ok(()),
                    link => link.map_err(|e| failed("read the link", &path, e))?,
                };
                return self.header(&path, link.to_bytes(), EntryType::Symlink, &stat, 0, &[]);
            }
            FileType::Directory => OFlags::DIRECTORY,
            FileType::RegularFile => OFlags::empty(),
            other => {
                self.notes.leave_out(&path, called(other));
                return Ok(());
            }
        };
        let opened = match openat(dir, name, READ | OFlags::NOFOLLOW | more, Mode::empty()) {
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::NXIO) => return Ok(()),
            opened => opened.map_err(|e| failed("open", &path, e))?,
        };
        if kind == FileType::Directory {
            self.directory(opened, path)
        } else {
            self.file(&opened, &path)
        }
    }

    fn directory(&mut self, fd: OwnedFd, path: Vec<u8>) -> Result<()> {
        let stat = fstat(&fd).map_err(|e| failed("look at", &path, e))?;
        let slashed = [&path[..], b"/"].concat();
        self.header(&slashed, b"", EntryType::Directory, &stat, 0, &[])?;
        let changes = self.levels.last().is_none_or(|above| above.device != stat.st_dev);
        if changes {
            let system = fstatfs(&fd).map_err(|e| failed("look at", &path, e))?;
            if KERNELS.contains(&(system.f_type as u64)) {
                self.notes.leave_out(&path, "what is in it: files of the kernel");
                return Ok(());
            }
        }
        let dir = Dir::read_from(&fd).map_err(|e| failed("read the directory", &path, e))?;
        self.levels.push(Level { dir, fd, device: stat.st_dev, path });
        Ok(())
    }

    fn file(&mut self, fd: &OwnedFd, path: &[u8]) -> Result<()> {
        let stat = fstat(fd).map_err(|e| failed("look at", path, e))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            // It was one when it was looked at.
            return Ok(());
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let read = |e: Errno| failed("read", path, e);
        let holes = size.div_ceil(BLOCK as u64) > u64::try_from(stat.st_blocks).unwrap_or(0);
        let pieces = if holes { pieces(fd, size).map_err(read)? } else { vec![(0, size)] };
        if pieces == [(0, size)] || size == 0 {
            self.header(path, b"", EntryType::Regular, &stat, size, &[])?;
            self.content(fd, path, &[(0, size)])?;
            return self.writer.pad(size).map_err(|e| unwritten(&e));
        }
        let mut map = format!("{}\n", pieces.len());
        for (offset, length) in &pieces {
            map += &format!("{offset}\n{length}\n");
        }
        map.extend(std::iter::repeat_n('\0', map.len().next_multiple_of(BLOCK) - map.len()));
        let data = pieces.iter().map(|(_, length)| length).sum::<u64>();
        let name = String::from_utf8(path.to_vec()).ok();
        let records = [
            ("GNU.sparse.major", "1".to_owned()),
            ("GNU.sparse.minor", "0".to_owned()),
            ("GNU.sparse.realsize", size.to_string()),
            ("GNU.sparse.name", name.unwrap_or_default()),
        ];
        // A name that is no text goes by its own path.
        let most = if records[3].1.is_empty() { 3 } else { 4 };
        let whole = map.len() as u64 + data;
        self.header(path, b"", EntryType::Regular, &stat, whole, &records[..most])?;
        self.writer.write(map.as_bytes()).map_err(|e| unwritten(&e))?;
        self.content(fd, path, &pieces)?;
        self.writer.pad(whole).map_err(|e| unwritten(&e))
    }

    /// As many bytes as were promised: zeros for what is not there any more.
    fn content(&mut self, fd: &OwnedFd, path: &[u8], pieces: &[(u64, u64)]) -> Result<()> {
        let mut shorter = false;
        let mut chunk = vec![0; 64 * 1024];
        for (offset, length) in pieces {
            let (mut at, end) = (*offset, offset + length);
            while at < end {
                let most = usize::try_from(end - at).unwrap_or(usize::MAX).min(chunk.len());
                let n = match pread(fd, &mut chunk[..most], at) {
                    Err(Errno::INTR) => continue,
                    n => n.map_err(|e| failed("read", path, e))?,
                };
                let n = if n == 0 {
                    if !shorter {
                        self.notes.zeros(path);
                    }
                    shorter = true;
                    chunk.fill(0);
                    most
                } else {
                    n
                };
                self.writer.write(&chunk[..n]).map_err(|e| unwritten(&e))?;
                at += n as u64;
            }
        }
        Ok(())
    }

    fn header(
        &mut self,
        path: &[u8],
        link: &[u8],
        kind: EntryType,
        stat: &Stat,
        size: u64,
        more: &[(&str, String)],
    ) -> Result<()> {
        let attributes = Attributes {
            kind,
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: stat.st_mtime,
            size,
        };
        self.writer.header(path, link, &attributes, more).map_err(|e| unwritten(&e))
    }
}

/// Where a file has data: offset and length, a last one of length zero if it ends with a hole.
fn pieces(fd: &OwnedFd, size: u64) -> rustix::io::Result<Vec<(u64, u64)>> {
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < size {
        let begin = match seek(fd, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break,
            // No holes are told of here.
            Err(Errno::INVAL) => return Ok(vec![(0, size)]),
            begin => begin?.min(size),
        };
        let end = match seek(fd, SeekFrom::Hole(begin)) {
            _ if pieces.len() + 2 >= MAX_PIECES => size,
            // It became shorter.
            Err(Errno::NXIO) => size,
            end => end?,
        };
        // It may have grown or shrunk meanwhile.
        let end = end.clamp(begin, size);
        if end > begin {
            pieces.push((begin, end - begin));
        }
        at = end.max(begin + 1);
    }
    if pieces.last().is_none_or(|(offset, length)| offset + length < size) {
        pieces.push((size, 0));
    }
    Ok(pieces)
}

fn called(kind: FileType) -> &'static str {
    match kind {
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        _ => "no file",
    }
}
