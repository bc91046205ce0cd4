//! What the engine needs of a host. Adapters are in `ocivisor-host`, fakes in
//! `testing`.
//!
//! Verbs keep their promises everywhere: `ensure_*` may run twice and leaves nothing if it fails,
//! `drop_*` succeeds on absence and works from the VM's id alone (its record may be lost),
//! `observe_*` changes nothing. Any of them may be cut off by a crash between two system calls;
//! running it, or its opposite, again must mend that.
//!
//! All are synchronous; a call that can wait takes a deadline.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use crate::error::Result;
use crate::ids::{IdRange, VmId};
use crate::spec::{Graphics, IoLimits, NicSpec, Resources, VmSpec};
use crate::state::{GuestExit, GuestFacts, Record, Timestamp};

/// Records on disk.
pub trait Records: Send + Sync {
    /// All records that can be read, and what is wrong with those that cannot.
    ///
    /// # Errors
    /// The directory cannot be read.
    fn load_all(&self) -> Result<Vec<Loaded>>;

    /// Writes a record so that a crash leaves the old or the new one; durable on return.
    ///
    /// # Errors
    /// Not written, the old record stands.
    fn save(&self, record: &Record) -> Result<()>;

    /// Forgets a record; durable on return; absent is fine.
    ///
    /// # Errors
    /// It is still there.
    fn remove(&self, id: &VmId) -> Result<()>;
}

/// One record, or why it cannot be used.
#[derive(Debug)]
pub enum Loaded {
    /// Readable and valid.
    Record(Box<Record>),
    /// Set aside, never overwritten; the VM's id and what is wrong.
    Damaged(VmId, String),
}

/// Namespaces that outlive a boot of the guest, and the NICs in them.
pub trait Network: Send + Sync {
    /// A user namespace with this id range and a network namespace that it owns, loopback up, both
    /// pinned so that they outlive every process.
    ///
    /// # Errors
    /// Nothing was made.
    fn ensure_namespaces(&self, id: &VmId, ids: IdRange) -> Result<()>;

    /// Unpins them; NICs in them vanish with them.
    ///
    /// # Errors
    /// They are still pinned.
    fn drop_namespaces(&self, id: &VmId) -> Result<()>;

    /// The NIC: both ends named, up, with MAC, MTU, addresses and routes; the host's end on its
    /// bridge and marked as ours.
    ///
    /// # Errors
    /// Nothing was made. `NotFound`: no such bridge. `Conflict`: the name or the MAC is in use.
    fn ensure_nic(&self, id: &VmId, nic: &NicSpec) -> Result<()>;

    /// Changes a NIC that was made as `from`, in a guest that lives, to `to`: MTU, addresses, routes, rates. Name,
    /// index, bridge and MAC are the same in both. What the guest itself set beyond that stays.
    ///
    /// # Errors
    /// Some of it may be changed; altering it back mends that.
    fn alter_nic(&self, id: &VmId, from: &NicSpec, to: &NicSpec) -> Result<()>;

    /// Takes the NIC away if it is there and ours.
    ///
    /// # Errors
    /// It is still there.
    fn drop_nic(&self, id: &VmId, nic: &NicSpec) -> Result<()>;

    /// VMs that have namespaces pinned or links marked as theirs.
    ///
    /// # Errors
    /// The kernel does not tell.
    fn observe_network(&self) -> Result<BTreeSet<VmId>>;
}

/// The root filesystem of a guest, and its other disks.
pub trait Storage: Send + Sync {
    /// The root disk mounted at the VM's place, writable, with ids shifted to the range. The device
    /// that it is on and that no other VM uses; `None` if it is a directory of the host.
    ///
    /// # Errors
    /// Nothing is mounted or attached. `NotFound`: the disk, its manifest or a layer is missing.
    /// `Conflict`: another VM uses the disk.
    fn ensure_root(&self, spec: &VmSpec, ids: IdRange) -> Result<Option<BlockDevice>>;

    /// Unmounts it and detaches its devices; all data is on the disk on return.
    ///
    /// # Errors
    /// Something still uses it; says what.
    fn drop_root(&self, id: &VmId) -> Result<()>;

