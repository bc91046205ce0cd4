//! Tools of the host that make a disk of a tenant's files: confined, and the disk is the same.

use std::fs;
use std::os::unix::fs::MetadataExt;

use ocivisor_datastore::{
    DiskExport, DiskFormat, DiskOptions, ExportedDisk, Image, Limits, Result, Source, Store,
};

use crate::common::{Bench, Head, RawTar, entries};
use crate::confined::*;

const CAP_NET_RAW: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// A system with files that only their owners may read, of several owners, and what else a disk can hold.
fn system() -> Vec<u8> {
    let owned = |path: &'static [u8], kind, uid, gid, mode| Head {
        path,
        kind,
        uid,
        gid,
        mode,
        ..Head::default()
    };
    let long = noise(3 << 20);
    let mut tar = RawTar::new()
        .head(&owned(b"./", b'5', 0, 0, 0o750), b"")
        .dir("etc")
        .file("etc/os-release", b"ID=test\n")
        .head(&owned(b"etc/shadow", b'0', 0, 42, 0o600), b"secret")
        .head(&owned(b"home", b'5', 1000, 1000, 0o700), b"")
        .head(&owned(b"home/key", b'0', 1000, 1000, 0o400), b"key")
        .head(&owned(b"last", b'0', 65_535, 65_535, 0), b"nobody may read this")
        .head(&owned(b"su", b'0', 0, 0, 0o6755), b"su")
        .pax(&[("SCHILY.xattr.security.capability", &CAP_NET_RAW), ("SCHILY.xattr.user.a", b"b")])
        .file("ping", b"ping")
        .hardlink("ping6", "ping")
        .symlink("abs", "/etc/shadow")
        .kind(b'6', "pipe", "")
        .file("long", &long)
        .file("zeros", &vec![0; 3 << 20]);
    for n in 0..40 {
        tar = tar.dir(&format!("deep{}", "/d".repeat(n)));
    }
    tar.end()
}

fn export(store: &Store, bench: &Bench, format: DiskFormat, to: &str) -> Result<ExportedDisk> {
    let options = DiskExport { format, size: None, label: None };
    let image = "test".parse().unwrap();
    store.export_disk(&image, None, &bench.path(to), &options, &Limits::default())
}

/// What our reader finds on a disk: its digest says all.
fn read_back(bench: &Bench, disk: &str) -> Image {
    let source = Source::DiskImage { file: bench.path(disk), options: DiskOptions::default() };
    bench.store.import(&source, &"back".parse().unwrap(), &Limits::default(), &mut |_| {}).unwrap()
}

#[test]
fn a_disk_that_confined_tools_made_has_the_same_files() {
    let (ours, theirs) = (Bench::new(), bench());
    let mut layers = Vec::new();
    for bench in [&ours, &theirs] {
        bench.import_tar(system()).unwrap();
        for (format, to) in [(DiskFormat::Raw, "raw"), (DiskFormat::Qcow2, "qcow2")] {
            let made = export(&bench.store, bench, format, to).unwrap();
            let meta = fs::metadata(bench.path(to)).unwrap();
            assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o600, 0, 0), "{to}");
            assert!(made.allocated < made.size / 2, "{made:?}");
            layers.push(read_back(bench, to).layers);
        }
        assert_eq!(entries(&bench.path("store/staging")), Vec::<String>::new());
        bench.assert_probe_untouched();
    }
    assert!(layers.iter().all(|l| *l == layers[0]), "{layers:?}");
    let report = theirs.store.inspect(&"back".parse().unwrap()).unwrap().layers[0].report.clone();
    // As many as were imported, for nothing is left out: the root, what is named above, and `lost+found` is not there.
    assert_eq!(report.entries, 14 + 40);
}

/// With programs in place of mke2fs that show what it could do: `probe.rs` has them.
#[cfg(feature = "faults")]
mod instead {
    use std::collections::BTreeSet;
    use std::path::Path;

