//! OpenNebula's transfer scripts between a front-end and two hosts: what moves, how much of it, and what is there after
//! a break.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]
#![allow(
    clippy::disallowed_methods,
    reason = "tests make the files and processes that they test with"
)]

use std::path::PathBuf;

use ocivisor_frontend::depot::{Container, Content, ImageRecord};
use ocivisor_tests::frontend::{ACCESS, FrontEnd, ONEADMIN, layout};
use ocivisor_tests::{Answer, Call, Host, tool};

/// Bytes of the layers above the base.
const COMMON: usize = 3_000_000;
const OWN: usize = 700_000;

struct Cloud {
    front: FrontEnd,
    hosts: Vec<Host>,
    /// SOURCE of image 3 (base, common) and of image 4 (base, common, own).
    sources: [String; 2],
}

impl Cloud {
    fn of(count: usize) -> Self {
        let hosts: Vec<Host> = (0..count).map(|_| Host::start_with(ACCESS)).collect();
        let front = FrontEnd::of(&hosts.iter().collect::<Vec<_>>());
        // The first host has the base already, as an image of its own.
        let base = hosts[0].dir().join("busybox.tar");
        let images =
            [("a", vec![("common", COMMON)]), ("b", vec![("common", COMMON), ("own", OWN)])];
        let sources = images.map(|(name, files)| layout(&front.path(name), &base, &files));
        let [a, b] = sources;
        let sources = [front.add_image(3, &a).1, front.add_image(4, &b).1];
        Self { front, hosts, sources }
    }

    /// A place on a host, by its number.
    fn on(&self, host: usize, rest: &str) -> String {
        let ds = self.hosts[host - 1].dir().join("ds/101");
        format!("host{host}:{}/{rest}", ds.display()).replace("/ds/", "/ds//")
    }

    fn at_front(&self, rest: &str) -> String {
        format!("frontend:{}/{rest}", self.front.path("ds/101").display())
    }

    fn file(&self, host: usize, rest: &str) -> PathBuf {
        self.hosts[host - 1].dir().join("ds/101").join(rest)
    }

    /// What is there of images is who brings one.
    #[track_caller]
    fn nothing_is_on_its_way(&self, host: usize) {
        let entries = std::fs::read_dir(self.file(host, ".ocivisor")).unwrap();
        let names: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        assert!(names.len() == 1 && names[0].extension().unwrap() == "lock", "{names:?}");
    }
}

/// What oned says of a disk of that image.
fn of(source: &str) -> String {
    format!("<SOURCE>{source}</SOURCE>")
}

/// A success of a transfer script: nothing on stdout, only lines for the log on stderr.
#[track_caller]
fn done(answer: &Answer) -> &Answer {
    assert_eq!((answer.code, answer.out.as_str()), (0, ""), "{answer:?}");
    assert!(answer.err.lines().all(|line| line.starts_with("INFO: ")), "{answer:?}");
    answer
}

/// A failure: one plain sentence.
#[track_caller]
fn refused(answer: &Answer) -> String {
    assert_eq!((answer.code, answer.out.as_str()), (1, ""), "{answer:?}");
    let plain: Vec<&str> = answer.err.lines().filter(|line| !line.starts_with("INFO: ")).collect();
    assert_eq!(plain.len(), 1, "{answer:?}");
    assert!(plain[0].ends_with('.'), "{answer:?}");
    plain[0].to_owned()
}

