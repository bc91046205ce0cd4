//! A host in memory: stateful fakes of all ports that can fail or "crash" at the nth call.
//!
//! A crash is a panic with [`Crash`], thrown before an effect, after it, or halfway (the thing is
//! there but not whole, which only running `ensure_*` or `drop_*` again mends). Tests catch it,
//! throw the engine's memory away, and go on from what [`FakeHost`] holds, as after `kill -9`.

mod network;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::{IdRange, VmId};
use crate::ports::{
    Adoption, BlockDevice, Cgroups, Clock, Displays, GivenDisk, GuestView, Guests, IdRanges,
    Loaded, Ports, Records, Storage,
};
use crate::spec::{Context, DataDisk, Graphics, InitKind, IoLimits, NicSpec, Resources, VmSpec};
use crate::state::{GuestExit, GuestFacts, GuestKind, ProcessRef, Record, Timestamp};

/// Payload of the panic that stands for `kill -9`.
#[derive(Debug, Clone, Copy)]
pub struct Crash;

/// What happens at one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The call fails and changes nothing.
    Fail,
    /// The process dies before the effect.
    CrashBefore,
    /// The process dies with the effect half done.
    CrashHalfway,
    /// The process dies after the effect.
    CrashAfter,
}

/// Things of one VM on the host; false is half made.
type Things = BTreeMap<Thing, bool>;

/// Kinds of things that must not leak.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Thing {
    /// User and network namespace.
    Namespaces,
    /// A NIC, by the name of its host end.
    Nic(String),
    /// Mounted root.
    Root,
    /// A data disk, by its number.
    Disk(u32),
    /// Control groups.
    Cgroup,
    /// Guest process and shim.
    Guest,
    /// What shows its console.
    Display,
}

/// How a guest behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Guest {
    Created,
    Running { shim: bool },
    Exited(GuestExit),
}

#[derive(Debug, Default)]
struct State {
    records: BTreeMap<VmId, Record>,
    things: BTreeMap<VmId, Things>,
    guests: BTreeMap<VmId, Guest>,
    ids: BTreeMap<VmId, IdRange>,
    calls: usize,
    fault: Option<(usize, Fault)>,
    trace: Vec<String>,
    stubborn: bool,
    /// How guests end as soon as they start.
    short_lived: Option<GuestExit>,
    /// What guests were told, and their limits.
    told: BTreeMap<VmId, Context>,
    limits: BTreeMap<VmId, Resources>,
    /// As what NICs were made, by the name of the host's end.
    nics: BTreeMap<VmId, BTreeMap<String, NicSpec>>,
    disk_limits: BTreeMap<(VmId, String), (Option<BlockDevice>, IoLimits)>,
    now: u64,
    boot: u64,
}

/// The host.
#[derive(Debug, Default)]
pub struct FakeHost(Mutex<State>);

