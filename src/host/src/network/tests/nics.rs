use ocivisor_core::error::ErrorKind;

use super::*;

#[test]
fn a_nic_is_complete_inside() {
    on_a_host(|host| {
        host.bridge("ocvbr0", 1400);
        let id = host.vm("one-42");
        let mut nic = nic("ocv-42-0", "ocvbr0", 5);
        nic.index = 3;
        nic.routes = vec![
            route("10.0.0.254"),
            Route {
                destination: Some(("172.16.9.9".parse().unwrap(), 12)),
                gateway: "10.0.0.253".parse().unwrap(),
                metric: Some(77),
            },
            // Not in any network of the NIC.
            Route {
                destination: Some(("192.168.7.0".parse().unwrap(), 24)),
                gateway: "203.0.113.1".parse().unwrap(),
                metric: None,
            },
            route("fe80::1"),
            Route {
                destination: Some(("2001:db8::".parse().unwrap(), 32)),
                gateway: "2001:db9::1".parse().unwrap(),
                metric: None,
            },
        ];
        host.network.ensure_nic(&id, &nic).unwrap();
        host.inside(&id, || {
            assert_eq!(interfaces(), ["eth3", "lo"]);
            assert_eq!(mac("eth3"), "02:00:0a:00:00:05");
            assert_eq!(mtu("eth3"), 1400);
            let mut want = vec!["10.0.0.5/24".to_owned(), "fd00::5/64".to_owned()];
            // Before the link-local address is there the others already work: no wait.
            let have: Vec<_> =
                addresses("eth3").into_iter().filter(|a| !a.contains("fe80")).collect();
            want.sort();
            assert_eq!(have, want);
            // Columns: address, index, prefix, scope, flags (IFA_F_PERMANENT | IFA_F_NODAD), name.
            let table = fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
            let line = table.lines().find(|l| l.starts_with("fd000000")).unwrap();
            assert_eq!(
                line.split_whitespace().skip(2).collect::<Vec<_>>(),
                ["40", "00", "82", "eth3"]
            );
            assert!(is_running("eth3"));
            let routes = fs::read_to_string("/proc/thread-self/net/route").unwrap();
            // Destination, gateway, flags, metric, mask; numbers are little-endian hex.
            let mut routes: Vec<String> = routes
                .lines()
                .skip(1)
                .map(|l| {
                    let f: Vec<&str> = l.split_whitespace().collect();
                    [f[0], f[1], f[2], f[6], f[7]].join(" ")
                })
                .collect();
            routes.sort();
            assert_eq!(
                routes,
                [
                    "eth3 00000000 FE00000A 3 00000000",
                    "eth3 0000000A 00000000 0 00FFFFFF",
                    "eth3 000010AC FD00000A 77 0000F0FF",
                    "eth3 0007A8C0 017100CB 3 00FFFFFF",
                ]
            );
            let routes = fs::read_to_string("/proc/thread-self/net/ipv6_route").unwrap();
            let gateways: Vec<(&str, &str, &str)> = routes
                .lines()
                .map(|l| l.split_whitespace().collect::<Vec<_>>())
                .filter(|f| f[9] == "eth3" && f[4] != "0".repeat(32))
                .map(|f| (f[1], f[4], f[5]))
                .collect();
            let (default, documentation) =
                (format!("fe80{}1", "0".repeat(27)), format!("20010db9{}1", "0".repeat(23)));
            let mut have = gateways;
            have.sort_unstable();
            assert_eq!(have, [("00", &*default, "00000403"), ("20", &*documentation, "00000403")]);
        });
    });
}

#[test]
fn the_hosts_end_is_a_marked_port_without_addresses() {
    on_a_host(|host| {
        let bridge = host.bridge("ocvbr0", 1500);
        let id = host.vm("one-42");
        host.network.ensure_nic(&id, &nic("ocv-42-0", "ocvbr0", 5)).unwrap();
        let link = host.find("ocv-42-0").unwrap();
        assert_eq!((link.master, link.mtu, link.up), (Some(bridge), 1500, true));
        let daemon = super::super::mark::daemon(&host.layout.run);
        assert_eq!(link.alias, format!("ocivisor:{daemon}:one-42:02:00:0a:00:00:05"));
        assert_eq!(mac("ocv-42-0"), "fe:00:0a:00:00:05");
        // The kernel adds link-local addresses when a link gets its carrier; the bridge shows when
        // that was.
        wait_for("carrier", || is_running("ocv-42-0").then_some(()).ok_or("no carrier"));
        wait_for("the bridge's own address", || match addresses("ocvbr0") {
            all if all.is_empty() => Err(all),
            _ => Ok(()),
        });
        assert_eq!(addresses("ocv-42-0"), Vec::<String>::new());
    });
}

