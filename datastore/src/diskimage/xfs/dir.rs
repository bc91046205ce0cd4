//! Directories: in the inode, in one block, or in data blocks beside an index that nobody needs who reads all.

use super::inode::{Fork, Form, Inode};
use super::{Volume, index};
use crate::diskimage::fault::{DiskFault, Res, View};
use crate::diskimage::fs::{DIRECTORY_MAX, Id, Name};

const WHAT: &str = "xfs directory";
/// From here on the fork holds the index.
const LEAF_OFFSET: u64 = 32 << 30;

pub(super) fn names(volume: &Volume, inode: &Inode, max: usize) -> Res<Vec<Name>> {
    let mut names = Vec::new();
    if inode.form(Fork::Data)? == Form::Local {
        short(volume, inode, max, &mut names)?;
        return Ok(names);
    }
    let size = 1u64 << volume.sb.dir_bits;
    let (mut at, mut read) = (0, 0);
    while at < LEAF_OFFSET && names.len() <= max {
        let run = volume.run(inode, Fork::Data, at)?;
        let end = run.from + run.len;
        if run.disk.is_none() {
            // A data block that lost all its names is given back.
            at = end.next_multiple_of(size);
            continue;
        }
        read += size;
        if read > DIRECTORY_MAX {
            let what = "bytes of a directory";
            return Err(DiskFault::TooLarge { what, value: read, max: DIRECTORY_MAX });
        }
        let block = volume.mapped(inode, Fork::Data, at, size, WHAT)?;
        let block = block.ok_or(DiskFault::damaged(WHAT, "block has a hole"))?;
        data(volume, View::new(&block, WHAT), max, &mut names)?;
        at += size;
    }
    Ok(names)
}

/// Count, number of wide inode numbers, parent; then length, offset, name, type, inode.
fn short(volume: &Volume, inode: &Inode, max: usize, names: &mut Vec<Name>) -> Res<()> {
    let view = View::new(inode.area(Fork::Data)?.bytes, WHAT);
    let count = view.u8(0)?;
    let wide = view.u8(1)? != 0;
    let width = if wide { 8 } else { 4 };
    let number = |at| if wide { view.be64(at) } else { view.be32(at).map(u64::from) };
    let mut at = 2 + width;
    for _ in 0..count {
        let length = usize::from(view.u8(at)?);
        let name = view.take(at + 3, length)?.to_vec();
        let after = at + 3 + length + usize::from(volume.sb.ftype);
        let inode = number(after)? & INODE_BITS;
        if names.len() <= max {
            names.push(Name { name, id: Id::inode(inode) });
        }
        at = after + width;
    }
    Ok(())
}

/// Inode numbers have 56 bits at most.
const INODE_BITS: u64 = (1 << 56) - 1;

/// Names in a data block, or in a block that holds all of a small directory.
fn data(volume: &Volume, block: View<'_>, max: usize, names: &mut Vec<Name>) -> Res<()> {
    let (mut at, whole) = match block.take(0, 4)? {
        b"XDB3" => (64, true),
        b"XDD3" => (64, false),
        b"XD2B" => (16, true),
        b"XD2D" => (16, false),
        _ => return Err(block.damaged("bad magic number")),
    };
    let mut end = block.bytes.len();
    if whole {
        // Hashes and their number stand at the end.
        let count = index(block.be32(end - 8)?);
        let tail = count.checked_mul(8).and_then(|n| n.checked_add(8));
        end = tail.and_then(|t| end.checked_sub(t)).ok_or(block.damaged("tail is too long"))?;
    }
    while at < end && names.len() <= max {
        if block.be16(at)? == 0xffff {
            let length = usize::from(block.be16(at + 2)?);
            if length < 8 || length % 8 != 0 {
                return Err(block.damaged("bad length of free space"));
            }
            at += length;
            continue;
        }
        let inode = block.be64(at)?;
        let length = usize::from(block.u8(at + 8)?);
        let name = block.take(at + 9, length)?;
        if !matches!(name, b"." | b"..") {
            names.push(Name { name: name.to_vec(), id: Id::inode(inode & INODE_BITS) });
        }
        // Type of file where there is one, and the entry's own offset.
        at += (9 + length + usize::from(volume.sb.ftype) + 2).next_multiple_of(8);
    }
    Ok(())
}