#[test]
fn a_vm_is_placed_runs_and_is_removed_and_layers_go_to_a_host_once() {
    let cloud = Cloud::of(1);
    let (front, host) = (&cloud.front, &cloud.hosts[0]);
    let [a, b] = &cloud.sources;
    front.say_disks(0, &[(0, 128, ""), (1, 16, "<FS>ext4</FS>")]);
    let disk = cloud.on(1, "0/disk.0");

    // The base is there: the common layer goes, once.
    done(&front.tm("clone", &[a, &disk, "0", "100"]));
    let sent = front.sent("host1");
    assert!((COMMON as u64..COMMON as u64 + 20_000).contains(&sent), "{sent}");
    let before = host.counts();
    let inode = std::os::unix::fs::MetadataExt::ino(&cloud.file(1, "0/disk.0").metadata().unwrap());
    // Again: the same disk, and no layers. As by a driver process that knows a suffix, too.
    for script in ["clone", "clone.ocivisor"] {
        done(&front.tm(script, &[a, &disk, "0", "100"]));
        assert!(front.sent("host1") < 10_000);
    }
    let meta = cloud.file(1, "0/disk.0").metadata().unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::ino(&meta), inode);
    assert_eq!((meta.len(), std::os::unix::fs::MetadataExt::uid(&meta)), (128 << 20, ONEADMIN));
    // Another VM of it: none. Of the image above it: its own layer.
    front.say_disks(8, &[(0, 64, "")]);
    done(&front.tm("clone", &[a, &cloud.on(1, "8/disk.0"), "8", "100"]));
    assert!(front.sent("host1") < 10_000);
    front.say_disks(9, &[(0, 64, "")]);
    done(&front.tm("clone", &[b, &cloud.on(1, "9/disk.0"), "9", "100"]));
    let sent = front.sent("host1");
    assert!((OWN as u64..OWN as u64 + 20_000).contains(&sent), "{sent}");
    assert_eq!(std::fs::read_to_string(cloud.file(1, ".monitor")).unwrap(), "ocivisor");
    cloud.nothing_is_on_its_way(1);

    // The other disks of the recorded VM, each twice.
    let context = front.path("context.sh");
    std::fs::write(&context, "ETH0_MAC='x'\n").unwrap();
    let context = context.display().to_string();
    for _ in 0..2 {
        done(&front.tm("mkimage", &["16", "raw", &cloud.on(1, "0/disk.1"), "0", "101"]));
        done(&front.tm("mkswap", &["8", &cloud.on(1, "0/disk.3"), "0", "101"]));
        done(&front.tm("context", &[&context, &cloud.on(1, "0/disk.2"), "0", "101"]));
    }
    let kind = |disk: &str| {
        tool(&["blkid", "-p", "-o", "export", &cloud.file(1, disk).display().to_string()])
    };
    assert!(kind("0/disk.1").contains("TYPE=ext4"));
    assert!(kind("0/disk.3").contains("TYPE=swap"));
    assert!(kind("0/disk.2").contains("LABEL=CONTEXT"));

    let deploy = Call::recorded(host, "0079-vmm-deploy");
    let answer = host.driver(&deploy);
    assert_eq!((answer.code, answer.out.as_str()), (0, "one-0\n"), "{answer:?}");
    assert_eq!(
        host.cli(&["exec", "one-0", "--", "sh", "-c", "wc -c < /common"]).ok(),
        format!("{COMMON}\n")
    );
    // What runs is not taken away.
    let why = refused(&front.tm("delete", &[&disk, "0", "100"]));
    assert!(why.contains("is in use"), "{why}");
    let cancel = Call::recorded(host, "0119-vmm-cancel").for_vm(2, 0);
    assert_eq!(host.driver(&cancel).code, 0);

    // No prune takes what disks need; afterwards nothing is left.
    host.cli(&["image", "prune"]).ok();
    for vm in ["0", "8", "9"] {
        for _ in 0..2 {
            done(&front.tm("delete", &[&cloud.on(1, &format!("{vm}/disk.0")), vm, "100"]));
            done(&front.tm("delete", &[&cloud.on(1, vm), vm, "101"]));
        }
    }
    assert_eq!(host.counts(), before);
    let mut left: Vec<_> =
        std::fs::read_dir(cloud.file(1, "")).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, [".monitor", ".ocivisor", ".ocivisor.lock"]);
}

