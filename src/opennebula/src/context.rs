//! `CONTEXT/ETHn_*` to addresses and routes.
//!
//! oned writes one group of keys per NIC if `NETWORK=YES`; the guest's own context packages would
//! read them. We set them from outside instead, so that images without such packages have a
//! network. The rules are those packages': `METHOD` empty or `static` means addresses, everything
//! else (`dhcp`, `auto`, `skip`, `disable`) leaves the protocol family to the guest; an alias that
//! is `EXTERNAL` has no address inside; IPv6 without a prefix length has 64.
//!
//! A group belongs to the NIC with its MAC; the number is only the position in the template when
//! the group was written. A tenant can write such keys too: they can only change what the tenant's
//! own guest believes, and the platform's filters are on the host's end.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ocivisor_core::error::Error;
use ocivisor_core::spec::Route;

use crate::answer::Notes;
use crate::vm::Vector;
use crate::{clip, decimal, invalid};

/// Prefix length of IPv6 addresses that come without one: all that OpenNebula generates have it.
const IPV6_PREFIX: u8 = 64;
/// Most aliases and most routes of a NIC.
const MAX_PER_NIC: usize = 256;

/// One group of keys: `ETH<n>_` or `ETH<n>_ALIAS<m>_`.
#[derive(Debug)]
pub(crate) struct Group<'a> {
    label: String,
    keys: BTreeMap<&'a str, &'a str>,
    aliases: BTreeMap<u32, Group<'a>>,
}

/// What a group makes of a NIC.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Addressing {
    pub(crate) addresses: Vec<(IpAddr, u8)>,
    pub(crate) routes: Vec<Route>,
}

/// All groups by their number.
pub(crate) fn groups(context: &Vector) -> BTreeMap<u32, Group<'_>> {
    let mut groups = BTreeMap::new();
    for (key, value) in context {
        let Some((n, rest)) = numbered(key, "ETH") else {
            continue;
        };
        let group = groups.entry(n).or_insert_with(|| Group::new(format!("ETH{n}")));
        if let Some((m, key)) = numbered(rest, "ALIAS") {
            let label = || Group::new(format!("ETH{n}_ALIAS{m}"));
            let alias = group.aliases.entry(m).or_insert_with(label);
            alias.keys.insert(key, value);
        } else {
            group.keys.insert(rest, value);
        }
    }
    groups
}

/// `ETH12_IP` with the prefix `ETH` is 12 and `IP`.
fn numbered<'a>(key: &'a str, prefix: &str) -> Option<(u32, &'a str)> {
    let (n, rest) = key.strip_prefix(prefix)?.split_once('_')?;
    Some((decimal(n)?, rest))
}

/// Who configures a protocol family inside the guest.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    Static,
    Guest,
    Skip,
}

impl<'a> Group<'a> {
    fn new(label: String) -> Self {
        Self { label, keys: BTreeMap::new(), aliases: BTreeMap::new() }
    }

    /// Its name in the template.
    pub(crate) fn label(&self) -> &str {
        &self.label
    }

