//! Workers that only decompress: what they have, and what one may say that was taken over.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ocivisor_datastore::worker::Worker;
use ocivisor_datastore::{Error, Limit, Limits, Refusal, Source};

use crate::common::{Bench, RawTar, gzip, put};
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
    put(&file, &crate::common::xz(&RawTar::new().file("noise", &noise(24 << 20)).end()));
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
        assert_eq!(crate::common::entries(Path::new(&format!("/proc/{confined}/root"))), [""; 0]);
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