    use ocivisor_datastore::worker::Worker;
    use ocivisor_datastore::{Cancel, Error};

    use super::*;

    /// Each for one test alone: by its ids a tool is known for its own.
    const SLEEPS: [u32; 3] = [BASE + 40, BASE + 44, BASE + 45];
    const TRIES: u32 = BASE + 41;
    const GROWS: u32 = BASE + 42;
    const TALKS: u32 = BASE + 43;

    fn bench_with(base: u32) -> Bench {
        let bench = bench_of(Worker::new(PROGRAM, base));
        bench.import_tar(system()).unwrap();
        bench
    }

    /// The worker of ours that is a tool by now, and its first process.
    fn tool(base: u32) -> Option<Pair> {
        let uid = format!("{base}\t{base}\t{base}\t{base}");
        children(std::process::id()).into_iter().find_map(|broker| {
            let file = format!("/proc/{broker}/task/{broker}/children");
            let child = fs::read_to_string(file).ok()?.trim().parse().ok()?;
            let is_tool = status_of(child, "Name").as_deref() == Some("sleep")
                && status_of(child, "Uid").as_ref() == Some(&uid);
            is_tool.then_some(Pair { broker, confined: child })
        })
    }

    /// Exports with a tool that sleeps, looks at it, and cancels.
    fn look(base: u32, see: impl FnOnce(u32)) {
        let bench = bench_with(base);
        let cancel = Cancel::new();
        let store = bench.store.cancelled_by(&cancel).unwrap();
        let mut found = None;
        std::thread::scope(|scope| {
            let exporting = scope.spawn(|| export(&store, &bench, DiskFormat::Raw, "raw"));
            let looked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                until("the tool runs", || {
                    found = tool(base);
                    found.is_some()
                });
                see(found.unwrap().confined);
            }));
            cancel.cancel();
            let ended = exporting.join().unwrap();
            looked.unwrap();
            assert!(matches!(ended, Err(Error::Cancelled)), "{ended:?}");
        });
        let Pair { broker, confined } = found.unwrap();
        assert!(is_gone(broker) && is_gone(confined), "a cancelled tool lives on");
        assert!(!bench.path("raw").exists());
        assert_eq!(entries(&bench.path("store/staging")), Vec::<String>::new());
    }

    #[test]
    fn a_tool_is_nobody_and_alone() {
        look(SLEEPS[0], |pid| {
            for kind in ["user", "mnt", "net", "pid", "ipc", "uts", "cgroup"] {
                let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
                assert_ne!(of(&pid.to_string()), of("self"), "{kind}");
            }
            let ids = vec![SLEEPS[0].to_string(); 4].join("\t");
            for (field, want) in [
                ("Uid", ids.as_str()),
                ("Gid", ids.as_str()),
                ("Groups", ""),
                ("NoNewPrivs", "1"),
                ("Seccomp", "2"),
                // Over the files of the tree: CAP_DAC_READ_SEARCH.
                ("CapEff", "0000000000000004"),
                ("CapPrm", "0000000000000004"),
                ("CapBnd", "0000000000000004"),
                ("CapInh", "0000000000000000"),
                ("CapAmb", "0000000000000000"),
            ] {
                assert_eq!(status(pid, field), want, "{field}");
            }
            let devices = proc(pid, "net/dev");
            let devices: Vec<_> =
                devices.lines().skip(2).map(|l| l.split(':').next().unwrap().trim()).collect();
            assert_eq!(devices, ["lo"]);
        });
    }

    #[test]
    fn a_tool_sees_programs_its_tree_and_its_file() {
        look(SLEEPS[1], |pid| {
            let root = format!("/proc/{pid}/root");
            let mut want: BTreeSet<String> = ["etc", "fd", "tree"].map(String::from).into();
            let host = ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "nix", "gnu"];
            want.extend(
                host.map(String::from)
                    .into_iter()
                    .filter(|n| Path::new("/").join(n).symlink_metadata().is_ok()),
            );
            assert_eq!(entries(Path::new(&root)).into_iter().collect::<BTreeSet<_>>(), want);
            let settings = entries(&Path::new(&root).join("etc"));
            assert!(settings.iter().all(|n| n == "ld.so.cache" || n == "mke2fs.conf"));
            assert_eq!(fs::read(format!("{root}/tree/etc/shadow")).unwrap(), b"secret");
            for line in proc(pid, "mountinfo").lines() {
                let fields: Vec<&str> = line.split(' ').collect();
                let has = |option: &str| fields[5].split(',').any(|o| o == option);
                assert!(has("ro") && has("nosuid") && has("nodev"), "{line}");
                assert_eq!(has("idmapped"), fields[4] == "/tree", "{line}");
            }
            let open: Vec<(String, String)> = entries(Path::new(&format!("/proc/{pid}/fd")))
                .into_iter()
                .map(|n| {
                    let to = fs::read_link(format!("/proc/{pid}/fd/{n}")).unwrap();
                    (n, to.to_str().unwrap().split(':').next().unwrap().to_owned())
                })
                .collect();
            let want = [("0", "/dev/null"), ("1", "/dev/null"), ("2", "pipe")];
            assert_eq!(open[..3], want.map(|(n, to)| (n.to_owned(), to.to_owned())));
            // The disk, which has no name yet.
            assert_eq!((open.len(), open[3].0.as_str()), (4, "3"));
            let disk = fs::metadata(format!("{root}/fd/3")).unwrap();
            assert_eq!((disk.nlink(), disk.uid(), disk.mode() & 0o7777), (0, SLEEPS[1], 0o600));
            assert_eq!(
                proc(pid, "environ").trim_end_matches('\0').split('\0').collect::<Vec<_>>(),
                ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "EXT2FS_NO_MTAB_OK=1"]
            );
        });
    }

    fn refused(base: u32) -> String {
        let bench = bench_with(base);
        let error = export(&bench.store, &bench, DiskFormat::Raw, "raw").unwrap_err();
        assert!(!bench.path("raw").exists());
        assert_eq!(entries(&bench.path("store/staging")), Vec::<String>::new());
        bench.assert_probe_untouched();
        error.to_string().split_once(": ").unwrap().1.to_owned()
    }

    #[test]
    fn what_a_tool_tries_elsewhere_fails() {
        assert_eq!(
            refused(TRIES),
            "mke2fs failed (exit status: 2): sh: 1: cannot open /proc/1/environ: No such file; \
             sh: 1: cannot create /tree/new: Read-only file system; sh: 1: Cannot fork"
        );
    }

    #[test]
    fn a_disk_grows_no_larger_than_it_shall() {
        let want = "mke2fs failed (exit status: 1): yes: standard output: File too large";
        assert_eq!(refused(GROWS), want);
    }

    #[test]
    fn of_a_tool_that_is_killed_the_signal_is_told() {
        let said = std::thread::scope(|scope| {
            let exporting = scope.spawn(|| refused(SLEEPS[2]));
            let mut found = None;
            until("the tool runs", || {
                found = tool(SLEEPS[2]);
                found.is_some()
            });
            let pid = rustix::process::Pid::from_raw(found.unwrap().confined as i32).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            exporting.join().unwrap()
        });
        assert_eq!(said, "mke2fs failed (signal: 9 (SIGKILL)): ");
    }

    #[test]
    fn words_of_a_tool_are_bounded_and_escaped_and_do_not_stop_it() {
        let said = refused(TALKS);
        let (how, words) = said.split_once("): ").unwrap();
        assert_eq!(how, "mke2fs failed (exit status: 7");
        assert!(words.len() < 300 && words.contains("\\x1b[31m"), "{said}");
    }
}
