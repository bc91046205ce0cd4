use super::*;
use crate::vm;

fn with(template: &str, user: &str) -> Result<(Resources, IoLimits, Vec<String>), Error> {
    let xml = format!(
        "<VM><ID>42</ID><TEMPLATE>{template}</TEMPLATE><USER_TEMPLATE>{user}</USER_TEMPLATE></VM>"
    );
    let vm = vm::parse(xml.as_bytes()).unwrap();
    let mut notes = Notes::default();
    let resources = resources(&vm, &mut notes)?;
    let io =
        vm.disks.first().map_or(Ok(IoLimits::default()), |disk| io_limits(disk, &mut notes))?;
    Ok((resources, io, notes.into_vec().iter().map(ToString::to_string).collect()))
}

const SMALL: &str = "<CPU>1</CPU><MEMORY>64</MEMORY>";

#[test]
fn cpu_is_read_in_hundredths() {
    for (text, want) in [
        ("1", 100),
        ("0.5", 50),
        ("0.01", 1),
        ("0.333333", 33),
        ("0.335", 34),
        ("0.999", 100),
        ("1.0", 100),
        ("0.29", 29),
        ("64.00", 6400),
        ("0.010000000000000000000000000000000001", 1),
    ] {
        assert_eq!(centi_cores(text).unwrap(), CentiCores(want), "{text}");
    }
    for bad in [
        "",
        "0",
        "0.0",
        "0.005",
        "0.009",
        "-1",
        "+1",
        "1e3",
        ".5",
        "1.",
        "1,5",
        " 1",
        "1\n",
        "NaN",
        "inf",
        "0x1",
        "99999999999",
        "1.2.3",
        "٣",
    ] {
        assert!(centi_cores(bad).is_err(), "{bad:?}");
    }
    let error = centi_cores("0.005").unwrap_err();
    assert_eq!(error.message, "CPU is \"0.005\", it must be at least 0.01");
}

#[test]
fn vcpu_defaults_to_cpu_rounded_up() {
    for (cpu, vcpu, want) in
        [("0.5", "", 1), ("1", "", 1), ("1.01", "", 2), ("2.5", "", 3), ("0.5", "4", 4)]
    {
        let template = format!("<CPU>{cpu}</CPU><VCPU>{vcpu}</VCPU><MEMORY>64</MEMORY>");
        assert_eq!(with(&template, "").unwrap().0.vcpus, want);
    }
}

#[test]
fn swap_is_that_of_swap_disks_and_lxc_swap_and_no_more_than_memory() {
    let disk = |id: u32, kind: &str, size: &str| {
        format!("<DISK><DISK_ID>{id}</DISK_ID><TYPE>{kind}</TYPE><SIZE>{size}</SIZE></DISK>")
    };
    let root = disk(0, "FILE", "1000");
    for (disks, user, want, notes) in [
        (String::new(), "", 0, 0),
        (disk(1, "swap", "16"), "", 16, 0),
        (disk(1, "swap", "16") + &disk(2, "SWAP", "8"), "", 24, 0),
        (String::new(), "<LXC_SWAP>32</LXC_SWAP>", 32, 0),
        (disk(1, "swap", "40"), "<LXC_SWAP>32</LXC_SWAP>", 64, 1),
        (String::new(), "<LXC_SWAP>4294967295</LXC_SWAP>", 64, 1),
    ] {
        let (made, _, said) = with(&format!("{SMALL}{root}{disks}"), user).unwrap();
        assert_eq!(made.swap, Bytes::mib(want));
        assert_eq!(said, vec!["swap is cut to 64 MiB, as much as MEMORY"; notes]);
    }
    let error = with(SMALL, "<LXC_SWAP>1G</LXC_SWAP>").unwrap_err();
    assert_eq!(error.message, "LXC_SWAP is \"1G\", not a number of MB");
}

