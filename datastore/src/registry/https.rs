//! A file from a web server, for which the user stated a digest: a root file system as a tar.
//!
//! It comes the way blobs of registries come (`download`), with the same TLS, logins, redirects, addresses and waits. What
//! differs is that nobody said how long it is, so the server's own word for that is taken up to the limit; whether the
//! bytes are right is said by the digest alone, in the end. And nobody reads it before it is whole, so that what an earlier
//! process left and the server does not confirm can be thrown away at once.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::str::FromStr;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::Registries;
use super::download::{Download, Told};
use super::fault::RegistryFault as Fault;
use super::part::{Part, Parts, Size};
use super::session::Session;
use super::url::Url;
use crate::digest::Digest;
use crate::error::{Error, Refusal, Result, escape};
use crate::limits::Limits;
use crate::source::HttpsSource;
use crate::store::Store;

/// How a source starts that is a file on a web server.
pub(crate) const SCHEME: &str = "https://";

/// Where a file is: `https://host[:port]/path[?query]`.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpsUrl(pub(super) Url);

impl HttpsUrl {
    /// As by `from_str`; without TLS for hosts that configuration allows to do without (`plain_http`).
    pub fn of(text: &str, registries: &Registries) -> Result<Self> {
        match Url::parse(text) {
            Ok(url) if !url.origin.tls && registries.is_plain(&url.origin) => Ok(Self(url)),
            _ => text.parse(),
        }
    }
}

impl FromStr for HttpsUrl {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |why: String| Error::Source { from: escape(text.as_bytes()), why };
        let url = Url::parse(text).map_err(|why| bad(format!("the address {why}")))?;
        if !url.origin.tls {
            return Err(bad("http is read and changed on the way by anybody; use https".into()));
        }
        Ok(Self(url))
    }
}

/// Without the query, which may hold a signature.
impl fmt::Display for HttpsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.shown())
    }
}

impl fmt::Debug for HttpsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HttpsUrl").field(&self.0.shown()).finish()
    }
}

/// A file on its way here.
pub(crate) struct HttpsFile {
    session: Arc<Session>,
    url: Url,
    digest: Digest,
    parts: Parts,
    /// Most bytes that it may have.
    max: u64,
}

impl HttpsFile {
    pub fn open(
        store: &Store,
        source: &HttpsSource,
        digest: Digest,
        limits: &Limits,
    ) -> Result<Self> {
        let url = source.url.0.clone();
        let session = Arc::new(Session::file(&source.registries, &url)?);
        store.cancel.interrupts(&session);
        let parts = Parts::open(store)?;
        parts.clean().map_err(|e| store.io("clean", "partial", e))?;
        Ok(Self { session, url, digest, parts, max: limits.image_bytes })
    }

    /// Brings the whole file here. Its digest is the reader's to check.
    pub fn fetch(&self, told: Told<'_>) -> Result<Arc<Part>> {
        loop {
            let part = Arc::new(Part::new(self.digest, Size::AtMost(self.max)));
            let download = Download {
                session: &self.session,
                parts: &self.parts,
                part: &part,
                url: &|_| self.url.clone(),
                object: self.session.place().to_owned(),
            };
            match download.run(told) {
                // An earlier process left something else, or the server has something else now.
                Err(Error::Registry { why: Fault::Changed, .. }) if part.found() > 0 => {}
                done => {
                    done?;
                    part.end(Ok(()));
                    return Ok(part);
                }
            }
        }
    }

    /// Puts the file, found right, under a name; synced.
    pub fn settle(&self, part: &Arc<Part>, to: &File, name: &str) -> Result<()> {
        let object = || format!("blobs/sha256/{}", self.digest.hex());
        part.settle(&self.parts, to, name).map_err(|e| Error::io("write", object(), e))
    }

    /// Hears that the file's bytes have their place in the store.
    pub fn published(&self, part: &Part) -> Result<()> {
        let object = || format!("partial/{}", self.digest.hex());
        self.parts.published(part).map_err(|e| Error::io("remove", object(), e))
    }

    /// Hears that the file could not be used. Returns what is to be said of it, or none if it is to be fetched again.
    pub fn failed(&self, part: &Arc<Part>, error: Error) -> Result<Option<Error>> {
        if !matches!(error, Error::Refused { .. }) {
            return Ok(Some(error));
        }
        let object = format!("partial/{}", self.digest.hex());
        let mut hasher = Sha256::new();
        let (mut reader, mut buf) = (part.reader(), vec![0; 128 * 1024]);
        loop {
            match reader.read(&mut buf).map_err(|e| Error::io("read", &*object, e))? {
                0 => break,
                n => hasher.update(&buf[..n]),
            }
        }
        let got = Digest::finish(hasher);
        self.parts.discard(part).map_err(|e| Error::io("remove", object, e))?;
        if got == self.digest {
            return Ok(Some(error));
        }
        // What an earlier process left may have been cut by a power failure: once more from the start.
        if part.found() > 0 {
            return Ok(None);
        }
        // Whatever the unpacker did not like: these are other bytes than were wanted.
        let why = Refusal::Digest { expected: self.digest, got };
        Ok(Some(Error::Refused { object: self.session.place().into(), why }))
    }
}

impl Drop for HttpsFile {
    fn drop(&mut self) {
        self.session.end();
    }
}
