//! A file system that forgets what was not synced, as far as POSIX and Linux allow it to.
//!
//! - fsync of a file keeps its content and attributes; of a directory, the names in it.
//! - What was not synced may be there, or not, or in part: each change of a name by itself, in any order; the content
//!   of a file as it was, empty, cut off, or whole.
//! - A rename is one change, with both its names: the journals of ext4, xfs and btrfs keep it whole.
//! - A file whose name is kept and whose content is not, is empty. That is why content is synced before it gets
//!   a name that counts.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

use crate::trace::Op;

type Inode = usize;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Body {
    Directory,
    File(Vec<u8>),
    Symlink(Vec<u8>),
    Node(u32),
}

/// What belongs to an inode itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Data {
    body: Body,
    mode: u32,
    owner: (u32, u32),
    xattrs: BTreeMap<String, Vec<u8>>,
    modified: (i64, i64),
}

impl Data {
    fn new(body: Body, mode: u32) -> Self {
        Self { body, mode, owner: (0, 0), xattrs: BTreeMap::new(), modified: (0, 0) }
    }
}

/// One change of names: all of it happens or nothing.
#[derive(Clone, Debug)]
struct Change(Vec<((Inode, String), Option<Inode>)>);

type Names = BTreeMap<(Inode, String), Inode>;

#[derive(Clone, Debug)]
pub struct Model {
    now: Vec<Data>,
    /// As on the disk; none for what the disk has never heard of.
    kept: Vec<Option<Data>>,
    names_now: Names,
    names_kept: Names,
    pending: Vec<Change>,
}

const ROOT: Inode = 0;

/// Which of the legal things the power loss does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Nothing but the process is lost.
    Kill,
    /// Whatever was not synced is gone.
    All,
    /// Names are there, content is not.
    Content,
    /// Content is there, names are not.
    Names,
    /// Each thing by itself.
    Random(u64),
}

/// What a power loss leaves, with the paths it would have in a fresh directory.
pub type State = BTreeMap<String, (u64, Kept)>;

/// One inode after a power loss.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Kept(Data);

impl Model {
    /// A directory as it lies there, all of it on the disk.
    pub fn of(top: &Path) -> Self {
        let mut model = Self {
            now: vec![Data::new(Body::Directory, 0o700)],
            kept: vec![Some(Data::new(Body::Directory, 0o700))],
            names_now: Names::new(),
            names_kept: Names::new(),
            pending: Vec::new(),
        };
        model.load(top, ROOT, &mut BTreeMap::new());
        model
    }

