//! Which states of VMs the monitor is told, and when.
//!
//! OpenNebula believes what it is told: `POWEROFF` of a VM that it has running ends there, `RUNNING` of one that it is
//! booting completes the boot. So:
//!
//! * only settled states are told. While something is done to a VM it keeps the word that it had: `RUNNING` in a reboot,
//!   nothing ([`VmWord::Unknown`], which OpenNebula ignores) in a boot;
//! * a guest that has just begun is `RUNNING` a while later: OpenNebula learns it from the answer of `deploy`, and what
//!   follows there (network rules) must not be overtaken;
//! * the end of a guest is told at once;
//! * from 7.2 on OpenNebula ignores states of a VM within 30 seconds after it began or ended, without asking again, and writes
//!   a line into the VM's log for each that it ignores. So a change is told again when that time is over, and not in between
//!   ([`AGAIN`]);
//! * now and then all VMs are told, in any state: what OpenNebula has here and is not among them is powered off for it.
//!   So those whose records are damaged are among them.
//!
//! Between those, a VM whose record is gone is not told: who removes a VM is OpenNebula, or else it learns it then.

use std::collections::BTreeMap;
use std::time::Duration;

use ocivisor_schema::reply::{StateNameV1, VmNow};

use super::Template;
use crate::OneId;

/// How long after it was first told a change is told again. The 30 seconds in which OpenNebula does not listen may begin a while
/// after the change, when what it runs after a boot takes its time: then the second counts, and all states are told each
/// few minutes besides.
const AGAIN: [Duration; 2] = [Duration::from_secs(35), Duration::from_secs(70)];
/// How long a guest is not yet called running, at most: until OpenNebula has done what it does after the answer of `deploy`, and
/// listens again.
const HOLD: Duration = Duration::from_secs(35);
/// The same, in periods.
const HOLD_PERIODS: u32 = 7;

/// What OpenNebula is told of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmWord {
    /// It runs.
    Running,
    /// It does not.
    PowerOff,
    /// Its memory is in a file.
    Suspended,
    /// It cannot be said to run or not to.
    Failure,
    /// It is there: changes nothing.
    Unknown,
}

impl VmWord {
    /// The word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "RUNNING",
            Self::PowerOff => "POWEROFF",
            Self::Suspended => "SUSPENDED",
            Self::Failure => "FAILURE",
            Self::Unknown => "UNKNOWN",
        }
    }
}

/// A VM of OpenNebula's, as the daemon has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Its number.
    pub vm: OneId,
    /// What to say.
    pub word: VmWord,
    /// How long its settled state is what it is.
    pub age: Duration,
}

impl Seen {
    /// What is to be said of a VM at that time, in milliseconds since 1970; `None` if it is not OpenNebula's. `period`
    /// is that of states.
    #[must_use]
    pub fn of(vm: &VmNow, now: u64, period: Duration) -> Option<Self> {
        let number = OneId::of_vm(&vm.id.0)?;
        // A clock that was put back makes an old state of a young one, which is told at once.
        let age = now.checked_sub(vm.changed.0.0).map_or(Duration::MAX, Duration::from_millis);
        let word = match vm.state {
            StateNameV1::Running if age < HOLD.min(period * HOLD_PERIODS) => VmWord::Unknown,
            // A guest that stands still for a moment holds all that it held: OpenNebula has no word for that.
            StateNameV1::Running | StateNameV1::Paused => VmWord::Running,
            StateNameV1::Suspended => VmWord::Suspended,
            StateNameV1::Failed => VmWord::Failure,
            StateNameV1::Stopped if vm.busy => VmWord::Unknown,
            StateNameV1::Stopped => VmWord::PowerOff,
        };
        Some(Self { vm: number, word, age })
    }

    /// What is to be said of a VM whose record cannot be read: that it is there.
    #[must_use]
    pub fn damaged(vm: OneId) -> Self {
        Self { vm, word: VmWord::Unknown, age: Duration::MAX }
    }
}

/// Why states are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// Something happened: what changed.
    Event,
    /// The period is over: what changed, and what must be told again.
    Period,
    /// All of them.
    All,
}

