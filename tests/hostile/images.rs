//! Images and archives whose documents, blobs or streams attack the importer.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;

use crate::common::*;
use crate::confined::bench;
use ocivisor_datastore::{Digest, DocumentFault, Error, Limit, Limits, Refusal, Source};
use serde_json::{Value, json};

fn document_fault(error: Error) -> DocumentFault {
    match error {
        Error::Document { why, .. } => why,
        other => panic!("{other:?}"),
    }
}

/// Imports a layout that must be refused by its documents, and checks that nothing is left.
fn refuse_document(bench: &Bench, layout: &Layout) -> DocumentFault {
    let error = bench.import(&layout.source()).unwrap_err();
    bench.assert_nothing_happened();
    document_fault(error)
}

fn some_tar() -> Vec<u8> {
    RawTar::new().dir("etc").file("etc/motd", b"hello").end()
}

// 7: bombs

/// A gzip stream of `members` members that each are one MiB of zeros.
fn zeros(members: usize) -> Vec<u8> {
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
    assert!(matches!(bench.import(&layout.source()), Err(Error::Io { .. })));
    bench.assert_nothing_happened();
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

// Archives

fn archive(bench: &Bench, name: &str, tar: RawTar) -> std::path::PathBuf {
    let path = bench.path(name);
    put(&path, &tar.end());
    path
}

#[test]
fn an_archive_with_a_file_named_twice_is_refused() {
    let bench = bench();
    let tar = RawTar::new().file("manifest.json", b"[]").file("./manifest.json", b"[{}]");
    let file = archive(&bench, "twice.tar", tar);
    let error = bench.import(&Source::DockerArchive { file, tag: None }).unwrap_err();
    assert_eq!(error.refusal(), Some(&Refusal::Twice));
    bench.assert_nothing_happened();
}

#[test]
fn names_in_a_docker_archive_lead_nowhere_but_into_it() {
    let bench = bench();
    let probe = format!("{}/shadow", text(&bench.path("probe")));
    for name in [probe.as_str(), "../../../../../etc/shadow", "/etc/shadow", "link"] {
        let manifest = json!([{"Config": name, "Layers": ["a.tar"]}]).to_string();
        let tar =
            RawTar::new().symlink("link", "/etc/shadow").file("manifest.json", manifest.as_bytes());
        let file = archive(&bench, "evil.tar", tar);
        let error = bench.import(&Source::DockerArchive { file, tag: None }).unwrap_err();
        assert!(
            matches!(&error, Error::Source { why, .. } if why.starts_with("it has no file")),
            "{error:?}"
        );
        bench.assert_nothing_happened();
    }
}

#[test]
fn a_docker_config_under_a_false_digest_is_refused() {
    let bench = bench();
    let config = format!("{}.json", "a".repeat(64));
    let manifest = json!([{"Config": config, "Layers": ["l.tar"]}]).to_string();
    let tar = RawTar::new().file("manifest.json", manifest.as_bytes()).file(&config, b"{}");
    let file = archive(&bench, "false.tar", tar);
    let error = bench.import(&Source::DockerArchive { file, tag: None }).unwrap_err();
    assert!(matches!(error.refusal(), Some(Refusal::Digest { .. })), "{error:?}");
    bench.assert_nothing_happened();
}

#[test]
fn an_archive_of_too_many_files_is_refused() {
    let bench = bench();
    let mut tar = RawTar::new();
    for n in 0..20 {
        tar = tar.file(&format!("{n}"), b"");
    }
    let file = archive(&bench, "many.tar", tar);
    let limits = Limits { archive_entries: 19, ..Limits::default() };
    let error = bench.import_with(&Source::OciArchive { file, tag: None }, &limits).unwrap_err();
    assert_eq!(error.refusal(), Some(&Refusal::Limit { limit: Limit::ArchiveEntries, max: 19 }));
    bench.assert_nothing_happened();
}

#[test]
fn a_compressed_archive_is_a_bomb_like_any_other() {
    let bench = bench();
    let path = bench.path("bomb.tar.gz");
    put(&path, &zeros(64));
    let limits = Limits { image_bytes: 16 << 20, ..Limits::default() };
    let source = Source::DockerArchive { file: path, tag: None };
    let error = bench.import_with(&source, &limits).unwrap_err();
    assert_eq!(error.refusal(), Some(&Refusal::Limit { limit: Limit::ImageBytes, max: 16 << 20 }));
    bench.assert_nothing_happened();
}

#[test]
fn a_member_that_claims_more_than_the_archive_has_is_refused() {
    let bench = bench();
    let head = Head { path: b"oci-layout", size: Some(b"00777777777\0"), ..Head::default() };
    let file = archive(&bench, "short.tar", RawTar::new().head(&head, b""));
    let error = bench.import(&Source::OciArchive { file, tag: None }).unwrap_err();
    assert_eq!(error.refusal(), Some(&Refusal::Truncated));
    bench.assert_nothing_happened();
}

// Root file systems

fn rootfs(bench: &Bench, bytes: &[u8]) -> Error {
    put(&bench.path("rootfs.tar"), bytes);
    let error = bench.import(&Source::RootfsTar { file: bench.path("rootfs.tar") }).unwrap_err();
    bench.assert_nothing_happened();
    error
}

#[test]
fn a_rootfs_that_is_cut_off_or_empty_is_refused() {
    let bench = bench();
    let whole = some_tar();
    let between = &whole[..whole.len() - 1024];
    assert_eq!(rootfs(&bench, between).refusal(), Some(&Refusal::Truncated));
    assert_eq!(rootfs(&bench, b"").refusal(), Some(&Refusal::Truncated));
    assert_eq!(rootfs(&bench, &[0; 10240]).refusal(), Some(&Refusal::NoFiles));
    assert_eq!(rootfs(&bench, &gzip(&[0; 10240])).refusal(), Some(&Refusal::NoFiles));
    let got = rootfs(&bench, &gzip(&whole)[..100]);
    assert!(matches!(got.refusal(), Some(Refusal::Stream(_))), "{got:?}");
    assert_eq!(rootfs(&bench, b"not a tar at all").refusal(), Some(&Refusal::Truncated));
}

// 34: the source changes

#[test]
fn a_source_replaced_while_it_is_read_gives_one_content_or_an_error() {
    let bench = bench();
    let old = RawTar::new().file("a", &vec![1; 9 << 20]).file("b", b"old").end();
    let new = RawTar::new().file("a", &vec![2; 9 << 20]).file("b", b"new").end();
    let (path, next) = (bench.path("rootfs.tar"), bench.path("next.tar"));
    put(&path, &old);
    put(&next, &new);
    let mut replaced = false;
    let source = Source::RootfsTar { file: path.clone() };
    let image =
        bench.store.import(&source, &"test".parse().unwrap(), &Limits::default(), &mut |p| {
            if matches!(p, ocivisor_datastore::Progress::Layer { .. }) && !replaced {
                run("mv", &[text(&next), text(&path)]);
                replaced = true;
            }
        });
    let image = image.unwrap();
    assert!(replaced);
    assert_eq!(image.layers[0].to_string(), Digest::of(&old).to_string());
    assert_eq!(fs::read(bench.fs(&image).join("b")).unwrap(), b"old");
}

#[test]
fn a_source_overwritten_in_place_is_hashed_as_it_was_unpacked() {
    let bench = bench();
    let layer = plain(RawTar::new().file("a", &vec![1; 9 << 20]).file("b", b"old").end());
    let layout = bench.layout("layout");
    layout.image(std::slice::from_ref(&layer), &json!({}));
    let path = layout.blob_path(&layer.diff_id);
    let mut changed = false;
    let result = bench.store.import(
        &layout.source(),
        &"test".parse().unwrap(),
        &Limits::default(),
        &mut |p| {
            if matches!(p, ocivisor_datastore::Progress::Layer { .. }) && !changed {
                let mut file = fs::File::options().write(true).open(&path).unwrap();
                std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(8 << 20)).unwrap();
                file.write_all(&[9; 64]).unwrap();
                changed = true;
            }
        },
    );
    assert!(changed);
    let error = result.unwrap_err();
    assert!(matches!(error.refusal(), Some(Refusal::Digest { .. })), "{error:?}");
    bench.assert_nothing_happened();
}
