//! Images as archives for other tools and other hosts.
//!
//! * OCI layout, OCI archive: config and blobs as they are here; the manifest too, so that the image keeps its
//!   digest. Two exceptions get a new manifest: one in Docker's type, which skopeo does not find by name in a layout
//!   and umoci does not read; and one with a layer under our private xz type, which is compressed with gzip.
//!   An index entry per name, with the name in `org.opencontainers.image.ref.name`.
//! * Docker archive: the form of `docker save` since 1.10, with layers uncompressed, which every version of docker
//!   and podman reads. The config keeps its digest, by which docker knows the image.
//!
//! Every blob is hashed on its way, for docker also as a tar: what was damaged on disk does not get out, and the
//! target does not appear. Layers that several images share are written once.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek};

use rustix::fs::FlockOperation;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::archive::{Output, Take};
use super::commit::{self, Packing};
use super::pack;
use crate::cancel::Cancel;
use crate::compress::Compression;
use crate::digest::{DiffId, Digest};
use crate::disk;
use crate::document::{self, OCI_MANIFEST};
use crate::error::{Error, Fault, Result};
use crate::expand::Expanded;
use crate::name::{ImageName, Reference};
use crate::record::{ImageRecord, LayerRef};
use crate::staging::Staged;
use crate::store::Store;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Form of a saved image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Archive {
    /// A directory in OCI image layout.
    OciLayout,
    /// The same as a tar.
    OciArchive,
    /// A tar as `docker save` writes it.
    DockerArchive,
}

/// An image to be saved, with the names it shall have.
struct Item {
    record: ImageRecord,
    names: Vec<ImageName>,
}

impl Store {
    /// Saves images as `name` in the directory `dir`; returns the bytes of content written.
    ///
    /// An image asked for by name has that name in the archive, one asked for by digest has none. Nothing may have the
    /// name yet, and on an error nothing has it. `progress` is told the bytes written so far.
    pub fn save(
        &self,
        images: &[Reference],
        form: Archive,
        dir: &File,
        name: &str,
        progress: &mut dyn FnMut(u64),
    ) -> Result<u64> {
        // Against a prune.
        let _shared = self.lock(FlockOperation::LockShared)?;
        let items = self.items(images)?;
        let out = match form {
            Archive::OciLayout => Output::directory(dir, name)?,
            Archive::OciArchive | Archive::DockerArchive => Output::tar(dir, name)?,
        };
        let mut saver = Saver { store: self, out, progress, done: BTreeSet::new() };
        match form {
            Archive::OciLayout | Archive::OciArchive => saver.oci(items)?,
            Archive::DockerArchive => saver.docker(&items)?,
        }
        let written = saver.out.written();
        saver.out.finish()?;
        Ok(written)
    }

    fn items(&self, images: &[Reference]) -> Result<Vec<Item>> {
        let mut items: Vec<Item> = Vec::new();
        for reference in images {
            let image = self.resolve(reference)?;
            let name = match reference {
                Reference::Name(name) => Some(name.clone()),
                Reference::Digest(_) => None,
            };
            let same = |item: &&mut Item| item.record.manifest == image.manifest_digest;
            if let Some(item) = items.iter_mut().find(same) {
                item.names.extend(name);
                continue;
            }
            let record = self
                .record(&image.manifest_digest)?
                .ok_or_else(|| Error::NotFound { reference: reference.to_string() })?;
            items.push(Item { record, names: name.into_iter().collect() });
        }
        if items.is_empty() {
            return Err(Error::NotFound { reference: "(none was named)".into() });
        }
        Ok(items)
    }
}

struct Saver<'a> {
    store: &'a Store,
    out: Output<'a>,
    progress: &'a mut dyn FnMut(u64),
    /// Files that are written.
    done: BTreeSet<String>,
}

