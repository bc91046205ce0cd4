//! The guest's end of a NIC: up, addresses, routes; and whether it still is as it was made.
//!
//! All is set before the guest's first instruction, in one message batch from outside. IPv6
//! addresses skip duplicate address detection, else they would be unusable for a second (RFC 4862)
//! in which the guest already runs.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::spec::{NicSpec, Route};

use super::fault;
use super::link;
use super::socket::{Answer, Netlink, Refusal};
use super::wire::{Message, attributes, number};

/// Metric that the kernel gives an IPv6 route that has none (`IP6_RT_PRIO_USER`).
const IPV6_METRIC: u32 = 1024;
/// Next hop that need not be in a network of the link (include/uapi/linux/rtnetlink.h).
const ONLINK: u32 = 4;
/// Route of a router advertisement (include/uapi/linux/rtnetlink.h).
const RTPROT_RA: u8 = 9;
/// The one request that is not about what the caller gave.
const UP: &str = "bring it up inside";
/// Lengths of `struct ifaddrmsg` and `struct rtmsg`.
const ADDRESS_FIXED: usize = 8;
const ROUTE_FIXED: usize = 12;

/// A route as the kernel keeps it: destination with host bits cleared, metric always a number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Hop {
    pub(super) to: (IpAddr, u8),
    pub(super) via: IpAddr,
    pub(super) metric: u32,
}

impl fmt::Display for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "route {}/{} via {}", self.to.0, self.to.1, self.via)
    }
}

/// Brings the guest's end up with its addresses and routes.
pub(super) fn configure(netlink: &mut Netlink, index: u32, nic: &NicSpec) -> Result<()> {
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let mut requests = vec![link::change(index, libc::IFF_UP)];
    let mut names = vec![UP.to_owned()];
    for (address, len) in &nic.addresses {
        requests.push(address_request(libc::RTM_NEWADDR, flags, index, *address, *len));
        names.push(format!("address {address}/{len}"));
    }
    for hop in hops(nic) {
        names.push(hop.to_string());
        requests.push(route_request(libc::RTM_NEWROUTE, flags, index, nic, &hop));
    }
    set_all(netlink, nic, requests, &names)
}

/// Sends these requests; `names` is what each is about.
fn set_all(
    netlink: &mut Netlink,
    nic: &NicSpec,
    requests: Vec<Message>,
    names: &[String],
) -> Result<()> {
    netlink.changes(requests).map_err(|(at, refusal)| {
        let what = names.get(at).map_or("configure", String::as_str);
        let error = refusal.error(format!("nic {}: {what}", nic.host_name));
        match refusal.errno {
            // What the kernel checks of addresses and routes is what the caller gave.
            libc::EINVAL | libc::EEXIST | libc::ENETUNREACH | libc::EHOSTUNREACH if what != UP => {
                Error { kind: ErrorKind::Invalid, ..error }
            }
            libc::EAFNOSUPPORT | libc::EOPNOTSUPP | libc::EACCES => {
                error.hint("IPv6 may be disabled (parameter ipv6.disable, sysctl disable_ipv6)")
            }
            _ => error,
        }
    })
}

/// Takes away the addresses and routes that `from` has and `to` has not, and sees that all of `to` are there: the
/// kernel takes what depends on an address away with it. What somebody else gave the link stays.
pub(super) fn reconfigure(
    netlink: &mut Netlink,
    index: u32,
    from: &NicSpec,
    to: &NicSpec,
) -> Result<()> {
    let wanted = hops(to);
    for hop in hops(from).iter().filter(|hop| !wanted.contains(hop)) {
        let gone = netlink.change(route_request(libc::RTM_DELROUTE, 0, index, from, hop));
        absent_is_fine(gone, &[libc::ESRCH])
            .map_err(|e| e.error(format!("nic {}: remove {}", to.host_name, hop)))?;
        fault::point()?;
    }
    for (ip, len) in from.addresses.iter().filter(|address| !to.addresses.contains(address)) {
        let gone = netlink.change(address_request(libc::RTM_DELADDR, 0, index, *ip, *len));
        absent_is_fine(gone, &[libc::EADDRNOTAVAIL])
            .map_err(|e| e.error(format!("nic {}: remove address {ip}/{len}", to.host_name)))?;
        fault::point()?;
    }
    let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
    let addresses = to.addresses.iter().map(|(ip, len)| {
        let request = address_request(libc::RTM_NEWADDR, flags, index, *ip, *len);
        (request, format!("address {ip}/{len}"))
    });
    let routes = wanted
        .iter()
        .map(|hop| (route_request(libc::RTM_NEWROUTE, flags, index, to, hop), format!("{hop}")));
    let (requests, names): (_, Vec<_>) = addresses.chain(routes).unzip();
    set_all(netlink, to, requests, &names)
}

