//! Workers that only decompress: what they have, and what one may say that was taken over.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ocivisor_datastore::worker::Worker;
use ocivisor_datastore::{
    Archive, CheckOptions, Digest, Error, Finding, Limit, Limits, Refusal, RepairOptions, Source,
    Store,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::common::{
    Bench, Layer, RawTar, TAR_ZSTD, entries, gzip, gzipped, plain, put, text, xz, zstd,
};
use crate::confined::*;

/// A compressed archive of more bytes than all pipes and buffers hold. It has no image.
fn archive(bench: &Bench) -> Source {
    let file = bench.path("archive.tar.gz");
    put(&file, &gzip(&RawTar::new().file("noise", &noise(3 << 20)).end()));
    Source::DockerArchive { file, tag: None }
}

/// Imports the archive, which fails, and checks that nothing is left.
fn fail(worker: Worker) -> Error {
    let bench = bench_of(worker.with_patience(Duration::from_secs(1)));
    let limits = Limits { image_bytes: 64 << 20, ..Limits::default() };
    let error = bench.import_with(&archive(&bench), &limits).unwrap_err();
    bench.assert_nothing_happened();
    error
}

fn why(error: Error) -> String {
    match error {
        Error::Worker { why, .. } => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_stream_that_ends_without_an_answer_is_an_error() {
    let said = why(fail(fake("silent")));
    assert_eq!(said, "answered nonsense: EOF while parsing a value at line 1 column 0");
    assert_eq!(why(fail(fake("failing"))), "ended with exit status: 3");
}

#[test]
fn a_stream_that_is_shorter_than_its_answer_is_an_error() {
    assert_eq!(why(fail(fake("cutter"))), "answered nonsense: another length than came");
}

#[test]
fn the_answer_of_another_job_is_an_error() {
    assert_eq!(why(fail(fake("liar"))), "answered nonsense: what another job would");
}

#[test]
fn a_stream_that_ends_before_its_source_is_an_error() {
    let said = why(fail(fake("hurried")));
    assert_eq!(said, "answered nonsense: done, without having read the whole stream");
}

#[test]
fn a_worker_that_neither_takes_nor_gives_is_killed_after_a_while() {
    std::thread::scope(|scope| {
        for name in ["deaf", "sleeper", "mute", "closer"] {
            scope.spawn(move || {
                let said = why(fail(fake(name)));
                assert_eq!(said, "did nothing for 1 s and was killed", "{name}");
            });
        }
    });
}

#[test]
fn a_stream_without_an_end_meets_the_limit() {
    let limit = Refusal::Limit { limit: Limit::ImageBytes, max: 64 << 20 };
    assert_eq!(fail(fake("spring")).refusal(), Some(&limit));
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let said = why(fail(Worker::new("/nonexistent/ocivisor-unpack", BASE)));
    let want = "/nonexistent/ocivisor-unpack cannot be started: No such file or directory (os error 2); is it installed?";
    assert_eq!(said, want);
}

/// Ids of one worker, so that it is known among those of other tests.
const OWN: u32 = BASE + (1 << 17);

/// Looks at a worker that decompresses, and is stopped meanwhile.
fn save_looking(look: impl Fn(Pair) + Sync) {
    let bench = bench_of(Worker::new(PROGRAM, OWN));
    let layer = Layer { blob: zstd(&long_tar()), media_type: TAR_ZSTD, ..plain(long_tar()) };
    let image = bench.import_layers(&[layer]).unwrap().manifest_digest.into();
    let dir = fs::File::open(bench.top.path()).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _over = Over(&over);
            let mut pair = None;
            until("a worker is confined", || {
                pair = stopped();
                pair.is_some()
            });
            look(pair.unwrap());
            signal(pair.unwrap(), Signal::CONT);
        });
        // As often as it takes to catch it.
        while !over.load(Ordering::Relaxed) {
            let saved = bench.store.save(
                std::slice::from_ref(&image),
                Archive::DockerArchive,
                &dir,
                "saved.tar",
                &mut |_| {},
            );
            // A test that fails kills the worker.
            if let Err(e) = saved {
                assert!(over.load(Ordering::Relaxed), "{e:?}");
            }
        }
    });
}

/// Said also when a test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        if std::thread::panicking() {
            pair_of_ids().into_iter().for_each(|pair| signal(pair, Signal::KILL));
        }
    }
}

fn signal(pair: Pair, signal: Signal) {
    // It may be gone.
    let _ = kill_process(Pid::from_raw(pair.confined as i32).unwrap(), signal);
}

/// The worker, if one is there and confined.
fn stopped() -> Option<Pair> {
    let pair = pair_of_ids()?;
    (status_of(pair.confined, "Seccomp")? == "2").then_some(())?;
    signal(pair, Signal::STOP);
    until("it stands", || {
        status_of(pair.confined, "State").is_none_or(|state| !state.starts_with(['R', 'S', 'D']))
    });
    status_of(pair.confined, "State")?.starts_with('T').then_some(pair)
}

fn pair_of_ids() -> Option<Pair> {
    let own =
        |pid: &u32| status_of(*pid, "Uid").is_some_and(|ids| ids.starts_with(&format!("{OWN}\t")));
    let pair = |broker| Some(Pair { broker, confined: children(broker).into_iter().find(own)? });
    children(std::process::id()).into_iter().find_map(pair)
}

