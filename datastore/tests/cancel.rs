//! Work that is ended from outside: soon, with nothing to be seen of it, and with what was fetched kept for the next
//! attempt.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

mod common;
#[path = "common/registry.rs"]
mod registry;
#[path = "common/served.rs"]
mod served;
#[path = "common/wire.rs"]
mod wire;

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Read;
use std::net::TcpListener;
use std::sync::mpsc;

use common::*;
use ocivisor_datastore::{
    Archive, Cancel, CommitChanges, CommitOptions, Digest, DiskExport, DiskFormat, DiskOptions,
    Error, HttpsSource, IdMap, Image, ImageName, Limits, Reference, Result, Source, Upper,
};
use registry::*;
use serde_json::json;
use served::*;
use wire::*;

fn name(text: &str) -> ImageName {
    text.parse().unwrap()
}

fn import(bench: &Bench, cancel: &Cancel, source: &Source) -> Result<Image> {
    let store = bench.store.cancelled_by(cancel).unwrap();
    store.import(source, &name("test"), &Limits::default(), &mut |_| {})
}

/// Cancels an import once the condition is there, and says how it ended.
fn cancel_when(bench: &Bench, source: &Source, what: &str, condition: impl FnMut() -> bool) {
    let cancel = Cancel::new();
    std::thread::scope(|scope| {
        let importing = scope.spawn(|| import(bench, &cancel, source));
        let met = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_for(what, condition);
        }));
        cancel.cancel();
        let ended = importing.join().unwrap();
        met.unwrap();
        assert!(matches!(ended, Err(Error::Cancelled)), "{what}: {ended:?}");
    });
    bench.assert_nothing_happened();
    assert_eq!(entries(&bench.path("store/blobs/sha256")), Vec::<String>::new());
    // Nobody is left who works on it.
    assert_eq!(bench.store.prune(&HashSet::new()).unwrap().layers, []);
}

/// A registry that tests can do without patience: only cancelling ends an import from it.
fn stalling(
    served: &Served,
    script: impl Fn(&Asked) -> Option<Reply> + Send + Sync + 'static,
) -> (Scripted, Setup) {
    let server = server(served, script);
    let mut setup = plain_setup(&server);
    setup.patience.window = LONG * 60;
    setup.patience.answer = LONG * 60;
    setup.config.deadline_seconds = LONG.as_secs() * 60;
    (server, setup)
}

fn part_length(bench: &Bench, digest: &Digest) -> u64 {
    let path = bench.path("store/partial").join(digest.hex());
    fs::metadata(path).map_or(0, |m| m.len())
}

#[test]
fn a_pull_that_waits_for_bytes_ends_and_is_gone_on_with() {
    let served = Served::new();
    let digest = served.layer_digest();
    let bench = Bench::new();
    let copy = served.clone();
    let (server, setup) = stalling(&served, move |asked| {
        (copy.is_layer(asked) && !asked.headers.contains_key("range"))
            .then(|| copy.reply(asked).how(How::Stall(20_000)))
    });
    let source = setup.source(&format!("docker://{}/team/app:1", server.host()));
    cancel_when(&bench, &source, "half of a layer", || part_length(&bench, &digest) == 20_000);
    assert_eq!(part_length(&bench, &digest), 20_000);
    bench.import(&source).unwrap();
    let ranges = server.asked().into_iter().filter_map(|a| a.headers.get("range").cloned());
    assert_eq!(ranges.collect::<Vec<_>>(), ["bytes=20000-"]);
    assert_eq!(bench.store.fsck().unwrap(), vec![]);
}

#[test]
fn a_pull_ends_wherever_it_waits() {
    let served = Served::new();
    type Which = fn(&Asked) -> bool;
    type What = fn() -> Reply;
    let config: Which = |asked| asked.path.contains("/blobs/");
    let manifest: Which = |asked| asked.path.contains("/manifests/");
    let silent: What = || Reply::new(200, "x".repeat(10)).how(How::Stall(0));
    let busy: What = || Reply::new(503, "").with("retry-after", "3600");
    let cases = [(manifest, silent), (config, silent), (manifest, busy), (config, busy)];
    for (n, (which, what)) in cases.into_iter().enumerate() {
        let (server, mut setup) = stalling(&served, move |asked| which(asked).then(what));
        setup.patience.max_backoff = LONG * 60;
        let bench = Bench::new();
        let source = setup.source(&format!("docker://{}/team/app:1", server.host()));
        cancel_when(&bench, &source, &format!("request {n}"), || server.asked().iter().any(which));
    }
}

