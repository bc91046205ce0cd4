//! NICs that come and go while a guest runs: recorded calls of oned's driver and the command line, and the result on
//! the host's bridges and in the guest.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use ocivisor_tests::{Answer, Call, Host, wait_for};
use serde_json::Value;

fn pid(host: &Host, vm: &str) -> u64 {
    host.info(vm).unwrap()["guest"]["init"]["pid"].as_u64().expect("a running guest")
}

fn inside(host: &Host, vm: &str, command: &[&str]) -> String {
    host.cli(&[&["exec", vm, "--"], command].concat()).ok()
}

/// Index of a host's end, which is another one if it was made anew, and its bridge.
fn link(host: &Host, name: &str) -> Option<(u64, String, u64)> {
    let answer = host.in_netns(&["ip", "-j", "link", "show", "dev", name]);
    if answer.code != 0 {
        return None;
    }
    let link = &answer.json()[0];
    let number = |key: &str| link[key].as_u64().unwrap();
    Some((number("ifindex"), link["master"].as_str()?.to_owned(), number("mtu")))
}

fn interfaces(host: &Host, vm: &str) -> Vec<String> {
    let mut all: Vec<String> =
        inside(host, vm, &["ls", "/sys/class/net"]).split_whitespace().map(str::to_owned).collect();
    all.sort();
    all
}

/// Addresses of an interface inside, but those that the kernel makes up.
fn addresses(host: &Host, vm: &str, name: &str) -> Vec<String> {
    let text = inside(host, vm, &["ip", "-o", "address", "show", "dev", name]);
    let words = text.lines().filter_map(|line| line.split_whitespace().nth(3));
    words.filter(|address| !address.starts_with("fe80")).map(str::to_owned).collect()
}

fn ping(host: &Host, address: &str) {
    host.in_netns(&["ping", "-c1", "-W5", address]).ok();
}

/// A call that succeeds and has no value.
#[track_caller]
fn done(host: &Host, call: &Call) -> Answer {
    let answer = host.driver(call);
    assert_eq!((answer.code, answer.out.as_str()), (0, ""), "{answer:?}");
    assert!(answer.err.lines().all(|line| line.starts_with("INFO: ")), "{answer:?}");
    answer
}

fn recorded(host: &Host, name: &str) -> Call {
    Call::recorded(host, name)
}

/// The host of the recordings: two networks.
fn two_networks() -> Host {
    let host = Host::start();
    host.add_bridge("br1", "10.10.0.1/24");
    host
}

