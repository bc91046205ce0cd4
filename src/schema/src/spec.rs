//! The wish for a VM, as clients send it and records keep it.

use std::net::IpAddr;
use std::path::PathBuf;

use ocivisor_core::error::{Error, ErrorKind};
use ocivisor_core::ids::{BadId, Hostname, IfName};
use ocivisor_core::spec::{
    Boot, Bridge, InitKind, Isolation, NicSpec, Platform, Resources, RootDisk, Route, VmSpec,
};
use ocivisor_core::units::{Bytes, CentiCores};
use serde::{Deserialize, Serialize};

/// See [`VmSpec`]. Only `id`, `resources.memory` and `root.path` must be given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpecV1 {
    /// The VM's id.
    pub id: String,
    /// Name for people; else the id.
    #[serde(default)]
    pub name: Option<String>,
    /// Host name inside; else made of the name.
    #[serde(default)]
    pub hostname: Option<String>,
    /// Who drives it; else `local`.
    #[serde(default)]
    pub platform: PlatformV1,
    /// Limits.
    pub resources: ResourcesV1,
    /// The first process.
    #[serde(default)]
    pub boot: BootV1,
    /// The root disk.
    pub root: RootDiskV1,
    /// Network interfaces.
    #[serde(default)]
    pub nics: Vec<NicV1>,
    /// Profile of confinement; else `default`.
    #[serde(default)]
    pub isolation: IsolationV1,
}

/// See [`Platform`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PlatformV1 {
    /// `local`
    #[default]
    Local,
    /// `opennebula`
    OpenNebula,
    /// `openstack`
    OpenStack,
}

/// See [`Resources`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourcesV1 {
    /// Share under contention in hundredths of a core; else 100.
    #[serde(default = "one_core")]
    pub cpu_share: u32,
    /// Processors; else 1.
    #[serde(default = "one")]
    pub vcpus: u32,
    /// Lower hard quota in hundredths of a core.
    #[serde(default)]
    pub cpu_quota: Option<u32>,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes of swap beyond memory; else none.
    #[serde(default)]
    pub swap: u64,
    /// Most processes and threads; else 4096.
    #[serde(default = "default_pids")]
    pub pids: u32,
}

fn one() -> u32 {
    1
}

fn one_core() -> u32 {
    100
}

fn default_pids() -> u32 {
    Resources::DEFAULT_PIDS
}

/// See [`InitKind`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InitKindV1 {
    /// `auto`
    #[default]
    Auto,
    /// `system`
    System,
    /// `application`
    Application,
}

/// See [`Boot`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BootV1 {
    /// Kind of the first process; else `auto`.
    #[serde(default)]
    pub init: InitKindV1,
    /// Replaces the image's entrypoint.
    #[serde(default)]
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's command.
    #[serde(default)]
    pub cmd: Option<Vec<String>>,
    /// `NAME=value`, later ones win.
    #[serde(default)]
    pub env: Vec<String>,
    /// `user[:group]`.
    #[serde(default)]
    pub user: Option<String>,
    /// Absolute path.
    #[serde(default)]
    pub workdir: Option<String>,
    /// Signal number that asks the first process to end.
    #[serde(default)]
    pub stop_signal: Option<u8>,
}

/// See [`RootDisk`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootDiskV1 {
    /// Absolute path of the writable disk on the host.
    pub path: String,
}

/// See [`Bridge`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum BridgeV1 {
    /// `{"kind": "none"}`
    #[default]
    None,
    /// `{"kind": "linux", "name": "br0"}`
    Linux {
        /// Interface name of the bridge.
        name: String,
    },
    /// `{"kind": "openvswitch", "name": "br-int"}`
    OpenVswitch {
        /// Name of the bridge.
        name: String,
    },
}

/// See [`NicSpec`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicV1 {
    /// Inside it is `eth<index>`.
    pub index: u32,
    /// Name of the host's end.
    pub host_name: String,
    /// Where the host's end is plugged in; else nowhere.
    #[serde(default)]
    pub bridge: BridgeV1,
    /// MAC address of the guest's end.
    pub mac: String,
    /// MTU in bytes; else the bridge's.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// `address/prefix`.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Routes.
    #[serde(default)]
    pub routes: Vec<RouteV1>,
}

