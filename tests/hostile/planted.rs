//! A blob that takes its worker over plants a wrong tree under the diff id of somebody else's layer. Whoever brings that
//! layer gets the right one, in whatever order they come.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ocivisor_datastore::worker::Worker;
use ocivisor_datastore::{
    CheckOptions, CommitChanges, CommitOptions, DiffId, Digest, Error, Finding, IdMap, Image,
    ImageName, Limits, Progress, Refusal, RepairOptions, Source, Store, Upper,
};
use serde_json::json;

use crate::common::*;
use crate::confined::*;

/// What takes a worker over.
const EXPLOIT: &[u8] = b"\x1f\x8b\x08 EXPLOIT";

/// A base image's layer, known to all.
fn base() -> Vec<u8> {
    RawTar::new().dir("etc").file("etc/passwd", b"root:x:0:0::/:/bin/sh\n").file("sh", b"elf").end()
}

/// The same, of a form that is not compared in place: a name comes twice.
fn unusual() -> Vec<u8> {
    RawTar::new().dir("etc").file("etc/passwd", b"old\n").file("etc/passwd", b"new\n").end()
}

/// A worker that does its work, unless the exploit is in what it reads: then it plants other files and claims to have
/// unpacked `tar`; or, where it is to decompress, gives `lie`.
fn taken_over(bench: &Bench, tar: &[u8], lie: &[u8]) -> Worker {
    let (path, lie_path) = (bench.path("taken-over"), bench.path("lie"));
    put(&lie_path, lie);
    let (path_text, lie_text, bytes) = (text(&path), text(&lie_path), lie.len());
    let diff_id = Digest::of(tar);
    let script = format!(
        r#"#!/bin/sh
all={path_text}.$$
cat >$all
if ! grep -q EXPLOIT $all; then
    exec {PROGRAM} <$all
elif [ -d /proc/self/fd/2 ]; then
    cd /proc/self/fd/2 && mkdir etc && echo evil::0:0::/:/bin/sh >etc/passwd
    printf '{{"done":{{"diff_id":"{diff_id}","bytes":0,"headers":0,"compression":"gzip",'
    printf '"report":{{"entries":0,"bytes":0,"devices_skipped":0,"xattrs_dropped":0,'
    printf '"aufs_skipped":0,"implied_dirs":0}}}}}}'
else
    cat {lie_text} >&2
    printf '{{"expanded":{{"bytes":{bytes}}}}}'
fi
"#
    );
    put(&path, script.as_bytes());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    Worker::new(path, BASE)
}

/// The layer as the exploit's image has it.
fn exploit(tar: &[u8]) -> Layer {
    Layer { blob: EXPLOIT.to_vec(), diff_id: Digest::of(tar).to_string(), media_type: TAR_GZIP }
}

struct Scene {
    bench: Bench,
    /// The bench's store, by workers that can be taken over.
    store: Store,
    tar: Vec<u8>,
}

impl Scene {
    fn new(tar: Vec<u8>) -> Self {
        let lie = tar.clone();
        Self::lying(tar, &lie)
    }

    fn lying(tar: Vec<u8>, lie: &[u8]) -> Self {
        let bench = bench();
        let worker = taken_over(&bench, &tar, lie);
        let store = Store::open(&bench.path("store")).unwrap().with_worker(worker);
        Self { bench, store, tar }
    }

    fn diff_id(&self) -> DiffId {
        Digest::of(&self.tar).to_string().parse().unwrap()
    }

    fn layers(&self) -> PathBuf {
        self.bench.path("store/layers").join(self.diff_id().hex())
    }

    fn import(&self, source: &Source, name: &str) -> Result<(Image, Vec<Progress>), Error> {
        let (name, mut told) = (name.parse::<ImageName>().unwrap(), Vec::new());
        let mut tell = |p| told.push(p);
        let image = self.store.import(source, &name, &Limits::default(), &mut tell)?;
        told.retain(|p| {
            let done = matches!(p, Progress::LayerDone { .. } | Progress::LayerPresent { .. });
            done || matches!(p, Progress::LayerReplaced { .. })
        });
        Ok((image, told))
    }