#[test]
fn recorded_attachments_and_detachments_leave_the_rest_of_the_vm_alone() {
    let host = two_networks();
    host.add_disk(12);
    let before = host.counts();
    let vm = "one-12";
    host.driver(&recorded(&host, "0423-vmm-deploy")).ok();
    let (guest, first) = (pid(&host, vm), link(&host, "one-12-0"));

    // Attach, twice as a retry does; then the triple's last part.
    let attach = recorded(&host, "0426-vmm-attach_nic");
    done(&host, &attach);
    let second = link(&host, "one-12-1").unwrap();
    assert_eq!(second.1, "br1");
    done(&host, &attach);
    done(&host, &recorded(&host, "0430-vmm-reconfigure"));
    assert_eq!(link(&host, "one-12-1"), Some(second.clone()), "nothing makes it anew");
    assert_eq!(interfaces(&host, vm), ["eth0", "eth1", "lo"]);
    assert_eq!(addresses(&host, vm, "eth1"), ["10.10.0.11/24"]);
    assert_eq!(inside(&host, vm, &["cat", "/sys/class/net/eth1/address"]), "02:00:0a:0a:00:0b\n");
    ping(&host, "10.10.0.11");
    let hosts = inside(&host, vm, &["cat", "/etc/hosts"]);
    assert!(hosts.contains("10.10.0.11"), "{hosts}");

    // Another one, and an alias of the first, which comes by the triple alone.
    done(&host, &recorded(&host, "0432-vmm-attach_nic"));
    done(&host, &recorded(&host, "0441-vmm-reconfigure"));
    assert_eq!(addresses(&host, vm, "eth0"), ["192.168.100.21/24", "192.168.100.22/24"]);
    ping(&host, "192.168.100.22");
    // The alias goes; both younger networks got an MTU meanwhile.
    done(&host, &recorded(&host, "0454-vmm-reconfigure"));
    assert_eq!(addresses(&host, vm, "eth0"), ["192.168.100.21/24"]);
    assert_eq!(link(&host, "one-12-1"), Some((second.0, "br1".into(), 1400)));
    assert_eq!(inside(&host, vm, &["cat", "/sys/class/net/eth1/mtu"]), "1400\n");

    // A boot keeps all of them: no network driver is called then.
    let ends = ["one-12-0", "one-12-1", "one-12-2"].map(|name| link(&host, name).unwrap());
    assert_eq!(pid(&host, vm), guest);
    for verb in ["reboot", "reset"] {
        host.cli(&[verb, vm, "--timeout", "5s"]).ok();
        let now = ["one-12-0", "one-12-1", "one-12-2"].map(|name| link(&host, name).unwrap());
        assert_eq!(now, ends, "{verb}");
        ping(&host, "10.10.0.30");
    }

    let detach = recorded(&host, "0455-vmm-detach_nic");
    for _ in 0..2 {
        done(&host, &detach);
        assert_eq!(interfaces(&host, vm), ["eth0", "eth1", "lo"]);
        assert_eq!(link(&host, "one-12-2"), None);
    }
    done(&host, &recorded(&host, "0459-vmm-reconfigure"));
    assert_eq!(interfaces(&host, vm), ["eth0", "eth1", "lo"], "what is going does not come back");
    assert_eq!(link(&host, "one-12-0"), first);
    host.driver(&recorded(&host, "0119-vmm-cancel").for_vm(2, 12)).ok();
    assert_eq!(host.counts(), before);
}

#[test]
fn a_nic_that_oned_forgot_is_replaced_and_one_that_cannot_be_made_changes_nothing() {
    let host = two_networks();
    host.add_disk(12);
    let before = host.counts();
    host.driver(&recorded(&host, "0423-vmm-deploy")).ok();
    let attach = recorded(&host, "0426-vmm-attach_nic");
    let old = "02:00:0a:0a:00:0b";
    // Attached, then forgotten: a later step of oned failed. The next one has its number and another MAC.
    done(&host, &attach);
    let mut next = attach.clone().with(old, "02:00:0a:0a:00:0c").with("10.10.0.11]", "10.10.0.12]");
    next.arguments[1] = "02:00:0a:0a:00:0c".into();
    done(&host, &next);
    assert_eq!(addresses(&host, "one-12", "eth1"), ["10.10.0.12/24"]);
    // The way back of an attachment that another driver's step ended.
    let mut back = recorded(&host, "0455-vmm-detach_nic");
    for mac in ["02:00:0a:0a:00:0c", "02:00:0a:0a:00:0c", old] {
        back.arguments[1] = mac.into();
        done(&host, &back);
        assert_eq!(interfaces(&host, "one-12"), ["eth0", "lo"]);
    }
    let guest = (pid(&host, "one-12"), link(&host, "one-12-0"));
    let nowhere = attach.clone().with("<BRIDGE><![CDATA[br1]]>", "<BRIDGE><![CDATA[br7]]>");
    let answer = host.driver(&nowhere);
    assert_eq!(answer.code, 1, "{answer:?}");
    let sentence = answer.err.lines().find(|line| !line.starts_with("INFO: ")).unwrap();
    assert!(sentence.starts_with("Cannot attach a NIC to VM 12: "), "{sentence}");
    assert!(sentence.contains("bridge br7 does not exist"), "{sentence}");
    assert_eq!((pid(&host, "one-12"), link(&host, "one-12-0")), guest);
    assert_eq!(interfaces(&host, "one-12"), ["eth0", "lo"]);
    host.driver(&recorded(&host, "0119-vmm-cancel").for_vm(2, 12)).ok();
    assert_eq!(host.counts(), before);
}

