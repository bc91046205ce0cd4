//! Chunks and trees.

use super::item::Key;
use super::{Volume, index};
use crate::diskimage::device;
use crate::diskimage::fault::{DiskFault, Res, View};

/// A disk of 64 TiB in chunks of 256 MiB.
pub(super) const CHUNKS_MAX: usize = 1 << 18;
const LEVELS_MAX: u8 = 8;
const HEADER: usize = 101;
/// Items that one search may pass: those of a directory of two million names many times over.
const ITEMS_MAX: u64 = 16 << 20;

/// A range of logical addresses and where it starts on the device.
#[derive(Debug)]
pub(super) struct Chunk {
    pub start: u64,
    length: u64,
    disk: u64,
}

impl Chunk {
    /// A chunk and the bytes of its item.
    pub fn read(item: &View<'_>, key: Key) -> Res<(Self, usize)> {
        let (length, stripes) = (item.le64(0)?, item.le16(44)?);
        // Two stripes on one device are copies. Striping and parity over one device have one stripe.
        const DUP: u64 = 0x20;
        let copies = item.le64(24)? & DUP != 0;
        if stripes == 0 || stripes > 1 && !copies {
            return Err(DiskFault::feature("the btrfs file system", "more than one device"));
        }
        let disk = item.le64(48 + 8)?;
        if key.offset.checked_add(length).is_none() || disk.checked_add(length).is_none() {
            return Err(DiskFault::damaged("btrfs chunk", "is out of range"));
        }
        Ok((Self { start: key.offset, length, disk }, 48 + usize::from(stripes) * 32))
    }
}

/// A tree by its root.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tree {
    pub at: u64,
    pub level: u8,
}

impl Volume {
    /// Where a range of logical addresses lies on the device.
    pub(super) fn place(&self, at: u64, len: u64) -> Res<u64> {
        const OUTSIDE: DiskFault =
            DiskFault::Damaged { what: "btrfs address", why: "lies in no chunk" };
        let next = self.chunks.partition_point(|c| c.start <= at);
        // The chunks of the superblock are not sorted, and few.
        let near = next.checked_sub(1).and_then(|n| self.chunks.get(n));
        let holds = |c: &&Chunk| at >= c.start && at - c.start < c.length;
        let chunk = near.filter(holds).or_else(|| self.chunks.iter().take(64).find(holds));
        let chunk = chunk.ok_or(OUTSIDE)?;
        let skip = at - chunk.start;
        if len > chunk.length - skip {
            return Err(OUTSIDE);
        }
        Ok(chunk.disk + skip)
    }

    fn node(&self, at: u64, level: u8) -> Res<Vec<u8>> {
        const WHAT: &str = "btrfs node";
        let disk = self.place(at, self.node_size as u64)?;
        let bytes = device::bytes(&self.disk, disk, self.node_size, WHAT)?;
        let view = View::new(&bytes, WHAT);
        if view.le64(0x30)? != at {
            return Err(view.damaged("is not where it says"));
        }
        if view.u8(0x64)? != level {
            return Err(view.damaged("level is wrong"));
        }
        let item = if level == 0 { 25 } else { 33 };
        if index(view.le32(0x60)?) > (self.node_size - HEADER) / item {
            return Err(view.damaged("more items than there is room for"));
        }
        Ok(bytes)
    }

