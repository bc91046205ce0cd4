//! Packed stores: what is kept, what is proven, what is refused, and that nobody privileged is needed.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

mod common;
#[path = "diskimage/make.rs"]
mod make;
#[path = "common/puller.rs"]
mod puller;
#[path = "common/registry.rs"]
mod registry;

use std::collections::HashSet;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use common::*;
use ocivisor_datastore::{
    Digest, DiskOptions, Error, Finding, Image, Limits, PruneOptions, Reference, Refusal, Source,
    Store,
};
use puller::{filled, two_layers};
use registry::{Ca, Setup};
use serde_json::json;

fn packed() -> Bench {
    Bench::opened(|root| Store::open_packed(root).unwrap())
}

/// No files of layers, and nothing that a check has to say.
fn assert_packed(bench: &Bench) {
    assert_eq!(entries(&bench.path("store/layers")), Vec::<String>::new());
    assert_eq!(entries(&bench.path("store/staging")), Vec::<String>::new());
    assert_eq!(bench.store.fsck().unwrap(), Vec::<Finding>::new());
}

fn rootfs() -> Vec<u8> {
    RawTar::new().dir("etc").file("etc/motd", b"hello").kind(b'3', "null", "").end()
}

#[test]
fn an_image_is_kept_as_it_came_and_told_as_an_unpacking_store_tells_it() {
    let (bench, host) = (packed(), Bench::new());
    let layout = bench.layout("layout");
    let layers = [gzipped(&rootfs()), plain(rootfs()), gzipped(&rootfs())];
    let manifest = layout.image(&layers, &json!({"Cmd": ["sh"]}));
    let image = bench.import(&layout.source()).unwrap();
    assert_eq!(image, host.import(&layout.source()).unwrap());
    assert_packed(&bench);
    assert_eq!(bench.store.list().unwrap()[0].names, ["test".parse().unwrap()]);
    assert_eq!(bench.store.usage().unwrap().blobs, 4);

    let parts = bench.store.parts(&Reference::Digest(image.manifest_digest)).unwrap();
    assert_eq!(parts.manifest_digest.to_string(), manifest["digest"]);
    assert_eq!(Digest::of(&parts.manifest), image.manifest_digest);
    assert_eq!(parts.media_type, MANIFEST);
    assert_eq!(Digest::of(&parts.config), image.config_digest);
    assert_eq!(parts.layers.len(), 3);
    for (part, layer) in parts.layers.iter().zip(&layers) {
        assert_eq!(part.diff_id.to_string(), layer.diff_id);
        assert_eq!((part.size, &*part.media_type), (layer.blob.len() as u64, layer.media_type));
        let mut bytes = Vec::new();
        bench.store.open_blob(&part.blob).unwrap().read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, layer.blob);
    }
    let absent = Digest::of(b"absent");
    assert!(matches!(bench.store.open_blob(&absent), Err(Error::Damaged { .. })));
    let inspected = bench.store.inspect(&"test".parse().unwrap()).unwrap();
    assert_eq!((inspected.content, inspected.layers.len()), (0, 3));
}

#[test]
fn the_format_says_packed_and_neither_kind_opens_the_other() {
    let (bench, host) = (packed(), Bench::new());
    let format = fs::read_to_string(bench.path("store/format.json")).unwrap();
    let format: serde_json::Value = serde_json::from_str(&format).unwrap();
    assert_eq!(
        format,
        json!({"kind": "ocivisor-datastore", "version": 1, "compatible": [],
            "read_only_compatible": [], "incompatible": ["packed"]})
    );
    let (ours, theirs) = (bench.path("store"), host.path("store"));
    let said = |e: Error| e.to_string().replace(ours.parent().unwrap().to_str().unwrap(), "");
    assert_eq!(
        said(Store::open(&ours).unwrap_err()),
        "image store /store keeps layers packed; name one that unpacks them"
    );
    let error = Store::open_packed(&theirs).unwrap_err();
    assert!(matches!(&error, Error::OtherKind { root, .. } if *root == theirs), "{error}");
    Store::open_packed(&ours).unwrap();
}

