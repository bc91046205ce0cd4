//! A NIC: a veth pair whose guest's end is born inside the guest's network namespace.
//!
//! ```text
//!   one request   both ends: names, MACs, MTU; guest's end in its namespace; host's end a port
//!   reserve       alternative name of the host's end: one MAC is on one bridge once
//!   mark          alias, no IPv6 address of its own, up
//!   plug          Open vSwitch only
//!   inside        up, addresses, routes, in one batch
//!   shape         bounds of its traffic, if there are any
//! ```
//!
//! No end is renamed or moved after it was made: each of these makes the kernel wait for an RCU
//! grace period, milliseconds each. The mark comes last on the host's side and by an own request
//! (the kernel takes no alias at creation), so a crash can leave a link without a mark; it is known
//! by its other end, which is in the VM's pinned namespace.
//!
//! The host's end has the guest's MAC with `fe` in front. A bridge without an address of its own
//! takes the lowest of its ports' addresses, so a port with a random one would change it and cut
//! connections of the host.

use std::os::fd::{AsRawFd, BorrowedFd};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ids::{IfName, MacAddr};
use ocivisor_core::spec::{Bridge, NicSpec};

use super::claim::{self, Claim, Claimant};
use super::fault;
use super::inside;
use super::link::{self, ALT_IFNAME, Link, PROP_LIST};
use super::mark::{Mark, reservation};
use super::ovs;
use super::shape;
use super::socket::{Answer, Netlink, Refusal};
use super::wire::{Message, number};

/// The kernel's numbers that libc lacks (include/uapi/linux/{veth,if_link,rtnetlink}.h).
const RTM_NEWLINKPROP: u16 = 108;
const VETH_INFO_PEER: u16 = 1;
const INET6_ADDR_GEN_MODE: u16 = 8;
const ADDR_GEN_MODE_NONE: u8 = 1;

/// One NIC and everything that it depends on.
pub(super) struct Wish<'a> {
    pub(super) nic: &'a NicSpec,
    /// Whose it shall be.
    pub(super) mark: Mark,
    /// The VM's network namespace.
    pub(super) namespace: BorrowedFd<'a>,
}

/// What the host's end is plugged into, found on this host.
pub(super) struct Plug<'a> {
    kind: Kind<'a>,
    pub(super) index: u32,
    mtu: u32,
}

enum Kind<'a> {
    Linux(&'a IfName),
    OpenVswitch(&'a IfName),
}

/// See [`Network::ensure_nic`](ocivisor_core::ports::Network::ensure_nic).
pub(super) fn ensure(wish: &Wish<'_>) -> Result<()> {
    let host = &mut Netlink::open().map_err(|e| e.error("open netlink socket"))?;
    let plug = find_plug(host, &wish.nic.bridge)?;
    if let Some(Plug { kind: Kind::Linux(bridge), index, .. }) = &plug {
        refuse_mac_of_port(host, bridge, *index, wish.nic.mac)?;
    }
    let plug = plug.as_ref();
    match create(host, wish, plug) {
        Err(e) if e.is(libc::EEXIST) => {
            if is_whole_or_cleared(host, wish, plug)? {
                return shape::set(host, wish.nic, &wish.mark);
            }
            create(host, wish, plug)
        }
        created => created,
    }
    .map_err(|e| create_error(host, wish, &e))?;
    finish(host, wish, plug).map_err(|error| match undo(host, wish) {
        Ok(()) => error,
        Err(also) => error.context(format!("{also} while undoing")),
    })
}

/// The bridge, if there is to be one.
pub(super) fn find_plug<'a>(host: &mut Netlink, bridge: &'a Bridge) -> Result<Option<Plug<'a>>> {
    let (name, kind) = match bridge {
        Bridge::None => return Ok(None),
        Bridge::Linux(name) => (name, Kind::Linux(name)),
        Bridge::OpenVswitch(name) => (name, Kind::OpenVswitch(name)),
    };
    let found = host.link_by_name(name.as_str());
    let Some(link) = found.map_err(|e| e.error(format!("look up bridge {name}")))? else {
        let missing = Error::new(ErrorKind::NotFound, format!("bridge {name} does not exist"));
        return Err(missing.hint("create it on this host, or correct the network's bridge"));
    };
    if matches!(kind, Kind::Linux(_)) && link.kind != "bridge" {
        let is = if link.kind.is_empty() { "a device" } else { &link.kind };
        let what = format!("{name} is not a linux bridge but {is}");
        let hint = match is {
            ovs::KIND => "this network is one of open vswitch",
            _ => "correct the network's bridge",
        };
        return Err(Error::new(ErrorKind::Invalid, what).hint(hint));
    }
    Ok(Some(Plug { kind, index: link.index, mtu: link.mtu }))
}