#[test]
fn a_vm_is_undeployed_and_boots_on_another_host_with_what_it_wrote() {
    let cloud = Cloud::of(2);
    let (front, one, two) = (&cloud.front, &cloud.hosts[0], &cloud.hosts[1]);
    let [a, b] = &cloud.sources;
    front.say_disks(0, &[(0, 128, &of(a)), (1, 16, "")]);
    done(&front.tm("clone", &[a, &cloud.on(1, "0/disk.0"), "0", "100"]));
    done(&front.tm("mkimage", &["16", "raw", &cloud.on(1, "0/disk.1"), "0", "101"]));
    let boot = |host: &Host| {
        let answer = host.driver(&Call::recorded(host, "0079-vmm-deploy"));
        assert_eq!((answer.code, answer.out.as_str()), (0, "one-0\n"), "{answer:?}");
    };
    boot(one);
    one.cli(&["exec", "one-0", "--", "sh", "-c", "echo kept > /kept && sync"]).ok();
    // What a guest writes to is not moved.
    let (from, to) = (cloud.on(1, "0"), cloud.at_front("0"));
    let why = refused(&front.tm("mv", &[&from, &to, "0", "101"]));
    assert!(why.contains("is in use"), "{why}");
    assert!(cloud.file(1, "0/disk.0").exists());
    let cancel = Call::recorded(one, "0119-vmm-cancel").for_vm(2, 0);
    assert_eq!(one.driver(&cancel).code, 0);

    // A move that is killed anywhere is begun again; the source is whole until the destination is.
    let words = [from.as_str(), &to, "0", "101"];
    for _ in 0..4 {
        let mut child = front.command("mv", &words).spawn().unwrap();
        let arriving = front.path("ds/101/.0.coming");
        let gone = || !cloud.file(1, "0").exists();
        while child.try_wait().unwrap().is_none() && !arriving.exists() && !gone() {
            std::thread::yield_now();
        }
        let _ = child.kill();
        child.wait().unwrap();
        assert!(cloud.file(1, "0/disk.0").exists() || front.path("ds/101/0/disk.0").exists());
    }
    for _ in 0..2 {
        done(&front.tm("mv", &[&cloud.on(1, "0/disk.0"), &cloud.at_front("0/disk.0"), "0", "100"]));
        done(&front.tm("mv", &words));
    }
    assert!(!cloud.file(1, "0").exists());
    let moved =
        std::os::unix::fs::MetadataExt::blocks(&front.path("ds/101/0/disk.0").metadata().unwrap())
            * 512;
    assert!(moved < 32 << 20, "{moved}: holes stay holes");

    // Which image it lies on, oned says and not the host: else a host that knows a digest would get a stranger's image.
    front.say_disks(0, &[(0, 128, &of(b)), (1, 16, "")]);
    let words = [&cloud.at_front("0/disk.0"), &cloud.on(2, "0/disk.0"), "0", "100"];
    let why = refused(&front.tm("mv", &words));
    assert!(why.contains("which is not its SOURCE's"), "{why}");
    assert!(front.sent("host2") < 5_000, "{why}");
    front.say_disks(0, &[(0, 128, &of(a)), (1, 16, "")]);

    // Nor does who had the disk say which layers it gets: a manifest of the right image, and other layers.
    let manifest = front.path("ds/101/0/disk.0.manifest.json");
    let told = std::fs::read_to_string(&manifest).unwrap();
    let mut other: serde_json::Value = serde_json::from_str(&told).unwrap();
    other["layers"].as_array_mut().unwrap().pop();
    std::fs::write(&manifest, other.to_string()).unwrap();
    done(&front.tm("mv", &words));
    let why = refused(&front.tm("mv", &[&cloud.at_front("0"), &cloud.on(2, "0"), "0", "101"]));
    assert!(why.contains("names other layers than image"), "{why}");
    std::fs::write(&manifest, told).unwrap();

    // To a host that never saw the image.
    for _ in 0..2 {
        done(&front.tm("mv", &[&cloud.at_front("0/disk.0"), &cloud.on(2, "0/disk.0"), "0", "100"]));
        done(&front.tm("mv", &[&cloud.at_front("0"), &cloud.on(2, "0"), "0", "101"]));
    }
    // The name goes; what the disk lies upon stays.
    for name in two.cli(&["--quiet", "image", "list"]).ok().lines() {
        two.cli(&["image", "rm", name]).ok();
    }
    boot(two);
    assert_eq!(two.cli(&["exec", "one-0", "--", "cat", "/kept"]).ok(), "kept\n");
    let cancel = Call::recorded(two, "0119-vmm-cancel").for_vm(2, 0);
    assert_eq!(two.driver(&cancel).code, 0);
    done(&front.tm("delete", &[&cloud.on(2, "0"), "0", "101"]));
    // Nothing of it is anywhere.
    let why = refused(&front.tm("mv", &[&cloud.on(1, "0"), &cloud.on(2, "0"), "0", "101"]));
    assert!(why.contains("does not exist"), "{why}");
}

