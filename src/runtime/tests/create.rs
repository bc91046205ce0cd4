//! `create` on the real kernel, by both engines.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests")]

mod common;

use std::fs;

use common::{Guest, eventually, field};
use ocivisor_core::state::GuestKind;

/// Everything that a guest can tell about its confinement.
const REPORT: &str = r#"
echo "uid_map:" $(cat /proc/self/uid_map)
grep -E '^(Cap|Seccomp:|NoNewPrivs|Sig(Blk|Ign)|Groups)' /proc/self/status
echo "hostname:" $(hostname)
echo "dev:" $(ls /dev)
echo "fds:" $(ls /proc/self/fd)
echo "keys:" $(cat /proc/keys | wc -c)
echo "umask:" $(umask)
echo "nofile:" $(ulimit -n) $(ulimit -Hn)
echo "oom:" $(cat /proc/self/oom_score_adj)
echo "cgroup:" $(cat /proc/self/cgroup)
echo "env:" $FROM $HOSTNAME $HOME $TERM
echo "tty:" $(tty)
echo "sysctl:" $(echo 1 2>&1 >/proc/sys/kernel/panic | grep -o 'Read-only file system')
echo "mkdir:" $(mkdir /sys/x 2>&1 | grep -o 'Read-only file system')
echo "unshare:" $(unshare -U true 2>&1)
echo "mount:" $(mount -t tmpfs x /tmp 2>&1)
echo "mknod:" $(mknod /tmp/d b 8 0 2>&1)
echo "pids:" $(ls /proc | grep -c '^[0-9]')
echo "cwd:" $(pwd)
echo done
sleep 1000
"#;

fn check_application(engine: &str) {
    let mut guest = Guest::script(REPORT);
    guest.file("bin/mkdir", "#!/bin/busybox sh\nexec /bin/busybox mkdir \"$@\"\n");
    let facts = guest.write_bundle();
    assert_eq!((facts.kind, facts.stop_signal), (GuestKind::Application, 15));
    guest.boot_until(engine, "\ndone");
    let base = guest.ids.base;
    assert_eq!(guest.said("uid_map"), format!("0 {base} 65536"));
    // CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE NET_RAW
    // SYS_CHROOT AUDIT_WRITE SETFCAP
    let want: u64 = [0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 29, 31].iter().map(|bit| 1 << bit).sum();
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        assert_eq!(guest.said(set), format!("{want:016x}"), "{set}");
    }
    for set in ["CapInh", "CapAmb", "SigBlk"] {
        assert_eq!(guest.said(set), "0000000000000000", "{set}");
    }
    if engine == "embedded" {
        assert_eq!(guest.said("SigIgn"), "0000000000000000");
    }
    assert_eq!(guest.said("Seccomp"), "2");
    assert_eq!(guest.said("NoNewPrivs"), "1");
    assert_eq!(guest.said("Groups"), "");
    assert_eq!(guest.said("hostname"), "guest-1");
    let devices = guest.said("dev");
    // /dev/core is there if the host's kernel has /proc/kcore.
    assert_eq!(
        devices.replace(" core ", " "),
        "console fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"
    );
    assert_eq!(guest.said("fds"), "0 1 2 3", "3 is the listing itself");
    assert_eq!(guest.said("keys"), "0");
    assert_eq!(guest.said("umask"), "0022");
    assert_eq!(guest.said("env"), "image guest-1 /root xterm");
    assert_eq!(guest.said("tty"), "/dev/pts/0");
    assert_eq!(guest.said("sysctl"), "Read-only file system");
    assert_eq!(guest.said("mkdir"), "Read-only file system");
    assert!(guest.said("unshare").contains("Operation not permitted"));
    assert!(
        guest.said("mount").contains("ermission denied")
            || guest.said("mount").contains("not permitted")
    );
    assert!(guest.said("mknod").contains("Operation not permitted"));
    assert_eq!(guest.said("cwd"), "/");
    let cgroups = guest.said("cgroup");
    assert!(cgroups.split(' ').all(|line| line.ends_with(":/")), "{cgroups}");

    // As the host sees it: in every group of the guest, with limits as they were.
    let init = guest.init.unwrap();
    let seen = fs::read_to_string(format!("/proc/{init}/cgroup")).unwrap();
    // Hierarchies that are not mounted where this runs do not count.
    let hybrid = Guest::hierarchies().len() > 1;
    let mut lines = seen.lines().filter(|line| hybrid || line.starts_with("0::"));
    assert!(lines.all(|line| line.ends_with(&guest.cgroup_path())), "{seen}");
    if hybrid {
        assert_eq!(guest.group_file("pids", "pids.max"), "64");
        let mut devices: Vec<_> =
            guest.group_file("devices", "devices.list").lines().map(str::to_owned).collect();
        devices.retain(|line| !matches!(line.as_str(), "c *:* m" | "b *:* m"));
        assert!(
            !devices.iter().any(|line| line.starts_with('a') || line.starts_with('b')),
            "{devices:?}"
        );
        assert!(devices.contains(&"c 1:3 rwm".to_owned()), "{devices:?}");
    }
    assert!(!guest.vm_dir().join("console.sock").exists());
}

