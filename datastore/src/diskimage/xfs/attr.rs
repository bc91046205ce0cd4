//! Attribute forks: in the inode, or leaves that are chained from left to right.

use super::inode::{Fork, Form, Inode};
use super::{Volume, index};
use crate::diskimage::fault::{DiskFault, Res, View};
use crate::diskimage::fs::{VALUE_MAX, XATTRS_MAX, Xattrs};

const WHAT: &str = "xfs attributes";
/// The value stands beside the name.
const LOCAL: u8 = 1;
const ROOT: u8 = 2;
const SECURE: u8 = 4;
/// A link back to the directory, not an xattr.
const PARENT: u8 = 8;
/// Being written when the machine stopped.
const INCOMPLETE: u8 = 0x80;
/// Leaves of one inode; each holds several xattrs, or one with a large value.
const LEAVES_MAX: usize = 1024;
const LEVELS_MAX: u16 = 5;

pub(super) fn read(volume: &Volume, inode: &Inode) -> Res<Xattrs> {
    let mut found = Vec::new();
    if !inode.has_attributes()? {
        return Ok(found);
    }
    match inode.form(Fork::Attr)? {
        Form::Local => short(&inode.area(Fork::Attr)?, &mut found)?,
        Form::Extents | Form::Tree => leaves(volume, inode, &mut found)?,
        Form::Device => return Err(DiskFault::damaged(WHAT, "bad form of fork")),
    }
    Ok(found)
}

fn add(found: &mut Xattrs, flags: u8, name: &[u8], value: Vec<u8>) -> Res<()> {
    if flags & (PARENT | INCOMPLETE) != 0 {
        return Ok(());
    }
    let prefix: &[u8] = match flags & (ROOT | SECURE) {
        0 => b"user.",
        ROOT => b"trusted.",
        SECURE => b"security.",
        _ => return Err(DiskFault::damaged(WHAT, "name in two spaces")),
    };
    found.push(([prefix, name].concat(), value));
    if found.len() > XATTRS_MAX {
        return Err(DiskFault::damaged(WHAT, "more than 128 on one inode"));
    }
    Ok(())
}

fn short(area: &View<'_>, found: &mut Xattrs) -> Res<()> {
    let area = View::new(area.bytes, WHAT);
    let count = area.u8(2)?;
    let mut at = 4;
    for _ in 0..count {
        let (name_len, value_len) = (usize::from(area.u8(at)?), usize::from(area.u8(at + 1)?));
        let flags = area.u8(at + 2)?;
        let name = area.take(at + 3, name_len)?;
        let value = area.take(at + 3 + name_len, value_len)?;
        add(found, flags, name, value.to_vec())?;
        at += 3 + name_len + value_len;
    }
    Ok(())
}

fn leaves(volume: &Volume, inode: &Inode, found: &mut Xattrs) -> Res<()> {
    let block = |number: u32| {
        let at = u64::from(number) << volume.sb.block_bits;
        let bytes = volume.mapped(inode, Fork::Attr, at, volume.sb.block(), WHAT)?;
        bytes.ok_or(DiskFault::damaged(WHAT, "fork has a hole"))
    };
    if inode.form(Fork::Attr)? == Form::Extents && volume.run(inode, Fork::Attr, 0)?.disk.is_none()
    {
        // The fork was made and nothing ever written to it.
        return Ok(());
    }
    let mut bytes = block(0)?;
    let mut above = None;
    loop {
        let view = View::new(&bytes, WHAT);
        let header = match view.be16(8)? {
            0xfebe => 16,
            0x3ebe => 64,
            _ => break,
        };
        // Count and level come right behind the common part; then hashes with the block below.
        let level = view.be16(if header == 64 { 58 } else { 14 })?;
        if !(1..=LEVELS_MAX).contains(&level) || above.is_some_and(|a| a != level + 1) {
            return Err(view.damaged("depth is wrong"));
        }
        above = Some(level);
        let first = view.be32(header + 4)?;
        bytes = block(first)?;
    }
    for _ in 0..LEAVES_MAX {
        let view = View::new(&bytes, WHAT);
        leaf(volume, inode, &view, found)?;
        let right = view.be32(0)?;
        if right == 0 {
            return Ok(());
        }
        bytes = block(right)?;
    }
    Err(DiskFault::damaged(WHAT, "leaves have no end"))
}

fn leaf(volume: &Volume, inode: &Inode, block: &View<'_>, found: &mut Xattrs) -> Res<()> {
    let (count_at, entries) = match block.be16(8)? {
        0xfbee => (12, 32),
        0x3bee => (56, 80),
        _ => return Err(block.damaged("bad magic number")),
    };
    for n in 0..usize::from(block.be16(count_at)?) {
        let entry = block.part(entries + n * 8, 8)?;
        let (at, flags) = (usize::from(entry.be16(4)?), entry.u8(6)?);
        if flags & LOCAL != 0 {
            let (value_len, name_len) = (block.be16(at)?.into(), usize::from(block.u8(at + 2)?));
            let name = block.take(at + 3, name_len)?;
            let value = block.take(at + 3 + name_len, value_len)?;
            add(found, flags, name, value.to_vec())?;
        } else {
            let (first, length) = (block.be32(at)?, block.be32(at + 4)?);
            let name = block.take(at + 9, block.u8(at + 8)?.into())?;
            if flags & INCOMPLETE == 0 {
                add(found, flags, name, remote(volume, inode, first, length)?)?;
            }
        }
    }
    Ok(())
}

/// A large value in blocks of its own; in version 5 each has a header.
fn remote(volume: &Volume, inode: &Inode, first: u32, length: u32) -> Res<Vec<u8>> {
    if length > VALUE_MAX {
        return Err(DiskFault::damaged(WHAT, "value is above 65536 bytes"));
    }
    let header = if volume.sb.v5 { 56 } else { 0 };
    let mut value = Vec::new();
    let mut at = u64::from(first) << volume.sb.block_bits;
    while value.len() < index(length) {
        let block = volume.mapped(inode, Fork::Attr, at, volume.sb.block(), WHAT)?;
        let block = block.ok_or(DiskFault::damaged(WHAT, "value has a hole"))?;
        let part = block.get(header..).unwrap_or_default();
        let n = part.len().min(index(length) - value.len());
        value.extend_from_slice(&part[..n]);
        at += volume.sb.block();
    }
    Ok(value)
}
