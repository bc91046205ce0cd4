//! Chooses processors for guests, and moves guests between them; see [`spread`].

use std::path::{Path, PathBuf};

use ocivisor_core::error::Result;
use ocivisor_core::ids::VmId;
use ocivisor_core::ports::Cgroups as _;
use ocivisor_core::spec::Resources;
use ocivisor_core::units::NumberSet;

use super::machine::Machine;
use super::spread::{Load, Spreadable, balance, pick};
use super::{HostCgroups, file};

impl HostCgroups {
    /// The processors that a guest of that wish gets.
    ///
    /// # Errors
    /// `NotFound`: the machine does not have those that it wishes for.
    pub(super) fn place(
        &self,
        id: &VmId,
        resources: &Resources,
        machine: &Machine,
    ) -> Result<NumberSet> {
        let wish = resources.placement.cpus.as_ref();
        Machine::check("processor", "cpus", wish, &machine.cpus)?;
        let candidates = wish.unwrap_or(&machine.cpus);
        let enough = candidates.count() <= usize::try_from(resources.vcpus).unwrap_or(usize::MAX);
        let root = self.cpuset().filter(|_| self.policy.spread_cpus && !enough);
        let Some(root) = root else {
            return Ok(candidates.clone());
        };
        let ids = self.observe_cgroups()?;
        let others = ids.iter().filter(|other| *other != id);
        let others: Vec<NumberSet> =
            others.filter_map(|other| has(&self.cpus_file(root, other))).collect();
        let now = has(&self.cpus_file(root, id));
        Ok(pick(candidates, resources.vcpus, now.as_ref(), &Load::of(&others)))
    }

    /// Evens out what the comings and goings of guests have left: `guests` are those that live, with
    /// their wishes. To be called now and then.
    ///
    /// # Errors
    /// The machine cannot be looked at, or the kernel refuses; some guests may have been moved.
    pub fn balance(&self, guests: &[(VmId, Resources)]) -> Result<()> {
        let Some(root) = self.cpuset().filter(|_| self.policy.spread_cpus) else {
            return Ok(());
        };
        let machine = Machine::look(&self.hierarchies, &self.base)?;
        let (files, guests): (Vec<PathBuf>, Vec<Spreadable>) = guests
            .iter()
            .filter_map(|(id, resources)| {
                let file = self.cpus_file(root, id);
                // Those that may have all have no choice; a processor that was unplugged cannot be had.
                let all = machine.cpus.iter();
                let wish = resources.placement.cpus.as_ref();
                let candidates =
                    NumberSet::new(all.filter(|cpu| wish.is_none_or(|w| w.contains(*cpu))))?;
                let enough = candidates.count() <= usize::try_from(resources.vcpus).ok()?;
                let now = has(&file);
                let there = file.exists() && !enough;
                there.then_some((file, Spreadable { candidates, count: resources.vcpus, now }))
            })
            .unzip();
        for ((file, guest), cpus) in files.iter().zip(&guests).zip(balance(&guests)) {
            if guest.now.as_ref() != Some(&cpus) {
                file::write(file, &cpus.to_string())?;
            }
        }
        Ok(())
    }

    /// Root of the hierarchy that places guests.
    fn cpuset(&self) -> Option<&Path> {
        self.hierarchies.v1("cpuset").or(self.hierarchies.v2("cpuset"))
    }

    fn cpus_file(&self, root: &Path, id: &VmId) -> PathBuf {
        self.group(root, id, "guest").join("cpuset.cpus")
    }
}

/// The processors that a group was given; `None` if it was given none, or there is no such group.
fn has(file: &Path) -> Option<NumberSet> {
    file::read_if_there(file).ok()??.parse().ok()
}
