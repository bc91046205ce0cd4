//! Our drivers under the stand-in, with real daemons on two hosts and real effects.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests look at what is on hosts"
)]

use std::path::Path;

use ocivisor_conformance::Cloud;
use ocivisor_conformance::drivers::unbase64;
use ocivisor_conformance::template::Vector;

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
    let cloud = cloud();
    let before = cloud.holdings();
    // What is not there yet refuses, and the VM runs on.
    cloud.ask("onetemplate instantiate base --name f1 --hold");
    cloud.leads("onevm deploy 0 host01 101", 0, "RUNNING");
    cloud.leads("onevm suspend 0", 0, "RUNNING");
    assert!(cloud.state(0).1.unwrap().starts_with("SAVE: "));
    inside(&cloud, "host01", "one-0", &["true"]);

    let running = cloud.node("host01").holdings().processes;

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
    let mut now = cloud.node("host01").holdings().processes;
    now.retain(|pid| !running.contains(pid));
    assert_eq!(now, Vec::<u32>::new(), "nothing of it is left");
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
fn what_becomes_of_guests_is_heard_from_the_agent() {
    let cloud = cloud();
    let before = cloud.holdings();
    let monitor = cloud.monitor("host01");
    for (vm, name) in ["killed", "rebooted", "deaf"].into_iter().enumerate() {
        cloud.ask(&format!("onetemplate instantiate base --name {name} --hold"));
        cloud.leads(&format!("onevm deploy {vm} host01 101"), vm as u32, "RUNNING");
    }
    for kind in ["BEACON_HOST", "SYSTEM_HOST", "MONITOR_HOST", "MONITOR_VM"] {
        assert!(monitor.hears(kind, "").success);
    }
    assert!(monitor.hears("STATE_VM", "\"one-2\"").by_connection);
    // Reports of a VM that was begun or ended a moment ago mean nothing; time goes on.
    cloud.oned.wait(60);
    cloud.nodes[0].kill_guest("one-0");
    cloud.becomes(0, "POWEROFF");
    cloud.leads("onevm resume 0", 0, "RUNNING");
    assert_eq!([cloud.state(1).0, cloud.state(2).0], ["RUNNING", "RUNNING"]);

    // An agent that is killed is no reason for anything; the next one tells what happened meanwhile.
    cloud.oned.wait(60);
    let agent = cloud.nodes[0].agent().unwrap();
    ocivisor_tests::tool(&["kill", "-9", &agent.to_string()]);
    cloud.nodes[0].kill_guest("one-1");
    drop(monitor);
    assert_eq!(cloud.state(1).0, "RUNNING");
    let monitor = cloud.monitor("host01");
    assert_ne!(cloud.nodes[0].agent(), Some(agent));
    cloud.becomes(1, "POWEROFF");
    cloud.leads("onevm resume 1", 1, "RUNNING");

    // A daemon that is away tells nothing of guests, and they run on.
    cloud.oned.wait(60);
    cloud.nodes[0].kill_daemon();
    let _before = monitor.take();
    monitor.hears("BEACON_HOST", "");
    monitor.hears("MONITOR_HOST", "");
    cloud.nodes[0].start_daemon();
    monitor.hears("STATE_VM", "SYNC_STATE");
    assert_eq!([0, 1, 2].map(|vm| cloud.state(vm).0), ["RUNNING"; 3]);

    // The host boots anew: nothing starts unasked, and what is not there is powered off.
    drop(monitor);
    cloud.nodes[0].reboot();
    assert_eq!(cloud.nodes[0].holdings().processes, Vec::<u32>::new(), "nothing starts unasked");
    cloud.oned.wait(60);
    let _monitor = cloud.monitor("host01");
    for vm in 0..3 {
        cloud.becomes(vm, "POWEROFF");
        cloud.leads(&format!("onevm resume {vm}"), vm, "RUNNING");
        cloud.leads(&format!("onevm terminate --hard {vm}"), vm, "DONE");
    }
    cloud.stop_monitoring("host01");
    assert_eq!(cloud.holdings(), before);
}

