//! The store as a whole: formats, names, pruning, checking, processes beside each other.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

mod common;

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use common::*;
use ocivisor_datastore::{
    Digest, Error, Finding, Image, ImageName, Limits, Reference, Store, Usage,
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

// Format

#[test]
fn the_format_is_the_documented_one() {
    let bench = Bench::new();
    let layout = bench.layout("layout");
    // A config without the host's architecture in it would be refused, so the golden is of amd64's bytes only in
    // its shape: digests are replaced.
    let tar = RawTar::new().dir("etc").file("etc/motd", b"hello").kind(b'3', "null", "").end();
    layout.image(&[plain(tar)], &json!({}));
    let image = bench
        .store
        .import(&layout.source(), &name("example/app:1"), &Limits::default(), &mut |_| {})
        .unwrap();
    let read = |path: String| {
        let text = fs::read_to_string(bench.path("store").join(path)).unwrap();
        text.replace(&image.manifest_digest.hex(), "<manifest>")
            .replace(&image.config_digest.hex(), "<config>")
    };
    insta::assert_snapshot!("format", read("format.json".into()));
    insta::assert_snapshot!("image_record", {
        let text = read(format!("images/{}.json", image.manifest_digest.hex()));
        let sizes = |line: &&str| !line.contains("manifest_size") && !line.contains("config_size");
        text.lines().filter(sizes).collect::<Vec<_>>().join("\n")
    });
    insta::assert_snapshot!("ref_record", read("refs/example=sapp=c1".into()));
    insta::assert_snapshot!(
        "layer_record",
        read(format!("layers/{}/layer.json", image.layers[0].hex()))
    );
    assert_eq!(
        entries(&bench.path("store")),
        ["blobs", "format.json", "images", "layers", "lock", "refs", "staging"]
    );
}

#[test]
fn a_store_of_this_version_opens_again() {
    let bench = Bench::new();
    let image = import(&bench, "app", &[layer("a")]);
    let again = Store::open(&bench.path("store")).unwrap();
    assert_eq!(again.resolve(&name("app").into()).unwrap(), image);
    assert_eq!(again.resolve(&Reference::Digest(image.manifest_digest)).unwrap(), image);
}

#[test]
fn unknown_versions_and_features_are_obeyed() {
    let bench = Bench::new();
    let image = import(&bench, "app", &[layer("a")]);
    let path = bench.path("store/format.json");
    let good: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let with = |key: &str, value: serde_json::Value| {
        let mut format = good.clone();
        format[key] = value;
        put(&path, format.to_string().as_bytes());
        Store::open(&bench.path("store"))
    };
    let error = with("incompatible", json!(["erofs-layers"])).unwrap_err().to_string();
    let want = format!(
        "image store {} needs feature \"erofs-layers\"; use a newer version of this program",
        bench.path("store").display()
    );
    assert_eq!(error, want);
    assert!(
        matches!(with("version", json!(2)), Err(Error::Format { what, .. }) if what == "format version 2")
    );
    assert!(matches!(with("kind", json!("other")), Err(Error::Damaged { .. })));
    assert!(with("compatible", json!(["hints"])).is_ok());

    let reader = with("read_only_compatible", json!(["refs-v2"])).unwrap();
    assert_eq!(reader.resolve(&name("app").into()).unwrap(), image);
    let read_only = |e: Error| matches!(e, Error::ReadOnly { feature, .. } if feature == "refs-v2");
    assert!(read_only(reader.remove(&name("app")).unwrap_err()));
    assert!(read_only(reader.prune(&nothing()).unwrap_err()));
    let source = bench.layout("layout-app").source();
    assert!(read_only(
        reader.import(&source, &name("x"), &Limits::default(), &mut |_| {}).unwrap_err()
    ));
}

#[test]
fn a_directory_with_other_content_is_left_alone() {
    let bench = Bench::new();
    assert!(matches!(Store::open(&bench.path("probe")), Err(Error::NotAStore { .. })));
    assert_eq!(entries(&bench.path("probe")), ["dir", "shadow"]);
    bench.assert_probe_untouched();
    // What a crash right at the beginning leaves is no obstacle, nor is a fresh file system.
    let fresh = bench.path("fresh");
    fs::create_dir_all(fresh.join("lost+found")).unwrap();
    put(&fresh.join("format.json.new"), b"{");
    Store::open(&fresh).unwrap();
}

// Names

#[test]
fn a_name_moves_and_the_old_image_stays_until_a_prune() {
    let bench = Bench::new();
    let old = import(&bench, "app", &[layer("a")]);
    let layout = bench.layout("new");
    layout.image(&[layer("b")], &json!({}));
    let new = bench
        .store
        .import(&layout.source(), &name("app"), &Limits::default(), &mut |_| {})
        .unwrap();
    assert_eq!(bench.store.resolve(&name("app").into()).unwrap(), new);
    assert_eq!(bench.store.resolve(&old.manifest_digest.into()).unwrap(), old);
    let pruned = bench.store.prune(&nothing()).unwrap();
    assert_eq!(pruned.images, [old.manifest_digest]);
    assert_eq!(pruned.layers, old.layers);
    assert_eq!(pruned.blobs, 3);
    assert!(matches!(
        bench.store.resolve(&old.manifest_digest.into()),
        Err(Error::NotFound { .. })
    ));
    assert_eq!(bench.store.resolve(&name("app").into()).unwrap(), new);
}

#[test]
fn an_unknown_name_is_said_so_and_removing_it_is_no_error() {
    let bench = Bench::new();
    let error = bench.store.resolve(&name("nope").into()).unwrap_err();
    assert_eq!(error.to_string(), "no image nope in the store; import it first");
    assert!(!bench.store.remove(&name("nope")).unwrap());
    import(&bench, "app", &[layer("a")]);
    assert!(bench.store.remove(&name("app")).unwrap());
    assert!(!bench.store.remove(&name("app")).unwrap());
}

// Prune

#[test]
fn prune_keeps_what_names_and_guests_need() {
    let bench = Bench::new();
    let base = layer("base");
    let named = import(&bench, "named", &[base.clone(), layer("n")]);
    let running = import(&bench, "running", &[base.clone(), layer("r")]);
    let partly = import(&bench, "partly", &[base.clone(), layer("p")]);
    let dropped = import(&bench, "dropped", &[base, layer("d")]);
    for gone in ["running", "partly", "dropped"] {
        bench.store.remove(&name(gone)).unwrap();
    }
    let mut in_use: HashSet<_> = running.layers.iter().copied().collect();
    in_use.insert(partly.layers[1]);
    in_use.insert(
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855".parse().unwrap(),
    );
    let pruned = bench.store.prune(&in_use).unwrap();

    let mut gone = vec![dropped.manifest_digest];
    // All layers of `partly` are in use too: its base is the running guest's.
    gone.sort();
    assert_eq!(pruned.images, gone);
    assert_eq!(pruned.layers, [dropped.layers[1]]);
    assert_eq!(bench.store.resolve(&running.manifest_digest.into()).unwrap(), running);
    assert_eq!(bench.store.resolve(&name("named").into()).unwrap(), named);
    assert_eq!(bench.store.fsck().unwrap(), vec![]);

    // With the guest gone only the name is left.
    bench.store.prune(&nothing()).unwrap();
    assert_eq!(bench.store.list().unwrap().len(), 1);
    assert_eq!(entries(&bench.path("store/layers")).len(), 2);
    assert_eq!(entries(&bench.path("store/blobs/sha256")).len(), 4);
    assert_eq!(bench.store.fsck().unwrap(), vec![]);
}

#[test]
fn a_layer_in_use_stays_without_its_image() {
    let bench = Bench::new();
    let image = import(&bench, "app", &[layer("a"), layer("b")]);
    bench.store.remove(&name("app")).unwrap();
    bench.store.prune(&HashSet::from([image.layers[0]])).unwrap();
    assert_eq!(entries(&bench.path("store/layers")), [image.layers[0].hex()]);
    assert_eq!(fs::read(bench.store.layer_path(&image.layers[0]).join("a")).unwrap(), b"a");
    assert_eq!(entries(&bench.path("store/blobs/sha256")), Vec::<String>::new());
}

#[test]
fn prune_refuses_to_guess_when_a_record_is_unreadable() {
    let bench = Bench::new();
    let image = import(&bench, "app", &[layer("a")]);
    bench.store.remove(&name("app")).unwrap();
    put(&bench.path("store/images").join(format!("{}.json", image.manifest_digest.hex())), b"{");
    assert!(matches!(bench.store.prune(&nothing()), Err(Error::Damaged { .. })));
    assert_eq!(entries(&bench.path("store/layers")).len(), 1);
    assert_eq!(entries(&bench.path("store/blobs/sha256")).len(), 3);
}

#[test]
fn prune_says_busy_while_an_import_runs_and_names_can_still_be_removed() {
    let bench = Bench::new();
    import(&bench, "old", &[layer("a")]);
    let other = Store::open(&bench.path("store")).unwrap();
    let layout = bench.layout("layout");
    layout.image(&[layer("b")], &json!({}));
    let mut seen = 0;
    bench
        .store
        .import(&layout.source(), &name("new"), &Limits::default(), &mut |_| {
            assert!(matches!(other.prune(&nothing()), Err(Error::Busy { .. })));
            // Opening neither waits nor cleans away what is being made.
            Store::open(&bench.path("store")).unwrap();
            other.remove(&name("old")).unwrap();
            seen += 1;
        })
        .unwrap();
    assert!(seen >= 3);
    assert_eq!(other.prune(&nothing()).unwrap().images.len(), 1);
    assert_eq!(bench.store.fsck().unwrap(), vec![]);
}

#[test]
fn usage_counts_what_is_there() {
    let bench = Bench::new();
    assert_eq!(bench.store.usage().unwrap(), Usage::default());
    let one = import(&bench, "one", &[layer("base"), layer("one")]);
    let two = import(&bench, "two", &[layer("base")]);
    let usage = bench.store.usage().unwrap();
    let shared = layer("base").blob.len() as u64;
    let want = Usage {
        images: 2,
        names: 2,
        blobs: 6,
        blob_bytes: one.size + two.size - shared,
        layers: 2,
        layer_bytes: 7,
    };
    assert_eq!(usage, want);
}

// Fsck: each test breaks one thing and expects exactly that finding

struct Broken {
    bench: Bench,
    image: Image,
    blob: Digest,
}

impl Broken {
    fn new() -> Self {
        let bench = Bench::new();
        let image = import(&bench, "app", &[layer("a")]);
        let blob = Digest::of(&layer("a").blob);
        assert_eq!(bench.store.fsck().unwrap(), vec![]);
        Self { bench, image, blob }
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
    let unreadable =
        |why: &str| Finding::Unreadable { path: format!("layers/{hex}"), why: why.into() };
    fs::remove_dir_all(broken.path("layers", &hex).join("fs")).unwrap();
    assert_eq!(broken.found(), [unreadable("is absent")]);
    put(&broken.path("layers", &hex).join("layer.json"), b"[]");
    let found = broken.found();
    assert!(
        matches!(&found[..], [Finding::Unreadable { why, .. }] if why.starts_with("invalid")),
        "{found:?}"
    );
}

#[test]
fn fsck_finds_dangling_and_false_names() {
    let broken = Broken::new();
    let manifest = broken.image.manifest_digest;
    let moved = broken.path("refs", "other");
    put(&moved, &fs::read(broken.path("refs", "app")).unwrap());
    let want = Finding::Unreadable { path: "refs/other".into(), why: "is about app".into() };
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
    assert_eq!(
        broken.found(),
        [Finding::ImageInconsistent { image: broken.image.manifest_digest, why }]
    );
}

#[test]
fn fsck_finds_strays_and_prune_leaves_them() {
    let broken = Broken::new();
    let strays = ["blobs/sha256/notes", "images/x.json", "layers/tmp", "refs/=x", "stray"];
    for path in strays {
        put(&broken.bench.path("store").join(path), b"");
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

// Beside each other

#[test]
fn importers_of_shared_layers_in_any_order_all_succeed() {
    let bench = Bench::new();
    let tars: Vec<_> =
        (0..6u8).map(|n| RawTar::new().file(&format!("f{n}"), &vec![n; 300_000]).end()).collect();
    std::thread::scope(|scope| {
        for turn in 0..4usize {
            let (tars, bench) = (&tars, &bench);
            scope.spawn(move || {
                let mut layers: Vec<_> = tars.iter().map(|t| gzipped(t)).collect();
                layers.rotate_left(turn);
                if turn % 2 == 1 {
                    layers.reverse();
                }
                let store = Store::open(&bench.path("store")).unwrap();
                let layout = bench.layout(&format!("layout{turn}"));
                layout.image(&layers, &json!({}));
                let image = store.import(
                    &layout.source(),
                    &name(&format!("i{turn}")),
                    &Limits::default(),
                    &mut |_| {},
                );
                assert_eq!(image.unwrap().layers.len(), 6);
            });
        }
    });
    assert_eq!(bench.store.list().unwrap().len(), 4);
    assert_eq!(entries(&bench.path("store/layers")).len(), 6);
    assert_eq!(entries(&bench.path("store/staging")), Vec::<String>::new());
    assert_eq!(bench.store.fsck().unwrap(), vec![]);
}

#[test]
fn importers_of_the_same_rootfs_agree() {
    let bench = Bench::new();
    let file = bench.path("rootfs.tar");
    put(&file, &RawTar::new().file("a", &vec![1; 2_000_000]).end());
    let source = ocivisor_datastore::Source::RootfsTar { file };
    let import = |n: usize| {
        let store = Store::open(&bench.path("store")).unwrap();
        store.import(&source, &name(&format!("r{n}")), &Limits::default(), &mut |_| {}).unwrap()
    };
    let images: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|n| scope.spawn(move || import(n))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert!(images.iter().all(|i| *i == images[0]));
    assert_eq!(bench.store.list().unwrap().len(), 1);
    assert_eq!(bench.store.fsck().unwrap(), vec![]);
}

#[test]
fn a_full_disk_leaves_nothing() {
    // A small tmpfs: the import fails with the kernel's word for it, and what it had written is gone.
    let bench = Bench::new();
    let small = bench.path("small");
    fs::create_dir(&small).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", &small, "tmpfs", flags, c"size=2m").unwrap();
    let mounted = Mounted(&small);
    let store = Store::open(&small.join("store")).unwrap();
    let layout = bench.layout("layout");
    layout.image(&[gzipped(&RawTar::new().file("big", &vec![0; 4 << 20]).end())], &json!({}));
    let error =
        store.import(&layout.source(), &name("x"), &Limits::default(), &mut |_| {}).unwrap_err();
    let Error::Io { source, object, .. } = error else { panic!("{error:?}") };
    assert_eq!(source.kind(), std::io::ErrorKind::StorageFull);
    assert!(object.ends_with("entry \"big\""), "{object}");
    assert_eq!(entries(&small.join("store/staging")), Vec::<String>::new());
    assert_eq!(entries(&small.join("store/blobs/sha256")), Vec::<String>::new());
    assert_eq!(store.fsck().unwrap(), vec![]);
    drop(store);
    drop(mounted);
}

struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let gone = rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH);
        assert!(gone.is_ok() || std::thread::panicking(), "{gone:?}");
    }
}
