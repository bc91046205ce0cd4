//! A virtual machine's disk as an image of one layer.
//!
//! ```text
//! files ─► raw | qcow2 ─► partition ─► ext4 | xfs | btrfs ─► walk ─► tar ─► zstd ─► the way of every layer
//! ```
//!
//! Nothing of a disk is shown to the host's kernel: file systems made by strangers are what its drivers are
//! weakest at (syzkaller finds such bugs by the dozen). All is read by the code below, which has no unsafe part but in
//! the decompressors that it calls, is bounded in memory and depth, and gives a tar that passes the limits and rules of
//! any other layer. Where there are workers one of them reads it, with nothing but the open files.
//!
//! Absent on purpose: LVM, RAID and encryption (an error names them), journal replay (a disk that was not
//! unmounted is refused), merging of several partitions (only the root is taken), and other formats than raw and
//! qcow2 (the error says how to convert).

mod btrfs;
mod config;
mod device;
mod ext4;
mod fault;
mod files;
mod find;
mod fs;
#[cfg(any(test, feature = "fuzzing"))]
mod fuzzing;
mod header;
#[cfg(test)]
mod mutations;
mod partition;
mod qcow2;
mod walk;
mod xfs;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::rc::Rc;

use serde::{Deserialize, Serialize};

use crate::cancel::Cancel;
use crate::limits::Limits;
use device::{Disk, Image};
use fault::Res;
use fs::FileSystem;
use qcow2::{Beneath, Qcow2};
use walk::{KeepBoot, TarStream, Told};

pub(crate) use config::System;
pub use fault::DiskFault;
pub(crate) use files::DiskFiles;
pub(crate) use fs::XATTRS_MAX;
#[cfg(any(test, feature = "fuzzing"))]
pub use fuzzing::{fuzz_disk, fuzz_qcow2};
pub use qcow2::{BackingName, Qcow2File};

/// How the bytes of a disk lie in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskFormat {
    /// As they are.
    Raw,
    /// QEMU's copy-on-write format, version 2 or 3.
    Qcow2,
}

/// What the caller says about a disk image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskOptions {
    /// The format; by content if none is said, and an error if the content could be either.
    pub format: Option<DiskFormat>,
    /// Number of the partition with the root file system, as Linux counts them; 0 is the disk as a whole.
    pub partition: Option<u32>,
    /// Whether `/boot`, kernels and their modules are taken too. `/etc/fstab` always is.
    pub keep_boot: bool,
    /// Instead of the backing file that a qcow2 image names: nearest first, the last one without another.
    /// A name in an image is never opened.
    pub backing: Vec<PathBuf>,
    /// Instead of the external data file that a qcow2 image names.
    pub data_file: Option<PathBuf>,
}

/// What a reader is told of [`DiskOptions`]: no name of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskReading {
    format: Option<DiskFormat>,
    partition: Option<u32>,
    keep_boot: bool,
    /// Whether the last file is a data file, not a backing file.
    data_file: bool,
}

impl DiskReading {
    pub(crate) fn new(options: &DiskOptions) -> Self {
        Self {
            format: options.format,
            partition: options.partition,
            keep_boot: options.keep_boot,
            data_file: options.data_file.is_some(),
        }
    }
}

/// Whether a file starts like a disk image, of whatever format.
///
/// This is looked at by whoever was asked to find out what a file is, with all its rights: magic numbers at fixed
/// offsets, and the partition tables, whose reader is bounded and has neither unsafe code nor a decompressor. What
/// they lead to is read by [`OpenDisk`] alone, which may be confined.
pub(crate) fn detect(file: &File) -> bool {
    let look = || -> Res<bool> {
        let file = file.try_clone().map_err(|source| DiskFault::Read { at: 0, source })?;
        let image = Image::new(file, &Cancel::new())?;
        let start = start(&image)?;
        Ok(qcow2::matches(&start)
            || foreign(&start).is_some()
            || find::raw_content(&image).is_some())
    };
    look().unwrap_or(false)
}

/// What is known of a disk when it was read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct DiskFacts {
    pub system: System,
    /// Xattrs that are not in the tar.
    pub xattrs_dropped: u64,
}

/// A disk whose root file system was found.
pub(crate) struct OpenDisk {
    fs: Rc<dyn FileSystem>,
    keep_boot: KeepBoot,
    told: Rc<RefCell<Told>>,
}

