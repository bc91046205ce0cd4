//! Files of control groups.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use ocivisor_core::error::{Error, ErrorKind, Result};

use crate::fs::io_error;

/// Writes a control file. The kernel wants one write(2), and refuses what it cannot do.
///
/// # Errors
/// `Exhausted`: the group uses more than the limit to be set (EBUSY).
pub(super) fn write(path: &Path, value: &str) -> Result<()> {
    let wrote =
        OpenOptions::new().write(true).open(path).and_then(|mut f| f.write_all(value.as_bytes()));
    wrote.map_err(|e| {
        if e.raw_os_error() == Some(libc::EBUSY) {
            let what = format!("set {} to {value}: the guest uses more", path.display());
            return Error::new(ErrorKind::Exhausted, what);
        }
        io_error(&format!("write {} to", value.trim()), path, &e)
    })
}

/// Reads a control file, without the newline at its end.
pub(super) fn read(path: &Path) -> Result<String> {
    let text = fs::read_to_string(path).map_err(|e| io_error("read", path, &e))?;
    Ok(text.trim_end().to_owned())
}

/// Reads a control file that need not be there.
pub(super) fn read_if_there(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim_end().to_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io_error("read", path, &e)),
    }
}
