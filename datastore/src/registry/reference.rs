//! Names of images in registries: `docker://host[:port]/repository[:tag][@digest]`.
//!
//! The grammar is that of distribution's references. A name without a host means Docker Hub, and one without a
//! namespace its `library`, as Docker reads them: `debian` is `docker.io/library/debian:latest`. There is no list of
//! registries to search, so a short name means one place only. With a tag and a digest the digest decides.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::url::{Origin, split_authority};
use crate::digest::Digest;
use crate::error::{Error, escape};
use crate::name::ImageName;

/// How a reference starts where other kinds of source are possible.
pub(crate) const SCHEME: &str = "docker://";

const MAX: usize = 1024;
const MAX_REPOSITORY: usize = 255;
const HUB: &str = "docker.io";

/// A registry's `host` or `host:port`, in lower case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RegistryHost(String);

impl RegistryHost {
    /// The host as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Docker Hub, whose name and whose server differ.
    pub(crate) fn is_hub(&self) -> bool {
        self.0 == HUB
    }

    /// The server that speaks for this name.
    pub(crate) fn origin(&self, tls: bool) -> Origin {
        let server = if self.is_hub() { "registry-1.docker.io" } else { &self.0 };
        // Checked when made.
        let (host, port) = split_authority(server).unwrap_or_default();
        Origin { tls, host, port: port.unwrap_or(if tls { 443 } else { 80 }) }
    }
}

impl FromStr for RegistryHost {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (host, port) = split_authority(text).map_err(|why| bad(text, why))?;
        let canonical = port.map_or_else(|| host.clone(), |port| format!("{host}:{port}"));
        Ok(match canonical.as_str() {
            "index.docker.io" | "registry-1.docker.io" => Self(HUB.into()),
            _ => Self(canonical),
        })
    }
}

impl fmt::Display for RegistryHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for RegistryHost {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<RegistryHost> for String {
    fn from(host: RegistryHost) -> Self {
        host.0
    }
}

/// What is meant in a repository.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Wanted {
    Tag(String),
    Digest(Digest),
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

/// An image in a registry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegistryReference {
    host: RegistryHost,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl RegistryReference {
    /// The registry.
    #[must_use]
    pub fn host(&self) -> &RegistryHost {
        &self.host
    }

    /// The repository, such as `library/debian`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag as written.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest as written.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    pub(crate) fn wanted(&self) -> Wanted {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => Wanted::Digest(*digest),
            (None, Some(tag)) => Wanted::Tag(tag.clone()),
            (None, None) => Wanted::Tag("latest".into()),
        }
    }

    /// The name an image pulled from here gets unless another is chosen: host, repository, and the tag or
    /// `sha256-` and the first digits of the digest. None if that is no [`ImageName`] (too long, `[`).
    #[must_use]
    pub fn image_name(&self) -> Option<ImageName> {
        let end = match (&self.tag, &self.digest) {
            (Some(tag), _) => tag.clone(),
            (None, Some(digest)) => format!("sha256-{}", &digest.hex()[..16]),
            (None, None) => "latest".into(),
        };
        format!("{}/{}:{end}", self.host, self.repository).parse().ok()
    }
}

fn bad(text: &str, why: &'static str) -> Error {
    Error::BadName { text: escape(text.as_bytes()), why }
}

impl FromStr for RegistryReference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = |why| bad(text, why);
        if text.len() > MAX {
            return Err(bad("is too long for a reference"));
        }
        let rest = text.strip_prefix(SCHEME).unwrap_or(text);
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse()?)),
            None => (rest, None),
        };
        let (host, path) = match rest.split_once('/') {
            Some((first, path)) if looks_like_host(first) => (first.parse()?, path),
            _ => (RegistryHost(HUB.into()), rest),
        };
        let (repository, tag) =
            path.split_once(':').map_or((path, None), |(path, tag)| (path, Some(tag)));
        if repository.is_empty() {
            return Err(bad("names no repository"));
        }
        if !repository.split('/').all(is_component) {
            return Err(bad(
                "has a repository that is not lower-case letters and digits joined by . _ - /",
            ));
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(bad("has a tag that is not 1 to 128 of letters, digits, . _ -"));
        }
        let repository = if host.is_hub() && !repository.contains('/') {
            format!("library/{repository}")
        } else {
            repository.to_owned()
        };
        if repository.len() > MAX_REPOSITORY {
            return Err(bad("has a repository of more than 255 bytes"));
        }
        Ok(Self { host, repository, tag: tag.map(str::to_owned), digest })
    }
}

/// Whether the first of several parts is a registry rather than a namespace of Docker Hub's.
pub(crate) fn looks_like_host(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':']) || first.starts_with('[')
}

