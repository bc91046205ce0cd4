//! What is asked before an image is sent: which layers are not here, and that the others need not come along.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "tests make the files that they test with"
)]

mod common;

use std::io::Write;
use std::path::Path;

use common::{Bench, Layer, RawTar, gzipped};
use ocivisor_datastore::{Error, Lacking, Limits};
use rustix::fs::{CWD, FileType, Mode};

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

/// Makes the blob of a layout a FIFO, through which its bytes come when they are read.
fn pipe(path: &Path) -> (std::fs::File, Vec<u8>) {
    let bytes = std::fs::read(path).unwrap();
    std::fs::remove_file(path).unwrap();
    let mode = Mode::RUSR | Mode::WUSR;
    rustix::fs::mknodat(CWD, path, FileType::Fifo, mode, 0).unwrap();
    (std::fs::File::options().read(true).write(true).open(path).unwrap(), bytes)
}

/// A layer whose blob is larger than a pipe.
fn large(name: &str) -> Layer {
    let mut noise = 1_u32;
    let mut byte = || {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        noise.to_be_bytes()[0]
    };
    let content: Vec<u8> = (0..300_000).map(|_| byte()).collect();
    gzipped(&RawTar::new().file(name, &content).end())
}

/// An image of two such layers, and their blobs as FIFOs.
fn piped(bench: &Bench) -> (common::Layout, Vec<(std::fs::File, Vec<u8>)>) {
    let layout = bench.layout("piped");
    layout.index(&[layout.image(&["a", "b"].map(large), &serde_json::json!({}))]);
    let digests = bench.store.lacking(&layout.source(), &Limits::default()).unwrap().blobs;
    let pipes = digests.iter().map(|digest| pipe(&layout.blob_path(&digest.to_string()))).collect();
    (layout, pipes)
}

#[test]
fn a_blob_may_come_while_it_is_imported_and_what_came_whole_need_not_come_again() {
    let bench = Bench::new();
    let (layout, mut pipes) = piped(&bench);
    let lacking = || bench.store.lacking(&layout.source(), &Limits::default()).unwrap().blobs;
    let all = lacking();
    let write = |(mut fifo, bytes): (std::fs::File, Vec<u8>), most: usize| {
        fifo.write_all(&bytes[..most.min(bytes.len())]).unwrap();
    };
    // The second one breaks off.
    let (second, bytes) = pipes.pop().unwrap();
    let first = pipes.pop().unwrap();
    std::thread::scope(|scope| {
        let import = scope.spawn(|| bench.import(&layout.source()));
        write(first, usize::MAX);
        write((second, bytes.clone()), 200_000);
        let error = import.join().unwrap().unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{error}");
    });
    assert_eq!(lacking(), all[1..]);
    // Nothing of the first one comes any more.
    std::fs::remove_file(layout.blob_path(&all[0].to_string())).unwrap();
    let path = layout.blob_path(&all[1].to_string());
    let second = std::fs::File::options().read(true).write(true).open(path).unwrap();
    std::thread::scope(|scope| {
        let import = scope.spawn(|| bench.import(&layout.source()));
        write((second, bytes), usize::MAX);
        assert_eq!(import.join().unwrap().unwrap().layers.len(), 2);
    });
    assert_eq!(lacking(), []);
}

#[test]
fn a_blob_that_comes_though_its_layer_came_meanwhile_keeps_nobody_waiting() {
    let bench = Bench::new();
    let (layout, pipes) = piped(&bench);
    // Another image brings the first layer between the question and the import.
    let other = bench.layout("other");
    other.index(&[other.image(&[large("a")], &serde_json::json!({}))]);
    bench.import(&other.source()).unwrap();
    std::thread::scope(|scope| {
        let import = scope.spawn(|| bench.import(&layout.source()));
        for (mut fifo, bytes) in pipes {
            fifo.write_all(&bytes).unwrap();
        }
        assert_eq!(import.join().unwrap().unwrap().layers.len(), 2);
    });
}

#[test]
fn of_other_sources_it_is_not_known() {
    let bench = Bench::new();
    let tar = ocivisor_datastore::Source::RootfsTar { file: bench.path("x.tar") };
    let error = bench.store.lacking(&tar, &Limits::default()).unwrap_err();
    assert!(matches!(error, Error::Source { .. }), "{error}");
}
