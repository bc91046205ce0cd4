//! What containers-policy.json says, and which signatures are believed.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

mod common;
#[path = "common/trust.rs"]
mod trust;

use std::fs;
use std::path::Path;

use common::*;
use ocivisor_datastore::trust::{
    Distrust, DockerReference, Origin, Policy, PolicyError, Signature, attached_signatures,
    signature_tag,
};
use ocivisor_datastore::{Digest, Error, Limits, Registries, RegistriesConfig, Source, Store};
use serde_json::{Value, json};
use trust::*;

// The file

fn docker(reference: &str) -> Origin {
    Origin::registry(DockerReference::parse(reference).unwrap())
}

fn rejected(scope: &str) -> Result<(), Distrust> {
    Err(Distrust::Rejected { scope: scope.into() })
}

#[test]
fn the_most_specific_scope_alone_decides() {
    let (yes, no) = (json!([{"type": "insecureAcceptAnything"}]), json!([{"type": "reject"}]));
    let policy = policy(&json!({
        "default": no,
        "transports": {
            "docker": {
                "": yes,
                "host.example": no,
                "host.example/team": yes,
                "host.example/team/app": no,
                "host.example/team/app:1": yes,
                "*.wild.example": no,
                "a.wild.example:5000": yes,
                "docker.io/library": no,
            },
            "oci": {"/srv/images": yes, "/srv/images/bad": no, "/srv/images/bad:good": yes},
            "docker-archive": {"": yes},
        }
    }))
    .unwrap();
    let digest = Digest::of(b"");
    for (origin, verdict) in [
        (docker("other.example/x:1"), Ok(())),
        (docker("host.example/x:1"), rejected("docker:host.example")),
        (docker("host.example/team/other:1"), Ok(())),
        (docker("host.example/teams/x:1"), rejected("docker:host.example")),
        (docker("host.example/team/app:1"), Ok(())),
        (docker("host.example/team/app:2"), rejected("docker:host.example/team/app")),
        (docker("b.wild.example/x:1"), rejected("docker:*.wild.example")),
        (docker("c.b.wild.example:5000/x:1"), rejected("docker:*.wild.example")),
        (docker("a.wild.example:5000/x:1"), Ok(())),
        (docker("wild.example/x:1"), Ok(())),
        (docker("busybox"), rejected("docker:docker.io/library")),
        (docker("team/x"), Ok(())),
        (Origin::layout(Path::new("/srv/images/x"), None), Ok(())),
        (Origin::layout(Path::new("/srv/images/bad/x"), None), rejected("oci:/srv/images/bad")),
        (Origin::layout(Path::new("/srv/images/bad"), Some("good")), Ok(())),
        (Origin::layout(Path::new("/srv/imagesx"), None), rejected("default")),
        (Origin::archive(Path::new("/srv/images/x.tar")), rejected("default")),
        (Origin::docker_archive(), Ok(())),
        (Origin::root_file_system(), rejected("default")),
    ] {
        assert_eq!(policy.verify(&origin, &digest, &[]), verdict, "{origin:?}");
    }
}

