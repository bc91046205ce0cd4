//! Inodes, and where the blocks of their forks lie.

use super::Volume;
use crate::diskimage::fault::{DiskFault, Res, View, index};
use crate::diskimage::fs::{Kind, Node};

const WHAT: &str = "xfs inode";
/// `flags`: content lies on the real-time device.
const REALTIME: u16 = 1;
/// `flags2`.
const BIGTIME: u64 = 8;
const LARGE_COUNTS: u64 = 16;
/// XFS_BM_MAXLEVELS is below this for every possible file.
const LEVELS_MAX: u16 = 12;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fork {
    Data,
    Attr,
}

/// How a fork is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Device,
    /// In the inode.
    Local,
    Extents,
    Tree,
}

/// The bytes of an inode.
#[derive(Debug)]
pub(super) struct Inode {
    bytes: Vec<u8>,
    version: u8,
}

impl Inode {
    pub fn new(number: u64, bytes: Vec<u8>) -> Res<Self> {
        let view = View::new(&bytes, WHAT);
        if view.be16(0)? != 0x494e {
            return Err(view.damaged("bad magic number"));
        }
        let version = view.u8(4)?;
        if !matches!(version, 1..=3) {
            return Err(view.damaged("unknown version"));
        }
        if version == 3 && view.be64(152)? != number {
            return Err(view.damaged("is not where it says"));
        }
        Ok(Self { bytes, version })
    }

    fn view(&self) -> View<'_> {
        View::new(&self.bytes, WHAT)
    }

    fn flags2(&self) -> Res<u64> {
        if self.version == 3 { self.view().be64(120) } else { Ok(0) }
    }

    pub fn size(&self) -> Res<u64> {
        self.view().be64(56)
    }

    pub fn on_data_device(&self) -> Res<()> {
        if self.view().be16(90)? & REALTIME != 0 {
            return Err(DiskFault::feature("the xfs file system", "a real-time device"));
        }
        Ok(())
    }

    pub fn node(&self) -> Res<Node> {
        let view = self.view();
        let mode = u32::from(view.be16(2)?);
        let kind = Kind::of(mode).ok_or(view.damaged("unknown type of file"))?;
        let links = if self.version == 1 { view.be16(6)?.into() } else { view.be32(16)? };
        if links == 0 {
            return Err(view.damaged("has a name and no links"));
        }
        let size = self.size()?;
        if size > i64::MAX as u64 {
            return Err(view.damaged("size is out of range"));
        }
        let device = if matches!(kind, Kind::Char | Kind::Block) {
            // 14 and 18 bits, as in System V.
            let number = self.area(Fork::Data)?.be32(0)?;
            (number >> 18, number & 0x3_ffff)
        } else {
            (0, 0)
        };
        Ok(Node {
            kind,
            mode: mode & 0o7777,
            uid: view.be32(8)?,
            gid: view.be32(12)?,
            size,
            mtime: self.mtime()?,
            links,
            device,
        })
    }

    /// Seconds and nanoseconds, or with big times nanoseconds since 1901-12-13T20:45:52Z.
    fn mtime(&self) -> Res<(i64, u32)> {
        let view = self.view();
        if self.flags2()? & BIGTIME != 0 {
            const SECOND: u64 = 1_000_000_000;
            let time = view.be64(40)?;
            let seconds = (time / SECOND).cast_signed() + i64::from(i32::MIN);
            return Ok((seconds, u32::try_from(time % SECOND).unwrap_or(0)));
        }
        let nanos = view.be32(44)?;
        let nanos = if nanos < 1_000_000_000 { nanos } else { 0 };
        Ok((view.be32(40)?.cast_signed().into(), nanos))
    }

    pub fn form(&self, fork: Fork) -> Res<Form> {
        let form = self.view().u8(if fork == Fork::Data { 5 } else { 83 })?;
        Ok(match form {
            0 => Form::Device,
            1 => Form::Local,
            2 => Form::Extents,
            3 => Form::Tree,
            _ => return Err(DiskFault::damaged(WHAT, "unknown form of fork")),
        })
    }

    /// Bytes of the attribute fork's offset in the literal area; none if there is no such fork.
    fn fork_offset(&self) -> Res<Option<usize>> {
        let offset = usize::from(self.view().u8(82)?) * 8;
        Ok((offset != 0).then_some(offset))
    }

    pub fn has_attributes(&self) -> Res<bool> {
        Ok(self.fork_offset()?.is_some())
    }

    /// The part of the inode that belongs to a fork.
    pub fn area(&self, fork: Fork) -> Res<View<'_>> {
        let start = if self.version == 3 { 176 } else { 100 };
        let whole = self.view().part(start, self.bytes.len().saturating_sub(start))?;
        let offset = self.fork_offset()?;
        match fork {
            Fork::Data => whole.part(0, offset.unwrap_or(whole.bytes.len())),
            Fork::Attr => {
                let offset = offset.ok_or(whole.damaged("has no attribute fork"))?;
                let rest = whole.bytes.len().checked_sub(offset);
                whole.part(offset, rest.ok_or(whole.damaged("fork offset is out of range"))?)
            }
        }
    }

    fn extents(&self, fork: Fork) -> Res<u64> {
        let view = self.view();
        let large = self.flags2()? & LARGE_COUNTS != 0;
        match (fork, large) {
            (Fork::Data, false) => Ok(view.be32(76)?.into()),
            (Fork::Attr, false) => Ok(view.be16(80)?.into()),
            (Fork::Data, true) => view.be64(24),
            (Fork::Attr, true) => Ok(view.be32(76)?.into()),
        }
    }

    /// First block of the fork, number of blocks, first block on the disk; what covers the block wanted.
    pub fn extent(&self, volume: &Volume, fork: Fork, wanted: u64) -> Res<(u64, u64, Option<u64>)> {
        let area = self.area(fork)?;
        match self.form(fork)? {
            Form::Extents => search(&area, 0, index(self.extents(fork)?), wanted, NO_BOUND),
            Form::Tree => self.tree(volume, &area, wanted),
            Form::Local | Form::Device => Err(DiskFault::damaged(WHAT, "fork has no blocks")),
        }
    }

    fn tree(&self, volume: &Volume, root: &View<'_>, wanted: u64) -> Res<(u64, u64, Option<u64>)> {
        const WHAT: &str = "xfs extent tree";
        let root = View::new(root.bytes, WHAT);
        let mut level = root.be16(0)?;
        if !(1..=LEVELS_MAX).contains(&level) {
            return Err(root.damaged("depth is wrong"));
        }
        let room = root.bytes.len().saturating_sub(4) / 16;
        let mut bound = NO_BOUND;
        let Some(mut child) = child(&root, 4, room, root.be16(2)?, wanted, &mut bound)? else {
            return Ok((wanted, hole(wanted, bound), None));
        };
        let (magic, header) = if volume.sb.v5 { (b"BMA3", 72) } else { (b"BMAP", 24) };
        loop {
            let block = volume.blocks(child, volume.sb.block(), WHAT)?;
            let view = View::new(&block, WHAT);
            if view.take(0, 4)? != magic {
                return Err(view.damaged("bad magic number"));
            }
            if view.be16(4)? != level - 1 {
                return Err(view.damaged("depth is wrong"));
            }
            level -= 1;
            let count = view.be16(6)?;
            if level == 0 {
                return search(&view, header, count.into(), wanted, bound);
            }
            let room = (block.len() - header) / 16;
            match self::child(&view, header, room, count, wanted, &mut bound)? {
                Some(next) => child = next,
                None => return Ok((wanted, hole(wanted, bound), None)),
            }
        }
    }
}

