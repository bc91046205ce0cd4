//! The monitoring agent with a real daemon, begun by its script as OpenNebula's monitor does, heard by a listener.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, reason = "tests")]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ocivisor_tests::{Answer, Call, DeadShare, Host, Monitor, tool, wait_for};

const RUNNING: &str = "VM=[ID=\"0\",DEPLOY_ID=\"one-0\",STATE=\"RUNNING\"]";
const POWEROFF: &str = "VM=[ID=\"0\",DEPLOY_ID=\"one-0\",STATE=\"POWEROFF\"]";

/// Number of oneadmin's group: his scripts and his agent have no other rights.
const OPERATOR: u32 = 54_321;

/// A host with the recorded VM 0 running.
fn host() -> Host {
    let host = Host::start_with("[access]\noperate_gid = 54321\n");
    host.add_disk(0);
    host.driver(&Call::recorded(&host, "0079-vmm-deploy")).ok();
    host
}

fn element(document: &str, name: &str) -> String {
    let (_, rest) = document.split_once(&format!("<{name}>")).unwrap();
    let encoded = rest.split('<').next().unwrap();
    let bytes = STANDARD.decode(encoded);
    String::from_utf8(bytes.unwrap()).unwrap()
}

#[test]
fn the_end_of_a_guest_is_told_and_nothing_else_looks_like_it() {
    let mut host = host();
    let monitor = Monitor::listen(&host, 0);
    let document = monitor.start(&host).ok();
    assert!(document.starts_with("<MONITOR_MESSAGES><SYSTEM_HOST>"), "{document}");
    for key in ["HYPERVISOR=ocivisor\n", "VERSION=\"7.4.0\"\n", "TOTALMEMORY="] {
        let system = element(&document, "SYSTEM_HOST");
        assert!(system.contains(key), "{key} in {system}");
    }
    assert!(element(&document, "MONITOR_HOST").contains("FREEMEMORY="));
    assert!(
        element(&document, "STATE_VM")
            .starts_with("SYNC_STATE=yes\nMISSING_STATE=POWEROFF\nVM=[ID=\"0\"")
    );
    let line = element(&document, "MONITOR_VM");
    let monitored = line.split("MONITOR=\"").nth(1).unwrap().split('"').next().unwrap();
    let bytes = STANDARD.decode(monitored);
    let text = String::from_utf8(bytes.unwrap()).unwrap();
    for key in [
        "MEMORY=",
        "NETRX=",
        "DISKWRBYTES=",
        "DISK_SIZE=[ID=\"0\",SIZE=\"",
        "GUEST_IP=\"192.168.100.10\"",
    ] {
        assert!(text.contains(key), "{key} in {text}");
    }

    // All that is sent, and how.
    monitor.hears("STATE_VM", RUNNING, 1);
    for kind in ["BEACON_HOST", "SYSTEM_HOST", "MONITOR_HOST"] {
        monitor.hears(kind, "", 1);
    }
    monitor.hears("MONITOR_VM", "VM=[ID=\"0\",DEPLOY_ID=\"one-0\",MONITOR=\"", 2);
    let by = |kind: &str| if kind == "STATE_VM" { "tcp" } else { "udp" };
    for heard in monitor.heard() {
        assert_eq!(
            (heard.by, heard.status.as_str(), heard.host.as_str()),
            (by(&heard.kind), "SUCCESS", "0")
        );
    }

    // A reboot, a daemon that is away and comes back, scripts that are deleted: the VM runs.
    host.driver(&Call::recorded(&host, "0081-vmm-reboot")).ok();
    host.kill_daemon();
    monitor.forget();
    monitor.copy_scripts();
    monitor.hears("BEACON_HOST", "", 2);
    assert!(
        monitor.heard().iter().all(|heard| !heard.kind.ends_with("_VM")),
        "{:?}",
        monitor.heard()
    );
    host.start_daemon();
    let all = monitor.hears("STATE_VM", "SYNC_STATE=yes", 1);
    assert!(all.contains(RUNNING), "{all}");

    // A record that cannot be read is no reason to take the guest for ended.
    host.kill_daemon();
    let record = host.state_dir().join("vms/one-0/vm.json");
    let whole = std::fs::read(&record).unwrap();
    std::fs::write(&record, "{").unwrap();
    monitor.forget();
    host.start_daemon();
    let all = monitor.hears("STATE_VM", "SYNC_STATE=yes", 1);
    let unknown = RUNNING.replace("RUNNING", "UNKNOWN");
    assert!(all.contains(&unknown), "{all}");
    // Nor is it one for an agent that never knew the VM.
    let document = monitor.start(&host).ok();
    let states = element(&document, "STATE_VM");
    assert!(states.contains("SYNC_STATE=yes") && states.contains(&unknown), "{states}");
    monitor.forget();
    let all = monitor.hears("STATE_VM", "SYNC_STATE=yes", 2);
    assert!(all.contains(&unknown), "{all}");
    let listed = host.cli(&["list"]).ok();
    let line: Vec<&str> = listed.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(line[..3], ["one-0", "-", "damaged"], "{listed}");
    let why = host.cli(&["why", "0"]);
    assert_eq!(why.code, 11, "{why:?}");
    assert!(why.err.contains("the record of vm one-0 is damaged: "), "{why:?}");
    assert!(
        why.err.contains("its guest, if it runs, runs on untouched; put a sound copy"),
        "{why:?}"
    );
    host.kill_daemon();
    std::fs::write(&record, whole).unwrap();
    host.start_daemon();
    monitor.hears("STATE_VM", RUNNING, 1);
    assert!(monitor.heard().iter().all(|heard| !heard.text.contains("STATE=\"POWEROFF\"")));

    let pid = host.info("one-0").unwrap()["guest"]["init"]["pid"].to_string();
    tool(&["kill", "-9", &pid]);
    monitor.hears("STATE_VM", POWEROFF, 2);

    // After a boot of the host no guest runs, and nobody but OpenNebula may change that.
    host.driver(&Call::recorded(&host, "0079-vmm-deploy")).ok();
    monitor.forget();
    monitor.hears("STATE_VM", RUNNING, 1);
    assert!(monitor.heard().iter().all(|heard| !heard.text.contains("STATE=\"POWEROFF\"")));
    host.reboot();
    monitor.hears("STATE_VM", POWEROFF, 1);
    monitor.stop(&host).ok();
}

