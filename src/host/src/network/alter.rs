//! A NIC of a guest that lives gets other properties in place: its connections stay.
//!
//! The guest's root may have renamed its end, given it more addresses, or deleted it. The first two are left alone;
//! a NIC that is gone, or is not connected with the guest any more, is made anew.

use ocivisor_core::error::Result;
use ocivisor_core::spec::NicSpec;

use super::claim::{Claim, Claimant};
use super::fault;
use super::inside;
use super::link::{self, Link};
use super::nic::{self, Plug, Wish};
use super::shape;
use super::socket::{Netlink, Refusal};

/// Largest MTU of a veth (`ETH_MAX_MTU`), and that of a link that nobody gave one (`ETH_DATA_LEN`).
const MAX_MTU: u32 = 65_535;
const DEFAULT_MTU: u32 = 1500;

/// See [`Network::alter_nic`](ocivisor_core::ports::Network::alter_nic).
pub(super) fn alter(from: &NicSpec, wish: &Wish<'_>) -> Result<()> {
    let to = wish.nic;
    let failed = |e: Refusal| e.error(format!("change interface {}", to.host_name));
    let host = &mut Netlink::open().map_err(failed)?;
    let Some((link, peer)) = connected(host, wish)? else {
        return nic::ensure(wish);
    };
    let mut guest = Netlink::open_in(wish.namespace).map_err(failed)?;
    if from.mtu != to.mtu {
        let plug = nic::find_plug(host, &to.bridge)?;
        let mtu = match to.mtu {
            Some(mtu) => mtu,
            None => mtu_of_bridge(host, &link, plug.as_ref()).map_err(failed)?,
        };
        set_mtu(host, link.index, mtu).map_err(failed)?;
        fault::point()?;
        set_mtu(&mut guest, peer, mtu).map_err(failed)?;
        fault::point()?;
    }
    if (&from.addresses, &from.routes) != (&to.addresses, &to.routes) {
        inside::reconfigure(&mut guest, peer, from, to)?;
        fault::point()?;
    }
    if (&from.inbound, &from.outbound) != (&to.inbound, &to.outbound) {
        shape::set(host, to, &wish.mark)?;
    }
    Ok(())
}

/// The host's end and the index of the guest's, if they are what [`nic::ensure`] made.
fn connected(host: &mut Netlink, wish: &Wish<'_>) -> Result<Option<(Link, u32)>> {
    let name = wish.nic.host_name.as_str();
    let found = host.link_by_name(name);
    let Some(link) = found.map_err(|e| e.error(format!("examine interface {name}")))? else {
        return Ok(None);
    };
    let us = Claimant::new(host, &wish.mark.daemon, &wish.mark.vm, Some(wish.namespace))?;
    let ours = matches!(us.claim(&link), Claim::Ours) && link.alias == wish.mark.alias();
    let inside = us.namespace.is_some() && link.peer_ns == us.namespace;
    let peer = link.peer.filter(|_| ours && inside);
    Ok(peer.map(|peer| (link, peer)))
}

/// What the bridge has without this port: it follows the smallest of its ports, unless it was set by hand.
fn mtu_of_bridge(
    host: &mut Netlink,
    link: &Link,
    plug: Option<&Plug<'_>>,
) -> std::result::Result<u32, Refusal> {
    let Some(plug) = plug else { return Ok(DEFAULT_MTU) };
    set_mtu(host, link.index, MAX_MTU)?;
    let bridge = host.link_by_index(plug.index)?;
    Ok(bridge.map(|bridge| bridge.mtu).filter(|mtu| *mtu < MAX_MTU).unwrap_or(DEFAULT_MTU))
}

fn set_mtu(netlink: &mut Netlink, index: u32, mtu: u32) -> std::result::Result<(), Refusal> {
    netlink.change(link::change(index, 0).number(libc::IFLA_MTU, mtu))
}
