//! The system call filter and the device list as a guest's root meets them.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeMap;

use common::Guest;
use common::session::run;

const EPERM: i32 = 1;
const EBADF: i32 = 9;
const EFAULT: i32 = 14;
const EINVAL: i32 = 22;
const ENOSYS: i32 = 38;
const EPROTONOSUPPORT: i32 = 93;
const ESOCKTNOSUPPORT: i32 = 94;
const EAFNOSUPPORT: i32 = 97;

fn probe(guest: &Guest) -> BTreeMap<String, i32> {
    let done = run(guest, "probe", serde_json::json!({"argv": ["/bin/probe"]}));
    assert_eq!((done.code, done.err.as_str()), (Some(0), ""));
    let pairs = done.out.lines().map(|line| line.split_once(' ').unwrap());
    pairs.map(|(name, errno)| (name.to_owned(), errno.parse().unwrap())).collect()
}

fn check_common(got: &BTreeMap<String, i32>) {
    for name in [
        "bpf",
        "io_uring_setup",
        "userfaultfd",
        "perf_event_open",
        "keyctl",
        "add_key",
        "request_key",
        "kexec_load",
        "init_module",
        "finit_module",
        "open_by_handle_at",
        "settimeofday",
        "swapon",
        "syslog",
        "unshare-user",
        "unshare-user-and-more",
        "clone-user",
    ] {
        assert_eq!(got[name], EPERM, "{name}");
    }
    for name in ["clone3", "unknown", "socket-x25"] {
        assert_eq!(got[name], ENOSYS, "{name}");
    }
    for name in ["alg", "vsock", "smc", "xdp", "rds"] {
        assert_eq!(got[&format!("socket-{name}")], EAFNOSUPPORT, "{name}");
    }
    for name in ["mptcp", "mptcp6", "smc-of-inet", "sctp", "l2tp", "udplite"] {
        assert_eq!(got[&format!("socket-{name}")], EPROTONOSUPPORT, "{name}");
    }
    for name in ["audit", "xfrm", "crypto", "netlink-31"] {
        assert_eq!(got[&format!("socket-{name}")], EPROTONOSUPPORT, "{name}");
    }
    for name in ["sctp-seqpacket", "dccp", "packet-of-inet"] {
        assert_eq!(got[&format!("socket-{name}")], ESOCKTNOSUPPORT, "{name}");
    }
    assert_eq!(got["socket-raw-mptcp"], ENOSYS);
    assert_eq!(got["rubbish-family"], EAFNOSUPPORT);
    for name in ["rubbish-type", "rubbish-protocol"] {
        assert_eq!(got[name], EPROTONOSUPPORT, "{name}");
    }
    for name in ["unix", "unix-seqpacket", "inet", "inet6", "tcp", "tcp6", "udp", "udp6"] {
        assert_eq!(got[&format!("socket-{name}")], 0, "{name}");
    }
    for name in ["raw-icmp", "raw-icmp6", "raw-vrrp", "netlink", "uevent"] {
        assert_eq!(got[&format!("socket-{name}")], 0, "{name}");
    }
    assert_eq!(got["unshare-files"], 0);
}

#[test]
fn an_application_meets_a_closed_kernel() {
    for engine in ["embedded", "runc"] {
        let mut guest = Guest::script("echo up; /bin/probe; echo end; sleep 1000");
        guest.program("probe");
        guest.boot_until(engine, "end");
        let got = probe(&guest);
        check_common(&got);
        for name in ["mount", "fsopen", "setns", "pivot_root", "sethostname", "reboot"] {
            assert_eq!(got[name], EPERM, "{name}");
        }
        assert_eq!(got["socket-packet"], EAFNOSUPPORT);
        for name in ["diag", "netfilter", "generic"] {
            assert_eq!(got[&format!("socket-{name}")], EPROTONOSUPPORT, "{name}");
        }
        // The first process has the same filter as a session.
        let console = guest.console();
        for (name, errno) in got {
            assert!(console.contains(&format!("{name} {errno}\n")), "{name} on {console}");
        }
    }
}

#[test]
fn a_system_may_mount_and_reboot_but_reaches_no_raw_kernel_interface() {
    let mut guest = Guest::new(&["/bin/sh"]);
    std::os::unix::fs::symlink("../bin/busybox", guest.root().join("sbin/init")).unwrap();
    guest.file("etc/inittab", "::sysinit:/etc/init.d/rcS\n");
    guest.file("etc/init.d/rcS", "#!/bin/sh\n/bin/probe\necho booted\n");
    guest.program("probe");
    guest.boot_until("embedded", "booted");
    let got = probe(&guest);
    check_common(&got);
    for (name, errno) in [
        ("mount", EFAULT),
        ("fsopen", EFAULT),
        ("setns", EBADF),
        ("pivot_root", EFAULT),
        ("sethostname", 0),
        ("reboot", EINVAL),
        ("socket-packet", 0),
        ("socket-diag", 0),
        ("socket-netfilter", 0),
        ("socket-generic", 0),
    ] {
        assert_eq!(got[name], errno, "{name}");
    }
    let console = guest.console();
    for (name, errno) in got {
        assert!(console.contains(&format!("{name} {errno}\n")), "{name} on {console}");
    }
}
