//! An image that a scripted registry serves, honestly but for what a test has it do.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::time::Duration;

use ocivisor_datastore::{Digest, DocumentFault, Error, Image, RegistryFault as Fault};
use serde_json::{Value, json};

use super::registry::Setup;
use super::wire::{Asked, Reply, Scripted};
use super::{Bench, CONFIG, MANIFEST, RawTar, TAR, entries, host_arch};

/// An image as a server has it.
#[derive(Clone, Debug)]
pub struct Served {
    pub blobs: BTreeMap<String, Vec<u8>>,
    pub manifest: Vec<u8>,
    pub layer: Vec<u8>,
}

impl Served {
    pub fn new() -> Self {
        Self::changed(|_| {})
    }

    /// The image with a changed manifest.
    pub fn changed(change: impl FnOnce(&mut Value)) -> Self {
        let layer = RawTar::new().file("file", &vec![7; 40_000]).end();
        let id = Digest::of(&layer).to_string();
        let config = json!({"architecture": host_arch(), "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [id]}})
        .to_string()
        .into_bytes();
        let of = |media_type: &str, bytes: &[u8]| json!({"mediaType": media_type, "digest": Digest::of(bytes).to_string(), "size": bytes.len()});
        let mut manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST,
            "config": of(CONFIG, &config), "layers": [of(TAR, &layer)]});
        change(&mut manifest);
        let blobs = [&config, &layer].map(|b| (Digest::of(b).to_string(), b.clone())).into();
        Self { blobs, manifest: manifest.to_string().into_bytes(), layer }
    }

    pub fn layer_digest(&self) -> Digest {
        Digest::of(&self.layer)
    }

    pub fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    pub fn is_layer(&self, asked: &Asked) -> bool {
        asked.path.ends_with(&self.layer_digest().to_string())
    }

    /// As an honest registry answers, ranges included.
    pub fn reply(&self, asked: &Asked) -> Reply {
        let (kind, name) = asked.path.rsplit_once('/').unwrap();
        if kind.ends_with("/manifests") && (name == "1" || name == self.digest().to_string()) {
            return Reply::new(200, self.manifest.clone()).with("content-type", MANIFEST);
        }
        let Some(blob) = self.blobs.get(name) else {
            return Reply::new(404, r#"{"errors":[{"code":"X","message":"y"}]}"#);
        };
        let from = asked.headers.get("range").map_or(0, |r| {
            r.trim_start_matches("bytes=").trim_end_matches('-').parse::<usize>().unwrap()
        });
        if from == 0 {
            return Reply::new(200, blob.clone());
        }
        let range = format!("bytes {from}-{}/{}", blob.len() - 1, blob.len());
        Reply::new(206, &blob[from..]).with("content-range", range)
    }
}

/// A registry without TLS that answers honestly where `script` does not answer.
pub fn server(
    served: &Served,
    script: impl Fn(&Asked) -> Option<Reply> + Send + Sync + 'static,
) -> Scripted {
    let served = served.clone();
    Scripted::start(move |asked| script(asked).unwrap_or_else(|| served.reply(asked)))
}

pub fn plain_setup(server: &Scripted) -> Setup {
    let mut setup = Setup::new();
    setup.patience.connect = Duration::from_secs(20);
    setup.login(&server.host()).plain_http = true;
    setup
}

pub fn pull(bench: &Bench, setup: &Setup, server: &Scripted) -> Result<Image, Error> {
    bench.import(&setup.source(&format!("{}/team/app:1", server.host())))
}

/// Pulls what must fail, and checks that nothing of it is to be seen.
pub fn refuse(setup: &Setup, server: &Scripted) -> Error {
    let bench = Bench::new();
    let error = pull(&bench, setup, server).expect_err("a hostile registry was believed");
    bench.assert_nothing_happened();
    assert_eq!(entries(&bench.path("store/blobs/sha256")), Vec::<String>::new());
    let text = format!("{error} {error:?}");
    assert!(!text.contains("battery"), "{text}");
    error
}

pub fn fault(error: Error) -> Fault {
    match error {
        Error::Registry { why, .. } => why,
        other => panic!("not a fault of a registry: {other:?}"),
    }
}

pub fn why_document(error: Error) -> DocumentFault {
    match error {
        Error::Document { why, .. } => why,
        other => panic!("not a fault of a document: {other:?}"),
    }
}

pub fn refused(served: &Served) -> Error {
    let server = server(served, |_| None);
    refuse(&plain_setup(&server), &server)
}

pub fn answering(
    served: &Served,
    reply: impl Fn(&Asked) -> Option<Reply> + Send + Sync + 'static,
) -> Error {
    let server = server(served, reply);
    refuse(&plain_setup(&server), &server)
}
