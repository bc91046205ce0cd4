//! What goes in is what lies there: against GNU tar, skopeo, umoci and the kernel's overlayfs.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

mod common;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use common::*;
use ocivisor_datastore::{DiffId, Limits, Principal, Progress, Source};
use serde_json::json;

/// A small root file system with one of each kind.
fn rich_tar() -> Vec<u8> {
    RawTar::new()
        .head(&Head { path: b"./", kind: b'5', mode: 0o755, ..Head::default() }, b"")
        .head(&Head { path: b"./etc/", kind: b'5', mode: 0o2750, gid: 42, ..Head::default() }, b"")
        .head(&Head { path: b"./etc/shadow", mode: 0o640, gid: 42, ..Head::default() }, b"root:*")
        .pax(&[("mtime", b"1234567890.123456789"), ("SCHILY.xattr.user.note", b"hi")])
        .head(&Head { path: b"./etc/motd", uid: 1000, gid: 1000, ..Head::default() }, &[7; 70_000])
        .hardlink("./etc/motd2", "./etc/motd")
        .symlink("./lib", "usr/lib")
        .dir("./usr/lib")
        .head(&Head { path: b"./tmp", kind: b'5', mode: 0o1777, ..Head::default() }, b"")
        .head(&Head { path: b"./bin/su", mode: 0o4755, ..Head::default() }, b"su")
        .kind(b'6', "./etc/pipe", "")
        .end()
}

#[test]
fn attributes_of_every_kind_arrive() {
    let bench = Bench::new();
    let image = bench.import_tar(rich_tar()).unwrap();
    let fs = bench.fs(&image);
    let seen = tree(&fs);
    let etc = &seen[&b"etc"[..]];
    assert_eq!((etc.mode, etc.owner, etc.mtime), (0o042_750, (0, 42), (1_000_000_000, 0)));
    let motd = &seen[&b"etc/motd"[..]];
    assert_eq!((motd.mode, motd.owner, motd.links), (0o100_644, (1000, 1000), 2));
    assert_eq!(motd.mtime, (1_234_567_890, 123_456_789));
    assert_eq!(motd.xattrs, [(b"user.note".to_vec(), b"hi".to_vec())].into());
    assert_eq!(motd.content, [7; 70_000]);
    assert_eq!(&seen[&b"etc/motd2"[..]], motd);
    assert_eq!(seen[&b"lib"[..]].content, b"usr/lib");
    assert_eq!(seen[&b"lib"[..]].mtime, (1_000_000_000, 0));
    assert_eq!(seen[&b"tmp"[..]].mode, 0o041_777);
    assert_eq!(seen[&b"bin/su"[..]].mode, 0o104_755);
    // A parent without an entry: root's, 0755, of the epoch, and that not because it was made just now.
    let bin = &seen[&b"bin"[..]];
    assert_eq!((bin.mode, bin.owner, bin.mtime), (0o040_755, (0, 0), (0, 0)));
    assert!(fs::symlink_metadata(fs.join("etc/pipe")).unwrap().file_type().is_fifo());
    assert_eq!(seen[&b""[..]].mtime, (1_000_000_000, 0));
}

#[test]
fn a_tar_without_a_root_entry_gets_a_root_of_roots() {
    let bench = Bench::new();
    let image = bench.import_tar(RawTar::new().file("a", b"").end()).unwrap();
    let root = fs::metadata(bench.fs(&image)).unwrap();
    assert_eq!((root.mode() & 0o7777, root.uid(), root.gid(), root.mtime()), (0o755, 0, 0, 0));
}

#[test]
fn the_store_is_closed_to_everybody_but_root() {
    let bench = Bench::new();
    bench.import_tar(rich_tar()).unwrap();
    for dir in
        ["store", "store/blobs", "store/layers", "store/images", "store/refs", "store/staging"]
    {
        assert_eq!(fs::metadata(bench.path(dir)).unwrap().mode() & 0o7777, 0o700, "{dir}");
    }
}

