//! Networks that share a wire and are told apart by a number: Open vSwitch, 802.1Q, VXLAN. What OpenNebula's network
//! drivers do before a deployment (bridge, device of the number) and after it (the port's number, security groups) is done
//! here with the same tools, and looked at from another machine on the wire.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]
#![allow(clippy::disallowed_methods, reason = "starts a switch")]

use std::process::{Child, Command, Stdio};

use ocivisor_tests::{Answer, Call, Host, tool, wait_for};

/// A guest's address in the recordings, and one of another machine in its network.
const GUEST: &str = "192.168.100.21";
const NEIGHBOUR: &str = "192.168.100.1/24";

/// A network namespace.
#[derive(Clone)]
struct Net(String);

impl Net {
    fn of(host: &Host) -> Self {
        Self(host.name().to_owned())
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.0)).args(words);
        command
    }

    fn run(&self, words: &[&str]) -> Answer {
        Answer::of(&self.command(words).output().unwrap())
    }

    fn ip(&self, words: &str) {
        self.run(&[&["ip"][..], &words.split(' ').collect::<Vec<_>>()].concat()).ok();
    }
}

/// Another machine, on a wire with the host: `phy0` is the host's end, `wire` the other.
struct Neighbour(Net);

impl Neighbour {
    fn of(host: &Host) -> Self {
        let name = format!("{}w", host.name());
        tool(&["ip", "netns", "add", &name]);
        let neighbour = Self(Net(name));
        let host = Net::of(host);
        host.ip(&format!("link add phy0 type veth peer name wire netns {}", neighbour.0.0));
        host.ip("link set phy0 up");
        neighbour.ip("link set wire up");
        neighbour
    }

    fn run(&self, words: &[&str]) -> Answer {
        self.0.run(words)
    }

    fn ip(&self, words: &str) {
        self.0.ip(words);
    }

    /// Has its address there, and there alone.
    fn is_at(&self, device: &str) {
        for link in ["wire", "wire.100", "wire.200"] {
            self.run(&["ip", "address", "flush", "dev", link]);
        }
        self.ip(&format!("address add {NEIGHBOUR} dev {device}"));
    }

    /// A device of a number on the wire; it is there afterwards.
    fn is_at_vlan(&self, number: u32) {
        let device = format!("wire.{number}");
        if self.run(&["ip", "link", "show", &device]).code != 0 {
            self.ip(&format!("link add link wire name {device} type vlan id {number}"));
            self.ip(&format!("link set {device} up"));
        }
        self.is_at(&device);
    }

    #[track_caller]
    fn reaches(&self, address: &str) {
        // A switch may take a moment to do as it was told.
        wait_for("a way", || match self.run(&["ping", "-c1", "-W1", address]) {
            answer if answer.code == 0 => Ok(()),
            answer => Err(answer),
        });
    }

    #[track_caller]
    fn does_not_reach(&self, address: &str) {
        let answer = self.run(&["ping", "-c2", "-i0.5", "-W1", address]);
        assert_eq!(answer.code, 1, "{answer:?}");
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        // Best effort, also after a failure.
        let _ = Command::new("ip").args(["netns", "del", &self.0.0]).output();
    }
}

/// Names of a bridge's ports.
fn ports(host: &Host, bridge: &str) -> Vec<String> {
    let links = host.in_netns(&["ip", "-j", "link", "show", "master", bridge]).json();
    let name = |link: &serde_json::Value| link["ifname"].as_str().unwrap().to_owned();
    links.as_array().unwrap().iter().map(name).collect()
}

/// The recorded deploy with its NIC on that bridge.
fn deploy(host: &Host, bridge: &str) -> Call {
    Call::recorded(host, "0423-vmm-deploy")
        .with("<BRIDGE><![CDATA[br0]]>", &format!("<BRIDGE><![CDATA[{bridge}]]>"))
}

fn cancel(host: &Host, number: u32) {
    host.driver(&Call::recorded(host, "0119-vmm-cancel").for_vm(2, number)).ok();
}