#[test]
fn tars_and_disks_become_the_layers_that_an_unpacking_store_makes_of_them() {
    let (bench, host) = (packed(), Bench::new());
    let root = bench.path("root");
    make::small_root(&root);
    let disk = bench.path("disk.img");
    fs::File::create(&disk).unwrap().set_len(64 << 20).unwrap();
    run("mkfs.ext4", &["-q", "-F", "-d", text(&root), text(&disk)]);
    let options = DiskOptions::default();
    let mut sources = vec![Source::DiskImage { file: disk, options }];
    for (name, bytes) in [
        ("plain", rootfs()),
        ("gzip", gzip(&rootfs())),
        ("xz", xz(&rootfs())),
        ("zstd", zstd(&rootfs())),
    ] {
        let file = bench.path(name);
        put(&file, &bytes);
        sources.push(Source::RootfsTar { file });
    }
    for source in sources {
        let image = bench.import(&source).unwrap();
        assert_eq!(image, host.import(&source).unwrap(), "{source:?}");
        // Again: nothing changes.
        assert_eq!(bench.import(&source).unwrap(), image);
    }
    assert_packed(&bench);
}

#[test]
fn blobs_are_proven_and_diff_ids_where_that_is_free() {
    let bench = packed();
    let mut wrong = gzipped(&rootfs());
    wrong.diff_id = Digest::of(b"another").to_string();
    // Whether a compressed layer is what its config says is for hosts to prove.
    bench.import_layers(&[wrong.clone()]).unwrap();
    wrong = Layer { blob: rootfs(), media_type: TAR, ..wrong };
    let error = bench.import_layers(&[wrong]).unwrap_err();
    assert!(matches!(error.refusal(), Some(Refusal::DiffId { .. })), "{error}");

    let layout = bench.layout("spoiled");
    let layer = gzipped(&RawTar::new().file("a", b"a").end());
    layout.image(std::slice::from_ref(&layer), &json!({}));
    let blob = Digest::of(&layer.blob).to_string();
    let spoiled: Vec<u8> = layer.blob.iter().map(|b| b ^ 1).collect();
    put(&layout.blob_path(&blob), &spoiled);
    let error = bench.import(&layout.source()).unwrap_err();
    assert!(matches!(error.refusal(), Some(Refusal::Digest { .. })), "{error}");
    assert_packed(&bench);
}

#[test]
fn what_is_no_root_file_system_is_refused() {
    let bench = packed();
    let mut cut = rootfs();
    cut.truncate(1024);
    for (bytes, want) in [
        (vec![0; 1024], Refusal::NoFiles),
        (cut, Refusal::Truncated),
        (gzip(&[0; 10_240]), Refusal::NoFiles),
    ] {
        let file = bench.path("tar");
        put(&file, &bytes);
        let error = bench.import(&Source::RootfsTar { file }).unwrap_err();
        assert_eq!(error.refusal(), Some(&want));
        bench.assert_nothing_happened();
    }
    let limits = Limits { image_bytes: 1000, ..Limits::default() };
    let file = bench.path("tar");
    put(&file, &gzip(&rootfs()));
    let error = bench.import_with(&Source::RootfsTar { file }, &limits).unwrap_err();
    assert!(matches!(error.refusal(), Some(Refusal::Limit { .. })), "{error}");
    bench.assert_nothing_happened();
}