/// A MAC that a port of the bridge has itself (a device of the host, a tap) never gets a frame: the
/// bridge keeps it. Learned addresses say nothing: the VM may have run elsewhere a moment ago.
fn refuse_mac_of_port(host: &mut Netlink, bridge: &IfName, index: u32, mac: MacAddr) -> Result<()> {
    const NUD_OFFSET: usize = 8;
    let mut fixed = [0; 12]; // struct ndmsg
    fixed[0] = libc::AF_BRIDGE as u8;
    let request = Message::new(libc::RTM_GETNEIGH, 0, &fixed)
        .attr(libc::NDA_LLADDR, &mac.0)
        .number(libc::NDA_MASTER, index);
    let found = host.get(request, |payload| {
        let state = payload.get(NUD_OFFSET..NUD_OFFSET + 2)?;
        let state = u16::from_ne_bytes(state.try_into().ok()?);
        Some((number(payload.get(4..8)?)?, state & libc::NUD_PERMANENT != 0))
    });
    let port = match found {
        Ok((port, true)) => port,
        Ok((_, false)) => return Ok(()),
        Err(e) if e.is(libc::ENOENT) => return Ok(()),
        Err(e) => return Err(e.error(format!("look up {mac} on bridge {bridge}"))),
    };
    let name = host.link_by_index(port).ok().flatten().map_or_else(String::new, |l| l.name);
    let what = format!("mac {mac} is in use on bridge {bridge} by interface {name}");
    Err(Error::new(ErrorKind::Conflict, what))
}

/// MTU of both ends; `None` leaves it to the kernel.
fn mtu(nic: &NicSpec, plug: Option<&Plug<'_>>) -> Option<u32> {
    nic.mtu.or(plug.map(|plug| plug.mtu))
}

/// Address of the host's end.
fn host_mac(guest: MacAddr) -> [u8; 6] {
    let mut mac = guest.0;
    mac[0] = if mac[0] == 0xfe { 0xfa } else { 0xfe };
    mac
}

fn create(host: &mut Netlink, wish: &Wish<'_>, plug: Option<&Plug<'_>>) -> Answer<()> {
    let flags = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let nic = wish.nic;
    let with_mtu = |m: Message| match mtu(nic, plug) {
        Some(mtu) => m.number(libc::IFLA_MTU, mtu),
        None => m,
    };
    let mut request = Message::new(libc::RTM_NEWLINK, flags, &link::fixed(0, 0))
        .text(libc::IFLA_IFNAME, nic.host_name.as_str())
        .attr(libc::IFLA_ADDRESS, &host_mac(nic.mac));
    if let Some(Plug { kind: Kind::Linux(_), index, .. }) = plug {
        request = request.number(libc::IFLA_MASTER, *index);
    }
    let peer = |m: Message| {
        with_mtu(m.raw(&link::fixed(0, 0)))
            .text(libc::IFLA_IFNAME, &nic.guest_name())
            .attr(libc::IFLA_ADDRESS, &nic.mac.0)
            .attr(libc::IFLA_NET_NS_FD, &wish.namespace.as_raw_fd().to_ne_bytes())
    };
    let request = with_mtu(request).nest(libc::IFLA_LINKINFO, |m| {
        let data = |m: Message| m.nest(VETH_INFO_PEER, peer);
        m.text(libc::IFLA_INFO_KIND, "veth").nest(libc::IFLA_INFO_DATA, data)
    });
    host.change(request)
}