impl Saver<'_> {
    fn oci(&mut self, items: Vec<Item>) -> Result<()> {
        self.out.document("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        self.out.folder("blobs")?;
        self.out.folder("blobs/sha256")?;
        let mut entries = Vec::new();
        for item in items {
            let record = &item.record;
            let mut manifest = self.store.small_blob(&record.manifest, record.manifest_size)?;
            let config = self.store.small_blob(&record.config, record.config_size)?;
            let mut layers = Vec::new();
            for layer in &record.layers {
                layers.push(self.oci_layer(layer)?);
            }
            let about = |why| Error::document(format!("manifest {}", record.manifest), why);
            let parsed: Value = document::parse(&manifest).map_err(about)?;
            // An OCI manifest need not say what it is, Docker's must.
            let media_type = parsed.get("mediaType").and_then(Value::as_str);
            if layers != record.layers || media_type.is_some_and(|t| t != OCI_MANIFEST) {
                let layers: Vec<_> = layers.into_iter().map(commit::oci).collect();
                manifest = commit::manifest(&config, &layers).map_err(about)?;
            }
            let digest = Digest::of(&manifest);
            self.put(&blob_path(&record.config), &config)?;
            self.put(&blob_path(&digest), &manifest)?;
            entries.extend(self.index_entries(&item, manifest.len(), &digest)?);
        }
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries});
        self.out.document("index.json", index.to_string().as_bytes())
    }

    fn index_entries(&self, item: &Item, size: usize, digest: &Digest) -> Result<Vec<Value>> {
        let config = self.store.assemble(&item.record)?.config;
        let mut entry = json!({"mediaType": OCI_MANIFEST, "digest": digest, "size": size,
            "platform": {"os": config.os, "architecture": config.architecture}});
        if item.names.is_empty() {
            return Ok(vec![entry]);
        }
        let named = item.names.iter().map(|name| {
            let mut notes = json!({"org.opencontainers.image.ref.name": name});
            if let Some(full) = Repository::of(name) {
                notes["io.containerd.image.name"] = json!(full.canonical());
            }
            entry["annotations"] = notes;
            entry.clone()
        });
        Ok(named.collect())
    }

    /// Writes the layer's blob; returns it as it is there.
    fn oci_layer(&mut self, layer: &LayerRef) -> Result<LayerRef> {
        if layer.media_type != document::layer_media_type(Compression::Xz) {
            let path = blob_path(&layer.blob);
            if self.done.insert(path.clone()) {
                let store = self.store;
                self.out.file(&path, Some(layer.size), |take| copy_blob(store, layer, take))?;
                (self.progress)(self.out.written());
            }
            return Ok(layer.clone());
        }
        let staged = Staged::create(&self.store.staging, "save")
            .map_err(|e| self.store.io("make a directory in", "staging", e))?;
        let staging = |e| self.store.io("use a file in", "staging", e);
        let mut file = disk::create_new(&staged.dir, "blob").map_err(staging)?;
        let mut failed = None;
        let fill = |packer: &mut pack::Packer<'_>| {
            let take = &mut |bytes: &[u8]| {
                std::io::Write::write_all(packer, bytes).map_err(|e| Fault::Io("write", e))
            };
            // The error of the store says more than a fault could.
            copy_tar(self.store, layer, take).map_err(|e| {
                failed = Some(e);
                (Fault::Io("read", std::io::ErrorKind::Other.into()), String::new())
            })
        };
        let packed = pack::pack(&file, Packing::Gzip, fill);
        let ((), packed) = match (packed, failed) {
            (Ok(packed), _) => packed,
            (Err(_), Some(error)) => return Err(error),
            (Err((fault, at)), None) => return Err(fault.about(at)),
        };
        file.rewind().map_err(staging)?;
        let path = blob_path(&packed.digest);
        if self.done.insert(path.clone()) {
            self.out.file(&path, Some(packed.size), |take| {
                pump(&mut file, take, || "file in staging".into())
            })?;
        }
        Ok(LayerRef {
            diff_id: layer.diff_id,
            blob: packed.digest,
            media_type: document::layer_media_type(Compression::Gzip).into(),
            size: packed.size,
        })
    }

    fn docker(&mut self, items: &[Item]) -> Result<()> {
        let mut entries = Vec::new();
        for item in items {
            let record = &item.record;
            let config = self.store.small_blob(&record.config, record.config_size)?;
            let config_path = format!("{}.json", record.config.hex());
            self.put(&config_path, &config)?;
            let mut layers = Vec::new();
            for layer in &record.layers {
                let path = format!("{}.tar", layer.diff_id.hex());
                if self.done.insert(path.clone()) {
                    let store = self.store;
                    self.out.file(&path, None, |take| copy_tar(store, layer, take))?;
                    (self.progress)(self.out.written());
                }
                layers.push(path);
            }
            let tags: Vec<String> =
                item.names.iter().filter_map(|n| Repository::of(n).map(|r| r.familiar())).collect();
            let tags = if tags.is_empty() { Value::Null } else { json!(tags) };
            entries.push(json!({"Config": config_path, "RepoTags": tags, "Layers": layers}));
        }
        self.out.document("manifest.json", json!(entries).to_string().as_bytes())
    }

    fn put(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        if self.done.insert(path.to_owned()) { self.out.document(path, bytes) } else { Ok(()) }
    }
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A blob that is hashed as it is read.
struct Hashed {
    file: File,
    hasher: Sha256,
    size: u64,
    cancel: Cancel,
}

impl Hashed {
    fn open(store: &Store, digest: &Digest) -> Result<Self> {
        let hex = digest.hex();
        let file = disk::open_file(&store.blobs, &hex)
            .map_err(|e| store.io("open", &format!("blobs/sha256/{hex}"), e))?
            .ok_or_else(|| Error::damaged(format!("blob {digest}"), "is absent"))?;
        Ok(Self { file, hasher: Sha256::new(), size: 0, cancel: store.cancel.clone() })
    }

    fn check(self, layer: &LayerRef) -> Result<()> {
        let (got, object) = (Digest::finish(self.hasher), format!("blob {}", layer.blob));
        if got != layer.blob {
            return Err(Error::damaged(object, format!("has digest {got}")));
        }
        if self.size != layer.size {
            return Err(Error::damaged(object, format!("has {} bytes", self.size)));
        }
        Ok(())
    }
}

