use super::*;

const VM: &str = "<VM><ID>7</ID><NAME>n</NAME><TEMPLATE><CPU>1</CPU><MEMORY>64</MEMORY>\
                  <DISK><DISK_ID>0</DISK_ID><TYPE>FILE</TYPE></DISK></TEMPLATE></VM>";
const FILE: &str = "/var/lib/one//datastores/101/7/deployment.0";

fn data(vm: &str) -> String {
    format!("<VMM_DRIVER_ACTION_DATA><HOST>h</HOST>{vm}</VMM_DRIVER_ACTION_DATA>\n")
}

fn number(text: &str) -> OneId {
    text.parse().unwrap()
}

fn refused(action: &str, argv: &[&str], stdin: &str) -> String {
    let answer = plan(action, argv, stdin.as_bytes()).unwrap_err().answer();
    assert_eq!((answer.exit, answer.stdout.as_str()), (1, ""));
    answer.stderr
}

#[test]
fn deploy_gives_the_spec_and_prints_the_deploy_id() {
    let call = plan("deploy", &[FILE, "h", "7", "h"], VM.as_bytes()).unwrap();
    let VmmCall::Deploy { vm, spec, notes } = &call else { panic!("{call:?}") };
    assert_eq!(*vm, number("7"));
    assert_eq!(spec.id.as_str(), "one-7");
    assert_eq!(spec.root.path, Path::new("/var/lib/one/datastores/101/7/disk.0"));
    assert_eq!(notes, &[]);
    assert_eq!(call.success(), Answer { stdout: "one-7\n".into(), stderr: String::new(), exit: 0 });
}

#[test]
fn the_other_calls_take_the_vm_of_the_arguments() {
    let vm = number("7");
    for (action, want) in [
        ("shutdown", VmmCall::Shutdown { vm }),
        ("cancel", VmmCall::Cancel { vm, notes: vec![] }),
        ("reboot", VmmCall::Reboot { vm }),
        ("reset", VmmCall::Reset { vm }),
    ] {
        for dep in ["one-7", "", "-", "some", "one-8"] {
            for stdin in [data(VM), data("<VM><ID>7</ID></VM>"), String::new(), "\n".into()] {
                let call = plan(action, &[dep, "h", "7", "h"], stdin.as_bytes()).unwrap();
                assert_eq!(call, want);
                assert_eq!(call.action().name(), action);
                assert_eq!((call.success().exit, call.success().stdout.as_str()), (0, ""));
            }
        }
    }
}

#[test]
fn resize_takes_the_new_capacity_of_the_template() {
    let vm = VM.replace(
        "<MEMORY>64</MEMORY>",
        "<MEMORY>128</MEMORY><VCPU>3</VCPU>\
                         <RESIZE><CPU>1</CPU><MEMORY>64</MEMORY><VCPU>1</VCPU></RESIZE>",
    );
    let call = plan("resize", &["one-7", "7", "h"], data(&vm).as_bytes()).unwrap();
    let VmmCall::Resize { resources, .. } = &call else { panic!("{call:?}") };
    assert_eq!((resources.memory.to_string().as_str(), resources.vcpus), ("128 MiB", 3));
    assert_eq!((call.success().exit, call.success().stdout.as_str()), (0, ""));
    for stdin in ["", "junk", &data(&vm)[..200]] {
        let said = refused("resize", &["one-7", "7", "h"], stdin);
        assert!(said.starts_with("Cannot resize VM 7: the XML "), "{said}");
    }
    let bad = data(&VM.replace("<CPU>1<", "<CPU>x<"));
    assert_eq!(
        refused("resize", &["one-7", "7", "h"], &bad),
        "Cannot resize VM 7: CPU is \"x\", not a number of cores such as 0.5.\n"
    );
}

#[test]
fn xml_about_another_vm_is_refused() {
    for action in ["shutdown", "cancel", "reboot", "reset", "resize"] {
        assert!(
            refused(action, &["one-8", "h", "8", "h"], &data(VM))
                .ends_with(" VM 8: the XML is about VM 7, the arguments about VM 8.\n")
        );
    }
    assert_eq!(
        refused("deploy", &[FILE, "h", "8", "h"], VM),
        "Cannot deploy VM 8: the XML is about VM 7, the arguments about VM 8.\n"
    );
}

