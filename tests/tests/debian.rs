//! A real Debian root filesystem, made by mmdebstrap, as a system: systemd is process 1.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use ocivisor_tests::{Call, Host, wait_for};

#[test]
fn a_debian_system_boots_by_a_recorded_deploy_takes_commands_and_shuts_down() {
    let tar = std::env::var("OCIVISOR_TEST_SYSTEMD_TAR");
    let tar = tar.expect("OCIVISOR_TEST_SYSTEMD_TAR is not set: use `cargo xtask test`");
    let host = Host::start();
    host.cli(&["image", "import", &format!("rootfs:{tar}"), "debian"]).ok();
    let disk = host.vm_dir(10).join("disk.0").display().to_string();
    host.cli(&["disk", "create", "--image", "debian", "--size", "1GiB", &disk]).ok();
    let before = host.counts();
    let deploy = Call::recorded(&host, "0360-vmm-deploy")
        .with("<MEMORY><![CDATA[128]]>", "<MEMORY><![CDATA[512]]>");
    assert_eq!(host.driver(&deploy).ok(), "one-10\n");
    let exec = |command: &[&str]| host.cli(&[&["exec", "one-10", "--"], command].concat());
    wait_for("systemd's target", || {
        let state = exec(&["systemctl", "is-system-running"]).out;
        match state.trim() {
            "running" => Ok(()),
            "degraded" => panic!("{}", exec(&["systemctl", "--failed", "--no-pager"]).out),
            other => Err(other.to_owned()),
        }
    });
    assert_eq!(exec(&["cat", "/proc/1/comm"]).ok(), "systemd\n");
    // Programs with an interest in the audit log do without: it is none of a guest's.
    exec(&["useradd", "--create-home", "somebody"]).ok();
    assert_eq!(exec(&["su", "--login", "--command=id -un", "somebody"]).ok(), "somebody\n");
    let journal = exec(&["journalctl", "--no-pager", "-n", "5"]).ok();
    assert!(!journal.trim().is_empty());
    let info = host.info("one-10").unwrap();
    assert_eq!(info["guest"]["kind"], "system");

    // systemd halts on its own signal, well before the time is over.
    let began = std::time::Instant::now();
    host.driver(&Call::recorded(&host, "0083-vmm-shutdown").for_vm(0, 10)).ok();
    assert!(began.elapsed().as_secs() < 100, "it was ended by force");
    assert_eq!(host.counts(), before);
}