#[test]
fn a_guest_is_in_the_vxlan_of_its_bridge_and_in_no_other() {
    let host = Host::start();
    let (neighbour, net) = (Neighbour::of(&host), Net::of(&host));
    net.ip("address add 10.9.0.1/24 dev phy0");
    neighbour.ip("address add 10.9.0.2/24 dev wire");
    // One that carries whole packets of its own over a wire of 1500.
    let vxlan = "mtu 1450 type vxlan id 50 group 239.0.0.50 ttl 16 dev";
    net.ip("link add onebr5 type bridge");
    net.ip(&format!("link add phy0.50 {vxlan} phy0"));
    net.ip("link set phy0.50 master onebr5 up");
    net.ip("link set onebr5 up");
    host.add_disk(12);
    neighbour.ip(&format!("link add vx50 {vxlan} wire"));
    neighbour.ip("link add vx51 mtu 1450 type vxlan id 51 group 239.0.0.51 ttl 16 dev wire");
    for device in ["vx50", "vx51"] {
        neighbour.ip(&format!("link set {device} up"));
    }
    let before = host.counts();
    host.driver(&deploy(&host, "onebr5")).ok();
    neighbour.ip(&format!("address add {NEIGHBOUR} dev vx51"));
    neighbour.does_not_reach(GUEST);
    neighbour.ip(&format!("address del {NEIGHBOUR} dev vx51"));
    neighbour.ip(&format!("address add {NEIGHBOUR} dev vx50"));
    neighbour.reaches(GUEST);
    // The guest knows how much fits: the largest packet goes whole.
    let mtu = ["exec", "one-12", "--", "cat", "/sys/class/net/eth0/mtu"];
    assert_eq!(host.cli(&mtu).ok(), "1450\n");
    neighbour.run(&["ping", "-c1", "-W5", "-M", "do", "-s", "1422", GUEST]).ok();
    cancel(&host, 12);
    // Network drivers take a bridge away that has no port of a guest.
    assert_eq!(ports(&host, "onebr5"), ["phy0.50"]);
    assert_eq!(host.counts(), before);
}

#[test]
#[ignore = "needs a kernel with 8021q: cargo xtask test --vm vlans"]
fn a_guest_on_a_bridge_with_a_vlan_device_speaks_with_its_tag_alone() {
    let host = Host::start();
    let (neighbour, net) = (Neighbour::of(&host), Net::of(&host));
    net.ip("link add onebr6 type bridge");
    net.ip("link add link phy0 name phy0.100 type vlan id 100");
    net.ip("link set phy0.100 master onebr6 up");
    net.ip("link set onebr6 up");
    host.add_disk(12);
    let before = host.counts();
    host.driver(&deploy(&host, "onebr6")).ok();
    for _ in 0..2 {
        neighbour.is_at_vlan(100);
        neighbour.reaches(GUEST);
        neighbour.is_at_vlan(200);
        neighbour.does_not_reach(GUEST);
        neighbour.is_at("wire");
        neighbour.does_not_reach(GUEST);
        // No network driver is called for a boot.
        host.cli(&["reset", "one-12"]).ok();
    }
    // Security groups know a guest's packets by the name of its port.
    neighbour.is_at_vlan(100);
    tool(&["modprobe", "br_netfilter"]);
    net.ip("link set onebr6 type bridge nf_call_iptables 1");
    let rule = |change: &str| {
        let port = ["--physdev-out", "one-12-0", "--physdev-is-bridged"];
        let rule = [&["FORWARD", "-m", "physdev"][..], &port, &["-j", "DROP"]].concat();
        host.in_netns(&[&["iptables", "-w", "3", change][..], &rule].concat()).ok();
    };
    neighbour.reaches(GUEST);
    rule("-A");
    neighbour.does_not_reach(GUEST);
    rule("-D");
    neighbour.reaches(GUEST);
    cancel(&host, 12);
    assert_eq!(ports(&host, "onebr6"), ["phy0.100"]);
    assert_eq!(host.counts(), before);
}

/// Open vSwitch of a host's network namespace. Its database is where the tools look for it, so there is one at a time.
struct Switch {
    net: Net,
    programs: Vec<Child>,
}

const BRIDGE: &str = "ocvsw";

impl Switch {
    /// A switch with a bridge, whose way out is `phy0`.
    fn start(host: &Host) -> Self {
        tool(&["mkdir", "-p", "/run/openvswitch"]);
        let database = host.dir().join("switch.db").display().to_string();
        tool(&["ovsdb-tool", "create", &database, "/usr/share/openvswitch/vswitch.ovsschema"]);
        // The kernel's switch; where that is not, one that is a program does the same, slowly.
        let kernel = Command::new("modprobe").arg("openvswitch").status();
        let kind = if kernel.is_ok_and(|status| status.success()) { "system" } else { "netdev" };
        let mut switch = Self { net: Net::of(host), programs: Vec::new() };
        switch.spawn(&["ovsdb-server", &database, "--remote=punix:/run/openvswitch/db.sock"]);
        wait_for("the switch's database", || {
            let made = switch.net.run(&["ovs-vsctl", "--timeout=5", "--no-wait", "init"]);
            if made.code == 0 { Ok(()) } else { Err(made) }
        });
        switch.spawn(&["ovs-vswitchd", "unix:/run/openvswitch/db.sock"]);
        switch.control(&format!("add-br {BRIDGE} -- set bridge {BRIDGE} datapath_type={kind}"));
        switch.control(&format!("add-port {BRIDGE} phy0"));
        switch.net.ip(&format!("link set {BRIDGE} up"));
        switch
    }