impl FakeHost {
    /// An empty host.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// All ports.
    #[must_use]
    pub fn ports(&self) -> Ports<'_> {
        Ports {
            records: self,
            network: self,
            storage: self,
            cgroups: self,
            guests: self,
            displays: self,
            ids: self,
            clock: self,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A "crash" unwinds through calls; the state is what a disk and a kernel would keep.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on the `n`th call (from 0) meets `fault`.
    pub fn inject(&self, n: usize, fault: Fault) {
        let mut state = self.state();
        state.calls = 0;
        state.fault = Some((n, fault));
    }

    /// No more faults; tells whether the injected one was met.
    pub fn heal(&self) -> bool {
        let mut state = self.state();
        let met = state.fault.is_none_or(|(n, _)| state.calls > n);
        state.fault = None;
        met
    }

    /// Guests ignore their stop signal from now on.
    pub fn make_guests_stubborn(&self) {
        self.state().stubborn = true;
    }

    /// Guests end so as soon as they start from now on.
    pub fn make_guests_short_lived(&self, exit: GuestExit) {
        self.state().short_lived = Some(exit);
    }

    /// The guest ends by itself.
    pub fn end_guest(&self, id: &VmId, exit: GuestExit) {
        self.state().guests.insert(id.clone(), Guest::Exited(exit));
    }

    /// The guest's shim dies; the guest runs on.
    pub fn kill_shim(&self, id: &VmId) {
        self.state().guests.insert(id.clone(), Guest::Running { shim: false });
    }

    /// What shows the guest's console dies; the guest runs on.
    pub fn kill_display(&self, id: &VmId) {
        if let Some(things) = self.state().things.get_mut(id) {
            things.remove(&Thing::Display);
        }
    }

    /// The host reboots: only records stay.
    pub fn reboot(&self) {
        let mut state = self.state();
        state.things.clear();
        state.guests.clear();
        state.boot += 1;
    }

    /// Time passes.
    pub fn pass(&self, time: Duration) {
        self.state().now += u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    }

    /// What is left of a VM on the host.
    #[must_use]
    pub fn things(&self, id: &VmId) -> Vec<Thing> {
        self.state().things.get(id).map(|t| t.keys().cloned().collect()).unwrap_or_default()
    }

    /// Limits and context that a guest has.
    #[must_use]
    pub fn obeys(&self, id: &VmId) -> (Option<Resources>, Option<Context>) {
        let state = self.state();
        (state.limits.get(id).cloned(), state.told.get(id).cloned())
    }

    /// The device of a guest's disk, by its name in the spec, and the bounds on its traffic.
    #[must_use]
    pub fn disk_limits(&self, id: &VmId, disk: &str) -> Option<(Option<BlockDevice>, IoLimits)> {
        self.state().disk_limits.get(&(id.clone(), disk.to_owned())).copied()
    }

    /// VMs of which anything is left.
    #[must_use]
    pub fn anything_of(&self) -> BTreeSet<VmId> {
        self.state().things.keys().cloned().collect()
    }

    /// The record on disk.
    #[must_use]
    pub fn record(&self, id: &VmId) -> Option<Record> {
        self.state().records.get(id).cloned()
    }

    /// Names of the calls so far.
    #[must_use]
    pub fn trace(&self) -> Vec<String> {
        self.state().trace.clone()
    }

    /// Runs one call through the injected fault: `half` leaves things half made, `whole` whole.
    fn call<T>(
        &self,
        name: &str,
        half: impl Fn(&mut State),
        whole: impl FnOnce(&mut State) -> Result<T>,
    ) -> Result<T> {
        let mut state = self.state();
        let n = state.calls;
        state.calls += 1;
        state.trace.push(name.to_owned());
        let fault = state.fault.and_then(|(at, fault)| (at == n).then_some(fault));
        let crash = |state: MutexGuard<'_, State>| -> ! {
            drop(state);
            std::panic::panic_any(Crash)
        };
        match fault {
            None => whole(&mut state),
            Some(Fault::Fail) => {
                Err(Error::new(ErrorKind::Host, format!("{name}: injected failure")))
            }
            Some(Fault::CrashBefore) => crash(state),
            Some(Fault::CrashHalfway) => {
                half(&mut state);
                crash(state)
            }
            Some(Fault::CrashAfter) => {
                // The result dies with the process.
                let _ = whole(&mut state);
                crash(state)
            }
        }
    }

    fn ensure(&self, name: &str, id: &VmId, thing: &Thing, needs: &[Thing]) -> Result<()> {
        self.call(
            name,
            |state| put(state, id, thing, false),
            |state| {
                let have = state.things.get(id);
                let whole = |t: &Thing| have.and_then(|h| h.get(t)) == Some(&true);
                if let Some(missing) = needs.iter().find(|t| !whole(t)) {
                    return Err(Error::new(ErrorKind::Host, format!("{name} without {missing:?}")));
                }
                put(state, id, thing, true);
                Ok(())
            },
        )
    }

    fn drop_thing(&self, name: &str, id: &VmId, thing: &Thing, users: &[Thing]) -> Result<()> {
        self.call(
            name,
            |state| {
                if let Some(whole) = state.things.get_mut(id).and_then(|t| t.get_mut(thing)) {
                    *whole = false;
                }
            },
            |state| {
                let Some(things) = state.things.get_mut(id) else {
                    return Ok(());
                };
                if let Some(user) = users.iter().find(|t| things.contains_key(t)) {
                    return Err(Error::new(ErrorKind::Host, format!("{name} under {user:?}")));
                }
                things.remove(thing);
                if *thing == Thing::Guest {
                    state.guests.remove(id);
                }
                if *thing == Thing::Namespaces {
                    things.retain(|t, _| !matches!(t, Thing::Nic(_)));
                }
                if things.is_empty() {
                    state.things.remove(id);
                }
                Ok(())
            },
        )
    }
}

fn put(state: &mut State, id: &VmId, thing: &Thing, whole: bool) {
    if *thing == Thing::Guest {
        state.guests.insert(id.clone(), Guest::Created);
    }
    state.things.entry(id.clone()).or_default().insert(thing.clone(), whole);
}

impl Records for FakeHost {
    fn load_all(&self) -> Result<Vec<Loaded>> {
        let records = self.state().records.values().cloned().collect::<Vec<_>>();
        Ok(records.into_iter().map(|r| Loaded::Record(Box::new(r))).collect())
    }

    fn save(&self, record: &Record) -> Result<()> {
        self.call(
            "save",
            |_| {},
            |state| {
                state.records.insert(record.id().clone(), record.clone());
                Ok(())
            },
        )
    }

