//! Names of images in registries as signatures state them, and when one counts as another.

use serde::Deserialize;

use crate::digest::Digest;

/// A fully expanded name: `host/repository` with a tag, a digest, both, or neither.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DockerReference {
    name: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl DockerReference {
    /// Reads a name and expands it as Docker does: no host is `docker.io`, and there no namespace is `library`. A
    /// missing tag stays missing.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > 1024 {
            return None;
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse().ok()?)),
            None => (text, None),
        };
        let colon = rest.rfind(':').filter(|at| !rest[*at..].contains('/'));
        let (name, tag) = match colon {
            Some(at) => (&rest[..at], Some(&rest[at + 1..])),
            None => (rest, None),
        };
        if tag.is_some_and(|t| !is_tag(t)) {
            return None;
        }
        let name = expand(name)?;
        Some(Self { name, tag: tag.map(str::to_owned), digest })
    }

    /// The same with a host that is known to be one.
    #[must_use]
    pub fn new(host: &str, repository: &str, tag: Option<&str>, digest: Option<Digest>) -> Self {
        Self { name: format!("{host}/{repository}"), tag: tag.map(str::to_owned), digest }
    }

    fn is_name_only(&self) -> bool {
        self.tag.is_none() && self.digest.is_none()
    }

    /// From the image itself up to its host, then the domains above it.
    pub(super) fn scopes(&self) -> Vec<String> {
        let mut scopes = Vec::new();
        match (&self.tag, &self.digest) {
            (Some(tag), _) => scopes.push(format!("{}:{tag}", self.name)),
            (None, Some(digest)) => scopes.push(format!("{}@{digest}", self.name)),
            (None, None) => {}
        }
        let mut name = self.name.as_str();
        loop {
            scopes.push(name.to_owned());
            match name.rsplit_once('/') {
                Some((above, _)) => name = above,
                None => break,
            }
        }
        // Wildcards know no port.
        let mut domain = name.split(':').next().unwrap_or_default();
        while let Some((_, above)) = domain.split_once('.') {
            scopes.push(format!("*.{above}"));
            domain = above;
        }
        scopes
    }
}

fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=128).contains(&text.len())
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

fn expand(name: &str) -> Option<String> {
    let (first, rest) = name.split_once('/').map_or((name, None), |(f, r)| (f, Some(r)));
    let host = |t: &str| t.contains(['.', ':']) || t == "localhost";
    let (host, repository) = match rest {
        Some(rest) if host(first) => (first, rest.to_owned()),
        Some(_) => ("docker.io", name.to_owned()),
        None => ("docker.io", name.to_owned()),
    };
    let host = if host == "index.docker.io" { "docker.io" } else { host };
    let lower = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let part = |p: &str| {
        p.bytes().next().is_some_and(lower)
            && p.bytes().last().is_some_and(lower)
            && p.bytes().all(|b| lower(b) || b"._-".contains(&b))
    };
    let host_byte = |b: u8| b.is_ascii_alphanumeric() || b".:-[]".contains(&b);
    let first = host.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'[');
    if !repository.split('/').all(part) || !first || !host.bytes().all(host_byte) {
        return None;
    }
    if host == "docker.io" && !repository.contains('/') {
        return Some(format!("{host}/library/{repository}"));
    }
    Some(format!("{host}/{repository}"))
}

/// What the signature of an image must be about.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", deny_unknown_fields)]
pub enum SignedIdentity {
    /// The very name that the image is asked for by.
    MatchExact,
    /// The very name with a tag, or any name in the repository if the image is asked for by digest.
    MatchRepoDigestOrExact,
    /// Any name in the repository.
    MatchRepository,
    /// This name, whatever the image is asked for by.
    ExactReference {
        /// With tag or digest.
        #[serde(rename = "dockerReference")]
        reference: String,
    },
    /// Any name in this repository.
    ExactRepository {
        /// Without tag and digest.
        #[serde(rename = "dockerRepository")]
        repository: String,
    },
    /// As `MatchRepoDigestOrExact`, with the beginning of the name replaced.
    RemapIdentity {
        /// What is replaced.
        prefix: String,
        /// By what.
        #[serde(rename = "signedPrefix")]
        signed: String,
    },
}