#[test]
fn a_vm_that_is_powered_off_gets_its_nics_with_its_next_deployment() {
    let host = two_networks();
    let before = host.counts();
    for name in ["1438-vmm-attach_nic", "1442-vmm-reconfigure", "1452-vmm-detach_nic"] {
        let answer = done(&host, &recorded(&host, name));
        assert!(answer.err.contains("its next deployment brings it"), "{answer:?}");
    }
    assert_eq!(host.counts(), before);
}

#[test]
fn ten_nics_of_a_vm_with_a_long_number_come_and_go() {
    let host = two_networks();
    let (number, vm) = (123_456, "one-123456");
    host.add_disk(number);
    let before = host.counts();
    let this = |call: Call| {
        call.for_vm(12, number).with("<PORT><![CDATA[5912]]>", "<PORT><![CDATA[5999]]>")
    };
    host.driver(&this(recorded(&host, "0423-vmm-deploy"))).ok();
    for n in 1..10_u32 {
        let (name, mac) = (format!("{vm}-{n}"), format!("02:00:0a:0a:00:{n:02x}"));
        let call = this(recorded(&host, "0426-vmm-attach_nic"));
        let mut call = call
            .with("<NIC_ID><![CDATA[1]]>", &format!("<NIC_ID><![CDATA[{n}]]>"))
            .with(&format!("{vm}-1]"), &format!("{name}]"))
            .with("02:00:0a:0a:00:0b", &mac)
            .with("10.10.0.11]", &format!("10.10.0.{}]", 10 + n));
        call.arguments[1].clone_from(&mac);
        done(&host, &call);
    }
    let mut want: Vec<String> = (0..10).map(|n| format!("eth{n}")).collect();
    want.push("lo".into());
    assert_eq!(interfaces(&host, vm), want);
    for n in 1..10 {
        ping(&host, &format!("10.10.0.{}", 10 + n));
    }
    host.driver(&recorded(&host, "0119-vmm-cancel").for_vm(2, number)).ok();
    assert_eq!(host.counts(), before);
}

#[test]
fn a_daemon_killed_at_any_place_of_an_attachment_finishes_it() {
    let mut host = two_networks();
    host.add_disk(12);
    let before = host.counts();
    host.driver(&recorded(&host, "0423-vmm-deploy")).ok();
    let guest = (pid(&host, "one-12"), link(&host, "one-12-0"));
    let attach = recorded(&host, "0426-vmm-attach_nic");
    let detach = recorded(&host, "0455-vmm-detach_nic");
    let detach = Call {
        arguments: vec!["one-12".into(), "02:00:0a:0a:00:0b".into(), "12".into(), "h".into()],
        ..detach
    };
    for point in ["intended", "before-rewire", "after-rewire", "before-tell", "committed"] {
        for (call, want) in [(&attach, &["eth0", "eth1", "lo"][..]), (&detach, &["eth0", "lo"])] {
            host.kill_daemon();
            host.set_env("OCIVISOR_FAULT", &format!("change.{point}"));
            host.start_daemon();
            let mut driver = host.driver_command(call).spawn().unwrap();
            std::io::Write::write_all(&mut driver.stdin.take().unwrap(), &call.stdin).unwrap();
            host.daemon_dies();
            host.unset_env("OCIVISOR_FAULT");
            host.start_daemon();
            let answer = driver.wait_with_output().unwrap();
            assert!(answer.status.success(), "{point}: {answer:?}");
            wait_for("rest", || match host.info("one-12").unwrap() {
                info if info["op"].is_null() => Ok(()),
                info => Err(info["op"].clone()),
            });
            assert_eq!(interfaces(&host, "one-12"), want, "{point}");
            assert_eq!((pid(&host, "one-12"), link(&host, "one-12-0")), guest, "{point}");
        }
    }
    host.driver(&recorded(&host, "0119-vmm-cancel").for_vm(2, 12)).ok();
    assert_eq!(host.counts(), before);
}