impl OpenDisk {
    /// Finds the root file system in open files, in the order of [`DiskFiles::copies`]. Nothing else is opened.
    pub fn new(
        files: impl IntoIterator<Item = File>,
        reading: DiskReading,
        cancel: &Cancel,
    ) -> Res<Self> {
        let image = |file| Ok(Rc::new(Image::new(file, cancel)?) as Disk);
        let mut files = files.into_iter().map(image).collect::<Res<VecDeque<Disk>>>()?;
        let top = files.pop_front().ok_or(DiskFault::damaged("disk", "has no file"))?;
        let data = if reading.data_file { files.pop_back() } else { None };
        let disk = assemble(top, files.into(), data, reading.format)?;
        let fs = find::root(&disk, reading.partition)?;
        let keep_boot = if reading.keep_boot { KeepBoot::Yes } else { KeepBoot::No };
        Ok(Self { fs, keep_boot, told: Rc::default() })
    }

    /// What the system's config should say.
    pub fn system(&self) -> Res<System> {
        System::look(&*self.fs)
    }

    /// The root file system as a tar in zstd, the form in which its blob is kept.
    pub fn packed<'a>(&mut self, limits: &'a Limits) -> io::Result<impl Read + use<'a>> {
        let (tar, told) = TarStream::new(Rc::clone(&self.fs), limits, self.keep_boot);
        self.told = told;
        // A level that keeps up with a disk; blobs are read far less often than layers.
        zstd::stream::read::Encoder::new(tar, 1)
    }

    /// The fault that ended the tar, if one did: readers carry only its text.
    pub fn fault(&self) -> Option<DiskFault> {
        self.told.borrow_mut().fault.take()
    }

    /// After the end of the tar.
    pub fn facts(&self, system: System) -> DiskFacts {
        DiskFacts { system, xattrs_dropped: self.told.borrow().xattrs_dropped }
    }
}

fn start(image: &dyn device::Device) -> Res<Vec<u8>> {
    device::bytes(image, 0, fault::index(image.size().min(512)), "disk")
}

/// The name of the format that a disk begins like (VMDK, VHD, VDI …), if it is one that is not read. Its first 512 bytes do.
#[must_use]
pub fn foreign(start: &[u8]) -> Option<&'static str> {
    const MAGIC: [(usize, &[u8], &str); 9] = [
        (0, b"KDMV", "VMDK"),
        (0, b"COWD", "VMDK"),
        (0, b"# Disk DescriptorFile", "VMDK"),
        (0, b"conectix", "VHD"),
        (0, b"vhdxfile", "VHDX"),
        (0x40, b"\x7f\x10\xda\xbe", "VDI"),
        (0, b"QED\0", "QED"),
        (0, b"WithoutFreeSpace", "Parallels"),
        (0, b"MComprHD", "compressed"),
    ];
    let is = |(at, magic, _): &&(usize, &[u8], &str)| {
        start.get(*at..).is_some_and(|s| s.starts_with(magic))
    };
    MAGIC.iter().find(is).map(|(_, _, name)| *name)
}

/// The disk that a file and those below it stand for.
fn assemble(
    top: Disk,
    below: Vec<Disk>,
    data: Option<Disk>,
    format: Option<DiskFormat>,
) -> Res<Disk> {
    let (named, mut asked) = (below.len(), 0);
    let mut below = below.into_iter();
    // From the top down, as far as the images ask for more.
    let mut chain: Vec<(Disk, DiskFormat)> = vec![(Rc::clone(&top), format_of(&top, format)?)];
    while let Some((last, DiskFormat::Qcow2)) = chain.last() {
        if !qcow2::wants_backing(last)? {
            break;
        }
        let Some(next) = below.next() else {
            break;
        };
        asked += 1;
        let format = format_of(&next, None)?;
        chain.push((next, format));
    }
    if named > asked {
        return Err(DiskFault::BackingUnused { named, asked });
    }
    let mut disk: Option<Disk> = None;
    let mut data = data;
    for (level, (file, format)) in chain.into_iter().enumerate().rev() {
        let data = if level == 0 { data.take() } else { None };
        disk = Some(match format {
            DiskFormat::Raw if data.is_some() => return Err(DiskFault::DataFileUnused),
            DiskFormat::Raw => file,
            DiskFormat::Qcow2 => Rc::new(Qcow2::open(file, Beneath { backing: disk, data })?),
        });
    }
    Ok(disk.unwrap_or(top))
}

fn format_of(file: &Disk, said: Option<DiskFormat>) -> Res<DiskFormat> {
    let start = start(&**file)?;
    match said {
        Some(format) => return Ok(format),
        None if qcow2::matches(&start) => {}
        None => {
            return match foreign(&start) {
                Some(format) => Err(DiskFault::Foreign { format }),
                None => Ok(DiskFormat::Raw),
            };
        }
    }
    // In a qcow2 image nothing but zeros and its own tables lie where a raw disk would show what it is.
    match find::raw_content(&**file) {
        Some(also) => Err(DiskFault::Ambiguous { also }),
        None => Ok(DiskFormat::Qcow2),
    }
}
