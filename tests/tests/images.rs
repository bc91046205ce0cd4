//! The way of an image: from a registry to a guest, changed there, committed, pushed, and pulled by
//! another host.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]
#![allow(
    clippy::disallowed_methods,
    reason = "tests make the files and processes that they test with"
)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use ocivisor_tests::{Call, Host, tool, wait_for};

const USER: &str = "cloud";
const PASSWORD: &str = "correct:horse battery";

/// Debian's docker-registry on loopback of a host, with TLS and login.
struct Registry(Child);

impl Registry {
    /// `dir` holds certificates, users and data, made if they are not there.
    fn start(host: &Host, dir: &Path) -> Self {
        let at = |name: &str| dir.join(name).display().to_string();
        if !dir.join("key.pem").exists() {
            let make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"];
            let (ca, ca_key) = (at("ca.pem"), at("ca.key"));
            let own = ["-subj", "/CN=authority", "-keyout", &ca_key, "-out", &ca];
            tool(&[&make[..], &own].concat());
            let (key, cert) = (at("key.pem"), at("cert.pem"));
            let names = ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"];
            let leaf = ["-addext", "basicConstraints=critical,CA:FALSE"];
            let files = ["-CA", &ca, "-CAkey", &ca_key, "-keyout", &key, "-out", &cert];
            tool(&[&make[..], &names, &leaf, &files].concat());
            let users = tool(&["htpasswd", "-Bbn", "-C", "4", USER, PASSWORD]);
            std::fs::write(dir.join("htpasswd"), users).unwrap();
            std::fs::write(dir.join("password"), PASSWORD).unwrap();
        }
        let config = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: \"{}\"}}}}\n\
             http:\n  addr: 127.0.0.1:5000\n  secret: test\n\
             \x20 tls: {{certificate: \"{}\", key: \"{}\"}}\n\
             auth: {{htpasswd: {{realm: test, path: \"{}\"}}}}\n",
            at("data"),
            at("cert.pem"),
            at("key.pem"),
            at("htpasswd")
        );
        std::fs::write(dir.join("config.yml"), config).unwrap();
        let child = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", host.name()))
            .args(["docker-registry", "serve", &at("config.yml")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let made = Self(child);
        wait_for("the registry", || {
            let asked = host.in_netns(&["curl", "-sk", "https://127.0.0.1:5000/v2/"]);
            if asked.code == 0 { Ok(()) } else { Err(asked) }
        });
        made
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// A host that knows the registry.
fn host(registry: &Path) -> Host {
    let at = |name: &str| registry.join(name).display().to_string();
    Host::start_with(&format!(
        "[registries.hosts.\"127.0.0.1:5000\"]\nca = \"{}\"\nusername = \"{USER}\"\n\
         password_file = \"{}\"\n",
        at("ca.pem"),
        at("password")
    ))
}

/// Deploys a recorded VM on a disk made from that image.
fn deploy(host: &Host, image: &str) {
    let disk = host.vm_dir(0).join("disk.0");
    std::fs::create_dir_all(disk.parent().unwrap()).unwrap();
    let disk = disk.display().to_string();
    host.cli(&["disk", "create", "--image", image, "--size", "64MiB", &disk]).ok();
    let answer = host.driver(&Call::recorded(host, "0079-vmm-deploy"));
    assert_eq!((answer.code, answer.out.as_str()), (0, "one-0\n"), "{answer:?}");
}

fn inside(host: &Host, script: &str) -> String {
    host.cli(&["exec", "one-0", "--", "sh", "-c", script]).ok()
}

#[test]
fn an_image_goes_from_a_registry_through_a_guest_to_another_host() {
    let registry = tempfile::tempdir().unwrap();
    let first = host(registry.path());
    let serving = Registry::start(&first, registry.path());

    // What is there under a digest is not fetched again, and its blobs are not sent again.
    let pushed =
        first.cli(&["image", "push", "busybox", "docker://127.0.0.1:5000/base:1", "-o", "json"]);
    let digest = pushed.json()["digest"].as_str().unwrap().to_owned();
    let again =
        first.cli(&["image", "push", "busybox", "docker://127.0.0.1:5000/base:1", "-o", "json"]);
    assert_eq!(again.json()["sent_bytes"], 0);
    let stat = first.cli(&["image", "stat", "docker://127.0.0.1:5000/base:1", "-o", "json"]).json();
    assert_eq!(stat["digest"].as_str(), Some(digest.as_str()));
    first.cli(&["image", "pull", "docker://127.0.0.1:5000/base:1"]).ok();
    let listed = first.cli(&["image", "list", "-q"]).ok();
    assert_eq!(listed, "127.0.0.1:5000/base:1\nbusybox\n");

    deploy(&first, "127.0.0.1:5000/base:1");
    inside(
        &first,
        "echo changed > /root/note; rm -r /etc/init.d; ln /root/note /root/twin; chown 1000:1000 /root/twin; sync",
    );
    let committed = first.cli(&["image", "commit", "one-0", "web:2", "-m", "a note", "-o", "json"]);
    assert_eq!(committed.json()["layers"], 2);
    assert_eq!(inside(&first, "cat /root/note"), "changed\n", "the guest goes on");
    first.cli(&["image", "push", "web:2", "docker://127.0.0.1:5000/web:2"]).ok();
    let history = first.cli(&["image", "history", "web:2", "-o", "json"]).json();
    assert_eq!(history["history"][0]["comment"], "a note");
    drop(serving);

    let second = host(registry.path());
    let _serving = Registry::start(&second, registry.path());
    second.cli(&["image", "pull", "docker://127.0.0.1:5000/web:2", "web"]).ok();
    deploy(&second, "web");
    let seen = "cat /root/note; stat -c '%u:%g %h' /root/twin; test ! -e /etc/init.d && echo gone";
    assert_eq!(inside(&second, seen), "changed\n1000:1000 2\ngone\n");

    // Both images stand on the same bytes.
    let df = first.cli(&["image", "df", "-o", "json"]).json();
    let web = df["images"].as_array().unwrap().iter().find(|i| i["names"][0] == "web:2").unwrap();
    assert!(web["shared_bytes"].as_u64().unwrap() > web["unique_bytes"].as_u64().unwrap(), "{df}");
    assert_eq!(
        first.cli(&["image", "fsck", "-o", "json"]).json()["findings"],
        serde_json::json!([])
    );
}

#[test]
fn a_registry_that_refuses_is_named_and_nothing_is_seen_of_the_image() {
    let registry = tempfile::tempdir().unwrap();
    let host = host(registry.path());
    let refused = |arguments: &[&str], code: i32, says: &str| {
        let answer = host.cli(arguments);
        assert_eq!(answer.code, code, "{answer:?}");
        assert!(answer.err.contains(says), "{says}: {answer:?}");
        assert!(!answer.err.contains(PASSWORD), "{answer:?}");
    };
    let pull = |reference: &'static str| ["image", "pull", reference];
    {
        let _serving = Registry::start(&host, registry.path());
        refused(&pull("docker://127.0.0.1:5000/none:1"), 10, "127.0.0.1:5000/none:1");
        std::fs::write(registry.path().join("password"), "wrong").unwrap();
        refused(&pull("docker://127.0.0.1:5000/base:1"), 10, "127.0.0.1:5000");
    }
    refused(&pull("docker://UPPER/x"), 2, "docker://UPPER/x");
    assert_eq!(host.cli(&["image", "list", "-q"]).ok(), "busybox\n");
}

/// A disk as clouds ship it: GPT with an EFI partition and ext4, in compressed qcow2.
fn cloud_disk(dir: &Path) -> PathBuf {
    let at = |name: &str| dir.join(name).display().to_string();
    let (tree, tar) = (at("tree"), dir.join("busybox.tar"));
    ocivisor_tests::image::busybox(&tar);
    std::fs::create_dir(&tree).unwrap();
    tool(&["tar", "-C", &tree, "-xpf", &tar.display().to_string()]);
    std::fs::write(Path::new(&tree).join("etc/os-release"), "ID=test\n").unwrap();
    std::fs::write(Path::new(&tree).join("root/from-disk"), "yes\n").unwrap();
    tool(&["mkfs.ext4", "-q", "-d", &tree, &at("root.img"), "48M"]);
    tool(&["truncate", "-s", "64M", &at("disk.img")]);
    let table = "label: gpt\nstart=2048, size=4096, type=uefi\nstart=8192, size=98304, \
                 type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709\n";
    std::fs::write(dir.join("table"), table).unwrap();
    tool(&["sh", "-c", &format!("sfdisk -q {} < {}", at("disk.img"), at("table"))]);
    let (from, to) = (format!("if={}", at("root.img")), format!("of={}", at("disk.img")));
    tool(&["dd", &from, &to, "bs=4M", "seek=1", "conv=notrunc", "status=none"]);
    tool(&["qemu-img", "convert", "-c", "-O", "qcow2", &at("disk.img"), &at("disk.qcow2")]);
    dir.join("disk.qcow2")
}

#[test]
fn a_cloud_disk_becomes_a_guest_and_its_files_a_tarball_again() {
    let dir = tempfile::tempdir().unwrap();
    let disk = format!("disk:{}", cloud_disk(dir.path()).display());
    let host = Host::start();
    host.cli(&["image", "import", &disk, "cloud"]).ok();
    deploy(&host, "cloud");
    assert_eq!(inside(&host, "cat /root/from-disk"), "yes\n");
    inside(&host, "echo more > /root/more; rm /root/from-disk");
    let tar = dir.path().join("out.tar").display().to_string();
    host.cli(&["image", "export", "--vm", "one-0", "-f", &tar]).ok();
    let names = tool(&["tar", "-tf", &tar]);
    let has = |name: &str| names.lines().any(|line| line.trim_start_matches("./") == name);
    assert!(has("root/more") && has("bin/busybox") && !has("root/from-disk"), "{names}");
    assert_eq!(tool(&["tar", "-xOf", &tar, "--wildcards", "*root/more"]), "more\n");

    // And a disk again, whose files are those that the guest has.
    let qcow2 = dir.path().join("out.qcow2").display().to_string();
    host.cli(&["image", "export", "--vm", "one-0", "--format", "qcow2", "-f", &qcow2]).ok();
    host.cli(&["image", "import", &format!("disk:{qcow2}"), "back"]).ok();
    let again = dir.path().join("again.tar").display().to_string();
    host.cli(&["image", "export", "back", "-f", &again]).ok();
    let list = |tar: &str| {
        let text = tool(&["tar", "--numeric-owner", "-tvf", tar]);
        let line = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            // Sizes of directories and times to the second aside.
            [&words[..3], &words[5..]].concat().join(" ")
        };
        let mut lines: Vec<String> = text.lines().map(line).collect();
        lines.sort();
        lines
    };
    assert_eq!(list(&again), list(&tar));
}

#[test]
fn a_policy_that_refuses_keeps_an_image_out() {
    let mut host = Host::start();
    let policy = r#"{"default": [{"type": "reject"}], "transports": {"oci-archive":
        {"": [{"type": "insecureAcceptAnything"}]}}}"#;
    let archive = host.dir().join("busybox.oci").display().to_string();
    host.cli(&["image", "save", "-f", &archive, "busybox"]).ok();
    std::fs::write(host.dir().join("policy.json"), policy).unwrap();
    host.restart_daemon();
    let tar = format!("rootfs:{}", host.dir().join("busybox.tar").display());
    let refused = host.cli(&["image", "import", &tar, "another"]);
    assert_eq!(refused.code, 10, "{refused:?}");
    assert!(refused.err.contains("policy"), "{refused:?}");
    assert_eq!(host.cli(&["image", "list", "-q"]).ok(), "busybox\n");
    host.cli(&["image", "import", &format!("oci-archive:{archive}"), "saved"]).ok();
    assert_eq!(host.cli(&["image", "list", "-q"]).ok(), "busybox\nsaved\n");