/// The front-end runs guests, too: what moves there has its layers, and a daemon that knows of it.
#[test]
fn a_front_end_that_is_a_host_gets_what_hosts_get() {
    let cloud = Cloud::of(2);
    let (front, here) = (&cloud.front, &cloud.hosts[1]);
    let [a, _] = &cloud.sources;
    front.say_disks(7, &[(0, 64, &of(a))]);
    let config = front.path("opennebula.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, format!("socket = {:?}\n{text}", here.socket())).unwrap();
    done(&front.tm("clone", &[a, &cloud.on(1, "7/disk.0"), "7", "100"]));
    done(&front.tm("mv", &[&cloud.on(1, "7/disk.0"), &cloud.at_front("7/disk.0"), "7", "100"]));
    let words = [cloud.on(1, "7"), cloud.at_front("7"), "7".into(), "101".into()];
    let words = words.each_ref().map(String::as_str);
    done(&front.tm("mv", &words));
    for name in here.cli(&["--quiet", "image", "list"]).ok().lines() {
        here.cli(&["image", "rm", name]).ok();
    }
    here.cli(&["image", "prune"]).ok();
    // Again it looks whether all is there.
    done(&front.tm("mv", &words));
    assert_eq!(std::fs::read_to_string(front.path("ds/101/.monitor")).unwrap(), "ocivisor");
}

#[test]
fn persistent_disks_come_back_and_saved_ones_are_copied() {
    let cloud = Cloud::of(1);
    let front = &cloud.front;
    let [a, b] = &cloud.sources;
    front.say_disks(7, &[(0, 64, &of(a)), (1, 4, "<ORIGINAL_SIZE>2</ORIGINAL_SIZE>")]);
    let (root, data) = (cloud.on(1, "7/disk.0"), cloud.on(1, "7/disk.1"));
    let name = "0123456789abcdef0123456789abcdef";
    let image = front.path("ds/100").join(name);
    std::fs::write(&image, vec![b'x'; 2 << 20]).unwrap();
    // A data disk's SOURCE is a path of the datastore beside the system's, as this host has it.
    let own = cloud.hosts[0].dir().join("ds/100").join(name).display().to_string();
    for _ in 0..2 {
        done(&front.tm("ln", &[a, &root, "7", "100"]));
        done(&front.tm("ln", &[&format!("frontend:{own}"), &data, "7", "100"]));
    }
    let on_host = cloud.file(1, "7/disk.1");
    assert_eq!(on_host.metadata().unwrap().len(), 4 << 20, "SIZE is more than the image's");
    let file = std::fs::OpenOptions::new().write(true).open(&on_host).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"changed", 100).unwrap();
    tool(&[
        "debugfs",
        "-w",
        "-R",
        "mkdir /upper/mark",
        &cloud.file(1, "7/disk.0").display().to_string(),
    ]);
    for _ in 0..2 {
        done(&front.tm("mvds", &[&data, &own, "7", "100"]));
        done(&front.tm("mvds", &[&root, a, "7", "100"]));
    }
    assert_eq!(&std::fs::read(&image).unwrap()[100..107], b"changed");
    assert!(!on_host.exists() && !cloud.file(1, "7/disk.0").exists());
    let marked = |disk: &std::path::Path| {
        tool(&["debugfs", "-R", "stat /upper/mark", &disk.display().to_string()])
            .contains("directory")
    };
    assert!(marked(&front.path("ds/100/disks/3")));
    // Used again it is what it was; then a disk that is lost is not taken for one that came back.
    done(&front.tm("ln", &[a, &root, "7", "100"]));
    assert!(marked(&cloud.file(1, "7/disk.0")));
    // Saved as another image, whose SOURCE has no digest; a VM of that gets a copy, larger.
    done(&front.tm("cpds", &[&root, "ocivisor:5", "-1", "7", "100"]));
    let why = refused(&front.tm("cpds", &[&root, "ocivisor:5", "2", "7", "100"]));
    assert!(why.contains("snapshots"), "{why}");
    front.say_disks(8, &[(0, 96, "")]);
    done(&front.tm("clone", &["ocivisor:5", &cloud.on(1, "8/disk.0"), "8", "100"]));
    let copy = cloud.file(1, "8/disk.0");
    assert!(marked(&copy));
    assert_eq!(copy.metadata().unwrap().len(), 96 << 20);
    tool(&["e2fsck", "-fn", &copy.display().to_string()]);
    done(&front.tm("resize", &[&cloud.on(1, "8/disk.0"), "128", "8", "100"]));
    assert_eq!(copy.metadata().unwrap().len(), 128 << 20);
    // Nor does a host say what the image lies on from now on, or how much it has.
    let manifest = cloud.file(1, "7/disk.0.manifest.json");
    let told = std::fs::read_to_string(&manifest).unwrap();
    let [a_hex, b_hex] = [a, b].map(|source| source.split_once("sha256:").unwrap().1);
    std::fs::write(&manifest, told.replace(a_hex, b_hex)).unwrap();
    for (script, words) in [
        ("mvds", vec![root.as_str(), a, "7", "100"]),
        ("cpds", vec![root.as_str(), "ocivisor:6", "-1", "7", "100"]),
    ] {
        let why = refused(&front.tm(script, &words));
        assert!(why.contains("which is not its SOURCE's"), "{script}: {why}");
    }
    std::fs::write(&manifest, told).unwrap();
    std::fs::remove_file(cloud.file(1, "7/disk.0")).unwrap();
    let why = refused(&front.tm("mvds", &[&root, a, "7", "100"]));
    assert!(why.contains("does not exist"), "{why}");
}

