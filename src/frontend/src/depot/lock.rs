//! One lock per image, in one file ([`ofd`]).

use std::fs::File;
use std::io;

use rustix::fs::{Mode, OFlags};

use crate::ofd;

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
        ofd::lock(&file, image)?;
        Ok(Self { image, _file: file })
    }
}

/// The file; an empty one is made if there is none.
pub(super) fn open(dir: &File) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, NAME, flags, Mode::RUSR | Mode::WUSR)?.into())
}
