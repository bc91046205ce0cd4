//! Inodes.

use super::{Kind, Super, Volume, kind, xattr};
use crate::diskimage::fault::{DiskFault, Res, View, index};
use crate::diskimage::fs::Node;

const ENCRYPTED: u32 = 0x800;
pub(super) const EXTENTS: u32 = 0x8_0000;
const INLINE: u32 = 0x1000_0000;

/// The bytes of an inode.
#[derive(Debug)]
pub(super) struct Inode {
    bytes: Vec<u8>,
    mode: u32,
    pub flags: u32,
    /// Bytes of the fields after the first 128.
    extra: usize,
}

impl Inode {
    pub fn new(bytes: Vec<u8>, sb: &Super) -> Res<Self> {
        let view = View::new(&bytes, "ext4 inode");
        let (mode, flags) = (view.le16(0)?.into(), view.le32(32)?);
        let extra = if sb.inode_size > 128 { usize::from(view.le16(128)?) } else { 0 };
        if extra > sb.inode_size - 128 || extra % 4 != 0 {
            return Err(view.damaged("extra size is out of range"));
        }
        if flags & ENCRYPTED != 0 {
            return Err(DiskFault::Encrypted { by: "fscrypt" });
        }
        Ok(Self { bytes, mode, flags, extra })
    }

    pub fn view(&self) -> View<'_> {
        View::new(&self.bytes, "ext4 inode")
    }

    /// A field beyond the first 128 bytes, if this inode has it.
    fn extra(&self, at: usize) -> Res<Option<u32>> {
        if 128 + self.extra < at + 4 { Ok(None) } else { self.view().le32(at).map(Some) }
    }

    pub fn size(&self) -> u64 {
        let half = |at| u64::from(self.view().le32(at).unwrap_or(0));
        let kind = Kind::of(self.mode);
        // Elsewhere ext2 kept an ACL in the upper half.
        let high = if matches!(kind, Some(Kind::File | Kind::Directory)) { half(108) } else { 0 };
        half(4) | high << 32
    }

    /// The 60 bytes that hold the map, a short link, a device number, or inline data.
    pub fn block_area(&self) -> Res<View<'_>> {
        self.view().part(40, 60)
    }

    /// What lies behind the fields: magic and xattrs, if there is room.
    pub fn xattr_area(&self) -> Res<Option<View<'_>>> {
        let at = 128 + self.extra;
        // Without extra fields there is no body for xattrs either.
        if self.extra == 0 || at + 4 > self.bytes.len() {
            return Ok(None);
        }
        let area = self.view().part(at, self.bytes.len() - at)?;
        Ok((area.le32(0)? == xattr::MAGIC).then_some(area))
    }

    /// The block with further xattrs; 0 if there is none.
    pub fn xattr_block(&self) -> Res<u64> {
        let view = self.view();
        Ok(u64::from(view.le32(104)?) | u64::from(view.le16(118)?) << 32)
    }

    pub fn node(&self) -> Res<Node> {
        let view = self.view();
        let kind = kind(self.mode)?;
        let half = |low: usize, high: usize| -> Res<u32> {
            Ok(u32::from(view.le16(low)?) | u32::from(view.le16(high)?) << 16)
        };
        let links = view.le16(26)?.into();
        if links == 0 {
            return Err(view.damaged("has a name and no links"));
        }
        Ok(Node {
            kind,
            mode: self.mode & 0o7777,
            uid: half(2, 120)?,
            gid: half(24, 122)?,
            size: self.size(),
            mtime: self.mtime()?,
            links,
            device: self.device()?,
        })
    }

    /// 32 bits with sign, and in the extra field two more bits on top and the nanoseconds.
    fn mtime(&self) -> Res<(i64, u32)> {
        let low = i64::from(self.view().le32(16)?.cast_signed());
        let extra = self.extra(136)?.unwrap_or(0);
        let nanos = extra >> 2;
        Ok((low + (i64::from(extra & 3) << 32), if nanos < 1_000_000_000 { nanos } else { 0 }))
    }

    /// Old numbers (8 and 8 bits) in the first word, new ones (12 and 20) in the second.
    fn device(&self) -> Res<(u32, u32)> {
        let area = self.block_area()?;
        let (old, new) = (area.le32(0)?, area.le32(4)?);
        Ok(if old != 0 {
            (old >> 8 & 0xff, old & 0xff)
        } else {
            (new >> 8 & 0xfff, new & 0xff | new >> 12 & 0xf_ff00)
        })
    }

    /// The target of a link that is short enough for the inode.
    pub fn short_target(&self) -> Res<Option<Vec<u8>>> {
        let size = index(self.size());
        if size >= 60 || self.flags & (EXTENTS | INLINE) != 0 {
            return Ok(None);
        }
        Ok(Some(self.block_area()?.take(0, size)?.to_vec()))
    }

    /// Content that lies in the inode: the first 60 bytes, the rest as an xattr.
    pub fn inline(&self, volume: &Volume) -> Res<Option<Vec<u8>>> {
        if self.flags & INLINE == 0 {
            return Ok(None);
        }
        let mut bytes = self.block_area()?.bytes.to_vec();
        bytes.extend(xattr::inline_data(volume, self)?);
        let size = index(self.size());
        if matches!(Kind::of(self.mode), Some(Kind::Directory)) && size != bytes.len() {
            return Err(DiskFault::damaged("ext4 inline directory", "size is wrong"));
        }
        bytes.truncate(size);
        Ok(Some(bytes))
    }
}