/// See [`Route`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteV1 {
    /// `network/prefix`; else the default route of the gateway's family.
    #[serde(default)]
    pub destination: Option<String>,
    /// Address of the next hop.
    pub gateway: String,
    /// Smaller wins.
    #[serde(default)]
    pub metric: Option<u32>,
}

/// See [`Isolation`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IsolationV1 {
    /// `default`
    #[default]
    Default,
}

/// `address/prefix`, as in `10.0.0.2/24`. Whether the prefix fits is checked with the spec.
fn parse_network(text: &str) -> Option<(IpAddr, u8)> {
    let (addr, len) = text.split_once('/')?;
    if len.is_empty() || !len.bytes().all(|c| c.is_ascii_digit()) {
        return None;
    }
    Some((addr.parse().ok()?, len.parse().ok()?))
}

fn network_text((addr, len): &(IpAddr, u8)) -> String {
    format!("{addr}/{len}")
}

/// Errors that name the VM and the field.
struct Fields<'a> {
    vm: &'a str,
}

impl Fields<'_> {
    fn bad(&self, field: &str, why: &dyn std::fmt::Display) -> Error {
        let vm: String = self.vm.chars().take(80).collect();
        Error::new(ErrorKind::Invalid, format!("vm {vm}: {field}: {why}"))
    }

    fn id<T: std::str::FromStr<Err = BadId>>(&self, field: &str, text: &str) -> Result<T, Error> {
        text.parse().map_err(|why| self.bad(field, &why))
    }

    fn network(&self, field: &str, text: &str) -> Result<(IpAddr, u8), Error> {
        let short: String = text.chars().take(80).collect();
        parse_network(text)
            .ok_or_else(|| self.bad(field, &format!("{short:?} is not an address/prefix")))
    }

    fn address(&self, field: &str, text: &str) -> Result<IpAddr, Error> {
        let short: String = text.chars().take(80).collect();
        text.parse().map_err(|_| self.bad(field, &format!("{short:?} is not an IP address")))
    }

    fn nic(&self, nic: &NicV1) -> Result<NicSpec, Error> {
        let at = |field: &str| format!("nics[{}].{field}", nic.index);
        let bridge = |name: &str| self.id::<IfName>(&at("bridge"), name);
        let route = |route: &RouteV1| {
            Ok::<_, Error>(Route {
                destination: route
                    .destination
                    .as_ref()
                    .map(|text| self.network(&at("routes.destination"), text))
                    .transpose()?,
                gateway: self.address(&at("routes.gateway"), &route.gateway)?,
                metric: route.metric,
            })
        };
        Ok(NicSpec {
            index: nic.index,
            host_name: self.id(&at("host_name"), &nic.host_name)?,
            bridge: match &nic.bridge {
                BridgeV1::None => Bridge::None,
                BridgeV1::Linux { name } => Bridge::Linux(bridge(name)?),
                BridgeV1::OpenVswitch { name } => Bridge::OpenVswitch(bridge(name)?),
            },
            mac: self.id(&at("mac"), &nic.mac)?,
            mtu: nic.mtu,
            addresses: nic
                .addresses
                .iter()
                .map(|text| self.network(&at("addresses"), text))
                .collect::<Result<_, _>>()?,
            routes: nic.routes.iter().map(route).collect::<Result<_, _>>()?,
        })
    }

    fn boot(&self, boot: BootV1) -> Result<Boot, Error> {
        let pair = |text: &String| {
            text.split_once('=')
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .ok_or_else(|| {
                    let short: String = text.chars().take(80).collect();
                    self.bad("boot.env", &format!("{short:?} is not NAME=value"))
                })
        };
        Ok(Boot {
            init: match boot.init {
                InitKindV1::Auto => InitKind::Auto,
                InitKindV1::System => InitKind::System,
                InitKindV1::Application => InitKind::Application,
            },
            env: boot.env.iter().map(pair).collect::<Result<_, _>>()?,
            entrypoint: boot.entrypoint,
            cmd: boot.cmd,
            user: boot.user,
            workdir: boot.workdir,
            stop_signal: boot.stop_signal,
        })
    }
}

impl TryFrom<VmSpecV1> for VmSpec {
    type Error = Error;