impl SignedIdentity {
    /// Whether a policy may say this.
    pub(super) fn check(&self) -> Result<(), String> {
        let bad = |text: &str, why: &str| Err(format!("{text:?} {why}"));
        match self {
            Self::MatchExact | Self::MatchRepoDigestOrExact | Self::MatchRepository => Ok(()),
            Self::ExactReference { reference } => match DockerReference::parse(reference) {
                Some(r) if !r.is_name_only() => Ok(()),
                _ => bad(reference, "is no reference with a tag or digest"),
            },
            Self::ExactRepository { repository } => match DockerReference::parse(repository) {
                Some(r) if r.is_name_only() => Ok(()),
                _ => bad(repository, "is no repository"),
            },
            Self::RemapIdentity { prefix, signed } => {
                let good = |text: &str| {
                    let expanded = |t: &str| DockerReference::parse(t).is_some_and(|r| r.name == t);
                    !text.contains('@') && (expanded(text) || expanded(&format!("{text}/x")))
                };
                [prefix, signed].into_iter().find(|t| !good(t)).map_or(Ok(()), |text| {
                    bad(text, "is no host, namespace or repository in its expanded form")
                })
            }
        }
    }

    /// Whether a signature about `signed` will do for an image asked for by `image`.
    pub(super) fn accepts(&self, image: Option<&DockerReference>, signed: &str) -> bool {
        let Some(signed) = DockerReference::parse(signed) else { return false };
        match self {
            Self::ExactReference { reference } => {
                let exact = |r: DockerReference| !r.is_name_only() && r == signed;
                DockerReference::parse(reference).is_some_and(exact)
            }
            Self::ExactRepository { repository } => {
                DockerReference::parse(repository).is_some_and(|r| r.name == signed.name)
            }
            // An image without a name in a registry has none that could match.
            _ => image.is_some_and(|image| self.matches(image, &signed)),
        }
    }