#[test]
fn checks_tell_of_damage_and_prunes_take_what_has_no_name() {
    let bench = packed();
    let first = bench.import_tar(rootfs()).unwrap();
    let layout = bench.layout("second");
    layout.image(&[plain(rootfs()), gzipped(&rootfs())], &json!({}));
    let name = "second".parse().unwrap();
    let second =
        bench.store.import(&layout.source(), &name, &Limits::default(), &mut |_| {}).unwrap();
    assert!(bench.store.remove(&"test".parse().unwrap()).unwrap());
    let none = HashSet::new();
    let options =
        PruneOptions { in_use: &none, dry_run: false, partial_age: None, quarantine_age: None };
    let pruned = bench.store.prune_with(&options).unwrap();
    assert_eq!((pruned.images, pruned.blobs), (vec![first.manifest_digest], 2));
    bench.store.resolve(&Reference::Digest(second.manifest_digest)).unwrap();
    assert_packed(&bench);
    let blob = bench.store.parts(&name.clone().into()).unwrap().layers[1].blob;
    put(&bench.path(&format!("store/blobs/sha256/{}", blob.hex())), b"damaged");
    let found = bench.store.fsck().unwrap();
    assert!(
        matches!(
            &found[..],
            [Finding::BlobCorrupt { .. }, Finding::BlobSize { .. }]
                | [Finding::BlobSize { .. }, Finding::BlobCorrupt { .. }]
        ),
        "{found:?}"
    );
    bench.store.remove(&name).unwrap();
    bench.store.prune(&none).unwrap();
    assert_packed(&bench);
}

#[test]
fn what_needs_files_of_layers_is_refused() {
    let bench = packed();
    bench.import_tar(rootfs()).unwrap();
    let mut out = Vec::new();
    let reference = "test".parse().unwrap();
    let error = bench.store.export_tar(&reference, None, &mut out, &Limits::default(), &mut |_| {});
    assert!(matches!(error.unwrap_err(), Error::OtherKind { .. }));
    assert_eq!(out, b"");
}

/// What `nobody` of many systems is; any other would do.
const SOMEBODY: u32 = 65_534;

/// Does it with the rights of somebody. They are the thread's own, and those of the threads that it starts.
fn as_somebody<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let (uid, gid) =
                (rustix::thread::Uid::from_raw(SOMEBODY), rustix::thread::Gid::from_raw(SOMEBODY));
            rustix::thread::set_thread_groups(&[]).unwrap();
            rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            work()
        });
        thread.join().unwrap()
    })
}

fn readable(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn nobody_privileged_is_needed() {
    let bench = Bench::new();
    readable(bench.top.path(), 0o755);
    let home = bench.path("home");
    fs::create_dir(&home).unwrap();
    chown(&home, Some(SOMEBODY), Some(SOMEBODY)).unwrap();
    let ca = Ca::new();
    for dir in [ca.dir.path(), &ca.dir.path().join("certs")] {
        readable(dir, 0o755);
    }
    let (server, layout, reference) = filled(&bench, &ca, &two_layers());
    let mut setup = Setup::new();
    setup.login(&server.host()).ca = Some(ca.path());
    readable(setup.dir.path(), 0o755);
    let password = setup.dir.path().join("password");
    chown(&password, Some(SOMEBODY), Some(SOMEBODY)).unwrap();
    readable(&password, 0o600);
    let tar = bench.path("rootfs.tar");
    put(&tar, &gzip(&rootfs()));
    let direct = bench.import(&layout.source()).unwrap();

    let image: Image = as_somebody(|| {
        let store = Store::open_packed(&home.join("store")).unwrap();
        let name = "test".parse().unwrap();
        let import =
            |source: &Source| store.import(source, &name, &Limits::default(), &mut |_| {}).unwrap();
        import(&Source::RootfsTar { file: tar.clone() });
        let image = import(&setup.source(&reference));
        store.prune(&HashSet::new()).unwrap();
        assert_eq!(store.fsck().unwrap(), vec![]);
        image
    });
    assert_eq!(image, direct);
    for (path, seen) in tree(&home) {
        assert_eq!(seen.owner, (SOMEBODY, SOMEBODY), "{}", path.escape_ascii());
        assert_eq!(seen.mode & 0o6077, if path.is_empty() { 0o055 } else { 0 });
    }
    assert_eq!(fs::metadata(home.join("store")).unwrap().uid(), SOMEBODY);
}
