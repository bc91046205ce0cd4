//! Where the blocks of a file lie: extent trees, and the block maps of ext2 and ext3.

use super::inode::{self, Inode};
use super::{Volume, index};
use crate::diskimage::fault::{DiskFault, Res, View};
use crate::diskimage::fs::Run;

/// Levels that an extent tree may have.
const DEPTH_MAX: u16 = 5;
/// Longest extent; above it the length says "allocated, never written".
const WRITTEN_MAX: u16 = 32_768;
/// A run in a hole is told in pieces of this many blocks.
const HOLE: u64 = 1 << 20;

impl Volume {
    /// The run that covers a byte of the file.
    pub(super) fn run(&self, inode: &Inode, at: u64) -> Res<Run> {
        let bits = self.sb.block_bits;
        let wanted = at >> bits;
        let (from, blocks, disk) = if inode.flags & inode::EXTENTS != 0 {
            self.extent(inode, wanted)?
        } else {
            self.indirect(inode, wanted)?
        };
        if let Some(first) = disk
            && (first == 0 || first.checked_add(blocks).is_none_or(|end| end > self.sb.blocks))
        {
            return Err(DiskFault::damaged("ext4 extent", "lies outside of the file system"));
        }
        Ok(Run { from: from << bits, len: blocks << bits, disk: disk.map(|d| d << bits) })
    }

    /// First block of the file, number of blocks, first block on the disk.
    fn extent(&self, inode: &Inode, wanted: u64) -> Res<(u64, u64, Option<u64>)> {
        const WHAT: &str = "ext4 extent tree";
        let mut node = inode.block_area()?.bytes.to_vec();
        let mut above = None;
        // Where the next extent to the right starts, as far as the nodes on the way told.
        let mut bound = u64::MAX >> 16;
        loop {
            let view = View::new(&node, WHAT);
            let (entries, depth) = (usize::from(view.le16(2)?), view.le16(6)?);
            if view.le16(0)? != 0xf30a {
                return Err(view.damaged("bad magic number"));
            }
            if depth > DEPTH_MAX || above.is_some_and(|a: u16| a != depth + 1) {
                return Err(view.damaged("depth is wrong"));
            }
            // Sorted by the first block of the file: the last one at or before what is wanted.
            let (mut low, mut high) = (0, entries);
            while low < high {
                let middle = (low + high) / 2;
                if u64::from(view.le32(12 + middle * 12)?) <= wanted {
                    low = middle + 1;
                } else {
                    high = middle;
                }
            }
            if low < entries {
                bound = bound.min(view.le32(12 + low * 12)?.into());
            }
            let Some(found) = low.checked_sub(1) else {
                return Ok((wanted, hole(wanted, bound), None));
            };
            let entry = view.part(12 + found * 12, 12)?;
            if depth == 0 {
                let first = u64::from(entry.le32(0)?);
                let length = entry.le16(4)?;
                let written = length <= WRITTEN_MAX;
                let blocks = u64::from(if written { length } else { length - WRITTEN_MAX });
                let disk = u64::from(entry.le32(8)?) | u64::from(entry.le16(6)?) << 32;
                return Ok(if wanted < first + blocks {
                    (first, blocks, written.then_some(disk))
                } else {
                    (wanted, hole(wanted, bound), None)
                });
            }
            let child = u64::from(entry.le32(4)?) | u64::from(entry.le16(8)?) << 32;
            above = Some(depth);
            node = self.block(child, WHAT)?;
        }
    }

    /// Twelve blocks, then one, two and three levels of blocks full of numbers.
    fn indirect(&self, inode: &Inode, wanted: u64) -> Res<(u64, u64, Option<u64>)> {
        const WHAT: &str = "ext4 block map";
        let area = inode.block_area()?;
        let some = |n: u32| (n != 0).then_some(u64::from(n));
        if wanted < 12 {
            let block = some(area.le32(index(wanted) * 4)?);
            return Ok((wanted, 1, block));
        }
        let bits = self.sb.block_bits - 2;
        let mut rest = wanted - 12;
        let mut levels = 1;
        while rest >> (bits * levels) != 0 {
            rest -= 1 << (bits * levels);
            levels += 1;
            if levels > 3 {
                return Err(DiskFault::damaged(WHAT, "file is too large for it"));
            }
        }
        let mut here = some(area.le32(44 + index(levels) * 4)?);
        for level in (0..levels).rev() {
            let Some(block) = here else {
                // All below it is a hole.
                let span = 1u64 << (bits * (level + 1));
                let from = wanted - (rest & (span - 1));
                return Ok((from, span, None));
            };
            let table = self.block(block, WHAT)?;
            let view = View::new(&table, WHAT);
            let n = index(rest >> (bits * level) & ((1 << bits) - 1));
            here = some(view.le32(n * 4)?);
            if level == 0 {
                return Ok((wanted, neighbours(&view, n)?, here));
            }
        }
        Ok((wanted, 1, here))
    }
}

/// How many entries from the `n`th on follow each other on the disk, or are all holes.
fn neighbours(table: &View<'_>, n: usize) -> Res<u64> {
    let first = table.le32(n * 4)?;
    let mut count = 1;
    while let Ok(next) = table.le32((n + index(count)) * 4) {
        let expected = if first == 0 { Some(0) } else { first.checked_add(count) };
        if Some(next) != expected {
            break;
        }
        count += 1;
    }
    Ok(count.into())
}

fn hole(from: u64, bound: u64) -> u64 {
    bound.saturating_sub(from).clamp(1, HOLE)
}
