//! What a VM shall be: the caller's wish, checked once, kept verbatim in the record.

use std::net::IpAddr;
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::ids::{DisplayName, Hostname, IfName, MacAddr, VmId};
use crate::units::{Bytes, CentiCores};

/// The whole wish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmSpec {
    /// Who it is.
    pub id: VmId,
    /// What people call it.
    pub name: DisplayName,
    /// What it calls itself.
    pub hostname: Hostname,
    /// Who asked for it; guests of a platform are never restarted behind its back.
    pub platform: Platform,
    /// Processor, memory and process limits.
    pub resources: Resources,
    /// What its first process is.
    pub boot: Boot,
    /// The root disk: a writable disk whose manifest names the layers below it.
    pub root: RootDisk,
    /// Network interfaces, `eth<index>` inside.
    pub nics: Vec<NicSpec>,
    /// How strictly it is confined.
    pub isolation: Isolation,
}

/// Who drives a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Platform {
    /// An admin of this host.
    Local,
    /// OpenNebula's drivers.
    OpenNebula,
    /// OpenStack Nova.
    OpenStack,
}

/// Limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resources {
    /// Share under contention, in hundredths of a core: becomes cpu.weight / cpu.shares.
    pub cpu_share: CentiCores,
    /// Processors the guest may use at once: the hard quota is this many cores.
    pub vcpus: u32,
    /// A lower hard quota, if the host's policy or the caller wants one.
    pub cpu_quota: Option<CentiCores>,
    /// Memory limit.
    pub memory: Bytes,
    /// Swap beyond memory; zero is none.
    pub swap: Bytes,
    /// Most processes and threads.
    pub pids: u32,
}

impl Resources {
    /// Least memory that a guest can be started with.
    pub const MIN_MEMORY: Bytes = Bytes::mib(4);
    /// Processes and threads a guest gets if nothing is said.
    pub const DEFAULT_PIDS: u32 = 4096;

    /// The hard quota that results: the explicit one, never more than the processors.
    #[must_use]
    pub fn effective_quota(&self) -> CentiCores {
        let all = CentiCores(self.vcpus.saturating_mul(100));
        self.cpu_quota.map_or(all, |quota| quota.min(all))
    }
}

/// Which kind of first process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InitKind {
    /// Look at the image: an init there makes a system, else an application.
    Auto,
    /// The image's own init (systemd, sysvinit, busybox, OpenRC).
    System,
    /// Entrypoint and command of the image's configuration.
    Application,
}

/// What overrides the image's configuration; `None` leaves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// Kind of the first process.
    pub init: InitKind,
    /// Replaces the image's entrypoint, and drops its command, as Docker does.
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's command.
    pub cmd: Option<Vec<String>>,
    /// Added to the image's environment, later ones win.
    pub env: Vec<(String, String)>,
    /// `user[:group]`, names or numbers, resolved inside the guest.
    pub user: Option<String>,
    /// Absolute path inside the guest.
    pub workdir: Option<String>,
    /// Signal that asks the first process to end, 1 to 64.
    pub stop_signal: Option<u8>,
}

impl Default for Boot {
    fn default() -> Self {
        Self {
            init: InitKind::Auto,
            entrypoint: None,
            cmd: None,
            env: Vec::new(),
            user: None,
            workdir: None,
            stop_signal: None,
        }
    }
}

/// The root disk, where the platform put it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootDisk {
    /// The writable disk: a file (ext4 image) or, for the plain backend, a directory. Its manifest
    /// is beside it, `<path>.manifest.json`. Absolute and normal ([`normal_path`]).
    pub path: PathBuf,
}

/// What a NIC's host end is plugged into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bridge {
    /// Nothing: the platform plugs it.
    None,
    /// A Linux bridge.
    Linux(IfName),
    /// An Open vSwitch bridge.
    OpenVswitch(IfName),
}

/// One network interface: a veth pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicSpec {
    /// Inside it is `eth<index>`.
    pub index: u32,
    /// Name of the host's end, as the platform gives it (OpenNebula `one-42-0`).
    pub host_name: IfName,
    /// Where the host's end is plugged in.
    pub bridge: Bridge,
    /// Address of the guest's end.
    pub mac: MacAddr,
    /// MTU of both ends; `None` is the bridge's, else the kernel's.
    pub mtu: Option<u32>,
    /// Addresses with prefix length.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Routes, default ones included.
    pub routes: Vec<Route>,
}

impl NicSpec {
    /// Name of the guest's end.
    #[must_use]
    pub fn guest_name(&self) -> String {
        format!("eth{}", self.index)
    }
}

/// A route inside the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Destination network; `None` is the default route of the gateway's family.
    pub destination: Option<(IpAddr, u8)>,
    /// Next hop; need not be in a network of the NIC (it is made reachable on link).
    pub gateway: IpAddr,
    /// Smaller wins.
    pub metric: Option<u32>,
}

/// Profiles of confinement. Which ones a caller may ask for is the host's policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Isolation {
    /// Own user namespace and id range, seccomp list, masked paths, device list.
    Default,
}