#[test]
fn two_guests_talk_over_the_bridge_in_both_families() {
    on_a_host(|host| {
        host.bridge("ocvbr0", 1500);
        let (a, b) = (host.vm("one-1"), host.vm("one-2"));
        host.network.ensure_nic(&a, &nic("ocv-1-0", "ocvbr0", 1)).unwrap();
        host.network.ensure_nic(&b, &nic("ocv-2-0", "ocvbr0", 2)).unwrap();
        exchange(host, &a, &b, "10.0.0.2".parse().unwrap());
        exchange(host, &b, &a, "fd00::1".parse().unwrap());
    });
}

#[test]
fn ensuring_twice_keeps_the_nic_and_a_difference_makes_it_anew() {
    on_a_host(|host| {
        host.bridge("ocvbr0", 1500);
        host.bridge("ocvbr1", 1500);
        let id = host.vm("one-1");
        let first = nic("ocv-1-0", "ocvbr0", 1);
        host.network.ensure_nic(&id, &first).unwrap();
        let index = host.find("ocv-1-0").unwrap().index;
        host.network.ensure_nic(&id, &first).unwrap();
        assert_eq!(host.find("ocv-1-0").unwrap().index, index);
        let mut changes: Vec<NicSpec> = Vec::new();
        let mut change = |edit: fn(&mut NicSpec)| {
            let mut nic = first.clone();
            edit(&mut nic);
            changes.push(nic);
        };
        change(|nic| nic.mac.0[5] = 9);
        change(|nic| nic.mtu = Some(1300));
        change(|nic| nic.index = 1);
        change(|nic| nic.bridge = Bridge::Linux("ocvbr1".parse().unwrap()));
        change(|nic| nic.bridge = Bridge::None);
        change(|nic| nic.addresses.truncate(1));
        change(|nic| nic.routes.truncate(0));
        change(|nic| nic.routes[0].metric = Some(5));
        for nic in changes {
            for nic in [&first, &nic] {
                let old = host.find("ocv-1-0").unwrap().index;
                host.network.ensure_nic(&id, nic).unwrap();
                let new = host.find("ocv-1-0").unwrap().index;
                host.network.ensure_nic(&id, nic).unwrap();
                assert_eq!(host.find("ocv-1-0").unwrap().index, new, "{nic:?}");
                assert!(nic == &first || new != old, "{nic:?}");
                assert!(host.inside(&id, || is_running(&nic.guest_name())));
            }
        }
    });
}

#[test]
fn a_guest_that_bent_its_nic_gets_a_straight_one() {
    on_a_host(|host| {
        host.bridge("ocvbr0", 1500);
        let id = host.vm("one-1");
        let nic = nic("ocv-1-0", "ocvbr0", 1);
        let down = |index| {
            let mut fixed = link::fixed(index, libc::IFF_UP);
            fixed[8..12].fill(0);
            Message::new(libc::RTM_SETLINK, libc::NLM_F_ACK, &fixed)
        };
        let bend: [fn(u32) -> Message; 5] = [
            |index| link::change(index, 0).text(libc::IFLA_IFNAME, "mine"),
            |index| link::change(index, 0).number(libc::IFLA_MTU, 1300),
            |index| link::change(index, 0).attr(libc::IFLA_ADDRESS, &[2, 9, 9, 9, 9, 9]),
            |index| link::change(index, 0),
            |index| Message::new(libc::RTM_DELLINK, libc::NLM_F_ACK, &link::fixed(index, 0)),
        ];
        for bend in bend {
            host.network.ensure_nic(&id, &nic).unwrap();
            host.inside(&id, || {
                let mut netlink = Netlink::open().unwrap();
                let index = netlink.link_by_name("eth0").unwrap().unwrap().index;
                netlink.changes(vec![down(index), bend(index)]).unwrap();
            });
            host.network.ensure_nic(&id, &nic).unwrap();
            host.inside(&id, || {
                assert_eq!(interfaces(), ["eth0", "lo"]);
                assert_eq!((mac("eth0").as_str(), mtu("eth0")), ("02:00:0a:00:00:01", 1500));
            });
        }
    });
}

