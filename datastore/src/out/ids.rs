//! Ids of a VM's files as they are seen on the host.

use std::fs::File;

use crate::error::Refusal;

/// Ids that a guest has: 0 to 65535.
const LENGTH: u32 = 65_536;

/// Which ids of the host are a guest's 0 to 65535.
///
/// A VM's disk holds unshifted ids and is seen so through its own mount; through an idmapped mount, or on a
/// directory that was shifted with chown, the same files belong to the VM's range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdMap {
    first: u32,
}

impl IdMap {
    /// The host sees the ids that the guest sees.
    pub const IDENTITY: Self = Self { first: 0 };

    /// The host sees the guest's root as `first`, and 65,535 ids more.
    #[must_use]
    pub fn shifted(first: u32) -> Self {
        Self { first }
    }

    /// The guest's id; an error where the guest cannot have the file.
    pub(super) fn inside(self, field: &'static str, id: u32) -> Result<u32, Refusal> {
        let inside = id.checked_sub(self.first).filter(|id| *id < LENGTH);
        inside.ok_or(Refusal::Unmapped { field, id })
    }

    /// Whether file capabilities scoped to this id are the guest's own.
    pub(super) fn is_root(self, id: u32) -> bool {
        id == self.first
    }
}

/// A VM's upper directory, as it is seen through a descriptor.
#[derive(Clone, Copy, Debug)]
pub struct Upper<'a> {
    /// The directory.
    pub dir: &'a File,
    /// Whose its files are, seen so.
    pub ids: IdMap,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_outside_the_range_have_no_inside() {
        let map = IdMap::shifted(1_000_000);
        assert_eq!(map.inside("uid", 1_000_000), Ok(0));
        assert_eq!(map.inside("uid", 1_065_535), Ok(65_535));
        for id in [0, 999_999, 1_065_536, u32::MAX] {
            assert_eq!(map.inside("gid", id), Err(Refusal::Unmapped { field: "gid", id }));
        }
        assert_eq!(IdMap::IDENTITY.inside("uid", 65_535), Ok(65_535));
        assert!(IdMap::IDENTITY.inside("uid", 65_536).is_err());
        assert_eq!(IdMap::shifted(u32::MAX).inside("uid", u32::MAX), Ok(0));
    }
}
