//! 7: Compressed streams that grow without end, or hold what is no layer.

use std::fs;

use crate::common::*;
use crate::confined::bench;
use crate::images::some_tar;
use ocivisor_datastore::{Digest, Limit, Limits, Refusal};
use serde_json::json;

/// A gzip stream of `members` members that each are one MiB of zeros.
pub fn zeros(members: usize) -> Vec<u8> {
    gzip(&vec![0; 1 << 20]).repeat(members)
}

#[test]
fn a_gzip_bomb_stops_at_the_ratio() {
    let bench = bench();
    let layout = bench.layout("layout");
    let head = RawTar::new().head(&Head { size: Some(b"07777777777\0"), ..Head::default() }, b"").0;
    let blob = [gzip(&head), zeros(900)].concat();
    let layer = Layer { media_type: TAR_GZIP, blob, diff_id: Digest::of(b"whatever").to_string() };
    layout.image(&[layer], &json!({}));
    let limits = Limits { ratio_floor: 8 << 20, ratio: 50, ..Limits::default() };
    let error = bench.import_with(&layout.source(), &limits).unwrap_err();
    assert_eq!(error.refusal(), Some(&Refusal::Limit { limit: Limit::Ratio, max: 50 }));
    bench.assert_nothing_happened();
}

#[test]
fn a_bomb_behind_the_end_of_the_tar_stops_at_the_limit_too() {
    let bench = bench();
    let layout = bench.layout("layout");
    let blob = [gzip(&some_tar()), zeros(100)].concat();
    let layer = Layer { media_type: TAR_GZIP, blob, diff_id: Digest::of(b"whatever").to_string() };
    layout.image(&[layer], &json!({}));
    let limits = Limits { image_bytes: 32 << 20, ..Limits::default() };
    let error = bench.import_with(&layout.source(), &limits).unwrap_err();
    assert_eq!(error.refusal(), Some(&Refusal::Limit { limit: Limit::ImageBytes, max: 32 << 20 }));
    bench.assert_nothing_happened();
}

#[test]
fn bytes_are_limited_per_image_not_per_layer() {
    let bench = bench();
    let layout = bench.layout("layout");
    let layer = |name: &str| plain(RawTar::new().file(name, &vec![7; 3 << 20]).end());
    layout.image(&[layer("a"), layer("b"), layer("c")], &json!({}));
    let limits = Limits { image_bytes: 8 << 20, ..Limits::default() };
    let error = bench.import_with(&layout.source(), &limits).unwrap_err();
    assert_eq!(error.refusal(), Some(&Refusal::Limit { limit: Limit::ImageBytes, max: 8 << 20 }));
    bench.assert_nothing_happened();
}

#[test]
fn a_zstd_window_of_four_gigabytes_is_refused() {
    let bench = bench();
    let blob = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 22 << 3, 0x09, 0x00, 0x00, b'x'];
    let layer = Layer { media_type: TAR_ZSTD, blob, diff_id: Digest::of(b"x").to_string() };
    let want = "bad compressed stream: Frame requires too much memory for decoding";
    assert_eq!(bench.refuse(&[layer]).to_string(), want);
}

#[test]
fn gzip_members_in_a_row_are_one_layer() {
    let bench = bench();
    let tar = some_tar();
    let blob = [gzip(&tar[..700]), gzip(&tar[700..])].concat();
    let layer = Layer { media_type: TAR_GZIP, blob, diff_id: Digest::of(&tar).to_string() };
    let image = bench.import_layers(&[layer]).unwrap();
    assert_eq!(fs::read(bench.fs(&image).join("etc/motd")).unwrap(), b"hello");
}

#[test]
fn garbage_after_the_compressed_stream_is_refused() {
    for (media_type, stream) in [(TAR_GZIP, gzip(&some_tar())), (TAR_ZSTD, zstd(&some_tar()))] {
        let bench = bench();
        let blob = [stream, b"garbage garbage".to_vec()].concat();
        let layer = Layer { media_type, blob, diff_id: Digest::of(&some_tar()).to_string() };
        assert!(matches!(bench.refuse(&[layer]), Refusal::Stream(_)), "{media_type}");
    }
}

#[test]
fn garbage_after_the_end_of_the_tar_counts_to_the_diff_id() {
    let bench = bench();
    let tar = [some_tar(), vec![7; 1000]].concat();
    let image = bench.import_layers(&[gzipped(&tar)]).unwrap();
    assert_eq!(image.layers[0].to_string(), Digest::of(&tar).to_string());
}

#[test]
fn a_stream_that_contradicts_its_media_type_is_refused() {
    let bench = bench();
    let diff_id = Digest::of(&some_tar()).to_string();
    let layer = Layer { media_type: TAR, blob: gzip(&some_tar()), diff_id };
    let want = "bad compressed stream: media type says none, the bytes say gzip";
    assert_eq!(bench.refuse(&[layer]).to_string(), want);
}
