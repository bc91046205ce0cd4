//! Partition tables: GPT (UEFI specification, chapter 5) with its backup, and MBR with logical partitions.
//!
//! A GPT counts where the MBR protects it (type 0xee), as in UEFI and Linux; a leftover GPT below a plain MBR is
//! nobody's. Partitions may overlap: each is only ever read.

use super::device::{self, Device};
use super::fault::{DiskFault, Res, View, index};

/// One partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Partition {
    /// As Linux counts: `sda1` is 1, the first logical one is 5.
    pub number: u32,
    /// In bytes.
    pub at: u64,
    pub size: u64,
    /// What its type says it is for.
    pub role: Role,
}

/// The types that matter to us; the others are looked at by content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The root of a system of this architecture, by the Discoverable Partitions Specification.
    Root,
    /// Nothing to look at: EFI system, BIOS boot, swap, the root of another architecture.
    Other,
    Any,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub name: &'static str,
    pub partitions: Vec<Partition>,
}

/// More than any tool makes.
const LOGICAL_MAX: usize = 128;
const ENTRIES_MAX: u32 = 1024;
const ARRAY_MAX: u64 = 1 << 20;

/// The table of a disk; none if there is none.
pub(super) fn read(disk: &dyn Device) -> Res<Option<Table>> {
    if disk.size() < 512 {
        return Ok(None);
    }
    let sector = device::bytes(disk, 0, 512, "MBR")?;
    let Some(primary) = mbr(&sector)? else {
        return Ok(None);
    };
    if primary.iter().any(|e| e.kind == 0xee) {
        return gpt(disk).map(Some);
    }
    if primary.is_empty() {
        return Ok(None);
    }
    let mut partitions = Vec::new();
    let mut logical = Vec::new();
    for entry in &primary {
        if entry.is_extended() {
            if !logical.is_empty() {
                return Err(DiskFault::damaged("MBR", "two extended partitions"));
            }
            logical = chain(disk, entry)?;
        } else {
            partitions.push(entry.partition(entry.number, 0));
        }
    }
    partitions.extend(logical);
    Ok(Some(Table { name: "MBR", partitions }))
}

/// An entry of an MBR or of a link in the chain of logical partitions; in sectors of 512 bytes.
#[derive(Clone, Copy, Debug)]
struct Entry {
    number: u32,
    kind: u8,
    start: u64,
    sectors: u64,
}

impl Entry {
    fn is_extended(&self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }

    fn partition(&self, number: u32, base: u64) -> Partition {
        // Swap and the EFI system partition; FAT and NTFS show by content.
        let role = if matches!(self.kind, 0x82 | 0xef) { Role::Other } else { Role::Any };
        let (at, size) = ((base + self.start) * 512, self.sectors * 512);
        Partition { number, at, size, role }
    }
}

/// The used entries of a boot sector; none where it is no MBR (a FAT or ext boot sector has the signature too).
fn mbr(sector: &[u8]) -> Res<Option<Vec<Entry>>> {
    let view = View::new(sector, "MBR");
    if view.le16(510)? != 0xaa55 {
        return Ok(None);
    }
    let mut entries = Vec::new();
    for number in 1..=4 {
        let entry = view.part(446 + (index(number) - 1) * 16, 16)?;
        if entry.u8(0)? & 0x7f != 0 {
            return Ok(None);
        }
        let (kind, start, sectors) = (entry.u8(4)?, entry.le32(8)?.into(), entry.le32(12)?.into());
        if kind != 0 && sectors != 0 {
            entries.push(Entry { number, kind, start, sectors });
        }
    }
    Ok(Some(entries))
}

/// Follows the logical partitions: each link is a boot sector with the partition and the next link.
fn chain(disk: &dyn Device, extended: &Entry) -> Res<Vec<Partition>> {
    const WHAT: &str = "chain of logical partitions";
    let mut found: Vec<Partition> = Vec::new();
    let mut link = extended.start;
    loop {
        if found.len() >= LOGICAL_MAX {
            return Err(DiskFault::damaged(WHAT, "has no end"));
        }
        let sector = device::bytes(disk, link * 512, 512, WHAT)?;
        let entries = mbr(&sector)?.ok_or(DiskFault::damaged(WHAT, "has a bad link"))?;
        let number = 5 + u32::try_from(found.len()).unwrap_or(0);
        let partition = entries.iter().find(|e| !e.is_extended());
        let next = entries.iter().find(|e| e.is_extended());
        if let Some(entry) = partition {
            found.push(entry.partition(number, link));
        }
        let Some(next) = next.map(|e| extended.start + e.start) else {
            return Ok(found);
        };
        // Tools write links in order; going back could go in a circle.
        if next <= link {
            return Err(DiskFault::damaged(WHAT, "goes back"));
        }
        link = next;
    }
}

