//! Disks of machines, read by confined workers: the same images and refusals as by the importing process, and what a
//! worker may do that was taken over by a disk.
//!
//! All attacks on the readers, and all partition tables, run here a second time: `disk_attacks` and `disk_tables`.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use ocivisor_datastore::worker::Worker;
use ocivisor_datastore::{Cancel, DiskOptions, Error, Image, Limits, Progress, Source};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::common::{Bench, assert_same_tree, entries, put, run, text, tree};
use crate::confined::*;
use crate::make::{noise, *};

/// Imports with and without a worker, and compares.
fn same_by_both(ours: &Bench, theirs: &Bench, source: &Source, what: &str) {
    let one = ours.import(source).unwrap_or_else(|e| panic!("{what}: {e:?}"));
    let other = theirs.import(source).unwrap_or_else(|e| panic!("{what}: {e:?}"));
    // Config and blob are in it, so the blob has the same bytes.
    assert_eq!(other.manifest_digest, one.manifest_digest, "{what}");
    assert_same_tree(&tree(&theirs.fs(&other)), &tree(&ours.fs(&one)), what);
    let record =
        |b: &Bench, i: &Image| fs::read(b.fs(i).parent().unwrap().join("layer.json")).unwrap();
    assert_eq!(record(theirs, &other), record(ours, &one), "{what}");
    for bench in [ours, theirs] {
        forget(bench);
    }
}

#[test]
fn a_disk_becomes_the_same_image_whoever_reads_it() {
    let (ours, theirs) = (Bench::new(), bench());
    let raw = cloud(&ours, own_root());
    same_by_both(&ours, &theirs, &disk(&raw), "raw");
    let file = ours.path("cloud.qcow2");
    let convert = |options: &[&str]| {
        let args = [&["convert", "-O", "qcow2"], options, &[text(&raw), text(&file)]].concat();
        run("qemu-img", &args);
    };
    for options in [&["-c"][..], &["-c", "-o", "compression_type=zstd"]] {
        convert(options);
        same_by_both(&ours, &theirs, &disk(&file), &options.join(" "));
    }
    let top = ours.path("top");
    let above = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", text(&file), text(&top)];
    run("qemu-img", &above);
    let options = DiskOptions { backing: vec![file.clone()], ..DiskOptions::default() };
    same_by_both(&ours, &theirs, &with(&top, options), "backing file");

    let data = ours.path("data");
    convert(&["-o", &format!("data_file={},data_file_raw=off", text(&data))]);
    let options = DiskOptions { data_file: Some(data), ..DiskOptions::default() };
    same_by_both(&ours, &theirs, &with(&file, options), "data file");
}

#[test]
fn every_file_system_becomes_the_same_image_whoever_reads_it() {
    let (ours, theirs) = (Bench::new(), bench());
    let root = ours.path("root");
    rich_root(&root);
    for (mkfs, options) in [
        (&["mkfs.ext4", "-q"][..], "user_xattr"),
        (&["mkfs.xfs", "-q"], "rw"),
        (&["mkfs.btrfs", "-q", "-f"], "compress-force=zstd"),
    ] {
        let file = ours.path("disk");
        blank(&file, 400);
        fill(&ours, &file, mkfs, options, &root);
        same_by_both(&ours, &theirs, &disk(&file), &format!("{mkfs:?} {options}"));
    }
}

/// How an import of a damaged disk ends.
fn outcome(bench: &Bench, file: &Path) -> Result<String, String> {
    let limits = Limits { image_bytes: 64 << 20, entries: 5000, ..Limits::default() };
    match bench.import_with(&disk(file), &limits) {
        Ok(image) => {
            let digest = image.manifest_digest.to_string();
            forget(bench);
            Ok(digest)
        }
        Err(error @ (Error::Disk { .. } | Error::Refused { .. } | Error::Platform { .. })) => {
            assert_eq!(entries(&bench.path("store/staging")), Vec::<String>::new());
            bench.assert_probe_untouched();
            Err(error.to_string())
        }
        Err(other) => panic!("{other:?}"),
    }
}

