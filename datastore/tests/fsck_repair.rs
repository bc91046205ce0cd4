//! Repairing: what was broken is made again, fetched again, or set aside.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

#[path = "common/broken.rs"]
mod broken;
mod common;

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use broken::*;
use common::*;
use ocivisor_datastore::{
    CheckOptions, Error, Finding, Found, Limits, Outcome, PruneOptions, RepairOptions, Severity,
    Source, Store,
};
use serde_json::json;

#[test]
fn a_lost_layer_is_made_again_from_its_blob() {
    let broken = Broken::of(&rich());
    fs::remove_dir_all(broken.path("layers", &broken.image.layers[0].hex())).unwrap();
    broken.mended("layer_missing");
}

#[test]
fn a_lost_record_is_made_again_from_the_manifest() {
    let broken = Broken::of(&rich());
    fs::remove_file(broken.record()).unwrap();
    broken.mended("dangling_name");
    // With the layer gone, too.
    fs::remove_file(broken.record()).unwrap();
    fs::remove_dir_all(broken.path("layers", &broken.image.layers[0].hex())).unwrap();
    broken.mended("dangling_name");
}

#[test]
fn a_record_that_cannot_be_read_is_kept_and_made_again() {
    let broken = Broken::new();
    put(&broken.record(), b"{");
    broken.mended("unreadable");
    let quarantine = broken.bench.path("store/quarantine");
    let kept = quarantine.join(&entries(&quarantine)[0]).join("images");
    let file = format!("{}.json", broken.image.manifest_digest.hex());
    assert_eq!(fs::read(kept.join(file)).unwrap(), b"{");
}

#[test]
fn lost_blobs_are_fetched_again_and_lies_are_not_believed() {
    let mut broken = Broken::of(&rich());
    let blobs = [broken.blob, broken.image.manifest_digest, broken.image.config_digest];
    let bytes = blobs.map(|b| fs::read(broken.path("blobs/sha256", &b.hex())).unwrap());
    for blob in &blobs {
        fs::remove_file(broken.path("blobs/sha256", &blob.hex())).unwrap();
    }
    broken.lost = vec![b"nothing of use".to_vec()];
    let found = broken.repair();
    let lie = |f: &Found| matches!(&f.outcome, Outcome::Open { why: Some(why) } if why.contains("the source gave"));
    assert!(found.len() == 3 && found.iter().all(lie), "{found:?}");
    assert_eq!(broken.found().len(), 3);
    broken.lost = bytes.to_vec();
    broken.mended("blob_missing");
}

#[test]
fn a_damaged_blob_goes_to_quarantine_and_comes_back_from_a_source() {
    let mut broken = Broken::of(&rich());
    let path = broken.path("blobs/sha256", &broken.blob.hex());
    let good = fs::read(&path).unwrap();
    let bad = [&good[..20], b"xx", &good[22..]].concat();
    put(&path, &bad);
    let found = broken.repair();
    let [Found { outcome: Outcome::SetAside { to }, severity: Severity::Error, .. }] = &found[..]
    else {
        panic!("{found:?}");
    };
    assert_eq!(fs::read(broken.bench.path("store").join(to)).unwrap(), bad);
    // Guests go on meanwhile; only handing the image on is impossible.
    assert_eq!(broken.bench.store.resolve(&name("app").into()).unwrap(), broken.image);
    let image = broken.image.manifest_digest;
    assert_eq!(broken.found(), [Finding::BlobMissing { image, blob: broken.blob }]);
    broken.lost = vec![good];
    broken.mended("blob_missing");
}

#[test]
fn documents_that_the_store_wrote_itself_need_no_source() {
    let bench = Bench::new();
    let file = bench.path("rootfs.tar");
    put(&file, &rich());
    let image = bench.import(&Source::RootfsTar { file }).unwrap();
    for blob in [image.manifest_digest, image.config_digest] {
        fs::remove_file(bench.path("store/blobs/sha256").join(blob.hex())).unwrap();
    }
    let options =
        RepairOptions { check: CheckOptions::default(), in_use: &nothing(), refetch: None };
    let report = bench.store.repair(&options).unwrap();
    assert_eq!(report.findings.len(), 2);
    assert!(report.findings.iter().all(|f| !f.is_open()), "{report:?}");
    assert_eq!(bench.store.fsck().unwrap(), vec![]);
    assert_eq!(bench.store.resolve(&name("test").into()).unwrap(), image);
}

#[test]
fn names_that_lead_nowhere_are_set_aside() {
    let broken = Broken::new();
    fs::remove_file(broken.record()).unwrap();
    fs::remove_file(broken.path("blobs/sha256", &broken.image.manifest_digest.hex())).unwrap();
    private(&broken.path("refs", "bad"), b"{");
    private(&broken.path("refs", "other"), &fs::read(broken.path("refs", "app")).unwrap());
    let found = broken.repair();
    let codes: Vec<_> = found.iter().map(|f| f.finding.code()).collect();
    assert_eq!(codes, ["unreadable", "misnamed", "dangling_name"]);
    assert!(found.iter().all(|f| matches!(f.outcome, Outcome::SetAside { .. })), "{found:?}");
    assert_eq!(broken.found(), vec![]);
    assert_eq!(entries(&broken.bench.path("store/refs")), Vec::<String>::new());
    broken.repaired();
}

