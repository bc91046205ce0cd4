//! A platform's user, who is in the operators' group and nothing else on the host.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]
#![allow(
    clippy::disallowed_methods,
    reason = "tests make the files and processes that they test with"
)]

use ocivisor_tests::{Call, Host, tool};

/// Number of the user and of his group.
const OPERATOR: u32 = 54_321;
const ACCESS: &str = "[access]\noperate_gid = 54321\noperate_dirs = [\"@DIR@/ds\"]\n";

#[test]
fn operators_drive_vms_on_their_disks_and_nothing_else() {
    let host = Host::start_with(ACCESS);
    let disk = host.add_disk(0);
    tool(&["chown", "-R", "54321:54321", &host.vm_dir(0).display().to_string()]);
    let before = host.counts();
    let ask = |arguments: &[&str]| host.as_user(OPERATOR, &host.cli_command(arguments), b"");

    // The first command of a fresh daemon may be his.
    assert_eq!(ask(&["list"]).code, 0);
    let deploy = Call::recorded(&host, "0079-vmm-deploy");
    let answer = host.as_user(OPERATOR, &host.driver_command(&deploy), &deploy.stdin);
    assert_eq!((answer.code, answer.out.as_str()), (0, "one-0\n"), "{answer:?}");
    // The guest's own, as seen by its own sessions and console.
    let inside = ask(&["exec", "one-0", "--", "id", "-u"]);
    assert_eq!((inside.code, inside.out.as_str()), (0, "0\n"), "{inside:?}");
    let shown = ask(&["console", "--read-only", "one-0"]);
    assert_eq!(shown.code, 0, "{shown:?}");
    assert!(shown.err.contains("one-0: console attached"), "{shown:?}");
    let cancel = Call::recorded(&host, "0119-vmm-cancel").for_vm(2, 0);
    assert_eq!(host.as_user(OPERATOR, &host.driver_command(&cancel), &cancel.stdin).code, 0);
    assert_eq!(host.counts(), before);

    // Exit code 5: he may not.
    let elsewhere = host.dir().join("elsewhere").display().to_string();
    let size = ["--image", "busybox", "--size", "64MiB"];
    assert_eq!(ask(&[&["disk", "create"], &size[..], &[&elsewhere]].concat()).code, 5);
    assert_eq!(ask(&["image", "import", "rootfs:/etc/shadow", "x"]).code, 5);
    assert_eq!(ask(&["image", "import", "/etc/shadow", "x"]).code, 5);
    assert_eq!(ask(&["image", "rm", "busybox"]).code, 5);

    // A directory of his that became a link leads nowhere.
    let dir = host.vm_dir(0);
    tool(&["mv", &dir.display().to_string(), &host.dir().join("moved").display().to_string()]);
    std::os::unix::fs::symlink(host.dir().join("moved"), &dir).unwrap();
    let answer = host.as_user(OPERATOR, &host.driver_command(&deploy), &deploy.stdin);
    assert_eq!(answer.code, 1);
    assert!(answer.err.contains("not below a directory open to operators"), "{answer:?}");
    assert!(disk.exists());

    // Who is in no group is nobody.
    let stranger = host.as_user(OPERATOR + 1, &host.cli_command(&["list"]), b"");
    assert_eq!(stranger.code, 5, "{stranger:?}");
}

/// Another platform's user, in the same group.
const OTHER: u32 = OPERATOR + 7;

/// The host's busybox with one more file.
fn another_tar(host: &Host, file: &str) -> String {
    let tar = host.dir().join(format!("ds/{file}.tar"));
    std::fs::copy(host.dir().join("busybox.tar"), &tar).unwrap();
    let extra = host.dir().join(file);
    std::fs::write(&extra, file).unwrap();
    let (tar, dir) = (tar.display().to_string(), host.dir().display().to_string());
    tool(&["tar", "-C", &dir, "-rf", &tar, file]);
    format!("rootfs:{tar}")
}

