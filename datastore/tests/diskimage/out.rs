//! Images and VMs back to disks: the kernel and our own reader see the same files on them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use ocivisor_datastore::{
    DiskExport, DiskFormat, Error, ExportedDisk, IdMap, Limits, Reference, Upper,
};
use rustix::fs::{CWD, FileType, Mode, XattrFlags};

use crate::common::{Bench, RawTar, Seen, assert_same_tree, entries, plain, put, run, text, tree};
use crate::make::*;

fn options(format: DiskFormat) -> DiskExport {
    DiskExport { format, size: None, label: None }
}

fn export(
    bench: &Bench,
    upper: Option<&Path>,
    to: &Path,
    options: &DiskExport,
) -> Result<ExportedDisk, Error> {
    let dir = upper.map(|dir| File::open(dir).unwrap());
    let upper = dir.as_ref().map(|dir| Upper { dir, ids: IdMap::IDENTITY });
    let image = Reference::Name("test".parse().unwrap());
    bench.store.export_disk(&image, upper, to, options, &Limits::default())
}

/// Whole seconds until 2038 are all that mke2fs keeps; the directory is its own.
fn on_disk(mut all: BTreeMap<Vec<u8>, Seen>) -> BTreeMap<Vec<u8>, Seen> {
    all.remove(&b"lost+found"[..]);
    for seen in all.values_mut() {
        seen.mtime = (seen.mtime.0.min(i32::MAX.into()), 0);
    }
    all
}

#[test]
fn a_disk_becomes_an_image_and_a_disk_again_with_the_same_files() {
    let bench = Bench::new();
    let (root, file) = (bench.path("root"), bench.path("disk"));
    rich_root(&root);
    blank(&file, 320);
    fill(&bench, &file, &["mkfs.ext4", "-q", "-b", "4096"], "rw", &root);
    let image = import(&bench, &file).unwrap();
    let want = on_disk(tree(&bench.fs(&image)));

    let raw = bench.path("out.raw");
    let done = export(&bench, None, &raw, &options(DiskFormat::Raw)).unwrap();
    let meta = fs::metadata(&raw).unwrap();
    assert_eq!((meta.len(), meta.mode() & 0o7777), (done.size, 0o600));
    assert!(done.allocated < done.size, "holes stay holes");
    run("e2fsck", &["-f", "-n", text(&raw)]);
    {
        let mounted = Mounted::new(&raw, &bench.path("mnt"), "ro");
        assert_same_tree(&on_disk(tree(&mounted.0)), &want, "as the kernel sees it");
    }
    let back = import(&bench, &raw).unwrap();
    assert_same_tree(&tree(&bench.fs(&back)), &want, "as we see it");

    let qcow2 = bench.path("out.qcow2");
    export(&bench, None, &qcow2, &options(DiskFormat::Qcow2)).unwrap();
    run("qemu-img", &["check", "-q", "-f", "qcow2", text(&qcow2)]);
    assert_eq!(import(&bench, &qcow2).unwrap().layers, back.layers);
    assert_eq!(entries(&bench.path("store/staging")), Vec::<String>::new());
}

