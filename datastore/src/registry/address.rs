//! Which addresses a registry may send us to.
//!
//! A redirect or a token realm names a host of the registry's choice, and a name resolves to what its owner likes,
//! each time anew (DNS rebinding). So the check is made on the addresses that are then connected to, by the
//! resolver of the connection itself: a registry on the Internet cannot have us ask our own loopback, our network or a cloud's
//! metadata service. Who answers for a name behind a proxy is the proxy's business: of names nothing is known here
//! then, and only addresses written out are checked.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

/// How near an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reach {
    Public,
    /// RFC 1918, 6598, 4193.
    Private,
    Loopback,
    /// Link-local, metadata services, and what no server has.
    Never,
}

impl Reach {
    pub fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Self::v4(ip),
            IpAddr::V6(ip) => Self::v6(ip),
        }
    }

    fn v4(ip: Ipv4Addr) -> Self {
        let [a, b, ..] = ip.octets();
        // Metadata services of clouds that are neither link-local nor the same everywhere.
        let metadata = [[100, 100, 100, 200], [168, 63, 129, 16], [192, 0, 0, 192]];
        if metadata.contains(&ip.octets())
            || ip.is_link_local()
            || ip.is_multicast()
            || ip.is_broadcast()
            || a == 0
            || a >= 240
        {
            Self::Never
        } else if ip.is_loopback() {
            Self::Loopback
        } else if ip.is_private() || (a == 100 && (64..128).contains(&b)) || (a, b) == (192, 0) {
            Self::Private
        } else {
            Self::Public
        }
    }

    fn v6(ip: Ipv6Addr) -> Self {
        let s = ip.segments();
        if let Some(v4) = inner_v4(ip) {
            return Self::v4(v4);
        }
        let metadata = [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254];
        if s == metadata || ip.is_multicast() || ip.is_unspecified() || s[0] & 0xffc0 == 0xfe80 {
            Self::Never
        } else if ip.is_loopback() {
            Self::Loopback
        } else if s[0] & 0xfe00 == 0xfc00 || s[0] & 0xffc0 == 0xfec0 {
            Self::Private
        } else if s[0] & 0xe000 == 0x2000 {
            Self::Public
        } else {
            Self::Never
        }
    }
}

/// The IPv4 address that an IPv6 one leads to: mapped, NAT64, 6to4.
fn inner_v4(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let s = ip.segments();
    let of = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        Some(Ipv4Addr::new(a, b, c, d))
    };
    match s {
        [0, 0, 0, 0, 0, 0xffff, high, low] => of(high, low),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => of(high, low),
        [0x2002, high, low, ..] => of(high, low),
        _ => None,
    }
}

/// The nearest address that a registry's own name had: how near it may send us.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen(Arc<AtomicU8>);

impl Seen {
    fn note(&self, reach: Reach) {
        let n = match reach {
            Reach::Public => 1,
            Reach::Private => 2,
            Reach::Loopback => 3,
            Reach::Never => 0,
        };
        self.0.fetch_max(n, Ordering::Relaxed);
    }

    fn reach(&self) -> Reach {
        match self.0.load(Ordering::Relaxed) {
            2 => Reach::Private,
            3 => Reach::Loopback,
            _ => Reach::Public,
        }
    }
}

/// What is asked of the addresses of a host.
#[derive(Clone, Debug)]
pub(crate) enum Rule {
    /// Configuration or the user named the host; how near it is, is noted.
    Named(Seen),
    /// A registry named the host: it may be public, or as near as the registry itself is.
    Foreign(Seen),
}

impl Rule {
    fn allows(&self, ip: IpAddr) -> bool {
        match self {
            Self::Named(_) => true,
            Self::Foreign(seen) => {
                let reach = Reach::of(ip);
                reach == Reach::Public || (reach != Reach::Never && reach == seen.reach())
            }
        }
    }

    /// Checks a host that is an address by itself, which a proxy would connect to without our resolver.
    pub fn check(&self, ip: Option<IpAddr>) -> Result<(), Forbidden> {
        match ip.filter(|ip| !self.allows(*ip)) {
            Some(ip) => Err(Forbidden(ip)),
            None => Ok(()),
        }
    }
}

/// An address that a registry may not send us to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Forbidden(pub IpAddr);

impl fmt::Display for Forbidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl std::error::Error for Forbidden {}

