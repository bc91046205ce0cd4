//! What leaves the store does so in steps: a VM is needed for the middle one alone, and nobody's file is replaced.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

mod common;
mod out_common;

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use common::*;
use ocivisor_datastore::{
    Archive, BegunCommit, CommitChanges, CommitOptions, DiskExport, DiskFormat, Error, IdMap,
    Limits, Upper,
};
use out_common::*;

/// A bench with the image `base` and an upper directory with a file.
fn vm() -> (Bench, PathBuf) {
    let bench = Bench::new();
    base(&bench);
    let upper = bench.path("upper");
    fs::create_dir(&upper).unwrap();
    put(&upper.join("f"), b"of the vm");
    (bench, upper)
}

fn begin(bench: &Bench) -> BegunCommit {
    let (base, new) = ("base".parse().unwrap(), "new".parse().unwrap());
    bench.store.begin_commit(&base, &new, &CommitOptions::default()).unwrap()
}

#[test]
fn a_vm_is_read_before_its_layer_is_made_and_not_after() {
    let (bench, dir) = vm();
    let store = &bench.store;
    let seen = |folder: &str| entries(&bench.path("store").join(folder));
    let begun = begin(&bench);
    let before = ["layers", "blobs/sha256", "images", "refs"].map(seen);
    let read = {
        let upper = File::open(&dir).unwrap();
        begun.read(Upper { dir: &upper, ids: IdMap::IDENTITY }, &mut |_| {}).unwrap()
    };
    assert_eq!(["layers", "blobs/sha256", "images", "refs"].map(seen), before);
    fs::remove_dir_all(&dir).unwrap();
    let made = read.finish(&CommitChanges::default()).unwrap();
    let layer = tree(&store.layer_path(&made.layer));
    assert_eq!(layer.keys().collect::<Vec<_>>(), [&b""[..], b"f"]);
    assert_eq!(fs::read(store.layer_path(&made.layer).join("f")).unwrap(), b"of the vm");
    assert_eq!(store.fsck().unwrap(), vec![]);
}

#[test]
fn a_commit_that_is_given_up_between_its_steps_leaves_nothing() {
    let (bench, dir) = vm();
    let store = &bench.store;
    let upper = File::open(&dir).unwrap();
    let staging = || entries(&bench.path("store/staging")).len();
    let begun = begin(&bench);
    // It keeps the base from a prune.
    assert!(matches!(store.prune(&HashSet::new()), Err(Error::Busy { .. })));
    assert_eq!(staging(), 1);
    drop(begun);
    assert_eq!(staging(), 0);
    drop(begin(&bench).read(Upper { dir: &upper, ids: IdMap::IDENTITY }, &mut |_| {}).unwrap());
    assert_eq!(staging(), 0);
    assert_eq!(store.prune(&HashSet::new()).unwrap().layers, []);
}

#[test]
fn nothing_that_leaves_takes_the_place_of_a_file() {
    let bench = Bench::new();
    base(&bench);
    put(&bench.path("old"), b"old");
    let (dir, base) = (File::open(bench.top.path()).unwrap(), "base".parse().unwrap());
    let saved = [Archive::OciLayout, Archive::OciArchive, Archive::DockerArchive].map(|form| {
        bench.store.save(std::slice::from_ref(&base), form, &dir, "old", &mut |_| {}).map(drop)
    });
    let (limits, old) = (Limits::default(), bench.path("old"));
    let tar = bench.store.begin_tar(&base, &old, &limits).map(drop);
    // One that comes while the work goes on stays, too.
    let late = bench.store.begin_tar(&base, &bench.path("late"), &limits).unwrap();
    let late = late.read(None, &mut |_| {}).unwrap();
    put(&bench.path("late"), b"late");
    let late = late.finish().map(drop);
    for (file, refused) in
        saved.into_iter().chain([tar]).map(|r| ("old", r)).chain([("late", late)])
    {
        let error = refused.unwrap_err();
        assert!(matches!(&error, Error::Exists { .. }), "{error:?}");
        let said = error.to_string();
        let (shown, rest) = said.split_once(' ').unwrap();
        assert_eq!(shown.rsplit('/').next(), Some(file));
        assert_eq!(rest, "exists; name a new file, or remove that one");
        assert_eq!(fs::read(bench.path(file)).unwrap(), file.as_bytes());
    }
    assert_eq!(entries(bench.top.path()).len(), 5, "{:?}", entries(bench.top.path()));
}

