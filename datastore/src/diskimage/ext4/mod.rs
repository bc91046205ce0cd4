//! ext2, ext3 and ext4, read only (format: kernel, Documentation/filesystems/ext4).
//!
//! Read: block maps and extents, linear and hashed directories (which are linear to whoever ignores the hashes),
//! inline data, xattrs in inode, block and inodes of their own, flex and meta block groups, 64 bit.
//! Checksums are not checked: an attacker would set them right, and a file that is damaged on its disk is so for
//! its owner. A journal with something in it is refused: what it holds belongs to the files.

mod inode;
mod map;
mod xattr;

use std::rc::Rc;

use super::device::{self, Cached, Device, Disk};
use super::fault::{DiskFault, Res, View, index};
use super::fs::{Content, DIRECTORY_MAX, FileSystem, Id, Kind, Mapped, Name, Node, Run, Xattrs};
use inode::Inode;

const ROOT: u64 = 2;

const COMPAT_JOURNAL: u32 = 0x4;

const FILETYPE: u32 = 0x2;
const RECOVER: u32 = 0x4;
const META_BG: u32 = 0x10;
const EXTENTS: u32 = 0x40;
const BITS_64: u32 = 0x80;
const MMP: u32 = 0x100;
const FLEX_BG: u32 = 0x200;
const EA_INODE: u32 = 0x400;
const CSUM_SEED: u32 = 0x2000;
const LARGEDIR: u32 = 0x4000;
const INLINE_DATA: u32 = 0x8000;
/// Set where any directory may be; the inodes say which are.
const ENCRYPT: u32 = 0x1_0000;
const CASEFOLD: u32 = 0x2_0000;

const KNOWN: u32 = FILETYPE
    | RECOVER
    | META_BG
    | EXTENTS
    | BITS_64
    | MMP
    | FLEX_BG
    | EA_INODE
    | CSUM_SEED
    | LARGEDIR
    | INLINE_DATA
    | ENCRYPT
    | CASEFOLD;

const RO_SPARSE: u32 = 0x1;

/// Whether a superblock of this family is there.
pub(super) fn matches(disk: &dyn Device) -> bool {
    let Ok(bytes) = device::bytes(disk, 1024, 1024, "superblock") else {
        return false;
    };
    let view = View::new(&bytes, "superblock");
    let magic = view.le16(56).is_ok_and(|m| m == 0xef53);
    // More than two bytes have to fit, or boot code could pass for a file system.
    magic && view.le32(24).is_ok_and(|b| b <= 6) && view.le32(76).is_ok_and(|r| r <= 1)
}

/// What the superblock says, checked.
#[derive(Debug)]
struct Super {
    block_bits: u32,
    blocks: u64,
    first_block: u64,
    inodes: u64,
    inodes_per_group: u64,
    blocks_per_group: u64,
    inode_size: usize,
    descriptor: usize,
    first_meta_group: u64,
    incompatible: u32,
    read_only: u32,
}

impl Super {
    fn read(disk: &dyn Device) -> Res<Self> {
        let bytes = device::bytes(disk, 1024, 1024, "ext4 superblock")?;
        let view = View::new(&bytes, "ext4 superblock");
        let old = view.le32(76)? == 0;
        let (compatible, incompatible, read_only) =
            if old { (0, 0, 0) } else { (view.le32(92)?, view.le32(96)?, view.le32(100)?) };
        let unknown = incompatible & !KNOWN;
        if unknown != 0 {
            let text = format!("incompatible features {unknown:#x}");
            return Err(DiskFault::feature("the ext4 file system", text));
        }
        // Bit 0: unmounted cleanly. Bit 2: unlinked inodes await their removal, which hurts no reader.
        let clean = compatible & COMPAT_JOURNAL != 0 || view.le16(58)? & 1 != 0;
        if incompatible & RECOVER != 0 || !clean {
            return Err(DiskFault::Unclean { fs: "ext4" });
        }
        let block_bits = 10 + view.le32(24)?;
        if block_bits > 16 {
            return Err(view.damaged("block size is above 64 KiB"));
        }
        let block = 1u64 << block_bits;
        let inode_size = if old { 128 } else { usize::from(view.le16(88)?) };
        if !(128..=index(block)).contains(&inode_size) || !inode_size.is_power_of_two() {
            return Err(view.damaged("inode size is out of range"));
        }
        let wide = incompatible & BITS_64 != 0;
        let descriptor = if wide { usize::from(view.le16(254)?) } else { 32 };
        if !(32..=1024).contains(&descriptor) || !descriptor.is_power_of_two() {
            return Err(view.damaged("size of group descriptors is out of range"));
        }
        let high = if wide { u64::from(view.le32(336)?) } else { 0 };
        let blocks = u64::from(view.le32(4)?) | high << 32;
        if blocks.checked_mul(block).is_none_or(|b| b > disk.size()) {
            return Err(view.damaged("file system is larger than its disk"));
        }
        let inodes_per_group = u64::from(view.le32(40)?);
        let blocks_per_group = u64::from(view.le32(32)?);
        // Bitmaps of one block each; with clusters a bit stands for several blocks.
        if !(1..=block * 8).contains(&inodes_per_group) || blocks_per_group == 0 {
            return Err(view.damaged("size of block groups is out of range"));
        }
        Ok(Self {
            block_bits,
            blocks,
            first_block: view.le32(20)?.into(),
            inodes: view.le32(0)?.into(),
            inodes_per_group,
            blocks_per_group,
            inode_size,
            descriptor,
            first_meta_group: view.le32(260)?.into(),
            incompatible,
            read_only,
        })
    }