    /// Calls `visit` with the items from `from` on, in order, until it says no.
    ///
    /// Several keys of a node may lead to the same leaf, on a disk made to hurt. No item is visited twice: keys
    /// grow over all leaves, and stay below the key that leads to the leaf after.
    pub(super) fn each(
        &self,
        tree: &Tree,
        from: Key,
        visit: impl FnMut(Key, View<'_>) -> Res<bool>,
    ) -> Res<()> {
        self.each_of(tree, from, ITEMS_MAX, visit)
    }

    /// [`Self::each`] of at most `max` items. A leaf counts as one more, since it may be empty.
    fn each_of(
        &self,
        tree: &Tree,
        from: Key,
        max: u64,
        mut visit: impl FnMut(Key, View<'_>) -> Res<bool>,
    ) -> Res<()> {
        let (mut from, mut last, mut passed) = (from, None, 0);
        loop {
            let (leaf, next) = self.leaf(tree, from)?;
            let view = View::new(&leaf, "btrfs leaf");
            let count = index(view.le32(0x60)?);
            passed += 1 + count as u64;
            if passed > max {
                return Err(DiskFault::TooLarge {
                    what: "items in a btrfs tree",
                    value: passed,
                    max,
                });
            }
            for n in 0..count {
                let at = HEADER + n * 25;
                let key = Key::read(&view, at)?;
                if last.is_some_and(|last| key <= last) {
                    return Err(view.damaged("keys do not grow"));
                }
                if next.is_some_and(|next| key >= next) {
                    return Err(view.damaged("has a key of the leaf after it"));
                }
                last = Some(key);
                if key < from {
                    continue;
                }
                let (start, size) = (index(view.le32(at + 17)?), index(view.le32(at + 21)?));
                if !visit(key, view.part(HEADER + start, size)?)? {
                    return Ok(());
                }
            }
            // Keys grow from leaf to leaf, so this ends.
            match next {
                Some(next) if next > from => from = next,
                Some(_) => return Err(DiskFault::damaged("btrfs node", "keys do not grow")),
                None => return Ok(()),
            }
        }
    }

    /// The last item at or before a key.
    pub(super) fn before(&self, tree: &Tree, key: Key) -> Res<Option<(Key, Vec<u8>)>> {
        let (leaf, _) = self.leaf(tree, key)?;
        let view = View::new(&leaf, "btrfs leaf");
        let mut found = None;
        for n in 0..index(view.le32(0x60)?) {
            let at = HEADER + n * 25;
            let here = Key::read(&view, at)?;
            if here > key {
                break;
            }
            found = Some((here, at));
        }
        let Some((found, at)) = found else {
            return Ok(None);
        };
        let (start, size) = (index(view.le32(at + 17)?), index(view.le32(at + 21)?));
        Ok(Some((found, view.take(HEADER + start, size)?.to_vec())))
    }

    /// The leaf where a key belongs, and the first key of the leaf after it.
    fn leaf(&self, tree: &Tree, key: Key) -> Res<(Vec<u8>, Option<Key>)> {
        let (mut at, mut level, mut next) = (tree.at, tree.level, None);
        if level >= LEVELS_MAX {
            return Err(DiskFault::damaged("btrfs tree", "depth is wrong"));
        }
        loop {
            let bytes = self.node(at, level)?;
            if level == 0 {
                return Ok((bytes, next));
            }
            let view = View::new(&bytes, "btrfs node");
            let count = index(view.le32(0x60)?);
            let (mut low, mut high) = (0, count);
            while low < high {
                let middle = usize::midpoint(low, high);
                if Key::read(&view, HEADER + middle * 33)? <= key {
                    low = middle + 1;
                } else {
                    high = middle;
                }
            }
            if count == 0 {
                return Err(view.damaged("has no children"));
            }
            // A key before all others belongs to the first child.
            let child = low.saturating_sub(1);
            if child + 1 < count {
                next = Some(Key::read(&view, HEADER + (child + 1) * 33)?);
            }
            at = view.le64(HEADER + child * 33 + 17)?;
            level -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;
    use crate::diskimage::btrfs::item::kinds;
    use crate::diskimage::btrfs::{Btrfs, FIRST, TOP_LEVEL};
    use crate::diskimage::device::{Cached, Disk};
    use crate::diskimage::fs::{FileSystem, Id};

    const NODE: usize = 4096;

    fn name(offset: u64) -> Key {
        Key::new(FIRST, kinds::DIR_INDEX, offset)
    }

    fn raw(key: Key) -> Vec<u8> {
        [&key.object.to_le_bytes()[..], &[key.kind], &key.offset.to_le_bytes()].concat()
    }

    fn header(disk: &mut [u8], at: usize, level: u8, count: usize) {
        disk[at + 0x30..][..8].copy_from_slice(&(at as u64).to_le_bytes());
        disk[at + 0x60..][..4].copy_from_slice(&u32::try_from(count).unwrap().to_le_bytes());
        disk[at + 0x64] = level;
    }

    /// A leaf whose items all have the same bytes.
    fn leaf(disk: &mut [u8], at: usize, keys: &[Key], data: &[u8]) {
        header(disk, at, 0, keys.len());
        let start = NODE - HEADER - data.len();
        disk[at + HEADER + start..][..data.len()].copy_from_slice(data);
        for (n, key) in keys.iter().enumerate() {
            let numbers = [start, data.len()].map(|n| u32::try_from(n).unwrap().to_le_bytes());
            let item = [raw(*key), numbers.concat()].concat();
            disk[at + HEADER + n * 25..][..25].copy_from_slice(&item);
        }
    }

    /// A node of level 1 at the disk's start.
    fn parent(disk: &mut [u8], children: &[(Key, usize)]) {
        header(disk, 0, 1, children.len());
        for (n, (key, at)) in children.iter().enumerate() {
            let pointer = [raw(*key), (*at as u64).to_le_bytes().to_vec(), vec![0; 8]].concat();
            disk[HEADER + n * 33..][..33].copy_from_slice(&pointer);
        }
    }

    const TREE: Tree = Tree { at: 0, level: 1 };

    fn volume(bytes: Vec<u8>) -> Volume {
        let length = bytes.len() as u64;
        let disk: Disk = Rc::new(bytes);
        Volume {
            disk: Cached::new(Rc::clone(&disk)),
            content: disk,
            node_size: NODE,
            sector: 4096,
            chunks: vec![Chunk { start: 0, length, disk: 0 }],
            root: TREE,
            trees: RefCell::new(vec![(TOP_LEVEL, TREE)]),
        }
    }

    /// The offsets of all items that were visited, and how it ended.
    fn visit(volume: &Volume, max: u64) -> (Vec<u64>, Result<(), String>) {
        let mut seen = Vec::new();
        let end = volume.each_of(&TREE, name(0), max, |key, _| {
            seen.push(key.offset);
            Ok(true)
        });
        (seen, end.map_err(|e| e.to_string()))
    }

    #[test]
    fn items_of_several_leaves_come_in_order_up_to_a_bound() {
        let mut disk = vec![0; 3 * NODE];
        parent(&mut disk, &[(name(1), NODE), (name(5), 2 * NODE)]);
        leaf(&mut disk, NODE, &[name(1), name(4)], b"");
        leaf(&mut disk, 2 * NODE, &[name(5), name(9)], b"");
        let volume = volume(disk);
        assert_eq!(visit(&volume, 6), (vec![1, 4, 5, 9], Ok(())));
        let refused = "items in a btrfs tree 6 is above 5".to_owned();
        assert_eq!(visit(&volume, 5), (vec![1, 4], Err(refused)));
    }

    #[test]
    fn a_leaf_under_many_keys_is_refused() {
        // Each key of the node leads to the one leaf, whose keys belong to the last of them.
        let children: Vec<_> = (1..=100).map(|n| (name(n), NODE)).collect();
        let mut disk = vec![0; 2 * NODE];
        parent(&mut disk, &children);
        leaf(&mut disk, NODE, &[name(1000), name(1001)], b"");
        let refused = "btrfs leaf is damaged: has a key of the leaf after it".to_owned();
        assert_eq!(visit(&volume(disk.clone()), ITEMS_MAX), (vec![], Err(refused)));
        // Keys that the first visit may show do not come again.
        leaf(&mut disk, NODE, &[name(1)], b"");
        let refused = "btrfs leaf is damaged: keys do not grow".to_owned();
        assert_eq!(visit(&volume(disk.clone()), ITEMS_MAX), (vec![1], Err(refused)));
        // Nothing to see, but each visit costs.
        leaf(&mut disk, NODE, &[], b"");
        let refused = "items in a btrfs tree 51 is above 50".to_owned();
        assert_eq!(visit(&volume(disk), 50), (vec![], Err(refused)));
    }

    #[test]
    fn keys_of_one_leaf_that_do_not_grow_are_refused() {
        let mut disk = vec![0; 2 * NODE];
        parent(&mut disk, &[(name(1), NODE)]);
        leaf(&mut disk, NODE, &[name(1), name(3), name(3)], b"");
        let refused = "btrfs leaf is damaged: keys do not grow".to_owned();
        assert_eq!(visit(&volume(disk), ITEMS_MAX), (vec![1, 3], Err(refused)));
    }

    #[test]
    fn an_entry_of_a_directory_is_one_name_of_usual_length() {
        let entry = |len: u16| {
            let location = raw(Key::new(FIRST + 1, kinds::INODE_ITEM, 0));
            let head = [&location[..], &[0; 8], &[0, 0], &len.to_le_bytes(), &[1]].concat();
            [head, vec![b'n'; len.into()]].concat()
        };
        let names = |data: &[u8]| {
            let mut disk = vec![0; 2 * NODE];
            parent(&mut disk, &[(name(2), NODE)]);
            leaf(&mut disk, NODE, &[name(2), name(3)], data);
            let top = Id { tree: TOP_LEVEL, inode: FIRST };
            let fs = Btrfs { volume: Rc::new(volume(disk)), top };
            fs.names(top, 10).map(|names| names.len()).map_err(|e| e.to_string())
        };
        assert_eq!(names(&entry(255)), Ok(2));
        let refused = "btrfs directory is damaged: entry is not one name";
        assert_eq!(names(&entry(3).repeat(2)), Err(refused.to_owned()));
        assert_eq!(names(b""), Err(refused.to_owned()));
        let refused = "btrfs leaf is damaged: has a name of more than 255 bytes";
        assert_eq!(names(&entry(256)), Err(refused.to_owned()));
    }
}
