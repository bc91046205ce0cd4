//! Pushing to a real registry, and what others read there.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

mod common;
#[path = "common/registry.rs"]
mod registry;
#[path = "common/wire.rs"]
mod wire;

use std::sync::{Arc, Mutex};

use common::*;
use ocivisor_datastore::{Digest, Error, PushProgress, Pushed, RegistryFault as Fault};
use registry::*;
use wire::*;

fn push(
    bench: &Bench,
    setup: &Setup,
    to: &str,
    from: &[&str],
) -> Result<(Pushed, Vec<PushProgress>), Error> {
    let from: Vec<String> = from.iter().map(|f| (*f).to_owned()).collect();
    let mut told = Vec::new();
    let image = "test".parse().unwrap();
    let pushed = bench
        .store
        .push(&image, &to.parse()?, &setup.registries(), &from, &mut |p| told.push(p))?;
    Ok((pushed, told))
}

fn secured(ca: &Ca) -> Distribution {
    Distribution::start(Some(&ca.sign("server", &["127.0.0.1"])), &Auth::Basic)
}

fn setup_for(ca: &Ca, host: &str) -> Setup {
    let mut setup = Setup::new();
    setup.login(host).ca = Some(ca.path());
    setup
}

#[test]
fn what_is_pushed_is_pulled_by_skopeo_and_by_us() {
    let bench = Bench::new();
    let ca = Ca::new();
    let server = secured(&ca);
    let layers = [gzipped(&big(1, 300_000)), gzipped(&big(2, 6_000_000))];
    let image = bench.import_layers(&layers).unwrap();
    let setup = setup_for(&ca, &server.host());
    let reference = format!("docker://{}/team/app:1", server.host());
    let (pushed, _) = push(&bench, &setup, &reference, &[]).unwrap();
    assert_eq!((pushed.sent, pushed.mounted, pushed.present), (3, 0, 0));

    let copy = bench.path("copy");
    skopeo(&ca, &reference, &format!("oci:{}", copy.display()));
    let other = Bench::new();
    assert_eq!(other.import(&Layout { dir: copy }.source()).unwrap(), image);
    let other = Bench::new();
    assert_eq!(other.import(&setup.source(&reference)).unwrap(), image);

    // A second time nothing is sent; to another repository it is mounted.
    let (again, _) = push(&bench, &setup, &reference, &[]).unwrap();
    assert_eq!(again, Pushed { present: 3, ..Pushed::default() });
    let there = format!("docker://{}/other/app", server.host());
    let (mounted, _) = push(&bench, &setup, &there, &["absent/repository", "team/app"]).unwrap();
    assert_eq!(mounted, Pushed { mounted: 3, ..Pushed::default() });
    assert_eq!(Bench::new().import(&setup.source(&there)).unwrap(), image);

    // By digest, where it is the image's.
    let digest = format!("docker://{}/third/app@{}", server.host(), image.manifest_digest);
    push(&bench, &setup, &digest, &["team/app"]).unwrap();
    assert_eq!(Bench::new().import(&setup.source(&digest)).unwrap(), image);
    let wrong = digest.replace(&image.manifest_digest.hex(), &image.config_digest.hex());
    let error = push(&bench, &setup, &wrong, &[]).unwrap_err();
    assert!(matches!(error, Error::Registry { why: Fault::NotPushable(_), .. }), "{error:?}");
}

fn offsets(told: &[PushProgress]) -> Vec<u64> {
    told.iter()
        .filter_map(|p| match p {
            PushProgress::Sending { from, size, .. } if *size > 1_000_000 => Some(*from),
            _ => None,
        })
        .collect()
}

#[test]
fn an_upload_that_a_registry_cannot_go_on_with_begins_anew() {
    let bench = Bench::new();
    let ca = Ca::new();
    let server = secured(&ca);
    let relay = Relay::new(server.address());
    let image = bench.import_layers(&[gzipped(&big(3, 8_000_000))]).unwrap();
    let mut setup = setup_for(&ca, &relay.host());
    setup.config.attempts = 1000;
    relay.break_up_after(6_000_000);
    let reference = format!("docker://{}/team/app:1", relay.host());
    let result = std::thread::scope(|scope| {
        let pushed = scope.spawn(|| push(&bench, &setup, &reference, &[]));
        wait_for("the break", || relay.is_broken());
        relay.mend();
        pushed.join().unwrap()
    });
    let (pushed, told) = result.unwrap();
    assert_eq!(pushed.sent, 2);
    // docker-registry 2.8 takes the state of an upload for wrong after half a chunk.
    assert!(offsets(&told).len() >= 2 && offsets(&told).iter().all(|o| *o == 0), "{told:?}");
    assert_eq!(Bench::new().import(&setup.source(&reference)).unwrap(), image);
}

