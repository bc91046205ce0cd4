use super::*;
use crate::vm;
use std::path::PathBuf;

fn with(template: &str, rest: &str) -> Result<(VmSpec, Vec<String>), Error> {
    let xml = format!("<VM><ID>42</ID>{rest}<TEMPLATE>{template}</TEMPLATE></VM>");
    let vm = vm::parse(xml.as_bytes()).unwrap();
    let (spec, notes) = to_spec(&vm, Path::new("/ds//0/42"))?;
    Ok((spec, notes.iter().map(ToString::to_string).collect()))
}

const SMALL: &str = "<CPU>1</CPU><MEMORY>64</MEMORY>";
const DISK0: &str = "<DISK><DISK_ID>0</DISK_ID><TYPE>FILE</TYPE></DISK>";

fn disk(id: u32, keys: &str) -> String {
    format!("<DISK><DISK_ID>{id}</DISK_ID>{keys}</DISK>")
}

#[test]
fn wrong_capacity_is_refused() {
    for template in [
        "<MEMORY>64</MEMORY>",
        "<CPU>1</CPU>",
        "<CPU>1</CPU><MEMORY>0</MEMORY>",
        "<CPU>1</CPU><MEMORY>3</MEMORY>",
        "<CPU>1</CPU><MEMORY>-64</MEMORY>",
        "<CPU>1</CPU><MEMORY>64M</MEMORY>",
        "<CPU>1</CPU><MEMORY>4294967295</MEMORY>",
        "<CPU>1</CPU><MEMORY>64</MEMORY><VCPU>0</VCPU>",
        "<CPU>1</CPU><MEMORY>64</MEMORY><VCPU>5000</VCPU>",
        "<CPU>5000</CPU><MEMORY>64</MEMORY>",
    ] {
        assert!(with(&format!("{template}{DISK0}"), "").is_err(), "{template}");
    }
}

#[test]
fn the_root_disk_is_the_one_booted_from_else_the_lowest() {
    let file = "<TYPE>FILE</TYPE>";
    let cdrom = "<TYPE>CDROM</TYPE>";
    let two = disk(5, file) + &disk(2, file);
    let first_cdrom = disk(0, cdrom) + &disk(1, file);
    let boot = |order: &str, disks: &str| format!("<OS><BOOT>{order}</BOOT></OS>{disks}");
    for (disks, want) in [
        (two.clone(), 2),
        (boot("disk5", &two), 5),
        (boot("nic0,disk5,disk2", &two), 5),
        (boot("nic0", &two), 2),
        (boot("", &two), 2),
        (first_cdrom.clone(), 1),
        (boot("disk0,disk1", &first_cdrom), 1),
        (boot("disk0", &first_cdrom), 1),
        (disk(0, "<TYPE>swap</TYPE>") + &disk(3, file), 3),
        (disk(0, "<TYPE>Swap</TYPE>") + &disk(3, file), 3),
        (disk(0, "<TYPE>RBD_CDROM</TYPE>") + &disk(3, "<TYPE>RBD</TYPE>"), 3),
        (disk(0, "<TYPE>FILESYSTEM</TYPE>") + &disk(3, file), 3),
    ] {
        let (spec, _) = with(&format!("{SMALL}{disks}"), "").unwrap();
        assert_eq!(spec.root.path, PathBuf::from(format!("/ds/0/42/disk.{want}")), "{disks}");
    }
}

#[test]
fn a_vm_without_a_root_disk_is_refused() {
    for disks in ["", "<DISK><DISK_ID>0</DISK_ID><TYPE>swap</TYPE></DISK>"] {
        let error = with(&format!("{SMALL}{disks}"), "").unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotFound);
        assert!(error.message.starts_with("one-42 has no root disk"), "{error}");
    }
    for order in ["disk1", "diskx", "disk-1", "disk"] {
        let template = format!("{SMALL}{DISK0}<OS><BOOT>{order}</BOOT></OS>");
        let error = with(&template, "").unwrap_err();
        assert!(error.message.starts_with("OS/BOOT names "), "{error}");
    }
}

