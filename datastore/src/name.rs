//! Names of images: labels that point at a manifest digest, and nothing more.
//!
//! A name never selects content by itself: it is resolved once, and the digest is what gets recorded
//! (a name that decides what is fetched lets one tenant pre-empt another's image).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, escape};
use crate::registry::looks_like_host;

/// A label such as `debian:12`, `registry.example/team/app:1` or `one-17`.
///
/// 1 to 200 bytes of `[A-Za-z0-9._/:+-]`, first an alphanumeric, no empty, `.` or `..` component, no trailing
/// `/` or `:`, and not the look of a digest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageName(String);

/// Longest name in bytes.
const MAX: usize = 200;

impl ImageName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it begins as names of images in registries do: `registry.example/app`, `localhost/app:1`.
    pub(crate) fn begins_with_host(&self) -> bool {
        self.0.split_once('/').is_some_and(|(first, _)| looks_like_host(first))
    }

    /// The name as one file name. `/` becomes `=s`, `:` becomes `=c`; `=` itself cannot occur.
    pub(crate) fn file_name(&self) -> FileName {
        let mut out = String::with_capacity(self.0.len() + 8);
        for c in self.0.chars() {
            match c {
                '/' => out.push_str("=s"),
                ':' => out.push_str("=c"),
                c => out.push(c),
            }
        }
        FileName(out)
    }
}

/// A name in `refs/`.
pub(crate) struct FileName(pub(crate) String);

impl FileName {
    /// The image name a file in `refs/` stands for, if its spelling is the one we write.
    pub(crate) fn decode(text: &str) -> Option<ImageName> {
        let name: ImageName = text.replace("=s", "/").replace("=c", ":").parse().ok()?;
        (name.file_name().0 == text).then_some(name)
    }
}

impl FromStr for ImageName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = |why| Error::BadName { text: escape(text.as_bytes()), why };
        if text.is_empty() || text.len() > MAX {
            return Err(bad("must have 1 to 200 bytes"));
        }
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._/:+-".contains(&b);
        if !text.bytes().all(allowed) {
            return Err(bad("may hold only letters, digits and . _ / : + -"));
        }
        if !text.as_bytes()[0].is_ascii_alphanumeric() {
            return Err(bad("must start with a letter or a digit"));
        }
        if text.ends_with(':') || text.split('/').any(|c| matches!(c, "" | "." | "..")) {
            return Err(bad("has an empty, '.' or '..' component"));
        }
        if text.starts_with("sha256:") {
            return Err(bad("looks like a digest"));
        }
        // Encoding triples no byte and doubles few; still the file name has to fit NAME_MAX.
        let name = Self(text.to_owned());
        if name.file_name().0.len() > 255 {
            return Err(bad("has too many '/' and ':'"));
        }
        Ok(name)
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for ImageName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<ImageName> for String {
    fn from(name: ImageName) -> Self {
        name.0
    }
}

/// How a caller says which image it means.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    /// By label.
    Name(ImageName),
    /// By manifest digest.
    Digest(Digest),
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text.starts_with("sha256:") {
            text.parse().map(Self::Digest)
        } else {
            text.parse().map(Self::Name)
        }
    }
}

impl From<ImageName> for Reference {
    fn from(name: ImageName) -> Self {
        Self::Name(name)
    }
}

impl From<Digest> for Reference {
    fn from(digest: Digest) -> Self {
        Self::Digest(digest)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_that_could_leave_a_directory_are_refused() {
        for text in [
            "",
            ".",
            "..",
            "../x",
            "/x",
            "a//b",
            "a/../b",
            "a/./b",
            "a/",
            "a:",
            "-a",
            "_a",
            "a b",
            "a\nb",
            "a\0b",
            "a@b",
            "a=sb",
            "ä",
            "sha256:ab",
        ] {
            assert!(text.parse::<ImageName>().is_err(), "{text:?}");
        }
        assert!("a".repeat(201).parse::<ImageName>().is_err());
    }

    #[test]
    fn a_name_is_one_file_name() {
        let name: ImageName = "registry.example:5000/team/app:1.2".parse().unwrap();
        assert_eq!(name.file_name().0, "registry.example=c5000=steam=sapp=c1.2");
    }

    proptest! {
        #[test]
        fn every_accepted_name_survives_its_file_name(text in "[A-Za-z0-9][A-Za-z0-9._/:+-]{0,210}") {
            if let Ok(name) = text.parse::<ImageName>() {
                let file = name.file_name().0;
                prop_assert!(!file.contains('/') && file.len() <= 255 && file != "." && file != "..");
                prop_assert_eq!(FileName::decode(&file), Some(name));
            }
        }
    }
}