#[test]
fn only_cancel_works_with_unreadable_xml() {
    let whole = data(VM);
    let cut = &whole[..whole.len() / 2];
    for stdin in [cut, "junk", "<VM><ID>7</ID><ID>8</ID></VM>", "<!DOCTYPE x><VM/>"] {
        let call = plan("cancel", &["one-7", "h", "7", "h"], stdin.as_bytes()).unwrap();
        assert_eq!(call.vm(), number("7"));
        let line = call.notes()[0].line(call.vm());
        assert!(line.starts_with("INFO: 7 the XML "), "{line}");
        assert!(line.ends_with(": cancelling by the arguments of the script alone\n"), "{line}");
        for action in ["shutdown", "reboot", "reset"] {
            refused(action, &["one-7", "h", "7", "h"], stdin);
        }
        refused("deploy", &[FILE, "h", "7", "h"], stdin);
    }
    let large = " ".repeat(crate::xml::MAX_INPUT) + "<A/>";
    assert!(plan("cancel", &["", "h", "7", "h"], large.as_bytes()).is_ok());
    assert_eq!(
        refused("deploy", &[FILE, "h", "7", "h"], ""),
        "Cannot deploy VM 7: the XML is empty.\n"
    );
}

#[test]
fn the_deployment_file_must_be_in_the_vms_directory() {
    for file in [
        "",
        "deployment.0",
        "/deployment.0",
        "/ds/0/8/deployment.0",
        "/ds/0/07/deployment.0",
        "/ds/0/7/../8/deployment.0",
    ] {
        let said = refused("deploy", &[file, "h", "7", "h"], VM);
        assert!(said.ends_with("is not in a directory of VM 7.\n"), "{said}");
    }
}

#[test]
fn wrong_arguments_are_refused_even_for_cancel() {
    assert_eq!(
        refused("cancel", &["one-7", "h"], &data(VM)),
        "Cannot cancel the VM: \"one-7\" is not the number of a VM.\n"
    );
    assert_eq!(
        refused("cancel", &["7"], &data(VM)),
        "Cannot cancel the VM: script cancel was called with 1 arguments; it takes at least \
         <vm id> <host>.\n"
    );
    assert_eq!(
        refused("deploy", &["7", "h"], VM),
        "Cannot deploy the VM: script deploy was called with 2 arguments; it takes <deployment \
         file> <host> <vm id> <host>.\n"
    );
}

#[test]
fn other_actions_say_one_sentence_whatever_they_get() {
    let supported = [
        "deploy",
        "shutdown",
        "cancel",
        "reboot",
        "reset",
        "resize",
        "attach_nic",
        "detach_nic",
        "prereconfigure",
        "reconfigure",
        "exec",
        "exec_cancel",
    ];
    for action in Action::ALL {
        if supported.contains(&action.name()) {
            continue;
        }
        for argv in [&[][..], &["one-7", "7", "h"], &["x"; 100]] {
            assert_eq!(
                refused(action.name(), argv, "junk"),
                format!("Action {} is not supported by ocivisor yet.\n", action.name())
            );
        }
    }
    assert_eq!(refused("de\nploy", &[], ""), "Action \"de\\nploy\" is unknown to ocivisor.\n");
}

#[test]
fn a_command_is_one_word_and_its_input_base64() {
    let call = plan("exec", &["7", "h", "ls -l '/'; x=\"$y\"", "aGk="], b"").unwrap();
    let VmmCall::Exec { vm, command, stdin } = call else { panic!("another call") };
    assert_eq!(
        (vm.number(), command.as_str(), stdin.as_slice()),
        (7, "ls -l '/'; x=\"$y\"", &b"hi"[..])
    );
    for argv in [&["7", "h", "ls"][..], &["7", "h", "ls", ""]] {
        let call = plan("exec", argv, data(VM).as_bytes()).unwrap();
        assert!(matches!(call, VmmCall::Exec { stdin, .. } if stdin.is_empty()));
    }
    let refused = |argv: &[&str]| refused("exec", argv, "");
    assert_eq!(refused(&["7", "h"]), "Cannot run a command in VM 7: there is no command.\n");
    assert_eq!(refused(&["7", "h", " "]), "Cannot run a command in VM 7: there is no command.\n");
    assert_eq!(
        refused(&["7", "h", "ls", "?"]),
        "Cannot run a command in VM 7: the input is not base64.\n"
    );
    assert!(plan("exec", &["8", "h", "ls"], data(VM).as_bytes()).is_err(), "another VM's XML");
    let call = plan("exec_cancel", &["7", "h"], b"").unwrap();
    assert_eq!(call, VmmCall::ExecCancel { vm: "7".parse().unwrap() });
}

