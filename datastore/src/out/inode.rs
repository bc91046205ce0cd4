//! One file of a tree that somebody else may be changing: opened without following, its attributes sorted into
//! overlayfs's own, those an image may have, and the rest.
//!
//! overlayfs keeps its notes in `trusted.overlay.*` (Documentation/filesystems/overlayfs.rst). Two of them say that
//! a file's content or children lie elsewhere, in a lower layer: `redirect` and `metacopy`. Our mounts never make
//! them; a tree that has one was made by another mount and is refused, since the upper alone does not tell
//! what the guest saw.
//!
//! `security.capability` (capabilities(7)): read through an idmapped mount, revision 2 becomes revision 3 with the
//! host's id of the guest's root. That id means "root" in an image; any other one is a user namespace that exists
//! only inside the guest, and no image can name it.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::ids::IdMap;
use crate::error::{Doing, Fault, Refusal};

const CAPABILITY: &[u8] = b"security.capability";
const OVERLAY: &[u8] = b"trusted.overlay.";
/// overlayfs's names where it is mounted with `userxattr`; an unpacker must not let an image set them.
const USER_OVERLAY: &[u8] = b"user.overlay.";

/// `XATTR_LIST_MAX` and `XATTR_SIZE_MAX` of the kernel.
const XATTR_MAX: usize = 65_536;

/// What `trusted.overlay.opaque` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Opaque {
    #[default]
    No,
    /// `y`: nothing of lower layers shows.
    Yes,
    /// `x`, Linux 6.8: files in it may be whiteouts by xattr.
    Marked,
}

/// The extended attributes of an inode.
#[derive(Debug, Default)]
pub(super) struct Attributes {
    /// For an image, sorted by name.
    pub kept: Vec<(Vec<u8>, Vec<u8>)>,
    pub opaque: Opaque,
    /// `trusted.overlay.whiteout`; obeyed in a directory that is [`Opaque::Marked`].
    pub whiteout: bool,
    /// Left out.
    pub dropped: u64,
    /// Capabilities of another user namespace, left out.
    pub capabilities_dropped: u64,
}

/// What has the name; it had one a moment ago.
pub(super) fn stat(parent: &OwnedFd, name: &[u8]) -> Result<Stat, Fault> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT | Errno::NOTDIR) => Err(Refusal::Changed.into()),
        other => other.doing("inspect"),
    }
}

/// The target of the symbolic link of that name.
pub(super) fn link_target(parent: &OwnedFd, name: &[u8]) -> Result<Vec<u8>, Fault> {
    match rustix::fs::readlinkat(parent, name, Vec::new()) {
        Ok(target) => Ok(target.into_bytes()),
        Err(Errno::NOENT | Errno::INVAL) => Err(Refusal::Changed.into()),
        Err(e) => Err(e).doing("read symbolic link"),
    }
}

/// Opens a path for reading below a directory: no link, no other mount, nothing that waits or reacts.
///
/// The kinds of file that are wanted are opened only; `expected` is what lay there when it was looked at.
pub(super) fn open(at: &OwnedFd, path: &[u8], expected: &Stat) -> Result<(OwnedFd, Stat), Fault> {
    let is_dir = kind(expected) == FileType::Directory;
    let kind_flag = if is_dir { OFlags::DIRECTORY } else { OFlags::NONBLOCK };
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | kind_flag;
    let how = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    let path = if path.is_empty() { b"." } else { path };
    // Reading a VM's disk is no use of it by the VM. Not allowed where the owner's id has no mapping.
    let mut quiet = OFlags::NOATIME;
    for _ in 0..64 {
        match rustix::fs::openat2(at, path, flags | quiet, Mode::empty(), how) {
            // EAGAIN: a rename somewhere on the host met the walk; openat2(2) says to retry.
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(Errno::PERM) if !quiet.is_empty() => quiet = OFlags::empty(),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => {
                return Err(Refusal::Changed.into());
            }
            Err(e) => return Err(e).doing("open"),
            Ok(fd) => {
                let found = rustix::fs::fstat(&fd).doing("inspect")?;
                if identity(&found) != identity(expected) || kind(&found) != kind(expected) {
                    return Err(Refusal::Changed.into());
                }
                return Ok((fd, found));
            }
        }
    }
    Err(Errno::AGAIN).doing("open")
}

pub(super) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

pub(super) fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

