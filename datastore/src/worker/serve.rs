//! The confined side.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;

use super::answer::{Answer, DiskEnd};
use super::broker::{ERRNO, Mark};
use super::request::{Job, Request};
use crate::cancel::Cancel;
use crate::content;
use crate::diskimage::{DiskFacts, DiskReading, OpenDisk};
use crate::error::Doing;
use crate::limits::Limits;
use crate::unpack::Marks;

/// What the confined process holds.
#[derive(Debug)]
pub struct Hands {
    /// The stream that is to be read; the request has been taken from it.
    pub input: File,
    /// Its root directory, if it has one to fill.
    pub root: Option<File>,
    /// Where bytes go to, if the job gives any.
    pub output: Option<File>,
    /// What came beside the request.
    pub files: Vec<File>,
    /// Where to ask for marks.
    pub marks: Option<OwnedFd>,
}

/// Does the job.
///
/// The caller is confined, and its working directory belongs to this function.
#[must_use]
pub fn serve(request: &Request, hands: Hands) -> Answer {
    let Hands { input, root, output, files, marks } = hands;
    match request.job() {
        Job::Layer { ending } => match (root, marks) {
            (Some(root), Some(socket)) => {
                let marks = &mut Asking { socket };
                Answer::content(content::read(
                    &input,
                    &request.task(),
                    (&root, ending.into()),
                    marks,
                ))
            }
            _ => Answer::without("a directory and a broker"),
        },
        Job::Expand => match output {
            Some(output) => {
                Answer::expanded(content::expand(&input, request.compression(), &output))
            }
            None => Answer::without("a pipe for the bytes"),
        },
        Job::Disk(reading) => match output {
            Some(output) => Answer::disk(disk(files, reading, request.limits(), &output)),
            None => Answer::without("a pipe for the bytes"),
        },
        Job::Tool { .. } => Answer::without("a job of this process's own"),
    }
}

/// Bytes that are gathered for a write: of long holes there are few in a block.
const GATHER: usize = 64 * 1024;

/// Reads a disk; says how many bytes it wrote.
///
/// Whoever asked learns from the answer alone what system it is; he takes none for another host, so of those there is
/// no tar.
fn disk(
    files: Vec<File>,
    reading: DiskReading,
    limits: &Limits,
    to: &File,
) -> Result<(u64, DiskFacts), DiskEnd> {
    // Who has no use for it any more kills this process.
    let never = Cancel::new();
    let mut disk = OpenDisk::new(files, reading, &never).map_err(DiskEnd::Refused)?;
    let system = disk.system().map_err(DiskEnd::Refused)?;
    let mut count = 0;
    if system.fits() {
        let mut packed = disk.packed(limits).doing("pack").map_err(DiskEnd::Failed)?;
        let mut to = BufWriter::with_capacity(GATHER, to);
        let copied = io::copy(&mut packed, &mut to).and_then(|n| to.flush().map(|()| n));
        if let Some(fault) = disk.fault() {
            return Err(DiskEnd::Refused(fault));
        }
        count = copied.doing("write").map_err(DiskEnd::Failed)?;
    }
    Ok((count, disk.facts(system)))
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