    fn load(&mut self, dir: &Path, parent: Inode, linked: &mut BTreeMap<u64, Inode>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let key = (parent, path.file_name().unwrap().to_str().unwrap().to_owned());
            let inode = *linked.entry(meta.ino()).or_insert_with(|| {
                let body = if meta.is_dir() {
                    Body::Directory
                } else if meta.is_symlink() {
                    Body::Symlink(fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec())
                } else if meta.is_file() {
                    Body::File(fs::read(&path).unwrap())
                } else {
                    Body::Node(meta.mode())
                };
                let data = Data {
                    body,
                    mode: meta.mode() & 0o7777,
                    owner: (meta.uid(), meta.gid()),
                    xattrs: crate::common::xattrs(&path)
                        .into_iter()
                        .map(|(n, v)| (String::from_utf8(n).unwrap(), v))
                        .collect(),
                    modified: (meta.mtime(), meta.mtime_nsec()),
                };
                self.now.push(data.clone());
                self.kept.push(Some(data));
                self.now.len() - 1
            });
            self.names_now.insert(key.clone(), inode);
            self.names_kept.insert(key, inode);
            if meta.is_dir() {
                self.load(&path, inode, linked);
            }
        }
    }

    fn find(&self, path: &str) -> Option<Inode> {
        let parts = path.split('/').filter(|p| !p.is_empty() && *p != ".");
        parts
            .into_iter()
            .try_fold(ROOT, |dir, part| self.names_now.get(&(dir, part.to_owned())).copied())
    }

    fn get(&self, path: &str) -> Inode {
        self.find(path).unwrap_or_else(|| panic!("the model has no {path}"))
    }

    fn key(&self, path: &str) -> (Inode, String) {
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        (self.get(above), name.to_owned())
    }

    fn change(&mut self, changes: Vec<((Inode, String), Option<Inode>)>) {
        for (key, inode) in &changes {
            match inode {
                Some(inode) => drop(self.names_now.insert(key.clone(), *inode)),
                None => drop(self.names_now.remove(key)),
            }
        }
        self.pending.push(Change(changes));
    }

    fn make(&mut self, path: &str, data: Data) {
        let key = self.key(path);
        self.now.push(data);
        self.kept.push(None);
        let inode = self.now.len() - 1;
        self.change(vec![(key, Some(inode))]);
    }

    /// Does one thing; says whether the disk heard of it at once.
    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::Create(path, mode) => {
                if self.find(path).is_none() {
                    self.make(path, Data::new(Body::File(Vec::new()), *mode));
                }
            }
            Op::Write(path, bytes) => {
                let inode = self.get(path);
                let Body::File(content) = &mut self.now[inode].body else { panic!("{path}") };
                content.extend(bytes);
            }
            Op::Truncate(path, size) => {
                let inode = self.get(path);
                let Body::File(content) = &mut self.now[inode].body else { panic!("{path}") };
                content.resize(*size, 0);
            }
            Op::Mkdir(path, mode) if path.is_empty() => self.now[ROOT].mode = *mode,
            Op::Mkdir(path, mode) => self.make(path, Data::new(Body::Directory, *mode)),
            Op::Node(path, mode) => {
                self.make(path, Data::new(Body::Node(*mode), mode & 0o7777));
            }
            Op::Symlink(path, to) => self.make(path, Data::new(Body::Symlink(to.clone()), 0o777)),
            Op::Link(from, to) => {
                let (inode, key) = (self.get(from), self.key(to));
                self.change(vec![(key, Some(inode))]);
            }
            Op::Rename(from, to) => {
                let (inode, from, to) = (self.get(from), self.key(from), self.key(to));
                self.change(vec![(from, None), (to, Some(inode))]);
            }
            Op::Exchange(a, b) => {
                let (one, other) = (self.get(a), self.get(b));
                let (a, b) = (self.key(a), self.key(b));
                self.change(vec![(a, Some(other)), (b, Some(one))]);
            }
            Op::Unlink(path) => {
                let key = self.key(path);
                self.change(vec![(key, None)]);
            }
            Op::Mode(path, mode) => {
                let inode = self.get(path);
                self.now[inode].mode = *mode;
            }
            Op::Owner(path, uid, gid) => {
                let inode = self.get(path);
                self.now[inode].owner = (*uid, *gid);
            }
            Op::Xattr(path, name, value) => {
                let inode = self.get(path);
                self.now[inode].xattrs.insert(name.clone(), value.clone());
            }
            Op::Modified(path, seconds, nanos) => {
                let inode = self.get(path);
                self.now[inode].modified = (*seconds, *nanos);
            }
            Op::Sync(path) => {
                let inode = self.get(path);
                self.kept[inode] = Some(self.now[inode].clone());
                let ours = |c: &Change| c.0.iter().any(|((dir, _), _)| *dir == inode);
                let (synced, pending) =
                    std::mem::take(&mut self.pending).into_iter().partition(ours);
                self.pending = pending;
                for Change(changes) in Vec::<Change>::from_iter(synced) {
                    keep(&mut self.names_kept, &changes);
                }
            }
            Op::SyncAll => {
                self.kept = self.now.iter().cloned().map(Some).collect();
                self.names_kept = self.names_now.clone();
                self.pending.clear();
            }
        }
    }

    /// What is on the disk when the power comes back.
    pub fn lose(&self, loss: Loss) -> State {
        let mut seed = if let Loss::Random(seed) = loss { seed } else { 0 };
        let mut random = move |below: u64| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        let mut names = self.names_kept.clone();
        for Change(changes) in &self.pending {
            let there = match loss {
                Loss::Kill | Loss::Content => true,
                Loss::All | Loss::Names => false,
                Loss::Random(_) => random(2) == 0,
            };
            if there {
                keep(&mut names, changes);
            }
        }
        let data: Vec<Data> = (0..self.now.len())
            .map(|inode| {
                let (now, kept) = (&self.now[inode], &self.kept[inode]);
                let fresh = || {
                    let (body, mode) = match &now.body {
                        Body::File(_) => (Body::File(Vec::new()), 0o600),
                        other => (other.clone(), 0o700),
                    };
                    Data::new(body, mode)
                };
                let old = || kept.clone().unwrap_or_else(fresh);
                match loss {
                    Loss::Kill | Loss::Names => now.clone(),
                    Loss::All | Loss::Content => old(),
                    Loss::Random(_) => match random(4) {
                        0 => old(),
                        1 => fresh_unless_kept(now, kept.as_ref()),
                        2 => match (&now.body, kept) {
                            (Body::File(bytes), k) if k.as_ref() != Some(now) => {
                                let body = Body::File(bytes[..bytes.len() / 2].to_vec());
                                Data { body, ..now.clone() }
                            }
                            _ => now.clone(),
                        },
                        _ => now.clone(),
                    },
                }
            })
            .collect();
        let mut state = State::new();
        let mut todo = vec![(ROOT, String::new())];
        while let Some((dir, path)) = todo.pop() {
            for ((_, name), inode) in names.range((dir, String::new())..(dir + 1, String::new())) {
                let below = format!("{path}{name}");
                if data[*inode].body == Body::Directory {
                    todo.push((*inode, format!("{below}/")));
                }
                state.insert(below, (*inode as u64, Kept(data[*inode].clone())));
            }
        }
        state
    }
}

