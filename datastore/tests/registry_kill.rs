//! SIGKILL in the middle of a pull: what came so far is not fetched again.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

mod common;
#[path = "common/puller.rs"]
mod puller;
#[path = "common/registry.rs"]
mod registry;
#[path = "common/served.rs"]
mod served;
#[path = "common/wire.rs"]
mod wire;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::ExitStatus;

use common::*;
use ocivisor_datastore::{Digest, Limits, Store};
use puller::*;
use registry::*;
use serde_json::{Value, json};
use served::{Served, plain_setup, server};
use wire::*;

#[test]
fn child() {
    puller::live();
}

#[test]
fn a_pull_goes_on_where_a_killed_one_was() {
    let bench = Bench::new();
    let ca = Ca::new();
    let layer = gzipped(&big(6, 12_000_000));
    let size = layer.blob.len();
    let server = Distribution::start(Some(&ca.sign("server", &["127.0.0.1"])), &Auth::Basic);
    let layout = bench.layout("layout");
    layout.image(&[layer], &json!({}));
    let reference = format!("docker://{}/team/app:1", server.host());
    skopeo(&ca, &format!("oci:{}", layout.dir.display()), &reference);
    let relay = Relay::new(server.address());
    let reference = reference.replace(&server.host(), &relay.host());
    let mut setup = Setup::new();
    setup.login(&relay.host()).ca = Some(ca.path());
    setup.config.attempts = 1000;
    let what =
        json!({"store": bench.path("store"), "reference": reference, "config": setup.config});
    let part = || fs::read_dir(bench.path("store/partial")).ok()?.next()?.ok()?.metadata().ok();
    let arrived = || part().map_or(0, |m| m.len());
    for step in 1..=2u64 {
        let mut child = itself(&this_test(), &what).args(["child", "--exact"]).spawn().unwrap();
        wait_for("a part of the layer", || arrived() >= step * 1_000_000);
        child.kill().unwrap();
        assert!(!child.wait().unwrap().success());
    }
    let (sent, here) = (relay.sent(), arrived());
    let store = Store::open(&bench.path("store")).unwrap();
    store.import(&source(&what), &test_name(), &Limits::default(), &mut |_| {}).unwrap();
    let fetched = relay.sent() - sent;
    assert!(fetched < size as u64 + 100_000 - here, "{fetched} bytes again, {here} were here");
    assert_clean(&bench);
}

/// Everything that gives, moves or takes a name, and everything that brings it to the disk.
const STEPS: [&str; 6] = ["linkat", "renameat", "renameat2", "unlinkat", "fsync", "syncfs"];

/// Runs the child and kills it before its `n`th call of one of [`STEPS`].
fn killed_at(step: &str, n: u32, what: &Value) -> ExitStatus {
    itself("strace", what)
        .args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={step}"), "-e"])
        .arg(format!("inject={step}:signal=KILL:when={n}"))
        .args([&this_test(), "child", "--exact", "--test-threads=1"])
        .status()
        .unwrap_or_else(|e| panic!("this test needs strace, install it: {e}"))
}

/// Names that the whole file has: in `partial`, in staging, in `blobs`.
fn names(bench: &Bench, digest: &Digest, size: usize) -> (bool, bool, bool) {
    let whole = |path: &str| {
        let meta = fs::metadata(bench.path(&format!("store/{path}/{}", digest.hex()))).ok()?;
        (meta.len() == size as u64).then_some(meta)
    };
    let (part, blob) = (whole("partial"), whole("blobs/sha256"));
    let links = part.as_ref().or(blob.as_ref()).map_or(0, MetadataExt::nlink);
    let seen = u64::from(part.is_some()) + u64::from(blob.is_some());
    (part.is_some(), links > seen, blob.is_some())
}