#[test]
fn gnu_tar_and_we_unpack_the_same_tree() {
    let bench = Bench::new();
    let source = bench.path("tree");
    fs::create_dir_all(source.join("deep/er")).unwrap();
    for n in 0..40 {
        put(&source.join(format!("deep/er/file{n}")), &vec![n; usize::from(n) * 997]);
    }
    let long = "n".repeat(180);
    fs::create_dir_all(source.join(&long).join(&long)).unwrap();
    put(&source.join(&long).join(&long).join("leaf"), b"leaf");
    std::os::unix::fs::symlink("../deep", source.join("deep/link")).unwrap();
    std::os::unix::fs::symlink(format!("/{}", "t".repeat(3000)), source.join("long-link")).unwrap();
    fs::hard_link(source.join("deep/er/file3"), source.join("hard")).unwrap();
    std::os::unix::fs::lchown(source.join("deep/er/file5"), Some(1234), Some(65535)).unwrap();
    run("chmod", &["4711", text(&source.join("deep/er/file6"))]);
    run("mkfifo", &[text(&source.join("fifo"))]);
    let file7 = source.join("deep/er/file7");
    rustix::fs::setxattr(&file7, "user.k", b"v", rustix::fs::XattrFlags::empty()).unwrap();
    for format in ["gnu", "pax", "ustar"] {
        let tar = bench.path(&format!("{format}.tar"));
        let mut args =
            vec!["-C", text(&source), "-cf", text(&tar), "--format", format, "--sort=name"];
        if format == "pax" {
            args.push("--xattrs");
        }
        if format == "ustar" {
            args.extend(["--exclude=nnnn*", "--exclude=long-link"]);
        }
        args.push(".");
        run("tar", &args);
        let name = format.parse().unwrap();
        let image = bench.store.import(
            &Source::RootfsTar { file: tar.clone() },
            &name,
            &Limits::default(),
            &mut |_| {},
        );
        let want = bench.path(&format!("{format}.want"));
        fs::create_dir(&want).unwrap();
        run(
            "tar",
            &["-C", text(&want), "-xpf", text(&tar), "--same-owner", "--numeric-owner", "--xattrs"],
        );
        assert_same_tree(&tree(&bench.fs(&image.unwrap())), &tree(&want), format);
    }
}

#[test]
fn a_rootfs_is_imported_in_every_compression_as_the_same_layer() {
    let bench = Bench::new();
    let tar = rich_tar();
    let mut layers: Vec<DiffId> = Vec::new();
    for (name, bytes) in
        [("plain", tar.clone()), ("gz", gzip(&tar)), ("xz", xz(&tar)), ("zst", zstd(&tar))]
    {
        let file = bench.path(name);
        put(&file, &bytes);
        let source = Source::detect(&file).unwrap();
        assert_eq!(source, Source::RootfsTar { file }, "{name}");
        let image = bench
            .store
            .import(&source, &name.parse().unwrap(), &Limits::default(), &mut |_| {})
            .unwrap();
        assert_eq!(image.config.architecture, host_arch());
        assert_eq!(image.config.working_dir, "/");
        layers.extend(&image.layers);
    }
    layers.dedup();
    assert_eq!(layers.len(), 1);
    assert_eq!(entries(&bench.path("store/layers")).len(), 1);
    assert_eq!(bench.store.list().unwrap().len(), 4);
    assert_eq!(bench.store.fsck().unwrap(), vec![]);
}

#[test]
fn importing_again_reads_no_layer_and_changes_no_digest() {
    let bench = Bench::new();
    let layout = bench.layout("layout");
    layout.image(
        &[gzipped(&rich_tar()), plain(RawTar::new().file("b", b"").end())],
        &json!({"Cmd": ["x"]}),
    );
    let first = bench.import(&layout.source()).unwrap();
    let mut told = Vec::new();
    let again = bench.store.import(
        &layout.source(),
        &"other".parse().unwrap(),
        &Limits::default(),
        &mut |p| told.push(p),
    );
    assert_eq!(again.unwrap(), first);
    assert_eq!(told, [Progress::Done]);
    let listed = bench.store.list().unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].names.iter().map(|n| n.as_str()).collect::<Vec<_>>(), ["other", "test"]);
}

