//! Who has which range of user and group ids. Rebuilt from the records at start.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ids::{IdRange, VmId};

use crate::config::{Config, Guests};

mod overlap;

/// The allocator.
#[derive(Debug)]
pub struct Ranges {
    first: u32,
    count: u32,
    taken: Mutex<BTreeMap<VmId, IdRange>>,
}

/// Tells in the log who else uses ids that are set aside for guests; see [`overlap`].
pub fn warn_of_overlaps(config: &Config) {
    let first = u64::from(config.guests.first_id);
    let end = first + u64::from(config.guests.id_ranges) * u64::from(IdRange::LEN);
    for what in overlap::with(&(first..end), &config.cgroup_base) {
        tracing::warn!("guests.first_id: {what}; give guests ids that nobody else uses");
    }
}

impl Ranges {
    /// Nothing taken.
    pub fn new(config: &Guests) -> Self {
        let taken = Mutex::new(BTreeMap::new());
        Self { first: config.first_id, count: config.id_ranges, taken }
    }

    fn taken(&self) -> MutexGuard<'_, BTreeMap<VmId, IdRange>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the range of a known VM, also one outside the configured ranges (they were changed).
    pub fn note(&self, id: &VmId, range: IdRange) {
        self.taken().insert(id.clone(), range);
    }

    /// The lowest free range.
    pub fn take(&self, id: &VmId) -> Result<IdRange> {
        let mut taken = self.taken();
        if let Some(range) = taken.get(id) {
            return Ok(*range);
        }
        let used: Vec<u32> = {
            let mut bases: Vec<u32> = taken.values().map(|range| range.base).collect();
            bases.sort_unstable();
            bases
        };
        let bases = (0..self.count).map(|n| self.first + n * IdRange::LEN);
        // Ranges taken under another configuration need not be aligned with ours.
        let clash = |base: u32| {
            let at = used.partition_point(|other| other + (IdRange::LEN - 1) < base);
            used.get(at).is_some_and(|other| *other < base + IdRange::LEN)
        };
        let mut free = bases.filter(|base| !clash(*base));
        let base = free.next().ok_or_else(|| {
            let what = format!("all {} id ranges are taken", self.count);
            Error::new(ErrorKind::Exhausted, what).hint("raise guests.id_ranges, or undefine VMs")
        })?;
        let range = IdRange { base };
        taken.insert(id.clone(), range);
        Ok(range)
    }

    /// Gives a range back.
    pub fn free(&self, id: &VmId) {
        self.taken().remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(n: u32) -> VmId {
        format!("one-{n}").parse().unwrap()
    }

    #[test]
    fn ranges_are_distinct_stable_and_reused_only_when_free() {
        let ranges = Ranges::new(&Guests { first_id: 100_000, id_ranges: 3, ..Guests::default() });
        let bases: Vec<u32> = (0..3).map(|n| ranges.take(&vm(n)).unwrap().base).collect();
        assert_eq!(bases, [100_000, 165_536, 231_072]);
        assert_eq!(ranges.take(&vm(1)).unwrap().base, 165_536);
        assert_eq!(ranges.take(&vm(9)).unwrap_err().kind, ErrorKind::Exhausted);
        ranges.free(&vm(1));
        assert_eq!(ranges.take(&vm(9)).unwrap().base, 165_536);
    }

    #[test]
    fn a_range_of_an_older_configuration_is_never_overlapped() {
        let ranges = Ranges::new(&Guests { first_id: 100_000, id_ranges: 4, ..Guests::default() });
        ranges.note(&vm(7), IdRange { base: 150_000 });
        assert_eq!(ranges.take(&vm(1)).unwrap().base, 231_072);
    }
}
