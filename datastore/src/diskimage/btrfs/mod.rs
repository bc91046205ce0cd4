//! btrfs on one device, read only (format: btrfs-dev-docs, "On-disk format").
//!
//! Read: chunks that lie on one device (single, DUP), subvolumes, inline and regular extents, zlib, LZO, zstd,
//! xattrs. The root is the default subvolume; where that is the top level and no system lies there, the one that
//! distributions use (`@`, `@rootfs`, `root`). Subvolumes below it belong to it, snapshots do not.
//!
//! What was fsynced after the last commit is in a log of its own; a file system that has one is refused.
//! Checksums are not checked, for the reason given with ext4.

mod extent;
mod item;
mod lzo;
mod tree;

use std::cell::RefCell;
use std::rc::Rc;

use super::device::{self, Cached, Device, Disk};
use super::fault::{DiskFault, Res, View, index};
use super::find;
use super::fs::{Content, FileSystem, Id, Kind, Name, Node, TARGET_MAX, XATTRS_MAX, Xattrs};
use item::{Key, kinds};
use tree::{Chunk, Tree};

const SUPER: u64 = 65_536;
const MAGIC: &[u8] = b"_BHRfS_M";

/// Mixed back references, default subvolume, mixed groups, LZO, zstd, big metadata, extended references, RAID5/6,
/// skinny metadata, no holes, metadata UUID, RAID1 of three and four, and simple quotas.
const KNOWN: u64 = 0xfff | 0x1_0000;

const ROOT_TREE: u64 = 1;
const TOP_LEVEL: u64 = 5;
const ROOT_DIRECTORY: u64 = 6;
/// First inode of a subvolume; larger than any tree's own number.
const FIRST: u64 = 256;

pub(super) fn matches(disk: &dyn Device) -> bool {
    device::bytes(disk, SUPER + 64, 8, "magic").is_ok_and(|b| b == MAGIC)
}

struct Volume {
    disk: Cached,
    content: Disk,
    node_size: usize,
    sector: u64,
    chunks: Vec<Chunk>,
    root: Tree,
    /// Subvolumes that were looked up.
    trees: RefCell<Vec<(u64, Tree)>>,
}

pub(super) struct Btrfs {
    volume: Rc<Volume>,
    top: Id,
}

impl Btrfs {
    pub fn open(disk: &Disk) -> Res<Self> {
        let volume = Rc::new(Volume::open(disk)?);
        let mut fs = Self { volume, top: Id { tree: TOP_LEVEL, inode: FIRST } };
        if let Some(tree) = fs.default_subvolume()? {
            fs.top.tree = tree;
        }
        if fs.top.tree == TOP_LEVEL && !find::looks_like_root(&fs)? {
            for name in ["@", "@rootfs", "root"] {
                let names = fs.names(fs.top, find::NAMES_MAX)?;
                let named = names.into_iter().find(|n| n.name == name.as_bytes()).map(|n| n.id);
                let Some(id) = named.filter(|id| id.tree != TOP_LEVEL) else {
                    continue;
                };
                let inner = Self { volume: Rc::clone(&fs.volume), top: id };
                if find::looks_like_root(&inner)? {
                    return Ok(inner);
                }
            }
        }
        Ok(fs)
    }

    /// The subvolume that a mount without options would show, if one was set.
    fn default_subvolume(&self) -> Res<Option<u64>> {
        let mut found = None;
        let (from, kind) = (Key::new(ROOT_DIRECTORY, kinds::DIR_ITEM, 0), kinds::DIR_ITEM);
        self.volume.each(&self.volume.root, from, |key, data| {
            if (key.object, key.kind) != (ROOT_DIRECTORY, kind) {
                return Ok(false);
            }
            for entry in item::entries(data)? {
                if entry.name == b"default" && entry.location.kind == kinds::ROOT_ITEM {
                    found = Some(entry.location.object);
                }
            }
            Ok(true)
        })?;
        Ok(found)
    }

    fn item(&self, id: Id, kind: u8) -> Res<Option<Vec<u8>>> {
        let tree = self.volume.subvolume(id.tree)?;
        let wanted = Key::new(id.inode, kind, 0);
        let mut found = None;
        self.volume.each(&tree, wanted, |key, data| {
            if key == wanted {
                found = Some(data.bytes.to_vec());
            }
            Ok(false)
        })?;
        Ok(found)
    }
}

