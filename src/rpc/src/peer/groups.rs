//! Supplementary groups of a peer: the one place of this crate that is unsafe.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;

/// Linux allows 65536 groups per process (`NGROUPS_MAX`).
const MAX_GROUPS: usize = 65_536;

/// Supplementary groups of the process that connected, as the kernel kept them at connect(2).
pub fn of(socket: &impl AsRawFd) -> io::Result<Vec<u32>> {
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let size = size_of::<libc::gid_t>();
        let mut len = libc::socklen_t::try_from(groups.len() * size)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        // SAFETY: the pointer is to `len` writable bytes of `groups`, which lives across the call;
        // the kernel writes at most `len` bytes and only whole gids.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        let count = usize::try_from(len).unwrap_or(0) / size;
        if result == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        // ERANGE: too small, `len` is what it needs.
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() || count > MAX_GROUPS
        {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}
