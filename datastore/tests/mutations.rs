//! Tars and layouts with random damage. Invariants: no panic, nothing outside the store changes, the store stays
//! sound, and nothing of a refused image is visible.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

mod common;

use common::*;
use ocivisor_datastore::{Limits, Source};
use proptest::prelude::*;
use serde_json::json;

/// Entries that are likely to meet: few names, all types, links in all directions.
fn entry() -> impl Strategy<Value = (u8, String, String)> {
    let kinds = prop_oneof![
        4 => Just(b'0'), 3 => Just(b'5'), 3 => Just(b'2'), 2 => Just(b'1'), 1 => Just(b'6'), 1 => Just(b'3'),
        1 => Just(b'Z'),
    ];
    (kinds, path(), path())
}

fn path() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        6 => prop::sample::select(vec!["a", "b", "c", "d"]),
        1 => prop::sample::select(vec!["..", ".", "", ".wh.a", ".wh.b", ".wh..wh..opq", ".wh.", "probe", "fs"]),
    ];
    let parts = prop::collection::vec(part, 1..5);
    (prop::bool::weighted(0.2), parts).prop_map(|(absolute, parts)| {
        let text = parts.join("/");
        if absolute { format!("/{text}") } else { text }
    })
}

fn tar_of(entries: &[(u8, String, String)], probe: &str) -> Vec<u8> {
    let mut tar = RawTar::new();
    for (n, (kind, path, link)) in entries.iter().enumerate() {
        // Now and then a link goes straight to the host.
        let link = if n % 5 == 4 { probe.to_owned() } else { link.clone() };
        let data: &[u8] = if *kind == b'0' { b"data" } else { b"" };
        tar = tar.pax(&[("path", path.as_bytes()), ("linkpath", link.as_bytes())]);
        tar = tar.head(&Head { path: b"x", kind: *kind, ..Head::default() }, data);
    }
    tar.end()
}

fn small() -> Limits {
    Limits { image_bytes: 1 << 20, entries: 500, depth: 16, ..Limits::default() }
}

/// Imports and checks what must hold whatever the outcome.
fn check(bench: &Bench, source: &Source) {
    let before = outside(bench);
    let result = bench.import_with(source, &small());
    assert_eq!(bench.store.fsck().unwrap(), vec![]);
    assert_eq!(entries(&bench.path("store/staging")), Vec::<String>::new());
    assert_eq!(bench.store.list().unwrap().len(), usize::from(result.is_ok()));
    bench.assert_probe_untouched();
    assert_eq!(outside(bench), before);
    if let Ok(image) = result {
        // Nothing in the layer is a device but whiteouts, and nothing is larger than what was given.
        for layer in &image.layers {
            for seen in tree(&bench.store.layer_path(layer)).values() {
                assert!(seen.rdev == 0 && seen.content.len() <= 1 << 20);
            }
        }
    }
}

fn outside(bench: &Bench) -> Vec<(Vec<String>, Vec<String>)> {
    vec![(entries(bench.top.path()), entries(&bench.path("store")))]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_entries_stays_inside(list in prop::collection::vec(entry(), 1..25)) {
        let bench = Bench::new();
        let probe = bench.path("probe");
        put(&bench.path("rootfs.tar"), &tar_of(&list, text(&probe)));
        check(&bench, &Source::RootfsTar { file: bench.path("rootfs.tar") });
    }

    #[test]
    fn a_tar_with_damaged_bytes_is_refused_or_imported_whole(
        list in prop::collection::vec(entry(), 1..8),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        fix_checksums in any::<bool>(),
    ) {
        let bench = Bench::new();
        let mut bytes = tar_of(&list, text(&bench.path("probe")));
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if fix_checksums {
            // Else nearly all damage ends at the checksum.
            for block in bytes.chunks_exact_mut(512).filter(|b| &b[257..262] == b"ustar") {
                block[148..156].fill(b' ');
                let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
                block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        put(&bench.path("rootfs.tar"), &bytes);
        check(&bench, &Source::RootfsTar { file: bench.path("rootfs.tar") });
    }

    #[test]
    fn damaged_compressed_streams_do_no_harm(
        format in 0..3usize,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let bench = Bench::new();
        let tar = RawTar::new().dir("a").file("a/f", &[5; 20_000]).symlink("l", "a").end();
        let mut bytes = [gzip, xz, zstd][format](&tar);
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] ^= byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        put(&bench.path("rootfs.tar"), &bytes);
        check(&bench, &Source::RootfsTar { file: bench.path("rootfs.tar") });
    }

    #[test]
    fn damaged_documents_do_no_harm(
        which in 0..4usize,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let bench = Bench::new();
        let layout = bench.layout("layout");
        let layers = [plain(RawTar::new().file("a", b"a").end())];
        let spoil = |bytes: &[u8], n: usize| {
            let mut bytes = bytes.to_vec();
            if n == which {
                for (at, byte) in &damage {
                    let at = at.index(bytes.len());
                    bytes[at] = *byte;
                }
            }
            bytes
        };
        let config = spoil(layout.config(&layers, &json!({"Env": ["A=b"], "User": "1"})).to_string().as_bytes(), 0);
        let layer = layout.descriptor(TAR, &layers[0].blob);
        let manifest = json!({"schemaVersion": 2, "config": layout.descriptor(CONFIG, &config), "layers": [layer]});
        let manifest = spoil(manifest.to_string().as_bytes(), 1);
        let index = json!({"schemaVersion": 2, "manifests": [layout.descriptor(MANIFEST, &manifest)]});
        put(&layout.dir.join("index.json"), &spoil(index.to_string().as_bytes(), 2));
        put(&layout.dir.join("oci-layout"), &spoil(br#"{"imageLayoutVersion":"1.0.0"}"#, 3));
        check(&bench, &layout.source());
    }
}
