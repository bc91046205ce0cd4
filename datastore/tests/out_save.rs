//! What leaves the store, others read: skopeo, umoci, podman, GNU tar, and we ourselves.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

mod common;
mod out_common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use common::*;
use ocivisor_datastore::{Archive, Error, IdMap, Image, Limits, Reference, Source, Upper};
use out_common::*;
use serde_json::{Value, json};

fn save(bench: &Bench, names: &[&str], form: Archive, to: &str) -> Result<PathBuf, Error> {
    let images: Vec<Reference> = names.iter().map(|n| n.parse().unwrap()).collect();
    let dir = File::open(bench.top.path()).unwrap();
    bench.store.save(&images, form, &dir, to, &mut |_| {}).map(|_| bench.path(to))
}

/// An image with a layer that a VM's changes became, named `new`.
fn committed(bench: &Bench) -> Image {
    let base = base(bench);
    let overlay = Overlay::of(bench, &base, "vm");
    fs::remove_file(overlay.at("etc/passwd")).unwrap();
    fs::remove_dir_all(overlay.at("usr")).unwrap();
    fs::create_dir(overlay.at("usr")).unwrap();
    put(&overlay.at("usr/only"), &[7; 70_000]);
    fs::remove_dir_all(overlay.at("swap")).unwrap();
    symlink("usr", overlay.at("swap")).unwrap();
    fs::hard_link(overlay.at("usr/only"), overlay.at("bin/only")).unwrap();
    set_xattr(&overlay.at("usr/only"), "security.capability", &CAPABILITY);
    set_xattr(&overlay.at("etc"), "user.dir", b"v");
    chmod(&overlay.at("bin/su"), 0o6711);
    chown(&overlay.at("home/me"), 3, 65_535);
    let long = overlay.at(&"n".repeat(120)).join("m".repeat(120));
    fs::create_dir_all(&long).unwrap();
    put(&long.join("\u{fc}ber"), b"leaf");
    symlink("t".repeat(300), overlay.at("long-link")).unwrap();
    let sparse = File::create(overlay.at("sparse")).unwrap();
    sparse.set_len(3 << 20).unwrap();
    sparse.write_all_at(b"x", 1 << 20).unwrap();
    mkfifo(&overlay.at("fifo"));
    chmod(&overlay.at("."), 0o755);
    commit(bench, &base, &overlay.upper()).unwrap().image
}

/// Without what a tool is free in: it makes `/` itself, and may note times by the second.
fn comparable(mut tree: Trees) -> Trees {
    tree.remove(&b""[..]);
    for seen in tree.values_mut() {
        seen.mtime.1 = 0;
        // What the tool mounted keeps notes of its own.
        seen.xattrs.retain(|name, _| !name.starts_with(b"trusted."));
    }
    tree
}

#[test]
fn what_we_save_in_each_form_we_import_again() {
    let bench = Bench::new();
    let image = committed(&bench);
    let want = seen_by_a_guest(&bench, &image);
    for (form, to, same) in [
        (Archive::OciLayout, "layout", true),
        (Archive::OciArchive, "oci.tar", true),
        (Archive::DockerArchive, "docker.tar", false),
    ] {
        let path = save(&bench, &["new"], form, to).unwrap();
        let source = text(&path).parse().unwrap();
        let (elsewhere, back) = import_elsewhere(&bench, &source);
        assert_eq!(back.layers, image.layers, "{to}");
        assert_eq!(back.config_digest, image.config_digest, "{to}");
        assert_eq!(back.manifest_digest == image.manifest_digest, same, "{to}");
        assert_same_tree(&seen_by_a_guest(&elsewhere, &back), &want, to);
    }
    // The same again, byte by byte.
    let [first, second] = ["1.tar", "2.tar"]
        .map(|to| fs::read(save(&bench, &["new"], Archive::OciArchive, to).unwrap()).unwrap());
    assert!(first == second);
    let names = entries(bench.top.path());
    assert!(names.iter().all(|n| !n.starts_with(".ocivisor")), "{names:?}");
}

