//! Recorded calls of oned's driver against a real daemon: the result on the host, not only the
//! answer (contract: argv, stdin, one line of answer, idempotency, roll-back).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "tests fill disks"
)]

use ocivisor_tests::{Answer, Call, Host, wait_for};
use serde_json::Value;

fn deployed(answer: &Answer, vm: u32) {
    assert_eq!(
        (answer.code, answer.out.as_str()),
        (0, format!("one-{vm}\n").as_str()),
        "{answer:?}"
    );
    assert!(answer.err.lines().all(|line| line.starts_with("INFO: ")), "{answer:?}");
}

/// A failure as oned wants it: nothing on stdout, one plain sentence, the rest prefixed.
#[track_caller]
fn refused(answer: &Answer) -> String {
    assert_ne!(answer.code, 0, "{answer:?}");
    assert_eq!(answer.out, "");
    let plain: Vec<&str> = answer.err.lines().filter(|line| !line.starts_with("INFO: ")).collect();
    assert_eq!(plain.len(), 1, "{answer:?}");
    assert!(plain[0].ends_with('.'), "{answer:?}");
    plain[0].to_owned()
}

fn pid(info: &Value) -> u64 {
    info["guest"]["init"]["pid"].as_u64().expect("a running guest")
}

fn link_index(host: &Host, name: &str) -> String {
    let line = host.in_netns(&["ip", "-o", "link", "show", "master", "br0", "dev", name]).ok();
    line.split(':').next().unwrap().to_owned()
}

fn inside(host: &Host, vm: &str, command: &[&str]) -> String {
    host.cli(&[&["exec", vm, "--"], command].concat()).ok()
}

#[test]
fn a_recorded_vm_boots_reboots_resets_and_shuts_down() {
    let host = Host::start();
    host.add_disk(0);
    let before = host.counts();
    let deploy = Call::recorded(&host, "0079-vmm-deploy");
    deployed(&host.driver(&deploy), 0);

    // What the template says is what the guest is.
    assert_eq!(inside(&host, "one-0", &["hostname"]), "web1\n");
    let address = inside(&host, "one-0", &["ip", "-o", "-4", "address", "show", "eth0"]);
    assert!(address.contains("inet 192.168.100.10/24"), "{address}");
    let route = inside(&host, "one-0", &["ip", "route"]);
    assert!(route.contains("default via 192.168.100.1 dev eth0"), "{route}");
    let mac = inside(&host, "one-0", &["cat", "/sys/class/net/eth0/address"]);
    assert_eq!(mac, "02:00:c0:a8:64:0a\n");
    let ps = inside(&host, "one-0", &["ps"]);
    assert!(ps.contains("sleep 1000"), "{ps}");
    host.in_netns(&["ping", "-c1", "-W5", "192.168.100.10"]).ok();
    let index = link_index(&host, "one-0-0");

    // The same deploy again (oned retries) is the same guest.
    let first = pid(&host.info("one-0").unwrap());
    deployed(&host.driver(&deploy), 0);
    assert_eq!(pid(&host.info("one-0").unwrap()), first);

    // Reboot and reset are new guests on the same network.
    for (call, timeout) in [("0081-vmm-reboot", true), ("0082-vmm-reset", false)] {
        let old = pid(&host.info("one-0").unwrap());
        let answer = host.driver(&Call::recorded(&host, call));
        assert_eq!((answer.code, answer.out.as_str()), (0, ""), "{timeout}: {answer:?}");
        assert_ne!(pid(&host.info("one-0").unwrap()), old);
        assert_eq!(link_index(&host, "one-0-0"), index, "{call} keeps the host's end");
        host.in_netns(&["ping", "-c1", "-W5", "192.168.100.10"]).ok();
    }

    let shutdown = Call::recorded(&host, "0083-vmm-shutdown");
    let answer = host.driver(&shutdown);
    assert_eq!((answer.code, answer.out.as_str()), (0, ""), "{answer:?}");
    assert_eq!(host.counts(), before);
    assert_eq!(host.info("one-0"), None);
    assert_eq!(host.driver(&shutdown).code, 0, "a VM that is gone is shut down");
}

#[test]
fn a_deploy_over_a_leftover_of_the_same_vm_replaces_it() {
    let host = Host::start();
    host.add_disk(0);
    let before = host.counts();
    let deploy = Call::recorded(&host, "0079-vmm-deploy");
    deployed(&host.driver(&deploy), 0);
    let old = pid(&host.info("one-0").unwrap());
    deployed(&host.driver(&deploy.with("<MEMORY><![CDATA[256]]>", "<MEMORY><![CDATA[128]]>")), 0);
    let info = host.info("one-0").unwrap();
    assert_ne!(pid(&info), old);
    assert_eq!(info["spec"]["resources"]["memory"], 128 << 20);
    host.driver(&Call::recorded(&host, "0119-vmm-cancel").for_vm(2, 0)).ok();
    assert_eq!(host.counts(), before);
}

