//! Data disks: copied byte by byte, looked at, never interpreted.
//!
//! A disk is `qcow2` if it begins like one, else `raw`. A qcow2 file may name other files: those a host would open in the
//! owner's stead, so it is refused. From then on the format is on record and nobody guesses it again: a guest
//! may write into its raw disk what it likes.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use md5::Md5;
use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_datastore::foreign_disk;
use ocivisor_opennebula::ds::Checksums;
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use crate::fault::failed;

const BLOCK: usize = 256 * 1024;

/// What a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Disk {
    /// `raw` or `qcow2`.
    pub format: &'static str,
    /// Bytes that a guest sees.
    pub size: u64,
}

impl Disk {
    /// Bytes that count for it: what a guest sees, but for a qcow2 file that is far longer than its tables make it. Those
    /// are some 16 bytes for each 64 KiB; more is snapshots, or what somebody hides behind a small size.
    pub fn counted(&self, length: u64) -> u64 {
        if length > self.size.saturating_add(slack(self.size)) { length } else { self.size }
    }
}

/// What a file may have beyond what it holds.
pub(crate) fn slack(bytes: u64) -> u64 {
    bytes / 64 + (16 << 20)
}

/// How much may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    /// Bytes.
    pub bytes: u64,
    /// `SIZE` in MiB, where it is that which says so; else it is what is free.
    pub size: Option<u64>,
}

impl Room {
    /// More came.
    pub fn exceeded(&self) -> Error {
        match self.size {
            Some(size) => {
                let text = format!("it has more than the {size} MiB that its SIZE says");
                Error::new(ErrorKind::Exhausted, text)
                    .hint("create it again with a larger SIZE (oneimage create --size)")
            }
            None => full(self.bytes),
        }
    }
}

/// Copies to the end; holes stay holes, and zeros become some.
pub(crate) fn copy(from: &mut dyn Read, mut to: &File, room: Room, shown: &str) -> Result<u64> {
    let write = |e: io::Error| failed("write a copy of", Path::new(shown), &e);
    let mut buf = vec![0; BLOCK];
    let mut total: u64 = 0;
    loop {
        let n = match from.read(&mut buf) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(failed("read", Path::new(shown), &e)),
        };
        total += n as u64;
        if total > room.bytes {
            return Err(room.exceeded());
        }
        if buf[..n].iter().all(|byte| *byte == 0) {
            to.seek(SeekFrom::Current(i64::try_from(n).unwrap_or(0))).map_err(write)?;
        } else {
            to.write_all(&buf[..n]).map_err(write)?;
        }
    }
    to.set_len(total).map_err(write)?;
    Ok(total)
}

/// There is not so much room.
fn full(most: u64) -> Error {
    let text = format!("it has more than the {} MiB that are free in the datastore", most >> 20);
    Error::new(ErrorKind::Exhausted, text).hint("free some, or use another datastore")
}