fn gpt(disk: &dyn Device) -> Res<Table> {
    let mut first = None;
    for sector in [512, 4096] {
        for backup in [false, true] {
            let last = (disk.size() / sector).saturating_sub(1);
            let at = if backup { last } else { 1 };
            match gpt_at(disk, sector, at) {
                Ok(Some(partitions)) => return Ok(Table { name: "GPT", partitions }),
                Ok(None) => {}
                Err(e) => first = first.or(Some(e)),
            }
        }
    }
    Err(first.unwrap_or(DiskFault::damaged("GPT", "neither header nor backup is there")))
}

/// The partitions of the header in that sector; none if none is there.
fn gpt_at(disk: &dyn Device, sector: u64, lba: u64) -> Res<Option<Vec<Partition>>> {
    if disk.size() < (lba + 1) * sector {
        return Ok(None);
    }
    let bytes = device::bytes(disk, lba * sector, index(sector), "GPT header")?;
    let view = View::new(&bytes, "GPT header");
    if view.take(0, 8)? != b"EFI PART" {
        return Ok(None);
    }
    let len = index(view.le32(12)?);
    if !(92..=index(sector)).contains(&len) {
        return Err(view.damaged("length is out of range"));
    }
    let mut header = view.take(0, len)?.to_vec();
    header[16..20].fill(0);
    if crc32(&header) != view.le32(16)? {
        return Err(view.damaged("wrong checksum"));
    }
    if view.le64(24)? != lba {
        return Err(view.damaged("is not where it says"));
    }
    let (at, count, size) = (view.le64(72)?, view.le32(80)?, view.le32(84)?);
    if count > ENTRIES_MAX || !(128..=4096).contains(&size) || !size.is_power_of_two() {
        return Err(view.damaged("number or size of entries is out of range"));
    }
    let len = u64::from(count) * u64::from(size);
    let at = at.checked_mul(sector).filter(|_| len <= ARRAY_MAX);
    let at = at.ok_or(view.damaged("array of entries is out of range"))?;
    let array = device::bytes(disk, at, index(len), "GPT entries")?;
    let array = View::new(&array, "GPT entries");
    if crc32(array.bytes) != view.le32(88)? {
        return Err(array.damaged("wrong checksum"));
    }
    let mut partitions = Vec::new();
    for n in 0..count {
        let entry = array.part(index(n) * index(size), index(size))?;
        let kind = guid(entry.array(0)?);
        if kind == Guid::default() {
            continue;
        }
        let (from, to) = (entry.le64(32)?, entry.le64(40)?);
        let sectors = to.checked_sub(from).and_then(|n| n.checked_add(1));
        let at = from.checked_mul(sector);
        let size = sectors.and_then(|n| n.checked_mul(sector));
        let (Some(at), Some(size)) = (at, size) else {
            return Err(array.damaged("partition ends before it starts"));
        };
        partitions.push(Partition { number: n + 1, at, size, role: role(kind) });
    }
    Ok(Some(partitions))
}

/// A GUID as one writes it, without dashes.
type Guid = [u8; 16];

/// On disk the first three fields are little endian.
fn guid(b: Guid) -> Guid {
    let [a0, a1, a2, a3, b0, b1, c0, c1, rest @ ..] = b;
    let mut out = [a3, a2, a1, a0, b1, b0, c1, c0, 0, 0, 0, 0, 0, 0, 0, 0];
    out[8..].copy_from_slice(&rest);
    out
}

const fn bytes_of(text: u128) -> Guid {
    text.to_be_bytes()
}

/// Types of the UAPI group's Discoverable Partitions Specification, and of UEFI.
const ROOTS: [(&str, Guid); 3] = [
    ("x86_64", bytes_of(0x4f68_bce3_e8cd_4db1_96e7_fbca_f984_b709)),
    ("aarch64", bytes_of(0xb921_b045_1df0_41c3_af44_4c6f_280d_3fae)),
    ("riscv64", bytes_of(0x72ec_70a6_cf74_40e6_bd49_4bda_08e8_f224)),
];
const OTHERS: [Guid; 4] = [
    // EFI system, BIOS boot, swap, extended boot loader.
    bytes_of(0xc12a_7328_f81f_11d2_ba4b_00a0_c93e_c93b),
    bytes_of(0x2168_6148_6449_6e6f_744e_6565_6445_4649),
    bytes_of(0x0657_fd6d_a4ab_43c4_84e5_0933_c84b_4f4f),
    bytes_of(0xbc13_c2ff_59e6_4262_a352_b275_fd6f_7172),
];

fn role(kind: Guid) -> Role {
    match ROOTS.iter().find(|(_, guid)| *guid == kind) {
        Some((arch, _)) if *arch == std::env::consts::ARCH => Role::Root,
        Some(_) => Role::Other,
        None if OTHERS.contains(&kind) => Role::Other,
        None => Role::Any,
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

#[cfg(test)]
mod tests;
