//! The two marks on files that a user namespace may not set, and who sets them.
//!
//! `trusted.*` is for the host's root alone (xattr(7)), and `security.capability` set from inside of a user namespace,
//! or through an idmapped mount, becomes revision 3 (capabilities(7)). An unpacker that is root of the host sets
//! both itself; a confined one asks somebody outside, one mark at a time, while the file is what it is: a list
//! for later would have to follow every replacement and removal that the layer makes after.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::XattrFlags;
use rustix::io::Result;

use super::CAPABILITY;

/// Hides what lower layers have in a directory (Documentation/filesystems/overlayfs.rst).
pub(crate) const OPAQUE_XATTR: &str = "trusted.overlay.opaque";
pub(crate) const OPAQUE_YES: &[u8] = b"y";

/// Sets marks.
pub(crate) trait Marks: Send {
    /// Makes a directory opaque.
    fn opaque(&mut self, dir: &OwnedFd) -> Result<()>;

    /// Gives a file capabilities; `file` is what has that name in `parent`.
    fn capability(
        &mut self,
        file: BorrowedFd<'_>,
        parent: &OwnedFd,
        name: &[u8],
        value: &[u8],
    ) -> Result<()>;
}

/// By root of the host, on a mount without a mapping.
#[derive(Debug)]
pub(crate) struct Direct;

impl Marks for Direct {
    fn opaque(&mut self, dir: &OwnedFd) -> Result<()> {
        rustix::fs::fsetxattr(dir.as_fd(), OPAQUE_XATTR, OPAQUE_YES, XattrFlags::empty())
    }

    fn capability(
        &mut self,
        file: BorrowedFd<'_>,
        _: &OwnedFd,
        _: &[u8],
        value: &[u8],
    ) -> Result<()> {
        rustix::fs::fsetxattr(file, CAPABILITY, value, XattrFlags::empty())
    }
}