    /// A value; `None` if absent or empty.
    pub(crate) fn get(&self, key: &str) -> Option<&'a str> {
        self.keys.get(key).copied()
    }

    /// Addresses and routes; `mask` is used where the group has none.
    pub(crate) fn addressing(
        &self,
        mask: Option<&str>,
        notes: &mut Notes,
    ) -> Result<Addressing, Error> {
        let mut made = Addressing::default();
        if self.aliases.len() > MAX_PER_NIC {
            return Err(self.too_many("aliases"));
        }
        let v4 = self.method("METHOD", notes);
        let v6 = self.method("IP6_METHOD", notes);
        if v4 == Method::Static {
            made.addresses.extend(self.ipv4(mask, notes)?);
        }
        if v6 == Method::Static {
            made.addresses.extend(self.ipv6()?);
        }
        for alias in self.aliases.values() {
            if alias.get("EXTERNAL").is_some_and(|e| e.eq_ignore_ascii_case("yes")) {
                continue;
            }
            if v4 != Method::Skip && alias.method("METHOD", notes) == Method::Static {
                made.addresses.extend(alias.ipv4(None, notes)?);
            }
            if v6 != Method::Skip && alias.method("IP6_METHOD", notes) == Method::Static {
                made.addresses.extend(alias.ipv6()?);
            }
        }
        let mut seen = Vec::new();
        made.addresses.retain(|(address, _)| {
            let new = !seen.contains(address);
            seen.push(*address);
            new
        });
        made.routes = self.routes(v4, v6)?;
        // A route without an address of its family would have no source.
        let has = |v4: bool| made.addresses.iter().any(|(address, _)| address.is_ipv4() == v4);
        let (has_v4, has_v6) = (has(true), has(false));
        made.routes.retain(|r| if r.gateway.is_ipv4() { has_v4 } else { has_v6 });
        Ok(made)
    }

    fn method(&self, key: &str, notes: &mut Notes) -> Method {
        let Some(method) = self.get(key) else {
            return Method::Static;
        };
        match method.to_ascii_lowercase().as_str() {
            "static" => Method::Static,
            "skip" | "disable" => Method::Skip,
            _ => {
                notes.add(format_args!(
                    "{}_{key} is {:?}: the guest has to configure itself",
                    self.label,
                    clip(method)
                ));
                Method::Guest
            }
        }
    }

    fn bad(&self, key: &str, text: &str, want: &str) -> Error {
        let label = &self.label;
        invalid(format!("CONTEXT/{label}_{key} is {:?}, not {want}", clip(text)))
    }

    fn too_many(&self, what: &str) -> Error {
        let label = &self.label;
        invalid(format!("CONTEXT/{label} has more than {MAX_PER_NIC} {what}"))
    }

    fn parsed<T: FromStr>(&self, key: &str, want: &str) -> Result<Option<T>, Error> {
        let parse = |text: &str| text.parse().map_err(|_| self.bad(key, text, want));
        self.get(key).map(parse).transpose()
    }

    fn ipv4(&self, mask: Option<&str>, notes: &mut Notes) -> Result<Option<(IpAddr, u8)>, Error> {
        let Some(ip) = self.parsed::<Ipv4Addr>("IP", "an IPv4 address")? else {
            return Ok(None);
        };
        if ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast() {
            return Err(self.bad("IP", &ip.to_string(), "the address of a host"));
        }
        let Some(mask) = self.get("MASK").or(mask) else {
            notes.add(format_args!(
                "{}_IP is not set in the guest because the network has no NETWORK_MASK",
                self.label
            ));
            return Ok(None);
        };
        let len = prefix_of(mask).ok_or_else(|| self.bad("MASK", mask, "a network mask"))?;
        Ok(Some((ip.into(), len)))
    }

    fn ipv6(&self) -> Result<Vec<(IpAddr, u8)>, Error> {
        let mut made = Vec::new();
        let len = match self.get("IP6_PREFIX_LENGTH") {
            None => IPV6_PREFIX,
            Some(text) => decimal(text)
                .and_then(|len| u8::try_from(len).ok())
                .filter(|len| *len <= 128)
                .ok_or_else(|| self.bad("IP6_PREFIX_LENGTH", text, "0 to 128"))?,
        };
        for (key, len) in [("IP6", len), ("IP6_ULA", IPV6_PREFIX)] {
            if let Some(ip) = self.parsed::<Ipv6Addr>(key, "an IPv6 address")? {
                if ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() {
                    return Err(self.bad(key, &ip.to_string(), "the address of a host"));
                }
                made.push((ip.into(), len));
            }
        }
        Ok(made)
    }

    fn metric(&self, key: &str) -> Result<Option<u32>, Error> {
        let parse = |text| decimal(text).ok_or_else(|| self.bad(key, text, "a number"));
        self.get(key).map(parse).transpose()
    }

    fn routes(&self, v4: Method, v6: Method) -> Result<Vec<Route>, Error> {
        let mut routes = Vec::new();
        let default = |gateway, metric| Route { destination: None, gateway, metric };
        if v4 == Method::Static {
            if let Some(gateway) = self.parsed::<Ipv4Addr>("GATEWAY", "an IPv4 address")? {
                routes.push(default(gateway.into(), self.metric("METRIC")?));
            }
            for text in self.get("ROUTES").unwrap_or_default().split(',') {
                if !text.trim().is_empty() {
                    if routes.len() > MAX_PER_NIC {
                        return Err(self.too_many("routes"));
                    }
                    let want = "of the form <network>/<length> via <gateway>";
                    routes.push(route(text).ok_or_else(|| self.bad("ROUTES", text, want))?);
                }
            }
        }
        if v6 == Method::Static {
            let want = "an IPv6 address";
            let gateway = self.parsed::<Ipv6Addr>("IP6_GATEWAY", want)?;
            // Its name before OpenNebula 5.10, still written by hand.
            let gateway = gateway.map_or_else(|| self.parsed("GATEWAY6", want), |g| Ok(Some(g)))?;
            if let Some(gateway) = gateway {
                routes.push(default(gateway.into(), self.metric("IP6_METRIC")?));
            }
        }
        Ok(routes)
    }
}

/// `255.255.255.0` or `24`.
fn prefix_of(mask: &str) -> Option<u8> {
    if let Some(len) = decimal(mask) {
        return u8::try_from(len).ok().filter(|len| *len <= 32);
    }
    let bits = u32::from(mask.parse::<Ipv4Addr>().ok()?);
    let len = bits.leading_ones();
    let whole = bits.checked_shl(len).unwrap_or(0) == 0;
    if whole { u8::try_from(len).ok() } else { None }
}

/// `10.1.0.0/16 via 10.0.0.1`, with an optional `metric N`; without `/16` it is a host's route.
fn route(text: &str) -> Option<Route> {
    let mut words = text.split_ascii_whitespace();
    let destination = words.next()?;
    if words.next()? != "via" {
        return None;
    }
    let gateway: IpAddr = words.next()?.parse().ok()?;
    let metric = match (words.next(), words.next(), words.next()) {
        (None, _, _) => None,
        (Some("metric"), Some(n), None) => Some(decimal(n)?),
        _ => return None,
    };
    let destination = match destination {
        "default" => None,
        network => {
            let (address, len) =
                network.split_once('/').map_or((network, None), |(a, l)| (a, Some(l)));
            let address: IpAddr = address.parse().ok()?;
            let most = if address.is_ipv4() { 32 } else { 128 };
            let len = len.map_or(Some(most), |len| u8::try_from(decimal(len)?).ok())?;
            if len > most || address.is_ipv4() != gateway.is_ipv4() {
                return None;
            }
            Some((network_of(address, len), len)).filter(|(_, len)| *len > 0)
        }
    };
    Some(Route { destination, gateway, metric })
}

/// The address with its host bits cleared: the kernel refuses a destination that has some.
fn network_of(address: IpAddr, len: u8) -> IpAddr {
    let len = u32::from(len);
    match address {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - len).unwrap_or(0);
            Ipv4Addr::from(u32::from(ip) & mask).into()
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - len).unwrap_or(0);
            Ipv6Addr::from(u128::from(ip) & mask).into()
        }
    }
}

#[cfg(test)]
mod tests;
