//! What really breaks where the recorder failed on purpose.

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use ocivisor_tests::tool;

use crate::drivers::lock;
use crate::node::Node;
use crate::oned::Oned;
use crate::registry::Registry;

/// Something that breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nobody reaches the host.
    HostGone,
    /// The host's system datastore has no room.
    HostFull,
    /// The host's daemon is killed, and drivers wait a second only for another.
    DaemonGone,
    /// The host's daemon dies at that point of an operation, and another is started as systemd would.
    DaemonDies(&'static str),
    /// The guest hangs, from then on, and the host's admin wants none to be ended by force.
    GuestHangs,
    /// The bridge of the VM's first NIC is away.
    BridgeGone,
    /// Something that is no bridge has its name.
    BridgeTaken,
    /// Somebody takes the host's end of the VM's first NIC out of its bridge.
    LinkMoved,
    /// Something has the name of the host's end of the VM's first NIC.
    LinkTaken,
    /// The registry does not answer.
    RegistryGone,
    /// The image datastore cannot be written.
    StoreReadOnly,
    /// The image datastore has no room, as oned knows.
    StoreFull,
}

/// Where it breaks.
#[derive(Debug, Clone)]
pub struct Site {
    pub(super) node: Arc<Node>,
    pub(super) oned: Arc<Oned>,
    pub(super) registry: Arc<Mutex<Registry>>,
    pub(super) vm: u32,
    /// Who starts another daemon.
    pub(super) starting: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl Site {
    fn datastore(&self, id: u32) -> String {
        let root = self.oned.drivers.place.root();
        root.join(format!("var/lib/one/datastores/{id}")).display().to_string()
    }

    fn ip(&self, words: &[&str]) {
        self.node.run(&[&["ip", "link"], words].concat());
    }
}

impl Fault {
    /// Whether it is there before anything is called.
    #[must_use]
    pub fn is_early(self) -> bool {
        self == Self::StoreFull
    }

    /// It breaks.
    pub fn strike(self, site: &Site) {
        let (node, link) = (&site.node, format!("one-{}-0", site.vm));
        let images = site.datastore(100);
        match self {
            Self::HostGone => node.unreachable(true),
            Self::HostFull => {
                let options = "size=24k,uid=54321,gid=54321";
                node.run(&["mount", "-t", "tmpfs", "-o", options, "none", &site.datastore(101)]);
            }
            Self::DaemonGone => {
                node.configure(Some("daemon_timeout = 1\n"));
                node.kill_daemon();
            }
            Self::GuestHangs => {
                node.signal_guest(&format!("one-{}", site.vm), "STOP");
                node.configure(Some("shutdown_timeout = 1\nforce_shutdown = false\n"));
            }
            Self::DaemonDies(point) => {
                node.kill_daemon();
                node.start_daemon_with(&[("OCIVISOR_FAULT", point)]);
                let node = Arc::clone(node);
                let starting = std::thread::spawn(move || {
                    node.outlive_daemon();
                    node.start_daemon();
                });
                *lock(&site.starting) = Some(starting);
            }
            Self::BridgeGone => site.ip(&["del", "br0"]),
            Self::BridgeTaken => {
                site.ip(&["del", "br0"]);
                site.ip(&["add", "br0", "type", "veth", "peer", "ocvother"]);
            }
            Self::LinkMoved => site.ip(&["set", &link, "nomaster"]),
            Self::LinkTaken => site.ip(&["add", &link, "type", "veth", "peer", "ocvother"]),
            Self::RegistryGone => lock(&site.registry).down(),
            Self::StoreReadOnly => {
                tool(&["mount", "--bind", &images, &images]);
                tool(&["mount", "-o", "remount,bind,ro", &images]);
            }
            Self::StoreFull => {
                let options = "size=1m,uid=54321,gid=54321";
                tool(&["mount", "-t", "tmpfs", "-o", options, "none", &images]);
                site.oned.monitor_store(100);
            }
        }
    }

    /// It is whole again.
    pub fn mend(self, site: &Site) {
        let (node, link) = (&site.node, format!("one-{}-0", site.vm));
        match self {
            Self::HostGone => node.unreachable(false),
            Self::HostFull => drop(node.run(&["umount", &site.datastore(101)])),
            Self::DaemonGone => {
                node.configure(None);
                node.start_daemon();
            }
            Self::GuestHangs => node.configure(None),
            Self::DaemonDies(_) => {
                let starting = lock(&site.starting).take();
                starting.map(JoinHandle::join).transpose().expect("another daemon");
            }
            Self::BridgeGone => site.ip(&["add", "br0", "type", "bridge"]),
            Self::BridgeTaken => {
                site.ip(&["del", "br0"]);
                site.ip(&["add", "br0", "type", "bridge"]);
            }
            // It went with its guest.
            Self::LinkMoved => {}
            Self::LinkTaken => site.ip(&["del", &link]),
            Self::RegistryGone => lock(&site.registry).up(),
            Self::StoreReadOnly => drop(tool(&["umount", &site.datastore(100)])),
            Self::StoreFull => {
                tool(&["umount", &site.datastore(100)]);
                site.oned.monitor_store(100);
            }
        }
    }
}
