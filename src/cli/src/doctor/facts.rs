//! What the host says of itself. Everything here is read, nothing is decided.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::modules::{Kernel, Support};
use super::onlookers::Onlookers;
use super::probes;
use super::records::Records;

/// Where host tools are looked for; the same path that the daemon gives them.
const TOOL_PATH: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Which hierarchies of control groups are mounted, with their controllers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CgroupFacts {
    /// Controllers of the v2 hierarchy that is mounted at /sys/fs/cgroup itself.
    pub v2: Option<BTreeSet<String>>,
    /// Controllers with a v1 hierarchy of their own.
    pub v1: BTreeSet<String>,
    /// A v2 hierarchy is mounted beside v1 ones, for tracking.
    pub tracking: bool,
    /// Swap can be limited (`memory.swap.max` or `memory.memsw.limit_in_bytes` exists).
    pub swap: bool,
}

/// What connecting to the daemon's socket gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SocketFacts {
    /// Somebody accepts connections.
    Accepts,
    /// No such file.
    Missing,
    /// A file, but nobody listens.
    Dead,
    /// We may not connect.
    Denied,
    /// Another error.
    Odd(String),
}

/// What looking at lxcfs gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LxcfsFacts {
    /// It answers.
    Answers,
    /// It is not mounted.
    Missing,
    /// It is mounted and gives this error.
    Dead(String),
    /// It is mounted and does not answer.
    Hangs,
}

/// The security module that can label guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModuleFacts {
    /// Neither of them is on.
    None,
    /// AppArmor, and whether it has the profile of guests; `None` where that cannot be read.
    AppArmor(Option<bool>),
    /// SELinux, and whether its policy has the types of containers.
    Selinux(bool),
}

/// A filesystem and the space on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Space {
    /// The nearest existing directory.
    pub path: PathBuf,
    /// Name of its filesystem, as far as known.
    pub filesystem: String,
    /// Bytes that can still be written.
    pub available: u64,
}

/// A probe of a kernel feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probed {
    /// Tried: it works.
    Works,
    /// Tried: the kernel does not know it.
    Missing,
    /// Not tried, for want of privileges.
    NotTried,
}

/// Everything that the checks look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// `uname -r`.
    pub release: String,
    /// `uname -m`.
    pub machine: String,
    /// Effective user id.
    pub euid: u32,
    /// Bounding set of capabilities, a bit per capability.
    pub cap_bounding: Option<u64>,
    /// Contents of one-value files, trimmed; absent if they do not exist.
    pub values: BTreeMap<&'static str, String>,
    /// Filesystems and features that may be modules.
    pub support: BTreeMap<&'static str, Support>,
    /// Control groups.
    pub cgroups: CgroupFacts,
    /// Overlay takes lower layers one by one (`lowerdir+`).
    pub lowerdir_plus: Probed,
    /// The namespaces of /proc/self/ns.
    pub namespaces: BTreeSet<String>,
    /// /dev/loop-control exists.
    pub loop_control: bool,
    /// Tools that were found.
    pub tools: BTreeSet<&'static str>,
    /// Programs of ours that were found.
    pub programs: BTreeSet<&'static str>,
    /// Space for state and disks.
    pub space: Option<Space>,
    /// Records of VMs, where we may read them.
    pub records: Option<Records>,
    /// /run/systemd/system exists (sd_booted(3)).
    pub systemd: bool,
    /// lxcfs, where packages mount it.
    pub lxcfs: LxcfsFacts,
    /// What can label guests.
    pub module: ModuleFacts,
    /// Who may look into disks of guests.
    pub onlookers: Onlookers,
    /// The daemon's socket.
    pub socket: (PathBuf, SocketFacts),
}

/// Where packages mount lxcfs.
pub const LXCFS: &str = "/var/lib/lxcfs";

/// Files with one value that the checks read.
pub const VALUE_FILES: [&str; 13] = [
    "/proc/sys/user/max_user_namespaces",
    "/proc/sys/user/max_net_namespaces",
    "/proc/sys/user/max_mnt_namespaces",
    "/proc/sys/kernel/pid_max",
    "/proc/sys/kernel/threads-max",
    "/proc/sys/kernel/pty/max",
    "/proc/sys/kernel/keys/maxkeys",
    "/proc/sys/kernel/seccomp/actions_avail",
    "/proc/sys/fs/file-max",
    "/proc/sys/fs/inotify/max_user_instances",
    "/proc/sys/net/bridge/bridge-nf-call-iptables",
    "/proc/sys/net/ipv4/neigh/default/gc_thresh3",
    "/proc/sys/vm/overcommit_memory",
];