fn create_error(host: &mut Netlink, wish: &Wish<'_>, refusal: &Refusal) -> Error {
    let (name, vm) = (&wish.nic.host_name, &wish.mark.vm);
    match refusal.errno {
        libc::EEXIST if matches!(host.link_by_name(name.as_str()), Ok(None)) => {
            let guest = wish.nic.guest_name();
            let what = format!("nic {name}: vm {vm} has another interface {guest} already");
            Error::new(ErrorKind::Conflict, what)
        }
        libc::EEXIST => {
            let what = format!("interface {name} exists and changed while it was looked at");
            Error::new(ErrorKind::Conflict, what)
        }
        libc::EXFULL => refusal.error(format!("nic {name}: the bridge has no free port")),
        libc::EOPNOTSUPP => refusal
            .error(format!("create interface {name}"))
            .hint("the kernel needs veth: modprobe veth"),
        _ => refusal.error(format!("create interface {name}")),
    }
}

/// The name is taken: true if by this very NIC as it shall be; false if the way is free, perhaps
/// because leftovers were removed.
fn is_whole_or_cleared(
    host: &mut Netlink,
    wish: &Wish<'_>,
    plug: Option<&Plug<'_>>,
) -> Result<bool> {
    let name = &wish.nic.host_name;
    let failed = |e: Refusal| e.error(format!("examine interface {name}"));
    let Some(link) = host.link_by_name(name.as_str()).map_err(failed)? else {
        return Ok(false);
    };
    let Mark { daemon, vm, .. } = &wish.mark;
    let us = Claimant::new(host, daemon, vm, Some(wish.namespace))?;
    match us.claim(&link) {
        Claim::Foreign => {
            let what = format!("interface {name} exists and is not ocivisor's");
            let error = Error::new(ErrorKind::Conflict, what);
            Err(error.hint("remove or rename it, or give the nic another name"))
        }
        Claim::Other(mark) => {
            let what = format!("interface {name} belongs to vm {}", describe(&mark, wish));
            Err(Error::new(ErrorKind::Conflict, what))
        }
        Claim::Ours => {
            if is_whole(us.namespace, &link, wish, plug)? {
                return Ok(true);
            }
            undo(host, wish)?;
            Ok(false)
        }
    }
}

fn describe(other: &Mark, wish: &Wish<'_>) -> String {
    let by = if other.daemon == wish.mark.daemon { "" } else { " of another daemon" };
    format!("{}{by}", other.vm)
}

/// Whether both ends are as [`ensure`] makes them.
fn is_whole(
    here: Option<i32>,
    link: &Link,
    wish: &Wish<'_>,
    plug: Option<&Plug<'_>>,
) -> Result<bool> {
    let nic = wish.nic;
    let failed = |e: Refusal| e.error(format!("examine interface {}", nic.host_name));
    let plugged = match plug {
        None => link.master.is_none(),
        Some(Plug { kind: Kind::Linux(bridge), index, .. }) => {
            let name = reservation(bridge, nic.mac);
            link.master == Some(*index) && link.alt_names.contains(&name)
        }
        // Asking the switch is as dear as plugging in again, which is done at the end.
        Some(Plug { kind: Kind::OpenVswitch(_), .. }) => true,
    };
    // An MTU that was not asked for need only be that of both ends: the bridge's changes with its
    // other ports, and is no reason to cut a guest's connections.
    let mtu = nic.mtu.unwrap_or(link.mtu);
    let right = |link: &Link, mac: [u8; 6]| link.up && link.mac == mac && link.mtu == mtu;
    let connected = here.is_some() && link.peer_ns == here;
    let (true, Some(peer)) = (plugged && connected && link.alias == wish.mark.alias(), link.peer)
    else {
        return Ok(false);
    };
    if !right(link, host_mac(nic.mac)) {
        return Ok(false);
    }
    let mut guest = Netlink::open_in(wish.namespace).map_err(failed)?;
    let Some(end) = guest.link_by_index(peer).map_err(failed)? else {
        return Ok(false);
    };
    let whole = end.name == nic.guest_name()
        && right(&end, nic.mac.0)
        && inside::is_configured(&mut guest, peer, nic).map_err(failed)?;
    match plug.map(|plug| &plug.kind) {
        // Refused if the port is on another bridge: then all is made anew.
        Some(Kind::OpenVswitch(bridge)) if whole => {
            Ok(ovs::plug(bridge, &nic.host_name, &wish.mark).is_ok())
        }
        _ => Ok(whole),
    }
}

