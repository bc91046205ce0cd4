//! Which sockets a guest may make: data, each with its reason, and the filter rules made of it.
//!
//! `socket(domain, type, protocol)` picks a piece of the host's kernel, and loads it as a module
//! if need be, long before anybody asks for privileges. So it is a list of what is allowed:
//! families, within the internet families types and protocols, within netlink protocols. What a
//! well-behaved program may try and then do without is refused in the words of a kernel that was
//! built without it (socket(2)), since programs know those: libaudit takes EPROTONOSUPPORT for "no
//! audit here", and login(1) ends on any other answer; Go tries MPTCP and falls back to TCP.
//!
//! Arguments are compared with all their 64 bits while the kernel uses the lower 32: with rubbish
//! above, none is equal to a value that is allowed.

use oci_spec::runtime::{LinuxSeccompArg, LinuxSeccompOperator as Op, LinuxSyscall};
use ocivisor_core::spec::Isolation;

use super::profile::Profile;
use super::seccomp::{Result, allow, masked, refuse, when};

const ESOCKTNOSUPPORT: u32 = 94;
const EPROTONOSUPPORT: u32 = 93;
const EAFNOSUPPORT: u32 = 97;

const UNIX: u64 = 1;
const INET: u64 = 2;
const INET6: u64 = 10;
const NETLINK: u64 = 16;
const PACKET: u64 = 17;

const STREAM: u64 = 1;
const DGRAM: u64 = 2;
const RAW: u64 = 3;
/// The type's own bits, beside `SOCK_CLOEXEC` and `SOCK_NONBLOCK`.
const TYPE_MASK: u64 = 0xf;

/// Types and protocols of the internet families: family, type, protocols.
///
/// Absent, all with a record of holes that guests cannot be asked to share: SCTP, DCCP, L2TP, SMC,
/// UDP-Lite, and MPTCP, which is TCP to programs that do not get it. Of the type `SOCK_PACKET` the
/// kernel makes a packet socket, whatever the family says.
const INTERNET: [(u64, u64, &[u64]); 4] = [
    // Default and TCP.
    (INET, STREAM, &[0, 6]),
    (INET6, STREAM, &[0, 6]),
    // Default, UDP, and the echoes of ping without privileges: ICMP and ICMPv6, icmp(7).
    (INET, DGRAM, &[0, 1, 17]),
    (INET6, DGRAM, &[0, 17, 58]),
];
/// The last IP protocol. Raw sockets are the same code for all of them, behind `CAP_NET_RAW` in the
/// guest's own namespace: ping, traceroute, VRRP.
const LAST_RAW: u64 = 255;
/// Types that families not listed here have: RDM, SEQPACKET, DCCP, PACKET.
const OTHER_TYPES: [u64; 4] = [4, 5, 6, 10];

/// Who may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    All,
    Administrators,
    Nobody,
}

/// Netlink protocols by number, netlink(7), with the reason for their fate.
const NETLINK_PROTOCOLS: [(&str, Who, &str); 23] = [
    ("ROUTE", Who::All, "getaddrinfo(3) and getifaddrs(3) ask it; changes need CAP_NET_ADMIN"),
    ("unused", Who::Nobody, "no kernel has it"),
    ("USERSOCK", Who::Nobody, "for programs among themselves, which have Unix sockets"),
    ("FIREWALL", Who::Nobody, "no kernel has it since Linux 3.5"),
    ("SOCK_DIAG", Who::Administrators, "ss; without it ss reads /proc"),
    ("NFLOG", Who::Nobody, "no kernel has it since Linux 3.17"),
    ("XFRM", Who::Nobody, "IPsec: large, privileged and a favourite of exploits"),
    ("SELINUX", Who::Nobody, "policy is the host's"),
    ("ISCSI", Who::Nobody, "storage is the host's"),
    ("AUDIT", Who::Nobody, "the audit log is the host's; programs take this for a kernel without"),
    ("FIB_LOOKUP", Who::Nobody, "for debugging routes; ROUTE answers the same"),
    ("CONNECTOR", Who::Nobody, "tells of processes of all of the host"),
    (
        "NETFILTER",
        Who::Administrators,
        "a system's own firewall; much used by exploits, so no others",
    ),
    ("IP6_FW", Who::Nobody, "no kernel has it since Linux 3.5"),
    ("DNRTMSG", Who::Nobody, "DECnet"),
    ("KOBJECT_UEVENT", Who::All, "libudev opens it to wait for devices, of which none come"),
    ("GENERIC", Who::Administrators, "ethtool, WireGuard; loads modules by name for whoever asks"),
    ("unused", Who::Nobody, "no kernel has it"),
    ("SCSITRANSPORT", Who::Nobody, "storage is the host's"),
    ("ECRYPTFS", Who::Nobody, "no kernel has it since Linux 2.6.39"),
    ("RDMA", Who::Nobody, "hardware is the host's"),
    ("CRYPTO", Who::Nobody, "loads modules of the kernel's cryptography, as AF_ALG does"),
    ("SMC", Who::Nobody, "its sockets are refused as well"),
];