#[test]
fn skopeo_umoci_and_podman_read_what_we_save() {
    let bench = Bench::new();
    let image = committed(&bench);
    bench
        .store
        .import(
            &source_of_new(&bench),
            &"team/app:1".parse().unwrap(),
            &Limits::default(),
            &mut |_| {},
        )
        .unwrap();
    let want = comparable(seen_by_a_guest(&bench, &image));
    let layout = save(&bench, &["team/app:1"], Archive::OciLayout, "lay").unwrap();
    let oci = save(&bench, &["team/app:1"], Archive::OciArchive, "oci.tar").unwrap();
    let docker = save(&bench, &["team/app:1"], Archive::DockerArchive, "docker.tar").unwrap();

    let policy = bench.path("policy.json");
    put(&policy, br#"{"default":[{"type":"insecureAcceptAnything"}]}"#);
    for (n, from) in [
        format!("oci:{}", text(&layout)),
        format!("oci:{}:team/app:1", text(&layout)),
        format!("oci-archive:{}:team/app:1", text(&oci)),
        format!("docker-archive:{}:team/app:1", text(&docker)),
    ]
    .iter()
    .enumerate()
    {
        let to = bench.path(&format!("dir{n}"));
        let out = format!("dir:{}", text(&to));
        run("skopeo", &["--policy", text(&policy), "copy", "-q", from, &out]);
        let manifest: Value =
            serde_json::from_slice(&fs::read(to.join("manifest.json")).unwrap()).unwrap();
        assert_eq!(manifest["config"]["digest"], image.config_digest.to_string(), "{from}");
        assert_eq!(manifest["layers"].as_array().unwrap().len(), image.layers.len(), "{from}");
    }

    let bundle = bench.path("bundle");
    // umoci takes no slash in a tag: the layout has one image, but only tags name it.
    rename_tag(&layout);
    run("umoci", &["unpack", "--image", &format!("{}:v1", text(&layout)), text(&bundle)]);
    let mut got = comparable(tree(&bundle.join("rootfs")));
    // umoci leaves directories whose content it changed with a time of its own.
    let mut want_of_umoci = want.clone();
    for tree in [&mut got, &mut want_of_umoci] {
        for seen in tree.values_mut().filter(|s| s.mode & 0o170_000 == 0o040_000) {
            seen.mtime = (0, 0);
        }
    }
    assert_same_tree(&got, &want_of_umoci, "umoci");

    // From a layout podman takes containerd's note; names in docker's archive it holds for local ones.
    let names = ["docker.io/team/app:1", "localhost/team/app:1"];
    for (n, (archive, name)) in [&oci, &docker].into_iter().zip(names).enumerate() {
        let podman = Podman::new(&bench.path(&format!("podman{n}")));
        let loaded = podman.call(&["load", "-q", "-i", text(archive)]);
        assert_eq!(loaded, format!("Loaded image: {name}"));
        let id = podman.call(&["create", name]);
        let root = podman.call(&["mount", &id]);
        let mut got = comparable(tree(Path::new(&root)));
        // Made by podman for what it mounts.
        for own in
            [&b"dev"[..], b"proc", b"sys", b"run", b"etc/hosts", b"etc/resolv.conf", b"etc/mtab"]
        {
            if !want.contains_key(own) {
                got.remove(own);
            }
        }
        let mut want = want.clone();
        if let (Some(a), Some(b)) = (got.get_mut(&b"etc"[..]), want.get_mut(&b"etc"[..])) {
            a.mtime = b.mtime;
        }
        podman.call(&["umount", &id]);
        assert_same_tree(&got, &want, text(archive));
    }
}

fn source_of_new(bench: &Bench) -> Source {
    let path = save(bench, &["new"], Archive::OciArchive, "again.tar").unwrap();
    text(&path).parse().unwrap()
}

fn rename_tag(layout: &Path) {
    let index = layout.join("index.json");
    let text = fs::read_to_string(&index).unwrap();
    put(&index, text.replace("\"team/app:1\"", "\"v1\"").as_bytes());
}

/// podman with a storage of its own.
struct Podman(PathBuf);

impl Podman {
    fn new(dir: &Path) -> Self {
        Self(dir.to_owned())
    }

    fn call(&self, args: &[&str]) -> String {
        let [root, run] = ["root", "run"].map(|d| self.0.join(d));
        let own = ["--root", text(&root), "--runroot", text(&run), "--log-level", "error"];
        output("podman", &[&own[..], args].concat())
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // It mounts its storage on itself.
        for dir in ["root/overlay", "root"] {
            let _ = rustix::mount::unmount(self.0.join(dir), rustix::mount::UnmountFlags::DETACH);
        }
    }
}

#[test]
fn the_exported_tar_holds_what_the_guest_saw() {
    let bench = Bench::new();
    let base = base(&bench);
    let overlay = Overlay::of(&bench, &base, "vm");
    fs::remove_dir_all(overlay.at("etc/conf.d")).unwrap();
    fs::create_dir(overlay.at("etc/conf.d")).unwrap();
    put(&overlay.at("etc/conf.d/.wh.not-a-whiteout"), b"");
    put(&overlay.at("swap/more"), b"m");
    fs::hard_link(overlay.at("swap/more"), overlay.at("usr/more")).unwrap();
    set_xattr(&overlay.at("bin/su"), "security.capability", &CAPABILITY);
    set_xattr(&overlay.at("swap"), "user.x", b"y");
    let want = overlay.tree();
    let export = |upper: &File| {
        let mut tar = Vec::new();
        let image = base.manifest_digest.into();
        let top = Some(Upper { dir: upper, ids: IdMap::IDENTITY });
        let done = bench.store.export_tar(&image, top, &mut tar, &Limits::default(), &mut |_| {});
        (done.unwrap(), tar)
    };
    let (exported, tar) = export(&overlay.upper());
    assert_eq!(exported.entries, want.len() as u64);
    assert!(exported.bytes <= tar.len() as u64);
    assert!(export(&overlay.upper()).1 == tar);
    put(&bench.path("root.tar"), &tar);
    let out = bench.path("unpacked");
    fs::create_dir(&out).unwrap();
    let root = bench.path("root.tar");
    let args = ["-C", text(&out), "-xpf", text(&root), "--same-owner", "--numeric-owner"];
    run("tar", &[&args[..], &["--xattrs", "--xattrs-include=*"]].concat());
    assert_same_tree(&tree(&out), &want, "GNU tar");

    // Without an upper: the image.
    let mut tar = Vec::new();
    let image = base.manifest_digest.into();
    bench.store.export_tar(&image, None, &mut tar, &Limits::default(), &mut |_| {}).unwrap();
    put(&bench.path("image.tar"), &tar);
    let source = format!("rootfs:{}", text(&bench.path("image.tar"))).parse().unwrap();
    let (elsewhere, flat) = import_elsewhere(&bench, &source);
    let got = tree(&elsewhere.store.layer_path(&flat.layers[0]));
    assert_same_tree(&got, &seen_by_a_guest(&bench, &base), "as an image of one layer");
}

#[test]
fn a_deep_stack_of_layers_is_walked_with_few_descriptors() {
    let bench = Bench::new();
    let layers: Vec<_> = (0..12)
        .map(|layer| {
            let mut tar = RawTar::new();
            let mut path = String::new();
            for depth in 0..40 {
                path.push_str("d/");
                tar = tar.dir(&path).file(&format!("{path}a{layer}-{depth}"), b"");
            }
            plain(tar.file(&format!("{path}.wh.a0-39"), b"").end())
        })
        .collect();
    let image = bench.import_layers(&layers).unwrap();
    let mut tar = Vec::new();
    let before = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let tight = rustix::process::Rlimit { current: Some(400), ..before };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, tight).unwrap();
    let done = bench.store.export_tar(
        &image.manifest_digest.into(),
        None,
        &mut tar,
        &Limits::default(),
        &mut |_| {},
    );
    rustix::process::setrlimit(rustix::process::Resource::Nofile, before).unwrap();
    // The root; 40 directories; a file of each layer in each; one is hidden by the layers above its own.
    assert_eq!(done.unwrap().entries, 1 + 40 + 12 * 40 - 1);
}

