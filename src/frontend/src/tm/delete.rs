//! Disks and directories go.
//!
//! oned may give a boot up that it asked for (`onevm recover --delete`): it forgets the process on the host, which boots on,
//! and as it never heard of a guest it asks nobody to end one. Then the disks are in use when they are to be removed,
//! and this is the last call there is for that VM. Whether it is so only oned knows, which is asked.

use ocivisor_core::error::{ErrorKind, Result};
use ocivisor_opennebula::tm::place::{On, Target};

use super::{Front, known, text};
use crate::wire::Order;

/// `delete`.
pub(super) fn delete(what: &On<Target>, front: &mut Front<'_>) -> Result<()> {
    let remove = Order::Remove { path: text(&what.what.path()) };
    let busy = match front.reach(&what.machine)?.done(&remove) {
        Err(e) if e.kind == ErrorKind::Conflict => e,
        other => return other,
    };
    let dir = what.what.dir();
    match known::is_over(dir.vm, front) {
        Ok(true) => {}
        Ok(false) => return Err(busy),
        Err(error) => {
            (front.note)(&format!("whether the VM is over is not known: {}", error.message));
            return Err(busy);
        }
    }
    (front.note)("the VM is over but runs: it is ended");
    let mut host = front.reach(&what.machine)?;
    host.done(&Order::End { dir: text(&dir.path()) })?;
    host.done(&remove)
}