#[test]
fn an_application_is_confined_as_its_profile_says() {
    check_application("embedded");
}

#[test]
fn an_application_is_confined_the_same_by_runc() {
    check_application("runc");
}

#[test]
fn the_shim_gets_two_descriptors_and_a_clean_environment() {
    let mut guest = Guest::script("exit 7");
    let ready = guest.create("embedded");
    assert!(ready.contains(" fds=[0, 1, 2, 3, 4, 5]"), "5 is the listing itself: {ready}");
    assert_eq!(field(&ready, "env"), "LC_ALL=C");
    // Created, not started: nothing of the guest's program has run.
    assert_eq!(guest.console(), "");
    guest.start(&ready);
    assert_eq!(guest.wait_exit(), "code 7");
}

fn check_failure_leaves_nothing(engine: &str, argv: &[&str], kind: &str, text: &str) {
    let mut guest = Guest::new(argv);
    let own = guest.dir.path().to_str().unwrap().to_owned();
    let mounts = || {
        let all = fs::read_to_string("/proc/self/mountinfo").unwrap();
        all.lines().filter(|line| line.contains(&own)).count()
    };
    assert_eq!(mounts(), 2, "the pinned namespaces");
    let line = guest.create(engine);
    assert!(line.starts_with(&format!("error {kind} ")), "{line}");
    assert!(line.contains(text), "{line}");
    assert_eq!(guest.processes(), Vec::<u32>::new());
    assert_eq!(mounts(), 2);
    let run = guest.layout.run_vm(&guest.spec.id);
    assert_eq!(fs::read_dir(run.runtime()).unwrap().count(), 0);
    assert!(!guest.vm_dir().join("console.sock").exists());
    let bundle: Vec<_> =
        fs::read_dir(run.bundle()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(bundle, ["config.json"]);
    drop(guest);
    assert_eq!(mounts(), 0);
}

#[test]
fn a_missing_entrypoint_is_the_images_fault_and_leaves_nothing() {
    for engine in ["embedded", "runc"] {
        check_failure_leaves_nothing(engine, &["/bin/nope"], "image", "nope");
        check_failure_leaves_nothing(engine, &["nope"], "image", "nope");
        check_failure_leaves_nothing(engine, &["/etc/passwd"], "image", "passwd");
    }
}

#[test]
fn a_missing_shim_leaves_nothing() {
    let mut guest = Guest::script("sleep 1000");
    guest.write_bundle();
    let run = guest.layout.run_vm(&guest.spec.id);
    let mut command = common::runtime(&["create"]);
    command.args(["--id", "vm-1", "--engine", "embedded", "--log-max", "1", "--status-fd", "3"]);
    command.arg("--bundle").arg(run.bundle()).arg("--root").arg(run.runtime());
    command.arg("--vm-dir").arg(run.dir()).arg("--socket-dir").arg(run.sockets());
    command.arg("--log").arg(guest.log());
    let out = command.args(["--shim", "/no/such/shim"]).output().unwrap();
    let line = String::from_utf8(out.stdout).unwrap();
    assert!(line.starts_with("error host run /no/such/shim: "), "{line}");
    assert_eq!(guest.processes(), Vec::<u32>::new());
    assert_eq!(fs::read_dir(run.runtime()).unwrap().count(), 0);
}

#[test]
fn hostile_root_filesystems_start_or_are_refused_and_never_touch_the_host() {
    let probe = tempfile::tempdir().unwrap();
    for (path, target) in [
        ("dev", probe.path().to_str().unwrap()),
        ("dev", "/etc"),
        ("proc", "/"),
        ("sys", "/etc"),
        ("proc", "/etc"),
    ] {
        let mut guest = Guest::script("echo up; sleep 1000");
        fs::remove_dir(guest.root().join(path)).unwrap();
        std::os::unix::fs::symlink(target, guest.root().join(path)).unwrap();
        let line = guest.create("embedded");
        assert!(line.starts_with("ready ") || line.starts_with("error "), "{line}");
        assert_eq!(fs::read_dir(probe.path()).unwrap().count(), 0, "{path} -> {target}");
        assert!(!fs::exists("/etc/pts").unwrap() && !fs::exists("/etc/null").unwrap());
    }
}

#[test]
fn an_image_cannot_run_the_runtime_itself() {
    let mut guest = Guest::new(&["/proc/self/exe"]);
    let line = guest.create("embedded");
    // Either it is refused, or what runs is not a program of the host.
    if line.starts_with("ready ") {
        guest.start(&line);
        let end = guest.wait_exit();
        assert_ne!(end, "code 0", "{}", guest.console());
        assert!(!guest.console().contains("ocivisor-runtime"), "{}", guest.console());
    }
}

#[test]
fn a_system_mounts_reboots_and_orders_its_own_groups() {
    let mut guest = Guest::new(&["/bin/sh"]);
    std::os::unix::fs::symlink("../bin/busybox", guest.root().join("sbin/init")).unwrap();
    guest.file("etc/inittab", "::sysinit:/etc/init.d/rcS\n::shutdown:/bin/echo going down\n");
    guest.file(
        "etc/init.d/rcS",
        "#!/bin/sh\n\
         /bin/busybox mkdir /tmp/m\n\
         mount -t tmpfs x /tmp/m && echo mounted: yes\n\
         /bin/busybox mkdir /sys/fs/cgroup/init && echo 1 > /sys/fs/cgroup/init/cgroup.procs && echo group: yes\n\
         echo net: $(echo 1 2>&1 > /proc/sys/net/ipv4/ip_forward)\n\
         echo vm: $(echo 1 2>&1 > /proc/sys/vm/drop_caches | grep -o 'Read-only file system')\n\
         echo max: $(echo max 2>&1 > /sys/fs/cgroup/cgroup.max.descendants | grep -o 'ermission denied')\n\
         echo unshare: $(unshare -U true 2>&1)\n\
         grep -E '^(CapBnd|Seccomp:|NoNewPrivs)' /proc/self/status\n\
         echo container: $container\n\
         echo booted\n",
    );
    guest.file("bin/mkdir", "#!/bin/busybox sh\nexec /bin/busybox mkdir \"$@\"\n");
    guest.boot_until("embedded", "booted");
    let facts = guest.facts.unwrap();
    assert_eq!((facts.kind, facts.stop_signal), (GuestKind::System, 12));
    assert_eq!(guest.said("mounted"), "yes");
    assert_eq!(guest.said("group"), "yes");
    assert_eq!(guest.said("net"), "");
    assert_eq!(guest.said("vm"), "Read-only file system");
    assert_eq!(guest.said("max"), "ermission denied");
    assert!(guest.said("unshare").contains("not permitted"));
    assert_eq!(guest.said("Seccomp"), "2");
    assert_eq!(guest.said("NoNewPrivs"), "0");
    assert_eq!(guest.said("container"), "oci");
    // The stop signal powers it off: reboot(2) ends the pid namespace by SIGINT.
    let init = rustix::process::Pid::from_raw(guest.init.unwrap().cast_signed()).unwrap();
    eventually("handler of the stop signal", || {
        let status = fs::read_to_string(format!("/proc/{}/status", guest.init.unwrap())).unwrap();
        // Some versions catch it, some block it and wait in sigtimedwait(2), which hides that.
        let waits = fs::read_to_string(format!("/proc/{}/stack", guest.init.unwrap())).unwrap();
        let awaited = |set: &str| {
            let bits = status.lines().find_map(|line| line.strip_prefix(set)).unwrap();
            u64::from_str_radix(bits, 16).unwrap() & 1 << 11 != 0
        };
        let ready = awaited("SigBlk:\t") || awaited("SigCgt:\t");
        (ready || waits.contains("sigtimedwait")).then_some(())
    });
    rustix::process::kill_process(init, rustix::process::Signal::USR2).unwrap();
    assert_eq!(guest.wait_exit(), "signal 2");
    assert!(guest.console().contains("going down"), "{}", guest.console());
}