#[test]
fn what_a_vm_changed_is_on_its_disk() {
    let bench = Bench::new();
    let low = RawTar::new().dir("etc").file("etc/gone", b"1").file("etc/kept", b"2").dir("old");
    let low = low.file("old/below", b"3").file("opaque/below", b"4").end();
    let high = RawTar::new().dir("etc").file("etc/.wh.gone", b"").file("etc/new", b"5").end();
    bench.import_layers(&[plain(low), plain(high)]).unwrap();
    let upper = bench.path("upper");
    fs::create_dir_all(upper.join("opaque")).unwrap();
    put(&upper.join("opaque/own"), b"6");
    let hide = |name: &str| {
        rustix::fs::mknodat(CWD, upper.join(name), FileType::CharacterDevice, Mode::empty(), 0)
            .unwrap();
    };
    hide("old");
    let opaque = upper.join("opaque");
    rustix::fs::setxattr(&opaque, "trusted.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
    let to = bench.path("vm.raw");
    let done = export(&bench, Some(&upper), &to, &options(DiskFormat::Raw)).unwrap();
    assert_eq!(done.content.entries, 6);
    let mounted = Mounted::new(&to, &bench.path("mnt"), "ro");
    let names: Vec<String> = on_disk(tree(&mounted.0))
        .into_keys()
        .map(|name| String::from_utf8(name).unwrap())
        .collect();
    assert_eq!(names, ["", "etc", "etc/kept", "etc/new", "opaque", "opaque/own"]);
}

#[test]
fn a_disk_is_made_after_the_vm_and_the_image_are_gone() {
    let bench = Bench::new();
    bench.import_tar(RawTar::new().dir("etc").file("etc/kept", b"2").end()).unwrap();
    let upper = bench.path("upper");
    fs::create_dir(&upper).unwrap();
    put(&upper.join("new"), b"5");
    let (to, image) = (bench.path("vm.raw"), Reference::Name("test".parse().unwrap()));
    let begun =
        bench.store.begin_disk(&image, &to, &options(DiskFormat::Raw), &Limits::default()).unwrap();
    let dir = File::open(&upper).unwrap();
    let read = begun.read(Some(Upper { dir: &dir, ids: IdMap::IDENTITY })).unwrap();
    fs::remove_dir_all(&upper).unwrap();
    bench.store.remove(&"test".parse().unwrap()).unwrap();
    assert_eq!(bench.store.prune(&Default::default()).unwrap().images.len(), 1);
    assert!(!to.exists());
    assert_eq!(read.finish().unwrap().content.entries, 4);
    let mounted = Mounted::new(&to, &bench.path("mnt"), "ro");
    assert_eq!(fs::read(mounted.0.join("new")).unwrap(), b"5");
    assert_eq!(fs::read(mounted.0.join("etc/kept")).unwrap(), b"2");
    assert_eq!(entries(&bench.path("store/staging")), Vec::<String>::new());
}

#[test]
fn size_and_label_are_as_asked_and_what_cannot_be_leaves_nothing() {
    let bench = Bench::new();
    let root = RawTar::new().dir("./").file("data", &noise(5 << 20)).end();
    bench.import_tar(root).unwrap();
    fs::create_dir(bench.path("out")).unwrap();
    let to = bench.path("out/disk");
    let sized = |size, label: &str| DiskExport {
        format: DiskFormat::Raw,
        size: Some(size),
        label: Some(label.into()),
    };
    let said = |options: &DiskExport| {
        let error = export(&bench, None, &to, options).unwrap_err();
        assert!(matches!(error, Error::Export { .. }), "{error:?}");
        assert_eq!(entries(&bench.path("out")), Vec::<String>::new());
        assert_eq!(entries(&bench.path("store/staging")), Vec::<String>::new());
        error.to_string().split_once(": ").unwrap().1.to_owned()
    };
    let small = said(&sized(1 << 20, "x"));
    assert!(small.starts_with("the files need a disk of 137"), "{small}");
    assert!(small.ends_with(" bytes, 1048576 are wanted; take more"), "{small}");
    let bad = "the label has more than 16 bytes or characters that are not printable ASCII";
    assert_eq!(said(&sized(1 << 30, "a label far too long")), bad);
    assert_eq!(said(&sized(1 << 30, "a\n")), bad);
    let done = export(&bench, None, &to, &sized((100 << 20) + 5, "data")).unwrap();
    assert_eq!(done.size, 100 << 20);
    run("sh", &["-c", &format!("test \"$(e2label {})\" = data", text(&to))]);
    let before = fs::read(&to).unwrap();
    let error = export(&bench, None, &to, &sized(1 << 30, "x")).unwrap_err().to_string();
    assert!(error.ends_with(" exists; name a new file, or remove that one"), "{error}");
    assert_eq!(fs::read(&to).unwrap(), before);
}

#[test]
fn a_guests_own_file_that_looks_like_a_whiteout_is_no_whiteout_and_is_refused() {
    let bench = Bench::new();
    bench.import_tar(RawTar::new().dir("etc").file("etc/kept", b"1").end()).unwrap();
    for name in ["etc/.wh.kept", "etc/.wh..wh..opq", "etc/.wh..wh.aufs"] {
        let upper = bench.path("upper");
        fs::create_dir_all(upper.join("etc")).unwrap();
        put(&upper.join(name), b"mine");
        let to = bench.path("vm.raw");
        let error = export(&bench, Some(&upper), &to, &options(DiskFormat::Raw)).unwrap_err();
        let said = std::error::Error::source(&error).map(ToString::to_string);
        assert!(said.is_some_and(|s| s.starts_with("a file name begins with .wh.")), "{error:?}");
        assert!(!to.exists());
        assert_eq!(entries(&bench.path("store/staging")), Vec::<String>::new());
        fs::remove_dir_all(upper).unwrap();
    }
}
