//! Digests: the only names the store trusts.
//!
//! Only sha256 is accepted. A digest is parsed once, at the boundary, into 32 bytes, and every file name
//! is made from those bytes, so text such as `sha256:../../x` never reaches a path (CVE-2024-3727).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::error::{Error, escape};

/// A sha256 digest, written `sha256:` and 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self::finish(Sha256::new_with_prefix(bytes))
    }

    pub(crate) fn finish(hasher: Sha256) -> Self {
        Self(hasher.finalize().into())
    }

    /// The 64 hex digits without the algorithm: the name of a blob's file.
    #[must_use]
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }

    /// Reads the 64 lower-case hex digits of a file name.
    pub(crate) fn from_hex(text: &str) -> Option<Self> {
        // `hex` also takes capitals, and two names for one blob would be two blobs.
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            return None;
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).ok()?;
        Some(Self(bytes))
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = |why| Error::BadDigest { text: escape(text.as_bytes()), why };
        let (algorithm, digits) = text.split_once(':').ok_or_else(|| bad("no algorithm"))?;
        if algorithm != "sha256" {
            return Err(bad("only sha256 is supported"));
        }
        Self::from_hex(digits).ok_or_else(|| bad("not 64 lower-case hex digits"))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for Digest {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// The digest of a layer's uncompressed tar: the layer's name, whatever its compression was.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DiffId(pub Digest);

impl DiffId {
    /// The 64 hex digits: the name of the layer's directory.
    #[must_use]
    pub fn hex(&self) -> String {
        self.0.hex()
    }
}

impl FromStr for DiffId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        text.parse().map(Self)
    }
}

impl fmt::Display for DiffId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for DiffId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn digest_of_nothing_is_the_known_one() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        assert_eq!(EMPTY.parse::<Digest>().unwrap(), Digest::of(b""));
    }

    #[test]
    fn only_one_spelling_is_accepted() {
        let capitals = EMPTY.to_uppercase().replace("SHA256", "sha256");
        for (text, want) in [
            ("", "no algorithm"),
            ("e3b0", "no algorithm"),
            ("sha512:00", "only sha256 is supported"),
            ("sha256:../../x", "not 64 lower-case hex digits"),
            ("sha256:e3b0", "not 64 lower-case hex digits"),
            (capitals.as_str(), "not 64 lower-case hex digits"),
        ] {
            match text.parse::<Digest>() {
                Err(Error::BadDigest { why, .. }) => assert_eq!(why, want, "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
    }
}
