//! Whose a link is, and taking away those that are the VM's.
//!
//! A link with our mark is its VM's. A link without one is the VM's if it is a veth whose other end
//! is in the VM's pinned namespace: a crash in the middle of [`nic`](super::nic) leaves such. All
//! else is foreign and never touched.

use std::os::fd::BorrowedFd;

use ocivisor_core::error::Result;
use ocivisor_core::ids::VmId;
use ocivisor_core::spec::{Bridge, NicSpec};

use super::fault;
use super::link::Link;
use super::mark::Mark;
use super::ovs;
use super::shape;
use super::socket::{Netlink, Refusal};

/// Whose a link is.
pub(super) enum Claim {
    /// This VM's, perhaps half made.
    Ours,
    /// Another VM's, or another daemon's.
    Other(Mark),
    /// Nobody's that we know.
    Foreign,
}

/// Who a claim is judged for.
pub(super) struct Claimant<'a> {
    daemon: &'a str,
    vm: &'a VmId,
    /// Local id of the VM's network namespace, if a link leads there.
    pub(super) namespace: Option<i32>,
}

impl<'a> Claimant<'a> {
    pub(super) fn new(
        host: &mut Netlink,
        daemon: &'a str,
        vm: &'a VmId,
        namespace: Option<BorrowedFd<'_>>,
    ) -> Result<Self> {
        let id = namespace.map_or(Ok(None), |namespace| host.namespace_id(namespace));
        let id = id.map_err(|e| e.error(format!("look up the network namespace of {vm}")))?;
        Ok(Self { daemon, vm, namespace: id })
    }

    pub(super) fn claim(&self, link: &Link) -> Claim {
        match Mark::parse(&link.alias) {
            Some(mark) if mark.daemon == self.daemon && mark.vm == *self.vm => Claim::Ours,
            Some(mark) => Claim::Other(mark),
            None => {
                let inside = self.namespace.is_some() && link.peer_ns == self.namespace;
                let half_made = link.kind == "veth" && link.alias.is_empty() && inside;
                if half_made { Claim::Ours } else { Claim::Foreign }
            }
        }
    }
}

/// Removes the host's end of a NIC, and the guest's with it, if it is the VM's. `namespace` is the
/// VM's, if it still has one.
pub(super) fn remove(
    host: &mut Netlink,
    daemon: &str,
    vm: &VmId,
    nic: &NicSpec,
    namespace: Option<BorrowedFd<'_>>,
) -> Result<()> {
    let name = nic.host_name.as_str();
    let failed = |e: Refusal| e.error(format!("remove interface {name}"));
    // The switch first, which else complains of a port without link; but a switch that does not
    // run is no reason to leave the link.
    let unplugged = match nic.bridge {
        Bridge::OpenVswitch(_) => ovs::unplug(name, daemon, vm),
        Bridge::None | Bridge::Linux(_) => Ok(()),
    };
    fault::point()?;
    shape::drop_ifb(host, name, None, daemon, vm)?;
    fault::point()?;
    if let Some(link) = host.link_by_name(name).map_err(failed)? {
        if let Claim::Ours = Claimant::new(host, daemon, vm, namespace)?.claim(&link) {
            host.remove(link.index).map_err(failed)?;
        }
        fault::point()?;
    }
    unplugged
}

/// Removes every link of the VM on the host's side, whatever its name.
pub(super) fn remove_all(daemon: &str, vm: &VmId, namespace: Option<BorrowedFd<'_>>) -> Result<()> {
    let failed = |e: Refusal| e.error(format!("remove interfaces of {vm}"));
    let host = &mut Netlink::open().map_err(failed)?;
    let us = Claimant::new(host, daemon, vm, namespace)?;
    let mut links = host.veths().map_err(failed)?;
    links.retain(|link| matches!(us.claim(link), Claim::Ours));
    let mut unplugged = Ok(());
    for link in links {
        if link.plugged_into == ovs::KIND {
            unplugged = unplugged.and(ovs::unplug(&link.name, daemon, vm));
        }
        shape::drop_ifb(host, &link.name, None, daemon, vm)?;
        fault::point()?;
        host.remove(link.index).map_err(failed)?;
        fault::point()?;
    }
    for link in host.ifbs().map_err(failed)? {
        if let Claim::Ours = us.claim(&link) {
            host.remove(link.index).map_err(failed)?;
        }
    }
    unplugged
}