#[test]
fn two_default_gateways_are_no_conflict_and_the_first_nic_wins() {
    on_a_host(|host| {
        host.bridge("ocvbr0", 1500);
        let id = host.vm("one-1");
        for n in [0, 1] {
            let mut nic = nic(&format!("ocv-1-{n}"), "ocvbr0", 10 + n);
            nic.index = n.into();
            host.network.ensure_nic(&id, &nic).unwrap();
        }
        let routes =
            host.inside(&id, || fs::read_to_string("/proc/thread-self/net/route").unwrap());
        let defaults: Vec<(&str, &str)> = routes
            .lines()
            .map(|l| l.split_whitespace().collect::<Vec<_>>())
            .filter(|f| f[1] == "00000000" && f[2] != "00000000")
            .map(|f| (f[0], f[6]))
            .collect();
        assert_eq!(defaults, [("eth0", "0"), ("eth1", "1")]);
    });
}

#[test]
fn a_nic_without_bridge_is_up_and_unplugged() {
    on_a_host(|host| {
        let id = host.vm("one-1");
        let mut nic = nic("ocv-1-0", "none", 1);
        (nic.bridge, nic.mtu) = (Bridge::None, Some(9000));
        host.network.ensure_nic(&id, &nic).unwrap();
        let link = host.find("ocv-1-0").unwrap();
        assert_eq!((link.master, link.up, link.mtu), (None, true, 9000));
    });
}

#[test]
fn what_is_in_the_way_is_named_and_nothing_is_left() {
    on_a_host(|host| {
        host.bridge("ocvbr0", 1500);
        host.link("ocv-foreign", "veth", |m| m);
        let bridge = host.find("ocvbr0").unwrap().index;
        let tap_mac = [0xfe, 0, 0, 0, 0, 7];
        host.link("ocv-tap", "veth", |m| {
            m.number(libc::IFLA_MASTER, bridge).attr(libc::IFLA_ADDRESS, &tap_mac)
        });
        let (a, b) = (host.vm("one-1"), host.vm("one-2"));
        host.network.ensure_nic(&a, &nic("ocv-1-0", "ocvbr0", 1)).unwrap();
        let before = host.everything();
        let check = |id: &VmId, nic: &NicSpec, kind: ErrorKind, message: &str| {
            let error = host.network.ensure_nic(id, nic).unwrap_err();
            assert_eq!((error.kind, error.message.as_str()), (kind, message));
            assert_eq!(host.everything(), before);
            if nic.host_name.as_str() != "ocv-1-0" {
                host.network.drop_nic(id, nic).unwrap();
                assert_eq!(host.everything(), before);
            }
            error
        };
        let ok = nic("ocv-2-0", "ocvbr0", 2);
        let edit = |edit: &dyn Fn(&mut NicSpec)| {
            let mut nic = ok.clone();
            edit(&mut nic);
            nic
        };
        let missing = edit(&|n| n.bridge = Bridge::Linux("ocvnone".parse().unwrap()));
        let error = check(&b, &missing, ErrorKind::NotFound, "bridge ocvnone does not exist");
        assert!(error.hint.is_some());
        let wrong = edit(&|n| n.bridge = Bridge::Linux("ocv-foreign".parse().unwrap()));
        check(&b, &wrong, ErrorKind::Invalid, "ocv-foreign is not a linux bridge but veth");
        let foreign = edit(&|n| n.host_name = "ocv-foreign".parse().unwrap());
        let what = "interface ocv-foreign exists and is not ocivisor's";
        check(&b, &foreign, ErrorKind::Conflict, what);
        let others = edit(&|n| n.host_name = "ocv-1-0".parse().unwrap());
        check(&b, &others, ErrorKind::Conflict, "interface ocv-1-0 belongs to vm one-1");
        let twin = edit(&|n| n.mac.0[5] = 1);
        let what = "mac 02:00:0a:00:00:01 is in use on bridge ocvbr0 by vm one-1";
        check(&b, &twin, ErrorKind::Conflict, what);
        let tap = edit(&|n| n.mac.0 = tap_mac);
        let what = "mac fe:00:00:00:00:07 is in use on bridge ocvbr0 by interface ocv-tap";
        check(&b, &tap, ErrorKind::Conflict, what);
        let again = edit(&|_| ());
        let what = "nic ocv-2-0: vm one-1 has another interface eth0 already";
        check(&a, &again, ErrorKind::Conflict, what);
        let stranger: VmId = "one-3".parse().unwrap();
        let what = "nic ocv-2-0: vm one-3 has no network namespace";
        check(&stranger, &ok, ErrorKind::NotFound, what);
        // The kernel's own words about what it does not take.
        let gateway = edit(&|n| n.routes = vec![route("255.255.255.255")]);
        let what = "nic ocv-2-0: route 0.0.0.0/0 via 255.255.255.255: \
                    Invalid argument (os error 22): Nexthop has invalid gateway";
        check(&b, &gateway, ErrorKind::Invalid, what);
    });
}