/// The rules for socket(2) and socketpair(2).
pub(super) fn rules(profile: Profile) -> Result<Vec<LinuxSyscall>> {
    let system = profile.administers();
    let raw = (profile.isolation == Isolation::Strict).then_some(ESOCKTNOSUPPORT);
    let mut rules = Vec::new();
    let mut add = |fate: Option<u32>, args: Vec<LinuxSeccompArg>| -> Result<()> {
        rules.push(match fate {
            None => allow("socket", args)?,
            Some(errno) => refuse("socket", errno, args)?,
        });
        Ok(())
    };
    let family = |family: u64| when(0, Op::ScmpCmpEq, family);
    let of_type = |number: u64| masked(1, TYPE_MASK, number);
    let protocol = |op: Op, number: u64| when(2, op, number);

    add(None, vec![family(UNIX)?])?;
    for (domain, number, protocols) in INTERNET {
        for allowed in protocols {
            let args = [family(domain)?, of_type(number)?, protocol(Op::ScmpCmpEq, *allowed)?];
            add(None, args.to_vec())?;
        }
        let last = protocols.iter().copied().max().unwrap_or_default();
        let args = [family(domain)?, of_type(number)?, protocol(Op::ScmpCmpGt, last)?];
        add(Some(EPROTONOSUPPORT), args.to_vec())?;
    }
    for domain in [INET, INET6] {
        let args = [family(domain)?, of_type(RAW)?, protocol(Op::ScmpCmpLe, LAST_RAW)?];
        add(raw, args.to_vec())?;
        for other in OTHER_TYPES {
            add(Some(ESOCKTNOSUPPORT), vec![family(domain)?, of_type(other)?])?;
        }
    }
    for (number, (_, who, _)) in (0..).zip(NETLINK_PROTOCOLS) {
        let allowed = match who {
            Who::All => true,
            Who::Administrators => system,
            Who::Nobody => false,
        };
        let fate = (!allowed).then_some(EPROTONOSUPPORT);
        add(fate, vec![family(NETLINK)?, protocol(Op::ScmpCmpEq, number)?])?;
    }
    let beyond = NETLINK_PROTOCOLS.len() as u64 - 1;
    let args = vec![family(NETLINK)?, protocol(Op::ScmpCmpGt, beyond)?];
    add(Some(EPROTONOSUPPORT), args)?;
    // DHCP clients and packet sniffers, on interfaces of one's own.
    add((!system).then_some(EAFNOSUPPORT), vec![family(PACKET)?])?;
    // AF_ALG, AF_VSOCK, AF_SMC, AF_XDP and all that is younger than packets. Those between the
    // families above are of the twentieth century and get ENOSYS.
    add(Some(EAFNOSUPPORT), vec![when(0, Op::ScmpCmpGt, PACKET)?])?;

    // A pair of sockets goes through the same creation, module loading included, in any family: only
    // those of AF_UNIX are of use.
    rules.push(allow("socketpair", vec![family(UNIX)?])?);
    rules.push(refuse("socketpair", EAFNOSUPPORT, vec![when(0, Op::ScmpCmpNe, UNIX)?])?);
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_netlink_protocol_has_its_number_and_a_reason() {
        for (number, name) in [
            (0, "ROUTE"),
            (4, "SOCK_DIAG"),
            (9, "AUDIT"),
            (12, "NETFILTER"),
            (15, "KOBJECT_UEVENT"),
            (16, "GENERIC"),
            (21, "CRYPTO"),
            (22, "SMC"),
        ] {
            assert_eq!(NETLINK_PROTOCOLS[number].0, name);
        }
        assert!(NETLINK_PROTOCOLS.iter().all(|(_, _, reason)| !reason.is_empty()));
    }
}
