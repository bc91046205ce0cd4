//! Commands against a daemon that answers as told: what is sent, what is printed, exit codes.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod console;
mod fake;

use assert_cmd::Command;
use insta::assert_snapshot;
use serde_json::{Value, json};

use fake::{Answer, Fake, api_error, operation, status};

fn ocivisor(fake: &Fake, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ocivisor"));
    command.env_clear().env("OCIVISOR_SOCKET", fake.socket()).args(args);
    command
}

/// Exit code, standard output, standard error.
fn run(command: &mut Command) -> (i32, String, String) {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn summary(id: &str) -> Value {
    json!({
        "id": id, "name": id, "platform": "local", "state": "running", "failure": null,
        "display_state": "running", "pid": 42, "addresses": ["10.0.0.5/24"],
        "memory": 268_435_456, "cpu_share": 50, "vcpus": 1, "uid_base": 1_073_741_824,
        "created": "2026-11-20T10:00:00.000Z", "changed": "2026-11-20T10:00:01.000Z", "op": null,
    })
}

/// Of a VM that is not known any more.
fn why(error: &Value) -> Value {
    json!({
        "vm": "one-0", "state": null, "display_state": null, "changed": null, "reason": null,
        "last_exit": null, "ended_by_itself": false, "console": [],
        "failure": {
            "version": 1, "vm": "one-0", "op": "op-5", "operation": "deploy", "step": "nics",
            "error": error, "at": "2026-11-20T10:00:00.000Z", "exit": {"kind": "signal", "signal": 9},
            "console": ["\u{1b}[2Jfirst", "second"],
        },
    })
}

#[test]
fn why_tells_step_cause_remedy_and_last_lines_also_by_a_number() {
    let error = json!({"kind": "not_found", "message": "no bridge br7", "hint": "ip link"});
    let fake = Fake::start(move |_, params| match params["vm"].as_str() {
        Some("one-0") => Answer::Result(why(&error)),
        _ => api_error("not_found", "nothing is known of it"),
    });
    let (code, stdout, stderr) = run(&mut ocivisor(&fake, &["why", "0"]));
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert_snapshot!(stdout);
    let asked: Vec<Value> = fake.calls().into_iter().map(|(_, params)| params).collect();
    assert_eq!(asked, [json!({"vm": "0"}), json!({"vm": "one-0"})]);
    let (code, stdout, stderr) = run(&mut ocivisor(&fake, &["why", "7"]));
    assert_eq!((code, stdout.as_str()), (3, ""));
    assert_eq!(stderr, "ocivisor: nothing is known of vm 7, nor of one-7\n");
    assert_eq!(run(&mut ocivisor(&fake, &["why", "web"])).0, 3);
}

#[test]
fn a_list_is_a_table_or_json_or_ids() {
    let fake = Fake::start(|method, _| match method {
        "vm.list" => Answer::Result(json!([summary("a"), summary("b")])),
        "vm.damaged" => Answer::Result(json!([{"id": "c", "why": "sha256"}])),
        other => panic!("unexpected {other}"),
    });
    let (code, table, _) = run(&mut ocivisor(&fake, &["list"]));
    assert_eq!(code, 0);
    assert_snapshot!(table);
    let (_, ids, _) = run(&mut ocivisor(&fake, &["list", "-q"]));
    assert_eq!(ids, "a\nb\nc\n");
    let (_, none, _) = run(&mut ocivisor(&fake, &["list", "-q", "--state", "stopped"]));
    assert_eq!(none, "");
    let (_, damaged, _) = run(&mut ocivisor(&fake, &["list", "-q", "--state", "damaged"]));
    assert_eq!(damaged, "c\n");
    let (_, text, _) = run(&mut ocivisor(&fake, &["list", "-o", "json"]));
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["schema_version"], 1);
    assert_eq!(value["vms"][1], summary("b"));
    assert_eq!(value["damaged"], json!([{"id": "c", "why": "sha256"}]));
}

/// Its package was replaced, and it was not restarted yet.
#[test]
fn a_daemon_of_before_damaged_records_were_listed_has_none() {
    let with = |answer: fn() -> Answer| {
        Fake::start(move |method, _| match method {
            "vm.list" => Answer::Result(json!([summary("a")])),
            _ => answer(),
        })
    };
    let older = with(|| Answer::Error(json!({"code": -32601, "message": "Method not found"})));
    let listed = run(&mut ocivisor(&older, &["list", "-q"]));
    assert_eq!(listed, (0, "a\n".into(), String::new()));
    let broken = with(|| api_error("host", "a bug"));
    assert_ne!(run(&mut ocivisor(&broken, &["list", "-q"])).0, 0);
}

