//! A store obeys its policy: images refused and let in, signed as cosign does it and kept by a real registry.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

mod common;
#[path = "common/registry.rs"]
mod registry;
#[path = "common/trust.rs"]
mod trust;

use std::fs;

use common::*;
use ocivisor_datastore::trust::{Distrust, Policy, signature_tag};
use ocivisor_datastore::{Digest, Error, ImageName, Limits, Source, Store};
use registry::*;
use serde_json::{Value, json};
use trust::*;

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
