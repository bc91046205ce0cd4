//! What guests use: all of them in one pass, cheap enough to be asked for every few seconds.
//!
//! | what | from where | for all guests |
//! |---|---|---|
//! | processor, memory, pids, pressure | files of the guest's groups, kept open | a read each |
//! | disks | /proc/diskstats, by the numbers of their devices | one file |
//! | NICs | netlink, the host's ends by their index | one dump |
//!
//! What a guest reads of its image's layers is not among its disk's traffic: they are shared files of
//! the host. Files, devices and indexes are looked up once per boot of a guest.
//!
//! What can go wrong: guests come and go while they are looked at. One that is gone is left out.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ocivisor_core::error::{ErrorKind, Result};
use ocivisor_core::ids::VmId;
use ocivisor_core::state::ProcessRef;

use crate::cgroup::{Counters, GroupStats, HostCgroups};
use crate::network::{HostNetwork, LinkCounters};
use crate::storage::{DeviceTraffic, DiskMeter, DiskTraffic, HostStorage};

/// A guest to be looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Its VM.
    pub id: VmId,
    /// Its first process: another boot is another guest.
    pub init: ProcessRef,
    /// Names of the host's ends of its NICs.
    pub links: Vec<String>,
}

/// What a guest uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestStats {
    /// Its VM.
    pub id: VmId,
    /// Processor, memory, processes, since it booted.
    pub group: GroupStats,
    /// Its disks together, since they were attached; `None` if none has a device (a directory's traffic nobody
    /// counts apart).
    pub disk: Option<DiskTraffic>,
    /// Its NICs, since they were made, in the order of [`Subject::links`]; `None` for one that is not there.
    pub links: Vec<Option<LinkCounters>>,
}

/// Adapters that know where to look.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// Groups.
    pub cgroups: &'a HostCgroups,
    /// Disks.
    pub storage: &'a HostStorage,
    /// Links.
    pub network: &'a HostNetwork,
}

/// Looks at guests; keeps what it found out about them.
#[derive(Debug)]
pub struct Sampler {
    kept: Mutex<BTreeMap<VmId, Kept>>,
    /// Most files that are kept open: the daemon needs some for other things. Beyond that, guests are
    /// looked up anew each time, which takes longer.
    most_files: usize,
}

/// Of one boot of a guest.
#[derive(Debug)]
struct Kept {
    init: ProcessRef,
    counters: Counters,
    meters: Vec<DiskMeter>,
    indexes: Vec<Option<u32>>,
}

impl Sampler {
    /// Keeps at most that many files open.
    #[must_use]
    pub fn new(most_files: usize) -> Self {
        Self { kept: Mutex::default(), most_files }
    }

    /// Looks at `guests`, which are all that there are: what is kept of others is forgotten.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn all(&self, sources: Sources<'_>, guests: &[Subject]) -> Result<Vec<GuestStats>> {
        let mut kept = self.lock();
        let mut before = std::mem::take(&mut *kept);
        for guest in guests {
            kept.extend(before.remove_entry(&guest.id));
        }
        drop(before);
        self.sample(&mut kept, sources, guests)
    }

    /// Looks at one guest; `None` if it is gone.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn one(&self, sources: Sources<'_>, guest: Subject) -> Result<Option<GuestStats>> {
        Ok(self.sample(&mut self.lock(), sources, &[guest])?.pop())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<VmId, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sample(
        &self,
        kept: &mut BTreeMap<VmId, Kept>,
        sources: Sources<'_>,
        guests: &[Subject],
    ) -> Result<Vec<GuestStats>> {
        let disks = DeviceTraffic::observe()?;
        let links = match guests.iter().any(|guest| !guest.links.is_empty()) {
            true => sources.network.observe_counters()?,
            false => BTreeMap::new(),
        };
        let mut files: usize = kept.values().map(|kept| kept.counters.files()).sum();
        let mut all = Vec::with_capacity(guests.len());
        for guest in guests {
            let same = |kept: &Kept| {
                // A NIC that was made anew has another index.
                let there = |index: &Option<u32>| index.is_some_and(|i| links.contains_key(&i));
                kept.init == guest.init
                    && kept.indexes.len() == guest.links.len()
                    && kept.indexes.iter().all(there)
            };
            let old = kept.remove(&guest.id);
            files -= old.as_ref().map_or(0, |old| old.counters.files());
            let known = match old.filter(same) {
                Some(known) => Some(known),
                None => there(look_up(sources, guest))?,
            };
            let Some(mut known) = known else { continue };
            let Some(group) = there(known.counters.read())? else { continue };
            let link = |index: &Option<u32>| index.and_then(|index| links.get(&index)).copied();
            all.push(GuestStats {
                id: guest.id.clone(),
                group,
                disk: disks.of_all(&known.meters),
                links: known.indexes.iter().map(link).collect(),
            });
            if files + known.counters.files() <= self.most_files {
                files += known.counters.files();
                kept.insert(guest.id.clone(), known);
            }
        }
        Ok(all)
    }
}

/// `None` if the guest went while it was looked at.
fn there<T>(looked: Result<T>) -> Result<Option<T>> {
    match looked {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn look_up(sources: Sources<'_>, guest: &Subject) -> Result<Kept> {
    let names = guest.links.iter().map(String::as_str);
    Ok(Kept {
        init: guest.init,
        counters: sources.cgroups.counters(&guest.id)?,
        meters: sources.storage.disk_meters(&guest.id),
        indexes: sources.network.observe_indexes(names)?,
    })
}