#[test]
fn a_shared_layer_is_unpacked_once() {
    let bench = Bench::new();
    let base = gzipped(&rich_tar());
    let import = |name: &str, top: &str| {
        let layout = bench.layout(name);
        layout.image(&[base.clone(), plain(RawTar::new().file(top, b"").end())], &json!({}));
        let mut told = Vec::new();
        let image = bench.store.import(
            &layout.source(),
            &name.parse().unwrap(),
            &Limits::default(),
            &mut |p| told.push(p),
        );
        (image.unwrap(), told)
    };
    let (one, _) = import("one", "1");
    let inode = fs::metadata(bench.store.layer_path(&one.layers[0])).unwrap().ino();
    let (two, told) = import("two", "2");
    assert_eq!(one.layers[0], two.layers[0]);
    assert_eq!(fs::metadata(bench.store.layer_path(&two.layers[0])).unwrap().ino(), inode);
    assert!(told.contains(&Progress::LayerPresent { layer: 1 }));
    assert_eq!(entries(&bench.path("store/layers")).len(), 3);
}

#[test]
fn the_same_layer_in_another_compression_is_verified_and_not_unpacked_again() {
    let bench = Bench::new();
    let tar = rich_tar();
    let import = |name: &str, layer: Layer| {
        let layout = bench.layout(name);
        layout.image(&[layer], &json!({}));
        bench
            .store
            .import(&layout.source(), &name.parse().unwrap(), &Limits::default(), &mut |_| {})
            .unwrap()
    };
    let one = import("gzip", gzipped(&tar));
    let inode = fs::metadata(bench.fs(&one)).unwrap().ino();
    let diff_id = ocivisor_datastore::Digest::of(&tar).to_string();
    let two = import("zstd", Layer { media_type: TAR_ZSTD, blob: zstd(&tar), diff_id });
    assert_eq!(one.layers, two.layers);
    assert_ne!(one.manifest_digest, two.manifest_digest);
    assert_eq!(fs::metadata(bench.fs(&two)).unwrap().ino(), inode);
    assert_eq!(bench.store.fsck().unwrap(), vec![]);
}

// Whiteouts, as overlayfs sees them

struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let gone = rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH);
        assert!(gone.is_ok() || std::thread::panicking(), "{gone:?}");
    }
}

#[test]
fn overlayfs_shows_what_the_whiteouts_mean() {
    let bench = Bench::new();
    let lower = RawTar::new()
        .file("gone", b"")
        .file("kept", b"lower")
        .file("opaque/lower", b"")
        .file("tree/a/b", b"")
        .file("redone/lower", b"")
        .file("implied/lower", b"")
        .file("late/lower", b"")
        .end();
    let upper = RawTar::new()
        .file(".wh.gone", b"")
        .file(".wh.never-was", b"")
        .dir("opaque")
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/upper", b"")
        .file(".wh.tree", b"")
        // A directory hidden and made anew: what the lower one had must not come back.
        .file(".wh.redone", b"")
        .dir("redone")
        .file("redone/upper", b"")
        .file(".wh.implied", b"")
        .file("implied/upper", b"")
        .dir("late")
        .file("late/upper", b"")
        .file(".wh.late", b"")
        .file(".wh.kept", b"")
        .file("kept", b"upper")
        .kind(b'5', ".wh..wh.plnk", "")
        .file(".wh..wh.aufs", b"")
        .end();
    let image = bench.import_layers(&[plain(lower), plain(upper)]).unwrap();
    let marker =
        fs::symlink_metadata(bench.store.layer_path(&image.layers[1]).join("gone")).unwrap();
    assert!(marker.file_type().is_char_device());
    assert_eq!((marker.rdev(), marker.mode() & 0o7777), (0, 0));

    let merged = bench.path("merged");
    fs::create_dir(&merged).unwrap();
    let dirs: Vec<_> = image.overlay_order().iter().map(|l| bench.store.layer_path(l)).collect();
    let dirs: Vec<_> = dirs.iter().map(|d| text(d)).collect();
    let options = std::ffi::CString::new(format!("lowerdir={}", dirs.join(":"))).unwrap();
    let flags = rustix::mount::MountFlags::RDONLY;
    rustix::mount::mount("overlay", &merged, "overlay", flags, options.as_c_str()).unwrap();
    let mounted = Mounted(&merged);
    assert_eq!(entries(&merged), ["implied", "kept", "late", "opaque", "redone"]);
    for dir in ["opaque", "redone", "implied", "late"] {
        assert_eq!(entries(&merged.join(dir)), ["upper"], "{dir}");
    }
    assert_eq!(fs::read(merged.join("kept")).unwrap(), b"upper");
    drop(mounted);
}

// Other people's tools