    /// The data disks of the spec attached, those of them mounted that are to be, all of them claimed: no other VM writes
    /// what one of them reads, or reads what one writes. In the order of the spec. Checking them may take minutes, in the
    /// VM's control group, which is there.
    ///
    /// # Errors
    /// No data disk of the VM is mounted or attached. `NotFound`: a disk is missing. `Conflict`: another VM, or the host,
    /// uses it. `Integrity`: its filesystem is damaged. `Invalid`: nothing in it that could be mounted. `Permission`: the
    /// host mounts no tenants' filesystems. `Unsupported`: the host lacks something, which is named. `Cancelled`:
    /// `give_up` said so. `Timeout`: checking took too long.
    fn ensure_disks(
        &self,
        spec: &VmSpec,
        ids: IdRange,
        give_up: &dyn Fn() -> bool,
    ) -> Result<Vec<GivenDisk>>;

    /// Unmounts and detaches all data disks; all data is on them on return.
    ///
    /// # Errors
    /// Something still uses one of them; says what.
    fn drop_disks(&self, id: &VmId) -> Result<()>;

    /// VMs that have something mounted or attached.
    ///
    /// # Errors
    /// The kernel does not tell.
    fn observe_roots(&self) -> Result<BTreeSet<VmId>>;
}

/// A data disk that is attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenDisk {
    /// Which, see [`crate::spec::DataDisk::number`].
    pub number: u32,
    /// Its device, which no other VM uses.
    pub device: BlockDevice,
    /// What its owner should know of how it is given, in words for the record.
    pub note: Option<String>,
}

/// A block device of the host, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockDevice {
    /// Which driver's.
    pub major: u32,
    /// Which of them.
    pub minor: u32,
}

impl fmt::Display for BlockDevice {
    /// As the kernel writes it: `7:3`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// Control groups: limits, and the certainty that nothing of a VM survives.
///
/// A wish that this host cannot enforce is refused, never dropped: `Unsupported` names what is missing,
/// `NotFound` the processor, memory node or size of page that the host does not have.
pub trait Cgroups: Send + Sync {
    /// The VM's groups with these limits, for a guest that is to be made.
    ///
    /// # Errors
    /// None were made.
    fn ensure_cgroup(&self, id: &VmId, resources: &Resources) -> Result<()>;

    /// Bounds the guest's traffic with the device of a disk, if that has one; `disk` is its name in the spec.
    ///
    /// # Errors
    /// It is not bounded. `Unsupported`: also if there is a bound and no device.
    fn limit_disk(
        &self,
        id: &VmId,
        disk: &str,
        device: Option<BlockDevice>,
        io: &IoLimits,
    ) -> Result<()>;

    /// Gives a guest that lives these limits.
    ///
    /// # Errors
    /// The limits are those of before and the guest lives on. `Exhausted`: it uses more than it would be
    /// left with.
    fn change_limits(&self, id: &VmId, resources: &Resources) -> Result<()>;

    /// Kills every process in the VM's groups, waits until they are gone, removes the groups.
    ///
    /// # Errors
    /// Something could not be killed in time; says which process.
    fn drop_cgroup(&self, id: &VmId) -> Result<()>;

    /// VMs that have groups.
    ///
    /// # Errors
    /// The kernel does not tell.
    fn observe_cgroups(&self) -> Result<BTreeSet<VmId>>;
}

/// What is seen of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestView {
    /// No process of it.
    Absent,
    /// Created, its first instruction not yet run.
    Created,
    /// Its first process runs; whether its shim does.
    Running {
        /// False: the shim died, adoption is due.
        shim_alive: bool,
    },
    /// Its first process ended.
    Exited(GuestExit),
}

/// Result of an adoption.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adoption {
    /// The guest with its (perhaps new) shim.
    pub facts: GuestFacts,
    /// What could not be kept, in words for the record; empty if all is whole.
    pub losses: Vec<String>,
}

/// Guests: first processes and their shims.
pub trait Guests: Send + Sync {
    /// The guest's first process, confined and waiting, under a shim. Needs namespaces, root and
    /// cgroup. A guest of that id must not exist.
    ///
    /// # Errors
    /// Nothing was left. `Image`: no such entrypoint, user or directory in the image.
    fn create_guest(&self, spec: &VmSpec, ids: IdRange) -> Result<GuestFacts>;

    /// Writes what the guest is told about itself into its root filesystem, from within its own namespaces: before
    /// its first instruction, or while it runs. What an earlier telling wrote and this one does not is taken back.
    ///
    /// # Errors
    /// Some of it may be written: it is gone, or whole, after the next telling. `Image`: the guest's files do not let
    /// themselves be written. `NotFound`, `Invalid`: the context's disk is not there, or is not sound.
    fn tell_guest(&self, spec: &VmSpec, facts: &GuestFacts) -> Result<()>;

    /// Lets a created guest run; runs already is fine.
    ///
    /// # Errors
    /// It does not run.
    fn start_guest(&self, id: &VmId, facts: &GuestFacts) -> Result<()>;

