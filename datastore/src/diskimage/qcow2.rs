//! qcow2, versions 2 and 3, read only (format: QEMU, docs/interop/qcow2.txt).
//!
//! A guest that can write to its raw disk can make it start like qcow2, and a qcow2 header can name any file
//! of the host (CVE-2024-4467, CVE-2024-32498). So nothing in an image opens a file: backing and data files are
//! those that the caller names, else the image is refused. Names in it are shown, never used.
//!
//! Absent on purpose: encryption, extended L2 entries, internal snapshots (the current state is read), and
//! writing; refcounts are not needed to read, only bounded. What lies behind the end of the file was never
//! written and reads as zeros, as in QEMU.

mod below;

use std::cell::RefCell;
use std::rc::Rc;

use super::device::{self, Device, Disk};
use super::fault::{DiskFault, Res, View, index};
use crate::error::escape;

pub use below::{BackingName, Qcow2File};

const MAGIC: u32 = 0x5146_49fb;
/// QEMU's bound on the table.
const L1_MAX: u64 = 32 << 20;
/// QEMU's bounds.
const REFCOUNT_TABLE_MAX: u64 = 8 << 20;
const SNAPSHOTS_MAX: u64 = 65_536;
const NAME_MAX: u64 = 1023;
/// Far above any guest's disk; keeps sums small.
const SIZE_MAX: u64 = 1 << 46;
/// Bits 9 to 55 of table entries.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

const DIRTY: u64 = 1;
const CORRUPT: u64 = 2;
const DATA_FILE: u64 = 4;
const COMPRESSION: u64 = 8;
const EXTENDED_L2: u64 = 16;

/// Whether a file starts like qcow2.
pub(super) fn matches(start: &[u8]) -> bool {
    start.starts_with(&MAGIC.to_be_bytes())
}

/// How clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    Deflate,
    Zstd,
}

/// A header whose numbers fit together.
#[derive(Debug)]
struct Header {
    cluster_bits: u32,
    size: u64,
    l1_offset: u64,
    l1_entries: u64,
    method: Method,
    backing: Option<Vec<u8>>,
    data_file: bool,
}

/// What the caller lets an image stand on.
pub(super) struct Beneath {
    /// Instead of the backing file that the image names.
    pub backing: Option<Disk>,
    /// Instead of the data file.
    pub data: Option<Disk>,
}

/// Whether the image in `file` asks for a backing file.
pub(super) fn wants_backing(file: &Disk) -> Res<bool> {
    Ok(Header::read(&**file)?.backing.is_some())
}

impl Header {
    fn read(file: &dyn Device) -> Res<Self> {
        const WHAT: &str = "qcow2 header";
        let damaged = |why| DiskFault::damaged(WHAT, why);
        let bounded = |what, value: u64, max: u64| {
            if value > max { Err(DiskFault::TooLarge { what, value, max }) } else { Ok(value) }
        };
        let len = index(file.size().min(4096));
        let start = device::bytes(file, 0, len, WHAT)?;
        let view = View::new(&start, WHAT);
        if !matches(&start) {
            return Err(DiskFault::NotQcow2);
        }
        let version = view.be32(4)?;
        if !matches!(version, 2 | 3) {
            return Err(DiskFault::feature("the qcow2 image", format!("version {version}")));
        }
        let cluster_bits = view.be32(20)?;
        if !(9..=21).contains(&cluster_bits) {
            return Err(damaged("cluster size is not 512 bytes to 2 MiB"));
        }
        let cluster = 1u64 << cluster_bits;
        match view.be32(32)? {
            0 => {}
            1 => return Err(DiskFault::Encrypted { by: "qcow2 AES" }),
            2 => return Err(DiskFault::Encrypted { by: "LUKS in qcow2" }),
            _ => return Err(DiskFault::Encrypted { by: "a scheme unknown" }),
        }
        let (incompatible, header_len, order) = if version == 2 {
            (0, 72, 4)
        } else {
            (view.be64(72)?, view.be32(100)?, view.be32(96)?)
        };
        let known = DIRTY | CORRUPT | DATA_FILE | COMPRESSION;
        if incompatible & CORRUPT != 0 {
            return Err(damaged(
                "the image is marked as corrupt; repair it: qemu-img check -r all",
            ));
        }
        if incompatible & EXTENDED_L2 != 0 {
            return Err(DiskFault::feature("the qcow2 image", "extended L2 entries"));
        }
        if incompatible & !known != 0 {
            let text = format!("incompatible features {:#x}", incompatible & !known);
            return Err(DiskFault::feature("the qcow2 image", text));
        }
        if version == 3 && (header_len < 104 || u64::from(header_len) > cluster) {
            return Err(damaged("header length is out of range"));
        }
        if order > 6 {
            return Err(damaged("refcounts have more than 64 bits"));
        }
        let kind = if header_len > 104 { view.u8(104)? } else { 0 };
        let method = match (incompatible & COMPRESSION != 0, kind) {
            (false, 0) => Method::Deflate,
            (true, 1) => Method::Zstd,
            (_, 0 | 1) => return Err(damaged("compression type and feature bit contradict")),
            (_, n) => {
                return Err(DiskFault::feature("the qcow2 image", format!("compression type {n}")));
            }
        };
        let size = bounded("qcow2 disk size", view.be64(24)?, SIZE_MAX)?;
        let tables = u64::from(view.be32(56)?) << cluster_bits;
        bounded("bytes of the qcow2 refcount table", tables, REFCOUNT_TABLE_MAX)?;
        bounded("number of qcow2 snapshots", view.be32(60)?.into(), SNAPSHOTS_MAX)?;
        let l1_entries = u64::from(view.be32(36)?);
        bounded("bytes of the qcow2 L1 table", l1_entries * 8, L1_MAX)?;
        let l1_offset = view.be64(40)?;
        // One L1 entry stands for an L2 table of one cluster, 8 bytes for each cluster of data.
        let needed = size.div_ceil(cluster).div_ceil(cluster / 8);
        if l1_entries < needed {
            return Err(damaged("L1 table is too small for the disk"));
        }
        let table = |at: u64, len: u64| {
            at.is_multiple_of(cluster) && at.checked_add(len).is_some_and(|end| end <= file.size())
        };
        if !table(l1_offset, l1_entries * 8) {
            return Err(damaged("L1 table lies outside of the file"));
        }
        if !table(view.be64(48)?, tables) {
            return Err(damaged("refcount table lies outside of the file"));
        }
        // A snapshot's entry has 40 bytes or more.
        let snapshots = u64::from(view.be32(60)?) * 40;
        if snapshots > 0 && !table(view.be64(64)?, snapshots) {
            return Err(damaged("snapshot table lies outside of the file"));
        }
        let backing = backing(file, &view)?;
        let data_file = incompatible & DATA_FILE != 0;
        Ok(Self { cluster_bits, size, l1_offset, l1_entries, method, backing, data_file })
    }
}