/// A new file of which nothing is known; what is on the disk already stays.
fn fresh_unless_kept(now: &Data, kept: Option<&Data>) -> Data {
    match (&now.body, kept) {
        (_, Some(kept)) => kept.clone(),
        (Body::File(_), None) => Data::new(Body::File(Vec::new()), now.mode),
        (_, None) => now.clone(),
    }
}

fn keep(names: &mut Names, changes: &[((Inode, String), Option<Inode>)]) {
    for (key, inode) in changes {
        match inode {
            Some(inode) => drop(names.insert(key.clone(), *inode)),
            None => drop(names.remove(key)),
        }
    }
}

/// Writes a state into an empty directory.
pub fn materialise(state: &State, top: &Path) {
    let mut made: BTreeMap<u64, String> = BTreeMap::new();
    for (path, (inode, Kept(data))) in state {
        let to = top.join(path);
        if data.body != Body::Directory
            && let Some(first) = made.insert(*inode, path.clone())
        {
            fs::hard_link(top.join(first), &to).unwrap();
            continue;
        }
        match &data.body {
            Body::Directory => fs::create_dir(&to).unwrap(),
            Body::File(bytes) => fs::File::create(&to).unwrap().write_all(bytes).unwrap(),
            Body::Symlink(target) => {
                rustix::fs::symlinkat(target.as_slice(), CWD, &to).unwrap();
            }
            Body::Node(mode) => {
                let kind = FileType::from_raw_mode(*mode);
                rustix::fs::mknodat(CWD, &to, kind, Mode::empty(), 0).unwrap();
            }
        }
    }
    // From the leaves up: what is made in a directory changes its time.
    for (path, (_, Kept(data))) in state.iter().rev() {
        let to = top.join(path);
        let (uid, gid) = data.owner;
        std::os::unix::fs::lchown(&to, Some(uid), Some(gid)).unwrap();
        if !matches!(data.body, Body::Symlink(_)) {
            fs::set_permissions(&to, fs::Permissions::from_mode(data.mode)).unwrap();
            for (name, value) in &data.xattrs {
                rustix::fs::setxattr(&to, name.as_str(), value, XattrFlags::empty()).unwrap();
            }
        }
        let time = Timespec { tv_sec: data.modified.0, tv_nsec: data.modified.1 };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, &to, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}
