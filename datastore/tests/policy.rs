//! Who may bring in what: containers-policy.json, keys and signatures made by openssl, images signed by skopeo and
//! kept by a real registry.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

mod common;
#[path = "common/registry.rs"]
mod registry;

use std::fs;
use std::path::{Path, PathBuf};

use common::*;
use ocivisor_datastore::trust::{
    Distrust, DockerReference, Origin, Policy, PolicyError, Signature, attached_signatures,
    signature_tag,
};
use ocivisor_datastore::{
    Digest, Error, ImageName, Limits, Registries, RegistriesConfig, Source, Store,
};
use registry::*;
use serde_json::{Value, json};
use tempfile::TempDir;

// The file

fn policy(value: &Value) -> Result<Policy, PolicyError> {
    Policy::parse(value.to_string().as_bytes())
}

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

struct Keys {
    top: TempDir,
}

impl Keys {
    fn new() -> Self {
        let keys = Self { top: tempfile::tempdir().unwrap() };
        let elliptic = |curve: &str| {
            vec![
                "-algorithm".to_owned(),
                "EC".into(),
                "-pkeyopt".into(),
                format!("ec_paramgen_curve:{curve}"),
            ]
        };
        let rsa = |bits: &str| {
            vec![
                "-algorithm".to_owned(),
                "RSA".into(),
                "-pkeyopt".into(),
                format!("rsa_keygen_bits:{bits}"),
            ]
        };
        for (name, options) in [
            ("p256", elliptic("P-256")),
            ("other", elliptic("P-256")),
            ("p384", elliptic("P-384")),
            ("p521", elliptic("P-521")),
            ("ed25519", vec!["-algorithm".into(), "ED25519".into()]),
            ("rsa", rsa("2048")),
            ("short", rsa("1024")),
        ] {
            let mut args = vec!["genpkey", "-quiet"];
            args.extend(options.iter().map(String::as_str));
            let key = keys.private(name);
            args.extend(["-out", text(&key)]);
            run("openssl", &args);
            run(
                "openssl",
                &["pkey", "-in", text(&key), "-pubout", "-out", text(&keys.public(name))],
            );
        }
        keys
    }

    fn private(&self, name: &str) -> PathBuf {
        self.top.path().join(format!("{name}.key"))
    }

    fn public(&self, name: &str) -> PathBuf {
        self.top.path().join(format!("{name}.pub"))
    }

    fn sign(&self, name: &str, payload: &[u8]) -> Signature {
        let (document, signature) = (self.top.path().join("doc"), self.top.path().join("sig"));
        put(&document, payload);
        let key = self.private(name);
        if name == "ed25519" {
            run(
                "openssl",
                &[
                    "pkeyutl",
                    "-sign",
                    "-rawin",
                    "-inkey",
                    text(&key),
                    "-in",
                    text(&document),
                    "-out",
                    text(&signature),
                ],
            );
        } else {
            run(
                "openssl",
                &[
                    "dgst",
                    "-sha256",
                    "-sign",
                    text(&key),
                    "-out",
                    text(&signature),
                    text(&document),
                ],
            );
        }
        Signature { payload: payload.to_vec(), signature: fs::read(signature).unwrap() }
    }

    /// A policy that wants a signature by a key.
    fn policy(&self, name: &str, identity: &Value) -> Policy {
        policy(&json!({"default": [self.requirement(name, identity)]})).unwrap()
    }

    fn requirement(&self, name: &str, identity: &Value) -> Value {
        json!({"type": "sigstoreSigned", "keyPath": self.public(name), "signedIdentity": identity})
    }
}

fn payload(reference: &str, digest: &Digest) -> Value {
    json!({"critical": {"identity": {"docker-reference": reference},
        "image": {"docker-manifest-digest": digest.to_string()},
        "type": "cosign container image signature"},
        "optional": {"creator": "tests"}})
}

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