#[test]
fn an_admin_attaches_lists_and_detaches() {
    let host = two_networks();
    host.add_disk(7);
    let before = host.counts();
    let disk = host.vm_dir(7).join("disk.0").display().to_string();
    let nic = "bridge=br0,ip=192.168.100.50/24,mac=02:00:00:00:00:50";
    let define = ["define", "web", "--disk", &disk, "--memory", "64M", "--nic", nic];
    host.cli(&[&define[..], &["--entrypoint", "/bin/sleep", "--", "1000"]].concat()).ok();
    host.cli(&["start", "web"]).ok();
    let said = host.cli(&["nic", "attach", "web", "bridge=br1,ip=10.10.0.50/24"]).ok();
    assert_eq!(said, "web: eth1 is attached, web-1 outside\n");
    ping(&host, "10.10.0.50");
    let list: Value = host.cli(&["nic", "list", "web", "-o", "json"]).json();
    assert_eq!(list["nics"][1]["host_name"], "web-1");
    let table = host.cli(&["nic", "list", "web"]).ok();
    assert_eq!(table.lines().count(), 3, "{table}");
    // A second one of that MAC is no replacement.
    let twice = host.cli(&["nic", "attach", "web", "bridge=br1,mac=02:00:00:00:00:50"]);
    assert_eq!(twice.code, 4, "{twice:?}");
    assert_eq!(host.cli(&["nic", "detach", "web", "eth7"]).code, 3);
    assert_eq!(host.cli(&["nic", "detach", "web", "web-1"]).ok(), "web: eth1 is detached\n");
    assert_eq!(interfaces(&host, "web"), ["eth0", "lo"]);
    // At rest only the definition changes; the next start has it.
    host.cli(&["destroy", "web"]).ok();
    host.cli(&["nic", "attach", "web", "bridge=br1,ip=10.10.0.51/24"]).ok();
    host.cli(&["start", "web"]).ok();
    ping(&host, "10.10.0.51");
    host.cli(&["destroy", "web"]).ok();
    host.cli(&["undefine", "web"]).ok();
    assert_eq!(host.counts(), before);
}

/// What OpenNebula's library offers a file of `vnmmad-load.d`, and how its drivers ask a NIC: the class is found by the
/// driver's name; a NIC is a hash of the NIC's keys in small letters. Before 7.0 it could tell nothing of VLANs.
const NETWORK_LIBRARY: &str = r#"
module VNMMAD; module VNMNetwork
    HYPERVISORS = {}
    unless ENV['RELEASE'] == '6.10'
        class Nic < Hash
            def cvlans? = key?(:cvlans)
            def vlan_trunk? = key?(:vlan_tagged_id)
        end
    end
    class StockLXC < (defined?(Nic) ? Nic : Hash)
        HYPERVISORS['lxc'] = self
        def get_tap(vm) = (self[:tap] = "stock-#{self[:nic_id]}"; self)
        def set_qos(_) = nil
    end
end; end
load ARGV[0]
Vm = Struct.new(:deploy_id)
nic = VNMMAD::VNMNetwork::HYPERVISORS.fetch(ARGV[1]).new
nic[:nic_id] = ARGV[3]
ARGV.drop(4).each {|pair| key, value = pair.split('='); nic[key.to_sym] = value }
# As 802.1Q (all NICs), bridge (those with a PHYDEV) and, in 7.0 and 7.2, ovswitch (all NICs) do.
puts nic.cvlans?, nic.vlan_trunk? if ENV['RELEASE'] == '7.0'
nic.get_info(Vm.new(nil))
abort 'a tap before deploy' if nic.get_tap(Vm.new(nil))[:tap]
puts nic.get_tap(Vm.new(ARGV[2]))[:tap]
nic.set_qos(ARGV[2]) if ARGV.size > 4
"#;

fn network_driver(host: &Host, arguments: &[&str]) -> Answer {
    network_driver_of("", host, arguments)
}

