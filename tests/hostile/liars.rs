//! Workers that are not what they should be: what a program taken over by a layer might say and do.

use std::time::Duration;

use ocivisor_datastore::worker::Worker;
use ocivisor_datastore::{Digest, Error, Refusal};

use crate::common::{Layer, RawTar, plain};
use crate::confined::{BASE, bench_of, fake, noise};

fn layer() -> Layer {
    plain(RawTar::new().file("a", b"a").end())
}

/// Imports one layer, which fails, and checks that nothing is left.
fn fail(worker: Worker, layer: Layer) -> Error {
    let bench = bench_of(worker.with_patience(Duration::from_secs(1)));
    let error = bench.import_layers(&[layer]).unwrap_err();
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
fn a_worker_that_says_nothing_is_an_error() {
    let said = why(fail(fake("silent"), layer()));
    assert_eq!(said, "answered nonsense: EOF while parsing a value at line 1 column 0");
}

#[test]
fn a_worker_that_does_not_stop_talking_is_cut_off() {
    assert_eq!(why(fail(fake("talker"), layer())), "answered nonsense: too much");
}

#[test]
fn a_worker_that_takes_nothing_is_killed_after_a_while() {
    // More than a pipe holds.
    let layer = plain(RawTar::new().file("a", &noise(3 << 20)).end());
    assert_eq!(why(fail(fake("deaf"), layer)), "did nothing for 1 s and was killed");
}

#[test]
fn a_worker_that_takes_all_and_never_answers_is_killed_after_a_while() {
    for name in ["sleeper", "closer"] {
        assert_eq!(why(fail(fake(name), layer())), "did nothing for 1 s and was killed", "{name}");
    }
}

#[test]
fn a_worker_that_fails_is_an_error_with_its_code() {
    assert_eq!(why(fail(fake("failing"), layer())), "ended with exit status: 3");
}

#[test]
fn a_worker_that_claims_another_layer_is_refused() {
    let layer = layer();
    let expected = layer.diff_id.parse().unwrap();
    let got = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
    let error = fail(fake("liar"), layer);
    assert_eq!(error.refusal(), Some(&Refusal::DiffId { expected, got }));
}

#[test]
fn a_worker_that_is_done_before_it_could_be_is_not_believed() {
    let layer = plain(RawTar::new().file("a", &noise(3 << 20)).end());
    let said = why(fail(fake("hasty"), layer));
    assert_eq!(said, "answered nonsense: done, without having read the whole blob");
}

#[test]
fn a_worker_cannot_write_to_the_terminal_by_its_answer() {
    let said = why(fail(fake("forger"), layer()));
    assert_eq!(said, "answered nonsense: text that is not escaped");
}

#[test]
fn a_worker_does_not_decide_what_the_blob_is() {
    // The liar is content with any blob; its digest is taken outside.
    let bench = bench_of(fake("liar"));
    let layout = bench.layout("layout");
    let mut layer = layer();
    layer.diff_id = format!("sha256:{}", "0".repeat(64));
    layout.image(std::slice::from_ref(&layer), &serde_json::json!({}));
    let blob = Digest::of(&layer.blob);
    let mut other = layer.blob.clone();
    other[0] = b'z';
    crate::common::put(&layout.blob_path(&blob.to_string()), &other);
    let error = bench.import(&layout.source()).unwrap_err();
    let want = Refusal::Digest { expected: blob, got: Digest::of(&other) };
    assert_eq!(error.refusal(), Some(&want));
    bench.assert_nothing_happened();
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let said = why(fail(Worker::new("/nonexistent/ocivisor-unpack", BASE), layer()));
    let want = "/nonexistent/ocivisor-unpack cannot be started: No such file or directory (os error 2); is it installed?";
    assert_eq!(said, want);
}