/// Changes bytes of a disk that are not zero, in many ways, and reads each with and without a worker.
fn damaged_by_both(ours: &Bench, theirs: &Bench, file: &Path) {
    let whole = fs::read(file).unwrap();
    let used: Vec<usize> = (0..whole.len()).filter(|at| whole[*at] != 0).collect();
    assert!(outcome(theirs, file).is_ok());
    let disk = File::options().write(true).open(file).unwrap();
    let config = ProptestConfig { cases: 12, failure_persistence: None, ..Default::default() };
    let value = prop_oneof![Just(0u8), Just(0xff), Just(0x7f), Just(1), any::<u8>()];
    let hits = prop::collection::vec((any::<prop::sample::Index>(), value), 1..6);
    let outcome = TestRunner::new(config).run(&hits, |hits| {
        let hits: Vec<_> = hits.iter().map(|(at, value)| (*at.get(&used), *value)).collect();
        for (at, value) in &hits {
            disk.write_all_at(&[*value], *at as u64).unwrap();
        }
        let ends = (outcome(theirs, file), outcome(ours, file));
        for (at, _) in &hits {
            disk.write_all_at(&whole[*at..=*at], *at as u64).unwrap();
        }
        prop_assert_eq!(ends.0, ends.1);
        Ok(())
    });
    outcome.unwrap();
}

#[test]
fn a_damaged_disk_ends_in_the_same_way_whoever_reads_it() {
    let (ours, theirs) = (Bench::new(), bench());
    let (root, file) = (ours.path("root"), ours.path("disk"));
    small_root(&root);
    for n in 0..80 {
        put(&root.join(format!("etc/file-number-{n:04}")), n.to_string().as_bytes());
    }
    blank(&file, 4);
    run("mke2fs", &["-q", "-t", "ext4", "-b", "1024", "-d", text(&root), text(&file)]);
    damaged_by_both(&ours, &theirs, &file);
    let packed = ours.path("packed");
    let zstd = ["convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd,cluster_size=4k"];
    run("qemu-img", &[&zstd[..], &[text(&file), text(&packed)]].concat());
    damaged_by_both(&ours, &theirs, &packed);
    blank(&file, 32);
    run("mkfs.btrfs", &["-q", "-f", "--mixed", "--rootdir", text(&root), text(&file)]);
    damaged_by_both(&ours, &theirs, &file);
}

/// A disk that takes several looks to import.
fn long_disk(bench: &Bench) -> Source {
    let (root, file) = (bench.path("root"), bench.path("disk"));
    small_root(&root);
    put(&root.join("long"), &noise(30 << 20));
    blank(&file, 64);
    run("mke2fs", &["-q", "-t", "ext4", "-d", text(&root), text(&file)]);
    disk(&file)
}

/// The worker that reads this file.
fn reader_of(file: &Path) -> Pair {
    let pairs = children(std::process::id()).into_iter().flat_map(|broker| {
        children(broker).into_iter().map(move |confined| Pair { broker, confined })
    });
    let has = |pair: &Pair| descriptors(pair.confined).any(|to| to == file);
    let pairs: Vec<_> = pairs.filter(has).collect();
    let [pair] = pairs[..] else { panic!("{pairs:?}") };
    pair
}

fn descriptors(pid: u32) -> impl Iterator<Item = std::path::PathBuf> {
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
    fds.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok())
}

/// Imports [`long_disk`] and calls `look` once in the middle.
fn import_looking_at_reader(bench: &Bench, mut look: impl FnMut(Pair)) -> Result<Image, Error> {
    let source = long_disk(bench);
    let mut looked = false;
    let name = "test".parse().unwrap();
    let result = bench.store.import(&source, &name, &Limits::default(), &mut |p| {
        if matches!(p, Progress::Layer { .. }) && !looked {
            looked = true;
            look(reader_of(&bench.path("disk")));
        }
    });
    assert!(looked);
    result
}

#[test]
fn who_reads_a_disk_has_nothing_but_that_disk() {
    let bench = bench();
    let image = import_looking_at_reader(&bench, |Pair { broker, confined }| {
        for pid in [broker, confined] {
            for set in ["CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb"] {
                assert_eq!(status(pid, set), "0000000000000000", "{set}");
            }
            assert_eq!(status(pid, "NoNewPrivs"), "1");
            assert_eq!(status(pid, "Seccomp"), "2");
        }
        assert_eq!(status(confined, "Uid"), format!("{BASE}\t{BASE}\t{BASE}\t{BASE}"));
        assert_eq!(status(confined, "Threads"), "1");
        assert_eq!(entries(Path::new(&format!("/proc/{confined}/root"))), [""; 0]);
        for (pid, disks) in [(broker, 0), (confined, 1)] {
            let mut seen = 0;
            for fd in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
                let fd = fd.unwrap();
                let to = fs::read_link(fd.path()).unwrap();
                let shown = to.to_str().unwrap();
                if to == bench.path("disk") {
                    seen += 1;
                    let info = proc(pid, &format!("fdinfo/{}", fd.file_name().to_str().unwrap()));
                    let flags = info.lines().find_map(|l| l.strip_prefix("flags:")).unwrap();
                    let flags = i32::from_str_radix(flags.trim(), 8).unwrap();
                    assert_eq!(flags & 3, 0, "not only for reading: {info}");
                } else {
                    let own = shown.starts_with("pipe:[") || shown.starts_with("socket:[");
                    assert!(own || shown == "/dev/null", "{pid}: {shown}");
                }
            }
            assert_eq!(seen, disks);
        }
        let limits = proc(confined, "limits");
        let limit = |name: &str| {
            let line = limits.lines().find_map(|l| l.strip_prefix(name)).unwrap();
            line.split_whitespace().next().unwrap().to_owned()
        };
        assert_eq!(limit("Max address space"), (2u64 << 30).to_string());
        assert_eq!(limit("Max file size"), "0");
    });
    assert_eq!(fs::read(bench.fs(&image.unwrap()).join("long")).unwrap().len(), 30 << 20);
}