/// Fixed answers instead of DNS, as in a hosts file; for tests of what names may lead to.
pub(crate) type Hosts = Arc<Mutex<Vec<(String, IpAddr)>>>;

/// Resolves, and refuses what the rule does.
#[derive(Debug)]
pub(crate) struct Guard {
    pub rule: Rule,
    /// The proxy's host, which configuration names.
    pub proxy: Option<String>,
    pub hosts: Option<Hosts>,
}

impl Resolver for Guard {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let host = uri.host().unwrap_or_default();
        let found = match self.fixed(host, uri) {
            Some(found) => found,
            None => DefaultResolver::default().resolve(uri, config, timeout)?,
        };
        if self.proxy.as_deref() == Some(host) {
            return Ok(found);
        }
        // One forbidden among good ones is no accident.
        for address in &found {
            self.rule
                .check(Some(address.ip()))
                .map_err(|forbidden| Error::Other(Box::new(forbidden)))?;
        }
        if let Rule::Named(seen) = &self.rule {
            // A name with addresses of two kinds is as far away as its farthest.
            if let Some(reach) = found.iter().map(|a| Reach::of(a.ip())).min() {
                seen.note(reach);
            }
        }
        Ok(found)
    }
}

impl Guard {
    /// Each matching line once, in order: a name may so have one address now and another later.
    fn fixed(&self, host: &str, uri: &Uri) -> Option<ResolvedSocketAddrs> {
        let mut hosts = self.hosts.as_ref()?.lock().ok()?;
        let at = hosts.iter().position(|(name, _)| name == host)?;
        let last = hosts.iter().filter(|(name, _)| name == host).count() == 1;
        let ip = if last { hosts[at].1 } else { hosts.remove(at).1 };
        let usual = if uri.scheme_str() == Some("https") { 443 } else { 80 };
        let mut found = self.empty();
        found.push((ip, uri.port_u16().unwrap_or(usual)).into());
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_sorted_by_how_near_they_are() {
        for (text, want) in [
            ("1.1.1.1", Reach::Public),
            ("2606:4700::1111", Reach::Public),
            ("10.1.2.3", Reach::Private),
            ("172.31.0.1", Reach::Private),
            ("192.168.0.1", Reach::Private),
            ("100.64.0.1", Reach::Private),
            ("fd12::1", Reach::Private),
            ("127.9.9.9", Reach::Loopback),
            ("::1", Reach::Loopback),
            ("::ffff:127.0.0.1", Reach::Loopback),
            ("64:ff9b::7f00:1", Reach::Loopback),
            ("2002:a01:203::", Reach::Private),
            ("169.254.169.254", Reach::Never),
            ("::ffff:169.254.169.254", Reach::Never),
            ("64:ff9b::a9fe:a9fe", Reach::Never),
            ("100.100.100.200", Reach::Never),
            ("168.63.129.16", Reach::Never),
            ("fd00:ec2::254", Reach::Never),
            ("fe80::1", Reach::Never),
            ("0.0.0.0", Reach::Never),
            ("0.1.2.3", Reach::Never),
            ("::", Reach::Never),
            ("::7f00:1", Reach::Never),
            ("224.0.0.1", Reach::Never),
            ("255.255.255.255", Reach::Never),
            ("ff02::1", Reach::Never),
        ] {
            assert_eq!(Reach::of(text.parse().unwrap()), want, "{text}");
        }
    }

    #[test]
    fn a_registry_sends_us_no_nearer_than_it_is_itself() {
        let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
        let seen = Seen::default();
        let foreign = Rule::Foreign(seen.clone());
        assert!(foreign.allows(ip("1.1.1.1")));
        assert!(!foreign.allows(ip("10.0.0.1")) && !foreign.allows(ip("127.0.0.1")));
        seen.note(Reach::Private);
        assert!(foreign.allows(ip("1.1.1.1")) && foreign.allows(ip("10.0.0.1")));
        assert!(!foreign.allows(ip("127.0.0.1")) && !foreign.allows(ip("169.254.169.254")));
        seen.note(Reach::Loopback);
        assert!(foreign.allows(ip("127.0.0.1")));
        assert!(!foreign.allows(ip("10.0.0.1")) && !foreign.allows(ip("169.254.169.254")));
        assert!(Rule::Named(seen).allows(ip("169.254.1.1")));
    }
}
