//! One order about a VM at a time.
//!
//! oned gives a call up (a restart, `DRIVER_CANCEL`, `recover --retry`) and begins it again, and nobody tells the process
//! on the host that is at work on the first one. Both would write under the same names.

use std::fs::File;
use std::time::{Duration, Instant};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_opennebula::tm::place::VmPlace;

use crate::files::Dir;
use crate::{files, ofd};

/// In the datastore's directory; empty, and locked at the VM's number.
const NAME: &str = ".ocivisor.lock";
/// How long the other one is waited for. One whose caller is gone ends by itself when it next reads or writes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Holds the VM's lock as long as it lives; none where there is no datastore, and so no VM.
pub(super) fn take(place: &VmPlace) -> Result<Option<File>> {
    let datastore = match Dir::open(&place.datastore.path()) {
        Err(e) if e.kind == ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let file = datastore.lock_file(NAME)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let taken = ofd::try_lock(&file, place.vm);
        if taken.map_err(|e| files::failed("lock", &place.path(), e))? {
            return Ok(Some(file));
        }
        if Instant::now() >= deadline {
            let what = format!("another transfer works on {}", place.path().display());
            return Err(Error::new(ErrorKind::Conflict, what).hint("try again when it has ended"));
        }
        // A lock of a file tells nobody when it is free, but to who waits for ever.
        std::thread::park_timeout(Duration::from_millis(50));
    }
}