fn why(error: Error) -> String {
    match error {
        Error::Worker { why, .. } => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_reader_killed_in_the_middle_leaves_nothing() {
    for kill_confined in [true, false] {
        let bench = bench();
        let mut seen = None;
        let error = import_looking_at_reader(&bench, |pair| {
            seen = Some(pair);
            let pid = if kill_confined { pair.confined } else { pair.broker };
            kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
        });
        let want = "was killed by signal 9; the memory limit of its control group may be too low";
        assert_eq!(why(error.unwrap_err()), want);
        let Pair { broker, confined } = seen.unwrap();
        assert!(is_gone(broker) && is_gone(confined));
        bench.assert_nothing_happened();
    }
}

#[test]
fn a_reader_that_hangs_is_killed() {
    let bench = bench_of(worker().with_patience(Duration::from_secs(1)));
    let error = import_looking_at_reader(&bench, |pair| {
        kill_process(Pid::from_raw(pair.confined as i32).unwrap(), Signal::STOP).unwrap();
    });
    assert_eq!(why(error.unwrap_err()), "did nothing for 1 s and was killed");
    bench.assert_nothing_happened();
}

/// Imports while another thread waits for something, then cancels it.
fn cancel_when(bench: &Bench, source: &Source, what: &str, condition: impl FnMut() -> bool) {
    let cancel = Cancel::new();
    std::thread::scope(|scope| {
        let store = bench.store.cancelled_by(&cancel).unwrap();
        let limits = Limits { image_bytes: u64::MAX, ratio: u64::MAX, ..Limits::default() };
        let name = "test".parse().unwrap();
        let importing = scope.spawn(move || store.import(source, &name, &limits, &mut |_| {}));
        let met = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            until(what, condition);
        }));
        cancel.cancel();
        until("the import ends", || importing.is_finished());
        let ended = importing.join().unwrap();
        met.unwrap();
        assert!(matches!(ended, Err(Error::Cancelled)), "{ended:?}");
    });
    bench.assert_nothing_happened();
}

#[test]
fn the_reading_of_a_large_hole_ends_when_it_is_cancelled() {
    let bench = bench();
    let (root, file) = (bench.path("root"), bench.path("disk"));
    small_root(&root);
    File::create(root.join("hole")).unwrap().set_len(1 << 40).unwrap();
    blank(&file, 64);
    run("mke2fs", &["-q", "-t", "ext4", "-d", text(&root), text(&file)]);
    let mut pair = None;
    cancel_when(&bench, &disk(&file), "the hole is reached", || {
        let staging = fs::read_dir(bench.path("store/staging")).unwrap();
        let mut works = staging.map(|work| work.unwrap().path().join("layer/fs/hole"));
        let begun = works.any(|hole| hole.exists());
        if begun {
            pair = Some(reader_of(&file));
        }
        begun
    });
    let Pair { broker, confined } = pair.unwrap();
    assert!(is_gone(broker) && is_gone(confined));
}

#[test]
fn who_waits_for_a_silent_reader_can_stop_waiting() {
    let top = tempfile::tempdir().unwrap();
    let said = top.path().join("pid");
    let (_program, worker) = liar(&format!("echo $$ > {}; exec sleep 600", text(&said)));
    let bench = bench_of(worker.with_patience(Duration::from_secs(600)));
    blank(&bench.path("disk"), 1);
    let mut pid = None;
    cancel_when(&bench, &disk(&bench.path("disk")), "a worker", || {
        let line = fs::read_to_string(&said).unwrap_or_default();
        pid = line.strip_suffix('\n').map(|pid| pid.parse().unwrap());
        pid.is_some()
    });
    assert!(is_gone(pid.unwrap()));
}