/// Its monitor knows five kinds of messages (src/monitor/include/MonitorDriverMessages.h of release 6.10.5), takes a VM with a
/// negative number for one to be imported, and believes states at once: nothing is ignored for 30 seconds there.
#[test]
fn a_monitor_of_6_10_is_told_what_it_knows() {
    const KINDS: [&str; 5] =
        ["BEACON_HOST", "MONITOR_HOST", "MONITOR_VM", "STATE_VM", "SYSTEM_HOST"];
    let host = host();
    let monitor = Monitor::listen(&host, 0).of_6_10();
    let document = monitor.start(&host).ok();
    for kind in KINDS.into_iter().filter(|kind| *kind != "BEACON_HOST") {
        assert!(!element(&document, kind).is_empty(), "{kind} in {document}");
    }
    assert_eq!(element(&document, "EXEC_VM"), "");
    let unknown = RUNNING.replace("RUNNING", "UNKNOWN");
    assert!(element(&document, "STATE_VM").contains(&unknown), "{document}");
    for kind in KINDS {
        monitor.hears(kind, "", 1);
    }
    monitor.hears("STATE_VM", RUNNING, 1);
    let pid = host.info("one-0").unwrap()["guest"]["init"]["pid"].to_string();
    tool(&["kill", "-9", &pid]);
    monitor.hears("STATE_VM", POWEROFF, 1);
    monitor.stop(&host).ok();
    let heard = monitor.heard();
    let kinds: std::collections::BTreeSet<&str> =
        heard.iter().map(|heard| heard.kind.as_str()).collect();
    assert_eq!(kinds, KINDS.into());
    for heard in &heard {
        assert_eq!((heard.status.as_str(), heard.host.as_str()), ("SUCCESS", "0"));
        assert!(!heard.text.contains("ID=\"-"), "{heard:?}");
    }
    // Each VM's values are a template of its own, in base64 without newlines.
    let told = heard.iter().rev().find(|heard| heard.kind == "MONITOR_VM").unwrap();
    let (_, rest) = told.text.split_once("MONITOR=\"").unwrap();
    let values = STANDARD.decode(rest.split('"').next().unwrap()).unwrap();
    assert!(String::from_utf8(values).unwrap().contains("DISK_SIZE=[ID=\"0\","));
}

