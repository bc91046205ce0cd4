//! Extended attributes: in the inode, in one block, large values in inodes of their own.

use super::inode::Inode;
use super::{Volume, index};
use crate::diskimage::fault::{DiskFault, Res, View};
use crate::diskimage::fs::{VALUE_MAX, XATTRS_MAX, Xattrs};

pub(super) const MAGIC: u32 = 0xea02_0000;
const WHAT: &str = "ext4 xattrs";
/// `system.data`: the part of inline content that the inode's map has no room for.
const SYSTEM: u8 = 7;

pub(super) fn read(volume: &Volume, inode: &Inode) -> Res<Xattrs> {
    let mut found = Vec::new();
    each(volume, inode, &mut |index, name, value| {
        if let Some(prefix) = prefix(index) {
            found.push(([prefix, name].concat(), value.get(volume)?));
        }
        if found.len() > XATTRS_MAX {
            return Err(DiskFault::damaged(WHAT, "more than 128 on one inode"));
        }
        Ok(())
    })?;
    Ok(found)
}

pub(super) fn inline_data(volume: &Volume, inode: &Inode) -> Res<Vec<u8>> {
    let mut data = Vec::new();
    each(volume, inode, &mut |index, name, value| {
        if index == SYSTEM && name == b"data" {
            data = value.get(volume)?;
        }
        Ok(())
    })?;
    Ok(data)
}

/// Prefixes that names are stored without. ACLs and richacls have a form of their own on disk; no layer holds
/// them, so they are not translated.
fn prefix(index: u8) -> Option<&'static [u8]> {
    Some(match index {
        1 => b"user.",
        4 => b"trusted.",
        6 => b"security.",
        2 => b"system.posix_acl_access",
        3 => b"system.posix_acl_default",
        _ => return None,
    })
}

/// A value, not yet read.
struct Value<'a> {
    area: View<'a>,
    at: usize,
    size: u32,
    inode: u32,
}

impl Value<'_> {
    fn get(&self, volume: &Volume) -> Res<Vec<u8>> {
        if self.size > VALUE_MAX {
            return Err(DiskFault::damaged(WHAT, "value is above 65536 bytes"));
        }
        let size = index(self.size);
        if self.inode == 0 {
            return Ok(self.area.take(self.at, size)?.to_vec());
        }
        let holder = volume.inode(self.inode.into())?;
        let mut value = vec![0; size];
        let mut done = 0;
        while done < size {
            let run = volume.run(&holder, done as u64)?;
            let tail = run.tail(done as u64).ok_or(DiskFault::damaged(WHAT, "bad value"))?;
            let n = index(tail.len).min(size - done);
            let at = tail.disk.ok_or(DiskFault::damaged(WHAT, "value has a hole"))?;
            super::device::read(&volume.disk, at, &mut value[done..done + n], WHAT)?;
            done += n;
        }
        Ok(value)
    }
}

type Visit<'v> = &'v mut dyn FnMut(u8, &[u8], &Value<'_>) -> Res<()>;

fn each(volume: &Volume, inode: &Inode, visit: Visit<'_>) -> Res<()> {
    if let Some(area) = inode.xattr_area()? {
        // Offsets of values count from the first entry.
        let area = View::new(area.take(4, area.bytes.len() - 4)?, WHAT);
        entries(area, 0, visit)?;
    }
    let block = inode.xattr_block()?;
    if block != 0 {
        let bytes = volume.block(block, WHAT)?;
        let area = View::new(&bytes, WHAT);
        if area.le32(0)? != MAGIC || area.le32(8)? != 1 {
            return Err(area.damaged("bad header"));
        }
        entries(area, 32, visit)?;
    }
    Ok(())
}

fn entries(area: View<'_>, mut at: usize, visit: Visit<'_>) -> Res<()> {
    // Four zero bytes, or the end of the area, end the list.
    while at + 16 <= area.bytes.len() && area.le32(at)? != 0 {
        let length = usize::from(area.u8(at)?);
        let value = Value {
            area,
            at: area.le16(at + 2)?.into(),
            inode: area.le32(at + 4)?,
            size: area.le32(at + 8)?,
        };
        let name = area.take(at + 16, length)?;
        visit(area.u8(at + 1)?, name, &value)?;
        at += (16 + length).next_multiple_of(4);
    }
    Ok(())
}
