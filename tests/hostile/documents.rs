//! Indexes, manifests and configs that attack the importer.

use std::fs;

use crate::common::*;
use crate::confined::bench;
use crate::images::some_tar;
use ocivisor_datastore::{Digest, DocumentFault, Error, Limit, Refusal};
use serde_json::{Value, json};

pub fn document_fault(error: Error) -> DocumentFault {
    match error {
        Error::Document { why, .. } => why,
        other => panic!("{other:?}"),
    }
}

/// Imports a layout that must be refused by its documents, and checks that nothing is left.
pub fn refuse_document(bench: &Bench, layout: &Layout) -> DocumentFault {
    let error = bench.import(&layout.source()).unwrap_err();
    bench.assert_nothing_happened();
    document_fault(error)
}

// 12: indexes

#[test]
fn nested_indexes_are_followed_to_the_limit_and_no_further() {
    let bench = bench();
    let layout = bench.layout("layout");
    let mut top = layout.image(&[plain(some_tar())], &json!({}));
    for depth in 1..=5 {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [top]});
        top = layout.descriptor(INDEX, index.to_string().as_bytes());
        layout.index(std::slice::from_ref(&top));
        let got = bench.import(&layout.source());
        if depth <= 4 {
            got.unwrap();
        } else {
            let want = DocumentFault::Limit { limit: Limit::IndexNesting, max: 4 };
            assert_eq!(document_fault(got.unwrap_err()), want);
        }
    }
}

#[test]
fn an_index_that_claims_to_contain_itself_is_refused() {
    let bench = bench();
    let layout = bench.layout("layout");
    let digest = Digest::of(b"the index");
    let index = json!({"schemaVersion": 2, "manifests":
        [{"mediaType": INDEX, "digest": digest.to_string(), "size": 200}]});
    let mut bytes = index.to_string().into_bytes();
    bytes.resize(200, b' ');
    put(&layout.blob_path(&digest.to_string()), &bytes);
    put(&layout.dir.join("index.json"), &bytes);
    let error = bench.import(&layout.source()).unwrap_err();
    assert_eq!(
        error.refusal(),
        Some(&Refusal::Digest { expected: digest, got: Digest::of(&bytes) })
    );
    bench.assert_nothing_happened();
}

#[test]
fn the_hosts_platform_is_chosen_and_a_foreign_one_refused() {
    let bench = bench();
    let layout = bench.layout("layout");
    let on = |mut d: Value, arch: &str| {
        d["platform"] = json!({"os": "linux", "architecture": arch});
        d
    };
    let ours = on(layout.image(&[plain(some_tar())], &json!({"Cmd": ["ours"]})), host_arch());
    let layers = [plain(some_tar())];
    let mut config = layout.config(&layers, &json!({}));
    config["architecture"] = json!("s390x");
    let manifest = layout.manifest(&layers, &config);
    let foreign = on(layout.descriptor(MANIFEST, manifest.to_string().as_bytes()), "s390x");
    layout.index(&[foreign.clone(), ours]);
    assert_eq!(bench.import(&layout.source()).unwrap().config.cmd, ["ours"]);
    layout.index(&[foreign]);
    let error = bench.import(&layout.source()).unwrap_err();
    assert!(
        matches!(error, Error::Platform { ref image_platform, .. } if image_platform == "linux/s390x")
    );
}

// 13: one document, two meanings

#[test]
fn a_manifest_under_another_media_type_is_refused() {
    let bench = bench();
    let layout = bench.layout("layout");
    let mut good = layout.image(&[plain(some_tar())], &json!({}));
    good["mediaType"] = json!(INDEX);
    layout.index(&[good]);
    let fault = refuse_document(&bench, &layout);
    assert!(matches!(fault, DocumentFault::Json(_)), "{fault:?}");
    let layers = [plain(some_tar())];
    let mut manifest = layout.manifest(&layers, &layout.config(&layers, &json!({})));
    manifest["manifests"] = json!([]);
    layout.index(&[layout.descriptor(MANIFEST, manifest.to_string().as_bytes())]);
    let want = DocumentFault::Ambiguous("a manifest with the fields of an index");
    assert_eq!(refuse_document(&bench, &layout), want);
}