#[test]
fn there_is_one_agent_per_host_until_it_is_stopped() {
    let host = Host::start();
    let (one, other) = (Monitor::listen(&host, 7), Monitor::listen(&host, 8));
    one.start(&host).ok();
    other.start(&host).ok();
    let (first, beside) = (one.agent().unwrap(), other.agent().unwrap());
    one.start(&host).ok();
    let second = one.agent().unwrap();
    assert_ne!(first, second);
    // A process that nobody has waited for has no command line.
    let line = std::fs::read(format!("/proc/{first}/cmdline")).unwrap_or_default();
    assert_eq!(line, b"", "the older one is gone");
    one.stop(&host).ok();
    assert_eq!((one.agent(), other.agent()), (None, Some(beside)));
    one.stop(&host).ok();

    // Whoever cleans up by hand: an agent without a seat makes itself another; one whose seat is taken ends.
    let seat = host.dir().join("db/ocivisor/host-8");
    std::fs::remove_file(&seat).unwrap();
    wait_for("the seat", || other.agent().map(drop).ok_or(()));
    assert_eq!(other.agent(), Some(beside));
    other.stop(&host).ok();
    assert_eq!(other.agent(), None);
}

#[test]
fn a_start_without_a_daemon_says_so_and_leaves_what_was() {
    let mut host = Host::start();
    let monitor = Monitor::listen(&host, 7);
    let fails = |host: &Host, was| {
        let answer = monitor.start(host);
        assert_eq!(answer.code, 1, "{answer:?}");
        let said = answer.out.split("<STATE_VM>").nth(1).unwrap();
        assert!(said.starts_with("ocivisord does not answer on "), "{said}");
        assert_eq!(monitor.agent(), was);
    };
    monitor.start(&host).ok();
    let agent = monitor.agent();
    host.kill_daemon();
    fails(&host, agent);
    monitor.forget();
    monitor.hears("BEACON_HOST", "", 2);
    monitor.stop(&host).ok();
    fails(&host, None);
}

#[test]
fn the_newest_order_counts_whichever_ends_last() {
    let host = Host::start();
    let monitor = Monitor::listen(&host, 7);
    monitor.wait_for_daemon(60);
    let daemon = host.daemon_pid().to_string();
    let is = |newest: (u64, &str)| match monitor.ticket() {
        Some((number, order)) if (number, order.as_str()) == newest => Ok(()),
        other => Err(other),
    };
    tool(&["kill", "-STOP", &daemon]);
    let (older, newer) = std::thread::scope(|scope| {
        let older = scope.spawn(|| monitor.start(&host));
        wait_for("the older start", || is((1, "start")));
        let newer = scope.spawn(|| monitor.start(&host));
        wait_for("the newer start", || is((2, "start")));
        tool(&["kill", "-CONT", &daemon]);
        (older.join().unwrap(), newer.join().unwrap())
    });
    // The host has an agent, whoever it is: OpenNebula must not take it for broken.
    assert!(older.ok().starts_with("<MONITOR_MESSAGES>"));
    assert!(newer.ok().starts_with("<MONITOR_MESSAGES>"));
    let seat = host.dir().join("db/ocivisor/host-7");
    let held: serde_json::Value = serde_json::from_slice(&std::fs::read(seat).unwrap()).unwrap();
    assert_eq!(held["orders"]["ticket"], 2);
    assert!(monitor.agent().is_some());

    tool(&["kill", "-STOP", &daemon]);
    let overtaken = std::thread::scope(|scope| {
        let start = scope.spawn(|| monitor.start(&host));
        wait_for("the start", || is((3, "start")));
        monitor.stop(&host).ok();
        tool(&["kill", "-CONT", &daemon]);
        start.join().unwrap()
    });
    assert_ne!(overtaken.code, 0);
    assert!(overtaken.err.contains("monitoring of host 7 was ended meanwhile"), "{overtaken:?}");
    assert_eq!(monitor.agent(), None);
}

