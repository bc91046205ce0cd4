//! Namespaces of VMs and the NICs in them, by our own netlink.
//!
//! ```text
//!   R/vms/<id>/ns/{user,net}          pinned namespaces; the guest's processes join them
//!   one-42-0 ─── port of br0          host's end: alias ocivisor:<daemon>:<id>:<mac>
//!      ║ veth
//!   eth0 in net                       guest's end: MAC, MTU, addresses, routes
//! ```
//!
//! The namespaces are the VM's and not its first process's: a guest that reboots keeps its NICs,
//! and a NIC is complete before the guest's first instruction.
//!
//! What can go wrong: the daemon dies between two system calls ([`namespaces`] and [`nic`] say what
//! is then left and how it is known again); a guest reconfigures, renames or deletes its end (that
//! is its right; `ensure_nic` makes the NIC anew if it is not as it shall be, `drop_nic` goes by the
//! host's end); a name or a MAC is taken ([`mark`]); a link is not ours (never touched).
//!
//! Absent on purpose: making or configuring bridges (the platform's), address assignment, packet
//! filters; `ip` and `tc` processes; events, since all requests are synchronous and the
//! kernel answers when the work is done.
//!
//! Attaching a NIC with a smaller MTU than the bridge's lowers the bridge's, unless that was set by
//! hand: the kernel does so for any port.

mod alter;
mod claim;
mod counters;
mod fault;
mod inside;
mod link;
mod mark;
mod namespaces;
mod nic;
mod ovs;
mod shape;
mod socket;
mod sys;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::AsFd;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ids::{IdRange, VmId};
use ocivisor_core::ports::Network;
use ocivisor_core::spec::NicSpec;

use crate::fs::io_error;
use crate::layout::Layout;
pub use counters::LinkCounters;
use mark::Mark;
use socket::Netlink;

/// The network of this host: the network namespace of the thread that calls.
#[derive(Debug, Clone)]
pub struct HostNetwork {
    layout: Layout,
}

impl HostNetwork {
    /// For the daemon with this layout; needs root.
    #[must_use]
    pub fn new(layout: Layout) -> Self {
        Self { layout }
    }

    fn daemon(&self) -> String {
        mark::daemon(&self.layout.run)
    }
}

impl Network for HostNetwork {
    fn ensure_namespaces(&self, id: &VmId, ids: IdRange) -> Result<()> {
        let made = namespaces::ensure(&self.layout.run_vm(id), ids);
        made.map_err(|e| e.context(format!("namespaces of {id}")))
    }

    fn drop_namespaces(&self, id: &VmId) -> Result<()> {
        let run = self.layout.run_vm(id);
        // Links vanish with their namespace, but only some time after its last reference.
        let net = namespaces::net(&run)?;
        claim::remove_all(&self.daemon(), id, net.as_ref().map(AsFd::as_fd))?;
        drop(net);
        namespaces::clear(&run).map_err(|e| e.context(format!("namespaces of {id}")))
    }

    fn ensure_nic(&self, id: &VmId, nic: &NicSpec) -> Result<()> {
        let Some(namespace) = namespaces::net(&self.layout.run_vm(id))? else {
            let what = format!("nic {}: vm {id} has no network namespace", nic.host_name);
            return Err(Error::new(ErrorKind::NotFound, what));
        };
        let mark = Mark { daemon: self.daemon(), vm: id.clone(), mac: nic.mac };
        nic::ensure(&nic::Wish { nic, mark, namespace: namespace.as_fd() })
    }

    fn alter_nic(&self, id: &VmId, from: &NicSpec, to: &NicSpec) -> Result<()> {
        let Some(namespace) = namespaces::net(&self.layout.run_vm(id))? else {
            let what = format!("nic {}: vm {id} has no network namespace", to.host_name);
            return Err(Error::new(ErrorKind::NotFound, what));
        };
        let mark = Mark { daemon: self.daemon(), vm: id.clone(), mac: to.mac };
        alter::alter(from, &nic::Wish { nic: to, mark, namespace: namespace.as_fd() })
    }

    fn drop_nic(&self, id: &VmId, nic: &NicSpec) -> Result<()> {
        let namespace = namespaces::net(&self.layout.run_vm(id))?;
        let namespace = namespace.as_ref().map(AsFd::as_fd);
        let mut host = Netlink::open().map_err(|e| e.error("open netlink socket"))?;
        claim::remove(&mut host, &self.daemon(), id, nic, namespace)
    }

    fn observe_network(&self) -> Result<BTreeSet<VmId>> {
        let dir = self.layout.run_vms();
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => Some(entries),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(io_error("read", &dir, &e)),
        };
        let mut found = BTreeSet::new();
        for entry in entries.into_iter().flatten() {
            let entry = entry.map_err(|e| io_error("read", &dir, &e))?;
            let name = entry.file_name();
            let id = name.to_str().and_then(|name| name.parse::<VmId>().ok());
            // A directory without pins counts: it is what a crash leaves, and dropping clears it.
            let has = |id: &VmId| namespaces::dir(&self.layout.run_vm(id)).exists();
            found.extend(id.filter(has));
        }
        let daemon = self.daemon();
        let links = Netlink::open().and_then(|mut host| Ok((host.veths()?, host.ifbs()?)));
        let (veths, ifbs) = links.map_err(|e| e.error("list interfaces"))?;
        for link in veths.into_iter().chain(ifbs) {
            let mark = Mark::parse(&link.alias).filter(|mark| mark.daemon == daemon);
            found.extend(mark.map(|mark| mark.vm));
        }
        Ok(found)
    }
}
