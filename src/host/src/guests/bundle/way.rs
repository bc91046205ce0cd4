//! Opens the way to a guest's root and namespaces for the ids of the guest, and for nobody else.
//!
//! The first process resolves these paths when it is already root of its own user namespace, to
//! which the host's directories belong to strangers. The VM's directory is therefore given to the
//! guest's group (0710): other guests and users of the host cannot pass, so set-id programs in an
//! image are out of their reach (CVE-2021-41103). The directories above only need the right to pass
//! through, which shows nothing. After pivot_root(2) the guest cannot name any of these paths.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ids::{IdRange, VmId};
use rustix::fs::{AtFlags, CWD, Gid, chownat};

use crate::fs::io_error;
use crate::layout::Layout;

/// See the module; may run again.
///
/// # Errors
/// A directory is missing, or one above the run directory, which is not ours to change, is closed.
pub fn open(layout: &Layout, id: &VmId, ids: IdRange) -> Result<()> {
    for above in layout.run.ancestors().skip(1) {
        if mode(above)? & 0o001 == 0 {
            let what = format!("{} cannot be passed through by guests", above.display());
            return Err(Error::new(ErrorKind::Host, what)
                .hint(format!("chmod o+x {}, or set another run directory", above.display())));
        }
    }
    for shared in [layout.run.as_path(), layout.run_vms().as_path()] {
        let old = mode(shared)?;
        if old & 0o001 == 0 {
            set_mode(shared, old | 0o001)?;
        }
    }
    let run = layout.run_vm(id);
    chownat(CWD, run.dir(), None, Some(Gid::from_raw(ids.base)), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|e| io_error("give to the guest's group", run.dir(), &e.into()))?;
    set_mode(run.dir(), 0o710)?;
    match run.user_ns().parent() {
        Some(namespaces) => set_mode(namespaces, 0o711),
        None => Ok(()),
    }
}

fn mode(path: &Path) -> Result<u32> {
    let found = fs::metadata(path).map_err(|e| io_error("look at", path, &e))?;
    Ok(found.mode() & 0o7777)
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    let set = fs::set_permissions(path, fs::Permissions::from_mode(mode));
    set.map_err(|e| io_error("change the mode of", path, &e))
}