#[test]
fn an_artifact_that_is_no_image_is_refused() {
    let bench = bench();
    let layout = bench.layout("layout");
    let layers = [plain(some_tar())];
    let mut manifest = layout.manifest(&layers, &layout.config(&layers, &json!({})));
    manifest["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json");
    layout.index(&[layout.descriptor(MANIFEST, manifest.to_string().as_bytes())]);
    let want = DocumentFault::MediaType("application/vnd.cncf.helm.config.v1+json".into());
    assert_eq!(refuse_document(&bench, &layout), want);
}

#[test]
fn a_document_above_four_megabytes_is_refused() {
    let bench = bench();
    let layout = bench.layout("layout");
    let layers = [plain(some_tar())];
    let config = layout.config(&layers, &json!({"Labels": {"x": "y".repeat(5 << 20)}}));
    let manifest = layout.manifest(&layers, &config);
    layout.index(&[layout.descriptor(MANIFEST, manifest.to_string().as_bytes())]);
    let want = DocumentFault::Limit { limit: Limit::DocumentBytes, max: 4 << 20 };
    assert_eq!(refuse_document(&bench, &layout), want);
    put(&layout.dir.join("index.json"), &vec![b' '; 5 << 20]);
    assert_eq!(refuse_document(&bench, &layout), want);
}

#[test]
fn deeply_nested_json_does_not_blow_the_stack() {
    let bench = bench();
    let layout = bench.layout("layout");
    put(&layout.dir.join("index.json"), "[".repeat(1 << 20).as_bytes());
    assert!(matches!(refuse_document(&bench, &layout), DocumentFault::Json(_)));
}

// 14: layers elsewhere

#[test]
fn a_layer_that_is_only_a_url_is_never_fetched() {
    for url in ["http://169.254.169.254/", "http://[::1]/", "file:///etc/shadow", "gopher://x"] {
        let bench = bench();
        let layout = bench.layout("layout");
        let layers = [plain(some_tar())];
        let mut manifest = layout.manifest(&layers, &layout.config(&layers, &json!({})));
        manifest["layers"][0]["urls"] = json!([url]);
        layout.index(&[layout.descriptor(MANIFEST, manifest.to_string().as_bytes())]);
        fs::remove_file(layout.blob_path(&layers[0].diff_id)).unwrap();
        let error = bench.import(&layout.source()).unwrap_err();
        assert!(
            matches!(&error, Error::Source { why, .. } if why.starts_with("it has no file")),
            "{error:?}"
        );
        bench.assert_nothing_happened();
    }
}

// 17 to 20: the config (each rule has its unit test; here that the import obeys)

#[test]
fn a_config_that_would_run_as_somebody_else_is_refused() {
    for user in ["4294967296", "-1", "0:0:0", "root\nroot", "2147483648", "65536"] {
        let bench = bench();
        let layout = bench.layout("layout");
        layout.image(&[plain(some_tar())], &json!({"User": user}));
        let fault = refuse_document(&bench, &layout);
        assert!(matches!(fault, DocumentFault::Config { field: "User", .. }), "{user}: {fault:?}");
    }
}

#[test]
fn nul_and_a_megabyte_of_path_in_env_are_refused() {
    let huge = format!("PATH={}", "x".repeat(1 << 20));
    for env in ["A=\0", "=x", huge.as_str()] {
        let bench = bench();
        let layout = bench.layout("layout");
        layout.image(&[plain(some_tar())], &json!({"Env": [env]}));
        let fault = refuse_document(&bench, &layout);
        assert!(matches!(fault, DocumentFault::Config { field: "Env", .. }), "{fault:?}");
    }
}

#[test]
fn labels_volumes_and_working_dirs_are_inert() {
    let bench = bench();
    let layout = bench.layout("layout");
    let uri = "binary:///bin/sh?-c=touch%20/tmp/pwned";
    layout.image(
        &[plain(some_tar())],
        &json!({"Labels": {"containerd.io/restart.loguri": uri}, "WorkingDir": "/proc/self/fd/7",
            "Entrypoint": ["/proc/self/exe"], "Volumes": {"/proc": {}, "/../..": {}, "/dev/sda": {}}}),
    );
    let image = bench.import(&layout.source()).unwrap();
    assert_eq!(image.config.labels["containerd.io/restart.loguri"], uri);
    assert_eq!(image.config.working_dir, "/proc/self/fd/7");
    assert_eq!(image.config.volumes, ["/../..", "/dev/sda", "/proc"]);
    assert_eq!(entries(&bench.fs(&image)), ["etc"]);
    bench.assert_probe_untouched();
}
