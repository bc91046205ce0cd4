//! `--nic bridge=br0,ip=10.0.0.5/24,gw=10.0.0.1`: a network interface on the command line.

use std::net::IpAddr;
use std::str::FromStr;

use ocivisor_core::ids::{IfName, MacAddr, VmId};
use ocivisor_core::units::Bytes;
use ocivisor_schema::spec::{BridgeV1, NicV1, RateV1, RouteV1};

use crate::units::{self, OrNone};

/// What was said of a network interface.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NicOption {
    bridge: BridgeV1,
    mac: Option<MacAddr>,
    addresses: Vec<String>,
    gateways: Vec<IpAddr>,
    mtu: Option<u32>,
    host: Option<IfName>,
    inbound: Option<RateV1>,
    outbound: Option<RateV1>,
}

impl FromStr for NicOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut nic = Self::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (key, value) =
                part.split_once('=').ok_or_else(|| format!("{part:?} is not KEY=VALUE"))?;
            let name = || value.parse::<IfName>().map_err(|e| e.to_string());
            match key {
                "bridge" => nic.bridge = BridgeV1::Linux { name: name()?.to_string() },
                "ovs" => nic.bridge = BridgeV1::OpenVswitch { name: name()?.to_string() },
                "host" => nic.host = Some(name()?),
                "mac" => {
                    nic.mac =
                        Some(value.parse().map_err(|e: ocivisor_core::ids::BadId| e.to_string())?);
                }
                "ip" => nic.addresses.push(address(value)?),
                "gw" => {
                    let bad = |_| format!("gw: {value:?} is not an IP address");
                    nic.gateways.push(value.parse().map_err(bad)?);
                }
                "mtu" => {
                    let bad = |_| format!("mtu: {value:?} is not a number");
                    nic.mtu = Some(value.parse().map_err(bad)?);
                }
                "in" => nic.inbound = Some(rate(value).map_err(|e| format!("in: {e}"))?),
                "out" => nic.outbound = Some(rate(value).map_err(|e| format!("out: {e}"))?),
                _ => {
                    return Err(format!(
                        "key {key:?} is none of bridge, ovs, mac, ip, gw, mtu, host, in, out"
                    ));
                }
            }
        }
        Ok(nic)
    }
}

fn address(text: &str) -> Result<String, String> {
    let (addr, len) = text
        .split_once('/')
        .ok_or_else(|| format!("ip: {text:?} has no prefix length, as in 10.0.0.5/24"))?;
    let addr: IpAddr = addr.parse().map_err(|_| format!("ip: {addr:?} is not an IP address"))?;
    let most = if addr.is_ipv4() { 32 } else { 128 };
    match len.parse::<u8>() {
        Ok(len) if len <= most => Ok(format!("{addr}/{len}")),
        Ok(_) | Err(_) => Err(format!("ip: {len:?} is not a prefix length up to {most}")),
    }
}

impl NicOption {
    /// The interface number `index` of `vm`. What was not said is made up: a random MAC address
    /// of the locally administered kind, and a name of the host's end that shows the VM's id where
    /// it fits into 15 characters.
    #[must_use]
    pub fn to_spec(&self, vm: &VmId, index: u32) -> NicV1 {
        let [.., a, b, c, d, e] = *uuid::Uuid::new_v4().as_bytes();
        let named = format!("{vm}-{index}");
        let host_name = match &self.host {
            Some(name) => name.to_string(),
            None if named.len() <= 15 => named,
            None => format!("ocv{c:02x}{d:02x}{e:02x}-{index}"),
        };
        NicV1 {
            index,
            host_name,
            bridge: self.bridge.clone(),
            mac: self.mac.unwrap_or(MacAddr([0x02, a, b, c, d, e])).to_string(),
            mtu: self.mtu,
            addresses: self.addresses.clone(),
            routes: self
                .gateways
                .iter()
                .map(|gateway| RouteV1 {
                    destination: None,
                    gateway: gateway.to_string(),
                    metric: None,
                })
                .collect(),
            dns: Vec::new(),
            search: Vec::new(),
            inbound: self.inbound,
            outbound: self.outbound,
        }
    }
}

/// `10M`, `10M:20M` or `10M:20M:1M`: bytes per second, at most so many while a burst lasts, bytes of a burst. An empty
/// part is one that is not bounded.
///
/// # Errors
/// Which part is wrong.
pub fn rate(text: &str) -> Result<RateV1, String> {
    let mut parts = text.split(':');
    let mut next = || {
        let part = parts.next().filter(|part| !part.is_empty());
        part.map(|part| units::size(part).map(|size| size.0)).transpose()
    };
    let (average, peak, burst) = (next()?, next()?, next()?);
    match (average, parts.next()) {
        (Some(average), None) => Ok(RateV1 { average, peak, burst }),
        _ => Err(format!("{text:?} is not AVERAGE[:PEAK[:BURST]]")),
    }
}

/// The same, or `none`.
///
/// # Errors
/// As of [`rate`].
pub fn rate_or_none(text: &str) -> Result<OrNone<RateV1>, String> {
    if text == "none" { Ok(OrNone(None)) } else { rate(text).map(|rate| OrNone(Some(rate))) }
}

