//! A file system as a tar, written while it is read.
//!
//! Depth first, names in the order of their bytes: the same file system gives the same bytes, whatever the order
//! of its directories. Of several names of one inode the first becomes the file, the others hard links. The
//! attributes are those a layer can have; the unpacker decides about the rest (devices, owners, limits).
//!
//! Left out: sockets, xattrs that no layer holds, and `lost+found` of the root where it is empty. With `KeepBoot::No`
//! also kernels and their modules, which a guest that shares the host's kernel cannot use.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::io::{self, Read};
use std::rc::Rc;

use super::fault::{DiskFault, Res, index};
use super::fs::{Content, FileSystem, Id, Kind, Name, Xattrs};
use super::header::{self, BLOCK, Head};
use crate::error::Limit;
use crate::limits::Limits;

/// Whether the files that only boot a machine are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeepBoot {
    Yes,
    No,
}

/// Most bytes of names that are remembered for hard links.
const LINKS_MAX: usize = 256 << 20;

/// What was left out, and the fault that ended the reading.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub xattrs_dropped: u64,
    pub fault: Option<DiskFault>,
}

/// The tar, as a reader.
pub(super) struct TarStream<'a> {
    fs: Rc<dyn FileSystem>,
    limits: &'a Limits,
    keep_boot: KeepBoot,
    told: Rc<RefCell<Told>>,
    /// Directories on the way, and what is still to come of each.
    stack: Vec<Level>,
    /// Directories that were seen: each has one place.
    directories: HashSet<Id>,
    /// First names of files with several.
    links: HashMap<Id, Vec<u8>>,
    link_bytes: usize,
    left: u64,
    /// Names of all directories on the way, visited or not: what memory holds.
    held: u64,
    /// Headers or padding not yet handed out.
    ready: Vec<u8>,
    given: usize,
    file: Option<Open>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Start,
    Walking,
    Ended,
}

struct Level {
    path: Vec<u8>,
    names: std::vec::IntoIter<Name>,
    /// How many there were.
    count: u64,
}

struct Open {
    content: Box<dyn Content>,
    left: u64,
    padding: usize,
    path: Vec<u8>,
}

impl<'a> TarStream<'a> {
    pub fn new(
        fs: Rc<dyn FileSystem>,
        limits: &'a Limits,
        keep_boot: KeepBoot,
    ) -> (Self, Rc<RefCell<Told>>) {
        let told = Rc::new(RefCell::new(Told::default()));
        let stream = Self {
            fs,
            limits,
            keep_boot,
            told: Rc::clone(&told),
            stack: Vec::new(),
            directories: HashSet::new(),
            links: HashMap::new(),
            link_bytes: 0,
            left: limits.entries,
            held: 0,
            ready: Vec::new(),
            given: 0,
            file: None,
            state: State::Start,
        };
        (stream, told)
    }

    /// Makes at least one byte ready, opens a file, or ends.
    fn advance(&mut self) -> Res<()> {
        self.ready.clear();
        self.given = 0;
        match self.state {
            State::Start => {
                self.state = State::Walking;
                let root = self.fs.root();
                self.entry(root, Vec::new()).map_err(|e| e.at(b"/"))
            }
            State::Walking => {
                while self.ready.is_empty() {
                    let Some(level) = self.stack.last_mut() else {
                        self.ready.extend_from_slice(&header::END);
                        self.state = State::Ended;
                        return Ok(());
                    };
                    let Some(next) = level.names.next() else {
                        self.held -= level.count;
                        self.stack.pop();
                        continue;
                    };
                    let above = &level.path;
                    let path = if above.is_empty() {
                        next.name
                    } else {
                        [above.as_slice(), b"/", &next.name].concat()
                    };
                    self.entry(next.id, path.clone()).map_err(|e| e.at(&path))?;
                }
                Ok(())
            }
            State::Ended => Ok(()),
        }
    }