#[test]
fn operators_move_the_names_that_they_set_and_no_others() {
    let mut host = Host::start_with(ACCESS);
    let [first, second] = ["first", "second"].map(|file| another_tar(&host, file));
    let by = |host: &Host, uid: u32, arguments: &[&str]| {
        host.as_member(uid, OPERATOR, &host.cli_command(arguments), b"")
    };
    let import = |uid: u32, source: &str, name: &str| {
        let answer = by(&host, uid, &["image", "import", source, name]);
        if answer.code == 5 {
            let end = format!("ocivisor: name {name} cannot be set: ");
            assert!(answer.err.contains(&end), "{answer:?}");
        }
        answer.code
    };
    // The admin's stays; what it points at may be asked for again.
    let same = host.dir().join("ds/same.tar");
    std::fs::copy(host.dir().join("busybox.tar"), &same).unwrap();
    let digests = || {
        host.cli(&["image", "list"])
            .ok()
            .lines()
            .map(|line| line.split_whitespace().take(2).map(str::to_owned).collect())
            .collect::<Vec<Vec<_>>>()
    };
    let before = digests();
    assert_eq!(import(OPERATOR, &first, "busybox"), 5);
    assert_eq!(import(OPERATOR, &format!("rootfs:{}", same.display()), "busybox"), 0);
    assert_eq!(digests(), before);

    assert_eq!(import(OPERATOR, &first, "app"), 0);
    assert_eq!(import(OTHER, &second, "app"), 5);
    assert_eq!(import(OPERATOR, &second, "app"), 0);
    assert_eq!(import(OPERATOR, &second, "registry.example.com/app:1"), 5);
    // A commit is no way around.
    let disk = host.vm_dir(0).join("disk.0").display().to_string();
    host.cli(&["disk", "create", "--image", "app", "--size", "64MiB", &disk]).ok();
    let define = ["define", "web", "--disk", &disk, "--memory", "64M"];
    host.cli(&define).ok();
    for name in ["busybox", "registry.example.com/app:1"] {
        assert_eq!(by(&host, OPERATOR, &["image", "commit", "web", name]).code, 5, "{name}");
    }
    assert_eq!(by(&host, OTHER, &["image", "commit", "web", "app"]).code, 5);
    by(&host, OTHER, &["image", "commit", "web", "web"]).ok();

    let owners = |host: &Host| {
        let list = host.cli(&["image", "list", "-o", "json"]).json();
        let images = list["images"].as_array().unwrap().clone();
        let owner = |image: &serde_json::Value| {
            (image["name"].as_str().unwrap().to_owned(), image["owner_uid"].as_u64())
        };
        images.iter().map(owner).collect::<Vec<_>>()
    };
    let want = [
        // The one that `app` was before.
        (String::new(), None),
        ("app".to_owned(), Some(u64::from(OPERATOR))),
        ("busybox".to_owned(), None),
        ("web".to_owned(), Some(u64::from(OTHER))),
    ];
    assert_eq!(owners(&host), want);
    // Names are on the disk, and so is whose they are.
    host.restart_daemon();
    assert_eq!(by(&host, OTHER, &["image", "import", &first, "app"]).code, 5);
    host.cli(&["image", "tag", "busybox", "app"]).ok();
    assert_eq!(by(&host, OPERATOR, &["image", "import", &first, "app"]).code, 5);
}

#[test]
fn operators_end_the_operations_that_they_began_and_no_others() {
    let host = Host::start_with(ACCESS);
    let by = |uid: u32, arguments: &[&str]| {
        host.as_member(uid, OPERATOR, &host.cli_command(arguments), b"")
    };
    let call = |uid: u32, method: &str, params: &serde_json::Value| {
        let body = serde_json::json!({
            "jsonrpc": "2.0", "id": 1, "method": method, "params": params,
        });
        let mut curl = std::process::Command::new("curl");
        curl.args(["-s", "-H", "Content-Type: application/json", "--unix-socket"])
            .arg(host.socket())
            .args(["-d", &body.to_string(), "http://localhost/"]);
        host.as_member(uid, OPERATOR, &curl, b"").json()
    };
    // Nobody is there: it is tried again for a while.
    let source = "docker://127.0.0.1:5001/team/app:1";
    let pull = ["image", "pull", source, "--no-wait", "-q", "--request-id", "r-1"];
    let op = by(OPERATOR, &pull).ok();
    let op = serde_json::json!({"op": op.trim()});
    let get = |uid: u32| call(uid, "op.get", &op)["result"]["kind"].clone();
    assert_eq!([get(OPERATOR), get(OTHER)], ["import", "import"]);
    assert_eq!(call(OTHER, "op.cancel", &op)["error"]["data"]["kind"], "permission");

    // The same id leads its user there again, and nobody else.
    let ask = |uid: u32, source: &str| {
        call(uid, "image.import", &serde_json::json!({"request_id": "r-1", "source": source}))
    };
    let again = ask(OPERATOR, source);
    assert_eq!((&again["result"]["op"], &again["result"]["joined"]), (&op["op"], &true.into()));
    let other = ask(OPERATOR, "docker://127.0.0.1:5001/team/app:2");
    assert_eq!(other["error"]["data"]["kind"], "conflict", "{other}");
    let theirs = ask(OTHER, source);
    assert_ne!(theirs["result"]["op"], op["op"], "{theirs}");
    let theirs = serde_json::json!({"op": theirs["result"]["op"]});

    let ended = |op: &serde_json::Value| {
        ocivisor_tests::wait_for("the end", || {
            let status = call(0, "op.get", op);
            let kind = status["result"]["result"]["error"]["kind"].clone();
            if kind == "cancelled" { Ok(()) } else { Err(status) }
        });
    };
    assert_eq!(call(OPERATOR, "op.cancel", &op)["result"]["op"], op["op"]);
    ended(&op);
    // Admins end everybody's.
    assert_eq!(call(0, "op.cancel", &theirs)["result"]["op"], theirs["op"]);
    ended(&theirs);
}