/// Largest offset in a fork, in blocks: 54 bits.
const NO_BOUND: u64 = 1 << 54;
/// A run in a hole is told in pieces of this many blocks.
const HOLE: u64 = 1 << 20;

fn hole(from: u64, bound: u64) -> u64 {
    bound.saturating_sub(from).clamp(1, HOLE)
}

/// The child to go on with: keys, then room for as many as there may be, then pointers.
fn child(
    node: &View<'_>,
    at: usize,
    room: usize,
    count: u16,
    wanted: u64,
    bound: &mut u64,
) -> Res<Option<u64>> {
    let count = usize::from(count);
    if count > room {
        return Err(node.damaged("more entries than there is room for"));
    }
    let found = partition(count, |n| Ok(node.be64(at + n * 8)? <= wanted))?;
    if found < count {
        *bound = (*bound).min(node.be64(at + found * 8)?);
    }
    match found.checked_sub(1) {
        Some(n) => node.be64(at + (room + n) * 8).map(Some),
        None => Ok(None),
    }
}

/// Looks for a block in `count` sorted extent records.
fn search(
    view: &View<'_>,
    at: usize,
    count: usize,
    wanted: u64,
    bound: u64,
) -> Res<(u64, u64, Option<u64>)> {
    if count > view.bytes.len() / 16 {
        return Err(view.damaged("more extents than there is room for"));
    }
    let found = partition(count, |n| Ok(Record::read(view, at + n * 16)?.from <= wanted))?;
    let bound =
        if found < count { bound.min(Record::read(view, at + found * 16)?.from) } else { bound };
    if let Some(n) = found.checked_sub(1) {
        let record = Record::read(view, at + n * 16)?;
        if wanted < record.from + record.blocks {
            return Ok((record.from, record.blocks, record.written.then_some(record.first)));
        }
    }
    Ok((wanted, hole(wanted, bound), None))
}

/// How many of the first entries satisfy the condition, which holds for a prefix.
fn partition(count: usize, holds: impl Fn(usize) -> Res<bool>) -> Res<usize> {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = (low + high) / 2;
        if holds(middle)? {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

/// An extent: 1 bit unwritten, 54 bits offset, 52 bits block, 21 bits length.
struct Record {
    from: u64,
    blocks: u64,
    first: u64,
    written: bool,
}

impl Record {
    fn read(view: &View<'_>, at: usize) -> Res<Self> {
        let all = u128::from_be_bytes(view.array(at)?);
        let bits = |shift: u32, width: u32| (all >> shift) as u64 & ((1 << width) - 1);
        Ok(Self {
            from: bits(73, 54),
            blocks: bits(0, 21),
            first: bits(21, 52),
            written: all >> 127 == 0,
        })
    }
}
