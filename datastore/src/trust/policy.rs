//! The file: containers-policy.json(5). Read strictly: an unknown, doubled or missing field refuses the whole of it,
//! for a rule that is half understood is a hole.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, de};

use super::Origin;
use super::identity::SignedIdentity;

/// Far above any policy or public key.
const MAX: u64 = 1 << 20;

/// Who may bring in what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    default: Vec<Requirement>,
    transports: BTreeMap<String, BTreeMap<String, Vec<Requirement>>>,
}

/// What an image must satisfy.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Requirement {
    /// Nothing.
    InsecureAcceptAnything,
    /// No image does.
    Reject,
    /// A sigstore signature by one of these keys.
    SigstoreSigned {
        /// Where the keys are.
        keys: Vec<KeySource>,
        /// What the signature must be about.
        identity: SignedIdentity,
    },
    /// Something that is not supported here: no image does.
    Unsupported {
        /// In words.
        what: String,
    },
}

/// Where a public key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// In a file, read when it is needed.
    Path(PathBuf),
    /// In the policy.
    Data(Vec<u8>),
}

impl KeySource {
    pub(super) fn read(&self) -> Result<Vec<u8>, String> {
        match self {
            Self::Data(bytes) => Ok(bytes.clone()),
            Self::Path(path) => read(path).map_err(|e| e.to_string()),
        }
    }
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Data(_) => f.write_str("in the policy"),
        }
    }
}

/// Why a policy cannot be used. Without one no image may come in: the caller must not go on as if there were none.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The file cannot be read.
    #[error("cannot read policy {path}")]
    Io {
        /// The file.
        path: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The content breaks the format.
    #[error("policy is invalid: {0}")]
    Invalid(String),
}

impl Policy {
    /// Reads a policy.
    pub fn parse(bytes: &[u8]) -> Result<Self, PolicyError> {
        let raw: RawPolicy =
            serde_json::from_slice(bytes).map_err(|e| PolicyError::Invalid(e.to_string()))?;
        let transports = raw.transports.map_or_else(BTreeMap::new, |t| t.0);
        let mut policy =
            Self { default: requirements("default", raw.default)?, transports: BTreeMap::new() };
        for (transport, scopes) in transports {
            let mut read = BTreeMap::new();
            for (scope, raw) in scopes.0 {
                let what = format!("{transport}:{scope}");
                if scope == "/" {
                    let why = format!("{what}: the scope \"/\" is forbidden, use \"\"");
                    return Err(PolicyError::Invalid(why));
                }
                let wild = scope.strip_prefix("*.").unwrap_or(&scope).contains('*');
                if matches!(transport.as_str(), "docker" | "atomic")
                    && (wild || (scope.starts_with('*') && scope.contains('/')))
                {
                    let why =
                        format!("{what}: a wildcard may only stand for subdomains, as *.host");
                    return Err(PolicyError::Invalid(why));
                }
                let scope = if transport == "docker" { with_plain_host(&scope) } else { scope };
                if read.insert(scope, requirements(&what, raw)?).is_some() {
                    let why = format!("{what}: is there twice, but for capital letters");
                    return Err(PolicyError::Invalid(why));
                }
            }
            policy.transports.insert(transport, read);
        }
        Ok(policy)
    }

    /// Reads a policy from a file; none if there is no such file.
    pub fn load(path: &Path) -> Result<Option<Self>, PolicyError> {
        match read(path) {
            Ok(bytes) => Self::parse(&bytes).map(Some),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(PolicyError::Io { path: path.display().to_string(), source }),
        }
    }

    /// The requirements for an image, by the most specific scope that has any; with that scope's name.
    #[must_use]
    pub fn decide(&self, origin: &Origin) -> (String, &[Requirement]) {
        let transport = origin.transport;
        if let Some(scopes) = self.transports.get(transport) {
            for scope in origin.scopes.iter().map(String::as_str).chain([""]) {
                if let Some(requirements) = scopes.get(scope) {
                    return (format!("{transport}:{scope}"), requirements);
                }
            }
        }
        ("default".into(), &self.default)
    }
}

