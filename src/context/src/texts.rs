//! Texts of whole files and blocks. Pure.

use std::fmt::Write;
use std::net::IpAddr;

use ocivisor_core::spec::VmSpec;

/// Ours in `/etc/hosts`: the guest's own name with its addresses, and loopback if `rest`, the other lines, lacks it.
///
/// hosts(5). The first addresses of each NIC and family; without any, the address that Debian has for this.
#[must_use]
pub fn hosts(spec: &VmSpec, rest: &[u8]) -> String {
    let mut lines = String::new();
    if !names_localhost(rest) {
        lines.push_str("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n");
    }
    let name = spec.hostname.as_str();
    let names = match name.split_once('.') {
        Some((short, _)) => format!("{name} {short}"),
        None => name.to_owned(),
    };
    if name == "localhost" {
        return lines;
    }
    let mut addresses: Vec<IpAddr> = Vec::new();
    for nic in &spec.nics {
        for v4 in [true, false] {
            addresses.extend(
                nic.addresses.iter().map(|(address, _)| *address).find(|a| a.is_ipv4() == v4),
            );
        }
    }
    if addresses.is_empty() {
        addresses.push(IpAddr::from([127, 0, 1, 1]));
    }
    for address in addresses {
        // Writing to a string does not fail.
        let _ = writeln!(lines, "{address} {names}");
    }
    lines
}

fn names_localhost(hosts: &[u8]) -> bool {
    String::from_utf8_lossy(hosts).lines().any(|line| {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        words.next().is_some() && words.any(|name| name == "localhost")
    })
}

/// `/etc/resolv.conf`; `None` if there is nothing to say. resolv.conf(5): the first three servers are asked, so the
/// context's come before those of the NICs.
#[must_use]
pub fn resolv(spec: &VmSpec) -> Option<String> {
    let mut servers: Vec<String> = Vec::new();
    let mut domains: Vec<String> = Vec::new();
    let nics = &spec.nics;
    let all_servers = spec.context.dns.iter().chain(nics.iter().flat_map(|nic| &nic.dns));
    let all_domains = spec.context.search.iter().chain(nics.iter().flat_map(|nic| &nic.search));
    for (list, text) in all_servers
        .map(|server| (true, server.to_string()))
        .chain(all_domains.map(|domain| (false, domain.to_string())))
    {
        let list = if list { &mut servers } else { &mut domains };
        if !list.contains(&text) {
            list.push(text);
        }
    }
    if servers.is_empty() && domains.is_empty() {
        return None;
    }
    let mut text =
        String::from("# Written by ocivisor at each boot, of the virtual machine's context.\n");
    if !domains.is_empty() {
        let _ = writeln!(text, "search {}", domains.join(" "));
    }
    for server in servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    Some(text)
}

/// Text for a POSIX shell that reads it as it is: in single quotes, with those in it written as `'\''`. So does
/// oned for `context.sh`.
#[must_use]
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Assignments of a `context.sh`: names and values in single quotes, as oned writes them. Anything else is passed
/// over: it is read for a few known names, and never run.
#[must_use]
pub fn assignments(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((line, after)) = split_line(rest) {
        let begun = line.split_once("='").filter(|(name, _)| is_name(name));
        let Some((name, _)) = begun else {
            rest = after;
            continue;
        };
        let mut value = String::new();
        let mut left = &rest[name.len() + 2..];
        loop {
            let Some((part, behind)) = left.split_once('\'') else {
                // No closing quote: the rest is no assignment.
                return found;
            };
            value.push_str(part);
            match behind.strip_prefix(r"\''") {
                Some(more) => {
                    value.push('\'');
                    left = more;
                }
                None => {
                    left = behind;
                    break;
                }
            }
        }
        found.push((name.to_owned(), value));
        rest = split_line(left).map_or("", |(_, after)| after);
    }
    found
}

fn split_line(text: &str) -> Option<(&str, &str)> {
    (!text.is_empty()).then(|| text.split_once('\n').unwrap_or((text, "")))
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::spec;

    #[test]
    fn hosts_have_the_own_name_with_every_nics_addresses() {
        let mut one = spec();
        assert_eq!(
            hosts(&one, b""),
            "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n10.0.0.5 web1\nfd00::5 web1\n"
        );
        one.nics.clear();
        one.hostname = "web1.example.org".parse().unwrap();
        assert_eq!(
            hosts(&one, b"127.0.0.1\tx localhost # y\n"),
            "127.0.1.1 web1.example.org web1\n"
        );
        assert!(
            hosts(&one, b"#127.0.0.1 localhost\nlocalhost\n").starts_with("127.0.0.1 localhost\n")
        );
    }

    #[test]
    fn resolv_has_the_contexts_servers_before_those_of_the_nics_each_once() {
        let mut one = spec();
        assert_eq!(resolv(&one), None);
        one.context.dns = vec!["fd00::53".parse().unwrap(), "10.0.0.1".parse().unwrap()];
        one.nics[0].dns = vec!["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()];
        one.nics[0].search = vec!["a.example".parse().unwrap(), "b.example".parse().unwrap()];
        let text = resolv(&one).unwrap();
        let lines: Vec<&str> = text.lines().skip(1).collect();
        assert_eq!(
            lines,
            [
                "search a.example b.example",
                "nameserver fd00::53",
                "nameserver 10.0.0.1",
                "nameserver 10.0.0.2"
            ]
        );
    }

    #[test]
    fn assignments_are_read_as_oned_writes_them() {
        let text = "# Context variables generated by OpenNebula\nA='1'\nSET='a b '\\''c'\\'' \"d\"'\n\
                    M='x\ny=z\n'\nBAD\nexport X='1'\nB=2\n=''\nZ=''\nOPEN='no end\n";
        let want = [("A", "1"), ("SET", "a b 'c' \"d\""), ("M", "x\ny=z\n"), ("Z", "")];
        let want: Vec<_> = want.map(|(n, v)| (n.to_owned(), v.to_owned())).into();
        assert_eq!(assignments(text), want);
    }

    proptest! {
        #[test]
        fn what_is_quoted_is_read_back(values in prop::collection::vec("[ -~\n'\\\\é]{0,30}", 0..5)) {
            let pairs: Vec<_> = values.iter().enumerate().map(|(n, v)| (format!("V{n}"), v.clone())).collect();
            let text: String = pairs.iter().map(|(n, v)| format!("{n}={}\n", quoted(v))).collect();
            prop_assert_eq!(assignments(&text), pairs);
        }

        #[test]
        fn no_text_confuses_the_reader(text in "[A-Z='\\\\\n ]{0,80}") {
            let _ = assignments(&text);
        }
    }
}