    fn has(&self, feature: u32) -> bool {
        self.incompatible & feature != 0
    }

    fn block(&self) -> u64 {
        1 << self.block_bits
    }

    /// Whether the group starts with a copy of the superblock: 0, 1 and powers of 3, 5 and 7 if they are sparse.
    fn has_super(&self, group: u64) -> bool {
        let power = |base: u64| {
            let mut n = base;
            while n < group {
                n *= base;
            }
            n == group
        };
        self.read_only & RO_SPARSE == 0 || group <= 1 || [3, 5, 7].into_iter().any(power)
    }

    /// Where the descriptor of a group lies, in bytes.
    fn descriptor_at(&self, group: u64) -> u64 {
        let per_block = self.block() / self.descriptor as u64;
        let (meta, n) = (group / per_block, group % per_block);
        let block = if self.has(META_BG) && meta >= self.first_meta_group {
            let first = meta * per_block;
            let copy = u64::from(self.has_super(first));
            self.first_block + first * self.blocks_per_group + copy
        } else {
            self.first_block + 1 + meta
        };
        // Wraps for numbers that the check against the device's end then refuses.
        block.wrapping_shl(self.block_bits).wrapping_add(n * self.descriptor as u64)
    }
}

/// An open file system.
struct Volume {
    disk: Cached,
    content: Disk,
    sb: Super,
}

pub(super) struct Ext4(Rc<Volume>);

impl Ext4 {
    pub fn open(disk: &Disk) -> Res<Self> {
        let sb = Super::read(&**disk)?;
        let content = Rc::clone(disk);
        Ok(Self(Rc::new(Volume { disk: Cached::new(Rc::clone(disk)), content, sb })))
    }

    /// Content of a file or directory from its start.
    fn content(&self, inode: &Rc<Inode>) -> Res<Box<dyn Content>> {
        if let Some(inline) = inode.inline(&self.0)? {
            return Ok(Box::new(Inline { bytes: inline, at: 0 }));
        }
        let (volume, inode) = (Rc::clone(&self.0), Rc::clone(inode));
        let disk = Rc::clone(&volume.content);
        let map = move |at| volume.run(&inode, at);
        Ok(Box::new(Mapped { disk, map, at: 0, run: None }))
    }
}

impl Volume {
    /// One block of structures.
    fn block(&self, number: u64, what: &'static str) -> Res<Vec<u8>> {
        if number == 0 || number >= self.sb.blocks {
            return Err(DiskFault::damaged(what, "lies outside of the file system"));
        }
        device::bytes(&self.disk, number << self.sb.block_bits, index(self.sb.block()), what)
    }

    fn inode(&self, number: u64) -> Res<Inode> {
        if number == 0 || number > self.sb.inodes {
            return Err(DiskFault::damaged("ext4 inode", "number is out of range"));
        }
        let (group, n) =
            ((number - 1) / self.sb.inodes_per_group, (number - 1) % self.sb.inodes_per_group);
        let at = self.sb.descriptor_at(group);
        let bytes = device::bytes(&self.disk, at, self.sb.descriptor, "ext4 group descriptor")?;
        let view = View::new(&bytes, "ext4 group descriptor");
        let high = if self.sb.descriptor >= 64 { u64::from(view.le32(40)?) } else { 0 };
        let table = u64::from(view.le32(8)?) | high << 32;
        if table >= self.sb.blocks {
            return Err(view.damaged("inode table lies outside of the file system"));
        }
        let at = (table << self.sb.block_bits) + n * self.sb.inode_size as u64;
        let bytes = device::bytes(&self.disk, at, self.sb.inode_size, "ext4 inode")?;
        Inode::new(bytes, &self.sb)
    }
}