    /// Puts the headers of a file into `ready`, or nothing if it is left out.
    fn entry(&mut self, id: Id, path: Vec<u8>) -> Res<()> {
        if self.keep_boot == KeepBoot::No && boot_only(&path) {
            return Ok(());
        }
        self.left = self
            .left
            .checked_sub(1)
            .ok_or_else(|| DiskFault::limit(Limit::Entries, self.limits.entries))?;
        let node = self.fs.node(id)?;
        if node.kind == Kind::Socket {
            return Ok(());
        }
        if node.kind != Kind::Directory && node.links > 1 {
            if let Some(first) = self.links.get(&id) {
                let head =
                    Head { path: &path, link: first, hard: true, node: &node, xattrs: &vec![] };
                header::write(&head, &mut self.ready);
                return Ok(());
            }
            self.link_bytes += path.len();
            if self.link_bytes > LINKS_MAX {
                let (what, value) = ("bytes in names of hard links", self.link_bytes as u64);
                return Err(DiskFault::TooLarge { what, value, max: LINKS_MAX as u64 });
            }
            self.links.insert(id, path.clone());
        }
        let target = if node.kind == Kind::Symlink { self.fs.target(id)? } else { Vec::new() };
        let xattrs = self.attributes(id)?;
        match node.kind {
            Kind::Directory => {
                let names = self.directory(id, &path)?;
                if path == b"lost+found" && names.is_empty() && self.fs.name() == "ext4" {
                    return Ok(());
                }
                let shown =
                    if path.is_empty() { b"./".to_vec() } else { [&path[..], b"/"].concat() };
                let head =
                    Head { path: &shown, link: b"", hard: false, node: &node, xattrs: &xattrs };
                header::write(&head, &mut self.ready);
                let count = names.len() as u64;
                self.held += count;
                self.stack.push(Level { path, names: names.into_iter(), count });
            }
            Kind::File => {
                let head =
                    Head { path: &path, link: b"", hard: false, node: &node, xattrs: &xattrs };
                header::write(&head, &mut self.ready);
                if node.size > 0 {
                    let content = self.fs.open(id)?;
                    let padding = index(node.size.wrapping_neg() % BLOCK as u64);
                    self.file = Some(Open { content, left: node.size, padding, path });
                }
            }
            Kind::Symlink | Kind::Char | Kind::Block | Kind::Fifo | Kind::Socket => {
                let head =
                    Head { path: &path, link: &target, hard: false, node: &node, xattrs: &xattrs };
                header::write(&head, &mut self.ready);
            }
        }
        Ok(())
    }

    /// The names in a directory, checked and sorted.
    fn directory(&mut self, id: Id, path: &[u8]) -> Res<Vec<Name>> {
        if !self.directories.insert(id) {
            return Err(DiskFault::damaged("directory", "is in two places"));
        }
        if self.stack.len() > self.limits.depth {
            return Err(DiskFault::limit(Limit::Depth, self.limits.depth));
        }
        let max = index(self.left.min(self.limits.entries.saturating_sub(self.held)));
        let mut names = self.fs.names(id, max)?;
        if names.len() > max {
            return Err(DiskFault::limit(Limit::Entries, self.limits.entries));
        }
        names.sort_unstable();
        let twins = names.windows(2).any(|w| w[0].name == w[1].name);
        if twins {
            return Err(DiskFault::damaged("directory", "has a name twice"));
        }
        for Name { name, .. } in &names {
            check_name(name)?;
            if path.len() + 1 + name.len() > self.limits.path_bytes {
                return Err(DiskFault::limit(Limit::PathBytes, self.limits.path_bytes));
            }
        }
        Ok(names)
    }

    /// Those that the unpacker keeps; counts the others.
    fn attributes(&self, id: Id) -> Res<Xattrs> {
        let mut xattrs = self.fs.xattrs(id)?;
        let before = xattrs.len();
        xattrs.retain(|(name, _)| {
            name == b"security.capability"
                || name.len() > 5 && name.starts_with(b"user.") && !name.contains(&b'=')
        });
        self.told.borrow_mut().xattrs_dropped += (before - xattrs.len()) as u64;
        xattrs.sort_unstable();
        Ok(xattrs)
    }

    fn produce(&mut self, buf: &mut [u8]) -> Res<usize> {
        loop {
            let rest = &self.ready[self.given..];
            if !rest.is_empty() {
                let n = rest.len().min(buf.len());
                buf[..n].copy_from_slice(&rest[..n]);
                self.given += n;
                return Ok(n);
            }
            if let Some(file) = &mut self.file {
                let n = index(file.left).min(buf.len());
                file.content.fill(&mut buf[..n]).map_err(|e| e.at(&file.path))?;
                file.left -= n as u64;
                if file.left == 0 {
                    self.ready.clear();
                    self.ready.resize(file.padding, 0);
                    self.given = 0;
                    self.file = None;
                }
                return Ok(n);
            }
            if self.state == State::Ended {
                return Ok(0);
            }
            self.advance()?;
        }
    }
}

impl Read for TarStream<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        self.produce(buf).map_err(|fault| {
            let text = fault.to_string();
            self.told.borrow_mut().fault = Some(fault);
            io::Error::other(text)
        })
    }
}

