//! Pulling from a real registry: what skopeo pushed, we get, file by file, after each break.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

mod common;
#[path = "common/puller.rs"]
mod puller;
#[path = "common/registry.rs"]
mod registry;
#[path = "common/wire.rs"]
mod wire;

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};

use common::*;
use ocivisor_datastore::{Cancel, Digest, Limits, Progress, Store};
use puller::*;
use registry::*;
use serde_json::json;
use wire::*;

#[test]
fn child() {
    puller::live();
}

#[test]
fn what_skopeo_pushed_is_pulled_over_tls_with_a_login() {
    let bench = Bench::new();
    let ca = Ca::new();
    let second = big(2, 200_000);
    let diff_id = Digest::of(&second).to_string();
    let second = Layer { media_type: TAR_ZSTD, blob: zstd(&second), diff_id };
    let layers = [gzipped(&big(1, 300_000)), second, plain(big(3, 100_000))];
    let (server, layout, reference) = filled(&bench, &ca, &layers);

    let mut setup = Setup::new();
    setup.login(&server.host()).ca = Some(ca.path());
    let image = bench.import(&setup.source(&reference)).unwrap();
    let direct = Bench::new();
    assert_eq!(image, direct.import(&layout.source()).unwrap());
    for layer in &image.layers {
        let path = |b: &Bench| tree(&b.store.layer_path(layer));
        assert_same_tree(&path(&bench), &path(&direct), "layer");
    }
    assert_clean(&bench);

    let remote =
        setup.registries().inspect(&reference.parse().unwrap(), &Limits::default(), &Cancel::new());
    let remote = remote.unwrap();
    assert_eq!((remote.manifest_digest, remote.size), (image.manifest_digest, image.size));
    assert_eq!((remote.config_digest, &remote.config), (image.config_digest, &image.config));
    assert!(remote.layers.iter().map(|l| &l.1).eq(&image.layers));
}

#[test]
fn what_is_here_is_not_fetched() {
    let bench = Bench::new();
    let ca = Ca::new();
    let (server, layout, reference) = filled(&bench, &ca, &two_layers());
    let relay = Relay::new(server.address());
    let reference = reference.replace(&server.host(), &relay.host());
    let mut setup = Setup::new();
    setup.login(&relay.host()).ca = Some(ca.path());
    let image = bench.import(&setup.source(&reference)).unwrap();

    // By digest nothing is asked, by tag the manifest alone.
    let sent = relay.sent();
    let by_digest = format!("{}@{}", reference, image.manifest_digest);
    assert_eq!(bench.import(&setup.source(&by_digest)).unwrap(), image);
    assert_eq!(relay.sent(), sent);
    assert_eq!(bench.import(&setup.source(&reference)).unwrap(), image);
    assert!(relay.sent() - sent < 20_000);

    // Another image on the same base.
    let [base, _] = two_layers();
    layout.image(&[base, gzipped(&big(9, 50_000))], &json!({}));
    let to = format!("docker://{}/team/other:1", server.host());
    skopeo(&ca, &format!("oci:{}", layout.dir.display()), &to);
    let sent = relay.sent();
    let mut told = Vec::new();
    let other = reference.replace("app:1", "other:1");
    bench
        .store
        .import(&setup.source(&other), &"other".parse().unwrap(), &Limits::default(), &mut |p| {
            told.push(p);
        })
        .unwrap();
    assert_eq!(told[1], Progress::LayerPresent { layer: 1 });
    assert!(relay.sent() - sent < 100_000, "{}", relay.sent() - sent);
    assert_clean(&bench);
}

#[test]
fn a_registry_that_stops_mid_layer_and_comes_back_is_gone_on_with() {
    let bench = Bench::new();
    let ca = Ca::new();
    let layer = gzipped(&big(5, 16_000_000));
    let size = layer.blob.len();
    let (mut server, _, reference) = filled(&bench, &ca, &[layer]);
    let relay = Relay::new(server.address());
    let reference = reference.replace(&server.host(), &relay.host());
    let mut setup = Setup::new();
    setup.login(&relay.host()).ca = Some(ca.path());
    setup.config.attempts = 1000;
    relay.break_after(8_000_000);
    std::thread::scope(|scope| {
        let pulled = scope.spawn(|| bench.import(&setup.source(&reference)));
        wait_for("the break", || relay.is_broken());
        server.down();
        relay.mend();
        server.up();
        pulled.join().unwrap().unwrap();
    });
    // Once over, and a little of what the break lost in buffers.
    assert!(relay.sent() < size as u64 + 2_000_000, "{}", relay.sent());
    assert_clean(&bench);
}