#[test]
fn cancel_succeeds_on_nothing_and_with_every_odd_deploy_id() {
    let host = Host::start();
    let before = host.counts();
    for name in ["0119-vmm-cancel", "0623-vmm-cancel", "0646-vmm-cancel", "0657-vmm-cancel"] {
        let answer = host.driver(&Call::recorded(&host, name));
        assert_eq!((answer.code, answer.out.as_str()), (0, ""), "{name}: {answer:?}");
    }
    let mut cut = Call::recorded(&host, "0119-vmm-cancel");
    cut.stdin.truncate(300);
    assert_eq!(host.driver(&cut).code, 0, "cleaning up must not need the XML");
    assert_eq!(host.counts(), before);
}

#[test]
fn truncated_or_foreign_deployment_files_are_refused_and_nothing_changes() {
    let host = Host::start();
    host.add_disk(0);
    let before = host.counts();
    let whole = Call::recorded(&host, "0079-vmm-deploy");
    for length in [0, 1, 100, 3000, whole.stdin.len() - 6] {
        let mut cut = whole.clone();
        cut.stdin.truncate(length);
        refused(&host.driver(&cut));
    }
    refused(&host.driver(&whole.clone().with("<VM><ID>0</ID>", "<VM><ID>9</ID>")));
    refused(&host.driver(&whole.with("<VM>", "<!DOCTYPE x [<!ENTITY a \"b\">]><VM>")));
    assert_eq!(host.counts(), before);
}

#[test]
fn templates_without_their_optional_parts_boot() {
    let host = Host::start();
    host.add_bridge("br1", "10.10.0.1/24");
    for (name, vm) in [("0360-vmm-deploy", 10), ("1473-vmm-deploy", 43), ("1496-vmm-deploy", 47)] {
        host.add_disk(vm);
        deployed(&host.driver(&Call::recorded(&host, name)), vm);
    }
    let listed = host.cli(&["list", "-o", "json"]).json();
    assert_eq!(listed["vms"].as_array().map(Vec::len), Some(3), "{listed}");
}

#[test]
fn two_nics_with_alias_and_mtu_are_plugged_and_configured() {
    let host = Host::start();
    host.add_bridge("br1", "10.10.0.1/24");
    host.add_disk(41);
    deployed(&host.driver(&Call::recorded(&host, "1382-vmm-deploy")), 41);
    let addresses = inside(&host, "one-41", &["ip", "-o", "-4", "address"]);
    for want in ["192.168.100.53/24", "10.10.0.22/24", "10.10.0.23/24"] {
        assert!(addresses.contains(want), "{want} in {addresses}");
    }
    assert_eq!(inside(&host, "one-41", &["cat", "/sys/class/net/eth1/mtu"]), "1400\n");
    for (link, bridge) in [("one-41-0", "br0"), ("one-41-1", "br1")] {
        let line = host.in_netns(&["ip", "-o", "link", "show", "dev", link]).ok();
        assert!(line.contains(&format!("master {bridge}")), "{line}");
    }
}

#[test]
fn each_failure_is_one_sentence_that_names_the_cause_and_leaves_nothing() {
    let host = Host::start();
    host.add_disk(0);
    let before = host.counts();
    let deploy = Call::recorded(&host, "0079-vmm-deploy");
    let cases = [
        (Call::recorded(&host, "1490-vmm-deploy"), "root disk"),
        (deploy.clone().with("<BRIDGE><![CDATA[br0]]>", "<BRIDGE><![CDATA[nobr7]]>"), "nobr7"),
        (deploy.clone().with("<MEMORY><![CDATA[256]]>", "<MEMORY><![CDATA[1]]>"), "memory"),
        (deploy.clone().with("<![CDATA[/bin/sh -c]]>", "<![CDATA[/bin/nonesuch -c]]>"), "nonesuch"),
        (deploy.clone().with("<![CDATA[sleep 1000]]>", "<![CDATA[echo no luck; exit 3]]>"), "3"),
        (deploy.clone().for_vm(0, 5), "disk.0"),
    ];
    for (call, names) in cases {
        let sentence = refused(&host.driver(&call));
        assert!(sentence.contains(names), "{names} in {sentence}");
        let vm = format!("one-{}", call.arguments[2]);
        assert_eq!(host.info(&vm), None);
        let mut after = host.counts();
        // The directory of VM 5's disks is the platform's, made by the test.
        after.files.retain(|file| !file.contains("/one-5"));
        assert_eq!(after, before, "{sentence}");
    }
    deployed(&host.driver(&deploy), 0);
}