/// Refuses what begins like something that would have to be unpacked or converted first.
pub(crate) fn check_known(head: &[u8], shown: &str) -> Result<()> {
    let refused = |why: String| Err(Error::new(ErrorKind::Image, format!("{shown} {why}")));
    let packed: [&[u8]; 4] = [b"BZh", b"PK\x03\x04", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07"];
    if packed.iter().any(|magic| head.starts_with(magic)) {
        return refused("is compressed in a way that is not read".to_owned())
            .map_err(|e| e.hint("unpack it, or use gzip, xz or zstd"));
    }
    match foreign_disk(head) {
        Some(format) => refused(format!("is a disk in the format {format}, which is not read"))
            .map_err(|e| e.hint("convert it first: qemu-img convert -O qcow2 FILE NEW.qcow2")),
        None => Ok(()),
    }
}

/// Says what a disk is, and refuses what leads to other files.
pub(crate) fn inspect(file: &File, shown: &str) -> Result<Disk> {
    let refused = |why: &str| Error::new(ErrorKind::Image, format!("{shown} {why}"));
    let size = file.metadata().map_err(|e| failed("inspect", Path::new(shown), &e))?.len();
    let mut head = [0; 104];
    let n = read_at(file, &mut head).map_err(|e| failed("read", Path::new(shown), &e))?;
    let head = &head[..n];
    if size == 0 {
        return Err(refused("is empty"));
    }
    if !head.starts_with(b"QFI\xfb") {
        check_known(head, shown)?;
        return Ok(Disk { format: "raw", size });
    }
    let short = || refused("begins like qcow2 and has no whole header");
    let word = |at: usize| {
        let bytes = head.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_be_bytes(bytes))
    };
    let long = |at: usize| Some(u64::from(word(at)?) << 32 | u64::from(word(at + 4)?));
    let version = word(4).ok_or_else(short)?;
    if !matches!(version, 2 | 3) {
        return Err(refused(&format!("is qcow2 of version {version}, 2 and 3 are known")));
    }
    if long(8).ok_or_else(short)? != 0 {
        return Err(refused("is qcow2 with a backing file").hint("convert it with qemu-img first"));
    }
    if word(32).ok_or_else(short)? != 0 {
        return Err(refused("is encrypted qcow2"));
    }
    // docs/interop/qcow2 of QEMU: dirty, corrupt, external data file, compression, extended entries.
    let features = if version == 3 { long(72).ok_or_else(short)? } else { 0 };
    if features & 0b100 != 0 {
        return Err(refused("is qcow2 with a data file").hint("convert it with qemu-img first"));
    }
    if features & 0b10 != 0 {
        return Err(refused("is marked corrupt").hint("repair it with qemu-img check first"));
    }
    if features & !0b1_1001 != 0 {
        return Err(refused("is qcow2 with features that are not known"));
    }
    Ok(Disk { format: "qcow2", size: long(24).ok_or_else(short)? })
}

pub(crate) fn read_at(file: &File, buf: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// Checks that a file is what the user says.
pub(crate) fn check(file: &File, wanted: &Checksums, shown: &str) -> Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    let got = sums(file).map_err(|e| failed("read", Path::new(shown), &e))?;
    for (name, wanted, got) in [
        ("MD5", &wanted.md5, &got.md5),
        ("SHA1", &wanted.sha1, &got.sha1),
        ("SHA256", &wanted.sha256, &got.sha256),
    ] {
        if wanted.is_some() && wanted != got {
            let (wanted, got) = (wanted.as_deref().unwrap_or(""), got.as_deref().unwrap_or(""));
            let text = format!("{shown} has {name} {got}, not {wanted}");
            return Err(Error::new(ErrorKind::Integrity, text)
                .hint("it was changed on the way, or the checksum is of another file"));
        }
    }
    Ok(())
}

