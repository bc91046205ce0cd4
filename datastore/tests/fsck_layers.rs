//! Checking layers: each is compared with its blob, file by file, and made again where it differs.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

#[path = "common/broken.rs"]
mod broken;
mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use broken::*;
use common::*;
use ocivisor_datastore::{CheckOptions, Finding, Limits, Store};
use serde_json::json;

#[test]
fn a_changed_layer_is_found_whatever_changed_and_is_made_again() {
    let broken = Broken::of(&rich());
    let fs = broken.bench.store.layer_path(&broken.image.layers[0]);
    let time = |path: &str| {
        let path = fs.join(path);
        let stat = fs::symlink_metadata(&path).unwrap();
        move || {
            let at = |s, n| rustix::fs::Timespec { tv_sec: s, tv_nsec: n };
            let times = rustix::fs::Timestamps {
                last_access: at(stat.mtime(), stat.mtime_nsec()),
                last_modification: at(stat.mtime(), stat.mtime_nsec()),
            };
            let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::utimensat(rustix::fs::CWD, &path, &times, flags).unwrap();
        }
    };
    type Damage<'a> = (&'a str, &'a str, &'a str, Box<dyn Fn() + 'a>);
    let at = |path: &str| fs.join(path);
    let cases: Vec<Damage<'_>> = vec![
        (
            "content",
            "etc/motd",
            "has other content",
            Box::new(|| {
                let keep = time("etc/motd");
                put(&at("etc/motd"), b"hellO");
                keep();
            }),
        ),
        (
            "size",
            "bin/ping",
            "has 3 bytes, should have 100000",
            Box::new(|| {
                let keep = time("bin/ping");
                put(&at("bin/ping"), b"abc");
                xattr(
                    &at("bin/ping"),
                    "security.capability",
                    &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                );
                keep();
            }),
        ),
        (
            "mode",
            "etc/secret",
            "has mode 6640, should have 4640",
            Box::new(|| {
                fs::set_permissions(at("etc/secret"), fs::Permissions::from_mode(0o6640)).unwrap();
            }),
        ),
        (
            "owner",
            "etc/secret",
            "belongs to 0:8, should belong to 7:8",
            Box::new(|| {
                std::os::unix::fs::chown(at("etc/secret"), Some(0), None).unwrap();
                fs::set_permissions(at("etc/secret"), fs::Permissions::from_mode(0o4640)).unwrap();
            }),
        ),
        (
            "xattr",
            "etc/motd",
            "has other extended attributes",
            Box::new(|| {
                xattr(&at("etc/motd"), "user.mime", b"evil");
            }),
        ),
        (
            "capability",
            "bin/ping",
            "has other extended attributes",
            Box::new(|| {
                rustix::fs::removexattr(at("bin/ping"), "security.capability").unwrap();
            }),
        ),
        (
            "link",
            "etc/link",
            "leads elsewhere",
            Box::new(|| {
                let (own, above) = (time("etc/link"), time("etc"));
                fs::remove_file(at("etc/link")).unwrap();
                std::os::unix::fs::symlink("shadow", at("etc/link")).unwrap();
                own();
                above();
            }),
        ),
        (
            "lost",
            "etc/secret",
            "is absent",
            Box::new(|| {
                let above = time("etc");
                fs::remove_file(at("etc/secret")).unwrap();
                above();
            }),
        ),
        (
            "added",
            "usr/share/new",
            "should not be there",
            Box::new(|| {
                let above = time("usr/share");
                put(&at("usr/share/new"), b"");
                above();
            }),
        ),
        (
            "empty directory",
            "usr/new",
            "should not be there",
            Box::new(|| {
                let above = time("usr");
                fs::create_dir(at("usr/new")).unwrap();
                above();
            }),
        ),
        (
            "unlinked",
            "etc/motd",
            "has 1 links, should have 2",
            Box::new(|| {
                let (own, above) = (time("etc/second"), time("etc"));
                fs::remove_file(at("etc/second")).unwrap();
                put(&at("etc/second"), b"hello");
                own();
                above();
            }),
        ),
        (
            "whiteout",
            "var/gone",
            "is absent",
            Box::new(|| {
                let above = time("var");
                fs::remove_file(at("var/gone")).unwrap();
                above();
            }),
        ),
        (
            "opaque",
            "opt",
            "has other extended attributes",
            Box::new(|| {
                rustix::fs::removexattr(at("opt"), "trusted.overlay.opaque").unwrap();
            }),
        ),
        (
            "opaque too much",
            "etc",
            "has other extended attributes",
            Box::new(|| {
                xattr(&at("etc"), "trusted.overlay.opaque", b"y");
            }),
        ),
        (
            "kind",
            "run/pipe",
            "is a directory, should be a fifo",
            Box::new(|| {
                let above = time("run");
                fs::remove_file(at("run/pipe")).unwrap();
                fs::create_dir(at("run/pipe")).unwrap();
                above();
            }),
        ),
        (
            "time",
            "etc/motd",
            "was written at another time",
            Box::new(|| {
                put(&at("etc/motd"), b"hello");
            }),
        ),
    ];
    for (what, path, why, damage) in cases {
        damage();
        let want = Finding::LayerChanged {
            layer: broken.image.layers[0],
            path: path.into(),
            why: why.into(),
            // Of two links that became two files, each has one too few.
            differences: if what == "unlinked" { 2 } else { 1 },
        };
        assert_eq!(broken.found(), [want], "{what}");
        broken.mended("layer_changed");
    }
    // Each damaged layer was kept.
    assert_eq!(entries(&broken.bench.path("store/quarantine")).len(), 16);
    let format = fs::read_to_string(broken.bench.path("store/format.json")).unwrap();
    assert!(format.contains("\"compatible\": [\n    \"quarantine\"\n  ]"), "{format}");
    Store::open(&broken.bench.path("store")).unwrap();
}