#[test]
fn a_mac_in_use_is_refused_and_its_owner_named() {
    let host = Host::start();
    host.add_disk(0);
    host.add_disk(1);
    let deploy = Call::recorded(&host, "0079-vmm-deploy");
    deployed(&host.driver(&deploy), 0);
    let before = host.counts();
    let twin = deploy.for_vm(0, 1).with("02:00:c0:a8:00:01", "02:00:c0:a8:64:0a");
    let sentence = refused(&host.driver(&twin));
    assert!(sentence.contains("02:00:c0:a8:64:0a") && sentence.contains("one-0"), "{sentence}");
    assert_eq!(host.counts(), before);
}

#[test]
fn an_image_deleted_meanwhile_is_named() {
    let host = Host::start();
    host.add_disk(0);
    // The disk keeps its layers from being pruned; somebody removes them by hand.
    std::fs::remove_dir_all(host.state_dir().join("datastore/layers")).unwrap();
    let before = host.counts();
    let sentence = refused(&host.driver(&Call::recorded(&host, "0079-vmm-deploy")));
    assert!(sentence.contains("layer") && sentence.contains("import"), "{sentence}");
    assert_eq!(host.counts(), before);
}

#[test]
fn an_image_in_use_by_a_disk_keeps_its_layers_when_its_name_is_removed() {
    let host = Host::start();
    host.add_disk(0);
    host.cli(&["image", "rm", "busybox"]).ok();
    deployed(&host.driver(&Call::recorded(&host, "0079-vmm-deploy")), 0);
}

#[test]
fn actions_of_later_days_refuse_in_one_sentence_and_touch_nothing() {
    let host = Host::start();
    host.add_disk(0);
    deployed(&host.driver(&Call::recorded(&host, "0079-vmm-deploy")), 0);
    let before = (host.counts(), host.info("one-0"));
    for name in ["0125-vmm-save", "0258-vmm-migrate", "0376-vmm-attach_disk"] {
        let sentence = refused(&host.driver(&Call::recorded(&host, name)));
        assert!(sentence.contains("not supported"), "{sentence}");
    }
    assert_eq!((host.counts(), host.info("one-0")), before);
}

#[test]
fn a_guest_that_ends_by_itself_is_stopped_and_its_exit_is_kept() {
    let host = Host::start();
    host.add_disk(0);
    let deploy = Call::recorded(&host, "0079-vmm-deploy");
    deployed(&host.driver(&deploy.with("sleep 1000", "sleep 0.3; exit 7")), 0);
    wait_for("the end of the guest", || match host.info("one-0").unwrap() {
        info if info["state"]["name"] == "stopped" || info["state"] == "stopped" => Ok(()),
        info => Err(info["state"].clone()),
    });
    let info = host.info("one-0").unwrap();
    assert_eq!(info["last_exit"].to_string(), "{\"code\":7,\"kind\":\"code\"}", "{info}");
    let counts = host.counts();
    assert_eq!((counts.mounts.len(), counts.processes.len(), counts.cgroups.len()), (0, 0, 0));
}

#[test]
fn a_full_disk_is_a_failed_deploy_without_a_trace_and_the_next_one_works() {
    // Records in one place, what belongs to a running guest in the other.
    for place in ["s/vms", "r/vms"] {
        let host = Host::start();
        host.add_disk(0);
        let dir = host.dir().join(place).display().to_string();
        let options = "size=1m,mode=0711";
        ocivisor_tests::tool(&["mount", "-t", "tmpfs", "-o", options, "none", &dir]);
        let fill = host.dir().join(place).join("fill");
        let _full = std::fs::write(&fill, vec![0; 2 << 20]);
        let before = host.counts();
        let deploy = Call::recorded(&host, "0079-vmm-deploy");
        let sentence = refused(&host.driver(&deploy));
        assert!(sentence.contains("No space left on device"), "{place}: {sentence}");
        assert_eq!(host.info("one-0"), None);
        assert_eq!(host.counts(), before, "{place}");
        std::fs::remove_file(&fill).unwrap();
        deployed(&host.driver(&deploy), 0);
        host.driver(&Call::recorded(&host, "0083-vmm-shutdown")).ok();
    }
}
