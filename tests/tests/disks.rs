//! Data disks: what a guest gets of them, that it lasts, and that nothing is reached beside.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "tests make disks"
)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use ocivisor_tests::{Answer, Call, Host, image, tool, wait_for};

fn inside(host: &Host, vm: &str, script: &str) -> Answer {
    host.cli(&["exec", vm, "--", "sh", "-c", script])
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A disk of holes; with a filesystem, if a tool is named.
fn disk(host: &Host, vm: u32, number: u32, mkfs: &[&str]) -> PathBuf {
    let path = host.vm_dir(vm).join(format!("disk.{number}"));
    File::create(&path).unwrap().set_len(16 << 20).unwrap();
    if !mkfs.is_empty() {
        tool(&[mkfs, &[text(&path)]].concat());
    }
    path
}

const MKFS: [&str; 3] = ["mkfs.ext4", "-q", "-F"];

/// `DISK`s as oned writes them.
fn with_disks(call: Call, disks: &[&str]) -> Call {
    let disks = disks.iter().map(|keys| format!("<DISK>{keys}</DISK>")).collect::<String>();
    call.with("</TEMPLATE>", &(disks + "</TEMPLATE>"))
}

fn key(name: &str, value: &str) -> String {
    format!("<{name}><![CDATA[{value}]]></{name}>")
}

#[track_caller]
fn refused(answer: &Answer) -> String {
    assert_eq!((answer.code, answer.out.as_str()), (1, ""), "{answer:?}");
    let plain: Vec<&str> = answer.err.lines().filter(|line| !line.starts_with("INFO: ")).collect();
    assert_eq!(plain.len(), 1, "{answer:?}");
    plain[0].to_owned()
}

#[test]
fn disks_of_a_recorded_vm_last_over_reboot_and_shutdown() {
    let host = Host::start();
    host.add_disk(0);
    // 1 is volatile (recorded), 4 an image, 5 a CD.
    disk(&host, 0, 4, &[&MKFS[..], &["-E", "root_owner=0:0"]].concat());
    let tree = host.dir().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("readme"), "of the cd\n").unwrap();
    let cd = host.vm_dir(0).join("disk.5");
    tool(&["genisoimage", "-quiet", "-R", "-V", "CD", "-o", text(&cd), text(&tree)]);
    let data = [
        key("DISK_ID", "4"),
        key("TYPE", "FILE"),
        key("TARGET", "sdd"),
        key("OCI_MOUNT", "/srv//data"),
    ];
    let cdrom =
        [key("DISK_ID", "5"), key("TYPE", "CDROM"), key("TARGET", "hda"), key("READONLY", "YES")];
    let deploy = Call::recorded(&host, "0079-vmm-deploy");
    let deploy = with_disks(deploy, &[&data.concat(), &cdrom.concat()]);
    let before = host.counts();
    let answer = host.driver(&deploy);
    assert_eq!((answer.code, answer.out.as_str()), (0, "one-0\n"), "{answer:?}");
    assert!(!answer.err.contains("does not get yet"), "{answer:?}");

    inside(&host, "one-0", "echo kept > /srv/data/file && echo volatile > /media/one-disk.1/file")
        .ok();
    let mounts =
        inside(&host, "one-0", "grep -E ' (/srv/data|/media/one-disk.1) ' /proc/mounts").ok();
    assert_eq!(mounts.lines().count(), 2, "{mounts}");
    assert!(mounts.lines().all(|line| line.contains("rw,nosuid,nodev")), "{mounts}");
    // Its root's files are the guest's root's.
    assert_eq!(inside(&host, "one-0", "stat -c %u:%g /srv/data/file").ok(), "0:0\n");
    // The CD is read, and only read, mounted or not, as the host's kernel can.
    let cd = "cat /media/one-disk.5/readme 2>/dev/null || { dd if=/dev/hda bs=2048 skip=16 count=1 2>/dev/null | grep -ac CD001; }";
    let seen = inside(&host, "one-0", cd).ok();
    assert!(["of the cd\n", "1\n"].contains(&seen.as_str()), "{seen}");
    assert_ne!(
        inside(&host, "one-0", "echo x > /media/one-disk.5/new || false; echo x > /dev/hda").code,
        0
    );

    for call in ["0081-vmm-reboot", "0082-vmm-reset"] {
        let answer = host.driver(&Call::recorded(&host, call));
        assert_eq!(answer.code, 0, "{answer:?}");
        let files = inside(&host, "one-0", "cat /srv/data/file /media/one-disk.1/file").ok();
        assert_eq!(files, "kept\nvolatile\n", "{call}");
    }
    let shutdown = Call::recorded(&host, "0083-vmm-shutdown");
    assert_eq!(host.driver(&shutdown).code, 0);
    assert_eq!(host.counts(), before);
    tool(&["e2fsck", "-f", "-n", text(&host.vm_dir(0).join("disk.4"))]);
    assert_eq!(host.driver(&deploy).code, 0);
    assert_eq!(inside(&host, "one-0", "cat /srv/data/file").ok(), "kept\n");
    assert_eq!(host.driver(&shutdown).code, 0);
    assert_eq!(host.counts(), before);
}