/// Tools that the checks ask for.
pub const TOOLS: [&str; 8] = [
    "mkfs.ext4",
    "e2fsck",
    "resize2fs",
    "criu",
    "qemu-img",
    "qemu-storage-daemon",
    "ovs-vsctl",
    "nft",
];

/// Programs of ours that the daemon starts.
pub const PROGRAMS: [&str; 5] =
    ["ocivisor-runtime", "ocivisor-shim", "ocivisor-init", "ocivisor-unpack", "ocivisor-vnc"];

impl Facts {
    /// Reads them from this host.
    #[must_use]
    pub fn gather(socket: &Path, state_dir: &Path) -> Self {
        let uname = rustix::system::uname();
        let release = uname.release().to_string_lossy().into_owned();
        let kernel = Kernel::read(&release);
        let status = text("/proc/self/status").unwrap_or_default();
        let modules = super::modules::WANTED.into_iter();
        Self {
            machine: uname.machine().to_string_lossy().into_owned(),
            euid: rustix::process::geteuid().as_raw(),
            cap_bounding: cap_bounding(&status),
            values: VALUE_FILES
                .into_iter()
                .filter_map(|path| Some((path, text(path)?.trim().to_owned())))
                .collect(),
            support: modules.map(|want| (want.name, kernel.support(&want))).collect(),
            cgroups: probes::cgroups(&text("/proc/self/mountinfo").unwrap_or_default()),
            lowerdir_plus: probes::lowerdir_plus(),
            namespaces: names_in("/proc/self/ns"),
            loop_control: Path::new("/dev/loop-control").exists(),
            tools: TOOLS.into_iter().filter(|tool| installed(tool)).collect(),
            programs: PROGRAMS.into_iter().filter(|program| is_ours(program)).collect(),
            space: probes::space(state_dir),
            records: Records::read(state_dir),
            systemd: Path::new("/run/systemd/system").is_dir(),
            lxcfs: probes::lxcfs(Path::new(LXCFS)),
            module: probes::module(Path::new("/sys")),
            onlookers: Onlookers::look(Path::new("/")),
            socket: (socket.to_owned(), probes::socket(socket)),
            release,
        }
    }

    /// A one-value file as a number.
    #[must_use]
    pub fn number(&self, path: &str) -> Option<u64> {
        self.values.get(path)?.split_whitespace().next()?.parse().ok()
    }

    /// Major and minor version of the kernel.
    #[must_use]
    pub fn version(&self) -> Option<(u32, u32)> {
        let mut parts = self.release.split(|c: char| !c.is_ascii_digit());
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    }
}

/// A file of at most 1 MiB as text; `None` if it cannot be read.
pub(super) fn text(path: impl AsRef<Path>) -> Option<String> {
    let mut bytes = Vec::new();
    fs::File::open(path).ok()?.take(1 << 20).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// `CapBnd` of /proc/self/status (proc(5)).
fn cap_bounding(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|l| l.strip_prefix("CapBnd:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn names_in(dir: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Whether a program is where the daemon looks if its configuration names no other place.
fn is_ours(program: &str) -> bool {
    let exe = std::env::current_exe().ok();
    let beside = exe.as_deref().and_then(Path::parent);
    let dirs = beside.into_iter().chain([Path::new("/usr/libexec/ocivisor")]);
    dirs.into_iter().any(|dir| dir.join(program).is_file())
}

fn installed(tool: &str) -> bool {
    TOOL_PATH.iter().any(|dir| Path::new(dir).join(tool).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_can_be_asked() {
        let facts = Facts::gather(Path::new("/nonexistent/sock"), Path::new("/nonexistent"));
        assert!(facts.version().is_some_and(|v| v >= (4, 0)), "{}", facts.release);
        assert_eq!(facts.socket.1, SocketFacts::Missing);
        assert!(facts.namespaces.contains("net"));
        assert_eq!(facts.space.map(|s| s.path), Some(PathBuf::from("/")));
    }

    #[test]
    fn the_bounding_set_is_read() {
        assert_eq!(
            cap_bounding("Name:\tx\nCapBnd:\t000001fffeffffff\nSeccomp:\t0\n"),
            Some(0x1ff_feff_ffff)
        );
        assert_eq!(cap_bounding("Name:\tx\n"), None);
    }
}
