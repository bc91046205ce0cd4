//! The disk that tells a guest what it is: an ISO 9660 image with the label that every guest's tools look for.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_opennebula::tm::place::{DiskPlace, On};
use ocivisor_opennebula::tm::{ContextFile, TmCall};
use rustix::fs::{FlockOperation, OFlags, flock};

use super::{Front, put};
use crate::files::failed;
use crate::tool::Tool;

/// What directories are called in which one is made.
const PREFIX: &str = "ocivisor-context-";
/// How old a directory is that nobody works in any more, and that nobody has only just made and not locked yet.
const LEFT: Duration = Duration::from_secs(3600);
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
    // Passwords are among what it holds: the directory is ours alone, and goes with the call. What one that was killed has
    // left goes with a later one.
    let above = std::env::temp_dir();
    sweep(&above, SystemTime::now() - LEFT);
    let work = tempfile::Builder::new().prefix(PREFIX).tempdir_in(&above);
    let work = work.map_err(|e| failed("make directory in", &above, e))?;
    let locked = lock(work.path()).map_err(|e| failed("lock", work.path(), e))?;
    let (content, image) = (work.path().join("content"), work.path().join("context.iso"));
    std::fs::create_dir(&content).map_err(|e| failed("make directory", &content, e))?;
    let mut left = MOST;
    for file in files {
        left -= copy(file, &content, left)?;
    }
    iso(&content, &image)?;
    let made = File::open(&image).map_err(|e| failed("open", &image, e))?;
    let mut host = front.ready(call, disk)?;
    put(&mut host, &disk.what, &made, &image, None)?;
    drop(locked);
    Ok(())
}

/// Holds a directory as one that is worked in, as long as the result lives: large files take a while, and what comes below it does
/// not change its own time.
fn lock(dir: &Path) -> std::io::Result<File> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW;
    let dir = File::options().read(true).custom_flags(flags.bits().cast_signed()).open(dir)?;
    flock(&dir, FlockOperation::NonBlockingLockExclusive)?;
    Ok(dir)
}

/// Removes what calls have left that began before then.
fn sweep(above: &Path, before: SystemTime) {
    let us = rustix::process::geteuid().as_raw();
    for entry in std::fs::read_dir(above).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        // Of the entry itself, should it be a link.
        let old = entry.metadata().is_ok_and(|meta| {
            let changed = meta.modified().is_ok_and(|time| time < before);
            meta.is_dir() && meta.uid() == us && changed
        });
        // Its lock goes with its call.
        if ours && old && lock(&entry.path()).is_ok() {
            // Whoever sweeps at the same time may have been faster.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// oned has said that the file may be read; that it is a file is seen here.
fn copy(file: &ContextFile, into: &Path, most: u64) -> Result<u64> {
    let options = || {
        let mut options = File::options();
        let flags = OFlags::NONBLOCK | OFlags::NOFOLLOW;
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn secrets_of_calls_that_were_killed_do_not_stay() {
        let top = tempfile::tempdir().unwrap();
        let at = |name: &str| top.path().join(name);
        for name in ["ocivisor-context-old", "ocivisor-context-new", "other"] {
            fs::create_dir_all(at(name).join("content")).unwrap();
        }
        fs::create_dir(at("elsewhere")).unwrap();
        std::os::unix::fs::symlink("elsewhere", at("ocivisor-context-link")).unwrap();
        std::os::unix::fs::chown(at("ocivisor-context-new"), Some(65_534), None).unwrap();
        let left = || {
            let entries = fs::read_dir(top.path()).unwrap();
            let mut names: Vec<_> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        let all = left();
        sweep(top.path(), SystemTime::now() - LEFT);
        assert_eq!(left(), all);
        // Whoever is at work has it locked, however long it takes.
        let at_work = lock(&at("ocivisor-context-old")).unwrap();
        sweep(top.path(), SystemTime::now() + LEFT);
        assert_eq!(left(), all);
        drop(at_work);
        sweep(top.path(), SystemTime::now() + LEFT);
        let rest = ["elsewhere", "ocivisor-context-link", "ocivisor-context-new", "other"];
        assert_eq!(left(), rest);
    }
}