#[test]
fn a_damaged_filesystem_is_refused_in_one_sentence_and_a_device_is_not() {
    let host = Host::start();
    host.add_disk(0);
    let path = disk(&host, 0, 4, &MKFS);
    tool(&["debugfs", "-w", "-R", "sif <2> mode 060644", text(&path)]);
    let before = host.counts();
    let keys = [key("DISK_ID", "4"), key("TYPE", "FILE"), key("TARGET", "sdd")];
    let deploy = with_disks(Call::recorded(&host, "0079-vmm-deploy"), &[&keys.concat()]);
    let sentence = refused(&host.driver(&deploy));
    assert!(
        sentence.contains("data disk 4") && sentence.contains("filesystem ext4 is damaged"),
        "{sentence}"
    );
    assert_eq!(host.counts(), before);
    let none = key("TARGET", "sdd") + &key("OCI_MOUNT", "none");
    let device = deploy.with(&key("TARGET", "sdd"), &none);
    let answer = host.driver(&device);
    assert_eq!(answer.code, 0, "{answer:?}");
    assert_eq!(
        inside(&host, "one-0", "stat -c '%F %u:%g %a' /dev/sdd").ok(),
        "block special file 0:0 600\n"
    );
    inside(&host, "one-0", "dd if=/dev/zero of=/dev/sdd bs=4096 count=1 conv=notrunc").ok();
    assert_eq!(host.driver(&Call::recorded(&host, "0083-vmm-shutdown")).code, 0);
    assert_eq!(host.counts(), before);
}

/// A VM of this host, with these disks.
fn define(host: &Host, vm: &str, image: &str, disks: &[&str]) {
    let root = host.dir().join(format!("ds/{vm}.disk"));
    host.cli(&["disk", "create", "--image", image, "--size", "64MiB", text(&root)]).ok();
    let mut words = vec!["define", vm, "--disk", text(&root), "--memory", "64M"];
    words.extend(disks.iter().flat_map(|disk| ["--data-disk", disk]));
    words.extend(["--", "sleep", "1000"]);
    host.cli(&words).ok();
}

