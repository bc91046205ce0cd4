//! Where an image comes from.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use crate::compress::Compression;
use crate::digest::Digest;
use crate::diskimage::{self, DiskFormat, DiskOptions};
use crate::error::{Doing, Error, Fault, Result, escape};
use crate::expand::Bounded;
use crate::limits::Limits;
use crate::registry::{self, HttpsUrl, Registries, RegistryReference};
use crate::tarball::{Seeking, Skip, Streaming, Tarball, Trailer};
use crate::worker::Unpacker;

/// An image outside the store. Archives and tars may be compressed with gzip, xz or zstd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A directory in OCI image layout.
    OciLayout {
        /// The directory with `oci-layout` and `index.json`.
        dir: PathBuf,
        /// Which image, by `org.opencontainers.image.ref.name`; the only one if none.
        tag: Option<String>,
    },
    /// The same as a tar.
    OciArchive {
        /// The tar.
        file: PathBuf,
        /// Which image, as above.
        tag: Option<String>,
    },
    /// What `docker save` writes.
    DockerArchive {
        /// The tar.
        file: PathBuf,
        /// Which image, by `RepoTags`; the only one if none.
        tag: Option<String>,
    },
    /// An image in a registry.
    Registry(RegistrySource),
    /// A root file system as a tar: it becomes an image of one layer.
    RootfsTar {
        /// The tar.
        file: PathBuf,
    },
    /// The same from a web server.
    HttpsTar(HttpsSource),
    /// The disk of a virtual machine: its root file system becomes an image of one layer.
    DiskImage {
        /// The disk, raw or qcow2.
        file: PathBuf,
        /// What is said about it.
        options: DiskOptions,
    },
}

/// An image in a registry, and how registries are reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistrySource {
    /// Which image.
    pub reference: RegistryReference,
    /// Logins, proxies, exceptions.
    pub registries: Registries,
}

/// A file on a web server, what it must be, and how servers are reached: as registries are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpsSource {
    /// Where.
    pub url: HttpsUrl,
    /// Digest of the file as it comes. It must be stated; a source that was only read from text has none yet.
    pub digest: Option<Digest>,
    /// Logins, proxies, certificate authorities.
    pub registries: Registries,
}

impl Source {
    /// The same source, reached with that configuration if it is on a server.
    #[must_use]
    pub fn with_registries(self, registries: &Registries) -> Self {
        match self {
            Self::Registry(source) => {
                Self::Registry(RegistrySource { registries: registries.clone(), ..source })
            }
            Self::HttpsTar(source) => {
                Self::HttpsTar(HttpsSource { registries: registries.clone(), ..source })
            }
            other => other,
        }
    }
}

impl FromStr for Source {
    type Err = Error;

    /// Reads `docker://REFERENCE` (with the default [`Registries`]), `oci:DIR[:TAG]`, `oci-archive:FILE[:TAG]`,
    /// `docker-archive:FILE[:TAG]`, `rootfs:FILE`, `https://HOST/PATH` (without its digest), `disk:FILE[:PARTITION]` (also `raw:` and `qcow2:`, where the format
    /// is to be said), or a bare path, whose content then decides. A path that exists as written is never cut at a
    /// colon.
    ///
    /// This process looks into what a bare path names; [`Store::source`] has its worker do it.
    ///
    /// [`Store::source`]: crate::Store::source
    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text, &Unpacker::InProcess)
    }
}

impl Source {
    /// As `from_str`; what is compressed is expanded as `unpacker` says.
    pub(crate) fn parse(text: &str, unpacker: &Unpacker) -> Result<Self> {
        if text.starts_with(registry::SCHEME) {
            let source =
                RegistrySource { reference: text.parse()?, registries: Registries::default() };
            return Ok(Self::Registry(source));
        }
        if text.starts_with(registry::HTTPS) || text.starts_with("http://") {
            let (digest, registries) = (None, Registries::default());
            return Ok(Self::HttpsTar(HttpsSource { url: text.parse()?, digest, registries }));
        }
        let (scheme, rest) = text.split_once(':').unwrap_or(("", text));
        match scheme {
            "oci" => {
                let (dir, tag) = cut_tag(text, rest)?;
                Ok(Self::OciLayout { dir, tag })
            }
            "oci-archive" => {
                let (file, tag) = cut_tag(text, rest)?;
                Ok(Self::OciArchive { file, tag })
            }
            "docker-archive" => {
                let (file, tag) = cut_tag(text, rest)?;
                Ok(Self::DockerArchive { file, tag })
            }
            "rootfs" => {
                let file = path(text, rest)?;
                Ok(Self::RootfsTar { file })
            }
            "disk" => Self::disk(text, rest, None),
            "raw" => Self::disk(text, rest, Some(DiskFormat::Raw)),
            "qcow2" => Self::disk(text, rest, Some(DiskFormat::Qcow2)),
            _ => Self::look(&path(text, text)?, unpacker),
        }
    }
}