    fn bring(&self, layer: Layer, name: &str) -> Result<(Image, Vec<Progress>), Error> {
        let layout = self.bench.layout(name);
        layout.image(&[layer], &json!({"Cmd": [name]}));
        self.import(&layout.source(), name)
    }

    /// The image of the exploit.
    fn plant(&self) -> Result<(Image, Vec<Progress>), Error> {
        self.bring(exploit(&self.tar), "exploit")
    }

    fn honest(&self) -> (Image, Vec<Progress>) {
        self.bring(gzipped(&self.tar), "honest").unwrap()
    }

    /// What the layer is.
    fn want(&self) -> BTreeMap<Vec<u8>, Seen> {
        let clean = Bench::new();
        let image = clean.import_layers(&[plain(self.tar.clone())]).unwrap();
        tree(&clean.fs(&image))
    }

    fn assert_honest(&self) {
        assert_same_tree(&tree(&self.layers().join("fs")), &self.want(), "layer");
    }

    fn assert_planted(&self) {
        let text = fs::read_to_string(self.layers().join("fs/etc/passwd")).unwrap();
        assert_eq!(text, "evil::0:0::/:/bin/sh\n");
    }

    /// That the planted files were set aside, and where is told.
    fn assert_replaced(&self, told: &[Progress]) {
        let [Progress::LayerReplaced { layer: 1, diff_id, old, .. }] = told else {
            panic!("{told:?}")
        };
        assert_eq!(*diff_id, self.diff_id());
        self.assert_aside(old);
    }

    fn assert_aside(&self, old: &str) {
        assert!(old.starts_with("quarantine/") && old.contains("/layers/"), "{old}");
        let old = self.bench.path("store").join(old);
        let text = fs::read_to_string(old.join("fs/etc/passwd")).unwrap();
        assert_eq!(text, "evil::0:0::/:/bin/sh\n");
    }

    /// The exploit's image is the only thing that is wrong.
    fn assert_found(&self) {
        let found = self.bench.store.fsck().unwrap();
        let [Finding::LayerUnproven { layer, blob, .. }] = &found[..] else { panic!("{found:?}") };
        assert_eq!((*layer, *blob), (self.diff_id(), Digest::of(EXPLOIT)));
        assert_eq!(entries(&self.bench.path("store/staging")), [""; 0]);
    }
}

#[test]
fn an_honest_image_gets_its_layer_where_another_was_planted() {
    for tar in [base(), unusual()] {
        let scene = Scene::new(tar);
        scene.plant().unwrap();
        scene.assert_planted();
        let (_, told) = scene.honest();
        scene.assert_replaced(&told);
        scene.assert_honest();
        scene.assert_found();
        // Now the pair of blob and layer is known.
        let (_, told) = scene.honest();
        assert_eq!(told, []);
        let (_, told) = scene.bring(gzipped(&scene.tar), "again").unwrap();
        assert_eq!(told, [Progress::LayerPresent { layer: 1 }]);
        scene.assert_honest();
    }
}

#[test]
fn nothing_is_planted_where_the_honest_layer_is() {
    for tar in [base(), unusual()] {
        let scene = Scene::new(tar);
        scene.honest();
        // It has to give the very bytes of the layer, and gets the layer for it.
        let (image, told) = scene.plant().unwrap();
        assert_eq!(told, [Progress::LayerPresent { layer: 1 }]);
        assert_eq!(image.layers, [scene.diff_id()]);
        scene.assert_honest();
        scene.assert_found();
        assert!(!scene.bench.path("store/quarantine").exists());
    }
}

#[test]
fn other_bytes_than_the_layers_are_refused_where_it_is_here() {
    let other = RawTar::new().file("other", b"").end();
    let scene = Scene::lying(base(), &other);
    scene.honest();
    let error = scene.plant().unwrap_err();
    let (expected, got) = (scene.diff_id(), Digest::of(&other).to_string().parse().unwrap());
    assert_eq!(error.refusal(), Some(&Refusal::DiffId { expected, got }));
    scene.assert_honest();
    assert_eq!(scene.bench.store.fsck().unwrap(), []);
}