#[test]
fn an_image_survives_skopeo_in_every_transport() {
    let bench = Bench::new();
    let layout = bench.layout("layout");
    let mut tagged = layout.image(
        &[gzipped(&rich_tar()), plain(RawTar::new().file(".wh.lib", b"").file("b", b"b").end())],
        &json!({"Entrypoint": ["/init"], "Env": ["A=b"], "User": "1000:adm", "StopSignal": "SIGRTMIN+3"}),
    );
    tagged["annotations"] = json!({"org.opencontainers.image.ref.name": "v1"});
    layout.index(&[tagged]);
    let from = format!("oci:{}:v1", text(&layout.dir));
    let direct = bench.store.import(
        &from.parse().unwrap(),
        &"direct".parse().unwrap(),
        &Limits::default(),
        &mut |_| {},
    );
    let direct = direct.unwrap();
    assert_eq!(direct.config.user.group, Some(Principal::Name("adm".into())));

    let policy = bench.path("policy.json");
    put(&policy, br#"{"default":[{"type":"insecureAcceptAnything"}]}"#);
    for (name, extra) in [
        ("docker-archive", &[][..]),
        ("oci-archive", &[][..]),
        ("oci", &["--dest-compress-format", "zstd", "--dest-compress"][..]),
        ("dir-v2s2", &["--format", "v2s2"][..]),
    ] {
        let path = bench.path(name);
        let (scheme, to) = match name {
            "oci" => ("oci", format!("oci:{}:v1", text(&path))),
            "dir-v2s2" => continue,
            other => (other, format!("{other}:{}:example/app:v1", text(&path))),
        };
        let mut args = vec!["--policy", text(&policy), "copy", "-q"];
        args.extend(extra);
        args.extend([from.as_str(), to.as_str()]);
        run("skopeo", &args);
        for source in [format!("{scheme}:{}", text(&path)), text(&path).to_owned()] {
            let image = bench.store.import(
                &source.parse().unwrap(),
                &name.parse().unwrap(),
                &Limits::default(),
                &mut |_| {},
            );
            let image = image.unwrap_or_else(|e| panic!("{source}: {e:?}"));
            assert_eq!(image.layers, direct.layers, "{source}");
            assert_eq!(image.config, direct.config, "{source}");
        }
    }
    // The same archive compressed as a whole, as `docker save | gzip` makes it.
    let zipped = bench.path("saved.tar.gz");
    put(&zipped, &gzip(&fs::read(bench.path("docker-archive")).unwrap()));
    let source: Source = text(&zipped).parse().unwrap();
    assert_eq!(source, Source::DockerArchive { file: zipped, tag: None });
    assert_eq!(bench.import(&source).unwrap().layers, direct.layers);
    assert_eq!(entries(&bench.path("store/layers")).len(), 2);
    assert_eq!(bench.store.fsck().unwrap(), vec![]);
}

#[test]
fn umoci_and_we_unpack_the_same_tree() {
    let bench = Bench::new();
    let layout = bench.path("umoci");
    let image = format!("{}:v1", text(&layout));
    run("umoci", &["init", "--layout", text(&layout)]);
    run("umoci", &["new", "--image", &image]);
    // One layer, else its whiteouts would have been applied already.
    put(&bench.path("layer.tar"), &rich_tar());
    run("umoci", &["raw", "add-layer", "--image", &image, text(&bench.path("layer.tar"))]);
    run("umoci", &["config", "--image", &image, "--config.user", "7:8", "--config.cmd", "sh"]);
    let bundle = bench.path("bundle");
    run("umoci", &["unpack", "--image", &image, text(&bundle)]);
    let image = bench.import(&format!("oci:{image}").parse().unwrap()).unwrap();
    assert_eq!(image.config.user.user, Principal::Id(7));
    assert_eq!(image.config.cmd, ["sh"]);
    let mut want = tree(&bundle.join("rootfs"));
    let mut got = tree(&bench.fs(&image));
    // A parent without an entry has no time of its own, and making it changes its parent's: umoci takes the clock's.
    assert_eq!(got[&b""[..]].mtime, (1_000_000_000, 0));
    for tree in [&mut want, &mut got] {
        for path in [&b"bin"[..], b"usr", b""] {
            tree.get_mut(path).unwrap().mtime = (0, 0);
        }
    }
    assert_same_tree(&got, &want, "umoci");
}
