//! Content of files: inline, as it is, compressed, or nowhere.

use std::io::Read;
use std::rc::Rc;

use super::item::{Key, kinds};
use super::tree::Tree;
use super::{Volume, index, lzo};
use crate::diskimage::device;
use crate::diskimage::fault::{DiskFault, Res, View};
use crate::diskimage::fs::Content;

const WHAT: &str = "btrfs extent";
/// The kernel compresses pieces of 128 KiB, never larger ones.
const COMPRESSED_MAX: u64 = 128 * 1024;
/// Inline data lies in a leaf.
const INLINE_MAX: u64 = 65_536;
const HOLE: u64 = 1 << 30;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    Zlib,
    Lzo,
    Zstd,
}

/// A piece of a file: what its bytes are.
enum Piece {
    Zeros,
    /// On the device from here.
    Disk(u64),
    /// In memory from here.
    Memory(Rc<[u8]>, usize),
}

/// A regular file or link, read from its start.
pub(super) struct File {
    volume: Rc<Volume>,
    tree: Tree,
    inode: u64,
    at: u64,
    piece: Piece,
    left: u64,
    /// The compressed extent that was expanded last: files refer to parts of one again and again.
    expanded: Option<(u64, Rc<[u8]>)>,
}

impl File {
    pub fn new(volume: Rc<Volume>, tree: Tree, inode: u64) -> Self {
        Self { volume, tree, inode, at: 0, piece: Piece::Zeros, left: 0, expanded: None }
    }

    fn advance(&mut self) -> Res<()> {
        let key = Key::new(self.inode, kinds::EXTENT_DATA, self.at);
        let found = self.volume.before(&self.tree, key)?;
        let inode = self.inode;
        let same = |k: &Key| (k.object, k.kind) == (inode, kinds::EXTENT_DATA);
        if let Some((key, item)) = found.filter(|(k, _)| same(k))
            && self.item(key.offset, &View::new(&item, WHAT))?
        {
            return Ok(());
        }
        // A hole without an item, up to the next one.
        let mut next = None;
        self.volume.each(&self.tree, key, |k, _| {
            if same(&k) {
                next = Some(k.offset);
            }
            Ok(false)
        })?;
        self.piece = Piece::Zeros;
        self.left = next.map_or(HOLE, |n| n.saturating_sub(self.at)).clamp(1, HOLE);
        Ok(())
    }

    /// Takes the item that starts at `from`, if it reaches as far as we are.
    fn item(&mut self, from: u64, item: &View<'_>) -> Res<bool> {
        let skip = self.at - from;
        let ram = item.le64(8)?;
        let method = match item.u8(16)? {
            0 => None,
            1 => Some(Method::Zlib),
            2 => Some(Method::Lzo),
            3 => Some(Method::Zstd),
            n => {
                return Err(DiskFault::feature(
                    "the btrfs file system",
                    format!("compression {n}"),
                ));
            }
        };
        if item.u8(17)? != 0 || item.le16(18)? != 0 {
            return Err(DiskFault::Encrypted { by: "btrfs" });
        }
        match item.u8(20)? {
            0 => {
                if ram > INLINE_MAX {
                    return Err(item.damaged("inline data is too long"));
                }
                if skip >= ram {
                    return Ok(false);
                }
                let data = item.take(21, item.bytes.len().saturating_sub(21))?;
                let bytes: Rc<[u8]> = match method {
                    None => data.into(),
                    Some(method) => self.expand(method, data, ram)?.into(),
                };
                if (bytes.len() as u64) < ram {
                    return Err(item.damaged("inline data is cut off"));
                }
                self.left = ram - skip;
                self.piece = Piece::Memory(bytes, index(skip));
                Ok(true)
            }
            kind @ (1 | 2) => {
                let length = item.le64(45)?;
                if skip >= length {
                    return Ok(false);
                }
                self.left = length - skip;
                let disk = item.le64(21)?;
                if kind == 2 || disk == 0 {
                    self.piece = Piece::Zeros;
                    return Ok(true);
                }
                let (packed, offset) = (item.le64(29)?, item.le64(37)?);
                let start =
                    offset.checked_add(skip).ok_or(item.damaged("offset is out of range"))?;
                let end = start.checked_add(self.left);
                if end.is_none_or(|end| end > ram) {
                    return Err(item.damaged("reaches beyond its own end"));
                }
                self.piece = match method {
                    None => {
                        let len = start + self.left;
                        if len > packed {
                            return Err(item.damaged("reaches beyond its own end"));
                        }
                        Piece::Disk(self.volume.place(disk, len)? + start)
                    }
                    Some(method) => {
                        Piece::Memory(self.whole(method, disk, packed, ram)?, index(start))
                    }
                };
                Ok(true)
            }
            _ => Err(item.damaged("unknown type")),
        }
    }

    /// A compressed extent, expanded.
    fn whole(&mut self, method: Method, at: u64, packed: u64, ram: u64) -> Res<Rc<[u8]>> {
        if let Some((_, bytes)) =
            self.expanded.as_ref().filter(|(a, b)| *a == at && b.len() as u64 == ram)
        {
            return Ok(Rc::clone(bytes));
        }
        if ram > COMPRESSED_MAX || packed > COMPRESSED_MAX {
            return Err(DiskFault::damaged(WHAT, "compressed data is too long"));
        }
        let disk = self.volume.place(at, packed)?;
        let data = device::bytes(&*self.volume.content, disk, index(packed), WHAT)?;
        let bytes: Rc<[u8]> = self.expand(method, &data, ram)?.into();
        self.expanded = Some((at, Rc::clone(&bytes)));
        Ok(bytes)
    }

    fn expand(&self, method: Method, data: &[u8], ram: u64) -> Res<Vec<u8>> {
        let mut out = vec![0; index(ram)];
        let filled = match method {
            Method::Zlib => fill(flate2::read::ZlibDecoder::new(data), &mut out),
            Method::Lzo => lzo::expand(data, index(self.volume.sector), &mut out)?,
            Method::Zstd => match zstd::stream::read::Decoder::with_buffer(data) {
                Ok(mut decoder) => {
                    decoder.window_log_max(20).is_ok() && fill(decoder.single_frame(), &mut out)
                }
                Err(_) => false,
            },
        };
        if filled {
            Ok(out)
        } else {
            Err(DiskFault::damaged(WHAT, "compressed data does not expand"))
        }
    }
}

/// Fills `out`; what the stream does not reach is zeros, as the kernel has it for the end of a file.
fn fill(mut from: impl Read, out: &mut [u8]) -> bool {
    let mut done = 0;
    while done < out.len() {
        match from.read(&mut out[done..]) {
            Ok(0) => return done > 0,
            Ok(n) => done += n,
            Err(_) => return false,
        }
    }
    true
}

impl Content for File {
    fn fill(&mut self, buf: &mut [u8]) -> Res<()> {
        let mut done = 0;
        while done < buf.len() {
            if self.left == 0 {
                self.advance()?;
            }
            let n = index(self.left).min(buf.len() - done);
            let part = &mut buf[done..done + n];
            match &mut self.piece {
                Piece::Zeros => part.fill(0),
                Piece::Disk(at) => {
                    device::read(&*self.volume.content, *at, part, WHAT)?;
                    *at += n as u64;
                }
                Piece::Memory(bytes, at) => {
                    part.copy_from_slice(View::new(bytes, WHAT).take(*at, n)?);
                    *at += n;
                }
            }
            done += n;
            self.left -= n as u64;
            self.at += n as u64;
        }
        Ok(())
    }
}