#[test]
fn nothing_is_planted_where_the_honest_layer_was_lost() {
    for tar in [base(), unusual()] {
        let scene = Scene::new(tar);
        scene.honest();
        fs::remove_dir_all(scene.layers()).unwrap();
        let (_, told) = scene.plant().unwrap();
        assert!(matches!(told[..], [Progress::LayerDone { layer: 1, .. }]), "{told:?}");
        scene.assert_honest();
        scene.assert_found();
    }
}

#[test]
fn what_a_lost_layer_is_made_from_is_its_own_bytes() {
    // A repair finds the exploit's record first or last; both lead to the layer, or to nothing.
    let scene = Scene::new(base());
    scene.plant().unwrap();
    scene.honest();
    fs::remove_dir_all(scene.layers()).unwrap();
    let in_use = HashSet::new();
    let options = RepairOptions { check: CheckOptions::default(), in_use: &in_use, refetch: None };
    let report = scene.store.repair(&options).unwrap();
    assert!(report.findings.iter().all(|f| !f.is_open()), "{report:?}");
    scene.assert_honest();
}

#[test]
fn a_record_that_is_made_again_does_not_vouch_for_what_was_planted() {
    let scene = Scene::new(base());
    let (image, _) = scene.honest();
    let record = format!("store/images/{}.json", image.manifest_digest.hex());
    put(&scene.bench.path(&record), b"{");
    fs::remove_dir_all(scene.layers()).unwrap();
    // Nothing tells of the honest blob now.
    scene.plant().unwrap();
    scene.assert_planted();
    let in_use = HashSet::new();
    let options = RepairOptions { check: CheckOptions::default(), in_use: &in_use, refetch: None };
    scene.store.repair(&options).unwrap();
    assert_eq!(scene.bench.store.resolve(&image.manifest_digest.into()).unwrap(), image);
    scene.assert_honest();
    scene.assert_found();
}

fn rootfs(scene: &Scene, bytes: &[u8]) -> Result<(Image, Vec<Progress>), Error> {
    let file = scene.bench.path("rootfs.tar");
    put(&file, bytes);
    scene.import(&Source::RootfsTar { file }, "rootfs")
}

#[test]
fn a_rootfs_gets_its_layer_where_another_was_planted() {
    let scene = Scene::new(base());
    scene.plant().unwrap();
    let (_, told) = rootfs(&scene, &scene.tar).unwrap();
    scene.assert_replaced(&told);
    scene.assert_honest();
    scene.assert_found();
}

#[test]
fn a_rootfs_that_claims_a_layer_plants_nothing_over_it() {
    let scene = Scene::new(base());
    scene.honest();
    let (_, told) = rootfs(&scene, EXPLOIT).unwrap();
    assert_eq!(told, [Progress::LayerPresent { layer: 1 }]);
    scene.assert_honest();

    let other = RawTar::new().file("other", b"").end();
    let scene = Scene::lying(base(), &other);
    scene.honest();
    match rootfs(&scene, EXPLOIT) {
        Err(Error::Worker { why, .. }) => {
            let (said, was) = (Digest::of(&scene.tar), Digest::of(&other));
            assert_eq!(why, format!("answered nonsense: diff id {said} for {was}"));
        }
        other => panic!("{other:?}"),
    }
    scene.assert_honest();
}

