//! Images whose layers and blobs attack the importer.

use std::fs;
use std::os::unix::fs::symlink;

use crate::common::*;
use crate::confined::bench;
use crate::documents::refuse_document;
use ocivisor_datastore::{Digest, DocumentFault, Error, Limit, Limits, Refusal};
use serde_json::json;

pub fn some_tar() -> Vec<u8> {
    RawTar::new().dir("etc").file("etc/motd", b"hello").end()
}

// 10: layers

#[test]
fn the_same_layer_twice_is_listed_twice_and_mounted_once() {
    let bench = bench();
    let (a, b) = (plain(some_tar()), gzipped(&RawTar::new().file("b", b"b").end()));
    let image = bench.import_layers(&[a.clone(), b, a]).unwrap();
    let [first, middle, last] = image.layers[..] else { panic!("{:?}", image.layers) };
    assert_eq!(first, last);
    assert_eq!(image.overlay_order(), [first, middle]);
    assert_eq!(entries(&bench.path("store/layers")).len(), 2);
}

#[test]
fn two_hundred_layers_are_refused_and_the_limit_is_accepted() {
    let bench = bench();
    let layers = |n: usize| -> Vec<_> {
        (0..n).map(|n| plain(RawTar::new().file(&format!("f{n}"), b"").end())).collect()
    };
    let layout = bench.layout("layout");
    layout.image(&layers(200), &json!({}));
    assert_eq!(
        refuse_document(&bench, &layout),
        DocumentFault::Limit { limit: Limit::Layers, max: 127 }
    );
    let layout = bench.layout("small");
    layout.image(&layers(5), &json!({}));
    let limits = Limits { layers: 5, ..Limits::default() };
    assert_eq!(bench.import_with(&layout.source(), &limits).unwrap().layers.len(), 5);
}

#[test]
fn an_image_without_layers_is_refused() {
    let bench = bench();
    let layout = bench.layout("layout");
    layout.image(&[], &json!({}));
    assert_eq!(refuse_document(&bench, &layout), DocumentFault::NoLayers);
}

#[test]
fn an_empty_blob_is_an_empty_layer_if_it_is_a_plain_tar() {
    let bench = bench();
    let image = bench.import_layers(&[plain(vec![])]).unwrap();
    assert_eq!(entries(&bench.fs(&image)), Vec::<String>::new());
    let bench = crate::confined::bench();
    let layer = Layer { media_type: TAR_GZIP, blob: vec![], diff_id: Digest::of(b"").to_string() };
    assert!(matches!(bench.refuse(&[layer]), Refusal::Stream(_)));
}

#[test]
fn diff_ids_in_the_wrong_order_are_refused() {
    let bench = bench();
    let (mut a, mut b) = (plain(some_tar()), plain(RawTar::new().file("b", b"b").end()));
    let (first, second) = (a.diff_id.clone(), b.diff_id.clone());
    std::mem::swap(&mut a.diff_id, &mut b.diff_id);
    let want = Refusal::DiffId { expected: second.parse().unwrap(), got: first.parse().unwrap() };
    assert_eq!(bench.refuse(&[a, b]), want);
    assert_eq!(entries(&bench.path("store/layers")), Vec::<String>::new());
}

#[test]
fn a_claimed_layer_of_another_image_is_not_given_away() {
    // The victim's layer is here. An image that only names its diff id must bring its bytes.
    let bench = bench();
    let secret = plain(RawTar::new().file("secret", b"secret").end());
    bench.import_layers(std::slice::from_ref(&secret)).unwrap();
    let mine = plain(RawTar::new().file("mine", b"").end());
    let thief = Layer { diff_id: secret.diff_id.clone(), ..mine.clone() };
    let layout = bench.layout("thief");
    layout.image(&[thief], &json!({}));
    let error = bench.store.import(
        &layout.source(),
        &"thief".parse().unwrap(),
        &Limits::default(),
        &mut |_| {},
    );
    let want = Refusal::DiffId {
        expected: secret.diff_id.parse().unwrap(),
        got: mine.diff_id.parse().unwrap(),
    };
    assert_eq!(error.unwrap_err().refusal(), Some(&want));
    assert_eq!(bench.store.list().unwrap().len(), 1);
    assert_eq!(bench.store.fsck().unwrap(), vec![]);
}

#[test]
fn numbers_of_layers_in_manifest_and_config_must_agree() {
    let bench = bench();
    let layout = bench.layout("layout");
    let layers = [plain(some_tar()), plain(RawTar::new().file("b", b"").end())];
    let manifest = layout.manifest(&layers[..1], &layout.config(&layers, &json!({})));
    layout.index(&[layout.descriptor(MANIFEST, manifest.to_string().as_bytes())]);
    assert_eq!(
        refuse_document(&bench, &layout),
        DocumentFault::LayerCount { manifest: 1, config: 2 }
    );
}

