//! Pulling from a real registry: what skopeo pushed, we get, file by file; with each login, after each break.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

mod common;
#[path = "common/registry.rs"]
mod registry;
#[path = "common/wire.rs"]
mod wire;

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::*;
use ocivisor_datastore::{Cancel, Digest, Limits, Progress, RegistryFault as Fault, Store};
use registry::*;
use serde_json::{Value, json};
use wire::*;

fn two_layers() -> [Layer; 2] {
    [gzipped(&big(1, 300_000)), gzipped(&big(2, 3_000_000))]
}

/// A registry with TLS and login that has an image which skopeo pushed.
fn filled(bench: &Bench, ca: &Ca, layers: &[Layer]) -> (Distribution, Layout, String) {
    let server = Distribution::start(Some(&ca.sign("server", &["127.0.0.1"])), &Auth::Basic);
    let layout = bench.layout("layout");
    layout.image(layers, &json!({"Env": ["A=b"], "Cmd": ["/bin/sh"]}));
    let reference = format!("docker://{}/team/app:1", server.host());
    skopeo(ca, &format!("oci:{}", layout.dir.display()), &reference);
    (server, layout, reference)
}

fn assert_clean(bench: &Bench) {
    assert_eq!(bench.store.fsck().unwrap(), vec![]);
    assert_eq!(entries(&bench.path("store/partial")), Vec::<String>::new());
    assert_eq!(entries(&bench.path("store/staging")), Vec::<String>::new());
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
fn logins_that_are_missing_or_wrong_are_told_apart() {
    let bench = Bench::new();
    let ca = Ca::new();
    let (server, _, reference) = filled(&bench, &ca, &[gzipped(&big(1, 1000))]);
    let fault = |setup: &Setup, reference: &str| match bench.import(&setup.source(reference)) {
        Err(ocivisor_datastore::Error::Registry { why, .. }) => why,
        other => panic!("{other:?}"),
    };
    let mut setup = Setup::new();
    setup.host(&server.host()).ca = Some(ca.path());
    assert_eq!(fault(&setup, &reference), Fault::LoginRequired);
    let file = setup.dir.path().join("wrong");
    put(&file, b"wrong");
    setup.host(&server.host()).username = Some(USER.into());
    setup.host(&server.host()).password_file = Some(file);
    assert_eq!(fault(&setup, &reference), Fault::LoginRefused(401));
    setup.login(&server.host());
    let absent = format!("docker://{}/team/app:2", server.host());
    assert_eq!(fault(&setup, &absent), Fault::NotFound);
    bench.assert_nothing_happened();
}

/// What a test's token server signs with, and signs.
struct Tokens {
    key: rcgen::KeyPair,
    chain: String,
}

impl Tokens {
    fn new(dir: &Path) -> (Self, std::path::PathBuf) {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["tokens".to_owned()]).unwrap();
        let cert = params.self_signed(&key).unwrap();
        let path = dir.join("tokens.crt");
        put(&path, cert.pem().as_bytes());
        let chain = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, cert.der());
        (Self { key, chain }, path)
    }

    fn sign(&self, scopes: &[(String, Vec<&str>)]) -> String {
        use base64::Engine;
        let text =
            |v: &Value| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(v.to_string());
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let access: Vec<_> = scopes
            .iter()
            .map(|(name, actions)| json!({"type": "repository", "name": name, "actions": actions}))
            .collect();
        let head = json!({"typ": "JWT", "alg": "ES256", "x5c": [self.chain]});
        let claims = json!({"iss": "tests", "sub": USER, "aud": "registry", "access": access, "jti": "1",
            "exp": now.as_secs() + 600, "nbf": now.as_secs() - 60, "iat": now.as_secs() - 60});
        let body = format!("{}.{}", text(&head), text(&claims));
        let der = rcgen::SigningKey::sign(&self.key, body.as_bytes()).unwrap();
        let signature =
            base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(raw_signature(&der));
        format!("{body}.{signature}")
    }
}

