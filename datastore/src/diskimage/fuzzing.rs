//! What fuzzers feed to the readers of disks.
//!
//! The smallest file system of xfs has hundreds of megabytes, nearly all of them zeros: nothing that a fuzzer can change at
//! random. So [`fuzz_disk`] reads disks in a thin form, which holds the sectors alone that are not zero, one
//! after the other; `cargo xtask fuzz` makes it from a disk.
//!
//! ```text
//! u32  sectors of the disk        little-endian; a sector is 512 bytes
//! u32  number of a sector   ┐
//! 512  its bytes            ┴ …
//! ```

use std::collections::HashMap;
use std::io::Read;
use std::rc::Rc;

use super::config::System;
use super::device::Device;
use super::fault::Res;
use super::walk::{KeepBoot, TarStream};
use super::{Disk, find, qcow2};
use crate::limits::Limits;

/// Most bytes that are taken of the tar made from a thin disk.
const TAR: u64 = 2 << 20;

/// Reads a qcow2 image here and there.
pub fn fuzz_qcow2(bytes: &[u8]) {
    qcow2::fuzz(bytes.to_vec());
}

/// Walks a disk in the thin form to its end.
pub fn fuzz_disk(bytes: &[u8]) {
    if let Some(thin) = Thin::new(bytes) {
        fuzz_walk(&(Rc::new(thin) as Disk), TAR);
    }
}

/// Takes so many bytes of a disk's tar: a size of 2^60 is no error of the reader's, the limits of ingesting end it.
pub(super) fn fuzz_walk(disk: &Disk, most: u64) {
    let limits = Limits { entries: 10_000, ..Limits::default() };
    if let Ok(fs) = find::root(disk, None) {
        drop(System::look(&*fs));
        let (stream, _) = TarStream::new(fs, &limits, KeepBoot::Yes);
        drop(std::io::copy(&mut stream.take(most), &mut std::io::sink()));
    }
}

const SECTOR: usize = 512;

/// A disk most of which is zeros.
struct Thin {
    sectors: u32,
    /// Those that are there.
    held: HashMap<u64, [u8; SECTOR]>,
}

impl Thin {
    fn new(bytes: &[u8]) -> Option<Self> {
        let (sectors, rest) = bytes.split_first_chunk()?;
        let held = rest.as_chunks::<{ 4 + SECTOR }>().0.iter().filter_map(|record| {
            let (number, sector) = record.split_first_chunk()?;
            Some((u32::from_le_bytes(*number).into(), sector.try_into().ok()?))
        });
        Some(Self { sectors: u32::from_le_bytes(*sectors), held: held.collect() })
    }
}

impl Device for Thin {
    fn size(&self) -> u64 {
        u64::from(self.sectors) * SECTOR as u64
    }

    fn fill(&self, at: u64, buf: &mut [u8]) -> Res<()> {
        let (mut number, offset) = (at / SECTOR as u64, at % SECTOR as u64);
        let mut offset = usize::try_from(offset).unwrap_or(0);
        let mut left = buf;
        while !left.is_empty() {
            let (now, later) = left.split_at_mut(left.len().min(SECTOR - offset));
            match self.held.get(&number) {
                Some(sector) => now.copy_from_slice(&sector[offset..offset + now.len()]),
                None => now.fill(0),
            }
            (number, offset, left) = (number + 1, 0, later);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thin_disk_is_the_disk_that_it_was_made_from() {
        let mut bytes = 9u32.to_le_bytes().to_vec();
        for n in [2u32, 8] {
            bytes.extend(n.to_le_bytes());
            bytes.extend([u8::try_from(n).unwrap(); SECTOR]);
        }
        // A record that is cut off is none.
        bytes.extend([1; SECTOR]);
        let thin = Thin::new(&bytes).unwrap();
        let mut all = vec![1; 9 * SECTOR];
        assert_eq!(thin.size(), all.len() as u64);
        thin.fill(0, &mut all).unwrap();
        let want: Vec<u8> = (0..9).flat_map(|n| [if n % 6 == 2 { n } else { 0 }; SECTOR]).collect();
        assert_eq!(all, want);
        for (from, to) in [(1000, 1600), (1030, 1040), (4607, 4608), (7, 7)] {
            let mut part = vec![1; to - from];
            thin.fill(from as u64, &mut part).unwrap();
            assert_eq!(part, want[from..to]);
        }
    }
}