#[test]
fn failures_of_the_daemon_are_one_sentence_too() {
    let call = plan("shutdown", &["one-7", "h", "7", "h"], b"").unwrap();
    let error = Error::new(ErrorKind::Timeout, "guest did not end within 120 s")
        .hint("use terminate --hard");
    assert_eq!(
        call.failure(&error),
        Answer {
            stdout: String::new(),
            stderr:
                "Cannot shut down VM 7: guest did not end within 120 s; use terminate --hard.\n"
                    .into(),
            exit: 1
        }
    );
}

#[test]
fn a_changed_context_is_a_plan_and_none_is_the_empty_one() {
    let vm = "<VM><ID>7</ID><TEMPLATE><CONTEXT><DISK_ID>2</DISK_ID><DNS>9.9.9.9</DNS></CONTEXT></TEMPLATE></VM>";
    let disk = "/ds//0/7/disk.2";
    let of = |argv: &[&str], xml: &str| plan("reconfigure", argv, data(xml).as_bytes());
    let told = |call: VmmCall| match call {
        VmmCall::Reconfigure { context, .. } => *context,
        other => panic!("{other:?}"),
    };
    let context = told(of(&["one-7", "sdb", disk, "7", "h"], vm).unwrap());
    assert_eq!(context.disk.as_deref(), Some(Path::new("/ds/0/7/disk.2")));
    assert_eq!(context.dns.len(), 1);
    // What belongs to the VM and not to its context does not change, and that is told if it shall.
    let note = |vm: &str, now: &str| {
        let call = of(&["one-7", "sdb", disk, "7", "h"], vm).unwrap();
        assert!(call.notes().is_empty(), "{:?}", call.notes());
        call.hostname_note(now)
    };
    let named = vm.replace("<DNS>", "<SET_HOSTNAME>web 2</SET_HOSTNAME><HOSTNAME></HOSTNAME><DNS>");
    assert_eq!(note(&named, "web-2"), None, "as most templates have it");
    let told_of = note(&named, "web1").unwrap();
    assert!(
        told_of.starts_with(
            "the guest keeps the host name web1 until its next deployment, and is web-2"
        ),
        "{told_of}"
    );
    // Without one in the context the VM's own name counts.
    assert_eq!(note(vm, "one-7"), None);
    assert!(note(vm, "web-2").unwrap().contains("and is one-7 from then on"));
    let bare = "<VM><ID>7</ID><TEMPLATE/></VM>";
    assert_eq!(told(of(&["one-7", "", "", "7", "h"], bare).unwrap()), Context::default());
    // Another VM's disk, another VM's XML, and none.
    assert!(of(&["one-7", "sdb", "/ds/0/8/disk.2", "7", "h"], vm).is_err());
    assert!(of(&["one-8", "sdb", disk, "8", "h"], vm).is_err());
    assert!(plan("reconfigure", &["one-7", "sdb", disk, "7", "h"], b"").is_err());
    let call = plan("prereconfigure", &["one-7", "sdb", "7", "h"], b"").unwrap();
    assert_eq!(call.success(), Answer { stdout: String::new(), stderr: String::new(), exit: 0 });
}

/// A VM with two NICs and an alias; the second NIC, on its own bridge, is on its way.
fn moving(second: &str) -> String {
    format!(
        "<VM><ID>7</ID><TEMPLATE><CONTEXT><NETWORK>YES</NETWORK><DISK_ID>2</DISK_ID>\
         <ETH0_MAC>02:00:00:00:00:01</ETH0_MAC><ETH0_IP>10.0.0.1</ETH0_IP><ETH0_MASK>255.255.255.0</ETH0_MASK>\
         <ETH0_ALIAS0_IP>10.0.0.3</ETH0_ALIAS0_IP><ETH0_ALIAS0_MASK>255.255.255.0</ETH0_ALIAS0_MASK>\
         <ETH0_ALIAS0_MAC>02:00:00:00:00:02</ETH0_ALIAS0_MAC>\
         <ETH1_MAC>02:00:00:00:00:02</ETH1_MAC><ETH1_DNS>10.0.0.9</ETH1_DNS></CONTEXT>\
         <NIC><NIC_ID>0</NIC_ID><MAC>02:00:00:00:00:01</MAC><BRIDGE>odd</BRIDGE></NIC>\
         <NIC><NIC_ID>1</NIC_ID><MAC>02:00:00:00:00:02</MAC>{second}</NIC>\
         <NIC_ALIAS><NIC_ID>2</NIC_ID><MAC>02:00:00:00:00:02</MAC><PARENT_ID>0</PARENT_ID></NIC_ALIAS>\
         </TEMPLATE></VM>"
    )
}