/// Letters and digits, joined by one of `.`, `_`, `__` or any number of `-`.
pub(crate) fn is_component(text: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let ends = |b: Option<&u8>| b.is_some_and(|b| is_word(*b));
    ends(bytes.first())
        && ends(bytes.last())
        && bytes.split(|b| is_word(*b)).all(|joint| {
            matches!(joint, b"" | b"." | b"_" | b"__") || joint.iter().all(|b| *b == b'-')
        })
}

fn is_tag(text: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=128).contains(&text.len())
        && text.bytes().next().is_some_and(is_word)
        && text.bytes().all(|b| is_word(b) || b == b'.' || b == b'-')
}

impl fmt::Display for RegistryReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn parse(text: &str) -> Result<RegistryReference, Error> {
        text.parse()
    }

    #[test]
    fn short_names_are_docker_hubs() {
        for (text, want) in [
            ("debian", "docker://docker.io/library/debian"),
            ("docker://debian:12", "docker://docker.io/library/debian:12"),
            ("team/app", "docker://docker.io/team/app"),
            ("index.docker.io/debian", "docker://docker.io/library/debian"),
            ("localhost/app", "docker://localhost/app"),
            ("localhost:5000/app:a", "docker://localhost:5000/app:a"),
            ("Registry.Example/a/b/c", "docker://registry.example/a/b/c"),
            ("[::1]:5000/app", "docker://[::1]:5000/app"),
            ("127.0.0.1/a__b--c.d_e", "docker://127.0.0.1/a__b--c.d_e"),
        ] {
            let got = parse(text).unwrap();
            assert_eq!(got.to_string(), want);
            assert_eq!(parse(want).unwrap(), got);
        }
        let hub = parse("debian").unwrap();
        assert_eq!(hub.host().origin(true).to_string(), "https://registry-1.docker.io");
    }

    #[test]
    fn a_digest_decides_over_a_tag() {
        let both = parse(&format!("a.example/b:1@{EMPTY}")).unwrap();
        assert_eq!(both.wanted().to_string(), EMPTY);
        assert_eq!(both.image_name().unwrap().as_str(), "a.example/b:1");
        let digest = parse(&format!("a.example/b@{EMPTY}")).unwrap();
        assert_eq!(digest.image_name().unwrap().as_str(), "a.example/b:sha256-e3b0c44298fc1c14");
        assert_eq!(parse("a.example/b").unwrap().wanted(), Wanted::Tag("latest".into()));
        assert_eq!(parse("[::1]:5000/app").unwrap().image_name(), None);
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        let long = "a/".repeat(600);
        for text in [
            "",
            "docker://",
            "docker:///a",
            "http://a.example/b",
            "a.example/",
            "a.example//b",
            "a.example/b/",
            "a.example/B",
            "a.example/../b",
            "a.example/b/..",
            "a.example/.b",
            "a.example/b-",
            "a.example/b..c",
            "a.example/b___c",
            "a.example/b:",
            "a.example/b:-x",
            "a.example/b:1:2",
            "a.example/b:x/y",
            "a.example/b?x",
            "a.example/b#x",
            "a.example/b%2fc",
            "a.example/b\n",
            "a.example/b c",
            "a.example:0/b",
            "a.example:99999/b",
            "user@a.example/b",
            "a.example/b@",
            "a.example/b@sha256:../../x",
            "a.example/b@sha512:00",
            "ä/b",
            long.as_str(),
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
        assert!(parse(&format!("a.example/{}", "b".repeat(256))).is_err());
        assert!(parse(&format!("a.example/b:{}", "c".repeat(129))).is_err());
        assert!(parse(&format!("a.example/b@{EMPTY}@{EMPTY}")).is_err());
    }

    proptest! {
        #[test]
        fn what_is_accepted_reads_back_the_same(
            text in "(docker://)?([a-z.\\[\\]:0-9-]{0,12}/)?[a-zA-Z0-9._/-]{0,24}(:[a-zA-Z0-9._:-]{0,12})?"
        ) {
            if let Ok(reference) = parse(&text) {
                prop_assert_eq!(parse(&reference.to_string()).unwrap(), reference);
            }
        }

        #[test]
        fn one_changed_byte_changes_the_meaning_or_is_refused(
            at in 0usize..88, to in any::<u8>()
        ) {
            let good = format!("a.example/b:1@{EMPTY}");
            let mut bytes = good.clone().into_bytes();
            prop_assume!(at < bytes.len() && bytes[at] != to);
            bytes[at] = to;
            if let Ok(other) = String::from_utf8_lossy(&bytes).parse::<RegistryReference>() {
                let same_but_case = other == parse(&good).unwrap();
                prop_assert!(!same_but_case || bytes.to_ascii_lowercase() == good.as_bytes());
            }
        }
    }
}
