//! Network interfaces of a VM.

use ocivisor_core::error::Error;
use ocivisor_core::ids::IfName;
use ocivisor_core::spec::{Bridge, NicSpec, Rate, Route};
use serde::{Deserialize, Serialize};

use super::fields::{Fields, network_text};

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
    /// Name servers that are reached through it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<String>,
    /// Search domains of its network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Bounds of what goes to the guest; else there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inbound: Option<RateV1>,
    /// Bounds of what comes from it; else there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outbound: Option<RateV1>,
}

/// See [`Rate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateV1 {
    /// Bytes per second in the long run.
    pub average: u64,
    /// Bytes per second at most, while a burst lasts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak: Option<u64>,
    /// Bytes that may pass faster than the average.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u64>,
}

impl From<RateV1> for Rate {
    fn from(rate: RateV1) -> Self {
        Self { average: rate.average, peak: rate.peak, burst: rate.burst }
    }
}

impl From<Rate> for RateV1 {
    fn from(rate: Rate) -> Self {
        Self { average: rate.average, peak: rate.peak, burst: rate.burst }
    }
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

impl Fields<'_> {
    pub(super) fn nic(&self, nic: &NicV1) -> Result<NicSpec, Error> {
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
            dns: self.addresses(&at("dns"), &nic.dns)?,
            search: self.ids(&at("search"), &nic.search)?,
            inbound: nic.inbound.map(Rate::from),
            outbound: nic.outbound.map(Rate::from),
        })
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
            dns: nic.dns.iter().map(ToString::to_string).collect(),
            search: nic.search.iter().map(ToString::to_string).collect(),
            inbound: nic.inbound.map(RateV1::from),
            outbound: nic.outbound.map(RateV1::from),
        }
    }
}
