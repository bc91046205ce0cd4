//! qcow2 disks as the stock transfer drivers leave them: served, over the daemon's death, and not beyond their own files.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "tests make disks"
)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use ocivisor_tests::{Answer, Call, Host, tool, wait_for};
use serde_json::Value;

fn inside(host: &Host, script: &str) -> Answer {
    host.cli(&["exec", "one-0", "--", "sh", "-c", script])
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// An image of the stock datastore: a filesystem in a qcow2 file, with a name in it.
fn image(host: &Host, name: &str, holds: &str) -> PathBuf {
    let dir = host.dir().join("images");
    fs::create_dir_all(&dir).unwrap();
    let (raw, image) = (dir.join(format!("{name}.raw")), dir.join(name));
    fs::File::create(&raw).unwrap().set_len(32 << 20).unwrap();
    tool(&["mkfs.ext4", "-q", "-F", "-E", "root_owner=0:0", text(&raw)]);
    let file = dir.join("holds");
    fs::write(&file, holds).unwrap();
    tool(&["debugfs", "-w", "-R", &format!("write {} holds", file.display()), text(&raw)]);
    tool(&["qemu-img", "convert", "-O", "qcow2", text(&raw), text(&image)]);
    fs::remove_file(&raw).unwrap();
    image
}

/// A clone as `tm/qcow2` makes it: `disk.N` leads to the youngest snapshot, which stands on the image.
fn clone(host: &Host, number: u32, of: &Path) -> PathBuf {
    let snapshots = host.vm_dir(0).join(format!("disk.{number}.snap"));
    fs::create_dir(&snapshots).unwrap();
    symlink(".", snapshots.join(snapshots.file_name().unwrap())).unwrap();
    let argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"];
    tool(&[&argv[..], &[text(of), text(&snapshots.join("0"))]].concat());
    // A snapshot of it names it by a path that goes by its own directory.
    let below = format!("disk.{number}.snap/0");
    tool(&[&argv[..], &[&below, text(&snapshots.join("1"))]].concat());
    symlink(format!("disk.{number}.snap/1"), host.vm_dir(0).join(format!("disk.{number}")))
        .unwrap();
    snapshots.join("1")
}

fn key(name: &str, value: &str) -> String {
    format!("<{name}><![CDATA[{value}]]></{name}>")
}

/// The recorded deploy with this disk besides.
fn deploy(host: &Host, number: u32, source: &Path, rest: &str) -> Call {
    // As oned writes it, with a slash too many.
    let source = format!(
        "{}//{}",
        source.parent().unwrap().display(),
        source.file_name().unwrap().display()
    );
    let disk = [
        key("DISK_ID", &number.to_string()),
        key("IMAGE_ID", "7"),
        key("TYPE", "FILE"),
        key("DRIVER", "qcow2"),
        key("FORMAT", "qcow2"),
        key("SOURCE", &source),
    ];
    let disk = format!("<DISK>{}{rest}</DISK></TEMPLATE>", disk.concat());
    Call::recorded(host, "0079-vmm-deploy").with("</TEMPLATE>", &disk)
}

fn servers(host: &Host) -> Vec<u64> {
    let record = host.run_dir().join("vms/one-0/disks.json");
    let record: Value = serde_json::from_slice(&fs::read(record).unwrap()).unwrap();
    let disks = record["disks"].as_array().unwrap();
    disks.iter().filter_map(|disk| disk["server"]["pid"].as_u64()).collect()
}

fn stopped(host: &Host) {
    let answer = host.driver(&Call::recorded(host, "0083-vmm-shutdown"));
    assert_eq!(answer.code, 0, "{answer:?}");
}

#[test]
fn a_clone_of_the_stock_drivers_is_mounted_and_lasts_over_daemon_and_boots() {
    let mut host = Host::start();
    host.add_disk(0);
    let base = image(&host, "base", "of the image\n");
    let before_base = fs::read(&base).unwrap();
    let top = clone(&host, 4, &base);
    let deploy = deploy(&host, 4, &base, &(key("TARGET", "sdd") + &key("OCI_MOUNT", "/srv/data")));
    let before = host.counts();
    let answer = host.driver(&deploy);
    assert_eq!((answer.code, answer.out.as_str()), (0, "one-0\n"), "{answer:?}");
    inside(&host, "echo kept > /srv/data/file && sync").ok();
    assert_eq!(inside(&host, "cat /srv/data/holds").ok(), "of the image\n");
    let served = servers(&host);
    assert_eq!(served.len(), 1);
    // Guests do not notice that the daemon goes.
    host.kill_daemon();
    assert!(Path::new(&format!("/proc/{}", served[0])).exists());
    host.start_daemon();
    assert_eq!(servers(&host), served);
    inside(&host, "echo more >> /srv/data/file").ok();
    let answer = host.driver(&Call::recorded(&host, "0081-vmm-reboot"));
    assert_eq!(answer.code, 0, "{answer:?}");
    assert_eq!(inside(&host, "cat /srv/data/file").ok(), "kept\nmore\n");
    assert_eq!(servers(&host), served, "a reboot keeps disks");
    stopped(&host);
    assert_eq!(host.counts(), before);
    assert!(!Path::new(&format!("/proc/{}/exe", served[0])).exists());
    tool(&["qemu-img", "check", "-q", "-f", "qcow2", text(&top)]);
    assert_eq!(host.driver(&deploy).code, 0);
    assert_eq!(inside(&host, "cat /srv/data/file").ok(), "kept\nmore\n");
    // A host that goes down takes all with it, and has all again.
    host.reboot();
    assert_eq!(host.driver(&deploy).code, 0);
    assert_eq!(inside(&host, "cat /srv/data/holds").ok(), "of the image\n");
    stopped(&host);
    let (now, none) = (host.counts(), Vec::<String>::new());
    assert_eq!((now.mounts, now.loops, now.processes), (none.clone(), none.clone(), none));
    assert!(fs::read(&base).unwrap() == before_base, "the image is only read");
}

#[test]
fn a_server_that_dies_is_told_and_the_next_boot_has_the_disk() {
    let host = Host::start();
    host.add_disk(0);
    let base = image(&host, "base", "of the image\n");
    clone(&host, 4, &base);
    let before = host.counts();
    let answer = host.driver(&deploy(&host, 4, &base, &key("TARGET", "sdd")));
    assert_eq!(answer.code, 0, "{answer:?}");
    inside(&host, "echo kept > /media/one-disk.4/file && sync").ok();
    let served = servers(&host);
    tool(&["kill", "-9", &served[0].to_string()]);
    wait_for("word of it", || match host.cli(&["info", "one-0"]).ok() {
        shown if shown.contains("data disk 4") && shown.contains("its server died") => Ok(()),
        shown => Err(shown),
    });
    // It runs on; what it has of the disk are errors, at once.
    assert_eq!(inside(&host, "echo alive").ok(), "alive\n");
    assert_ne!(
        inside(&host, "echo x > /media/one-disk.4/new && sync /media/one-disk.4/new").code,
        0
    );
    let answer = host.driver(&Call::recorded(&host, "0081-vmm-reboot"));
    assert_eq!(answer.code, 0, "{answer:?}");
    assert_eq!(inside(&host, "cat /media/one-disk.4/file").ok(), "kept\n");
    stopped(&host);
    assert_eq!(host.counts(), before);
}

#[test]
fn an_image_shows_nobody_else_s() {
    let host = Host::start();
    host.add_disk(0);
    let (mine, secret) = (image(&host, "mine", "mine\n"), image(&host, "secret", "secret\n"));
    // Uploaded by a tenant who knows another's file.
    let top = host.vm_dir(0).join("disk.4");
    let argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"];
    tool(&[&argv[..], &[text(&secret), text(&top)]].concat());
    let before = host.counts();
    let answer = host.driver(&deploy(&host, 4, &mine, &key("TARGET", "sdd")));
    assert_eq!((answer.code, answer.out.as_str()), (1, ""), "{answer:?}");
    let plain: Vec<&str> = answer.err.lines().filter(|line| !line.starts_with("INFO: ")).collect();
    assert_eq!(plain.len(), 1, "{answer:?}");
    assert!(plain[0].contains("not among the files that belong to this disk"), "{answer:?}");
    assert_eq!(host.counts(), before);
}