/// All that creation could not do.
fn finish(host: &mut Netlink, wish: &Wish<'_>, plug: Option<&Plug<'_>>) -> Result<()> {
    fault::point()?;
    let (nic, name) = (wish.nic, &wish.nic.host_name);
    let failed = |e: Refusal| e.error(format!("set up interface {name}"));
    let link = host.link_by_name(name.as_str()).map_err(failed)?;
    let vanished = || Error::new(ErrorKind::Host, format!("interface {name} vanished"));
    let link = link.ok_or_else(vanished)?;
    if let Some(Plug { kind: Kind::Linux(bridge), .. }) = plug {
        reserve(host, wish, bridge, link.index)?;
        fault::point()?;
    }
    mark(host, link.index, libc::IFF_UP, &wish.mark).map_err(failed)?;
    fault::point()?;
    if let Some(Plug { kind: Kind::OpenVswitch(bridge), .. }) = plug {
        ovs::plug(bridge, name, &wish.mark)?;
        fault::point()?;
    }
    let peer = link.peer.ok_or_else(vanished)?;
    let mut guest = Netlink::open_in(wish.namespace).map_err(failed)?;
    inside::configure(&mut guest, peer, nic)?;
    fault::point()?;
    if nic.inbound.is_some() || nic.outbound.is_some() {
        shape::set(host, nic, &wish.mark)?;
    }
    Ok(())
}

/// Takes the MAC on that bridge, or tells who has it.
fn reserve(host: &mut Netlink, wish: &Wish<'_>, bridge: &IfName, index: u32) -> Result<()> {
    let mac = wish.nic.mac;
    let alt_name = reservation(bridge, mac);
    let flags = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL | libc::NLM_F_APPEND;
    let request = Message::new(RTM_NEWLINKPROP, flags, &link::fixed(index, 0))
        .nest(PROP_LIST, |m| m.text(ALT_IFNAME, &alt_name));
    let refusal = match host.change(request) {
        Ok(()) => return Ok(()),
        Err(refusal) => refusal,
    };
    if !refusal.is(libc::EEXIST) {
        return Err(refusal.error(format!("reserve mac {mac} on bridge {bridge}")));
    }
    let holder = host.link_by_alt_name(&alt_name).ok().flatten();
    let by = match holder.map(|link| (Mark::parse(&link.alias), link.name)) {
        Some((Some(mark), _)) => format!("vm {}", describe(&mark, wish)),
        Some((None, name)) => format!("interface {name}"),
        None => "another vm".to_owned(),
    };
    let what = format!("mac {mac} is in use on bridge {bridge} by {by}");
    Err(Error::new(ErrorKind::Conflict, what))
}

/// The alias, no IPv6 address that the kernel makes up, and these flags.
pub(super) fn mark(host: &mut Netlink, index: u32, flags: i32, mark: &Mark) -> Answer<()> {
    let request = || link::change(index, flags).text(libc::IFLA_IFALIAS, &mark.alias());
    // A host with link-local addresses on its guests' ports could be reached by the guests. The
    // kernel makes them when the link has a carrier, which waits for the guest's end.
    let silent = request().nest(libc::IFLA_AF_SPEC, |m| {
        let mode = |m: Message| m.attr(INET6_ADDR_GEN_MODE, &[ADDR_GEN_MODE_NONE]);
        m.nest(libc::AF_INET6 as u16, mode)
    });
    match host.change(silent) {
        // No IPv6 on this host: nothing to silence.
        Err(e) if e.is(libc::EAFNOSUPPORT) => host.change(request()),
        other => other,
    }
}

fn undo(host: &mut Netlink, wish: &Wish<'_>) -> Result<()> {
    let Wish { nic, mark, namespace } = wish;
    claim::remove(host, &mark.daemon, &mark.vm, nic, Some(*namespace))
}