    std::fs::write(host.dir().join("policy.json"), "{").unwrap();
    let checked = Command::new(ocivisor_tests::bin_dir().join("ocivisord"))
        .arg("--check-config")
        .arg("--config")
        .arg(host.dir().join("c.toml"))
        .output()
        .unwrap();
    assert_eq!(checked.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&checked.stderr).contains("policy.json"), "{checked:?}");
}

#[test]
fn a_directory_with_a_dockerfile_becomes_an_image() {
    let host = Host::start();
    let dir = host.dir().join("build");
    std::fs::create_dir(&dir).unwrap();
    let tree = host.dir().join("busybox.tar");
    std::fs::copy(tree, dir.join("root.tar")).unwrap();
    std::fs::write(dir.join("Dockerfile"), "FROM scratch\nADD root.tar /\nENV BUILT=yes\n")
        .unwrap();
    let path = dir.display().to_string();
    let built = host.cli(&["image", "build", &path, "built:1", "-o", "json"]).json();
    assert_eq!(built["layers"], 1);
    let config = host.cli(&["image", "inspect", "built:1", "-o", "json"]).json();
    assert!(config["config"]["config"]["Env"].to_string().contains("BUILT=yes"), "{config}");
    let empty = host.dir().join("ds").display().to_string();
    let refused = host.cli(&["image", "build", &empty, "x"]);
    assert_eq!(refused.code, 3, "{refused:?}");
    std::fs::write(dir.join("Dockerfile"), "FROM scratch\nRUN false\n").unwrap();
    let refused = host.cli(&["image", "build", &path, "x"]);
    assert_eq!(refused.code, 10, "{refused:?}");
    assert_eq!(host.cli(&["image", "list", "-q"]).ok(), "built:1\nbusybox\n");
}

