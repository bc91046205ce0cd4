//! Two guests, and what each can see and do: ids, namespaces, capabilities, seccomp, devices.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;

use ocivisor_tests::{Call, Host};

fn two_guests() -> Host {
    let host = Host::start();
    let deploy = Call::recorded(&host, "0079-vmm-deploy");
    for vm in 0..2 {
        host.add_disk(vm);
        host.driver(&deploy.clone().for_vm(0, vm)).ok();
    }
    host
}

fn pid(host: &Host, vm: &str) -> u64 {
    host.info(vm).unwrap()["guest"]["init"]["pid"].as_u64().unwrap()
}

fn sh(host: &Host, vm: &str, script: &str) -> ocivisor_tests::Answer {
    host.cli(&["exec", vm, "--", "/bin/sh", "-c", script])
}

#[test]
fn guests_have_ranges_of_their_own_and_cannot_reach_each_other() {
    let host = two_guests();
    let maps: Vec<String> = ["one-0", "one-1"]
        .map(|vm| fs::read_to_string(format!("/proc/{}/uid_map", pid(&host, vm))).unwrap())
        .to_vec();
    assert_ne!(maps[0], maps[1]);
    for (map, vm) in maps.iter().zip(["one-0", "one-1"]) {
        let words: Vec<&str> = map.split_ascii_whitespace().collect();
        let base = host.info(vm).unwrap()["ids"]["base"].as_u64().unwrap();
        assert_eq!(words, ["0", &base.to_string(), "65536"], "one extent, no host id");
    }
    // A file of one guest, owned as the host sees it by an id that the other does not have.
    sh(&host, "one-0", "umask 077; echo secret > /root/s").ok();
    let s = host.run_dir().join("vms/one-0/root/root/s");
    let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(&s).unwrap());
    assert_eq!(u64::from(owner), host.info("one-0").unwrap()["ids"]["base"].as_u64().unwrap());

    // The other guest: joined to its user namespace alone, so that paths and pids of the host are
    // in sight, its root can neither read, nor signal, nor trace.
    let (one, other) = (pid(&host, "one-0").to_string(), pid(&host, "one-1").to_string());
    let as_other = |script: &str| {
        let user = format!("--user=/proc/{other}/ns/user");
        host.in_netns(&["nsenter", &user, "-S", "0", "-G", "0", "sh", "-c", script])
    };
    assert_ne!(as_other(&format!("cat {}", s.display())).code, 0);
    assert_ne!(as_other(&format!("kill -0 {one}")).code, 0);
    assert_ne!(as_other(&format!("cat /proc/{one}/environ")).code, 0);
    assert_eq!(as_other(&format!("kill -0 {other}")).code, 0, "its own it can");
    // And from inside, the other guest's processes do not even exist.
    let ps = sh(&host, "one-1", "ps").ok();
    assert_eq!(ps.matches("sleep 1001").count(), 0);
}

#[test]
fn exec_enters_all_namespaces_of_the_guest() {
    let host = two_guests();
    let names = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];
    let init = pid(&host, "one-0");
    for name in names {
        let want = fs::read_link(format!("/proc/{init}/ns/{name}")).unwrap();
        let got = sh(&host, "one-0", &format!("readlink /proc/self/ns/{name}")).ok();
        assert_eq!(got.trim(), want.to_str().unwrap(), "{name}");
        let ours = fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        assert_ne!(got.trim(), ours.to_str().unwrap(), "{name} is not the host's");
    }
    let init_map = fs::read_to_string(format!("/proc/{init}/uid_map")).unwrap();
    let words = |t: &str| t.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let map = sh(&host, "one-0", "cat /proc/self/uid_map").ok();
    assert_eq!(words(&map)[2], words(&init_map)[2]);
}

