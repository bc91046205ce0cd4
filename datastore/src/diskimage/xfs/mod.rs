//! XFS, versions 4 and 5, read only (format: "XFS Algorithms & Data Structures", xfs-documentation).
//!
//! Inodes are reached by number, so allocation trees are never read. Read: data forks as extents and B+tree,
//! directories in all forms, attribute forks short and as leaves, links inline and in blocks, bigtime, large extent
//! counts. A log with something in it is refused: what it holds belongs to the files.
//! Checksums are not checked, for the reason given with ext4. The real-time device is not there to be read.

mod attr;
mod dir;
mod inode;
mod log;

use std::rc::Rc;

use super::device::{self, Cached, Device, Disk};
use super::fault::{DiskFault, Res, View, index};
use super::fs::{Content, FileSystem, Id, Mapped, Name, Node, Run, TARGET_MAX, Xattrs};
use inode::{Fork, Form, Inode};

const FTYPE: u32 = 0x1;
const NEEDS_REPAIR: u32 = 0x10;
/// File types in directories, sparse inodes, meta UUID, big time, large extent counts, exchange range, parents.
const KNOWN: u32 = FTYPE | 0x2 | 0x4 | 0x8 | NEEDS_REPAIR | 0x20 | 0x40 | 0x80;
/// In version 4 the flag for file types in directories has another place.
const V4_FTYPE: u32 = 0x200;

pub(super) fn matches(disk: &dyn Device) -> bool {
    device::bytes(disk, 0, 4, "magic").is_ok_and(|b| b == b"XFSB")
}

/// What the superblock says, checked.
#[derive(Debug)]
struct Super {
    v5: bool,
    ftype: bool,
    block_bits: u32,
    blocks: u64,
    ag_blocks: u64,
    ag_bits: u32,
    ag_count: u64,
    inode_bits: u32,
    inodes_per_block_bits: u32,
    dir_bits: u32,
    root: u64,
    log_start: u64,
    log_blocks: u64,
}

impl Super {
    fn read(disk: &dyn Device) -> Res<Self> {
        let bytes = device::bytes(disk, 0, 512, "xfs superblock")?;
        let view = View::new(&bytes, "xfs superblock");
        let version = view.be16(100)?;
        let v5 = match version & 15 {
            4 => false,
            5 => true,
            n => return Err(DiskFault::feature("the xfs file system", format!("version {n}"))),
        };
        // Directories of version 2 are all that Linux has had for twenty years.
        if version & 0x2000 == 0 {
            return Err(DiskFault::feature("the xfs file system", "directories of version 1"));
        }
        let incompatible = if v5 { view.be32(216)? } else { 0 };
        if incompatible & !KNOWN != 0 {
            let text = format!("incompatible features {:#x}", incompatible & !KNOWN);
            return Err(DiskFault::feature("the xfs file system", text));
        }
        if incompatible & NEEDS_REPAIR != 0 {
            return Err(view.damaged("it is marked as broken; repair it: xfs_repair"));
        }
        // Being made, or being grown.
        if view.u8(126)? != 0 {
            return Err(view.damaged("it was not finished by mkfs.xfs"));
        }
        let ftype = if v5 {
            incompatible & FTYPE != 0
        } else {
            version & 0x8000 != 0 && view.be32(200)? & V4_FTYPE != 0
        };
        let bits = |at| -> Res<u32> { Ok(view.u8(at)?.into()) };
        let (block_bits, inode_bits, per_block, ag_bits, dir_extra) =
            (bits(120)?, bits(122)?, bits(123)?, bits(124)?, bits(192)?);
        let sound = (9..=16).contains(&block_bits)
            && view.be32(4)? == 1 << block_bits
            && (8..=11).contains(&inode_bits)
            && inode_bits <= block_bits
            && per_block == block_bits - inode_bits
            && ag_bits <= 32
            && block_bits + dir_extra <= 16;
        if !sound {
            return Err(view.damaged("sizes of blocks and inodes do not fit together"));
        }
        let ag_blocks = u64::from(view.be32(84)?);
        let blocks = view.be64(8)?;
        let ag_count = u64::from(view.be32(88)?);
        let groups = ag_blocks > 0
            && ag_blocks <= 1 << ag_bits
            && blocks <= ag_blocks * ag_count
            && blocks > ag_blocks * ag_count.saturating_sub(1);
        if !groups {
            return Err(view.damaged("allocation groups do not fit the file system"));
        }
        if blocks.checked_mul(1 << block_bits).is_none_or(|b| b > disk.size()) {
            return Err(view.damaged("file system is larger than its disk"));
        }
        Ok(Self {
            v5,
            ftype,
            block_bits,
            blocks,
            ag_blocks,
            ag_bits,
            ag_count,
            inode_bits,
            inodes_per_block_bits: per_block,
            dir_bits: block_bits + dir_extra,
            root: view.be64(56)?,
            log_start: view.be64(48)?,
            log_blocks: view.be32(96)?.into(),
        })
    }

    fn block(&self) -> u64 {
        1 << self.block_bits
    }

    /// Offset of a block on the disk: its number has the group in the upper bits.
    fn block_at(&self, number: u64, what: &'static str) -> Res<u64> {
        let (group, block) = (number >> self.ag_bits, number & ((1 << self.ag_bits) - 1));
        let flat = group.checked_mul(self.ag_blocks).and_then(|g| g.checked_add(block));
        match flat {
            Some(flat) if group < self.ag_count && block < self.ag_blocks && flat < self.blocks => {
                Ok(flat << self.block_bits)
            }
            _ => Err(DiskFault::damaged(what, "lies outside of the file system")),
        }
    }
}