/// Bytes of a file that are in the page cache.
fn cached(file: &Path) -> u64 {
    let shown =
        tool(&["fincore", "--bytes", "--noheadings", "-o", "RES", &file.display().to_string()]);
    shown.trim().parse().unwrap()
}

#[test]
fn guests_of_two_images_share_their_base_on_disk_and_in_memory() {
    const BIG: u64 = 8 << 20;
    let host = Host::start();
    let layers = || std::fs::read_dir(host.state_dir().join("datastore/layers")).unwrap().count();
    deploy(&host, "busybox");
    inside(&host, "dd if=/dev/urandom of=/big bs=1M count=8 2>/dev/null");
    host.cli(&["image", "commit", "one-0", "base"]).ok();
    host.driver(&Call::recorded(&host, "0119-vmm-cancel").for_vm(2, 0));

    let define = |vm: &str, image: &str| {
        let disk = host.dir().join("ds").join(format!("{vm}.disk")).display().to_string();
        host.cli(&["disk", "create", "--image", image, "--size", "64MiB", &disk]).ok();
        host.cli(&["define", vm, "--disk", &disk, "--memory", "64M"]).ok();
        host.cli(&["start", vm]).ok();
    };
    let read = |vm: &str| host.cli(&["exec", vm, "--", "md5sum", "/big"]).ok();
    assert_eq!(layers(), 2);
    define("first", "base");
    host.cli(&["exec", "first", "--", "touch", "/only-here"]).ok();
    host.cli(&["image", "commit", "first", "other"]).ok();
    assert_eq!(layers(), 3, "a second image on that base adds its own layer alone");

    // One file below both guests; what the first reads is in memory for the second.
    let big =
        tool(&["find", &host.state_dir().display().to_string(), "-name", "big", "-type", "f"]);
    assert_eq!(big.lines().count(), 1, "{big}");
    let big = PathBuf::from(big.trim());
    tool(&["sync"]);
    let drop_pages = format!("of={}", big.display());
    tool(&["dd", &drop_pages, "oflag=nocache", "conv=notrunc,fdatasync", "count=0", "status=none"]);
    define("second", "other");
    assert_eq!(layers(), 3, "a deploy moves no byte");
    assert!(cached(&big) < BIG);
    let seen = read("first");
    assert_eq!(cached(&big), BIG);
    assert_eq!(read("second"), seen);
    let disks = tool(&["du", "-s", "-B1", &host.dir().join("ds").display().to_string()]);
    let bytes: u64 = disks.split_whitespace().next().unwrap().parse().unwrap();
    assert!(bytes < 2 * BIG, "{disks}");
}