#[test]
fn a_tarball_is_written_after_the_vm_and_the_image_are_gone() {
    let bench = Bench::new();
    let base = base(&bench);
    let overlay = Overlay::of(&bench, &base, "vm");
    put(&overlay.at("new"), b"n");
    let (upper, limits) = (overlay.upper(), Limits::default());
    let mut want = Vec::new();
    let image = base.manifest_digest.into();
    let top = || Some(Upper { dir: &upper, ids: IdMap::IDENTITY });
    bench.store.export_tar(&image, top(), &mut want, &limits, &mut |_| {}).unwrap();

    let to = bench.path("out.tar");
    let begun = bench.store.begin_tar(&image, &to, &limits).unwrap();
    let read = begun.read(top(), &mut |_| {}).unwrap();
    assert!(!to.exists());
    drop(overlay);
    fs::remove_dir_all(bench.path("vm")).unwrap();
    bench.store.remove(&"base".parse().unwrap()).unwrap();
    assert_eq!(bench.store.prune(&HashSet::new()).unwrap().images.len(), 1);
    assert_eq!(read.finish().unwrap().bytes, want.len() as u64 - 1024);
    assert!(fs::read(&to).unwrap() == want);
    assert_eq!(fs::metadata(&to).unwrap().mode() & 0o7777, 0o600);
}

const MIB: u64 = 1 << 20;

/// A VM with a file of that size that has two blocks of data, its second half beginning with one.
fn sparse_vm(size: u64) -> (Bench, PathBuf) {
    let (bench, dir) = vm();
    let sparse = File::create(dir.join("sparse")).unwrap();
    for (at, what) in [(0, b'a'), (size / 2, b'b')] {
        sparse.write_all_at(&[what; 4096], at).unwrap();
    }
    sparse.set_len(size).unwrap();
    (bench, dir)
}

#[test]
fn a_file_with_holes_has_them_in_its_layer() {
    let size = 1024 * MIB;
    let (bench, dir) = sparse_vm(size);
    let upper = File::open(&dir).unwrap();
    let upper = Upper { dir: &upper, ids: IdMap::IDENTITY };
    let read = begin(&bench).read(upper, &mut |_| {}).unwrap();
    let made = read.finish(&CommitChanges::default()).unwrap();
    assert!(made.size < 2 * MIB, "{}", made.size);
    let file = File::open(bench.store.layer_path(&made.layer).join("sparse")).unwrap();
    let meta = file.metadata().unwrap();
    assert_eq!(meta.len(), size);
    assert!(meta.blocks() * 512 <= 2 * 64 * 1024, "{}", meta.blocks());
    let (mut all, zeros) = (vec![1; 16 << 20], vec![0; 16 << 20]);
    for at in (0..size).step_by(all.len()) {
        file.read_exact_at(&mut all, at).unwrap();
        let (head, rest) = all.split_at(4096);
        let want = match at {
            0 => b'a',
            at if at == size / 2 => b'b',
            _ => 0,
        };
        assert!(head == [want; 4096] && *rest == zeros[4096..], "{at}");
    }
}

#[test]
fn a_file_with_holes_has_them_on_a_disk_and_in_a_tarball_and_is_proven() {
    let size = 64 * MIB;
    let (bench, dir) = sparse_vm(size);
    let upper = File::open(&dir).unwrap();
    let top = || Upper { dir: &upper, ids: IdMap::IDENTITY };
    let read = begin(&bench).read(top(), &mut |_| {}).unwrap();
    read.finish(&CommitChanges::default()).unwrap();
    assert_eq!(bench.store.fsck().unwrap(), vec![]);

    let (image, limits) = ("new".parse().unwrap(), Limits::default());
    let tar = bench.path("out.tar");
    let begun = bench.store.begin_tar(&image, &tar, &limits).unwrap();
    begun.read(None, &mut |_| {}).unwrap().finish().unwrap();
    let meta = fs::metadata(&tar).unwrap();
    assert!(meta.len() > size && meta.blocks() * 512 < MIB, "{meta:?}");
    let mut want = Vec::new();
    bench.store.export_tar(&image, None, &mut want, &limits, &mut |_| {}).unwrap();
    assert!(fs::read(&tar).unwrap() == want);

    let options = DiskExport { format: DiskFormat::Raw, size: None, label: None };
    let raw = bench.path("out.raw");
    let made = bench.store.export_disk(&image, None, &raw, &options, &limits).unwrap();
    // It need not be as large as the file seems.
    assert!(made.size < 100 * MIB, "{made:?}");
    // In units of 512 bytes: the two blocks, and nothing between them.
    let asked = format!("debugfs -R 'stat /sparse' {} | grep -q 'Blockcount: 16$'", text(&raw));
    run("sh", &["-c", &asked]);
}