impl Volume {
    fn open(disk: &Disk) -> Res<Self> {
        let bytes = device::bytes(&**disk, SUPER, 4096, "btrfs superblock")?;
        let view = View::new(&bytes, "btrfs superblock");
        let incompatible = view.le64(0xbc)?;
        if incompatible & !KNOWN != 0 {
            let text = format!("incompatible features {:#x}", incompatible & !KNOWN);
            return Err(DiskFault::feature("the btrfs file system", text));
        }
        if view.le64(0x88)? != 1 {
            return Err(DiskFault::feature("the btrfs file system", "more than one device"));
        }
        if view.le64(0x60)? != 0 {
            return Err(DiskFault::Unclean { fs: "btrfs" });
        }
        let (sector, node) = (view.le32(0x90)?, view.le32(0x94)?);
        let power = |n: u32| (4096..=65_536).contains(&n) && n.is_power_of_two();
        if !power(sector) || !power(node) || node < sector {
            return Err(view.damaged("size of sectors or nodes is out of range"));
        }
        if view.le64(0x70)? > disk.size() {
            return Err(view.damaged("file system is larger than its disk"));
        }
        let mut volume = Self {
            disk: Cached::new(Rc::clone(disk)),
            content: Rc::clone(disk),
            node_size: index(node),
            sector: sector.into(),
            chunks: Vec::new(),
            root: Tree { at: view.le64(0x50)?, level: view.u8(0xc6)? },
            trees: RefCell::default(),
        };
        // A few chunks in the superblock hold the tree of all chunks.
        let array = view.part(0x32b, index(view.le32(0xa0)?).min(2048))?;
        let mut at = 0;
        while at < array.bytes.len() {
            let key = Key::read(&array, at)?;
            let (chunk, length) =
                Chunk::read(&array.part(at + 17, array.bytes.len() - at - 17)?, key)?;
            volume.chunks.push(chunk);
            at += 17 + length;
        }
        let tree = Tree { at: view.le64(0x58)?, level: view.u8(0xc7)? };
        let mut chunks = Vec::new();
        volume.each(&tree, Key::new(0, 0, 0), |key, data| {
            if key.kind == kinds::CHUNK_ITEM {
                chunks.push(Chunk::read(&data, key)?.0);
            }
            if chunks.len() > tree::CHUNKS_MAX {
                return Err(DiskFault::damaged("btrfs chunk tree", "has too many chunks"));
            }
            Ok(true)
        })?;
        chunks.sort_unstable_by_key(|c| c.start);
        volume.chunks = chunks;
        Ok(volume)
    }

    /// The tree of a subvolume.
    fn subvolume(&self, number: u64) -> Res<Tree> {
        if let Some((_, tree)) = self.trees.borrow().iter().find(|(n, _)| *n == number) {
            return Ok(*tree);
        }
        let root = self.root_item(number)?;
        let root = root.ok_or(DiskFault::damaged("btrfs subvolume", "does not exist"))?;
        let mut trees = self.trees.borrow_mut();
        if trees.len() >= 64 {
            trees.clear();
        }
        trees.push((number, root.tree));
        Ok(root.tree)
    }

    fn root_item(&self, number: u64) -> Res<Option<item::Root>> {
        if number != TOP_LEVEL && number < FIRST || number == ROOT_TREE {
            return Ok(None);
        }
        let mut found = None;
        self.each(&self.root, Key::new(number, kinds::ROOT_ITEM, 0), |key, data| {
            if (key.object, key.kind) == (number, kinds::ROOT_ITEM) {
                found = Some(item::Root::read(&data)?);
            }
            Ok(false)
        })?;
        Ok(found)
    }
}

impl FileSystem for Btrfs {
    fn name(&self) -> &'static str {
        "btrfs"
    }

    fn root(&self) -> Id {
        self.top
    }

    fn node(&self, id: Id) -> Res<Node> {
        let bytes = self.item(id, kinds::INODE_ITEM)?;
        let bytes = bytes.ok_or(DiskFault::damaged("btrfs inode", "does not exist"))?;
        item::node(&View::new(&bytes, "btrfs inode"))
    }

    fn names(&self, id: Id, max: usize) -> Res<Vec<Name>> {
        let tree = self.volume.subvolume(id.tree)?;
        let mut names = Vec::new();
        self.volume.each(&tree, Key::new(id.inode, kinds::DIR_INDEX, 0), |key, data| {
            if (key.object, key.kind) != (id.inode, kinds::DIR_INDEX) || names.len() > max {
                return Ok(false);
            }
            let entries = item::entries(data)?;
            let [entry] = entries.as_slice() else {
                return Err(DiskFault::damaged("btrfs directory", "entry is not one name"));
            };
            let to = entry.location;
            let id = match to.kind {
                kinds::INODE_ITEM => Id { tree: id.tree, inode: to.object },
                kinds::ROOT_ITEM => match self.volume.root_item(to.object)? {
                    // What is left of a subvolume in a snapshot of the one above: an empty directory.
                    None => return Ok(true),
                    Some(root) if root.is_snapshot => return Ok(true),
                    Some(_) => Id { tree: to.object, inode: FIRST },
                },
                _ => return Err(DiskFault::damaged("btrfs directory", "entry leads nowhere")),
            };
            names.push(Name { name: entry.name.to_vec(), id });
            Ok(true)
        })?;
        Ok(names)
    }

    fn target(&self, id: Id) -> Res<Vec<u8>> {
        let node = self.node(id)?;
        if node.kind != Kind::Symlink || node.size > TARGET_MAX {
            return Err(DiskFault::damaged("btrfs symbolic link", "target is too long"));
        }
        let mut target = vec![0; index(node.size)];
        self.open(id)?.fill(&mut target)?;
        Ok(target)
    }

    fn xattrs(&self, id: Id) -> Res<Xattrs> {
        let tree = self.volume.subvolume(id.tree)?;
        let mut found = Vec::new();
        self.volume.each(&tree, Key::new(id.inode, kinds::XATTR_ITEM, 0), |key, data| {
            if (key.object, key.kind) != (id.inode, kinds::XATTR_ITEM) {
                return Ok(false);
            }
            for entry in item::entries(data)? {
                found.push((entry.name.to_vec(), entry.data.to_vec()));
            }
            if found.len() > XATTRS_MAX {
                return Err(DiskFault::damaged("btrfs xattrs", "more than 128 on one inode"));
            }
            Ok(true)
        })?;
        Ok(found)
    }

    fn open(&self, id: Id) -> Res<Box<dyn Content>> {
        let tree = self.volume.subvolume(id.tree)?;
        Ok(Box::new(extent::File::new(Rc::clone(&self.volume), tree, id.inode)))
    }
}
