use super::*;

fn call(script: &str, argv: &str) -> Result<TmCall, Answer> {
    plan(script, &argv.split(' ').collect::<Vec<_>>())
}

#[test]
fn the_recorded_words_are_understood() {
    let hex = "a".repeat(64);
    for (script, argv) in [
        (
            "clone",
            "frontend:/var/lib/one//datastores/100/ba01 host02:/var/lib/one//datastores/101/0/disk.0 0 100",
        ),
        (
            "clone.ssh",
            &format!("ocivisor:3@sha256:{hex} host02:/var/lib/one//datastores/101/0/disk.0 0 100"),
        ),
        ("ln", "ocivisor:3 host01:/var/lib/one//datastores/101/1/disk.2 1 100"),
        ("mkimage", "512 raw host02:/var/lib/one//datastores/101/0/disk.1 0 101"),
        ("mkswap", "128 host01:/var/lib/one//datastores/101/1/disk.3 1 101"),
        (
            "context",
            "/var/lib/one/vms/41/context.sh /var/lib/one//datastores/104/b8dd:'initfile' /var/lib/one/vms/41/token.txt host01:/var/lib/one//datastores/101/41/disk.4 41 101",
        ),
        (
            "context",
            "/var/lib/one/vms/0/context.sh host02:/var/lib/one//datastores/101/0/disk.2 0 101",
        ),
        (
            "cpds",
            "host01:/var/lib/one//datastores/101/9/disk.0 /var/lib/one//datastores/100/1ed3 1 9 100",
        ),
        (
            "mv",
            "host01:/var/lib/one//datastores/101/2/disk.0 frontend:/var/lib/one//datastores/101/2/disk.0 2 100",
        ),
        (
            "mvds",
            "host01:/var/lib/one//datastores/101/1/disk.2 /var/lib/one//datastores/100/f40f 1 100",
        ),
        ("delete", "host02:/var/lib/one//datastores/101/0 0 101"),
        ("resize", "host01:/var/lib/one//datastores/101/11/disk.0 1024 11 100"),
        ("monitor", "103"),
        ("monitor_ds", "/var/lib/one//datastores/101"),
        ("postbackup", "host01:/var/lib/one//datastores/101/14 0 one-14 - 14 101"),
        ("failmigrate", "host01 host02 /var/lib/one//datastores/101/27 27 101"),
    ] {
        let read = call(script, argv);
        assert!(read.is_ok(), "{script} {argv}: {read:?}");
    }
}

#[test]
fn a_file_of_a_datastore_has_the_name_in_quotes() {
    let argv = "/v/context.sh /d/104/b8:'init' h:/d/1/2/disk.4 2 1";
    let Ok(TmCall { order: TmOrder::Context { files, .. }, vm, .. }) = call("context", argv) else {
        panic!("no context")
    };
    let names: Vec<_> = files.iter().map(|f| (f.path.to_str().unwrap(), f.name.as_str())).collect();
    assert_eq!(names, [("/v/context.sh", "context.sh"), ("/d/104/b8", "init")]);
    assert_eq!(vm.unwrap().number(), 2);
}

#[test]
fn what_is_not_carried_out_is_refused_in_one_sentence() {
    for script in [
        "snap_create",
        "snap_create_live",
        "snap_delete",
        "snap_revert",
        "premigrate",
        "postmigrate",
        "prebackup",
        "prebackup_live",
        "restore",
    ] {
        let answer = call(script, "h:/d/1/9/disk.0 1 9 100").unwrap_err();
        assert_eq!((answer.exit, answer.stdout.as_str()), (1, ""));
        assert!(answer.stderr.ends_with("nothing was touched.\n"), "{}", answer.stderr);
        assert_eq!(answer.stderr.lines().count(), 1);
    }
}

#[test]
fn words_of_another_shape_are_refused() {
    for (script, argv) in [
        ("nosuch", "1 2"),
        ("clone", "x"),
        ("clone", "docker://alpine:3 h:/d/1/2/disk.0 2 1"),
        ("clone", "ocivisor:3@sha256:00 h:/d/1/2/disk.0 2 1"),
        ("clone", "ocivisor:3 -x:/d/1/2/disk.0 2 1"),
        ("clone", "ocivisor:3 h:/d/1/2/disk.0 x 1"),
        ("clone", "fe:/d/../etc/shadow h:/d/1/2/disk.0 2 1"),
        ("mv", "a:/d/1/2/disk.0 b:/d/1/2 2 1"),
        ("mkimage", "0 raw h:/d/1/2/disk.0 2 1"),
        ("mkimage", "99999999999999999999 raw h:/d/1/2/disk.0 2 1"),
        ("context", "/a/x:'..' h:/d/1/2/disk.0 2 1"),
        ("context", "/a/x /b/x h:/d/1/2/disk.0 2 1"),
        ("context", "/a/x:'a/b' h:/d/1/2/disk.0 2 1"),
        ("monitor_ds", "/etc"),
    ] {
        let answer = call(script, argv).unwrap_err();
        assert_eq!(answer.exit, 1, "{script} {argv}");
        assert_eq!(answer.stderr.lines().count(), 1, "{}", answer.stderr);
    }
}