/// A scope with its host in lower case, as hosts are in references here: host names know no capital letters
/// (RFC 4343), and a rule that never matched would be none. Ports are part of a host as they are written;
/// containers/image does not know either that `host` and `host:443` are one place.
fn with_plain_host(scope: &str) -> String {
    let end = scope.find('/').unwrap_or(scope.len());
    scope[..end].to_ascii_lowercase() + &scope[end..]
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX {
        return Err(io::Error::other(format!("more than {MAX} bytes")));
    }
    Ok(bytes)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPolicy {
    default: Vec<RawRequirement>,
    #[serde(default)]
    transports: Option<Unique<Unique<Vec<RawRequirement>>>>,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
enum RawRequirement {
    InsecureAcceptAnything(Empty),
    Reject(Empty),
    SignedBy(Unique<serde_json::Value>),
    SigstoreSigned(Box<RawSigstore>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Empty {}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawSigstore {
    key_path: Option<PathBuf>,
    key_paths: Option<Vec<PathBuf>>,
    key_data: Option<String>,
    key_datas: Option<Vec<String>>,
    fulcio: Option<serde_json::Value>,
    pki: Option<serde_json::Value>,
    rekor_public_key_path: Option<serde_json::Value>,
    rekor_public_key_paths: Option<serde_json::Value>,
    rekor_public_key_data: Option<serde_json::Value>,
    rekor_public_key_datas: Option<serde_json::Value>,
    signed_identity: Option<SignedIdentity>,
}

fn requirements(what: &str, raw: Vec<RawRequirement>) -> Result<Vec<Requirement>, PolicyError> {
    if raw.is_empty() {
        let why =
            format!("{what}: has no requirement; say insecureAcceptAnything if none is meant");
        return Err(PolicyError::Invalid(why));
    }
    raw.into_iter().map(|r| requirement(what, r)).collect()
}

fn requirement(what: &str, raw: RawRequirement) -> Result<Requirement, PolicyError> {
    Ok(match raw {
        RawRequirement::InsecureAcceptAnything(Empty {}) => Requirement::InsecureAcceptAnything,
        RawRequirement::Reject(Empty {}) => Requirement::Reject,
        RawRequirement::SignedBy(fields) => {
            if !fields.0.contains_key("keyType") {
                return Err(PolicyError::Invalid(format!("{what}: signedBy without keyType")));
            }
            Requirement::Unsupported { what: "an OpenPGP signature (signedBy)".into() }
        }
        RawRequirement::SigstoreSigned(raw) => sigstore(what, *raw)?,
    })
}

fn sigstore(what: &str, raw: RawSigstore) -> Result<Requirement, PolicyError> {
    let unsupported = [
        (raw.fulcio.is_some(), "a Fulcio certificate"),
        (raw.pki.is_some(), "a certificate of a PKI"),
        (
            raw.rekor_public_key_path.is_some()
                || raw.rekor_public_key_paths.is_some()
                || raw.rekor_public_key_data.is_some()
                || raw.rekor_public_key_datas.is_some(),
            "an entry in a Rekor log",
        ),
    ];
    if let Some((_, what)) = unsupported.iter().find(|(wanted, _)| *wanted) {
        return Ok(Requirement::Unsupported { what: (*what).into() });
    }
    let decode = |text: String| {
        let bytes = base64::engine::general_purpose::STANDARD.decode(text);
        bytes
            .map(KeySource::Data)
            .map_err(|e| PolicyError::Invalid(format!("{what}: key data: {e}")))
    };
    let keys = match (raw.key_path, raw.key_paths, raw.key_data, raw.key_datas) {
        (Some(path), None, None, None) => vec![KeySource::Path(path)],
        (None, Some(paths), None, None) => paths.into_iter().map(KeySource::Path).collect(),
        (None, None, Some(data), None) => vec![decode(data)?],
        (None, None, None, Some(all)) => all.into_iter().map(decode).collect::<Result<_, _>>()?,
        _ => Vec::new(),
    };
    if keys.is_empty() {
        let why = format!("{what}: needs exactly one of keyPath, keyPaths, keyData and keyDatas");
        return Err(PolicyError::Invalid(why));
    }
    let identity = raw.signed_identity.unwrap_or(SignedIdentity::MatchRepoDigestOrExact);
    identity.check().map_err(|why| PolicyError::Invalid(format!("{what}: {why}")))?;
    Ok(Requirement::SigstoreSigned { keys, identity })
}

/// A map in which each key comes once; JSON leaves open what a second one means.
struct Unique<T>(BTreeMap<String, T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Unique<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Keys<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Keys<T> {
            type Value = Unique<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut all = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, T>()? {
                    if all.contains_key(&key) {
                        return Err(de::Error::custom(format_args!("duplicate field {key:?}")));
                    }
                    all.insert(key, value);
                }
                Ok(Unique(all))
            }
        }

        from.deserialize_map(Keys(PhantomData))
    }
}