#[test]
fn commands_run_in_guests_and_their_ends_are_heard() {
    let cloud = cloud();
    let before = cloud.holdings();
    let _monitor = cloud.monitor("host01");
    cloud.ask("onetemplate instantiate base --name cmd --hold");
    cloud.leads("onevm deploy 0 host01 101", 0, "RUNNING");
    cloud.leads("onevm exec 0 echo \"6 * 7 = $((6*7))\" | tee /root/answer; exit 3", 0, "RUNNING");
    let end = command(&cloud, "DONE");
    assert_eq!(end["RETURN_CODE"], "3");
    let text = |key: &str| String::from_utf8(unbase64(&end[key]).unwrap()).unwrap();
    assert_eq!([text("STDOUT"), text("STDERR")], ["6 * 7 = 42\n", ""]);
    assert_eq!(inside(&cloud, "host01", "one-0", &["cat", "/root/answer"]), "6 * 7 = 42\n");
    cloud.leads("onevm exec 0 cat > /root/given --stdin some words", 0, "RUNNING");
    command(&cloud, "DONE");
    assert_eq!(inside(&cloud, "host01", "one-0", &["cat", "/root/given"]), "some words");
    cloud.leads("onevm exec 0 /none; exit", 0, "RUNNING");
    assert_eq!(command(&cloud, "DONE")["RETURN_CODE"], "127");
    // One at a time; a cancelled one has no processes any more.
    cloud.leads("onevm exec 0 exec sleep 987", 0, "RUNNING");
    assert!(cloud.oned.command("onevm exec 0 true", "").unwrap_err().contains("already"));
    cloud.leads("onevm exec-cancel 0", 0, "RUNNING");
    assert!(!inside(&cloud, "host01", "one-0", &["ps"]).contains("sleep 987"));
    command(&cloud, "CANCELLED");
    // A guest that ends takes its command with it.
    cloud.leads("onevm exec 0 sleep 986", 0, "RUNNING");
    cloud.leads("onevm poweroff --hard 0", 0, "POWEROFF");
    command(&cloud, "ERROR");
    cloud.leads("onevm terminate 0", 0, "DONE");
    cloud.stop_monitoring("host01");
    assert_eq!(cloud.holdings(), before);
}

/// What became of the command of VM 0, once that is so.
fn command(cloud: &Cloud, status: &str) -> Vector {
    let told = || cloud.oned.model().vms[&0].template.vectors("QEMU_GA_EXEC").next().cloned();
    let found = || told().filter(|told| told.get("STATUS").is_some_and(|s| s == status));
    ocivisor_tests::wait_for_option(ocivisor_tests::PATIENCE, found)
        .unwrap_or_else(|| panic!("not {status}: {:?}", told()))
}

#[test]
fn nics_of_a_vm_that_is_powered_off_come_with_its_boot() {
    let cloud = cloud();
    let before = cloud.holdings();
    cloud.oned.model().cold_nics = true;
    cloud.ask("onetemplate instantiate base --name cold --hold");
    cloud.leads("onevm deploy 0 host01 101", 0, "RUNNING");
    cloud.leads("onevm poweroff 0", 0, "POWEROFF");
    cloud.leads("onevm nic-attach 0 --network net1", 0, "POWEROFF");
    cloud.leads("onevm nic-detach 0 0", 0, "POWEROFF");
    assert_eq!(cloud.state(0).1, None);
    cloud.leads("onevm resume 0", 0, "RUNNING");
    let address = inside(&cloud, "host01", "one-0", &["ip", "-o", "-4", "address"]);
    assert!(address.contains("10.10.0.10/24") && !address.contains("192.168.100"), "{address}");
    cloud.leads("onevm poweroff 0", 0, "POWEROFF");
    cloud.leads("onevm nic-detach 0 1", 0, "POWEROFF");
    assert_eq!(cloud.state(0).1, None);
    cloud.leads("onevm terminate 0", 0, "DONE");
    assert_eq!(cloud.holdings(), before);
}