/// What was told before.
#[derive(Debug, Default)]
pub struct States {
    words: BTreeMap<OneId, Known>,
    begun: bool,
}

/// What is known of a VM.
#[derive(Debug, Clone, Copy)]
struct Known {
    word: VmWord,
    /// When it was first seen, on the caller's clock; of those who were there at the first look nobody knows.
    since: Option<Duration>,
    /// How many of [`AGAIN`] are behind it.
    again: usize,
}

impl States {
    /// The text to send, empty if there is nothing to tell. `now` is of a clock that only goes forward.
    pub fn tell(&mut self, seen: &[Seen], now: Duration, why: Told) -> String {
        let mut text = Template::default();
        if why == Told::All {
            text.bare("SYNC_STATE", "yes").bare("MISSING_STATE", VmWord::PowerOff.name());
        }
        let mut before = std::mem::take(&mut self.words);
        for &Seen { vm, word, age } in seen {
            let old = before.remove(&vm).filter(|known| known.word == word);
            let since = old.map_or(self.begun.then_some(now), |known| known.since);
            let age = since.map_or(age, |since| age.min(now.saturating_sub(since)));
            let due = AGAIN.iter().filter(|after| age >= **after).count();
            let changed = old.is_none() && word != VmWord::Unknown;
            let tell = match why {
                Told::All => true,
                Told::Event => changed,
                Told::Period => {
                    changed || word != VmWord::Unknown && old.is_some_and(|old| due > old.again)
                }
            };
            let again = old.filter(|_| !tell).map_or(due, |old| old.again);
            self.words.insert(vm, Known { word, since, again });
            if tell {
                let id = vm.vm_id();
                let pairs: [(&str, &dyn std::fmt::Display); 3] =
                    [("ID", &vm), ("DEPLOY_ID", &id), ("STATE", &word.name())];
                text.vector("VM", &pairs);
            }
        }
        self.begun = true;
        text.into_text()
    }
}

#[cfg(test)]
mod tests {
    use ocivisor_core::state::Timestamp;
    use ocivisor_schema::{Text, TimeV1};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const NOW: u64 = 1_795_000_000_000;

    fn now(id: &str, state: StateNameV1, busy: bool, age: u64) -> VmNow {
        let changed = TimeV1(Timestamp(NOW - age * 1000));
        VmNow { id: Text(id.parse().unwrap()), state, changed, busy, addresses: Vec::new() }
    }

    fn word(state: StateNameV1, op: bool, age: u64) -> VmWord {
        Seen::of(&now("one-7", state, op, age), NOW, 5 * SECOND).unwrap().word
    }

    fn seen(vm: &str, word: VmWord, age: u64) -> Seen {
        Seen { vm: vm.parse().unwrap(), word, age: Duration::from_secs(age) }
    }

    #[test]
    fn only_settled_states_are_told() {
        use StateNameV1::{Failed, Paused, Running, Stopped, Suspended};
        for op in [false, true] {
            assert_eq!(
                word(Running, op, 3600),
                VmWord::Running,
                "also while it reboots or shuts down"
            );
            assert_eq!(word(Running, op, 9), VmWord::Unknown, "deploy's answer goes first");
            assert_eq!(word(Running, op, 34), VmWord::Unknown, "nobody listens yet");
            assert_eq!(word(Running, op, 35), VmWord::Running);
            assert_eq!(word(Paused, op, 3600), VmWord::Running);
            assert_eq!(word(Suspended, op, 3600), VmWord::Suspended);
            assert_eq!(word(Failed, op, 3600), VmWord::Failure);
        }
        assert_eq!(word(Stopped, false, 0), VmWord::PowerOff);
        assert_eq!(word(Stopped, true, 3600), VmWord::Unknown, "it boots");
    }

    #[test]
    fn vms_of_others_are_none_of_opennebulas_business() {
        for id in ["web", "one-", "one-x", "one-07", "two-7", "one-4294967296"] {
            assert_eq!(Seen::of(&now(id, StateNameV1::Running, false, 60), NOW, SECOND), None);
        }
    }