/// Kills an import at each of its steps. Once the file is here, whole, nobody may ask the server for it again.
fn at_every_step(
    server: &Scripted,
    is_file: impl Fn(&Asked) -> bool,
    file: &[u8],
    what: impl Fn(&Bench) -> Value,
) {
    let digest = Digest::of(file);
    let mut seen = BTreeSet::new();
    for (step, n) in STEPS.iter().flat_map(|step| (1..50).map(move |n| (step, n))) {
        if seen.contains(&(step, None)) {
            continue;
        }
        let bench = Bench::new();
        let what = what(&bench);
        if killed_at(step, n, &what).success() {
            assert_clean(&bench);
            // It makes no more of these calls.
            seen.insert((step, None));
            continue;
        }
        let names = names(&bench, &digest, file.len());
        seen.insert((step, Some(names)));
        let before = server.asked().len();
        let store = Store::open(&bench.path("store")).unwrap();
        store.import(&source(&what), &test_name(), &Limits::default(), &mut |_| {}).unwrap();
        let asked = server.asked()[before..].iter().filter(|asked| is_file(asked)).count();
        let is_here = names.0 || names.2;
        assert_eq!(asked, usize::from(!is_here), "{step} {n}, {names:?}");
        assert_clean(&bench);
    }
    // In partial; in staging, too; as a blob, too; as that alone.
    for names in
        [(true, false, false), (true, true, false), (true, false, true), (false, false, true)]
    {
        assert!(seen.iter().any(|(_, s)| *s == Some(names)), "no kill left {names:?}: {seen:?}");
    }
    assert!(STEPS.iter().all(|step| seen.contains(&(step, None))), "{seen:?}");
}

#[test]
fn a_layer_that_came_whole_is_not_fetched_again_wherever_the_pull_is_killed() {
    let served = Served::new();
    let server = server(&served, |_| None);
    let setup = plain_setup(&server);
    let reference = format!("docker://{}/team/app:1", server.host());
    at_every_step(
        &server,
        |asked| served.is_layer(asked),
        &served.layer,
        |bench| json!({"store": bench.path("store"), "reference": reference, "config": setup.config}),
    );
}

#[test]
fn a_tarball_that_came_whole_is_not_fetched_again_wherever_the_import_is_killed() {
    let file = gzip(&big(1, 40_000));
    let (ca, body) = (Ca::new(), file.clone());
    let server = Scripted::start_tls(&ca.sign("server", &["127.0.0.1"]), move |asked| {
        let length = body.len();
        match asked.headers.get("range").map(String::as_str) {
            None => Reply::new(200, body.clone()),
            // What came to its end is asked for what is behind it, for nobody said how long it is.
            Some(range) if range == format!("bytes={length}-") => {
                Reply::new(416, "").with("content-range", format!("bytes */{length}"))
            }
            Some(range) => panic!("{range}"),
        }
    });
    let mut setup = Setup::new();
    setup.config.ca = Some(ca.path());
    let url = format!("{}/root.tar.gz", server.url());
    let is_file = |asked: &Asked| !asked.headers.contains_key("range");
    at_every_step(&server, is_file, &file, |bench| {
        json!({"store": bench.path("store"), "url": url, "digest": Digest::of(&file).to_string(),
            "config": setup.config})
    });
}

#[test]
fn a_blob_that_rotted_before_its_image_was_whole_is_fetched_anew() {
    let served = Served::new();
    let server = server(&served, |_| None);
    let setup = plain_setup(&server);
    let bench = Bench::new();
    let blob = bench.path("store/blobs/sha256").join(served.layer_digest().hex());
    put(&blob, &vec![1; served.layer.len()]);
    fs::set_permissions(&blob, PermissionsExt::from_mode(0o600)).unwrap();
    served::pull(&bench, &setup, &server).unwrap();
    assert_eq!(fs::read(&blob).unwrap(), served.layer);
    assert_eq!(server.asked().iter().filter(|asked| served.is_layer(asked)).count(), 1);
    assert_clean(&bench);
}
