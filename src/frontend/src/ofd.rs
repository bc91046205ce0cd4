//! One lock per number, in one file: byte n is number n's.
//!
//! Open file description locks (fcntl(2)): they end with the descriptor and so with the process, work over NFS, and two
//! descriptors of one process exclude each other, which those of POSIX do not.

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// Waits for the lock of a number; the file is open for writing.
pub(crate) fn lock(file: &File, number: u32) -> io::Result<()> {
    let lock = of(number)?;
    loop {
        match fcntl(file, FcntlArg::F_OFD_SETLKW(&lock)) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Whether the lock of a number was free, and is ours now.
pub(crate) fn try_lock(file: &File, number: u32) -> io::Result<bool> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&of(number)?)) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

fn of(number: u32) -> io::Result<libc::flock> {
    Ok(libc::flock {
        l_type: constant(libc::F_WRLCK)?,
        l_whence: constant(libc::SEEK_SET)?,
        l_start: number.into(),
        l_len: 1,
        l_pid: 0,
    })
}

fn constant(value: libc::c_int) -> io::Result<libc::c_short> {
    value.try_into().map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_one_holders_and_others_are_free() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().write(true).open(file.path()).unwrap();
        let (one, other) = (open(), open());
        lock(&one, 7).unwrap();
        assert!(!try_lock(&other, 7).unwrap());
        assert!(try_lock(&other, 8).unwrap());
        drop(one);
        assert!(try_lock(&other, 7).unwrap());
    }
}