#[test]
fn an_operation_is_waited_for_and_told_in_a_word() {
    let fake = Fake::start(|method, _| match method {
        "vm.start" => Answer::Result(operation("web")),
        "op.wait" => Answer::Result(status("web", "start", &json!("ok"))),
        other => panic!("unexpected {other}"),
    });
    let (code, stdout, stderr) = run(&mut ocivisor(&fake, &["start", "web", "--request-id", "r1"]));
    assert_eq!((code, stdout.as_str(), stderr.as_str()), (0, "web: started\n", ""));
    let calls = fake.calls();
    assert_eq!(calls[0], ("vm.start".into(), json!({"request_id": "r1", "vm": "web"})));
    assert_eq!(calls[1].0, "op.wait");
    assert_eq!(calls[1].1["op"], "op-5");
}

#[test]
fn without_waiting_the_operation_is_printed() {
    let fake = Fake::start(|_, _| Answer::Result(operation("web")));
    let (code, stdout, _) = run(&mut ocivisor(&fake, &["reset", "web", "--no-wait", "-q"]));
    assert_eq!((code, stdout.as_str()), (0, "op-5\n"));
    assert_eq!(fake.calls().len(), 1);
}

#[test]
fn what_is_true_already_is_success() {
    let reply = json!({"op": null, "vm": "web", "state": "running", "joined": false});
    let fake = Fake::start(move |_, _| Answer::Result(reply.clone()));
    let (code, stdout, _) = run(&mut ocivisor(&fake, &["start", "web"]));
    assert_eq!((code, stdout.as_str()), (0, "web: running already\n"));
}

#[test]
fn an_operation_that_fails_has_its_own_exit_code_and_hint() {
    let error =
        json!({"error": {"kind": "not_found", "message": "no bridge br7", "hint": "ip link"}});
    let fake = Fake::start(move |method, _| match method {
        "vm.start" => Answer::Result(operation("web")),
        _ => Answer::Result(status("web", "start", &error)),
    });
    let (code, stdout, stderr) = run(&mut ocivisor(&fake, &["start", "web"]));
    assert_eq!((code, stdout.as_str()), (3, ""));
    assert_eq!(stderr, "ocivisor: no bridge br7\nhint: ip link\n");
}

#[test]
fn every_kind_of_refusal_has_its_exit_code() {
    for (kind, code) in [
        ("invalid", 2),
        ("not_found", 3),
        ("conflict", 4),
        ("permission", 5),
        ("timeout", 6),
        ("exhausted", 7),
        ("unsupported", 8),
        ("image", 10),
        ("integrity", 11),
        ("guest_exited", 1),
        ("cancelled", 4),
        ("host", 1),
    ] {
        let fake = Fake::start(move |_, _| api_error(kind, "it is made to fail"));
        let (got, stdout, stderr) = run(&mut ocivisor(&fake, &["undefine", "web"]));
        assert_eq!((got, stdout.as_str()), (code, ""), "{kind}");
        assert_eq!(stderr, "ocivisor: it is made to fail\n");
    }
}

#[test]
fn a_lost_connection_sends_the_same_request_again() {
    let fake = Fake::start({
        let tries = std::sync::atomic::AtomicU32::new(0);
        move |method, _| match method {
            "vm.destroy" if tries.fetch_add(1, std::sync::atomic::Ordering::SeqCst) < 2 => {
                Answer::HangUp
            }
            "vm.destroy" => Answer::Result(operation("web")),
            _ => Answer::Result(status("web", "destroy", &json!("ok"))),
        }
    });
    let (code, stdout, _) = run(&mut ocivisor(&fake, &["destroy", "web", "--forget"]));
    assert_eq!((code, stdout.as_str()), (0, "web: destroyed\n"));
    let calls = fake.calls();
    assert_eq!(calls.len(), 4);
    assert_eq!(calls[0], calls[1]);
    assert_eq!(calls[1], calls[2]);
    assert_eq!(calls[0].1["forget"], true);
}