/// The two numbers of an ECDSA signature in DER, 32 bytes each.
fn raw_signature(der: &[u8]) -> Vec<u8> {
    let number = |at: usize| {
        let length = usize::from(der[at + 1]);
        let bytes = &der[at + 2..at + 2 + length];
        let bytes = &bytes[bytes.iter().take_while(|b| **b == 0).count()..];
        let mut out = vec![0; 32 - bytes.len()];
        out.extend(bytes);
        (out, at + 2 + length)
    };
    let (r, next) = number(2);
    let (s, _) = number(next);
    [r, s].concat()
}

/// Gives tokens to the tester for what he asks, and to nobody the right to pull.
fn token_server(ca: &Ca, tokens: Tokens) -> Scripted {
    Scripted::start_tls(&ca.sign("token", &["127.0.0.1"]), move |asked| {
        let scopes: Vec<_> = asked
            .path
            .split(['?', '&'])
            .filter_map(|p| p.strip_prefix("scope="))
            .map(|scope| {
                let scope = scope.replace("%3A", ":").replace("%2F", "/").replace("%2C", ",");
                let mut words = scope.split(':').skip(1).map(str::to_owned);
                let name = words.next().unwrap();
                let all = words.next().unwrap();
                (name, ["pull", "push"].into_iter().filter(|a| all.contains(a)).collect())
            })
            .collect();
        let known = asked.headers.contains_key("authorization");
        let token = if known { tokens.sign(&scopes) } else { tokens.sign(&[]) };
        let body = json!({"token": token, "expires_in": 300}).to_string();
        Reply::new(200, body).with("content-type", "application/json")
    })
}

