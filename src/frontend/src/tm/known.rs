//! What oned knows and does not say: transfer scripts have to ask.

use std::ffi::OsStr;
use std::time::Duration;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_opennebula::ImageSource;
use ocivisor_opennebula::tm::TmCall;
use ocivisor_opennebula::tm::disk::{self, KnownDisk, known_disk, sizes};
use ocivisor_opennebula::tm::place::{DatastorePlace, DiskPlace};
use ocivisor_opennebula::xml;

use super::Front;
use crate::manifest::image_of;
use crate::packed::OwnDisk;
use crate::tool::Tool;

/// How long oned may take: it answers while it waits for us, but may be busy.
const TIME: Duration = Duration::from_secs(60);

/// A disk of the call's VM.
///
/// # Errors
/// oned cannot be asked, or knows no such disk.
pub(super) fn disk(call: &TmCall, disk: &DiskPlace, front: &Front<'_>) -> Result<KnownDisk> {
    let Some(vm) = call.vm else {
        return Err(Error::new(ErrorKind::Invalid, "no VM was named"));
    };
    let vm = vm.to_string();
    known_disk(&ask(front.config.onevm.as_os_str(), &vm)?, disk.disk)
}

/// Most bytes that a host may send of a VM: what its disks have by what oned knows, with some more for what formats add and for
/// files beside them.
///
/// # Errors
/// As [`disk`].
pub(super) fn most(call: &TmCall, front: &Front<'_>) -> Result<u64> {
    let vm = call.vm.ok_or_else(|| Error::new(ErrorKind::Invalid, "no VM was named"))?;
    let known = sizes(&ask(front.config.onevm.as_os_str(), &vm.to_string())?)?;
    Ok(known.saturating_add(known / 4).saturating_add(1 << 30))
}

/// Whether a disk may lie on an image, by the `SOURCE` that its own image has and by the disk which that has in its
/// datastore. Which one it lies on is else only said by the host it comes from, which could name a stranger's.
///
/// # Errors
/// `Integrity`: it may not.
pub(super) fn lies_on(
    source: Option<&ImageSource>,
    found: &str,
    images: &DatastorePlace,
) -> Result<()> {
    let foreign = || {
        let what =
            format!("the host says that the disk lies on image {found}, which is not its SOURCE's");
        Error::new(ErrorKind::Integrity, what).hint("do not trust that host before you know why")
    };
    let Some(ImageSource::Container { image, manifest }) = source else { return Err(foreign()) };
    if manifest.as_ref().is_some_and(|hex| found.strip_prefix("sha256:") == Some(hex)) {
        return Ok(());
    }
    match OwnDisk::open(&images.path(), *image)? {
        Some(own) if image_of(&own.manifest)? == found => Ok(()),
        _ => Err(foreign()),
    }
}

/// Whether a VM will never run again, nor should now.
///
/// # Errors
/// oned cannot be asked, or does not say.
pub(super) fn is_over(vm: u32, front: &Front<'_>) -> Result<bool> {
    disk::is_over(&ask(front.config.onevm.as_os_str(), &vm.to_string())?, vm)
}

/// Whether the disk that is made larger waits on the front-end, its VM being undeployed.
///
/// # Errors
/// As [`is_over`].
pub(super) fn is_away(vm: u32, front: &Front<'_>) -> Result<bool> {
    disk::is_away(&ask(front.config.onevm.as_os_str(), &vm.to_string())?, vm)
}

/// What `onevm` or `onedatastore` shows of an object.
pub(super) fn ask(program: &OsStr, id: &str) -> Result<Vec<u8>> {
    let argv = [program, OsStr::new("show"), OsStr::new("-x"), OsStr::new(id)];
    let most = xml::MAX_INPUT as u64 + 1;
    Tool { argv: &argv, stdin: None, timeout: TIME, most, fine: 0 }.run()
}
