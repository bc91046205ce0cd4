//! What is asked before an image is sent: which layers are not here, and that the others need not come along.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "tests make the files that they test with"
)]

mod common;

use common::{Bench, Layer, RawTar, gzipped};
use ocivisor_datastore::{Error, Lacking, Limits};

fn layer(file: &str) -> Layer {
    gzipped(&RawTar::new().file(file, file.as_bytes()).end())
}

#[test]
fn only_layers_that_no_whole_image_has_are_lacking_and_the_others_need_not_come() {
    let bench = Bench::new();
    let layers = ["common", "second"].map(layer);
    let first = bench.layout("first");
    first.index(&[first.image(&layers[..1], &serde_json::json!({}))]);
    let second = bench.layout("second");
    second.index(&[second.image(&layers, &serde_json::json!({}))]);
    let lacking = |layout: &common::Layout| {
        bench.store.lacking(&layout.source(), &Limits::default()).unwrap()
    };
    let digests: Vec<_> = lacking(&second).blobs;
    assert_eq!(digests.len(), 2, "nothing is here");

    let image = bench.import(&first.source()).unwrap();
    let none = Lacking { manifest: image.manifest_digest, blobs: Vec::new() };
    assert_eq!(lacking(&first), none);
    assert_eq!(lacking(&second).blobs, digests[1..], "the common one is here");

    // What was not said to be lacking is not read; what was, is.
    std::fs::remove_file(second.blob_path(&digests[0].to_string())).unwrap();
    let whole = bench.import(&second.source()).unwrap();
    assert_eq!(whole.layers.len(), 2);
    assert_eq!(lacking(&second).blobs, []);
    let third = bench.layout("third");
    third.index(&[third.image(&["common", "third"].map(layer), &serde_json::json!({}))]);
    let missing = lacking(&third).blobs;
    std::fs::remove_file(third.blob_path(&missing[0].to_string())).unwrap();
    assert!(bench.import(&third.source()).is_err());
}

#[test]
fn of_other_sources_it_is_not_known() {
    let bench = Bench::new();
    let tar = ocivisor_datastore::Source::RootfsTar { file: bench.path("x.tar") };
    let error = bench.store.lacking(&tar, &Limits::default()).unwrap_err();
    assert!(matches!(error, Error::Source { .. }), "{error}");
}