#[test]
fn damaged_blobs_do_not_get_out() {
    let bench = Bench::new();
    let image = committed(&bench);
    let inspected = bench.store.inspect(&"new".parse().unwrap()).unwrap();
    for layer in &inspected.layers {
        let blob = bench.path("store/blobs/sha256").join(layer.blob.hex());
        let sound = fs::read(&blob).unwrap();
        let middle = sound.len() / 2;
        let flipped = [&sound[..middle], &[!sound[middle]], &sound[middle + 1..]].concat();
        let longer = [&sound[..], b"x"].concat();
        for spoilt in [&flipped[..], &sound[..middle], &longer, b""] {
            put(&blob, spoilt);
            for (form, to) in [
                (Archive::OciLayout, "lay"),
                (Archive::OciArchive, "a.tar"),
                (Archive::DockerArchive, "a.tar"),
            ] {
                let before = entries(bench.top.path());
                let error = save(&bench, &["new"], form, to).unwrap_err();
                assert!(matches!(error, Error::Damaged { .. }), "{form:?}: {error:?}");
                assert_eq!(entries(bench.top.path()), before);
            }
        }
        put(&blob, &sound);
    }
    save(&bench, &["new"], Archive::OciArchive, "a.tar").unwrap();
    let config = bench.path("store/blobs/sha256").join(image.config_digest.hex());
    put(&config, b"{}");
    assert!(save(&bench, &["new"], Archive::OciLayout, "lay").is_err());
    assert!(!bench.path("lay").exists());
}

