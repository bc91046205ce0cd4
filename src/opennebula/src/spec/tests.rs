use ocivisor_core::spec::{DataDisk, DiskFormat, Filesystem, View};

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
        disk(3, "<TYPE>FILESYSTEM</TYPE>") + &disk(4, "<TYPE>swap</TYPE><SIZE>8</SIZE>"),
    );
    let (_, notes) = with(&template, "").unwrap();
    assert_eq!(
        notes,
        [
            "CONTEXT/REPORT_READY: the guest reports to OneGate only if the image has one-context",
            "GRAPHICS/TYPE is \"SPICE\": the guest's console is served by VNC alone",
            "disk 3 is a shared directory, which the guest does not get yet",
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

/// The disks beside the root disk, and the notes.
fn data(keys: &str) -> Result<(DataDisk, Vec<String>), Error> {
    let (spec, notes) = with(&format!("{SMALL}{DISK0}{}", disk(7, keys)), "")?;
    Ok((spec.disks.first().unwrap().clone(), notes))
}

fn either(name: &str) -> View {
    View::Either("/media/one-disk.7".into(), name.parse().unwrap())
}

#[test]
fn disks_beside_the_root_disk_are_given() {
    let (image, notes) =
        data("<TYPE>FILE</TYPE><TARGET>sdc</TARGET><READONLY>NO</READONLY>").unwrap();
    assert_eq!(image.path, PathBuf::from("/ds/0/42/disk.7"));
    assert_eq!((image.number, image.format, image.read_only), (7, DiskFormat::Raw, false));
    assert_eq!((image.view, image.make), (either("sdc"), None));
    assert_eq!(notes, Vec::<String>::new());
    let (cd, _) = data("<TYPE>CDROM</TYPE><TARGET>hda</TARGET>").unwrap();
    assert_eq!((cd.read_only, cd.view), (true, either("hda")));
    let (shared, _) =
        data("<TYPE>FILE</TYPE><READONLY>YES</READONLY><DRIVER>qcow2</DRIVER>").unwrap();
    assert_eq!((shared.read_only, shared.format), (true, DiskFormat::Qcow2));
    let own = shared.path.with_extension(format!("{}.snap", shared.number));
    assert_eq!(shared.backing, std::slice::from_ref(&own));
    // Of an image alone is the source oned's word.
    let source = "<DRIVER>qcow2</DRIVER><SOURCE>/var/lib/one//datastores/1/abc</SOURCE>";
    assert_eq!(data(source).unwrap().0.backing, std::slice::from_ref(&own));
    let (of_image, _) = data(&format!("{source}<IMAGE_ID>3</IMAGE_ID>")).unwrap();
    let image = |end: &str| PathBuf::from(format!("/var/lib/one/datastores/1/abc{end}"));
    assert_eq!(of_image.backing, [own.clone(), image(".snap"), image("")]);
    for odd in ["one/one-3", "../x", ""] {
        let disk = format!("<DRIVER>qcow2</DRIVER><SOURCE>{odd}</SOURCE><IMAGE_ID>3</IMAGE_ID>");
        assert_eq!(data(&disk).unwrap().0.backing, std::slice::from_ref(&own), "{odd}");
    }
    let (raw, _) = data("<SOURCE>/a</SOURCE><IMAGE_ID>3</IMAGE_ID>").unwrap();
    assert_eq!(raw.backing, Vec::<PathBuf>::new());
    assert_eq!(shared.view, either("disk7"));
    let (limited, _) = data("<TYPE>RBD</TYPE><READ_IOPS_SEC>10</READ_IOPS_SEC>").unwrap();
    assert_eq!(limited.io.read_ops, Some(10));
}

#[test]
fn volatile_disks_are_formatted() {
    let make = |keys: &str| {
        data(&format!("<TYPE>fs</TYPE>{keys}")).map(|(disk, notes)| (disk.make, notes.len()))
    };
    assert_eq!(make(""), Ok((Some(Filesystem::Ext4), 0)));
    assert_eq!(make("<FS>ext3</FS>"), Ok((Some(Filesystem::Ext4), 0)));
    assert_eq!(make("<FS>xfs</FS>"), Ok((Some(Filesystem::Xfs), 0)));
    assert_eq!(make("<FS>ntfs</FS>"), Ok((None, 1)));
}

#[test]
fn where_a_disk_is_mounted() {
    let view = |keys: &str| data(&format!("<TYPE>FILE</TYPE>{keys}")).map(|(disk, _)| disk.view);
    let key = |key: &str, value: &str| format!("<{key}>{value}</{key}>");
    let mounted = |path: &str| Ok(View::Mount(path.into()));
    assert_eq!(view(&key("OCI_MOUNT", "/srv//data/")), mounted("/srv/data"));
    assert_eq!(view(&key("TARGET", "/srv")), mounted("/srv"));
    assert_eq!(view(&(key("TARGET", "/srv") + &key("OCI_MOUNT", "/other"))), mounted("/other"));
    let device = |name: &str| Ok(View::Device(name.parse().unwrap()));
    assert_eq!(view(&(key("TARGET", "vdb") + &key("OCI_MOUNT", "NONE"))), device("vdb"));
    assert_eq!(view(&(key("TARGET", "/srv") + &key("OCI_MOUNT", "none"))), device("disk7"));
    for keys in [
        key("OCI_MOUNT", "data"),
        key("OCI_MOUNT", "/a/../proc"),
        key("OCI_MOUNT", "/proc/sys"),
        key("OCI_MOUNT", "/"),
        key("TARGET", "../sdb"),
        key("TARGET", "a b,ro /etc"),
        key("TARGET", "null"),
        key("DRIVER", "vmdk"),
    ] {
        let error = view(&keys).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid, "{keys}");
        assert!(error.message.contains("disk 7"), "{keys}: {error}");
    }
}
