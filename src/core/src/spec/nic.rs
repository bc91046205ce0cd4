//! Network interfaces of a VM.

use std::net::IpAddr;

use crate::ids::{Domain, IfName, MacAddr};

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
    /// Name servers that are reached through it, best first.
    pub dns: Vec<IpAddr>,
    /// Domains that its network looks names up in.
    pub search: Vec<Domain>,
    /// Bounds of what goes to the guest.
    pub inbound: Option<Rate>,
    /// Bounds of what comes from it.
    pub outbound: Option<Rate>,
}

/// Bounds of traffic in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Bytes per second in the long run.
    pub average: u64,
    /// Bytes per second at most, while a burst lasts; `None` is the speed of the machine.
    pub peak: Option<u64>,
    /// Bytes that may pass faster than the average; `None` is what passes in a fiftieth of a second.
    pub burst: Option<u64>,
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

/// Checks the NICs of a VM, each and against each other.
pub(super) fn check(nics: &[NicSpec]) -> Result<(), String> {
    if nics.len() > 64 {
        return Err(format!("{} network interfaces, at most 64", nics.len()));
    }
    for (at, nic) in nics.iter().enumerate() {
        let name = &nic.host_name;
        if nic.index > 9999 {
            return Err(format!("nic {name}: index {} is above 9999", nic.index));
        }
        if nic.mtu.is_some_and(|mtu| !(576..=65_535).contains(&mtu)) {
            return Err(format!("nic {name}: mtu must be 576 to 65535"));
        }
        for other in &nics[..at] {
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
        for rate in [nic.inbound, nic.outbound].iter().flatten() {
            let rates = [Some(rate.average), rate.peak];
            if rates.iter().flatten().any(|rate| !(1000..=1 << 40).contains(rate)) {
                return Err(format!(
                    "nic {name}: rates must be 1000 to {} bytes per second",
                    1_u64 << 40
                ));
            }
            if rate.peak.is_some_and(|peak| peak < rate.average) {
                return Err(format!("nic {name}: a peak rate is below its average"));
            }
            if rate.burst.is_some_and(|burst| burst > 1 << 30) {
                return Err(format!("nic {name}: a burst is larger than 1 GiB"));
            }
        }
        if nic.dns.len() > 16 || nic.search.len() > 32 {
            return Err(format!("nic {name}: at most 16 name servers and 32 search domains"));
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