#[test]
fn what_a_repair_set_aside_is_counted_and_given_up_when_no_vm_needs_it() {
    let host = Host::start();
    deploy(&host, "busybox");
    let layers = host.state_dir().join("datastore/layers");
    let layer = std::fs::read_dir(&layers).unwrap().next().unwrap().unwrap().path();
    std::fs::write(layer.join("fs/etc/extra"), vec![1; 1 << 20]).unwrap();
    host.cli(&["image", "fsck", "--repair"]).ok();
    let df = || host.cli(&["image", "df", "-o", "json"]).json();
    let set_aside = || df()["quarantine_bytes"].as_u64().unwrap();
    let full = set_aside();
    assert!(full > 1 << 20, "{full}");
    let all = df();
    let sum: u64 =
        ["blob_bytes", "layer_bytes", "partial_bytes", "staging_bytes", "quarantine_bytes"]
            .iter()
            .map(|part| all[part].as_u64().unwrap())
            .sum();
    let total = all["total_bytes"].as_u64().unwrap();
    assert!(sum <= total && total < sum + (1 << 20), "{all}");
    let shown = host.cli(&["image", "df"]).ok();
    assert!(shown.contains("quarantine") && shown.contains("total"), "{shown}");

    let prune = |more: &[&str]| {
        let pruned = host.cli(&[&["image", "prune", "-o", "json"], more].concat()).json();
        pruned["quarantined"].as_u64().unwrap()
    };
    let now = ["--quarantine", "--older-than", "0s"];
    // The guest was there at the repair and reads those files.
    assert_eq!(prune(&now), 0);
    host.driver(&Call::recorded(&host, "0119-vmm-cancel").for_vm(2, 0));
    let disk = host.vm_dir(0).join("disk.0").display().to_string();
    tool(&["rm", &disk, &format!("{disk}.manifest.json")]);
    assert_eq!(prune(&[]), 0);
    assert_eq!(prune(&["--quarantine"]), 0, "not a week old");
    assert_eq!(prune(&[&now[..], &["--dry-run"]].concat()), 1);
    assert_eq!(set_aside(), full);
    assert_eq!(prune(&now), 1);
    assert!(set_aside() < full - (1 << 20));
    assert_eq!(host.cli(&["image", "prune", "--older-than", "1d"]).code, 2);
    host.cli(&["image", "fsck"]).ok();
}

