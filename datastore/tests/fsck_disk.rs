//! Disks that fail, disks that are full, layers that guests have mounted: on real file systems of the kernel.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

mod common;

use std::collections::HashSet;
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use common::*;
use ocivisor_datastore::{
    CheckOptions, DiffId, Digest, Error, Finding, Found, Image, ImageName, Limits, Outcome,
    Refetch, RepairOptions, Store,
};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::json;
use tempfile::TempDir;

fn name(text: &str) -> ImageName {
    text.parse().unwrap()
}

struct Source(Vec<u8>);

impl Refetch for Source {
    fn fetch(&self, blob: &Digest) -> Option<Box<dyn Read + '_>> {
        (Digest::of(&self.0) == *blob).then(|| Box::new(&self.0[..]) as Box<dyn Read>)
    }
}

fn repair(store: &Store, in_use: &HashSet<DiffId>, refetch: Option<&dyn Refetch>) -> Vec<Found> {
    let options = RepairOptions { check: CheckOptions::default(), in_use, refetch };
    patiently(|| store.repair(&options)).findings
}

/// A process that another test starts holds our locks from its fork to its exec.
fn patiently<T>(mut act: impl FnMut() -> Result<T, Error>) -> T {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    loop {
        match act() {
            Err(Error::Busy { .. }) if std::time::Instant::now() < deadline => {
                std::thread::yield_now();
            }
            other => return other.unwrap(),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "tests run foreign tools")]
fn output(program: &str, args: &[&str]) -> String {
    let output = std::process::Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|e| panic!("this test needs {program}, install it: {e}"));
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

// A sector that cannot be read: ext4 on a loop device whose file ends before the file system does.

/// What no random content could be compressed to.
fn noise(bytes: usize, mut seed: u32) -> Vec<u8> {
    let mut noise = Vec::with_capacity(bytes + 4);
    while noise.len() < bytes {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        noise.extend((seed >> 8).to_le_bytes());
    }
    noise.truncate(bytes);
    noise
}

struct Disk {
    top: TempDir,
    device: String,
}

impl Disk {
    fn new(mib: u64) -> Self {
        let top = tempfile::tempdir().unwrap();
        let image = top.path().join("disk");
        fs::File::create(&image).unwrap().set_len(mib << 20).unwrap();
        // One group and no journal: all metadata is at the front.
        run("mkfs.ext4", &["-q", "-F", "-b", "4096", "-O", "^has_journal", text(&image)]);
        fs::create_dir(top.path().join("mnt")).unwrap();
        let device = output("losetup", &["--find", "--show", text(&image)]).trim().to_owned();
        let disk = Self { top, device };
        disk.mount();
        disk
    }

    fn mnt(&self) -> PathBuf {
        self.top.path().join("mnt")
    }

    fn mount(&self) {
        mount(&*self.device, self.mnt(), "ext4", MountFlags::empty(), None).unwrap();
    }

    /// Moves a file to the end of the disk and makes the device unreadable from there on.
    fn spoil(&self, file: &Path) {
        let filler = self.mnt().join("filler");
        let free = rustix::fs::statvfs(self.mnt()).unwrap();
        let size = fs::metadata(file).unwrap().len().next_multiple_of(4096) + (1 << 20);
        let filling = free.f_bavail * free.f_frsize - size;
        let flags = rustix::fs::FallocateFlags::empty();
        let filling_file = fs::File::create(&filler).unwrap();
        rustix::fs::fallocate(&filling_file, flags, 0, filling).unwrap();
        let moved = self.mnt().join("moved");
        let parent = file.parent().unwrap();
        let modified = fs::metadata(parent).unwrap().modified().unwrap();
        run("cp", &["--archive", text(file), text(&moved)]);
        run("mv", &[text(&moved), text(file)]);
        fs::File::open(parent).unwrap().set_modified(modified).unwrap();
        drop(filling_file);
        fs::remove_file(&filler).unwrap();
        run("sync", &["-f", text(&self.mnt())]);
        let inside = Path::new("/").join(file.strip_prefix(self.mnt()).unwrap());
        let request = format!("blocks {}", text(&inside));
        let blocks = output("debugfs", &["-R", &request, &self.device]);
        let first = blocks.split_whitespace().map(|b| b.parse::<u64>().unwrap()).min().unwrap();
        unmount(self.mnt(), UnmountFlags::empty()).unwrap();
        let image = self.top.path().join("disk");
        fs::File::options().write(true).open(&image).unwrap().set_len(first * 4096).unwrap();
        self.mount();
        let error = fs::read(file).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{error}");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // After a failed test the store may still be open.
        let _ = unmount(self.mnt(), UnmountFlags::DETACH);
        run("losetup", &["--detach", &self.device]);
    }
}

fn import_on(disk: &Disk, layer: &Layer) -> (Store, Image) {
    let store = Store::open(&disk.mnt().join("store")).unwrap();
    let layout = Layout::new(&disk.top.path().join("layout"));
    layout.image(std::slice::from_ref(layer), &json!({}));
    let limits = Limits::default();
    let image = store.import(&layout.source(), &name("app"), &limits, &mut |_| {}).unwrap();
    (store, image)
}

#[test]
fn an_unreadable_sector_in_a_blob_is_found_and_the_blob_fetched_again() {
    let disk = Disk::new(64);
    let layer = plain(RawTar::new().file("noise", &noise(3 << 20, 1)).end());
    let (store, image) = import_on(&disk, &layer);
    let hex = Digest::of(&layer.blob).hex();
    drop(store);
    disk.spoil(&disk.mnt().join("store/blobs/sha256").join(&hex));

    let store = Store::open(&disk.mnt().join("store")).unwrap();
    let path = format!("blobs/sha256/{hex}");
    let finding = Finding::ReadError { path, why: "Input/output error (os error 5)".into() };
    assert_eq!(store.fsck().unwrap(), std::slice::from_ref(&finding));
    let found = repair(&store, &HashSet::new(), Some(&Source(layer.blob.clone())));
    let [Found { finding: got, outcome: Outcome::Repaired { how }, .. }] = &found[..] else {
        panic!("{found:?}");
    };
    assert_eq!(*got, finding);
    assert!(how.starts_with("fetched again; the damaged one is quarantine/"), "{how}");
    assert_eq!(store.fsck().unwrap(), vec![]);
    assert_eq!(store.resolve(&name("app").into()).unwrap(), image);
}

#[test]
fn an_unreadable_sector_in_a_layer_is_found_and_the_layer_made_again() {
    let disk = Disk::new(64);
    let content = noise(3 << 20, 2);
    let tar = RawTar::new().dir("usr").file("usr/noise", &content).file("z", b"z").end();
    let (store, image) = import_on(&disk, &gzipped(&tar));
    let hex = image.layers[0].hex();
    let file = store.layer_path(&image.layers[0]).join("usr/noise");
    drop(store);
    disk.spoil(&file);

    let store = Store::open(&disk.mnt().join("store")).unwrap();
    let path = format!("layers/{hex}/fs/usr/noise");
    let finding = Finding::ReadError { path, why: "Input/output error (os error 5)".into() };
    assert_eq!(store.fsck().unwrap(), [finding]);
    let found = repair(&store, &HashSet::new(), None);
    assert!(matches!(&found[..], [Found { outcome: Outcome::Repaired { .. }, .. }]), "{found:?}");
    assert_eq!(store.fsck().unwrap(), vec![]);
    assert_eq!(fs::read(file).unwrap(), content);
}

#[test]
fn an_unreadable_sector_in_a_document_is_found() {
    let disk = Disk::new(64);
    let (store, image) = import_on(&disk, &gzipped(&RawTar::new().file("a", b"a").end()));
    drop(store);
    let hex = image.manifest_digest.hex();
    let record = disk.mnt().join(format!("store/images/{hex}.json"));
    // Spaces that JSON allows: a file of some size has its blocks at the end of the disk.
    let padded = [fs::read(&record).unwrap(), vec![b' '; 900 << 10]].concat();
    put(&record, &padded);
    assert_eq!(Store::open(&disk.mnt().join("store")).unwrap().fsck().unwrap(), vec![]);
    disk.spoil(&record);
    let store = Store::open(&disk.mnt().join("store")).unwrap();
    let codes: Vec<_> = store.fsck().unwrap().iter().map(Finding::code).collect();
    assert_eq!(codes, ["read_error", "dangling_name"]);
    let found = repair(&store, &HashSet::new(), None);
    assert!(found.iter().all(|f| matches!(f.outcome, Outcome::Repaired { .. })), "{found:?}");
    assert_eq!(store.fsck().unwrap(), vec![]);
    assert_eq!(store.resolve(&name("app").into()).unwrap(), image);
}

// A full disk

/// A tmpfs of a size that can be changed.
struct Small(PathBuf);

impl Small {
    fn new(path: PathBuf, pages: u64) -> Self {
        fs::create_dir(&path).unwrap();
        let options = std::ffi::CString::new(format!("nr_blocks={pages}")).unwrap();
        mount("tmpfs", &path, "tmpfs", MountFlags::empty(), Some(options.as_c_str())).unwrap();
        Self(path)
    }

    fn resize(&self, pages: u64) {
        let options = std::ffi::CString::new(format!("nr_blocks={pages}")).unwrap();
        rustix::mount::mount_remount(&self.0, MountFlags::empty(), options.as_c_str()).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let gone = unmount(&self.0, UnmountFlags::DETACH);
        assert!(gone.is_ok() || std::thread::panicking(), "{gone:?}");
    }
}

#[test]
fn a_disk_that_fills_at_any_point_of_an_import_leaves_nothing_and_room_makes_it_work() {
    let bench = Bench::new();
    let layer = |n: u8| {
        let mut tar = RawTar::new();
        for file in 0..6u8 {
            tar = tar.file(&format!("l{n}/f{file}"), &noise(9000, u32::from(file) + 7));
        }
        gzipped(&tar.end())
    };
    let layout = bench.layout("layout");
    layout.image(&[layer(1), layer(2)], &json!({}));
    let (mut failed, mut worked) = (0, 0);
    for pages in 1..80 {
        let small = Small::new(bench.path(&format!("small{pages}")), pages);
        let root = small.0.join("store");
        let full = |e: &Error| match e {
            Error::Io { source, .. } => source.kind() == ErrorKind::StorageFull,
            _ => false,
        };
        let opened = Store::open(&root);
        let limits = Limits::default();
        let tried = match &opened {
            Ok(store) => store.import(&layout.source(), &name("app"), &limits, &mut |_| {}),
            Err(e) => {
                assert!(full(e), "{pages}: {e:?}");
                failed += 1;
                small.resize(200);
                Store::open(&root).unwrap();
                continue;
            }
        };
        let store = opened.unwrap();
        match tried {
            Ok(_) => {
                worked += 1;
                small.resize(200);
            }
            Err(e) => {
                assert!(full(&e), "{pages}: {e:?}");
                failed += 1;
                // Between the last two steps of an import the image is whole and has no name.
                for listed in store.list().unwrap() {
                    assert_eq!(listed.names, vec![], "{pages}");
                    store.resolve(&listed.manifest_digest.into()).unwrap();
                }
                assert_eq!(entries(&root.join("refs")), Vec::<String>::new(), "{pages}");
                assert_eq!(entries(&root.join("staging")), Vec::<String>::new(), "{pages}");
                assert_eq!(store.fsck().unwrap(), vec![], "{pages}");
                // Space can be given back on a disk that has none.
                patiently(|| store.prune(&HashSet::new()));
                assert_eq!(entries(&root.join("layers")), Vec::<String>::new(), "{pages}");
                small.resize(200);
            }
        }
        let image = store.import(&layout.source(), &name("app"), &limits, &mut |_| {}).unwrap();
        assert_eq!(store.resolve(&name("app").into()).unwrap(), image);
        assert_eq!(store.fsck().unwrap(), vec![]);
        drop(store);
    }
    assert!(failed > 30 && worked > 5, "{failed} {worked}");
}

#[test]
fn names_and_repairs_on_a_full_disk_fail_by_name_and_change_nothing() {
    let bench = Bench::new();
    let small = Small::new(bench.path("small"), 300);
    let store = Store::open(&small.0.join("store")).unwrap();
    let layout = bench.layout("layout");
    layout.image(&[gzipped(&RawTar::new().file("f", &noise(300_000, 3)).end())], &json!({}));
    let limits = Limits::default();
    let image = store.import(&layout.source(), &name("app"), &limits, &mut |_| {}).unwrap();
    let file = store.layer_path(&image.layers[0]).join("f");
    fs::File::options().write(true).open(&file).unwrap().set_len(299_999).unwrap();
    let used = rustix::fs::statvfs(&small.0).unwrap();
    small.resize(used.f_blocks - used.f_bfree);

    let error = store.tag(&name("app").into(), &name("new")).unwrap_err();
    assert!(
        matches!(&error, Error::Io { source, .. } if source.kind() == ErrorKind::StorageFull),
        "{error:?}"
    );
    assert_eq!(entries(&small.0.join("store/refs")), ["app"]);
    // The exact comparison needs room, too: without it the layer is in doubt, and said to be.
    let found = repair(&store, &HashSet::new(), None);
    let [
        Found {
            finding: Finding::LayerUnproven { why, .. }, outcome: Outcome::Open { .. }, ..
        },
    ] = &found[..]
    else {
        panic!("{found:?}");
    };
    assert!(why.ends_with("No space left on device (os error 28)"), "{why}");
    assert_eq!(entries(&small.0.join("store/staging")), Vec::<String>::new());
    small.resize(600);
    let found = repair(&store, &HashSet::new(), None);
    assert!(matches!(&found[..], [Found { outcome: Outcome::Repaired { .. }, .. }]), "{found:?}");
    assert_eq!(store.fsck().unwrap(), vec![]);
}

// Under running guests

#[test]
fn a_layer_is_replaced_under_a_running_guest_who_notices_nothing() {
    let bench = Bench::new();
    let tar = RawTar::new()
        .dir("etc")
        .file("etc/motd", b"hello")
        .file("etc/other", b"other")
        .dir("etc/deep")
        .file("etc/deep/f", b"f")
        .end();
    let image = bench.import_tar(tar).unwrap();
    let lower = bench.store.layer_path(&image.layers[0]);
    for dir in ["upper", "work", "root"] {
        fs::create_dir(bench.path(dir)).unwrap();
    }
    let root = bench.path("root");
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        text(&lower),
        text(&bench.path("upper")),
        text(&bench.path("work"))
    );
    let options = std::ffi::CString::new(options).unwrap();
    let start = || {
        mount("overlay", &root, "overlay", MountFlags::empty(), Some(options.as_c_str())).unwrap();
        Small(root.clone())
    };
    let guest = start();
    put(&root.join("etc/motd"), b"mine");
    let open = fs::File::open(root.join("etc/other")).unwrap();
    // Somebody writes where nothing may write.
    put(&lower.join("etc/other"), b"othex");
    let in_use: HashSet<_> = image.layers.iter().copied().collect();
    let found = repair(&bench.store, &in_use, None);
    let [Found { outcome: Outcome::Repaired { how }, .. }] = &found[..] else {
        panic!("{found:?}");
    };
    assert!(
        how.ends_with("guests that run on it keep the damaged one until they start again"),
        "{how}"
    );
    assert_eq!(bench.store.fsck().unwrap(), vec![]);

    // The running guest: what it had open, what it never looked at, what it writes now, what it lists.
    let mut seen = String::new();
    (&open).read_to_string(&mut seen).unwrap();
    assert_eq!(seen, "othex");
    assert_eq!(fs::read(root.join("etc/other")).unwrap(), b"othex");
    assert_eq!(fs::read(root.join("etc/deep/f")).unwrap(), b"f");
    put(&root.join("etc/deep/f"), b"g");
    fs::remove_file(root.join("etc/other")).unwrap();
    rustix::fs::rename(root.join("etc/motd"), root.join("etc/moved")).unwrap();
    assert_eq!(entries(&root.join("etc")), ["deep", "moved"]);
    drop(open);
    unmount(&root, UnmountFlags::empty()).unwrap();
    std::mem::forget(guest);

    // Its next start is on the new files, with its own changes.
    let guest = start();
    assert_eq!(entries(&root.join("etc")), ["deep", "moved"]);
    assert_eq!(fs::read(root.join("etc/moved")).unwrap(), b"mine");
    assert_eq!(fs::read(root.join("etc/deep/f")).unwrap(), b"g");
    assert_eq!(fs::read(lower.join("etc/other")).unwrap(), b"other");
    drop(guest);
}
