//! Addresses of requests, in the one strict form that two parsers cannot read differently.
//!
//! A redirect, a realm and an upload's `Location` are an attacker's text. Taken are `http` and `https`, a host of
//! letters, digits, dots and hyphens or an IPv6 address in brackets, a port, and printable ASCII; no user
//! information, no fragment that would be sent on. Who gets credentials is decided by [`Origin`], which is
//! compared whole.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// Longest address taken; signed addresses of object stores have about 2 KiB.
const MAX: usize = 8 * 1024;

/// Scheme, host and port: what credentials are bound to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Origin {
    pub tls: bool,
    /// Lower case; an IPv6 address in brackets.
    pub host: String,
    pub port: u16,
}

impl Origin {
    /// The host as configuration and credential files name it: with the port unless it is the scheme's.
    pub fn authority(&self) -> String {
        let usual = if self.tls { 443 } else { 80 };
        if self.port == usual { self.host.clone() } else { format!("{}:{}", self.host, self.port) }
    }

    /// The address, if the host is one.
    pub fn ip(&self) -> Option<IpAddr> {
        let bare = self.host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        bare.unwrap_or(&self.host).parse().ok()
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.authority())
    }
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Url {
    pub origin: Origin,
    /// Path and query; starts with `/`.
    pub path: String,
}

impl Url {
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        check(text)?;
        let (scheme, rest) = text.split_once("://").ok_or("is no absolute address")?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return Err("has a scheme other than http and https"),
        };
        Self::after_scheme(tls, rest)
    }

    fn after_scheme(tls: bool, rest: &str) -> Result<Self, &'static str> {
        let rest = rest.split('#').next().unwrap_or_default();
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        if authority.contains('@') {
            return Err("has user information");
        }
        let (host, port) = split_authority(authority)?;
        let port = port.unwrap_or(if tls { 443 } else { 80 });
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Ok(Self { origin: Origin { tls, host, port }, path })
    }

    /// What a `Location` means in an answer to a request here.
    pub fn join(&self, location: &str) -> Result<Self, &'static str> {
        check(location)?;
        if let Some(rest) = location.strip_prefix("//") {
            return Self::after_scheme(self.origin.tls, rest);
        }
        if location.starts_with('/') {
            let path = location.split('#').next().unwrap_or_default().to_owned();
            return Ok(Self { origin: self.origin.clone(), path });
        }
        Self::parse(location)
    }

    /// The address with more query parameters, their values encoded.
    pub fn with_query(&self, parameters: &[(&str, &str)]) -> Self {
        let mut path = self.path.clone();
        for (key, value) in parameters {
            path.push(if path.contains('?') { '&' } else { '?' });
            path.push_str(key);
            path.push('=');
            path.push_str(&encode(value));
        }
        Self { origin: self.origin.clone(), path }
    }

    /// Without the query, which may hold a signature: for messages.
    pub fn shown(&self) -> String {
        format!("{}{}", self.origin, self.path.split('?').next().unwrap_or_default())
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.origin, self.path)
    }
}

fn check(text: &str) -> Result<(), &'static str> {
    if text.len() > MAX {
        return Err("is too long");
    }
    // `\` is a `/` to some parsers.
    if !text.bytes().all(|b| b.is_ascii_graphic() && b != b'\\') {
        return Err("has characters that no address has");
    }
    Ok(())
}

/// Splits `host[:port]`, the host in lower case.
pub(crate) fn split_authority(text: &str) -> Result<(String, Option<u16>), &'static str> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (address, rest) = rest.split_once(']').ok_or("has a bad host")?;
        let address: Ipv6Addr = address.parse().map_err(|_| "has a bad host")?;
        let port = match rest.strip_prefix(':') {
            Some(port) => Some(port),
            None if rest.is_empty() => None,
            None => return Err("has a bad host"),
        };
        (format!("[{address}]"), port)
    } else {
        let (host, port) =
            text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
        let good = |label: &str| {
            let bytes = label.as_bytes();
            (1..=63).contains(&bytes.len())
                && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
                && bytes.first() != Some(&b'-')
                && bytes.last() != Some(&b'-')
        };
        if host.len() > 253 || !host.split('.').all(good) {
            return Err("has a bad host");
        }
        (host.to_ascii_lowercase(), port)
    };
    let port = match port {
        None => None,
        // `parse` would take a sign.
        Some(text) if (1..=5).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit()) => {
            let port: u16 = text.parse().map_err(|_| "has a bad port")?;
            if port == 0 {
                return Err("has a bad port");
            }
            Some(port)
        }
        Some(_) => return Err("has a bad port"),
    };
    Ok((host, port))
}

fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        if b.is_ascii_alphanumeric() || b"-._~/:,".contains(&b) {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_address_has_one_origin() {
        for (text, origin, path) in [
            ("https://A.example/x?y#z", "https://a.example", "/x?y"),
            ("HTTPS://a.example:443", "https://a.example", "/"),
            ("http://a.example:8080?q", "http://a.example:8080", "/?q"),
            ("https://[::1]:5000/v2/", "https://[::1]:5000", "/v2/"),
            ("https://[0:0::1]/", "https://[::1]", "/"),
        ] {
            let url = Url::parse(text).unwrap();
            assert_eq!((url.origin.to_string().as_str(), url.path.as_str()), (origin, path));
        }
    }

    #[test]
    fn addresses_that_parsers_read_differently_are_refused() {
        for (text, why) in [
            ("file:///etc/shadow", "has a scheme other than http and https"),
            ("gopher://a/", "has a scheme other than http and https"),
            ("https:/a/b", "is no absolute address"),
            ("", "is no absolute address"),
            ("https://user:pw@a/", "has user information"),
            ("https://good.example@evil.example/", "has user information"),
            ("https://good.example\\@evil.example/", "has characters that no address has"),
            ("https://a/\r\nx: y", "has characters that no address has"),
            ("https://a b/", "has characters that no address has"),
            ("https://ä.example/", "has characters that no address has"),
            ("https:///x", "has a bad host"),
            ("https://a..b/", "has a bad host"),
            ("https://-a/", "has a bad host"),
            ("https://a%2eb/", "has a bad host"),
            ("https://[::1/", "has a bad host"),
            ("https://[::1]x/", "has a bad host"),
            ("https://[fe80::1%25eth0]/", "has a bad host"),
            ("https://a:/", "has a bad port"),
            ("https://a:0/", "has a bad port"),
            ("https://a:+80/", "has a bad port"),
            ("https://a:65536/", "has a bad port"),
            ("https://a:1:2/", "has a bad port"),
        ] {
            assert_eq!(Url::parse(text).unwrap_err(), why, "{text}");
        }
    }

    #[test]
    fn a_location_is_joined() {
        let at = Url::parse("https://a.example:5000/v2/x").unwrap();
        for (location, want) in [
            ("/y?z", "https://a.example:5000/y?z"),
            ("//b.example/y", "https://b.example/y"),
            ("http://c.example/", "http://c.example/"),
        ] {
            assert_eq!(at.join(location).unwrap().to_string(), want);
        }
        assert_eq!(at.join("y").unwrap_err(), "is no absolute address");
        assert_eq!(at.shown(), "https://a.example:5000/v2/x");
        let query = at.with_query(&[("scope", "repository:a/b:pull"), ("x", "a b&c=d\n")]);
        assert_eq!(query.path, "/v2/x?scope=repository:a/b:pull&x=a%20b%26c%3Dd%0A");
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_accepted_again_unchanged(text in "(https?://)?[a-zA-Z0-9.\\[\\]:@/?#%\\\\ -]{0,40}") {
            if let Ok(url) = Url::parse(&text) {
                prop_assert_eq!(Url::parse(&url.to_string()), Ok(url));
            }
        }

        #[test]
        fn nothing_panics(text in ".{0,200}") {
            let _ = Url::parse(&text);
            let _ = split_authority(&text);
        }
    }
}