#[test]
fn who_waits_for_another_import_can_stop_waiting() {
    let served = Served::new();
    let copy = served.clone();
    let (server, setup) = stalling(&served, move |asked| {
        copy.is_layer(asked).then(|| copy.reply(asked).how(How::Stall(100)))
    });
    let bench = Bench::new();
    let source = setup.source(&format!("docker://{}/team/app:1", server.host()));
    let first = Cancel::new();
    std::thread::scope(|scope| {
        let importing = scope.spawn(|| import(&bench, &first, &source));
        let met = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_for("the layer", || server.asked().iter().any(|a| served.is_layer(a)));
            // The second asks for manifest and config, then waits for the first one's layer.
            let second = Cancel::new();
            std::thread::scope(|scope| {
                let waiting = scope.spawn(|| import(&bench, &second, &source));
                wait_for("the second import", || server.asked().len() >= 5);
                second.cancel();
                assert!(matches!(waiting.join().unwrap(), Err(Error::Cancelled)));
            });
        }));
        first.cancel();
        assert!(matches!(importing.join().unwrap(), Err(Error::Cancelled)));
        met.unwrap();
    });
    bench.assert_nothing_happened();
}

#[test]
fn a_download_from_a_web_server_ends() {
    let file = gzip(&big(1, 100_000));
    let (ca, digest) = (Ca::new(), Digest::of(&file));
    let copy = file.clone();
    let web = Scripted::start_tls(&ca.sign("server", &["127.0.0.1"]), move |_| {
        Reply::new(200, copy.clone()).how(How::Stall(30_000))
    });
    let mut setup = Setup::new();
    setup.config.ca = Some(ca.path());
    setup.patience.window = LONG * 60;
    setup.patience.answer = LONG * 60;
    let url = web.url().parse().unwrap();
    let source = HttpsSource { url, digest: Some(digest), registries: setup.registries() };
    let bench = Bench::new();
    cancel_when(&bench, &Source::HttpsTar(source), "the start of a file", || {
        part_length(&bench, &digest) > 0
    });
    assert!(part_length(&bench, &digest) > 0);
}

#[test]
fn the_reading_of_a_disk_ends_in_the_middle_of_a_hole() {
    let bench = Bench::new();
    let (root, disk) = (bench.path("root"), bench.path("disk"));
    fs::create_dir_all(root.join("sbin")).unwrap();
    fs::copy("/bin/true", root.join("sbin/init")).unwrap();
    // Hours of zeros.
    File::create(root.join("hole")).unwrap().set_len(1 << 40).unwrap();
    File::create(&disk).unwrap().set_len(64 << 20).unwrap();
    run("mke2fs", &["-q", "-t", "ext4", "-d", text(&root), text(&disk)]);
    let source = Source::DiskImage { file: disk, options: DiskOptions::default() };
    cancel_when(&bench, &source, "the hole is reached", || {
        let staging = bench.path("store/staging");
        let mut works = fs::read_dir(staging).unwrap().map(|work| work.unwrap().path());
        works.any(|work| work.join("layer/fs/hole").exists())
    });
}

/// A bench with an image, and its digest.
fn filled() -> (Bench, Reference) {
    let bench = Bench::new();
    let image = bench.import_layers(&[gzipped(&big(1, 9_000_000))]).unwrap();
    (bench, image.manifest_digest.into())
}