fn backing(file: &dyn Device, view: &View<'_>) -> Res<Option<Vec<u8>>> {
    let (at, len) = (view.be64(8)?, view.be32(16)?.into());
    if at == 0 {
        return Ok(None);
    }
    if len > NAME_MAX {
        let what = "bytes of the qcow2 backing file name";
        return Err(DiskFault::TooLarge { what, value: len, max: NAME_MAX });
    }
    device::bytes(file, at, index(len), "qcow2 backing file name").map(Some)
}

/// An open image.
pub(super) struct Qcow2 {
    file: Disk,
    beneath: Beneath,
    header: Header,
    l1: Vec<u64>,
    /// L2 tables and expanded clusters that were used last.
    tables: RefCell<Recent>,
    expanded: RefCell<Recent>,
}

impl Qcow2 {
    pub fn open(file: Disk, beneath: Beneath) -> Res<Self> {
        let header = Header::read(&*file)?;
        if let (Some(name), None) = (&header.backing, &beneath.backing) {
            return Err(DiskFault::Backing { name: escape(name) });
        }
        match (header.data_file, &beneath.data) {
            (true, None) => return Err(DiskFault::DataFile),
            (false, Some(_)) => return Err(DiskFault::DataFileUnused),
            (true, Some(_)) | (false, None) => {}
        }
        let len = index(header.l1_entries * 8);
        let table = device::bytes(&*file, header.l1_offset, len, "qcow2 L1 table")?;
        let l1 = entries(&table);
        // About 8 MiB of each.
        let room = (8 << 20 >> header.cluster_bits).clamp(4, 512);
        let recent = || RefCell::new(Recent { room, clusters: Vec::new() });
        Ok(Self { file, beneath, header, l1, tables: recent(), expanded: recent() })
    }

    fn cluster(&self) -> u64 {
        1 << self.header.cluster_bits
    }

    /// The L2 entry for a cluster of the guest's disk; 0 where nothing is.
    fn entry(&self, number: u64) -> Res<u64> {
        let per_table = self.cluster() / 8;
        let l1 = self.l1.get(index(number / per_table)).copied().unwrap_or(0);
        let at = l1 & OFFSET;
        if at == 0 {
            return Ok(0);
        }
        if !at.is_multiple_of(self.cluster()) {
            return Err(DiskFault::damaged("qcow2 L1 table", "entry is not aligned"));
        }
        let load = || device::bytes(&*self.file, at, index(self.cluster()), "qcow2 L2 table");
        let table = self.tables.borrow_mut().get(at, load)?;
        let n = index(number % per_table) * 8;
        View::new(&table, "qcow2 L2 table").be64(n)
    }

