use std::env;

use ocivisor_core::error::ErrorKind;

use super::*;
use crate::command;

#[test]
fn open_vswitch_without_its_tool_says_so_and_leaves_nothing() {
    if command::run(&["ovs-vsctl", "--version"], Duration::from_secs(20)).is_ok() {
        println!("not run: ovs-vsctl is installed");
        return;
    }
    on_a_host(|host| {
        host.link("ocvsw", "veth", |m| m);
        let id = host.vm("one-1");
        let before = host.everything();
        let mut nic = nic("ocv-1-0", "ocvsw", 1);
        nic.bridge = Bridge::OpenVswitch("ocvsw".parse().unwrap());
        let error = host.network.ensure_nic(&id, &nic).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unsupported);
        let what = "plug ocv-1-0 into open vswitch bridge ocvsw: ovs-vsctl is not installed";
        assert_eq!(error.message, what);
        assert_eq!(host.everything(), before);
        host.network.drop_nic(&id, &nic).unwrap();
    });
}

fn vsctl(args: &[&str]) -> Vec<String> {
    let argv: Vec<&str> = ["ovs-vsctl", "--timeout=10"].iter().chain(args).copied().collect();
    let out = command::run(&argv, Duration::from_secs(20)).unwrap();
    String::from_utf8(out).unwrap().lines().map(str::to_owned).collect()
}

/// Needs a switch that runs in this network namespace, with two bridges for the test.
#[test]
fn ports_of_open_vswitch_come_and_go_with_their_nics() {
    let Ok(bridges) = env::var("OCV_TEST_OVS") else {
        println!("not run: OCV_TEST_OVS does not name two bridges, as BRIDGE,BRIDGE");
        return;
    };
    let (one, two) = bridges.split_once(',').unwrap();
    apart(CloneFlags::CLONE_NEWNS, |host| {
        let id = host.vm("one-1");
        let before = host.everything();
        let mut nic = nic("ocv-1-0", "none", 1);
        nic.bridge = Bridge::OpenVswitch(one.parse().unwrap());
        host.network.ensure_nic(&id, &nic).unwrap();
        assert_eq!(vsctl(&["list-ports", one]), ["ocv-1-0"]);
        let index = host.find("ocv-1-0").unwrap().index;
        host.network.ensure_nic(&id, &nic).unwrap();
        assert_eq!(host.find("ocv-1-0").unwrap().index, index);
        nic.bridge = Bridge::OpenVswitch(two.parse().unwrap());
        host.network.ensure_nic(&id, &nic).unwrap();
        assert_eq!(vsctl(&["list-ports", one]), Vec::<String>::new());
        assert_eq!(vsctl(&["list-ports", two]), ["ocv-1-0"]);
        // A reboot of the host: the switch remembers a port whose link is gone.
        host.netlink().remove(host.find("ocv-1-0").unwrap().index).unwrap();
        assert_eq!(vsctl(&["list-ports", two]), ["ocv-1-0"]);
        host.network.drop_nic(&"one-2".parse().unwrap(), &nic).unwrap();
        assert_eq!(vsctl(&["list-ports", two]), ["ocv-1-0"]);
        for _ in 0..2 {
            host.network.drop_nic(&id, &nic).unwrap();
            assert_eq!(vsctl(&["list-ports", two]), Vec::<String>::new());
            assert_eq!(host.everything(), before);
        }
        // A port of somebody else's, with the name that ours would have.
        vsctl(&["add-port", one, "ocv-1-0", "--", "set", "Interface", "ocv-1-0", "type=internal"]);
        assert_eq!(host.network.ensure_nic(&id, &nic).unwrap_err().kind, ErrorKind::Conflict);
        host.network.drop_nic(&id, &nic).unwrap();
        assert_eq!(vsctl(&["list-ports", one]), ["ocv-1-0"]);
        vsctl(&["del-port", "ocv-1-0"]);
        // Without the NIC's record; only the kernel's datapath shows what a link is plugged into.
        host.network.ensure_nic(&id, &nic).unwrap();
        let known = host.find("ocv-1-0").unwrap().plugged_into == super::super::ovs::KIND;
        host.network.drop_namespaces(&id).unwrap();
        if known {
            assert_eq!(vsctl(&["list-ports", two]), Vec::<String>::new());
        }
        host.network.drop_nic(&id, &nic).unwrap();
        assert_eq!(vsctl(&["list-ports", two]), Vec::<String>::new());
        host.vm("one-1");
        nic.bridge = Bridge::OpenVswitch("ocvnone".parse().unwrap());
        assert_eq!(host.network.ensure_nic(&id, &nic).unwrap_err().kind, ErrorKind::NotFound);
        host.network.drop_namespaces(&id).unwrap();
    });
}
