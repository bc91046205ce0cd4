//! The second implementation of the runtime's port: the installed runc makes the guests.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use ocivisor_tests::{Call, Host};

#[test]
fn a_guest_made_by_runc_lives_and_ends_as_one_of_our_own() {
    let host = Host::start_with("runtime = \"runc\"\n");
    host.add_disk(0);
    let before = host.counts();
    host.driver(&Call::recorded(&host, "0079-vmm-deploy")).ok();
    assert_eq!(host.cli(&["exec", "one-0", "--", "hostname"]).ok(), "web1\n");
    host.in_netns(&["ping", "-c1", "-W5", "192.168.100.10"]).ok();
    let pid = host.info("one-0").unwrap()["guest"]["init"]["pid"].to_string();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("Seccomp:\t2") && status.contains("NoNewPrivs:\t1"), "{status}");
    host.driver(&Call::recorded(&host, "0082-vmm-reset")).ok();
    assert_ne!(host.info("one-0").unwrap()["guest"]["init"]["pid"].to_string(), pid);
    host.driver(&Call::recorded(&host, "0083-vmm-shutdown")).ok();
    assert_eq!(host.counts(), before);
}
