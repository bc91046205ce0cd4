//! Our drivers under the stand-in, with real daemons on two hosts and real effects.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests look at what is on hosts"
)]

use std::path::Path;

use ocivisor_conformance::Cloud;

fn cloud() -> Cloud {
    Cloud::start(Path::new(env!("CARGO_BIN_EXE_ocivisor-conformance")))
}

fn inside(cloud: &Cloud, host: &str, vm: &str, command: &[&str]) -> String {
    cloud.node(host).cli(&[&["exec", vm, "--"], command].concat())
}

#[test]
fn a_vm_goes_through_its_life_on_two_hosts() {
    let cloud = cloud();
    let before = cloud.holdings();
    cloud.ask("onetemplate instantiate base --name web --hold");
    cloud.leads("onevm deploy 0 host01 101", 0, "RUNNING");
    assert_eq!(inside(&cloud, "host01", "one-0", &["hostname"]), "web\n");
    let address = inside(&cloud, "host01", "one-0", &["ip", "-o", "-4", "address", "show", "eth0"]);
    assert!(address.contains("192.168.100.10/24"), "{address}");
    inside(&cloud, "host01", "one-0", &["sh", "-c", "echo kept > /root/file"]);
    cloud.leads("onevm reboot 0", 0, "RUNNING");
    cloud.leads("onevm reboot --hard 0", 0, "RUNNING");
    cloud.leads("onevm poweroff 0", 0, "POWEROFF");
    assert_eq!(cloud.node("host01").holdings().processes, Vec::<u32>::new());
    cloud.leads("onevm resume 0", 0, "RUNNING");
    cloud.leads("onevm poweroff --hard 0", 0, "POWEROFF");
    cloud.leads("onevm resume 0", 0, "RUNNING");
    cloud.leads("onevm undeploy 0", 0, "UNDEPLOYED");
    assert_eq!(cloud.node("host01").holdings(), before.0[0], "nothing is left where it was");
    cloud.ask("onevm resume 0");
    cloud.leads("onevm deploy 0 host02 101", 0, "RUNNING");
    let kept = inside(&cloud, "host02", "one-0", &["cat", "/root/file"]);
    assert_eq!(kept, "kept\n", "the disk moved with it");
    cloud.leads("onevm migrate --poff 0 host01", 0, "RUNNING");
    assert_eq!(inside(&cloud, "host01", "one-0", &["cat", "/root/file"]), "kept\n");
    cloud.leads("onevm terminate 0", 0, "DONE");
    assert_eq!(cloud.holdings(), before);
}

#[test]
fn capacity_nics_and_context_change_while_it_runs() {
    let cloud = cloud();
    let before = cloud.holdings();
    cloud.ask("onetemplate instantiate base --name conf --hold");
    cloud.leads("onevm deploy 0 host01 101", 0, "RUNNING");
    cloud.leads("onevm resize 0 --cpu 1 --memory 128m", 0, "RUNNING");
    let info = cloud.node("host01").cli(&["info", "one-0", "-o", "json"]);
    assert!(info.contains(&(128u64 << 20).to_string()), "{info}");
    cloud.leads("onevm nic-attach 0 --network net1", 0, "RUNNING");
    assert_eq!(cloud.state(0).1, None);
    let address = inside(&cloud, "host01", "one-0", &["ip", "-o", "-4", "address", "show", "eth1"]);
    assert!(address.contains("10.10.0.10/24"), "{address}");
    cloud.leads("onevm nic-attach 0 --network net0 --alias NIC0", 0, "RUNNING");
    assert_eq!(cloud.state(0).1, None);
    let address = inside(&cloud, "host01", "one-0", &["ip", "-o", "-4", "address", "show", "eth0"]);
    assert!(address.contains("192.168.100.11/24"), "{address}");
    cloud.leads("onevm nic-detach 0 2", 0, "RUNNING");
    cloud.leads("onevm nic-detach 0 1", 0, "RUNNING");
    assert_eq!(cloud.state(0).1, None);
    let links = inside(&cloud, "host01", "one-0", &["ls", "/sys/class/net"]);
    assert!(!links.contains("eth1"), "{links}");
    cloud.leads("onevm poweroff 0", 0, "POWEROFF");
    cloud.leads("onevm terminate 0", 0, "DONE");
    assert_eq!(cloud.holdings(), before);
}