    /// The checked wish.
    fn try_from(spec: VmSpecV1) -> Result<Self, Error> {
        let fields = Fields { vm: &spec.id };
        let id = fields.id("id", &spec.id)?;
        let name = fields.id("name", spec.name.as_ref().unwrap_or(&spec.id))?;
        let hostname = match &spec.hostname {
            Some(text) => fields.id("hostname", text)?,
            None => Hostname::from_display(spec.name.as_ref().unwrap_or(&spec.id), &id),
        };
        let nics = spec.nics.iter().map(|nic| fields.nic(nic)).collect::<Result<_, _>>()?;
        let r = &spec.resources;
        let made = Self {
            id,
            name,
            hostname,
            platform: match spec.platform {
                PlatformV1::Local => Platform::Local,
                PlatformV1::OpenNebula => Platform::OpenNebula,
                PlatformV1::OpenStack => Platform::OpenStack,
            },
            resources: Resources {
                cpu_share: CentiCores(r.cpu_share),
                vcpus: r.vcpus,
                cpu_quota: r.cpu_quota.map(CentiCores),
                memory: Bytes(r.memory),
                swap: Bytes(r.swap),
                pids: r.pids,
            },
            boot: fields.boot(spec.boot)?,
            root: RootDisk { path: PathBuf::from(spec.root.path) },
            nics,
            isolation: match spec.isolation {
                IsolationV1::Default => Isolation::Default,
            },
        };
        made.check()?;
        Ok(made)
    }
}

impl From<Platform> for PlatformV1 {
    fn from(platform: Platform) -> Self {
        match platform {
            Platform::Local => Self::Local,
            Platform::OpenNebula => Self::OpenNebula,
            Platform::OpenStack => Self::OpenStack,
        }
    }
}

impl From<&NicSpec> for NicV1 {
    fn from(nic: &NicSpec) -> Self {
        let name = |name: &IfName| name.as_str().to_owned();
        Self {
            index: nic.index,
            host_name: name(&nic.host_name),
            bridge: match &nic.bridge {
                Bridge::None => BridgeV1::None,
                Bridge::Linux(bridge) => BridgeV1::Linux { name: name(bridge) },
                Bridge::OpenVswitch(bridge) => BridgeV1::OpenVswitch { name: name(bridge) },
            },
            mac: nic.mac.to_string(),
            mtu: nic.mtu,
            addresses: nic.addresses.iter().map(network_text).collect(),
            routes: nic
                .routes
                .iter()
                .map(|route| RouteV1 {
                    destination: route.destination.as_ref().map(network_text),
                    gateway: route.gateway.to_string(),
                    metric: route.metric,
                })
                .collect(),
        }
    }
}

impl From<&VmSpec> for VmSpecV1 {
    /// Exact for every checked spec; a path that is not UTF-8 never passed the check.
    fn from(spec: &VmSpec) -> Self {
        let r = &spec.resources;
        let boot = &spec.boot;
        Self {
            id: spec.id.to_string(),
            name: Some(spec.name.to_string()),
            hostname: Some(spec.hostname.to_string()),
            platform: spec.platform.into(),
            resources: ResourcesV1 {
                cpu_share: r.cpu_share.0,
                vcpus: r.vcpus,
                cpu_quota: r.cpu_quota.map(|quota| quota.0),
                memory: r.memory.0,
                swap: r.swap.0,
                pids: r.pids,
            },
            boot: BootV1 {
                init: match boot.init {
                    InitKind::Auto => InitKindV1::Auto,
                    InitKind::System => InitKindV1::System,
                    InitKind::Application => InitKindV1::Application,
                },
                entrypoint: boot.entrypoint.clone(),
                cmd: boot.cmd.clone(),
                env: boot.env.iter().map(|(k, v)| format!("{k}={v}")).collect(),
                user: boot.user.clone(),
                workdir: boot.workdir.clone(),
                stop_signal: boot.stop_signal,
            },
            root: RootDiskV1 { path: spec.root.path.to_string_lossy().into_owned() },
            nics: spec.nics.iter().map(NicV1::from).collect(),
            isolation: match spec.isolation {
                Isolation::Default => IsolationV1::Default,
            },
        }
    }
}