fn xattr(path: &Path, name: &str, value: &[u8]) {
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(path, name, value, flags).unwrap();
}

#[test]
fn a_layer_whose_tar_writes_names_twice_is_compared_all_the_same() {
    // The quick comparison cannot follow these; the exact one can.
    let tar = RawTar::new()
        .file("a", b"first")
        .file("a", b"second")
        .symlink("lib", "usr/lib")
        .dir("usr/lib")
        .file("lib/x", b"through a link")
        .dir("d")
        .file("d/f", b"")
        .file("d", b"a file now")
        .end();
    let broken = Broken::of(&tar);
    let fs = broken.bench.store.layer_path(&broken.image.layers[0]);
    put(&fs.join("usr/lib/x"), b"through a lonk");
    let found = broken.found();
    assert!(
        matches!(&found[..], [Finding::LayerChanged { path, .. }] if path == "usr/lib/x"),
        "{found:?}"
    );
    broken.mended("layer_changed");
}

#[test]
fn all_differences_of_a_layer_are_counted() {
    let broken = Broken::of(&rich());
    let fs = broken.bench.store.layer_path(&broken.image.layers[0]);
    fs::remove_dir_all(fs.join("usr")).unwrap();
    put(&fs.join("etc/motd"), b"other");
    put(&fs.join("etc/new"), b"other");
    let found = broken.found();
    // The root and etc were written, usr is gone, motd is other, new is new.
    assert!(
        matches!(&found[..], [Finding::LayerChanged { path, differences: 5, .. }] if path == "."),
        "{found:?}"
    );
    broken.mended("layer_changed");
}

#[test]
fn a_layer_is_proven_by_its_other_blob_if_one_is_damaged() {
    let tar = rich();
    let broken = Broken::of(&tar);
    let layout = broken.bench.layout("zstd");
    let other = Layer {
        media_type: TAR_ZSTD,
        blob: zstd(&tar),
        diff_id: broken.image.layers[0].to_string(),
    };
    layout.image(std::slice::from_ref(&other), &json!({}));
    let store = &broken.bench.store;
    store.import(&layout.source(), &name("other"), &Limits::default(), &mut |_| {}).unwrap();
    let checked = store.check(&CheckOptions::default()).unwrap().checked;
    assert_eq!((checked.layers, checked.layers_proven, checked.blobs), (1, 1, 6));

    put(&broken.path("blobs/sha256", &broken.blob.hex()), b"nonsense");
    let checked = store.check(&CheckOptions::default()).unwrap();
    let codes: Vec<_> = checked.findings.iter().map(|f| f.finding.code()).collect();
    assert_eq!(codes, ["blob_size", "blob_corrupt"]);
    assert_eq!(checked.checked.layers_proven, 1);
}