#[test]
fn strays_are_set_aside_and_modes_are_set() {
    let broken = Broken::new();
    for path in ["blobs/sha256/notes", "blobs/x", "images/x.json", "layers/tmp", "refs/=x", "mine"]
    {
        private(&broken.bench.path("store").join(path), b"");
    }
    fs::set_permissions(broken.bench.path("store"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(broken.record(), fs::Permissions::from_mode(0o666)).unwrap();
    std::os::unix::fs::chown(broken.path("refs", "app"), Some(1000), Some(1000)).unwrap();
    let wrong: Vec<_> = broken.found().into_iter().filter(|f| f.code() == "permissions").collect();
    let record = format!("images/{}.json", broken.image.manifest_digest.hex());
    let finding = |path: &str, got: &str, expected: &str| Finding::Permissions {
        path: path.into(),
        got: got.into(),
        expected: expected.into(),
    };
    let want = [
        finding(".", "owner 0 and mode 0755", "owner 0 and mode 0700"),
        finding(&record, "owner 0 and mode 0666", "owner 0 and mode 0600"),
        finding("refs/app", "owner 1000 and mode 0600", "owner 0 and mode 0600"),
    ];
    assert_eq!(wrong, want);
    let found = broken.repair();
    assert_eq!(found.len(), 9);
    let open: Vec<_> = found.iter().filter(|f| f.is_open()).map(|f| f.object.as_str()).collect();
    assert_eq!(open, ["mine"]);
    assert_eq!(broken.found(), [Finding::Stray { path: "mine".into() }]);
}

#[test]
fn a_repair_with_something_to_mend_is_alone_with_the_store() {
    let broken = Broken::new();
    put(&broken.path("refs", "not=encoded="), b"x");
    let other = Store::open(&broken.bench.path("store")).unwrap();
    let layout = broken.bench.layout("new");
    layout.image(&[layer("b")], &json!({}));
    let options =
        RepairOptions { check: CheckOptions::default(), in_use: &nothing(), refetch: None };
    broken
        .bench
        .store
        .import(&layout.source(), &name("new"), &Limits::default(), &mut |_| {
            assert!(matches!(other.repair(&options), Err(Error::Busy { .. })));
            assert_eq!(other.fsck().unwrap().len(), 1);
        })
        .unwrap();
}

#[test]
fn a_report_is_json_with_codes() {
    let broken = Broken::new();
    fs::remove_dir_all(broken.path("layers", &broken.image.layers[0].hex())).unwrap();
    let report = broken.bench.store.check(&CheckOptions::default()).unwrap();
    let text = serde_json::to_value(&report).unwrap();
    let (image, layer) = (broken.image.manifest_digest, broken.image.layers[0]);
    let want = json!({
        "checked": {"names": 1, "images": 1, "blobs": 3, "blob_bytes": broken.image.size,
            "layers": 0, "layers_proven": 0},
        "findings": [{"finding": "layer_missing", "image": image.to_string(),
            "layer": layer.to_string(), "severity": "error",
            "object": format!("layers/{}", layer.hex()),
            "advice": "repair: it is made anew from the layer's blob", "outcome": "open"}],
    });
    assert_eq!(text, want);
}

#[test]
fn quarantine_is_emptied_on_demand_but_not_under_guests() {
    let broken = Broken::of(&rich());
    let fs = broken.bench.store.layer_path(&broken.image.layers[0]);
    put(&fs.join("etc/motd"), b"other");
    broken.mended("layer_changed");
    let store = &broken.bench.store;
    let in_use: HashSet<_> = broken.image.layers.iter().copied().collect();
    let empty = |age: u64, in_use: &HashSet<_>, dry_run: bool| {
        let quarantine_age = Some(std::time::Duration::from_secs(age));
        let options = PruneOptions { in_use, dry_run, partial_age: None, quarantine_age };
        let pruned = store.prune_with(&options).unwrap();
        (pruned.quarantined.len(), pruned.quarantine_bytes)
    };
    let size = store.df(&in_use).unwrap().quarantine.allocated;
    assert_eq!(empty(3600, &nothing(), true), (0, 0));
    assert_eq!(empty(0, &in_use, false), (0, 0));
    let (count, bytes) = empty(0, &nothing(), true);
    assert!(count == 1 && 0 < bytes && bytes < size, "{bytes} of {size}");
    // Without an age none of it goes.
    store.prune(&nothing()).unwrap();
    assert_eq!(empty(0, &nothing(), false), (1, bytes));
    assert_eq!(entries(&broken.bench.path("store/quarantine")), Vec::<String>::new());
    assert_eq!(broken.found(), vec![]);
}
