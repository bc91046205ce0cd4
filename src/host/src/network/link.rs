//! Links: what the kernel says of them, and the requests that look them up.

use std::os::fd::{AsRawFd, BorrowedFd};

use super::shape::IFB;
use super::socket::{Answer, Netlink};
use super::wire::{Message, attributes, number, text};

/// Length of `struct ifinfomsg`.
const FIXED: usize = 16;
/// Nest of alternative names and one of them (include/uapi/linux/if_link.h).
pub(super) const PROP_LIST: u16 = libc::IFLA_PROP_LIST;
pub(super) const ALT_IFNAME: u16 = libc::IFLA_ALT_IFNAME;

/// A link, as far as this adapter needs to know it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) up: bool,
    /// Kind of virtual link: `bridge`, `veth`; empty for hardware.
    pub(super) kind: String,
    /// Kind of the link it is plugged into: `bridge`, `openvswitch`; empty for none.
    pub(super) plugged_into: String,
    pub(super) alias: String,
    /// Kind of the queue that it sends through.
    pub(super) qdisc: String,
    pub(super) alt_names: Vec<String>,
    pub(super) master: Option<u32>,
    pub(super) mtu: u32,
    pub(super) mac: Vec<u8>,
    /// Index of the other end, in the namespace of the other end.
    pub(super) peer: Option<u32>,
    /// The local id of the network namespace of the other end, if it is another.
    pub(super) peer_ns: Option<i32>,
}

impl Link {
    fn parse(payload: &[u8]) -> Option<Self> {
        let fixed = payload.get(..FIXED)?;
        let mut link = Self {
            index: number(&fixed[4..8])?,
            up: number(&fixed[8..12])? & libc::IFF_UP as u32 != 0,
            ..Self::default()
        };
        for (kind, value) in attributes(&payload[FIXED..]) {
            match kind {
                libc::IFLA_IFNAME => link.name = text(value),
                libc::IFLA_IFALIAS => link.alias = text(value),
                libc::IFLA_QDISC => link.qdisc = text(value),
                libc::IFLA_ADDRESS => link.mac = value.to_vec(),
                libc::IFLA_MTU => link.mtu = number(value)?,
                libc::IFLA_MASTER => link.master = number(value),
                libc::IFLA_LINK => link.peer = number(value),
                libc::IFLA_LINK_NETNSID => link.peer_ns = number(value).map(|n| n as i32),
                libc::IFLA_LINKINFO => {
                    for (kind, value) in attributes(value) {
                        match kind {
                            libc::IFLA_INFO_KIND => link.kind = text(value),
                            libc::IFLA_INFO_SLAVE_KIND => link.plugged_into = text(value),
                            _ => {}
                        }
                    }
                }
                PROP_LIST => {
                    let names = attributes(value).filter(|(kind, _)| *kind == ALT_IFNAME);
                    link.alt_names = names.map(|(_, name)| text(name)).collect();
                }
                _ => {}
            }
        }
        Some(link)
    }
}

/// `struct ifinfomsg`: which link, and which flags shall be set.
pub(super) fn fixed(index: u32, set: i32) -> [u8; FIXED] {
    let mut bytes = [0; FIXED];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&set.to_ne_bytes());
    bytes[12..16].copy_from_slice(&set.to_ne_bytes());
    bytes
}

/// A request that changes link `index`, setting these flags.
pub(super) fn change(index: u32, set: i32) -> Message {
    Message::new(libc::RTM_SETLINK, libc::NLM_F_ACK, &fixed(index, set))
}

impl Netlink {
    /// The link of that name; `None` if there is none.
    pub(super) fn link_by_name(&mut self, name: &str) -> Answer<Option<Link>> {
        self.link(|m| m.text(libc::IFLA_IFNAME, name))
    }

    /// The link that has this alternative name; `None` if there is none.
    pub(super) fn link_by_alt_name(&mut self, name: &str) -> Answer<Option<Link>> {
        self.link(|m| m.text(ALT_IFNAME, name))
    }

    /// The link of that index; `None` if there is none.
    pub(super) fn link_by_index(&mut self, index: u32) -> Answer<Option<Link>> {
        self.found(Message::new(libc::RTM_GETLINK, 0, &fixed(index, 0)))
    }

    fn link(&mut self, by: impl FnOnce(Message) -> Message) -> Answer<Option<Link>> {
        self.found(by(Message::new(libc::RTM_GETLINK, 0, &fixed(0, 0))))
    }

    fn found(&mut self, request: Message) -> Answer<Option<Link>> {
        let request = request.number(libc::IFLA_EXT_MASK, libc::RTEXT_FILTER_SKIP_STATS as u32);
        match self.get(request, Link::parse) {
            Ok(link) => Ok(Some(link)),
            Err(e) if e.is(libc::ENODEV) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// All veth ends of this namespace.
    pub(super) fn veths(&mut self) -> Answer<Vec<Link>> {
        self.of_kind("veth")
    }

    /// All links that traffic from guests goes round by.
    pub(super) fn ifbs(&mut self) -> Answer<Vec<Link>> {
        match self.of_kind(IFB) {
            // A kernel that does not know the kind has none.
            Err(e) if e.is(libc::EOPNOTSUPP) => Ok(Vec::new()),
            other => other,
        }
    }

    fn of_kind(&mut self, kind: &str) -> Answer<Vec<Link>> {
        let request = Message::new(libc::RTM_GETLINK, libc::NLM_F_DUMP, &fixed(0, 0))
            .number(libc::IFLA_EXT_MASK, libc::RTEXT_FILTER_SKIP_STATS as u32)
            .nest(libc::IFLA_LINKINFO, |m| m.text(libc::IFLA_INFO_KIND, kind));
        let mut all = self.dump(&request, Link::parse)?;
        // The kernel's filter saves time and is no promise.
        all.retain(|link| link.kind == kind);
        Ok(all)
    }

    /// Removes a link and its other end; both are gone on return. Gone already is fine.
    pub(super) fn remove(&mut self, index: u32) -> Answer<()> {
        match self.change(Message::new(libc::RTM_DELLINK, libc::NLM_F_ACK, &fixed(index, 0))) {
            Err(e) if !e.is(libc::ENODEV) => Err(e),
            _ => Ok(()),
        }
    }

    /// The local id of another network namespace; `None` if no link leads there.
    pub(super) fn namespace_id(&mut self, namespace: BorrowedFd<'_>) -> Answer<Option<i32>> {
        // include/uapi/linux/net_namespace.h; `struct rtgenmsg` is the family alone, padded.
        const NETNSA_NSID: u16 = 1;
        const NETNSA_FD: u16 = 3;
        let request = Message::new(libc::RTM_GETNSID, 0, &[0; 4])
            .attr(NETNSA_FD, &namespace.as_raw_fd().to_ne_bytes());
        let id = self.get(request, |payload| {
            let mut all = attributes(payload.get(4..)?);
            all.find(|(kind, _)| *kind == NETNSA_NSID).and_then(|(_, v)| number(v))
        })?;
        // NETNSA_NSID_NOT_ASSIGNED is -1.
        Ok(Some(id as i32).filter(|id| *id >= 0))
    }
}
