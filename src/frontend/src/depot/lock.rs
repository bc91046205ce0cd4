//! One lock per image, in one file: byte n is image n's.
//!
//! Open file description locks (fcntl(2)): they end with the descriptor and so with the process, work over NFS, and two
//! descriptors of one process exclude each other, which those of POSIX do not.

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::{Mode, OFlags};

const NAME: &str = "lock";

/// That nobody else works on an image.
#[derive(Debug)]
pub struct ImageLock {
    image: u32,
    _file: File,
}

impl ImageLock {
    /// Whose.
    #[must_use]
    pub fn image(&self) -> u32 {
        self.image
    }

    pub(super) fn take(dir: &File, image: u32) -> io::Result<Self> {
        let file = open(dir)?;
        let lock = libc::flock {
            l_type: constant(libc::F_WRLCK)?,
            l_whence: constant(libc::SEEK_SET)?,
            l_start: image.into(),
            l_len: 1,
            l_pid: 0,
        };
        loop {
            match fcntl(&file, FcntlArg::F_OFD_SETLKW(&lock)) {
                Ok(_) => return Ok(Self { image, _file: file }),
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

fn constant(value: libc::c_int) -> io::Result<libc::c_short> {
    value.try_into().map_err(io::Error::other)
}

/// The file; an empty one is made if there is none.
pub(super) fn open(dir: &File) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, NAME, flags, Mode::RUSR | Mode::WUSR)?.into())
}