#[test]
fn hostile_words_hosts_and_files_lead_nowhere() {
    let cloud = Cloud::of(1);
    let front = &cloud.front;
    let [a, _] = &cloud.sources;
    front.say_disks(7, &[(0, 64, "")]);
    let here = |rest: &str| cloud.on(1, rest);
    for (script, words) in [
        ("clone", vec![a.as_str(), "-oProxyCommand=touch:/d/101/7/disk.0", "7", "100"]),
        ("clone", vec!["frontend:/etc/passwd", &here("7/disk.0"), "7", "100"]),
        ("clone", vec!["ocivisor:3@sha256:../../x", &here("7/disk.0"), "7", "100"]),
        ("clone", vec!["ocivisor:99", &here("7/disk.0"), "7", "100"]),
        ("delete", vec![&here("7/../8"), "7", "101"]),
        ("delete", vec![&here("7/vm.xml"), "7", "101"]),
        ("mkimage", vec!["16", "vmdk", &here("7/disk.1"), "7", "101"]),
        ("snap_create", vec![&here("7/disk.0"), "1", "7", "100"]),
    ] {
        refused(&front.tm(script, &words));
    }
    let unknown = format!("nohost:{}", cloud.file(1, "7").display());
    let why = refused(&front.tm("delete", &[&unknown, "7", "101"]));
    assert!(
        why.contains("host nohost cannot be reached: ssh: Could not resolve hostname"),
        "{why}"
    );
    for script in ["postbackup", "postbackup_live", "failmigrate"] {
        done(&front.tm(script, &[&here("7"), "0", "one-7", "-", "7", "101"]));
    }

    // What lies where a disk goes is not followed.
    let outside = cloud.hosts[0].dir().join("outside");
    std::fs::write(&outside, "precious").unwrap();
    let dir = cloud.file(1, "7");
    std::fs::remove_dir_all(&dir).unwrap();
    std::fs::create_dir(&dir).unwrap();
    std::os::unix::fs::symlink(&outside, dir.join("disk.1")).unwrap();
    tool(&["chown", "-hR", "54321:54321", &dir.display().to_string()]);
    refused(&front.tm("resize", &[&here("7/disk.1"), "64", "7", "100"]));
    done(&front.tm("mkimage", &["16", "raw", &here("7/disk.1"), "7", "101"]));
    assert_eq!(std::fs::read_to_string(&outside).unwrap(), "precious");
    assert_eq!(dir.join("disk.1").metadata().unwrap().len(), 16 << 20);

    // A blob that is not what its name says is found out by the host, and nothing is made of it.
    let damaged = front.path("ds/100/store/blobs/sha256");
    for entry in std::fs::read_dir(&damaged).unwrap() {
        let path = entry.unwrap().path();
        if path.metadata().unwrap().len() > COMMON as u64 {
            let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, b"evil", 2_000_000).unwrap();
        }
    }
    let why = refused(&front.tm("clone", &[a, &here("7/disk.0"), "7", "100"]));
    assert!(why.contains("host host1: "), "{why}");
    assert!(!dir.join("disk.0").exists());
    cloud.nothing_is_on_its_way(1);
}

#[test]
fn a_clone_that_is_killed_is_begun_again() {
    let cloud = Cloud::of(1);
    let front = &cloud.front;
    let [a, _] = &cloud.sources;
    front.say_disks(7, &[(0, 64, "")]);
    let disk = cloud.on(1, "7/disk.0");
    let words = [a.as_str(), &disk, "7", "100"];
    let sent = front.path("sent.host1");
    for at in [1, 100_000, 2_000_000] {
        let mut child = front.command("clone", &words).spawn().unwrap();
        let reached = || std::fs::metadata(&sent).map_or(0, |meta| meta.len()) >= at;
        while child.try_wait().unwrap().is_none() && !reached() {
            std::thread::yield_now();
        }
        let _ = child.kill();
        child.wait().unwrap();
        let _ = std::fs::remove_file(&sent);
    }
    done(&front.tm("clone", &words));
    assert_eq!(cloud.file(1, "7/disk.0").metadata().unwrap().len(), 64 << 20);
    cloud.nothing_is_on_its_way(1);
}