fn absent_is_fine(answer: Answer<()>, absent: &[i32]) -> Answer<()> {
    match answer {
        Err(e) if absent.contains(&e.errno) => Ok(()),
        other => other,
    }
}

/// Whether the guest's end has these addresses and routes, no more and no fewer. What the kernel
/// adds itself (link-local addresses, routes of networks) does not count.
pub(super) fn is_configured(netlink: &mut Netlink, index: u32, nic: &NicSpec) -> Answer<bool> {
    let want: BTreeSet<_> = nic.addresses.iter().copied().collect();
    let mut have = BTreeSet::new();
    let mut routes = BTreeSet::new();
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        have.extend(addresses(netlink, index, family)?);
        routes.extend(self::routes(netlink, index, family)?);
    }
    Ok(want == have && hops(nic).into_iter().collect::<BTreeSet<_>>() == routes)
}

/// The routes wanted of the kernel. A route without metric gets one by the NIC's index: of two
/// default routes the one of the lower NIC wins, and neither is refused as a duplicate.
fn hops(nic: &NicSpec) -> Vec<Hop> {
    nic.routes.iter().map(|route| hop(route, nic.index)).collect()
}

fn hop(route: &Route, index: u32) -> Hop {
    let unspecified = |ip: IpAddr| match ip {
        IpAddr::V4(_) => IpAddr::V4(0.into()),
        IpAddr::V6(_) => IpAddr::V6(0.into()),
    };
    let (to, len) = route.destination.unwrap_or((unspecified(route.gateway), 0));
    let base = if to.is_ipv4() { 0 } else { IPV6_METRIC };
    let metric = route.metric.unwrap_or(base + index);
    // IPv6 has no metric 0: the kernel reads it as the default one.
    let metric = if metric == 0 { base } else { metric };
    Hop { to: (network(to, len), len), via: route.gateway, metric }
}

/// An address with the bits behind the prefix cleared.
fn network(ip: IpAddr, len: u8) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(len.min(32))).unwrap_or(0);
            IpAddr::V4((ip.to_bits() & mask).into())
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(len.min(128))).unwrap_or(0);
            IpAddr::V6((ip.to_bits() & mask).into())
        }
    }
}

/// Whether the gateway is in a network of the NIC, or on its link by definition.
fn is_near(nic: &NicSpec, gateway: IpAddr) -> bool {
    let link_local = matches!(gateway, IpAddr::V6(ip) if ip.is_unicast_link_local());
    let same = |(ip, len): &(IpAddr, u8)| network(*ip, *len) == network(gateway, *len);
    link_local || nic.addresses.iter().any(same)
}

