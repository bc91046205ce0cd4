//! The confined side.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;

use super::broker::{ERRNO, Mark};
use super::protocol::{Answer, Request};
use crate::content;
use crate::unpack::{Direct, Marks};

/// Reads the blob from `blob`, unpacks it into `root` if the request says so, and asks at `broker` for marks.
///
/// The caller is confined: `root` is its root directory, and its working directory belongs to this function.
#[must_use]
pub fn serve(
    request: &Request,
    blob: &File,
    root: Option<&File>,
    broker: Option<OwnedFd>,
) -> Answer {
    let mut asking;
    let mut direct = Direct;
    let marks: &mut dyn Marks = match broker {
        Some(socket) => {
            asking = Asking { socket };
            &mut asking
        }
        None => &mut direct,
    };
    Answer::new(content::read(blob, &request.task(root), marks))
}

/// Sends each mark to the broker and waits until it is set.
struct Asking {
    socket: OwnedFd,
}

impl Asking {
    fn ask(&self, mark: &Mark<'_>) -> rustix::io::Result<()> {
        let packet = mark.encode();
        if retry(|| rustix::io::write(&self.socket, &packet))? != packet.len() {
            return Err(Errno::IO);
        }
        let mut reply = [0; ERRNO];
        if retry(|| rustix::io::read(&self.socket, &mut reply))? != ERRNO {
            return Err(Errno::IO);
        }
        match i32::from_le_bytes(reply) {
            0 => Ok(()),
            errno => Err(Errno::from_raw_os_error(errno)),
        }
    }
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// Where a directory is below the root, without the leading slash: links have led here, and the broker follows none.
fn path_of(dir: &OwnedFd) -> rustix::io::Result<CString> {
    rustix::process::fchdir(dir)?;
    let path = rustix::process::getcwd(Vec::new())?;
    match path.to_bytes() {
        // getcwd(3): what is out of reach does not begin so.
        [b'/', rest @ ..] => CString::new(rest).map_err(|_| Errno::INVAL),
        _ => Err(Errno::XDEV),
    }
}

impl Marks for Asking {
    fn opaque(&mut self, dir: &OwnedFd) -> rustix::io::Result<()> {
        self.ask(&Mark::Opaque { path: path_of(dir)?.to_bytes() })
    }

    fn capability(
        &mut self,
        _: BorrowedFd<'_>,
        parent: &OwnedFd,
        name: &[u8],
        value: &[u8],
    ) -> rustix::io::Result<()> {
        let parent = path_of(parent)?;
        let path = match parent.to_bytes() {
            b"" => name.to_vec(),
            above => [above, b"/", name].concat(),
        };
        self.ask(&Mark::Capability { path: &path, value })
    }
}
