//! What servers may have and see.

use std::collections::BTreeMap;

use super::*;

#[test]
fn a_server_is_nobody_sees_nothing_and_has_the_files_of_its_disk() {
    let served = Served::new();
    let base = served.ground.file("base", 8);
    let top = served.qcow2("top", 8, Some((&base, "raw")));
    let vm = vm("vm-1", &[on(&[&base], qcow2(1, &top, device("vdb")))]);
    served.attach(&vm).unwrap();
    let [server] = served.servers(&vm)[..] else { panic!("one disk, one server") };
    let status = fs::read_to_string(format!("/proc/{server}/status")).unwrap();
    let fields: BTreeMap<&str, Vec<&str>> = status
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name, value.split_whitespace().collect()))
        .collect();
    let user = (IDS.base + 65_533).to_string();
    assert_eq!(fields["Uid"], [user.as_str(); 4]);
    assert_eq!(fields["Gid"], [user.as_str(); 4]);
    assert_eq!(fields["Groups"], Vec::<&str>::new());
    assert_eq!((&fields["NoNewPrivs"][..], &fields["Seccomp"][..]), (&["1"][..], &["2"][..]));
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(fields[set], ["0000000000000000"], "{set}");
    }
    for namespace in ["mnt", "net", "ipc", "uts"] {
        let of = |who: &str| fs::read_link(format!("/proc/{who}/ns/{namespace}")).unwrap();
        assert_ne!(of(&server.to_string()), of("self"), "{namespace}");
    }
    let root = PathBuf::from(format!("/proc/{server}/root"));
    let found = names(&root);
    for name in ["proc", "sys", "home", "root", "var", "tmp"] {
        assert!(!found.iter().any(|found| found == name), "{name} in {found:?}");
    }
    assert_eq!(names(&root.join("dev")), ["fd"]);
    assert_eq!(names(&root.join("usr")), names(Path::new("/usr")));
    let touched = File::create(root.join("usr/x")).unwrap_err();
    assert_eq!(touched.raw_os_error(), Some(libc::EROFS));
    let mut open: Vec<String> = fs::read_dir(format!("/proc/{server}/fd"))
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .map(|to| to.display().to_string())
        .filter(|to| to.starts_with('/') && to != "/dev/null")
        .collect();
    open.sort();
    let want = [Path::new("/dev/fuse"), &base, &top].map(|path| path.display().to_string());
    assert_eq!(open, want);
    served.detach(&vm);
}

#[test]
fn servers_of_a_vm_have_one_bound_on_their_memory() {
    let served = Served::new();
    let disks = [1, 2].map(|n| {
        let path = served.qcow2(&n.to_string(), 8, None);
        qcow2(n, &path, device(&format!("vd{n}")))
    });
    let vm = vm("vm-1", &disks);
    served.attach(&vm).unwrap();
    let files = ["memory.max", "memory.limit_in_bytes"];
    let hierarchies = served.groups.hierarchies().all().map(|root| served.group_in(root, &vm));
    let mut groups = hierarchies.filter_map(|group| {
        let file = files.iter().map(|name| group.join(name)).find(|file| file.exists())?;
        Some((group, fs::read_to_string(file).unwrap()))
    });
    let (group, bound) = groups.next().unwrap();
    // What a server may have, and 16 MiB for each.
    assert_eq!(bound.trim(), ((512 + 2 * 16) * MIB).to_string());
    let procs = fs::read_to_string(group.join("cgroup.procs")).unwrap();
    let mut procs: Vec<u32> = procs.lines().map(|line| line.parse().unwrap()).collect();
    let mut servers = served.servers(&vm);
    procs.sort_unstable();
    servers.sort_unstable();
    assert_eq!((servers.len(), &procs), (2, &servers));
    served.detach(&vm);
    assert!(!group.exists());
}