#[test]
fn shutdown_hands_its_time_to_the_guest() {
    let fake = Fake::start(|method, _| match method {
        "vm.shutdown" => Answer::Result(operation("web")),
        _ => Answer::Result(status("web", "shutdown", &json!("ok"))),
    });
    let args = ["shutdown", "web", "--timeout", "90s", "--no-force"];
    assert_eq!(run(&mut ocivisor(&fake, &args)).0, 0);
    let sent = &fake.calls()[0].1;
    assert_eq!(sent["timeout_ms"], 90_000);
    assert_eq!(sent["force"], false);
    assert_eq!(sent["forget"], false);
}

#[test]
fn a_deadline_leaves_the_operation_to_go_on() {
    let fake = Fake::start(|method, _| match method {
        "vm.start" => Answer::Result(operation("web")),
        _ => Answer::Result(json!({
            "op": "op-5", "vm": "web", "kind": "start", "done": false, "step": "mount",
            "result": null,
        })),
    });
    let (code, _, stderr) = run(&mut ocivisor(&fake, &["start", "web", "--timeout", "30ms"]));
    assert_eq!(code, 6);
    assert!(stderr.starts_with("ocivisor: op-5 did not end within"), "{stderr}");
}

#[test]
fn paths_reach_the_daemon_absolute() {
    let fake = Fake::start(|method, _| match method {
        "disk.create" => Answer::Result(json!({
            "path": "/x", "manifest": "/x.manifest.json", "image_digest": "sha256:00",
        })),
        _ => api_error("image", "not an image"),
    });
    let dir = tempfile::tempdir().unwrap();
    let args = ["disk", "create", "--image", "debian", "--size", "2GiB", "sub//disk.0", "-q"];
    let (code, stdout, _) = run(ocivisor(&fake, &args).current_dir(dir.path()));
    assert_eq!((code, stdout.as_str()), (0, "/x\n"));
    let args = ["image", "import", "oci:layout", "-q"];
    assert_eq!(run(ocivisor(&fake, &args).current_dir(dir.path())).0, 10);
    let calls = fake.calls();
    let here = dir.path().display();
    assert_eq!(calls[0].1["path"], format!("{here}/sub/disk.0"));
    assert_eq!(calls[0].1["size_bytes"], 2_147_483_648_u64);
    assert_eq!(calls[1].1["source"], format!("oci:{here}/layout"));
    assert_eq!(calls[1].1["name"], "layout");
}

mod one {
    use super::*;
    use std::path::Path;