#[test]
fn layers_under_our_private_type_are_compressed_anew() {
    let bench = Bench::new();
    let tar = RawTar::new().file("a", &[1; 3_000_000]).end();
    put(&bench.path("root.tar.xz"), &xz(&tar));
    let image = bench.import(&text(&bench.path("root.tar.xz")).parse().unwrap()).unwrap();
    let layout = save(&bench, &["test"], Archive::OciLayout, "lay").unwrap();
    let policy = bench.path("policy.json");
    put(&policy, br#"{"default":[{"type":"insecureAcceptAnything"}]}"#);
    let [from, to] = [format!("oci:{}", text(&layout)), format!("dir:{}", text(&bench.path("d")))];
    run("skopeo", &["--policy", text(&policy), "copy", "-q", &from, &to]);
    let (elsewhere, back) = import_elsewhere(&bench, &text(&layout).parse().unwrap());
    assert_eq!((&back.layers, back.config_digest), (&image.layers, image.config_digest));
    let layer = &elsewhere.store.inspect(&"back".parse().unwrap()).unwrap().layers[0];
    assert_eq!(layer.media_type, TAR_GZIP);
    assert_eq!(bench.store.fsck().unwrap(), vec![]);
    assert_eq!(entries(&bench.path("store/staging")), Vec::<String>::new());
}

#[test]
fn an_image_in_dockers_types_is_saved_in_those_of_oci() {
    let bench = Bench::new();
    let layout = bench.layout("docker");
    let tar = RawTar::new().file("a", b"a").end();
    let config = layout.config(&[gzipped(&tar)], &json!({"Cmd": ["x"]})).to_string();
    let mut manifest = layout.manifest(&[gzipped(&tar)], &json!({}));
    let docker = "application/vnd.docker.distribution.manifest.v2+json";
    manifest["mediaType"] = json!(docker);
    let config_type = "application/vnd.docker.container.image.v1+json";
    manifest["config"] = layout.descriptor(config_type, config.as_bytes());
    let layer_type = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    manifest["layers"][0]["mediaType"] = json!(layer_type);
    layout.index(&[layout.descriptor(docker, manifest.to_string().as_bytes())]);
    let image = bench.import(&layout.source()).unwrap();

    let saved = save(&bench, &["test"], Archive::OciLayout, "lay").unwrap();
    let bundle = bench.path("bundle");
    run("umoci", &["unpack", "--image", &format!("{}:test", text(&saved)), text(&bundle)]);
    assert_eq!(fs::read(bundle.join("rootfs/a")).unwrap(), b"a");
    let (_elsewhere, back) = import_elsewhere(&bench, &text(&saved).parse().unwrap());
    assert_eq!((&back.layers, back.config_digest), (&image.layers, image.config_digest));
}

#[test]
fn several_images_share_an_archive_and_their_layers() {
    let bench = Bench::new();
    let new = committed(&bench);
    let layout = bench.layout("other");
    layout.image(&[plain(RawTar::new().file("o", b"").end())], &json!({}));
    bench
        .store
        .import(&layout.source(), &"Other".parse().unwrap(), &Limits::default(), &mut |_| {})
        .unwrap();
    let archive = save(&bench, &["base", "new", "Other"], Archive::DockerArchive, "d.tar").unwrap();
    let names = output("tar", &["-tf", text(&archive)]);
    // Three configs, four layers of which two are shared, the manifest.
    assert_eq!(names.lines().count(), 3 + 4 + 1, "{names}");
    let tagged = format!("docker-archive:{}:new:latest", text(&archive)).parse().unwrap();
    assert_eq!(import_elsewhere(&bench, &tagged).1.layers, new.layers);
    let archive = save(&bench, &["base", "new", "Other"], Archive::OciArchive, "o.tar").unwrap();
    for (name, layers) in [("base", 2), ("new", 3), ("Other", 1)] {
        let tagged = format!("oci-archive:{}:{name}", text(&archive)).parse().unwrap();
        assert_eq!(import_elsewhere(&bench, &tagged).1.layers.len(), layers, "{name}");
    }
    // By digest an image has no name, and one image is there once.
    let digest = new.manifest_digest.to_string();
    let archive = save(&bench, &[&digest, &digest], Archive::DockerArchive, "n.tar").unwrap();
    let manifest = output("tar", &["-xOf", text(&archive), "manifest.json"]);
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    assert_eq!(manifest.as_array().unwrap().len(), 1);
    assert_eq!(manifest[0]["RepoTags"], Value::Null);
}

#[test]
fn a_target_that_is_taken_or_no_name_is_refused() {
    let bench = Bench::new();
    base(&bench);
    fs::create_dir(bench.path("lay")).unwrap();
    put(&bench.path("file"), b"");
    for (form, to) in [
        (Archive::OciLayout, "lay"),
        (Archive::OciLayout, "file"),
        (Archive::OciArchive, "lay"),
        (Archive::OciArchive, "../x"),
        (Archive::OciArchive, ".."),
        (Archive::OciLayout, ""),
        (Archive::DockerArchive, "a/b"),
    ] {
        let before = tree(bench.top.path()).into_keys().collect::<Vec<_>>();
        assert!(save(&bench, &["base"], form, to).is_err(), "{form:?} {to}");
        assert_eq!(tree(bench.top.path()).into_keys().collect::<Vec<_>>(), before, "{to}");
    }
    assert!(matches!(
        save(&bench, &["none"], Archive::OciArchive, "x"),
        Err(Error::NotFound { .. })
    ));
    assert!(matches!(save(&bench, &[], Archive::OciArchive, "x"), Err(Error::NotFound { .. })));
}

#[test]
fn what_a_dead_saver_left_the_next_one_removes() {
    let bench = Bench::new();
    base(&bench);
    put(&bench.path(".ocivisor-save-1-0"), b"a file is none of ours");
    fs::create_dir_all(bench.path(".ocivisor-save-1-1/blobs/sha256")).unwrap();
    fs::create_dir(bench.path(".ocivisor-save-1-2")).unwrap();
    let locked = File::open(bench.path(".ocivisor-save-1-2")).unwrap();
    rustix::fs::flock(&locked, rustix::fs::FlockOperation::LockExclusive).unwrap();
    save(&bench, &["base"], Archive::OciLayout, "x").unwrap();
    save(&bench, &["base"], Archive::OciArchive, "x.tar").unwrap();
    let left: Vec<_> =
        entries(bench.top.path()).into_iter().filter(|n| n.starts_with(".ocivisor")).collect();
    assert_eq!(left, [".ocivisor-save-1-0", ".ocivisor-save-1-2"]);
    assert_eq!(fs::metadata(bench.path("x.tar")).unwrap().mode() & 0o7777, 0o600);
}

#[test]
fn a_full_disk_ends_a_commit_and_a_save_without_a_trace() {
    use std::io::Read;
    let bench = Bench::new();
    let base = base(&bench);
    let small = bench.path("small");
    fs::create_dir(&small).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", &small, "tmpfs", flags, Some(c"size=6m")).unwrap();
    let mounted = Overlay { merged: small.clone(), upper: small.clone() };
    let tight = ocivisor_datastore::Store::open(&small.join("store")).unwrap();
    let source = Source::OciLayout { dir: bench.path("base"), tag: None };
    tight.import(&source, &"base".parse().unwrap(), &Limits::default(), &mut |_| {}).unwrap();
    let before = tree(&small).into_keys().collect::<Vec<_>>();

    let upper = bench.path("upper");
    fs::create_dir(&upper).unwrap();
    let mut noise = Vec::new();
    File::open("/dev/urandom").unwrap().take(9 << 20).read_to_end(&mut noise).unwrap();
    put(&upper.join("noise"), &noise);
    let upper = File::open(&upper).unwrap();
    let is_full = |error: Error| {
        let full = matches!(&error, Error::Io { source, .. } if source.raw_os_error() == Some(28));
        assert!(full, "{error:?}");
    };
    let new: Reference = "new".parse().unwrap();
    let made = tight.commit(
        &base.manifest_digest.into(),
        Upper { dir: &upper, ids: IdMap::IDENTITY },
        &ocivisor_datastore::CommitChanges::default(),
        &"new".parse().unwrap(),
        &ocivisor_datastore::CommitOptions::default(),
        &mut |_| {},
    );
    is_full(made.unwrap_err());
    assert_eq!(tree(&small).into_keys().collect::<Vec<_>>(), before);
    assert_eq!(tight.fsck().unwrap(), vec![]);

    commit(&bench, &base, &upper).unwrap();
    let dir = File::open(&small).unwrap();
    for form in [Archive::OciLayout, Archive::OciArchive, Archive::DockerArchive] {
        is_full(
            bench
                .store
                .save(std::slice::from_ref(&new), form, &dir, "out", &mut |_| {})
                .unwrap_err(),
        );
        assert_eq!(tree(&small).into_keys().collect::<Vec<_>>(), before, "{form:?}");
    }
    drop(mounted);
}