    #[test]
    fn a_clock_that_was_put_back_delays_nothing() {
        let ahead = Seen::of(&now("one-7", StateNameV1::Running, false, 60), 0, SECOND).unwrap();
        assert_eq!((ahead.word, ahead.age), (VmWord::Running, Duration::MAX));
    }

    #[test]
    fn all_are_told_at_first_and_then_what_changes() {
        let mut states = States::default();
        let all = [seen("1", VmWord::Running, 900), seen("2", VmWord::Unknown, 0)];
        assert_eq!(
            states.tell(&all, SECOND, Told::All),
            "SYNC_STATE=yes\nMISSING_STATE=POWEROFF\n\
             VM=[ID=\"1\",DEPLOY_ID=\"one-1\",STATE=\"RUNNING\"]\n\
             VM=[ID=\"2\",DEPLOY_ID=\"one-2\",STATE=\"UNKNOWN\"]\n"
        );
        assert_eq!(states.tell(&all, 2 * SECOND, Told::Period), "", "old and unchanged");

        let off = "VM=[ID=\"1\",DEPLOY_ID=\"one-1\",STATE=\"POWEROFF\"]\n";
        let ended = |age| [seen("1", VmWord::PowerOff, age)];
        assert_eq!(states.tell(&ended(0), 10 * SECOND, Told::Event), off);
        assert_eq!(states.tell(&ended(0), 10 * SECOND, Told::Event), "", "told once at once");
        // OpenNebula logs each that comes within 30 seconds after it did something to the VM.
        let told: Vec<u32> = (1..=180)
            .filter(|age| {
                let told = states.tell(&ended(u64::from(*age)), (10 + age) * SECOND, Told::Period);
                assert!(told.is_empty() || told == off, "{told}");
                !told.is_empty()
            })
            .collect();
        assert_eq!(told, [35, 70]);
        assert_eq!(states.tell(&[], 191 * SECOND, Told::Period), "", "OpenNebula removed it");
        assert_eq!(
            states.tell(&[], 191 * SECOND, Told::All),
            "SYNC_STATE=yes\nMISSING_STATE=POWEROFF\n"
        );
    }

    #[test]
    fn what_is_due_again_waits_for_its_period_and_is_told_with_all_others() {
        let mut states = States::default();
        let at = |states: &mut States, now: u32, why| {
            let ended = [seen("1", VmWord::PowerOff, u64::from(now))];
            !states.tell(&ended, now * SECOND, why).is_empty()
        };
        assert!(states.tell(&[], Duration::ZERO, Told::All).contains("SYNC_STATE"));
        assert!(at(&mut states, 0, Told::Event));
        assert!(!at(&mut states, 36, Told::Event), "something else happened");
        assert!(at(&mut states, 37, Told::Period));
        assert!(!at(&mut states, 38, Told::Period));
        assert!(at(&mut states, 71, Told::All));
        assert!(!at(&mut states, 75, Told::Period), "it was among all");
        // Another state of it begins anew.
        let runs = [seen("1", VmWord::Running, 36)];
        assert!(!states.tell(&runs, 80 * SECOND, Told::Period).is_empty());
        assert_eq!(states.tell(&runs, 81 * SECOND, Told::Period), "");
        let runs = [seen("1", VmWord::Running, 71)];
        assert!(!states.tell(&runs, 115 * SECOND, Told::Period).is_empty());
    }

    #[test]
    fn what_changed_shortly_before_the_agent_began_is_told_again() {
        let mut states = States::default();
        let off = |age| [seen("1", VmWord::PowerOff, age)];
        assert!(!states.tell(&off(20), Duration::ZERO, Told::All).is_empty());
        assert_eq!(states.tell(&off(34), 14 * SECOND, Told::Period), "");
        assert!(!states.tell(&off(35), 15 * SECOND, Told::Period).is_empty());
        assert_eq!(states.tell(&off(69), 49 * SECOND, Told::Period), "");
        assert!(!states.tell(&off(70), 50 * SECOND, Told::Period).is_empty());
        assert_eq!(states.tell(&off(90), 70 * SECOND, Told::Period), "");
    }
}