#[test]
fn the_same_mac_is_fine_on_another_bridge() {
    on_a_host(|host| {
        host.bridge("ocvbr0", 1500);
        host.bridge("ocvbr1", 1500);
        let (a, b) = (host.vm("one-1"), host.vm("one-2"));
        host.network.ensure_nic(&a, &nic("ocv-1-0", "ocvbr0", 1)).unwrap();
        host.network.ensure_nic(&b, &nic("ocv-2-0", "ocvbr1", 1)).unwrap();
    });
}

#[test]
fn dropping_takes_the_nic_at_once_and_may_be_repeated() {
    on_a_host(|host| {
        host.bridge("ocvbr0", 1500);
        let id = host.vm("one-1");
        let before = host.everything();
        let nic = nic("ocv-1-0", "ocvbr0", 1);
        for _ in 0..2 {
            host.network.ensure_nic(&id, &nic).unwrap();
            host.network.drop_nic(&id, &nic).unwrap();
            assert_eq!(host.everything(), before);
            assert_eq!(host.inside(&id, interfaces), ["lo"]);
        }
        host.network.drop_nic(&id, &nic).unwrap();
    });
}

#[test]
fn links_of_others_are_never_dropped() {
    on_a_host(|host| {
        host.bridge("ocvbr0", 1500);
        let (a, b) = (host.vm("one-1"), host.vm("one-2"));
        let nic = nic("ocv-1-0", "ocvbr0", 1);
        host.network.ensure_nic(&a, &nic).unwrap();
        let before = host.everything();
        host.network.drop_nic(&b, &nic).unwrap();
        let other = Layout { run: host.dir.path().join("run2"), ..host.layout.clone() };
        let other = HostNetwork::new(other);
        other.drop_nic(&a, &nic).unwrap();
        other.drop_namespaces(&a).unwrap();
        assert_eq!(host.everything(), before);
        assert!(other.observe_network().unwrap().is_empty());
    });
}

#[test]
fn dropping_namespaces_takes_the_nics_at_once() {
    on_a_host(|host| {
        host.bridge("ocvbr0", 1500);
        let before = host.everything();
        let id = host.vm("one-1");
        host.network.ensure_nic(&id, &nic("ocv-1-0", "ocvbr0", 1)).unwrap();
        host.network.drop_namespaces(&id).unwrap();
        assert_eq!(host.everything(), before);
    });
}

#[test]
fn a_link_whose_pins_are_lost_is_seen_and_can_be_dropped() {
    on_a_host(|host| {
        host.bridge("ocvbr0", 1500);
        let before = host.everything();
        let id = host.vm("one-1");
        host.network.ensure_nic(&id, &nic("ocv-1-0", "ocvbr0", 1)).unwrap();
        let run = host.layout.run_vm(&id);
        // A guest's process still holds the namespace.
        let _held = fs::File::open(run.net_ns()).unwrap();
        super::super::namespaces::clear(&run).unwrap();
        assert!(host.find("ocv-1-0").is_some());
        assert!(host.network.observe_network().unwrap().contains(&id));
        host.network.drop_namespaces(&id).unwrap();
        assert_eq!(host.everything(), before);
        assert!(host.network.observe_network().unwrap().is_empty());
    });
}

#[test]
fn fifty_nics_at_once() {
    on_a_host(|host| {
        host.bridge("ocvbr0", 1500);
        let before = host.everything();
        std::thread::scope(|scope| {
            for n in 1..=50 {
                scope.spawn(move || {
                    let id = host.vm(&format!("one-{n}"));
                    let nic = nic(&format!("ocv-{n}-0"), "ocvbr0", n);
                    host.network.ensure_nic(&id, &nic).unwrap();
                    let have = host.addresses_inside(&id, "eth0");
                    assert_eq!(have[0], format!("10.0.0.{n}/24"));
                });
            }
        });
        assert_eq!(host.network.observe_network().unwrap().len(), 50);
        let ends: VmId = "one-50".parse().unwrap();
        exchange(host, &"one-1".parse().unwrap(), &ends, "10.0.0.50".parse().unwrap());
        std::thread::scope(|scope| {
            for n in 1..=50 {
                scope.spawn(move || {
                    let id: VmId = format!("one-{n}").parse().unwrap();
                    let nic = nic(&format!("ocv-{n}-0"), "ocvbr0", n);
                    host.network.drop_nic(&id, &nic).unwrap();
                    host.network.drop_namespaces(&id).unwrap();
                });
            }
        });
        assert_eq!(host.everything(), before);
        assert!(host.network.observe_network().unwrap().is_empty());
    });
}

