//! The JSON documents of image-spec v1.1 and of Docker's schema 2: index, manifest, and `docker save`'s
//! `manifest.json`. Pure: bytes in, checked values out.
//!
//! One parser decides what a document is (GHSA-77vh-xpmg-72qh): its shape must fit the media type its
//! descriptor gave, `mediaType` inside must not say otherwise, and no document may have the fields of both.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::compress::Compression;
use crate::digest::Digest;
use crate::error::{DocumentFault as Fault, Limit, escape};
use crate::limits::Limits;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// What is asked of a registry; of two forms the newer first.
pub(crate) const ACCEPT: [&str; 4] = [OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST];

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// What a descriptor points at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Index,
    Manifest,
}

impl Class {
    pub fn of(media_type: &str) -> Result<Self, Fault> {
        match media_type {
            OCI_INDEX | DOCKER_LIST => Ok(Self::Index),
            OCI_MANIFEST | DOCKER_MANIFEST => Ok(Self::Manifest),
            other => Err(Fault::MediaType(escape(other.as_bytes()))),
        }
    }
}

/// The compression that a layer's media type stands for.
pub(crate) fn layer_compression(media_type: &str) -> Result<Compression, Fault> {
    let oci = media_type
        .strip_prefix("application/vnd.oci.image.layer.")
        .map(|t| t.strip_prefix("nondistributable.").unwrap_or(t));
    match (oci, media_type) {
        (Some("v1.tar"), _) => Ok(Compression::None),
        (Some("v1.tar+gzip"), _) => Ok(Compression::Gzip),
        (Some("v1.tar+zstd"), _) => Ok(Compression::Zstd),
        (_, "application/vnd.docker.image.rootfs.diff.tar") => Ok(Compression::None),
        (
            _,
            "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        ) => Ok(Compression::Gzip),
        (_, "application/vnd.docker.image.rootfs.diff.tar.zstd") => Ok(Compression::Zstd),
        _ => Err(Fault::MediaType(escape(media_type.as_bytes()))),
    }
}

/// The media type under which we store a layer that came without one. There is none for xz in image-spec;
/// the type used is private to this store, and an export has to compress anew.
pub(crate) fn layer_media_type(compression: Compression) -> &'static str {
    match compression {
        Compression::None => "application/vnd.oci.image.layer.v1.tar",
        Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
        Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        Compression::Xz => "application/vnd.ocivisor.image.layer.v1.tar+xz",
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

impl Descriptor {
    fn is_named(&self, tag: &str) -> bool {
        let annotation =
            |key| self.annotations.as_ref().and_then(|a| a.get(key)).map(String::as_str);
        annotation(REF_NAME) == Some(tag) || annotation(CONTAINERD_NAME) == Some(tag)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Platform {
    pub os: String,
    pub architecture: String,
}

/// The platform of this host in image-spec's words (Go's GOOS and GOARCH).
pub(crate) fn host_platform() -> Platform {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    Platform { os: "linux".into(), architecture: architecture.into() }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", escape(self.os.as_bytes()), escape(self.architecture.as_bytes()))
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawIndex {
    schema_version: u32,
    media_type: Option<String>,
    manifests: Vec<Descriptor>,
    #[serde(default)]
    layers: serde_json::Value,
    #[serde(default)]
    config: serde_json::Value,
}

/// Reads an index and returns its descriptors; `media_type` is its descriptor's, none for `index.json`.
pub(crate) fn parse_index(
    bytes: &[u8],
    media_type: Option<&str>,
    limits: &Limits,
) -> Result<Vec<Descriptor>, Fault> {
    let index: RawIndex = parse(bytes)?;
    if index.schema_version != 2 {
        return Err(Fault::Json("schemaVersion is not 2".into()));
    }
    if !index.layers.is_null() || !index.config.is_null() {
        return Err(Fault::Ambiguous("an index with the fields of a manifest"));
    }
    agree(index.media_type.as_deref(), media_type, Class::Index)?;
    if index.manifests.len() > limits.index_entries {
        return Err(Fault::limit(Limit::IndexEntries, limits.index_entries));
    }
    Ok(index.manifests)
}

fn agree(inside: Option<&str>, outside: Option<&str>, class: Class) -> Result<(), Fault> {
    let Some(inside) = inside else { return Ok(()) };
    if outside.is_some_and(|o| o != inside) {
        return Err(Fault::Ambiguous("mediaType differs from its descriptor's"));
    }
    if Class::of(inside)? != class {
        return Err(Fault::Ambiguous("mediaType does not fit the fields"));
    }
    Ok(())
}

/// Which entry of an index to take: the tagged one, and the host's among several.
pub(crate) fn choose(
    entries: Vec<Descriptor>,
    tag: Option<&str>,
    host: &Platform,
) -> Result<Descriptor, Fault> {
    let mut left: Vec<Descriptor> = match tag {
        Some(tag) => entries.into_iter().filter(|d| d.is_named(tag)).collect(),
        None => entries,
    };
    // Attestations and signatures lie beside images; with a single entry its own checks will speak.
    if left.len() > 1 {
        left.retain(|d| Class::of(&d.media_type).is_ok());
        let ours = |d: &Descriptor| {
            d.platform
                .as_ref()
                .is_none_or(|p| p.os == host.os && p.architecture == host.architecture)
        };
        left.retain(ours);
        // An entry that names the platform is meant more than one that names none.
        if left.iter().any(|d| d.platform.is_some()) {
            left.retain(|d| d.platform.is_some());
        }
        left.dedup_by(|a, b| a.digest == b.digest);
    }
    let asked = || {
        tag.map_or_else(|| host.to_string(), |t| format!("tag {} and {host}", escape(t.as_bytes())))
    };
    match left.len() {
        1 => left.pop().ok_or_else(|| Fault::Choice("empty".into())),
        0 => Err(Fault::Choice(format!("holds no image for {}", asked()))),
        n => Err(Fault::Choice(format!("holds {n} images for {}; name a tag", asked()))),
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    media_type: Option<String>,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    manifests: serde_json::Value,
}

impl Manifest {
    /// Reads a manifest; `media_type` is its descriptor's.
    pub fn parse(bytes: &[u8], media_type: &str, limits: &Limits) -> Result<Self, Fault> {
        let manifest: Self = parse(bytes)?;
        if manifest.schema_version != 2 {
            return Err(Fault::Json("schemaVersion is not 2".into()));
        }
        if !manifest.manifests.is_null() {
            return Err(Fault::Ambiguous("a manifest with the fields of an index"));
        }
        agree(manifest.media_type.as_deref(), Some(media_type), Class::Manifest)?;
        let config = manifest.config.media_type.as_str();
        if !matches!(config, OCI_CONFIG | DOCKER_CONFIG) {
            return Err(Fault::MediaType(escape(config.as_bytes())));
        }
        count_layers(manifest.layers.len(), limits)?;
        for layer in &manifest.layers {
            layer_compression(&layer.media_type)?;
        }
        Ok(manifest)
    }

    /// A manifest for an image that came without one.
    pub fn synthesize(config: Descriptor, layers: Vec<Descriptor>) -> Result<Vec<u8>, Fault> {
        let manifest = Self {
            schema_version: 2,
            media_type: Some(OCI_MANIFEST.into()),
            config,
            layers,
            manifests: serde_json::Value::Null,
        };
        serde_json::to_vec(&manifest).map_err(|e| Fault::Json(e.to_string()))
    }
}

/// The media type that a manifest says it has; Docker's is required, OCI's optional.
pub(crate) fn media_type_inside(bytes: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Typed {
        media_type: Option<String>,
    }
    serde_json::from_slice::<Typed>(bytes).ok()?.media_type
}

/// The first layer that is said to lie elsewhere (`urls`), if there is one.
pub(crate) fn foreign_layer(bytes: &[u8]) -> Option<Digest> {
    #[derive(Deserialize)]
    struct Layers {
        #[serde(default)]
        layers: Vec<Layer>,
    }
    #[derive(Deserialize)]
    struct Layer {
        digest: Digest,
        #[serde(default)]
        urls: serde_json::Value,
    }
    let found = serde_json::from_slice::<Layers>(bytes).ok()?.layers;
    let empty = |urls: &serde_json::Value| {
        urls.is_null() || urls.as_array().is_some_and(std::vec::Vec::is_empty)
    };
    found.into_iter().find(|layer| !empty(&layer.urls)).map(|layer| layer.digest)
}

/// The media type of a stored manifest: what it says, or what follows from its config's.
pub(crate) fn manifest_media_type(bytes: &[u8], manifest: &Manifest) -> String {
    let implied = match manifest.config.media_type.as_str() {
        DOCKER_CONFIG => DOCKER_MANIFEST,
        _ => OCI_MANIFEST,
    };
    media_type_inside(bytes).unwrap_or_else(|| implied.to_owned())
}

pub(crate) fn count_layers(n: usize, limits: &Limits) -> Result<(), Fault> {
    match n {
        0 => Err(Fault::NoLayers),
        n if n > limits.layers => Err(Fault::limit(Limit::Layers, limits.layers)),
        _ => Ok(()),
    }
}

/// One image of `docker save`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct SavedImage {
    pub config: String,
    #[serde(default)]
    pub repo_tags: Option<Vec<String>>,
    pub layers: Vec<String>,
}

/// Reads `manifest.json` of `docker save` and takes the tagged image, or the only one.
pub(crate) fn choose_saved(
    bytes: &[u8],
    tag: Option<&str>,
    limits: &Limits,
) -> Result<SavedImage, Fault> {
    let mut images: Vec<SavedImage> = parse(bytes)?;
    if images.len() > limits.index_entries {
        return Err(Fault::limit(Limit::IndexEntries, limits.index_entries));
    }
    if let Some(tag) = tag {
        let tags = |image: &SavedImage| image.repo_tags.clone().unwrap_or_default();
        let mut there: Vec<String> = images.iter().flat_map(tags).collect();
        // What is written out just so is meant, whatever else could be.
        let exactly = images.iter().any(|image| tags(image).iter().any(|full| full == tag));
        let meant = |full: &String| if exactly { full == tag } else { is_tagged(full, tag) };
        images.retain(|image| tags(image).iter().any(meant));
        if images.is_empty() {
            there.truncate(TAGS_SHOWN);
            let there = escape(there.join(", ").as_bytes());
            return Err(Fault::Choice(format!("holds no image of that tag; it has {there}")));
        }
    }
    match (images.len(), images.pop()) {
        (1, Some(image)) => {
            count_layers(image.layers.len(), limits)?;
            Ok(image)
        }
        (0, _) | (_, None) => Err(Fault::Choice("holds no image".into())),
        (n, _) => Err(Fault::Choice(format!("holds {n} images; name a tag"))),
    }
}

/// How many tags an error names.
const TAGS_SHOWN: usize = 8;

/// Some programs write the registry out that others mean: `docker.io/library/app:1` for `app:1`.
fn is_tagged(full: &str, tag: &str) -> bool {
    let short = full.strip_prefix("docker.io/").unwrap_or(full);
    [Some(full), Some(short), short.strip_prefix("library/")].contains(&Some(tag))
}

pub(crate) fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Fault> {
    serde_json::from_slice(bytes).map_err(|e| Fault::Json(escape(e.to_string().as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saved_images_are_found_by_the_tags_that_people_write() {
        let saved = |tag| {
            let text = r#"[{"Config": "a", "RepoTags": ["docker.io/library/a:1"], "Layers": ["l"]},
                {"Config": "b", "RepoTags": ["docker.io/team/b:1", "b:2"], "Layers": ["l"]},
                {"Config": "c", "RepoTags": null, "Layers": ["l"]}]"#;
            let chosen = choose_saved(text.as_bytes(), tag, &Limits::default());
            chosen.map(|image| image.config).map_err(|fault| fault.to_string())
        };
        for (tag, config) in [
            ("a:1", "a"),
            ("library/a:1", "a"),
            ("docker.io/library/a:1", "a"),
            ("team/b:1", "b"),
            ("b:2", "b"),
        ] {
            assert_eq!(saved(Some(tag)).as_deref(), Ok(config), "{tag}");
        }
        let both = r#"[{"Config": "short", "RepoTags": ["a:1"], "Layers": ["l"]},
            {"Config": "long", "RepoTags": ["docker.io/library/a:1"], "Layers": ["l"]}]"#;
        for (tag, config) in [
            ("a:1", Some("short")),
            ("docker.io/library/a:1", Some("long")),
            ("library/a:1", Some("long")),
        ] {
            let chosen = choose_saved(both.as_bytes(), Some(tag), &Limits::default());
            assert_eq!(chosen.ok().map(|image| image.config).as_deref(), config, "{tag}");
        }
        let there = "docker.io/library/a:1, docker.io/team/b:1, b:2";
        let none = Err(format!("holds no image of that tag; it has {there}"));
        assert_eq!(saved(Some("b:1")), none);
        assert_eq!(saved(None), Err("holds 3 images; name a tag".to_owned()));
    }

    fn descriptor(
        media_type: &str,
        n: u8,
        architecture: Option<&str>,
        tag: Option<&str>,
    ) -> Descriptor {
        let platform = |a: &str| Platform { os: "linux".into(), architecture: a.into() };
        Descriptor {
            media_type: media_type.into(),
            digest: Digest::of(&[n]),
            size: 1,
            platform: architecture.map(platform),
            annotations: tag.map(|t| BTreeMap::from([(REF_NAME.into(), t.into())])),
        }
    }

    fn arm() -> Platform {
        Platform { os: "linux".into(), architecture: "arm64".into() }
    }

    #[test]
    fn the_hosts_image_is_chosen_among_several() {
        let list = vec![
            descriptor(OCI_MANIFEST, 1, Some("amd64"), None),
            descriptor(OCI_MANIFEST, 2, Some("arm64"), None),
            descriptor(OCI_MANIFEST, 3, Some("unknown"), None),
            descriptor("application/vnd.example.signature", 4, None, None),
        ];
        assert_eq!(choose(list, None, &arm()).unwrap().digest, Digest::of(&[2]));
    }

    #[test]
    fn a_tag_narrows_the_choice_and_a_missing_one_is_an_error() {
        let list = vec![
            descriptor(OCI_MANIFEST, 1, None, Some("one")),
            descriptor(OCI_MANIFEST, 2, None, Some("two")),
        ];
        assert_eq!(choose(list.clone(), Some("two"), &arm()).unwrap().digest, Digest::of(&[2]));
        let text = |r: Result<Descriptor, Fault>| r.unwrap_err().to_string();
        assert_eq!(
            text(choose(list.clone(), None, &arm())),
            "holds 2 images for linux/arm64; name a tag"
        );
        let none = "holds no image for tag x\\n and linux/arm64";
        assert_eq!(text(choose(list, Some("x\n"), &arm())), none);
    }

    #[test]
    fn a_document_of_two_kinds_is_refused() {
        let index = br#"{"schemaVersion":2,"manifests":[],"layers":[]}"#;
        let limits = Limits::default();
        assert_eq!(
            parse_index(index, None, &limits).unwrap_err(),
            Fault::Ambiguous("an index with the fields of a manifest")
        );
        let index = format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","manifests":[]}}"#);
        assert_eq!(
            parse_index(index.as_bytes(), Some(OCI_INDEX), &limits).unwrap_err(),
            Fault::Ambiguous("mediaType differs from its descriptor's")
        );
        let twice = br#"{"schemaVersion":2,"manifests":[],"manifests":[]}"#;
        assert!(matches!(parse_index(twice, None, &limits), Err(Fault::Json(_))));
    }

    #[test]
    fn fifty_thousand_platforms_are_refused() {
        let one = serde_json::to_string(&descriptor(OCI_MANIFEST, 1, Some("arm64"), None)).unwrap();
        let text =
            format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, vec![one; 50_000].join(","));
        let got = parse_index(text.as_bytes(), None, &Limits::default()).unwrap_err();
        assert_eq!(got, Fault::limit(Limit::IndexEntries, 1024u64));
    }

    #[test]
    fn layer_media_types_map_to_compressions() {
        for (text, want) in [
            ("application/vnd.oci.image.layer.v1.tar", Some(Compression::None)),
            (
                "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
                Some(Compression::Gzip),
            ),
            ("application/vnd.oci.image.layer.v1.tar+zstd", Some(Compression::Zstd)),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", Some(Compression::Gzip)),
            ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", None),
            ("application/vnd.oci.image.layer.v1.erofs", None),
            ("", None),
        ] {
            assert_eq!(layer_compression(text).ok(), want, "{text}");
        }
    }
}