/// An open file system.
struct Volume {
    disk: Cached,
    content: Disk,
    sb: Super,
}

pub(super) struct Xfs(Rc<Volume>);

impl Xfs {
    pub fn open(disk: &Disk) -> Res<Self> {
        let sb = Super::read(&**disk)?;
        let content = Rc::clone(disk);
        let volume = Volume { disk: Cached::new(Rc::clone(disk)), content, sb };
        log::check(&volume)?;
        Ok(Self(Rc::new(volume)))
    }
}

impl Volume {
    fn inode(&self, number: u64) -> Res<Inode> {
        const WHAT: &str = "xfs inode";
        let per_block = self.sb.inodes_per_block_bits;
        let at = self.sb.block_at(number >> per_block, WHAT)?;
        let at = at + ((number & ((1 << per_block) - 1)) << self.sb.inode_bits);
        let bytes = device::bytes(&self.disk, at, 1 << self.sb.inode_bits, WHAT)?;
        Inode::new(number, bytes)
    }

    /// `blocks` blocks of structures that follow each other on the disk.
    fn blocks(&self, number: u64, len: u64, what: &'static str) -> Res<Vec<u8>> {
        let at = self.sb.block_at(number, what)?;
        device::bytes(&self.disk, at, index(len), what)
    }

    /// The run of a fork that covers a byte.
    fn run(&self, inode: &Inode, fork: Fork, at: u64) -> Res<Run> {
        let wanted = at >> self.sb.block_bits;
        let (from, blocks, first) = inode.extent(self, fork, wanted)?;
        let disk = match first {
            Some(first) => {
                let disk = self.sb.block_at(first, "xfs extent")?;
                // An extent stays in its allocation group.
                self.sb.block_at(first + (blocks - 1), "xfs extent")?;
                Some(disk)
            }
            None => None,
        };
        let bits = self.sb.block_bits;
        Ok(Run { from: from << bits, len: blocks << bits, disk })
    }

    /// Structures at an offset of a fork; none where there is a hole.
    fn mapped(
        &self,
        inode: &Inode,
        fork: Fork,
        at: u64,
        len: u64,
        what: &'static str,
    ) -> Res<Option<Vec<u8>>> {
        let mut bytes = vec![0; index(len)];
        let mut done = 0;
        while done < bytes.len() {
            let here = at + done as u64;
            let run = self.run(inode, fork, here)?.tail(here);
            let Some(Run { disk: Some(disk), len, .. }) = run else {
                return Ok(None);
            };
            let n = index(len).min(bytes.len() - done);
            device::read(&self.disk, disk, &mut bytes[done..done + n], what)?;
            done += n;
        }
        Ok(Some(bytes))
    }
}

impl FileSystem for Xfs {
    fn name(&self) -> &'static str {
        "xfs"
    }

    fn root(&self) -> Id {
        Id::inode(self.0.sb.root)
    }

    fn node(&self, id: Id) -> Res<Node> {
        self.0.inode(id.inode)?.node()
    }

    fn names(&self, id: Id, max: usize) -> Res<Vec<Name>> {
        dir::names(&self.0, &self.0.inode(id.inode)?, max)
    }

    fn target(&self, id: Id) -> Res<Vec<u8>> {
        const WHAT: &str = "xfs symbolic link";
        let inode = self.0.inode(id.inode)?;
        let size = inode.size()?;
        if size > TARGET_MAX.min(1024) {
            // XFS_SYMLINK_MAXLEN is 1024.
            return Err(DiskFault::damaged(WHAT, "target is too long"));
        }
        if inode.form(Fork::Data)? == Form::Local {
            return Ok(inode.area(Fork::Data)?.take(0, index(size))?.to_vec());
        }
        let mut target = Vec::new();
        let mut at = 0;
        while (target.len() as u64) < size {
            // In version 5 each extent, not each block, starts with a header of 56 bytes that counts what follows.
            let run = self.0.run(&inode, Fork::Data, at)?;
            let len = run.len.min(TARGET_MAX + 1).next_multiple_of(self.0.sb.block());
            let bytes = self.0.mapped(&inode, Fork::Data, at, len, WHAT)?;
            let bytes = bytes.ok_or(DiskFault::damaged(WHAT, "target has a hole"))?;
            let view = View::new(&bytes, WHAT);
            let rest = index(size) - target.len();
            let part = if self.0.sb.v5 {
                if view.take(0, 4)? != b"XSLM" {
                    return Err(view.damaged("bad magic number"));
                }
                view.take(56, index(view.be32(8)?).min(rest))?
            } else {
                view.take(0, bytes.len().min(rest))?
            };
            if part.is_empty() {
                return Err(view.damaged("target is cut off"));
            }
            target.extend_from_slice(part);
            at += run.len;
        }
        Ok(target)
    }

    fn xattrs(&self, id: Id) -> Res<Xattrs> {
        attr::read(&self.0, &self.0.inode(id.inode)?)
    }

    fn open(&self, id: Id) -> Res<Box<dyn Content>> {
        let inode = self.0.inode(id.inode)?;
        inode.on_data_device()?;
        let volume = Rc::clone(&self.0);
        let disk = Rc::clone(&volume.content);
        let map = move |at| volume.run(&inode, Fork::Data, at);
        Ok(Box::new(Mapped { disk, map, at: 0, run: None }))
    }
}