#[test]
fn what_opennebula_took_away_while_it_did_not_run_is_forgotten() {
    let host = host();
    let monitor = Monitor::listen(&host, 0);
    monitor.start(&host).ok();
    monitor.hears("STATE_VM", RUNNING, 1);
    host.cli(&["destroy", "one-0"]).ok();
    monitor.hears("STATE_VM", POWEROFF, 1);
    // As tm/delete does. With the recorded periods this takes some minutes, here some seconds.
    std::fs::remove_dir_all(host.vm_dir(0)).unwrap();
    wait_for("one-0 to be forgotten", || host.info("one-0").map_or(Ok(()), Err));
    monitor.stop(&host).ok();
}

#[test]
fn a_dead_share_keeps_neither_a_start_from_ending_nor_anything_else_from_being_told() {
    let host = host();
    let monitor = Monitor::listen(&host, 0);
    monitor.start(&host).ok();
    let first = monitor.agent().unwrap();
    let (store, sound) = (host.dir().join("ds/105"), host.dir().join("ds/104"));
    for dir in [&store, &sound] {
        std::fs::create_dir_all(dir).unwrap();
    }
    std::fs::write(sound.join(".monitor"), "").unwrap();
    let share = DeadShare::mount(&store);
    // The agent that runs goes on without it.
    share.is_asked();
    monitor.forget();
    monitor.hears("MONITOR_VM", "VM=[ID=\"0\"", 2);
    monitor.hears("STATE_VM", RUNNING, 1);
    let document = monitor.start(&host).ok();
    assert!(element(&document, "SYSTEM_HOST").contains("DS=[ID=\"104\""), "{document}");
    assert!(element(&document, "MONITOR_VM").contains("VM=[ID=\"0\""));
    let second = monitor.agent().unwrap();
    assert_ne!(first, second);
    monitor.forget();
    monitor.hears("SYSTEM_HOST", "DS=[ID=\"104\"", 1);
    monitor.hears("MONITOR_VM", "VM=[ID=\"0\"", 2);
    // Its threads wait there still.
    monitor.stop(&host).ok();
    assert_eq!(monitor.agent(), None);
    drop(share);
}

/// A command as OpenNebula's driver has it run.
fn exec(host: &Host, monitor: &Monitor, command: &str, stdin: Option<&str>) -> Answer {
    let mut call = Call::recorded(host, "0487-vmm-exec").for_vm(13, 0);
    call.arguments = ["0", "host01", command].map(str::to_owned).into();
    call.arguments.extend(stdin.map(str::to_owned));
    run(host, monitor, &call)
}

fn run(host: &Host, monitor: &Monitor, call: &Call) -> Answer {
    let command = monitor.with_config(host.driver_command(call));
    host.as_user(OPERATOR, &command, &call.stdin)
}

fn decoded(line: &str, key: &str) -> String {
    let (_, rest) = line.split_once(&format!("{key}=\"")).unwrap();
    let bytes = STANDARD.decode(rest.split('"').next().unwrap());
    String::from_utf8(bytes.unwrap()).unwrap()
}

