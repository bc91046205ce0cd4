//! `PATH` of an image: where a user says that its content is.
//!
//! | text | |
//! |---|---|
//! | `docker://HOST/NAME[:TAG][@sha256:HEX]` | an image in a registry |
//! | `https://…`, `http://…` | a file on a web server |
//! | `dockerfile:///PATH` | a Dockerfile, or a directory with one, on the front-end |
//! | `oci:/PATH[:TAG]`, `oci-archive:/PATH[:TAG]`, `docker-archive:/PATH[:TAG]`, `rootfs:/PATH`, `disk:/PATH`, `raw:/PATH`, `qcow2:/PATH` | a file or directory on the front-end, and what it is |
//! | `/PATH` | a file or directory on the front-end; what it is says its content |
//!
//! The command line (`oneimage create --path`) knows `http`, `https`, `ssh`, `s3`, `rbd` and `lxd`, takes all else for a file
//! and puts the directory that it runs in before it: `/home/me/docker://HOST/NAME`. That is taken off again.
//!
//! Registries and Dockerfiles may have `?size=MIB&…`, as before OpenNebula 6.10: `size` is how large a VM's disk is to be
//! at least, everything else has no meaning any more and is told.

use std::path::PathBuf;

use ocivisor_core::error::Error;

use crate::{clip, decimal, invalid};

/// Where an image's content is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a registry.
    Registry {
        /// `docker://…` without parameters.
        reference: String,
        /// `size`, in MiB.
        size_mb: Option<u64>,
        /// Names of parameters that mean nothing.
        ignored: Vec<String>,
    },
    /// On a web server.
    Web {
        /// The address.
        url: String,
    },
    /// To be built.
    Dockerfile {
        /// The file, or the directory that has one; absolute.
        path: PathBuf,
        /// `size`, in MiB.
        size_mb: Option<u64>,
        /// Names of parameters that mean nothing.
        ignored: Vec<String>,
    },
    /// On the front-end.
    Local {
        /// What it is said to be, `oci-archive` for example; none if its content says so.
        scheme: Option<&'static str>,
        /// Absolute, with whatever follows a colon: only the file system tells where a tag begins.
        path: PathBuf,
    },
}

const SCHEMES: [&str; 7] =
    ["oci", "oci-archive", "docker-archive", "rootfs", "disk", "raw", "qcow2"];

impl Place {
    /// Reads a `PATH`.
    ///
    /// # Errors
    /// It is none of these.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let bad = |why: &str| invalid(format!("PATH {:?} {why}", clip(text)));
        if text.is_empty() {
            return Err(invalid("PATH is empty").hint("name an image, a file or an address"));
        }
        if text.chars().any(char::is_control) {
            return Err(bad("has control characters"));
        }
        let text = as_typed(text);
        if text.starts_with("docker://") {
            let (reference, size_mb, ignored) = parameters(text)?;
            return Ok(Self::Registry { reference: reference.into(), size_mb, ignored });
        }
        if text.starts_with("https://") || text.starts_with("http://") {
            return Ok(Self::Web { url: text.to_owned() });
        }
        let absolute = |path: &str| {
            let wanted = || bad("does not name an absolute path");
            path.starts_with('/').then(|| PathBuf::from(path)).ok_or_else(wanted)
        };
        if let Some(rest) = text.strip_prefix("dockerfile://") {
            let (path, size_mb, ignored) = parameters(rest)?;
            return Ok(Self::Dockerfile { path: absolute(path)?, size_mb, ignored });
        }
        if text.starts_with('/') {
            return Ok(Self::Local { scheme: None, path: absolute(text)? });
        }
        let relative = || bad("is no absolute path").hint("name a file from / on, or docker://…");
        let (scheme, rest) = text.split_once(':').ok_or_else(relative)?;
        let known = SCHEMES.into_iter().find(|known| *known == scheme);
        let Some(scheme) = known.filter(|_| !rest.starts_with("//")) else {
            if !rest.starts_with('/') {
                return Err(relative());
            }
            let schemes = SCHEMES.map(|scheme| format!("{scheme}:/path")).join(", ");
            return Err(bad("begins with what is not known").hint(format!(
                "images come by docker://…, https://…, dockerfile:///path, {schemes} or /path"
            )));
        };
        Ok(Self::Local { scheme: Some(scheme), path: absolute(rest)? })
    }
}

/// What a user typed, without the directory that the command line put before it.
fn as_typed(text: &str) -> &str {
    if !text.starts_with('/') {
        return text;
    }
    let schemes = ["docker:", "dockerfile:"].into_iter().map(str::to_owned);
    let schemes = schemes.chain(SCHEMES.map(|scheme| format!("{scheme}:")));
    let places = schemes.filter_map(|scheme| text.find(&format!("/{scheme}/")));
    places.min().map_or(text, |at| &text[at + 1..])
}

/// Cuts `?a=b&c=d` off.
fn parameters(text: &str) -> Result<(&str, Option<u64>, Vec<String>), Error> {
    let Some((before, query)) = text.split_once('?') else {
        return Ok((text, None, Vec::new()));
    };
    let (mut size, mut ignored) = (None, Vec::new());
    for part in query.split('&').filter(|part| !part.is_empty()) {
        match part.split_once('=') {
            Some(("size", number)) => {
                let bad = || invalid(format!("size {:?} in PATH is no number", clip(number)));
                size = Some(decimal(number).filter(|n| *n > 0).ok_or_else(bad)?.into());
            }
            other if ignored.len() < 8 => {
                ignored.push(clip(other.map_or(part, |(name, _)| name)));
            }
            _ => {}
        }
    }
    Ok((before, size, ignored))
}
