//! How links of ours are told from others.
//!
//! The host's end of a NIC has the alias `ocivisor:<daemon>:<vm id>:<guest's MAC>`. `<daemon>` is
//! a hash of the run directory, so that daemons side by side on one machine leave each other's
//! links alone. The end on a Linux bridge also has the alternative name `ocivisor-<bridge>-<mac>`:
//! names are unique in the kernel, so two guests with one MAC on one bridge are impossible, without
//! a race and without a search through all links (names beyond 15 bytes need Linux >= 5.5).

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use ocivisor_core::ids::{IfName, MacAddr, VmId};

/// First part of every alias of ours.
const PREFIX: &str = "ocivisor";

/// Whose a link is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mark {
    /// Which daemon made it.
    pub(super) daemon: String,
    /// For which VM.
    pub(super) vm: VmId,
    /// The guest's end's address.
    pub(super) mac: MacAddr,
}

impl Mark {
    /// The alias.
    pub(super) fn alias(&self) -> String {
        format!("{PREFIX}:{}:{}:{}", self.daemon, self.vm, self.mac)
    }

    /// The mark that an alias is; `None` if it is none of any daemon.
    pub(super) fn parse(alias: &str) -> Option<Self> {
        let mut parts = alias.splitn(4, ':');
        if parts.next()? != PREFIX {
            return None;
        }
        let daemon = parts.next()?.to_owned();
        let vm = parts.next()?.parse().ok()?;
        Some(Self { daemon, vm, mac: parts.next()?.parse().ok()? })
    }
}

/// The alternative name that reserves a MAC on a bridge.
pub(super) fn reservation(bridge: &IfName, mac: MacAddr) -> String {
    format!("{PREFIX}-{bridge}-{mac}").replace(':', "")
}

/// Name of the daemon with that run directory: a hash of the path's components.
pub(super) fn daemon(run: &Path) -> String {
    format!("{:08x}", hash(run.components().map(|part| part.as_os_str().as_bytes())))
}

/// FNV-1a, 32 bits, of parts that are told apart.
pub(super) fn hash<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u32 {
    let mut hash = 0x811c_9dc5_u32;
    for byte in parts.into_iter().flat_map(|part| part.iter().chain(b"\0")) {
        hash = (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_round_trip_and_foreign_aliases_are_none() {
        let mark = Mark {
            daemon: daemon(Path::new("/run/ocivisor")),
            vm: "one-42".parse().unwrap(),
            mac: "02:00:c0:a8:64:0a".parse().unwrap(),
        };
        assert_eq!(mark.alias(), "ocivisor:73fbabff:one-42:02:00:c0:a8:64:0a");
        assert_eq!(Mark::parse(&mark.alias()), Some(mark));
        for foreign in ["", "uplink", "ocivisor", "ocivisor:1:one-42", "ocivisor:1:../x:02:00"] {
            assert_eq!(Mark::parse(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn a_daemon_is_its_run_directory_however_it_is_spelled() {
        let name = |path| daemon(Path::new(path));
        assert_eq!(name("/run/ocivisor"), name("/run//ocivisor/"));
        assert_ne!(name("/run/ocivisor"), name("/run/ocivisor2"));
        assert_ne!(name("/run/ab/c"), name("/run/a/bc"));
    }

    #[test]
    fn reservations_differ_by_bridge_and_by_mac() {
        let mac = "02:00:c0:a8:64:0a".parse().unwrap();
        let name = reservation(&"br0".parse().unwrap(), mac);
        assert_eq!(name, "ocivisor-br0-0200c0a8640a");
    }
}