/// All three, by one pass from the start.
pub(crate) fn sums(mut file: &File) -> io::Result<Checksums> {
    let (mut md5, mut sha1, mut sha256) = (Md5::new(), Sha1::new(), Sha256::new());
    file.rewind()?;
    let mut buf = vec![0; BLOCK];
    loop {
        let n = match file.read(&mut buf) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        md5.update(&buf[..n]);
        sha1.update(&buf[..n]);
        sha256.update(&buf[..n]);
    }
    file.rewind()?;
    Ok(Checksums {
        md5: Some(hex(&md5.finalize())),
        sha1: Some(hex(&sha1.finalize())),
        sha256: Some(hex(&sha256.finalize())),
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        file
    }

    fn qcow2(version: u32, backing: u64, crypt: u32, features: u64) -> Vec<u8> {
        let mut head = vec![0; 104];
        head[..4].copy_from_slice(b"QFI\xfb");
        head[4..8].copy_from_slice(&version.to_be_bytes());
        head[8..16].copy_from_slice(&backing.to_be_bytes());
        head[24..32].copy_from_slice(&(5u64 << 30).to_be_bytes());
        head[32..36].copy_from_slice(&crypt.to_be_bytes());
        head[72..80].copy_from_slice(&features.to_be_bytes());
        head
    }

    #[test]
    fn what_leads_elsewhere_is_refused() {
        let said = |bytes: &[u8]| inspect(&file(bytes), "x").map_err(|e| e.message);
        let is = |format, size| Ok(Disk { format, size });
        assert_eq!(said(b"anything"), is("raw", 8));
        assert_eq!(said(&qcow2(3, 0, 0, 0b1001)), is("qcow2", 5 << 30));
        assert_eq!(said(&qcow2(2, 0, 0, 0b100)), is("qcow2", 5 << 30));
        let refused = |why: &str| Err(format!("x {why}"));
        assert_eq!(said(b""), refused("is empty"));
        assert_eq!(said(&qcow2(3, 200, 0, 0)), refused("is qcow2 with a backing file"));
        assert_eq!(said(&qcow2(3, 0, 0, 0b100)), refused("is qcow2 with a data file"));
        assert_eq!(said(&qcow2(3, 0, 0, 0b10)), refused("is marked corrupt"));
        assert_eq!(
            said(&qcow2(3, 0, 0, 1 << 40)),
            refused("is qcow2 with features that are not known")
        );
        assert_eq!(said(&qcow2(3, 0, 1, 0)), refused("is encrypted qcow2"));
        assert_eq!(said(&qcow2(4, 0, 0, 0)), refused("is qcow2 of version 4, 2 and 3 are known"));
        assert_eq!(
            said(&qcow2(3, 0, 0, 0)[..50]),
            refused("begins like qcow2 and has no whole header")
        );
        assert_eq!(said(b"PK\x03\x04"), refused("is compressed in a way that is not read"));
        assert_eq!(said(b"KDMV"), refused("is a disk in the format VMDK, which is not read"));
    }

    #[test]
    fn a_disk_counts_what_it_shows_or_what_it_takes() {
        let disk = |size| Disk { format: "qcow2", size };
        assert_eq!(disk(1 << 20).counted(300_000), 1 << 20);
        // A whole disk and its tables.
        assert_eq!(disk(10 << 30).counted((10 << 30) + (3 << 20)), 10 << 30);
        assert_eq!(disk(1 << 20).counted(500 << 30), 500 << 30);
    }

    #[test]
    fn copies_are_equal_sparse_and_bounded() {
        let mut bytes = vec![7; 3 * BLOCK + 5];
        bytes[BLOCK..2 * BLOCK].fill(0);
        let to = tempfile::tempfile().unwrap();
        let room = |bytes, size| Room { bytes, size };
        let all = room(1 << 30, None);
        assert_eq!(copy(&mut &bytes[..], &to, all, "x").unwrap(), bytes.len() as u64);
        let mut got = vec![0; bytes.len()];
        to.read_exact_at(&mut got, 0).unwrap();
        assert_eq!((got == bytes, to.metadata().unwrap().len()), (true, bytes.len() as u64));
        assert!(to.metadata().unwrap().blocks() * 512 < bytes.len() as u64);
        for (room, why) in [
            (room(10, None), "it has more than the 0 MiB that are free in the datastore"),
            (room(10, Some(7)), "it has more than the 7 MiB that its SIZE says"),
        ] {
            let error = copy(&mut &bytes[..], &to, room, "x").unwrap_err();
            assert_eq!((error.kind, error.message.as_str()), (ErrorKind::Exhausted, why));
        }
    }

    #[test]
    fn checksums_are_those_of_the_tools() {
        let abc = file(b"abc");
        let got = sums(&abc).unwrap();
        assert_eq!(got.md5.as_deref(), Some("900150983cd24fb0d6963f7d28e17f72"));
        assert_eq!(got.sha1.as_deref(), Some("a9993e364706816aba3e25717850c26c9cd0d89d"));
        check(&abc, &got, "x").unwrap();
        let wrong = Checksums { md5: Some("0".repeat(32)), ..got };
        let want = format!("x has MD5 900150983cd24fb0d6963f7d28e17f72, not {}", "0".repeat(32));
        assert_eq!(check(&abc, &wrong, "x").unwrap_err().message, want);
    }
}