/// Names a file can have on Linux and in a layer.
fn check_name(name: &[u8]) -> Res<()> {
    if matches!(name, b"" | b"." | b"..") || name.contains(&b'/') || name.contains(&0) {
        return Err(DiskFault::damaged("directory", "has a name that cannot be"));
    }
    // In a layer it would hide a file instead of being one.
    if name.starts_with(b".wh.") {
        return Err(DiskFault::Name("it starts with .wh., which a layer cannot hold; remove it"));
    }
    Ok(())
}

/// Kernels, initial RAM disks, boot loader and modules; the directories themselves stay.
fn boot_only(path: &[u8]) -> bool {
    const BELOW: [&[u8]; 3] = [b"boot/", b"lib/modules/", b"usr/lib/modules/"];
    const LINKS: [&[u8]; 4] = [b"vmlinuz", b"vmlinuz.old", b"initrd.img", b"initrd.img.old"];
    BELOW.iter().any(|dir| path.starts_with(dir)) || LINKS.contains(&path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diskimage::fs::Node;

    #[test]
    fn kernels_are_left_out_and_directories_stay() {
        for (path, only) in [
            (&b"boot"[..], false),
            (b"boot/vmlinuz", true),
            (b"lib/modules", false),
            (b"lib/modules/6.1/a.ko", true),
            (b"usr/lib/modules/6.1", true),
            (b"initrd.img", true),
            (b"etc/boot/x", false),
            (b"vmlinuz.d", false),
        ] {
            assert_eq!(boot_only(path), only, "{}", path.escape_ascii());
        }
    }

    /// Directories by inode, whose names lead to others or, above them all, to empty files.
    struct Fake {
        directories: Vec<Vec<(String, u64)>>,
        listed: std::cell::Cell<usize>,
    }

    impl FileSystem for Fake {
        fn name(&self) -> &'static str {
            "fake"
        }

        fn root(&self) -> Id {
            Id::inode(0)
        }

        fn node(&self, id: Id) -> Res<Node> {
            let is_directory = index(id.inode) < self.directories.len();
            let kind = if is_directory { Kind::Directory } else { Kind::File };
            let (mtime, device) = ((0, 0), (0, 0));
            Ok(Node { kind, mode: 0o755, uid: 0, gid: 0, size: 0, mtime, links: 1, device })
        }

        fn names(&self, id: Id, max: usize) -> Res<Vec<Name>> {
            self.listed.set(self.listed.get() + 1);
            let names = self.directories[index(id.inode)].iter();
            let name = |(name, inode): &(String, u64)| Name {
                name: name.clone().into_bytes(),
                id: Id::inode(*inode),
            };
            Ok(names.map(name).take(max.saturating_add(1)).collect())
        }

        fn target(&self, _: Id) -> Res<Vec<u8>> {
            Ok(Vec::new())
        }

        fn xattrs(&self, _: Id) -> Res<Xattrs> {
            Ok(Vec::new())
        }

        fn open(&self, _: Id) -> Res<Box<dyn Content>> {
            Err(DiskFault::Changed)
        }
    }

    /// What ends the walk, and how many directories it listed.
    fn walk(fs: Fake, entries: u64, keep_boot: KeepBoot) -> (Option<String>, usize) {
        let (fs, limits) = (Rc::new(fs), Limits { entries, ..Limits::default() });
        let (mut stream, told) =
            TarStream::new(Rc::clone(&fs) as Rc<dyn FileSystem>, &limits, keep_boot);
        let ended = io::copy(&mut stream, &mut io::sink());
        let fault = told.borrow_mut().fault.take();
        assert_eq!(ended.is_err(), fault.is_some());
        (fault.map(|f| f.to_string()), fs.listed.get())
    }

    /// Files with these numbers as names.
    fn files(numbers: std::ops::Range<u32>) -> Vec<(String, u64)> {
        numbers.map(|n| (format!("f{n}"), 1000)).collect()
    }

    #[test]
    fn names_of_all_levels_count_together() {
        // A chain; in each directory the way down comes before 29 files.
        let level = |n: u64| [vec![("a".to_owned(), n + 1)], files(0..29)].concat();
        let directories = (0..50).map(level).collect();
        let fs = Fake { directories, listed: 0.into() };
        let (fault, listed) = walk(fs, 100, KeepBoot::Yes);
        let why = "\"a/a/a\": more than 100 entries per image; raise the limit only for an image you trust";
        assert_eq!((fault.as_deref(), listed), (Some(why), 4));
    }

    #[test]
    fn names_of_a_directory_that_was_left_count_no_more() {
        let directories = vec![
            vec![("boot".to_owned(), 1), ("lib".to_owned(), 2)],
            files(0..5),
            vec![("modules".to_owned(), 3)],
            files(0..5),
        ];
        let fs = Fake { directories, listed: 0.into() };
        assert_eq!(walk(fs, 10, KeepBoot::No), (None, 4));
    }
}
