//! New filesystems in empty disks.
//!
//! The tool works on memory and what it wrote is copied, the beginning last: until then the disk begins with a
//! [mark](MARK). A crash, or a filesystem without room, leaves the mark, and who finds it begins anew; without it there
//! would be something that has a filesystem's name and is none, for ever. (Of a device the tools would also ask for what
//! only the host's root is given, BLKBSZSET.)
//!
//! What holds anything is never formatted, and a first megabyte of zeroes says little: databases leave it free, md
//! keeps its superblock at the end. A file is looked at where it is not a hole; of a block device, which may be large and
//! knows no holes, the end and some hundred places, which is enough as long as no guest writes it but through a filesystem;
//! else none is made in it. Some hundred places as well of a file that takes no room on a share that knows none (NFS
//! before 4.2): it may be as large, and all of it would come over the network.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::spec::Filesystem;
use ocivisor_core::units::Bytes;
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::super::ext4;
use super::tools::{Tools, as_nobody, broke_down};
use crate::confine::{Input, path_of};

/// What a disk begins with while its filesystem is being made.
pub(super) const MARK: &[u8] =
    b"ocivisor is making a filesystem here; until then this disk is empty\n";

/// As much as is written last, in one piece: a page, with the superblock of either.
const HEAD: u64 = 4096;

/// Places of a block device that are looked at, between its first and last megabyte.
const SAMPLES: u64 = 256;
const PIECE: usize = 1 << 20;

/// Whether a disk, whose first megabyte is all zeroes, has nothing behind that either.
pub(super) fn is_empty(disk: &File, is_device: bool, tools: &Tools<'_>) -> Result<bool> {
    let failed = |e: io::Error| Error::new(ErrorKind::Host, format!("look for data: {e}"));
    let size = seek(disk, SeekFrom::End(0)).map_err(|e| failed(e.into()))?;
    if is_device || takes_no_room(disk).map_err(failed)? {
        let last = size.saturating_sub(PIECE as u64);
        let samples = (1..SAMPLES).map(|n| (size / SAMPLES * n / HEAD * HEAD, HEAD as usize));
        for (at, length) in samples.chain([(last, PIECE)]) {
            tools.go_on()?;
            if !is_zero(disk, at, length).map_err(failed)? {
                return Ok(false);
            }
        }
        return Ok(true);
    }
    let mut at = 0;
    while at < size {
        at = match seek(disk, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => return Ok(true),
            // Of a filesystem that does not tell.
            Err(Errno::INVAL) => at,
            Err(e) => return Err(failed(e.into())),
        };
        tools.go_on()?;
        if !is_zero(disk, at, PIECE).map_err(failed)? {
            return Ok(false);
        }
        at += PIECE as u64;
    }
    Ok(true)
}

/// Whether a file is said to have data everywhere and no room that it would be in. One sector is that of ZFS for the file
/// itself. That alone is no proof: some servers say it of all files.
fn takes_no_room(disk: &File) -> io::Result<bool> {
    let room = disk.metadata()?.blocks();
    Ok(room <= 1 && matches!(seek(disk, SeekFrom::Data(0)), Ok(0) | Err(Errno::INVAL)))
}