fn path(text: &str, rest: &str) -> Result<PathBuf> {
    if rest.is_empty() || rest.contains('\0') {
        return Err(refuse(text, "there is no path in it"));
    }
    Ok(rest.into())
}

fn cut_tag(text: &str, rest: &str) -> Result<(PathBuf, Option<String>)> {
    let whole = path(text, rest)?;
    if whole.exists() {
        return Ok((whole, None));
    }
    // Tags have colons too (docker's "name:tag"): cut at the first one that leaves a path which exists.
    let cut = rest.match_indices(':').map(|(at, _)| at).find(|at| Path::new(&rest[..*at]).exists());
    match cut {
        Some(at) if at + 1 < rest.len() => Ok((rest[..at].into(), Some(rest[at + 1..].into()))),
        Some(_) => Err(refuse(text, "the tag is empty")),
        None => Ok((whole, None)),
    }
}

fn refuse(from: &str, why: impl Into<String>) -> Error {
    Error::Source { from: escape(from.as_bytes()), why: why.into() }
}

/// What a file in an image archive looks like, or cannot look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sign {
    Oci,
    Docker,
    /// Both kinds have such files.
    Archive,
    Rootfs,
}

impl Source {
    /// `FILE[:PARTITION]`.
    fn disk(text: &str, rest: &str, format: Option<DiskFormat>) -> Result<Self> {
        let (file, partition) = cut_tag(text, rest)?;
        let number = |n: String| {
            n.parse().map_err(|_| refuse(text, "the partition after the last ':' is no number"))
        };
        let partition = partition.map(number).transpose()?;
        let options = DiskOptions { format, partition, ..DiskOptions::default() };
        Ok(Self::DiskImage { file, options })
    }

    /// Decides by content what a path is.
    pub fn detect(path: &Path) -> Result<Self> {
        Self::look(path, &Unpacker::InProcess)
    }

    fn look(path: &Path, unpacker: &Unpacker) -> Result<Self> {
        let shown = path.display().to_string();
        let io = |op| move |e: io::Error| Error::io(op, path.display().to_string(), e);
        if std::fs::metadata(path).map_err(io("open"))?.is_dir() {
            return if path.join("oci-layout").exists() {
                Ok(Self::OciLayout { dir: path.into(), tag: None })
            } else {
                Err(refuse(
                    &shown,
                    "the directory has no oci-layout; pack a root file system into a tar",
                ))
            };
        }
        let file = open_regular(path)?;
        if diskimage::detect(&file) {
            return Ok(Self::DiskImage { file: path.into(), options: DiskOptions::default() });
        }
        let limits = Limits::default();
        let scan = || match Compression::of(&file)? {
            Compression::None => scan(Seeking(&file), path, &limits),
            _ => {
                let file = file.try_clone().doing("duplicate descriptor of")?;
                scan(Streaming(Bounded::file(file, &limits, unpacker)?), path, &limits)
            }
        };
        scan()
            .map_err(|fault| fault.about(shown.clone()))?
            .ok_or_else(|| refuse(&shown, "it is neither an image archive nor a root file system"))
    }
}

/// Looks at the names in a tar until one tells.
fn scan<R: Skip>(
    from: R,
    path: &Path,
    limits: &Limits,
) -> std::result::Result<Option<Source>, Fault> {
    let mut budget = limits.archive_entries;
    let mut tar = Tarball::new(from, limits, &mut budget, Trailer::Optional);
    let file = || path.to_owned();
    let mut best = None;
    while let Some(entry) = tar.next()? {
        match sign(&entry.path) {
            Sign::Rootfs => return Ok(Some(Source::RootfsTar { file: file() })),
            Sign::Oci => return Ok(Some(Source::OciArchive { file: file(), tag: None })),
            // `docker save` of today writes both; the index, if there is one, says more.
            Sign::Docker => best = Some(Source::DockerArchive { file: file(), tag: None }),
            Sign::Archive => {}
        }
    }
    Ok(best)
}

