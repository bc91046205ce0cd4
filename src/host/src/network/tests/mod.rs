//! Tests on the real kernel, each in a network and a mount namespace of its own, so that nothing
//! outlives a test, however it ends. They look at the result with other means than the adapter's
//! own netlink: getifaddrs(3), files of /proc, nsenter(1), real packets.

mod crashes;
mod figures;
mod namespaces;
mod nics;
mod shape;
mod switch;

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::sched::{CloneFlags, setns, unshare};
use ocivisor_core::ids::{IdRange, VmId};
use ocivisor_core::ports::Network;
use ocivisor_core::spec::{Bridge, NicSpec, Route};

use super::HostNetwork;
use super::link::{self, Link};
use super::socket::Netlink;
use super::wire::Message;
use crate::layout::Layout;

/// Ids of the first VM's guest.
pub(super) const IDS: IdRange = IdRange { base: 1_000_000 };

/// Runs `work` on a host of its own: empty network, mounts that nobody else sees.
fn on_a_host<T: Send>(work: impl FnOnce(&Host) -> T + Send) -> T {
    apart(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS, work)
}

/// Runs `work` in a thread with namespaces of its own.
fn apart<T: Send>(namespaces: CloneFlags, work: impl FnOnce(&Host) -> T + Send) -> T {
    let run = || {
        unshare(namespaces).unwrap();
        let dir = tempfile::tempdir().unwrap();
        // Run directories are on tmpfs in production; figures differ much on others.
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("ocv", dir.path(), "tmpfs", flags, None).unwrap();
        let layout = Layout {
            state: dir.path().join("state"),
            run: dir.path().join("run"),
            cgroup_base: "ocv-none".into(),
        };
        let network = HostNetwork::new(layout.clone());
        work(&Host { layout, network, dir })
    };
    std::thread::scope(|scope| match scope.spawn(run).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

struct Host {
    layout: Layout,
    network: HostNetwork,
    dir: tempfile::TempDir,
}

impl Drop for Host {
    fn drop(&mut self) {
        let detach = rustix::mount::UnmountFlags::DETACH;
        rustix::mount::unmount(self.dir.path(), detach).unwrap();
    }
}

impl Host {
    fn netlink(&self) -> Netlink {
        Netlink::open().unwrap()
    }

    fn bridge(&self, name: &str, mtu: u32) -> u32 {
        self.link(name, "bridge", |m| m.number(libc::IFLA_MTU, mtu))
    }

    /// A link of that kind, up.
    fn link(&self, name: &str, kind: &str, more: impl FnOnce(Message) -> Message) -> u32 {
        let flags = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let fixed = link::fixed(0, libc::IFF_UP);
        let request = Message::new(libc::RTM_NEWLINK, flags, &fixed)
            .text(libc::IFLA_IFNAME, name)
            .nest(libc::IFLA_LINKINFO, |m| m.text(libc::IFLA_INFO_KIND, kind));
        self.netlink().change(more(request)).unwrap();
        self.find(name).unwrap().index
    }

    fn find(&self, name: &str) -> Option<Link> {
        self.netlink().link_by_name(name).unwrap()
    }

    /// A VM with namespaces.
    fn vm(&self, id: &str) -> VmId {
        let id: VmId = id.parse().unwrap();
        self.network.ensure_namespaces(&id, IDS).unwrap();
        id
    }

    /// Runs `work` in the VM's network namespace.
    fn inside<T: Send>(&self, id: &VmId, work: impl FnOnce() -> T + Send) -> T {
        let net = fs::File::open(self.layout.run_vm(id).net_ns()).unwrap();
        let go = || {
            setns(net, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        std::thread::scope(|scope| scope.spawn(go).join().unwrap())
    }

    fn addresses_inside(&self, id: &VmId, name: &str) -> Vec<String> {
        self.inside(id, || addresses(name))
    }

    /// Interfaces, mounts, files and child processes, to compare before and after.
    fn everything(&self) -> Vec<String> {
        let mut all = interfaces();
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let run = self.layout.run.to_str().unwrap();
        all.extend(mounts.lines().filter(|l| l.contains(run)).map(str::to_owned));
        all.extend(tree(&self.layout.run_vms()));
        all.sort();
        all
    }
}

fn tree(dir: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        all.push(path.display().to_string());
        all.extend(tree(&path));
    }
    all
}

/// Names of this thread's interfaces, sorted.
fn interfaces() -> Vec<String> {
    let table = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let names = table.lines().skip(2).filter_map(|l| l.split_once(':'));
    let mut names: Vec<String> = names.map(|(name, _)| name.trim().to_owned()).collect();
    names.sort();
    names
}

fn of(name: &str) -> impl Iterator<Item = InterfaceAddress> {
    getifaddrs().unwrap().filter(move |i| i.interface_name == name)
}

/// Addresses of an interface in this thread's namespace, with prefix lengths, sorted.
fn addresses(name: &str) -> Vec<String> {
    let ip = |s: Option<nix::sys::socket::SockaddrStorage>| -> Option<IpAddr> {
        let s = s?;
        let v4 = s.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        v4.or_else(|| s.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
    };
    let ones = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.to_bits().count_ones(),
        IpAddr::V6(ip) => ip.to_bits().count_ones(),
    };
    let mut all: Vec<String> = of(name)
        .filter_map(|i| Some(format!("{}/{}", ip(i.address)?, ones(ip(i.netmask)?))))
        .collect();
    all.sort();
    all
}

fn is_running(name: &str) -> bool {
    use nix::net::if_::InterfaceFlags as F;
    of(name).any(|i| i.flags.contains(F::IFF_UP | F::IFF_RUNNING))
}

fn mac(name: &str) -> String {
    let bytes = of(name).find_map(|i| i.address?.as_link_addr()?.addr()).unwrap();
    bytes.map(|b| format!("{b:02x}")).join(":")
}

fn mtu(name: &str) -> u32 {
    Netlink::open().unwrap().link_by_name(name).unwrap().unwrap().mtu
}

/// A NIC on `bridge`; index, MAC and address follow from `n`.
fn nic(host_name: &str, bridge: &str, n: u8) -> NicSpec {
    NicSpec {
        index: 0,
        host_name: host_name.parse().unwrap(),
        bridge: Bridge::Linux(bridge.parse().unwrap()),
        mac: format!("02:00:0a:00:00:{n:02x}").parse().unwrap(),
        mtu: None,
        addresses: vec![
            (IpAddr::from([10, 0, 0, n]), 24),
            (format!("fd00::{n:x}").parse().unwrap(), 64),
        ],
        routes: vec![route("10.0.0.254"), route("fd00::fe")],
        dns: Vec::new(),
        search: Vec::new(),
        inbound: None,
        outbound: None,
    }
}

fn route(gateway: &str) -> Route {
    Route { destination: None, gateway: gateway.parse().unwrap(), metric: None }
}

/// Polls until `condition` holds; panics with the last thing seen.
fn wait_for<T: std::fmt::Debug>(what: &str, mut see: impl FnMut() -> Result<(), T>) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match see() {
            Ok(()) => return,
            Err(seen) if Instant::now() > deadline => panic!("waited for {what}, saw {seen:?}"),
            Err(_) => std::thread::yield_now(),
        }
    }
}

/// One datagram from guest to guest and back.
fn exchange(host: &Host, from: &VmId, to: &VmId, server: IpAddr) {
    use std::net::UdpSocket;
    let socket = host.inside(to, || UdpSocket::bind((server, 4242)).unwrap());
    let client = host.inside(from, || {
        let any: IpAddr = if server.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        let client = UdpSocket::bind((any, 0)).unwrap();
        client.connect((server, 4242)).unwrap();
        client
    });
    for socket in [&socket, &client] {
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    }
    wait_for("an answer", || -> Result<(), io::Error> {
        let mut buffer = [0; 4];
        client.send(b"ping")?;
        let (_, sender) = socket.recv_from(&mut buffer)?;
        socket.send_to(b"pong", sender)?;
        client.recv(&mut buffer)?;
        assert_eq!(&buffer, b"pong");
        Ok(())
    });
}

/// Gives another network namespace a number in this one.
fn number_namespace(net: &fs::File, id: i32) {
    use std::os::fd::AsRawFd;
    let request = Message::new(libc::RTM_NEWNSID, libc::NLM_F_ACK, &[0; 4])
        .attr(1, &id.to_ne_bytes())
        .attr(3, &net.as_raw_fd().to_ne_bytes());
    Netlink::open().unwrap().change(request).unwrap();
}

/// Numbers of the other network namespaces that live and are known to this one.
fn numbered() -> Vec<i32> {
    use super::wire::{attributes, number};
    let request = Message::new(libc::RTM_GETNSID, libc::NLM_F_DUMP, &[0; 4]);
    let parse = |payload: &[u8]| {
        let mut all = attributes(payload.get(4..)?);
        all.find(|(kind, _)| *kind == 1).and_then(|(_, v)| number(v)).map(|n| n as i32)
    };
    Netlink::open().unwrap().dump(&request, parse).unwrap()
}