    fn remove(&self, id: &VmId) -> Result<()> {
        self.call(
            "remove",
            |_| {},
            |state| {
                state.records.remove(id);
                Ok(())
            },
        )
    }
}

impl Storage for FakeHost {
    fn ensure_root(&self, spec: &VmSpec, _: IdRange) -> Result<Option<BlockDevice>> {
        self.ensure("ensure_root", &spec.id, &Thing::Root, &[])?;
        Ok(Some(BlockDevice { major: 7, minor: 0 }))
    }

    fn drop_root(&self, id: &VmId) -> Result<()> {
        self.drop_thing("drop_root", id, &Thing::Root, &[Thing::Guest])
    }

    fn ensure_disks(
        &self,
        spec: &VmSpec,
        _: IdRange,
        wait: &dyn Fn() -> bool,
    ) -> Result<Vec<GivenDisk>> {
        if !spec.disks.is_empty() && wait() {
            return Err(Error::new(ErrorKind::Cancelled, "the check was broken off"));
        }
        let give = |disk: &DataDisk| {
            self.ensure("ensure_disk", &spec.id, &Thing::Disk(disk.number), &[])?;
            let device = BlockDevice { major: 7, minor: 1 + disk.number };
            Ok(GivenDisk { number: disk.number, device, note: None })
        };
        let given = spec.disks.iter().map(give).collect::<Result<Vec<_>>>();
        given.inspect_err(|_| {
            for disk in &spec.disks {
                if let Some(things) = self.state().things.get_mut(&spec.id) {
                    things.remove(&Thing::Disk(disk.number));
                }
            }
        })
    }

    fn drop_disks(&self, id: &VmId) -> Result<()> {
        let there = self.things(id).into_iter().filter(|thing| matches!(thing, Thing::Disk(_)));
        for disk in there.collect::<Vec<_>>() {
            self.drop_thing("drop_disk", id, &disk, &[Thing::Guest])?;
        }
        Ok(())
    }

    fn observe_roots(&self) -> Result<BTreeSet<VmId>> {
        Ok(self.anything_of())
    }
}

impl Cgroups for FakeHost {
    fn ensure_cgroup(&self, id: &VmId, resources: &Resources) -> Result<()> {
        self.ensure("ensure_cgroup", id, &Thing::Cgroup, &[])?;
        self.state().limits.insert(id.clone(), resources.clone());
        Ok(())
    }

    fn limit_disk(
        &self,
        id: &VmId,
        disk: &str,
        device: Option<BlockDevice>,
        io: &IoLimits,
    ) -> Result<()> {
        let needs = [Thing::Cgroup, Thing::Root];
        self.call(
            "limit_disk",
            |_| {},
            |state| {
                let have = state.things.get(id);
                if let Some(missing) =
                    needs.iter().find(|t| have.and_then(|have| have.get(t)) != Some(&true))
                {
                    return Err(Error::new(ErrorKind::Host, format!("limit_disk: {missing:?}")));
                }
                state.disk_limits.insert((id.clone(), disk.to_owned()), (device, *io));
                Ok(())
            },
        )
    }

    fn change_limits(&self, id: &VmId, resources: &Resources) -> Result<()> {
        self.call(
            "change_limits",
            |_| {},
            |state| {
                if state.things.get(id).and_then(|have| have.get(&Thing::Cgroup)) != Some(&true) {
                    return Err(Error::new(ErrorKind::Host, "change_limits without a group"));
                }
                state.limits.insert(id.clone(), resources.clone());
                Ok(())
            },
        )
    }

    fn drop_cgroup(&self, id: &VmId) -> Result<()> {
        self.drop_thing("drop_cgroup", id, &Thing::Cgroup, &[])
    }

    fn observe_cgroups(&self) -> Result<BTreeSet<VmId>> {
        Ok(self.anything_of())
    }
}

impl Guests for FakeHost {
    fn create_guest(&self, spec: &VmSpec, _: IdRange) -> Result<GuestFacts> {
        let id = &spec.id;
        let needs = [Thing::Namespaces, Thing::Root, Thing::Cgroup];
        let nics = spec.nics.iter().map(|nic| Thing::Nic(nic.host_name.to_string()));
        let disks = spec.disks.iter().map(|disk| Thing::Disk(disk.number));
        let needs: Vec<Thing> = needs.into_iter().chain(nics).chain(disks).collect();
        if self.state().guests.contains_key(id) {
            return Err(Error::new(ErrorKind::Host, "create_guest beside a guest"));
        }
        self.ensure("create_guest", id, &Thing::Guest, &needs)?;
        let state = self.state();
        let process = |pid| ProcessRef { pid, start_ticks: 1 };
        Ok(GuestFacts {
            init: process(100),
            shim: process(99),
            kind: match spec.boot.init {
                InitKind::System => GuestKind::System,
                InitKind::Auto | InitKind::Application => GuestKind::Application,
            },
            stop_signal: 15,
            host_boot: format!("boot-{}", state.boot),
        })
    }