#[test]
fn a_push_ends_while_the_registry_thinks() {
    let (bench, image) = filled();
    // It listens, and answers never.
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = server.local_addr().unwrap().to_string();
    let mut setup = Setup::new();
    setup.patience.answer = LONG * 60;
    setup.host(&host).plain_http = true;
    let to = format!("docker://{host}/team/app:1").parse().unwrap();
    let cancel = Cancel::new();
    let store = bench.store.cancelled_by(&cancel).unwrap();
    std::thread::scope(|scope| {
        let pushing =
            scope.spawn(|| store.push(&image, &to, &setup.registries(), &[], &mut |_| {}));
        let (mut asking, _) = server.accept().unwrap();
        asking.read_exact(&mut [0; 4]).unwrap();
        // A prune may run meanwhile, and takes nothing of the image.
        bench.store.remove(&name("test")).unwrap();
        let pruned = bench.store.prune(&HashSet::new()).unwrap();
        cancel.cancel();
        let ended = pushing.join().unwrap();
        assert!(matches!(ended, Err(Error::Cancelled)), "{ended:?}");
        assert_eq!((pruned.images.len(), pruned.blobs), (1, 0));
    });
    assert_eq!(bench.store.prune(&HashSet::new()).unwrap().blobs, 3);
}

#[test]
fn what_writes_ends_and_leaves_no_file() {
    let (bench, image) = filled();
    let out = bench.path("out");
    fs::create_dir(&out).unwrap();
    let dir = File::open(&out).unwrap();
    let limits = Limits::default();
    // Each is cancelled by its own progress, so in the middle; a disk has none and is cancelled before.
    let work = |run: &mut dyn FnMut(&ocivisor_datastore::Store, &Cancel) -> Result<()>| {
        let cancel = Cancel::new();
        let store = bench.store.cancelled_by(&cancel).unwrap();
        let ended = run(&store, &cancel);
        assert!(matches!(ended, Err(Error::Cancelled)), "{ended:?}");
    };
    for form in [Archive::OciLayout, Archive::OciArchive, Archive::DockerArchive] {
        let two = bench.layout("two");
        two.image(&[gzipped(&big(2, 5_000_000)), gzipped(&big(3, 5_000_000))], &json!({}));
        let two: Reference = bench.import(&two.source()).unwrap().manifest_digest.into();
        work(&mut |store, cancel| {
            store
                .save(std::slice::from_ref(&two), form, &dir, "saved", &mut |_| cancel.cancel())
                .map(drop)
        });
    }
    work(&mut |store, cancel| {
        let mut sink = std::io::sink();
        store.export_tar(&image, None, &mut sink, &limits, &mut |_| cancel.cancel()).map(drop)
    });
    work(&mut |store, cancel| {
        cancel.cancel();
        let options = DiskExport { format: DiskFormat::Raw, size: None, label: None };
        store.export_disk(&image, None, &out.join("disk"), &options, &limits).map(drop)
    });
    assert_eq!(entries(&out), Vec::<String>::new());

    let upper = bench.path("upper");
    fs::create_dir(&upper).unwrap();
    put(&upper.join("file"), &big(4, 9_000_000));
    let dir = File::open(&upper).unwrap();
    let before = entries(&bench.path("store/blobs/sha256"));
    work(&mut |store, cancel| {
        let upper = Upper { dir: &dir, ids: IdMap::IDENTITY };
        let (changes, options) = (CommitChanges::default(), CommitOptions::default());
        let made = name("made");
        store.commit(&image, upper, &changes, &made, &options, &mut |_| cancel.cancel()).map(drop)
    });
    assert_eq!(entries(&bench.path("store/blobs/sha256")), before);
    assert_eq!(entries(&bench.path("store/staging")), Vec::<String>::new());
    assert_eq!(bench.store.fsck().unwrap(), vec![]);
}

#[test]
fn who_waits_for_the_stores_lock_can_stop_waiting() {
    let bench = Bench::new();
    let layout = bench.layout("layout");
    layout.image(&[gzipped(&big(1, 1000))], &json!({}));
    let lock = File::open(bench.path("store/lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let cancel = Cancel::new();
    let (said, hear) = mpsc::channel();
    std::thread::scope(|scope| {
        let (bench, cancel, source) = (&bench, &cancel, layout.source());
        scope.spawn(move || said.send(import(bench, cancel, &source)).unwrap());
        assert!(hear.try_recv().is_err());
        cancel.cancel();
        let ended = hear.recv_timeout(LONG).unwrap();
        assert!(matches!(ended, Err(Error::Cancelled)), "{ended:?}");
    });
}