/// Whether so much from there on is zeroes, up to the end at most.
fn is_zero(disk: &File, at: u64, length: usize) -> io::Result<bool> {
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while filled < length {
        match disk.read_at(&mut bytes[filled..], at + filled as u64)? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(bytes[..filled].iter().all(|byte| *byte == 0))
}

/// Makes a filesystem in an empty disk. Its root belongs to the guest's root.
pub(super) fn make(kind: Filesystem, disk: &File, tools: &Tools<'_>) -> Result<()> {
    let name = kind.name();
    let failed =
        |e: io::Error| Error::new(ErrorKind::Host, format!("make a filesystem {name}: {e}"));
    let size = seek(disk, SeekFrom::End(0)).map_err(|e| failed(e.into()))?;
    if size > ext4::MAX_SIZE.0 {
        let what = "it is larger than the 16 TiB that filesystems are made up to";
        return Err(
            Error::new(ErrorKind::Unsupported, what).hint("make it before, or in the guest")
        );
    }
    let memory = ext4::memory(Bytes(size)).map_err(failed)?;
    let path = path_of(memory.as_fd());
    let argv = match kind {
        // Nothing is reserved: the guest's root is a tenant like its users. Blocks and sectors are those of the largest
        // sectors that a device behind it may have.
        Filesystem::Ext4 => {
            let mut argv =
                vec!["mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", "-e", "remount-ro"];
            argv.extend(["-O", ext4::FEATURES, "-E"]);
            argv.push("nodiscard,lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0");
            argv
        }
        // Its log has to be all zeroes, and is written; it would be up to 2 GiB.
        Filesystem::Xfs => vec!["mkfs.xfs", "-q", "-K", "-s", "size=4096", "-l", "size=64m"],
    };
    let argv = [&argv[..], &[path.as_str()]].concat();
    let ended = tools.run(&argv, &[memory.as_fd()], size, as_nobody(Input::Ours))?;
    if !ended.status.success() {
        return Err(broke_down(argv[0], &ended));
    }
    let mut write = |bytes: &[u8], at: u64| disk.write_all_at(bytes, at);
    copy_made(&memory, &mut write, &|| disk.sync_all()).map_err(failed)
}

/// Copies what was written, as it is, zeroes too.
fn copy_made(
    from: &File,
    write: &mut dyn FnMut(&[u8], u64) -> io::Result<()>,
    sync: &dyn Fn() -> io::Result<()>,
) -> io::Result<()> {
    let mut head = [0; HEAD as usize];
    head[..MARK.len()].copy_from_slice(MARK);
    write(&head, 0)?;
    sync()?;
    let mut chunk = vec![0; PIECE];
    let mut at = HEAD;
    loop {
        at = match seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(e) => return Err(e.into()),
        };
        let end = seek(from, SeekFrom::Hole(at))?;
        while at < end {
            let most = usize::try_from(end - at).unwrap_or(usize::MAX).min(chunk.len());
            from.read_exact_at(&mut chunk[..most], at)?;
            write(&chunk[..most], at)?;
            at += most as u64;
        }
    }
    sync()?;
    from.read_exact_at(&mut head, 0)?;
    write(&head, 0)?;
    sync()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use super::super::super::tests::share::Share;
    use super::super::content::Content;
    use super::super::turns::{Checks, Time, Turns};
    use super::*;

    fn turns() -> (Turns, Time) {
        let limit = Duration::from_secs(60);
        (Turns::new(Checks { limit, at_once: 2 }), Time::new(limit))
    }

    fn tools<'a>((turns, time): &'a (Turns, Time), give_up: &'a dyn Fn() -> bool) -> Tools<'a> {
        Tools::new(turns, time, Vec::new(), Bytes::mib(64), give_up).unwrap()
    }

    #[test]
    fn a_disk_whose_filesystem_was_cut_off_while_it_was_made_is_made_again() {
        let turns = turns();
        for (kind, mib, made) in
            [(Filesystem::Ext4, 32, Content::Ext), (Filesystem::Xfs, 320, Content::Xfs)]
        {
            let whole = ext4::memory(Bytes::mib(mib)).unwrap();
            make(kind, &whole, &tools(&turns, &|| false)).unwrap();
            assert_eq!(Content::of(&whole).unwrap(), made);
            let cut_off = |most: usize| {
                let disk = ext4::memory(Bytes::mib(mib)).unwrap();
                let writes = Cell::new(0);
                let mut write = |bytes: &[u8], at: u64| {
                    writes.set(writes.get() + 1);
                    if writes.get() > most {
                        return Err(io::Error::from_raw_os_error(libc::ENOSPC));
                    }
                    disk.write_all_at(bytes, at)
                };
                let done = copy_made(&whole, &mut write, &|| Ok(()));
                (done.is_ok(), writes.get(), disk)
            };
            let (_, all, disk) = cut_off(usize::MAX);
            assert_eq!(Content::of(&disk).unwrap(), made);
            assert!(all > 3, "{kind:?} is written in several pieces");
            let content = |most: usize| {
                let (done, _, disk) = cut_off(most);
                assert!(!done);
                (Content::of(&disk).unwrap(), disk)
            };
            assert_eq!(content(0).0, Content::Empty, "{kind:?}");
            for most in [1, 2, all / 2, all - 1] {
                let (content, disk) = content(most);
                assert_eq!(content, Content::HalfMade, "{kind:?} after {most} of {all} writes");
                make(kind, &disk, &tools(&turns, &|| false)).unwrap();
                assert_eq!(Content::of(&disk).unwrap(), made);
            }
        }
    }

    #[test]
    fn a_file_without_any_room_is_not_read_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let share = Share::mount(&dir.path().join("disk"));
        let disk = File::open(&share.path).unwrap();
        assert_eq!(seek(&disk, SeekFrom::Data(0)), Ok(0), "it knows no holes");
        let turns = turns();
        assert!(is_empty(&disk, false, &tools(&turns, &|| false)).unwrap());
    }

    #[test]
    fn anything_anywhere_in_a_file_is_something() {
        let turns = turns();
        let tools = tools(&turns, &|| false);
        let disk = ext4::memory(Bytes::mib(64)).unwrap();
        assert!(is_empty(&disk, false, &tools).unwrap());
        disk.write_all_at(&[0; 9 << 20], 5 << 20).unwrap();
        assert!(is_empty(&disk, false, &tools).unwrap(), "zeroes are nothing");
        for at in [1 << 20, (40 << 20) + 1234, (64 << 20) - 1] {
            disk.write_all_at(b"x", at).unwrap();
            assert!(!is_empty(&disk, false, &tools).unwrap(), "{at}");
            disk.write_all_at(&[0], at).unwrap();
        }
        // The end counts in a device too, and so does what is found in between.
        assert!(is_empty(&disk, true, &tools).unwrap());
        for at in [32 << 20, (64 << 20) - 1] {
            disk.write_all_at(b"x", at).unwrap();
            assert!(!is_empty(&disk, true, &tools).unwrap(), "{at}");
            disk.write_all_at(&[0], at).unwrap();
        }
    }

    #[test]
    fn the_log_of_a_large_xfs_does_not_fill_the_memory() {
        let turns = turns();
        let disk = ext4::memory(Bytes(1 << 40)).unwrap();
        make(Filesystem::Xfs, &disk, &tools(&turns, &|| false)).unwrap();
        let written = std::os::unix::fs::MetadataExt::blocks(&disk.metadata().unwrap()) * 512;
        assert!(written < 80 << 20, "{written}");
        let large = ext4::memory(Bytes(1 << 45)).unwrap();
        let error = make(Filesystem::Xfs, &large, &tools(&turns, &|| false)).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unsupported);
    }
}
