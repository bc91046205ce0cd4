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

use crate::common::{Bench, RawTar, entries, gzip, gzipped, put, text, xz, zstd};
use crate::confined::*;

/// A compressed archive of more bytes than all pipes and buffers hold. It has no image.
fn archive(bench: &Bench) -> Source {
    let file = bench.path("archive.tar.gz");
    put(&file, &gzip(&RawTar::new().file("noise", &noise(6 << 20)).end()));
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
    for name in ["deaf", "sleeper", "mute"] {
        assert_eq!(why(fail(fake(name))), "did nothing for 1 s and was killed", "{name}");
    }
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

/// Looks at the worker while it decompresses.
fn expand_looking(look: impl Fn(Pair) + Send + Sync) {
    let bench = bench();
    let file = bench.path("long.tar.xz");
    // Seconds of work.
    put(&file, &xz(&RawTar::new().file("noise", &noise(24 << 20)).end()));
    let done = AtomicBool::new(false);
    let error = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut pair = None;
            until("a worker is confined", || {
                assert!(!done.load(Ordering::Relaxed), "it was over before it was seen");
                pair = brokers_of_streams().into_iter().find_map(|broker| {
                    let confined = *children(broker).first()?;
                    (status_of(confined, "Seccomp")? == "2").then_some(Pair { broker, confined })
                });
                pair.is_some()
            });
            look(pair.unwrap());
        });
        let error = bench.import(&Source::DockerArchive { file, tag: None }).unwrap_err();
        done.store(true, Ordering::Relaxed);
        error
    });
    assert!(matches!(error, Error::Source { .. }), "{error:?}");
}

/// First processes that hold neither layer nor stream: those of workers of other tests hold a layer.
fn brokers_of_streams() -> Vec<u32> {
    let mut brokers = children(std::process::id());
    brokers.retain(|pid| {
        let Ok(fds) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
        let to: Vec<_> = fds.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok()).collect();
        !to.is_empty() && to.iter().all(|to| to == Path::new("/dev/null") || is_socket(to))
    });
    brokers
}

fn is_socket(to: &Path) -> bool {
    to.to_str().is_some_and(|to| to.starts_with("socket:["))
}

#[test]
fn a_worker_that_decompresses_has_no_file_and_no_right() {
    expand_looking(|Pair { broker, confined }| {
        for pid in [broker, confined] {
            for set in ["CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb"] {
                assert_eq!(status(pid, set), "0000000000000000", "{set}");
            }
            assert_eq!(status(pid, "NoNewPrivs"), "1");
        }
        assert_eq!(status(confined, "Uid"), format!("{BASE}\t{BASE}\t{BASE}\t{BASE}"));
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
    for name in ["failing", "silent", "liar", "sleeper", "cutter", "inventor"] {
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
