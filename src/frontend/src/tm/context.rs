//! The disk that tells a guest what it is: an ISO 9660 image with the label that every guest's tools look for.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_opennebula::tm::place::{DiskPlace, On};
use ocivisor_opennebula::tm::{ContextFile, TmCall};

use super::{Front, put};
use crate::files::failed;
use crate::tool::Tool;

/// Most bytes of all files on it.
const MOST: u64 = 4 << 30;
/// Programs that make one, as they are called.
const MAKERS: [&[&str]; 3] =
    [&["xorriso", "-as", "mkisofs", "-quiet"], &["genisoimage", "-quiet"], &["mkisofs", "-quiet"]];

/// Makes the disk and gives it to the host.
pub(super) fn make(
    call: &TmCall,
    files: &[ContextFile],
    disk: &On<DiskPlace>,
    front: &mut Front<'_>,
) -> Result<()> {
    // Passwords are among what it holds: the directory is ours alone, and goes in any case.
    let work = tempfile::Builder::new().prefix("ocivisor-context-").tempdir();
    let work = work.map_err(|e| failed("make directory in", &std::env::temp_dir(), e))?;
    let (content, image) = (work.path().join("content"), work.path().join("context.iso"));
    std::fs::create_dir(&content).map_err(|e| failed("make directory", &content, e))?;
    let mut left = MOST;
    for file in files {
        left -= copy(file, &content, left)?;
    }
    iso(&content, &image)?;
    let made = File::open(&image).map_err(|e| failed("open", &image, e))?;
    let mut host = front.ready(call, disk)?;
    put(&mut host, &disk.what, &made, &image, None).map(|_| ())
}

/// oned has said that the file may be read; that it is a file is seen here.
fn copy(file: &ContextFile, into: &Path, most: u64) -> Result<u64> {
    let options = || {
        let mut options = File::options();
        let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOFOLLOW;
        options.read(true).custom_flags(flags.bits().cast_signed());
        options
    };
    let from = options().open(&file.path).map_err(|e| failed("open", &file.path, e))?;
    let plain = from.metadata().map_err(|e| failed("look at", &file.path, e))?.is_file();
    let path = into.join(&file.name);
    let mut to = File::create_new(&path).map_err(|e| failed("make", &path, e))?;
    let copied = std::io::copy(&mut from.take(most + 1), &mut to);
    let copied = copied.map_err(|e| failed("copy", &file.path, e))?;
    match (plain, copied <= most) {
        (true, true) => Ok(copied),
        (false, _) => Err(Error::new(
            ErrorKind::Invalid,
            format!("{} is no regular file", file.path.display()),
        )),
        (true, false) => Err(Error::new(
            ErrorKind::Invalid,
            format!("the files for the context disk have more than {} MB", MOST >> 20),
        )),
    }
}

fn iso(content: &Path, image: &Path) -> Result<()> {
    for maker in MAKERS {
        let mut argv: Vec<&OsStr> = maker.iter().map(OsStr::new).collect();
        argv.extend(["-V", "CONTEXT", "-J", "-R", "-o"].map(OsStr::new));
        argv.extend([image.as_os_str(), content.as_os_str()]);
        let tool = Tool {
            argv: &argv,
            stdin: None,
            timeout: Duration::from_secs(300),
            most: 4096,
            fine: 0,
        };
        match tool.run() {
            Ok(_) => return Ok(()),
            Err(e) if e.kind == ErrorKind::Unsupported => {}
            Err(e) => return Err(e.context("context disk")),
        }
    }
    let what = "none of xorriso, genisoimage and mkisofs is installed";
    Err(Error::new(ErrorKind::Unsupported, what).hint("install one of them on the front-end"))
}
