//! A worker gives the very same layer as the importing process itself, and the same refusal.

use ocivisor_datastore::{Error, Limits, Source};
use proptest::prelude::*;

use crate::common::*;
use crate::confined::bench;

/// All that a layer can hold, and every order that takes a mark away again.
fn rich() -> Vec<u8> {
    let cap = [1u8, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let capable = |tar: RawTar, path: &str| {
        tar.pax(&[("SCHILY.xattr.security.capability", &cap), ("SCHILY.xattr.user.a", b"b")])
            .head(&Head { path: path.as_bytes(), mode: 0o755, uid: 5, ..Head::default() }, b"elf")
    };
    let long = format!("deep/{}/{}", "n".repeat(200), "m".repeat(200));
    let mut tar = RawTar::new()
        .head(&Head { path: b"./", kind: b'5', mode: 0o711, uid: 3, ..Head::default() }, b"")
        .head(&Head { path: b"shared", kind: b'5', mode: 0o2775, gid: 50, ..Head::default() }, b"")
        .file("shared/inherits", b"x")
        .symlink("shared/link", "inherits")
        .kind(b'6', "shared/fifo", "")
        .dir("d")
        .symlink("way", "d")
        .file(".wh.gone", b"")
        .file("d/.wh..wh..opq", b"")
        .file("implied/.wh..wh..opq", b"")
        .file(".wh.again", b"")
        .dir("again");
    tar = capable(tar, "ping");
    tar = capable(tar, "way/through-a-link");
    tar = capable(tar, "d/replaced");
    tar = tar.file("d/replaced", b"plain").hardlink("ping2", "ping");
    // The directory was opaque and is a new one then.
    tar = tar.dir("e").file("e/.wh..wh..opq", b"").file("e", b"").dir("e").file("e/f", b"f");
    tar.pax(&[("path", long.as_bytes()), ("mtime", b"12.345678901")])
        .file("x", &[7; 700_000])
        .head(
            &Head { path: b"owned", uid: 65535, gid: 65535, mode: 0o6755, ..Head::default() },
            b"x",
        )
        .end()
}

#[test]
fn a_layer_is_the_same_byte_for_byte_whoever_unpacks_it() {
    let (ours, theirs) = (Bench::new(), bench());
    let layer = gzipped(&rich());
    let one = ours.import_layers(std::slice::from_ref(&layer)).unwrap();
    let other = theirs.import_layers(&[layer]).unwrap();
    assert_same_tree(&tree(&theirs.fs(&other)), &tree(&ours.fs(&one)), "worker against in-process");
    let record =
        |b: &Bench, i| std::fs::read(b.fs(i).parent().unwrap().join("layer.json")).unwrap();
    assert_eq!(record(&theirs, &other), record(&ours, &one));
    assert_eq!(xattrs(&theirs.fs(&other).join("ping2"))[&b"security.capability"[..]][3], 2);
    assert_eq!(theirs.store.fsck().unwrap(), vec![]);
}

#[test]
fn xattrs_of_removed_files_do_not_come_back() {
    let bench = bench();
    let image = bench.import_tar(rich()).unwrap();
    let seen = tree(&bench.fs(&image));
    assert!(seen[&b"d/replaced"[..]].xattrs.is_empty());
    assert!(seen[&b"e"[..]].xattrs.is_empty());
    assert_eq!(seen[&b"again"[..]].xattrs[&b"trusted.overlay.opaque"[..]], b"y");
    assert_eq!(seen[&b"d/through-a-link"[..]].xattrs.len(), 2);
}

#[test]
fn a_blob_whose_layer_is_here_is_proven_by_a_worker_too() {
    let bench = bench();
    let tar = RawTar::new().file("a", b"a").end();
    bench.import_layers(&[plain(tar.clone())]).unwrap();
    let layout = bench.layout("second");
    layout.image(&[gzipped(&tar)], &serde_json::json!({}));
    let image = bench.import(&layout.source()).unwrap();
    assert_eq!(entries(&bench.fs(&image)), ["a"]);
    assert_eq!(entries(&bench.path("store/layers")).len(), 1);
}

fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let change = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    (change, any::<bool>(), prop::option::of(any::<prop::sample::Index>())).prop_map(
        |(changes, sums, cut)| {
            let mut bytes = rich();
            for (at, byte) in changes {
                // Headers are at the front; behind them is one long file.
                let at = at.index(30 * 512);
                bytes[at] = byte;
            }
            if sums {
                for block in bytes.chunks_exact_mut(512).filter(|b| &b[257..262] == b"ustar") {
                    block[148..156].fill(b' ');
                    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
                    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                }
            }
            bytes.truncate(cut.map_or(bytes.len(), |cut| cut.index(40 * 512)));
            bytes
        },
    )
}

fn outcome(bench: &Bench, tar: &[u8]) -> Result<Vec<(Vec<u8>, Seen)>, String> {
    put(&bench.path("rootfs.tar"), tar);
    let limits = Limits { image_bytes: 4 << 20, entries: 100, ..Limits::default() };
    let source = Source::RootfsTar { file: bench.path("rootfs.tar") };
    let result = bench.import_with(&source, &limits);
    assert_eq!(entries(&bench.path("store/staging")), Vec::<String>::new());
    bench.assert_probe_untouched();
    match result {
        Ok(image) => Ok(tree(&bench.fs(&image)).into_iter().collect()),
        Err(error @ Error::Refused { .. }) => {
            Err(error.to_string().replace(text(bench.top.path()), ""))
        }
        Err(other) => panic!("{other:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_layer_ends_in_the_same_way_whoever_unpacks_it(tar in damaged()) {
        let (ours, theirs) = (Bench::new(), bench());
        prop_assert_eq!(outcome(&theirs, &tar), outcome(&ours, &tar));
    }
}