/// What skopeo 1.9 does with the same scopes and references, the last two rows aside: it takes hosts with and without
/// capital letters for two.
#[test]
fn a_port_is_part_of_the_host_also_where_it_is_the_usual_one() {
    // Rejected before the network is asked; what is let in finds nobody there.
    let nobody = RegistriesConfig { attempts: 1, ..RegistriesConfig::default() };
    let nobody = Registries::new(nobody)
        .with_fixed_addresses(vec![("host.example".into(), "127.0.0.1".parse().unwrap())]);
    for (scope, reference, applies) in [
        ("host.example", "host.example/team/app:1", true),
        ("host.example", "host.example:443/team/app:1", false),
        ("host.example", "host.example:5000/team/app:1", false),
        ("host.example:443", "host.example/team/app:1", false),
        ("host.example:443", "host.example:443/team/app:1", true),
        ("host.example/team", "host.example:443/team/app:1", false),
        ("host.example:443/team", "host.example/team/app:1", false),
        ("host.example:5000/team", "host.example:5000/team/app:1", true),
        ("host.example:5000/team/app:1", "host.example:5000/team/app:1", true),
        ("host.example:5000/team/app:1", "host.example:5000/team/app:2", false),
        // Wildcards are of hosts without their ports.
        ("*.example", "host.example/team/app:1", true),
        ("*.example", "host.example:5000/team/app:1", true),
        ("*.example:5000", "host.example:5000/team/app:1", false),
        ("*.host.example", "host.example/team/app:1", false),
        ("Host.Example/team", "host.example/team/app:1", true),
        ("*.Example", "host.example:5000/team/app:1", true),
    ] {
        let policy = policy(&json!({
            "default": [{"type": "insecureAcceptAnything"}],
            "transports": {"docker": {scope: [{"type": "reject"}]}},
        }));
        let store = tempfile::tempdir().unwrap();
        let store = Store::open(store.path()).unwrap().with_policy(policy.unwrap());
        let source: Source = format!("docker://{reference}").parse().unwrap();
        let (source, name) = (source.with_registries(&nobody), "x".parse().unwrap());
        let error = store.import(&source, &name, &Limits::default(), &mut |_| {}).unwrap_err();
        let refused = matches!(error, Error::Untrusted { .. });
        assert_eq!(refused, applies, "{scope} {reference}: {error}");
    }
}

#[test]
fn a_policy_that_is_not_wholly_understood_is_none() {
    let good = json!([{"type": "insecureAcceptAnything"}]);
    let key = "data";
    for bad in [
        json!({}),
        json!([]),
        json!({"default": []}),
        json!({"default": good, "extra": 1}),
        json!({"default": [{"type": "accept"}]}),
        json!({"default": [{"type": "reject", "why": "x"}]}),
        json!({"default": [{}]}),
        json!({"default": [{"type": "signedBy"}]}),
        json!({"default": [{"type": "sigstoreSigned"}]}),
        json!({"default": [{"type": "sigstoreSigned", "keyPath": "/k", "keyData": key}]}),
        json!({"default": [{"type": "sigstoreSigned", "keyPaths": []}]}),
        json!({"default": [{"type": "sigstoreSigned", "keyData": "not base64!"}]}),
        json!({"default": [{"type": "sigstoreSigned", "keyPath": "/k", "keypath": "/l"}]}),
        json!({"default": [{"type": "sigstoreSigned", "keyPath": "/k", "signedIdentity": {"type": "x"}}]}),
        json!({"default": [{"type": "sigstoreSigned", "keyPath": "/k",
            "signedIdentity": {"type": "exactReference", "dockerReference": "host.example/x"}}]}),
        json!({"default": good, "transports": {"docker": {"a": []}}}),
        json!({"default": good, "transports": {"dir": {"/": good}}}),
        json!({"default": good, "transports": {"docker": {"x*.example": good}}}),
        json!({"default": good, "transports": {"docker": {"*.example/team": good}}}),
        json!({"default": good, "transports": {"docker": {"a.example": good, "A.example": good}}}),
    ] {
        assert!(matches!(policy(&bad), Err(PolicyError::Invalid(_))), "{bad}");
    }
    for bad in [
        r#"{"default": [{"type": "reject"}], "default": [{"type": "insecureAcceptAnything"}]}"#,
        r#"{"default": [{"type": "reject"}], "transports": {"docker": {}, "docker": {}}}"#,
        r#"{"default": [{"type": "reject"}], "transports": {"docker": {"a": [{"type": "reject"}], "a": [{"type": "reject"}]}}}"#,
        r#"{"default": [{"type": "sigstoreSigned", "keyPath": "/a", "keyPath": "/b"}]}"#,
        "",
    ] {
        assert!(matches!(Policy::parse(bad.as_bytes()), Err(PolicyError::Invalid(_))), "{bad}");
    }
}