#[test]
fn on_a_shared_system_datastore_a_persistent_disk_is_the_image_itself() {
    let mut cloud = Cloud::of(1);
    cloud.front.share();
    let front = &cloud.front;
    let [a, _] = &cloud.sources;
    front.say_disks(7, &[(0, 64, ""), (1, 2, "")]);
    let (root, data) = (cloud.on(1, "7/disk.0"), cloud.on(1, "7/disk.1"));
    let image = front.path("ds/100/0123456789abcdef0123456789abcdef");
    std::fs::write(&image, vec![b'x'; 2 << 20]).unwrap();
    let own = cloud.hosts[0].dir().join("ds/100/0123456789abcdef0123456789abcdef");
    let own = own.display().to_string();
    let inode =
        |path: &std::path::Path| std::os::unix::fs::MetadataExt::ino(&path.metadata().unwrap());
    let (on_root, on_data) = (cloud.file(1, "7/disk.0"), cloud.file(1, "7/disk.1"));
    // The first time the image gets the disk that was made, then the VM gets the image's.
    for _ in 0..2 {
        for _ in 0..2 {
            done(&front.tm("ln", &[a, &root, "7", "100"]));
            done(&front.tm("ln", &[&format!("frontend:{own}"), &data, "7", "100"]));
        }
        assert_eq!(inode(&on_root), inode(&front.path("ds/100/disks/3")));
        assert_eq!(inode(&on_data), inode(&image));
        // Both machines have it: nothing moves.
        let there = cloud.on(1, "7").replace("host1:", "frontend:");
        let _before = front.sent("host1");
        done(&front.tm("mv", &[&cloud.on(1, "7"), &there, "7", "101"]));
        assert!(front.sent("host1") < 5_000 && on_root.exists());
        for _ in 0..2 {
            done(&front.tm("mvds", &[&data, &own, "7", "100"]));
            done(&front.tm("mvds", &[&root, a, "7", "100"]));
        }
        assert!(!on_root.exists() && !on_data.exists() && image.exists());
    }
    // What a host's agent is told of its VMs.
    done(&front.tm("mkswap", &["8", &cloud.on(1, "7/disk.3"), "7", "101"]));
    let ds = cloud.file(1, "").display().to_string();
    let answer = front.tm("monitor_ds", &[ds.trim_end_matches('/')]);
    // DISK_SIZE=[ID=3,SIZE=1]
    assert_eq!(
        answer.out, "VM=[ID=7,MONITOR=\"RElTS19TSVpFPVtJRD0zLFNJWkU9MV0K\"]\n",
        "{answer:?}"
    );
}

#[test]
fn a_host_fetches_from_the_registry_only_if_the_datastore_says_so() {
    let mut cloud = Cloud::of(1);
    // The host lets nothing in from registries: that is its answer, and tells that it was to go there.
    let policy = r#"{"default": [{"type": "insecureAcceptAnything"}],
        "transports": {"docker": {"": [{"type": "reject"}]}}}"#;
    std::fs::write(cloud.hosts[0].dir().join("policy.json"), policy).unwrap();
    cloud.hosts[0].restart_daemon();
    let front = &cloud.front;
    let [a, _] = &cloud.sources;
    front.say_disks(7, &[(0, 64, "")]);
    let digest = a.split_once('@').unwrap().1;
    let depot = front.depot();
    let container = Container {
        manifest: Some(digest.parse().unwrap()),
        origin: Some(format!("docker://127.0.0.1:1/x@{digest}")),
        saved: None,
    };
    let record = ImageRecord::new(3, Content::Container(container));
    depot.write(&depot.lock(3).unwrap(), &record).unwrap();
    let say = |wish: &str| {
        let text = format!("<DATASTORE><ID>100</ID><TEMPLATE>{wish}</TEMPLATE></DATASTORE>");
        std::fs::write(front.path("datastore.100"), text).unwrap();
    };
    let words = [a.as_str(), &cloud.on(1, "7/disk.0"), "7", "100"];
    say("<OCI_FETCH>registry</OCI_FETCH>");
    let why = refused(&front.tm("clone", &words));
    assert!(why.contains("host host1: ") && why.contains("127.0.0.1:1"), "{why}");
    assert!(front.sent("host1") < 5_000, "nothing of the image goes through the front-end");
    say("");
    done(&front.tm("clone", &words));
    assert!(front.sent("host1") > COMMON as u64);
}