#[test]
fn a_guest_reaches_no_disk_but_its_own_and_writes_none_that_it_only_reads() {
    let host = Host::start();
    let (mine, other) = (disk(&host, 0, 1, &[]), disk(&host, 1, 1, &[]));
    let shared = disk(&host, 0, 2, &MKFS);
    let option = |path: &Path, rest: &str| format!("path={},{rest}", path.display());
    let read = option(&shared, "target=vdc,ro");
    define(&host, "a", "busybox", &[&option(&mine, "target=vdb"), &read]);
    define(
        &host,
        "b",
        "busybox",
        &[&option(&other, "target=vdb"), &option(&shared, "target=/data,ro")],
    );
    host.cli(&["start", "a"]).ok();
    host.cli(&["start", "b"]).ok();
    // Nodes that it makes itself open nothing, nor does unbinding its own.
    let number = |vm: &str| inside(&host, vm, "stat -c '%t %T' /dev/vdb").ok();
    assert_ne!(number("a"), number("b"));
    let theirs = number("b");
    let (major, minor) = theirs.trim().split_once(' ').unwrap();
    let make = format!("mknod /tmp/x b $((0x{major})) $((0x{minor})) && head -c1 /tmp/x");
    assert_ne!(inside(&host, "a", &make).code, 0);
    assert_ne!(inside(&host, "a", "losetup -d /dev/vdb").code, 0);
    assert_ne!(
        inside(&host, "a", "mount -t ext4 /dev/vdc /tmp").code,
        0,
        "user namespaces mount no block device"
    );
    assert_ne!(inside(&host, "a", "dd if=/dev/zero of=/dev/vdc count=1").code, 0);
    assert_ne!(inside(&host, "b", "touch /data/new").code, 0);
    inside(&host, "a", "dd if=/dev/zero of=/dev/vdb count=1 conv=notrunc").ok();
    // A third one may read what two read, and write nothing of it.
    define(&host, "c", "busybox", &[&option(&shared, "target=vdb")]);
    let answer = host.cli(&["start", "c"]);
    assert_eq!(answer.code, 4, "{answer:?}");
    assert!(answer.err.contains("is in use by"), "{answer:?}");
    let shown = host.cli(&["info", "a"]).ok();
    assert!(shown.contains("data disk 2") && shown.contains("/dev/vdc"), "{shown}");
}

#[test]
fn mount_points_that_are_links_of_the_image_stay_in_the_guest() {
    let host = Host::start();
    let tar = host.dir().join("links.tar");
    let root = host.dir().join("links");
    fs::create_dir(&root).unwrap();
    image::busybox(&tar);
    tool(&["tar", "-C", text(&root), "-xf", text(&tar)]);
    let outside = host.dir().join("outside");
    fs::create_dir(&outside).unwrap();
    let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, root.join(name)).unwrap();
    link("../../../../../../etc", "up");
    link(text(&outside), "dangling");
    link("/proc", "kernel");
    tool(&["tar", "-C", text(&root), "-cf", text(&tar), "."]);
    host.cli(&["image", "import", &format!("rootfs:{}", tar.display()), "links"]).ok();
    let path = disk(&host, 0, 1, &MKFS);
    let option = |at: &str| format!("path={},target={at}", path.display());
    define(&host, "a", "links", &[&option("/up/deep")]);
    host.cli(&["start", "a"]).ok();
    inside(&host, "a", "echo x > /etc/deep/file").ok();
    assert!(!Path::new("/etc/deep").exists());
    host.cli(&["destroy", "a"]).ok();
    assert!(tool(&["debugfs", "-R", "ls -p /", text(&path)]).contains("/file/"));
    for (vm, at, why) in [
        ("b", "/dangling", "mount point /dangling is a link that leads nowhere"),
        ("c", "/kernel", "mount point /kernel leads into a kernel filesystem"),
    ] {
        define(&host, vm, "links", &[&option(at)]);
        let answer = host.cli(&["start", vm]);
        assert!(answer.code != 0 && answer.err.contains(why), "{answer:?}");
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn a_daemon_that_dies_finds_disks_again() {
    let mut host = Host::start();
    let (data, raw) = (disk(&host, 0, 1, &MKFS), disk(&host, 0, 2, &[]));
    let before = host.counts();
    let (data, raw) = (
        format!("path={},target=/data", data.display()),
        format!("path={},target=vdb", raw.display()),
    );
    define(&host, "a", "busybox", &[&data, &raw]);
    host.cli(&["start", "a"]).ok();
    inside(&host, "a", "echo x > /data/file").ok();
    host.restart_daemon();
    assert_eq!(inside(&host, "a", "cat /data/file; head -c1 /dev/vdb | wc -c").ok(), "x\n1\n");
    host.cli(&["destroy", "a"]).ok();
    host.cli(&["undefine", "a"]).ok();
    wait_for("nothing of it", || match host.counts() {
        now if (&now.mounts, &now.loops) == (&before.mounts, &before.loops) => Ok(()),
        now => Err(format!("{now:?}")),
    });
}