#[test]
fn an_upload_that_breaks_is_gone_on_with() {
    let bench = Bench::new();
    let image = bench.import_layers(&[gzipped(&big(3, 6_000_000))]).unwrap();
    let half = 3_000_000;
    let stored = Arc::new(Mutex::new(Vec::new()));
    let (taken, manifest) = (stored.clone(), image.manifest_digest.to_string());
    let server = Scripted::start(move |asked| {
        let mut stored = taken.lock().unwrap();
        let upload =
            |status: u16| Reply::new(status, "").with("location", "/v2/a/blobs/uploads/1?s=x");
        match asked.method.as_str() {
            "HEAD" if asked.path.ends_with(&image.config_digest.to_string()) => Reply::new(200, ""),
            "HEAD" => Reply::new(404, ""),
            "POST" => upload(202),
            "PATCH" if stored.is_empty() => {
                stored.extend(&asked.body[..half]);
                Reply::new(503, "")
            }
            "PATCH" => {
                assert!(asked.headers["content-range"].starts_with(&format!("{half}-")));
                stored.extend(&asked.body);
                upload(202)
            }
            "GET" => upload(204).with("range", format!("0-{}", stored.len() - 1)),
            "PUT" if asked.path.contains("/manifests/") => {
                Reply::new(201, "").with("docker-content-digest", manifest.clone())
            }
            "PUT" => {
                let digest = Digest::of(&stored).to_string();
                assert_eq!(asked.path, format!("/v2/a/blobs/uploads/1?s=x&digest={digest}"));
                Reply::new(201, "").with("docker-content-digest", digest)
            }
            other => panic!("{other}"),
        }
    });
    let mut setup = Setup::new();
    setup.host(&server.host()).plain_http = true;
    let (pushed, told) = push(&bench, &setup, &format!("{}/a:1", server.host()), &[]).unwrap();
    assert_eq!((pushed.sent, pushed.present), (1, 1));
    assert_eq!(offsets(&told), [0, half as u64]);
}

#[test]
fn an_upload_is_not_led_elsewhere() {
    let bench = Bench::new();
    bench.import_layers(&[plain(big(1, 1000))]).unwrap();
    let thief = Scripted::start(|_| Reply::new(201, ""));
    let location = thief.url();
    for redirect in [false, true] {
        let location = location.clone();
        let server = Scripted::start(move |asked| {
            if !asked.headers.contains_key("authorization") {
                return Reply::new(401, "").with("www-authenticate", "Basic realm=\"x\"");
            }
            match asked.method.as_str() {
                "HEAD" => Reply::new(404, ""),
                "POST" if redirect => Reply::new(307, "").with("location", location.clone()),
                _ => Reply::new(202, "").with("location", format!("{location}/upload")),
            }
        });
        let mut setup = Setup::new();
        setup.login(&server.host()).plain_http = true;
        setup.host(&thief.host()).plain_http = true;
        let error = push(&bench, &setup, &format!("{}/a:1", server.host()), &[]).unwrap_err();
        let why = if redirect { "answers an upload" } else { "leads an upload to another server" };
        let to = format!("{}/{}", thief.url(), if redirect { "" } else { "upload" });
        match error {
            Error::Registry { why: got, .. } => assert_eq!(got, Fault::Redirect { to, why }),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(thief.asked().len(), 0);
}

#[test]
fn a_layer_that_no_other_program_knows_is_not_pushed() {
    let bench = Bench::new();
    let file = bench.path("root.tar.xz");
    put(&file, &xz(&big(1, 1000)));
    bench.import(&ocivisor_datastore::Source::RootfsTar { file }).unwrap();
    let server = Scripted::start(|_| Reply::new(500, ""));
    let mut setup = Setup::new();
    setup.host(&server.host()).plain_http = true;
    let error = push(&bench, &setup, &format!("{}/a:1", server.host()), &[]).unwrap_err();
    assert!(error.to_string().ends_with("a compression that images do not have (xz)"), "{error}");
    assert_eq!(server.asked().len(), 0);
}
