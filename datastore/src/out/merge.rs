//! A walk over the files of layers and a VM's upper directory, by overlayfs's rules, without a mount.
//!
//! [`View::Merged`] shows what the guest saw: of each name the topmost, directories merged as far down as nothing
//! hides them. [`View::Upper`] shows one directory as changes: whiteouts and opaque directories are entries.
//! The rules (Documentation/filesystems/overlayfs.rst, and `ovl_lookup` for what it leaves open): a whiteout or
//! any file that is no directory ends the search in lower layers, an opaque directory is still taken; layers
//! that lack the name are passed over; the root is merged whatever its attributes say.
//!
//! Names come sorted, parents before children, so equal trees give equal walks. Of the links of one inode
//! the first is a file and the others are links to it; links between layers do not exist, the kernel broke them
//! when it copied up.
//!
//! The tree may be a tenant's at work: every name is opened relative to its directory, without links, and is
//! compared with what was seen before; what moved meanwhile is [`Refusal::Changed`]. Directories are kept open up
//! to `OPEN_MAX` and reopened by path from the root, where they must be the same again.

use std::collections::HashMap;
use std::fs::File;
use std::iter::Peekable;
use std::os::fd::OwnedFd;
use std::vec;

use rustix::fs::{Dir as Listing, FileType, Stat};

use super::ids::IdMap;
use super::inode::{self, Attributes, Opaque};
use crate::error::{Doing, Fault, Limit, Refusal};
use crate::limits::Limits;

/// Descriptors for directories, beside one for each part; a daemon has 1024 by default.
const OPEN_MAX: usize = 256;

/// Most bytes of paths that are remembered for hard links.
const LINKS_MAX: usize = 256 << 20;

/// A directory of the stack.
#[derive(Debug)]
pub(crate) struct Part {
    /// Its root.
    pub dir: OwnedFd,
    /// Whose ids its files have.
    pub ids: IdMap,
}

/// What a walk shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum View {
    /// The files of all parts, as a mount would show them.
    Merged,
    /// The only part as it is.
    Upper,
}

/// Directories on top of each other, the topmost first.
#[derive(Debug)]
pub(crate) struct Tree<'a> {
    pub parts: Vec<Part>,
    pub view: View,
    /// Those on depth and paths are obeyed here, and the one on entries for the names that are held at a time.
    pub limits: &'a Limits,
}

/// What an entry is.
#[derive(Debug)]
pub(crate) enum What {
    Directory {
        /// [`View::Upper`]: lower layers do not show in it.
        opaque: bool,
    },
    /// Open for reading; `stat` is from when it was opened.
    File {
        file: File,
        stat: Box<Stat>,
    },
    /// To the regular file of this path, which came before.
    HardLink(Vec<u8>),
    Symlink(Vec<u8>),
    Fifo,
    /// [`View::Upper`]: the name is hidden.
    Whiteout,
}

/// A file of the tree; ids are the guest's.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Relative to the root, which is the empty path.
    pub path: Vec<u8>,
    pub what: What,
    pub uid: u32,
    pub gid: u32,
    /// Permission bits, 0o7777.
    pub mode: u32,
    pub mtime: (i64, u32),
    /// What an image may have, sorted by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a walk passed over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Skipped {
    pub sockets: u64,
    pub devices: u64,
    pub xattrs: u64,
    pub capabilities: u64,
}

impl Tree<'_> {
    /// Starts at the root.
    pub fn walk(&self) -> Walk<'_> {
        Walk {
            tree: self,
            stack: Vec::new(),
            started: false,
            at: Vec::new(),
            held: 0,
            links: HashMap::new(),
            link_bytes: LINKS_MAX,
            skipped: Skipped::default(),
        }
    }
}

/// The walk; an error ends it, and [`Walk::at`] says where.
#[derive(Debug)]
pub(crate) struct Walk<'a> {
    tree: &'a Tree<'a>,
    /// Directories from the root to here.
    stack: Vec<Frame>,
    started: bool,
    at: Vec<u8>,
    /// Names in `stack`, those that were passed too.
    held: u64,
    /// First path of each inode with several, by part, device and number.
    links: HashMap<(usize, u64, u64), Vec<u8>>,
    /// Bytes that such paths may still have.
    link_bytes: usize,
    skipped: Skipped,
}

