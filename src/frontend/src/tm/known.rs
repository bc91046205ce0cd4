//! What oned knows and does not say: transfer scripts have to ask.

use std::ffi::OsStr;
use std::time::Duration;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_opennebula::tm::TmCall;
use ocivisor_opennebula::tm::disk::{KnownDisk, is_over as is_over_by, known_disk};
use ocivisor_opennebula::tm::place::DiskPlace;
use ocivisor_opennebula::xml;

use super::Front;
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

/// Whether a VM will never run again, nor should now.
///
/// # Errors
/// oned cannot be asked, or does not say.
pub(super) fn is_over(vm: u32, front: &Front<'_>) -> Result<bool> {
    is_over_by(&ask(front.config.onevm.as_os_str(), &vm.to_string())?, vm)
}

/// What `onevm` or `onedatastore` shows of an object.
pub(super) fn ask(program: &OsStr, id: &str) -> Result<Vec<u8>> {
    let argv = [program, OsStr::new("show"), OsStr::new("-x"), OsStr::new(id)];
    let most = xml::MAX_INPUT as u64 + 1;
    Tool { argv: &argv, stdin: None, timeout: TIME, most, fine: 0 }.run()
}