#[test]
fn what_is_demanded_and_not_supported_refuses_and_is_named() {
    let key = json!("/k");
    for (requirement, what) in [
        (
            json!({"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k"}),
            "an OpenPGP signature (signedBy)",
        ),
        (
            json!({"type": "sigstoreSigned", "fulcio": {"caPath": "/c"}, "rekorPublicKeyPath": "/r"}),
            "a Fulcio certificate",
        ),
        (
            json!({"type": "sigstoreSigned", "keyPath": key, "rekorPublicKeyData": "x"}),
            "an entry in a Rekor log",
        ),
        (json!({"type": "sigstoreSigned", "pki": {}}), "a certificate of a PKI"),
    ] {
        let accept = json!({"type": "insecureAcceptAnything"});
        let policy = policy(&json!({"default": [accept, requirement]})).unwrap();
        let why = policy.verify(&docker("host.example/x:1"), &Digest::of(b""), &[]).unwrap_err();
        let text = format!("policy for default demands {what}, which is not supported");
        assert_eq!(why.to_string(), text);
    }
}

#[test]
fn the_policy_of_debian_is_read_and_a_missing_one_is_none() {
    let top = tempfile::tempdir().unwrap();
    let path = top.path().join("policy.json");
    assert_eq!(Policy::load(&path).unwrap(), None);
    put(&path, b"{\n    \"default\": [\n        {\n            \"type\": \"insecureAcceptAnything\"\n        }\n    ]\n}\n");
    let policy = Policy::load(&path).unwrap().unwrap();
    policy.verify(&docker("host.example/x:1"), &Digest::of(b""), &[]).unwrap();
    put(&path, b"{");
    Policy::load(&path).unwrap_err();
    // Not there and not readable are two things.
    assert!(matches!(Policy::load(top.path()), Err(PolicyError::Io { .. })));
}

// Signatures: keys and signatures by openssl

#[test]
fn signatures_with_each_kind_of_key_are_verified() {
    let keys = Keys::new();
    let digest = Digest::of(b"manifest");
    let document = payload("host.example/app:1", &digest).to_string();
    let origin = docker("host.example/app:1");
    let exact = json!({"type": "matchExact"});
    for name in ["p256", "p384", "ed25519", "rsa"] {
        let policy = keys.policy(name, &exact);
        let signature = keys.sign(name, document.as_bytes());
        policy.verify(&origin, &digest, std::slice::from_ref(&signature)).unwrap();
        // One of several is enough, and the key may lie in the policy itself.
        let other = keys.sign("other", document.as_bytes());
        policy.verify(&origin, &digest, &[other.clone(), signature.clone()]).unwrap();
        let pem = fs::read(keys.public(name)).unwrap();
        let data = base64(&pem);
        let inline = self::policy(&json!({"default": [
            {"type": "sigstoreSigned", "keyDatas": [base64(&fs::read(keys.public("p521").with_file_name("other.pub")).unwrap()), data], "signedIdentity": exact}]}));
        inline.unwrap().verify(&origin, &digest, std::slice::from_ref(&signature)).unwrap();

        let bad = |signatures: &[Signature], digest: &Digest| {
            policy.verify(&origin, digest, signatures).unwrap_err()
        };
        assert_eq!(bad(&[], &digest), Distrust::Unsigned { scope: "default".into() });
        let why = |why: &str, count| Distrust::BadSignatures {
            scope: "default".into(),
            count,
            why: why.into(),
        };
        assert_eq!(bad(&[other], &digest), why("it is not by the demanded key", 1));
        let mut flipped = signature.clone();
        *flipped.signature.last_mut().unwrap() ^= 1;
        assert_eq!(bad(&[flipped], &digest), why("it is not by the demanded key", 1));
        let mut changed = signature.clone();
        changed.payload.push(b' ');
        assert_eq!(bad(&[changed], &digest), why("it is not by the demanded key", 1));
        let text = format!("it is for another image: {digest}");
        assert_eq!(bad(&[signature], &Digest::of(b"other")), why(&text, 1));
    }
    for name in ["p521", "short"] {
        let why = keys.policy(name, &exact).verify(&origin, &digest, &[]).unwrap_err();
        assert!(matches!(&why, Distrust::Key { key, .. } if key.ends_with(".pub")), "{why}");
    }
    let missing =
        policy(&json!({"default": [{"type": "sigstoreSigned", "keyPath": "/nonexistent"}]}));
    let why = missing.unwrap().verify(&origin, &digest, &[]).unwrap_err();
    assert_eq!(
        why.to_string(),
        "policy for default: key /nonexistent cannot be used: No such file or directory (os error 2)"
    );
}

