//! The store as a whole: formats, names, pruning, checking, processes beside each other.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

mod common;

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use common::*;
use ocivisor_datastore::{
    Digest, Error, Image, ImageName, ImageSpace, Limits, PruneOptions, Reference, Store, Usage,
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

#[test]
fn a_dry_run_says_what_a_prune_does() {
    let bench = Bench::new();
    import(&bench, "kept", &[layer("base")]);
    let dropped = import(&bench, "dropped", &[layer("base"), layer("d")]);
    bench.store.remove(&name("dropped")).unwrap();
    let before = tree(&bench.path("store"));
    let options =
        PruneOptions { in_use: &nothing(), dry_run: true, partial_age: None, quarantine_age: None };
    let would = bench.store.prune_with(&options).unwrap();
    assert_same_tree(&tree(&bench.path("store")), &before, "dry run");
    assert_eq!(would.images, [dropped.manifest_digest]);
    assert_eq!(would.layers, [dropped.layers[1]]);
    assert_eq!(bench.store.prune(&nothing()).unwrap(), would);
}

#[test]
fn downloads_that_were_broken_off_go_by_age_and_not_under_their_owner() {
    let bench = Bench::new();
    let partial = bench.path("store/partial");
    fs::create_dir(&partial).unwrap();
    let hex = |n: u8| Digest::of(&[n]).hex();
    for n in 0..3 {
        put(&partial.join(hex(n)), &[n; 100]);
    }
    put(&partial.join("notes"), b"");
    let hour = std::time::Duration::from_secs(3600);
    let long_ago = std::time::SystemTime::now() - 2 * hour;
    for n in 0..2 {
        fs::File::open(partial.join(hex(n))).unwrap().set_modified(long_ago).unwrap();
    }
    let owned = fs::File::open(partial.join(hex(1))).unwrap();
    rustix::fs::flock(&owned, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let with = |partial_age, dry_run| {
        let options =
            PruneOptions { in_use: &nothing(), dry_run, partial_age, quarantine_age: None };
        let pruned = bench.store.prune_with(&options).unwrap();
        (pruned.partials, pruned.partial_bytes)
    };
    assert_eq!(with(None, false), (0, 0));
    assert_eq!(with(Some(hour), true), (1, 100));
    assert_eq!(with(Some(hour), false), (1, 100));
    let mut left = vec![hex(1), hex(2), "notes".to_owned()];
    left.sort();
    assert_eq!(entries(&partial), left);
}

// Tags

#[test]
fn a_tag_names_an_image_that_is_here_and_nothing_else() {
    let bench = Bench::new();
    let one = import(&bench, "one", &[layer("a")]);
    let two = import(&bench, "two", &[layer("b")]);
    assert_eq!(bench.store.tag(&name("one").into(), &name("team/app:1")).unwrap(), one);
    assert_eq!(bench.store.tag(&two.manifest_digest.into(), &name("one")).unwrap(), two);
    assert_eq!(bench.store.resolve(&name("team/app:1").into()).unwrap(), one);
    assert_eq!(bench.store.resolve(&name("one").into()).unwrap(), two);
    for absent in [name("none").into(), Reference::Digest(Digest::of(b""))] {
        let error = bench.store.tag(&absent, &name("new")).unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }), "{error:?}");
    }
    // A name for what is not whole would be a name for nothing.
    fs::remove_dir_all(bench.path("store/layers").join(one.layers[0].hex())).unwrap();
    let error = bench.store.tag(&one.manifest_digest.into(), &name("new")).unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error:?}");
    assert_eq!(entries(&bench.path("store/refs")), ["one", "team=sapp=c1", "two"]);
    assert_eq!(entries(&bench.path("store/staging")), Vec::<String>::new());
}

// Space

#[test]
fn df_tells_shared_from_unique_and_counts_links_once() {
    let bench = Bench::new();
    let mib = vec![7; 1 << 20];
    let big = |file: &str| gzipped(&RawTar::new().file(file, &mib).hardlink("again", file).end());
    let (base, own) = (big("base"), big("own"));
    let one = import(&bench, "one", &[base.clone(), own.clone()]);
    let two = import(&bench, "two", std::slice::from_ref(&base));
    bench.store.tag(&name("two").into(), &name("second")).unwrap();
    bench.store.remove(&name("one")).unwrap();

    let usage = bench.store.df(&nothing()).unwrap();
    let blob = |layer: &Layer| {
        allocated(&bench.path("store/blobs/sha256").join(Digest::of(&layer.blob).hex()))
    };
    let document =
        |digest: &Digest| allocated(&bench.path("store/blobs/sha256").join(digest.hex()));
    let dir = |layer: &ocivisor_datastore::DiffId| {
        let top = bench.path("store/layers").join(layer.hex());
        let bytes =
            allocated(&top) + allocated(&top.join("layer.json")) + allocated(&top.join("fs"));
        let files = ["base", "own"].map(|f| top.join("fs").join(f));
        bytes + files.iter().filter(|f| f.exists()).map(|f| allocated(f)).sum::<u64>()
    };
    let documents =
        |image: &Image| document(&image.manifest_digest) + document(&image.config_digest);
    let shared = blob(&base) + dir(&one.layers[0]);
    let mut want = vec![
        ImageSpace {
            manifest_digest: one.manifest_digest,
            names: vec![],
            blobs: documents(&one) + blob(&base) + blob(&own),
            layers: dir(&one.layers[0]) + dir(&one.layers[1]),
            shared,
            unique: documents(&one) + blob(&own) + dir(&one.layers[1]),
        },
        ImageSpace {
            manifest_digest: two.manifest_digest,
            names: vec![name("second"), name("two")],
            blobs: documents(&two) + blob(&base),
            layers: dir(&one.layers[0]),
            shared,
            unique: documents(&two),
        },
    ];
    want.sort_by_key(|i| i.manifest_digest);
    assert_eq!(usage.images, want);
    assert_eq!((usage.blobs.count, usage.layers.count), (6, 2));
    let one_only = documents(&one) + blob(&own) + dir(&one.layers[1]);
    assert_eq!(usage.reclaimable, Some(one_only));
    assert_eq!(usage.total, du(&bench.path("store")));
    assert!(usage.layers.allocated < 3 << 20, "{usage:?}");

    bench.store.prune(&nothing()).unwrap();
    let after = bench.store.df(&nothing()).unwrap();
    assert_eq!(after.reclaimable, Some(0));
    assert_eq!(
        after.blobs.allocated + after.layers.allocated + one_only,
        usage.blobs.allocated + usage.layers.allocated
    );
    put(&bench.path("store/images").join(format!("{}.json", two.manifest_digest.hex())), b"{");
    assert_eq!(bench.store.df(&nothing()).unwrap().reclaimable, None);
}

fn allocated(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap().blocks() * 512
}

/// What coreutils say.
#[expect(clippy::disallowed_methods, reason = "tests run foreign tools")]
fn du(path: &Path) -> u64 {
    let output = std::process::Command::new("du").args(["-s", "-B1"]).arg(path).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split('\t').next().unwrap().parse().unwrap()
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
    layout.image(&[gzipped(&RawTar::new().file("big", &vec![1; 4 << 20]).end())], &json!({}));
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