#[test]
fn a_token_is_fetched_from_a_listed_token_server() {
    let bench = Bench::new();
    let ca = Ca::new();
    let (tokens, cert) = Tokens::new(ca.dir.path());
    let token = token_server(&ca, tokens);
    let auth = Auth::Token(format!("{}/token", token.url()), cert);
    let server = Distribution::start(Some(&ca.sign("server", &["127.0.0.1"])), &auth);
    let layout = bench.layout("layout");
    layout.image(&two_layers(), &json!({}));
    let reference = format!("docker://{}/team/app:1", server.host());
    skopeo(&ca, &format!("oci:{}", layout.dir.display()), &reference);
    let before = token.asked().len();

    let mut setup = Setup::new();
    setup.config.ca = Some(ca.path());
    setup.login(&server.host());
    let error = bench.import(&setup.source(&reference)).unwrap_err().to_string();
    let want =
        format!("the registry asks to log in at {}, where its credentials do not go", token.url());
    assert!(error.contains(&want), "{error}");
    assert_eq!(token.asked().len(), before);

    setup.host(&server.host()).token_hosts.push(token.host().parse().unwrap());
    bench.import(&setup.source(&reference)).unwrap();
    assert_clean(&bench);
    // One login for manifest, config and two layers; a token is not asked for twice.
    let asked = &token.asked()[before..];
    assert!((1..=2).contains(&asked.len()), "{asked:?}");
    assert_eq!(asked[0].path, "/token?service=registry&scope=repository:team/app:pull");

    setup.host(&server.host()).username = None;
    setup.host(&server.host()).password_file = None;
    let error = Bench::new().import(&setup.source(&reference)).unwrap_err().to_string();
    assert!(error.ends_with("login required; add credentials for this registry"), "{error}");
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

const CHILD: &str = "OCIVISOR_TEST_REGISTRY_CHILD";

/// Another process's pull, as [`child`] reads it from the environment.
#[expect(clippy::disallowed_methods, reason = "the test runs itself as another process")]
fn spawn(what: &Value, path: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact"])
        .env(CHILD, what.to_string())
        .env("PATH", path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn child() {
    let Some(what) = std::env::var_os(CHILD) else { return };
    let what: Value = serde_json::from_slice(what.as_encoded_bytes()).unwrap();
    let text = |key: &str| what[key].as_str().unwrap().to_owned();
    let store = Store::open(text("store").as_ref()).unwrap();
    let mut setup = Setup::new();
    setup.config = serde_json::from_value(what["config"].clone()).unwrap();
    store
        .import(
            &setup.source(&text("reference")),
            &"test".parse().unwrap(),
            &Limits::default(),
            &mut |_| {},
        )
        .unwrap();
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

#[test]
fn a_client_certificate_opens_a_registry_that_asks_for_one() {
    let bench = Bench::new();
    let ca = Ca::new();
    let signed = ca.sign("server", &["127.0.0.1"]);
    let server = Distribution::start_for(Some(&signed), &Auth::Anonymous, Some(&ca.path()));
    let me = ca.sign("client", &["client"]);
    let reference = format!("docker://{}/team/app:1", server.host());
    let mut setup = Setup::new();
    setup.host(&server.host()).ca = Some(ca.path());
    let without = bench.import(&setup.source(&reference)).unwrap_err().to_string();
    assert!(
        without.contains("no secure connection") || without.contains("not reachable"),
        "{without}"
    );
    setup.host(&server.host()).client_cert = Some(me.cert.clone());
    setup.host(&server.host()).client_key = Some(me.key);
    let with = bench.import(&setup.source(&reference)).unwrap_err().to_string();
    assert!(with.contains("not found"), "{with}");
    setup.host(&server.host()).client_key = Some(signed.key);
    let unfit = bench.import(&setup.source(&reference)).unwrap_err().to_string();
    assert!(unfit.contains("do not fit"), "{unfit}");
}

#[test]
fn logins_come_from_credential_files_and_helpers() {
    let bench = Bench::new();
    let ca = Ca::new();
    let (server, _, reference) = filled(&bench, &ca, &[gzipped(&big(1, 1000))]);
    let mut setup = Setup::new();
    setup.config.ca = Some(ca.path());
    let file = bench.path("auth.json");
    setup.config.auth_files = vec![bench.path("absent.json"), file.clone()];
    let pair = base64::Engine::encode(
        &base64::engine::general_purpose::STANDARD,
        format!("{USER}:{PASSWORD}"),
    );
    put(&file, json!({"auths": {server.host(): {"auth": pair}}}).to_string().as_bytes());
    bench.import(&setup.source(&reference)).unwrap();

    // A helper hears the host on stdin and sees nothing of our environment that is not its business.
    let bin = bench.path("bin");
    fs::create_dir(&bin).unwrap();
    let helper = |text: &str| {
        let path = bin.join("docker-credential-tester");
        put(&path, format!("#!/bin/sh\n{text}\n").as_bytes());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    let good = json!({"ServerURL": "x", "Username": USER, "Secret": PASSWORD});
    let checks = format!(
        "[ \"$1\" = get ] && [ \"$(cat)\" = {} ] && [ -z \"${CHILD}\" ] && echo '{good}'",
        server.host()
    );
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    for key in ["credHelpers", "credsStore"] {
        let auth = match key {
            "credHelpers" => json!({key: {server.host(): "tester"}}),
            _ => json!({key: "tester"}),
        };
        put(&file, auth.to_string().as_bytes());
        for (script, works) in [
            (checks.as_str(), true),
            ("echo 'credentials not found in native keychain'; exit 1", false),
            ("cat /dev/zero", false),
            ("echo '{}'", false),
            ("exec sleep 1000", false),
        ] {
            if script.contains("sleep") && key == "credsStore" {
                continue;
            }
            helper(script);
            let store = bench.path(&format!("store-{key}-{}", script.len()));
            let what = json!({"store": store, "reference": reference, "config": setup.config});
            let status = spawn(&what, &path).wait().unwrap();
            assert_eq!(status.success(), works, "{script}");
        }
    }
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