#[test]
fn a_signed_document_must_say_what_it_is_and_nothing_else() {
    let keys = Keys::new();
    let digest = Digest::of(b"manifest");
    let origin = docker("host.example/app:1");
    let policy = keys.policy("p256", &json!({"type": "matchRepository"}));
    let verify = |document: String| {
        policy.verify(&origin, &digest, &[keys.sign("p256", document.as_bytes())])
    };
    let good = payload("host.example/app", &digest);
    verify(good.to_string()).unwrap();
    let with = |pointer: &str, value: Value| {
        let mut changed = good.clone();
        *changed.pointer_mut(pointer).unwrap() = value;
        changed.to_string()
    };
    verify(with("/optional", Value::Null)).unwrap();
    let mut extra = good.clone();
    extra["critical"]["extra"] = json!(1);
    for (document, want) in [
        (
            with("/critical/type", json!("atomic container signature")),
            "it is a signature of another kind",
        ),
        (with("/critical/image/docker-manifest-digest", json!("sha512:00")), "its document is odd"),
        (
            with("/critical/identity/docker-reference", json!("host.example/other")),
            "it is for the image under another name: host.example/other",
        ),
        (
            with("/critical/identity/docker-reference", json!("evil\n\u{1b}[2J")),
            "it is for the image under another name: evil",
        ),
        (extra.to_string(), "its document is odd"),
        ("[]".to_owned(), "its document is odd"),
        (
            good.to_string().replacen("{\"critical\"", "{\"critical\":null,\"critical\"", 1),
            "its document is odd",
        ),
    ] {
        let why = verify(document.clone()).unwrap_err();
        let Distrust::BadSignatures { why, .. } = &why else { panic!("{why}") };
        assert!(why.starts_with(want) && !why.contains(['\n', '\x1b']), "{document}: {why}");
    }
}

#[test]
fn every_requirement_must_be_met() {
    let keys = Keys::new();
    let digest = Digest::of(b"manifest");
    let origin = docker("mirror.example/vendor/app:1");
    let remap = json!({"type": "remapIdentity", "prefix": "mirror.example/vendor",
        "signedPrefix": "vendor.example"});
    let both = policy(&json!({"default": [
        keys.requirement("p256", &remap),
        keys.requirement("other", &json!({"type": "matchRepoDigestOrExact"})),
    ]}))
    .unwrap();
    let vendor = keys.sign("p256", payload("vendor.example/app:1", &digest).to_string().as_bytes());
    let local =
        keys.sign("other", payload("mirror.example/vendor/app:1", &digest).to_string().as_bytes());
    both.verify(&origin, &digest, &[vendor.clone(), local.clone()]).unwrap();
    both.verify(&origin, &digest, &[vendor]).unwrap_err();
    both.verify(&origin, &digest, &[local]).unwrap_err();
}

#[test]
fn attachments_are_bounded_and_foreign_ones_passed_over() {
    const SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
    let layer = |media: &str, size: u64, signature: &str| {
        json!({"mediaType": media, "digest": Digest::of(b"x").to_string(), "size": size,
            "annotations": {"dev.cosignproject.cosign/signature": signature}})
    };
    let read = |layers: &[Value]| {
        let manifest = json!({"schemaVersion": 2, "layers": layers}).to_string();
        attached_signatures(manifest.as_bytes(), &mut |digest, size| {
            assert_eq!((*digest, size), (Digest::of(b"x"), 1));
            Ok(b"x".to_vec())
        })
    };
    let good = Signature { payload: b"x".to_vec(), signature: b"sig".to_vec() };
    let layers =
        [layer("application/x", 1 << 40, ""), layer(SIGNING, 1, "!"), layer(SIGNING, 1, "c2ln")];
    assert_eq!(read(&layers).unwrap(), [good]);
    assert!(matches!(read(&[layer(SIGNING, 65_537, "c2ln")]), Err(Error::Document { .. })));
    assert!(matches!(read(&vec![layer(SIGNING, 1, "c2ln"); 65]), Err(Error::Document { .. })));
    assert_eq!(signature_tag(&Digest::of(b"x")).len(), 7 + 64 + 4);
}