fn base64(bytes: &[u8]) -> String {
    use ::base64::Engine as _;
    ::base64::engine::general_purpose::STANDARD.encode(bytes)
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

// The store

fn name(text: &str) -> ImageName {
    text.parse().unwrap()
}

fn untrusted(error: &Error) -> &Distrust {
    match error {
        Error::Untrusted { why, .. } => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_refused_image_is_never_visible_whatever_it_came_as() {
    let bench = Bench::new();
    let layout = bench.layout("layout");
    layout.image(&[plain(RawTar::new().file("a", b"a").end())], &json!({}));
    put(&bench.path("rootfs.tar"), &RawTar::new().file("a", b"a").end());
    run("tar", &["-C", text(&layout.dir), "-cf", text(&bench.path("oci.tar")), "."]);
    let file = |name: &str| bench.path(name);
    let sources = [
        layout.source(),
        Source::OciArchive { file: file("oci.tar"), tag: None },
        Source::DockerArchive { file: file("oci.tar"), tag: None },
        Source::RootfsTar { file: file("rootfs.tar") },
    ];
    let root = bench.path("strict");
    let signed = json!([{"type": "sigstoreSigned", "keyPath": "/nonexistent"}]);
    for rule in [json!([{"type": "reject"}]), signed] {
        let policy = policy(&json!({"default": rule})).unwrap();
        let store = Store::open(&root).unwrap().with_policy(policy);
        for source in &sources {
            let error =
                store.import(source, &name("x"), &Limits::default(), &mut |_| {}).unwrap_err();
            untrusted(&error);
            assert_eq!(store.list().unwrap(), vec![]);
            for folder in ["layers", "blobs/sha256", "refs", "images", "staging"] {
                assert_eq!(entries(&root.join(folder)), Vec::<String>::new(), "{folder}");
            }
        }
    }
    // A link does not lead around a scope.
    std::os::unix::fs::symlink(&layout.dir, bench.path("link")).unwrap();
    let allowed = json!({"default": [{"type": "reject"}], "transports": {"oci": {
        text(&bench.path("link")): [{"type": "insecureAcceptAnything"}]}}});
    let store = Store::open(&root).unwrap().with_policy(policy(&allowed).unwrap());
    let source = Source::OciLayout { dir: bench.path("link"), tag: None };
    let error = store.import(&source, &name("x"), &Limits::default(), &mut |_| {}).unwrap_err();
    assert_eq!(*untrusted(&error), Distrust::Rejected { scope: "default".into() });
}

/// A registry, and signatures attached as cosign does it. (Debian's skopeo has its own signing switched off.)
struct Signing {
    bench: Bench,
    ca: Ca,
    server: Distribution,
    keys: Keys,
}

impl Signing {
    fn new() -> Self {
        let (bench, ca, keys) = (Bench::new(), Ca::new(), Keys::new());
        let tls = ca.sign("server", &["127.0.0.1"]);
        let server = Distribution::start(Some(&tls), &Auth::Anonymous);
        Self { bench, ca, server, keys }
    }

    /// Pushes a layout; returns the digest that a tag has now.
    fn push(&self, layout: &Layout, tag: &str) -> Digest {
        let to = format!("docker://{}/team/app:{tag}", self.server.host());
        skopeo(&self.ca, &format!("oci:{}", layout.dir.display()), &to);
        let index: Value =
            serde_json::from_slice(&fs::read(layout.dir.join("index.json")).unwrap()).unwrap();
        index["manifests"][0]["digest"].as_str().unwrap().parse().unwrap()
    }

    #[expect(clippy::disallowed_methods, reason = "tests run foreign tools")]
    fn curl(&self, args: &[&str]) -> String {
        let output = std::process::Command::new("curl")
            // CA and server have one name, as rcgen makes them, which confuses openssl.
            .args(["-sS", "--fail", "--insecure"])
            .args(args)
            .output()
            .unwrap_or_else(|e| panic!("this test needs curl, install it: {e}"));
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn url(&self, path: &str) -> String {
        format!("https://{}/v2/team/app/{path}", self.server.host())
    }

    fn put_blob(&self, bytes: &[u8]) -> Value {
        let headers = self.curl(&["-X", "POST", "-D", "-", &self.url("blobs/uploads/")]);
        let location = headers
            .lines()
            .find_map(|l| {
                l.to_lowercase().starts_with("location:").then(|| l[9..].trim().to_owned())
            })
            .unwrap();
        let digest = Digest::of(bytes);
        let file = self.bench.path("upload");
        put(&file, bytes);
        let octets = "content-type: application/octet-stream";
        let url = format!("{location}&digest={digest}");
        self.curl(&["-H", octets, "-T", text(&file), &url]);
        json!({"digest": digest.to_string(), "size": bytes.len()})
    }

    /// Signs a digest for a name, and attaches that as the only signature.
    fn sign(&self, key: &str, reference: &str, digest: &Digest) {
        self.attach(key, reference, digest, digest);
    }

    fn attach(&self, key: &str, reference: &str, digest: &Digest, to: &Digest) {
        let document = payload(reference, digest).to_string();
        let signature = self.keys.sign(key, document.as_bytes());
        let mut config = self.put_blob(b"{}");
        config["mediaType"] = json!(CONFIG);
        let mut layer = self.put_blob(document.as_bytes());
        layer["mediaType"] = json!("application/vnd.dev.cosign.simplesigning.v1+json");
        let text_of = base64(&signature.signature);
        layer["annotations"] = json!({"dev.cosignproject.cosign/signature": text_of});
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config,
            "layers": [layer]});
        let file = self.bench.path("upload");
        put(&file, manifest.to_string().as_bytes());
        let kind = format!("content-type: {MANIFEST}");
        let url = self.url(&format!("manifests/{}", signature_tag(to)));
        self.curl(&["-H", &kind, "-T", text(&file), &url]);
    }

    fn name(&self, tag: &str) -> String {
        format!("{}/team/app:{tag}", self.server.host())
    }

    fn source(&self, reference: &str) -> Source {
        let mut setup = Setup::new();
        setup.host(&self.server.host()).ca = Some(self.ca.path());
        setup.source(reference)
    }

    fn import(&self, policy: Policy, reference: &str) -> Result<(), Error> {
        let root = self.bench.path("store");
        let store = Store::open(&root).unwrap().with_policy(policy);
        let before = (store.list().unwrap(), entries(&root.join("layers")));
        let limits = Limits::default();
        let source = self.source(&format!("docker://{reference}"));
        let result = store.import(&source, &name("x"), &limits, &mut |_| {});
        if result.is_err() {
            assert_eq!((store.list().unwrap(), entries(&root.join("layers"))), before);
        }
        assert_eq!(entries(&root.join("staging")), Vec::<String>::new());
        assert_eq!(store.fsck().unwrap(), vec![]);
        result.map(drop)
    }
}

fn image_of(layout: &Layout, content: &[u8]) {
    layout.image(&[gzipped(&RawTar::new().file("a", content).end())], &json!({}));
}

#[test]
fn a_signed_image_of_a_registry_comes_in_and_any_other_does_not() {
    let signing = Signing::new();
    let layout = signing.bench.layout("signed");
    image_of(&layout, b"good");
    let exact = json!({"type": "matchRepoDigestOrExact"});
    let by = |key: &str| signing.keys.policy(key, &exact);
    let unsigned = Distrust::Unsigned { scope: "default".into() };

    let digest = signing.push(&layout, "1");
    let one = signing.name("1");
    let error = signing.import(by("p256"), &one).unwrap_err();
    assert_eq!(*untrusted(&error), unsigned);

    signing.sign("p256", &one, &digest);
    let error = signing.import(by("other"), &one).unwrap_err();
    let text = format!(
        "image from docker://{one} is not trusted: policy for default demands a signature, and none of 1 will do: \
         it is not by the demanded key"
    );
    assert_eq!(error.to_string().replace("docker://", ""), text.replace("docker://", ""));
    signing.import(by("p256"), &one).unwrap();

    // By digest any name in the repository will do, and an image that is here is asked for its signature all the
    // same.
    let by_digest = format!("{}/team/app@{digest}", signing.server.host());
    signing.import(by("p256"), &by_digest).unwrap();
    signing.import(by("other"), &by_digest).unwrap_err();
    let reject = policy(&json!({"default": [{"type": "reject"}]})).unwrap();
    signing.import(reject, &by_digest).unwrap_err();

    // The same image under a name that nobody signed.
    signing.push(&layout, "2");
    let error = signing.import(by("p256"), &signing.name("2")).unwrap_err();
    assert!(error.to_string().contains("it is for the image under another name"), "{error}");
    let repository = json!({"type": "matchRepository"});
    signing.import(signing.keys.policy("p256", &repository), &signing.name("2")).unwrap();

    // Another image under the name that was signed.
    let layout = signing.bench.layout("changed");
    image_of(&layout, b"evil");
    let evil = signing.push(&layout, "1");
    let error = signing.import(by("p256"), &one).unwrap_err();
    assert_eq!(*untrusted(&error), unsigned);
    // With the good image's signature attached to it.
    signing.attach("p256", &one, &digest, &evil);
    let error = signing.import(by("p256"), &one).unwrap_err();
    assert!(error.to_string().contains(&format!("it is for another image: {digest}")), "{error}");
}

#[test]
fn the_signature_of_an_index_is_one_of_the_image_it_leads_to() {
    let signing = Signing::new();
    let layout = signing.bench.layout("layout");
    image_of(&layout, b"good");
    let mut entry: Value =
        serde_json::from_slice(&fs::read(layout.dir.join("index.json")).unwrap()).unwrap();
    entry["manifests"][0]["platform"] = json!({"os": "linux", "architecture": host_arch()});
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entry["manifests"]});
    let index = index.to_string();
    let descriptor = layout.descriptor(INDEX, index.as_bytes());
    layout.index(&[descriptor]);
    let digest = signing.push(&layout, "all");
    assert_eq!(digest, Digest::of(index.as_bytes()));
    let name = signing.name("all");
    let policy = || signing.keys.policy("p256", &json!({"type": "matchExact"}));
    signing.import(policy(), &name).unwrap_err();
    signing.sign("p256", &name, &digest);
    signing.import(policy(), &name).unwrap();
}