#[test]
fn failures_end_where_a_real_oned_ended_and_leave_nothing() {
    let mut cloud = cloud();
    let before = cloud.holdings();
    // What is not there yet refuses, and the VM runs on.
    cloud.ask("onetemplate instantiate base --name f1 --hold");
    cloud.leads("onevm deploy 0 host01 101", 0, "RUNNING");
    cloud.leads("onevm suspend 0", 0, "RUNNING");
    assert!(cloud.state(0).1.unwrap().starts_with("SAVE: "));
    inside(&cloud, "host01", "one-0", &["true"]);

    let running = cloud.node("host01").holdings().processes.len();

    // A guest that cannot begin: nothing of it is left, and a retry boots it.
    let script = cloud.oned.drivers.place.host("host01").join("one/vnm/bridge/pre");
    let good = std::fs::read(&script).unwrap();
    std::fs::write(&script, "#!/bin/sh\ncat > /dev/null\n").unwrap();
    cloud.oned.model().networks.get_mut(&1).unwrap().template.set("BRIDGE", "br9");
    let text = "NAME=f2\nCPU=1\nMEMORY=64\nDISK=[IMAGE=busybox]\nNIC=[NETWORK=net1]\n\
                OCI=[ENTRYPOINT=\"/bin/sh -c\",CMD=\"sleep 1000\"]";
    cloud.oned.command("onevm create --hold", text).unwrap();
    cloud.leads("onevm deploy 1 host01 101", 1, "BOOTFAILURE");
    let error = cloud.state(1).1.unwrap();
    assert!(error.starts_with("DEPLOY: ") && error.contains("br9"), "{error}");
    assert!(error.ends_with(".ExitCode: 1"), "one sentence: {error}");
    assert_eq!(cloud.node("host01").holdings().processes.len(), running, "nothing of it is left");
    std::fs::write(&script, good).unwrap();
    cloud.leads("onevm recover --retry 1", 1, "RUNNING");
    cloud.leads("onevm recover --delete 1", 1, "DONE");
    cloud.node("host01").run(&["ip", "link", "del", "br9"]);

    // A VM that oned believes to run, and whose name it never heard.
    cloud.ask("onetemplate instantiate base --name f3 --hold");
    cloud.leads("onevm deploy 2 host01 101", 2, "RUNNING");
    cloud.oned.model().vms.get_mut(&2).unwrap().deploy_id.clear();
    cloud.leads("onevm terminate --hard 2", 2, "DONE");

    // A host that nobody reaches: the end fails, the VM is believed to run; then it succeeds.
    cloud.node("host01").unreachable(true);
    cloud.leads("onevm terminate 0", 0, "RUNNING");
    cloud.node("host01").unreachable(false);

    // A daemon that is killed: its guest runs on, and the next daemon ends it.
    cloud.nodes[0].kill_daemon();
    cloud.nodes[0].start_daemon();
    cloud.leads("onevm terminate 0", 0, "DONE");
    assert_eq!(cloud.holdings(), before);
}

#[test]
fn a_host_that_rebooted_holds_nothing_and_its_vms_are_resumed() {
    let mut cloud = cloud();
    let before = cloud.holdings();
    cloud.ask("onetemplate instantiate base --name r --hold");
    cloud.leads("onevm deploy 0 host01 101", 0, "RUNNING");
    cloud.nodes[0].reboot();
    assert_eq!(cloud.nodes[0].holdings().processes, Vec::<u32>::new(), "nothing starts unasked");
    cloud.oned.wait(60);
    let report = "SYNC_STATE=yes\nMISSING_STATE=POWEROFF\nVM=[ID=\"0\",DEPLOY_ID=\"one-0\",STATE=\"POWEROFF\"]";
    cloud.oned.hear_states("host01", report);
    assert_eq!(cloud.state(0).0, "POWEROFF");
    cloud.leads("onevm resume 0", 0, "RUNNING");
    cloud.leads("onevm terminate 0", 0, "DONE");
    assert_eq!(cloud.holdings(), before);
}