/// A rate as it is written, in bytes.
pub fn rate_text(rate: &RateV1) -> String {
    let shown =
        |bytes: Option<u64>| bytes.map(|bytes| Bytes(bytes).to_string()).unwrap_or_default();
    let text = format!("{}:{}:{}", Bytes(rate.average), shown(rate.peak), shown(rate.burst));
    format!("{} per second", text.trim_end_matches(':'))
}

/// Those of `now` with `nic` in place of any that has its index, its host's end or its MAC address; by index.
pub fn with(mut now: Vec<NicV1>, nic: NicV1) -> Vec<NicV1> {
    now.retain(|other| {
        other.index != nic.index && other.host_name != nic.host_name && other.mac != nic.mac
    });
    now.push(nic);
    now.sort_by_key(|nic| nic.index);
    now
}

/// The first index that none has.
pub fn lowest_free(now: &[NicV1]) -> u32 {
    (0..).find(|index| now.iter().all(|nic| nic.index != *index)).unwrap_or_default()
}

/// What the host's end is plugged into, for people.
pub fn bridge_text(bridge: &BridgeV1) -> String {
    match bridge {
        BridgeV1::None => "none".to_owned(),
        BridgeV1::Linux { name } => name.clone(),
        BridgeV1::OpenVswitch { name } => format!("{name} (Open vSwitch)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_keys_are_read() {
        let nic: NicOption = "bridge=br0,mac=02:00:00:00:00:09,ip=10.0.0.5/24,ip=fd00::5/64,\
                              gw=10.0.0.1,mtu=1450,host=web0,in=1M:2M:64K,out=1000"
            .parse()
            .unwrap();
        let spec = nic.to_spec(&"web".parse().unwrap(), 3);
        assert_eq!(spec.index, 3);
        assert_eq!(spec.host_name, "web0");
        assert_eq!(spec.bridge, BridgeV1::Linux { name: "br0".into() });
        assert_eq!(spec.mac, "02:00:00:00:00:09");
        assert_eq!(spec.addresses, ["10.0.0.5/24", "fd00::5/64"]);
        assert_eq!(spec.routes[0].gateway, "10.0.0.1");
        assert_eq!(spec.mtu, Some(1450));
        let rate = RateV1 { average: 1 << 20, peak: Some(2 << 20), burst: Some(64 << 10) };
        assert_eq!(spec.inbound, Some(rate));
        assert_eq!(rate_text(&rate), "1 MiB:2 MiB:64 KiB per second");
        assert_eq!(spec.outbound, Some(RateV1 { average: 1000, peak: None, burst: None }));
    }

    #[test]
    fn what_is_not_said_is_made_up() {
        let nic: NicOption = "ovs=br-int".parse().unwrap();
        let id: VmId = "6f1c2f6e-7c1d-4a52-9a3c-3a2b8a7f1c11".parse().unwrap();
        let spec = nic.to_spec(&id, 0);
        spec.host_name.parse::<IfName>().unwrap();
        spec.mac.parse::<MacAddr>().unwrap();
        assert!(spec.mac.starts_with("02:"));
    }

    #[test]
    fn a_nic_takes_the_place_of_what_has_its_index_name_or_mac() {
        let nic = |index: u32, name: &str, mac: &str| NicV1 {
            index,
            host_name: name.into(),
            mac: mac.into(),
            ..NicOption::default().to_spec(&"web".parse().unwrap(), index)
        };
        let now = || vec![nic(0, "a", "x"), nic(1, "b", "y"), nic(3, "c", "z")];
        let left = |new: NicV1| -> Vec<String> {
            with(now(), new).into_iter().map(|nic| nic.host_name).collect()
        };
        assert_eq!(lowest_free(&now()), 2);
        assert_eq!(left(nic(2, "d", "v")), ["a", "b", "d", "c"]);
        assert_eq!(left(nic(1, "d", "v")), ["a", "d", "c"]);
        assert_eq!(left(nic(2, "c", "v")), ["a", "b", "c"]);
        assert_eq!(left(nic(0, "b", "z")), ["b"]);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, want) in [
            ("br0", "\"br0\" is not KEY=VALUE"),
            ("bridg=br0", "key \"bridg\" is none of bridge, ovs, mac, ip, gw, mtu, host, in, out"),
            ("in=1M:2M:3M:4M", "in: \"1M:2M:3M:4M\" is not AVERAGE[:PEAK[:BURST]]"),
            ("out=:2M", "out: \":2M\" is not AVERAGE[:PEAK[:BURST]]"),
            ("ip=10.0.0.5", "ip: \"10.0.0.5\" has no prefix length, as in 10.0.0.5/24"),
            ("ip=10.0.0.5/33", "ip: \"33\" is not a prefix length up to 32"),
            ("gw=x", "gw: \"x\" is not an IP address"),
        ] {
            assert_eq!(text.parse::<NicOption>(), Err(want.to_owned()));
        }
    }
}
