//! Logging in at registries: passwords, tokens, certificates, credential files and helpers.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

mod common;
#[path = "common/puller.rs"]
mod puller;
#[path = "common/registry.rs"]
mod registry;
#[path = "common/wire.rs"]
mod wire;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::*;
use ocivisor_datastore::RegistryFault as Fault;
use puller::*;
use registry::*;
use serde_json::{Value, json};
use wire::*;

#[test]
fn child() {
    puller::live();
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