    /// Part of one cluster.
    fn part(&self, number: u64, skip: u64, buf: &mut [u8]) -> Res<()> {
        let entry = self.entry(number)?;
        if entry & 1 << 62 != 0 {
            let whole = self.expanded.borrow_mut().get(entry, || self.expand(entry))?;
            let view = View::new(&whole, "qcow2 compressed cluster");
            buf.copy_from_slice(view.take(index(skip), buf.len())?);
            return Ok(());
        }
        let at = entry & OFFSET;
        // Bit 0 of version 3 says zeros, whatever was allocated before.
        if entry & 1 != 0 {
            buf.fill(0);
            return Ok(());
        }
        // With a data file 0 is an offset like any other; the "copied" flag says that the entry is used.
        let unused = if self.header.data_file { entry == 0 } else { at == 0 };
        if unused {
            let here = number * self.cluster() + skip;
            return match &self.beneath.backing {
                Some(backing) => fill_to_end(&**backing, here, buf),
                None => {
                    buf.fill(0);
                    Ok(())
                }
            };
        }
        if !at.is_multiple_of(self.cluster()) {
            return Err(DiskFault::damaged("qcow2 L2 table", "entry is not aligned"));
        }
        let file = self.beneath.data.as_ref().unwrap_or(&self.file);
        if at >= file.size() {
            return Err(DiskFault::damaged("qcow2 L2 table", "entry points outside of the file"));
        }
        fill_to_end(&**file, at + skip, buf)
    }

    fn expand(&self, entry: u64) -> Res<Vec<u8>> {
        const WHAT: &str = "qcow2 compressed cluster";
        let split = 62 - (self.header.cluster_bits - 8);
        let at = entry & ((1 << split) - 1);
        let sectors = (entry & ((1 << 62) - 1)) >> split;
        // The length is in sectors, the last of which may be used in part, and may be cut by the file's end.
        let end = (at & !511) + (sectors + 1) * 512;
        let end = end.min(self.file.size());
        let len = end.checked_sub(at).filter(|l| *l > 0 && *l <= self.cluster() * 2);
        let len = len.ok_or(DiskFault::damaged(WHAT, "lies outside of the file"))?;
        let packed = device::bytes(&*self.file, at, index(len), WHAT)?;
        let mut out = vec![0; index(self.cluster())];
        let filled = match self.header.method {
            Method::Deflate => inflate(&packed, &mut out),
            Method::Zstd => unzstd(&packed, &mut out),
        };
        if filled { Ok(out) } else { Err(DiskFault::damaged(WHAT, "does not expand to a cluster")) }
    }
}

impl Device for Qcow2 {
    fn size(&self) -> u64 {
        self.header.size
    }

    fn fill(&self, at: u64, buf: &mut [u8]) -> Res<()> {
        let mut done = 0;
        while done < buf.len() {
            let here = at + done as u64;
            let skip = here % self.cluster();
            let n = index(self.cluster() - skip).min(buf.len() - done);
            self.part(here / self.cluster(), skip, &mut buf[done..done + n])?;
            done += n;
        }
        Ok(())
    }
}

/// Reads what is there, zeros after it.
fn fill_to_end(file: &dyn Device, at: u64, buf: &mut [u8]) -> Res<()> {
    let there = index(file.size().saturating_sub(at)).min(buf.len());
    let (data, rest) = buf.split_at_mut(there);
    rest.fill(0);
    file.fill(at, data)
}

fn entries(table: &[u8]) -> Vec<u64> {
    let words = table.chunks_exact(8);
    words.map(|w| w.iter().fold(0, |n, b| n << 8 | u64::from(*b))).collect()
}

/// Whether a raw deflate stream fills the cluster; what comes after it is padding.
fn inflate(packed: &[u8], out: &mut [u8]) -> bool {
    let mut inflater = flate2::Decompress::new(false);
    let done = inflater.decompress(packed, out, flate2::FlushDecompress::Finish);
    done.is_ok() && inflater.total_out() == out.len() as u64
}

fn unzstd(packed: &[u8], out: &mut [u8]) -> bool {
    use std::io::Read;
    let Ok(mut decoder) = zstd::stream::read::Decoder::with_buffer(packed) else {
        return false;
    };
    // A frame of one cluster: no more window than a cluster may have.
    decoder.window_log_max(23).is_ok() && decoder.single_frame().read_exact(out).is_ok()
}

/// A few clusters by offset, the least used one leaves.
struct Recent {
    room: usize,
    clusters: Vec<(u64, Rc<[u8]>)>,
}

impl Recent {
    fn get(&mut self, key: u64, load: impl FnOnce() -> Res<Vec<u8>>) -> Res<Rc<[u8]>> {
        // Newest last: reading in order finds its cluster at the first look.
        if let Some(at) = self.clusters.iter().rposition(|(k, _)| *k == key) {
            let found = self.clusters.remove(at);
            let bytes = Rc::clone(&found.1);
            self.clusters.push(found);
            return Ok(bytes);
        }
        let bytes: Rc<[u8]> = load()?.into();
        if self.clusters.len() >= self.room {
            self.clusters.remove(0);
        }
        self.clusters.push((key, Rc::clone(&bytes)));
        Ok(bytes)
    }
}

/// Reads what a header leads to; for fuzzers.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn fuzz(bytes: Vec<u8>) {
    let file: Disk = Rc::new(bytes);
    drop(Qcow2File::of(&*file));
    let beneath = Beneath { backing: None, data: None };
    if let Ok(disk) = Qcow2::open(file, beneath) {
        let mut buf = [0; 4096];
        for at in [0, 512, disk.size() / 2, disk.size().saturating_sub(4096)] {
            if device::read(&disk, at, &mut buf, "disk").is_err() {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests;
