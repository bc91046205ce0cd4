//! The one thing a confined worker may ask for: an xattr of two kinds on a file of its layer.
//!
//! The broker is root of the host and holds the layer's directory on a mount without a mapping. It takes packets of
//! bounded size, follows no link, does not leave the directory, and writes nothing but these two names. The worst
//! that a lying worker gets is a mark on another file of its own layer.

use std::fs::File;
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, XattrFlags};
use rustix::io::Errno;

use crate::unpack::{CAPABILITY, OPAQUE_XATTR, OPAQUE_YES};

/// Bytes of a reply: an errno, or 0.
pub(super) const ERRNO: usize = 4;

/// `vfs_cap_data` of revision 2, capabilities(7).
const VALUE: usize = 20;

const OPAQUE: u8 = b'o';
const CAPABLE: u8 = b'c';

/// Kind, value, path: `PATH_MAX` and the length of a name bound the last.
const PACKET_MAX: usize = 1 + VALUE + 4096 + 256;

/// A request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Mark<'a> {
    Opaque { path: &'a [u8] },
    Capability { path: &'a [u8], value: &'a [u8] },
}

impl<'a> Mark<'a> {
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Opaque { path } => [&[OPAQUE], *path].concat(),
            Self::Capability { path, value } => [&[CAPABLE], *value, path].concat(),
        }
    }

    fn decode(packet: &'a [u8]) -> Option<Self> {
        match packet {
            [OPAQUE, path @ ..] => Some(Self::Opaque { path }),
            [CAPABLE, rest @ ..] => {
                let (value, path) = rest.split_at_checked(VALUE)?;
                // Revision 2 only: what another would mean depends on who asks.
                (value[3] == 2).then_some(Self::Capability { path, value })
            }
            _ => None,
        }
    }
}

/// Sets marks below `layer` until the worker closes its end. A packet that is none ends it, too.
pub fn attend(layer: &File, socket: &OwnedFd) {
    // One more, so that a packet that was cut off is not taken for a whole one.
    let mut packet = [0; PACKET_MAX + 1];
    loop {
        let n = match rustix::io::read(socket, &mut packet) {
            Ok(0) => return,
            Ok(n) if n <= PACKET_MAX => n,
            Err(Errno::INTR) => continue,
            _ => return,
        };
        let Some(mark) = Mark::decode(&packet[..n]) else { return };
        let errno = set(layer, &mark).err().map_or(0, Errno::raw_os_error);
        if rustix::io::write(socket, &errno.to_le_bytes()) != Ok(ERRNO) {
            return;
        }
    }
}

fn set(layer: &File, mark: &Mark<'_>) -> rustix::io::Result<()> {
    match mark {
        Mark::Opaque { path } => {
            let path = if path.is_empty() { b"." } else { *path };
            let dir = open(layer, path, OFlags::RDONLY | OFlags::DIRECTORY)?;
            rustix::fs::fsetxattr(&dir, OPAQUE_XATTR, OPAQUE_YES, XattrFlags::empty())
        }
        Mark::Capability { path, value } => {
            let file = open(layer, path, OFlags::RDONLY | OFlags::NONBLOCK)?;
            let kind = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
            if kind != FileType::RegularFile {
                return Err(Errno::INVAL);
            }
            rustix::fs::fsetxattr(&file, CAPABILITY, value, XattrFlags::empty())
        }
    }
}

fn open(layer: &File, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let how = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    let flags = flags | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    for _ in 0..64 {
        match rustix::fs::openat2(layer, path, flags, Mode::empty(), how) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_survive_the_way() {
        let value = [1, 0, 0, 2, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9];
        for mark in
            [Mark::Opaque { path: b"a/b" }, Mark::Capability { path: b"bin/ping", value: &value }]
        {
            assert_eq!(Mark::decode(&mark.encode()), Some(mark));
        }
    }

    #[test]
    fn what_is_no_mark_ends_the_talk() {
        for packet in [&b""[..], b"x", b"c", b"c123", b"c\x01\0\0\x0340123456789012345678/a"] {
            assert_eq!(Mark::decode(packet), None, "{packet:?}");
        }
    }

    #[test]
    fn the_broker_does_not_leave_the_layer() {
        let top = tempfile::tempdir().unwrap();
        let inside = top.path().join("layer");
        std::fs::create_dir_all(inside.join("d")).unwrap();
        std::fs::create_dir(top.path().join("outside")).unwrap();
        std::os::unix::fs::symlink("../outside", inside.join("link")).unwrap();
        std::os::unix::fs::symlink("d", inside.join("near")).unwrap();
        let layer = File::open(&inside).unwrap();
        let opaque = |path| set(&layer, &Mark::Opaque { path });
        for (path, want) in [
            (&b"../outside"[..], Errno::XDEV),
            (b"/etc", Errno::XDEV),
            (b"link", Errno::NOTDIR),
            (b"near", Errno::NOTDIR),
            (b"link/x", Errno::LOOP),
            (b"d/../../outside", Errno::XDEV),
            (b"absent", Errno::NOENT),
        ] {
            assert_eq!(opaque(path), Err(want), "{}", path.escape_ascii());
        }
        assert_eq!(opaque(b"d"), Ok(()));
        let mut value = [0; 8];
        for (dir, want) in [("layer/d", Ok(1)), ("outside", Err(Errno::NODATA))] {
            assert_eq!(rustix::fs::getxattr(top.path().join(dir), OPAQUE_XATTR, &mut value), want);
        }
    }
}