/// A worker that reads disks as the script says, and does all else as it should: a disk is what comes by a socket.
fn liar(script: &str) -> (TempDir, Worker) {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("liar");
    let text_of = format!("#!/bin/sh\n[ -S /proc/self/fd/0 ] || exec {PROGRAM}\n{script}\n");
    // Not by this process: while it has it open for writing, any other thread may start a child, and then nobody can
    // execute it (ETXTBSY).
    let write = "printf %s \"$1\" > \"$0\" && chmod 755 \"$0\"";
    run("sh", &["-c", write, text(&program), &text_of]);
    let worker = Worker::new(program, BASE).with_patience(Duration::from_secs(2));
    (dir, worker)
}

/// Imports a disk by it, which fails, and checks that nothing is left.
fn lied(script: &str, limits: &Limits) -> Error {
    let (_program, worker) = liar(script);
    let bench = bench_of(worker);
    blank(&bench.path("disk"), 1);
    let error = bench.import_with(&disk(&bench.path("disk")), limits).unwrap_err();
    bench.assert_nothing_happened();
    error
}

#[test]
fn a_reader_that_says_what_cannot_be_is_not_believed() {
    let said = |script: &str| why(lied(script, &Limits::default()));
    let disk = |fields: &str| said(&format!("printf '{{\"disk\":{{{fields}}}}}'"));
    let none = "\"init\":null,\"systemd\":false,\"architecture\":null,\"xattrs_dropped\":0";
    for (answer, want) in [
        (disk(&format!("\"bytes\":0,{none}")), "answered nonsense: numbers that cannot be"),
        (disk(&format!("\"bytes\":7,{none}")), "answered nonsense: another length than came"),
        (
            disk(&format!("\"bytes\":0,{}", none.replacen("null", "\"/bin/evil\"", 1))),
            "answered nonsense: a system of no known kind",
        ),
        (
            disk(&format!("\"bytes\":0,{}", none.replace("false", "true"))),
            "answered nonsense: a system of no known kind",
        ),
        (
            disk(&format!(
                "\"bytes\":0,{}",
                none.replace("architecture\":null", "architecture\":\"vax\"")
            )),
            "answered nonsense: a system of no known kind",
        ),
        (
            said(r#"printf '{"disk_refused":{"why":"\\u001b[2Jall is well"}}'"#),
            "answered nonsense: text that is not escaped",
        ),
        (
            said(r#"printf '{"disk_refused":{"why":"%5000s"}}' x"#),
            "answered nonsense: text that is not escaped",
        ),
        (said(r#"printf '{"expanded":{"bytes":0}}'"#), "answered nonsense: what another job would"),
        (said("exit 0"), "answered nonsense: EOF while parsing a value at line 1 column 0"),
        (said("exit 3"), "ended with exit status: 3"),
        (said("exec cat /dev/zero"), "answered nonsense: too much"),
        (said("exec sleep 600"), "did nothing for 2 s and was killed"),
    ] {
        assert_eq!(answer, want);
    }
}

#[test]
fn a_refusal_of_a_reader_is_shown_as_what_is_said_of_the_disk() {
    let script = r#"printf '{"disk_refused":{"why":"it is \\"odd\\""}}'"#;
    let error = lied(script, &Limits::default()).to_string();
    assert!(error.ends_with("/disk refused: it is \"odd\""), "{error}");
}

#[test]
fn a_reader_that_gives_no_tar_is_refused_by_who_unpacks() {
    let error = lied("exec cat /dev/zero >&2", &Limits::default());
    let Error::Refused { object, why } = error else { panic!("{error:?}") };
    assert!(object.ends_with("/disk"), "{object}");
    assert_eq!(why.to_string(), "bad compressed stream: media type says zstd, the bytes say none");
}

#[test]
fn a_reader_that_dies_behind_a_whole_tar_is_an_error() {
    let tar = crate::common::RawTar::new().file("a", b"a").end();
    let bench = Bench::new();
    put(&bench.path("tar.zst"), &zstd::encode_all(&tar[..], 1).unwrap());
    let script = format!("cat {} >&2; exit 3", text(&bench.path("tar.zst")));
    assert_eq!(why(lied(&script, &Limits::default())), "ended with exit status: 3");
}

#[test]
fn a_reader_that_gives_packed_nothing_without_end_is_cut_off() {
    // Frames that are to be skipped: RFC 8878, 3.1.2.
    let frames = [&b"\x50\x2a\x4d\x18\xf8\xff\0\0"[..], &[0; 65_528]].concat().repeat(16);
    let bench = Bench::new();
    put(&bench.path("frames"), &frames);
    let script = format!("while cat {} >&2; do :; done", text(&bench.path("frames")));
    let limits = Limits { image_bytes: 1 << 20, ..Limits::default() };
    assert_eq!(
        why(lied(&script, &limits)),
        "answered nonsense: more than an image of the largest size takes"
    );
}