impl VmSpec {
    /// Checks what the types cannot: bounds, duplicates and combinations.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`], naming the field.
    pub fn check(&self) -> Result<()> {
        let id = &self.id;
        let bad = |what: String| Err(Error::new(ErrorKind::Invalid, format!("vm {id}: {what}")));
        let r = &self.resources;
        if r.vcpus == 0 || r.vcpus > 4096 {
            return bad(format!("vcpus is {}, must be 1 to 4096", r.vcpus));
        }
        if r.cpu_share.0 == 0 || r.cpu_share.0 > 409_600 {
            return bad(format!("cpu share is {}, must be 0.01 to 4096 cores", r.cpu_share));
        }
        if r.cpu_quota.is_some_and(|quota| quota.0 == 0) {
            return bad("cpu quota is 0, must be at least 0.01 cores".into());
        }
        if r.memory < Resources::MIN_MEMORY {
            return bad(format!(
                "memory is {}, a guest needs at least {}",
                r.memory,
                Resources::MIN_MEMORY
            ));
        }
        if r.memory.0 > 1 << 50 || r.swap.0 > 1 << 50 {
            return bad("memory and swap must be at most 1024 TiB".into());
        }
        if r.pids < 16 {
            return bad(format!("pids limit is {}, must be at least 16", r.pids));
        }
        if normal_path(&self.root.path).as_deref() != Some(self.root.path.as_path()) {
            return bad(format!("root disk path {:?} is not absolute and normal", self.root.path));
        }
        self.check_boot().or_else(&bad)?;
        self.check_nics().or_else(bad)
    }

    fn check_boot(&self) -> std::result::Result<(), String> {
        const MAX_STRINGS: usize = 4096;
        const MAX_BYTES: usize = 128 * 1024;
        let boot = &self.boot;
        let argv = boot.entrypoint.iter().chain(&boot.cmd).flatten().map(String::as_str);
        let env = boot.env.iter().flat_map(|(k, v)| [k.as_str(), v.as_str()]);
        let rest = [&boot.user, &boot.workdir].into_iter().flatten().map(String::as_str);
        let all: Vec<&str> = argv.chain(env).chain(rest).collect();
        if all.iter().any(|text| text.contains('\0')) {
            return Err("boot settings must not hold NUL bytes".into());
        }
        if all.len() > MAX_STRINGS || all.iter().map(|t| t.len()).sum::<usize>() > MAX_BYTES {
            return Err("boot settings must be at most 4096 strings and 128 KiB".into());
        }
        if let Some((name, _)) = boot.env.iter().find(|(k, _)| k.is_empty() || k.contains('=')) {
            return Err(format!("environment variable name {name:?} is empty or holds ="));
        }
        if boot.entrypoint.as_ref().is_some_and(Vec::is_empty) {
            return Err("entrypoint is given but empty".into());
        }
        if boot.workdir.as_ref().is_some_and(|dir| !dir.starts_with('/')) {
            return Err("working directory is not absolute".into());
        }
        if boot.stop_signal.is_some_and(|signal| signal == 0 || signal > 64) {
            return Err("stop signal must be 1 to 64".into());
        }
        Ok(())
    }

    fn check_nics(&self) -> std::result::Result<(), String> {
        if self.nics.len() > 64 {
            return Err(format!("{} network interfaces, at most 64", self.nics.len()));
        }
        for (at, nic) in self.nics.iter().enumerate() {
            let name = &nic.host_name;
            if nic.index > 9999 {
                return Err(format!("nic {name}: index {} is above 9999", nic.index));
            }
            if nic.mtu.is_some_and(|mtu| !(576..=65_535).contains(&mtu)) {
                return Err(format!("nic {name}: mtu must be 576 to 65535"));
            }
            for other in &self.nics[..at] {
                if other.index == nic.index {
                    return Err(format!("two network interfaces have the index {}", nic.index));
                }
                if other.host_name == *name {
                    return Err(format!("two network interfaces have the host name {name}"));
                }
                if other.mac == nic.mac {
                    return Err(format!("two network interfaces have the MAC {}", nic.mac));
                }
            }
            if nic.addresses.len() > 64 || nic.routes.len() > 256 {
                return Err(format!("nic {name}: at most 64 addresses and 256 routes"));
            }
            let prefixes = nic.routes.iter().filter_map(|r| r.destination);
            for (addr, len) in nic.addresses.iter().copied().chain(prefixes) {
                if len > if addr.is_ipv4() { 32 } else { 128 } {
                    return Err(format!("nic {name}: {addr}/{len} has no such prefix length"));
                }
            }
            let crossed = |r: &Route| {
                r.destination.is_some_and(|(addr, _)| addr.is_ipv4() != r.gateway.is_ipv4())
            };
            if let Some(route) = nic.routes.iter().find(|r| crossed(r)) {
                return Err(format!("nic {name}: route via {} mixes IPv4 and IPv6", route.gateway));
            }
        }
        Ok(())
    }
}

/// An absolute path with doubled slashes and `.` taken out (platforms join by concatenation);
/// `None` if it is relative, has `..`, holds control characters or is over 4095 bytes.
#[must_use]
pub fn normal_path(path: &Path) -> Option<PathBuf> {
    let text = path.to_str()?;
    if !path.is_absolute() || text.len() > 4095 || text.chars().any(char::is_control) {
        return None;
    }
    let mut normal = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => normal.push(name),
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(normal)
}
