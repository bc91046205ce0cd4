use ocivisor_core::spec::Rate;

use super::super::shape::ifb_name;
use super::*;

fn bounded(inbound: Option<u64>, outbound: Option<u64>) -> NicSpec {
    let rate = |average| Rate { average, peak: None, burst: None };
    let nic = nic("ocv-42-0", "ocvbr0", 5);
    NicSpec { inbound: inbound.map(rate), outbound: outbound.map(rate), ..nic }
}

/// What tc(8) says of the queues of a link: kind and rate of the one that it sends through, and whether something goes
/// elsewhere as soon as it arrives.
fn queues(name: &str) -> (String, Option<u64>, bool) {
    let all = tc(&["-j", "qdisc", "show", "dev", name]);
    let all: serde_json::Value = serde_json::from_str(&all).unwrap();
    let root = all.as_array().unwrap().iter().find(|q| q["root"] == true).unwrap();
    let ingress = all.as_array().unwrap().iter().any(|q| q["kind"] == "ingress");
    let filters = tc(&["filter", "show", "dev", name, "ingress"]);
    assert_eq!(ingress, filters.contains("mirred (Egress Redirect to device ocvi"), "{filters}");
    (root["kind"].as_str().unwrap().to_owned(), root["options"]["rate"].as_u64(), ingress)
}

fn tc(arguments: &[&str]) -> String {
    let argv = [&["tc"], arguments].concat();
    let out = crate::command::run(&argv, Duration::from_secs(20)).unwrap();
    String::from_utf8(out).unwrap()
}

/// Packets that had to wait or found the queue full.
fn held_up(name: &str) -> u64 {
    let all: serde_json::Value =
        serde_json::from_str(&tc(&["-s", "-j", "qdisc", "show", "dev", name])).unwrap();
    let root = all.as_array().unwrap().iter().find(|q| q["root"] == true).unwrap();
    root["overlimits"].as_u64().unwrap() + root["drops"].as_u64().unwrap()
}

#[test]
fn traffic_is_bounded_both_ways_on_the_hosts_side() {
    on_a_host(|host| {
        host.bridge("ocvbr0", 1500);
        let before = host.everything();
        let id = host.vm("one-42");
        let other = host.vm("one-43");
        let bounded = bounded(Some(100_000), Some(200_000));
        host.network.ensure_nic(&id, &bounded).unwrap();
        host.network.ensure_nic(&other, &nic("ocv-43-0", "ocvbr0", 6)).unwrap();
        let ifb = ifb_name("ocv-42-0");
        assert_eq!(queues("ocv-42-0"), ("tbf".into(), Some(100_000), true));
        assert_eq!(queues(&ifb), ("tbf".into(), Some(200_000), false));
        assert_eq!(queues("ocv-43-0").1, None);
        assert_eq!(addresses(&ifb), Vec::<String>::new(), "no address that guests could reach");
        // The bridge still sees frames come from the port.
        for (from, to, server) in [(&id, &other, 6), (&other, &id, 5)] {
            exchange(host, from, to, IpAddr::from([10, 0, 0, server]));
            exchange(host, from, to, format!("fd00::{server}").parse().unwrap());
        }
        let flood = |to: u8| {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
            for _ in 0..400 {
                // A full queue is no failure of the sender's.
                let _ = socket.send_to(&[0; 1400], (IpAddr::from([10, 0, 0, to]), 9));
            }
        };
        assert_eq!((held_up("ocv-42-0"), held_up(&ifb)), (0, 0));
        host.inside(&other, || flood(5));
        assert!(held_up("ocv-42-0") > 0);
        host.inside(&id, || flood(6));
        assert!(held_up(&ifb) > 0);
        host.network.drop_nic(&id, &bounded).unwrap();
        assert_eq!(host.find(&ifb), None);
        for id in [&id, &other] {
            host.network.drop_namespaces(id).unwrap();
        }
        assert_eq!(host.everything(), before);
    });
}

#[test]
fn bounds_change_under_the_guest_and_go() {
    on_a_host(|host| {
        host.bridge("ocvbr0", 1500);
        let id = host.vm("one-42");
        let free = bounded(None, None);
        host.network.ensure_nic(&id, &free).unwrap();
        let index = host.find("ocv-42-0").unwrap().index;
        let plain = queues("ocv-42-0");
        let ifb = ifb_name("ocv-42-0");
        let peak =
            Rate { average: 10_000_000_000, peak: Some(20_000_000_000), burst: Some(1 << 20) };
        let steps = [
            bounded(Some(100_000), None),
            bounded(Some(300_000), Some(200_000)),
            bounded(None, Some(500_000)),
            NicSpec { inbound: Some(peak), ..free.clone() },
            free.clone(),
        ];
        let mut from = free;
        for to in steps {
            for _ in 0..2 {
                host.network.alter_nic(&id, &from, &to).unwrap();
                host.network.ensure_nic(&id, &to).unwrap();
                let (kind, rate, ingress) = queues("ocv-42-0");
                assert_eq!(rate, to.inbound.map(|rate| rate.average), "{kind}");
                assert_eq!(ingress, to.outbound.is_some());
                let out = host.find(&ifb).and_then(|_| queues(&ifb).1);
                assert_eq!(out, to.outbound.map(|rate| rate.average));
            }
            from = to;
        }
        assert_eq!((queues("ocv-42-0"), host.find(&ifb)), (plain, None));
        assert_eq!(host.find("ocv-42-0").unwrap().index, index, "never made anew");
    });
}

#[test]
fn a_link_of_others_in_the_place_of_ours_is_named_and_stays() {
    on_a_host(|host| {
        host.bridge("ocvbr0", 1500);
        let id = host.vm("one-42");
        let ifb = ifb_name("ocv-42-0");
        host.bridge(&ifb, 1500);
        let error = host.network.ensure_nic(&id, &bounded(None, Some(1000))).unwrap_err();
        assert_eq!(error.message, format!("interface {ifb} exists and is not the vm's"));
        assert_eq!(host.find("ocv-42-0"), None);
        assert!(host.find(&ifb).is_some());
    });
}