/// Two hosts, thirty VMs, everything that may happen on a day, several at once; at the end nothing is left.
#[test]
fn a_day_in_the_life_leaves_nothing() {
    const VMS: u32 = 30;
    let mut cloud = cloud();
    let before = cloud.holdings();
    for vm in 0..VMS {
        cloud.ask(&format!("onetemplate instantiate base --name day{vm} --hold"));
    }
    let host = |vm: u32| if vm.is_multiple_of(2) { "host01" } else { "host02" };
    let other = |vm: u32| if vm.is_multiple_of(2) { "host02" } else { "host01" };
    at_once(&cloud, VMS, |vm| vec![(format!("onevm deploy {vm} {} 101", host(vm)), "RUNNING")]);
    at_once(&cloud, VMS, |vm| match vm % 5 {
        0 => vec![
            (format!("onevm nic-attach {vm} --network net1"), "RUNNING"),
            (format!("onevm nic-detach {vm} 1"), "RUNNING"),
            (format!("onevm nic-attach {vm} --network net1"), "RUNNING"),
        ],
        1 => vec![(format!("onevm resize {vm} --cpu 1 --memory 96m"), "RUNNING")],
        2 => vec![
            (format!("onevm poweroff {vm}"), "POWEROFF"),
            (format!("onevm resume {vm}"), "RUNNING"),
            (format!("onevm reboot --hard {vm}"), "RUNNING"),
        ],
        3 => vec![
            (format!("onevm undeploy --hard {vm}"), "UNDEPLOYED"),
            (format!("onevm resume {vm}"), "PENDING"),
            (format!("onevm deploy {vm} {} 101", other(vm)), "RUNNING"),
        ],
        _ => vec![
            (format!("onevm reboot {vm}"), "RUNNING"),
            (format!("onevm migrate --poff-hard {vm} {}", other(vm)), "RUNNING"),
        ],
    });
    // A host reboots: its VMs are off until somebody resumes them.
    cloud.nodes[0].reboot();
    assert_eq!(cloud.nodes[0].holdings().processes, Vec::<u32>::new());
    cloud.oned.wait(60);
    cloud.oned.hear_states("host01", "SYNC_STATE=yes\nMISSING_STATE=POWEROFF\n");
    let off: Vec<u32> = (0..VMS).filter(|vm| cloud.state(*vm).0 == "POWEROFF").collect();
    assert!(off.len() > 10, "{off:?}");
    at_once(&cloud, VMS, |vm| match off.contains(&vm) {
        true => vec![(format!("onevm resume {vm}"), "RUNNING")],
        false => Vec::new(),
    });
    at_once(&cloud, VMS, |vm| {
        let hard = if vm.is_multiple_of(3) { "--hard " } else { "" };
        vec![(format!("onevm terminate {hard}{vm}"), "DONE")]
    });
    assert_eq!(cloud.holdings(), before);
}

/// Asks for each VM what is to be asked, one after the other, of four VMs at once.
fn at_once(cloud: &Cloud, vms: u32, asks: impl Fn(u32) -> Vec<(String, &'static str)> + Sync) {
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let asks = &asks;
            scope.spawn(move || {
                for vm in (worker..vms).step_by(4) {
                    for (command, state) in asks(vm) {
                        cloud.leads(&command, vm, state);
                        assert_eq!(cloud.state(vm).1, None, "{command}");
                    }
                }
            });
        }
    });
}

/// An admin deletes a VM while its deploy is under way: oned forgets the deploy, the host does not, and both meet there.
#[test]
fn a_vm_that_is_deleted_while_it_is_deployed_leaves_nothing() {
    let cloud = cloud();
    let before = cloud.holdings();
    cloud.ask("onetemplate instantiate base --name stuck --hold");
    let node = cloud.node("host01");
    std::thread::scope(|scope| {
        let deploy = scope.spawn(|| cloud.ask("onevm deploy 0 host01 101"));
        // The step before the deploy itself.
        let written = node.dir().join("datastores/101/0/ds.xml");
        ocivisor_tests::wait_for("the deploy", || written.exists().then_some(()).ok_or(()));
        node.signal_daemon("STOP");
        let delete = scope.spawn(|| cloud.ask("onevm recover --delete 0"));
        deploy.join().unwrap();
        node.signal_daemon("CONT");
        delete.join().unwrap();
    });
    assert_eq!(cloud.state(0).0, "DONE");
    ocivisor_tests::wait_for("nothing being left", || {
        let now = cloud.holdings();
        if now == before { Ok(()) } else { Err(now) }
    });
}

#[test]
fn a_deploy_that_is_counted_as_failed_while_it_goes_on_is_repeated() {
    let cloud = cloud();
    let before = cloud.holdings();
    cloud.ask("onetemplate instantiate base --name twice --hold");
    let node = cloud.node("host01");
    std::thread::scope(|scope| {
        let deploy = scope.spawn(|| cloud.ask("onevm deploy 0 host01 101"));
        let written = node.dir().join("datastores/101/0/ds.xml");
        ocivisor_tests::wait_for("the deploy", || written.exists().then_some(()).ok_or(()));
        cloud.ask("onevm recover --failure 0");
        cloud.ask("onevm recover --retry 0");
        deploy.join().unwrap();
    });
    assert_eq!(cloud.state(0).0, "RUNNING");
    assert_eq!(inside(&cloud, "host01", "one-0", &["hostname"]), "twice\n");
    cloud.leads("onevm terminate 0", 0, "DONE");
    assert_eq!(cloud.holdings(), before);
}