#[test]
fn the_nic_to_attach_is_the_marked_one_and_only_it_is_remarked_on() {
    let argv = |mac| ["one-7", mac, "br0", "-", "bridge", "one-7-1", "7", "h"];
    let of = |mac, xml: &str| plan("attach_nic", &argv(mac), data(xml).as_bytes());
    let xml = moving("<ATTACH>YES</ATTACH>");
    let Ok(VmmCall::AttachNic { nic, notes, .. }) = of("02:00:00:00:00:02", &xml) else { panic!() };
    assert_eq!((nic.index, nic.host_name.as_str()), (1, "one-7-1"));
    assert_eq!(nic.dns.len(), 1);
    assert_eq!(notes, []);
    let said = |mac, xml: &str| of(mac, xml).unwrap_err().answer().stderr;
    for (mac, xml) in [("02:00:00:00:00:01", &xml), ("02:00:00:00:00:02", &moving(""))] {
        let want =
            format!("Cannot attach a NIC to VM 7: no NIC with MAC {mac} is to be attached.\n");
        assert_eq!(said(mac, xml), want);
    }
    assert_eq!(
        said("br0", &xml),
        "Cannot attach a NIC to VM 7: the MAC among the script's arguments: \"br0\" is not a valid MAC address: must be six pairs of hex digits joined by colons.\n"
    );
    let pci =
        xml.replace("</TEMPLATE>", "<PCI><TYPE>NIC</TYPE><ATTACH>YES</ATTACH></PCI></TEMPLATE>");
    assert_eq!(
        said("02:00:00:00:00:02", &pci),
        "Cannot attach a NIC to VM 7: PCI network interfaces are not supported yet.\n"
    );
}

#[test]
fn a_nic_is_detached_by_its_mac_with_and_without_xml() {
    let argv = ["one-7", "02:00:00:00:00:02", "7", "h"];
    let want =
        VmmCall::DetachNic { vm: "7".parse().unwrap(), mac: "02:00:00:00:00:02".parse().unwrap() };
    assert_eq!(plan("detach_nic", &argv, data(&moving("")).as_bytes()).as_ref(), Ok(&want));
    assert_eq!(plan("detach_nic", &argv, b"").as_ref(), Ok(&want));
    assert!(plan("detach_nic", &argv, b"<VM>").is_err());
    assert!(plan("detach_nic", &["one-7", "7", "h"], b"").is_err());
}

#[test]
fn a_changed_context_brings_the_nics_and_says_which_is_on_its_way() {
    let of = |xml: &str| {
        let argv = ["one-7", "sdb", "/ds/0/7/disk.2", "7", "h"];
        match plan("reconfigure", &argv, data(xml).as_bytes()).unwrap() {
            VmmCall::Reconfigure { nics, moving, notes, .. } => (nics, moving, notes),
            other => panic!("{other:?}"),
        }
    };
    let (nics, on_its_way, notes) = of(&moving("<ATTACH>YES</ATTACH>"));
    let nics = nics.unwrap();
    assert_eq!((nics.len(), on_its_way), (2, Some(1)));
    assert_eq!(nics[0].addresses.len(), 2, "its own and that of the alias");
    assert_eq!(of(&moving("")).1, None);
    // One that goes has nothing in the context any more, and that is as it should be; nor did anything else change.
    let going = moving("<ATTACH>YES</ATTACH>").replace("ETH1_MAC>", "SET_HOSTNAME>");
    assert_eq!(of(&going).2, notes);
    let call =
        plan("reconfigure", &["one-7", "sdb", "/ds/0/7/disk.2", "7", "h"], data(&going).as_bytes());
    assert_eq!(call.unwrap().hostname_note("another"), None);
    // What cannot be read must not keep the guest from being told.
    let (nics, _, notes) = of(&moving("<MTU>many</MTU>"));
    assert_eq!(nics, None);
    assert!(notes.iter().any(|note| note.to_string().contains("stay as they are: NIC 1: MTU")));
}
