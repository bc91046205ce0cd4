//! Which processors a guest runs on, and so sees: as many as it has VCPUs.
//!
//! Programs ask sched_getaffinity(2) how many processors there are, and start as many threads. Only a
//! cpuset makes the answer right. Its price is that guests which share a processor by chance cannot
//! move to an idle one, as the threads of a virtual machine can. So guests are spread: each gets the
//! processors that the fewest others have, and is moved when others came and went ([`balance`]).
//! Incus and Proxmox VE do the same.
//!
//! The groups' own files are the memory: nothing is kept here. Two guests made at the same moment may
//! get the same processor; the next balance parts them.

use std::collections::BTreeMap;

use ocivisor_core::units::NumberSet;

/// How many guests have each processor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Load(BTreeMap<u16, u32>);

impl Load {
    /// Of the guests that have these.
    pub(super) fn of<'a>(taken: impl IntoIterator<Item = &'a NumberSet>) -> Self {
        let mut load = Self::default();
        taken.into_iter().for_each(|cpus| load.add(cpus));
        load
    }

    fn add(&mut self, cpus: &NumberSet) {
        cpus.iter().for_each(|cpu| *self.0.entry(cpu).or_default() += 1);
    }

    fn remove(&mut self, cpus: &NumberSet) {
        for cpu in cpus.iter() {
            if let Some(guests) = self.0.get_mut(&cpu) {
                *guests = guests.saturating_sub(1);
            }
        }
    }

    fn on(&self, cpu: u16) -> u32 {
        self.0.get(&cpu).copied().unwrap_or(0)
    }
}

/// `count` of `candidates` for a guest that has `now`: it stays where it is as far as it can, and else
/// goes where the fewest others are. All of the candidates, if they are not more.
pub(super) fn pick(
    candidates: &NumberSet,
    count: u32,
    now: Option<&NumberSet>,
    others: &Load,
) -> NumberSet {
    let count = usize::try_from(count).unwrap_or(usize::MAX).max(1);
    let has = |cpu: &u16| now.is_some_and(|now| now.contains(*cpu));
    let mut best: Vec<u16> = candidates.iter().collect();
    best.sort_by_key(|cpu| (!has(cpu), others.on(*cpu), *cpu));
    best.truncate(count);
    // One at least is left of at least one.
    NumberSet::new(best).unwrap_or_else(|| candidates.clone())
}

/// A guest that may be moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Spreadable {
    /// What it may run on.
    pub candidates: NumberSet,
    /// How many of them it gets.
    pub count: u32,
    /// What it has.
    pub now: Option<NumberSet>,
}

/// What each guest shall have; most stay where they are. One is moved from a processor to another if
/// the other has two guests less, so that nobody is moved to and fro.
pub(super) fn balance(guests: &[Spreadable]) -> Vec<NumberSet> {
    let mut load = Load::of(guests.iter().filter_map(|guest| guest.now.as_ref()));
    let mut wanted = Vec::with_capacity(guests.len());
    for guest in guests {
        guest.now.iter().for_each(|now| load.remove(now));
        let cpus = pick(&guest.candidates, guest.count, guest.now.as_ref(), &load);
        load.add(&cpus);
        wanted.push(cpus);
    }
    // Every move makes the sum of the squares of the loads smaller, so this ends.
    while let Some((guest, from, to)) = better(guests, &wanted, &load) {
        let moved = wanted[guest].iter().filter(|cpu| *cpu != from).chain([to]);
        let Some(moved) = NumberSet::new(moved) else { break };
        load.remove(&wanted[guest]);
        load.add(&moved);
        wanted[guest] = moved;
    }
    wanted
}

/// A move from a crowded processor to one that has two guests less.
fn better(guests: &[Spreadable], wanted: &[NumberSet], load: &Load) -> Option<(usize, u16, u16)> {
    guests.iter().zip(wanted).enumerate().find_map(|(at, (guest, cpus))| {
        let from = cpus.iter().max_by_key(|cpu| load.on(*cpu))?;
        let free = guest.candidates.iter().filter(|cpu| !cpus.contains(*cpu));
        let to = free.min_by_key(|cpu| load.on(*cpu))?;
        (load.on(from) >= load.on(to) + 2).then_some((at, from, to))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(text: &str) -> NumberSet {
        text.parse().unwrap()
    }

    #[test]
    fn a_new_guest_goes_where_the_fewest_are() {
        let others = Load::of(&[set("0"), set("0,2"), set("3")]);
        let pick = |count, now: Option<&str>| {
            pick(&set("0-3"), count, now.map(set).as_ref(), &others).to_string()
        };
        assert_eq!(pick(1, None), "1");
        assert_eq!(pick(2, None), "1-2");
        assert_eq!(pick(4, None), "0-3");
        assert_eq!(pick(9, None), "0-3");
        assert_eq!(pick(1, Some("0")), "0", "stays");
        assert_eq!(pick(2, Some("0")), "0-1", "grows");
        assert_eq!(pick(1, Some("0,3")), "3", "shrinks to the better one");
        assert_eq!(pick(1, Some("7")), "1", "its processor is gone");
    }

    fn guest(candidates: &str, count: u32, now: &str) -> Spreadable {
        Spreadable { candidates: set(candidates), count, now: Some(set(now)) }
    }

    #[test]
    fn who_is_left_on_a_crowded_processor_is_moved() {
        let four = [guest("0-1", 1, "0"), guest("0-1", 1, "0")];
        let wanted: Vec<String> = balance(&four).iter().map(ToString::to_string).collect();
        assert_eq!(wanted, ["1", "0"]);
        let even = [guest("0-1", 1, "0"), guest("0-1", 1, "1"), guest("0-1", 1, "0")];
        let wanted: Vec<String> = balance(&even).iter().map(ToString::to_string).collect();
        assert_eq!(wanted, ["0", "1", "0"], "nobody is moved without need");
    }

    #[test]
    fn pinned_guests_stay_where_they_are_pinned() {
        let guests = [guest("0", 1, "0"), guest("0", 1, "0"), guest("0-1", 1, "0")];
        let wanted: Vec<String> = balance(&guests).iter().map(ToString::to_string).collect();
        assert_eq!(wanted, ["0", "0", "1"]);
    }

    proptest! {
        #[test]
        fn balanced_means_that_nobody_could_be_moved_for_the_better(
            guests in proptest::collection::vec((1_u32..5, 0_u16..8), 0..40)
        ) {
            let guests: Vec<Spreadable> = guests
                .into_iter()
                .map(|(count, now)| guest("0-7", count, &now.to_string()))
                .collect();
            let wanted = balance(&guests);
            for (guest, cpus) in guests.iter().zip(&wanted) {
                prop_assert_eq!(cpus.count(), guest.count as usize);
            }
            let load = Load::of(&wanted);
            let loads: Vec<u32> = (0..8).map(|cpu| load.on(cpu)).collect();
            let spread = loads.iter().max().unwrap() - loads.iter().min().unwrap();
            prop_assert!(spread <= 1, "{loads:?}");
            let again: Vec<Spreadable> = guests.iter().zip(&wanted).map(|(guest, now)| {
                Spreadable { now: Some(now.clone()), ..guest.clone() }
            }).collect();
            prop_assert_eq!(balance(&again), wanted, "and nobody is moved again");
        }
    }
}