#[test]
fn a_part_that_is_wrong_is_fetched_anew() {
    let bench = Bench::new();
    let ca = Ca::new();
    let layer = gzipped(&big(7, 500_000));
    let (server, _, reference) = filled(&bench, &ca, std::slice::from_ref(&layer));
    let mut setup = Setup::new();
    setup.login(&server.host()).ca = Some(ca.path());
    let part = bench.path("store/partial").join(Digest::of(&layer.blob).hex());
    fs::DirBuilder::new().mode(0o700).create(bench.path("store/partial")).unwrap();
    // As a power failure leaves a file: long enough, and nothing in it.
    for length in [1000, layer.blob.len(), layer.blob.len() + 5] {
        put(&part, &vec![0; length]);
        fs::set_permissions(&part, fs::Permissions::from_mode(0o600)).unwrap();
        bench.import(&setup.source(&reference)).unwrap();
        assert_clean(&bench);
        assert!(bench.store.remove(&"test".parse().unwrap()).unwrap());
        bench.store.prune(&Default::default()).unwrap();
    }
}

#[test]
fn two_processes_that_pull_the_same_image_both_get_it() {
    let bench = Bench::new();
    let ca = Ca::new();
    let (server, _, reference) = filled(&bench, &ca, &two_layers());
    let relay = Relay::new(server.address());
    let reference = reference.replace(&server.host(), &relay.host());
    let mut setup = Setup::new();
    setup.login(&relay.host()).ca = Some(ca.path());
    let what =
        json!({"store": bench.path("store"), "reference": reference, "config": setup.config});
    let path = std::env::var("PATH").unwrap();
    let children: Vec<_> = (0..3).map(|_| spawn(&what, &path)).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert_clean(&bench);
}

#[test]
fn an_index_is_followed_to_the_image_of_this_host() {
    let bench = Bench::new();
    let ca = Ca::new();
    let server = Distribution::start(Some(&ca.sign("server", &["127.0.0.1"])), &Auth::Basic);
    let layout = bench.layout("layout");
    let layer = gzipped(&big(1, 1000));
    let mut ours = layout.image(std::slice::from_ref(&layer), &json!({}));
    ours["platform"] = json!({"os": "linux", "architecture": host_arch()});
    let config = json!({"architecture": "s390x", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [&layer.diff_id]}});
    let manifest = layout.manifest(std::slice::from_ref(&layer), &config).to_string();
    let mut theirs = layout.descriptor(MANIFEST, manifest.as_bytes());
    theirs["platform"] = json!({"os": "linux", "architecture": "s390x"});
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [theirs, ours]});
    let top = layout.descriptor(INDEX, index.to_string().as_bytes());
    layout.index(std::slice::from_ref(&top));
    let reference = format!("docker://{}/team/app:1", server.host());
    skopeo(&ca, &format!("oci:{}", layout.dir.display()), &reference);
    let mut setup = Setup::new();
    setup.login(&server.host()).ca = Some(ca.path());
    for reference in [
        reference.clone(),
        format!("docker://{}/team/app@{}", server.host(), top["digest"].as_str().unwrap()),
    ] {
        let image = bench.import(&setup.source(&reference)).unwrap();
        assert_eq!(image.manifest_digest.to_string(), ours["digest"].as_str().unwrap());
    }
}

#[test]
fn mirrors_are_asked_first_and_the_registry_last() {
    let bench = Bench::new();
    let ca = Ca::new();
    let (server, _, reference) = filled(&bench, &ca, &two_layers());
    let origin = Scripted::start_tls(&ca.sign("origin", &["127.0.0.1"]), |_| Reply::new(500, ""));
    let mut setup = Setup::new();
    setup.config.ca = Some(ca.path());
    setup.login(&server.host());
    let closed = free_port();
    let from = reference.replace(&server.host(), &origin.host()).replace("/team/", "/");
    setup.host(&origin.host()).mirrors =
        vec![format!("https://127.0.0.1:{closed}"), format!("https://{}/team", server.host())];
    bench.import(&setup.source(&from)).unwrap();
    assert_eq!(origin.asked().len(), 0);

    // What the mirror does not have comes from the registry, with its error if it fails.
    setup.host(&origin.host()).mirrors = vec![format!("https://{}/nothing", server.host())];
    let error = Bench::new().import(&setup.source(&from)).unwrap_err().to_string();
    assert!(error.ends_with("HTTP status 500"), "{error}");
    setup.host(&server.host()).mirrors = vec![origin.url()];
    let bench = Bench::new();
    bench.import(&setup.source(&reference)).unwrap();
    assert_clean(&bench);
    origin.assert_no_credentials();
}