/// A directory whose names are being gone through.
#[derive(Debug)]
struct Frame {
    path: Vec<u8>,
    /// Those that are merged, the topmost first.
    dirs: Vec<Place>,
    /// Names with the index into `dirs`, sorted.
    names: Peekable<vec::IntoIter<(Vec<u8>, usize)>>,
    /// How many there were.
    count: u64,
}

/// A directory of one part.
#[derive(Debug)]
struct Place {
    part: usize,
    /// Closed while descriptors are short.
    fd: Option<OwnedFd>,
    stat: Stat,
    /// Files in it may be whiteouts by xattr.
    marked: bool,
}

impl Walk<'_> {
    /// The path that was last looked at.
    pub fn at(&self) -> &[u8] {
        &self.at
    }

    /// What was passed over so far.
    pub fn skipped(&self) -> &Skipped {
        &self.skipped
    }

    /// The next entry.
    pub fn next(&mut self) -> Result<Option<Entry>, Fault> {
        if !self.started {
            self.started = true;
            return self.root().map(Some);
        }
        while let Some(frame) = self.stack.last_mut() {
            let Some((name, first)) = frame.names.next() else {
                self.held -= frame.count;
                self.stack.pop();
                continue;
            };
            let mut dirs = vec![first];
            while let Some((_, more)) = frame.names.next_if(|(n, _)| *n == name) {
                dirs.push(more);
            }
            self.at.clone_from(&frame.path);
            if !self.at.is_empty() {
                self.at.push(b'/');
            }
            self.at.extend_from_slice(&name);
            if let Some(entry) = self.look(&name, &dirs)? {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    fn root(&mut self) -> Result<Entry, Fault> {
        let mut places = Vec::new();
        let mut top = None;
        for (part, source) in self.tree.parts.iter().enumerate() {
            let stat = rustix::fs::fstat(&source.dir).doing("inspect")?;
            let (fd, stat) = inode::open(&source.dir, b"", &stat)?;
            let attributes = inode::attributes(&fd, source.ids)?;
            let marked = attributes.opaque == Opaque::Marked;
            if top.is_none() {
                let what = What::Directory { opaque: false };
                top = Some(self.entry(part, &stat, what, attributes)?);
            }
            places.push(Place { part, fd: Some(fd), stat, marked });
        }
        let top = top.ok_or(Refusal::NoFiles)?;
        self.push(places)?;
        Ok(top)
    }

    /// Goes down the parts that have the name.
    fn look(&mut self, name: &[u8], dirs: &[usize]) -> Result<Option<Entry>, Fault> {
        self.reopen()?;
        let Some(frame) = self.stack.last() else { return Ok(None) };
        let mut places = Vec::new();
        let mut top: Option<(Stat, Attributes, usize)> = None;
        for index in dirs {
            let Place { part, fd: Some(parent), marked, .. } = &frame.dirs[*index] else {
                return Err(Refusal::Changed.into());
            };
            let part = *part;
            let stat = inode::stat(parent, name)?;
            if inode::kind(&stat) != FileType::Directory {
                if places.is_empty() {
                    let marked = *marked;
                    return self.leaf(part, *index, name, &stat, marked);
                }
                // Under a directory, anything else hides what is further down.
                break;
            }
            let (fd, stat) = inode::open(parent, name, &stat)?;
            let attributes = inode::attributes(&fd, self.tree.parts[part].ids)?;
            let opaque = attributes.opaque;
            places.push(Place { part, fd: Some(fd), stat, marked: opaque == Opaque::Marked });
            if top.is_none() {
                top = Some((stat, attributes, part));
            }
            if opaque == Opaque::Yes {
                break;
            }
        }
        let Some((stat, attributes, part)) = top else { return Ok(None) };
        let opaque = self.tree.view == View::Upper && attributes.opaque == Opaque::Yes;
        let entry = self.entry(part, &stat, What::Directory { opaque }, attributes)?;
        self.push(places)?;
        Ok(Some(entry))
    }

    /// Something that is no directory, topmost of its name.
    fn leaf(
        &mut self,
        part: usize,
        index: usize,
        name: &[u8],
        stat: &Stat,
        marked: bool,
    ) -> Result<Option<Entry>, Fault> {
        let parent = self.stack.last().and_then(|f| f.dirs[index].fd.as_ref());
        let parent = parent.ok_or(Refusal::Changed)?;
        let none = Attributes::default;
        match inode::kind(stat) {
            FileType::CharacterDevice if stat.st_rdev == 0 => self.whiteout(),
            FileType::CharacterDevice | FileType::BlockDevice => {
                self.skipped.devices += 1;
                Ok(None)
            }
            FileType::Symlink => {
                let target = inode::link_target(parent, name)?;
                self.entry(part, stat, What::Symlink(target), none()).map(Some)
            }
            FileType::Fifo => self.entry(part, stat, What::Fifo, none()).map(Some),
            FileType::RegularFile => {
                let key = (part, stat.st_dev, stat.st_ino);
                if stat.st_nlink > 1
                    && let Some(first) = self.links.get(&key)
                {
                    let what = What::HardLink(first.clone());
                    return self.entry(part, stat, what, none()).map(Some);
                }
                let (fd, stat) = inode::open(parent, name, stat)?;
                let attributes = inode::attributes(&fd, self.tree.parts[part].ids)?;
                if marked && attributes.whiteout {
                    return self.whiteout();
                }
                if stat.st_nlink > 1 {
                    self.link_bytes = self
                        .link_bytes
                        .checked_sub(self.at.len())
                        .ok_or(Refusal::HardLink("paths of linked files are too long together"))?;
                    self.links.insert(key, self.at.clone());
                }
                let what = What::File { file: fd.into(), stat: Box::new(stat) };
                self.entry(part, &stat, what, attributes).map(Some)
            }
            FileType::Socket => {
                self.skipped.sockets += 1;
                Ok(None)
            }
            _ => Err(Refusal::Upper("a file of unknown type").into()),
        }
    }

    fn whiteout(&self) -> Result<Option<Entry>, Fault> {
        let shown = self.tree.view == View::Upper;
        Ok(shown.then(|| Entry {
            path: self.at.clone(),
            what: What::Whiteout,
            // overlayfs makes whiteouts as the mounter, whoever that was: they have no owner.
            uid: 0,
            gid: 0,
            mode: 0,
            mtime: (0, 0),
            xattrs: Vec::new(),
        }))
    }

    fn entry(
        &mut self,
        part: usize,
        stat: &Stat,
        what: What,
        attributes: Attributes,
    ) -> Result<Entry, Fault> {
        let ids = self.tree.parts[part].ids;
        self.skipped.xattrs += attributes.dropped;
        self.skipped.capabilities += attributes.capabilities_dropped;
        let path = self.at.clone();
        if path.len() > self.tree.limits.path_bytes {
            return Err(Refusal::limit(Limit::PathBytes, self.tree.limits.path_bytes).into());
        }
        Ok(Entry {
            path,
            what,
            uid: ids.inside("uid", stat.st_uid)?,
            gid: ids.inside("gid", stat.st_gid)?,
            mode: stat.st_mode & 0o7777,
            mtime: inode::mtime(stat),
            xattrs: attributes.kept,
        })
    }

    /// Goes into the directory at `self.at`.
    fn push(&mut self, dirs: Vec<Place>) -> Result<(), Fault> {
        // The root is no component of a path.
        if self.stack.len() > self.tree.limits.depth {
            return Err(Refusal::limit(Limit::Depth, self.tree.limits.depth).into());
        }
        let max = self.tree.limits.entries;
        let (mut names, mut count) = (Vec::new(), 0);
        for (index, place) in dirs.iter().enumerate() {
            let Some(fd) = &place.fd else { continue };
            for child in Listing::read_from(fd).doing("list")? {
                let child = child.doing("list")?;
                let name = child.file_name().to_bytes();
                if name != b"." && name != b".." {
                    count += 1;
                    // Before they take memory: a tenant's disk may hold many millions.
                    if count > max.saturating_sub(self.held) {
                        return Err(Refusal::limit(Limit::Entries, max).into());
                    }
                    names.push((name.to_vec(), index));
                }
            }
        }
        names.sort_unstable();
        self.held += count;
        let (path, names) = (self.at.clone(), names.into_iter().peekable());
        self.stack.push(Frame { path, dirs, names, count });
        self.close_some();
        Ok(())
    }

    /// Keeps the number of descriptors down; the outer directories are needed last.
    fn close_some(&mut self) {
        let is_open = |p: &&mut Place| p.fd.is_some();
        let (here, above) = match self.stack.split_last_mut() {
            Some((here, above)) => (here.dirs.len(), above),
            None => return,
        };
        let open: usize = above.iter().flat_map(|f| &f.dirs).filter(|p| p.fd.is_some()).count();
        let excess = (open + here).saturating_sub(OPEN_MAX);
        let oldest = above.iter_mut().flat_map(|f| &mut f.dirs).filter(is_open);
        oldest.take(excess).for_each(|p| p.fd = None);
    }

    /// Opens the directories of the frame on top again.
    fn reopen(&mut self) -> Result<(), Fault> {
        let Some(frame) = self.stack.last_mut() else { return Ok(()) };
        for place in frame.dirs.iter_mut().filter(|p| p.fd.is_none()) {
            let root = &self.tree.parts[place.part].dir;
            place.fd = Some(inode::open(root, &frame.path, &place.stat)?.0);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn make(path: &Path) {
        File::create(path).unwrap();
    }

    /// Paths up to what ends the walk.
    fn walk(dir: &Path, entries: u64, link_bytes: usize) -> (Vec<String>, Option<Refusal>) {
        let limits = Limits { entries, ..Limits::default() };
        let part = Part { dir: File::open(dir).unwrap().into(), ids: IdMap::IDENTITY };
        let tree = Tree { parts: vec![part], view: View::Upper, limits: &limits };
        let mut walk = Walk { link_bytes, ..tree.walk() };
        let mut paths = Vec::new();
        loop {
            match walk.next() {
                Ok(Some(entry)) => paths.push(String::from_utf8(entry.path).unwrap()),
                Ok(None) => return (paths, None),
                Err(Fault::Refused(why)) => return (paths, Some(why)),
                Err(other) => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn names_are_counted_while_they_are_listed() {
        let top = tempfile::tempdir().unwrap();
        for n in 0..5 {
            make(&top.path().join(n.to_string()));
        }
        assert_eq!(
            walk(top.path(), 5, 0),
            (["", "0", "1", "2", "3", "4"].map(Into::into).into(), None)
        );
        let refused = Some(Refusal::limit(Limit::Entries, 4));
        assert_eq!(walk(top.path(), 4, 0), (vec![], refused));
    }

    #[test]
    fn names_of_the_directories_on_the_way_count_together_and_no_others() {
        let top = tempfile::tempdir().unwrap();
        for dir in ["a", "b"] {
            std::fs::create_dir(top.path().join(dir)).unwrap();
            for n in 0..3 {
                make(&top.path().join(dir).join(n.to_string()));
            }
        }
        let (paths, end) = walk(top.path(), 5, 0);
        assert_eq!((paths.len(), end), (9, None));
        let refused = Some(Refusal::limit(Limit::Entries, 4));
        assert_eq!(walk(top.path(), 4, 0), (vec![String::new()], refused));
    }

    #[test]
    fn paths_of_linked_files_have_a_bound() {
        let top = tempfile::tempdir().unwrap();
        for (first, second) in [("a1", "z1"), ("b2", "z2")] {
            make(&top.path().join(first));
            std::fs::hard_link(top.path().join(first), top.path().join(second)).unwrap();
        }
        let all = ["", "a1", "b2", "z1", "z2"].map(String::from);
        assert_eq!(walk(top.path(), 10, 4), (all.to_vec(), None));
        let refused = Some(Refusal::HardLink("paths of linked files are too long together"));
        assert_eq!(walk(top.path(), 10, 3), (all[..2].to_vec(), refused));
    }
}
