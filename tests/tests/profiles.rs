//! Profiles of confinement, seen from inside; and who is granted which.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use ocivisor_tests::{Answer, Call, Counts, Host};

/// A host that grants all profiles, and a guest of that one, which sleeps.
fn guest(isolation: &str) -> Host {
    let host =
        Host::start_with("isolation = [\"strict\", \"default\", \"nested\", \"privileged\"]");
    let disk = host.add_disk(1);
    let disk = disk.to_str().unwrap();
    let isolation = format!("--isolation={isolation}");
    let define = ["define", "web", "--disk", disk, "--memory", "128M", &isolation];
    host.cli(&[&define[..], &["--", "sleep", "1001"]].concat()).ok();
    host.cli(&["start", "web"]).ok();
    host
}

fn sh(host: &Host, script: &str) -> Answer {
    host.cli(&["exec", "web", "--", "/bin/sh", "-c", script])
}

/// A field of /proc/self/status in the guest.
fn status(host: &Host, field: &str) -> String {
    let line = sh(host, &format!("grep ^{field}: /proc/self/status")).ok();
    line.split_ascii_whitespace().nth(1).unwrap().to_owned()
}

#[test]
fn a_strict_guest_has_eight_capabilities_and_cannot_debug_or_make_raw_sockets() {
    let host = guest("strict");
    // capabilities(7): CHOWN 0, DAC_OVERRIDE 1, FOWNER 3, FSETID 4, KILL 5, SETGID 6, SETUID 7,
    // NET_BIND_SERVICE 10.
    let want: u64 = [0, 1, 3, 4, 5, 6, 7, 10].iter().map(|bit| 1 << bit).sum();
    assert_eq!(u64::from_str_radix(&status(&host, "CapBnd"), 16).unwrap(), want);
    assert_eq!((status(&host, "NoNewPrivs"), status(&host, "Seccomp")), ("1".into(), "2".into()));
    for refused in ["ping -c 1 127.0.0.1", "chroot / true", "unshare -m true", "unshare -U true"] {
        assert_ne!(sh(&host, refused).code, 0, "{refused}");
    }
    // What an application does all day.
    sh(&host, "echo x > /tmp/x; chown 7:7 /tmp/x && chmod 0600 /tmp/x && cat /tmp/x").ok();
}

#[test]
fn container_engines_find_what_they_need_in_a_nested_guest_only() {
    // New namespaces, a new /proc and /sys in them, and a file system of one's own.
    let needs = "unshare -m -p -f sh -c 'mount -t proc proc /proc && mount -t tmpfs t /tmp && ls /proc/1 >/dev/null'";
    let (nested, default) = (guest("nested"), guest("default"));
    sh(&nested, needs).ok();
    sh(&nested, "unshare -U true").ok();
    assert_ne!(sh(&default, needs).code, 0);
    assert_ne!(sh(&default, "unshare -U true").code, 0);
    // What shows or steers the host stays out of sight, and out of reach.
    assert_eq!(sh(&nested, "cat /proc/kcore | wc -c").ok().trim(), "0");
    for refused in [
        "echo 1 > /proc/sys/kernel/panic",
        "echo 1 > /dev/.ocivisor/proc/sys/kernel/panic",
        "echo b > /dev/.ocivisor/proc/sysrq-trigger",
        "mknod /tmp/sda b 8 0",
        "mount -t ext4 /dev/loop0 /tmp",
    ] {
        assert_ne!(sh(&nested, refused).code, 0, "{refused}");
    }
}

#[test]
fn a_privileged_guest_is_root_of_its_own_namespace_only() {
    let host = guest("privileged");
    assert_eq!(status(&host, "Seccomp"), "0");
    assert_eq!(status(&host, "CapBnd"), "000001ffffffffff");
    let map = sh(&host, "cat /proc/self/uid_map").ok();
    let words: Vec<&str> = map.split_ascii_whitespace().collect();
    assert_eq!((words[0], words[2]), ("0", "65536"));
    assert_ne!(words[1], "0");
    for refused in [
        "echo 1 > /proc/sys/kernel/panic",
        "echo b > /proc/sysrq-trigger",
        "mknod /tmp/sda b 8 0",
        "dmesg | grep .",
        "hwclock -w",
    ] {
        assert_ne!(sh(&host, refused).code, 0, "{refused}");
    }
}

#[test]
fn a_profile_that_is_not_granted_is_refused_in_one_sentence_and_nothing_is_left() {
    let host = Host::start();
    host.add_disk(0);
    let before = Counts::of(&host);
    let deploy = Call::recorded(&host, "0079-vmm-deploy");
    let asks = deploy.with("<OCI>", "<OCI><ISOLATION>nested</ISOLATION>");
    let answer = host.driver(&asks);
    assert_ne!(answer.code, 0);
    let want = "Cannot deploy VM 0: this host grants no isolation nested";
    assert!(answer.err.contains(want), "{answer:?}");
    assert_eq!(host.info("one-0"), None);
    assert_eq!(Counts::of(&host), before);
}
