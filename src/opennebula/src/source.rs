//! `SOURCE` of an image: what a datastore driver printed when it took the image in, and what every later call names.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ocivisor_core::error::Error;
use ocivisor_core::spec::normal_path;

use crate::{clip, decimal, invalid};

/// Where an image's content is.
///
/// oned hands a text with a colon to transfer drivers as it is, others with `<front-end>:` before it. Neither
/// may hold blanks: the lines of a transfer are split at them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageSource {
    /// A container image: `ocivisor:<image id>[@sha256:<hex>]`.
    Container {
        /// Its number in OpenNebula.
        image: u32,
        /// Digest of its manifest, 64 hexadecimal digits; none where the content comes after the name.
        manifest: Option<String>,
    },
    /// A data disk: an absolute and normal path below the datastore's directory.
    File(PathBuf),
}

const SCHEME: &str = "ocivisor:";

impl FromStr for ImageSource {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = || invalid(format!("{:?} is no SOURCE of an image of ocivisor's", clip(text)));
        let Some(rest) = text.strip_prefix(SCHEME) else {
            let plain = !text.contains(|c: char| c == ':' || c.is_whitespace());
            let path = normal_path(Path::new(text)).filter(|path| plain && path.parent().is_some());
            return path.map(Self::File).ok_or_else(bad);
        };
        let (number, manifest) = match rest.split_once('@') {
            Some((number, digest)) => (number, Some(manifest(digest).ok_or_else(bad)?)),
            None => (rest, None),
        };
        Ok(Self::Container { image: decimal(number).ok_or_else(bad)?, manifest })
    }
}

fn manifest(digest: &str) -> Option<String> {
    let hex = digest.strip_prefix("sha256:")?;
    let plain = hex.len() == 64 && hex.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
    plain.then(|| hex.to_owned())
}

impl fmt::Display for ImageSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Container { image, manifest: Some(hex) } => {
                write!(f, "{SCHEME}{image}@sha256:{hex}")
            }
            Self::Container { image, manifest: None } => write!(f, "{SCHEME}{image}"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_read_as_they_are_written() {
        let digest = format!("ocivisor:12@sha256:{}", "0a".repeat(32));
        for text in [digest.as_str(), "ocivisor:0", "/var/lib/one/datastores/100/abc"] {
            assert_eq!(text.parse::<ImageSource>().unwrap().to_string(), text);
        }
        let doubled: ImageSource = "/var/lib/one//datastores/1/x".parse().unwrap();
        assert_eq!(doubled, ImageSource::File("/var/lib/one/datastores/1/x".into()));
    }

    #[test]
    fn others_are_refused() {
        let upper = format!("ocivisor:1@sha256:{}", "0A".repeat(32));
        let short = format!("ocivisor:1@sha256:{}", "0a".repeat(31));
        for bad in [
            "",
            "x",
            "ocivisor:",
            "ocivisor:01",
            "ocivisor:-1",
            "ocivisor:1@",
            "ocivisor:1 ",
            "docker://nginx",
            "/a/../b",
            "/",
            "/a b",
            "/a:b",
            &upper,
            &short,
        ] {
            assert!(bad.parse::<ImageSource>().is_err(), "{bad:?}");
        }
    }
}
