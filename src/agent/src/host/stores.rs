//! Space of datastores.
//!
//! A system datastore that is not shared has a file `.monitor` here, which the transfer driver made, and is told by
//! itself; others are told by the front-end.

use std::collections::BTreeSet;
use std::path::Path;

use ocivisor_opennebula::monitor::Template;
use rustix::fs::statvfs;

use crate::looks::{Looks, PATIENCE};

/// Most datastores that are looked at.
const MOST: usize = 1000;
const MIB: u128 = 1 << 20;

/// The location's space and that of each local datastore in it. What lies on a dead share is left out.
pub async fn space(looks: &Looks, location: &Path) -> Template {
    let seen = looks.one(location, PATIENCE, |location| (Space::of(location), numbers(location)));
    let (whole, stores) = seen.await.unwrap_or_default();
    let mut text = Template::default();
    // Made by the first disk that comes here.
    if let Some(space) = whole {
        text.bare("DS_LOCATION_USED_MB", space.used)
            .bare("DS_LOCATION_TOTAL_MB", space.total)
            .bare("DS_LOCATION_FREE_MB", space.free);
    }
    let store = |id: &u32| location.join(id.to_string());
    let marked = |dir: &Path| dir.join(".monitor").is_file().then(|| Space::of(dir)).flatten();
    let local = looks.each(stores.iter().map(store), PATIENCE, marked).await;
    for id in stores {
        let Some(Some(space)) = local.get(&store(&id)) else { continue };
        let pairs: [(&str, &dyn std::fmt::Display); 4] = [
            ("ID", &id),
            ("USED_MB", &space.used),
            ("TOTAL_MB", &space.total),
            ("FREE_MB", &space.free),
        ];
        text.vector("DS", &pairs);
    }
    text
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

fn numbers(location: &Path) -> BTreeSet<u32> {
    let entries = std::fs::read_dir(location).into_iter().flatten().take(MOST);
    let number = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.ok()?.file_name().to_str()?.parse::<u32>().ok()
    };
    entries.filter_map(number).collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "tests fill directories")]

    use super::*;

    #[tokio::test]
    async fn local_datastores_are_those_with_a_marker() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["101", "9", "100", "x"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        for name in ["101", "9", "x"] {
            std::fs::write(dir.path().join(name).join(".monitor"), "ocivisor\n").unwrap();
        }
        let looks = Looks::default();
        let text = space(&looks, dir.path()).await;
        let keys: Vec<&str> = text.text().lines().map(|l| l.split(",").next().unwrap()).collect();
        assert_eq!(keys[3..], ["DS=[ID=\"9\"", "DS=[ID=\"101\""], "{keys:?}");
        assert_eq!(space(&looks, &dir.path().join("none")).await.text(), "");
    }
}