fn network_driver_of(release: &str, host: &Host, arguments: &[&str]) -> Answer {
    let drop_in = ocivisor_tests::repository()
        .join("driver-scripts/opennebula/remotes/vnm/vnmmad-load.d/ocivisor.rb");
    let program = format!("OCIVISOR_BIN={}", ocivisor_tests::bin_dir().join("ocivisor").display());
    let socket = format!("OCIVISOR_SOCKET={}", host.socket().display());
    let release = format!("RELEASE={release}");
    let ruby = ["env", &program, &socket, &release, "ruby", "-w", "-e", NETWORK_LIBRARY];
    host.in_netns(&[&ruby[..], &[drop_in.to_str().unwrap()], arguments].concat())
}

#[test]
fn network_drivers_of_all_releases_may_ask_a_nic_for_its_vlans() {
    let host = Host::without_daemon();
    for name in ["ocivisor", "lxc"] {
        let vm = [name, "one-12", "0"];
        let answer = network_driver_of("6.10", &host, &vm);
        assert_eq!((answer.out.as_str(), answer.err.as_str()), ("one-12-0\n", ""));
        let answer = network_driver_of("7.0", &host, &vm);
        assert_eq!((answer.out.as_str(), answer.err.as_str()), ("false\nfalse\none-12-0\n", ""));
    }
}

/// Rates of the queues of a link, as tc(8) tells.
fn rate(host: &Host, name: &str) -> Option<u64> {
    let all = host.in_netns(&["tc", "-j", "qdisc", "show", "dev", name]).json();
    all.as_array().unwrap().iter().find_map(|queue| queue["options"]["rate"].as_u64())
}

#[test]
fn network_drivers_find_our_interfaces_and_change_their_bandwidth() {
    let host = two_networks();
    host.add_disk(12);
    let before = host.counts();
    let deploy = recorded(&host, "0423-vmm-deploy");
    let bounds = "<NIC_ID><![CDATA[0]]></NIC_ID><OUTBOUND_AVG_BW><![CDATA[300]]></OUTBOUND_AVG_BW>";
    host.driver(&deploy.with("<NIC_ID><![CDATA[0]]></NIC_ID>", bounds)).ok();
    // From the guest traffic goes by a link of its own.
    let links = host.in_netns(&["ip", "-j", "link", "show", "type", "ifb"]).json();
    let ifb = links[0]["ifname"].as_str().unwrap().to_owned();
    assert_eq!((rate(&host, "one-12-0"), rate(&host, &ifb)), (None, Some(300_000)));
    for name in ["ocivisor", "lxc"] {
        let answer = network_driver(&host, &[name, "one-12", "0"]);
        assert_eq!((answer.out.as_str(), answer.err.as_str()), ("one-12-0\n", ""));
        // Security groups match packets by this name: `physdev` sees a port of a bridge.
        assert_eq!(link(&host, answer.out.trim()).unwrap().1, "br0");
    }
    let keys = ["inbound_avg_bw=1000", "inbound_peak_bw=2000", "outbound_peak_kb=9", "x=$(id)"];
    let update = [&["ocivisor", "one-12", "0"][..], &keys].concat();
    network_driver(&host, &update).ok();
    assert_eq!(rate(&host, "one-12-0"), Some(1_000_000));
    assert_eq!(host.in_netns(&["ip", "link", "show", &ifb]).code, 1, "no bounds, no link");
    // A VM that is not here is no failure; bounds that make no sense are one, in words.
    network_driver(&host, &["lxc", "one-99", "0", "inbound_avg_bw=1000"]).ok();
    let huge =
        network_driver(&host, &["ocivisor", "one-12", "0", "inbound_avg_bw=999999999999999"]);
    assert!(huge.code == 1 && huge.err.contains("rates must be"), "{huge:?}");
    // Bounds and port are there after a boot, for which no network driver is called.
    host.cli(&["reset", "one-12"]).ok();
    assert_eq!(rate(&host, "one-12-0"), Some(1_000_000));
    ping(&host, "192.168.100.21");
    host.driver(&recorded(&host, "0119-vmm-cancel").for_vm(2, 12)).ok();
    assert_eq!(host.counts(), before);
}