fn sign(path: &[u8]) -> Sign {
    let path = path.strip_prefix(b"./").unwrap_or(path);
    let path = path.strip_suffix(b"/").unwrap_or(path);
    let is_hex = |t: &[u8]| t.len() == 64 && t.iter().all(u8::is_ascii_hexdigit);
    let first = path.split(|b| *b == b'/').next().unwrap_or_default();
    match path {
        b"oci-layout" | b"index.json" => Sign::Oci,
        b"manifest.json" => Sign::Docker,
        b"repositories" | b"" | b"." => Sign::Archive,
        _ if first == b"blobs" || is_hex(first) => Sign::Archive,
        _ if [&b".json"[..], b".tar"].iter().any(|s| path.strip_suffix(*s).is_some_and(is_hex)) => {
            Sign::Archive
        }
        _ => Sign::Rootfs,
    }
}

/// Opens a regular file; a fifo does not hang us, a device is not touched. No part of the path may be a link: who
/// names a file for others resolves it first, and what is a link afterwards was exchanged.
pub(crate) fn open_regular(path: &Path) -> Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let shown = path.display().to_string();
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let file = rustix::fs::openat2(CWD, path, flags, Mode::empty(), resolve)
        .map_err(|e| Error::io("open", shown.clone(), e))?;
    let file = File::from(file);
    let meta = file.metadata().map_err(|e| Error::io("inspect", shown.clone(), e))?;
    if meta.is_file() { Ok(file) } else { Err(refuse(&shown, "it is not a regular file")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_say_what_a_source_is() {
        let top = tempfile::tempdir().unwrap();
        let at = |name: &str| top.path().join(name);
        std::fs::create_dir(at("lay:out")).unwrap();
        File::create(at("a.tar")).unwrap();
        let text = |p: &Path| p.to_str().unwrap().to_owned();
        let parse = |t: String| t.parse::<Source>().unwrap();
        let dir = at("lay:out");
        let tag = |t: &str| Some(t.to_owned());
        assert_eq!(
            parse(format!("oci:{}", text(&dir))),
            Source::OciLayout { dir: dir.clone(), tag: None }
        );
        assert_eq!(
            parse(format!("oci:{}:v1", text(&dir))),
            Source::OciLayout { dir, tag: tag("v1") }
        );
        assert_eq!(
            parse(format!("docker-archive:{}:name:v1", text(&at("a.tar")))),
            Source::DockerArchive { file: at("a.tar"), tag: tag("name:v1") }
        );
        assert_eq!(
            parse(format!("rootfs:{}", text(&at("a.tar")))),
            Source::RootfsTar { file: at("a.tar") }
        );
        assert!(matches!("oci:".parse::<Source>(), Err(Error::Source { .. })));
        assert!(matches!("".parse::<Source>(), Err(Error::Source { .. })));
    }

    #[test]
    fn addresses_are_taken_with_tls_and_without_login_only() {
        let Source::HttpsTar(source) = "https://a.example/x.tar?sig=1".parse().unwrap() else {
            panic!()
        };
        assert_eq!(
            (source.url.to_string().as_str(), source.digest),
            ("https://a.example/x.tar", None)
        );
        for (text, want) in [
            ("http://a.example/x", "http is read and changed on the way by anybody; use https"),
            ("https://u:p@a.example/x", "the address has user information"),
            ("https:///x", "the address has a bad host"),
        ] {
            let Err(Error::Source { from, why }) = text.parse::<Source>() else { panic!("{text}") };
            assert_eq!((from.as_str(), why.as_str()), (text, want));
        }
    }

    #[test]
    fn the_first_telling_file_decides_what_a_tar_is() {
        let hex = "a".repeat(64);
        for (path, want) in [
            ("oci-layout".to_owned(), Sign::Oci),
            ("./index.json".into(), Sign::Oci),
            ("manifest.json".into(), Sign::Docker),
            ("blobs/sha256/".into(), Sign::Archive),
            (format!("{hex}.json"), Sign::Archive),
            (format!("{hex}/layer.tar"), Sign::Archive),
            ("./".into(), Sign::Archive),
            ("./etc/manifest.json".into(), Sign::Rootfs),
            ("bin".into(), Sign::Rootfs),
        ] {
            assert_eq!(sign(path.as_bytes()), want, "{path}");
        }
    }
}
