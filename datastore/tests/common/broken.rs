//! A store with one image, to be broken, checked and repaired.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use ocivisor_datastore::{
    CheckOptions, Digest, Finding, Found, Image, ImageName, Limits, Outcome, Refetch, RepairOptions,
};
use serde_json::json;

use super::common::*;

/// A layer with one of everything.
pub fn rich() -> Vec<u8> {
    let xattr = [("SCHILY.xattr.user.mime", &b"text"[..]), ("mtime", b"1000000000.25")];
    let capability: &[u8] = &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    RawTar::new()
        .dir("etc")
        .pax(&xattr)
        .file("etc/motd", b"hello")
        .head(&Head { path: b"etc/secret", mode: 0o4640, uid: 7, gid: 8, ..Head::default() }, b"s")
        .hardlink("etc/second", "etc/motd")
        .pax(&[("SCHILY.xattr.security.capability", capability)])
        .file("bin/ping", &vec![3; 100_000])
        .symlink("etc/link", "motd")
        .kind(b'6', "run/pipe", "")
        .file("var/.wh.gone", b"")
        .dir("opt")
        .file("opt/.wh..wh..opq", b"")
        .file("usr/share/deep/implied", b"")
        .end()
}

pub fn name(text: &str) -> ImageName {
    text.parse().unwrap()
}

pub fn layer(file: &str) -> Layer {
    gzipped(&RawTar::new().file(file, file.as_bytes()).end())
}

pub fn import(bench: &Bench, as_name: &str, layers: &[Layer]) -> Image {
    let layout = bench.layout(&format!("layout-{as_name}"));
    layout.image(layers, &json!({"Cmd": [as_name]}));
    bench.store.import(&layout.source(), &name(as_name), &Limits::default(), &mut |_| {}).unwrap()
}

pub fn nothing() -> HashSet<ocivisor_datastore::DiffId> {
    HashSet::new()
}

pub struct Broken {
    pub bench: Bench,
    pub image: Image,
    pub blob: Digest,
    pub files: BTreeMap<Vec<u8>, Seen>,
    /// What a repair can fetch.
    pub lost: Vec<Vec<u8>>,
}

/// A source of lost blobs that lies about all others.
pub struct Lost(pub Vec<Vec<u8>>);

impl Refetch for Lost {
    fn fetch(&self, blob: &Digest) -> Option<Box<dyn Read + '_>> {
        if self.0.is_empty() {
            return None;
        }
        let found = self.0.iter().find(|bytes| Digest::of(bytes) == *blob);
        Some(Box::new(found.map_or(&b"something else"[..], Vec::as_slice)))
    }
}

/// A file as the store makes them.
pub fn private(path: &Path, bytes: &[u8]) {
    put(path, bytes);
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

impl Broken {
    pub fn new() -> Self {
        Self::with(&layer("a"))
    }

    pub fn of(tar: &[u8]) -> Self {
        Self::with(&gzipped(tar))
    }

    pub fn with(layer: &Layer) -> Self {
        let bench = Bench::new();
        let image = import(&bench, "app", std::slice::from_ref(layer));
        let blob = Digest::of(&layer.blob);
        assert_eq!(bench.store.fsck().unwrap(), vec![]);
        let files = tree(&bench.store.layer_path(&image.layers[0]));
        Self { bench, image, blob, files, lost: Vec::new() }
    }

    pub fn path(&self, folder: &str, file: &str) -> std::path::PathBuf {
        self.bench.path("store").join(folder).join(file)
    }

    pub fn record(&self) -> std::path::PathBuf {
        self.path("images", &format!("{}.json", self.image.manifest_digest.hex()))
    }

    pub fn found(&self) -> Vec<Finding> {
        self.bench.store.fsck().unwrap()
    }

    pub fn repair(&self) -> Vec<Found> {
        let options = RepairOptions {
            check: CheckOptions::default(),
            in_use: &nothing(),
            refetch: Some(&Lost(self.lost.clone())),
        };
        self.bench.store.repair(&options).unwrap().findings
    }

    /// A repair repairs everything, and this kind of damage was there; the image is what it was.
    pub fn mended(&self, code: &str) {
        let found = self.repair();
        assert!(found.iter().any(|f| f.finding.code() == code), "{found:?}");
        let mended = |f: &Found| matches!(f.outcome, Outcome::Repaired { .. });
        assert!(found.iter().all(mended), "{found:?}");
        assert_eq!(self.found(), vec![]);
        assert_eq!(self.bench.store.resolve(&name("app").into()).unwrap(), self.image);
        let files = self.bench.store.layer_path(&self.image.layers[0]);
        assert_same_tree(&tree(&files), &self.files, code);
        assert_eq!(entries(&self.bench.path("store/staging")), Vec::<String>::new());
    }

    /// An import of the same image repairs the store.
    pub fn repaired(&self) {
        import(&self.bench, "app", &[layer("a")]);
        assert_eq!(self.found(), vec![]);
    }
}
