//! What a machine must not share with others: its machine-id here, its SSH host keys in [`crate::hostkeys`].
//!
//! An image carries those of the machine on which it was made, and so does a copied disk. The first time that a VM is
//! told, they are replaced; what the VM made itself afterwards is its own. machine-id(5): an empty file, none, or
//! `uninitialized` is an image's way to say that the first boot shall choose, and systemd does; so we leave them.

use ocivisor_core::error::Result;
use uuid::Uuid;

use crate::root::{Node, Root};

/// Places of the machine-id; D-Bus had its own before systemd, and systemd takes it over if it has none.
const FILES: [&str; 2] = ["/etc/machine-id", "/var/lib/dbus/machine-id"];

/// Gives the machine a machine-id of its own, if it has somebody else's.
///
/// # Errors
/// `Image`: it cannot be written.
pub fn renew(root: &Root) -> Result<()> {
    let mut foreign = Vec::new();
    for path in FILES {
        if let Node::File(access, Some(bytes)) = root.read(path, 64)?
            && is_id(&bytes)
        {
            foreign.push((path, access));
        }
    }
    if foreign.is_empty() {
        return Ok(());
    }
    // machine-id(5) suggests a random UUID.
    let id = format!("{}\n", Uuid::new_v4().simple());
    for (path, access) in foreign {
        root.write_durably(path, id.clone().into(), access)?;
    }
    Ok(())
}

fn is_id(bytes: &[u8]) -> bool {
    let text = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    text.len() == 32 && text.iter().all(u8::is_ascii_hexdigit)
}
