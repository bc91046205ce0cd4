//! The VNC console of guests, as a stock client sees it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, reason = "tests")]

use std::fs;

use ocivisor_tests::{Answer, Call, Host, Viewer, tool, wait_for};
use serde_json::Value;

/// What [`deploy`] asks for.
const PASSWORD: &str = "s3cr3t-8";
const GRAPHICS: &str = "<GRAPHICS><KEYMAP><![CDATA[de]]></KEYMAP><LISTEN><![CDATA[127.0.0.1]]></LISTEN>\
    <PASSWD><![CDATA[s3cr3t-8]]></PASSWD><PORT><![CDATA[5942]]></PORT><TYPE><![CDATA[VNC]]></TYPE></GRAPHICS>";

/// A guest that answers each line.
fn deploy(host: &Host) -> Call {
    let recorded = "<GRAPHICS><LISTEN><![CDATA[0.0.0.0]]></LISTEN><PORT><![CDATA[5900]]></PORT>\
                    <TYPE><![CDATA[VNC]]></TYPE></GRAPHICS>";
    Call::recorded(host, "0079-vmm-deploy")
        .with(recorded, GRAPHICS)
        .with("sleep 1000", "echo ready; while read line; do echo got $line; done")
}

fn init(info: &Value) -> u64 {
    info["guest"]["init"]["pid"].as_u64().expect("a running guest")
}

fn record(host: &Host, vm: &str) -> Option<Value> {
    let bytes = fs::read(host.run_dir().join("vms").join(vm).join("vnc.json")).ok()?;
    Some(serde_json::from_slice(&bytes).unwrap())
}

fn keeper(host: &Host, vm: &str) -> u64 {
    record(host, vm).expect("a display")["vnc"]["pid"].as_u64().unwrap()
}

fn listeners(host: &Host) -> String {
    host.in_netns(&["ss", "-Hltn", "sport", "=", ":5942"]).ok()
}

#[test]
fn a_stock_client_logs_into_a_debian_system() {
    let tar = std::env::var("OCIVISOR_TEST_SYSTEMD_TAR");
    let tar = tar.expect("OCIVISOR_TEST_SYSTEMD_TAR is not set: use `cargo xtask test`");
    let host = Host::start();
    host.cli(&["image", "import", &format!("rootfs:{tar}"), "debian"]).ok();
    let disk = host.vm_dir(10).join("disk.0").display().to_string();
    host.cli(&["disk", "create", "--image", "debian", "--size", "1GiB", &disk]).ok();
    let before = host.counts();
    let deploy = Call::recorded(&host, "0360-vmm-deploy")
        .with("<MEMORY><![CDATA[128]]>", &format!("{GRAPHICS}<MEMORY><![CDATA[512]]>"));
    assert_eq!(host.driver(&deploy).ok(), "one-10\n");

    assert!(Viewer::connect(&host, 5942, "wrong").is_none(), "a wrong password");
    let mut viewer = Viewer::connect(&host, 5942, PASSWORD).expect("the password");
    viewer.shows(" login:");
    let mut chpasswd = host.cli_command(&["exec", "-i", "one-10", "--", "chpasswd"]);
    let mut chpasswd = chpasswd.stdin(std::process::Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut chpasswd.stdin.take().unwrap(), b"root:Blume3\n").unwrap();
    assert!(chpasswd.wait().unwrap().success());
    viewer.type_text("root\n");
    viewer.shows("Password:");
    viewer.type_text("Blume3\n");
    viewer.shows("~#");
    viewer.type_text("echo $((6 * 7)) on $(tty), $TERM\n");
    viewer.shows("42 on /dev/");

    // One console: what is typed here is in its log as well.
    assert!(host.cli(&["logs", "one-10"]).ok().contains("42 on /dev/"));
    host.driver(&Call::recorded(&host, "0119-vmm-cancel").for_vm(2, 10)).ok();
    assert_eq!(listeners(&host), "");
    assert_eq!(host.counts(), before);
}