    /// Sends a signal to the guest's first process; ended already is fine.
    ///
    /// # Errors
    /// Not sent.
    fn signal_guest(&self, id: &VmId, facts: &GuestFacts, signal: u8) -> Result<()>;

    /// Waits until the guest's first process ended; `None` if `timeout` passed or `give_up` says so.
    ///
    /// # Errors
    /// Waiting is impossible.
    fn wait_exit(
        &self,
        id: &VmId,
        facts: &GuestFacts,
        timeout: Duration,
        give_up: &dyn Fn() -> bool,
    ) -> Result<Option<GuestExit>>;

    /// Kills guest and shim and clears their files; the console log stays.
    ///
    /// # Errors
    /// Something of it still runs.
    fn drop_guest(&self, id: &VmId) -> Result<()>;

    /// What is there now.
    ///
    /// # Errors
    /// Cannot tell.
    fn observe_guest(&self, id: &VmId, facts: Option<&GuestFacts>) -> Result<GuestView>;

    /// Makes sure that a running guest has a shim that answers.
    ///
    /// # Errors
    /// It has none; the guest runs on.
    fn adopt_guest(&self, spec: &VmSpec, facts: &GuestFacts) -> Result<Adoption>;

    /// VMs that have files or processes of a guest.
    ///
    /// # Errors
    /// Cannot tell.
    fn observe_guests(&self) -> Result<BTreeSet<VmId>>;

    /// The last line that the guest wrote to its console, escaped; for error messages.
    fn last_words(&self, id: &VmId) -> Option<String>;

    /// The last lines that the guest wrote to its console, escaped, none empty; bounded as
    /// [`KeptFailure::console`](crate::failure::KeptFailure::console).
    fn last_lines(&self, id: &VmId) -> Vec<String>;

    /// Forgets what outlives a guest (its console log), when its VM is forgotten.
    ///
    /// # Errors
    /// Files are still there.
    fn forget_guest(&self, id: &VmId) -> Result<()>;
}

/// Displays: what shows a guest's console to clients of the network.
///
/// A display belongs to the VM, not to one boot of it: it is there before the guest and after a reboot the same, and it
/// outlives the daemon. It needs nothing of the guest but its console, and the guest nothing of it.
pub trait Displays: Send + Sync {
    /// A display that listens as wished, as an id of the range; one that does already is left alone.
    ///
    /// # Errors
    /// There is none. `Conflict`: the port is in use. `NotFound`: the host does not have the address.
    fn ensure_display(&self, id: &VmId, graphics: &Graphics, ids: IdRange) -> Result<()>;

    /// Ends it; clients are cut off.
    ///
    /// # Errors
    /// It is still there.
    fn drop_display(&self, id: &VmId) -> Result<()>;

    /// Whether it is there and listens as wished.
    ///
    /// # Errors
    /// Cannot tell.
    fn observe_display(&self, id: &VmId, graphics: &Graphics) -> Result<bool>;

    /// VMs of whose display anything is there.
    ///
    /// # Errors
    /// Cannot tell.
    fn observe_displays(&self) -> Result<BTreeSet<VmId>>;
}

/// Ranges of user and group ids, one per VM.
pub trait IdRanges: Send + Sync {
    /// The VM's range: the one that it has, else a free one. Two VMs never share an id.
    ///
    /// # Errors
    /// `Exhausted`: none is free.
    fn take_ids(&self, id: &VmId) -> Result<IdRange>;

    /// Gives the VM's range back; has none is fine. Only after nothing carries its ids.
    fn free_ids(&self, id: &VmId);
}

/// Time.
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> Timestamp;

    /// This boot of the host (/proc/sys/kernel/random/boot_id).
    fn host_boot(&self) -> String;
}

/// All ports of a host.
#[derive(Clone, Copy)]
pub struct Ports<'a> {
    /// See [`Records`].
    pub records: &'a dyn Records,
    /// See [`Network`].
    pub network: &'a dyn Network,
    /// See [`Storage`].
    pub storage: &'a dyn Storage,
    /// See [`Cgroups`].
    pub cgroups: &'a dyn Cgroups,
    /// See [`Guests`].
    pub guests: &'a dyn Guests,
    /// See [`Displays`].
    pub displays: &'a dyn Displays,
    /// See [`IdRanges`].
    pub ids: &'a dyn IdRanges,
    /// See [`Clock`].
    pub clock: &'a dyn Clock,
}

impl fmt::Debug for Ports<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ports")
    }
}