#[test]
fn guests_are_placed_where_the_scheduler_put_them() {
    let pinned = format!(
        "{SMALL}<TOPOLOGY><PIN_POLICY>THREAD</PIN_POLICY></TOPOLOGY>\
         <NUMA_NODE><CPUS>2,3</CPUS><MEMORY>32768</MEMORY><MEMORY_NODE_ID>0</MEMORY_NODE_ID>\
         <NODE_ID>0</NODE_ID><TOTAL_CPUS>2</TOTAL_CPUS></NUMA_NODE>\
         <NUMA_NODE><CPUS>8-9</CPUS><NODE_ID>1</NODE_ID></NUMA_NODE>"
    );
    let (made, _, notes) = with(&pinned, "").unwrap();
    let text = |set: Option<NumberSet>| set.map(|set| set.to_string());
    assert_eq!(text(made.placement.cpus).as_deref(), Some("2-3,8-9"));
    assert_eq!(text(made.placement.nodes).as_deref(), Some("0-1"));
    assert!(notes.is_empty());

    let affine = format!(
        "{SMALL}<TOPOLOGY><PIN_POLICY>NODE_AFFINITY</PIN_POLICY></TOPOLOGY>\
         <NUMA_NODE><MEMORY_NODE_ID>1</MEMORY_NODE_ID></NUMA_NODE>"
    );
    let (made, _, _) = with(&affine, "").unwrap();
    assert_eq!(made.placement.cpus, None);
    assert_eq!(text(made.placement.nodes).as_deref(), Some("1"));

    // What a virtual machine would show inside is no place on the host.
    let shown = format!(
        "{SMALL}<TOPOLOGY><PIN_POLICY>NONE</PIN_POLICY><CORES>1</CORES></TOPOLOGY>\
         <NUMA_NODE><NODE_ID>0</NODE_ID><TOTAL_CPUS>1</TOTAL_CPUS></NUMA_NODE>"
    );
    let (made, _, notes) = with(&shown, "").unwrap();
    assert_eq!((made.placement, notes), (Placement::default(), vec![]));

    let unpinned = format!("{SMALL}<TOPOLOGY><PIN_POLICY>CORE</PIN_POLICY></TOPOLOGY>");
    let (_, _, notes) = with(&unpinned, "").unwrap();
    let want = "TOPOLOGY/PIN_POLICY is \"CORE\", but the scheduler chose no processors (NUMA_NODE)";
    assert_eq!(notes, [want]);

    let wrong = format!("{SMALL}<NUMA_NODE><CPUS>2,x</CPUS></NUMA_NODE>");
    let error = with(&wrong, "").unwrap_err();
    assert!(error.message.starts_with("NUMA_NODE/CPUS is \"2,x\": it is not a list"), "{error}");
}

#[test]
fn huge_pages_are_as_much_as_memory() {
    let template =
        |size: &str| format!("{SMALL}<TOPOLOGY><HUGEPAGE_SIZE>{size}</HUGEPAGE_SIZE></TOPOLOGY>");
    let pages = |page, limit| vec![Hugepages { page: Bytes::mib(page), limit: Bytes::mib(limit) }];
    assert_eq!(with(&template("2"), "").unwrap().0.hugepages, pages(2, 64));
    assert_eq!(with(&template(""), "").unwrap().0.hugepages, []);
    for bad in ["0", "x", "1024", "-2"] {
        assert!(with(&template(bad), "").is_err(), "{bad}");
    }
}

#[test]
fn a_weight_can_only_be_modest() {
    let weight = |text: &str| {
        let user = format!("<OCI><IO_WEIGHT>{text}</IO_WEIGHT></OCI>");
        with(SMALL, &user).map(|(made, _, notes)| (made.io_weight, notes.len()))
    };
    assert_eq!(weight("10").unwrap(), (Some(10), 0));
    assert_eq!(weight("100").unwrap(), (None, 0));
    assert_eq!(weight("5000").unwrap(), (None, 1));
    for bad in ["0", "-1", "x", "1.5"] {
        assert!(weight(bad).is_err(), "{bad}");
    }
}

#[test]
fn throttles_bound_reading_and_writing() {
    let throttled = |keys: &str| {
        with(&format!("{SMALL}<DISK><DISK_ID>0</DISK_ID>{keys}</DISK>"), "")
            .map(|(_, io, notes)| (io, notes))
    };
    let io = |read_bytes, write_bytes, read_ops, write_ops| IoLimits {
        read_bytes,
        write_bytes,
        read_ops,
        write_ops,
    };
    let each = "<READ_BYTES_SEC>1000</READ_BYTES_SEC><WRITE_BYTES_SEC>0</WRITE_BYTES_SEC>\
                <WRITE_IOPS_SEC>20</WRITE_IOPS_SEC>";
    assert_eq!(throttled(each).unwrap(), (io(Some(1000), None, None, Some(20)), vec![]));
    let total = "<TOTAL_BYTES_SEC>1000</TOTAL_BYTES_SEC><READ_BYTES_SEC>500</READ_BYTES_SEC>\
                 <TOTAL_IOPS_SEC>7</TOTAL_IOPS_SEC>";
    let notes = ["TOTAL_BYTES_SEC", "TOTAL_IOPS_SEC"]
        .map(|key| format!("disk 0: {key} bounds reading and writing each"));
    assert_eq!(
        throttled(total).unwrap(),
        (io(Some(500), Some(1000), Some(7), Some(7)), notes.to_vec())
    );
    let bursts = "<SIZE_IOPS_SEC>4096</SIZE_IOPS_SEC><READ_IOPS_SEC_MAX>9</READ_IOPS_SEC_MAX>";
    let none = "disk 0: READ_IOPS_SEC_MAX, SIZE_IOPS_SEC has no effect";
    assert_eq!(throttled(bursts).unwrap(), (IoLimits::default(), vec![none.to_owned()]));
    for bad in ["-1", "1M", "1.5", "18446744073709551616", " 1"] {
        let keys = format!("<READ_BYTES_SEC>{bad}</READ_BYTES_SEC>");
        let error = throttled(&keys).unwrap_err();
        assert!(error.message.contains("not a number per second"), "{error}");
    }
}