#[test]
fn a_proxy_carries_what_it_cannot_read() {
    let bench = Bench::new();
    let ca = Ca::new();
    let (server, _, reference) = filled(&bench, &ca, &two_layers());
    let proxy = Connect::start();
    let mut setup = Setup::new();
    let credentials = setup.dir.path().join("proxy");
    put(&credentials, b"proxyuser:proxypass\n");
    let own = setup.login(&server.host());
    own.ca = Some(ca.path());
    own.proxy = Some(format!("http://127.0.0.1:{}", proxy.port));
    own.proxy_credentials_file = Some(credentials);
    bench.import(&setup.source(&reference)).unwrap();
    let heads = proxy.heads();
    let first = format!("CONNECT {} HTTP/1.1", server.host());
    assert!(!heads.is_empty());
    for head in heads {
        assert_eq!(head.lines().next(), Some(first.as_str()));
        assert!(head.contains("Proxy-Authorization: Basic cHJveHl1c2VyOnByb3h5cGFzcw=="), "{head}");
        assert!(!head.to_lowercase().contains("\nauthorization"), "{head}");
    }
    let own = setup.host(&server.host());
    own.proxy = Some(format!("http://127.0.0.1:{}", free_port()));
    let error = Bench::new().import(&setup.source(&reference)).unwrap_err();
    let text = format!("{error} {error:?}");
    assert!(text.contains("not reachable") && !text.contains("proxypass"), "{text}");
}

// A prune beside a pull: what the pull needs stays, without the store's lock.

#[test]
fn a_prune_beside_a_pull_takes_what_is_nobodys_and_leaves_what_comes() {
    let bench = Bench::new();
    let ca = Ca::new();
    let [first, second] = two_layers();
    let third = gzipped(&big(3, 300_000));
    // The first layer is here by another image, whose name goes; a layer of that image is nobody's then.
    let old = bench.layout("old");
    old.image(&[first.clone(), third.clone()], &json!({}));
    let old = bench.import(&old.source()).unwrap();
    bench.store.remove(&"test".parse().unwrap()).unwrap();
    let (server, _layout, reference) =
        filled(&bench, &ca, &[first.clone(), second, gzipped(&big(4, 1000))]);
    let mut setup = Setup::new();
    setup.login(&server.host()).ca = Some(ca.path());

    let other = Store::open(&bench.path("store")).unwrap();
    let none = std::collections::HashSet::new();
    let mut pruned = Vec::new();
    let name = "pulled".parse().unwrap();
    let image =
        bench.store.import(&setup.source(&reference), &name, &Limits::default(), &mut |progress| {
            match progress {
                Progress::LayerPresent { layer: 1 }
                | Progress::LayerDone { layer: 2, .. }
                | Progress::LayerDone { layer: 3, .. } => {
                    let done = other.prune(&none).unwrap();
                    pruned.push((done.images, done.layers, done.blobs));
                }
                _ => {}
            }
        });
    let image = image.unwrap();
    let gone = (vec![old.manifest_digest], vec![old.layers[1]], 3);
    assert_eq!(pruned, [gone, (vec![], vec![], 0), (vec![], vec![], 0)]);
    assert_eq!(image.layers[0], old.layers[0]);
    assert_clean(&bench);
    assert_eq!(other.prune(&none).unwrap(), ocivisor_datastore::Pruned::default());
}

#[test]
fn what_a_pull_left_that_failed_is_pruned() {
    let bench = Bench::new();
    let ca = Ca::new();
    let (server, layout, reference) = filled(&bench, &ca, &two_layers());
    let cancel = ocivisor_datastore::Cancel::new();
    let mut setup = Setup::new();
    setup.login(&server.host()).ca = Some(ca.path());
    let store = bench.store.cancelled_by(&cancel).unwrap();
    let name = "pulled".parse().unwrap();
    let ended = store.import(&setup.source(&reference), &name, &Limits::default(), &mut |at| {
        if matches!(at, Progress::LayerDone { layer: 1, .. }) {
            cancel.cancel();
        }
    });
    assert!(matches!(ended, Err(ocivisor_datastore::Error::Cancelled)), "{ended:?}");
    let pruned = bench.store.prune(&std::collections::HashSet::new()).unwrap();
    assert_eq!((pruned.layers.len(), pruned.blobs), (1, 1));
    drop(layout);
}

#[test]
fn what_a_repair_took_away_meanwhile_is_missed() {
    let bench = Bench::new();
    let ca = Ca::new();
    let [first, second] = two_layers();
    let here = bench.layout("old");
    here.image(std::slice::from_ref(&first), &json!({}));
    let here = bench.import(&here.source()).unwrap();
    let (server, _layout, reference) = filled(&bench, &ca, &[first, second]);
    let mut setup = Setup::new();
    setup.login(&server.host()).ca = Some(ca.path());
    let name = "pulled".parse().unwrap();
    let layer = bench.store.layer_path(&here.layers[0]);
    let ended =
        bench.store.import(&setup.source(&reference), &name, &Limits::default(), &mut |at| {
            if matches!(at, Progress::LayerDone { layer: 2, .. }) {
                fs::remove_dir_all(layer.parent().unwrap()).unwrap();
            }
        });
    let Err(ocivisor_datastore::Error::Damaged { object, why }) = ended else {
        panic!("{ended:?}")
    };
    assert_eq!(object, format!("layer {}", here.layers[0]));
    assert_eq!(why, "went away while the image came in");
    assert!(bench.store.resolve(&name.into()).is_err());
}
