//! What the tests share: tars byte by byte, image layouts, a store with a probe beside it.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use ocivisor_datastore::{Digest, Error, Finding, Image, Limits, Refusal, Source, Store};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A tar written without the scruples of a library.
#[derive(Clone, Debug, Default)]
pub struct RawTar(pub Vec<u8>);

/// One header's fields; `Default` is an empty regular file of root's.
#[derive(Clone, Debug)]
pub struct Head<'a> {
    pub path: &'a [u8],
    pub kind: u8,
    pub link: &'a [u8],
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: u32,
    /// As written in the header, whatever follows.
    pub size: Option<&'a [u8; 12]>,
}

impl Default for Head<'_> {
    fn default() -> Self {
        Self {
            path: b"file",
            kind: b'0',
            link: b"",
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 1_000_000_000,
            size: None,
        }
    }
}

impl RawTar {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn head(mut self, head: &Head<'_>, data: &[u8]) -> Self {
        let mut block = [0u8; 512];
        block[..head.path.len()].copy_from_slice(head.path);
        block[100..107].copy_from_slice(format!("{:07o}", head.mode).as_bytes());
        block[108..115].copy_from_slice(format!("{:07o}", head.uid).as_bytes());
        block[116..123].copy_from_slice(format!("{:07o}", head.gid).as_bytes());
        let size = format!("{:011o}\0", data.len());
        block[124..136].copy_from_slice(head.size.map_or(size.as_bytes(), |s| &s[..]));
        block[136..147].copy_from_slice(format!("{:011o}", head.mtime).as_bytes());
        block[156] = head.kind;
        block[157..157 + head.link.len()].copy_from_slice(head.link);
        block[257..265].copy_from_slice(b"ustar\x0000");
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend(block);
        self.data(data)
    }

    pub fn data(mut self, data: &[u8]) -> Self {
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, path: &str, data: &[u8]) -> Self {
        self.head(&Head { path: path.as_bytes(), ..Head::default() }, data)
    }

    pub fn dir(self, path: &str) -> Self {
        self.head(&Head { path: path.as_bytes(), kind: b'5', mode: 0o755, ..Head::default() }, b"")
    }

    pub fn kind(self, kind: u8, path: &str, link: &str) -> Self {
        self.head(
            &Head { path: path.as_bytes(), link: link.as_bytes(), kind, ..Head::default() },
            b"",
        )
    }

    pub fn symlink(self, path: &str, to: &str) -> Self {
        self.kind(b'2', path, to)
    }

    pub fn hardlink(self, path: &str, to: &str) -> Self {
        self.kind(b'1', path, to)
    }

    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (key, value) in records {
            let fixed = key.len() + value.len() + 3;
            let mut length = fixed;
            while length != fixed + length.to_string().len() {
                length = fixed + length.to_string().len();
            }
            body.extend([format!("{length} {key}=").as_bytes(), value, b"\n"].concat());
        }
        self.head(&Head { path: b"pax", kind: b'x', ..Head::default() }, &body)
    }

    pub fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

pub fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut out = liblzma::write::XzEncoder::new(Vec::new(), 1);
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    ::zstd::encode_all(bytes, 3).unwrap()
}

pub const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
pub const TAR_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub const TAR_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

pub fn host_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// A layer for [`Layout`].
#[derive(Clone, Debug)]
pub struct Layer {
    pub media_type: &'static str,
    pub blob: Vec<u8>,
    pub diff_id: String,
}

pub fn plain(tar: Vec<u8>) -> Layer {
    Layer { media_type: TAR, diff_id: Digest::of(&tar).to_string(), blob: tar }
}

pub fn gzipped(tar: &[u8]) -> Layer {
    Layer { media_type: TAR_GZIP, diff_id: Digest::of(tar).to_string(), blob: gzip(tar) }
}

/// An image layout in the making: documents as values, so that a test can spoil them.
#[derive(Debug)]
pub struct Layout {
    pub dir: PathBuf,
}

