//! The confined process tries to break out; it can, in a program that was built with the feature `faults`.

use ocivisor_datastore::worker::Worker;
use ocivisor_datastore::{Error, Source};

use crate::common::{RawTar, gzip, put};
use crate::confined::{BASE, PROGRAM, bench_of};
use crate::make::{blank, disk};

/// How the worker ends that makes attempt number `n` of its `probe.rs` while it unpacks a layer.
fn attempt(n: u32) -> String {
    let bench = bench_of(Worker::new(PROGRAM, BASE + n));
    let error = bench.import_tar(RawTar::new().file("a", b"a").end()).unwrap_err();
    bench.assert_nothing_happened();
    why(error)
}

/// How it ends while it decompresses an archive.
fn attempt_at_a_stream(n: u32) -> String {
    let bench = bench_of(Worker::new(PROGRAM, BASE + n));
    put(&bench.path("a.tar.gz"), &gzip(&RawTar::new().file("a", b"a").end()));
    let source = Source::DockerArchive { file: bench.path("a.tar.gz"), tag: None };
    let error = bench.import(&source).unwrap_err();
    bench.assert_nothing_happened();
    why(error)
}

/// How it ends while it reads a disk.
fn attempt_at_a_disk(n: u32) -> String {
    let bench = bench_of(Worker::new(PROGRAM, BASE + n));
    blank(&bench.path("disk"), 1);
    let error = bench.import(&disk(&bench.path("disk"))).unwrap_err();
    bench.assert_nothing_happened();
    why(error)
}

fn why(error: Error) -> String {
    match error {
        Error::Worker { why, .. } => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn files_of_the_host_are_not_there() {
    for n in 1..=3 {
        let want =
            "cannot break out: No such file or directory (os error 2); see `ocivisor doctor`";
        assert_eq!(attempt(n), want, "{n}");
    }
}

#[test]
fn threads_are_started_where_the_filter_sees_how() {
    assert_eq!(
        attempt(4),
        "cannot break out: Function not implemented (os error 38); see `ocivisor doctor`"
    );
}

#[test]
fn processes_code_devices_sockets_and_mounts_end_the_worker() {
    for n in 5..=23 {
        let want = "was killed by signal 31: it made a system call that no layer needs";
        assert_eq!(attempt(n), want, "{n}");
    }
}

#[test]
fn who_only_decompresses_cannot_even_ask_for_a_file() {
    for n in (1..=23).filter(|n| *n != 4) {
        let want = "was killed by signal 31: it made a system call that no layer needs";
        assert_eq!(attempt_at_a_stream(n), want, "{n}");
    }
}

#[test]
fn who_reads_a_disk_cannot_ask_for_another_file() {
    for n in (1..=23).filter(|n| *n != 4) {
        let want = "was killed by signal 31: it made a system call that no layer needs";
        assert_eq!(attempt_at_a_disk(n), want, "{n}");
    }
}
