//! Extended attributes as far as a layer has any: what the host's security modules add is not looked at.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

pub(super) type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

pub(super) const OPAQUE: &[u8] = b"trusted.overlay.opaque";
pub(super) const CAPABILITY: &[u8] = b"security.capability";

/// `XATTR_LIST_MAX` and `XATTR_SIZE_MAX` of the kernel.
const MAX: usize = 65_536;

/// Of an open file or directory.
pub(super) fn of(file: BorrowedFd<'_>) -> io::Result<Xattrs> {
    read(
        |buf| rustix::fs::flistxattr(file, buf),
        |name, buf| rustix::fs::fgetxattr(file, name, buf),
    )
}

/// Of a name that cannot be opened: a link, a fifo, a whiteout. There is no `listxattrat` before Linux 6.13, and
/// the descriptors of xattr(7) must not be `O_PATH`, so the way leads through the directory's own magic link.
pub(super) fn at(dir: &File, name: &CStr) -> io::Result<Xattrs> {
    let path = [format!("/proc/self/fd/{}/", dir.as_raw_fd()).as_bytes(), name.to_bytes()].concat();
    let path = path.as_slice();
    read(
        |buf| rustix::fs::llistxattr(path, buf),
        |name, buf| rustix::fs::lgetxattr(path, name, buf),
    )
}

fn read(
    list: impl Fn(&mut [u8]) -> rustix::io::Result<usize>,
    get: impl Fn(&[u8], &mut [u8]) -> rustix::io::Result<usize>,
) -> io::Result<Xattrs> {
    let mut names = [0; 1024];
    let mut large = Vec::new();
    let names = match list(&mut names) {
        Ok(n) => &names[..n],
        // A file system without them.
        Err(Errno::OPNOTSUPP) => &[],
        Err(Errno::RANGE) => {
            large.resize(MAX, 0);
            let n = list(&mut large)?;
            &large[..n]
        }
        Err(e) => return Err(e.into()),
    };
    let mut xattrs = Xattrs::new();
    for name in names.split(|b| *b == 0).filter(|n| concerns_us(n)) {
        let mut value = vec![0; MAX];
        let n = get(name, &mut value)?;
        value.truncate(n);
        value.shrink_to_fit();
        xattrs.insert(name.to_vec(), value);
    }
    Ok(xattrs)
}

fn concerns_us(name: &[u8]) -> bool {
    name == CAPABILITY
        || [&b"user."[..], b"trusted.", b"system.posix_acl"].iter().any(|p| name.starts_with(p))
}
