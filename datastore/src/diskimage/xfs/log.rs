//! Whether the log is empty.
//!
//! A clean unmount ends the log with a record of one operation that says so. The head is where the cycle number,
//! first word of every 512-byte block, changes; the record before it is the last one.

use super::Volume;
use crate::diskimage::device;
use crate::diskimage::fault::{DiskFault, Res, View};

const SECTOR: u64 = 512;
const MAGIC: u32 = 0xfeed_babe;
/// Blocks that a record can have: 256 KiB, its headers and room for a log stripe.
const RECORD: u64 = 600;
const UNMOUNT: u8 = 0x20;
/// XFS_MAX_LOG_BYTES.
const LOG_MAX: u64 = 1 << 31;

pub(super) fn check(volume: &Volume) -> Res<()> {
    const WHAT: &str = "xfs log";
    let unclean = || Err(DiskFault::Unclean { fs: "xfs" });
    if volume.sb.log_start == 0 {
        return Err(DiskFault::feature("the xfs file system", "an external log"));
    }
    let start = volume.sb.block_at(volume.sb.log_start, WHAT)?;
    let bytes = volume.sb.log_blocks << volume.sb.block_bits;
    if !(SECTOR * 2..=LOG_MAX).contains(&bytes) {
        return Err(DiskFault::damaged(WHAT, "size is out of range"));
    }
    let count = bytes / SECTOR;
    let sector = |n: u64| device::bytes(&volume.disk, start + n * SECTOR, 512, WHAT);
    let cycle = |n: u64| {
        let sector = sector(n)?;
        let view = View::new(&sector, WHAT);
        // A record's header has the cycle behind the magic number.
        if view.be32(0)? == MAGIC { view.be32(4) } else { view.be32(0) }
    };
    let first = cycle(0)?;
    let (mut low, mut high) = (0, count);
    if cycle(count - 1)? == first {
        low = count;
    } else {
        // The first block of the older cycle, or of the part that was never written.
        while low < high {
            let middle = u64::midpoint(low, high);
            if cycle(middle)? == first {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
    }
    for back in 1..=RECORD.min(count) {
        let n = (low + count - back) % count;
        let header = sector(n)?;
        let header = View::new(&header, WHAT);
        if header.be32(0)? != MAGIC {
            continue;
        }
        if header.be32(40)? != 1 {
            return unclean();
        }
        // One block of header for each 32 KiB that a record may have, since version 2.
        let headers = match header.be32(8)? {
            2 => u64::from(header.be32(320)?).div_ceil(32 * 1024).clamp(1, 8),
            _ => 1,
        };
        let operation = sector((n + headers) % count)?;
        return match View::new(&operation, WHAT).u8(9)? & UNMOUNT {
            0 => unclean(),
            _ => Ok(()),
        };
    }
    // A log that is all zeros was never used: a recovered file system starts so.
    if first == 0 && low == count { Ok(()) } else { unclean() }
}