/// Two hosts, thirty VMs of three images that share layers, with disks and NICs that come and go, everything that may
/// happen on a day, several at once; at the end nothing is left.
#[test]
fn a_day_in_the_life_leaves_nothing() {
    const VMS: u32 = 30;
    let cloud = cloud();
    let _registry = cloud.add_images();
    let before = cloud.holdings();
    let monitors = ["host01", "host02"].map(|host| cloud.monitor(host));
    for vm in 0..VMS {
        let template = ["base", "web", "db"][vm as usize % 3];
        cloud.ask(&format!("onetemplate instantiate {template} --name day{vm} --hold"));
    }
    let host = |vm: u32| if vm.is_multiple_of(2) { "host01" } else { "host02" };
    let other = |vm: u32| if vm.is_multiple_of(2) { "host02" } else { "host01" };
    at_once(&cloud, VMS, |vm| vec![(format!("onevm deploy {vm} {} 101", host(vm)), "RUNNING")]);
    for vm in 0..VMS {
        let (name, dir) = (format!("one-{vm}"), data_of(vm));
        let text = format!("echo {vm} > {dir}/mine && ls / && cat {dir}/mine");
        let seen = inside(&cloud, host(vm), &name, &["sh", "-c", &text]);
        assert_eq!(seen.contains("common\n"), vm % 3 > 0, "{seen}");
        assert_eq!(seen.contains("own\n"), vm % 3 == 2, "{seen}");
        assert!(seen.ends_with(&format!("\n{vm}\n")), "{seen}");
    }
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
    // A host reboots: its VMs are off, which its agent tells, until somebody resumes them.
    drop(monitors);
    cloud.nodes[0].reboot();
    assert_eq!(cloud.nodes[0].holdings().processes, Vec::<u32>::new());
    cloud.oned.wait(60);
    let there = |vm: &u32| cloud.oned.model().vms[vm].place().host == "host01";
    let off: Vec<u32> = (0..VMS).filter(there).collect();
    assert!(off.len() > 10, "{off:?}");
    let _monitors = ["host01", "host02"].map(|host| cloud.monitor(host));
    off.iter().for_each(|vm| cloud.becomes(*vm, "POWEROFF"));
    at_once(&cloud, VMS, |vm| match off.contains(&vm) {
        true => vec![(format!("onevm resume {vm}"), "RUNNING")],
        false => Vec::new(),
    });
    for vm in 0..VMS {
        let on = cloud.oned.model().vms[&vm].place().host.clone();
        let file = format!("{}/mine", data_of(vm));
        let kept = inside(&cloud, &on, &format!("one-{vm}"), &["cat", &file]);
        assert_eq!(kept, format!("{vm}\n"), "its data are where it is");
    }
    at_once(&cloud, VMS, |vm| {
        let hard = if vm.is_multiple_of(3) { "--hard " } else { "" };
        vec![(format!("onevm terminate {hard}{vm}"), "DONE")]
    });
    for host in ["host01", "host02"] {
        cloud.stop_monitoring(host);
    }
    assert_eq!(cloud.holdings(), before);
}

/// Where a VM of the day has a disk for data: its root disk, if it has no other.
fn data_of(vm: u32) -> &'static str {
    if vm.is_multiple_of(3) { "/root" } else { "/media/one-disk.1" }
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
        // Some steps before the deploy itself.
        let written = node.dir().join("datastores/101/0/disk.1");
        ocivisor_tests::wait_for("the deploy", || written.exists().then_some(()).ok_or(()));
        node.signal_daemon("STOP");
        let delete = scope.spawn(|| cloud.ask("onevm recover --delete 0"));
        deploy.join().unwrap();
        delete.join().unwrap();
        node.signal_daemon("CONT");
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
