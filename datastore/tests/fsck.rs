//! Checking and repairing: each test breaks one thing, expects exactly that finding, and has it repaired.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

mod common;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use common::*;
use ocivisor_datastore::{
    CheckOptions, Digest, Error, Finding, Found, Image, ImageName, Limits, Outcome, PruneOptions,
    Refetch, RepairOptions, Severity, Source, Store,
};
use serde_json::json;

fn name(text: &str) -> ImageName {
    text.parse().unwrap()
}

fn layer(file: &str) -> Layer {
    gzipped(&RawTar::new().file(file, file.as_bytes()).end())
}

fn import(bench: &Bench, as_name: &str, layers: &[Layer]) -> Image {
    let layout = bench.layout(&format!("layout-{as_name}"));
    layout.image(layers, &json!({"Cmd": [as_name]}));
    bench.store.import(&layout.source(), &name(as_name), &Limits::default(), &mut |_| {}).unwrap()
}

fn nothing() -> HashSet<ocivisor_datastore::DiffId> {
    HashSet::new()
}

// Fsck: each test breaks one thing and expects exactly that finding

struct Broken {
    bench: Bench,
    image: Image,
    blob: Digest,
    files: BTreeMap<Vec<u8>, Seen>,
    /// What a repair can fetch.
    lost: Vec<Vec<u8>>,
}

/// A source of lost blobs that lies about all others.
struct Lost(Vec<Vec<u8>>);

impl Refetch for Lost {
    fn fetch(&self, blob: &Digest) -> Option<Box<dyn Read + '_>> {
        if self.0.is_empty() {
            return None;
        }
        let found = self.0.iter().find(|bytes| Digest::of(bytes) == *blob);
        Some(Box::new(found.map_or(&b"something else"[..], Vec::as_slice)))
    }
}

/// A file as the store makes them.
fn private(path: &Path, bytes: &[u8]) {
    put(path, bytes);
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

impl Broken {
    fn new() -> Self {
        Self::with(&layer("a"))
    }

    fn of(tar: &[u8]) -> Self {
        Self::with(&gzipped(tar))
    }

    fn with(layer: &Layer) -> Self {
        let bench = Bench::new();
        let image = import(&bench, "app", std::slice::from_ref(layer));
        let blob = Digest::of(&layer.blob);
        assert_eq!(bench.store.fsck().unwrap(), vec![]);
        let files = tree(&bench.store.layer_path(&image.layers[0]));
        Self { bench, image, blob, files, lost: Vec::new() }
    }

    fn path(&self, folder: &str, file: &str) -> std::path::PathBuf {
        self.bench.path("store").join(folder).join(file)
    }

    fn record(&self) -> std::path::PathBuf {
        self.path("images", &format!("{}.json", self.image.manifest_digest.hex()))
    }

    fn found(&self) -> Vec<Finding> {
        self.bench.store.fsck().unwrap()
    }

    fn repair(&self) -> Vec<Found> {
        let options = RepairOptions {
            check: CheckOptions::default(),
            in_use: &nothing(),
            refetch: Some(&Lost(self.lost.clone())),
        };
        self.bench.store.repair(&options).unwrap().findings
    }

    /// A repair repairs everything, and this kind of damage was there; the image is what it was.
    fn mended(&self, code: &str) {
        let found = self.repair();
        assert!(found.iter().any(|f| f.finding.code() == code), "{found:?}");
        let mended = |f: &Found| matches!(f.outcome, Outcome::Repaired { .. });
        assert!(found.iter().all(mended), "{found:?}");
        assert_eq!(self.found(), vec![]);
        assert_eq!(self.bench.store.resolve(&name("app").into()).unwrap(), self.image);
        let files = self.bench.store.layer_path(&self.image.layers[0]);
        assert_same_tree(&tree(&files), &self.files, code);
        assert_eq!(entries(&self.bench.path("store/staging")), Vec::<String>::new());
    }

    /// An import of the same image repairs the store.
    fn repaired(&self) {
        import(&self.bench, "app", &[layer("a")]);
        assert_eq!(self.found(), vec![]);
    }
}

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

// Layers against their blobs

/// A layer with one of everything.
fn rich() -> Vec<u8> {
    let xattr = [("SCHILY.xattr.user.mime", &b"text"[..]), ("mtime", b"1000000000.25")];
    let capability: &[u8] = &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    RawTar::new()
        .dir("etc")
        .pax(&xattr)
        .file("etc/motd", b"hello")
        .head(&Head { path: b"etc/secret", mode: 0o4640, uid: 7, gid: 8, ..Head::default() }, b"s")
        .hardlink("etc/second", "etc/motd")
        .pax(&[("SCHILY.xattr.security.capability", capability)])
        .file("bin/ping", &vec![3; 100_000])
        .symlink("etc/link", "motd")
        .kind(b'6', "run/pipe", "")
        .file("var/.wh.gone", b"")
        .dir("opt")
        .file("opt/.wh..wh..opq", b"")
        .file("usr/share/deep/implied", b"")
        .end()
}

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

// Repair

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