    fn spawn(&mut self, command: &[&str]) {
        let mut all = self.net.command(command);
        all.arg(format!("--pidfile=/run/openvswitch/{}.pid", command[0]));
        all.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.programs.push(all.spawn().unwrap());
    }

    fn control(&self, words: &str) -> String {
        let words: Vec<&str> = words.split(' ').collect();
        self.net.run(&[&["ovs-vsctl", "--timeout=60"][..], &words].concat()).ok()
    }

    fn ports(&self) -> Vec<String> {
        let mut ports: Vec<String> =
            self.control(&format!("list-ports {BRIDGE}")).lines().map(str::to_owned).collect();
        ports.sort();
        ports
    }

    /// What the network driver `ovswitch` sets after a deployment.
    fn tag(&self, port: &str, number: u32) {
        self.control(&format!("set Port {port} tag={number}"));
        self.control(&format!("set Port {port} trunks=[]"));
        self.control(&format!("set Port {port} vlan_mode=native-untagged"));
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        // Best effort, also after a failure. The kernel's part goes only if it is asked to.
        self.net.run(&["ovs-appctl", "--target=ovs-vswitchd", "exit", "--cleanup"]);
        for program in self.programs.iter_mut().rev() {
            let _ = program.kill();
            let _ = program.wait();
        }
    }
}

/// The call with all its NICs on the switch.
fn switched(call: Call) -> Call {
    call.with("<BRIDGE_TYPE><![CDATA[linux]]>", "<BRIDGE_TYPE><![CDATA[openvswitch]]>")
}

#[test]
#[ignore = "needs Open vSwitch: cargo xtask test --vm vlans"]
fn ports_of_open_vswitch_have_the_tags_that_network_drivers_give_them() {
    let mut host = Host::start();
    let neighbour = Neighbour::of(&host);
    let switch = Switch::start(&host);
    host.add_disk(12);
    let before = host.counts();
    let deploy = switched(deploy(&host, BRIDGE));
    host.driver(&deploy).ok();
    assert_eq!(switch.ports(), ["one-12-0", "phy0"]);
    neighbour.is_at("wire");
    neighbour.reaches(GUEST);
    switch.tag("one-12-0", 100);
    let tagged = || {
        neighbour.is_at_vlan(100);
        neighbour.reaches(GUEST);
        neighbour.is_at("wire");
        neighbour.does_not_reach(GUEST);
    };
    tagged();
    neighbour.is_at_vlan(200);
    neighbour.does_not_reach(GUEST);
    // No network driver is called for a boot.
    host.cli(&["reset", "one-12"]).ok();
    tagged();

    // A second NIC, in another network of the same switch.
    let second = |name: &str| {
        let call = Call::recorded(&host, name)
            .with("<BRIDGE><![CDATA[br0]]>", &format!("<BRIDGE><![CDATA[{BRIDGE}]]>"));
        switched(call.with("<BRIDGE><![CDATA[br1]]>", &format!("<BRIDGE><![CDATA[{BRIDGE}]]>")))
    };
    host.driver(&second("0426-vmm-attach_nic")).ok();
    assert_eq!(switch.ports(), ["one-12-0", "one-12-1", "phy0"]);
    switch.tag("one-12-1", 200);
    neighbour.is_at_vlan(200);
    neighbour.ip("address add 10.10.0.1/24 dev wire.200");
    neighbour.reaches("10.10.0.11");
    neighbour.is_at("wire");
    neighbour.ip("address add 10.10.0.1/24 dev wire");
    neighbour.does_not_reach("10.10.0.11");
    let mut detach = second("0455-vmm-detach_nic");
    detach.arguments[1] = "02:00:0a:0a:00:0b".into();
    host.driver(&detach).ok();
    assert_eq!(switch.ports(), ["one-12-0", "phy0"]);
    tagged();
    cancel(&host, 12);
    assert_eq!(switch.ports(), ["phy0"]);
    assert_eq!(host.counts(), before);

    // A boot of the host leaves the switch's database and no links. What is made then has none of the old settings.
    host.driver(&deploy).ok();
    switch.tag("one-12-0", 100);
    host.reboot();
    host.driver(&deploy).ok();
    assert_eq!(switch.control("get Port one-12-0 tag"), "[]\n");
    neighbour.is_at("wire");
    neighbour.reaches(GUEST);
    // Nor does a guest that ends by itself leave a port.
    host.cli(&["exec", "one-12", "--", "/bin/sh", "-c", "kill 1"]);
    wait_for("the end", || match switch.ports() {
        ports if ports == ["phy0"] => Ok(()),
        ports => Err(ports),
    });
    cancel(&host, 12);
    assert_eq!(host.counts().links, before.links);

    // Nor a deployment that fails.
    let fails = deploy.clone().with("sleep", "no-such-program");
    assert_ne!(host.driver(&fails).code, 0);
    assert_eq!(switch.ports(), ["phy0"]);
    drop(switch);
}
