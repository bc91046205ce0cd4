//! Guests under the security modules of a host that has them. That of the machine which runs all other
//! tests need not, so these are run by `cargo xtask test --vm`: its kernel has AppArmor, and SELinux in
//! its place with `--selinux`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::fs;
use std::time::Duration;

use ocivisor_tests::{Host, repository, tool, wait_for_option};

const PROFILE: &str = "ocivisor-guest";

/// A guest that sleeps, of that isolation.
fn boot(host: &Host, number: u32, isolation: &str) -> String {
    let (vm, disk) = (format!("vm-{number}"), host.add_disk(number));
    let isolation = format!("--isolation={isolation}");
    let define = ["define", &vm, "--disk", disk.to_str().unwrap(), "--memory", "128M", &isolation];
    host.cli(&[&define[..], &["--", "sleep", "1002"]].concat()).ok();
    host.cli(&["start", &vm]).ok();
    vm
}

fn sh(host: &Host, vm: &str, script: &str) -> String {
    host.cli(&["exec", vm, "--", "/bin/sh", "-c", script]).ok().trim().to_owned()
}

/// The label of a guest's first process, as the host sees it.
fn label(host: &Host, vm: &str) -> String {
    label_of(host.info(vm).unwrap()["guest"]["init"]["pid"].as_u64().expect("a running guest"))
}

fn label_of(pid: u64) -> String {
    let label = fs::read_to_string(format!("/proc/{pid}/attr/current")).unwrap();
    label.trim_end_matches(['\n', '\0']).to_owned()
}

/// The process on this host that sleeps so long.
fn sleeper(seconds: &str) -> Option<u64> {
    let wanted = format!("sleep\0{seconds}\0");
    let pids = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<u64>().ok());
    // One that ended meanwhile has no command any more.
    pids.into_iter().find(|pid| {
        fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|text| text == wanted)
    })
}

#[test]
#[ignore = "needs AppArmor: cargo xtask test --vm apparmor"]
fn apparmor_confines_each_process_of_a_guest() {
    let file = repository().join("src/daemon/apparmor").join(PROFILE).display().to_string();
    // The VM loads it for all tests.
    tool(&["apparmor_parser", "-R", &file]);
    let profiles = r#"isolation = ["strict", "default", "nested", "privileged"]"#;
    let host = Host::start_with(&format!("apparmor = \"required\"\n{profiles}"));
    let disk = host.add_disk(1);
    let define = ["define", "vm-1", "--disk", disk.to_str().unwrap(), "--memory", "128M"];
    host.cli(&[&define[..], &["--", "sleep", "1002"]].concat()).ok();
    let before = host.counts();
    let refused = host.cli(&["start", "vm-1"]);
    assert_eq!(refused.code, 8, "{refused:?}");
    assert!(
        refused.err.contains("the AppArmor profile ocivisor-guest is not loaded"),
        "{refused:?}"
    );
    assert!(refused.err.contains("apparmor_parser -r"), "{refused:?}");
    assert_eq!(host.counts(), before);

    tool(&["apparmor_parser", "-r", &file]);
    host.cli(&["start", "vm-1"]).ok();
    let confined = format!("{PROFILE} (enforce)");
    let own = "cat /proc/self/attr/current";
    assert_eq!(label(&host, "vm-1"), confined);
    assert_eq!(sh(&host, "vm-1", own), confined, "sessions are confined as well");
    for (number, isolation) in [(2, "strict"), (3, "nested")] {
        let vm = boot(&host, number, isolation);
        assert_eq!((label(&host, &vm), sh(&host, &vm, own)), (confined.clone(), confined.clone()));
    }
    // What namespaces leave readable the profile does not.
    let shown = host.cli(&["exec", "vm-3", "--", "cat", "/dev/.ocivisor/proc/kallsyms"]);
    assert_ne!(shown.code, 0, "{shown:?}");
    assert!(shown.err.contains("Permission denied"), "{shown:?}");
    // It may not leave it.
    let leave = "echo -n 'changeprofile unconfined' > /proc/self/attr/current";
    assert_ne!(host.cli(&["exec", "vm-3", "--", "sh", "-c", leave]).code, 0);

    // Nor does it lead a session astray with files of its own where labels are set (CVE-2025-52881).
    let fake = "for at in self thread-self; do mkdir -p /x/$at/attr/apparmor; \
                touch /x/$at/attr/exec /x/$at/attr/apparmor/exec; done; mount -o bind /x /proc";
    sh(&host, "vm-3", fake);
    let session = host.cli_command(&["exec", "vm-3", "--", "sleep", "1003"]).spawn();
    let mut session = session.unwrap();
    let pid = wait_for_option(Duration::from_mins(1), || sleeper("1003")).expect("the session");
    assert_eq!(label_of(pid), confined);
    host.cli(&["destroy", "vm-3"]).ok();
    session.wait().unwrap();

    let free = boot(&host, 4, "privileged");
    assert_eq!(label(&host, &free), "unconfined");
    assert_eq!(sh(&host, &free, own), "unconfined");
}

#[test]
#[ignore = "needs SELinux: cargo xtask test --vm --selinux selinux"]
fn selinux_labels_each_process_and_file_of_a_guest_with_categories_of_its_own() {
    let host = Host::start_with("selinux = \"required\"\n");
    let (one, two) = (boot(&host, 1, "default"), boot(&host, 2, "strict"));
    let labels = [label(&host, &one), label(&host, &two)];
    let levels = labels.each_ref().map(|label| {
        label.strip_prefix("system_u:system_r:container_t:").unwrap_or_else(|| panic!("{label}"))
    });
    assert_ne!(levels[0], levels[1]);
    for (vm, label, level) in [(&one, &labels[0], levels[0]), (&two, &labels[1], levels[1])] {
        assert_eq!(sh(&host, vm, "cat /proc/self/attr/current").trim_end_matches('\0'), label);
        // Its root, what it writes there, and what is made anew at each boot.
        let root = host.run_dir().join("vms").join(vm).join("root");
        sh(&host, vm, "echo x > /written");
        for path in [root.join("bin"), root.join("written")] {
            let seen = tool(&["stat", "-c", "%C", path.to_str().unwrap()]);
            assert_eq!(seen.trim(), format!("system_u:object_r:container_file_t:{level}"));
        }
        let mounts = sh(&host, vm, "cat /proc/mounts");
        let dev = mounts.lines().find(|line| line.contains(" /dev tmpfs ")).unwrap();
        assert!(dev.contains(&format!("container_file_t:{level}")), "{dev}");
    }
}
