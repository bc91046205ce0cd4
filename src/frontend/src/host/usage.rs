//! What VMs take of a host's system datastore.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ocivisor_core::error::Result;
use ocivisor_opennebula::tm::place::DatastorePlace;
use rustix::fs::Stat;
use std::fmt::Write as _;

use crate::files::Dir;

/// The lines that OpenNebula's agent expects of `monitor_ds`: for each VM that has a directory the sizes of its disks.
///
/// # Errors
/// The datastore cannot be read. A VM that goes meanwhile is left out.
pub fn lines(place: &DatastorePlace) -> Result<String> {
    let datastore = Dir::open(&place.path())?;
    let mut all = String::new();
    for name in datastore.names()? {
        let Ok(vm) = name.parse::<u32>() else { continue };
        let Some(dir) = datastore.sub(&name).ok().flatten() else { continue };
        let mut facts = String::new();
        for disk in dir.names()? {
            let Some(number) = disk.strip_prefix("disk.").and_then(|n| n.parse::<u32>().ok())
            else {
                continue;
            };
            let Some(stat) = dir.stat(&disk)? else { continue };
            let _ = writeln!(facts, "DISK_SIZE=[ID={number},SIZE={}]", megabytes(&stat));
        }
        if !facts.is_empty() {
            let _ = writeln!(all, "VM=[ID={vm},MONITOR=\"{}\"]", STANDARD.encode(facts));
        }
    }
    Ok(all)
}

/// What it takes, rounded up.
fn megabytes(stat: &Stat) -> u64 {
    (u64::try_from(stat.st_blocks).unwrap_or(0) * 512).div_ceil(1 << 20)
}