impl Layout {
    pub fn new(dir: &Path) -> Self {
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        put(&dir.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#);
        Self { dir: dir.into() }
    }

    pub fn blob(&self, bytes: &[u8]) -> String {
        let digest = Digest::of(bytes);
        put(&self.blob_path(&digest.to_string()), bytes);
        digest.to_string()
    }

    pub fn blob_path(&self, digest: &str) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.trim_start_matches("sha256:"))
    }

    pub fn descriptor(&self, media_type: &str, bytes: &[u8]) -> Value {
        json!({"mediaType": media_type, "digest": self.blob(bytes), "size": bytes.len()})
    }

    pub fn config(&self, layers: &[Layer], config: &Value) -> Value {
        let ids: Vec<_> = layers.iter().map(|l| &l.diff_id).collect();
        json!({"architecture": host_arch(), "os": "linux", "config": config,
            "rootfs": {"type": "layers", "diff_ids": ids}})
    }

    pub fn manifest(&self, layers: &[Layer], config: &Value) -> Value {
        let layers: Vec<_> =
            layers.iter().map(|l| self.descriptor(l.media_type, &l.blob)).collect();
        json!({"schemaVersion": 2, "mediaType": MANIFEST,
            "config": self.descriptor(CONFIG, config.to_string().as_bytes()), "layers": layers})
    }

    pub fn index(&self, entries: &[Value]) -> &Self {
        let index = json!({"schemaVersion": 2, "manifests": entries});
        put(&self.dir.join("index.json"), index.to_string().as_bytes());
        self
    }

    /// A whole image; returns the manifest's descriptor.
    pub fn image(&self, layers: &[Layer], config: &Value) -> Value {
        let manifest = self.manifest(layers, &self.config(layers, config));
        let descriptor = self.descriptor(MANIFEST, manifest.to_string().as_bytes());
        self.index(std::slice::from_ref(&descriptor));
        descriptor
    }

    pub fn source(&self) -> Source {
        Source::OciLayout { dir: self.dir.clone(), tag: None }
    }
}

pub fn put(path: &Path, bytes: &[u8]) {
    File::create(path).unwrap().write_all(bytes).unwrap();
}

/// A store, a place for sources, and a directory of the host that no image may touch.
#[derive(Debug)]
pub struct Bench {
    pub top: TempDir,
    pub store: Store,
    probe_before: BTreeMap<Vec<u8>, Seen>,
}

impl Bench {
    pub fn new() -> Self {
        Self::opened(|root| Store::open(root).unwrap())
    }

    pub fn opened(open: impl FnOnce(&Path) -> Store) -> Self {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir_all(top.path().join("probe/dir")).unwrap();
        put(&top.path().join("probe/shadow"), b"root:secret");
        put(&top.path().join("probe/dir/keep"), b"keep");
        let store = open(&top.path().join("store"));
        let probe_before = tree(&top.path().join("probe"));
        Self { top, store, probe_before }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.top.path().join(name)
    }

    /// The probe as links of an image would name it: from any directory of the store, and from the root.
    pub fn probe_paths(&self) -> Vec<String> {
        let probe = self.path("probe").to_str().unwrap().to_owned();
        let mut paths = vec![probe.clone()];
        paths
            .extend((1..12).map(|n| format!("{}{probe}", "/..".repeat(n).trim_start_matches('/'))));
        paths.extend((1..8).map(|n| format!("{}probe", "../".repeat(n))));
        paths
    }

    pub fn layout(&self, name: &str) -> Layout {
        Layout::new(&self.path(name))
    }

    pub fn import_with(&self, source: &Source, limits: &Limits) -> Result<Image, Error> {
        self.store.import(source, &"test".parse().unwrap(), limits, &mut |_| {})
    }

    pub fn import(&self, source: &Source) -> Result<Image, Error> {
        self.import_with(source, &Limits::default())
    }