#[test]
fn a_read_only_image_is_a_root_disk_only_as_a_copy() {
    let readonly = |clone: &str| {
        let keys = format!("<READONLY>YES</READONLY><CLONE>{clone}</CLONE>");
        with(&format!("{SMALL}{}", disk(0, &keys)), "")
    };
    assert!(readonly("YES").is_ok());
    let error = readonly("NO").unwrap_err();
    assert_eq!(error.message, "root disk 0 is READONLY and no copy of its image");
}

#[test]
fn names_and_host_names() {
    let named = |name: &str, context: &str| {
        let template = format!("{SMALL}{DISK0}<CONTEXT>{context}</CONTEXT>");
        let (spec, notes) = with(&template, &format!("<NAME>{name}</NAME>")).unwrap();
        (spec.name.to_string(), spec.hostname.to_string(), notes.len())
    };
    let all = |name: &str, host: &str, notes: usize| (name.to_owned(), host.to_owned(), notes);
    assert_eq!(named("web 1", ""), all("web 1", "web-1", 0));
    assert_eq!(named("", ""), all("one-42", "one-42", 0));
    assert_eq!(named("größe", ""), all("größe", "gr--e", 0));
    assert_eq!(named("a", "<HOSTNAME>h.example</HOSTNAME>"), all("a", "h.example", 0));
    assert_eq!(
        named("a", "<HOSTNAME>h</HOSTNAME><SET_HOSTNAME>s</SET_HOSTNAME>"),
        all("a", "s", 0)
    );
    assert_eq!(
        named("a", "<HOSTNAME>h</HOSTNAME><SET_HOSTNAME>-s;id_</SET_HOSTNAME>"),
        all("a", "s-id", 0)
    );
    assert_eq!(
        named("a", "<HOSTNAME>h</HOSTNAME><SET_HOSTNAME>s..d</SET_HOSTNAME>"),
        all("a", "h", 1)
    );
    let (name, _, notes) = named(&"語".repeat(128), "");
    assert_eq!((name.len(), notes), (255, 1));
}

#[test]
fn control_characters_in_the_name_are_refused() {
    for name in ["a\nb", "a\tb", "a\u{1b}[31m", "a\u{85}"] {
        let error = with(&format!("{SMALL}{DISK0}"), &format!("<NAME>{name}</NAME>")).unwrap_err();
        assert!(error.message.starts_with("NAME: "), "{error}");
    }
}

#[test]
fn what_is_not_honoured_is_said() {
    let template = format!(
        "{SMALL}{DISK0}{}{}{}<CONTEXT><START_SCRIPT>x</START_SCRIPT><ETH0_DNS>1.1.1.1</ETH0_DNS>\
         <REPORT_READY>YES</REPORT_READY></CONTEXT><GRAPHICS><TYPE>SPICE</TYPE></GRAPHICS><RAW><DATA>x</DATA></RAW>\
         <NUMA_NODE><CPUS>1,2</CPUS></NUMA_NODE>",
        disk(1, "<TYPE>fs</TYPE>"),
        disk(2, "<TYPE>CDROM</TYPE>"),
        disk(3, "<TYPE>FILE</TYPE>") + &disk(4, "<TYPE>swap</TYPE><SIZE>8</SIZE>"),
    );
    let (_, notes) = with(&template, "").unwrap();
    assert_eq!(
        notes,
        [
            "CONTEXT/REPORT_READY: the guest reports to OneGate only if the image has one-context",
            "GRAPHICS/TYPE is \"SPICE\": the guest's console is served by VNC alone",
            "disk 1 is a volatile disk, which the guest does not get yet",
            "disk 2 is a CD-ROM, which the guest does not get yet",
            "disk 3 is a data disk, which the guest does not get yet",
            "disk 4 is that much of the host's swap, no device",
            "RAW has no effect",
        ]
    );
}

#[test]
fn the_directory_must_be_absolute_and_without_dots() {
    let xml = format!("<VM><ID>42</ID><TEMPLATE>{SMALL}{DISK0}</TEMPLATE></VM>");
    let vm = vm::parse(xml.as_bytes()).unwrap();
    for bad in ["", "ds/0/42", "/ds/../42", "/ds/4\n2"] {
        assert!(to_spec(&vm, Path::new(bad)).is_err(), "{bad:?}");
    }
}
