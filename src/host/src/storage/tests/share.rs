//! Disks on a share that knows no holes and whose server stops answering: a FUSE filesystem that is one file (fuse(4),
//! <linux/fuse.h>).

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::channel;

use rustix::mount::{MountFlags, mount};

use super::super::loopdev::{self, Binding, FileId};
use super::disks::LONG;
use super::*;

const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const STATFS: u32 = 17;
const INIT: u32 = 26;
/// Bytes of the heads of questions and answers.
const HEADS: (usize, usize) = (40, 16);

/// What the server says when it is asked about its file: all is well, nothing ever, or else this error.
const WELL: i32 = 0;
const NOTHING: i32 = -1;

/// Bytes of its file, all zeroes, and how many of them it gives away.
const SIZE: u64 = 64 << 30;
const MOST: usize = 64 << 20;

/// It is unmounted, and who waits there wakes, when this is dropped.
pub(in super::super) struct Share {
    pub(in super::super) path: PathBuf,
    says: Arc<AtomicI32>,
}

impl Share {
    /// Mounts a share that is this file.
    pub(in super::super) fn mount(path: &Path) -> Self {
        File::create(path).unwrap();
        let mut device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let options = format!("fd={},rootmode=100000,user_id=0,group_id=0", device.as_raw_fd());
        let options = CString::new(options).unwrap();
        mount("share", path, "fuse", MountFlags::empty(), options.as_c_str()).unwrap();
        let says = Arc::new(AtomicI32::new(WELL));
        let told = says.clone();
        std::thread::spawn(move || {
            let mut question = vec![0; 1 << 17];
            let mut left = MOST;
            while let Ok(length) = device.read(&mut question) {
                assert!(length >= HEADS.0);
                if let Some(answer) = answer(&question, told.load(Ordering::SeqCst), &mut left) {
                    // Whoever asked may be gone.
                    let _ = device.write(&answer);
                }
            }
        });
        Self { path: path.to_owned(), says }
    }

    fn says(&self, what: i32) {
        self.says.store(what, Ordering::SeqCst);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        unmount(&self.path, UnmountFlags::FORCE | UnmountFlags::DETACH).unwrap();
    }
}

fn answer(question: &[u8], says: i32, left: &mut usize) -> Option<Vec<u8>> {
    let word = |at: usize| u32::from_ne_bytes(question[at..at + 4].try_into().unwrap());
    let opcode = word(4);
    let mut body = Vec::new();
    let mut error = 0;
    match (opcode, says) {
        // Version 7.31; the rest may be zeroes.
        (INIT, _) => {
            body.extend([7_u32, 31].map(u32::to_ne_bytes).concat());
            body.resize(64, 0);
        }
        (_, NOTHING) => return None,
        (GETATTR, WELL) => {
            // Two words and a half of how long that holds, not at all; number, size, blocks; three times.
            body.extend([0_u64, 0, 1, SIZE, 0, 0, 0, 0].map(u64::to_ne_bytes).concat());
            // Nanoseconds; mode, links, owner, device, size of blocks, flags.
            let rest = [0_u32, 0, 0, 0o100_600, 1, 0, 0, 0, 4096, 0];
            body.extend(rest.map(u32::to_ne_bytes).concat());
        }
        (GETATTR, errno) => error = -errno,
        // Behind a handle and the place; nobody reads at the end.
        (READ, _) => match left.checked_sub(word(HEADS.0 + 16) as usize) {
            Some(rest) => {
                body.resize(*left - rest, 0);
                *left = rest;
            }
            None => error = -libc::EIO,
        },
        (OPEN, _) => body.resize(16, 0),
        (STATFS, _) => body.resize(80, 0),
        _ => error = -libc::ENOSYS,
    }
    let length = u32::try_from(HEADS.1 + body.len()).unwrap();
    let head = [&length.to_ne_bytes()[..], &error.to_ne_bytes(), &question[8..16]].concat();
    Some([head, body].concat())
}

fn open(path: &Path) -> File {
    let options =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).to_owned();
    options.open(path).unwrap()
}

#[test]
fn a_device_on_a_share_that_never_answers_stops_nobody_elses_disk() {
    let dir = TempDir::new().unwrap();
    let local = dir.path().join("local");
    File::create(&local).unwrap().set_len(1 << 20).unwrap();
    let share = Share::mount(&dir.path().join("share"));
    let (file, other) = (open(&share.path), open(&local));
    let how = Binding { sector: 512, read_only: true, name: b"test", most: 0, stays: false };
    let device = loopdev::bind(&file, &share.path, how).unwrap();
    let ids = [&file, &other].map(|file| FileId::of(&file.metadata().unwrap()));
    assert_eq!(loopdev::bound_to(&file, ids[0], false).unwrap(), [device.number]);
    assert_eq!(loopdev::bound_to(&other, ids[1], false).unwrap(), Vec::<u32>::new());
    // A share that flaps: what could be opened a moment ago cannot be asked now.
    share.says(libc::EIO);
    assert_eq!(loopdev::bound_to(&file, ids[0], false).unwrap(), [device.number]);
    assert_eq!(loopdev::bound_to(&other, ids[1], false).unwrap(), Vec::<u32>::new());
    assert!(loopdev::may_have(device.number, ids[0]), "nor is it detached");
    share.says(NOTHING);
    let (done, asked) = channel();
    std::thread::spawn(move || done.send(loopdev::bound_to(&other, ids[1], false).unwrap()));
    let found = asked.recv_timeout(LONG);
    // Before the look at what was found: a device of a share like that is bad company for other tests.
    let number = device.number;
    drop((share, device));
    assert_eq!(found.unwrap(), Vec::<u32>::new());
    let gone = mounts::until(Instant::now() + LONG, || Ok(!loopdev::may_have(number, ids[0])));
    assert!(gone.unwrap());
}