#[test]
fn of_many_guests_that_want_one_mac_one_gets_it() {
    on_a_host(|host| {
        host.bridge("ocvbr0", 1500);
        let won = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for n in 1..=8 {
                let won = &won;
                scope.spawn(move || {
                    let id = host.vm(&format!("one-{n}"));
                    match host.network.ensure_nic(&id, &nic(&format!("ocv-{n}-0"), "ocvbr0", 1)) {
                        Ok(()) => _ = won.fetch_add(1, std::sync::atomic::Ordering::Relaxed),
                        Err(e) => assert_eq!(e.kind, ErrorKind::Conflict, "{e}"),
                    }
                });
            }
        });
        assert_eq!(won.into_inner(), 1);
        assert_eq!(host.netlink().veths().unwrap().len(), 1);
    });
}

#[test]
fn a_change_of_addresses_leaves_alone_what_the_guest_set_itself() {
    on_a_host(|host| {
        host.bridge("ocvbr0", 1500);
        let id = host.vm("one-42");
        let old = nic("ocv-42-0", "ocvbr0", 5);
        host.network.ensure_nic(&id, &old).unwrap();
        let own = || {
            run(&["ip", "address", "add", "172.16.0.1/24", "dev", "eth0"]);
            run(&["ip", "route", "add", "192.168.9.0/24", "via", "172.16.0.9"]);
        };
        host.inside(&id, own);
        // An alias in the same network, as a platform adds it; then the first address goes, which the kernel takes
        // for the end of the second one as well.
        let mut both = old.clone();
        both.addresses.push((IpAddr::from([10, 0, 0, 6]), 24));
        host.network.alter_nic(&id, &old, &both).unwrap();
        host.network.alter_nic(&id, &old, &both).unwrap();
        let given = || {
            let all = host.addresses_inside(&id, "eth0");
            all.into_iter().filter(|a| !a.contains("fe80")).collect::<Vec<_>>()
        };
        assert_eq!(given(), ["10.0.0.5/24", "10.0.0.6/24", "172.16.0.1/24", "fd00::5/64"]);
        let mut second = both.clone();
        second.addresses.remove(0);
        host.network.alter_nic(&id, &both, &second).unwrap();
        assert_eq!(given(), ["10.0.0.6/24", "172.16.0.1/24", "fd00::5/64"]);
        host.inside(&id, || {
            let routes = fs::read_to_string("/proc/thread-self/net/route").unwrap();
            assert!(routes.contains("eth0\t00000000\tFE00000A"), "{routes}");
            assert!(routes.contains("0009A8C0\t090010AC"), "{routes}");
        });
    });
}

#[test]
fn a_nic_whose_end_the_guest_deleted_is_made_anew_by_a_change() {
    on_a_host(|host| {
        host.bridge("ocvbr0", 1500);
        let id = host.vm("one-42");
        let old = nic("ocv-42-0", "ocvbr0", 5);
        host.network.ensure_nic(&id, &old).unwrap();
        host.inside(&id, || run(&["ip", "link", "del", "eth0"]));
        let new = NicSpec { mtu: Some(1400), ..old.clone() };
        host.network.alter_nic(&id, &old, &new).unwrap();
        assert_eq!(host.inside(&id, || mtu("eth0")), 1400);
    });
}

#[test]
fn an_mtu_that_is_taken_back_is_the_bridges_without_this_port() {
    on_a_host(|host| {
        host.link("ocvbr0", "bridge", |m| m);
        let id = host.vm("one-42");
        let [first, mut second] = [1, 2].map(|n| nic(&format!("ocv-42-{n}"), "ocvbr0", n));
        second.index = 1;
        second.addresses.clear();
        second.routes.clear();
        host.network.ensure_nic(&id, &first).unwrap();
        let small = NicSpec { mtu: Some(1400), ..first.clone() };
        host.network.alter_nic(&id, &first, &small).unwrap();
        assert_eq!(mtu("ocvbr0"), 1400);
        host.network.alter_nic(&id, &small, &first).unwrap();
        assert_eq!((mtu("ocvbr0"), mtu("ocv-42-1")), (1500, 1500), "no other port");
        second.mtu = Some(1450);
        host.network.ensure_nic(&id, &second).unwrap();
        host.network.alter_nic(&id, &first, &small).unwrap();
        host.network.alter_nic(&id, &small, &first).unwrap();
        assert_eq!((mtu("ocvbr0"), mtu("ocv-42-1")), (1450, 1450));
    });
}

/// Runs a tool in the network namespace of this thread.
fn run(argv: &[&str]) {
    crate::command::run(argv, std::time::Duration::from_secs(20)).unwrap();
}