#[test]
fn a_session_outlives_the_daemon_a_reboot_and_ends_with_the_vm() {
    let mut host = Host::start();
    host.add_disk(0);
    let before = host.counts();
    host.driver(&deploy(&host)).ok();
    let (guest, display) = (init(&host.info("one-0").unwrap()), keeper(&host, "one-0"));
    let mut viewer = Viewer::connect(&host, 5942, PASSWORD).unwrap();
    viewer.shows("ready\n");

    host.kill_daemon();
    viewer.type_text("without a daemon\n");
    viewer.shows("got without a daemon\n");
    host.start_daemon();
    viewer.type_text("with another\n");
    viewer.shows("got with another\n");
    assert_eq!(init(&host.info("one-0").unwrap()), guest);
    assert_eq!(keeper(&host, "one-0"), display);

    // The next boot is seen by the same session.
    host.driver(&Call::recorded(&host, "0081-vmm-reboot")).ok();
    assert_ne!(init(&host.info("one-0").unwrap()), guest);
    assert_eq!(keeper(&host, "one-0"), display);
    viewer.shows("ready\n");
    wait_for("an answer of the new guest", || {
        viewer.type_text("again\n");
        let text = viewer.read();
        if text.contains("got again\n") { Ok(()) } else { Err(text) }
    });

    host.driver(&Call::recorded(&host, "0083-vmm-shutdown")).ok();
    wait_for("the end of the session", || if viewer.is_connected() { Err(()) } else { Ok(()) });
    assert_eq!(listeners(&host), "");
    assert_eq!(host.counts(), before);
}

#[test]
fn a_display_that_is_killed_comes_back_and_the_guest_does_not_notice() {
    let mut host = Host::start();
    host.add_disk(0);
    let before = host.counts();
    host.driver(&deploy(&host)).ok();
    let guest = init(&host.info("one-0").unwrap());
    let killed = |host: &Host| {
        let old = keeper(host, "one-0");
        tool(&["kill", "-KILL", &old.to_string()]);
        old
    };
    let back = |host: &Host, old: u64| {
        wait_for("another display", || match record(host, "one-0") {
            Some(record) if record["vnc"]["pid"] != old => Ok(()),
            record => Err(record),
        });
        Viewer::connect(host, 5942, PASSWORD).expect("the same password").shows("ready\n");
        assert_eq!(init(&host.info("one-0").unwrap()), guest);
    };
    let old = killed(&host);
    back(&host, old);
    // While nobody watches.
    host.kill_daemon();
    let old = killed(&host);
    host.start_daemon();
    back(&host, old);
    host.driver(&Call::recorded(&host, "0119-vmm-cancel").for_vm(2, 0)).ok();
    assert_eq!(host.counts(), before);
}