    pub fn import_layers(&self, layers: &[Layer]) -> Result<Image, Error> {
        let layout = self.layout("layout");
        layout.image(layers, &json!({}));
        self.import(&layout.source())
    }

    pub fn import_tar(&self, tar: Vec<u8>) -> Result<Image, Error> {
        self.import_layers(&[plain(tar)])
    }

    /// Imports an image that must be refused, and checks that this left nothing anywhere.
    pub fn refuse(&self, layers: &[Layer]) -> Refusal {
        let error = self.import_layers(layers).expect_err("hostile image was imported");
        self.assert_nothing_happened();
        error.refusal().unwrap_or_else(|| panic!("not a refusal: {error:?}")).clone()
    }

    pub fn refuse_tar(&self, tar: Vec<u8>) -> Refusal {
        let refusal = self.refuse(&[plain(tar)]);
        assert_eq!(entries(&self.path("store/layers")), Vec::<String>::new());
        assert_eq!(entries(&self.path("store/blobs/sha256")), Vec::<String>::new());
        refusal
    }

    pub fn assert_probe_untouched(&self) {
        assert_eq!(tree(&self.path("probe")), self.probe_before);
    }

    /// No image, no name, nothing in staging, nothing damaged, the host as it was.
    pub fn assert_nothing_happened(&self) {
        assert_eq!(self.store.list().unwrap(), vec![]);
        assert_eq!(entries(&self.path("store/refs")), Vec::<String>::new());
        assert_eq!(entries(&self.path("store/staging")), Vec::<String>::new());
        assert_eq!(self.store.fsck().unwrap(), Vec::<Finding>::new());
        self.assert_probe_untouched();
    }

    /// The files of the only layer of an image.
    pub fn fs(&self, image: &Image) -> PathBuf {
        assert_eq!(image.layers.len(), 1);
        self.store.layer_path(&image.layers[0])
    }
}

pub fn entries(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// All that can be seen of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: (i64, i64),
    pub rdev: u64,
    pub links: u64,
    pub content: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Everything below a directory, by relative path; the directory itself as the empty path.
pub fn tree(root: &Path) -> BTreeMap<Vec<u8>, Seen> {
    let mut all = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let mut content = Vec::new();
        if meta.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        } else if meta.is_symlink() {
            content = fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec();
        } else if meta.is_file() {
            File::open(&path).unwrap().read_to_end(&mut content).unwrap();
        }
        let seen = Seen {
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            rdev: meta.rdev(),
            links: if meta.is_dir() { 0 } else { meta.nlink() },
            content,
            xattrs: xattrs(&path),
        };
        let relative = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
        all.insert(relative, seen);
    }
    all
}

/// Compares two trees and shows the first difference.
pub fn assert_same_tree(got: &BTreeMap<Vec<u8>, Seen>, want: &BTreeMap<Vec<u8>, Seen>, what: &str) {
    let names = |t: &BTreeMap<Vec<u8>, Seen>| -> Vec<_> {
        t.keys().map(|k| k.escape_ascii().to_string()).collect()
    };
    assert_eq!(names(got), names(want), "{what}");
    for (path, seen) in got {
        let same = seen == &want[path];
        assert!(same, "{what}: {}: {seen:.20?} is not {:.20?}", path.escape_ascii(), want[path]);
    }
}

pub fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut list = vec![0; 64 * 1024];
    let n = rustix::fs::llistxattr(path, list.as_mut_slice()).unwrap();
    let names = list[..n].split(|b| *b == 0).filter(|n| !n.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 64 * 1024];
            let n = rustix::fs::lgetxattr(path, name, value.as_mut_slice()).unwrap();
            (name.to_vec(), value[..n].to_vec())
        })
        .collect()
}

/// Runs a program that the test cannot do without; its absence fails the test.
#[expect(clippy::disallowed_methods, reason = "tests run foreign tools")]
pub fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|e| panic!("this test needs {program}, install it: {e}"));
    assert!(
        output.status.success(),
        "{program} {args:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