#[test]
fn the_guest_is_confined_as_the_profile_says() {
    let host = two_guests();
    let init = pid(&host, "one-0");
    let of_init = fs::read_to_string(format!("/proc/{init}/status")).unwrap();
    let of_exec = sh(&host, "one-0", "cat /proc/self/status").ok();
    let field = |status: &str, name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().to_owned()
    };
    for status in [&of_init, &of_exec] {
        assert_eq!(field(status, "Seccomp:"), "2", "a filter is on");
        assert_eq!(field(status, "NoNewPrivs:"), "1", "an application");
        assert_eq!(field(status, "CapInh:"), "0000000000000000");
        let bounding = u64::from_str_radix(&field(status, "CapBnd:"), 16).unwrap();
        // capabilities(7): SYS_MODULE 16, SYS_RAWIO 17, SYS_TIME 25, MAC_ADMIN 33, SYSLOG 34.
        for capability in [16, 17, 25, 33, 34] {
            assert_eq!(bounding >> capability & 1, 0, "capability {capability}");
        }
    }
    assert_eq!(field(&of_init, "CapBnd:"), field(&of_exec, "CapBnd:"));

    // Links aside: one of them leads to /proc/kcore, if the kernel has that, which is masked.
    let list = "cd /dev; for f in *; do [ -c $f ] && ! [ -h $f ] && echo $f; done; true";
    let devices = sh(&host, "one-0", list).ok();
    let devices: BTreeSet<&str> = devices.lines().collect();
    let want = BTreeSet::from(["console", "full", "null", "random", "tty", "urandom", "zero"]);
    assert_eq!(devices, want);
    assert_ne!(sh(&host, "one-0", "mknod /tmp/sda b 8 0 && cat /tmp/sda").code, 0);
    assert_ne!(sh(&host, "one-0", "echo 1 > /proc/sys/kernel/panic").code, 0);
    let masked = sh(&host, "one-0", "cat /proc/kcore /proc/keys | wc -c").ok();
    assert_eq!(masked.trim(), "0");
}

#[test]
fn no_descriptor_of_the_host_is_open_in_the_guest() {
    let host = two_guests();
    let init = pid(&host, "one-0");
    for entry in fs::read_dir(format!("/proc/{init}/fd")).unwrap() {
        let target = fs::read_link(entry.unwrap().path()).unwrap();
        let target = target.to_str().unwrap().to_owned();
        assert!(target.starts_with("/dev/pts/") || target == "/dev/console", "{target}");
    }
    let listed = sh(&host, "one-0", "ls /proc/self/fd").ok();
    let numbers: Vec<&str> = listed.split_ascii_whitespace().collect();
    assert_eq!(numbers, ["0", "1", "2", "3"], "3 is the directory that ls reads");
}

#[test]
fn limits_are_those_of_the_template() {
    let host = two_guests();
    let init = pid(&host, "one-0");
    let groups = fs::read_to_string(format!("/proc/{init}/cgroup")).unwrap();
    let path = |controller: &str| {
        groups.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (names, path) = (parts.next()?, parts.next()?);
            names.split(',').any(|name| name == controller).then(|| path.to_owned())
        })
    };
    let read = |controller: &str, v1: &str, v2: &str| {
        let file = match path(controller) {
            Some(path) => format!("/sys/fs/cgroup/{controller}{path}/{v1}"),
            None => format!("/sys/fs/cgroup{}/{v2}", path("").unwrap()),
        };
        fs::read_to_string(&file).unwrap().trim().to_owned()
    };
    assert_eq!(read("memory", "memory.limit_in_bytes", "memory.max"), (256 << 20).to_string());
    assert_eq!(read("pids", "pids.max", "pids.max"), "4096");
    let quota = read("cpu", "cpu.cfs_quota_us", "cpu.max");
    assert!(["100000", "100000 100000"].contains(&quota.as_str()), "{quota}");
    // The disk's size is a hard limit, and the guest sees it.
    let df = sh(&host, "one-0", "df -m / | tail -n 1").ok();
    let total: u64 = df.split_ascii_whitespace().nth(1).unwrap().parse().unwrap();
    assert!((40..=64).contains(&total), "{df}");
    let full = sh(&host, "one-0", "dd if=/dev/zero of=/fill bs=1M count=200");
    assert!(full.err.contains("No space left"), "{full:?}");
}

#[test]
fn what_a_guest_uses_up_is_counted_against_an_id_of_its_own() {
    let host = two_guests();
    // ioctl_nsfs(2), NS_GET_OWNER_UID: the id on the host that inotify instances, namespaces and the
    // like of everybody in the namespace are counted against as well. Root's would be everybody's.
    let script = "import fcntl, struct, sys; b = bytearray(4); \
                  fcntl.ioctl(open(sys.argv[1]), 0xb704, b); print(struct.unpack('I', b)[0])";
    for vm in ["one-0", "one-1"] {
        let ns = host.run_dir().join(format!("vms/{vm}/ns/user")).display().to_string();
        let owner = ocivisor_tests::tool(&["python3", "-c", script, &ns]);
        let base = host.info(vm).unwrap()["ids"]["base"].to_string();
        assert_eq!(owner.trim(), base);
    }
}

#[test]
fn a_guest_has_so_many_namespaces_and_no_more() {
    let host = two_guests();
    for kind in ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"] {
        let file = format!("/proc/sys/user/max_{kind}_namespaces");
        assert_eq!(sh(&host, "one-0", &format!("cat {file}")).ok(), "4096\n", "{kind}");
        assert_ne!(sh(&host, "one-0", &format!("echo 9999 > {file}")).code, 0, "{kind}");
    }
}