    fn tell_guest(&self, spec: &VmSpec, _: &GuestFacts) -> Result<()> {
        self.call(
            "tell_guest",
            |_| {},
            |state| {
                if !matches!(
                    state.guests.get(&spec.id),
                    Some(Guest::Created | Guest::Running { .. })
                ) {
                    return Err(Error::new(ErrorKind::Host, "tell_guest without a guest"));
                }
                state.told.insert(spec.id.clone(), spec.context.clone());
                Ok(())
            },
        )
    }

    fn start_guest(&self, id: &VmId, _: &GuestFacts) -> Result<()> {
        self.call(
            "start_guest",
            |_| {},
            |state| {
                let running = Guest::Running { shim: true };
                let guest = state.short_lived.map_or(running, Guest::Exited);
                state.guests.insert(id.clone(), guest);
                Ok(())
            },
        )
    }

    fn signal_guest(&self, id: &VmId, _: &GuestFacts, signal: u8) -> Result<()> {
        self.call(
            "signal_guest",
            |_| {},
            |state| {
                if !state.stubborn && matches!(state.guests.get(id), Some(Guest::Running { .. })) {
                    state.guests.insert(id.clone(), Guest::Exited(GuestExit::Signal(signal)));
                }
                Ok(())
            },
        )
    }

    fn wait_exit(
        &self,
        id: &VmId,
        _: &GuestFacts,
        _: Duration,
        _: &dyn Fn() -> bool,
    ) -> Result<Option<GuestExit>> {
        self.call(
            "wait_exit",
            |_| {},
            |state| {
                Ok(match state.guests.get(id) {
                    Some(Guest::Exited(exit)) => Some(*exit),
                    Some(Guest::Created | Guest::Running { .. }) => None,
                    None => Some(GuestExit::Unknown),
                })
            },
        )
    }

    fn drop_guest(&self, id: &VmId) -> Result<()> {
        self.drop_thing("drop_guest", id, &Thing::Guest, &[])
    }

    fn observe_guest(&self, id: &VmId, _: Option<&GuestFacts>) -> Result<GuestView> {
        Ok(match self.state().guests.get(id) {
            None => GuestView::Absent,
            Some(Guest::Created) => GuestView::Created,
            Some(Guest::Running { shim }) => GuestView::Running { shim_alive: *shim },
            Some(Guest::Exited(exit)) => GuestView::Exited(*exit),
        })
    }

    fn adopt_guest(&self, spec: &VmSpec, facts: &GuestFacts) -> Result<Adoption> {
        let mut state = self.state();
        let lost = state.guests.get(&spec.id) == Some(&Guest::Running { shim: false });
        state.guests.insert(spec.id.clone(), Guest::Running { shim: true });
        let losses = if lost { vec!["console".to_owned()] } else { Vec::new() };
        Ok(Adoption { facts: facts.clone(), losses })
    }

    fn observe_guests(&self) -> Result<BTreeSet<VmId>> {
        Ok(self.anything_of())
    }

    fn last_words(&self, _: &VmId) -> Option<String> {
        None
    }

    fn last_lines(&self, id: &VmId) -> Vec<String> {
        vec![format!("{id} was here")]
    }

    fn forget_guest(&self, _: &VmId) -> Result<()> {
        self.call("forget_guest", |_| {}, |_| Ok(()))
    }
}

impl Displays for FakeHost {
    fn ensure_display(&self, id: &VmId, _: &Graphics, _: IdRange) -> Result<()> {
        self.ensure("ensure_display", id, &Thing::Display, &[])
    }

    fn drop_display(&self, id: &VmId) -> Result<()> {
        self.drop_thing("drop_display", id, &Thing::Display, &[])
    }

    fn observe_display(&self, id: &VmId, _: &Graphics) -> Result<bool> {
        Ok(self.state().things.get(id).and_then(|have| have.get(&Thing::Display)) == Some(&true))
    }

    fn observe_displays(&self) -> Result<BTreeSet<VmId>> {
        Ok(self.anything_of())
    }
}

impl IdRanges for FakeHost {
    fn take_ids(&self, id: &VmId) -> Result<IdRange> {
        let mut state = self.state();
        let next = 65_536 * (1 + state.ids.len() as u32);
        Ok(*state.ids.entry(id.clone()).or_insert(IdRange { base: next }))
    }

    fn free_ids(&self, id: &VmId) {
        self.state().ids.remove(id);
    }
}

impl Clock for FakeHost {
    fn now(&self) -> Timestamp {
        let mut state = self.state();
        state.now += 1;
        Timestamp(state.now)
    }

    fn host_boot(&self) -> String {
        format!("boot-{}", self.state().boot)
    }
}
