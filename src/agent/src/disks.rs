//! What disks of VMs take of the host's disk.
//!
//! Files `disk.<n>` of a VM's directory `<location>/<datastore>/<vm>`, and `disk.<n>.snap/<snapshot>` beside them: the bytes
//! that are allocated, as disks are sparse. A disk may be a link into another datastore. One that is a directory has no size
//! that could be had quickly, and is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use ocivisor_opennebula::monitor::Template;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, open, openat, statat};

use crate::looks::{Looks, PATIENCE};

/// Most entries of a directory that are looked at.
const MOST: usize = 100_000;
/// Most disks of a VM, snapshots included.
const MOST_DISKS: usize = 1000;
/// Bytes of a block of stat(2), whatever the filesystem's are.
const BLOCK: u64 = 512;
const MIB: u64 = 1 << 20;
/// Bytes of names that are read at once.
const ROOM: usize = 16 << 10;
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

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
    let (Ok(store), mut names) = (open(store, DIRECTORY, Mode::empty()), Names::default()) else {
        return Vec::new();
    };
    let mut there = names.of(&store, |name| name.parse().ok().filter(|vm| vms.contains(vm)));
    there.sort_unstable();
    let found = there.into_iter().map(|vm| (vm, of_vm(&store, vm, &mut names)));
    found.filter(|(_, sizes)| !sizes.text().is_empty()).collect()
}

/// Relative to open directories: what is looked at are a thousand of them, each behind the same long path.
fn of_vm(store: &OwnedFd, vm: u32, names: &mut Names) -> Template {
    let mut text = Template::default();
    let Ok(dir) = openat(store, vm.to_string(), DIRECTORY, Mode::empty()) else { return text };
    let mut disks = names.of(&dir, disk);
    disks.sort_unstable();
    disks.truncate(MOST_DISKS);
    for (disk, _) in disks.iter().filter(|(_, is_snapshots)| !is_snapshots) {
        if let Some(size) = allocated(&dir, &format!("disk.{disk}")) {
            text.vector("DISK_SIZE", &[("ID", disk), ("SIZE", &size)]);
        }
    }
    for (disk, _) in disks.iter().filter(|(_, is_snapshots)| *is_snapshots) {
        let Ok(dir) = openat(&dir, format!("disk.{disk}.snap"), DIRECTORY, Mode::empty()) else {
            continue;
        };
        let mut ids: Vec<u32> = names.of(&dir, |name| name.parse().ok());
        ids.sort_unstable();
        for id in ids.into_iter().take(MOST_DISKS) {
            if let Some(size) = allocated(&dir, &id.to_string()) {
                text.vector("SNAPSHOT_SIZE", &[("ID", &id), ("DISK_ID", disk), ("SIZE", &size)]);
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
fn allocated(dir: &OwnedFd, name: &str) -> Option<u64> {
    let is = statat(dir, name, AtFlags::empty()).ok()?;
    let is_file = FileType::from_raw_mode(is.st_mode).is_file();
    is_file.then(|| u64::try_from(is.st_blocks).unwrap_or(0).saturating_mul(BLOCK).div_ceil(MIB))
}

/// Numbers that are names in a directory.
pub(crate) fn numbers(dir: &Path) -> BTreeSet<u32> {
    let Ok(dir) = open(dir, DIRECTORY, Mode::empty()) else { return BTreeSet::new() };
    Names::default().of(&dir, |name| name.parse().ok()).into_iter().collect()
}

/// Reads names of directories, with the same room for each.
struct Names(Vec<u8>);

impl Default for Names {
    fn default() -> Self {
        Self(Vec::with_capacity(ROOM))
    }
}

impl Names {
    /// What `of` makes of each name, as far as the directory can be read.
    fn of<T>(&mut self, dir: &OwnedFd, of: impl Fn(&str) -> Option<T>) -> Vec<T> {
        let (mut found, mut left) = (Vec::new(), MOST);
        let mut entries = RawDir::new(dir, self.0.spare_capacity_mut());
        while let Some(Ok(entry)) = entries.next().filter(|_| left > 0) {
            found.extend(entry.file_name().to_str().ok().and_then(&of));
            left -= 1;
        }
        found
    }
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