impl Read for Hashed {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.cancel.check()?;
        let n = self.file.read(buf)?;
        self.hasher.update(&buf[..n]);
        self.size += n as u64;
        Ok(n)
    }
}

fn copy_blob(store: &Store, layer: &LayerRef, take: Take<'_>) -> Result<()> {
    let mut blob = Hashed::open(store, &layer.blob)?;
    let mut left = layer.size;
    let object = || format!("blob {}", layer.blob);
    // Never more than was promised to the tar's header.
    pump(
        &mut (&mut blob).take(left),
        &mut |bytes| {
            left -= bytes.len() as u64;
            take(bytes)
        },
        object,
    )?;
    if blob.read(&mut [0]).map_err(|e| Error::io("read", object(), e))? != 0 {
        return Err(Error::damaged(object(), format!("has more than {} bytes", layer.size)));
    }
    blob.check(layer)
}

/// Gives the layer's uncompressed tar.
fn copy_tar(store: &Store, layer: &LayerRef, take: Take<'_>) -> Result<()> {
    let object = || format!("blob {}", layer.blob);
    // What cannot be decompressed was once: the disk's fault, not the image's.
    let damaged = |fault: Fault| match fault {
        Fault::Refused(why) => Error::damaged(object(), why.to_string()),
        other => other.about(object()),
    };
    let blob = Hashed::open(store, &layer.blob)?;
    let mut plain = Expanded::open(&store.unpacker, blob, None).map_err(damaged)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 128 * 1024];
    loop {
        let n = match plain.read(&mut buffer) {
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            other => other.map_err(|e| damaged(Fault::from_read(e)))?,
        };
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
        take(&buffer[..n]).map_err(|fault| fault.about(object()))?;
    }
    let mut rest = plain.into_rest().map_err(|e| Error::io("read", object(), e))?;
    std::io::copy(&mut rest, &mut std::io::sink()).map_err(|e| Error::io("read", object(), e))?;
    rest.into_inner().check(layer)?;
    match DiffId(Digest::finish(hasher)) {
        got if got != layer.diff_id => {
            Err(Error::damaged(object(), format!("unpacks to {got}, not {}", layer.diff_id)))
        }
        _ => Ok(()),
    }
}

fn pump(from: &mut impl Read, take: Take<'_>, object: impl Fn() -> String) -> Result<()> {
    let mut buffer = vec![0; 128 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => take(&buffer[..n]).map_err(|fault| fault.about(object()))?,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io("read", object(), e)),
        }
    }
}

/// A name in the grammar of registries (distribution, "reference"): host, path in small letters, tag.
#[derive(Debug, PartialEq, Eq)]
struct Repository<'a> {
    host: Option<&'a str>,
    path: &'a str,
    tag: &'a str,
}

impl<'a> Repository<'a> {
    /// None where registries' tools would refuse the name.
    fn of(name: &'a ImageName) -> Option<Self> {
        let text = name.as_str();
        let colon = text.rfind(':').filter(|at| !text[*at..].contains('/'));
        let (path, tag) = colon.map_or((text, "latest"), |at| (&text[..at], &text[at + 1..]));
        let tag_start = tag.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
        if tag.len() > 128 || !tag_start || tag.contains(['+', '/']) {
            return None;
        }
        let first = path.split('/').next().unwrap_or_default();
        let is_host = first.contains(['.', ':']) || first == "localhost";
        let (host, path) = match path.split_once('/') {
            Some((host, rest)) if is_host => (Some(host), rest),
            _ => (None, path),
        };
        let component = |c: &str| {
            let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
            c.bytes().all(|b| plain(b) || b"._-".contains(&b))
                && c.bytes().next().is_some_and(plain)
                && c.bytes().last().is_some_and(plain)
                && !c.contains("..")
        };
        path.split('/').all(component).then_some(Self { host, path, tag })
    }

    fn familiar(&self) -> String {
        let Self { host, path, tag } = self;
        host.map_or_else(|| format!("{path}:{tag}"), |host| format!("{host}/{path}:{tag}"))
    }

    fn canonical(&self) -> String {
        let Self { host, path, tag } = self;
        let library = if host.is_none() && !path.contains('/') { "library/" } else { "" };
        format!("{}/{library}{path}:{tag}", host.unwrap_or("docker.io"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_to_tools_that_can_have_them() {
        for (name, familiar, canonical) in [
            ("debian:12", "debian:12", "docker.io/library/debian:12"),
            ("one-17", "one-17:latest", "docker.io/library/one-17:latest"),
            ("team/app", "team/app:latest", "docker.io/team/app:latest"),
            ("localhost/a:b", "localhost/a:b", "localhost/a:b"),
            ("host.example:5000/a/b:v1", "host.example:5000/a/b:v1", "host.example:5000/a/b:v1"),
        ] {
            let name: ImageName = name.parse().unwrap();
            let found = Repository::of(&name).unwrap();
            assert_eq!((found.familiar(), found.canonical()), (familiar.into(), canonical.into()));
        }
        for name in ["Debian", "a:1+2", "a..b", "a-/b", "a:-x"] {
            assert_eq!(Repository::of(&name.parse().unwrap()), None, "{name}");
        }
    }
}
