//! `ocivisor why`: what became of a VM, from calls of OpenNebula's drivers to a guest's last lines.

#![allow(clippy::unwrap_used, reason = "tests")]

use ocivisor_tests::{Call, Host, wait_for};
use serde_json::{Value, json};

/// What an admin sees, without its times.
fn shown(host: &Host, vm: &str) -> Vec<String> {
    let text = host.cli(&["why", vm]).ok();
    let timeless = text.lines().filter(|line| !line.starts_with("when:"));
    timeless.map(|line| line.split(", since ").next().unwrap().to_owned()).collect()
}

#[test]
fn a_failed_deploy_is_explained_after_the_vm_is_forgotten_until_it_boots() {
    let mut host = Host::start();
    host.add_disk(0);
    let unknown = host.cli(&["why", "0"]);
    assert_eq!((unknown.code, unknown.out.as_str()), (3, ""));
    assert!(unknown.err.starts_with("ocivisor: nothing is known of vm 0, nor of one-0\n"));

    let deploy = Call::recorded(&host, "0079-vmm-deploy");
    let command = "echo looking for /etc/app.conf; printf '\\033[31mno luck\\033[0m\\n'; exit 3";
    let failing = deploy.clone().with("sleep 1000", command);
    let answer = host.driver(&failing);
    let lines: Vec<&str> = answer.err.lines().collect();
    let [.., more, sentence] = lines[..] else { panic!("{answer:?}") };
    assert_eq!(more, "INFO: 0 on this host, `ocivisor why one-0` tells more");
    assert!(sentence.starts_with("Cannot deploy VM 0: the guest ended at once"));
    assert_eq!(lines.iter().filter(|line| !line.starts_with("INFO: ")).count(), 1, "{answer:?}");
    assert_eq!(host.info("one-0"), None);

    let want = [
        "one-0: deploy failed",
        "step:    settle: the guest must live for a moment",
        "cause:   deploy vm one-0: the guest ended at once with exit code 3: no luck",
        "remedy:  see the image's entrypoint and command, and the vm's memory limit",
        "guest:   ended, exit code 3",
        "state:   not known any more: a failed deploy forgets the VM",
        "",
        "last lines of the guest",
        "  looking for /etc/app.conf",
        "  no luck",
    ];
    assert_eq!(shown(&host, "one-0"), want);
    assert_eq!(shown(&host, "0"), want, "by OpenNebula's number");
    host.restart_daemon();
    assert_eq!(shown(&host, "one-0"), want, "after a restart of the daemon");
    let why = host.cli(&["why", "0", "-o", "json"]).json();
    assert_eq!((&why["schema_version"], &why["state"]), (&json!(1), &Value::Null));
    assert_eq!(why["failure"]["error"]["kind"], "guest_exited");
    assert_eq!(why["failure"]["console"], json!(["looking for /etc/app.conf", "no luck"]));

    // What fails before there is a guest has no last lines, and takes the place of what was kept.
    host.driver(&deploy.clone().with("<BRIDGE><![CDATA[br0]]>", "<BRIDGE><![CDATA[nobr7]]>"));
    let text = shown(&host, "one-0").join("\n");
    assert!(text.contains("step:    nics") && text.contains("nobr7"), "{text}");
    assert!(!text.contains("luck"), "{text}");

    assert_eq!(host.driver(&deploy).code, 0);
    let why = host.cli(&["why", "0", "-o", "json"]).json();
    assert_eq!((&why["state"], &why["failure"]), (&json!("running"), &Value::Null));
    host.driver(&Call::recorded(&host, "0119-vmm-cancel").for_vm(2, 0)).ok();
    assert_eq!(host.cli(&["why", "0"]).code, 3);
}

#[test]
fn a_guest_that_ended_by_itself_is_explained_and_a_refusal_points_nowhere() {
    let host = Host::start();
    host.add_disk(0);
    let deploy = Call::recorded(&host, "0079-vmm-deploy");
    let call = deploy.clone().with("sleep 1000", "sleep 0.3; echo out of cheese; exit 7");
    assert_eq!(host.driver(&call).code, 0);
    wait_for("the end of the guest", || match host.info("one-0").unwrap() {
        info if info["state"]["name"] == "stopped" => Ok(()),
        info => Err(info["state"].clone()),
    });
    assert_eq!(
        shown(&host, "0"),
        [
            "one-0: no operation failed since it was last booted",
            "state:  stopped",
            "guest:  ended by itself, exit code 7",
            "",
            "last lines of the guest",
            "  out of cheese",
        ]
    );
    // Refused before there is an operation: the sentence says it all.
    let answer = host.driver(&deploy.with("<MEMORY><![CDATA[256]]>", "<MEMORY><![CDATA[1]]>"));
    assert_eq!(answer.code, 1);
    assert!(!answer.err.contains("ocivisor why"), "{answer:?}");
}
