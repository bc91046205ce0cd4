//! What disks of VMs take of the host's disk.
//!
//! Files `disk.<n>` of a VM's directory `<location>/<datastore>/<vm>`, and `disk.<n>.snap/<snapshot>` beside them: the bytes
//! that are allocated, as disks are sparse. A disk may be a link into another datastore. One that is a directory has no size
//! that could be had quickly, and is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use ocivisor_opennebula::monitor::Template;

use crate::looks::{Looks, PATIENCE};

/// Most entries of a directory that are looked at.
const MOST: usize = 100_000;
/// Most disks of a VM, snapshots included.
const MOST_DISKS: usize = 1000;
/// Bytes of a block of stat(2), whatever the filesystem's are.
const BLOCK: u64 = 512;
const MIB: u64 = 1 << 20;

/// For each of these VMs that has disks here: their sizes. What lies on a dead share is left out.
pub async fn sizes(
    looks: &Looks,
    location: &Path,
    vms: Arc<BTreeSet<u32>>,
) -> BTreeMap<u32, Template> {
    let stores = looks.one(location, PATIENCE, numbers).await.unwrap_or_default();
    let store = |number: &u32| location.join(number.to_string());
    let look = move |store: &Path| of_store(store, &vms);
    let mut found = looks.each(stores.iter().map(store), PATIENCE, look).await;
    let mut all = BTreeMap::new();
    for (vm, sizes) in stores.iter().filter_map(|number| found.remove(&store(number))).flatten() {
        // A directory of another datastore is what a migration has yet to remove.
        all.entry(vm).or_insert_with(Template::default).append(&sizes);
    }
    all
}

fn of_store(store: &Path, vms: &BTreeSet<u32>) -> Vec<(u32, Template)> {
    let there = numbers(store).into_iter().filter(|vm| vms.contains(vm));
    let found = there.map(|vm| (vm, of_vm(&store.join(vm.to_string()))));
    found.filter(|(_, sizes)| !sizes.text().is_empty()).collect()
}

fn of_vm(dir: &Path) -> Template {
    let (mut text, mut snapshots) = (Template::default(), Vec::new());
    let mut disks: Vec<(u32, bool)> = names(dir).filter_map(|name| disk(&name)).collect();
    disks.sort_unstable();
    for (disk, is_snapshots) in disks.into_iter().take(MOST_DISKS) {
        if is_snapshots {
            snapshots.push(disk);
        } else if let Some(size) = allocated(&dir.join(format!("disk.{disk}"))) {
            text.vector("DISK_SIZE", &[("ID", &disk), ("SIZE", &size)]);
        }
    }
    for disk in snapshots {
        let dir = dir.join(format!("disk.{disk}.snap"));
        for id in numbers(&dir).into_iter().take(MOST_DISKS) {
            if let Some(size) = allocated(&dir.join(id.to_string())) {
                text.vector("SNAPSHOT_SIZE", &[("ID", &id), ("DISK_ID", &disk), ("SIZE", &size)]);
            }
        }
    }
    text
}

/// `disk.7` and `disk.7.snap`; nothing else that begins so.
fn disk(name: &str) -> Option<(u32, bool)> {
    let rest = name.strip_prefix("disk.")?;
    let (number, snapshots) = rest.strip_suffix(".snap").map_or((rest, false), |n| (n, true));
    Some((number.parse().ok()?, snapshots))
}

/// MiB, a begun one is one.
fn allocated(path: &Path) -> Option<u64> {
    let is = std::fs::metadata(path).ok()?;
    is.is_file().then(|| is.blocks().saturating_mul(BLOCK).div_ceil(MIB))
}

pub(crate) fn numbers(dir: &Path) -> BTreeSet<u32> {
    names(dir).filter_map(|name| name.parse().ok()).collect()
}

fn names(dir: &Path) -> impl Iterator<Item = String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().take(MOST);
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "tests fill directories")]

    use super::*;

    #[tokio::test]
    async fn disks_count_what_is_allocated() {
        let dir = tempfile::tempdir().unwrap();
        let vm = dir.path().join("101/7");
        std::fs::create_dir_all(vm.join("disk.0.snap")).unwrap();
        std::fs::create_dir_all(dir.path().join("101/8")).unwrap();
        std::fs::create_dir_all(vm.join("disk.4")).unwrap();
        std::fs::write(vm.join("disk.0"), vec![1; (2 << 20) + 1]).unwrap();
        let sparse = std::fs::File::create(vm.join("disk.1")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        std::fs::write(vm.join("disk.0.snap/2"), vec![1; 1 << 20]).unwrap();
        std::os::unix::fs::symlink("disk.0", vm.join("disk.10")).unwrap();
        std::fs::write(vm.join("disk.0.json"), "x").unwrap();
        std::fs::write(vm.join("deployment.0"), "x").unwrap();
        let looks = Looks::default();
        let of = |vms: &[u32]| Arc::new(vms.iter().copied().collect());
        let found = sizes(&looks, dir.path(), of(&[7, 8, 9])).await;
        assert_eq!(found.len(), 1);
        assert_eq!(
            found[&7].text(),
            "DISK_SIZE=[ID=\"0\",SIZE=\"3\"]\nDISK_SIZE=[ID=\"1\",SIZE=\"0\"]\n\
             DISK_SIZE=[ID=\"10\",SIZE=\"3\"]\nSNAPSHOT_SIZE=[ID=\"2\",DISK_ID=\"0\",SIZE=\"1\"]\n"
        );
        assert!(sizes(&looks, dir.path(), of(&[9])).await.is_empty());
        assert!(sizes(&looks, Path::new("/nonexistent"), of(&[7])).await.is_empty());
    }
}