// 11: digests and sizes

#[test]
fn a_blob_of_right_size_and_wrong_digest_is_refused() {
    let bench = bench();
    let layout = bench.layout("layout");
    let layer = plain(some_tar());
    layout.image(std::slice::from_ref(&layer), &json!({}));
    let mut other = layer.blob.clone();
    let at = other.iter().position(|b| *b == b'h').unwrap();
    other[at] = b'H';
    put(&layout.blob_path(&layer.diff_id), &other);
    let error = bench.import(&layout.source()).unwrap_err();
    let want =
        Refusal::Digest { expected: layer.diff_id.parse().unwrap(), got: Digest::of(&other) };
    assert_eq!(error.refusal(), Some(&want));
    bench.assert_nothing_happened();
    assert_eq!(entries(&bench.path("store/layers")), Vec::<String>::new());
}

#[test]
fn a_layer_of_right_digest_and_wrong_size_is_refused() {
    for (change, got) in [(1i64, 0), (-1, -1)] {
        let bench = bench();
        let layout = bench.layout("layout");
        let layers = [plain(some_tar())];
        let mut manifest = layout.manifest(&layers, &layout.config(&layers, &json!({})));
        let size = layers[0].blob.len() as i64;
        manifest["layers"][0]["size"] = json!(size + change);
        layout.index(&[layout.descriptor(MANIFEST, manifest.to_string().as_bytes())]);
        let error = bench.import(&layout.source()).unwrap_err();
        let Some(Refusal::Size { expected, got: found }) = error.refusal() else {
            panic!("{error:?}")
        };
        assert_eq!(*expected, (size + change) as u64);
        assert!(*found as i64 >= size + got.min(0), "{found}");
        bench.assert_nothing_happened();
    }
}

#[test]
fn documents_of_wrong_digest_or_size_are_refused() {
    let bench = bench();
    let layout = bench.layout("layout");
    let good = layout.image(&[plain(some_tar())], &json!({}));
    let mut wrong = good.clone();
    wrong["size"] = json!(good["size"].as_u64().unwrap() + 1);
    layout.index(&[wrong]);
    let error = bench.import(&layout.source()).unwrap_err();
    assert!(matches!(error.refusal(), Some(Refusal::Size { .. })), "{error:?}");
    layout.index(std::slice::from_ref(&good));
    let path = layout.blob_path(good["digest"].as_str().unwrap());
    let spoilt = String::from_utf8(fs::read(&path).unwrap())
        .unwrap()
        .replace("schemaVersion", "schemaVersioN");
    put(&path, spoilt.as_bytes());
    let error = bench.import(&layout.source()).unwrap_err();
    assert!(matches!(error.refusal(), Some(Refusal::Digest { .. })), "{error:?}");
    bench.assert_nothing_happened();
}

#[test]
fn digests_that_are_paths_or_of_other_algorithms_are_refused() {
    for digest in ["sha256:../../x", "sha512:00", "sha256:", "../../etc/passwd", "SHA256:00", ""] {
        let bench = bench();
        let layout = bench.layout("layout");
        layout.index(&[json!({"mediaType": MANIFEST, "digest": digest, "size": 7})]);
        let fault = refuse_document(&bench, &layout);
        assert!(
            matches!(&fault, DocumentFault::Json(t) if t.starts_with("bad digest")),
            "{digest}: {fault:?}"
        );
    }
}

#[test]
fn a_blob_that_is_a_link_out_of_the_layout_is_not_read() {
    let bench = bench();
    let layout = bench.layout("layout");
    let layer = plain(some_tar());
    layout.image(std::slice::from_ref(&layer), &json!({}));
    let path = layout.blob_path(&layer.diff_id);
    put(&bench.path("outside"), &layer.blob);
    fs::remove_file(&path).unwrap();
    symlink(bench.path("outside"), &path).unwrap();
    let error = bench.import(&layout.source()).unwrap_err();
    let Error::Io { op: "open", source, .. } = error else { panic!("{error:?}") };
    assert_eq!(source.raw_os_error(), Some(rustix::io::Errno::XDEV.raw_os_error()));
    bench.assert_nothing_happened();
}

#[test]
fn a_fifo_as_blob_does_not_hang_the_import() {
    let bench = bench();
    let layout = bench.layout("layout");
    let layer = plain(some_tar());
    layout.image(std::slice::from_ref(&layer), &json!({}));
    let path = layout.blob_path(&layer.diff_id);
    fs::remove_file(&path).unwrap();
    run("mkfifo", &[text(&path)]);
    // Blobs may come through a FIFO. Nobody holds this one open, so it is at its end.
    let error = bench.import(&layout.source()).unwrap_err();
    let Error::Refused { why, .. } = error else { panic!("{error:?}") };
    assert!(matches!(why, Refusal::Size { expected: 2560, got: 0 }), "{why:?}");
    bench.assert_nothing_happened();
}