struct Inline {
    bytes: Vec<u8>,
    at: usize,
}

impl Content for Inline {
    fn fill(&mut self, buf: &mut [u8]) -> Res<()> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        // A file made longer by truncate(2) may stay inline.
        buf[n..].fill(0);
        self.at += n;
        Ok(())
    }
}

impl FileSystem for Ext4 {
    fn name(&self) -> &'static str {
        "ext4"
    }

    fn root(&self) -> Id {
        Id::inode(ROOT)
    }

    fn node(&self, id: Id) -> Res<Node> {
        self.0.inode(id.inode)?.node()
    }

    fn names(&self, id: Id, max: usize) -> Res<Vec<Name>> {
        let inode = Rc::new(self.0.inode(id.inode)?);
        let mut names = Vec::new();
        if let Some(inline) = inode.inline(&self.0)? {
            // The number of the parent, then entries; those in the xattr are a block of their own.
            let view = View::new(&inline, "ext4 inline directory");
            let first = inline.len().min(60);
            entries(view.part(4, first.saturating_sub(4))?, max, &mut names)?;
            entries(view.part(first, inline.len() - first)?, max, &mut names)?;
            return Ok(names);
        }
        let size = inode.size();
        if size > DIRECTORY_MAX {
            let what = "bytes of a directory";
            return Err(DiskFault::TooLarge { what, value: size, max: DIRECTORY_MAX });
        }
        let mut at = 0;
        while at < size && names.len() <= max {
            let Some(Run { disk: Some(disk), .. }) = self.0.run(&inode, at)?.tail(at) else {
                return Err(DiskFault::damaged("ext4 directory", "has a hole"));
            };
            let block = self.0.block(disk >> self.0.sb.block_bits, "ext4 directory")?;
            entries(View::new(&block, "ext4 directory"), max, &mut names)?;
            at += self.0.sb.block();
        }
        Ok(names)
    }

    fn target(&self, id: Id) -> Res<Vec<u8>> {
        let inode = Rc::new(self.0.inode(id.inode)?);
        let size = inode.size();
        if size > super::fs::TARGET_MAX {
            return Err(DiskFault::damaged("ext4 symbolic link", "target is too long"));
        }
        if let Some(short) = inode.short_target()? {
            return Ok(short);
        }
        let mut target = vec![0; index(size)];
        self.content(&inode)?.fill(&mut target)?;
        Ok(target)
    }

    fn xattrs(&self, id: Id) -> Res<Xattrs> {
        xattr::read(&self.0, &self.0.inode(id.inode)?)
    }

    fn open(&self, id: Id) -> Res<Box<dyn Content>> {
        self.content(&Rc::new(self.0.inode(id.inode)?))
    }
}

/// Directory entries of one block: inode, length of record, length of name, type, name.
fn entries(block: View<'_>, max: usize, names: &mut Vec<Name>) -> Res<()> {
    let mut at = 0;
    // What is left at the end of inline data may be too short for an entry.
    while at + 8 <= block.bytes.len() && names.len() <= max {
        let inode = block.le32(at)?;
        // 65536 does not fit: 0xffff, and of old 0, stand for a whole block of 64 KiB.
        let record = match block.le16(at + 4)? {
            0 | 0xffff if block.bytes.len() == 65_536 => 65_536 - at,
            n => usize::from(n),
        };
        if record < 8 || record % 4 != 0 || at + record > block.bytes.len() {
            return Err(block.damaged("record length is out of range"));
        }
        let length = usize::from(block.u8(at + 6)?);
        if inode != 0 {
            if length + 8 > record {
                return Err(block.damaged("name is longer than its record"));
            }
            let name = block.take(at + 8, length)?;
            if !matches!(name, b"." | b"..") {
                names.push(Name { name: name.to_vec(), id: Id::inode(inode.into()) });
            }
        }
        at += record;
    }
    Ok(())
}

/// `kind` of an inode by its mode.
fn kind(mode: u32) -> Res<Kind> {
    Kind::of(mode).ok_or(DiskFault::damaged("ext4 inode", "unknown type of file"))
}