#[test]
fn a_docker_archive_gets_its_layer_where_another_was_planted() {
    let scene = Scene::new(base());
    scene.plant().unwrap();
    let config = json!({"architecture": host_arch(), "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [scene.diff_id()]}})
    .to_string();
    let named = format!("{}.json", Digest::of(config.as_bytes()).hex());
    let manifest = json!([{"Config": named, "RepoTags": ["a:1"], "Layers": ["l/layer.tar"]}]);
    let archive = RawTar::new()
        .file("manifest.json", manifest.to_string().as_bytes())
        .file(&named, config.as_bytes())
        .file("l/layer.tar", &scene.tar)
        .end();
    let file = scene.bench.path("archive.tar");
    put(&file, &archive);
    let source = Source::DockerArchive { file, tag: None };
    let (_, told) = scene.import(&source, "docker").unwrap();
    scene.assert_replaced(&told);
    scene.assert_honest();
    let (_, told) = scene.import(&source, "docker").unwrap();
    assert_eq!(told, [Progress::LayerPresent { layer: 1 }]);
}

/// What a guest left.
fn upper(bench: &Bench) -> fs::File {
    let dir = bench.path("upper");
    fs::create_dir(&dir).unwrap();
    put(&dir.join("left"), b"by a guest");
    let epoch = fs::FileTimes::new().set_modified(std::time::SystemTime::UNIX_EPOCH);
    fs::File::open(dir.join("left")).unwrap().set_times(epoch).unwrap();
    fs::File::open(&dir).unwrap().set_times(epoch).unwrap();
    fs::File::open(&dir).unwrap()
}

fn commit(store: &Store, base: &Image, bench: &Bench) -> ocivisor_datastore::Committed {
    let dir = upper(bench);
    let upper = Upper { dir: &dir, ids: IdMap::IDENTITY };
    let (changes, name) = (CommitChanges::default(), "committed".parse().unwrap());
    let base = base.manifest_digest.into();
    store.commit(&base, upper, &changes, &name, &CommitOptions::default(), &mut |_| {}).unwrap()
}

#[test]
fn a_commit_gets_its_layer_where_another_was_planted() {
    let clean = Bench::new();
    let image = clean.import_layers(&[plain(base())]).unwrap();
    let first = commit(&clean.store, &image, &clean);
    assert_eq!(first.replaced, None);
    let dir = fs::File::open(clean.top.path()).unwrap();
    let image = ocivisor_datastore::Reference::from(first.image.manifest_digest);
    let form = ocivisor_datastore::Archive::DockerArchive;
    clean.store.save(&[image], form, &dir, "saved.tar", &mut |_| {}).unwrap();
    run("tar", &["-C", text(clean.top.path()), "-xf", text(&clean.path("saved.tar"))]);
    let tar = fs::read(clean.path(&format!("{}.tar", first.layer.hex()))).unwrap();

    let scene = Scene::new(tar);
    let (image, _) = scene.bring(plain(base()), "base").unwrap();
    scene.plant().unwrap();
    scene.assert_planted();
    let second = commit(&scene.store, &image, &scene.bench);
    assert_eq!(second.layer, first.layer);
    scene.assert_aside(&second.replaced.unwrap());
    scene.assert_honest();
}

#[test]
fn a_layer_that_comes_in_another_blob_is_compared_and_used() {
    for tar in [base(), unusual()] {
        let bench = bench();
        let first = bench.import_layers(&[gzipped(&tar)]).unwrap();
        let before = fs::metadata(bench.fs(&first)).unwrap();
        let zstd = Layer { blob: zstd(&tar), media_type: TAR_ZSTD, ..plain(tar.clone()) };
        for (n, layer) in [plain(tar.clone()), zstd].into_iter().enumerate() {
            let layout = bench.layout(&format!("other-{n}"));
            layout.image(&[layer], &json!({}));
            bench.import(&layout.source()).unwrap();
        }
        assert_eq!(fs::metadata(bench.fs(&first)).unwrap().ino(), before.ino());
        assert_eq!(bench.store.fsck().unwrap(), []);
        assert!(!bench.path("store/quarantine").exists());
    }
}

#[test]
fn a_planted_record_of_a_layer_does_not_stay() {
    let scene = Scene::new(base());
    scene.honest();
    fs::remove_file(scene.layers().join("layer.json")).unwrap();
    let (_, told) = scene.bring(plain(scene.tar.clone()), "other").unwrap();
    assert!(matches!(told[..], [Progress::LayerReplaced { .. }]), "{told:?}");
    assert_eq!(scene.bench.store.fsck().unwrap(), []);
    assert!(Path::new(&scene.layers().join("layer.json")).exists());
}