    /// A call that oned made, with its script's arguments and input.
    fn recorded(name: &str) -> (Vec<String>, Vec<u8>) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../tests/fixtures/opennebula")
            .join(name);
        let argv: Vec<String> =
            serde_json::from_slice(&std::fs::read(dir.join("argv")).unwrap()).unwrap();
        (argv, std::fs::read(dir.join("stdin")).unwrap())
    }

    fn call(fake: &Fake, name: &str) -> (i32, String, String) {
        let (argv, stdin) = recorded(name);
        let action = Path::new(&argv[0]).file_name().unwrap().to_str().unwrap();
        let mut command = ocivisor(fake, &["one", "vmm", action]);
        command.args(&argv[1..]).write_stdin(stdin);
        run(command.env("OCIVISOR_OPENNEBULA_CONFIG", "/nonexistent"))
    }

    fn done(method: &str) -> Answer {
        match method {
            "op.wait" => Answer::Result(status("one-0", "deploy", &json!("ok"))),
            _ => Answer::Result(operation("one-0")),
        }
    }

    #[test]
    fn a_deploy_prints_the_deploy_id_alone() {
        let fake = Fake::start(|method, _| done(method));
        let (code, stdout, stderr) = call(&fake, "0079-vmm-deploy");
        assert_eq!((code, stdout.as_str()), (0, "one-0\n"), "{stderr}");
        assert!(stderr.lines().all(|line| line.starts_with("INFO: 0 ")), "{stderr}");
        let calls = fake.calls();
        let names: Vec<&str> = calls.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["vm.deploy", "op.wait"]);
        assert_eq!(calls[0].1["spec"]["id"], "one-0");
        assert_eq!(calls[0].1["spec"]["nics"][0]["host_name"], "one-0-0");
    }

    #[test]
    fn a_failed_deploy_is_one_sentence() {
        let error =
            json!({"error": {"kind": "not_found", "message": "no bridge br0", "hint": null}});
        let fake = Fake::start(move |method, _| match method {
            "op.wait" => Answer::Result(status("one-0", "deploy", &error)),
            _ => Answer::Result(operation("one-0")),
        });
        let (code, stdout, stderr) = call(&fake, "0079-vmm-deploy");
        assert_eq!((code, stdout.as_str()), (1, ""));
        let plain: Vec<&str> = stderr.lines().filter(|l| !l.starts_with("INFO: ")).collect();
        assert_eq!(plain, ["Cannot deploy VM 0: no bridge br0."]);
    }

    #[test]
    fn shutdown_and_cancel_forget_the_vm_and_succeed_when_it_is_unknown() {
        for (name, method) in [
            ("0083-vmm-shutdown", "vm.shutdown"),
            ("0119-vmm-cancel", "vm.destroy"),
            ("0623-vmm-cancel", "vm.destroy"),
        ] {
            // The daemon's answer to who wants a VM gone that is not known.
            let nothing = json!({"op": null, "vm": "one-0", "state": null, "joined": false});
            let fake = Fake::start(move |_, _| Answer::Result(nothing.clone()));
            let (code, stdout, stderr) = call(&fake, name);
            assert_eq!((code, stdout.as_str()), (0, ""), "{name}: {stderr}");
            let calls = fake.calls();
            assert_eq!(calls[0].0, method);
            assert_eq!(calls[0].1["forget"], true);
        }
        // A file or device that is missing while the VM is released is a failure like any other.
        let error =
            json!({"error": {"kind": "not_found", "message": "no device /dev/x", "hint": null}});
        let fake = Fake::start(move |method, _| match method {
            "op.wait" => Answer::Result(status("one-0", "shutdown", &error)),
            _ => Answer::Result(operation("one-0")),
        });
        assert_eq!(call(&fake, "0083-vmm-shutdown").0, 1);
        let fake = Fake::start(|method, _| done(method));
        call(&fake, "0083-vmm-shutdown");
        let sent = &fake.calls()[0].1;
        assert_eq!((&sent["timeout_ms"], &sent["force"]), (&json!(null), &json!(true)));
    }

    #[test]
    fn reboot_and_reset_of_an_unknown_vm_fail() {
        for name in ["0081-vmm-reboot", "0082-vmm-reset"] {
            let fake = Fake::start(|_, _| api_error("not_found", "no vm one-0"));
            let (code, stdout, stderr) = call(&fake, name);
            assert_eq!((code, stdout.as_str()), (1, ""));
            assert!(stderr.ends_with("VM 0: no vm one-0.\n"), "{stderr}");
        }
    }

    #[test]
    fn a_failure_that_is_kept_is_pointed_at_before_the_sentence() {
        let error = |message: &str| json!({"kind": "host", "message": message, "hint": null});
        for (kept, points) in [("deploy vm one-0: no", true), ("something of yesterday", false)] {
            let (failed, kept) =
                (json!({"error": error("deploy vm one-0: no; and then: x")}), error(kept));
            let fake = Fake::start(move |method, _| match method {
                "op.wait" => Answer::Result(status("one-0", "deploy", &failed)),
                "vm.why" => Answer::Result(crate::why(&kept)),
                _ => Answer::Result(operation("one-0")),
            });
            let (code, _, stderr) = call(&fake, "0079-vmm-deploy");
            assert_eq!(code, 1);
            let pointer = "INFO: 0 on this host, `ocivisor why one-0` tells more\n";
            let sentence = "Cannot deploy VM 0: no; and then: x.\n";
            assert_eq!(stderr.ends_with(&format!("{pointer}{sentence}")), points, "{stderr}");
            assert!(stderr.ends_with(sentence), "{stderr}");
            assert_eq!(stderr.contains("why"), points, "{stderr}");
        }
    }

    #[test]
    fn a_retry_is_a_request_of_its_own() {
        let fake = Fake::start(|method, _| done(method));
        call(&fake, "0082-vmm-reset");
        call(&fake, "0082-vmm-reset");
        let calls = fake.calls();
        let ids: Vec<&Value> = calls
            .iter()
            .filter(|(name, _)| name == "vm.reset")
            .map(|(_, params)| &params["request_id"])
            .collect();
        assert_eq!(ids.len(), 2);
        assert_ne!(ids[0], ids[1]);
    }
}
