//! The ports of this host, put together.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ocivisor_core::engine::Engine;
use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ids::{IdRange, VmId};
use ocivisor_core::ports::{
    Cgroups, Clock, Displays as _, Guests as _, IdRanges, Loaded, Network, Ports, Records, Storage,
};
use ocivisor_core::state::{GuestFacts, ProcessRef, Timestamp};
use ocivisor_host::cgroup::HostCgroups;
use ocivisor_host::fs::{ensure_dir, io_error, read_bounded, replace};
use ocivisor_host::guests::HostGuests;
use ocivisor_host::layout::Layout;
use ocivisor_host::network::HostNetwork;
use ocivisor_host::stats::Sampler;
use ocivisor_host::storage::HostStorage;

use crate::config::Config;
use crate::failures::Failures;
use crate::ids::Ranges;
use crate::images::Images;
use crate::records::FileRecords;

/// Adapters and what they share.
#[derive(Debug)]
pub struct Host {
    /// Where things are.
    pub layout: Layout,
    /// Records.
    pub records: FileRecords,
    /// What is kept of failures.
    pub failures: Failures,
    /// The image store.
    pub images: Images,
    /// Guests, their shims and displays.
    pub guests: HostGuests,
    /// Control groups.
    pub cgroups: HostCgroups,
    /// Mounts and disks.
    pub storage: HostStorage,
    /// NICs.
    pub network: HostNetwork,
    /// What guests use.
    pub sampler: Sampler,
    ids: Ranges,
    clock: HostClock,
    settle: Duration,
    /// Guests that have a task watching them.
    watched: Mutex<HashSet<(VmId, ProcessRef, ProcessRef)>>,
    watched_helpers: Mutex<HashSet<(VmId, ProcessRef)>>,
}

#[derive(Debug)]
struct HostClock {
    boot: String,
}

impl Host {
    /// Looks at this host.
    ///
    /// # Errors
    /// The host lacks something, or the store cannot be opened.
    pub fn new(config: &Config) -> Result<Self> {
        let layout = config.layout();
        install_init(config, &layout)?;
        let cgroups = HostCgroups::new(&layout)?.with_policy(config.guests.limits());
        let images = Images::open(config, &layout, &cgroups)?;
        let path = std::path::Path::new("/proc/sys/kernel/random/boot_id");
        let boot = std::fs::read_to_string(path).map_err(|e| io_error("read", path, &e))?;
        let boot = crate::faults::boot(boot.trim().to_owned());
        Ok(Self {
            records: FileRecords::new(layout.clone()),
            failures: Failures::new(layout.clone()),
            guests: crate::exec::guests(config, &layout, &cgroups, &boot),
            storage: HostStorage::new(layout.clone(), images.layers(), config.guests.labels())
                .with_tenant_filesystems(config.disks.tenant_filesystems.into())
                .with_checks(config.disks.checks(), cgroups.clone()),
            network: HostNetwork::new(layout.clone()),
            sampler: crate::stats::sampler(),
            ids: Ranges::new(&config.guests),
            clock: HostClock { boot },
            settle: Duration::from_millis(config.guests.settle_ms),
            watched: Mutex::default(),
            watched_helpers: Mutex::default(),
            layout,
            images,
            cgroups,
        })
    }

