//! Which extended attributes of an image reach the disk.
//!
//! * `user.*`: kept, but for `user.overlay.*`, which overlayfs obeys with `userxattr`.
//! * `security.capability`: kept as revision 2. Revision 3 names a foreign root id (capabilities(7)); it loses it,
//!   and the idmapped mount scopes it to the guest.
//! * everything else: dropped. `trusted.*` holds overlayfs' redirects, `security.*` belongs to the host's LSM,
//!   `system.posix_acl_*` carries ids that nothing would check.

use crate::error::Refusal;

pub(crate) const CAPABILITY: &[u8] = b"security.capability";

/// `XATTR_SIZE_MAX` of the kernel.
const VALUE_MAX: usize = 65_536;

/// The value to store, or nothing where the attribute is dropped.
pub(super) fn keep(name: &[u8], value: &[u8]) -> Result<Option<Vec<u8>>, Refusal> {
    if value.len() > VALUE_MAX {
        return Err(Refusal::Xattr("value above 65536 bytes"));
    }
    if name == CAPABILITY {
        return capability(value).map(Some);
    }
    let kept =
        name.starts_with(b"user.") && name != b"user." && !name.starts_with(b"user.overlay.");
    Ok(kept.then(|| value.to_vec()))
}

/// `struct vfs_cap_data` of linux/capability.h: magic and flags, then two pairs of 32 bits, little endian;
/// revision 3 appends the root id.
fn capability(value: &[u8]) -> Result<Vec<u8>, Refusal> {
    const FLAG_EFFECTIVE: u8 = 1;
    let (revision, length) = match (value, value.len()) {
        ([_, _, _, 2, ..], 20) => (2, 20),
        ([_, _, _, 3, ..], 24) => (2, 20),
        _ => return Err(Refusal::Xattr("security.capability of no known revision")),
    };
    if value[0] & !FLAG_EFFECTIVE != 0 || value[1] != 0 || value[2] != 0 {
        return Err(Refusal::Xattr("security.capability with unknown flags"));
    }
    let mut kept = value[..length].to_vec();
    kept[3] = revision;
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_user_attributes_and_capabilities_pass() {
        for (name, kept) in [
            (&b"user.mime"[..], true),
            (b"user.overlay.opaque", false),
            (b"user.", false),
            (b"trusted.overlay.redirect", false),
            (b"trusted.x", false),
            (b"security.selinux", false),
            (b"security.ima", false),
            (b"system.posix_acl_access", false),
            (b"btrfs.compression", false),
        ] {
            assert_eq!(keep(name, b"v").unwrap().is_some(), kept, "{}", name.escape_ascii());
        }
    }

    #[test]
    fn capability_loses_a_foreign_root_id() {
        let mut v3 = vec![1, 0, 0, 3, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let mut v2 = v3.clone();
        v2[3] = 2;
        v3.extend(100_000u32.to_le_bytes());
        assert_eq!(keep(CAPABILITY, &v3).unwrap().as_deref(), Some(&v2[..]));
        assert_eq!(keep(CAPABILITY, &v2).unwrap().as_deref(), Some(&v2[..]));
        for bad in [&v3[..20], &v2[..12], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0], b""] {
            assert!(matches!(keep(CAPABILITY, bad), Err(Refusal::Xattr(_))));
        }
    }
}