#[test]
fn a_display_that_came_late_is_watched_as_any_other() {
    let mut host = Host::start();
    host.add_disk(0);
    host.driver(&deploy(&host)).ok();
    host.kill_daemon();
    // None but who watches shall see it.
    let config = host.dir().join("c.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("reconcile_seconds = 3600\n{text}")).unwrap();
    let killed = |host: &Host| {
        let old = keeper(host, "one-0");
        tool(&["kill", "-KILL", &old.to_string()]);
        old
    };
    let another_than = |host: &Host, old: u64| {
        wait_for("another display", || match record(host, "one-0") {
            Some(record) if record["vnc"]["pid"] != old => Ok(()),
            record => Err(record),
        });
        // Its record is there before the daemon knows of it: who ends it between the two makes the
        // daemon's attempt fail, and none follows. What greets has told.
        wait_for("its greeting", || Viewer::connect(host, 5942, PASSWORD).map(drop).ok_or(()));
    };
    let old = killed(&host);
    host.in_netns(&["ip", "address", "del", "127.0.0.1/8", "dev", "lo"]).ok();
    host.start_daemon();
    wait_for("a display that cannot be made", || match host.daemon_log() {
        log if log.contains("this host has no address 127.0.0.1") => Ok(()),
        log => Err(log),
    });
    host.in_netns(&["ip", "address", "add", "127.0.0.1/8", "dev", "lo"]).ok();
    // The VM is looked at when its disk was read.
    let tar = host.dir().join("out.tar").display().to_string();
    host.cli(&["image", "export", "--vm", "one-0", "-f", &tar]).ok();
    another_than(&host, old);
    for _ in 0..2 {
        let old = killed(&host);
        another_than(&host, old);
    }
    Viewer::connect(&host, 5942, PASSWORD).expect("the same password").shows("ready\n");
    host.driver(&Call::recorded(&host, "0119-vmm-cancel").for_vm(2, 0)).ok();
}

#[test]
fn a_port_that_is_taken_fails_the_deploy_and_leaves_nothing() {
    let host = Host::start();
    host.add_disk(0);
    host.add_disk(1);
    let none = host.counts();
    host.driver(&deploy(&host)).ok();
    let one = host.counts();
    let Answer { code, out, err } = host.driver(&deploy(&host).for_vm(0, 1));
    assert_eq!((code, out.as_str()), (1, ""), "{err}");
    let sentence = err.lines().find(|line| !line.starts_with("INFO: ")).unwrap();
    assert_eq!(
        sentence,
        "Cannot deploy VM 1: vnc of vm one-1: port 5942 of 127.0.0.1 is in use; \
         `ss -ltnp` shows by whom."
    );
    assert_eq!(host.info("one-1"), None);
    assert_eq!(host.counts(), one);
    host.driver(&Call::recorded(&host, "0083-vmm-shutdown")).ok();
    assert_eq!(host.counts(), none);
}

#[test]
fn a_password_is_where_it_must_be_and_nowhere_else() {
    let host = Host::start();
    host.add_disk(0);
    let file = host.dir().join("pw");
    fs::write(&file, format!("{PASSWORD}\n")).unwrap();
    let disk = host.vm_dir(0).join("disk.0").display().to_string();
    let vnc = format!("127.0.0.1:5942,password-file={}", file.display());
    let define = ["define", "web", "--disk", &disk, "--memory", "64M", "--vnc", &vnc];
    host.cli(&[&define[..], &["--", "sleep", "1000"]].concat()).ok();
    host.cli(&["start", "web"]).ok();
    assert!(Viewer::connect(&host, 5942, PASSWORD).is_some());

    let info = host.cli(&["info", "web"]).ok();
    assert!(info.contains("127.0.0.1:5942, with a password"), "{info}");
    let mut told = vec![("info", info), ("log", host.daemon_log())];
    for words in
        [&["info", "web", "-o", "json"][..], &["list", "-o", "json"], &["events", "--since", "0"]]
    {
        told.push((words[0], host.cli(words).ok()));
    }
    let keeper = keeper(&host, "web");
    let children = fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).unwrap();
    let server = children.trim().to_owned();
    for pid in [&keeper.to_string(), &server] {
        for file in ["cmdline", "environ"] {
            let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap();
            told.push((file, String::from_utf8_lossy(&bytes).into_owned()));
        }
    }
    told.push(("record", record(&host, "web").unwrap().to_string()));
    for (what, text) in told {
        assert!(!text.contains(PASSWORD), "{what}: {text}");
    }

    // Who faces the network is the last id of the VM's own range.
    let base = host.info("web").unwrap()["ids"]["base"].as_u64().unwrap();
    let status = fs::read_to_string(format!("/proc/{server}/status")).unwrap();
    let last = base + 65_535;
    assert!(status.contains(&format!("\nUid:\t{last}\t{last}\t{last}\t{last}\n")), "{status}");
    assert!(status.contains("\nCapEff:\t0000000000000000\n"), "{status}");
    host.cli(&["destroy", "web"]).ok();
    assert_eq!(listeners(&host), "");
}
