//! Checking: each test breaks one thing and expects exactly that finding.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

#[path = "common/broken.rs"]
mod broken;
mod common;

use std::fs;

use broken::*;
use common::*;
use ocivisor_datastore::{Digest, Error, Finding, Store};
use serde_json::json;

#[test]
fn fsck_finds_a_flipped_bit_in_a_blob() {
    let broken = Broken::new();
    let path = broken.path("blobs/sha256", &broken.blob.hex());
    let mut bytes = fs::read(&path).unwrap();
    bytes[10] ^= 1;
    put(&path, &bytes);
    let want = Finding::BlobCorrupt { blob: broken.blob, got: Digest::of(&bytes) };
    assert_eq!(broken.found(), [want]);
}

#[test]
fn fsck_finds_a_lost_blob_and_an_import_repairs_it() {
    let broken = Broken::new();
    fs::remove_file(broken.path("blobs/sha256", &broken.blob.hex())).unwrap();
    let want = Finding::BlobMissing { image: broken.image.manifest_digest, blob: broken.blob };
    assert_eq!(broken.found(), [want]);
    broken.repaired();
}

#[test]
fn fsck_finds_a_shortened_blob_and_an_import_repairs_it() {
    let broken = Broken::new();
    let path = broken.path("blobs/sha256", &broken.blob.hex());
    let bytes = fs::read(&path).unwrap();
    put(&path, &bytes[..5]);
    let want = [
        Finding::BlobSize {
            image: broken.image.manifest_digest,
            blob: broken.blob,
            expected: bytes.len() as u64,
            got: 5,
        },
        Finding::BlobCorrupt { blob: broken.blob, got: Digest::of(&bytes[..5]) },
    ];
    assert_eq!(broken.found(), want);
    broken.repaired();
}

#[test]
fn fsck_finds_a_lost_layer_and_an_import_repairs_it() {
    let broken = Broken::new();
    let layer = broken.image.layers[0];
    fs::remove_dir_all(broken.path("layers", &layer.hex())).unwrap();
    let want = Finding::LayerMissing { image: broken.image.manifest_digest, layer };
    assert_eq!(broken.found(), [want]);
    assert!(matches!(broken.bench.store.resolve(&name("app").into()), Err(Error::Damaged { .. })));
    broken.repaired();
}

#[test]
fn fsck_finds_a_layer_without_record_or_files() {
    let broken = Broken::new();
    let hex = broken.image.layers[0].hex();
    let layer = broken.image.layers[0];
    let record = broken.path("layers", &hex).join("layer.json");
    let good = fs::read(&record).unwrap();
    put(&record, b"[]");
    let found = broken.found();
    assert!(
        matches!(&found[..], [Finding::LayerIncomplete { why, .. }] if why.starts_with("invalid")),
        "{found:?}"
    );
    put(&record, &good);
    fs::remove_dir_all(broken.path("layers", &hex).join("fs")).unwrap();
    assert_eq!(broken.found(), [Finding::LayerIncomplete { layer, why: "it has no files".into() }]);
    broken.mended("layer_incomplete");
}

#[test]
fn fsck_finds_dangling_and_false_names() {
    let broken = Broken::new();
    let manifest = broken.image.manifest_digest;
    let moved = broken.path("refs", "other");
    private(&moved, &fs::read(broken.path("refs", "app")).unwrap());
    let want = Finding::Misnamed { path: "refs/other".into(), about: "app".into() };
    assert_eq!(broken.found(), [want]);
    fs::remove_file(moved).unwrap();
    fs::remove_file(broken.record()).unwrap();
    assert_eq!(broken.found(), [Finding::DanglingName { name: name("app"), manifest }]);
    let error = broken.bench.store.resolve(&name("app").into()).unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error:?}");
    broken.repaired();
}

#[test]
fn fsck_finds_records_that_cannot_be_read_or_lie() {
    let broken = Broken::new();
    let good = fs::read_to_string(broken.record()).unwrap();
    put(&broken.record(), good.replace("\"version\": 1", "\"version\": 9").as_bytes());
    let path = format!("images/{}.json", broken.image.manifest_digest.hex());
    let why = "record version 9 is not 1".to_owned();
    let dangling =
        Finding::DanglingName { name: name("app"), manifest: broken.image.manifest_digest };
    assert_eq!(broken.found(), [Finding::Unreadable { path: path.clone(), why }, dangling.clone()]);
    put(&broken.record(), good.replace("\"layers\": [", "\"new\": 1, \"layers\": [").as_bytes());
    let found = broken.found();
    assert!(
        matches!(&found[..], [Finding::Unreadable { why, .. }, _] if why.starts_with("unknown field"))
    );
    // Another image's layers under this image's config.
    let other = import(&broken.bench, "other", &[layer("b")]);
    put(
        &broken.record(),
        good.replace(&broken.image.layers[0].hex(), &other.layers[0].hex()).as_bytes(),
    );
    let why = format!(
        "image store is damaged at config {}: lists other layers than the image record; run fsck, then import \
         the image again",
        broken.image.config_digest
    );
    let layer = other.layers[0];
    let got = &broken.image.layers[0];
    let unproven = format!("its uncompressed digest is {got}");
    assert_eq!(
        broken.found(),
        [
            Finding::LayerUnproven { layer, blob: broken.blob, why: unproven },
            Finding::ImageInconsistent { image: broken.image.manifest_digest, why }
        ]
    );
    broken.mended("image_inconsistent");
}

#[test]
fn fsck_finds_strays_and_prune_leaves_them() {
    let broken = Broken::new();
    let strays = ["blobs/sha256/notes", "images/x.json", "layers/tmp", "refs/=x", "stray"];
    for path in strays {
        private(&broken.bench.path("store").join(path), b"");
    }
    let found = broken.found();
    assert_eq!(found, strays.map(|path| Finding::Stray { path: path.into() }));
    for path in ["images/x.json", "refs/=x"] {
        fs::remove_file(broken.bench.path("store").join(path)).unwrap();
    }
    broken.bench.store.prune(&nothing()).unwrap();
    assert_eq!(broken.found().len(), 3);
}

#[test]
fn fsck_finds_what_a_dead_process_left_and_open_removes_it() {
    let broken = Broken::new();
    fs::create_dir_all(broken.path("staging", "import-1-0").join("layer/fs/etc")).unwrap();
    assert_eq!(broken.found(), [Finding::StagingLeftover { name: "import-1-0".into() }]);
    Store::open(&broken.bench.path("store")).unwrap();
    assert_eq!(broken.found(), vec![]);
}

#[test]
fn a_finding_is_json_with_a_tag() {
    let finding = Finding::StagingLeftover { name: "x".into() };
    let want = json!({"finding": "staging_leftover", "name": "x"});
    assert_eq!(serde_json::to_value(&finding).unwrap(), want);
    assert_eq!(finding.to_string(), "staging/x was left by a dead process");
}
