//! What the leaves of trees hold.

use super::tree::Tree;
use crate::diskimage::fault::{DiskFault, Res, View};
use crate::diskimage::fs::{Kind, Node};

/// Types of items.
pub(super) mod kinds {
    pub const INODE_ITEM: u8 = 1;
    pub const XATTR_ITEM: u8 = 24;
    pub const DIR_ITEM: u8 = 84;
    pub const DIR_INDEX: u8 = 96;
    pub const EXTENT_DATA: u8 = 108;
    pub const ROOT_ITEM: u8 = 132;
    pub const CHUNK_ITEM: u8 = 228;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub object: u64,
    pub kind: u8,
    pub offset: u64,
}

impl Key {
    pub fn new(object: u64, kind: u8, offset: u64) -> Self {
        Self { object, kind, offset }
    }

    pub fn read(view: &View<'_>, at: usize) -> Res<Self> {
        Ok(Self { object: view.le64(at)?, kind: view.u8(at + 8)?, offset: view.le64(at + 9)? })
    }
}

/// A subvolume.
pub(super) struct Root {
    pub tree: Tree,
    /// Made from another subvolume.
    pub is_snapshot: bool,
}

impl Root {
    pub fn read(data: &View<'_>) -> Res<Self> {
        let tree = Tree { at: data.le64(176)?, level: data.u8(238)? };
        // Before 2012 items ended with the level.
        let parent = if data.bytes.len() >= 279 { data.array(263)? } else { [0; 16] };
        Ok(Self { tree, is_snapshot: parent != [0; 16] })
    }
}

/// A name in a directory, or an xattr.
pub(super) struct Entry<'a> {
    pub location: Key,
    pub name: &'a [u8],
    pub data: &'a [u8],
}

/// `BTRFS_NAME_LEN` and `XATTR_NAME_MAX`. Items may overlap, so a leaf could name far more bytes than it has.
const NAME_MAX: usize = 255;

/// Names whose hashes are the same share an item.
pub(super) fn entries(item: View<'_>) -> Res<Vec<Entry<'_>>> {
    let mut entries = Vec::new();
    let mut at = 0;
    while at < item.bytes.len() {
        let (data, name) = (usize::from(item.le16(at + 25)?), usize::from(item.le16(at + 27)?));
        if name > NAME_MAX {
            return Err(item.damaged("has a name of more than 255 bytes"));
        }
        entries.push(Entry {
            location: Key::read(&item, at)?,
            name: item.take(at + 30, name)?,
            data: item.take(at + 30 + name, data)?,
        });
        at += 30 + name + data;
    }
    Ok(entries)
}

pub(super) fn node(item: &View<'_>) -> Res<Node> {
    let mode = item.le32(52)?;
    let kind = Kind::of(mode).ok_or(item.damaged("unknown type of file"))?;
    let (size, device) = (item.le64(16)?, item.le64(56)?);
    if size > i64::MAX as u64 {
        return Err(item.damaged("size is out of range"));
    }
    let nanos = item.le32(144)?;
    let part = |n: u64| u32::try_from(n).map_err(|_| DiskFault::damaged("btrfs inode", "device"));
    Ok(Node {
        kind,
        mode: mode & 0o7777,
        uid: item.le32(44)?,
        gid: item.le32(48)?,
        size,
        mtime: (item.le64(136)?.cast_signed(), if nanos < 1_000_000_000 { nanos } else { 0 }),
        links: item.le32(40)?,
        // As the kernel has it inside: 20 bits for the minor number.
        device: (part(device >> 20)?, part(device & 0xf_ffff)?),
    })
}
