//! Bytes by offset: files, parts of them, and a cache for structures that are read again and again.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use super::fault::{DiskFault, Res};
use crate::cancel::Cancel;

/// Something with a length and bytes.
pub(super) trait Device {
    /// Bytes there are.
    fn size(&self) -> u64;

    /// Fills `buf`; the caller has seen to it that the range lies inside.
    fn fill(&self, at: u64, buf: &mut [u8]) -> Res<()>;
}

pub(super) type Disk = Rc<dyn Device>;

/// Fills `buf` if the range lies inside.
pub(super) fn read(disk: &dyn Device, at: u64, buf: &mut [u8], what: &'static str) -> Res<()> {
    if at.checked_add(buf.len() as u64).is_none_or(|end| end > disk.size()) {
        return Err(DiskFault::damaged(what, "lies outside of the disk"));
    }
    disk.fill(at, buf)
}

/// Reads so many bytes.
pub(super) fn bytes(disk: &dyn Device, at: u64, len: usize, what: &'static str) -> Res<Vec<u8>> {
    if at.checked_add(len as u64).is_none_or(|end| end > disk.size()) {
        return Err(DiskFault::damaged(what, "lies outside of the disk"));
    }
    let mut buf = vec![0; len];
    disk.fill(at, &mut buf)?;
    Ok(buf)
}

/// An open file on the host. Reading it ends when its reader is told to.
#[derive(Debug)]
pub(super) struct Image {
    file: File,
    size: u64,
    cancel: Cancel,
}

impl Image {
    pub fn new(file: File, cancel: &Cancel) -> Res<Self> {
        // fstat(2): a call that takes a path is not even there for a confined reader.
        let stat = rustix::fs::fstat(&file);
        let stat = stat.map_err(|e| DiskFault::Read { at: 0, source: e.into() })?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        Ok(Self { file, size, cancel: cancel.clone() })
    }
}

impl Device for Image {
    fn size(&self) -> u64 {
        self.size
    }

    fn fill(&self, at: u64, buf: &mut [u8]) -> Res<()> {
        let read = self.cancel.check().and_then(|()| self.file.read_exact_at(buf, at));
        read.map_err(|source| {
            if source.kind() == std::io::ErrorKind::UnexpectedEof {
                return DiskFault::Changed;
            }
            DiskFault::Read { at, source }
        })
    }
}

impl Device for Vec<u8> {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn fill(&self, at: u64, buf: &mut [u8]) -> Res<()> {
        let start = usize::try_from(at).unwrap_or(usize::MAX);
        let part = start.checked_add(buf.len()).and_then(|end| self.get(start..end));
        buf.copy_from_slice(part.ok_or(DiskFault::Changed)?);
        Ok(())
    }
}

/// A partition.
pub(super) struct Part {
    disk: Disk,
    at: u64,
    size: u64,
}

impl Part {
    pub fn new(disk: &Disk, at: u64, size: u64) -> Res<Self> {
        if at.checked_add(size).is_none_or(|end| end > disk.size()) {
            return Err(DiskFault::damaged("partition", "lies outside of the disk"));
        }
        Ok(Self { disk: Rc::clone(disk), at, size })
    }
}

impl Device for Part {
    fn size(&self) -> u64 {
        self.size
    }

    fn fill(&self, at: u64, buf: &mut [u8]) -> Res<()> {
        self.disk.fill(self.at + at, buf)
    }
}

const PAGE: usize = 16 * 1024;
/// 32 MiB: the inode tables of a few hundred directories.
const PAGES: usize = 2048;

/// Keeps pages that were read. For structures; file content goes past it.
pub(super) struct Cached {
    disk: Disk,
    pages: RefCell<HashMap<u64, Page>>,
    clock: RefCell<u64>,
}

struct Page {
    bytes: Rc<[u8]>,
    used: u64,
}

impl Cached {
    pub fn new(disk: Disk) -> Self {
        Self { disk, pages: RefCell::default(), clock: RefCell::default() }
    }

    fn page(&self, number: u64) -> Res<Rc<[u8]>> {
        let mut clock = self.clock.borrow_mut();
        *clock += 1;
        let mut pages = self.pages.borrow_mut();
        if let Some(page) = pages.get_mut(&number) {
            page.used = *clock;
            return Ok(Rc::clone(&page.bytes));
        }
        let at = number * PAGE as u64;
        let len = (self.disk.size() - at).min(PAGE as u64);
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(PAGE)];
        self.disk.fill(at, &mut bytes)?;
        if pages.len() >= PAGES {
            // The older half goes: one pass now and then instead of a list on every use.
            let mut used: Vec<u64> = pages.values().map(|p| p.used).collect();
            used.sort_unstable();
            let middle = used[used.len() / 2];
            pages.retain(|_, p| p.used > middle);
        }
        let bytes: Rc<[u8]> = bytes.into();
        pages.insert(number, Page { bytes: Rc::clone(&bytes), used: *clock });
        Ok(bytes)
    }
}

impl Device for Cached {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn fill(&self, at: u64, buf: &mut [u8]) -> Res<()> {
        let mut done = 0;
        while done < buf.len() {
            let here = at + done as u64;
            let page = self.page(here / PAGE as u64)?;
            let from = usize::try_from(here % PAGE as u64).unwrap_or(0);
            let rest = page.get(from..).filter(|r| !r.is_empty()).ok_or(DiskFault::Changed)?;
            let n = rest.len().min(buf.len() - done);
            buf[done..done + n].copy_from_slice(&rest[..n]);
            done += n;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_cache_shows_what_lies_below_and_stays_small() {
        let size = PAGE * (PAGES + 300) + 77;
        let all: Vec<u8> = (0..size).map(|n| (n / 1000 % 251) as u8).collect();
        let cached = Cached::new(Rc::new(all.clone()));
        for at in (0..size - 5000).step_by(4999) {
            let got = bytes(&cached, at as u64, 5000, "test").unwrap();
            assert_eq!(got, &all[at..at + 5000], "{at}");
            assert!(cached.pages.borrow().len() <= PAGES + 2);
        }
        assert_eq!(bytes(&cached, size as u64 - 7, 7, "x").unwrap(), &all[size - 7..]);
        let outside = bytes(&cached, size as u64 - 7, 8, "inode table").unwrap_err();
        assert_eq!(outside.to_string(), "inode table is damaged: lies outside of the disk");
    }

    #[test]
    fn a_file_that_was_cut_is_noticed_and_none_is_read_after_the_end_of_the_work() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 20]).unwrap();
        let cancel = Cancel::new();
        let image = Image::new(file.try_clone().unwrap(), &cancel).unwrap();
        assert_eq!(bytes(&image, 5, 15, "test").unwrap(), [7; 15]);
        file.set_len(10).unwrap();
        assert!(matches!(image.fill(5, &mut [0; 10]), Err(DiskFault::Changed)));
        cancel.cancel();
        let ended = image.fill(5, &mut [0; 1]);
        let code = rustix::io::Errno::CANCELED.raw_os_error();
        assert!(
            matches!(&ended, Err(DiskFault::Read { source, .. }) if source.raw_os_error() == Some(code)),
            "{ended:?}"
        );
    }
}
