//! Disks in qcow2 files, made by QEMU's own tools and served by them.

mod hangs;
mod room;

use std::io::{BufRead, BufReader, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use ocivisor_core::ports::Cgroups as _;

use super::super::super::Checks;
use super::*;
use crate::cgroup::HostCgroups;
use crate::process::{is_alive, process_ref};

const MIB: u64 = 1 << 20;
/// Those that tests make.
const VMS: [&str; 3] = ["vm-1", "vm-2", "vm-3"];

/// A ground with control groups of its own.
struct Served {
    ground: Ground,
    groups: HostCgroups,
    base: String,
}

impl Served {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let base = format!("ocvtest-qcow2-{}-{number}", std::process::id());
        let mut ground = ground();
        let groups = groups(&base);
        for name in VMS {
            let vm = vm(name, &[]);
            groups.ensure_cgroup(&vm.id, &vm.resources).unwrap();
        }
        ground.storage = served_storage(ground.dir.path(), &base);
        Self { ground, groups, base }
    }

    /// A qcow2 file of this size, on another one or on nothing.
    fn qcow2(&self, name: &str, mib: u64, on: Option<(&Path, &str)>) -> PathBuf {
        let path = self.ground.disk(name);
        let mut argv = vec!["qemu-img", "create", "-q", "-f", "qcow2"];
        if let Some((backing, format)) = on {
            argv.extend(["-b", text(backing), "-F", format]);
        }
        let size = format!("{mib}M");
        argv.extend([text(&path), &size]);
        run(&argv, LONG).unwrap();
        // As a platform's user has it: nobody else can open it.
        chown(&path, Some(7777), Some(7777)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// One with a filesystem, which belongs to the guest's user 1000.
    fn formatted(&self, name: &str, mib: u64) -> PathBuf {
        let raw = self.ground.formatted(
            &format!("{name}.raw"),
            mib,
            &[&MKFS[..], &["-E", "root_owner=1000:1000"]].concat(),
        );
        let path = self.ground.disk(name);
        run(&["qemu-img", "convert", "-O", "qcow2", text(&raw), text(&path)], LONG).unwrap();
        path
    }

    fn servers(&self, vm: &VmSpec) -> Vec<u32> {
        let group = self.group_in(self.groups.hierarchies().tracking(), vm);
        let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        text.lines().map(|line| line.parse().unwrap()).collect()
    }

    /// Of the servers of a VM's disks.
    fn group_in(&self, hierarchy: &Path, vm: &VmSpec) -> PathBuf {
        hierarchy.join(&self.base).join("+disks").join(vm.id.as_str())
    }

    fn attach(&self, vm: &VmSpec) -> Result<Vec<GivenDisk>> {
        self.ground.attach(vm)
    }

    fn refused(&self, disk: &DataDisk) -> String {
        let vm = vm("vm-1", std::slice::from_ref(disk));
        let error = self.attach(&vm).unwrap_err();
        assert!(!self.groups.has_disk_servers(&vm.id));
        self.ground.assert_clean();
        let name = format!("data disk 1 ({})", disk.path.display());
        error.message.strip_prefix(&name).unwrap_or(&error.message).to_owned()
    }

    fn detach(&self, vm: &VmSpec) {
        self.ground.detach(vm);
        assert!(!self.groups.has_disk_servers(&vm.id));
        self.ground.assert_clean();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        for id in self.groups.observe_disk_servers().unwrap() {
            // The ground, which is dropped next, says what that leaves.
            let _ = self.groups.end_disk_servers(&id, Duration::ZERO);
        }
        for root in self.groups.hierarchies().all() {
            let _ = fs::remove_dir(root.join(&self.base).join("+disks"));
        }
        let ids = VMS.map(|name| name.parse::<VmId>().unwrap());
        let procs = [self.groups.shim_procs(&ids[0]), self.groups.guest_procs(&ids[0])].concat();
        for id in &ids {
            let _ = self.groups.drop_cgroup(id);
        }
        for base in procs.iter().filter_map(|file| file.ancestors().nth(3)) {
            let _ = fs::remove_dir(base);
        }
    }
}

fn groups(base: &str) -> HostCgroups {
    let layout = Layout { cgroup_base: base.to_owned(), ..Layout::system() };
    HostCgroups::new(&layout).unwrap()
}

fn served_storage(dir: &Path, base: &str) -> HostStorage {
    storage_in(dir, Way::probe()).with_checks(Checks::default(), groups(base))
}

fn qcow2(number: u32, path: &Path, view: View) -> DataDisk {
    DataDisk { format: DiskFormat::Qcow2, ..disk(number, path, view) }
}

fn on(backing: &[&Path], disk: DataDisk) -> DataDisk {
    DataDisk { backing: backing.iter().map(|path| path.to_path_buf()).collect(), ..disk }
}

fn check(image: &Path) {
    run(&["qemu-img", "check", "-q", "-f", "qcow2", text(image)], LONG).unwrap();
}

/// The disk in an image, as QEMU reads it.
fn content(served: &Served, image: &Path) -> Vec<u8> {
    let raw = served.ground.disk("content");
    run(&["qemu-img", "convert", "-f", "qcow2", "-O", "raw", text(image), text(&raw)], LONG)
        .unwrap();
    fs::read(raw).unwrap()
}

#[test]
fn a_filesystem_on_a_backing_file_is_mounted_and_keeps_what_is_written() {
    let served = Served::new();
    let base = served.formatted("base", 32);
    let before = fs::read(&base).unwrap();
    let top = served.qcow2("top", 32, Some((&base, "qcow2")));
    let vm = vm("vm-1", &[on(&[&base], qcow2(3, &top, either("/srv/data", "vdb")))]);
    for turn in 0..2 {
        let got = served.attach(&vm).unwrap();
        assert_eq!((got.len(), got[0].number, got[0].device.major), (1, 3, 7));
        assert_eq!(got[0].note, None);
        let mounted = served.ground.for_guest(&vm)[0].source.clone();
        assert_eq!(owner(&mounted), (IDS.base + 1000, IDS.base + 1000));
        let servers = served.servers(&vm);
        assert_eq!(served.attach(&vm).unwrap(), got);
        assert_eq!(served.servers(&vm), servers, "the same again is the same");
        assert_eq!(servers.len(), 1);
        let kept = mounted.join("kept");
        if turn == 0 {
            served.ground.as_guest(1000, &["cp", "/etc/hostname", text(&kept)]).unwrap();
        } else {
            assert_eq!(fs::read(&kept).unwrap(), fs::read("/etc/hostname").unwrap());
        }
        served.detach(&vm);
        served.detach(&vm);
        assert!(servers.iter().all(|pid| process_ref(*pid).is_none_or(|it| !is_alive(it))));
        check(&top);
    }
    assert_eq!(fs::read(&base).unwrap(), before);
    // It is what the platform had: not converted, and still the user's.
    assert_eq!(&fs::read(&top).unwrap()[..4], b"QFI\xfb");
    assert_eq!(owner(&top), (7777, 7777));
}

#[test]
fn a_device_is_written_through_to_the_image() {
    let served = Served::new();
    let top = served.qcow2("top", 8, None);
    let vm = vm("vm-1", &[qcow2(1, &top, device("vdb"))]);
    let got = served.attach(&vm).unwrap();
    let node = served.ground.for_guest(&vm)[0].source.clone();
    assert!(fs::metadata(&node).unwrap().file_type().is_block_device());
    let mut device = File::options().read(true).write(true).open(&node).unwrap();
    assert_eq!(device.seek(std::io::SeekFrom::End(0)).unwrap(), 8 * MIB);
    let pattern: Vec<u8> = (0..MIB).map(|n| (n * 7 / 3) as u8).collect();
    device.write_all_at(&pattern, 3 * MIB).unwrap();
    device.sync_all().unwrap();
    drop(device);
    // Another daemon finds the same; guests do not notice.
    let again = served_storage(served.ground.dir.path(), &served.base);
    assert_eq!(again.ensure_disks(&vm, IDS, &|| false).unwrap(), got);
    assert!(again.observe_roots().unwrap().contains(&vm.id));
    again.drop_disks(&vm.id).unwrap();
    served.ground.assert_clean();
    assert!(!served.groups.has_disk_servers(&vm.id));
    check(&top);
    let all = content(&served, &top);
    assert_eq!(&all[3 * MIB as usize..4 * MIB as usize], pattern);
    assert!(all[..3 * MIB as usize].iter().all(|byte| *byte == 0));
}

#[test]
fn an_empty_one_is_formatted_on_request() {
    let served = Served::new();
    let top = served.qcow2("top", 32, None);
    let wish = DataDisk { make: Some(Filesystem::Ext4), ..qcow2(1, &top, at("/data")) };
    let vm = vm("vm-1", &[wish]);
    for _ in 0..2 {
        served.attach(&vm).unwrap();
        served.detach(&vm);
    }
    check(&top);
    assert_eq!(&content(&served, &top)[0x438..0x43a], b"\x53\xef");
}

#[test]
fn the_format_is_what_the_spec_says_it_is() {
    let served = Served::new();
    // A guest wrote a header into its raw disk.
    let secret = served.ground.file("secret", 1);
    let trap = served.qcow2("trap", 8, Some((&secret, "raw")));
    let header = fs::read(&trap).unwrap();
    let raw = served.ground.file("raw", 8);
    File::options().write(true).open(&raw).unwrap().write_all(&header).unwrap();
    let as_raw = vm("vm-1", &[disk(1, &raw, device("vdb"))]);
    served.attach(&as_raw).unwrap();
    assert_eq!(served.servers(&as_raw), Vec::<u32>::new());
    let node = served.ground.for_guest(&as_raw)[0].source.clone();
    let mut start = vec![0; header.len()];
    File::open(node).unwrap().read_exact_at(&mut start, 0).unwrap();
    assert!(start == header, "the guest has its own bytes");
    served.groups.end_disk_servers(&as_raw.id, Duration::ZERO).unwrap();
    served.detach(&as_raw);
    // The other way round.
    let plain = served.ground.file("plain", 8);
    assert_eq!(
        served.refused(&qcow2(1, &plain, device("vdb"))),
        ": it is no qcow2 file, though its format is said to be"
    );
    // A raw file below one stays raw, whatever it begins with.
    let over = served.qcow2("over", 8, Some((&raw, "raw")));
    let vm = vm("vm-1", &[on(&[&raw], only_read(qcow2(1, &over, device("vdb"))))]);
    served.attach(&vm).unwrap();
    let node = served.ground.for_guest(&vm)[0].source.clone();
    File::open(node).unwrap().read_exact_at(&mut start, 0).unwrap();
    assert!(start == header, "below it is raw");
    served.detach(&vm);
}

#[test]
fn what_an_image_names_is_followed_to_the_disks_own_files_alone() {
    let served = Served::new();
    let of_another = served.formatted("another", 16);
    let own = served.ground.disk("snap");
    fs::create_dir(&own).unwrap();
    let named = |name: &str, format: &str| {
        let top = served.qcow2("top", 16, None);
        let argv = ["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", format, "-b", name];
        run(&[&argv[..], &[text(&top)]].concat(), LONG).unwrap();
        on(&[&own], qcow2(1, &top, device("vdb")))
    };
    let why = ": its file stands on \"{}\": it is not there, or not among the files that belong to this disk";
    fs::create_dir(own.join("deeper")).unwrap();
    fs::copy(&of_another, own.join("deeper/file")).unwrap();
    std::os::unix::fs::symlink(&of_another, own.join("link")).unwrap();
    for name in [
        text(&of_another),
        "/etc/shadow",
        "another",
        "snap/../another",
        "snap/link",
        "snap/deeper/file",
        "snap/absent",
        "nbd://127.0.0.1/x",
        "json:{\"driver\":\"file\",\"filename\":\"/etc/shadow\"}",
        "fat:rw:/etc",
    ] {
        let shown = name.replace('"', "\\\"");
        assert_eq!(served.refused(&named(name, "qcow2")), why.replace("{}", &shown), "{name}");
        assert_eq!(served.refused(&named(name, "raw")), why.replace("{}", &shown), "{name}");
    }
    // Its own, but what is it?
    fs::copy(&of_another, own.join("0")).unwrap();
    let shown = ": its file stands on \"snap/0\": ";
    assert_eq!(
        served.refused(&named("snap/0", "vmdk")),
        format!("{shown}its format \"vmdk\" is neither raw nor qcow2")
    );
    let old = named("snap/0", "qcow2");
    let mut header = fs::read(&old.path).unwrap();
    let at = header.windows(4).position(|w| w == [0xe2, 0x79, 0x2a, 0xca]).unwrap();
    header[at] = 0x12;
    crate::fs::replace(&old.path, &header).unwrap();
    assert_eq!(served.refused(&old), format!("{shown}its format is not told"));
    // A loop, and a chain without end.
    let a = served.qcow2("a", 16, None);
    let rebase = |file: &Path, onto: &Path| {
        let argv = ["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", text(onto)];
        run(&[&argv[..], &[text(file)]].concat(), LONG).unwrap();
    };
    let b = served.qcow2("b", 16, None);
    rebase(&a, &b);
    rebase(&b, &a);
    let looped = on(&[&a, &b], qcow2(1, &a, device("vdb")));
    assert!(
        served.refused(&looped).ends_with("is in use by another process, which holds a lock on it")
    );
    let looped = on(&[&a, &b], only_read(qcow2(1, &a, device("vdb"))));
    assert!(served.refused(&looped).ends_with("it stands on itself"));
    let chain: Vec<PathBuf> = (0..40).map(|n| own.join(format!("{n}"))).collect();
    for pair in chain.windows(2) {
        let name = format!("snap/{}", pair[1].file_name().unwrap().display());
        served.qcow2(&name, 16, Some((&pair[0], "qcow2")));
    }
    let long = on(&[&own], qcow2(1, &chain[39], device("vdb")));
    assert_eq!(served.refused(&long), " stands on more than 32 files");
    let vm = vm("vm-1", &[on(&[&own], qcow2(1, &chain[32], device("vdb")))]);
    served.attach(&vm).unwrap();
    served.detach(&vm);
}

#[test]
fn hostile_headers_are_refused_before_anything_is_started() {
    let served = Served::new();
    let data = served.ground.disk("data");
    let top = served.ground.disk("top");
    let external = format!("data_file={},data_file_raw=on", text(&data));
    run(&["qemu-img", "create", "-q", "-f", "qcow2", "-o", &external, text(&top), "8M"], LONG)
        .unwrap();
    let wish = qcow2(1, &top, device("vdb"));
    assert_eq!(served.refused(&wish), ": it keeps its data in another file");
    let good = fs::read(served.qcow2("good", 8, None)).unwrap();
    for (at, bytes, want) in [
        (4, vec![0, 0, 0, 9], ": the qcow2 image uses version 9, which is not handled"),
        (32, vec![0, 0, 0, 1], ": it is encrypted (qcow2 AES); decrypt it first"),
        (36, vec![0xff; 4], ": bytes of the qcow2 L1 table 34359738360 is above 33554432"),
        (24, vec![0xff; 8], ": qcow2 disk size 18446744073709551615 is above 70368744177664"),
        (60, vec![0xff; 4], ": number of qcow2 snapshots 4294967295 is above 65536"),
        (
            72,
            vec![0x80, 0, 0, 0, 0, 0, 0, 0],
            ": the qcow2 image uses incompatible features 0x8000000000000000, which is not handled",
        ),
    ] {
        let mut bad = good.clone();
        bad[at..at + bytes.len()].copy_from_slice(&bytes);
        crate::fs::replace(&top, &bad).unwrap();
        assert_eq!(served.refused(&wish), want);
    }
    // What only its reader finds: a table in the middle of the header.
    let mut bad = good;
    let l1 = u64::from_be_bytes(bad[40..48].try_into().unwrap()) as usize;
    bad[l1..l1 + 8].copy_from_slice(&(1_u64 << 63 | 512).to_be_bytes());
    crate::fs::replace(&top, &bad).unwrap();
    let vm = vm("vm-1", &[wish]);
    let done = served.attach(&vm).map(|given| given[0].note.clone());
    assert!(done.is_err(), "{done:?}");
    served.detach(&vm);
}

#[test]
fn one_writes_it_or_several_read_it_and_qemu_knows() {
    let served = Served::new();
    let base = served.formatted("base", 16);
    let top = served.qcow2("top", 16, Some((&base, "qcow2")));
    let wish = |number| on(&[&base], qcow2(number, &top, device("vdb")));
    let one = vm("vm-1", &[wish(1)]);
    served.attach(&one).unwrap();
    for disk in
        [wish(1), only_read(wish(1)), disk(1, &top, device("vdb")), disk(1, &base, at("/a"))]
    {
        let error = served.attach(&vm("vm-2", &[disk])).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Conflict, "{error}");
    }
    let info = run(&["qemu-img", "check", "-f", "qcow2", text(&top)], LONG).unwrap_err();
    assert!(info.message.contains("another process using the image"), "{info}");
    // Another may stand on the same file, which is only read.
    let other = served.qcow2("other", 16, Some((&base, "qcow2")));
    let two = vm("vm-2", &[on(&[&base], qcow2(1, &other, either("/a", "vdb")))]);
    served.attach(&two).unwrap();
    served.detach_one(&one);
    served.detach(&two);
    let (one, two) = (vm("vm-1", &[only_read(wish(1))]), vm("vm-2", &[only_read(wish(1))]));
    served.attach(&one).unwrap();
    served.attach(&two).unwrap();
    let node = served.ground.for_guest(&two)[0].source.clone();
    let write = served
        .ground
        .as_guest(0, &["dd", "if=/dev/zero", &format!("of={}", text(&node)), "count=1"]);
    assert!(write.is_err());
    served.detach_one(&one);
    served.detach(&two);
    // A virtual machine has it.
    let socket = served.ground.disk("nbd");
    #[expect(clippy::disallowed_methods, reason = "it holds the image while the test looks")]
    let mut holder = Command::new("qemu-nbd")
        .args(["-f", "qcow2", "-k", text(&socket), "-t", text(&top)])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let far = Instant::now() + LONG;
    assert!(mounts::until(far, || Ok(socket.exists())).unwrap());
    let error = served.attach(&vm("vm-1", &[wish(1)])).unwrap_err();
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert_eq!(error.kind, ErrorKind::Conflict, "{error}");
    served.ground.assert_clean();
}

impl Served {
    fn detach_one(&self, vm: &VmSpec) {
        self.ground.storage.drop_disks(&vm.id).unwrap();
        assert!(!self.groups.has_disk_servers(&vm.id));
    }
}

#[test]
fn a_server_that_dies_is_seen_and_made_anew() {
    let served = Served::new();
    let (a, b) = (served.formatted("a", 32), served.qcow2("b", 8, None));
    let vm = vm("vm-1", &[qcow2(1, &a, at("/a")), qcow2(2, &b, device("vdb"))]);
    served.attach(&vm).unwrap();
    let mounted = served.ground.for_guest(&vm)[0].source.clone();
    served.ground.as_guest(1000, &["cp", "/etc/hostname", text(&mounted.join("durable"))]).unwrap();
    File::open(&mounted)
        .and_then(|dir| rustix::fs::syncfs(dir.as_fd()).map_err(Into::into))
        .unwrap();
    let servers = served.servers(&vm);
    assert_eq!(servers.len(), 2);
    let far = Instant::now() + LONG;
    for pid in &servers {
        let server = process_ref(*pid).unwrap();
        crate::process::kill(server);
        assert!(mounts::until(far, || Ok(!is_alive(server))).unwrap());
    }
    let node = served.ground.for_guest(&vm)[1].source.clone();
    let errs = || {
        let read = File::open(&node).and_then(|file| file.read_at(&mut [0; 512], 4 * MIB));
        Ok(read.is_err())
    };
    assert!(mounts::until(far, errs).unwrap(), "who reads waits for nobody");
    served.attach(&vm).unwrap();
    let anew = served.servers(&vm);
    assert!(anew.len() == 2 && anew.iter().all(|pid| !servers.contains(pid)), "{anew:?}");
    let mounted = served.ground.for_guest(&vm)[0].source.clone();
    assert!(mounted.join("durable").exists());
    served.detach(&vm);
    check(&a);
    check(&b);
}

/// Set in the child: the ground it works on, and the base of its control groups.
const GROUND: &str = "OCIVISOR_TEST_QCOW2_GROUND";
const BASE: &str = "OCIVISOR_TEST_QCOW2_BASE";

/// Not a test of its own: what the child of the test below does until it is killed.
#[test]
fn crash_child() {
    let (Ok(dir), Ok(base)) = (std::env::var(GROUND), std::env::var(BASE)) else {
        return;
    };
    let storage = served_storage(Path::new(&dir), &base);
    let vm = crash_vm(Path::new(&dir));
    println!("\ngo");
    std::io::stdout().flush().unwrap();
    loop {
        storage.ensure_disks(&vm, IDS, &|| false).unwrap();
        storage.drop_disks(&vm.id).unwrap();
    }
}

fn crash_vm(dir: &Path) -> VmSpec {
    let path = |name: &str| dir.join("disks").join(name);
    let (a, base) = (path("a"), path("base"));
    vm("vm-1", &[on(&[&base], qcow2(1, &a, at("/a"))), qcow2(2, &path("b"), device("vdb"))])
}

fn crash_child_of(served: &Served) -> Child {
    #[expect(clippy::disallowed_methods, reason = "it must be killed while it works")]
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "storage::tests::disks::qcow2::crash_child", "--nocapture"])
        .env(GROUND, served.ground.dir.path())
        .env(BASE, &served.base)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map_while(|l| l.ok()).any(|l| l == "go"));
    child
}

#[test]
fn killed_at_any_moment_everything_is_found_and_cleared() {
    const ROUNDS: u32 = 16;
    let served = Served::new();
    let base = served.formatted("base", 16);
    served.qcow2("a", 16, Some((&base, "qcow2")));
    served.qcow2("b", 8, None);
    let vm = crash_vm(served.ground.dir.path());
    let begin = Instant::now();
    served.attach(&vm).unwrap();
    served.detach(&vm);
    let turn = begin.elapsed();
    let mut found_something = 0;
    for round in 0..ROUNDS {
        let mut child = crash_child_of(&served);
        let moment = Instant::now() + turn * round / ROUNDS;
        assert!(!mounts::until(moment, || Ok(false)).unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        found_something += usize::from(served.groups.has_disk_servers(&vm.id));
        if round % 2 == 0 {
            served.detach(&vm);
        }
        let open = fs::Permissions::from_mode(0o711);
        let given = served.attach(&vm).unwrap();
        fs::set_permissions(served.ground.storage.places(&vm.id).dir, open).unwrap();
        assert_eq!((given.len(), served.servers(&vm).len()), (2, 2));
        served.detach(&vm);
        check(&served.ground.disk("a"));
    }
    assert!(found_something > 3, "{found_something}");
}