    /// The engine on this host.
    pub fn engine(&self) -> Engine<'_> {
        let ports = Ports {
            records: &self.records,
            network: &self.network,
            storage: &self.storage,
            cgroups: &self.cgroups,
            guests: &self.guests,
            displays: &self.guests,
            ids: self,
            clock: &self.clock,
        };
        Engine { ports, settle: self.settle }
    }

    /// All records on disk; the ranges of ids they hold are taken.
    pub fn load(&self) -> Result<Vec<Loaded>> {
        let loaded = self.records.load_all()?;
        for entry in &loaded {
            match entry {
                Loaded::Record(record) => {
                    if let Some(ids) = record.ids {
                        self.ids.note(record.id(), ids);
                    }
                }
                // Its guest may run on; then its directory is given to the group of its range.
                Loaded::Damaged(id, _) => {
                    let dir = fs::metadata(self.layout.run_vm(id).dir());
                    if let Some(base) = dir.ok().map(|dir| dir.gid()).filter(|gid| *gid != 0) {
                        self.ids.note(id, IdRange { base });
                    }
                }
            }
        }
        Ok(loaded)
    }

    /// VMs of which anything is on the host.
    pub fn observe_all(&self) -> Result<BTreeSet<VmId>> {
        let mut seen = self.guests.observe_guests()?;
        seen.extend(self.guests.observe_displays()?);
        seen.extend(self.cgroups.observe_cgroups()?);
        seen.extend(self.storage.observe_roots()?);
        seen.extend(self.network.observe_network()?);
        Ok(seen)
    }

    /// Whether anything of this VM is on the host.
    pub fn remains_of(&self, id: &VmId) -> Result<bool> {
        Ok(self.observe_all()?.contains(id))
    }

    /// Now.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// This boot of the host.
    pub fn boot(&self) -> &str {
        &self.clock.boot
    }

    /// Notes that a guest is being watched; false if it was already.
    pub fn begin_watch(&self, id: &VmId, facts: &GuestFacts) -> bool {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.insert((id.clone(), facts.init, facts.shim))
    }

    /// Notes that it is no longer.
    pub fn end_watch(&self, id: &VmId, facts: &GuestFacts) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.remove(&(id.clone(), facts.init, facts.shim));
    }

    /// Notes that a display, or who serves a disk, is being watched, by its first process; false if it was already.
    pub fn begin_helper_watch(&self, id: &VmId, keeper: ProcessRef) -> bool {
        let mut watched = self.watched_helpers.lock().unwrap_or_else(PoisonError::into_inner);
        watched.insert((id.clone(), keeper))
    }

    /// Notes that it is no longer.
    pub fn end_helper_watch(&self, id: &VmId, keeper: ProcessRef) {
        let mut watched = self.watched_helpers.lock().unwrap_or_else(PoisonError::into_inner);
        watched.remove(&(id.clone(), keeper));
    }
}

/// Puts the small init of application guests where they can see it. They pass through the state
/// directory by its path, and through nothing else in it: all other directories there are closed.
fn install_init(config: &Config, layout: &Layout) -> Result<()> {
    const MAX: u64 = 64 << 20;
    let (from, to) = (config.libexec().join("ocivisor-init"), layout.init_program());
    let wanted = read_bounded(&from, MAX)?.ok_or_else(|| {
        let what = format!("{} is not installed", from.display());
        Error::new(ErrorKind::Unsupported, what).hint("see libexec_dir in the configuration")
    })?;
    let open = |path: &Path, mode: u32| {
        let set = fs::set_permissions(path, fs::Permissions::from_mode(mode));
        set.map_err(|e| io_error("change the mode of", path, &e))
    };
    ensure_dir(&layout.state.join("libexec"), true)?;
    open(&layout.state, 0o711)?;
    // Operators pass through to the socket, guests to their own directories; neither sees a name.
    open(&layout.run, 0o711)?;
    open(&layout.state.join("libexec"), 0o711)?;
    if read_bounded(&to, MAX)?.as_deref() != Some(&wanted[..]) {
        // A new file under the old name: guests that run keep the old one.
        replace(&to, &wanted)?;
    }
    open(&to, 0o755)
}

impl IdRanges for Host {
    fn take_ids(&self, id: &VmId) -> Result<IdRange> {
        self.ids.take(id)
    }

    fn free_ids(&self, id: &VmId) {
        self.ids.free(id);
    }
}

/// The host's clock.
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

impl Clock for HostClock {
    fn now(&self) -> Timestamp {
        now()
    }

    fn host_boot(&self) -> String {
        self.boot.clone()
    }
}