fn family(ip: IpAddr) -> u8 {
    (if ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn parse_ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

fn address_fixed(family: u8, len: u8, index: u32) -> [u8; ADDRESS_FIXED] {
    let [a, b, c, d] = index.to_ne_bytes();
    [family, len, 0, libc::RT_SCOPE_UNIVERSE, a, b, c, d]
}

fn address_request(kind: u16, flags: i32, index: u32, ip: IpAddr, len: u8) -> Message {
    let fixed = address_fixed(family(ip), len, index);
    let message = Message::new(kind, libc::NLM_F_ACK | flags, &fixed)
        .attr(libc::IFA_LOCAL, &octets(ip))
        .attr(libc::IFA_ADDRESS, &octets(ip));
    match ip {
        // RFC 3021: networks of two addresses have no broadcast address.
        IpAddr::V4(ip) if len <= 30 => {
            let broadcast = ip.to_bits() | u32::MAX.checked_shr(len.into()).unwrap_or(0);
            message.attr(libc::IFA_BROADCAST, &broadcast.to_be_bytes())
        }
        IpAddr::V4(_) => message,
        IpAddr::V6(_) => message.number(libc::IFA_FLAGS, libc::IFA_F_NODAD),
    }
}

fn route_fixed(family: u8, len: u8, flags: u32) -> [u8; ROUTE_FIXED] {
    let [a, b, c, d] = flags.to_ne_bytes();
    let (table, protocol) = (libc::RT_TABLE_MAIN, libc::RTPROT_STATIC);
    let (scope, kind) = (libc::RT_SCOPE_UNIVERSE, libc::RTN_UNICAST);
    [family, len, 0, 0, table, protocol, scope, kind, a, b, c, d]
}

fn route_request(kind: u16, flags: i32, index: u32, nic: &NicSpec, hop: &Hop) -> Message {
    let flags = libc::NLM_F_ACK | flags;
    let onlink = if is_near(nic, hop.via) { 0 } else { ONLINK };
    let (to, len) = hop.to;
    Message::new(kind, flags, &route_fixed(family(to), len, onlink))
        .attr(libc::RTA_DST, &octets(to))
        .attr(libc::RTA_GATEWAY, &octets(hop.via))
        .number(libc::RTA_OIF, index)
        .number(libc::RTA_PRIORITY, hop.metric)
}

/// Addresses of a link that somebody gave it.
fn addresses(netlink: &mut Netlink, index: u32, family: u8) -> Answer<Vec<(IpAddr, u8)>> {
    let fixed = address_fixed(family, 0, index);
    let request = Message::new(libc::RTM_GETADDR, libc::NLM_F_DUMP, &fixed);
    empty_if_none(netlink.dump(&request, |payload| {
        let fixed = payload.get(..ADDRESS_FIXED)?;
        let (mut local, mut address) = (None, None);
        for (kind, value) in attributes(&payload[ADDRESS_FIXED..]) {
            match kind {
                libc::IFA_LOCAL => local = parse_ip(value),
                libc::IFA_ADDRESS => address = parse_ip(value),
                _ => {}
            }
        }
        let ours = number(&fixed[4..8])? == index && fixed[0] == family;
        let given = fixed[3] != libc::RT_SCOPE_LINK;
        local.or(address).filter(|_| ours && given).map(|ip| (ip, fixed[1]))
    }))
}

/// Routes through a link that somebody gave it.
fn routes(netlink: &mut Netlink, index: u32, family: u8) -> Answer<Vec<Hop>> {
    let mut fixed = [0; ROUTE_FIXED];
    (fixed[0], fixed[4]) = (family, libc::RT_TABLE_MAIN);
    let request =
        Message::new(libc::RTM_GETROUTE, libc::NLM_F_DUMP, &fixed).number(libc::RTA_OIF, index);
    empty_if_none(netlink.dump(&request, |payload| {
        let fixed = payload.get(..ROUTE_FIXED)?;
        let (mut to, mut via, mut out, mut metric) = (None, None, None, 0);
        for (kind, value) in attributes(&payload[ROUTE_FIXED..]) {
            match kind {
                libc::RTA_DST => to = parse_ip(value),
                libc::RTA_GATEWAY => via = parse_ip(value),
                libc::RTA_OIF => out = number(value),
                libc::RTA_PRIORITY => metric = number(value)?,
                _ => {}
            }
        }
        let by_kernel = [libc::RTPROT_KERNEL, RTPROT_RA, libc::RTPROT_REDIRECT];
        let main = fixed[4] == libc::RT_TABLE_MAIN && fixed[7] == libc::RTN_UNICAST;
        let ours = main && fixed[0] == family && out == Some(index);
        let via = via.filter(|_| ours && !by_kernel.contains(&fixed[5]))?;
        let default = if via.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
        Some(Hop { to: (to.unwrap_or(default), fixed[1]), via, metric })
    }))
}

/// A family that is switched off, or a table without a route, is refused and not empty.
fn empty_if_none<T>(answer: Answer<Vec<T>>) -> Answer<Vec<T>> {
    match answer {
        Err(Refusal { errno: libc::ENOENT | libc::EAFNOSUPPORT | libc::EOPNOTSUPP, .. }) => {
            Ok(Vec::new())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_lose_their_host_bits() {
        for (ip, len, want) in [
            ("10.1.2.3", 8, "10.0.0.0"),
            ("10.1.2.3", 0, "0.0.0.0"),
            ("10.1.2.3", 32, "10.1.2.3"),
            ("2001:db8::1", 32, "2001:db8::"),
            ("2001:db8::1", 128, "2001:db8::1"),
            ("2001:db8::1", 0, "::"),
        ] {
            let want: IpAddr = want.parse().unwrap();
            assert_eq!(network(ip.parse().unwrap(), len), want, "{ip}/{len}");
        }
    }

    #[test]
    fn routes_without_metric_prefer_the_lower_nic() {
        let route = |gateway: &str, metric| Route {
            destination: None,
            gateway: gateway.parse().unwrap(),
            metric,
        };
        assert_eq!(hop(&route("10.0.0.1", None), 0).metric, 0);
        assert_eq!(hop(&route("10.0.0.1", None), 2).metric, 2);
        assert_eq!(hop(&route("10.0.0.1", Some(50)), 2).metric, 50);
        assert_eq!(hop(&route("fe80::1", None), 0).metric, 1024);
        assert_eq!(hop(&route("fe80::1", None), 1).metric, 1025);
        assert_eq!(hop(&route("fe80::1", Some(0)), 1).metric, 1024);
    }
}