fn is_socket(to: &Path) -> bool {
    to.to_str().is_some_and(|to| to.starts_with("socket:["))
}

#[test]
fn a_worker_that_decompresses_has_no_file_and_no_right() {
    save_looking(|Pair { broker, confined }| {
        for pid in [broker, confined] {
            for set in ["CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb"] {
                assert_eq!(status(pid, set), "0000000000000000", "{set}");
            }
            assert_eq!(status(pid, "NoNewPrivs"), "1");
        }
        assert_eq!(status(confined, "Uid"), format!("{OWN}\t{OWN}\t{OWN}\t{OWN}"));
        assert_eq!(status(confined, "Threads"), "1");
        assert_eq!(entries(Path::new(&format!("/proc/{confined}/root"))), [""; 0]);
        let mounts = proc(confined, "mountinfo");
        assert_eq!(mounts.lines().count(), 1, "{mounts}");
        assert!(mounts.split_whitespace().nth(5).unwrap().starts_with("ro,"), "{mounts}");
        for entry in fs::read_dir(format!("/proc/{confined}/fd")).unwrap() {
            let to = fs::read_link(entry.unwrap().path()).unwrap();
            let pipe = to.to_str().unwrap().starts_with("pipe:[");
            assert!(pipe || is_socket(&to) || to == Path::new("/dev/null"), "{to:?}");
        }
        let limits = proc(confined, "limits");
        let files = limits.lines().find(|l| l.starts_with("Max file size")).unwrap();
        assert_eq!(files.split_whitespace().nth(3), Some("0"));
    });
}

/// The same store with another worker.
fn reopened(bench: &Bench, worker: Worker) -> Store {
    Store::open(&bench.path("store"))
        .unwrap()
        .with_worker(worker.with_patience(Duration::from_secs(1)))
}

#[test]
fn whatever_is_compressed_is_read_by_a_worker_or_not_at_all() {
    for compress in [gzip, xz, zstd] {
        let bench = bench();
        let tar = RawTar::new().file("bin/true", b"elf").end();
        put(&bench.path("rootfs.tar.x"), &compress(&tar));
        let source = Source::RootfsTar { file: bench.path("rootfs.tar.x") };
        let image = bench.import(&source).unwrap();
        let bare = text(&bench.path("rootfs.tar.x")).to_owned();
        assert_eq!(bench.store.source(&bare).unwrap(), source);

        let store = reopened(&bench, fake("failing"));
        let failed = "ended with exit status: 3";
        assert_eq!(why(store.source(&bare).unwrap_err()), failed);
        let archive = Source::OciArchive { file: bench.path("rootfs.tar.x"), tag: None };
        for source in [source, archive] {
            let name = "other".parse().unwrap();
            let error = store.import(&source, &name, &Limits::default(), &mut |_| {}).unwrap_err();
            assert_eq!(why(error), failed);
        }
        let dir = fs::File::open(bench.top.path()).unwrap();
        let error = store
            .save(
                &[image.manifest_digest.into()],
                Archive::DockerArchive,
                &dir,
                "saved.tar",
                &mut |_| {},
            )
            .unwrap_err();
        assert_eq!(why(error), failed);
        let (layer, blob) = (image.layers[0], Digest::of(&compress(&tar)));
        let why = failed.to_owned();
        assert_eq!(store.fsck().unwrap(), [Finding::LayerUnchecked { layer, blob, why }]);
        // With a worker all is well, and no other one is needed.
        assert_eq!(bench.store.fsck().unwrap(), []);
    }
}

#[test]
fn a_repair_takes_nothing_away_because_a_worker_failed() {
    let bench = bench();
    let image = bench.import_layers(&[gzipped(&RawTar::new().file("a", b"a").end())]).unwrap();
    for name in ["failing", "silent", "liar", "cutter", "inventor"] {
        let store = reopened(&bench, fake(name));
        let (check, in_use) = (CheckOptions::default(), HashSet::new());
        let options = RepairOptions { check, in_use: &in_use, refetch: None };
        let report = store.repair(&options).unwrap();
        let codes: Vec<_> =
            report.findings.iter().map(|f| (f.finding.code(), f.is_open())).collect();
        // What the last one gives is taken for what the blob holds: it says that this is all, and has read it.
        let want = if name == "inventor" { "layer_unproven" } else { "layer_unchecked" };
        assert_eq!(codes, [(want, true)], "{name}");
    }
    assert_eq!(bench.store.fsck().unwrap(), []);
    assert_eq!(entries(&bench.fs(&image)), ["a"]);
    assert!(!bench.path("store/quarantine").exists());
}

#[test]
fn a_worker_that_makes_bytes_up_changes_no_verdict_but_its_own() {
    // One that gives the bytes of another layer for a blob: they have another digest.
    let bench = bench();
    let image = bench.import_layers(&[gzipped(&RawTar::new().file("a", b"a").end())]).unwrap();
    let store = reopened(&bench, fake("inventor"));
    let got = Digest::of(b"abc");
    let found = store.fsck().unwrap();
    let [Finding::LayerUnproven { layer, why, .. }] = &found[..] else { panic!("{found:?}") };
    assert_eq!(*layer, image.layers[0]);
    assert_eq!(*why, format!("its uncompressed digest is {got}"));
}