/// Whether a file was written to between two looks at it.
pub(super) fn same_content(file: &File, before: &Stat) -> Result<bool, Fault> {
    let now = rustix::fs::fstat(file).doing("inspect")?;
    let key = |s: &Stat| (s.st_size, s.st_mtime, s.st_mtime_nsec, s.st_ctime, s.st_ctime_nsec);
    Ok(key(&now) == key(before))
}

/// Modification time, seconds and nanoseconds.
pub(super) fn mtime(stat: &Stat) -> (i64, u32) {
    (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or_default())
}

/// Reads and sorts the extended attributes of a file or directory.
pub(super) fn attributes(fd: impl AsFd, ids: IdMap) -> Result<Attributes, Fault> {
    let fd = fd.as_fd();
    let mut found = Attributes::default();
    let mut names = [0; 1024];
    let list = match rustix::fs::flistxattr(fd, &mut names) {
        Ok(n) => names[..n].to_vec(),
        Err(Errno::OPNOTSUPP) => return Ok(found),
        Err(Errno::RANGE) => {
            let mut names = vec![0; XATTR_MAX];
            let n = rustix::fs::flistxattr(fd, names.as_mut_slice())
                .doing("list extended attributes of")?;
            names.truncate(n);
            names
        }
        Err(e) => return Err(e).doing("list extended attributes of"),
    };
    for name in list.split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let value = || {
            let mut value = vec![0; XATTR_MAX];
            match rustix::fs::fgetxattr(fd, name, value.as_mut_slice()) {
                Ok(n) => {
                    value.truncate(n);
                    Ok(value)
                }
                Err(Errno::NODATA) => Err(Fault::from(Refusal::Changed)),
                Err(e) => Err(e).doing("read extended attribute of"),
            }
        };
        if let Some(own) = name.strip_prefix(OVERLAY) {
            match own {
                b"opaque" => found.opaque = opaque(&value()?),
                b"whiteout" => found.whiteout = true,
                b"redirect" => {
                    return Err(Refusal::Upper("a renamed directory (redirect_dir)").into());
                }
                b"metacopy" => {
                    return Err(Refusal::Upper(
                        "a file whose content is in a lower layer (metacopy)",
                    )
                    .into());
                }
                // origin, impure, nlink, uuid, protattr, upper: of use to this mount alone.
                _ => {}
            }
        } else if name == CAPABILITY {
            match capability(&value()?, ids) {
                Some(value) => found.kept.push((name.to_vec(), value)),
                None => found.capabilities_dropped += 1,
            }
        } else if name.starts_with(b"user.")
            && !name.starts_with(USER_OVERLAY)
            && !name.contains(&b'=')
        {
            // A name with '=' would be read as a shorter one: PAX ends a key there.
            found.kept.push((name.to_vec(), value()?));
        } else {
            found.dropped += 1;
        }
    }
    found.kept.sort();
    Ok(found)
}

fn opaque(value: &[u8]) -> Opaque {
    match value {
        b"y" => Opaque::Yes,
        b"x" => Opaque::Marked,
        _ => Opaque::No,
    }
}

/// `struct vfs_ns_cap_data` of linux/capability.h, little endian: magic and flags, two pairs of 32 bits, and in
/// revision 3 the id of the root that the capabilities are for. Revision 2 is the image's form.
fn capability(value: &[u8], ids: IdMap) -> Option<Vec<u8>> {
    match (value.len(), value.get(3)?) {
        (20, 2) => Some(value.to_vec()),
        (24, 3) => {
            let root = u32::from_le_bytes(value[20..].try_into().ok()?);
            let mut plain = value[..20].to_vec();
            plain[3] = 2;
            ids.is_root(root).then_some(plain)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_of_the_guests_root_become_an_images() {
        let v2 = [&[1, 0, 0, 2, 0, 4, 0, 0][..], &[0; 12]].concat();
        let v3 = |root: u32| {
            let mut v3 = [&v2[..], &root.to_le_bytes()].concat();
            v3[3] = 3;
            v3
        };
        let ids = IdMap::shifted(1_000_000);
        assert_eq!(capability(&v2, ids), Some(v2.clone()));
        assert_eq!(capability(&v3(1_000_000), ids), Some(v2.clone()));
        assert_eq!(capability(&v3(0), IdMap::IDENTITY), Some(v2.clone()));
        for foreign in [v3(1_000_001), v3(0), v2[..12].to_vec(), vec![]] {
            assert_eq!(capability(&foreign, ids), None, "{foreign:?}");
        }
    }
}