    fn matches(&self, image: &DockerReference, signed: &DockerReference) -> bool {
        match self {
            Self::MatchExact => !image.is_name_only() && image == signed,
            Self::MatchRepository => image.name == signed.name,
            Self::MatchRepoDigestOrExact => match (&image.tag, &image.digest) {
                (Some(_), _) => image == signed,
                (None, Some(_)) => image.name == signed.name,
                (None, None) => false,
            },
            Self::RemapIdentity { prefix, signed: by } => {
                let below = image.name.strip_prefix(prefix.as_str());
                let name = match below.filter(|rest| rest.is_empty() || rest.starts_with('/')) {
                    Some(rest) => format!("{by}{rest}"),
                    None => image.name.clone(),
                };
                let image = DockerReference { name, ..image.clone() };
                Self::MatchRepoDigestOrExact.matches(&image, signed)
            }
            Self::ExactReference { .. } | Self::ExactRepository { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(text: &str) -> DockerReference {
        DockerReference::parse(text).unwrap()
    }

    #[test]
    fn names_are_expanded_as_docker_does() {
        for (text, name) in [
            ("busybox", "docker.io/library/busybox"),
            ("busybox:1", "docker.io/library/busybox"),
            ("team/app", "docker.io/team/app"),
            ("localhost/app", "localhost/app"),
            ("host.example:5000/a/b/c:1", "host.example:5000/a/b/c"),
            ("docker.io/busybox", "docker.io/library/busybox"),
        ] {
            assert_eq!(reference(text).name, name);
        }
        for text in ["", "A/b", "a//b", "a:", "a:b:c", "a@sha256:1", "a b", "../a", "host.example/"]
        {
            assert_eq!(DockerReference::parse(text), None, "{text}");
        }
    }

    #[test]
    fn scopes_go_from_the_image_to_its_host_and_the_domains_above() {
        assert_eq!(
            reference("a.b.example:5000/team/app:1").scopes(),
            [
                "a.b.example:5000/team/app:1",
                "a.b.example:5000/team/app",
                "a.b.example:5000/team",
                "a.b.example:5000",
                "*.b.example",
                "*.example",
            ]
        );
    }

    #[test]
    fn a_signature_is_about_an_image_by_the_stated_rule_only() {
        use SignedIdentity as By;
        let digest = format!("host.example/a/app@{}", Digest::of(b""));
        let exact = |r: &str| By::ExactReference { reference: r.into() };
        let repository = |r: &str| By::ExactRepository { repository: r.into() };
        let remap = |p: &str, s: &str| By::RemapIdentity { prefix: p.into(), signed: s.into() };
        for (by, image, signed, good) in [
            (By::MatchExact, "host.example/a/app:1", "host.example/a/app:1", true),
            (By::MatchExact, "host.example/a/app:1", "host.example/a/app:2", false),
            (By::MatchExact, "host.example/a/app:1", "host.example/a/app", false),
            (By::MatchExact, &digest, "host.example/a/app:1", false),
            (By::MatchRepoDigestOrExact, "host.example/a/app:1", "host.example/a/app:1", true),
            (By::MatchRepoDigestOrExact, "host.example/a/app:1", "host.example/a/app:2", false),
            (By::MatchRepoDigestOrExact, &digest, "host.example/a/app:7", true),
            (By::MatchRepoDigestOrExact, &digest, "host.example/a/other:7", false),
            (By::MatchRepoDigestOrExact, "host.example/a/app", "host.example/a/app", false),
            (By::MatchRepository, "host.example/a/app:1", "host.example/a/app", true),
            (By::MatchRepository, "host.example/a/app:1", "host.example/a/ap", false),
            (By::MatchRepository, "busybox:1", "docker.io/library/busybox", true),
            (exact("host.example/x:1"), "host.example/a/app:1", "host.example/x:1", true),
            (exact("host.example/x:1"), "host.example/x:1", "host.example/x:2", false),
            (repository("host.example/x"), "host.example/a/app:1", "host.example/x:9", true),
            (repository("host.example/x"), "host.example/a/app:1", "host.example/y:9", false),
            (remap("m.example/v", "v.example"), "m.example/v/a:1", "v.example/a:1", true),
            (remap("m.example/v", "v.example"), "m.example/vv/a:1", "v.example/v/a:1", false),
            (remap("m.example/v", "v.example"), "m.example/vv/a:1", "m.example/vv/a:1", true),
            (remap("m.example/v", "v.example"), "m.example/v/a:1", "m.example/v/a:1", false),
        ] {
            by.check().unwrap();
            assert_eq!(
                by.accepts(Some(&reference(image)), signed),
                good,
                "{by:?} {image} {signed}"
            );
        }
        // Files have no name in a registry.
        assert!(!By::MatchRepository.accepts(None, "host.example/x:1"));
        assert!(exact("host.example/x:1").accepts(None, "host.example/x:1"));
    }

    #[test]
    fn identities_that_can_never_match_are_no_policy() {
        use SignedIdentity as By;
        for bad in [
            By::ExactReference { reference: "host.example/x".into() },
            By::ExactRepository { repository: "host.example/x:1".into() },
            By::RemapIdentity { prefix: "busybox".into(), signed: "v.example".into() },
            By::RemapIdentity { prefix: "m.example/v:1".into(), signed: "v.example".into() },
            By::RemapIdentity { prefix: String::new(), signed: "v.example".into() },
        ] {
            bad.check().unwrap_err();
        }
        for good in
            ["m.example", "m.example:5000", "m.example/v", "m.example/v/w", "docker.io/library"]
        {
            By::RemapIdentity { prefix: good.into(), signed: good.into() }.check().unwrap();
        }
    }
}
