//! Space of datastores.
//!
//! A system datastore that is not shared has a file `.monitor` here, which the transfer driver made, and is told by
//! itself; others are told by the front-end.

use std::path::Path;

use ocivisor_opennebula::monitor::Template;
use rustix::fs::statvfs;

/// Most datastores that are looked at.
const MOST: usize = 1000;
const MIB: u128 = 1 << 20;

/// Adds the location's space and that of each local datastore in it.
pub(super) fn add(text: &mut Template, location: &Path) {
    // Made by the first disk that comes here.
    if let Some(space) = Space::of(location) {
        text.bare("DS_LOCATION_USED_MB", space.used)
            .bare("DS_LOCATION_TOTAL_MB", space.total)
            .bare("DS_LOCATION_FREE_MB", space.free);
    }
    for (id, space) in local(location) {
        let pairs: [(&str, &dyn std::fmt::Display); 4] = [
            ("ID", &id),
            ("USED_MB", &space.used),
            ("TOTAL_MB", &space.total),
            ("FREE_MB", &space.free),
        ];
        text.vector("DS", &pairs);
    }
}

/// In MiB.
struct Space {
    used: u128,
    total: u128,
    free: u128,
}

impl Space {
    fn of(path: &Path) -> Option<Self> {
        let is = statvfs(path).ok()?;
        let block = u128::from(is.f_frsize);
        Some(Self {
            used: u128::from(is.f_blocks.saturating_sub(is.f_bfree)) * block / MIB,
            total: u128::from(is.f_blocks) * block / MIB,
            free: u128::from(is.f_bavail) * block / MIB,
        })
    }
}

fn local(location: &Path) -> Vec<(u32, Space)> {
    let entries = std::fs::read_dir(location).into_iter().flatten().take(MOST);
    let number = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.ok()?.file_name().to_str()?.parse::<u32>().ok()
    };
    let mut ids: Vec<u32> = entries.filter_map(number).collect();
    ids.sort_unstable();
    let marked = |id: u32| {
        let dir = location.join(id.to_string());
        let space = Space::of(&dir).filter(|_| dir.join(".monitor").is_file())?;
        Some((id, space))
    };
    ids.into_iter().filter_map(marked).collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "tests fill directories")]

    use super::*;

    #[test]
    fn local_datastores_are_those_with_a_marker() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["101", "9", "100", "x"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        for name in ["101", "9", "x"] {
            std::fs::write(dir.path().join(name).join(".monitor"), "ocivisor\n").unwrap();
        }
        let mut text = Template::default();
        add(&mut text, dir.path());
        let keys: Vec<&str> = text.text().lines().map(|l| l.split(",").next().unwrap()).collect();
        assert_eq!(keys[3..], ["DS=[ID=\"9\"", "DS=[ID=\"101\""], "{keys:?}");
        let mut none = Template::default();
        add(&mut none, &dir.path().join("none"));
        assert_eq!(none.text(), "");
    }
}