#[test]
fn nothing_is_given_back_while_it_is_not_known_what_a_vm_needs() {
    let mut host = Host::start();
    let disk = host.add_disk(0).display().to_string();
    host.cli(&["define", "web", "--disk", &disk, "--memory", "64M"]).ok();
    host.kill_daemon();
    std::fs::write(host.state_dir().join("vms/web/vm.json"), "{").unwrap();
    host.start_daemon();
    for command in [&["image", "prune"][..], &["image", "fsck", "--repair"]] {
        let refused = host.cli(command);
        assert_eq!(refused.code, 11, "{refused:?}");
        assert!(refused.err.contains("the record of vm web is damaged"), "{refused:?}");
    }
    host.cli(&["image", "fsck"]).ok();
    host.cli(&["image", "df"]).ok();
    // A name goes all the same, and its layers stay.
    host.cli(&["image", "rm", "busybox"]).ok();
    let layers = host.state_dir().join("datastore/layers");
    assert_eq!(std::fs::read_dir(layers).unwrap().count(), 1);
}

#[test]
fn what_is_made_of_a_vm_is_seen_by_who_watches_it() {
    let host = Host::start();
    deploy(&host, "busybox");
    host.cli(&["image", "commit", "one-0", "web:2"]).ok();
    let tar = host.dir().join("out.tar").display().to_string();
    host.cli(&["image", "export", "--vm", "one-0", "-f", &tar]).ok();
    let events = host.cli(&["events", "--vm", "one-0", "-o", "json"]).ok();
    let all = events.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let began: Vec<_> = all
        .filter(|event| event["kind"] == "operation_started")
        .map(|event| (event["operation"].clone(), event["image"].clone(), event["vm"].clone()))
        .collect();
    let row = |operation: &str, image: Option<&str>| {
        (operation.into(), image.map(Into::into).unwrap_or_default(), "one-0".into())
    };
    assert_eq!(began, [row("deploy", None), row("commit", Some("web:2")), row("export", None)]);
    let shown = host.cli(&["events", "--vm", "one-0"]).ok();
    assert!(shown.contains("  one-0 web:2  commit started (op-"), "{shown}");
}

/// A program of the test that ends with it.
struct Running(Child);

