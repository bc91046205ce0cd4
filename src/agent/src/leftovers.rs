//! VMs that OpenNebula ended or moved away while their guests did not run.
//!
//! A guest ends by itself or with the host, OpenNebula is told `POWEROFF`, and from then on it asks the host for nothing: what
//! it terminates or moves then leaves a record here, and with it a range of ids that nobody else is given. What it does do is to take the
//! VM's directory out of the datastore. So the record of a VM that is stopped and has no directory any more is forgotten.
//!
//! A directory that cannot be seen is not one that is gone (a dead share, one that is not mounted, one that is mounted on top). It counts as
//! gone only if
//!
//! * this agent has seen it, and each directory of a datastore in which it has is the very one that it was: the same number on
//!   the same filesystem, and read to its end;
//! * it is in none of the datastores;
//! * that was so at each look for some minutes, and in all that time the VM was stopped and nothing was done to it.
//!
//! Should all that be wrong, it does no harm to OpenNebula's VM: `deploy` defines each VM anew, and what is forgotten has its disks elsewhere.
//!
//! Not found: what ended while no agent ran (its directory was never seen), and what moved between hosts that share a datastore,
//! where its directory stays. `ocivisor undefine` is for those.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_opennebula::OneId;
use ocivisor_rpc::Client;
use ocivisor_schema::Text;
use ocivisor_schema::reply::{StateNameV1, VmNow};
use rustix::fs::{Dir, Mode, OFlags, fstat, open};

use crate::looks::{Looks, PATIENCE};
use crate::vms::all;
use crate::{disks, since_1970};

/// What was seen longer ago than this is not acted upon: OpenNebula may be about to deploy the VM again.
const FRESH: Duration = Duration::from_secs(1);
/// Most entries of a datastore; one with more is as one that cannot be read.
const MOST: usize = 100_000;

/// What is known from earlier looks.
#[derive(Debug)]
pub struct Leftovers {
    socket: PathBuf,
    location: PathBuf,
    looks: Looks,
    known: Known,
}

/// A datastore's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Store {
    is: Identity,
    vms: BTreeSet<u32>,
}

/// Device and inode.
type Identity = (u64, u64);

#[derive(Debug)]
struct Known {
    /// How long a directory must be gone.
    wait: Duration,
    /// In which datastores each VM's directory was seen.
    homes: BTreeMap<OneId, BTreeMap<u32, Identity>>,
    /// Since when it is in none of them, and since when the VM was stopped then.
    gone: BTreeMap<OneId, (Instant, u64)>,
}

impl Leftovers {
    /// VMs of the daemon that listens there, with their disks below `location`; a directory must be gone that long.
    #[must_use]
    pub fn new(socket: PathBuf, location: PathBuf, wait: Duration) -> Self {
        let known = Known { wait, homes: BTreeMap::new(), gone: BTreeMap::new() };
        Self { socket, location, looks: Looks::default(), known }
    }

    /// Looks, and has forgotten what is known by now to be left over.
    ///
    /// # Errors
    /// The daemon cannot be asked.
    pub async fn look(&mut self) -> Result<()> {
        let client = Client::new(&self.socket);
        let vms = all(&client).await?.vms;
        let began = Instant::now();
        let stores = self.stores().await;
        let left = self.known.look(&vms, &stores, began);
        if began.elapsed() > FRESH {
            return Ok(());
        }
        for vm in left {
            let id = format!("agent-{vm}-{}", since_1970().as_nanos());
            let id =
                id.parse().map_err(|e| Error::new(ErrorKind::Invalid, format!("{id}: {e}")))?;
            // What is not stopped any more is denied. What fails is tried again.
            client.vm_undefine(Text(id), Text(vm.vm_id())).await?;
        }
        Ok(())
    }

    /// Those that could be read.
    async fn stores(&self) -> BTreeMap<u32, Store> {
        let numbers = self.looks.one(&self.location, PATIENCE, disks::numbers).await;
        let numbers = numbers.unwrap_or_default();
        let path = |number: &u32| self.location.join(number.to_string());
        let mut found = self.looks.each(numbers.iter().map(path), PATIENCE, read).await;
        let store = |number| Some((number, found.remove(&path(&number))??));
        numbers.into_iter().filter_map(store).collect()
    }
}

/// A datastore's directory, with all that is in it; `None` if that cannot be said.
fn read(path: &Path) -> Option<Store> {
    // What is listed is what was looked at, whatever is mounted there meanwhile.
    let dir =
        open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let is = fstat(&dir).ok()?;
    let mut vms = BTreeSet::new();
    for (count, entry) in Dir::read_from(&dir).ok()?.enumerate() {
        if count >= MOST {
            return None;
        }
        let entry = entry.ok()?;
        vms.extend(entry.file_name().to_str().ok().and_then(|name| name.parse::<u32>().ok()));
    }
    Some(Store { is: (is.st_dev, is.st_ino), vms })
}

impl Known {
    /// Those that are left over.
    fn look(&mut self, vms: &[VmNow], stores: &BTreeMap<u32, Store>, now: Instant) -> Vec<OneId> {
        let ours = |vm: &'_ VmNow| OneId::of_vm(&vm.id.0).filter(|one| one.vm_id() == vm.id.0);
        let vms: BTreeMap<OneId, &VmNow> =
            vms.iter().filter_map(|vm| Some((ours(vm)?, vm))).collect();
        self.homes.retain(|vm, _| vms.contains_key(vm));
        self.gone.retain(|vm, _| vms.contains_key(vm));
        let mut left = Vec::new();
        for (vm, seen) in vms {
            let idle = seen.state == StateNameV1::Stopped && !seen.busy;
            let changed = seen.changed.0.0;
            if !(self.is_gone(vm, stores) && idle) {
                self.gone.remove(&vm);
                continue;
            }
            match self.gone.get(&vm) {
                Some((since, then)) if *then == changed => {
                    left.extend((now.duration_since(*since) >= self.wait).then_some(vm));
                }
                _ => {
                    self.gone.insert(vm, (now, changed));
                }
            }
        }
        left
    }

    /// Whether a VM's directory was there and is not; where it is is remembered.
    fn is_gone(&mut self, vm: OneId, stores: &BTreeMap<u32, Store>) -> bool {
        let holds = |(_, store): &(&u32, &Store)| store.vms.contains(&vm.number());
        let there: BTreeMap<u32, Identity> =
            stores.iter().filter(holds).map(|(number, store)| (*number, store.is)).collect();
        if !there.is_empty() {
            self.homes.entry(vm).or_default().extend(there);
            return false;
        }
        let is_same = |(number, is): (&u32, &Identity)| {
            stores.get(number).is_some_and(|store| store.is == *is)
        };
        self.homes.get(&vm).is_some_and(|homes| homes.iter().all(is_same))
    }
}

#[cfg(test)]
mod tests;