#[test]
fn commands_run_beside_their_caller_and_their_end_is_told() {
    let host = host();
    let monitor = Monitor::listen(&host, 0);
    monitor.start_as(&host, OPERATOR).ok();
    let stdin = STANDARD.encode("hello");
    let answer = exec(&host, &monitor, "cat; echo \"it's\" $HOME >&2; exit 3", Some(&stdin));
    assert_eq!((answer.code, answer.out.as_str()), (0, ""), "{answer:?}");
    let told = monitor.hears("EXEC_VM", "STATUS=\"DONE\",RETURN_CODE=\"3\"", 2);
    assert!(told.starts_with("VM=[ID=\"0\","), "{told}");
    assert_eq!(decoded(&told, "STDOUT"), "hello");
    assert_eq!(decoded(&told, "STDERR"), "it's /root\n");

    // More than the VM's template should hold is cut, and that is said.
    exec(&host, &monitor, "head -c 100000 /dev/zero | tr '\\0' x", None).ok();
    let told = monitor.hears("EXEC_VM", "RETURN_CODE=\"0\"", 1);
    assert_eq!(decoded(&told, "STDOUT").len(), 22 * 1024);
    assert_eq!(decoded(&told, "STDERR"), "\nocivisor: 77472 bytes are left out\n");
    assert!(told.len() < 64 * 1024);

    // One at a time; a cancelled one is gone with all that it began.
    exec(&host, &monitor, "sleep 4321 & sleep 4321", None).ok();
    monitor.hears("EXEC_VM", "STATUS=\"EXECUTING\"", 1);
    let second = exec(&host, &monitor, "true", None);
    assert!(second.code == 1 && second.err.contains("a command runs in it already"), "{second:?}");
    let mut cancel = Call::recorded(&host, "0488-vmm-exec_cancel").for_vm(13, 0);
    cancel.arguments = ["0", "host01"].map(str::to_owned).into();
    run(&host, &monitor, &cancel).ok();
    monitor.hears("EXEC_VM", "STATUS=\"CANCELLED\"", 1);
    wait_for("the end of the command", || {
        let ps = host.cli(&["exec", "one-0", "ps"]).ok();
        if ps.contains("4321") { Err(ps) } else { Ok(()) }
    });
    run(&host, &monitor, &cancel).ok();

    // The guest's end is no end of the command's own, and who holds it on the host may be killed.
    exec(&host, &monitor, "sleep 4322", None).ok();
    let entry = host.dir().join("db/ocivisor/exec/0.json");
    let entry: serde_json::Value = serde_json::from_slice(&std::fs::read(&entry).unwrap()).unwrap();
    monitor.forget();
    tool(&["kill", "-9", &entry["helper"][0].to_string()]);
    let told = monitor.hears("EXEC_VM", "STATUS=\"ERROR\"", 1);
    assert!(decoded(&told, "STDERR").contains("what held this command"), "{told}");
    exec(&host, &monitor, "sleep 4323", None).ok();
    wait_for("the command", || {
        let ps = host.cli(&["exec", "one-0", "ps"]).ok();
        if ps.contains("sleep 4323") { Ok(()) } else { Err(ps) }
    });
    monitor.forget();
    host.cli(&["destroy", "one-0"]).ok();
    let told = monitor.hears("EXEC_VM", "STATUS=\"ERROR\"", 1);
    assert_eq!(decoded(&told, "STDERR"), "ocivisor: the guest ended\n");

    let stopped = exec(&host, &monitor, "true", None);
    assert_eq!(stopped.code, 1);
    assert!(
        stopped.err.contains("Cannot run a command in VM 0: vm one-0 is stopped"),
        "{stopped:?}"
    );
}

#[test]
fn a_guest_without_a_shell_is_named() {
    let host = host();
    let monitor = Monitor::listen(&host, 0);
    monitor.start_as(&host, OPERATOR).ok();
    host.cli(&["exec", "one-0", "rm", "/bin/sh"]).ok();
    exec(&host, &monitor, "true", None).ok();
    let told = monitor.hears("EXEC_VM", "STATUS=\"ERROR\"", 1);
    assert!(decoded(&told, "STDERR").contains("\"/bin/sh\""), "{told}");
}

/// Processor time of a process so far, in milliseconds (fields 14 and 15 of /proc/PID/stat, in hundredths of a second).
fn cpu_ms(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace();
    fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap() * 10).sum()
}

#[test]
#[ignore = "figures, for docs/performance.md: what a thousand VMs cost in each second, when all is told each second"]
fn figures_of_a_thousand_vms() {
    let host = host();
    let disk = host.add_disk(1000).display().to_string();
    for number in 1000..1999 {
        let id = format!("one-{number}");
        host.cli(&["define", &id, "--disk", &disk, "--memory", "64MiB", "-q"]).ok();
    }
    let monitor = Monitor::listen(&host, 0);
    let document = monitor.start(&host).ok();
    assert_eq!(element(&document, "STATE_VM").matches("VM=[").count(), 1000);
    let agent = monitor.agent().unwrap();
    let cost = || (cpu_ms(agent), cpu_ms(host.daemon_pid()));
    monitor.hears("MONITOR_HOST", "", 5);
    let before = cost();
    monitor.hears("MONITOR_HOST", "", 15);
    let after = cost();
    let (agent, daemon) = ((after.0 - before.0) / 10, (after.1 - before.1) / 10);
    println!("1,000 VMs, one of them running: agent {agent} ms, daemon {daemon} ms in each second");
    let size =
        monitor.heard().iter().filter(|h| h.text.starts_with("SYNC")).map(|h| h.text.len()).max();
    println!("states of all: {} bytes before they are packed", size.unwrap_or(0));
    monitor.stop(&host).ok();
}