impl Running {
    /// A server in a host's network that takes connections and never says a word; it touches a file then.
    fn silent(host: &Host, port: u16, asked: &Path) -> Self {
        let script = "import socket, sys, pathlib\n\
            s = socket.create_server(('127.0.0.1', int(sys.argv[1])))\n\
            all = []\n\
            while True:\n\
            \x20   all.append(s.accept())\n\
            \x20   pathlib.Path(sys.argv[2]).touch()\n";
        let child = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", host.name()))
            .args(["python3", "-c", script, &port.to_string()])
            .arg(asked)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let made = Self(child);
        wait_for("the silent server", || {
            let listens = host.in_netns(&["ss", "-Hlnt", &format!("sport = {port}")]);
            if listens.out.is_empty() { Err(listens) } else { Ok(()) }
        });
        made
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn who_gives_up_a_pull_ends_it() {
    let config = "[registries.hosts.\"127.0.0.1:5001\"]\nplain_http = true\n";
    let host = Host::start_with(config);
    let asked = host.dir().join("asked");
    let _serving = Running::silent(&host, 5001, &asked);
    assert!(host.daemon_log().contains("127.0.0.1:5001 has plain_http"), "{}", host.daemon_log());

    let waiting = host
        .cli_command(&["image", "pull", "docker://127.0.0.1:5001/team/app:1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("a request", || if asked.exists() { Ok(()) } else { Err("none") });
    // Others do not have to wait for it.
    host.cli(&["image", "prune"]).ok();
    tool(&["kill", "-INT", &waiting.id().to_string()]);
    let ended = waiting.wait_with_output().unwrap();
    let says = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(4), "{says}");
    let last = says.lines().last().unwrap_or_default();
    assert_eq!(last, "ocivisor: import 127.0.0.1:5001/team/app:1: cancelled", "{says}");

    // Nothing is left of it, and nobody works on it.
    let datastore = host.state_dir().join("datastore");
    for dir in ["staging", "partial"] {
        assert_eq!(std::fs::read_dir(datastore.join(dir)).unwrap().count(), 0, "{dir}");
    }
    assert_eq!(host.cli(&["image", "list", "-q"]).ok(), "busybox\n");

    // Who does not wait leaves it to the daemon.
    let pull = ["image", "pull", "docker://127.0.0.1:5001/team/app:1", "--no-wait", "-q"];
    let op = host.cli(&pull).ok();
    let request = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"op.cancel","params":{{"op":"{}"}}}}"#,
        op.trim()
    );
    let ask = |body: &str| {
        let socket = host.socket().display().to_string();
        let header = "Content-Type: application/json";
        tool(&[
            "curl",
            "-s",
            "--unix-socket",
            &socket,
            "-H",
            header,
            "-d",
            body,
            "http://localhost/",
        ])
    };
    let status: serde_json::Value = serde_json::from_str(&ask(&request)).unwrap();
    assert_eq!(status["result"]["kind"], "import", "{status}");
    wait_for("the end", || {
        let body = request.replace("op.cancel", "op.get");
        let status: serde_json::Value = serde_json::from_str(&ask(&body)).unwrap();
        let kind = status["result"]["result"]["error"]["kind"].clone();
        if kind == "cancelled" { Ok(()) } else { Err(status) }
    });
}

#[test]
fn a_tarball_from_a_web_server_becomes_a_guest() {
    let registry = tempfile::tempdir().unwrap();
    let host = host(registry.path());
    // For its certificates alone.
    drop(Registry::start(&host, registry.path()));
    let at = |name: &str| registry.path().join(name).display().to_string();
    std::fs::copy(host.dir().join("busybox.tar"), registry.path().join("root.tar")).unwrap();
    let script = format!(
        "import http.server, ssl, os\n\
         os.chdir({:?})\n\
         s = http.server.ThreadingHTTPServer(('127.0.0.1', 5000), http.server.SimpleHTTPRequestHandler)\n\
         c = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)\n\
         c.load_cert_chain({:?}, {:?})\n\
         s.socket = c.wrap_socket(s.socket, server_side=True)\n\
         s.serve_forever()\n",
        registry.path(),
        at("cert.pem"),
        at("key.pem")
    );
    let serving = Command::new("nsenter")
        .arg(format!("--net=/run/netns/{}", host.name()))
        .args(["python3", "-c", &script])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _serving = Running(serving);
    wait_for("the web server", || {
        let asked = host.in_netns(&["curl", "-sk", "https://127.0.0.1:5000/ca.pem"]);
        if asked.code == 0 { Ok(()) } else { Err(asked) }
    });
    let url = "https://127.0.0.1:5000/root.tar";
    let sum = tool(&["sha256sum", &at("root.tar")]);
    let digest = format!("sha256:{}", sum.split_whitespace().next().unwrap());
    let without = host.cli(&["image", "import", url, "web"]);
    assert_eq!(without.code, 2, "{without:?}");
    assert!(without.err.contains("state the digest"), "{without:?}");
    let wrong = format!("sha256:{}", "0".repeat(64));
    let wrong = host.cli(&["image", "import", url, "web", "--digest", &wrong]);
    assert_eq!(wrong.code, 10, "{wrong:?}");
    assert!(wrong.err.contains(&format!("digest is {digest}, should be")), "{wrong:?}");
    host.cli(&["image", "import", url, "web", "--digest", &digest]).ok();
    deploy(&host, "web");
    assert_eq!(inside(&host, "echo here"), "here\n");
}
